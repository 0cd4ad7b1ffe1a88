//! The policy as edges: for each rule the members that it selects, for each member the rules that select it.
//!
//! ```text
//! member ── facts (id, groups, tags, addresses) ──> selector ──> rules that name it, on either side
//!    │                                                 │
//!    └── rules that select it <── as source, as destination ──> members it selects
//! ```
//!
//! A changed member re-evaluates the rules that name what changed of it, a changed policy the rules that are new. Whom a node
//! sees is then a union of sets, and whether it sees somebody is whether two sets meet. The sets are compressed bitmaps
//! (`roaring`) of [`Slot`]s.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::OnceLock,
};

use ringmesh_tunnel::{
    ip::Prefix,
    key::NodeId,
    netmap::{Member, Rule, Selector},
};
use roaring::RoaringBitmap;

use super::map::is_mesh;

/// A member's number in bitmaps. It is given once and never again in the life of a process, so that a set of members stays
/// true after some of them were removed.
pub(crate) type Slot = u32;

/// A rule's number, given once as well.
type RuleSlot = u32;

/// Which side of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Source,
    Destination,
}

const SIDES: [Side; 2] = [Side::Source, Side::Destination];

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// One thing for each side of a rule.
#[derive(Debug, Clone, Default)]
struct Both<T> {
    source: T,
    destination: T,
}

impl<T> Both<T> {
    const fn at(&self, side: Side) -> &T {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    fn of(of: impl Fn(Side) -> T) -> Self {
        Self { source: of(Side::Source), destination: of(Side::Destination) }
    }

    const fn at_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }
}

/// A rule as it stands in the policy, or more than once in it.
#[derive(Debug)]
struct RuleEdges {
    selectors: Both<Vec<Selector>>,
    /// Whether a side is everybody. Then nothing else of it is looked at, and it has no edges: they would be all there are.
    all: Both<bool>,
    /// The members that each other side selects.
    members: Both<RoaringBitmap>,
    /// Its places among the policy's leaves.
    places: Vec<u64>,
    hash: [u8; 32],
}

/// A selector that a rule names, or a group or tag that a member has.
#[derive(Debug, Default)]
struct Named {
    members: RoaringBitmap,
    /// The rules that name it.
    rules: Both<RoaringBitmap>,
}

/// A member.
#[derive(Debug, Default)]
struct MemberEdges {
    /// What it is selected by, ranges aside.
    facts: BTreeSet<Selector>,
    allowed_ips: BTreeSet<Prefix>,
    /// The rules whose sides select it, but those that select everybody.
    rules: Both<RoaringBitmap>,
}

/// The edges of one network.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    slots: BTreeMap<NodeId, Slot>,
    /// By slot, those of removed members too: whoever was told of one must be told that it is gone.
    ids: Vec<NodeId>,
    members: BTreeMap<Slot, MemberEdges>,
    everybody: RoaringBitmap,
    /// Those that run our daemon.
    mesh: RoaringBitmap,
    /// Those of them that are relays.
    relays: RoaringBitmap,
    selectors: BTreeMap<Selector, Named>,
    /// Who sends from which address, for ranges: hosts by order, wider routes in a list.
    hosts: BTreeMap<IpAddr, RoaringBitmap>,
    routes: BTreeMap<Prefix, RoaringBitmap>,
    /// The ranges among `selectors`.
    ranges: BTreeSet<Prefix>,
    rules: BTreeMap<RuleSlot, RuleEdges>,
    by_hash: BTreeMap<[u8; 32], RuleSlot>,
    next_rule: RuleSlot,
    /// The rules one side of which is everybody.
    for_all: Both<RoaringBitmap>,
    /// Whom those rules have on their other side; empty after every change.
    beyond_all: Both<OnceLock<RoaringBitmap>>,
    /// Places of what is no rule, and so for everybody.
    others: Vec<u64>,
    uniform: bool,
    /// Sides of rules that were evaluated so far, each against one member or as a whole.
    evaluations: u64,
}

