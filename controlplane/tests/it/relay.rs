//! The relay that a coordinator runs: a member of each network, told to every node, that serves members and nobody else.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use ringmesh_controlplane::{StartError, config::RelayConfig, run, server::Limits};
use ringmesh_proto::{admin, control::Reason};
use ringmesh_tunnel::netmap::MemberKind;
use rustls::{ClientConfig, crypto::aws_lc_rs, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::{
    client::{TestNode, believe, connect_offering, reason},
    harness::{Operator, Running, config},
    tunnel::{DataPlane, relay_of},
};

/// For what must come.
const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not come: many times what an answer on loopback takes.
const SILENCE: Duration = Duration::from_millis(700);

/// A member with its map.
async fn synced(coordinator: &Running, name: &str) -> (TestNode, crate::client::MapStream) {
    let mut node = coordinator.member(name).await;
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    (node, stream)
}

async fn relay_clients(operator: &mut Operator) -> admin::ListRelayClientsResponse {
    let request = admin::ListRelayClientsRequest::default();
    operator.relay.list_relay_clients(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn every_network_has_a_relay_and_its_nodes_are_told_where_it_is() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let request = admin::CreateNetworkRequest { name: "lab".into(), ..Default::default() };
    operator.networks.create_network(request).await.unwrap();
    let mut keys = Vec::new();
    for network in ["mesh", "lab"] {
        let request =
            admin::CreateTokenRequest { network: network.into(), reusable: true, ..Default::default() };
        let token = operator.token(request).await;
        let mut node = TestNode::new("a");
        node.join(&token).await.unwrap();
        let mut stream = node.sync().await.unwrap();
        node.update(&mut stream).await;
        // The verified map has it: signed by the admission key, its record by its own.
        let (member, record) = relay_of(&node);
        assert_eq!((member.name.as_str(), member.kind), ("relay", MemberKind::Mesh));
        assert_eq!(member.ipv4, None);
        let address = coordinator.ready.address;
        assert_eq!(record.endpoints, [address]);
        assert_eq!(record.websockets, [format!("wss://{address}/relay/v1")]);
        keys.push(member.noise_key);

        let request = admin::ListNodesRequest { network: network.into() };
        let listed = operator.nodes.list_nodes(request).await.unwrap().into_inner();
        let [relay] = listed.nodes.iter().filter(|node| node.relay).collect::<Vec<_>>()[..] else {
            panic!("{listed:?}")
        };
        assert_eq!((relay.name.as_str(), relay.ipv4.as_str(), relay.online), ("relay", "", true));
        assert_eq!(relay.id, member.id.to_string());
        assert_eq!(relay.endpoints, [address.to_string()]);
        assert!(!listed.nodes.iter().any(|node| node.name == "a" && node.relay));
    }
    assert_ne!(keys[0], keys[1], "networks share no key");
    coordinator.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_the_relays_key_and_what_it_remembers_of_handshakes() {
    let coordinator = Running::start_with_relay().await;
    let (mut node, _stream) = synced(&coordinator, "a").await;
    let (before, _) = relay_of(&node);
    assert!(DataPlane::over_udp(&node).await.is_served(PATIENCE).await);
    let state = coordinator.state_dir();
    let directory = coordinator.stop().await;
    let floors = std::fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| entry.file_name().to_string_lossy().ends_with(".floors"));
    let floors = floors.expect("what the relay must remember");
    let mode = std::os::unix::fs::PermissionsExt::mode(&floors.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let parsed = ringmesh_tunnel::Floors::parse(&std::fs::read(floors.path()).unwrap()).unwrap();
    let own = node.identity.public_key().noise_key();
    assert_eq!(parsed.received.keys().collect::<Vec<_>>(), [&own]);

    let coordinator = Running::start_in(directory, |config| config.relay = RelayConfig::default()).await;
    node.address = Some(coordinator.ready.address);
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    let (after, record) = relay_of(&node);
    assert_eq!((after.id, after.identity_key, after.ipv6), (before.id, before.identity_key, before.ipv6));
    assert_eq!(record.endpoints, [coordinator.ready.address], "it moved, and nodes are told");
    assert!(DataPlane::over_udp(&node).await.is_served(PATIENCE).await);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_network_from_before_there_were_relays_is_given_one() {
    // Without a relay the database is what it was before there were any.
    let coordinator = Running::start().await;
    let mut taken = TestNode::new("relay");
    taken.join(&coordinator.token().await).await.unwrap();
    assert_eq!(coordinator.operator().await.list().await.len(), 1);
    let directory = coordinator.stop().await;

    let coordinator = Running::start_in(directory, |config| config.relay.enabled = true).await;
    let nodes = coordinator.operator().await.list().await;
    let mut names: Vec<(&str, bool)> = nodes.iter().map(|node| (node.name.as_str(), node.relay)).collect();
    names.sort_unstable();
    assert_eq!(names, [("relay", false), ("relay-2", true)]);
    taken.address = Some(coordinator.ready.address);
    let mut stream = taken.sync().await.unwrap();
    taken.update(&mut stream).await;
    assert!(DataPlane::over_udp(&taken).await.is_served(PATIENCE).await);
    coordinator.stop().await;
}

#[tokio::test]
async fn the_relay_cannot_be_removed_while_it_runs_and_nobody_waits_for_it() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let relay = operator.node("relay").await;
    for name in ["relay", relay.id.as_str()] {
        let request = admin::RemoveNodeRequest { node: name.into(), ..Default::default() };
        let refused = operator.nodes.remove_node(request).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::Conflict);
        assert!(refused.message().contains("enabled = false"), "{refused}");
    }
    assert!(operator.list().await.iter().any(|node| node.relay));
    // It is neither among those that have a change installed nor among those that lag.
    drop(coordinator.member("a").await);
    let request = admin::RemoveNodeRequest { node: "a".into(), wait_ms: 5000, ..Default::default() };
    let removed = operator.nodes.remove_node(request).await.unwrap().into_inner();
    assert!(removed.installed.is_empty() && removed.behind.is_empty(), "{removed:?}");
    assert!(removed.waited_ms < 4000, "{removed:?}");

    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |_| {}).await;
    let mut operator = coordinator.operator().await;
    let left = operator.node("relay").await;
    assert_eq!((left.online, left.endpoints.len()), (false, 0), "nobody runs it");
    operator.remove("relay").await;
    assert!(operator.list().await.is_empty());
    let directory = coordinator.stop().await;
    let coordinator = Running::start_in(directory, |config| config.relay.enabled = true).await;
    let next = coordinator.operator().await.node("relay").await;
    assert_ne!((next.id, next.noise_key), (relay.id, relay.noise_key));
    coordinator.stop().await;
}

#[tokio::test]
async fn whoever_is_removed_is_not_served_any_more() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let (stays, _stream) = synced(&coordinator, "stays").await;
    let (goes, _other) = synced(&coordinator, "goes").await;
    let (mut staying, mut going) = (DataPlane::over_udp(&stays).await, DataPlane::over_udp(&goes).await);
    assert!(staying.is_served(PATIENCE).await);
    assert!(going.is_served(PATIENCE).await && going.is_served(PATIENCE).await);
    operator.remove("goes").await;
    // Its session is over, and it gets no other; the others' go on.
    let (gone, still) = tokio::join!(going.is_served(SILENCE), staying.is_served(PATIENCE));
    assert!(!gone && still);
    assert!(!DataPlane::over_udp(&goes).await.is_served(SILENCE).await);
    let clients = relay_clients(&mut operator).await.clients;
    assert_eq!(clients.iter().map(|client| client.name.as_str()).collect::<Vec<_>>(), ["stays"]);
    coordinator.stop().await;
}

