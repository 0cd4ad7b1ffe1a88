//! Random histories: whatever happens to a network, a node that follows by deltas holds what a full map would give it, and
//! that is exactly what the rules let it see.

mod routes;

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use ringmesh_tunnel::{
    UnixTime,
    enroll::{
        TokenSecret,
        seal::{Context, Purpose, open_secret},
    },
    key::{IdentitySecret, NetworkId, NetworkSecret, NodeId, PresharedKey, TokenId, secrets_digest},
    netmap::{
        Envelope, Leaf, Member, MemberKind, NameRecord, NetworkMap, NodeRecord, PortRange, Protocol, Role,
        Rule, Selector,
    },
};

use super::{
    Plan, Registry, Signed,
    authority::Authority,
    create, enroll,
    events::Name,
    key::Part,
    map::{Delta, Outgoing, Place, Told},
    members, relay, renew,
    row::{self, Blob, NodeRow},
    tokens,
};
use crate::{config::NetworkConfig, store::Commit, vault::Vault};

const TAGS: [&str; 3] = ["web", "db", "ops"];
/// A range behind some members.
const ROUTE: &str = "10.1.0.0/16";

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    Join { tags: Vec<usize>, relay: bool },
    AddStock,
    Remove { node: usize },
    Retag { node: usize, tags: Vec<usize>, groups: Vec<usize>, routed: bool },
    Endpoints { node: usize, port: u16 },
    Policy { rules: Vec<(Pick, Pick)>, name: bool },
    Days { days: u64 },
    Follow { node: usize },
    Forget { node: usize },
}

/// One side of a rule.
#[derive(Debug, Clone)]
enum Pick {
    All,
    Nobody,
    Tag(usize),
    Group(usize),
    Node(usize),
    Address(usize),
    /// A range within what is routed.
    Range,
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        3 => Just(Pick::All),
        1 => Just(Pick::Nobody),
        3 => (0..TAGS.len()).prop_map(Pick::Tag),
        3 => (0..TAGS.len()).prop_map(Pick::Group),
        1 => Just(Pick::Range),
        2 => any::<usize>().prop_map(Pick::Node),
        1 => any::<usize>().prop_map(Pick::Address),
    ]
}

fn tags() -> impl Strategy<Value = Vec<usize>> {
    proptest::sample::subsequence((0..TAGS.len()).collect::<Vec<_>>(), 0..=2)
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (tags(), proptest::bool::weighted(0.2)).prop_map(|(tags, relay)| Event::Join { tags, relay }),
        1 => Just(Event::AddStock),
        2 => any::<usize>().prop_map(|node| Event::Remove { node }),
        2 => (any::<usize>(), tags(), tags(), any::<bool>())
            .prop_map(|(node, tags, groups, routed)| Event::Retag { node, tags, groups, routed }),
        4 => (any::<usize>(), 1_u16..).prop_map(|(node, port)| Event::Endpoints { node, port }),
        2 => (proptest::collection::vec((pick(), pick()), 0..4), any::<bool>())
            .prop_map(|(rules, name)| Event::Policy { rules, name }),
        1 => (1..20_u64).prop_map(|days| Event::Days { days }),
        6 => any::<usize>().prop_map(|node| Event::Follow { node }),
        1 => any::<usize>().prop_map(|node| Event::Forget { node }),
    ]
}

/// A node that follows.
struct Follower {
    identity: IdentitySecret,
    map: NetworkMap,
    epochs: BTreeMap<u64, NetworkSecret>,
    peers: BTreeMap<NodeId, PresharedKey>,
    /// The newest change that it was told, and whom it sees.
    held: Option<(u64, Told)>,
}

