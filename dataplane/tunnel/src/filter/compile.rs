//! From rules and members to what one node asks for each packet: clauses by peer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::denial::{Denial, Direction, matches};
use super::flow::RuleSlot;
use super::{Decision, Opening};
use crate::ip::Prefix;
use crate::key::NodeId;
use crate::netmap::{Member, NetworkMap, PortRange, Protocol, Rule, Selector};
use crate::time::UnixTime;

/// The rules of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Whether everything passes.
    open: bool,
    /// What this node may send from and receive at.
    own: Vec<Prefix>,
    peers: BTreeMap<NodeId, Clauses>,
    denials: Vec<Denial>,
    /// The rules that concern this node, by their places among the policy's leaves, to count by.
    rules: Vec<(u64, Rule)>,
}

/// What may be opened with one peer, in the order of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Clauses {
    inward: Vec<Clause>,
    outward: Vec<Clause>,
}

/// A rule as it concerns this node and one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Clause {
    rule: u64,
    /// This node's address.
    near: Side,
    /// The peer's.
    far: Side,
    protocol: Protocol,
    ports: Box<[PortRange]>,
}

/// Which addresses of a member a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    /// Every one that it may have.
    All,
    /// Those in these ranges.
    Within(Box<[Prefix]>),
}

impl Filter {
    /// Lets nothing pass: what a node has that knows no policy.
    #[must_use]
    pub const fn deny_all() -> Self {
        Self { open: false, own: Vec::new(), peers: BTreeMap::new(), denials: Vec::new(), rules: Vec::new() }
    }

    /// Lets everything pass, even what cannot be read, and keeps nothing in mind: for a relay, which drops every packet
    /// itself, and for tests and simulations of what is not the filter's business.
    #[must_use]
    pub fn allow_all() -> Self {
        Self { open: true, ..Self::deny_all() }
    }

    /// The rules and members of a map that are in force at `now`, and what this node's owner denies.
    #[must_use]
    pub fn compile(map: &NetworkMap, denials: &[Denial], now: UnixTime) -> Self {
        let Some(me) = map.me().filter(|_| map.in_force(now)) else { return Self::deny_all() };
        Self::of(me, map.peers(now), map.numbered_rules(now), denials)
    }

    /// The rules of `me` towards `peers`, each rule with its place among the policy's leaves.
    #[must_use]
    pub fn of<'a>(
        me: &Member,
        peers: impl IntoIterator<Item = &'a Member>,
        rules: impl IntoIterator<Item = (u64, &'a Rule)>,
        denials: &[Denial],
    ) -> Self {
        let rules: Vec<(u64, &Rule)> = rules.into_iter().collect();
        // Most rules of a map concern this node on one side only, whoever the peer is.
        let mine: Vec<(u64, &Rule, Option<Side>, Option<Side>)> = rules
            .into_iter()
            .map(|(number, rule)| {
                (number, rule, Side::of(&rule.sources, me), Side::of(&rule.destinations, me))
            })
            .filter(|(_, _, source, destination)| source.is_some() || destination.is_some())
            .collect();
        let mut filter = Self {
            open: false,
            own: me.allowed_ips().collect(),
            peers: BTreeMap::new(),
            denials: denials.to_vec(),
            rules: mine.iter().map(|&(number, rule, ..)| (number, rule.clone())).collect(),
        };
        filter.rules.sort_by_key(|(number, _)| *number);
        for peer in peers.into_iter().filter(|peer| peer.id != me.id) {
            let mut clauses = Clauses::default();
            for (number, rule, as_source, as_destination) in &mine {
                let clause = |near: &Side, far: Side| Clause {
                    rule: *number,
                    near: near.clone(),
                    far,
                    protocol: rule.protocol,
                    ports: rule.ports.clone().into(),
                };
                if let (Some(near), Some(far)) = (as_source, Side::of(&rule.destinations, peer)) {
                    clauses.outward.push(clause(near, far));
                }
                if let (Some(near), Some(far)) = (as_destination, Side::of(&rule.sources, peer)) {
                    clauses.inward.push(clause(near, far));
                }
            }
            filter.peers.insert(peer.id, clauses);
        }
        filter
    }

    /// Judges the opening of a flow with `peer`, to whom the address on its side belongs: that is for the caller to know.
    #[must_use]
    pub fn decide(&self, peer: NodeId, direction: Direction, opening: &Opening) -> Decision {
        if let Some(denial) = self.denials.iter().find(|denial| denial.forbids(peer, direction, opening)) {
            return Decision::DeniedLocally { denial: denial.id };
        }
        if self.open {
            return Decision::Allowed { rule: None };
        }
        let (near, far) = match direction {
            Direction::In => (opening.destination, opening.source),
            Direction::Out => (opening.source, opening.destination),
        };
        let peer = self.peers.get(&peer).filter(|_| self.owns(near));
        let Some(clauses) = peer else { return Decision::Denied };
        let clauses = match direction {
            Direction::In => &clauses.inward,
            Direction::Out => &clauses.outward,
        };
        let allows = |clause: &&Clause| {
            clause.near.contains(near)
                && clause.far.contains(far)
                && matches(clause.protocol, &clause.ports, opening)
        };
        match clauses.iter().find(allows) {
            Some(clause) => Decision::Allowed { rule: Some(clause.rule) },
            None => Decision::Denied,
        }
    }
}

impl Filter {
    /// Whether everything passes, so that there is nothing to keep in mind.
    pub(super) const fn is_open(&self) -> bool {
        self.open && self.denials.is_empty()
    }

    /// Whether an address is one that this node may send from and receives at.
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        self.open || self.own.iter().any(|own| own.contains(address))
    }

    /// The rules that concern this node, with their places among the policy's leaves, in that order.
    pub(super) fn rules(&self) -> &[(u64, Rule)] {
        &self.rules
    }

    /// Where the rule of a place among the policy's leaves is in [`rules`](Self::rules).
    pub(super) fn slot_of(&self, number: u64) -> Option<RuleSlot> {
        let found = self.rules.binary_search_by_key(&number, |(number, _)| *number);
        found.ok().and_then(|slot| RuleSlot::try_from(slot).ok())
    }

    pub(super) fn denials(&self) -> &[Denial] {
        &self.denials
    }
}

impl Side {
    /// Which addresses of `member` one side of a rule is about; none if it is not about the member.
    fn of(selectors: &[Selector], member: &Member) -> Option<Self> {
        let mut ranges = Vec::new();
        for selector in selectors {
            let whole = match selector {
                Selector::All => true,
                Selector::Node(id) => *id == member.id,
                Selector::Group(name) => member.groups.contains(name),
                Selector::Tag(name) => member.tags.contains(name),
                Selector::Prefix(prefix) => {
                    if member.allowed_ips().any(|own| own.overlaps(prefix)) {
                        ranges.push(*prefix);
                    }
                    false
                }
            };
            if whole {
                return Some(Self::All);
            }
        }
        (!ranges.is_empty()).then(|| Self::Within(ranges.into()))
    }

    fn contains(&self, address: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Within(ranges) => ranges.iter().any(|range| range.contains(address)),
        }
    }
}
