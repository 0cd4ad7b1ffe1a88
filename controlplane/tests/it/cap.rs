//! The bound on all connections together, by strangers from more addresses than each may be held to.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ringmesh_controlplane::server::Limits;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

use crate::{
    client::{MapStream, TestNode},
    flood::tls_on,
    harness::Assembled,
    metrics::series_of,
};

const CONNECTIONS: usize = 16;
const LIMITS: Limits = Limits {
    connections: CONNECTIONS,
    unproven_per_source: 4,
    unproven_patience: Duration::ZERO,
    ..Limits::DEFAULT
};
/// The strangers' addresses, none of which is that of who joins.
const SOURCES: u8 = 10;
/// Connections that each of them tries to keep.
const OF_EACH: usize = 6;
/// Within this who is turned away has come in, as it tries again.
const SOON: Duration = Duration::from_secs(10);

/// Connections that are open at the moment, as the coordinator counts them, and how many it ever refused.
async fn counted(coordinator: &Assembled) -> (usize, u64) {
    let series = series_of(&*coordinator.subject).await;
    let open = series.iter().filter(|(name, _)| name.starts_with("coordinator_connections{"));
    let open: f64 = open.map(|(_, count)| count).sum();
    (open as usize, series["coordinator_connections_refused_total"] as u64)
}

/// Waits until the coordinator's counts are as said.
async fn until(coordinator: &Assembled, holds: impl Fn(usize, u64) -> bool) -> (usize, u64) {
    let began = Instant::now();
    loop {
        let (open, refused) = counted(coordinator).await;
        if holds(open, refused) {
            return (open, refused);
        }
        assert!(began.elapsed() < SOON, "never so: {open} open, {refused} refused");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn connect(source: Ipv4Addr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(target).await
}

/// Comes from `source` again and again, with or without TLS, and stays for as long as it is let; counts how often it was turned away.
async fn linger(
    source: Ipv4Addr,
    target: SocketAddr,
    rest: Duration,
    speaks: bool,
    turned_away: Arc<AtomicUsize>,
) {
    loop {
        sleep(rest).await;
        if let Ok(mut stream) = connect(source, target).await {
            if speaks {
                if let Some(mut stream) = tls_on(stream).await {
                    let _ = stream.read(&mut [0; 64]).await;
                }
            } else {
                let _ = stream.read(&mut [0; 64]).await;
            }
            turned_away.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Joins and has a map; whatever is turned away is tried again, as a node does.
async fn joins(coordinator: &mut Assembled, name: &str) -> MapStream {
    let token = coordinator.token().await;
    let mut node = TestNode::new(name);
    node.set_time(coordinator.now());
    let joined = async {
        while let Err(refused) = node.join(&token).await {
            assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{name}: {refused}");
            sleep(Duration::from_millis(50)).await;
        }
        loop {
            let refused = match node.sync().await {
                Ok(mut stream) => {
                    node.update(&mut stream).await;
                    return stream;
                }
                Err(refused) => refused,
            };
            assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{name}: {refused}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, joined).await.unwrap_or_else(|_| panic!("{name} does not come in"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_from_many_addresses_hold_what_there_is_at_most_and_who_joins_is_let_in() {
    let mut coordinator = Assembled::start_with_limits(LIMITS).await;
    let target = coordinator.address;
    let turned_away = Arc::<AtomicUsize>::default();
    let mut strangers = JoinSet::new();
    for number in 1..=SOURCES {
        for place in 0..OF_EACH {
            let source = Ipv4Addr::new(127, 0, 7, number);
            // They come one by one, and not all at the same moments.
            let rest = Duration::from_millis(300 + 13 * strangers.len() as u64);
            strangers.spawn(linger(source, target, rest, place % 2 == 0, turned_away.clone()));
        }
    }
    // All but what is left to who comes is taken.
    let (mut most, _) = until(&coordinator, |open, _| open >= CONNECTIONS - 1).await;
    let began = Instant::now();
    let mut streams = Vec::new();
    while began.elapsed() < Duration::from_secs(3) || streams.len() < 3 {
        most = most.max(counted(&coordinator).await.0);
        if streams.len() < 3 {
            streams.push(joins(&mut coordinator, &format!("honest-{}", streams.len())).await);
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert!((CONNECTIONS - 1..=CONNECTIONS).contains(&most), "{most} were open at once");
    let turned_away = turned_away.load(Ordering::Relaxed);
    assert!(turned_away >= usize::from(SOURCES) * OF_EACH - CONNECTIONS, "only {turned_away} had to go");
    // Who has proved itself did not have to leave for anybody.
    for stream in &mut streams {
        let end = timeout(Duration::from_millis(50), stream.responses.message()).await;
        assert!(!matches!(end, Ok(Ok(None) | Err(_))), "{end:?}");
    }
    strangers.abort_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_above_the_bound_is_refused_at_once_and_counted_while_nobody_can_leave_for_it() {
    let mut coordinator = Assembled::start_with_limits(LIMITS).await;
    let mut streams = Vec::new();
    while streams.len() < CONNECTIONS {
        streams.push(joins(&mut coordinator, &format!("node-{}", streams.len())).await);
        // What each joined by is closed.
        let expected = streams.len();
        until(&coordinator, |open, _| open == expected).await;
    }
    let (_, before) = counted(&coordinator).await;
    for number in 1..=3 {
        let source = Ipv4Addr::new(127, 0, 8, number);
        let mut stream = connect(source, coordinator.address).await.unwrap();
        let end = timeout(SOON, stream.read(&mut [0; 64])).await.expect("it is told at once");
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
        until(&coordinator, |open, refused| (open, refused) == (CONNECTIONS, before + u64::from(number)))
            .await;
    }
    // One leaves, and there is room again.
    drop(streams.pop());
    until(&coordinator, |open, _| open == CONNECTIONS - 1).await;
    let mut stream = connect(Ipv4Addr::new(127, 0, 8, 9), coordinator.address).await.unwrap();
    until(&coordinator, |open, _| open == CONNECTIONS).await;
    timeout(Duration::from_millis(200), stream.read(&mut [0; 64])).await.expect_err("it is served");
    assert_eq!(counted(&coordinator).await.1, before + 3);
}
