//! SSH, for networks that let nothing else through: the node's own endpoint, and any OpenSSH server that the user has.
//!
//! Both give one stream of bytes that carries frames. SSH's own keys keep strangers away and tell the user early that something
//! is wrong; who a peer is, and what it may send, is the session's matter, as on every path.

mod client;
mod crowd;
mod host_key;
mod key;
mod server;
mod wire;

use std::{borrow::Cow, time::Duration};

use ringmesh_tunnel::key::IdentitySecret;
use russh::{
    Limits, Preferred, cipher, compression,
    keys::{
        Algorithm, PrivateKey,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
};

pub(crate) use self::{
    client::{SshStream, dial_endpoint, dial_road},
    server::{Members, SshServer, listen},
};

/// The only subsystem (RFC 4254 §6.5) of a node's endpoint.
const SUBSYSTEM: &str = "ringmesh";
/// What a side lets the other send before it has read it. Twice 20 Mbit/s over 200 ms.
const WINDOW: u32 = 1024 * 1024;
/// The longest piece of a channel's data (RFC 4253 §6.1 asks for at least so much).
const PACKET: u32 = 32 * 1024;
/// Pieces that wait for the link's reader before the connection is not read any more.
const PIECES: usize = 16;
/// The bytes after which keys are exchanged anew (RFC 4253 §9).
const REKEY_BYTES: usize = 1 << 30;
/// The time after which keys are exchanged anew (RFC 4253 §9).
const REKEY_AFTER: Duration = Duration::from_secs(3600);

fn limits() -> Limits {
    Limits { rekey_write_limit: REKEY_BYTES, rekey_read_limit: REKEY_BYTES, rekey_time_limit: REKEY_AFTER }
}

/// What we speak: AEADs before all else, no compression, since what we carry looks random.
fn preferred(host_keys: Vec<Algorithm>) -> Preferred {
    Preferred {
        key: Cow::Owned(host_keys),
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::CHACHA20_POLY1305,
            cipher::AES_256_CTR,
            cipher::AES_128_CTR,
        ]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

/// The node's identity as the key of an SSH host or user.
fn private_key(identity: &IdentitySecret) -> Result<PrivateKey, russh::keys::ssh_key::Error> {
    let pair = Ed25519Keypair::from_seed(identity.seed());
    PrivateKey::new(KeypairData::Ed25519(pair), "ringmesh")
}
