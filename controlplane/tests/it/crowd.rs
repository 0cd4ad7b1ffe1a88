//! A crowd of hostile and broken connections, from many addresses and in several processes, at a coordinator in a process of its own:
//! machines join all the same, memory is bounded by the connections that are open, and everything comes back when the crowd is gone.

mod kinds;

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use ringmesh_proto::{admin, control::sync_response};
use ringmesh_tunnel::enroll::JoinToken;
use tokio::time::{Instant, sleep};

use self::kinds::Kind;
use crate::{
    client::{MapStream, TestNode},
    crash::{self, Process},
    harness::{Assembled, Operator, config},
};

/// What the crowd as a whole may cost, in bytes.
const BASE: usize = 64 << 20;
/// What each connection that is open at once may cost, in bytes.
const EACH: usize = 48 << 10;
/// The 99th percentile of a join, while the crowd is there.
const JOIN: Duration = Duration::from_secs(2);
/// Until then the memory of a crowd that is gone is free again, but for [`BASE`].
const FREE_AGAIN: Duration = Duration::from_secs(30);
/// Processes that make the crowd.
const PROCESSES: usize = 4;
/// Connections of one address: half of what one may have.
const OF_ONE_SOURCE: usize = 16;
/// The shortest time between two connections in the same place.
const REST: Duration = Duration::from_secs(5);

/// What a process of the crowd is told, in the environment: target, connections, number of the process, seconds.
const ORDERS: &str = "RINGMESH_TEST_CROWD";

/// As a test: whoever annoys is got rid of, and the coordinator lives. As a child of the others: it is a part of the crowd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_hostile_connection_is_closed_in_time() {
    if let Ok(orders) = std::env::var(ORDERS) {
        return crowd(&orders).await;
    }
    let mut coordinator = Assembled::start_with_limits(ringmesh_controlplane::server::Limits {
        handshake: Duration::from_secs(2),
        time_to_prove: Duration::from_secs(2),
        ..Default::default()
    })
    .await;
    let until = Instant::now() + Duration::from_secs(15);
    let attacks = Kind::ALL.iter().zip(1..).map(|(kind, number)| {
        let target = coordinator.address;
        async move {
            // One that does not look cannot notice.
            let looks = !matches!(kind, Kind::NeverReads | Kind::Pipeline);
            let closed = kind.attack(Ipv4Addr::new(127, 9, 0, number), target, until).await;
            assert!(closed || !looks, "{kind:?} is still there");
        }
    });
    futures_util::future::join_all(attacks).await;
    coordinator.member("honest").await;
}

