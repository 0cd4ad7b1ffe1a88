//! UDP is taken away: traffic goes on over SSH where there is an SSH road, else over a WebSocket, and comes back.
//!
//! One run of each kind is part of every test run. To run many by hand, some side by side, and see the figures:
//! `RINGMESH_RUNS=20 RINGMESH_PAIRS=10 cargo nextest run -p ringmesh-node --run-ignored only --no-capture -E
//! 'test(many_transfers)'`. `RINGMESH_ROAD=own-ssh` (openssh, websocket, nginx) leaves out the other roads. Without root there is
//! no OpenSSH server to log in at; `deploy/dev/test` says so.

use std::{
    collections::VecDeque,
    fmt,
    sync::Mutex,
    time::{Duration, Instant},
};

use ringmesh_lab::{Blocks, Privilege, in_sandbox, privilege};
use ringmesh_node::config::{LinkSocket, SshRoad};
use ringmesh_proto::local::WhyRequest;

use crate::{
    roads::{Behind, Paced, Server, Sshd, first_answer, nginx, path_to, until_path},
    support::{block_on, daemon::Place},
    world::{Machine, Member, World},
};

/// The longest stall when UDP goes.
const BLOCK_STALL: Duration = Duration::from_secs(8);
/// The longest stall when it is back.
const RETURN_STALL: Duration = Duration::from_millis(200);
/// Within this it must be in use again.
const RETURN: Duration = Duration::from_secs(60);
/// From the start of a daemon to the first answer, with UDP blocked all the time.
const COLD_START: Duration = Duration::from_secs(8);
/// Pace of the transfers, Mbit/s.
const PACE: u64 = 20;
/// How much of it there must be by the other road; ten pairs at once are more than two cores can carry at their pace.
fn least(at_once: usize) -> f64 {
    if at_once <= 4 { 0.9 } else { 0.25 }
}
/// How long a transfer goes on in each state, to be sure of it.
const SPELL: Duration = Duration::from_secs(2);

/// What there is besides UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Road {
    /// The SSH endpoint of the other node.
    OwnSsh,
    /// Debian's SSH server on the other node's machine.
    OpenSsh,
    /// The WebSocket on the coordinator's port.
    WebSocket,
    /// The same, behind nginx.
    Nginx,
}

impl Road {
    const ALL: [Self; 4] = [Self::OwnSsh, Self::OpenSsh, Self::WebSocket, Self::Nginx];

    fn name(self) -> &'static str {
        match self {
            Self::OwnSsh => "own-ssh",
            Self::OpenSsh => "openssh",
            Self::WebSocket => "websocket",
            Self::Nginx => "nginx",
        }
    }

    /// What the status calls it.
    fn path(self) -> &'static str {
        match self {
            Self::OwnSsh | Self::OpenSsh => "ssh",
            Self::WebSocket | Self::Nginx => "websocket",
        }
    }

    /// An SSH server lets others log in only if it runs as root.
    fn is_possible(self) -> bool {
        self != Self::OpenSsh || privilege() == Some(Privilege::Root)
    }

    /// The one that was asked for, which must be one that can be had here; else all that can.
    fn wanted() -> Vec<Self> {
        let Some(name) = std::env::var_os("RINGMESH_ROAD") else {
            return Self::ALL.into_iter().filter(|road| road.is_possible()).collect();
        };
        let road = Self::ALL.into_iter().find(|road| name == road.name());
        let road = road.unwrap_or_else(|| panic!("RINGMESH_ROAD={}: there is no such road", name.display()));
        assert!(road.is_possible(), "RINGMESH_ROAD={}: only for root", road.name());
        vec![road]
    }
}

/// Alice behind a router that can block UDP, Bob outside, and the road.
struct Pair {
    alice: Member,
    bob: Member,
    router: ringmesh_lab::Router,
    _servers: (Option<Sshd>, Option<(Server, Machine)>),
    _world: World,
}

impl Pair {
    /// Both have joined and reach each other straight.
    async fn new(road: Road) -> Self {
        Self::with(road, |_| {}).await
    }

