//! What a filter did: counted by rule, by denial and by peer.

use std::collections::BTreeMap;

use super::flow::RuleSlot;
use super::{Filter, MAX_FLOWS};
use crate::key::NodeId;

/// What a worker's filter let pass and what it denied.
///
/// Counts of a rule go on as long as the same rule stands at the same place of the policy, those of a denial as long as it is
/// in force; others begin at zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterReport {
    /// Each rule that concerns this node, by its place among the policy's leaves, from 0 on.
    pub rules: BTreeMap<u64, RuleHits>,
    /// Each denial of this node's owner, by its number: openings it forbade, and packets of flows it cut; one for each flow.
    pub denials: BTreeMap<u32, u64>,
    /// Each peer's flows that have not timed out.
    pub flows: BTreeMap<NodeId, u64>,
    /// How many flows a peer may have: [`MAX_FLOWS`].
    pub most_flows: u64,
    /// Packets from peers that passed, by whatever rule and filter.
    pub passed_in: u64,
    /// Packets to peers that passed.
    pub passed_out: u64,
}

/// What a rule let pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleHits {
    /// Packets of flows that it was the first to allow, both ways, with ICMP errors and fragments.
    pub packets: u64,
    /// Flows that it let be opened.
    pub flows: u64,
}

impl FilterReport {
    /// Adds what the filter of another worker of the same node did.
    pub fn merge(&mut self, other: Self) {
        for (rule, hits) in other.rules {
            let sum = self.rules.entry(rule).or_default();
            sum.packets += hits.packets;
            sum.flows += hits.flows;
        }
        for (denial, packets) in other.denials {
            *self.denials.entry(denial).or_default() += packets;
        }
        for (peer, flows) in other.flows {
            *self.flows.entry(peer).or_default() += flows;
        }
        self.most_flows = self.most_flows.max(other.most_flows);
        self.passed_in += other.passed_in;
        self.passed_out += other.passed_out;
    }
}

/// The counters of a filter in force.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    rules: Vec<RuleHits>,
    denials: BTreeMap<u32, u64>,
}

impl Counters {
    /// Those of the filter `new`, which follows `old`.
    pub(crate) fn carried_over(&self, old: &Filter, new: &Filter) -> Self {
        let of_old = |(number, rule)| {
            let slot = old.slot_of(number)?;
            let same = old.rule(slot).is_some_and(|old| old == rule);
            self.rules.get(slot as usize).copied().filter(|_| same)
        };
        let denied = |id: u32| (id, self.denials.get(&id).copied().unwrap_or_default());
        Self {
            rules: new.rules().map(|rule| of_old(rule).unwrap_or_default()).collect(),
            denials: new.denials().iter().map(|denial| denied(denial.id)).collect(),
        }
    }

    #[inline]
    pub(crate) fn passed(&mut self, rule: RuleSlot, packets: u64) {
        if let Some(hits) = self.rules.get_mut(rule as usize) {
            hits.packets += packets;
        }
    }

    pub(crate) fn opened(&mut self, rule: RuleSlot) {
        if let Some(hits) = self.rules.get_mut(rule as usize) {
            hits.flows += 1;
        }
    }

    pub(crate) fn denied(&mut self, denial: u32, packets: u64) {
        if let Some(count) = self.denials.get_mut(&denial) {
            *count += packets;
        }
    }

    /// The report, without the flows.
    pub(crate) fn report(&self, filter: &Filter) -> FilterReport {
        let numbers = filter.rules().map(|(number, _)| number);
        FilterReport {
            rules: numbers.zip(self.rules.iter().copied()).collect(),
            denials: self.denials.clone(),
            flows: BTreeMap::new(),
            most_flows: MAX_FLOWS as u64,
            ..FilterReport::default()
        }
    }
}
