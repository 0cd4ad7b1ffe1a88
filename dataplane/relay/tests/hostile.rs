//! The server among strangers and hostile members: silence, bounds, deadlines, and traffic that goes on.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

#[path = "support/net.rs"]
mod net;
mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use net::{Socket, TestServer, UdpClient, datagrams, loopback, message, network, request, until, websocket};
use ringmesh_relay::frame::MAX_MESSAGE_LEN;
use ringmesh_relay::{Limits, RelayDrop, ServerConfig, TlsLimits};
use ringmesh_tunnel::DropReason;
use support::{Client, RELAY, node, sealed, secret};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

fn limits(limits: Limits) -> ServerConfig {
    ServerConfig { limits, ..loopback() }
}

/// A session with the relay over a WebSocket.
async fn meet(tcp: SocketAddr, number: u8) -> (Client, Socket) {
    let mut socket = websocket(tcp).await.unwrap();
    let mut client = Client::new(number, RELAY);
    let initiation = client.initiation();
    socket.send(message(&[initiation])).await.unwrap();
    while !client.established {
        for datagram in datagrams(&mut socket).await.expect("an answer") {
            let replies = client.take(&datagram);
            if !replies.is_empty() {
                socket.send(message(&replies)).await.unwrap();
            }
        }
    }
    (client, socket)
}

fn status(result: Result<Socket, tungstenite::Error>) -> u16 {
    match result {
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
        Ok(_) => 101,
    }
}

