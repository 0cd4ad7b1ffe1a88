//! Secrets that two or more share: the network's, and what a pair derives from it.

use core::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{NetworkId, PublicKey, random};

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
