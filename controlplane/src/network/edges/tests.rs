//! Edges against the rules' meaning said naively, after whatever happened; and what a change costs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ringmesh_tunnel::{
    UnixTime,
    key::{IdentitySecret, NetworkId, PublicKey},
    netmap::{Leaf, MemberKind, PortRange, Protocol, leaf_hash},
};

use super::*;

/// The rules' meaning, rule by rule and member by member: what the edges are checked against.
mod model {
    use super::*;

    pub(super) fn connects(rule: &Rule, from: &Member, to: &Member) -> bool {
        selected(&rule.sources, from) && selected(&rule.destinations, to)
    }

    pub(super) fn selected(selectors: &[Selector], member: &Member) -> bool {
        selectors.iter().any(|selector| match selector {
            Selector::All => true,
            Selector::Node(id) => *id == member.id,
            Selector::Group(name) => member.groups.contains(name),
            Selector::Tag(name) => member.tags.contains(name),
            Selector::Prefix(prefix) => member.allowed_ips().any(|own| own.overlaps(prefix)),
        })
    }

    pub(super) fn sees(rules: &[Rule], me: &Member, peer: &Member) -> bool {
        let relayed = (me.relay || peer.relay) && is_mesh(me) && is_mesh(peer);
        me.id == peer.id
            || relayed
            || rules.iter().any(|rule| connects(rule, me, peer) || connects(rule, peer, me))
    }

    pub(super) fn places(leaves: &[Option<Rule>], me: &Member) -> Vec<u64> {
        let touches = |leaf: &Option<Rule>| {
            leaf.as_ref().is_none_or(|rule| selected(&rule.sources, me) || selected(&rule.destinations, me))
        };
        (0..).zip(leaves).filter(|(_, leaf)| touches(leaf)).map(|(place, _)| place).collect()
    }

    pub(super) fn is_uniform(rules: &[Rule]) -> bool {
        let all = |side: &[Selector]| side.contains(&Selector::All);
        rules.iter().any(|rule| all(&rule.sources) && all(&rule.destinations))
            && rules.iter().all(|rule| all(&rule.sources) || all(&rule.destinations))
    }
}

const WORDS: [&str; 4] = ["web", "db", "ops", "ci"];
const MEMBERS: u8 = 12;
const RANGES: [&str; 7] = [
    "100.64.0.0/24",
    "100.64.0.4/30",
    "100.64.0.3/32",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "fd00::/16",
    "fd00::5/128",
];

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number + 1; 8])
}

fn words(picked: &[usize]) -> Vec<String> {
    picked.iter().map(|word| WORDS[*word].to_owned()).collect()
}

#[derive(Debug, Clone)]
struct Traits {
    groups: Vec<usize>,
    tags: Vec<usize>,
    routes: Vec<usize>,
    relay: bool,
    stock: bool,
}

fn member(number: u8, traits: &Traits) -> Member {
    Member {
        network: NetworkId::from_bytes([1; 16]),
        id: id(number),
        name: format!("n{number}"),
        kind: if traits.stock { MemberKind::Stock } else { MemberKind::Mesh },
        relay: traits.relay,
        noise_key: PublicKey::from_bytes([number; 32]),
        identity_key: Some(IdentitySecret::from_seed([number; 32]).public_key()),
        ipv4: (!traits.relay).then(|| [100, 64, 0, number].into()),
        ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
        tags: words(&traits.tags),
        groups: words(&traits.groups),
        routes: traits.routes.iter().map(|range| RANGES[*range].parse().unwrap()).collect(),
        serial: 1,
        not_after: UnixTime::from_secs(1),
    }
}

