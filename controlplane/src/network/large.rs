//! Policies in large networks: what does not fit is refused; and what one costs, printed by a test that runs when it is asked for.
//!
//! ```text
//! cargo test --release -p ringmesh-controlplane --lib network::large -- --ignored --nocapture
//! ```

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ringmesh_tunnel::{
    UnixTime,
    key::{IdentitySecret, NetworkId, NodeId},
    netmap::{Leaf, Member, MemberKind, NetworkMap, PortRange, Protocol, Role, Rule, Selector},
};

use super::{
    NetworkState, Plan, Registry,
    authority::Authority,
    create, enroll,
    events::RESERVED,
    map::{Delta, Place, Told},
    policies::{self, Refusal, Wish},
    row::{Blob, NodeRow},
};
use crate::{
    config::NetworkConfig,
    store::{Commit, MAX_OPS, MAX_VALUE, Op},
    vault::Vault,
};

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);
const NODES: u16 = 1000;
const RULES: u16 = 1000;
const GROUPS: u16 = 100;

struct Large {
    registry: Registry,
    vault: Vault,
    network: NetworkId,
    _directory: tempfile::TempDir,
}

impl Large {
    fn of(nodes: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(directory.path(), true).unwrap();
        let (network, plan) =
            create::plan(&NetworkConfig::default(), &Authority::generate(), None, &vault, NOW).unwrap();
        let mut large = Self { registry: Registry::default(), vault, network, _directory: directory };
        large.commit(plan);
        let mut all = Plan::default();
        for number in 0..nodes {
            let member = large.member(number);
            let row = NodeRow {
                member: Blob::from(&large.state().authority.sign(Role::Admission, &member).unwrap()),
                enrolled_ms: 0,
                host_name: String::new(),
                os: String::new(),
                version: String::new(),
                ephemeral: false,
                psk: None,
            };
            all.ops.extend(enroll::admit(&member, &row, 0).ops);
        }
        large.commit(all);
        large
    }

    fn state(&self) -> &NetworkState {
        self.registry.network(self.network).unwrap()
    }

    fn commit(&mut self, plan: impl Into<Plan>) {
        let changes = plan.into().ops.into_iter().map(|op| match op {
            Op::Put { key, value, .. } => (key, Some(value)),
            Op::Delete { key } => (key, None),
        });
        let commit = Commit { revision: self.registry.revision() + 1, changes: changes.collect() };
        self.registry.apply(&commit, &self.vault).unwrap();
    }

    fn member(&self, number: u16) -> Member {
        let identity_key = IdentitySecret::generate().public_key();
        let id = NodeId::generate();
        Member {
            network: self.network,
            id,
            name: format!("n{number}"),
            kind: MemberKind::Mesh,
            relay: false,
            noise_key: identity_key.noise_key(),
            identity_key: Some(identity_key),
            ipv4: Some((0x6440_0001 + u32::from(number)).into()),
            ipv6: id.ipv6_in(self.network.ula()).unwrap(),
            tags: Vec::new(),
            groups: Vec::new(),
            routes: Vec::new(),
            serial: 1,
            not_after: NOW.saturating_add(Duration::from_secs(30 * 24 * 3600)),
        }
    }

    /// Applies a policy in which the members are in groups by turns, and returns the time of planning and of taking over.
    fn apply(&mut self, leaves: &[Leaf], shift: usize) -> (Duration, Duration) {
        let ids: Vec<NodeId> = self.state().node_ids().collect();
        let group = |place: usize| format!("g{}", (place + shift) % usize::from(GROUPS));
        let groups: BTreeMap<NodeId, Vec<String>> =
            ids.iter().enumerate().map(|(place, id)| (*id, vec![group(place)])).collect();
        let wish = Wish {
            leaves,
            groups: &groups,
            rules: RULES.into(),
            text: "",
            by: "root",
            comment: "",
            base: 0,
            back_to: 0,
        };
        let begun = Instant::now();
        let (_, plan) = policies::plan(self.state(), &wish, NOW).unwrap().unwrap();
        let planned = begun.elapsed();
        let begun = Instant::now();
        self.commit(plan);
        (planned, begun.elapsed())
    }

    /// What each node is sent, and how long it takes to find out.
    fn turns(&self, held: &BTreeMap<NodeId, (u64, Told)>) -> (Duration, Duration, usize) {
        let place = Place { replica: 1, durable: self.registry.revision() };
        let (mut total, mut longest, mut rules) = (Duration::ZERO, Duration::ZERO, 0);
        for (id, (since, told)) in held {
            let begun = Instant::now();
            let delta = self.state().delta(*id, *since, told, place, NOW).unwrap();
            let took = begun.elapsed();
            (total, longest) = (total + took, longest.max(took));
            let Delta::Update(outgoing) = delta else { panic!("a policy is told to everybody") };
            rules += outgoing.update.rules.len();
        }
        (total / held.len() as u32, longest, rules / held.len())
    }

    fn told(&self) -> BTreeMap<NodeId, (u64, Told)> {
        let place = Place { replica: 1, durable: self.registry.revision() };
        let state = self.state();
        let full = |id| state.full(id, place, NOW).unwrap().told;
        state.node_ids().map(|id| (id, (state.newest_change(), full(id)))).collect()
    }
}

