//! The node's one long-lived key: an OpenSSH Ed25519 private key, generated here or brought by the user.
//!
//! The X25519 key of the sessions follows from it, so that there is one thing to keep and one thing to lose.

use ringmesh_tunnel::key::{IdentityKey, IdentitySecret, SecretKey};
use ssh_key::{
    LineEnding, PrivateKey,
    private::{Ed25519Keypair, KeypairData},
};
use zeroize::Zeroizing;

use super::directory::{StateDir, StateFile};
use crate::error::Failure;

/// What to do about any key that is not a plain Ed25519 one.
const CURE: &str =
    "make one with `ssh-keygen -t ed25519 -N '' -f FILE`, or leave --identity out to have one made";

/// The identity key pair, and how it is written.
pub(crate) struct Identity {
    secret: IdentitySecret,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.public_key().fingerprint()).finish()
    }
}

impl Identity {
    /// A fresh key.
    pub(crate) fn generate() -> Self {
        Self { secret: IdentitySecret::generate() }
    }

    /// Takes a key from the PEM text of an OpenSSH private key.
    ///
    /// # Errors
    /// It is encrypted, of another kind (RSA, ECDSA, a hardware key) or no private key at all; the message says how to get
    /// one that will do.
    pub(crate) fn import(pem: &str) -> Result<Self, Failure> {
        let refuse = |what: &str| Failure::invalid(format!("unsupported identity key: {what}; {CURE}"));
        let trimmed = pem.trim_start();
        if trimmed.starts_with("ssh-") || trimmed.starts_with("ecdsa-") || trimmed.starts_with("sk-") {
            return Err(refuse(
                "this is the public half of a key; the private file has no `.pub` at its end",
            ));
        }
        if trimmed.starts_with("-----BEGIN") && !trimmed.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----") {
            return Err(refuse("it is a PEM file, but not in OpenSSH's own format"));
        }
        let key = PrivateKey::from_openssh(pem)
            .map_err(|error| refuse(&format!("it cannot be read as an OpenSSH private key ({error})")))?;
        match key.key_data() {
            KeypairData::Ed25519(pair) => {
                Ok(Self { secret: IdentitySecret::from_seed(pair.private.to_bytes()) })
            }
            KeypairData::Encrypted(_) => Err(Failure::invalid(
                "unsupported identity key: it is protected by a passphrase, and a daemon has nobody to ask; \
                 decrypt a copy with `ssh-keygen -p -N '' -f COPY`, or leave --identity out to have a key made",
            )),
            KeypairData::SkEd25519(_) | KeypairData::SkEcdsaSha2NistP256(_) => Err(refuse(
                "it lives in a hardware key, which signs but cannot do the key agreement of a session",
            )),
            KeypairData::Rsa(_) => Err(refuse("it is an RSA key")),
            KeypairData::Ecdsa(_) => Err(refuse("it is an ECDSA key")),
            KeypairData::Dsa(_) => Err(refuse("it is a DSA key")),
            KeypairData::Other(_) | _ => Err(refuse("it is not an Ed25519 key")),
        }
    }

    /// Reads the key from the state directory; `None` if there is none.
    ///
    /// # Errors
    /// The file is corrupt; it is left as it is.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>, Failure> {
        let Some(content) = state.read(StateFile::Identity)? else { return Ok(None) };
        let text = std::str::from_utf8(&content).map_err(|_| corrupt(state, "it is not text"))?;
        match Self::import(text) {
            Ok(identity) => Ok(Some(identity)),
            Err(failure) => Err(corrupt(state, &failure.to_string())),
        }
    }

    /// What it means that a joined node has no key.
    pub(crate) fn missing(state: &StateDir) -> Failure {
        corrupt(state, "it is missing")
    }

    /// Writes the key to the state directory.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn save(&self, state: &StateDir) -> Result<(), Failure> {
        state.write(StateFile::Identity, self.to_pem()?.as_bytes())
    }

    fn to_pem(&self) -> Result<Zeroizing<String>, Failure> {
        let pair = Ed25519Keypair::from_seed(self.secret.seed());
        PrivateKey::new(KeypairData::Ed25519(pair), "ringmesh")
            .and_then(|key| key.to_openssh(LineEnding::LF))
            .map_err(|error| Failure::corrupt(format!("writing the identity key as OpenSSH PEM: {error}")))
    }

    /// The public half.
    pub(crate) fn public_key(&self) -> IdentityKey {
        self.secret.public_key()
    }

    /// The signing half.
    pub(crate) fn secret(&self) -> &IdentitySecret {
        &self.secret
    }

    /// The key of the sessions, which follows from this one.
    pub(crate) fn noise_secret(&self) -> SecretKey {
        self.secret.noise_secret()
    }
}