/// Every kind of datagram that is none of a member's, some of them nearly so.
fn garbage() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for kind in 0..=255u8 {
        for length in [1, 4, 8, 31, 32, 64, 92, 100, 148, 500, 1400] {
            let mut datagram = vec![kind; length];
            datagram.iter_mut().skip(1).take(3).for_each(|byte| *byte = 0);
            all.push(datagram);
        }
    }
    // STUN, DNS, QUIC.
    all.push(b"\x00\x01\x00\x00\x21\x12\xa4\x42abcdefghijkl".to_vec());
    all.push(
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01".to_vec(),
    );
    let mut quic = vec![0xc3, 0, 0, 0, 1, 8];
    quic.resize(1200, 7);
    all.push(quic);
    // A stranger's initiation, whose first MAC is right, and one whose MAC is not.
    let initiation = Client::new(77, RELAY).initiation();
    let mut flipped = initiation.clone();
    flipped[20] ^= 1;
    all.extend([initiation, flipped]);
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_hear_nothing() {
    let server = TestServer::start(loopback(), 2).await;
    let mut member = UdpClient::meet(server.udp, 1, RELAY).await;
    let sent = server.report().await.udp_sent;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let garbage = garbage();
    for datagram in &garbage {
        stranger.send_to(datagram, server.udp).await.unwrap();
        tokio::task::yield_now().await;
    }
    // Those of a member, replayed from elsewhere: neither a sealed datagram nor an initiation is answered twice.
    let hello = member.client.hello();
    member.send(&hello).await;
    member.turn().await;
    let answered = server.report().await.udp_sent;
    assert!(answered.datagrams > sent.datagrams, "it is not the counter that stands still");
    stranger.send_to(&hello, server.udp).await.unwrap();
    let mut buffer = [0; 2048];
    let heard = timeout(Duration::from_millis(500), stranger.recv(&mut buffer)).await;
    assert!(heard.is_err(), "{heard:?}");
    let report = server.report().await;
    assert_eq!(report.udp_sent, answered);
    let drops = report.networks[0].session_drops.clone();
    assert_eq!(drops.get(DropReason::Replayed), 1);
    assert_eq!(drops.get(DropReason::UnknownPeer), 1);
    assert!(
        drops.get(DropReason::BadMac1) >= 2 && report.drops.get(RelayDrop::UnknownNetwork) > 2000,
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_unauthenticated_gets_more_bytes_than_they_sent() {
    let server = TestServer::start(loopback(), 40).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut sent, mut received) = (0, 0);
    // A flood of good initiations from one place: some are answered, others get a cookie, most nothing.
    for round in 0..20 {
        for number in 1..=40 {
            let initiation = Client::new(number, RELAY).initiation();
            sent += initiation.len();
            socket.send_to(&initiation, server.udp).await.unwrap();
        }
        let mut buffer = [0; 2048];
        while let Ok(length) = timeout(Duration::from_millis(50), socket.recv(&mut buffer)).await {
            let length = length.unwrap();
            assert!(length <= 148, "round {round}: {length}");
            received += length;
            assert!(received <= sent);
        }
    }
    assert!(received > 0, "someone was answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_of_a_request_is_checked() {
    let server = TestServer::start(loopback(), 1).await;
    let with = |change: fn(&mut Request)| async move {
        let mut request = request(server.tcp);
        change(&mut request);
        let stream = TcpStream::connect(server.tcp).await.unwrap();
        status(tokio_tungstenite::client_async(request, stream).await.map(|(socket, _)| socket))
    };
    assert_eq!(with(|_| {}).await, 101);
    assert_eq!(with(|request| *request.uri_mut() = "ws://x/mesh/relay/v1".parse().unwrap()).await, 101);
    assert_eq!(with(|request| *request.uri_mut() = "ws://x/relay/v2".parse().unwrap()).await, 404);
    let origin = |request: &mut Request| {
        request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
    };
    assert_eq!(with(origin).await, 403);
    let other = |request: &mut Request| {
        request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    };
    assert_eq!(with(other).await, 426);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_brings_nothing_authentic_is_closed_in_time() {
    let server =
        TestServer::start(limits(Limits { time_to_prove: Duration::from_millis(700), ..Limits::DEFAULT }), 1)
            .await;
    let began = Instant::now();
    let silent = TcpStream::connect(server.tcp).await.unwrap();
    let mut idle = websocket(server.tcp).await.unwrap();
    // Pings and garbage prove nothing.
    let mut busy = websocket(server.tcp).await.unwrap();
    let (mut client, mut proven) = meet(server.tcp, 1).await;
    until("three have proved nothing", || async { server.report().await.unproven_connections == 3 }).await;
    let busy = async {
        loop {
            let sent = busy.send(message(&[sealed(100), Client::new(9, RELAY).initiation()])).await;
            if sent.is_err() || busy.send(Message::Ping("x".into())).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let silent = async {
        let mut silent = silent;
        let _ = silent.read(&mut [0; 100]).await;
    };
    timeout(Duration::from_secs(5), async { tokio::join!(silent, datagrams(&mut idle), busy) })
        .await
        .unwrap();
    assert!(began.elapsed() >= Duration::from_millis(650));
    let report = server.report().await;
    assert_eq!((report.unproven_connections, report.websockets), (0, 1));
    let hello = client.hello();
    proven.send(message(&[hello])).await.unwrap();
    assert!(datagrams(&mut proven).await.is_some(), "a member stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_by_which_nothing_comes_is_closed_and_a_ping_is_something() {
    let config = limits(Limits { idle: Duration::from_millis(600), ..Limits::DEFAULT });
    let server = TestServer::start(config, 2).await;
    let (_, mut idle) = meet(server.tcp, 1).await;
    let (_, mut pinging) = meet(server.tcp, 2).await;
    let began = Instant::now();
    let ping = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            pinging.send(Message::Ping("are you there?".into())).await.unwrap();
            let answer = timeout(net::WAIT, pinging.next()).await.unwrap().unwrap().unwrap();
            assert!(matches!(answer, Message::Pong(ref text) if text.as_ref() == b"are you there?"));
        }
    };
    let closed = async {
        while datagrams(&mut idle).await.is_some() {}
        began.elapsed()
    };
    let ((), closed) = tokio::join!(ping, closed);
    assert!(closed >= Duration::from_millis(500) && closed < Duration::from_millis(1500), "{closed:?}");
    assert_eq!(server.report().await.websockets, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_frames_ends_the_stream() {
    let server = TestServer::start(loopback(), 1).await;
    let cut = { Message::Binary(vec![0, 100, 4, 0, 0, 0].into()) };
    let long = Message::Binary([vec![0x24, 0x01], vec![0; 0x2401]].concat().into());
    let over = Message::Binary(vec![0; MAX_MESSAGE_LEN + 1].into());
    for (what, bad) in [("cut", cut), ("long", long), ("over", over), ("text", Message::Text("hello".into()))]
    {
        // Initiations of one key need later timestamps: steps of 16.8 ms, and 20 ms between two.
        tokio::time::sleep(Duration::from_millis(40)).await;
        let (_, mut socket) = meet(server.tcp, 1).await;
        let _ = socket.send(bad).await;
        let ended =
            timeout(Duration::from_secs(5), async { while datagrams(&mut socket).await.is_some() {} }).await;
        assert!(ended.is_ok(), "{what}");
    }
    until("all are gone", || async { server.report().await.websockets == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_and_the_others_do_not_wait() {
    let config =
        limits(Limits { send_queue: 256 << 10, stalled: Duration::from_millis(300), ..Limits::DEFAULT });
    let server = TestServer::start(config, 3).await;
    let (mut reader, mut lazy) = meet(server.tcp, 2).await;
    let mut sender = UdpClient::meet(server.udp, 1, RELAY).await;
    let mut third = UdpClient::meet(server.udp, 3, RELAY).await;
    sender.bind(2).await;
    sender.bind(3).await;
    let (to_lazy, to_third) = (sender.client.to(2, &sealed(1300)), sender.client.to(3, &sealed(1300)));
    // The kernel's own buffers take some megabytes first.
    let began = Instant::now();
    while server.report().await.cut_websockets == 0 {
        assert!(began.elapsed() < net::WAIT);
        // Fewer than the relay's socket holds and slower than a client may send, so that none of them is dropped for that.
        tokio::time::sleep(Duration::from_millis(2)).await;
        for _ in 0..32 {
            sender.send(&to_lazy).await;
        }
        sender.send(&to_third).await;
        let before = third.client.relayed.len();
        // The relay may ask something besides.
        while third.client.relayed.len() == before {
            third.turn().await;
        }
    }
    let report = server.report().await;
    assert_eq!(report.cut_websockets, 1);
    assert!(report.networks[0].drops.get(RelayDrop::SlowReader) >= 1);
    assert!(began.elapsed() >= Duration::from_millis(300), "not for a burst");
    until("it is gone", || async { server.report().await.websockets == 0 }).await;
    // It is cut from us as well, and may come back.
    while let Some(datagrams) = datagrams(&mut lazy).await {
        datagrams.iter().for_each(|datagram| drop(reader.take(datagram)));
    }
    meet(server.tcp, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_members_websocket_is_cut() {
    let server = TestServer::start(loopback(), 2).await;
    let (_, mut removed) = meet(server.tcp, 1).await;
    let (mut other, mut stays) = meet(server.tcp, 2).await;
    server.apply(1, RELAY, 2..=2).await;
    timeout(Duration::from_secs(5), async { while datagrams(&mut removed).await.is_some() {} })
        .await
        .unwrap();
    // Asking for oneself is refused, and a refusal is an answer.
    let request = other.bind(node(2));
    stays.send(message(&[request])).await.unwrap();
    while other.refused.is_empty() {
        for datagram in datagrams(&mut stays).await.expect("the other stays") {
            other.take(&datagram);
        }
    }
    assert_eq!(server.report().await.websockets, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_cannot_hold_many_websockets() {
    let server = TestServer::start(loopback(), 1).await;
    let mut held = Vec::new();
    for _ in 0..Limits::DEFAULT.websockets_per_client + 3 {
        // Initiations of one key need later timestamps: steps of 16.8 ms, and 20 ms between two.
        tokio::time::sleep(Duration::from_millis(40)).await;
        held.push(meet(server.tcp, 1).await);
    }
    until("the oldest are cut", || async {
        server.report().await.websockets == Limits::DEFAULT.websockets_per_client
    })
    .await;
    let (client, socket) = held.last_mut().unwrap();
    let hello = client.hello();
    socket.send(message(&[hello])).await.unwrap();
    assert!(datagrams(socket).await.is_some(), "the newest stays");
}

/// A connection from one of the many addresses of loopback.
async fn from_source(source: Ipv4Addr, tcp: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0))?;
    socket.connect(tcp).await
}

/// Whether the server still holds a connection after it had time to refuse it.
async fn is_held(stream: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(300), stream.read(&mut [0; 16])).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unproven_connections_are_bounded_per_source_and_in_all() {
    let config = limits(Limits { unproven: 6, unproven_per_source: 2, ..Limits::DEFAULT });
    let server = TestServer::start(config, 1).await;
    let mut streams = Vec::new();
    for source in [1, 1, 1, 2, 2, 3, 4, 5] {
        streams.push(from_source(Ipv4Addr::new(127, 0, 1, source), server.tcp).await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut held = Vec::new();
    for stream in &mut streams {
        held.push(is_held(stream).await);
    }
    // The third of a source is refused; for the last, the oldest of the biggest makes room.
    assert_eq!(held, [false, true, false, true, true, true, true, true]);
    assert_eq!(server.report().await.unproven_connections, 6);
    drop(streams);
    until("all places are free", || async { server.report().await.unproven_connections == 0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_gets_in_at_once_when_one_network_holds_all_places() {
    let config = limits(Limits { unproven: 40, unproven_per_source: 2, ..Limits::DEFAULT });
    let server = TestServer::start(config, 1).await;
    // Half of them are WebSockets already, and half have sent nothing yet.
    let mut crowd = Vec::new();
    for source in 0..40 {
        let stream = from_source(Ipv4Addr::new(127, 9, 9, source / 2 + 1), server.tcp).await.unwrap();
        crowd.push(stream);
    }
    for stream in crowd.iter_mut().take(20) {
        tokio_tungstenite::client_async(request(server.tcp), &mut *stream).await.unwrap();
    }
    until("all places are taken", || async { server.report().await.unproven_connections == 40 }).await;
    let began = Instant::now();
    meet(server.tcp, 1).await;
    assert!(began.elapsed() < Limits::DEFAULT.time_to_prove / 4, "{:?}", began.elapsed());
    assert!(!is_held(&mut crowd[0]).await, "the oldest of them made room");
    assert!(is_held(&mut crowd[1]).await, "one for one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_each_client_is_a_source_of_its_own() {
    for (trusted, held_in_all) in [(true, 4), (false, 2)] {
        let proxies = if trusted { vec!["127.0.0.1/32".parse().unwrap()] } else { Vec::new() };
        let limits = Limits { unproven_per_source: 2, ..Limits::DEFAULT };
        let server =
            TestServer::start(ServerConfig { trusted_proxies: proxies, limits, ..loopback() }, 1).await;
        let mut held = Vec::new();
        for client in [1, 1, 1, 2, 2, 2] {
            let mut request = request(server.tcp);
            request.headers_mut().insert("x-forwarded-for", format!("203.0.113.{client}").parse().unwrap());
            let stream = TcpStream::connect(server.tcp).await.unwrap();
            held.push(tokio_tungstenite::client_async(request, stream).await);
        }
        until("so many are held", || async { server.report().await.websockets == held_in_all }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_runs_alone_does_its_own_tls() {
    let server = TestServer::start(loopback(), 1).await;
    let certified = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let certificate = certified.cert.der().clone();
    let tls =
        rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = listener.local_addr().unwrap();
    let handle = server.handle.clone();
    let limits = TlsLimits { per_source: 3, timeout: Duration::from_millis(800), ..TlsLimits::default() };
    let serving = tokio::spawn(async move { handle.serve_tls(listener, Arc::new(tls), limits).await });

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = TcpStream::connect(tcp).await.unwrap();
    let stream = connector.connect("relay.example".try_into().unwrap(), stream).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request(tcp), stream).await.unwrap();
    let mut member = Client::new(1, RELAY);
    socket.send(message(&[member.initiation()])).await.unwrap();
    let answer = timeout(net::WAIT, socket.next()).await.unwrap().unwrap().unwrap();
    let mut bytes = answer.into_data().to_vec();
    for datagram in ringmesh_relay::frame::frames_mut(&mut bytes) {
        member.take(datagram.unwrap());
    }
    assert!(member.established);

    // Those who never say hello are bounded, and then gone.
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(tcp).await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!is_held(&mut silent[3]).await);
    assert!(is_held(&mut silent[0]).await);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert!(!is_held(&mut silent[0]).await, "the handshake took too long");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_initiation_is_refused_after_a_restart_if_the_floors_were_kept() {
    for kept in [true, false] {
        let server = TestServer::start(loopback(), 1).await;
        let mut client = Client::new(1, RELAY);
        let captured = client.initiation();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 200];
        socket.send_to(&captured, server.udp).await.unwrap();
        timeout(net::WAIT, socket.recv(&mut buffer)).await.unwrap().unwrap();
        let floors = server.handle.floors(network(1)).await.unwrap().unwrap();
        server.stop().await;

        let server = TestServer::bare(loopback()).await;
        if kept {
            server.handle.restore(network(1), floors).await.unwrap();
        }
        server.apply(1, RELAY, 1..=1).await;
        socket.send_to(&captured, server.udp).await.unwrap();
        let answered = timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await.is_ok();
        assert_eq!(answered, !kept, "with floors: {kept}");
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_says_so_and_frees_its_port() {
    let server = TestServer::start(loopback(), 1).await;
    let (handle, port) = (server.handle.clone(), server.handle.port());
    let (_, mut socket) = meet(server.tcp, 1).await;
    server.stop().await;
    assert!(datagrams(&mut socket).await.is_none(), "streams end");
    assert!(handle.report().await.is_err() && handle.floors(network(1)).await.is_err());
    assert!(handle.apply(network(1), &secret(RELAY), Vec::new()).await.is_err());
    let (one, _other) = tokio::io::duplex(10);
    assert!(handle.offer_websocket(one, "192.0.2.1:1".parse().unwrap()).is_err());
    let again = TestServer::start(ServerConfig { port, ..loopback() }, 1).await;
    let taken = ringmesh_relay::Server::start(ServerConfig { port, ..loopback() });
    assert!(matches!(taken, Err(ringmesh_relay::StartError::Bind { .. })), "{taken:?}");
    again.stop().await;
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What a hostile client does with its connection.
#[derive(Debug, Clone, Copy)]
enum Hostility {
    Silent,
    HalfARequest,
    Idle,
    NoMember,
    OtherNetwork,
    Oversize,
    ForeignOrigin,
    NoRead,
}

const ALL: [Hostility; 8] = [
    Hostility::Silent,
    Hostility::HalfARequest,
    Hostility::Idle,
    Hostility::NoMember,
    Hostility::OtherNetwork,
    Hostility::Oversize,
    Hostility::ForeignOrigin,
    Hostility::NoRead,
];

/// Behaves so until the server ends it; returns when that was, counted from when it began.
async fn behave(hostility: Hostility, number: u32, tcp: SocketAddr, patience: Duration) -> Duration {
    let began = Instant::now();
    let [.., b, c] = number.to_be_bytes();
    // Each from an address of its own, so that it is not the bound per source that saves us.
    let Ok(mut stream) = from_source(Ipv4Addr::new(127, 7, b, c), tcp).await else { return began.elapsed() };
    let mut request = request(tcp);
    // By default each would have 128 KiB of its own, and it is the server that is measured.
    let small = WebSocketConfig::default().read_buffer_size(1 << 10).write_buffer_size(0);
    match hostility {
        Hostility::Silent => {}
        Hostility::HalfARequest => {
            let _ = stream.write_all(b"GET /relay/v1 HTTP/1.1\r\nX: y").await;
        }
        Hostility::ForeignOrigin => {
            request.headers_mut().insert("origin", "https://evil.example".parse().unwrap());
            let _ = tokio_tungstenite::client_async_with_config(request, stream, Some(small)).await;
            return began.elapsed();
        }
        Hostility::Idle
        | Hostility::NoMember
        | Hostility::OtherNetwork
        | Hostility::Oversize
        | Hostility::NoRead => {
            let socket =
                timeout(patience, tokio_tungstenite::client_async_with_config(request, stream, Some(small)))
                    .await;
            let Ok(Ok((mut socket, _))) = socket else { return began.elapsed() };
            let sent = match hostility {
                Hostility::NoMember => socket.send(message(&[Client::new(150, RELAY).initiation()])).await,
                Hostility::OtherNetwork => {
                    socket.send(message(&[Client::new(1, RELAY + 9).initiation()])).await
                }
                Hostility::Oversize => socket.send(Message::Binary(vec![1; 200 << 10].into())).await,
                // Announces a message as long as allowed and brings half of it.
                Hostility::NoRead => {
                    let header = [0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 1, 2, 3, 4];
                    let _ = socket.get_mut().write_all(&header).await;
                    let _ = socket.get_mut().write_all(&[0; 30_000]).await;
                    tokio::time::sleep(patience).await;
                    return Duration::ZERO;
                }
                Hostility::Silent | Hostility::HalfARequest | Hostility::Idle | Hostility::ForeignOrigin => {
                    Ok(())
                }
            };
            drop(sent);
            let ended = timeout(patience, async { while datagrams(&mut socket).await.is_some() {} }).await;
            return if ended.is_ok() { began.elapsed() } else { Duration::MAX };
        }
    }
    let ended =
        timeout(patience, async { while !matches!(stream.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} })
            .await;
    if ended.is_ok() { began.elapsed() } else { Duration::MAX }
}

/// Names the variable that tells the clients of a siege where to go: address, kind, how many, and the deadline in milliseconds.
const SIEGE: &str = "RINGMESH_TEST_SIEGE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other half of a siege, which starts it in a process of its own"]
async fn the_clients_of_a_siege() {
    let Ok(order) = std::env::var(SIEGE) else { return };
    let words: Vec<_> = order.split(' ').collect();
    let number = |at: usize| words[at].parse::<u64>().unwrap();
    let (tcp, kind) = (words[0].parse().unwrap(), ALL[number(1) as usize]);
    let deadline = Duration::from_millis(number(3));
    let mut hostile = tokio::task::JoinSet::new();
    for client in 0..number(2) as u32 {
        if client % 50 == 49 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        hostile.spawn(behave(kind, client, tcp, deadline + Duration::from_secs(3)));
    }
    while let Some(ended) = hostile.join_next().await {
        let ended = ended.unwrap();
        assert!(ended <= deadline, "closed after {ended:?}");
    }
}

/// Hostile clients of each kind, and traffic between two members all the while.
async fn siege(of_each: u32, time_to_prove: Duration, kinds: &[Hostility]) {
    let limits = Limits { time_to_prove, ..Limits::DEFAULT };
    let server = TestServer::start(ServerConfig { limits, ..loopback() }, 2).await;
    let mut one = UdpClient::meet(server.udp, 1, RELAY).await;
    let mut two = UdpClient::meet(server.udp, 2, RELAY).await;
    one.bind(2).await;
    two.bind(1).await;
    let payload = one.client.to(2, &sealed(1000));
    let deadline = time_to_prove + Duration::from_millis(1500);
    let before = resident_kib();
    for &kind in kinds {
        let at_start = resident_kib();
        // In another process, so that it is the server's memory that is measured.
        let mut clients = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_clients_of_a_siege", "--ignored", "--nocapture"])
            .env(SIEGE, format!("{} {} {of_each} {}", server.tcp, kind as usize, deadline.as_millis()))
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (mut peak, mut sent, mut passed) = (at_start, 0u32, 0u32);
        let mut pace = tokio::time::interval(Duration::from_millis(2));
        let mut buffer = [0; 2048];
        let ended = loop {
            tokio::select! {
                _ = pace.tick() => {
                    one.send(&payload).await;
                    sent += 1;
                    if sent % 50 == 0 {
                        peak = peak.max(resident_kib());
                    }
                }
                received = two.socket.recv(&mut buffer) => {
                    passed += u32::from(received.unwrap() > 1000);
                }
                ended = clients.wait() => break ended.unwrap(),
            }
        };
        while timeout(Duration::from_millis(200), two.socket.recv(&mut buffer)).await.is_ok() {
            passed += 1;
        }
        assert!(passed * 10 >= sent * 9, "{kind:?}: {passed} of {sent} datagrams passed");
        let mut said = String::new();
        clients.stdout.take().unwrap().read_to_string(&mut said).await.unwrap();
        assert!(ended.success(), "{kind:?}: one was not closed in time: {said}");
        assert!(peak - at_start <= 64 << 10, "{kind:?}: {} KiB more", peak - at_start);
    }
    until("nothing is left of them", || async {
        let report = server.report().await;
        (report.unproven_connections, report.websockets) == (0, 0)
    })
    .await;
    let since = Instant::now();
    while resident_kib() > before + (8 << 10) {
        let more = resident_kib() - before;
        assert!(since.elapsed() < Duration::from_secs(60), "{more} KiB more than before are still held");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_hostile_clients_of_each_kind_cost_little_and_stop_nobody() {
    siege(100, Duration::from_secs(1), &ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes and thousands of connections: run by hand"]
async fn a_thousand_hostile_clients_of_each_kind_cost_little_and_stop_nobody() {
    siege(1000, Limits::DEFAULT.time_to_prove, &ALL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_by_websocket_gets_all_that_is_sent_to_it() {
    let server = TestServer::start(loopback(), 2).await;
    let (mut reader, mut socket) = meet(server.tcp, 2).await;
    let mut sender = UdpClient::meet(server.udp, 1, RELAY).await;
    sender.bind(2).await;
    until("the reader is here", || async {
        server.report().await.networks[0].clients.iter().all(|client| client.here)
    })
    .await;
    let datagram = sender.client.to(2, &sealed(1400));
    let sending = async {
        for number in 0..5000 {
            sender.send(&datagram).await;
            if number % 50 == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    };
    let reading = async {
        while reader.relayed.len() < 5000 {
            let datagrams = timeout(net::WAIT, datagrams(&mut socket)).await.expect("more").expect("not cut");
            datagrams.iter().for_each(|datagram| drop(reader.take(datagram)));
        }
    };
    tokio::join!(sending, reading);
    assert_eq!(server.report().await.networks[0].drops.total(), 0);
}