struct World {
    registry: Registry,
    vault: Vault,
    network: NetworkId,
    now: UnixTime,
    followers: BTreeMap<NodeId, Follower>,
    joined: u32,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(directory.path(), true).unwrap();
        let now = UnixTime::from_secs(1_800_000_000);
        let relay = relay::Newcomer::generate();
        let (network, plan) =
            create::plan(&NetworkConfig::default(), &Authority::generate(), Some(&relay), &vault, now)
                .unwrap();
        let registry = Registry::default();
        let mut world = Self {
            registry,
            vault,
            network,
            now,
            followers: BTreeMap::new(),
            joined: 0,
            _directory: directory,
        };
        world.commit(plan);
        world
    }

    fn state(&self) -> &super::NetworkState {
        self.registry.network(self.network).unwrap()
    }

    fn commit(&mut self, plan: impl Into<Plan>) {
        let changes = plan.into().ops.into_iter().map(|op| match op {
            crate::store::Op::Put { key, value, .. } => (key, Some(value)),
            crate::store::Op::Delete { key } => (key, None),
        });
        let commit = Commit { revision: self.registry.revision() + 1, changes: changes.collect() };
        self.registry.apply(&commit, &self.vault).unwrap();
    }

    fn place(&self) -> Place {
        Place { replica: 1, durable: self.registry.revision() }
    }

    /// The `number`th member, counted around.
    fn nth(&self, number: usize) -> Option<NodeId> {
        let count = self.state().nodes.len();
        self.state().node_ids().nth(number.checked_rem(count)?)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Join { tags, relay } => self.join(&tags, relay),
            Event::AddStock => {
                self.joined += 1;
                let (name, key) =
                    (format!("s{}", self.joined), IdentitySecret::generate().public_key().noise_key());
                let (id, psk) = (NodeId::generate(), PresharedKey::generate());
                let plan =
                    members::plan_stock(self.state(), &name, key, id, &psk, &self.vault, self.now).unwrap().1;
                self.commit(plan);
            }
            Event::Remove { node } => {
                let Some(id) = self.nth(node) else { return };
                let plan = members::plan_removal(self.state(), id, Name::NodeRemoved, &self.vault, self.now)
                    .unwrap();
                self.commit(plan);
                self.followers.remove(&id);
            }
            Event::Retag { node, tags, groups, routed } => self.retag(node, &tags, &groups, routed),
            Event::Endpoints { node, port } => self.tell(node, port),
            Event::Policy { rules, name } => self.set_policy(&rules, name),
            Event::Days { days } => {
                self.now = self.now.saturating_add(Duration::from_secs(days * 24 * 3600));
                for plan in renew::plan(self.state(), renew::Why::Due, self.now).unwrap() {
                    self.commit(plan);
                }
            }
            Event::Follow { node } => drop(self.nth(node).map(|id| self.follow(id))),
            Event::Forget { node } => {
                let id = self.nth(node);
                if let Some(follower) = id.and_then(|id| self.followers.get_mut(&id)) {
                    follower.held = None;
                }
            }
        }
    }

    fn join(&mut self, tags: &[usize], relay: bool) {
        self.joined += 1;
        let (token, secret) = (TokenId::generate(), TokenSecret::generate());
        let tags = tags.iter().map(|tag| TAGS[*tag].to_owned()).collect();
        let wish = tokens::Wish { life: Duration::ZERO, max_uses: 1, tags, ephemeral: false, relay };
        self.commit(tokens::plan_create(self.state(), token, &secret, &wish, self.now).unwrap().1);
        let identity = IdentitySecret::generate();
        let joiner = enroll::Joiner {
            token,
            identity_key: identity.public_key(),
            name: format!("n{}", self.joined),
            host_name: String::new(),
            os: String::new(),
            version: String::new(),
            relay,
        };
        let planned = enroll::plan(self.state(), &joiner, NodeId::generate(), self.now).unwrap();
        let enroll::Enrollment::New(id, plan) = planned else { panic!("{planned:?}") };
        self.commit(plan);
        let map = NetworkMap::empty(self.network, self.state().root, id);
        let (epochs, peers) = (BTreeMap::new(), BTreeMap::new());
        self.followers.insert(id, Follower { identity, map, epochs, peers, held: None });
    }

    fn retag(&mut self, node: usize, tags: &[usize], groups: &[usize], routed: bool) {
        let Some(id) = self.nth(node) else { return };
        let node = &self.state().nodes[&id];
        let mut member = node.member.record.clone();
        let words = |picked: &[usize]| picked.iter().map(|word| TAGS[*word].to_owned()).collect();
        (member.tags, member.groups) = (words(tags), words(groups));
        member.routes = if routed { vec![ROUTE.parse().unwrap()] } else { Vec::new() };
        member.serial += 1;
        let signed = self.state().authority.sign(Role::Admission, &member).unwrap();
        let row = NodeRow { member: Blob::from(&signed), ..node.row.clone() };
        let op = crate::store::Op::put(Part::Node(id).of(self.network), row::emit(&row));
        self.commit(Plan { compare: vec![], ops: vec![op] });
    }

    fn tell(&mut self, node: usize, port: u16) {
        let Some(id) = self.nth(node) else { return };
        if self.state().own_relay().is_some_and(|(relay, _)| relay == id) {
            let places =
                relay::Places { endpoints: vec![([192, 0, 2, 2], port).into()], websockets: Vec::new() };
            let record = self.state().relay_record(&places, self.now).unwrap();
            return self.registry.networks.get_mut(&self.network).unwrap().put_node_record(record);
        }
        let Some(follower) = self.followers.get(&id) else { return };
        let endpoints = vec![([192, 0, 2, 1], port).into()];
        let serial = self.state().changes.newest() + self.now.as_millis();
        let record = NodeRecord {
            network: self.network,
            id,
            serial,
            endpoints,
            time: self.now,
            websockets: Vec::new(),
            ssh: Vec::new(),
        };
        let envelope = Envelope::sign(&record, &follower.identity).unwrap();
        let state = self.registry.networks.get_mut(&self.network).unwrap();
        state.put_node_record(Signed::new(record, envelope, 0));
    }

    fn set_policy(&mut self, rules: &[(Pick, Pick)], name: bool) {
        let side = |pick: &Pick| match pick {
            Pick::All => vec![Selector::All],
            Pick::Nobody => vec![],
            Pick::Tag(tag) => vec![Selector::Tag(TAGS[*tag].into())],
            Pick::Group(group) => vec![Selector::Group(TAGS[*group].into())],
            Pick::Range => vec![Selector::Prefix("10.1.2.0/24".parse().unwrap())],
            Pick::Node(node) => self.nth(*node).map(Selector::Node).into_iter().collect(),
            Pick::Address(node) => {
                let member = self.nth(*node).and_then(|id| self.state().member(id));
                member
                    .and_then(|member| member.allowed_ips().next())
                    .map(Selector::Prefix)
                    .into_iter()
                    .collect()
            }
        };
        let mut leaves: Vec<Leaf> = rules
            .iter()
            .map(|(sources, destinations)| {
                Leaf::Rule(Rule {
                    sources: side(sources),
                    destinations: side(destinations),
                    protocol: Protocol::Tcp,
                    ports: vec![PortRange::from(443)],
                })
            })
            .collect();
        if name {
            leaves.push(Leaf::Name(NameRecord { name: "www".into(), addresses: vec![[10, 0, 0, 1].into()] }));
        }
        let serial = self.state().policy.as_ref().unwrap().signed.record.serial + 1;
        let op =
            create::policy(self.network, &leaves, serial, None, &self.state().authority, self.now).unwrap();
        self.commit(Plan { compare: vec![], ops: vec![op] });
    }

    /// Brings a node up to date by a delta, or by a full map if it must, and compares.
    fn follow(&mut self, id: NodeId) {
        let (place, now) = (self.place(), self.now);
        let Some(follower) = self.followers.get(&id) else { return };
        let state = self.state();
        let delta =
            follower.held.as_ref().map(|(since, told)| state.delta(id, *since, told, place, now).unwrap());
        let outgoing = match delta {
            Some(Delta::Nothing) => None,
            Some(Delta::Update(outgoing)) => {
                assert!(!outgoing.update.full);
                Some(*outgoing)
            }
            None => Some(state.full(id, place, now).unwrap()),
        };
        let (map, told, secrets, peer_secrets) = match outgoing {
            Some(Outgoing { update, digest, told, secrets, peer_secrets }) => {
                // Nothing is sent twice, and nobody is taken back who was not there.
                let known = |id: &NodeId| follower.map.member(*id).is_some();
                assert!(update.full || update.removed.iter().all(known));
                let map = follower.map.verify(update, now).unwrap();
                assert_eq!(map.digest(), digest);
                (map, told, secrets, peer_secrets)
            }
            // What does not touch the node leaves it with the same digests.
            None => {
                let head = state.head(id, place, now).unwrap().envelope;
                let told = follower.held.as_ref().unwrap().1.clone();
                (follower.map.renew(head, now).unwrap(), told, Vec::new(), Vec::new())
            }
        };
        assert_eq!(told.len(), map.members().count() as u64);
        self.compare(id, &map);
        let (network, since) = (self.network, self.state().newest_change());
        let follower = self.followers.get_mut(&id).unwrap();
        let key = follower.identity.noise_secret();
        let open = |epoch, purpose, sealed: &[u8]| {
            *open_secret(&key, Context { network, epoch, purpose }, sealed).unwrap()
        };
        if !secrets.is_empty() {
            let opened = secrets.iter().map(|secret| {
                let opened = open(secret.epoch, Purpose::Network, &secret.sealed);
                (secret.epoch, NetworkSecret::from_bytes(opened))
            });
            follower.epochs = opened.collect();
        }
        for (peer, sealed) in &peer_secrets {
            let opened = open(0, Purpose::Peer(*peer), sealed);
            follower.peers.insert(*peer, PresharedKey::from_bytes(opened));
        }
        follower.peers.retain(|peer, _| map.member(*peer).is_some());
        let epochs = follower.epochs.iter().map(|(epoch, secret)| (*epoch, secret));
        let digest = secrets_digest(network, epochs, follower.peers.iter().map(|(peer, psk)| (*peer, psk)));
        let newest = follower.epochs.keys().next_back().copied().unwrap_or(0);
        map.check_secrets(newest, &digest).unwrap();
        (follower.map, follower.held) = (map, Some((since, told)));
    }

    fn compare(&self, id: NodeId, map: &NetworkMap) {
        let state = self.state();
        let empty = NetworkMap::empty(self.network, state.root, id);
        let full = empty.verify(state.full(id, self.place(), self.now).unwrap().update, self.now).unwrap();
        assert_eq!(map.digest(), full.digest());
        let me = state.member(id).unwrap();
        let rules: Vec<&Rule> = all_rules(state).collect();
        let expected: Vec<&Member> = state
            .nodes
            .values()
            .map(|node| &node.member.record)
            .filter(|peer| {
                let mesh = peer.kind == MemberKind::Mesh && me.kind == MemberKind::Mesh;
                peer.id == id
                    || (mesh && (peer.relay || me.relay))
                    || rules.iter().any(|rule| joins(rule, me, peer) || joins(rule, peer, me))
            })
            .collect();
        assert_eq!(map.members().collect::<Vec<_>>(), expected);
        let mine: Vec<&Rule> = rules
            .into_iter()
            .filter(|rule| is_in(&rule.sources, me) || is_in(&rule.destinations, me))
            .collect();
        assert_eq!(map.rules(self.now).collect::<Vec<_>>(), mine);
        for peer in expected {
            let told = state.node_records.get(&peer.id).map(|held| &held.record);
            assert_eq!(map.node_record(peer.id), told);
        }
    }
}

