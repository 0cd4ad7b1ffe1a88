//! Updates as they arrive, and the digest that a head names.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use sha2::{Digest as _, Sha256};

use super::envelope::Envelope;
use super::merkle::leaf_hash;
use super::record::Position;
use crate::key::NodeId;

/// A leaf of the policy's tree with its inclusion proof (RFC 6962 §2.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvenRule {
    /// The [leaf](super::Leaf)'s bytes, as hashed.
    pub leaf: Vec<u8>,
    /// Its place among the leaves, from 0.
    pub index: u64,
    /// The sibling hashes from the leaf up.
    pub siblings: Vec<[u8; 32]>,
}

impl ProvenRule {
    /// Returns the leaf's hash, by which a map's digest names it.
    pub fn hash(&self) -> [u8; 32] {
        leaf_hash(&self.leaf)
    }
}

/// A whole map, or the difference to one: applied whole or not at all.
///
/// Sealed secrets travel beside it and are not part of the digest; the head names the
/// [digest](crate::key::secrets_digest) of what they open to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUpdate {
    /// Whether it replaces all that is held, or applies onto it.
    pub full: bool,
    /// The position of the map that results; the head must name the same.
    pub position: Position,
    /// Certificates needed to verify what follows. A delta's are added to those held, one of the same key and role
    /// replacing the older.
    pub certificates: Vec<Envelope>,
    /// Members that are new or changed.
    pub members: Vec<Envelope>,
    /// Members that are gone, of a delta; their node records go with them. One that was not held may be named.
    pub removed: Vec<NodeId>,
    /// The policy, if it or the choice of rules changed: then `rules` replaces the leaves held.
    pub policy: Option<Envelope>,
    /// The leaves that touch the node; none without a policy.
    pub rules: Vec<ProvenRule>,
    /// What members say of themselves, new or changed. A node record is held for as long as its member is and has the
    /// identity key that signed it.
    pub node_records: Vec<Envelope>,
    /// What the result must come to.
    pub head: Envelope,
}

/// Returns the digest of a map: SHA-256 over the ascending hashes of what it holds, which are
/// [of envelopes](Envelope::hash) (certificates, members, the policy, node records) and
/// [of leaves](ProvenRule::hash).
pub fn digest(hashes: impl IntoIterator<Item = [u8; 32]>) -> [u8; 32] {
    let mut hashes: Vec<_> = hashes.into_iter().collect();
    hashes.sort_unstable();
    let mut digest = Sha256::new();
    for hash in &hashes {
        digest.update(hash);
    }
    digest.finalize().into()
}
