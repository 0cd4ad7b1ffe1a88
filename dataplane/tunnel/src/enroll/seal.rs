//! Secrets sealed to a node: only the owner of the noise key can open them, and only for what they were sealed for.
//!
//! An ephemeral X25519 key agrees with the node's; HKDF-SHA256 makes a key of the result, with both public keys as salt and
//! label, purpose, network and epoch as info; ChaCha20-Poly1305 seals with it, under the all-zero nonce, because each such key
//! seals once. Sealing says nothing of who sealed: that a secret comes from the network's coordinator is what the statement
//! on the connection proves.
//!
//! | part | bytes |
//! |---|---|
//! | ephemeral public key | 32 |
//! | ciphertext | 32 |
//! | tag | 16 |

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::aead::{AeadInOut as _, KeyInit as _};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::key::{NetworkId, NodeId, PublicKey, SecretKey};

/// The length of a sealed secret, bytes.
pub const SEALED_LENGTH: usize = 80;

/// What a sealed secret is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The network's secret of an epoch.
    Network,
    /// The pre-shared key with this peer, which is outside epochs; the epoch is 0.
    Peer(NodeId),
}

/// What a secret is sealed for; it opens for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// The network.
    pub network: NetworkId,
    /// The epoch.
    pub epoch: u64,
    /// What it is.
    pub purpose: Purpose,
}

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key is of low order, so that anyone could open.
    #[error("the noise key is a weak one that no node generates: the node must make a new key")]
    WeakKey,
    /// The bytes are not what was sealed, or not for this key and context.
    #[error(
        "a sealed secret does not open: it was altered, or sealed for another node, network or epoch; \
         is this node's key the one it enrolled with?"
    )]
    NotForUs,
}

/// Seals `secret` so that only the owner of `to` can open it, and only in the same context.
///
/// # Errors
///
/// [`SealError::WeakKey`] if `to` is of low order.
pub fn seal_secret(to: &PublicKey, context: Context, secret: &[u8; 32]) -> Result<Vec<u8>, SealError> {
    let ephemeral = SecretKey::generate();
    let cipher = cipher(&ephemeral, to, &ephemeral.public_key(), to, context)?;
    let mut sealed = Vec::with_capacity(SEALED_LENGTH);
    sealed.extend(ephemeral.public_key().as_bytes());
    let mut ciphertext = *secret;
    let tag = cipher
        .encrypt_inout_detached(&Nonce::default(), &[], InOutBuf::from(ciphertext.as_mut_slice()))
        .expect("invariant: 32 bytes are fewer than the cipher's limit");
    sealed.extend(ciphertext);
    sealed.extend(tag);
    Ok(sealed)
}

/// Opens what [`seal_secret`] sealed to the public half of `with` in the same context.
///
/// # Errors
///
/// [`SealError::NotForUs`] if it is anything else.
pub fn open_secret(
    with: &SecretKey,
    context: Context,
    sealed: &[u8],
) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let sealed: &[u8; SEALED_LENGTH] = sealed.try_into().map_err(|_| SealError::NotForUs)?;
    let (ephemeral, rest) = sealed.split_first_chunk::<32>().ok_or(SealError::NotForUs)?;
    let (ciphertext, tag) = rest.split_first_chunk::<32>().ok_or(SealError::NotForUs)?;
    let tag = Tag::try_from(tag).map_err(|_| SealError::NotForUs)?;
    let ephemeral = PublicKey::from_bytes(*ephemeral);
    let cipher = cipher(with, &ephemeral, &ephemeral, &with.public_key(), context);
    let cipher = cipher.map_err(|_| SealError::NotForUs)?;
    let mut secret = Zeroizing::new(*ciphertext);
    cipher
        .decrypt_inout_detached(&Nonce::default(), &[], InOutBuf::from(secret.as_mut_slice()), &tag)
        .map_err(|_| SealError::NotForUs)?;
    Ok(secret)
}

/// Makes the cipher that the owners of `ephemeral` and `to` share.
fn cipher(
    own: &SecretKey,
    other: &PublicKey,
    ephemeral: &PublicKey,
    to: &PublicKey,
    context: Context,
) -> Result<ChaCha20Poly1305, SealError> {
    let shared = own.agree(other).ok_or(SealError::WeakKey)?;
    let salt = [ephemeral.as_bytes().as_slice(), to.as_bytes()].concat();
    let epoch = context.epoch.to_be_bytes();
    let (purpose, peer) = match context.purpose {
        Purpose::Network => (b"network\0", NodeId::from_bytes([0; 8])),
        Purpose::Peer(id) => (b"peer\0\0\0\0", id),
    };
    let info: [&[u8]; 5] =
        [b"ringmesh v1 seal\0", purpose, peer.as_bytes(), context.network.as_bytes(), &epoch];
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(&salt), shared.as_slice())
        .expand_multi_info(&info, key.as_mut_slice())
        .expect("invariant: 32 bytes are fewer than HKDF's limit of 8160");
    Ok(ChaCha20Poly1305::new_from_slice(key.as_slice()).expect("invariant: the key has 32 bytes"))
}
