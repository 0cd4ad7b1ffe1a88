//! The signed records of a network, and the map a node makes of them.
//!
//! A coordinator passes on [envelopes](Envelope): bytes that were signed once. A node trusts nothing else. From the
//! network's root key, which its join token pinned, a [`Chain`] of [certificates](Certificate) leads to every record, and
//! a [`NetworkMap`] is what remains when all of an update held:
//!
//! ```text
//! root key ── Certificate(Admission) ── Member ── NodeRecord (by the member's own key)
//!         ├── Certificate(Policy) ───── Policy ── rules and names, by Merkle proof
//!         ├── Certificate(Head) ─────── Head (position, digest of everything held)
//!         └── Certificate(Coordinator)  Statement (this TLS key is mine)
//! ```
//!
//! What a coordinator can still do is withhold: rules only allow, so a map that lacks one grants less; a newer record
//! that is kept back leaves the older one in force until it expires.

mod candidate;
mod chain;
pub(crate) mod codec;
mod envelope;
mod error;
mod floor;
mod held;
mod limits;
mod map;
mod member;
mod merkle;
mod record;
mod rule;
mod store;
mod update;

pub use candidate::candidate_is_allowed;
pub use chain::Chain;
pub use codec::RecordError;
pub use envelope::{Envelope, EnvelopeError, Kind};
pub use error::MapError;
pub use limits::*;
pub use map::NetworkMap;
pub use member::{Member, MemberKind};
pub use merkle::{MerkleTree, leaf_hash, verify_proof};
pub use record::{Certificate, Head, NodeRecord, Policy, Position, Record, Role, Statement};
pub use rule::{Leaf, NameRecord, PortRange, Protocol, Rule, Selector};
pub use update::{MapUpdate, ProvenRule, digest};

#[cfg(test)]
mod tests;
