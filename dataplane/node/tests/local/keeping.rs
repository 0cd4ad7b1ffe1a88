//! The map and its secrets on disk: a pair, whatever is interrupted, damaged or cannot be written.

use std::{fs, time::Duration};

use ringmesh_lab::in_sandbox;
use ringmesh_proto::{
    control::{MapUpdate, sync_response::Message as Out},
    local::StatusResponse,
};
use ringmesh_tunnel::{
    key::{IdentitySecret, NodeId},
    netmap::{Member, Record as _},
};

use crate::support::{
    authority::in_ms,
    block_on,
    coordinator::TestCoordinator,
    daemon::{Node, Place},
};

/// A joined node that knows one peer.
async fn with_a_peer() -> (TestCoordinator, Place, Node) {
    let coordinator = TestCoordinator::start().await;
    let place = Place::new();
    let mut node = place.start().await.unwrap();
    node.join(&coordinator.token(), "alpha").await.unwrap();
    let peer = coordinator.shared.authority.member(7, "peer", IdentitySecret::generate().public_key());
    let envelope = coordinator.shared.authority.sign_member(&peer);
    coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
    coordinator.send_map().await;
    node.until("the peer is known", |status| status.peers.len() == 1).await;
    (coordinator, place, node)
}

fn epoch(status: &StatusResponse) -> u64 {
    status.network.as_ref().unwrap().epoch
}

/// Waits until a stream is open and the secrets of `wanted` are there, with a key for the peer.
async fn until_whole(node: &mut Node, wanted: u64) {
    node.until("the secrets are there", |status| {
        epoch(status) == wanted && status.coordinator.as_ref().unwrap().state == "connected"
    })
    .await;
    let answers = node.ping("peer", 1, 300).await.unwrap();
    assert!(answers[0].error.contains("no address"), "only its address is missing: {answers:?}");
}

/// The coordinator begins the second epoch and keeps the first.
async fn begin_second_epoch(coordinator: &TestCoordinator, node: &mut Node) {
    let own = coordinator.shared.enrolled.lock().unwrap().keys().next().unwrap().noise_key();
    let update = {
        let mut map = coordinator.shared.map.lock().unwrap();
        map.epochs.push(2);
        map.position.durable += 1;
        let secrets = map.secrets(&coordinator.shared.authority, &own);
        MapUpdate { secrets, ..map.full(&coordinator.shared.authority) }
    };
    coordinator.send(Out::Update(update)).await;
    node.until("the second epoch is in force", |status| epoch(status) == 2).await;
}

#[test]
fn a_damaged_secrets_file_is_replaced_by_a_live_coordinator() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, place, node) = with_a_peer().await;
            node.stop().await.unwrap();
            let good = fs::read(place.state("secrets")).unwrap();
            let inside =
                good.windows(4).position(|part| part == b"==\"\n" || part == b"=\"\n ").unwrap() - 20;
            let mut flipped = good.clone();
            flipped[inside] = if flipped[inside] == b'A' { b'B' } else { b'A' };
            for damaged in [Some(flipped), Some(good[..good.len() / 2].to_vec()), None] {
                match damaged {
                    Some(damaged) => fs::write(place.state("secrets"), damaged).unwrap(),
                    None => fs::remove_file(place.state("secrets")).unwrap(),
                }
                coordinator.forget_heard();
                let mut node = place.start().await.unwrap();
                until_whole(&mut node, 1).await;
                let hello = coordinator.hellos().remove(0);
                let expected =
                    coordinator.shared.map.lock().unwrap().secrets_digest(&coordinator.shared.authority);
                assert_eq!(hello.secrets.len(), 32);
                assert_ne!(hello.secrets, expected, "it says that it does not have them");
                node.stop().await.unwrap();
                coordinator.forget_heard();
                let node = place.start().await.unwrap();
                let hello = coordinator
                    .hear("a hello", |message| match message {
                        ringmesh_proto::control::sync_request::Message::Hello(hello) => Some(hello.clone()),
                        _ => None,
                    })
                    .await;
                assert_eq!(hello.secrets, expected, "they were kept");
                node.stop().await.unwrap();
            }
        });
    });
}

#[test]
fn a_crash_between_the_two_files_cuts_nobody_off() {
    in_sandbox(|| {
        block_on(async {
            for file in ["map", "secrets"] {
                let (coordinator, place, mut node) = with_a_peer().await;
                tokio::time::sleep(Duration::from_millis(700)).await;
                let older = fs::read(place.state(file)).unwrap();
                begin_second_epoch(&coordinator, &mut node).await;
                node.stop().await.unwrap();
                assert_ne!(fs::read(place.state(file)).unwrap(), older, "{file}");
                fs::write(place.state(file), older).unwrap();
                let mut node = place.start().await.unwrap();
                until_whole(&mut node, 2).await;
                node.stop().await.unwrap();
            }
        });
    });
}

#[test]
fn a_map_that_could_not_be_written_is_written_later() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, place, mut node) = with_a_peer().await;
            // As a disk that refuses: a file cannot take the place of a directory that is not empty.
            let map = place.state("map");
            fs::remove_file(&map).unwrap();
            fs::create_dir(&map).unwrap();
            fs::write(map.join("in-the-way"), "").unwrap();
            begin_second_epoch(&coordinator, &mut node).await;
            let revision = node.status().await.network.unwrap().installed_revision;
            assert_eq!(revision, coordinator.shared.map.lock().unwrap().position.durable, "it is in force");
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(map.is_dir());
            fs::remove_dir_all(&map).unwrap();
            node.until("the map is written", |_| map.is_file()).await;
            drop(coordinator);
            node.stop().await.unwrap();
            let mut node = place.start().await.unwrap();
            let network = node.status().await.network.unwrap();
            assert_eq!((network.installed_revision, network.epoch), (revision, 2));
        });
    });
}

#[test]
fn a_map_on_disk_that_cannot_be_used_does_not_end_the_daemon() {
    in_sandbox(|| {
        block_on(async {
            let (coordinator, place, node) = with_a_peer().await;
            node.stop().await.unwrap();
            // What is on disk does not go together any more: this node's address is outside the pool.
            let text = fs::read_to_string(place.state("network.json")).unwrap();
            assert!(text.contains("100.64.0.0/10"));
            fs::write(place.state("network.json"), text.replace("100.64.0.0/10", "10.9.0.0/16")).unwrap();
            coordinator.forget_heard();
            let mut node = place.start().await.unwrap();
            node.until("the coordinator's same map is refused", |status| {
                status.state == "starting"
                    && status.coordinator.as_ref().unwrap().last_error.contains("none of the network's pools")
            })
            .await;
            assert!(coordinator.hellos()[0].position.is_none(), "no difference to such a map would help");
            // A map that can be used comes.
            {
                let mut map = coordinator.shared.map.lock().unwrap();
                let id = NodeId::from_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
                let own = Member::parse(&map.members[&id].payload).unwrap();
                let own =
                    Member { ipv4: Some([10, 9, 0, 1].into()), serial: 2, not_after: in_ms(1 << 30), ..own };
                let envelope = coordinator.shared.authority.sign_member(&own);
                map.put(id, envelope);
            }
            let status = node.until("it runs", |status| status.state == "running").await;
            assert_eq!(status.network.unwrap().self_.unwrap().ipv4, "10.9.0.1");
        });
    });
}
