//! The map stream: supervised, resumed, told what changes here.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use ringmesh_lab::in_sandbox;
use ringmesh_proto::control::{
    self as wire, Envelope as WireEnvelope, sync_request::Message as In, sync_response::Message as Out,
};
use ringmesh_tunnel::{
    key::IdentitySecret,
    netmap::{Envelope, NodeRecord, Record as _},
};
use tonic::Status;

use crate::support::{
    authority::{in_ms, to_wire},
    block_on,
    coordinator::TestCoordinator,
    daemon::{Node, Place},
};

async fn joined() -> (TestCoordinator, Place, Node) {
    let coordinator = TestCoordinator::start().await;
    let place = Place::new();
    let mut node = place.start().await.unwrap();
    node.join(&coordinator.token(), "alpha").await.unwrap();
    (coordinator, place, node)
}

#[test]
fn a_silent_coordinator_is_let_go_though_its_connection_lives() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            *coordinator.shared.heartbeat_seconds.lock().unwrap() = 1;
            coordinator.shared.mischief.lock().unwrap().silent = true;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            coordinator.forget_heard();
            let began = Instant::now();
            coordinator.hear("a new hello", |message| matches!(message, In::Hello(_)).then_some(())).await;
            let waited = began.elapsed();
            assert!(waited > Duration::from_secs(2) && waited < Duration::from_secs(6), "{waited:?}");
        });
    });
}

#[test]
fn the_node_sends_heartbeats_at_the_pace_it_was_told() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            *coordinator.shared.heartbeat_seconds.lock().unwrap() = 1;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            tokio::time::sleep(Duration::from_secs(5)).await;
            let heard = coordinator.heard();
            let beats = heard.iter().filter(|message| matches!(message, In::Heartbeat(_))).count();
            assert!((4..=7).contains(&beats), "{beats} in 5 s");
            assert_eq!(coordinator.hellos().len(), 1, "a coordinator that answers is kept");
        });
    });
}

#[test]
fn a_broken_stream_is_opened_again_soon() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, mut node) = joined().await;
            coordinator.forget_heard();
            let began = Instant::now();
            coordinator.fail_streams(Status::unavailable("restarting")).await;
            coordinator.hear("a new hello", |message| matches!(message, In::Hello(_)).then_some(())).await;
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            node.until("it is connected", |status| status.coordinator.as_ref().unwrap().state == "connected")
                .await;
        });
    });
}

#[test]
fn a_head_renews_the_map_and_a_wrong_one_does_not() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, mut node) = joined().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let aged = node.status().await.network.unwrap().map_age_ms.unwrap();
            assert!(aged >= 200, "{aged}");
            let head = |digest: Option<[u8; 32]>| {
                let map = coordinator.shared.map.lock().unwrap();
                let mut head = map.head(&coordinator.shared.authority);
                head.digest = digest.unwrap_or(head.digest);
                to_wire(&Envelope::sign(&head, &coordinator.shared.authority.head).unwrap())
            };
            coordinator.send(Out::Head(head(None))).await;
            node.until("the head is taken", |status| {
                status.network.as_ref().unwrap().map_age_ms.is_some_and(|age| age < aged)
            })
            .await;
            coordinator.shared.mischief.lock().unwrap().mapless = true;
            coordinator.send(Out::Head(head(Some([7; 32])))).await;
            let status = node
                .until("the wrong head is refused", |status| {
                    status.coordinator.as_ref().unwrap().state == "refused"
                })
                .await;
            assert!(status.coordinator.unwrap().last_error.contains("does not come to the map"));
        });
    });
}

#[test]
fn a_new_address_of_the_machine_is_told_and_the_meshs_own_never() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, _node) = joined().await;
            let ip = |line: &str| {
                assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "{line}");
            };
            ip("link add lan0 type veth peer name lan1");
            ip("link set lan0 up");
            ip("address add 192.0.2.77/24 dev lan0");
            let record = coordinator
                .hear("a record with the new address", |message| {
                    let In::NodeRecord(WireEnvelope { payload, .. }) = message else { return None };
                    let record = NodeRecord::parse(payload).unwrap();
                    record.endpoints.contains(&"192.0.2.77:51820".parse().unwrap()).then_some(record)
                })
                .await;
            assert!(record.endpoints.iter().all(|endpoint| !endpoint.ip().is_loopback()));
            assert!(!record.endpoints.iter().any(|endpoint| endpoint.to_string().starts_with("100.64.")));
            ip("address del 192.0.2.77/24 dev lan0");
            coordinator
                .hear("a record without it", |message| {
                    let In::NodeRecord(WireEnvelope { payload, .. }) = message else { return None };
                    let next = NodeRecord::parse(payload).unwrap();
                    (next.serial > record.serial && next.endpoints.is_empty()).then_some(())
                })
                .await;
        });
    });
}

