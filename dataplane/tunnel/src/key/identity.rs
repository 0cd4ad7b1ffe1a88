//! Ed25519: who a node is, and what signs records.

use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256, Sha512};
use zeroize::{Zeroize as _, Zeroizing};

use super::{PublicKey, SecretKey, random};

/// What a signature is for.
///
/// The label is part of the signed bytes, so that a signature made for one purpose is worthless for every other, though
/// one key serves several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Label {
    /// The root vouches for a key and its role.
    Certificate,
    /// A membership record.
    Member,
    /// A policy's Merkle root.
    Policy,
    /// The head of a map.
    Head,
    /// What a node says of itself.
    NodeRecord,
    /// A coordinator answers for its TLS key.
    Statement,
    /// A node proves its identity key while enrolling.
    Enroll,
    /// A node proves its join token while enrolling.
    EnrollToken,
    /// A node proves its identity key before a map stream.
    Sync,
    /// A node proves its identity key to remove itself.
    Leave,
    /// The SSH fallback.
    Ssh,
}

impl Label {
    /// Every label there is.
    pub const ALL: [Self; 11] = [
        Self::Certificate,
        Self::Member,
        Self::Policy,
        Self::Head,
        Self::NodeRecord,
        Self::Statement,
        Self::Enroll,
        Self::EnrollToken,
        Self::Sync,
        Self::Leave,
        Self::Ssh,
    ];

    /// Returns the label's text as it is signed.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Member => "member",
            Self::Policy => "policy",
            Self::Head => "head",
            Self::NodeRecord => "node-record",
            Self::Statement => "statement",
            Self::Enroll => "enroll",
            Self::EnrollToken => "enroll-token",
            Self::Sync => "sync",
            Self::Leave => "leave",
            Self::Ssh => "ssh",
        }
    }

    /// Builds the bytes a signature covers: `"ringmesh v1 "`, the label, a zero byte (no label contains one), the message.
    fn domain(self, message: &[u8]) -> Vec<u8> {
        const CONTEXT: &[u8] = b"ringmesh v1 ";
        [CONTEXT, self.as_str().as_bytes(), &[0], message].concat()
    }
}

/// An Ed25519 signature (RFC 8032), 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature([u8; 64]);

impl Signature {
    /// Takes the 64 bytes as they travel; whether they are good is for [`IdentityKey::verify`] to say.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Returns the 64 bytes as they travel.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl TryFrom<&[u8]> for Signature {
    type Error = BadSignature;

    /// Takes a slice of exactly 64 bytes.
    fn try_from(bytes: &[u8]) -> Result<Self, BadSignature> {
        bytes.try_into().map(Self).map_err(|_| BadSignature)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(")?;
        super::name::write_hex(f, self.0.get(..4).unwrap_or_default())?;
        f.write_str("..)")
    }
}

/// The signature is not the signer's over these bytes for this purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the signature does not fit the signer's key and the signed bytes: they were altered or signed by another key"
)]
pub struct BadSignature;

/// 32 bytes are not an Ed25519 public key that may vouch for anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an Ed25519 public key: it must be 32 bytes, a point on the curve in its one canonical form, and not of low order"
)]
pub struct BadIdentityKey;

/// An Ed25519 public key: who a node, or a signer of records, is.
///
/// Only a canonical encoding of a point that is not of low order becomes one: a second encoding of the same point would
/// let one key pass for two, and a key of low order signs anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityKey([u8; 32]);

impl IdentityKey {
    /// Takes 32 bytes (RFC 8032 §5.1.2).
    ///
    /// # Errors
    ///
    /// [`BadIdentityKey`] if they are no canonical point, or one of low order.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, BadIdentityKey> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| BadIdentityKey)?;
        if key.is_weak() || key.to_edwards().compress().to_bytes() != bytes {
            return Err(BadIdentityKey);
        }
        Ok(Self(bytes))
    }

    /// Returns the 32 bytes as they travel.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks a signature over `message` made for the purpose `label`.
    ///
    /// # Errors
    ///
    /// [`BadSignature`], by the strict rules (canonical `s`, no low-order `R`): one message and key have one verdict
    /// everywhere.
    pub fn verify(&self, label: Label, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature)?;
        let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
        key.verify_strict(&label.domain(message), &signature).map_err(|_| BadSignature)
    }

    /// Returns the X25519 key of the same secret: the point's Montgomery form (RFC 7748 §4.1).
    pub fn noise_key(&self) -> PublicKey {
        let key = VerifyingKey::from_bytes(&self.0).expect("invariant: checked in from_bytes");
        PublicKey::from_bytes(key.to_montgomery().to_bytes())
    }

    /// Returns the fingerprint as OpenSSH prints it: `SHA256:` and the hash of the SSH wire form (RFC 4253 §6.6).
    pub fn fingerprint(&self) -> String {
        const NAME: &[u8] = b"ssh-ed25519";
        let mut hash = Sha256::new();
        hash.update(11_u32.to_be_bytes());
        hash.update(NAME);
        hash.update(32_u32.to_be_bytes());
        hash.update(self.0);
        format!("SHA256:{}", STANDARD_NO_PAD.encode(hash.finalize()))
    }
}

impl TryFrom<&[u8]> for IdentityKey {
    type Error = BadIdentityKey;

    /// Takes a slice of exactly 32 bytes.
    fn try_from(bytes: &[u8]) -> Result<Self, BadIdentityKey> {
        Self::from_bytes(bytes.try_into().map_err(|_| BadIdentityKey)?)
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentityKey(")?;
        super::name::write_hex(f, self.0.get(..4).unwrap_or_default())?;
        f.write_str("..)")
    }
}

impl fmt::Display for IdentityKey {
    /// Writes the [fingerprint](Self::fingerprint).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fingerprint())
    }
}

/// The secret half of an [`IdentityKey`].
pub struct IdentitySecret(SigningKey);

impl IdentitySecret {
    /// Makes a new one from the operating system's randomness.
    pub fn generate() -> Self {
        let seed = Zeroizing::new(random());
        Self::from_seed(*seed)
    }

    /// Takes the 32-byte seed (RFC 8032 §5.1.5), as an OpenSSH private key file holds it.
    pub fn from_seed(mut seed: [u8; 32]) -> Self {
        let key = Self(SigningKey::from_bytes(&seed));
        seed.zeroize();
        key
    }

    /// Shows the seed, for writing it to a key file.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Returns the public half.
    pub fn public_key(&self) -> IdentityKey {
        IdentityKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` for the purpose `label`.
    pub fn sign(&self, label: Label, message: &[u8]) -> Signature {
        Signature(self.0.sign(&label.domain(message)).to_bytes())
    }

    /// Returns the X25519 secret of the same seed: the first half of SHA-512 of it, clamped, as Ed25519 itself uses it.
    pub fn noise_secret(&self) -> SecretKey {
        let mut hash = Sha512::digest(self.seed());
        let mut scalar = [0; 32];
        for (to, from) in scalar.iter_mut().zip(hash.iter()) {
            *to = *from;
        }
        hash.as_mut_slice().zeroize();
        let [first, .., last] = &mut scalar;
        *first &= 0b1111_1000;
        *last &= 0b0111_1111;
        *last |= 0b0100_0000;
        SecretKey::from_bytes(scalar)
    }
}

impl fmt::Debug for IdentitySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentitySecret(..)")
    }
}
