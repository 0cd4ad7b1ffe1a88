//! A policy is in force when its nodes say so, and they say so when their workers run it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ringmesh_lab::{HeldThread, in_sandbox};
use ringmesh_proto::admin::BehindNode;

use crate::{
    policy::{dropped, rule},
    probes::{Echo, ask_udp, is_silence, until_udp},
    support::{
        block_on,
        daemon::Place,
        process::{Process, WORKER},
    },
    world::{Machine, Member, World},
};

/// Nodes that are told apart.
const NODES: usize = 50;
/// Nodes whose time is taken in the gate; `RINGMESH_NODES=50` by hand.
const TIMED_NODES: usize = 12;
/// Applies whose time is taken; `RINGMESH_APPLIES=100` by hand.
const APPLIES: usize = 10;
/// Within this every live node enforces a policy, at the 99th percentile, on a quiet machine.
const TARGET: Duration = Duration::from_secs(1);
/// The same in the gate, beside whatever else runs there.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest that is waited for nodes that will not answer.
const WAIT: Duration = Duration::from_secs(3);

fn number(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().map_or(usual, |text| text.parse().unwrap())
}

/// Nodes that have joined: all but the last two are in this process, each on a machine of its own.
struct Crowd {
    world: World,
    members: Vec<Member>,
    /// Processes of their own, so that one can be killed and the worker of the other held.
    stopped: Process,
    held: Process,
    _places: [(Machine, Place); 2],
}

impl Crowd {
    async fn new(nodes: usize) -> Self {
        let world = World::new().await;
        let began = Instant::now();
        let mut members = Vec::new();
        for at in 0..nodes - 2 {
            let mut place = Place::new();
            // They share a process, so each is told where its worker goes.
            place.config.cpu = Some(at % std::thread::available_parallelism().unwrap().get());
            let name = format!("node{at}");
            members.push(world.member(Machine::new(&world.switch, &name), place, &name).await);
        }
        let mut separate = Vec::new();
        for name in ["stopped", "held"] {
            let (machine, place) = (Machine::new(&world.switch, name), Place::new());
            let mut process = Process::start(machine.this_program(), &place).await;
            process.node.join(&world.token().await, name).await.unwrap();
            separate.push((process, (machine, place)));
        }
        let [(stopped, one), (held, other)] = separate.try_into().unwrap_or_else(|_| panic!("two"));
        for member in &mut members {
            member.until_peers(nodes - 1).await;
        }
        println!("{nodes} nodes joined and know each other after {:?}", began.elapsed());
        Self { world, members, stopped, held, _places: [one, other] }
    }

    /// What the nodes in this process are called.
    fn names(&self) -> BTreeSet<String> {
        (0..self.members.len()).map(|at| format!("node{at}")).collect()
    }
}

fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    names.into_iter().cloned().collect()
}

/// All members reach each other by ICMP, and one port of UDP is open.
fn policy(port: u16) -> String {
    rule("*", "*", "icmp", "") + &rule("*", "*", "udp", &port.to_string())
}

