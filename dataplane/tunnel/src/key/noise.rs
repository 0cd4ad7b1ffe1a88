//! X25519: what the Noise handshake speaks with.

use core::fmt;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize as _, Zeroizing};

use super::random;

/// An X25519 public key (RFC 7748), written as WireGuard writes it: base64 of 32 bytes, 44 characters.
///
/// Any 32 bytes are one, as in WireGuard. A key of low order never gets a session, because the handshake refuses the
/// all-zero result it gives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes as they travel.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes as they travel.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for PublicKey {
    type Error = BadPublicKey;

    /// Takes a slice of exactly 32 bytes.
    fn try_from(bytes: &[u8]) -> Result<Self, BadPublicKey> {
        bytes.try_into().map(Self).map_err(|_| BadPublicKey)
    }
}

/// A text or a slice is not a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard public key: it is 32 bytes, 44 characters of base64 as `wg pubkey` prints them")]
pub struct BadPublicKey;

impl FromStr for PublicKey {
    type Err = BadPublicKey;

    fn from_str(text: &str) -> Result<Self, BadPublicKey> {
        let mut bytes = [0; 32];
        // The slice variant, so that no text makes us allocate; the length check refuses 43 characters and fewer bytes.
        let length = STANDARD.decode_slice(text, &mut bytes).map_err(|_| BadPublicKey)?;
        if length == bytes.len() { Ok(Self(bytes)) } else { Err(BadPublicKey) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = STANDARD.encode(self.0);
        write!(f, "PublicKey({}..)", text.get(..8).unwrap_or_default())
    }
}

/// An X25519 secret key. Not `Clone`: it is moved to the one who shakes hands with it.
pub struct SecretKey(StaticSecret);

impl SecretKey {
    /// Makes a new one from the operating system's randomness.
    pub fn generate() -> Self {
        let bytes = Zeroizing::new(random());
        Self::from_bytes(*bytes)
    }

    /// Takes the 32 bytes of the scalar; clamping (RFC 7748 §5) happens in use.
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let key = Self(StaticSecret::from(bytes));
        bytes.zeroize();
        key
    }

    /// Returns the public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// Shows the scalar, for the handshake and for key files.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Agrees with the owner of `public` on 32 bytes; `None` if that key is of low order, so that anyone knows the result.
    pub fn agree(&self, public: &PublicKey) -> Option<Zeroizing<[u8; 32]>> {
        let shared = self.0.diffie_hellman(&x25519_dalek::PublicKey::from(public.0));
        shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}