impl Edges {
    /// Takes a member as it is now, or that it is gone.
    pub(crate) fn put_member(&mut self, id: NodeId, member: Option<&Member>) {
        self.beyond_all = Both::default();
        let slot = self.slot_or_new(id);
        let now = member.map(facts_of).unwrap_or_default();
        let before = self.members.remove(&slot);
        let is_new = before.is_none();
        let mut edges = before.unwrap_or_default();
        self.set_kind(slot, member);
        let (facts, allowed_ips) = now;
        let mut touched = Vec::new();
        let lost = edges.facts.difference(&facts).map(|fact| (fact, false));
        let gained = facts.difference(&edges.facts).map(|fact| (fact, true));
        for (fact, has) in lost.chain(gained) {
            self.set_fact(slot, fact, has, &mut touched);
        }
        if edges.allowed_ips != allowed_ips {
            self.set_addresses(slot, &edges.allowed_ips, &allowed_ips, &mut touched);
        }
        (edges.facts, edges.allowed_ips) = (facts, allowed_ips);
        touched.sort_unstable();
        touched.dedup();
        for (rule, side) in touched {
            self.evaluate(slot, &mut edges, rule, side);
        }
        if member.is_some() {
            self.members.insert(slot, edges);
        } else if !is_new {
            debug_assert!(SIDES.iter().all(|side| edges.rules.at(*side).is_empty()), "nobody's edges");
        }
    }

