//! Secrets at rest: wrapped by a key that lies in a file of its own, so that the database alone gives nothing away.
//!
//! A wrapped secret is bound to the store key it lies under: moved to another place, it does not open.

use std::{fmt, path::Path};

use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use zeroize::Zeroizing;

use crate::state_dir::{self, FileError};

/// The name of the key file in the state directory.
pub const FILE: &str = "key";

/// Length of the nonce before the ciphertext.
const NONCE: usize = 24;

/// Seals and opens secrets for the store.
pub struct Vault(XChaCha20Poly1305);

/// A wrapped secret that does not open: the key file is another one, or the bytes were altered. The cure is of whoever needs it: a state
/// directory is restored as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stored secret does not open: the file `key` in the state directory is not the one it was sealed with"
)]
pub struct Unopenable;

impl Vault {
    /// Reads the key file of `directory`. Makes one if there is none and `fresh`, which says that nothing is sealed yet.
    ///
    /// # Errors
    /// [`FileError`]: also if the file is missing while there are sealed secrets, or has another length or mode.
    pub fn open(directory: &Path, fresh: bool) -> Result<Self, FileError> {
        let path = directory.join(FILE);
        let key = match state_dir::read(&path)? {
            Some(bytes) => Zeroizing::new(bytes),
            None if fresh => {
                let mut key = Zeroizing::new(vec![0; 32]);
                random(&mut key);
                state_dir::replace(&path, 0o600, &key)?;
                key
            }
            None => {
                let detail = "missing, and the database's secrets cannot be opened without it; restore it from a backup";
                return Err(FileError::damaged(&path, detail));
            }
        };
        let cipher = XChaCha20Poly1305::new_from_slice(&key).map_err(|_| {
            FileError::damaged(
                &path,
                format!("has {} bytes instead of 32; restore it from a backup", key.len()),
            )
        })?;
        Ok(Self(cipher))
    }

    /// Seals `secret` for the place `key`.
    #[must_use]
    pub fn seal(&self, key: &str, secret: &[u8]) -> Vec<u8> {
        let mut sealed = vec![0; NONCE];
        random(&mut sealed);
        let nonce = XNonce::try_from(sealed.as_slice()).expect("invariant: 24 bytes");
        let payload = Payload { msg: secret, aad: key.as_bytes() };
        sealed.extend(self.0.encrypt(&nonce, payload).expect("invariant: a secret is shorter than 256 GB"));
        sealed
    }

    /// Opens what was sealed for the place `key`.
    ///
    /// # Errors
    /// [`Unopenable`].
    pub fn open_sealed(&self, key: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unopenable> {
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE).ok_or(Unopenable)?;
        let nonce = XNonce::try_from(nonce).map_err(|_| Unopenable)?;
        let payload = Payload { msg: ciphertext, aad: key.as_bytes() };
        self.0.decrypt(&nonce, payload).map(Zeroizing::new).map_err(|_| Unopenable)
    }

    /// Opens a secret of 32 bytes.
    ///
    /// # Errors
    /// [`Unopenable`], also if it has another length.
    pub fn open_32(&self, key: &str, sealed: &[u8]) -> Result<Zeroizing<[u8; 32]>, Unopenable> {
        let secret = self.open_sealed(key, sealed)?;
        secret.as_slice().try_into().map(Zeroizing::new).map_err(|_| Unopenable)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vault(..)")
    }
}

fn random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("invariant: the operating system gives random bytes");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_in_its_place_and_nowhere_else() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(directory.path(), true).unwrap();
        let sealed = vault.seal("a", b"secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_eq!(vault.open_sealed("a", &sealed).unwrap().as_slice(), b"secret");
        assert_eq!(vault.open_sealed("b", &sealed), Err(Unopenable));
        assert_eq!(vault.open_32("a", &sealed), Err(Unopenable));
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert_eq!(vault.open_sealed("a", &bad), Err(Unopenable));
            assert_eq!(vault.open_sealed("a", &sealed[..i]), Err(Unopenable));
        }
        // The same key file opens it again, another one does not.
        let again = Vault::open(directory.path(), false).unwrap();
        assert!(again.open_sealed("a", &sealed).is_ok());
        let other = tempfile::tempdir().unwrap();
        assert_eq!(Vault::open(other.path(), true).unwrap().open_sealed("a", &sealed), Err(Unopenable));
    }

    #[test]
    fn a_missing_or_short_key_file_is_named_with_the_cure() {
        let directory = tempfile::tempdir().unwrap();
        let error = Vault::open(directory.path(), false).unwrap_err().to_string();
        assert!(error.contains("/key: missing") && error.contains("backup"), "{error}");
        std::fs::write(directory.path().join(FILE), [0; 31]).unwrap();
        let error = Vault::open(directory.path(), false).unwrap_err().to_string();
        assert!(error.contains("31 bytes instead of 32"), "{error}");
    }
}
