//! An allow rule as it is shown, by the coordinator's word or a node's.

use ringmesh_proto::{admin, local};
use serde::Serialize;

/// An allow rule.
#[derive(Debug, Serialize)]
pub(crate) struct Rule {
    pub(crate) number: u32,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) protocol: String,
    pub(crate) ports: String,
}

impl Rule {
    /// Of the columns that [`Rule::cells`] fills.
    pub(crate) const HEADINGS: [&'static str; 5] = ["RULE", "FROM", "TO", "PROTOCOL", "PORTS"];

    /// A row of a table.
    pub(crate) fn cells(&self) -> [String; 5] {
        let Self { number, source, destination, protocol, ports } = self;
        [number.to_string(), source.clone(), destination.clone(), protocol.clone(), ports.clone()]
    }
}

impl From<admin::Rule> for Rule {
    fn from(rule: admin::Rule) -> Self {
        let admin::Rule { source, destination, protocol, ports, number } = rule;
        Self { number, source, destination, protocol, ports }
    }
}

/// What a rule lets open, and how often it did on this node.
#[derive(Debug, Serialize)]
pub(crate) struct CountedRule {
    #[serde(flatten)]
    pub(crate) rule: Rule,
    pub(crate) flows: u64,
    pub(crate) packets: u64,
}

impl CountedRule {
    pub(crate) const HEADINGS: [&'static str; 7] =
        ["RULE", "FROM", "TO", "PROTOCOL", "PORTS", "FLOWS", "PACKETS"];

    pub(crate) fn cells(&self) -> [String; 7] {
        let [number, source, destination, protocol, ports] = self.rule.cells();
        [number, source, destination, protocol, ports, self.flows.to_string(), self.packets.to_string()]
    }
}

impl From<local::FilterRule> for CountedRule {
    fn from(rule: local::FilterRule) -> Self {
        let local::FilterRule { number, source, destination, protocol, ports, packets, flows } = rule;
        Self { rule: Rule { number, source, destination, protocol, ports }, flows, packets }
    }
}
