//! What a map refuses, one reason at a time: each update here would be taken but for the one thing wrong with it.

mod content;
mod trust;

use super::*;

/// Replaces the first member and signs a fitting head.
pub(super) fn full_with_member_two(network: &Network, envelope: Envelope) -> MapUpdate {
    let mut full = network.full_without_head();
    full.members[1] = envelope;
    network.finish(&Content::default(), full)
}

pub(super) fn delta_with_member(network: &Network, envelope: Envelope) -> MapUpdate {
    let mut delta = network.delta();
    delta.members = vec![envelope];
    network.finish_delta(delta)
}

pub(super) fn delta_with_policy(network: &Network, policy: Envelope, rules: Vec<ProvenRule>) -> MapUpdate {
    let mut delta = network.delta();
    (delta.policy, delta.rules) = (Some(policy), rules);
    network.finish_delta(delta)
}

pub(super) fn delta_with_node_record(network: &Network, envelope: Envelope) -> MapUpdate {
    let mut delta = network.delta();
    delta.node_records = vec![envelope];
    network.finish_delta(delta)
}

pub(super) fn delta_with_certificate(network: &Network, envelope: Envelope) -> MapUpdate {
    let mut delta = network.delta();
    delta.certificates = vec![envelope];
    network.finish_delta(delta)
}

pub(super) fn with_head(mut update: MapUpdate, envelope: Envelope) -> MapUpdate {
    update.head = envelope;
    update
}