/// A thousand rules, each from one group to another, but every `wide`th from everybody.
fn leaves(port: u16, wide: u16) -> Vec<Leaf> {
    let rule = |number: u16| {
        let group = |number: u16| Selector::Group(format!("g{}", number % GROUPS));
        let all = wide != 0 && number.is_multiple_of(wide);
        Leaf::Rule(Rule {
            sources: vec![if all { Selector::All } else { group(number) }],
            destinations: vec![group(number.wrapping_mul(7) + 1)],
            protocol: Protocol::Tcp,
            ports: vec![PortRange::from(port + number)],
        })
    };
    (0..RULES).map(rule).collect()
}

#[test]
fn a_policy_that_does_not_fit_a_transaction_is_refused_with_the_way_out() {
    let most = u16::try_from(MAX_OPS - RESERVED - 2).unwrap();
    let mut large = Large::of(most + 1);
    let ids: Vec<NodeId> = large.state().node_ids().collect();
    let groups = |count: u16| -> BTreeMap<NodeId, Vec<String>> {
        ids.iter().take(count.into()).map(|id| (*id, vec!["staff".to_owned()])).collect()
    };
    let (all, some) = (groups(most + 1), groups(most));
    let wish = |leaves, groups| Wish {
        leaves,
        groups,
        rules: 0,
        text: "",
        by: "root",
        comment: "",
        base: 0,
        back_to: 0,
    };
    let refused = policies::plan(large.state(), &wish(&[], &all), NOW).unwrap_err();
    let expected = Refusal::TooManyMembers { members: usize::from(most) + 1, most: most.into() };
    assert_eq!(refused, expected);
    assert!(refused.to_string().contains("apply it in several steps"));
    // In two steps it is possible.
    for groups in [&some, &all] {
        let plan = Plan::from(policies::plan(large.state(), &wish(&[], groups), NOW).unwrap().unwrap().1);
        assert!(plan.ops.len() <= MAX_OPS - RESERVED && plan.compare.len() <= MAX_OPS - RESERVED);
        large.commit(plan);
    }
    assert!(large.state().nodes.values().all(|node| node.member.record.groups == ["staff"]));

    let wide = |number: u32| {
        let prefix = |i: u32| format!("fd00:{number:x}:{i:x}::/48").parse().map(Selector::Prefix).unwrap();
        let (sources, destinations) = ((0..256).map(prefix).collect(), (256..512).map(prefix).collect());
        Leaf::Rule(Rule { sources, destinations, protocol: Protocol::Any, ports: Vec::new() })
    };
    let leaves: Vec<Leaf> = (0..100).map(wide).collect();
    let refused = policies::plan(large.state(), &wish(&leaves, &all), NOW).unwrap_err();
    assert!(matches!(refused, Refusal::TooLarge { size } if size > MAX_VALUE), "{refused}");
    assert!(policies::plan(large.state(), &wish(&leaves[..10], &all), NOW).is_ok());
}

#[test]
#[ignore = "a figure for a quiet machine, not a check"]
fn what_a_policy_of_a_thousand_rules_costs_a_thousand_nodes() {
    let mut large = Large::of(NODES);
    for (what, first, second) in [
        ("groups to groups", leaves(1, 0), leaves(2000, 0)),
        ("a tenth of the rules from everybody", leaves(1, 10), leaves(2000, 10)),
        ("all rules from everybody", leaves(1, 1), leaves(2000, 1)),
    ] {
        large.apply(&first, 0);
        let told = large.told();
        let mut one = first.clone();
        one.push(Leaf::Rule(Rule {
            sources: vec![Selector::All],
            destinations: vec![Selector::Group("g0".into())],
            protocol: Protocol::Icmp,
            ports: Vec::new(),
        }));
        for (change, leaves, shift) in [
            ("one rule more", &one, 0),
            ("every rule another", &second, 0),
            ("every rule and every member's groups others", &first, 1),
        ] {
            let (planned, taken) = large.apply(leaves, shift);
            let (mean, longest, rules) = large.turns(&told);
            println!(
                "{what}; {change}: plan {planned:.1?}, take over {taken:.1?}; a stream's turn {mean:.1?} ({longest:.1?} at most), \
                 {rules} rules with proofs a node"
            );
        }
        // One of them is checked to the end.
        let (id, (since, told)) = told.iter().next().unwrap();
        let place = Place { replica: 1, durable: large.registry.revision() };
        let empty = NetworkMap::empty(large.network, large.state().root, *id);
        let full = empty.verify(large.state().full(*id, place, NOW).unwrap().update, NOW).unwrap();
        assert!(full.members().count() > 1 && full.rules(NOW).count() > 1);
        assert!(matches!(large.state().delta(*id, *since, told, place, NOW).unwrap(), Delta::Update(_)));
    }
    let told = large.told();
    let (state, place) = (large.state(), Place { replica: 1, durable: large.registry.revision() });
    let begun = Instant::now();
    for (id, (since, told)) in &told {
        assert!(matches!(state.delta(*id, *since, told, place, NOW).unwrap(), Delta::Nothing));
    }
    println!("nothing new: {:.1?} a turn", begun.elapsed() / u32::from(NODES));
}