    /// Takes the leaves of the policy in their order, each with its hash; `None` for one that is no rule.
    pub(crate) fn put_policy<'a>(&mut self, leaves: impl Iterator<Item = (Option<&'a Rule>, [u8; 32])>) {
        self.beyond_all = Both::default();
        for rule in self.rules.values_mut() {
            rule.places.clear();
        }
        self.others.clear();
        for (place, (rule, hash)) in (0_u64..).zip(leaves) {
            let Some(rule) = rule else {
                self.others.push(place);
                continue;
            };
            let slot = match self.by_hash.get(&hash) {
                Some(slot) => *slot,
                None => self.add_rule(rule, hash),
            };
            if let Some(edges) = self.rules.get_mut(&slot) {
                edges.places.push(place);
            }
        }
        let gone: Vec<RuleSlot> =
            self.rules.iter().filter(|(_, rule)| rule.places.is_empty()).map(|(slot, _)| *slot).collect();
        for slot in gone {
            self.drop_rule(slot);
        }
        let joins_all = |rule: &RuleEdges| SIDES.iter().all(|side| *rule.all.at(*side));
        let concerns_all = |rule: &RuleEdges| SIDES.iter().any(|side| *rule.all.at(*side));
        self.uniform = self.rules.values().any(joins_all) && self.rules.values().all(concerns_all);
    }

    /// The slot of a member, also of one that was removed since the start.
    pub(crate) fn slot(&self, id: NodeId) -> Option<Slot> {
        self.slots.get(&id).copied()
    }

    /// Whose slot this is.
    pub(crate) fn id(&self, slot: Slot) -> Option<NodeId> {
        self.ids.get(slot as usize).copied()
    }

    /// Whether all nodes have the same map: a rule connects everybody, and every leaf is for everybody.
    pub(crate) const fn is_uniform(&self) -> bool {
        self.uniform
    }

    /// Whom a map of `me` has in it: itself, whoever a rule connects with it in either direction, and, as there is no session
    /// without the other's key, relays with mesh nodes.
    pub(crate) fn visible(&self, me: Slot) -> RoaringBitmap {
        let Some(edges) = self.members.get(&me) else { return RoaringBitmap::new() };
        let mut seen = RoaringBitmap::from_iter([me]);
        if self.mesh.contains(me) {
            seen |= &self.relays;
        }
        if self.relays.contains(me) {
            seen |= &self.mesh;
        }
        for side in SIDES {
            seen |= self.beyond_all(side);
            for rule in edges.rules.at(side).iter().filter_map(|rule| self.rules.get(&rule)) {
                if seen.len() == self.everybody.len() {
                    return seen;
                }
                seen |= self.members(rule, side.other());
            }
        }
        seen
    }

    /// Whether a map of `me` has `peer` in it.
    pub(crate) fn sees(&self, me: Slot, peer: Slot) -> bool {
        let (Some(mine), Some(theirs)) = (self.members.get(&me), self.members.get(&peer)) else {
            return false;
        };
        let relay = |one, other| self.relays.contains(one) && self.mesh.contains(other);
        // A rule has one of them on this side, and the other on the other.
        let connected = |side: Side| {
            let (here, there) = (mine.rules.at(side), theirs.rules.at(side.other()));
            let (all_here, all_there) = (self.for_all.at(side), self.for_all.at(side.other()));
            !here.is_disjoint(there)
                || !here.is_disjoint(all_there)
                || !all_here.is_disjoint(there)
                || !all_here.is_disjoint(all_there)
        };
        me == peer || relay(me, peer) || relay(peer, me) || SIDES.into_iter().any(connected)
    }

    /// The places of the leaves that touch `me`, in the policy's order.
    pub(crate) fn places(&self, me: Slot) -> Vec<u64> {
        let Some(edges) = self.members.get(&me) else { return Vec::new() };
        let touching = (&edges.rules.source | &edges.rules.destination)
            | (&self.for_all.source | &self.for_all.destination);
        let rules = touching.iter().filter_map(|rule| self.rules.get(&rule));
        let mut places: Vec<u64> = rules.flat_map(|rule| &rule.places).chain(&self.others).copied().collect();
        places.sort_unstable();
        places
    }

    /// Sides of rules that were evaluated so far: what tests count.
    #[cfg(test)]
    pub(crate) const fn evaluations(&self) -> u64 {
        self.evaluations
    }

    /// The members that one side of a rule selects.
    fn members<'a>(&'a self, rule: &'a RuleEdges, side: Side) -> &'a RoaringBitmap {
        if *rule.all.at(side) { &self.everybody } else { rule.members.at(side) }
    }

    /// Whom the rules for everybody on `side` have on their other side.
    fn beyond_all(&self, side: Side) -> &RoaringBitmap {
        self.beyond_all.at(side).get_or_init(|| {
            let rules = self.for_all.at(side).iter().filter_map(|rule| self.rules.get(&rule));
            rules.fold(RoaringBitmap::new(), |beyond, rule| beyond | self.members(rule, side.other()))
        })
    }

    fn slot_or_new(&mut self, id: NodeId) -> Slot {
        if let Some(slot) = self.slots.get(&id) {
            return *slot;
        }
        let slot = Slot::try_from(self.ids.len()).expect("invariant: fewer members than 32 bits number");
        self.ids.push(id);
        self.slots.insert(id, slot);
        slot
    }

    fn set_kind(&mut self, slot: Slot, member: Option<&Member>) {
        set(&mut self.everybody, slot, member.is_some());
        set(&mut self.mesh, slot, member.is_some_and(is_mesh));
        set(&mut self.relays, slot, member.is_some_and(|member| is_mesh(member) && member.relay));
    }

    /// Notes that a member has a fact, or no longer, and which rules name that.
    fn set_fact(&mut self, slot: Slot, fact: &Selector, has: bool, touched: &mut Vec<(RuleSlot, Side)>) {
        let named = self.selectors.entry(fact.clone()).or_default();
        set(&mut named.members, slot, has);
        named.touch(touched);
        self.drop_unused(fact);
    }

    fn set_addresses(
        &mut self,
        slot: Slot,
        before: &BTreeSet<Prefix>,
        now: &BTreeSet<Prefix>,
        touched: &mut Vec<(RuleSlot, Side)>,
    ) {
        for lost in before.difference(now) {
            self.set_address(slot, *lost, false);
        }
        for gained in now.difference(before) {
            self.set_address(slot, *gained, true);
        }
        for range in &self.ranges {
            let Some(named) = self.selectors.get_mut(&Selector::Prefix(*range)) else { continue };
            let has = now.iter().any(|own| own.overlaps(range));
            if named.members.contains(slot) != has {
                set(&mut named.members, slot, has);
                named.touch(touched);
            }
        }
    }

    fn set_address(&mut self, slot: Slot, own: Prefix, has: bool) {
        if own.is_host() {
            set_in(&mut self.hosts, own.address(), slot, has);
        } else {
            set_in(&mut self.routes, own, slot, has);
        }
    }

    /// Evaluates one side of a rule against one member, whose edges are in the caller's hands.
    fn evaluate(&mut self, slot: Slot, edges: &mut MemberEdges, number: RuleSlot, side: Side) {
        let Some(rule) = self.rules.get_mut(&number) else { return };
        self.evaluations += 1;
        let selects =
            |selector| self.selectors.get(selector).is_some_and(|named| named.members.contains(slot));
        let selected = rule.selectors.at(side).iter().any(selects);
        set(rule.members.at_mut(side), slot, selected);
        set(edges.rules.at_mut(side), number, selected);
    }

    fn add_rule(&mut self, rule: &Rule, hash: [u8; 32]) -> RuleSlot {
        let slot = self.next_rule;
        self.next_rule = slot.checked_add(1).expect("invariant: fewer rules in a life than 32 bits number");
        let selectors = Both { source: rule.sources.clone(), destination: rule.destinations.clone() };
        let all = Both::of(|side| selectors.at(side).contains(&Selector::All));
        let mut members = Both::<RoaringBitmap>::default();
        for side in SIDES {
            self.evaluations += 1;
            if *all.at(side) {
                self.for_all.at_mut(side).insert(slot);
                continue;
            }
            for selector in selectors.at(side) {
                self.name(selector);
                let Some(named) = self.selectors.get_mut(selector) else { continue };
                named.rules.at_mut(side).insert(slot);
                *members.at_mut(side) |= &named.members;
            }
            for member in members.at(side) {
                if let Some(member) = self.members.get_mut(&member) {
                    member.rules.at_mut(side).insert(slot);
                }
            }
        }
        self.rules.insert(slot, RuleEdges { selectors, all, members, places: Vec::new(), hash });
        self.by_hash.insert(hash, slot);
        slot
    }

    fn drop_rule(&mut self, slot: RuleSlot) {
        let Some(rule) = self.rules.remove(&slot) else { return };
        self.by_hash.remove(&rule.hash);
        for side in SIDES {
            if *rule.all.at(side) {
                self.for_all.at_mut(side).remove(slot);
                continue;
            }
            for member in rule.members.at(side) {
                if let Some(member) = self.members.get_mut(&member) {
                    member.rules.at_mut(side).remove(slot);
                }
            }
            for selector in rule.selectors.at(side) {
                if let Some(named) = self.selectors.get_mut(selector) {
                    named.rules.at_mut(side).remove(slot);
                    self.drop_unused(selector);
                }
            }
        }
    }

    /// Makes sure that a selector is known. Facts of members are known already; ranges, and whatever nobody is, are not.
    fn name(&mut self, selector: &Selector) {
        if self.selectors.contains_key(selector) {
            return;
        }
        let mut named = Named::default();
        if let Selector::Prefix(range) = selector {
            self.ranges.insert(*range);
            named.members = self.senders_in(range);
        }
        self.selectors.insert(selector.clone(), named);
    }

    /// The members that may send from an address in `range`.
    fn senders_in(&self, range: &Prefix) -> RoaringBitmap {
        let mut members = RoaringBitmap::new();
        let hosts = self.hosts.range(range.address()..).take_while(|(address, _)| range.contains(**address));
        let routes = self.routes.iter().filter(|(route, _)| route.overlaps(range));
        for slots in hosts.map(|(_, slots)| slots).chain(routes.map(|(_, slots)| slots)) {
            members |= slots;
        }
        members
    }

    /// Forgets a selector that no rule names, unless it is a fact of some member.
    fn drop_unused(&mut self, selector: &Selector) {
        let Some(named) = self.selectors.get(selector) else { return };
        let is_range = matches!(selector, Selector::Prefix(_));
        let named_by_rules = SIDES.iter().any(|side| !named.rules.at(*side).is_empty());
        if !named_by_rules && (is_range || named.members.is_empty()) {
            self.selectors.remove(selector);
            if let Selector::Prefix(range) = selector {
                self.ranges.remove(range);
            }
        }
    }
}

