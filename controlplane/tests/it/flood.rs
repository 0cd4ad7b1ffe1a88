//! What a stranger, or a node gone bad, can make a coordinator hold: memory, connections, file descriptors.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use h2::client::SendRequest;
use ringmesh_controlplane::server::{BYTES_PER_CONNECTION, Limits};
use ringmesh_proto::admin;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;
use tonic::codegen::Bytes;

use crate::{
    admin::call,
    client::{Connection, Lie, TestNode, connect, reason},
    crash,
    harness::{Assembled, Operator, config},
};

/// A TLS connection, if the coordinator takes one more.
pub async fn tls(address: SocketAddr) -> Option<TlsStream<TcpStream>> {
    tls_on(TcpStream::connect(address).await.ok()?).await
}

/// The same on a connection that is there.
pub async fn tls_on(stream: TcpStream) -> Option<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(crate::client::believe())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.ok()
}

/// Opens as many streams as it may, up to 64, and sends on each all but the last byte of a message of `length` bytes.
async fn unfinished(
    address: SocketAddr,
    length: u32,
) -> Option<(SendRequest<Bytes>, Vec<h2::SendStream<Bytes>>)> {
    let (mut requests, connection) = h2::client::handshake(tls(address).await?).await.ok()?;
    tokio::spawn(connection);
    // The coordinator's settings come with its first bytes; until then a client may do as it likes.
    let settled = async {
        while requests.current_max_send_streams() > 1000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(2), settled).await.ok()?;
    let mut streams = Vec::new();
    while streams.len() < 64 {
        let Ok(Ok(ready)) = timeout(Duration::from_millis(300), requests.clone().ready()).await else {
            break;
        };
        requests = ready;
        let request = http::Request::post("https://localhost/ringmesh.control.v1.ControlService/Sync")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let (_, mut stream) = requests.send_request(request, false).ok()?;
        let mut message = vec![7; length as usize + 4];
        message[..5].copy_from_slice(&[&[0][..], &length.to_be_bytes()].concat());
        stream.send_data(message.into(), false).ok()?;
        streams.push(stream);
    }
    Some((requests, streams))
}

