//! What a node's owner denies, whatever the policy says.

use std::{sync::Arc, time::Duration};

use ringmesh_lab::in_sandbox;
use ringmesh_proto::local::AddDenialRequest;
use tokio::{net::TcpStream, time::timeout};

use crate::{
    policy::rule,
    probes::{
        Echo, SILENCE, ask_tcp, ask_udp, is_silence, members, round_trip, serve_tcp, until_tcp, until_udp,
    },
    support::block_on,
    world::{Member, World},
};

fn denial(direction: &str, peer: &str, protocol: &str, ports: &str) -> AddDenialRequest {
    AddDenialRequest {
        direction: direction.into(),
        peer: peer.into(),
        protocol: protocol.into(),
        ports: ports.into(),
        ttl_seconds: 0,
    }
}

/// Stops the daemon and starts it again.
async fn restart(mut member: Member) -> Member {
    member.node.stop().await.unwrap();
    let place = Arc::clone(&member.place);
    member.node = member.machine.run(async move { place.start().await.unwrap() }).await;
    member
}

#[test]
fn a_denial_cuts_a_live_flow_survives_a_restart_and_can_be_taken_back() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            serve_tcp(&mut bob.machine, &[22, 80]).await;
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
            let to = bob.ipv4;
            let mut stream =
                alice.machine.run(async move { TcpStream::connect((to, 22)).await.unwrap() }).await;
            round_trip(&mut stream, b"before").await.unwrap();

            let added = bob.node.deny(denial("in", "alice", "tcp", "22")).await.unwrap();
            assert_eq!(
                (
                    added.id,
                    &*added.direction,
                    &*added.peer,
                    &*added.protocol,
                    &*added.ports,
                    added.expires_ms
                ),
                (1, "in", "alice", "tcp", "22", 0)
            );
            assert!(
                timeout(SILENCE, round_trip(&mut stream, b"during")).await.is_err(),
                "a live flow is cut"
            );
            drop(stream);
            for to in [bob.ipv4, bob.ipv6] {
                assert!(is_silence(ask_tcp(&mut alice.machine, to, 22).await), "{to}");
                ask_tcp(&mut alice.machine, to, 80).await.unwrap();
            }
            let told = bob.node.filter().await;
            let [shown] = told.denials.as_slice() else { panic!("{:?}", told.denials) };
            assert!(shown.packets >= 3, "{shown:?}");
            assert!(told.drops.values().sum::<u64>() >= shown.packets, "{told:?}");

            let mut bob = restart(bob).await;
            // Its peer would wait for the old session's timeout before it began another.
            bob.machine.ping(alice.ipv4);
            until_tcp(&mut alice.machine, bob.ipv4, 80).await;
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 22).await), "it survives a restart");

            bob.node.remove_denial(added.id).await.unwrap();
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
            let gone = bob.node.remove_denial(added.id).await.unwrap_err();
            assert!(gone.message().contains("no denial 1"), "{gone}");
            let mut bob = restart(bob).await;
            assert!(bob.node.filter().await.denials.is_empty());
            let next = bob.node.deny(denial("", "", "", "")).await.unwrap();
            assert_eq!(next.id, 2, "a number is never used again");
        });
    });
}

#[test]
fn a_denial_ends_when_its_time_is_over() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            let _echo = Echo::start(&mut bob.machine, &[4000]).await;
            until_udp(&mut alice.machine, bob.ipv4, 4000, 8).await;
            let request = AddDenialRequest { ttl_seconds: 2, ..denial("out", "bob", "udp", "4000-4001") };
            let began = std::time::Instant::now();
            let added = alice.node.deny(request).await.unwrap();
            assert!(added.expires_ms > 0);
            assert!(is_silence(ask_udp(&mut alice.machine, bob.ipv4, 4000, 8).await));
            until_udp(&mut alice.machine, bob.ipv4, 4000, 8).await;
            let took = began.elapsed();
            assert!(took >= Duration::from_secs(2) - SILENCE && took < Duration::from_secs(4), "{took:?}");
            assert!(alice.node.filter().await.denials.is_empty());

            // One that ends while the daemon is stopped is not there at the next start; one that does not, is.
            alice.node.deny(AddDenialRequest { ttl_seconds: 1, ..denial("", "", "udp", "") }).await.unwrap();
            alice
                .node
                .deny(AddDenialRequest { ttl_seconds: 3600, ..denial("", "", "icmp", "") })
                .await
                .unwrap();
            alice.node.stop().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let place = Arc::clone(&alice.place);
            alice.node = alice.machine.run(async move { place.start().await.unwrap() }).await;
            let left = alice.node.filter().await.denials;
            assert_eq!(left.iter().map(|it| (it.id, &*it.protocol)).collect::<Vec<_>>(), [(3, "icmp")]);
            assert!(!alice.machine.reaches(bob.ipv4));
            until_udp(&mut alice.machine, bob.ipv4, 4000, 8).await;
        });
    });
}

#[test]
fn a_denial_never_allows_and_is_only_what_was_asked() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let [mut alice, mut bob] = members(&world, ["alice", "bob"]).await;
            serve_tcp(&mut bob.machine, &[22, 23]).await;
            world.apply(&rule("alice", "bob", "tcp", "22")).await;
            until_tcp(&mut alice.machine, bob.ipv4, 22).await;
            // Inwards at the sender, outwards at the receiver, another port, another protocol: nothing of the flow.
            alice.node.deny(denial("in", "", "", "")).await.unwrap();
            bob.node.deny(denial("out", "alice", "", "")).await.unwrap();
            bob.node.deny(denial("both", "", "tcp", "80-90, 24")).await.unwrap();
            bob.node.deny(denial("both", "", "udp", "")).await.unwrap();
            ask_tcp(&mut alice.machine, bob.ipv4, 22).await.unwrap();
            assert!(is_silence(ask_tcp(&mut alice.machine, bob.ipv4, 23).await), "nor does one make a rule");
            for request in [
                denial("inbound", "", "", ""),
                denial("", "nobody", "", ""),
                denial("", "bob", "", ""),
                denial("", "", "tpc", ""),
                denial("", "", "any", "22"),
                denial("", "", "tcp", "22-"),
                AddDenialRequest { ttl_seconds: u64::MAX, ..denial("", "", "", "") },
            ] {
                bob.node.deny(request).await.unwrap_err();
            }
            assert_eq!(bob.node.filter().await.denials.len(), 3);
            ask_tcp(&mut alice.machine, bob.ipv4, 22).await.unwrap();
        });
    });
}