impl Named {
    fn touch(&self, touched: &mut Vec<(RuleSlot, Side)>) {
        for side in SIDES {
            touched.extend(self.rules.at(side).iter().map(|rule| (rule, side)));
        }
    }
}

/// What a member is selected by: as it is called, and by where it sends from.
fn facts_of(member: &Member) -> (BTreeSet<Selector>, BTreeSet<Prefix>) {
    let groups = member.groups.iter().cloned().map(Selector::Group);
    let tags = member.tags.iter().cloned().map(Selector::Tag);
    let facts = [Selector::Node(member.id)].into_iter().chain(groups).chain(tags);
    (facts.collect(), member.allowed_ips().collect())
}

fn set(bitmap: &mut RoaringBitmap, number: u32, has: bool) {
    if has {
        bitmap.insert(number);
    } else {
        bitmap.remove(number);
    }
}

fn set_in<K: Ord>(map: &mut BTreeMap<K, RoaringBitmap>, key: K, slot: Slot, has: bool) {
    use std::collections::btree_map::Entry;
    match map.entry(key) {
        Entry::Occupied(mut held) => {
            set(held.get_mut(), slot, has);
            if held.get().is_empty() {
                held.remove();
            }
        }
        Entry::Vacant(free) if has => drop(free.insert(RoaringBitmap::from_iter([slot]))),
        Entry::Vacant(_) => {}
    }
}
