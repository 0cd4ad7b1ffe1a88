//! From rules and members to what one node asks for each packet: clauses by peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use super::denial::{Denial, Direction, matches};
use super::flow::RuleSlot;
use super::{Decision, Opening};
use crate::ip::Prefix;
use crate::key::NodeId;
use crate::netmap::{Member, NetworkMap, Rule, Selector};
use crate::time::UnixTime;

/// The rules of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Whether everything passes.
    open: bool,
    /// What this node may send from and receive at.
    own: Vec<Prefix>,
    denials: Vec<Denial>,
    /// What of that is others'.
    others: Others,
    /// The rules that concern this node, by their places among the policy's leaves.
    rules: Vec<Mine>,
    /// Last, because filters are compared in this order, and it is long.
    peers: BTreeMap<NodeId, Clauses>,
}

/// The ranges of peers that lie within routes of ours, first addresses by length: what they hold is not ours, although it is in
/// our routes. Without them who has a wide route could be anybody, and a way around the policy between two others.
///
/// A node without routes has none of them: there is nothing to look up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Others(BTreeMap<u8, BTreeSet<IpAddr>>);

/// What may be opened with one peer, in the order of the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Clauses {
    inward: Vec<Clause>,
    outward: Vec<Clause>,
}

/// A rule as it concerns this node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mine {
    /// Its place among the policy's leaves.
    number: u64,
    rule: Rule,
    /// Which addresses of this node may open flows by it; none if it is not about the node as a source.
    as_source: Option<Side>,
    /// At which ones they may be opened.
    as_destination: Option<Side>,
}

/// A rule as it concerns a peer as well. There may be as many as rules times peers, so it is small.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Clause {
    rule: RuleSlot,
    /// Which addresses of the peer it is about.
    far: Side,
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
        Self {
            open: false,
            own: Vec::new(),
            denials: Vec::new(),
            others: Others(BTreeMap::new()),
            rules: Vec::new(),
            peers: BTreeMap::new(),
        }
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
        let mine = |(number, rule): (u64, &Rule)| {
            let (as_source, as_destination) = (Side::of(&rule.sources, me), Side::of(&rule.destinations, me));
            let concerned = as_source.is_some() || as_destination.is_some();
            concerned.then(|| Mine { number, rule: rule.clone(), as_source, as_destination })
        };
        let mut rules: Vec<Mine> = rules.into_iter().filter_map(mine).collect();
        rules.sort_by_key(|mine| mine.number);
        let clauses_with = |peer: &Member| {
            let mut clauses = Clauses::default();
            for (slot, mine) in (0..).zip(&rules) {
                let side = |own: &Option<Side>, selectors| {
                    let far = own.as_ref().and_then(|_| Side::of(selectors, peer));
                    far.map(|far| Clause { rule: slot, far })
                };
                clauses.outward.extend(side(&mine.as_source, &mine.rule.destinations));
                clauses.inward.extend(side(&mine.as_destination, &mine.rule.sources));
            }
            (peer.id, clauses)
        };
        let (own, mut others): (Vec<Prefix>, _) = (me.allowed_ips().collect(), Others::default());
        let peers = peers.into_iter().filter(|peer| peer.id != me.id);
        let peers = peers.inspect(|peer| others.add(&own, peer)).map(clauses_with).collect();
        Self { open: false, own, denials: denials.to_vec(), others, rules, peers }
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
        let allows = |clause: &Clause| {
            let mine = self.rules.get(clause.rule as usize)?;
            let own = match direction {
                Direction::In => mine.as_destination.as_ref()?,
                Direction::Out => mine.as_source.as_ref()?,
            };
            let allowed = own.contains(near)
                && clause.far.contains(far)
                && matches(mine.rule.protocol, &mine.rule.ports, opening);
            allowed.then_some(mine.number)
        };
        match clauses.iter().find_map(allows) {
            Some(number) => Decision::Allowed { rule: Some(number) },
            None => Decision::Denied,
        }
    }
}

impl Filter {
    /// Whether everything passes, so that there is nothing to keep in mind.
    pub(super) const fn is_open(&self) -> bool {
        self.open && self.denials.is_empty()
    }

    /// Whether an address is one that this node may send from and receives at: in a range of its own, and in no longer one of a
    /// peer, as packets are routed. If both have the same route, either may.
    pub(super) fn owns(&self, address: IpAddr) -> bool {
        let own = self.own.iter().filter(|own| own.contains(address)).map(Prefix::len).max();
        self.open || own.is_some_and(|len| !self.others.hold(address, len))
    }

    /// Whether ranges of peers lie in ours.
    #[cfg(test)]
    pub(super) fn remembers_others(&self) -> bool {
        !self.others.0.is_empty()
    }

    /// The rules that concern this node, with their places among the policy's leaves, in that order.
    pub(super) fn rules(&self) -> impl Iterator<Item = (u64, &Rule)> {
        self.rules.iter().map(|mine| (mine.number, &mine.rule))
    }

    /// One of them.
    pub(super) fn rule(&self, slot: RuleSlot) -> Option<&Rule> {
        self.rules.get(slot as usize).map(|mine| &mine.rule)
    }

    /// Where the rule of a place among the policy's leaves is in [`rules`](Self::rules).
    pub(super) fn slot_of(&self, number: u64) -> Option<RuleSlot> {
        let found = self.rules.binary_search_by_key(&number, |mine| mine.number);
        found.ok().and_then(|slot| RuleSlot::try_from(slot).ok())
    }

    pub(super) fn denials(&self) -> &[Denial] {
        &self.denials
    }
}

impl Others {
    /// Adds those ranges of a peer that lie within ours.
    fn add(&mut self, own: &[Prefix], peer: &Member) {
        let within = |range: &Prefix| own.iter().any(|own| own.len() < range.len() && own.covers(range));
        for range in peer.allowed_ips().filter(within) {
            self.0.entry(range.len()).or_default().insert(range.address());
        }
    }

    /// Whether an address is in one that is longer than `len` bits.
    fn hold(&self, address: IpAddr, len: u8) -> bool {
        let mut longer = self.0.range((Bound::Excluded(len), Bound::Unbounded));
        longer.any(|(&len, ranges)| {
            // Of the other family there may be lengths that this one does not have.
            Prefix::containing(address, len).is_ok_and(|range| ranges.contains(&range.address()))
        })
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
