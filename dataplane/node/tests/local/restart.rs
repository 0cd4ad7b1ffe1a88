//! A daemon that starts again.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ringmesh_lab::in_sandbox;
use ringmesh_proto::{control::Reason, local::StatusResponse};
use ringmesh_tunnel::{
    key::{IdentitySecret, NodeId},
    netmap::NetworkMap,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{has_interface, reason};
use crate::support::{authority::now, block_on, coordinator::TestCoordinator, daemon::Place};

#[test]
fn a_restarted_daemon_runs_from_its_map_within_a_second_though_the_coordinator_is_dead() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            let peer =
                coordinator.shared.authority.member(7, "peer", IdentitySecret::generate().public_key());
            let envelope = coordinator.shared.authority.sign_member(&peer);
            coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
            coordinator.send_map().await;
            let before = node.until("the peer is known", |status| status.peers.len() == 1).await;
            node.stop().await.unwrap();
            assert!(!has_interface("mesh0"), "a clean stop removes the interface");
            drop(coordinator);

            let began = Instant::now();
            let mut node = place.start().await.unwrap();
            let status = node.status().await;
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            assert_eq!(status.state, "running");
            assert_eq!(status.peers.len(), 1);
            assert_eq!(status.network.as_ref().unwrap().revision, before.network.as_ref().unwrap().revision);
            assert_eq!(status.network.unwrap().map_age_ms, None, "nobody has vouched for it since the start");
            let shown = node.until("the coordinator is missed", |status| {
                status.coordinator.as_ref().is_some_and(|coordinator| !coordinator.last_error.is_empty())
            });
            assert_eq!(shown.await.coordinator.unwrap().state, "connecting");
        });
    });
}

/// What a peer says of where it is, as the map on disk has it.
fn on_disk(place: &Place, coordinator: &TestCoordinator, of: NodeId, me: NodeId) -> Vec<SocketAddr> {
    let authority = &coordinator.shared.authority;
    let content = std::fs::read(place.state("map")).unwrap();
    let map = NetworkMap::parse(&content, authority.network, authority.root.public_key(), me, now()).unwrap();
    map.node_record(of).map(|record| record.endpoints.clone()).unwrap_or_default()
}

#[test]
fn where_a_peer_moved_to_is_on_disk_within_a_second() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let joined = node.join(&coordinator.token(), "alpha").await.unwrap();
            let me: NodeId = joined.network.unwrap().self_.unwrap().id.parse().unwrap();
            let authority = &coordinator.shared.authority;
            let key = IdentitySecret::generate();
            let peer = authority.member(7, "peer", key.public_key());
            let envelope = authority.sign_member(&peer);
            coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
            let tell = |endpoints: &[&str]| {
                let endpoints = endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect();
                coordinator.shared.map.lock().unwrap().put_record(
                    &key,
                    authority.network,
                    peer.id,
                    endpoints,
                );
            };
            // The first record may come before the peer knows an address of its own.
            tell(&[]);
            coordinator.send_map().await;
            node.until("the peer is known", |status| status.peers.len() == 1).await;

            for address in ["192.0.2.1:51820", "192.0.2.2:51820"] {
                tell(&[address]);
                coordinator.send_map().await;
                let began = Instant::now();
                let expected: Vec<SocketAddr> = vec![address.parse().unwrap()];
                while on_disk(&place, &coordinator, peer.id, me) != expected {
                    assert!(began.elapsed() < Duration::from_secs(1), "{address} is not on disk");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        });
    });
}

#[test]
fn a_restarted_daemon_goes_on_from_its_position() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let joined = node.join(&coordinator.token(), "alpha").await.unwrap();
            let revision = joined.network.unwrap().revision;
            coordinator.hear_acknowledgement(revision).await;
            node.stop().await.unwrap();
            coordinator.forget_heard();
            let _node = place.start().await.unwrap();
            let hello = coordinator
                .hear("a hello", |message| match message {
                    ringmesh_proto::control::sync_request::Message::Hello(hello) => Some(hello.clone()),
                    _ => None,
                })
                .await;
            assert!(hello.position.unwrap().durable >= revision);
            assert_eq!(hello.digest.len(), 32);
        });
    });
}

/// What a coordinator says to a node that it does not know any more.
fn removal() -> Status {
    let details = ErrorDetails::with_error_info(Reason::NodeRemoved.as_str_name(), "ringmesh", []);
    Status::with_error_details(Code::PermissionDenied, "removed", details)
}

#[test]
fn a_removal_that_nobody_signed_ends_no_membership_for_good() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let joined = node.join(&coordinator.token(), "alpha").await.unwrap();
            // Somebody in between says it, once.
            coordinator.shared.mischief.lock().unwrap().refuse_sync = Some(removal());
            coordinator.fail_streams(removal()).await;
            let asks_slowly = |status: &StatusResponse| {
                let next_try = status.coordinator.as_ref().unwrap().next_try_ms;
                status.state == "removed" && (230_000..=360_000).contains(&next_try)
            };
            node.until("it is removed, and will ask again", asks_slowly).await;
            assert!(!has_interface("mesh0"));
            node.stop().await.unwrap();

            // The next start asks at once, and the coordinator has never heard of a removal.
            coordinator.shared.mischief.lock().unwrap().refuse_sync = None;
            coordinator.forget_heard();
            let mut node = place.start().await.unwrap();
            let status = node.until("it runs again", |status| status.state == "running").await;
            assert!(coordinator.hellos()[0].position.is_none(), "it asks for the whole map");
            assert!(has_interface("mesh0"));
            let own = |status: StatusResponse| status.network.unwrap().self_.unwrap();
            assert_eq!(own(status), own(joined), "the same node with the same key");
            node.stop().await.unwrap();
            drop(coordinator);
            let mut node = place.start().await.unwrap();
            assert_eq!(node.status().await.state, "running", "and stays a member");
        });
    });
}

#[test]
fn a_removed_node_is_cut_off_and_stays_so_until_it_leaves() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            coordinator.shared.mischief.lock().unwrap().refuse_sync = Some(removal());
            coordinator.fail_streams(removal()).await;
            node.until("it is removed", |status| status.state == "removed").await;
            assert!(!has_interface("mesh0"));
            node.stop().await.unwrap();

            coordinator.forget_heard();
            let mut node = place.start().await.unwrap();
            let asked = |status: &StatusResponse| status.coordinator.as_ref().unwrap().next_try_ms > 200_000;
            let status = node.until("it asked once, and was told again", asked).await;
            assert_eq!(status.state, "removed");
            assert_eq!(status.coordinator.unwrap().state, "none");
            assert!(!has_interface("mesh0"));
            let refused = node.join(&coordinator.token(), "").await.unwrap_err();
            assert_eq!(reason(&refused), Reason::AlreadyJoined);
            assert!(refused.message().contains("meshctl leave"), "{refused}");

            assert!(!node.leave().await.unwrap());
            coordinator.shared.mischief.lock().unwrap().refuse_sync = None;
            let status = node.join(&coordinator.token(), "again").await.unwrap();
            assert_eq!(status.network.unwrap().self_.unwrap().ipv4, "100.64.0.2", "with a new key");
        });
    });
}

#[test]
fn two_daemons_do_not_share_a_state_directory() {
    in_sandbox(|| {
        block_on(async {
            let place = Place::new();
            let _node = place.start().await.unwrap();
            let failure = place.start().await.err().expect("the second does not start");
            assert_eq!(failure.reason(), Reason::Conflict);
        });
    });
}
