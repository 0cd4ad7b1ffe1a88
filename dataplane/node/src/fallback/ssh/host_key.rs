//! Which host keys of an SSH server are right: named beforehand, since nobody is there to be asked.

use std::path::Path;

use russh::keys::{
    Algorithm, HashAlg, PublicKey,
    known_hosts::known_host_keys_path,
    ssh_key::{EcdsaCurve, Fingerprint},
};

use crate::config::SshRoad;

/// The host keys that will do for one server.
#[derive(Debug, Clone)]
pub(super) enum Expected {
    Fingerprint(Fingerprint),
    Keys(Vec<PublicKey>),
}

impl Expected {
    /// What the server of a road must show.
    ///
    /// # Errors
    /// The file of known hosts cannot be read or does not name the server, or the key is none.
    pub(super) fn of(road: &SshRoad) -> Result<Self, String> {
        if let Some(path) = &road.known_hosts {
            return known(path, &road.host.host, road.host.port).map(Self::Keys);
        }
        let pin = road.host_key.as_deref().unwrap_or_default().trim();
        if pin.starts_with("SHA256:") {
            let fingerprint = pin.parse().map_err(|_| format!("host_key = \"{pin}\" is no fingerprint"))?;
            return Ok(Self::Fingerprint(fingerprint));
        }
        let key = PublicKey::from_openssh(pin)
            .map_err(|_| format!("host_key = \"{pin}\" is neither a fingerprint nor a public key"))?;
        Ok(Self::Keys(vec![key]))
    }
}

fn known(path: &Path, host: &str, port: u16) -> Result<Vec<PublicKey>, String> {
    let shown = path.display();
    // The library takes a file that cannot be read for an empty one.
    std::fs::File::open(path).map_err(|error| format!("reading {shown}: {error}"))?;
    let found =
        known_host_keys_path(host, port, path).map_err(|error| format!("reading {shown}: {error}"))?;
    if found.is_empty() {
        let name = if port == 22 { host.to_owned() } else { format!("[{host}]:{port}") };
        return Err(format!(
            "{shown} has no line for {name}: compare the key on the server, then add it (`ssh-keyscan -p {port} {host} >> {shown}`)"
        ));
    }
    Ok(found.into_iter().map(|(_, key)| key).collect())
}

impl Expected {
    pub(super) fn accepts(&self, shown: &PublicKey) -> bool {
        match self {
            Self::Fingerprint(fingerprint) => shown.fingerprint(HashAlg::Sha256) == *fingerprint,
            Self::Keys(keys) => keys.iter().any(|key| key.key_data() == shown.key_data()),
        }
    }

    /// The kinds of keys to ask the server for: one of a kind that is not expected would be of no use.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let all = [
            Algorithm::Ed25519,
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
            Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        ];
        match self {
            Self::Fingerprint(_) => all.into(),
            Self::Keys(keys) => {
                all.into_iter().filter(|kind| keys.iter().any(|key| key.algorithm() == *kind)).collect()
            }
        }
    }
}
