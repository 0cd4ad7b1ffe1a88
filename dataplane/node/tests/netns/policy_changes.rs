//! The policy changes, or the daemon starts anew: nothing passes in between that should not.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ringmesh_lab::in_sandbox;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    policy::rule,
    probes::{
        Echo, SILENCE, SOON, ask_tcp, is_silence, keep_sending, members, round_trip, serve_tcp, until_tcp,
    },
    stock::{RIGHT, Stock},
    support::{
        block_on,
        daemon::{Node, Place, connect},
        process::Process,
    },
    world::{Machine, Member, World},
};

/// How often the policy is changed under traffic.
const CHANGES: usize = 50;
/// Pause between two probes of one sender to one port.
const PAUSE: Duration = Duration::from_millis(1);

/// A node as a process of its own that has joined, and the same as tests know members.
async fn process(world: &World, name: &str) -> (Process, Member) {
    let machine = Machine::new(&world.switch, name);
    let place = Place::new();
    let mut process = Process::start(machine.this_program(), &place).await;
    let joined = process.node.join(&world.token().await, name).await.unwrap();
    let own = joined.network.unwrap().self_.unwrap();
    let node = Node::of_process(connect(place.config.socket.clone()).await);
    let (ipv4, ipv6) = (own.ipv4.parse().unwrap(), own.ipv6.parse().unwrap());
    (process, Member { machine, place: Arc::new(place), node, ipv4, ipv6 })
}

#[test]
fn a_restarted_node_enforces_its_cached_policy_from_the_first_packet() {
    in_sandbox(|| {
        block_on(async {
            let mut world = World::new().await;
            let (mut daemon, mut bob) = process(&world, "bob").await;
            // A peer without a filter, so that only the restarted node can stop anything, in either direction.
            let mut stock = Stock::new(&world, &mut bob, RIGHT).await;
            let at_bob = Echo::start(&mut bob.machine, &[1000, 1001]).await;
            let at_stock = Echo::start(&mut stock.machine, &[2000, 2001]).await;
            world.apply(&(rule("stock", "bob", "udp", "1001") + &rule("bob", "stock", "udp", "2001"))).await;
            let to =
                |address: IpAddr, ports: [u16; 2]| ports.map(|port| SocketAddr::new(address, port)).to_vec();
            keep_sending(&mut stock.machine, to(bob.ipv4, [1000, 1001]), PAUSE).await;
            keep_sending(&mut bob.machine, to(stock.ipv4, [2000, 2001]), PAUSE).await;
            at_bob.more(stock.ipv4, 1001).await;
            at_stock.more(bob.ipv4, 2001).await;

            world.kill_coordinator();
            for _ in 0..3 {
                daemon.kill();
                daemon = Process::start(bob.machine.this_program(), &bob.place).await;
                // The other side would wait for its old session's timeout before it began another.
                bob.node = Node::of_process(connect(bob.place.config.socket.clone()).await);
                let key = bob.node.status().await.network.unwrap().self_.unwrap().noise_key;
                stock.begin_anew(&key, &bob);
                at_bob.more(stock.ipv4, 1001).await;
                at_stock.more(bob.ipv4, 2001).await;
            }
            assert_eq!(at_bob.count(stock.ipv4, 1000), 0);
            assert_eq!(at_stock.count(bob.ipv4, 2000), 0);
            assert!(bob.node.filter().await.drops.values().sum::<u64>() > 0, "they were sent");
        });
    });
}

#[test]
fn an_established_connection_ends_with_its_rule_and_goes_on_with_it() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            serve_tcp(&mut bob.machine, &[22]).await;
            let ping = rule("alice", "bob", "icmp", "");
            let both = rule("alice", "bob", "tcp", "22") + &ping;
            world.apply(&both).await;
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
            let to = bob.ipv4;
            let mut stream =
                alice.machine.run(async move { TcpStream::connect((to, 22)).await.unwrap() }).await;
            round_trip(&mut stream, b"before").await.unwrap();

            world.apply(&ping).await;
            assert!(timeout(SILENCE, round_trip(&mut stream, b"without")).await.is_err(), "it is stopped");
            alice.machine.ping(bob.ipv4);
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 22).await));

            world.apply(&both).await;
            // What was sent meanwhile is sent again by TCP; read what was asked above.
            let mut read = [0; 7];
            let answer = tokio::io::AsyncReadExt::read_exact(&mut stream, &mut read);
            timeout(SOON, answer).await.expect("the connection goes on").unwrap();
            assert_eq!(&read, b"without");
            round_trip(&mut stream, b"again").await.unwrap();
        });
    });
}

#[test]
fn at_no_instant_of_a_change_passes_what_neither_policy_allows() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            // It has no filter: whatever it sends, only bob's stops.
            let mut stock = Stock::of(&world, &mut bob, RIGHT, 2).await;
            let echo = Echo::start(&mut bob.machine, &[1000, 1001, 1002, 1003]).await;
            // Who is in the group changes with what the group may do: the new group under the old rules, or the old group under the
            // new ones, would let the wrong one through.
            let policy = |member: &str, port: u16| {
                format!("[groups]\nturn = [{member:?}]\n")
                    + &rule("group:turn", "bob", "udp", &port.to_string())
                    + "[[allow]]\nfrom = [\"alice\", \"stock\"]\nto = \"bob\"\nprotocol = \"udp\"\nports = [1002]\n"
            };
            let turns = [("alice", 1000_u16, alice.ipv4), ("stock", 1001, stock.ipv4)];
            world.apply(&policy("alice", 1000)).await;
            let to: Vec<_> = (1000..=1003).map(|port| SocketAddr::new(bob.ipv4, port)).collect();
            keep_sending(&mut alice.machine, to.clone(), PAUSE).await;
            keep_sending(&mut stock.machine, to, PAUSE).await;
            for turn in 0..CHANGES {
                let ((name, port, address), (_, other_port, other)) =
                    (turns[turn % 2], turns[(turn + 1) % 2]);
                world.apply(&policy(name, port)).await;
                echo.more(address, port).await;
                for always in [alice.ipv4, stock.ipv4] {
                    echo.more(always, 1002).await;
                }
                // What lay in the program's own queue was let through before.
                sleep(Duration::from_millis(5)).await;
                let stopped = echo.count(other, other_port);
                echo.more(address, port).await;
                assert_eq!(echo.count(other, other_port), stopped, "turn {turn}: {other} still gets through");
            }
            for (from, port) in
                [(alice.ipv4, 1001), (alice.ipv4, 1003), (stock.ipv4, 1000), (stock.ipv4, 1003)]
            {
                assert_eq!(echo.count(from, port), 0, "{from} to {port}");
            }
            let sum = |from, port| echo.count(from, port);
            println!(
                "{CHANGES} changes; by turns {} and {}, always {} and {}, never 0",
                sum(alice.ipv4, 1000),
                sum(stock.ipv4, 1001),
                sum(alice.ipv4, 1002),
                sum(stock.ipv4, 1002)
            );
            let drops = bob.node.filter().await.drops;
            assert!(drops.values().sum::<u64>() > 1000, "the probes that never arrived were sent: {drops:?}");
        });
    });
}

#[test]
fn without_a_policy_in_force_nothing_passes() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            serve_tcp(&mut bob.machine, &[22]).await;
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
            world.apply("# nothing is allowed").await;
            let told = bob.node.filter().await;
            assert!(told.rules.is_empty(), "{told:?}");
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 22).await));
            assert!(!alice.machine.reaches(bob.ipv6));
            world.apply(&rule("*", "*", "any", "")).await;
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
        });
    });
}
