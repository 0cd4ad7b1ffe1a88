//! Strangers who do not play by the rules: they get little, and honest machines are served all the same.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ringmesh_controlplane::server::Limits;
use ringmesh_proto::{admin, control as proto};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, Request};

use crate::{
    client::{Lie, TestNode, connect, reason},
    crash,
    harness::{Assembled, Operator, config},
};

const fn tight() -> Limits {
    Limits {
        connections: 64,
        unproven_per_source: 8,
        unproven_patience: Duration::ZERO,
        handshake: Duration::from_millis(300),
        time_to_prove: Duration::from_millis(1500),
        ..Limits::DEFAULT
    }
}

/// Waits until the other end closes.
async fn closed(stream: &mut TcpStream) {
    let mut buffer = [0; 1024];
    while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {}
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed_and_keeps_nobody_out() {
    let mut coordinator = Assembled::start_with_limits(tight()).await;
    let token = coordinator.token().await;
    for _ in 0..3 {
        let mut silent = Vec::new();
        for _ in 0..12 {
            silent.push(TcpStream::connect(coordinator.address).await.unwrap());
        }
        // One byte of a handshake is not a handshake.
        silent[0].write_all(&[22]).await.unwrap();
        for stream in &mut silent {
            closed(stream).await;
        }
    }
    let mut node = TestNode::new("honest");
    node.set_time(coordinator.now());
    node.join(&token).await.unwrap();
}

#[tokio::test]
async fn a_connection_on_which_nothing_is_proved_is_closed_and_a_nodes_is_not() {
    let mut coordinator = Assembled::start_with_limits(tight()).await;
    let mut node = coordinator.member("a").await;
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    // A challenge proves nothing.
    let mut idle = connect(coordinator.address).await.unwrap();
    node.challenge(&mut idle).await.unwrap();
    let gone = async {
        while crate::admin::call(&idle.channel, "/grpc.health.v1.Health/Check").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    // Older than the one that was closed, and well.
    stream.tell(&node.record(1)).await;
    node.update(&mut stream).await;
}

#[tokio::test]
async fn proven_connections_do_not_count_against_their_source() {
    let mut coordinator = Assembled::start_with_limits(tight()).await;
    let token = coordinator.token().await;
    let mut streams = Vec::new();
    // More than `unproven_per_source`, as of an office behind one address.
    for i in 0..20 {
        let mut node = TestNode::new(&format!("n{i}"));
        node.set_time(coordinator.now());
        node.join(&token).await.unwrap();
        streams.push(node.sync().await.unwrap());
    }
    assert_eq!(coordinator.operator.list().await.iter().filter(|node| node.online).count(), 20);
}

#[tokio::test]
async fn a_connection_gets_few_challenges_answered() {
    let mut coordinator = Assembled::start().await;
    let mut node = coordinator.member("a").await;
    node.set_time(coordinator.now());
    let mut connection = connect(coordinator.address).await.unwrap();
    for _ in 0..16 {
        node.challenge(&mut connection).await.unwrap();
    }
    let refused = node.challenge(&mut connection).await.unwrap_err();
    assert_eq!((reason(&refused), refused.code()), (proto::Reason::Busy, Code::Unavailable));
    node.sync().await.unwrap();
}

#[tokio::test]
async fn a_strangers_message_above_8_kib_and_headers_above_8_kib_are_refused() {
    let mut coordinator = Assembled::start().await;
    let token = coordinator.token().await;
    let mut node = TestNode::new("big");
    node.set_time(coordinator.now());
    (node.network, node.root) = (token.network(), Some(token.root()));
    let mut connection = connect(coordinator.address).await.unwrap();
    let (proof, _) = node.challenge(&mut connection).await.unwrap();
    let mut request = node.enroll_request(&connection, &token, proof, Lie::None);
    request.os = "x".repeat((8 << 10) + 1);
    let refused = connection.control.enroll(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");

    let mut connection = connect(coordinator.address).await.unwrap();
    let challenge = proto::ChallengeRequest {
        network_id: token.network().as_bytes().to_vec(),
        client_nonce: vec![1; 32],
    };
    let mut long = Request::new(challenge.clone());
    long.metadata_mut().insert("x-long", "y".repeat(9 << 10).parse().unwrap());
    connection.control.challenge(long).await.unwrap_err();
    // The next one is served.
    let mut connection = connect(coordinator.address).await.unwrap();
    connection.control.challenge(challenge).await.unwrap();
}

#[tokio::test]
async fn nothing_but_http_in_tls_1_3_is_spoken() {
    let coordinator = Assembled::start().await;
    let handshake = async |alpn: &[u8]| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(crate::client::believe())
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(coordinator.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect("localhost".try_into().unwrap(), stream).await.map(drop)
    };
    handshake(b"h2").await.unwrap();
    handshake(b"http/1.1").await.unwrap();
    handshake(b"http/1.0").await.unwrap_err();
    // Plain HTTP is no TLS.
    let mut plain = TcpStream::connect(coordinator.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    closed(&mut plain).await;
    // A hello of TLS 1.2: no extension says that the client knows more (RFC 8446, section 4.1.2 and D.2).
    let mut old = TcpStream::connect(coordinator.address).await.unwrap();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]].concat();
    let length = body.len() as u8;
    old.write_all(&[&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()).await.unwrap();
    let mut alert = [0; 7];
    old.read_exact(&mut alert).await.unwrap();
    // An alert, fatal; its code depends on what is missed first.
    assert_eq!((alert[0], alert[5]), (21, 2), "{alert:?}");
    closed(&mut old).await;
}

/// Takes all file descriptors of a coordinator that has few.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_without_file_descriptors_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let (mut process, address) = crash::start(directory.path(), "").await;
    crash::limit(&process, "nofile=40");
    let socket = config(directory.path()).admin_socket;
    let token = Operator::connect(&socket).await.token(admin::CreateTokenRequest::default()).await;
    let flood: Vec<TcpStream> = futures_util::future::join_all((0..200).map(|_| open(address))).await;
    let descriptors = format!("/proc/{}/fd", process.id());
    while std::fs::read_dir(&descriptors).unwrap().count() < 40 {
        tokio::task::yield_now().await;
    }
    drop(flood);
    let joined = async {
        loop {
            let Ok(mut connection) = connect(address).await else { continue };
            if TestNode::new("").join_on(&mut connection, &token, Lie::None).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), joined).await.unwrap();
    assert!(process.is_running());
}

/// What `prlimit` would say: the bound on descriptors that holds, and the one up to which it may be raised.
fn descriptors_of(process: u32) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut bounds = line.split_whitespace().map(|bound| bound.parse().unwrap_or(u64::MAX));
    (bounds.next().unwrap(), bounds.next().unwrap())
}

/// There are strangers from ten addresses for each of the few places that there are descriptors for, and whoever has to leave comes again.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_take_all_places_of_few_descriptors_keep_nobody_from_joining() {
    let directory = tempfile::tempdir().unwrap();
    // What holds when it starts is less than it may have.
    let (mut process, address) = crash::start(directory.path(), "ulimit -S -n 60; ulimit -H -n 300;").await;
    assert_eq!(descriptors_of(process.id()), (300, 300));
    let mut operator = Operator::connect(&config(directory.path()).admin_socket).await;
    let token = operator.token(admin::CreateTokenRequest { reusable: true, ..Default::default() }).await;
    let mut strangers = tokio::task::JoinSet::new();
    for place in 0..300_u32 {
        let source = std::net::Ipv4Addr::new(127, 21, 0, (place % 10) as u8 + 1);
        strangers.spawn(async move {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind((source, 0).into()).unwrap();
                if let Ok(mut stream) = socket.connect(address).await {
                    drop(stream.read_u8().await);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    let all_but_the_newcomers = 150 - 150 / 16 - 1;
    let descriptors = format!("/proc/{}/fd", process.id());
    while std::fs::read_dir(&descriptors).unwrap().count() < all_but_the_newcomers {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for number in 0..20 {
        // Whoever comes in the same moment as many others may find no place yet, and comes again as nodes do.
        let joined =
            async { while TestNode::new(&format!("honest-{number}")).join(&token).await.is_err() {} };
        assert!(tokio::time::timeout(Duration::from_secs(5), joined).await.is_ok(), "join {number}");
    }
    assert_eq!(operator.list().await.len(), 20);
    // And there was none too few at any time.
    assert!(std::fs::read_dir(&descriptors).unwrap().count() < 200);
    assert!(process.is_running());
}

async fn open(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}