fn traits() -> impl Strategy<Value = Traits> {
    let some = || proptest::sample::subsequence((0..WORDS.len()).collect::<Vec<_>>(), 0..=2);
    // Routes, not host addresses: those are somebody's.
    let routes = proptest::sample::subsequence(vec![3_usize, 4], 0..=2);
    let flags = (proptest::bool::weighted(0.1), proptest::bool::weighted(0.1));
    (some(), some(), routes, flags).prop_map(|(groups, tags, routes, (relay, stock))| Traits {
        groups,
        tags,
        routes,
        relay,
        stock,
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    prop_oneof![
        1 => Just(Selector::All),
        3 => (0..MEMBERS).prop_map(|number| Selector::Node(id(number))),
        3 => (0..WORDS.len()).prop_map(|word| Selector::Group(WORDS[word].into())),
        3 => (0..WORDS.len()).prop_map(|word| Selector::Tag(WORDS[word].into())),
        3 => (0..RANGES.len()).prop_map(|range| Selector::Prefix(RANGES[range].parse().unwrap())),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let side = || proptest::collection::vec(selector(), 0..3);
    (side(), side(), 0..3_u16).prop_map(|(sources, destinations, port)| Rule {
        sources,
        destinations,
        protocol: Protocol::Tcp,
        ports: vec![PortRange::from(port)],
    })
}

#[derive(Debug, Clone)]
enum Event {
    Put(u8, Traits),
    Remove(u8),
    /// A rule, or a name, somewhere in the policy.
    Insert(usize, Option<Rule>),
    Drop(usize),
    Double(usize),
    Swap(usize, usize),
    Replace(Vec<Option<Rule>>),
}

fn event() -> impl Strategy<Value = Event> {
    let leaf = || proptest::option::weighted(0.8, rule());
    prop_oneof![
        6 => (0..MEMBERS, traits()).prop_map(|(number, traits)| Event::Put(number, traits)),
        2 => (0..MEMBERS).prop_map(Event::Remove),
        4 => (any::<usize>(), leaf()).prop_map(|(place, leaf)| Event::Insert(place, leaf)),
        2 => any::<usize>().prop_map(Event::Drop),
        1 => any::<usize>().prop_map(Event::Double),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Event::Swap(one, other)),
        1 => proptest::collection::vec(leaf(), 0..5).prop_map(Event::Replace),
    ]
}

#[derive(Default)]
struct World {
    edges: Edges,
    members: BTreeMap<u8, Member>,
    leaves: Vec<Option<Rule>>,
    /// Removed members do not come back under their id.
    gone: BTreeSet<u8>,
}

fn hash_of(leaf: &Option<Rule>) -> [u8; 32] {
    leaf.as_ref().map_or([0; 32], |rule| leaf_hash(&Leaf::Rule(rule.clone()).emit().unwrap()))
}

impl World {
    fn put(&mut self, number: u8, traits: &Traits) {
        let member = member(number, traits);
        self.edges.put_member(member.id, Some(&member));
        self.members.insert(number, member);
    }

    fn apply(&mut self) {
        self.edges.put_policy(self.leaves.iter().map(|leaf| (leaf.as_ref(), hash_of(leaf))));
    }

    fn happen(&mut self, event: Event) {
        let count = self.leaves.len();
        match event {
            Event::Put(number, _) if self.gone.contains(&number) => {}
            Event::Put(number, traits) => self.put(number, &traits),
            Event::Remove(number) => {
                self.edges.put_member(id(number), None);
                self.members.remove(&number);
                self.gone.insert(number);
            }
            Event::Insert(place, leaf) => self.leaves.insert(place % (count + 1), leaf),
            Event::Drop(place) if count > 0 => drop(self.leaves.remove(place % count)),
            Event::Double(place) if count > 0 => self.leaves.push(self.leaves[place % count].clone()),
            Event::Swap(one, other) if count > 0 => self.leaves.swap(one % count, other % count),
            Event::Replace(leaves) => self.leaves = leaves,
            Event::Drop(_) | Event::Double(_) | Event::Swap(..) => {}
        }
        self.apply();
    }

    fn check(&self) {
        let rules: Vec<Rule> = self.leaves.iter().flatten().cloned().collect();
        assert_eq!(self.edges.is_uniform(), model::is_uniform(&rules));
        for me in self.members.values() {
            let mine = self.edges.slot(me.id).unwrap();
            let mut visible = BTreeSet::new();
            for peer in self.members.values() {
                let expected = model::sees(&rules, me, peer);
                assert_eq!(self.edges.sees(mine, self.edges.slot(peer.id).unwrap()), expected);
                visible.extend(expected.then_some(peer.id));
            }
            let seen: BTreeSet<NodeId> =
                self.edges.visible(mine).iter().map(|slot| self.edges.id(slot).unwrap()).collect();
            assert_eq!(seen, visible);
            assert_eq!(self.edges.places(mine), model::places(&self.leaves, me));
        }
        for number in &self.gone {
            let Some(slot) = self.edges.slot(id(*number)) else { continue };
            assert!(self.edges.visible(slot).is_empty() && self.edges.places(slot).is_empty());
            assert!(!self.edges.sees(slot, slot));
        }
        // Nothing is kept that neither a member nor a rule has.
        let sides = rules.iter().flat_map(|rule| [&rule.sources, &rule.destinations]);
        let named: BTreeSet<&Selector> =
            sides.filter(|side| !side.contains(&Selector::All)).flatten().collect();
        let facts: Vec<Selector> = self.members.values().flat_map(|member| facts_of(member).0).collect();
        let expected: BTreeSet<&Selector> = named.into_iter().chain(&facts).collect();
        assert_eq!(self.edges.selectors.keys().collect::<BTreeSet<_>>(), expected);
        let distinct: BTreeSet<&Rule> = rules.iter().collect();
        assert_eq!(self.edges.rules.len(), distinct.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edges_are_what_the_rules_say_after_any_history(events in proptest::collection::vec(event(), 1..40)) {
        let mut world = World::default();
        for event in events {
            world.happen(event);
            world.check();
        }
    }
}

fn plain(tags: &[usize], groups: &[usize]) -> Traits {
    Traits { groups: groups.to_vec(), tags: tags.to_vec(), routes: vec![], relay: false, stock: false }
}

fn between(source: Selector, destination: Selector, port: u16) -> Option<Rule> {
    Some(Rule {
        sources: vec![source],
        destinations: vec![destination],
        protocol: Protocol::Tcp,
        ports: vec![PortRange::from(port)],
    })
}

/// A thousand rules about tags and addresses that are not those of the test, three about what changes.
fn large() -> World {
    let mut world = World::default();
    let tag = |word: &str| Selector::Tag(word.into());
    world.leaves = (0..1000).map(|i| between(tag(&format!("t{}", i % 50)), tag("db"), i)).collect();
    world.leaves.push(between(tag("web"), tag("db"), 1));
    world.leaves.push(between(Selector::Group("ops".into()), tag("web"), 2));
    world.leaves.push(between(Selector::Prefix("10.1.2.0/24".parse().unwrap()), tag("web"), 3));
    for number in 0..MEMBERS {
        world.put(number, &plain(&[], &[]));
    }
    world.apply();
    world
}

#[test]
fn a_change_evaluates_only_the_rules_that_name_what_changed() {
    let mut world = large();
    let mut cost = |change: &dyn Fn(&mut World)| {
        let before = world.edges.evaluations();
        change(&mut world);
        world.check();
        world.edges.evaluations() - before
    };
    assert_eq!(cost(&|world| world.put(0, &plain(&[], &[]))), 0, "the same record again, as a renewal is");
    assert_eq!(cost(&|world| world.put(0, &plain(&[0], &[]))), 3, "a tag that is named thrice");
    assert_eq!(cost(&|world| world.put(0, &plain(&[0], &[2]))), 1, "a group that is named once");
    assert_eq!(cost(&|world| world.put(0, &plain(&[0], &[3, 2]))), 0, "a group that no rule names");
    let routed = Traits { routes: vec![3], ..plain(&[0], &[3, 2]) };
    assert_eq!(cost(&|world| world.put(0, &routed)), 1, "a route into the one range that is named");
    assert_eq!(cost(&|world| world.edges.put_member(id(200), None)), 0, "somebody unknown");
}

#[test]
fn a_changed_policy_evaluates_only_the_leaves_that_changed() {
    let mut world = large();
    let mut cost = |change: &dyn Fn(&mut Vec<Option<Rule>>)| {
        let before = world.edges.evaluations();
        change(&mut world.leaves);
        world.apply();
        world.check();
        world.edges.evaluations() - before
    };
    let rule = || between(Selector::Tag("ci".into()), Selector::All, 9);
    assert_eq!(cost(&|_| {}), 0, "signed anew");
    assert_eq!(cost(&|leaves| leaves.insert(0, rule())), 2, "both sides of one rule, before all others");
    assert_eq!(cost(&|leaves| leaves.swap(0, 900)), 0, "another order");
    assert_eq!(cost(&|leaves| leaves.push(None)), 0, "a name");
    assert_eq!(cost(&|leaves| drop(leaves.remove(900))), 0, "a rule less");
    assert_eq!(cost(&|leaves| leaves[3] = rule()), 2);
}

#[test]
fn a_removed_members_slot_is_nobody_elses() {
    let mut world = large();
    let slot = world.edges.slot(id(3)).unwrap();
    world.happen(Event::Remove(3));
    world.put(100, &plain(&[], &[]));
    assert_ne!(world.edges.slot(id(100)), Some(slot));
    assert_eq!(world.edges.id(slot), Some(id(3)));
}
