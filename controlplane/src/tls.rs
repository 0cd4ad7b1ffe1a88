//! The TLS side: a P-256 key and a certificate for every advertised address, and TLS 1.3 alone.
//!
//! Nodes do not trust this certificate, they trust a statement about its key (see `api::challenge`). Other clients may
//! take the certificate as their trust anchor, so it names every address, and Ed25519 is avoided: many cannot use it.

use std::{path::Path, sync::Arc};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::NoServerSessionStorage,
    version::TLS13,
};
use sha2::{Digest as _, Sha256};

use crate::state_dir::{self, FileError};

/// The name of the certificate in the state directory; anybody may read it.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// The name of the private key in the state directory.
pub const KEY_FILE: &str = "tls.key";

/// The key and certificate that a coordinator shows.
#[derive(Debug, Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    certificate_pem: String,
    key_hash: [u8; 32],
}

impl Identity {
    /// Loads key and certificate from `directory`. Makes what is missing, and a new certificate for the same key if the
    /// one there does not name every one of `endpoints` (`host:port`).
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(directory: &Path, endpoints: &[String]) -> Result<Self, FileError> {
        let key = load_key(&directory.join(KEY_FILE))?;
        let names = names(endpoints);
        let path = directory.join(CERTIFICATE_FILE);
        let found = state_dir::read(&path)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let certificate_pem = match found.filter(|pem| fits(pem, &key, &names)) {
            Some(pem) => pem,
            None => {
                let pem =
                    certify(&key, names).map_err(|error| FileError::damaged(&path, error.to_string()))?;
                state_dir::replace(&path, 0o644, pem.as_bytes())?;
                tracing::info!(event = "tls_certificate_made", path = %path.display(), "made a TLS certificate for the advertised addresses");
                pem
            }
        };
        let config = server_config(&certificate_pem, &key).map_err(|error| {
            FileError::damaged(&path, format!("{error}; remove it and {KEY_FILE} to have new ones made"))
        })?;
        let key_hash = Sha256::digest(key.subject_public_key_info()).into();
        Ok(Self { config: Arc::new(config), certificate_pem, key_hash })
    }

    /// The certificate as PEM, for clients that are told to trust it.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// SHA-256 of the key's SubjectPublicKeyInfo, which the coordinator's statement names.
    #[must_use]
    pub const fn key_hash(&self) -> &[u8; 32] {
        &self.key_hash
    }

    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

/// Reads the certificate of a coordinator's state directory as PEM, whether or not the coordinator runs.
///
/// # Errors
/// [`FileError`], also if no coordinator has been started with this directory yet.
pub fn certificate_pem(directory: &Path) -> Result<String, FileError> {
    let path = directory.join(CERTIFICATE_FILE);
    let bytes = state_dir::read(&path)?.ok_or_else(|| {
        FileError::damaged(&path, "there is none yet; start the coordinator once to have it made")
    })?;
    String::from_utf8(bytes)
        .map_err(|_| FileError::damaged(&path, "is not PEM; remove it and restart the coordinator"))
}

fn load_key(path: &Path) -> Result<KeyPair, FileError> {
    if let Some(pem) = state_dir::read(path)? {
        let pem = zeroize::Zeroizing::new(pem);
        let text = std::str::from_utf8(&pem).unwrap_or_default();
        return KeyPair::from_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256)
            .map_err(|error| FileError::damaged(path, format!("{error}; remove it to have a new one made")));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|error| FileError::damaged(path, format!("cannot make a key: {error}")))?;
    state_dir::replace(path, 0o600, zeroize::Zeroizing::new(key.serialize_pem()).as_bytes())?;
    Ok(key)
}