/// Bytes of memory that a process has.
fn resident(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_of_strangers_cost_no_more_than_is_stated() {
    let directory = tempfile::tempdir().unwrap();
    let (mut process, address) = crash::start(directory.path(), "").await;
    let most = Limits::default().unproven_per_source * BYTES_PER_CONNECTION;
    assert!(most <= 25 << 20, "{most}");
    let (before, idle) = (resident(process.id()), sockets(process.id()));
    // As large as they may be, and as large as anybody might try.
    for length in [64 << 10, 1 << 20] {
        let all = futures_util::future::join_all((0..40).map(|_| unfinished(address, length))).await;
        let held: Vec<_> = all.into_iter().flatten().collect();
        assert!(!held.is_empty());
        // The oldest ones left for those above the bound.
        until_sockets(process.id(), idle + Limits::default().unproven_per_source).await;
        assert!(held.iter().all(|(requests, _)| requests.current_max_send_streams() == 8));
        for _ in 0..10 {
            let grown = resident(process.id()).saturating_sub(before);
            // What the allocator keeps and the handshakes cost comes on top.
            assert!(grown <= most + (24 << 20), "grown by {} KiB", grown >> 10);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(held);
        until_sockets(process.id(), idle).await;
    }
    // And who comes when they are gone is served.
    let socket = config(directory.path()).admin_socket;
    let token = Operator::connect(&socket).await.token(admin::CreateTokenRequest::default()).await;
    let joined = async { while TestNode::new("honest").join(&token).await.is_err() {} };
    timeout(Duration::from_secs(10), joined).await.unwrap();
    assert!(process.is_running());
}

fn sockets(process: u32) -> usize {
    let all = std::fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let is_socket = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    all.flatten().filter(is_socket).count()
}

/// Waits until the coordinator has no more than `most` sockets: the places of who hung up are free at once, also of those of whom nothing
/// is read any more.
async fn until_sockets(process: u32, most: usize) {
    let wait = async {
        while sockets(process) > most {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Much less than the time of strangers, and enough for a busy machine.
    let done = timeout(Duration::from_secs(12), wait).await;
    assert!(done.is_ok(), "{} sockets, not {most}", sockets(process));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_has_one_connection_however_many_it_opens_and_none_after_its_removal() {
    let directory = tempfile::tempdir().unwrap();
    let (process, address) = crash::start(directory.path(), "").await;
    let mut operator = Operator::connect(&config(directory.path()).admin_socket).await;
    let token = operator.token(admin::CreateTokenRequest::default()).await;
    let idle = sockets(process.id());
    let mut node = TestNode::new("greedy");
    node.join(&token).await.unwrap();
    assert_eq!(token.coordinators(), [address.to_string()]);
    let mut streams = Vec::new();
    while streams.len() < 50 {
        // Refused while too many of those that were superseded still end.
        if let Ok(stream) = node.sync().await {
            streams.push(stream);
        }
    }
    until_sockets(process.id(), idle + 1).await;
    assert!(operator.node("greedy").await.online);
    // The last one is the one that lives.
    node.map = None;
    node.update(streams.last_mut().unwrap()).await;
    operator.remove("greedy").await;
    until_sockets(process.id(), idle).await;
    // It keeps none by asking again.
    assert!(node.sync().await.is_err());
}

const fn tight() -> Limits {
    Limits {
        connections: 64,
        unproven_per_source: 4,
        unproven_patience: Duration::ZERO,
        handshake: Duration::from_secs(5),
        time_to_prove: Duration::from_millis(1500),
        ..Limits::DEFAULT
    }
}

/// Waits until the other end closes.
async fn gone(connection: &Connection) {
    let gone = async {
        while call(&connection.channel, "/grpc.health.v1.Health/Check").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.unwrap();
}

#[tokio::test]
async fn a_connection_without_a_map_stream_is_a_strangers_whatever_was_proved_on_it() {
    let mut coordinator = Assembled::start_with_limits(tight()).await;
    let token = coordinator.token().await;
    let mut node = TestNode::new("a");
    node.set_time(coordinator.now());
    node.address = Some(coordinator.address);
    let mut enrolled = connect(coordinator.address).await.unwrap();
    node.join_on(&mut enrolled, &token, Lie::None).await.unwrap();
    gone(&enrolled).await;

    // With a stream it lives for as long as the stream.
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    tokio::time::sleep(tight().time_to_prove * 2).await;
    stream.tell(&node.record(1)).await;
    call(&stream.connection.channel, "/grpc.health.v1.Health/Check").await.unwrap();
    let crate::client::MapStream { connection, sender, responses, .. } = stream;
    drop((sender, responses));
    gone(&connection).await;
}

#[tokio::test]
async fn connections_that_lost_their_stream_count_against_their_source_again() {
    let limits = Limits { time_to_prove: Duration::from_secs(600), ..tight() };
    let mut coordinator = Assembled::start_with_limits(limits).await;
    let mut kept = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let mut node = coordinator.member(name).await;
        let stream = node.sync().await.unwrap();
        kept.push((node, stream));
    }
    let mut connections = Vec::new();
    for (_, stream) in kept.drain(..) {
        let crate::client::MapStream { connection, sender, responses, .. } = stream;
        drop((sender, responses));
        connections.push(connection);
    }
    while coordinator.operator.list().await.iter().any(|node| node.online) {
        tokio::task::yield_now().await;
    }
    // All places of the source are taken: for each that comes one of them leaves.
    let mut newcomers = Vec::new();
    for _ in &connections {
        newcomers.push(tls(coordinator.address).await.expect("a place"));
    }
    for connection in &connections {
        gone(connection).await;
    }
}

#[tokio::test]
async fn a_second_stream_on_the_same_connection_leaves_the_connection_alone() {
    let mut coordinator = Assembled::start().await;
    let mut node = coordinator.member("a").await;
    let first = node.sync().await.unwrap();
    let mut again = Connection {
        channel: first.connection.channel.clone(),
        control: first.connection.control.clone(),
        tls_key: first.connection.tls_key,
        exporter: first.connection.exporter,
    };
    node.challenge(&mut again).await.unwrap();
    let mut second = node.sync_on(again, Lie::None).await.unwrap();
    node.update(&mut second).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stream_is_alive(&mut node, &mut second).await;
    let mut first = first;
    while first.next().await.is_ok() {}
    // Elsewhere it takes the connection with it.
    let third = node.sync().await.unwrap();
    gone(&second.connection).await;
    drop(third);
    let refused = node.sync_with(Lie::OtherIdentity).await.err().unwrap();
    assert_eq!(reason(&refused), ringmesh_proto::control::Reason::ProofInvalid);
}

async fn stream_is_alive(node: &mut TestNode, stream: &mut crate::client::MapStream) {
    stream.tell(&node.record(9)).await;
    node.update(stream).await;
}