    /// The same, where Alice's road through an SSH server is `adjust`ed.
    async fn with(road: Road, adjust: impl FnOnce(&mut SshRoad)) -> Self {
        let mut proxy = None;
        let world = World::with(|config, world| {
            if road == Road::Nginx {
                let machine = Machine::new(&world.switch, "proxy");
                config.relay.base_path = "/base".to_owned();
                config.relay.websockets = vec![format!("wss://{}/base/relay/v1", machine.host.ipv4())];
                config.relay.trusted_proxies = vec![format!("{}/32", machine.host.ipv4()).parse().unwrap()];
                let server = nginx(&machine, world.folder(), "/base", world.address);
                proxy = Some((server, machine));
            }
        })
        .await;
        let Behind { machine, router } =
            Behind::new(&world.lab, &world.switch, "alice", ringmesh_lab::Router::masquerade);
        let far = Machine::new(&world.switch, "bob");
        let (mut alices, mut bobs) = (Place::new(), Place::new());
        let mut sshd = None;
        match road {
            Road::OwnSsh => bobs.config.ssh_port = Some(2222),
            Road::OpenSsh => {
                let socket = std::path::Path::new("/run/mesh/link.sock");
                bobs.config.link_socket = LinkSocket::At(socket.to_owned());
                far.sh("mkdir -m 0755 /run/mesh");
                let server = Sshd::start(&far, world.folder());
                let mut road = server.road("bob", &far.host, socket);
                adjust(&mut road);
                alices.config.ssh = vec![road];
                sshd = Some(server);
            }
            Road::WebSocket | Road::Nginx => {}
        }
        let bob = world.member(far, bobs, "bob").await;
        let mut alice = world.member(machine, alices, "alice").await;
        first_answer(&alice.machine, bob.ipv4, Duration::from_secs(5));
        until_path(&mut alice, "bob", "direct", Duration::from_secs(15)).await;
        Self { alice, bob, router, _servers: (sshd, proxy), _world: world }
    }

    fn block_udp(&self, blocked: bool) -> Instant {
        let blocks = if blocked { Blocks::udp() } else { Blocks::nothing() };
        self.router.host().block(&blocks).unwrap();
        Instant::now()
    }

    /// Lets `spell` pass, in which the path to Bob stays as it is.
    async fn stays(&mut self, path: &str, spell: Duration) {
        let began = Instant::now();
        while began.elapsed() < spell {
            assert_eq!(path_to(&mut self.alice, "bob").await, path);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What came of one run.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// The longest stall around the block, and from the block until the status named the other path.
    block: (Duration, Duration),
    /// The longest stall from the unblocking on, and from then until the status named UDP again.
    unblock: (Duration, Duration),
    /// Bits a second over the other road.
    through: f64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block, unblock, through } = self;
        write!(
            f,
            "blocked: stall {:.2?}, other path after {:.2?}, there {:.1} Mbit/s; unblocked: stall {:.0?}, UDP after {:.2?}",
            block.0,
            block.1,
            through / 1e6,
            unblock.0,
            unblock.1
        )
    }
}

/// A transfer that outlasts block, fallback, unblock and return, one of several `at_once`. `upload`: from Alice to Bob, else the
/// other way.
async fn transfer_across_a_block(road: Road, upload: bool, at_once: usize) -> Outcome {
    let mut pair = Pair::new(road).await;
    let Pair { alice, bob, .. } = &mut pair;
    let paced = if upload {
        Paced::start(&mut alice.machine, &mut bob.machine, bob.ipv4, PACE).await
    } else {
        Paced::start(&mut bob.machine, &mut alice.machine, alice.ipv4, PACE).await
    };
    tokio::time::sleep(SPELL).await;
    let blocked = pair.block_udp(true);
    let left = until_path(&mut pair.alice, "bob", road.path(), BLOCK_STALL * 2).await;
    // Bytes flow again before the time is up, which the stall would tell.
    tokio::time::sleep(SPELL).await;
    pair.stays(road.path(), SPELL).await;
    let unblocked = pair.block_udp(false);
    let back = until_path(&mut pair.alice, "bob", "direct", RETURN).await;
    pair.stays("direct", SPELL).await;
    let ended = Instant::now();
    let course = paced.end().await;
    assert!(course.whole, "{road:?}: the checksums differ");
    let outcome = Outcome {
        block: (course.stall(blocked, unblocked), left),
        unblock: (course.stall(unblocked, ended), back),
        through: course.rate(unblocked - SPELL, unblocked),
    };
    assert!(outcome.through >= least(at_once) * 1e6 * PACE as f64, "{road:?}: {outcome}");
    outcome
}

/// From the start of Alice's daemon, which has joined before, to Bob's first answer, with UDP blocked all the time.
async fn cold_start(road: Road) -> Duration {
    let mut pair = Pair::new(road).await;
    pair.block_udp(true);
    let place = std::sync::Arc::clone(&pair.alice.place);
    pair.alice.node.stop().await.unwrap();
    let start = async move {
        let began = Instant::now();
        (began, place.start().await.unwrap())
    };
    let began;
    (began, pair.alice.node) = pair.alice.machine.run(start).await;
    first_answer(&pair.alice.machine, pair.bob.ipv4, COLD_START * 2);
    let took = began.elapsed();
    until_path(&mut pair.alice, "bob", road.path(), COLD_START).await;
    took
}