fn corrupt(state: &StateDir, why: &str) -> Failure {
    let key = state.path_of(StateFile::Identity);
    let network = state.path_of(StateFile::Network);
    let (key, network) = (key.display(), network.display());
    Failure::corrupt(format!(
        "the identity key in {key} cannot be used ({why}); restore it from a backup, or give the membership up \
         (`mv {key} {key}.broken; mv {network} {network}.broken`) and join again"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with `ssh-keygen -t ecdsa|rsa|ed25519`, for these tests only.
    const ECDSA: &str = include_str!("testdata/ecdsa");
    const RSA: &str = include_str!("testdata/rsa");
    const RSA_PEM: &str = include_str!("testdata/rsa.pem");
    const ENCRYPTED: &str = include_str!("testdata/encrypted");
    const PLAIN: &str = include_str!("testdata/ed25519");
    const PLAIN_PUB: &str = include_str!("testdata/ed25519.pub");
    const HARDWARE: &str = include_str!("testdata/sk");

    #[test]
    fn an_ssh_keygen_key_gives_the_public_key_ssh_keygen_names() {
        let identity = Identity::import(PLAIN).unwrap();
        let public = ssh_key::PublicKey::from_openssh(PLAIN_PUB).unwrap();
        assert_eq!(public.key_data().ed25519().unwrap().0, *identity.public_key().as_bytes());
        assert_eq!(
            public.fingerprint(ssh_key::HashAlg::Sha256).to_string(),
            identity.public_key().fingerprint()
        );
    }

    #[test]
    fn the_key_survives_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        assert!(Identity::load(&state).unwrap().is_none());
        let identity = Identity::generate();
        identity.save(&state).unwrap();
        let loaded = Identity::load(&state).unwrap().unwrap();
        assert_eq!(loaded.public_key(), identity.public_key());
        assert_eq!(loaded.noise_secret().public_key(), identity.public_key().noise_key());
    }

    #[test]
    fn unsupported_keys_are_refused_with_what_they_are_and_the_cure() {
        for (pem, what) in [
            (ECDSA, "ECDSA"),
            (RSA, "RSA"),
            (RSA_PEM, "OpenSSH's own format"),
            (ENCRYPTED, "passphrase"),
            (HARDWARE, "hardware key"),
            (PLAIN_PUB, "public half"),
            ("hello", "cannot be read"),
            ("", "cannot be read"),
        ] {
            let failure = Identity::import(pem).unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(what), "{what}: {text}");
            assert!(text.contains("ssh-keygen"), "{what} names the cure: {text}");
            assert_eq!(failure.code(), tonic::Code::InvalidArgument, "{what}");
        }
    }

    #[test]
    fn a_corrupt_key_file_is_named_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let broken = PLAIN.replacen("b3Bl", "b3Bm", 1);
        assert_ne!(broken, PLAIN);
        state.write(StateFile::Identity, broken.as_bytes()).unwrap();
        let failure = Identity::load(&state).unwrap_err();
        assert_eq!(failure.code(), tonic::Code::DataLoss);
        assert!(failure.to_string().contains(&state.path_of(StateFile::Identity).display().to_string()));
        assert_eq!(state.read(StateFile::Identity).unwrap().unwrap().as_slice(), broken.as_bytes());
    }

    #[test]
    fn printing_an_identity_shows_no_secret() {
        let identity = Identity::import(PLAIN).unwrap();
        let shown = format!("{identity:?}");
        assert!(shown.contains("SHA256:") && shown.len() < 80, "{shown}");
    }
}
