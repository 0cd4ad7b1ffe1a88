//! Keys and names: what a node, a network and a token are called, and what proves it.
//!
//! Every secret here is a type that cannot be printed: no `Display`, no content in `Debug`, wiped when dropped. Whoever
//! needs the bytes says so with a method whose name shows in review (`expose`, `seed`).
//!
//! | type | what it is |
//! |---|---|
//! | [`IdentityKey`], [`IdentitySecret`] | Ed25519, who a node is and what signs records |
//! | [`PublicKey`], [`SecretKey`] | X25519, what the Noise handshake speaks with |
//! | [`PresharedKey`], [`NetworkSecret`] | what ties a pair of nodes to a network and an epoch |
//! | [`NodeId`], [`NetworkId`], [`TokenId`] | names that outlive keys |

mod identity;
mod name;
mod noise;
mod shared;

pub use identity::{BadIdentityKey, BadSignature, IdentityKey, IdentitySecret, Label, Signature};
pub use name::{BadName, NetworkId, NodeId, TokenId};
pub use noise::{BadPublicKey, PublicKey, SecretKey};
pub use shared::{NetworkSecret, PresharedKey, secrets_digest};

/// Fills an array with random bytes of the operating system.
///
/// # Panics
///
/// If the system has no randomness to give, which Linux answers for: `getrandom(2)` blocks at boot until it can.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("invariant: the operating system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests;
