//! What a map keeps of a record: its meaning, the envelope it came in, and that envelope's hash.

use std::sync::Arc;

use super::envelope::Envelope;
use super::rule::Leaf;
use super::update::ProvenRule;

/// A verified record. Shared between a map and its successors, so that a delta costs what it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held<R> {
    pub(super) record: R,
    pub(super) envelope: Envelope,
    pub(super) hash: [u8; 32],
}

impl<R> Held<R> {
    pub(super) fn new(record: R, envelope: Envelope) -> Arc<Self> {
        let hash = envelope.hash();
        Arc::new(Self { record, envelope, hash })
    }
}

/// A leaf of the policy, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeldLeaf {
    pub(super) leaf: Leaf,
    pub(super) proven: ProvenRule,
    pub(super) hash: [u8; 32],
}
