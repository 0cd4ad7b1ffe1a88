//! The key file with which we log in to somebody's SSH server.

use std::{fs::File, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use russh::keys::{PrivateKey, ssh_key::private::KeypairData};
use zeroize::Zeroizing;

/// No private key's file is longer.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Reads an OpenSSH private key without a passphrase.
///
/// # Errors
/// A sentence with cause and cure; nothing of the key is in it.
#[allow(clippy::wildcard_enum_match_arm, reason = "whatever else there may be, we cannot sign with it")]
pub(super) fn load(path: &Path) -> Result<PrivateKey, String> {
    let shown = path.display();
    let refuse = |why: &str| format!("the key file {shown} cannot be used: {why}");
    let mut file = File::open(path).map_err(|error| refuse(&error.to_string()))?;
    let metadata = file.metadata().map_err(|error| refuse(&error.to_string()))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(refuse(&format!("others may read it; run `chmod 600 {shown}`")));
    }
    let mut pem = Zeroizing::new(String::new());
    (&mut file)
        .take(MAX_KEY_FILE)
        .read_to_string(&mut pem)
        .map_err(|_| refuse("it is not the text of an OpenSSH private key"))?;
    let key = PrivateKey::from_openssh(pem.as_bytes())
        .map_err(|_| refuse("it is not an OpenSSH private key; make one with `ssh-keygen -t ed25519`"))?;
    match key.key_data() {
        KeypairData::Ed25519(_) | KeypairData::Ecdsa(_) => Ok(key),
        KeypairData::Encrypted(_) => Err(refuse(
            "it is protected by a passphrase, and a daemon has nobody to ask; load it into an agent (`ssh-add`) and name its socket by `agent`",
        )),
        KeypairData::Rsa(_) => Err(refuse(
            "RSA keys are not signed with here; use an agent (`agent = \"SOCKET\"`), or an Ed25519 key (`ssh-keygen -t ed25519`)",
        )),
        _ => Err(refuse(
            "keys of this kind are not signed with here; use an agent (`agent = \"SOCKET\"`), or an Ed25519 key (`ssh-keygen -t ed25519`)",
        )),
    }
}