fn all_rules(state: &super::NetworkState) -> impl Iterator<Item = &Rule> {
    state.policy.iter().flat_map(|policy| &policy.leaves).filter_map(|held| match &held.leaf {
        Leaf::Rule(rule) => Some(rule),
        Leaf::Name(_) => None,
    })
}

/// The rules' meaning, said once more and naively.
fn joins(rule: &Rule, from: &Member, to: &Member) -> bool {
    is_in(&rule.sources, from) && is_in(&rule.destinations, to)
}

fn is_in(side: &[Selector], member: &Member) -> bool {
    for selector in side {
        let found = match selector {
            Selector::All => true,
            Selector::Node(id) => member.id == *id,
            Selector::Tag(tag) => member.tags.iter().any(|own| own == tag),
            Selector::Group(group) => member.groups.iter().any(|own| own == group),
            Selector::Prefix(prefix) => {
                prefix.contains(member.ipv6.into())
                    || member.ipv4.is_some_and(|ipv4| prefix.contains(ipv4.into()))
                    || member.routes.iter().any(|route| route.overlaps(prefix))
            }
        };
        if found {
            return true;
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_node_that_follows_by_deltas_holds_what_a_full_map_would_give(
        events in proptest::collection::vec(event(), 1..50),
    ) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        let everybody: Vec<NodeId> = world.followers.keys().copied().collect();
        for id in everybody {
            world.follow(id);
        }
    }
}

#[test]
fn a_change_is_told_only_to_those_whose_map_it_changes() {
    let mut world = World::new();
    world.set_policy(&[(Pick::Tag(0), Pick::Tag(1))], false);
    world.join(&[0], false);
    world.join(&[1], false);
    world.join(&[2], false);
    let ids: Vec<NodeId> = (1..=3).map(|i| world.state().names[&format!("n{i}")]).collect();
    for id in &ids {
        world.follow(*id);
    }
    let (place, now, since) = (world.place(), world.now, world.state().newest_change());
    let told = |id: &NodeId| world.followers[id].held.clone().unwrap().1;
    let told: BTreeMap<NodeId, Told> = ids.iter().map(|id| (*id, told(id))).collect();
    let touched = |world: &World| {
        let delta = |id: &NodeId| world.state().delta(*id, since, &told[id], place, now).unwrap();
        ids.iter().map(|id| !matches!(delta(id), Delta::Nothing)).collect::<Vec<_>>()
    };
    let web = world.state().node_ids().position(|id| id == ids[0]).unwrap();
    world.tell(web, 1);
    assert_eq!(touched(&world), [true, true, false]);
    world.join(&[2], false);
    assert_eq!(touched(&world), [true, true, false], "a stranger to all");
    let other = world.state().names["n4"];
    let plan = Plan::from(
        members::plan_removal(world.state(), other, Name::NodeRemoved, &world.vault, world.now).unwrap(),
    );
    // Without the new epoch, which concerns everybody.
    let ops = plan.ops.into_iter().filter(|op| !format!("{op:?}").contains("/epoch/")).collect();
    world.commit(Plan { compare: vec![], ops });
    assert_eq!(touched(&world), [true, true, false], "a stranger that left");
}

#[test]
fn only_members_have_a_map() {
    let mut world = World::new();
    world.join(&[], false);
    let id = world.state().names["n1"];
    assert!(world.state().full(id, world.place(), world.now).is_ok());
    let plan = members::plan_removal(world.state(), id, Name::NodeRemoved, &world.vault, world.now).unwrap();
    world.commit(plan);
    let none =
        |result: Result<Outgoing, super::map::NoMap>| result.unwrap_err() == super::map::NoMap::NotAMember;
    assert!(none(world.state().full(id, world.place(), world.now)));
    assert!(world.state().delta(id, 0, &Told::default(), world.place(), world.now).is_err());
    assert!(world.state().head(id, world.place(), world.now).is_err());
}

#[test]
fn a_stock_device_sees_nothing_of_the_networks_secret() {
    let mut world = World::new();
    world.join(&[], false);
    world.happen(Event::AddStock);
    let stock = world.state().names["s2"];
    assert_eq!(world.state().member(stock).unwrap().kind, MemberKind::Stock);
    let id = world.state().names["n1"];
    let outgoing = world.state().full(id, world.place(), world.now).unwrap();
    assert_eq!(outgoing.peer_secrets.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), [stock]);
    assert_eq!(outgoing.secrets.len(), 1);
}