/// Runs `work` for each of `items`, up to `at_once` at a time; the results in the order of their ends.
fn side_by_side<I: Send, T: Send>(items: Vec<I>, at_once: usize, work: impl Fn(I) -> T + Sync) -> Vec<T> {
    let (left, done) = (Mutex::new(VecDeque::from(items)), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some(item) = left.lock().unwrap().pop_front() else { return };
                    let result = work(item);
                    done.lock().unwrap().push(result);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

/// Runs a future to its end on a runtime of its own.
fn finish<T>(work: impl Future<Output = T>) -> T {
    let mut result = None;
    block_on(async { result = Some(work.await) });
    result.unwrap()
}

#[test]
fn a_transfer_outlasts_a_block_of_udp_over_every_other_road() {
    in_sandbox(|| {
        let at_once = 4;
        let outcomes = side_by_side(Road::wanted(), at_once, |road| {
            (road, finish(transfer_across_a_block(road, road != Road::OwnSsh, at_once)))
        });
        assert!(!outcomes.is_empty());
        for (road, outcome) in outcomes {
            println!("{}: {outcome}", road.name());
            assert!(outcome.block.0 <= BLOCK_STALL, "{road:?}: {outcome}");
            assert!(outcome.unblock.0 <= RETURN_STALL, "{road:?}: {outcome}");
        }
    });
}

#[test]
fn a_node_that_starts_where_udp_is_blocked_is_connected_by_every_other_road() {
    in_sandbox(|| {
        let times = side_by_side(Road::wanted(), 4, |road| (road, finish(cold_start(road))));
        assert!(!times.is_empty());
        for (road, took) in times {
            println!("{}: first answer {took:.2?} after the start", road.name());
            assert!(took <= COLD_START, "{road:?}: {took:?}");
        }
    });
}

#[test]
fn an_ssh_server_with_another_key_than_the_pinned_one_is_not_used() {
    in_sandbox(|| {
        assert!(Road::OpenSsh.is_possible(), "only for root; deploy/dev/test leaves it out by name");
        finish(async {
            let another = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
            let mut pair = Pair::with(Road::OpenSsh, |road| road.host_key = Some(another.to_owned())).await;
            pair.block_udp(true);
            first_answer(&pair.alice.machine, pair.bob.ipv4, BLOCK_STALL);
            until_path(&mut pair.alice, "bob", "websocket", BLOCK_STALL).await;
            pair.stays("websocket", SPELL).await;
            let why = pair.alice.node.client.why(WhyRequest { node: "bob".to_owned() }).await.unwrap();
            let paths = why.into_inner().paths;
            let ssh = paths.iter().find(|path| path.kind == "ssh").expect("it was tried");
            assert!(ssh.last_error.contains("key"), "{ssh:?}");
            let log = pair.bob.machine.sh("cat /var/lib/sshd/log");
            assert!(log.contains("Connection closed") && !log.contains("Accepted"), "{log}");
        });
    });
}

/// What `percent` of all durations do not exceed.
fn quantile(mut all: Vec<Duration>, percent: usize) -> Duration {
    all.sort();
    all[(all.len() * percent).div_ceil(100) - 1]
}

fn quantiles(all: &[Duration]) -> String {
    let [p50, p95, max] = [50, 95, 100].map(|percent| quantile(all.to_vec(), percent));
    format!("p50 {p50:.2?}, p95 {p95:.2?}, max {max:.2?}")
}

fn setting(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
}

#[test]
#[ignore = "takes minutes; by hand, as said above"]
fn many_transfers_outlast_a_block_of_udp() {
    in_sandbox(|| {
        let (runs, pairs) = (setting("RINGMESH_RUNS", 20), setting("RINGMESH_PAIRS", 10));
        for road in Road::wanted() {
            let outcomes = side_by_side((0..runs).collect(), pairs, |run| {
                let outcome = finish(transfer_across_a_block(road, run % 2 == 0, pairs));
                println!("{} run {run}: {outcome}", road.name());
                outcome
            });
            let list = |of: fn(&Outcome) -> Duration| outcomes.iter().map(of).collect::<Vec<_>>();
            let (stalls, returns) = (list(|outcome| outcome.block.0), list(|outcome| outcome.unblock.0));
            println!("{}, {runs} runs, {pairs} at once:", road.name());
            println!("  stall at the block: {}", quantiles(&stalls));
            println!("  other path named after: {}", quantiles(&list(|outcome| outcome.block.1)));
            println!("  stall at the return: {}", quantiles(&returns));
            println!("  UDP named after: {}", quantiles(&list(|outcome| outcome.unblock.1)));
            assert!(quantile(stalls, 95) <= BLOCK_STALL && quantile(returns, 95) <= RETURN_STALL, "{road:?}");
        }
    });
}

#[test]
#[ignore = "takes minutes; by hand, with the same settings"]
fn many_nodes_start_where_udp_is_blocked() {
    in_sandbox(|| {
        let (runs, pairs) = (setting("RINGMESH_RUNS", 20), setting("RINGMESH_PAIRS", 10));
        for road in Road::wanted() {
            let times = side_by_side(vec![(); runs], pairs, |()| finish(cold_start(road)));
            println!("{}, {runs} cold starts, {pairs} at once: {}", road.name(), quantiles(&times));
            assert!(times.iter().all(|took| *took <= COLD_START), "{road:?}");
        }
    });
}