#[test]
fn an_apply_names_a_node_that_is_stopped_and_one_whose_worker_is_held() {
    in_sandbox(|| {
        block_on(async {
            let nodes = NODES;
            let mut crowd = Crowd::new(nodes).await;
            let applied = crowd.world.apply(&policy(1000)).await.installation.unwrap();
            assert_eq!(applied.installed.len(), nodes, "{applied:?}");

            crowd.stopped.kill();
            let holding = HeldThread::of(crowd.held.pid(), WORKER).unwrap();
            // The coordinator sees the one go.
            loop {
                let listed = crowd.world.nodes().await.nodes;
                if !listed.iter().find(|node| node.name == "stopped").unwrap().online {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let applied = crowd.world.apply_within(&policy(1001), WAIT).await;
            let told = applied.installation.unwrap();
            assert_eq!(told.revision, applied.revision);
            assert_eq!(names(&told.installed), crowd.names());
            let behind: BTreeSet<_> = told.behind.iter().map(|it| (it.name.as_str(), it.online)).collect();
            assert_eq!(behind, BTreeSet::from([("held", true), ("stopped", false)]));
            assert!(told.waited_ms >= WAIT.as_millis() as u32, "it waited for the one that is online");

            // Let go, it has it at once; the other is still missing, and nobody waits for who is not there.
            drop(holding);
            let released = Instant::now();
            let told = crowd.world.installed_within(WAIT).await;
            assert_eq!(
                names(told.behind.iter().map(|BehindNode { name, .. }| name)),
                names([&"stopped".to_owned()])
            );
            assert!(told.installed.contains(&"held".to_owned()) && released.elapsed() < WAIT, "{told:?}");
        });
    });
}

#[test]
fn a_node_whose_worker_is_held_stays_online_and_has_everything_when_it_is_let_go() {
    in_sandbox(|| {
        block_on(async {
            let mut crowd = Crowd::new(3).await;
            crowd.world.apply(&policy(1000)).await;
            let holding = HeldThread::of(crowd.held.pid(), WORKER).unwrap();
            // Longer than three heartbeats, after which a node that is silent counts as gone.
            for port in 1001..=1003 {
                let told = crowd.world.apply_within(&policy(port), WAIT).await.installation.unwrap();
                let behind: Vec<_> = told.behind.iter().map(|it| (it.name.as_str(), it.online)).collect();
                assert_eq!(behind, [("held", true)], "port {port}");
            }
            drop(holding);
            let told = crowd.world.installed_within(Duration::from_secs(8)).await;
            assert!(told.behind.is_empty(), "{told:?}");
            let revision = told.revision;
            crowd
                .held
                .node
                .until("it has the last one", |status| {
                    status.network.as_ref().is_some_and(|network| network.installed_revision == revision)
                })
                .await;
            let rules = crowd.held.node.filter().await.rules;
            assert_eq!(rules[1].ports, "1003");
        });
    });
}

#[test]
fn an_applied_policy_is_enforced_by_all_live_nodes_when_the_answer_comes() {
    in_sandbox(|| {
        block_on(async {
            let (nodes, applies) =
                (number("RINGMESH_NODES", TIMED_NODES), number("RINGMESH_APPLIES", APPLIES));
            let mut crowd = Crowd::new(nodes).await;
            let [first, .., last] = crowd.members.as_mut_slice() else { panic!("at least two") };
            let _echo = Echo::start(&mut last.machine, &[1000, 1001]).await;
            crowd.world.apply(&policy(1000)).await;
            until_udp(&mut first.machine, last.ipv4, 1000, 8).await;
            let mut took = Vec::new();
            let mut waited = Vec::new();
            for apply in 0..applies {
                let [first, .., last] = crowd.members.as_mut_slice() else { panic!("at least two") };
                let open = 1000 + (apply as u16 + 1) % 2;
                let began = Instant::now();
                let told = crowd.world.apply(&policy(open)).await;
                took.push(began.elapsed());
                let told = told.installation.unwrap();
                assert_eq!(told.installed.len(), nodes, "{told:?}");
                waited.push(told.waited_ms);
                // The answer is here: from now on the new one holds, and the old one does not, wherever one looks.
                let before = dropped(first).await;
                ask_udp(&mut first.machine, last.ipv4, open, 8).await.unwrap();
                assert!(is_silence(ask_udp(&mut first.machine, last.ipv4, 2001 - open, 8).await));
                assert!(dropped(first).await > before);
                for (at, member) in crowd.members.iter_mut().enumerate() {
                    for (port, allowed) in [(open, true), (2001 - open, false)] {
                        let flow = format!("udp/{port}");
                        let told = member.node.trace(&format!("node{at}"), "held", &flow).await.unwrap();
                        assert_eq!(told.allowed, allowed, "{told:#?}");
                    }
                }
            }
            took.sort_unstable();
            waited.sort_unstable();
            let p99 = took[(applies * 99).div_ceil(100) - 1];
            println!(
                "{applies} applies to {nodes} nodes: p50 {:?}, p99 {p99:?}, max {:?}; of which waited for nodes: p50 {} ms, max {} ms",
                took[applies / 2],
                took[applies - 1],
                waited[applies / 2],
                waited[applies - 1],
            );
            let limit = if std::env::var_os("RINGMESH_APPLIES").is_some() { TARGET } else { LIMIT };
            assert!(p99 < limit, "{p99:?}");
        });
    });
}