#[test]
fn a_relay_and_the_nodes_see_each_other_whatever_the_rules() {
    let mut world = World::new();
    world.set_policy(&[], false);
    world.join(&[], false);
    world.join(&[], true);
    world.happen(Event::AddStock);
    let [node, relay, stock] = ["n1", "n2", "s3"].map(|name| world.state().names[name]);
    let (own, _) = world.state().own_relay().unwrap();
    let seen = |id: NodeId| {
        let outgoing = world.state().full(id, world.place(), world.now).unwrap();
        let empty = NetworkMap::empty(world.network, world.state().root, id);
        let map = empty.verify(outgoing.update, world.now).unwrap();
        map.members().map(|member| member.id).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(seen(node), [node, relay, own].into());
    assert_eq!(seen(relay), [node, relay, own].into());
    assert!(!seen(node).contains(&stock), "a stock device has no use for a relay");
}

#[test]
fn the_relay_has_a_place_of_its_own_in_the_network() {
    let mut world = World::new();
    let (id, key) = world.state().own_relay().map(|(id, key)| (id, key.public_key())).unwrap();
    let member = world.state().member(id).unwrap().clone();
    assert_eq!((member.name.as_str(), member.kind, member.relay), ("relay", MemberKind::Mesh, true));
    assert_eq!((member.ipv4, Some(member.ipv6)), (None, id.ipv6_in(world.state().ipv6_pool())));
    assert_eq!((member.identity_key, member.noise_key), (Some(key), key.noise_key()));
    // It is renewed like everybody.
    world.happen(Event::Days { days: 16 });
    let renewed = world.state().member(id).unwrap();
    assert!(renewed.serial > member.serial && renewed.not_after > member.not_after);
    // A removed one is gone with its key, and the next is another one.
    let plan = members::plan_removal(world.state(), id, Name::NodeRemoved, &world.vault, world.now).unwrap();
    world.commit(plan);
    assert!(world.state().own_relay().is_none());
    assert!(world.state().relay_record(&relay::Places::default(), world.now).is_err());
    let newcomer = relay::Newcomer::generate();
    world.commit(relay::plan(world.state(), &newcomer, &world.vault, world.now).unwrap());
    assert_ne!(world.state().own_relay().unwrap().0, id);
}

#[test]
fn a_relay_is_named_after_those_that_were_there_before() {
    let mut world = World::new();
    let (id, _) = world.state().own_relay().unwrap();
    for expected in ["relay-2", "relay-3"] {
        let newcomer = relay::Newcomer::generate();
        world.commit(relay::plan(world.state(), &newcomer, &world.vault, world.now).unwrap());
        assert!(world.state().names.contains_key(expected));
    }
    assert!(world.state().relays.len() == 3 && world.state().relays.contains_key(&id));
    // All coordinators of a store run the same one.
    assert_eq!(world.state().own_relay().unwrap().0, *world.state().relays.keys().next().unwrap());
}

#[test]
fn a_relays_clients_are_the_other_mesh_nodes_with_the_keys_of_both_epochs() {
    let mut world = World::new();
    world.join(&[], false);
    world.join(&[], true);
    world.happen(Event::AddStock);
    let key = world.state().own_relay().unwrap().1.noise_secret();
    let mut clients = relay::Clients::default();
    let mut told = |world: &World| clients.of(world.state(), &key, world.now);
    let ids = |configs: &[ringmesh_tunnel::PeerConfig]| {
        configs.iter().map(|config| config.id).collect::<std::collections::BTreeSet<_>>()
    };
    let [node, relay] = ["n1", "n2"].map(|name| world.state().names[name]);
    let first = told(&world);
    assert_eq!(ids(&first), [node, relay].into());
    assert!(first.iter().all(|config| config.mesh && config.allowed_ips.is_empty()));
    // The key is the one that the node derives, of the newest epoch and the one before.
    let psk = |world: &World, epoch: u64| {
        let peer = world.state().member(node).unwrap().noise_key;
        world.state().secrets[&epoch].0.derive_psk(world.network, epoch, &peer, &key.public_key())
    };
    let config = |configs: &[ringmesh_tunnel::PeerConfig]| {
        configs.iter().find(|config| config.id == node).unwrap().psk.clone()
    };
    let epochs = |current, previous| ringmesh_tunnel::Psk::Epochs { current, previous };
    assert_eq!(config(&first), epochs(psk(&world, 1), None));
    assert_eq!(config(&told(&world)), config(&first));
    let plan =
        members::plan_removal(world.state(), relay, Name::NodeRemoved, &world.vault, world.now).unwrap();
    world.commit(plan);
    let second = told(&world);
    assert_eq!(ids(&second), [node].into());
    assert_eq!(config(&second), epochs(psk(&world, 2), Some(psk(&world, 1))));
    // Whose membership has ended is a stranger, whether or not somebody renews it.
    world.now = world.now.saturating_add(Duration::from_secs(31 * 24 * 3600));
    assert!(told(&world).is_empty());
}