#[tokio::test]
async fn who_joins_is_served_and_a_stranger_is_not() {
    let coordinator = Running::start_with_relay().await;
    let (node, _stream) = synced(&coordinator, "a").await;
    // A stranger who knows everything but a member's key.
    let mut stranger = TestNode::new("x");
    (stranger.network, stranger.map, stranger.secrets) =
        (node.network, node.map.clone(), node.secrets.clone());
    assert!(!DataPlane::over_udp(&stranger).await.is_served(SILENCE).await);
    // A member who does not know the network's secret.
    let mut robbed = TestNode::new("a");
    robbed.identity = ringmesh_tunnel::key::IdentitySecret::from_seed(*node.identity.seed());
    (robbed.network, robbed.map) = (node.network, node.map.clone());
    robbed.secrets = vec![(1, ringmesh_tunnel::key::NetworkSecret::generate())];
    assert!(!DataPlane::over_udp(&robbed).await.is_served(SILENCE).await);
    assert!(DataPlane::over_udp(&node).await.is_served(PATIENCE).await);
    coordinator.stop().await;
}

#[tokio::test]
async fn operators_see_whom_the_relay_serves() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    assert!(relay_clients(&mut operator).await.clients.is_empty());
    let (node, _stream) = synced(&coordinator, "a").await;
    let mut client = DataPlane::over_udp(&node).await;
    assert!(client.is_served(PATIENCE).await);
    let found = relay_clients(&mut operator).await;
    let [listed] = &found.clients[..] else { panic!("{found:?}") };
    assert_eq!((listed.id.clone(), listed.name.as_str()), (node.id.to_string(), "a"));
    assert_eq!((listed.path.as_str(), listed.state.as_str()), ("udp", "here"));
    assert_eq!(listed.endpoint, client.address().to_string());
    assert_eq!((listed.channels, found.relayed_datagrams), (0, 0), "it relayed nothing");
    // What it refuses is counted.
    // Of a channel that was not given out, in the first network.
    client.inject(&[16, 0, 0, 0, 1, 2, 3, 0x40, 4, 0, 0, 0]).await;
    assert!(client.is_served(PATIENCE).await);
    let drops = relay_clients(&mut operator).await.drops;
    assert_eq!(drops.get("unknown_channel"), Some(&1), "{drops:?}");
    let unknown = admin::ListRelayClientsRequest { network: "nope".into() };
    let refused = operator.relay.list_relay_clients(unknown).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NetworkUnknown);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_relay_token_makes_relays() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let request = admin::CreateTokenRequest { relay: true, reusable: true, ..Default::default() };
    let created = operator.tokens.create_token(request).await.unwrap().into_inner();
    assert!(created.token.unwrap().relay);
    let mut relay = TestNode::new("edge");
    relay.relay = true;
    relay.join(&created.secret.parse().unwrap()).await.unwrap();
    assert!(relay.member.as_ref().unwrap().relay, "signed so");
    let mut node = coordinator.member("a").await;
    assert!(!node.member.as_ref().unwrap().relay);
    let mut stream = node.sync().await.unwrap();
    node.update(&mut stream).await;
    let map = node.map.as_ref().unwrap();
    let mut relays: Vec<_> = map.members().filter(|member| member.relay).map(|m| m.name.as_str()).collect();
    relays.sort_unstable();
    assert_eq!(relays, ["edge", "relay"]);
    assert!(operator.node("edge").await.relay);
    // It is a node like any other, which can be removed.
    operator.remove("edge").await;
    let tokens = operator.tokens.list_tokens(admin::ListTokensRequest::default()).await.unwrap();
    let relay_tokens = tokens.into_inner().tokens.iter().filter(|token| token.relay).count();
    assert_eq!(relay_tokens, 1);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_token_for_something_else_is_refused_and_not_used() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    for (relay, cure) in [(true, "meshctl relay run"), (false, "meshctl token create --relay")] {
        // Good for one use, which must be left afterwards.
        let request = admin::CreateTokenRequest { relay, ..Default::default() };
        let token = operator.token(request).await;
        let mut node = TestNode::new(if relay { "edge" } else { "plain" });
        node.relay = !relay;
        let refused = node.join(&token).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::TokenRole);
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains(cure), "{refused}");
        assert!(operator.list().await.iter().all(|listed| listed.name != node.name), "it is no member");
        // The same key and token, for what they were made for.
        node.relay = relay;
        node.join(&token).await.unwrap();
        assert_eq!(node.member.as_ref().unwrap().relay, relay);
        // An answer that was lost is given again, as it was.
        node.join(&token).await.unwrap();
    }
    assert_eq!(operator.list().await.len(), 2);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_taken_udp_port_is_named_with_the_cure() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for listen in [None, Some(address)] {
        let mut config = config(directory.path());
        config.relay.enabled = true;
        match listen {
            // The number of TCP.
            None => config.listen = address,
            listen => config.relay.listen = listen,
        }
        let error = run(config, std::future::pending(), |_| {}).await.unwrap_err();
        assert!(matches!(error, StartError::Relay(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(&address.to_string()) && text.contains("UDP"), "{text}");
        assert!(text.contains("enabled = false") && text.contains("listen = "), "{text}");
    }
    // Without a relay the same port will do.
    let coordinator = Running::start_with(|config| config.listen = address).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn the_relay_can_be_told_to_be_elsewhere() {
    let free = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let coordinator = Running::start_with(|config| {
        config.relay = RelayConfig {
            listen: Some(free),
            websockets: vec!["wss://mesh.example.com/base/relay/v1".into()],
            ..RelayConfig::default()
        };
    })
    .await;
    assert_ne!(coordinator.ready.address.port(), free.port());
    let (node, _stream) = synced(&coordinator, "a").await;
    let (_, record) = relay_of(&node);
    assert_eq!(record.endpoints, [free]);
    assert_eq!(record.websockets, ["wss://mesh.example.com/base/relay/v1"]);
    assert!(DataPlane::over_udp(&node).await.is_served(PATIENCE).await);
    coordinator.stop().await;
}

/// A TLS connection that offers these protocols.
async fn tls(address: SocketAddr, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(believe())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(address.ip().into()), stream).await
}

/// Asks for a WebSocket, and returns the status line; empty if the connection was closed instead.
async fn upgrade(stream: &mut TlsStream<TcpStream>, path: &str, headers: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: mesh\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: ringmesh.relay.v1\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        while !answer.ends_with(b"\r\n\r\n") {
            // A refusal without a word is none of the answers that tests expect.
            let Ok(byte) = stream.read_u8().await else { return };
            answer.push(byte);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    String::from_utf8(answer).unwrap().lines().next().unwrap_or_default().into()
}

#[tokio::test]
async fn one_port_serves_grpc_and_websockets() {
    let coordinator = Running::start_with(|config| {
        config.relay = RelayConfig { base_path: "/base".into(), ..RelayConfig::default() };
    })
    .await;
    let address = coordinator.ready.address;
    let token = coordinator.token().await;
    for (offered, agreed) in
        [(&[b"h2".as_slice()][..], "h2"), (&[b"http/1.1", b"h2"], "h2 again"), (&[], "nothing")]
    {
        let mut connection = connect_offering(address, offered).await.unwrap();
        let mut node = TestNode::new("");
        node.join_on(&mut connection, &token, crate::client::Lie::None).await.expect(agreed);
    }
    for offered in [&[b"http/1.1".as_slice()][..], &[]] {
        for (path, headers, expected) in [
            ("/base/relay/v1", "", "HTTP/1.1 101"),
            // A proxy may have taken off what it knows.
            ("/relay/v1", "", "HTTP/1.1 101"),
            ("/base/relay/v2", "", "HTTP/1.1 404"),
            ("/base/relay/v1", "Origin: https://example.com\r\n", "HTTP/1.1 403"),
        ] {
            let mut stream = tls(address, offered).await.unwrap();
            let status = upgrade(&mut stream, path, headers).await;
            assert!(status.starts_with(expected), "{path} {headers:?}: {status}");
        }
        // Who looks with a browser is told in words.
        for path in ["/", "/ringmesh.admin.v1.NodeService/ListNodes"] {
            let mut stream = tls(address, offered).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: mesh\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            drop(tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("closed"));
            let (head, words) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 404 ") && words.contains("nothing here"), "{path}: {answer}");
        }
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn who_says_nothing_is_closed_whatever_it_came_for() {
    let coordinator = Running::start_with_relay().await;
    let end = async |protocols: &[&[u8]]| {
        let mut stream = tls(coordinator.ready.address, protocols).await.unwrap();
        let mut answer = Vec::new();
        // By the handshake's deadline, and by the relay's for its upgrade.
        let patience = PATIENCE + Duration::from_secs(2);
        drop(tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await.expect("closed"));
        answer
    };
    let (unknown, websocket) = tokio::join!(end(&[]), end(&[b"http/1.1"]));
    assert!(unknown.is_empty() && websocket.is_empty());
    coordinator.stop().await;
}

#[tokio::test]
async fn without_a_relay_there_are_no_websockets_and_no_client_to_list() {
    let coordinator = Running::start().await;
    let address = coordinator.ready.address;
    // A GET is no call of a method, whoever offers which protocol.
    for protocols in [&[][..], &[b"http/1.1".as_slice()]] {
        let mut stream = tls(address, protocols).await.unwrap();
        let upgrade = "GET /relay/v1 HTTP/1.1\r\nHost: mesh\r\nConnection: close, upgrade\r\nUpgrade: websocket\r\n\r\n";
        stream.write_all(upgrade.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed"));
        assert!(answer.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&answer));
    }
    let mut operator = coordinator.operator().await;
    let refused =
        operator.relay.list_relay_clients(admin::ListRelayClientsRequest::default()).await.unwrap_err();
    assert!(refused.message().contains("enabled = true"), "{refused}");
    assert!(operator.list().await.is_empty());
    // Nobody listens to UDP.
    drop(UdpSocket::bind(address).await.unwrap());
    coordinator.stop().await;
}

#[tokio::test]
async fn members_meet_at_the_relay_by_udp_and_websocket_until_one_is_removed() {
    let coordinator = Running::start_with_relay().await;
    let mut operator = coordinator.operator().await;
    let (_, _first) = synced(&coordinator, "b").await;
    let (mut a, mut stream) = synced(&coordinator, "a").await;
    let mut b = coordinator.member("c").await;
    let mut other = b.sync().await.unwrap();
    b.update(&mut other).await;
    a.update(&mut stream).await;

    let mut upgraded = tls(coordinator.ready.address, &[b"http/1.1"]).await.unwrap();
    assert!(upgrade(&mut upgraded, "/relay/v1", "").await.starts_with("HTTP/1.1 101"));
    let mut near = DataPlane::over_udp(&a).await;
    let mut far = DataPlane::over_websocket(&b, upgraded).await;
    assert!(near.is_served(PATIENCE).await && far.is_served(PATIENCE).await);
    let met = tokio::select! {
        met = near.answers(b.id, PATIENCE) => met,
        () = far.run() => unreachable!("it runs for ever"),
    };
    assert!(met, "through the relay, as neither knows where the other is");
    let report = relay_clients(&mut operator).await;
    let mut paths: Vec<(&str, &str)> =
        report.clients.iter().map(|client| (client.name.as_str(), client.path.as_str())).collect();
    paths.sort_unstable();
    assert_eq!(paths, [("a", "udp"), ("c", "websocket")]);
    assert!(report.relayed_datagrams > 0 && report.relayed_bytes > 0, "{report:?}");
    assert!(report.clients.iter().all(|client| client.from_bytes > 0 && client.to_bytes > 0), "{report:?}");

    operator.remove("c").await;
    let (still, gone) = tokio::join!(
        async {
            let lost = !near.answers(b.id, SILENCE).await;
            lost && near.is_served(PATIENCE).await
        },
        async { !far.is_served(SILENCE).await },
    );
    assert!(still && gone, "its channels and its session are over, the other's session is not");
    let clients = relay_clients(&mut operator).await.clients;
    assert_eq!(clients.iter().map(|client| client.name.as_str()).collect::<Vec<_>>(), ["a"]);
    coordinator.stop().await;
}

/// How many of `count` upgrades at the same time are let in, so that their pings are answered.
async fn admitted(address: SocketAddr, forwarded: impl Fn(usize) -> String, count: usize) -> usize {
    let mut streams = Vec::new();
    for i in 0..count {
        let mut stream = tls(address, &[b"http/1.1"]).await.unwrap();
        upgrade(&mut stream, "/relay/v1", &forwarded(i)).await;
        streams.push(WebSocketStream::from_raw_socket(stream, Role::Client, None).await);
    }
    let mut admitted = 0;
    for stream in &mut streams {
        if stream.send(Message::Ping("?".into())).await.is_err() {
            continue;
        }
        let answer = tokio::time::timeout(PATIENCE, stream.next()).await.expect("an answer, or the end");
        admitted += usize::from(matches!(answer, Some(Ok(Message::Pong(_)))));
    }
    admitted
}

#[tokio::test]
async fn where_a_connection_comes_from_is_believed_of_a_configured_proxy_alone() {
    let bound = ringmesh_relay::Limits::DEFAULT.unproven_per_source;
    let many = bound + 4;
    let elsewhere = |i: usize| format!("X-Forwarded-For: 198.51.100.{i}\r\n");
    let coordinator = Running::start_with_relay().await;
    // Strangers of one source are bounded, whatever they say of themselves; who proved to be a member is not counted.
    let (node, _stream) = synced(&coordinator, "a").await;
    let mut upgraded = tls(coordinator.ready.address, &[b"http/1.1"]).await.unwrap();
    upgrade(&mut upgraded, "/relay/v1", "").await;
    let mut member = DataPlane::over_websocket(&node, upgraded).await;
    assert!(member.is_served(PATIENCE).await);
    assert_eq!(admitted(coordinator.ready.address, elsewhere, many).await, bound);
    assert!(member.is_served(PATIENCE).await, "strangers do not push a member out");
    coordinator.stop().await;

    let coordinator = Running::start_with(|config| {
        config.relay.enabled = true;
        config.relay.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    // More than the coordinator lets one address have of other connections: a proxy has many behind it.
    let many = Limits::default().unproven_per_source + 4;
    assert_eq!(admitted(coordinator.ready.address, elsewhere, many).await, many);
    let same = |_| "X-Forwarded-For: 203.0.113.9\r\n".to_owned();
    assert_eq!(admitted(coordinator.ready.address, same, many).await, bound);
    coordinator.stop().await;
}