/// A process of the crowd.
async fn crowd(orders: &str) {
    let mut orders = orders.split(' ');
    let mut next = || orders.next().unwrap();
    let target: SocketAddr = next().parse().unwrap();
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(is_asked_for).collect();
    let (count, process, seconds): (usize, u8, u64) =
        (next().parse().unwrap(), next().parse().unwrap(), next().parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let places = (0..count).map(|place| {
        let kind = kinds[place % kinds.len()];
        let address = place / OF_ONE_SOURCE;
        let source = Ipv4Addr::new(127, 10 + process, (address / 250) as u8, (address % 250) as u8 + 1);
        async move {
            while Instant::now() < until {
                kind.attack(source, target, until).await;
                sleep(REST).await;
            }
        }
    });
    let tasks: Vec<_> = places.map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Whether the environment asks for this kind, or for no kind in particular.
fn is_asked_for(kind: &Kind) -> bool {
    std::env::var("RINGMESH_CROWD_KIND").map_or(true, |wanted| wanted == format!("{kind:?}"))
}

/// The processes of a crowd; they go with this value.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start(target: SocketAddr, connections: usize, seconds: u64) -> Self {
        let process = |number: usize| {
            let orders = format!("{target} {} {number} {seconds}", connections / PROCESSES);
            Command::new("nice")
                // What the crowd computes is not the coordinator's work, and has machines of its own elsewhere.
                .args(["-n", "19"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", "crowd::every_kind_of_hostile_connection_is_closed_in_time", "--nocapture"])
                .env(ORDERS, orders)
                .process_group(0)
                .stdout(Stdio::null())
                .stderr(Stdio::inherit())
                .spawn()
                .unwrap()
        };
        Self((0..PROCESSES).map(process).collect())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// What a process holds at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Holding {
    resident: usize,
    descriptors: usize,
}

impl Holding {
    fn of(process: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident = line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
        Self { resident, descriptors: std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() }
    }
}

/// How a coordinator did beside a crowd.
#[derive(Debug)]
struct Report {
    joins: Vec<Duration>,
    /// The most connections that were open at once.
    open: usize,
    /// The most memory above what it had before, in bytes.
    grown: usize,
    /// The most that it was above the bound, in bytes.
    above: usize,
}

impl Report {
    fn percentile(&self, percent: usize) -> Duration {
        self.joins[(self.joins.len() * percent / 100).min(self.joins.len() - 1)]
    }
}

/// A node that reads what it is told for as long as it is told anything; panics if it is let go before `until`.
fn following(mut node: TestNode, mut stream: MapStream) -> tokio::task::JoinHandle<usize> {
    tokio::spawn(async move {
        let mut updates = 0;
        loop {
            match stream.next().await {
                Ok(sync_response::Message::Update(update)) => {
                    let update = crate::client::map_update(update);
                    stream.acknowledge(update.position.durable).await;
                    node.map = Some(node.verify(update).unwrap());
                    updates += 1;
                }
                Ok(_) => {}
                Err(end) => panic!("an established stream ended after {updates} updates: {end:?}"),
            }
        }
    })
}

/// Joins machines one after the other, each with a stream that has its map, until the time is over.
async fn joins(token: &JoinToken, name: &str, until: Instant) -> Vec<Duration> {
    let mut joins = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let mut node = TestNode::new(&format!("{name}-{}", joins.len()));
        node.join(token).await.unwrap_or_else(|error| panic!("join {}: {error}", joins.len()));
        let mut stream = node.sync().await.unwrap();
        node.update(&mut stream).await;
        joins.push(begun.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    joins.sort_unstable();
    joins
}

async fn withstand(
    process: &Process,
    address: SocketAddr,
    operator: &mut Operator,
    connections: usize,
    seconds: u64,
) -> Report {
    let request = admin::CreateTokenRequest { reusable: true, ..Default::default() };
    let token = operator.token(request).await;
    // What any coordinator holds that does its work is not the crowd's.
    let warm = Instant::now() + Duration::from_secs(2);
    joins(&token, "warm", warm).await;
    let mut established = Vec::new();
    for name in ["a", "b", "c"] {
        let mut node = TestNode::new(name);
        node.join(&token).await.unwrap();
        let stream = node.sync().await.unwrap();
        established.push(following(node, stream));
    }
    let before = Holding::of(process.id());
    let crowd = Crowd::start(address, connections, seconds + 30);
    let until = Instant::now() + Duration::from_secs(seconds);
    let id = process.id();
    let measured = tokio::spawn(async move {
        let (mut open, mut grown, mut above) = (0, 0, 0);
        while Instant::now() < until {
            let now = Holding::of(id);
            open = open.max(now.descriptors.saturating_sub(before.descriptors));
            let more = now.resident.saturating_sub(before.resident);
            grown = grown.max(more);
            above = above.max(more.saturating_sub(BASE + open * EACH));
            sleep(Duration::from_millis(100)).await;
        }
        (open, grown, above)
    });
    let joins = joins(&token, "honest", until).await;
    let (open, grown, above) = measured.await.unwrap();
    for stream in established {
        assert!(!stream.is_finished(), "{:?}", stream.await);
        stream.abort();
    }
    drop(crowd);
    Report { joins, open, grown, above }
}

/// Waits until the connections of the crowd are gone, and then until its memory is free as well. What it held at both moments.
async fn comes_back(process: &Process, before: Holding) -> (Holding, Holding) {
    let gone =
        settled(process, Duration::from_secs(40), |now| now.descriptors < before.descriptors + 10).await;
    let free = settled(process, FREE_AGAIN, |now| now.resident <= before.resident + BASE).await;
    (gone, free)
}

/// Waits until what a process holds is `enough`.
async fn settled(process: &Process, patience: Duration, enough: impl Fn(Holding) -> bool) -> Holding {
    let since = Instant::now();
    loop {
        let now = Holding::of(process.id());
        if enough(now) {
            return now;
        }
        assert!(since.elapsed() < patience, "after {patience:?} it still holds {now:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn a_crowd_of(connections: usize, seconds: u64) {
    let directory = tempfile::tempdir().unwrap();
    let (mut process, address) = crash::start(directory.path(), "").await;
    let mut operator = Operator::connect(&config(directory.path()).admin_socket).await;
    let before = Holding::of(process.id());
    let report = withstand(&process, address, &mut operator, connections, seconds).await;
    let (gone, free) = comes_back(&process, before).await;
    println!(
        "{connections} hostile places, {} open at once at most; {} joins: p50 {:?}, p99 {:?}, max {:?}; memory +{} KiB at most \
         ({} KiB for each open one without the first 64 MiB), +{} KiB when all are gone, +{} KiB in the end",
        report.open,
        report.joins.len(),
        report.percentile(50),
        report.percentile(99),
        report.percentile(100),
        report.grown >> 10,
        (report.grown.saturating_sub(BASE) / report.open.max(1)) >> 10,
        gone.resident.saturating_sub(before.resident) >> 10,
        free.resident.saturating_sub(before.resident) >> 10,
    );
    assert!(process.is_running());
    assert!(report.open >= connections / 2, "no crowd: {} open", report.open);
    assert_eq!(report.above, 0, "bytes above the bound");
    assert!(report.joins.len() >= 10 && report.percentile(99) <= JOIN);
    let token = operator.token(admin::CreateTokenRequest::default()).await;
    TestNode::new("afterwards").join(&token).await.unwrap();
}

fn asked(default: usize) -> usize {
    std::env::var("RINGMESH_CROWD").map_or(default, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_hostile_connections_keeps_nobody_from_joining() {
    a_crowd_of(asked(1000), 12).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "ten thousand connections: a minute, and 20,000 descriptors"]
async fn ten_thousand_hostile_connections_keep_nobody_from_joining() {
    a_crowd_of(asked(10_000), 60).await;
}
