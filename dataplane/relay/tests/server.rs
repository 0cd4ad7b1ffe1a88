//! The server over real sockets: nodes of ours at both ends of a relayed path.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

#[path = "support/net.rs"]
mod net;
mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use net::{Node, Roads, TestServer, loopback};
use support::{RELAY, node};

fn by_udp(server: &TestServer) -> Roads {
    Roads { udp: Some(server.udp), websocket: None }
}

fn by_websocket(server: &TestServer) -> Roads {
    Roads { udp: None, websocket: Some(server.tcp) }
}

/// Packets go there and back until one of each has arrived that was sent after this began.
async fn talk(one: &mut Node, other: &mut Node, numbers: (u8, u8), label: &str) {
    arrive(one, other, numbers.1, label).await;
    arrive(other, one, numbers.0, label).await;
}

async fn arrive(from: &mut Node, to: &mut Node, target: u8, label: &str) {
    let payload = format!("{label} to {target}");
    let until = tokio::time::Instant::now() + net::WAIT;
    loop {
        assert!(tokio::time::Instant::now() < until, "{payload}: nothing arrived");
        // What is sent while paths change may be lost, as on any network.
        from.send(target, payload.as_bytes()).await;
        let got = tokio::time::timeout(Duration::from_millis(100), to.receive()).await;
        if got.is_ok_and(|got| got == payload.as_bytes()) {
            break;
        }
    }
    while to.received.try_recv().is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_exchange_packets_through_the_relay_by_udp() {
    let server = TestServer::start(loopback(), 2).await;
    let mut one = Node::start(1, 2, RELAY, by_udp(&server)).await;
    let mut two = Node::start(2, 1, RELAY, by_udp(&server)).await;
    talk(&mut one, &mut two, (1, 2), "first").await;
    for number in 0..50u8 {
        one.send(2, &[number; 600]).await;
        two.receive_this(&[number; 600]).await;
    }
    let report = server.report().await;
    let clients = &report.networks[0].clients;
    assert!(clients.iter().all(|client| client.here));
    assert_eq!(report.networks[0].pairs, 1);
    assert!(clients.iter().all(|client| client.from.datagrams > 0 && client.to.datagrams > 0));
    assert!(report.networks[0].passed_on.datagrams >= 52, "{report:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_by_udp_and_one_by_websocket() {
    let server = TestServer::start(loopback(), 2).await;
    let mut one = Node::start(1, 2, RELAY, by_udp(&server)).await;
    let mut two = Node::start(2, 1, RELAY, by_websocket(&server)).await;
    talk(&mut one, &mut two, (1, 2), "mixed").await;
    let report = server.report().await;
    let hops: Vec<_> = report.networks[0].clients.iter().map(|client| client.hop.unwrap()).collect();
    assert!(matches!(hops[..], [ringmesh_tunnel::Hop::Udp(_), ringmesh_tunnel::Hop::Link(_)]), "{hops:?}");
    assert_eq!((report.websockets, report.unproven_connections), (1, 0), "it has proved itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_by_websocket() {
    let server = TestServer::start(loopback(), 2).await;
    let mut one = Node::start(1, 2, RELAY, by_websocket(&server)).await;
    let mut two = Node::start(2, 1, RELAY, by_websocket(&server)).await;
    talk(&mut one, &mut two, (1, 2), "streams").await;
    for number in 0..200u8 {
        one.send(2, &[number; 1300]).await;
        two.receive_this(&[number; 1300]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_moves_from_udp_to_websocket_and_back() {
    let server = TestServer::start(loopback(), 2).await;
    let roads = Roads { udp: Some(server.udp), websocket: Some(server.tcp) };
    let mut one = Node::start(1, 2, RELAY, roads).await;
    let mut two = Node::start(2, 1, RELAY, by_udp(&server)).await;
    talk(&mut one, &mut two, (1, 2), "by UDP").await;
    one.udp_blocked.store(true, Ordering::Relaxed);
    talk(&mut one, &mut two, (1, 2), "by WebSocket").await;
    let report = server.report().await;
    let client = report.networks[0].clients.iter().find(|client| client.id == node(1)).unwrap();
    assert!(matches!(client.hop, Some(ringmesh_tunnel::Hop::Link(_))), "{:?}", client.hop);
    one.udp_blocked.store(false, Ordering::Relaxed);
    talk(&mut one, &mut two, (1, 2), "whichever").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_networks_share_a_port_and_do_not_meet() {
    let server = TestServer::bare(loopback()).await;
    server.apply(1, RELAY, 1..=2).await;
    server.apply(2, RELAY + 1, 3..=4).await;
    server.apply(3, RELAY + 2, 5..=5).await;
    let mut nodes = Vec::new();
    for (number, peer, relay) in [(1, 2, RELAY), (2, 1, RELAY), (3, 4, RELAY + 1), (4, 3, RELAY + 1)] {
        nodes.push(Node::start(number, peer, relay, by_udp(&server)).await);
    }
    // A member of the first, and one of the third, who want to reach one of the second.
    let stranger = Node::start(5, 3, RELAY + 2, by_udp(&server)).await;
    let [one, two, three, four] = &mut nodes[..] else { panic!() };
    talk(one, two, (1, 2), "first network").await;
    talk(three, four, (3, 4), "second network").await;
    stranger.send(3, b"let me in").await;
    net::until("the third network's member is here", || async {
        server.report().await.networks[2].clients.iter().any(|client| client.here)
    })
    .await;
    let report = server.report().await;
    assert_eq!(report.networks.iter().map(|network| network.pairs).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(report.networks[2].passed_on.datagrams, 0);

    server.handle.remove(net::network(1)).await.unwrap();
    let before = server.report().await;
    assert_eq!(before.networks.len(), 2);
    one.send(2, b"anybody there?").await;
    talk(three, four, (3, 4), "still there").await;
    // What was said before may come twice, and late.
    while let Ok(late) = two.received.try_recv() {
        assert_eq!(late, b"first network to 2");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_back_after_the_relay_was_started_anew() {
    let server = TestServer::start(loopback(), 2).await;
    let mut one = Node::start(1, 2, RELAY, by_udp(&server)).await;
    let mut two = Node::start(2, 1, RELAY, by_udp(&server)).await;
    talk(&mut one, &mut two, (1, 2), "before").await;
    let port = server.handle.port();
    let floors = server.handle.floors(net::network(1)).await.unwrap().unwrap();
    assert_eq!(floors.received.len(), 2);
    server.stop().await;

    let server = TestServer::bare(ringmesh_relay::ServerConfig { port, ..loopback() }).await;
    server.handle.restore(net::network(1), floors.clone()).await.unwrap();
    server.apply(1, RELAY, 1..=2).await;
    talk(&mut one, &mut two, (1, 2), "after").await;
    let later = server.handle.floors(net::network(1)).await.unwrap().unwrap();
    assert!(floors.received.iter().all(|(key, before)| later.received[key] > *before));
}
