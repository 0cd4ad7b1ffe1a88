//! Nodes that joined by token reach each other, over both back ends and both families.

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;

use crate::{
    support::block_on,
    world::{Member, World, transfer},
};

async fn two_nodes_reach_each_other(io: Choice) {
    let world = World::new().await;
    let mut alice = world.node("alice", io).await;
    let mut bob = world.node("bob", io).await;
    alice.until_peers(1).await;
    for name in ["bob", "bob.mesh", &bob.ipv4.to_string(), &bob.ipv6.to_string()] {
        alice.echo(name).await;
    }
    bob.echo("alice").await;
    alice.machine.ping(bob.ipv4);
    alice.machine.ping(bob.ipv6);
    bob.machine.ping(alice.ipv4);
    bob.machine.ping(alice.ipv6);
    // Fills the MTU to the last byte, and beyond it.
    let (v4, v6) = (bob.ipv4, bob.ipv6);
    alice.machine.sh(&format!("ping -n -c 1 -W 5 -M do -s 1380 {v4}; ping -n -c 1 -W 5 -M do -s 1360 {v6}"));
    alice.machine.sh(&format!("ping -n -c 1 -W 5 -M dont -s 4000 {v4}"));

    let status = alice.node.status().await;
    let plane = status.data_plane.as_ref().unwrap();
    assert_eq!(plane.back_end, io.to_string());
    assert!(plane.sent_packets >= 8 && plane.received_packets >= 8, "{plane:?}");
    assert!(plane.system_calls > 0);
    let peer = &status.peers[0];
    assert_eq!((peer.name.as_str(), peer.kind.as_str(), peer.state.as_str()), ("bob", "mesh", "active"));
    assert_eq!(peer.path, "direct");
    let endpoint: std::net::SocketAddr = peer.endpoint.parse().unwrap();
    assert!(
        [bob.machine.host.ipv4().into(), bob.machine.host.ipv6().into()].contains(&endpoint.ip()),
        "{endpoint}"
    );
    assert!(peer.handshake_age_ms.is_some() && peer.rtt_us.is_some());
    assert_eq!(peer.sessions, 1);
    assert!(peer.sent_bytes > 0 && peer.received_bytes > 0);
    stop(alice).await;
    stop(bob).await;
}

async fn stop(member: Member) {
    let Member { machine, place, node, .. } = member;
    node.stop().await.unwrap();
    assert!(!machine.host.links().unwrap().contains(&"mesh0".to_owned()));
    assert!(!machine.sh("ip route; ip -6 route").contains("mesh0"));
    drop(place);
}

#[test]
fn two_nodes_reach_each_other_by_poll() {
    in_sandbox(|| block_on(two_nodes_reach_each_other(Choice::Poll)));
}

#[test]
fn two_nodes_reach_each_other_by_uring() {
    in_sandbox(|| block_on(two_nodes_reach_each_other(Choice::Uring)));
}

async fn a_transfer_arrives_whole(io: Choice) {
    let world = World::new().await;
    let mut alice = world.node("alice", io).await;
    let mut bob = world.node("bob", io).await;
    alice.until_peers(1).await;
    alice.echo("bob").await;
    transfer(&mut alice.machine, &mut bob.machine, bob.ipv4, 20_000_000).await;
    transfer(&mut bob.machine, &mut alice.machine, alice.ipv6, 20_000_000).await;
}

#[test]
fn a_transfer_arrives_whole_by_poll() {
    in_sandbox(|| block_on(a_transfer_arrives_whole(Choice::Poll)));
}

#[test]
fn a_transfer_arrives_whole_by_uring() {
    in_sandbox(|| block_on(a_transfer_arrives_whole(Choice::Uring)));
}

#[test]
fn a_ping_to_nobody_says_so() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Poll).await;
            let mut bob = world.node("bob", Choice::Poll).await;
            alice.until_peers(1).await;
            let refused = alice.node.ping("carol", 1, 500).await.unwrap_err();
            assert!(refused.message().contains("carol"), "{refused}");
            let refused = alice.node.ping("alice", 1, 500).await.unwrap_err();
            assert!(refused.message().contains("this node itself"), "{refused}");

            bob.echo("alice").await;
            bob.machine.host.interfaces()[0].unplug().unwrap();
            let answers = alice.node.ping("bob", 2, 300).await.unwrap();
            assert!(
                answers.iter().all(|answer| answer.error.contains("no reply within 300 ms")),
                "{answers:?}"
            );
        });
    });
}

#[test]
fn operators_see_what_a_node_reports() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Poll).await;
            alice.until_connected().await;
            let mut seen = None;
            for _ in 0..200 {
                seen = world.nodes().await.nodes.into_iter().find(|node| {
                    node.installed_revision > 0 && !node.endpoints.is_empty() && !node.back_end.is_empty()
                });
                if seen.is_some() {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let seen = seen.expect("the node is seen");
            assert!(seen.online);
            assert_eq!(seen.version, env!("CARGO_PKG_VERSION"));
            assert!(seen.os.contains("Linux"));
            assert_eq!(seen.back_end, "poll");
            let installed = alice.node.status().await.network.unwrap().installed_revision;
            assert_eq!(seen.installed_revision, installed);
            let endpoint = format!("{}:51820", alice.machine.host.ipv4());
            assert!(seen.endpoints.contains(&endpoint), "{:?}", seen.endpoints);
        });
    });
}
