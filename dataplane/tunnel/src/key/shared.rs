//! Secrets that two or more share: the network's, and what a pair derives from it.

use core::fmt;

use hkdf::Hkdf;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{NetworkId, NodeId, PublicKey, random};

/// A pre-shared key of WireGuard's handshake (`psk2`), 32 bytes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// Makes a new one from the operating system's randomness, for a stock device.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Takes the 32 bytes.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(bytes);
        bytes.zeroize();
        key
    }

    /// Shows the 32 bytes, for the handshake, for sealing, and for the configuration of a stock device.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for PresharedKey {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(..)")
    }
}

/// The secret that all members of a network share for one epoch, 32 bytes.
///
/// A removal starts a new epoch: who is gone knows the old secret only, so no pair of the new epoch can be joined or
/// imitated with it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NetworkSecret([u8; 32]);

impl NetworkSecret {
    /// Makes a new one from the operating system's randomness.
    pub fn generate() -> Self {
        Self(random())
    }

    /// Takes the 32 bytes.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let secret = Self(bytes);
        bytes.zeroize();
        secret
    }

    /// Shows the 32 bytes, for sealing and for wrapping at rest.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Derives the pre-shared key of the pair `a`, `b` (in either order) for `epoch` of `network`.
    ///
    /// HKDF-SHA256 (RFC 5869): the secret is the input key, the two noise keys in ascending order are the salt, and
    /// `"ringmesh v1 psk"`, a zero byte, the network id and the epoch (8 bytes, big endian) are the info.
    pub fn derive_psk(&self, network: NetworkId, epoch: u64, a: &PublicKey, b: &PublicKey) -> PresharedKey {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let salt = [low.as_bytes().as_slice(), high.as_bytes()].concat();
        let epoch = epoch.to_be_bytes();
        let info: [&[u8]; 3] = [b"ringmesh v1 psk\0", network.as_bytes(), &epoch];
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&salt), &self.0)
            .expand_multi_info(&info, key.as_mut_slice())
            .expect("invariant: 32 bytes are fewer than HKDF's limit of 8160");
        PresharedKey(*key)
    }
}

impl PartialEq for NetworkSecret {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl Eq for NetworkSecret {}

impl fmt::Debug for NetworkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkSecret(..)")
    }
}

/// Returns the digest by which a head names the secrets that a node is to hold: the network's of every epoch in force, and
/// the pre-shared keys of the peers that are outside epochs.
///
/// It is SHA-256 over the ascending hashes of the entries: SHA-256 of `"ringmesh v1 network-secret"`, a zero byte, the network
/// id, the epoch (8 bytes, big endian) and the secret; and of `"ringmesh v1 peer-secret"`, a zero byte, the network id, the
/// peer's node id and the key. A secret has 256 random bits, so its hash tells nothing of it.
pub fn secrets_digest<'a>(
    network: NetworkId,
    epochs: impl IntoIterator<Item = (u64, &'a NetworkSecret)>,
    peers: impl IntoIterator<Item = (NodeId, &'a PresharedKey)>,
) -> [u8; 32] {
    let entry = |label: &[u8], of: &[u8; 8], secret: &[u8; 32]| -> [u8; 32] {
        let hash = Sha256::new().chain_update(label).chain_update(network.as_bytes());
        hash.chain_update(of).chain_update(secret).finalize().into()
    };
    let epochs = epochs
        .into_iter()
        .map(|(epoch, secret)| entry(b"ringmesh v1 network-secret\0", &epoch.to_be_bytes(), secret.expose()));
    let peers =
        peers.into_iter().map(|(id, psk)| entry(b"ringmesh v1 peer-secret\0", id.as_bytes(), psk.expose()));
    let mut entries: Vec<_> = epochs.chain(peers).collect();
    entries.sort_unstable();
    let mut digest = Sha256::new();
    for entry in &entries {
        digest.update(entry);
    }
    digest.finalize().into()
}