/// The hosts of `host:port`, without brackets and repetitions.
fn names(endpoints: &[String]) -> Vec<String> {
    let host = |endpoint: &String| {
        let host = endpoint.rsplit_once(':').map_or(endpoint.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').to_owned()
    };
    let mut names: Vec<String> = endpoints.iter().map(host).collect();
    // An operator on the machine itself can always use it.
    names.extend(["localhost".into(), "127.0.0.1".into(), "::1".into()]);
    names.sort();
    names.dedup();
    names
}

fn certify(key: &KeyPair, names: Vec<String>) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Ringmesh coordinator");
    // Its dates protect nobody, and would only fail clients whose clocks are off; the end is RFC 5280's "no good end".
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.self_signed(key)?.pem())
}

/// Whether a certificate is for this key and valid for every name.
fn fits(pem: &str, key: &KeyPair, names: &[String]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok(certificate) = webpki::EndEntityCert::try_from(&der) else { return false };
    let valid = |name: &String| {
        ServerName::try_from(name.as_str())
            .is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    };
    certificate.subject_public_key_info().as_ref() == key.subject_public_key_info() && names.iter().all(valid)
}

fn server_config(certificate_pem: &str, key: &KeyPair) -> Result<ServerConfig, rustls::Error> {
    let unreadable = |_| rustls::Error::General("the certificate is not PEM".into());
    let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(unreadable)?;
    let key =
        PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| rustls::Error::General(error.into()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    // Who offers both gets HTTP/2, as nodes do.
    config.alpn_protocols = [crate::server::H2, crate::server::HTTP_1_1].map(<[u8]>::to_vec).into();
    // No resumption: each connection proves the key anew and has an exporter of its own.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn endpoints(hosts: &[&str]) -> Vec<String> {
        hosts.iter().map(|host| format!("{host}:443")).collect()
    }

    #[test]
    fn the_certificate_stays_until_an_address_is_missing_in_it_and_the_key_stays_for_good() {
        let directory = tempfile::tempdir().unwrap();
        let open = |hosts: &[&str]| Identity::open(directory.path(), &endpoints(hosts)).unwrap();
        let first = open(&["mesh.example.org", "192.0.2.1", "[2001:db8::1]"]);
        let again = open(&["mesh.example.org", "192.0.2.1", "[2001:db8::1]"]);
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let moved = open(&["mesh.example.org", "192.0.2.2"]);
        assert_ne!(first.certificate_pem(), moved.certificate_pem());
        assert_eq!(first.key_hash(), moved.key_hash());
        assert_eq!(certificate_pem(directory.path()).unwrap(), moved.certificate_pem());
        let mode = std::fs::metadata(directory.path().join(KEY_FILE)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_certificate_names_every_address() {
        let directory = tempfile::tempdir().unwrap();
        let identity =
            Identity::open(directory.path(), &endpoints(&["mesh.example.org", "192.0.2.1", "[2001:db8::1]"]))
                .unwrap();
        let der = CertificateDer::from_pem_slice(identity.certificate_pem().as_bytes()).unwrap();
        let certificate = webpki::EndEntityCert::try_from(&der).unwrap();
        for (name, expected) in [
            ("mesh.example.org", true),
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("localhost", true),
            ("other.example.org", false),
            ("192.0.2.9", false),
        ] {
            let name = ServerName::try_from(name).unwrap();
            assert_eq!(certificate.verify_is_valid_for_subject_name(&name).is_ok(), expected, "{name:?}");
        }
        let hash: [u8; 32] = Sha256::digest(certificate.subject_public_key_info()).into();
        assert_eq!(identity.key_hash(), &hash);
    }

    #[test]
    fn a_damaged_key_is_named_and_a_damaged_certificate_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let identity = Identity::open(directory.path(), &[]).unwrap();
        std::fs::write(directory.path().join(CERTIFICATE_FILE), "nonsense").unwrap();
        let again = Identity::open(directory.path(), &[]).unwrap();
        assert_eq!(identity.key_hash(), again.key_hash());
        std::fs::write(directory.path().join(KEY_FILE), "nonsense").unwrap();
        let error = Identity::open(directory.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("tls.key") && error.contains("remove it"), "{error}");
    }
}
