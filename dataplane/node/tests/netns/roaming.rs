//! A node moves: its machine gets other addresses in the middle of a transfer, and the session with its peers stays.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;
use ringmesh_proto::local::Peer;

use crate::{
    roads::{Paced, until_path},
    support::block_on,
    world::{Member, World},
};

/// The longest stall of a transfer whose one end moves.
const STALL: Duration = Duration::from_secs(2);
/// Pace of the transfer, Mbit/s.
const PACE: u64 = 20;
/// How long the transfer goes on before and after.
const SPELL: Duration = Duration::from_secs(1);

async fn peer_of(member: &mut Member, name: &str) -> Peer {
    let peers = member.node.status().await.peers;
    peers.into_iter().find(|peer| peer.name == name).expect("it has this peer")
}

/// Gives a machine the addresses `to` in the place of `from`, which are gone first.
fn move_over(member: &Member, from: [IpAddr; 2], to: [IpAddr; 2]) {
    let host = &member.machine.host;
    let link = host.interfaces()[0].name();
    for address in from {
        host.remove_address(link, address).unwrap();
    }
    for (address, length) in to.into_iter().zip([24, 64]) {
        host.add_address(link, address, length).unwrap();
    }
}

#[test]
fn a_node_that_changes_its_address_keeps_its_session() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let mut bob = world.node("bob", Choice::Auto).await;
            alice.until_peers(1).await;
            alice.echo("bob").await;
            until_path(&mut bob, "alice", "direct", Duration::from_secs(10)).await;

            let host = &alice.machine.host;
            let home: [IpAddr; 2] = [host.ipv4().into(), host.ipv6().into()];
            let [a, b, c, _] = host.ipv4().octets();
            let network = host.ipv6().segments();
            let away: [IpAddr; 2] = [
                Ipv4Addr::new(a, b, c, 251).into(),
                Ipv6Addr::new(network[0], network[1], network[2], network[3], 0, 0, 0, 251).into(),
            ];
            // Whoever moves has something to send, and then has something sent to it.
            for (uploads, from, to) in [(true, home, away), (false, away, home)] {
                let before = [peer_of(&mut alice, "bob").await, peer_of(&mut bob, "alice").await];
                let paced = if uploads {
                    Paced::start(&mut alice.machine, &mut bob.machine, bob.ipv4, PACE).await
                } else {
                    Paced::start(&mut bob.machine, &mut alice.machine, alice.ipv4, PACE).await
                };
                tokio::time::sleep(SPELL).await;
                let moved = Instant::now();
                move_over(&alice, from, to);
                tokio::time::sleep(STALL + SPELL).await;
                let ended = Instant::now();
                let course = paced.end().await;
                let stall = course.stall(moved, ended);
                println!("uploads: {uploads}, stall {stall:.2?}");
                assert!(course.whole, "the checksums differ");
                assert!(stall <= STALL, "a stall of {stall:?}");

                until_path(&mut bob, "alice", "direct", Duration::from_secs(10)).await;
                let after = [peer_of(&mut alice, "bob").await, peer_of(&mut bob, "alice").await];
                for (before, after) in before.iter().zip(&after) {
                    assert_eq!((before.sessions, after.sessions), (1, 1), "{after:?}");
                }
                // It did move: Bob hears it from one of its new addresses.
                let seen: SocketAddr = after[1].endpoint.parse().unwrap();
                assert!(to.contains(&seen.ip()), "seen at {seen}, moved to {to:?}");
            }
        });
    });
}