#[test]
fn a_map_is_acknowledged_after_it_is_installed() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, mut node) = joined().await;
            coordinator.shared.map.lock().unwrap().position.durable += 5;
            let next = coordinator.shared.map.lock().unwrap().position.durable;
            coordinator.send_map().await;
            coordinator.hear_acknowledgement(next).await;
            assert_eq!(node.status().await.network.unwrap().installed_revision, next);
        });
    });
}

#[test]
fn a_peer_without_a_preshared_key_is_never_reached() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            coordinator.shared.map.lock().unwrap().epochs.clear();
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            let peer =
                coordinator.shared.authority.member(7, "peer", IdentitySecret::generate().public_key());
            let envelope = coordinator.shared.authority.sign_member(&peer);
            coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
            coordinator.send_map().await;
            let status = node.until("the peer is in the map", |status| status.peers.len() == 1).await;
            assert_eq!((status.state.as_str(), status.peers[0].state.as_str()), ("no-key", "no-key"));
            let answers = node.ping("peer", 1, 300).await.unwrap();
            assert!(answers[0].error.contains("no key for this peer yet"), "{answers:?}");

            // As soon as there is one, it is.
            let own = coordinator.shared.enrolled.lock().unwrap().keys().next().unwrap().noise_key();
            let update = {
                let mut map = coordinator.shared.map.lock().unwrap();
                map.epochs.push(1);
                let secrets = map.secrets(&coordinator.shared.authority, &own);
                wire::MapUpdate { secrets, ..map.full(&coordinator.shared.authority) }
            };
            coordinator.send(Out::Update(update)).await;
            let status =
                node.until("the epoch is known", |status| status.network.as_ref().unwrap().epoch == 1).await;
            assert_eq!(status.state, "running");
            let answers = node.ping("peer", 1, 300).await.unwrap();
            assert!(answers[0].error.contains("no address"), "{answers:?}");
        });
    });
}

#[test]
fn a_node_whose_own_membership_has_ended_says_so() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, mut node) = joined().await;
            let authority = &coordinator.shared.authority;
            let peer = authority.member(7, "peer", IdentitySecret::generate().public_key());
            let own = *coordinator.shared.enrolled.lock().unwrap().keys().next().unwrap();
            let mut me = authority.member(1, "alpha", own);
            (me.serial, me.not_after) = (2, in_ms(1_500));
            {
                let mut map = coordinator.shared.map.lock().unwrap();
                map.put(peer.id, authority.sign_member(&peer)).put(me.id, authority.sign_member(&me));
            }
            coordinator.send_map().await;
            node.until("the peer is known", |status| status.peers.len() == 1).await;
            let status = node.until("it is over", |status| status.state == "expired").await;
            assert!(status.peers.is_empty());
            let answers = node.ping("peer", 1, 100).await.unwrap();
            assert!(answers[0].error.contains("own membership has ended"), "{answers:?}");
        });
    });
}

#[test]
fn what_a_peer_must_not_make_us_send_to_is_no_candidate() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, mut node) = joined().await;
            let authority = &coordinator.shared.authority;
            let key = IdentitySecret::generate();
            let peer = authority.member(7, "peer", key.public_key());
            let victim = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let bad = [victim.local_addr().unwrap().to_string(), "224.0.0.1:9".into(), "100.64.0.7:9".into()];
            let bad: Vec<_> = bad.iter().map(|address| address.parse().unwrap()).collect();
            {
                let mut map = coordinator.shared.map.lock().unwrap();
                map.put(peer.id, authority.sign_member(&peer));
                map.put_record(&key, authority.network, peer.id, bad);
            }
            coordinator.send_map().await;
            node.until("the peer is known", |status| status.peers.len() == 1).await;
            let answers = node.ping("peer", 1, 300).await.unwrap();
            assert!(answers[0].error.contains("no address"), "{answers:?}");
            let mut datagram = [0; 256];
            let sent = victim.try_recv(&mut datagram);
            assert_eq!(sent.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nothing is sent there");
        });
    });
}

#[test]
fn a_peer_whose_record_ends_is_dropped_without_anybody_saying_so() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, _place, mut node) = joined().await;
            let authority = &coordinator.shared.authority;
            let mut peer = authority.member(7, "peer", IdentitySecret::generate().public_key());
            peer.not_after = in_ms(2_500);
            let envelope = authority.sign_member(&peer);
            coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
            coordinator.send_map().await;
            node.until("the peer is known", |status| status.peers.len() == 1).await;
            let answers = node.ping("peer", 1, 100).await.unwrap();
            assert!(answers[0].error.contains("no address"), "{answers:?}");
            let revision = node.status().await.network.unwrap().revision;

            let began = Instant::now();
            loop {
                let answers = node.ping("peer", 1, 100).await.unwrap();
                if answers[0].error.contains("no such peer") {
                    break;
                }
                assert!(began.elapsed() < Duration::from_secs(10), "{answers:?}");
            }
            let status = node.status().await;
            assert_eq!((status.peers.len(), status.network.unwrap().revision), (0, revision));
        });
    });
}
