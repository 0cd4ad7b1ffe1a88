//! What a coordinator may send and a node must refuse: each time the last good map stays in force, and is said to.

use ringmesh_lab::in_sandbox;
use ringmesh_proto::{
    control::{MapUpdate, sync_response::Message as Out},
    local::StatusResponse,
};
use ringmesh_tunnel::{
    key::{IdentitySecret, NodeId},
    netmap::{Envelope, Leaf, Member, Protocol, Record as _, Rule, Selector, digest},
};

use crate::support::{
    authority::{Authority, MapBuilder, now, to_wire},
    block_on,
    coordinator::TestCoordinator,
    daemon::{Node, Place},
};

/// A joined node with one peer, and the coordinator that will misbehave.
struct Scene {
    coordinator: TestCoordinator,
    node: Node,
    peer: Member,
    place: Place,
}

impl Scene {
    async fn new() -> Self {
        let coordinator = TestCoordinator::start().await;
        let place = Place::new();
        let mut node = place.start().await.unwrap();
        node.join(&coordinator.token(), "alpha").await.unwrap();
        // What the node says of itself moves the map on, too: not in the middle of what comes.
        coordinator
            .hear("the node's record", |message| match message {
                ringmesh_proto::control::sync_request::Message::NodeRecord(_) => Some(()),
                _ => None,
            })
            .await;
        let peer =
            coordinator.shared.authority.member(7, "good-peer", IdentitySecret::generate().public_key());
        let envelope = coordinator.shared.authority.sign_member(&peer);
        coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
        coordinator.send_map().await;
        node.until("the good map is installed", |status| status.peers.len() == 1).await;
        Self { coordinator, node, peer, place }
    }

    fn authority(&self) -> &Authority {
        &self.coordinator.shared.authority
    }

    fn map(&self) -> MapBuilder {
        self.coordinator.shared.map.lock().unwrap().clone()
    }

    /// The next whole map as an honest coordinator would send it.
    fn honest(&self) -> (MapBuilder, MapUpdate) {
        let mut map = self.map();
        map.position.durable += 1;
        let update = map.full(self.authority());
        (map, update)
    }

    /// Sends `update`; it must be refused with `words`, the good map stay, and a good one be taken afterwards.
    async fn must_refuse(self, update: MapUpdate, words: &str) {
        self.must_refuse_message(Out::Update(update), words).await;
    }

    async fn must_refuse_message(mut self, message: Out, words: &str) {
        let good = self.node.status().await;
        self.coordinator.forget_heard();
        // What follows the refusal is up to the coordinator: nothing, so that the refusal is all there is to see.
        self.coordinator.shared.mischief.lock().unwrap().mapless = true;
        self.coordinator.send(message).await;

        // The stream is closed and opened again, and the whole map asked for.
        let hello = self
            .coordinator
            .hear("a new hello", |message| match message {
                ringmesh_proto::control::sync_request::Message::Hello(hello) => Some(hello.clone()),
                _ => None,
            })
            .await;
        assert!(hello.position.is_none() && hello.digest.is_empty(), "the whole map is asked for");
        let status = self.node.status().await;
        assert_same_map(&good, &status);
        let shown = self
            .node
            .until("the refusal is shown", |status| {
                let coordinator = status.coordinator.clone().unwrap();
                coordinator.state == "refused" && !coordinator.last_error.is_empty()
            })
            .await;
        let error = shown.coordinator.unwrap().last_error;
        assert!(error.contains(words), "{error}");

        self.coordinator.shared.mischief.lock().unwrap().mapless = false;
        self.coordinator.shared.map.lock().unwrap().position.durable += 10;
        let next = self.map().position.durable;
        self.coordinator.send_map().await;
        let status = self
            .node
            .until("the next good map is taken", |status| {
                status.network.as_ref().is_some_and(|network| network.installed_revision == next)
            })
            .await;
        assert_eq!(status.coordinator.unwrap().state, "connected");
    }
}

fn assert_same_map(good: &StatusResponse, now: &StatusResponse) {
    let map = |status: &StatusResponse| {
        let network = status.network.clone().unwrap();
        let peers: Vec<_> =
            status.peers.iter().map(|peer| (peer.name.clone(), peer.allowed_ips.clone())).collect();
        (network.revision, network.installed_revision, network.self_, peers)
    };
    assert_eq!(map(good), map(now));
    assert_eq!(now.state, "running");
}

#[test]
fn a_flipped_byte_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (_, mut update) = scene.honest();
            let last = update.members.last_mut().unwrap();
            let middle = last.payload.len() / 2;
            last.payload[middle] ^= 1;
            scene.must_refuse(update, "altered").await;
        });
    });
}

#[test]
fn a_member_signed_under_another_root_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (mut map, _) = scene.honest();
            let other = Authority::new();
            let id = NodeId::from_bytes([9; 8]);
            let mut forged = scene.authority().member(9, "forged", IdentitySecret::generate().public_key());
            forged.id = id;
            map.members.insert(id, Envelope::sign(&forged, &other.admission).unwrap());
            let update = map.full(scene.authority());
            scene.must_refuse(update, "not certified").await;
        });
    });
}

#[test]
fn a_whole_map_of_another_network_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let other = Authority::new();
            let mut map = MapBuilder::new(&other);
            map.position.durable = 50;
            let me = other.member(1, "alpha", IdentitySecret::generate().public_key());
            map.put(me.id, other.sign_member(&me));
            let update = map.full(&other);
            scene.must_refuse(update, "root key").await;
        });
    });
}

#[test]
fn an_older_serial_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            // First a newer record, then the older one again.
            let newer = Member { serial: 5, name: "renamed".into(), ..scene.peer.clone() };
            let envelope = scene.authority().sign_member(&newer);
            scene.coordinator.shared.map.lock().unwrap().put(newer.id, envelope);
            scene.coordinator.send_map().await;
            let mut scene = scene;
            scene.node.until("the newer record is in", |status| status.peers[0].name == "renamed").await;
            let (mut map, _) = scene.honest();
            let older = Member { serial: 4, name: "back-again".into(), ..scene.peer.clone() };
            map.members.insert(older.id, scene.authority().sign_member(&older));
            let update = map.full(scene.authority());
            scene.must_refuse(update, "serial 4").await;
        });
    });
}

#[test]
fn an_expired_head_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (map, mut update) = scene.honest();
            let mut head = map.head(scene.authority());
            head.not_after = ringmesh_tunnel::UnixTime::from_millis(now().as_millis() - 1000);
            update.head = Some(to_wire(&Envelope::sign(&head, &scene.authority().head).unwrap()));
            scene.must_refuse(update, "head ended").await;
        });
    });
}

#[test]
fn a_rule_without_proof_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (mut map, _) = scene.honest();
            let smuggled = Leaf::Rule(Rule {
                sources: vec![Selector::Tag("guest".into())],
                destinations: vec![Selector::All],
                protocol: Protocol::Any,
                ports: Vec::new(),
            });
            // In the map and under its head, but not in the tree that the policy key signed.
            map.leaves.push(smuggled.emit().unwrap());
            let update = map.full(scene.authority());
            scene.must_refuse(update, "not part of the signed policy").await;
        });
    });
}

#[test]
fn a_head_that_names_something_else_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (map, mut update) = scene.honest();
            let mut head = map.head(scene.authority());
            head.digest = digest([]);
            update.head = Some(to_wire(&Envelope::sign(&head, &scene.authority().head).unwrap()));
            scene.must_refuse(update, "does not come to the map").await;
        });
    });
}

#[test]
fn an_older_position_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let mut map = scene.map();
            map.position.durable -= 1;
            let update = map.full(scene.authority());
            scene.must_refuse(update, "older than").await;
        });
    });
}

#[test]
fn a_map_without_this_node_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (mut map, _) = scene.honest();
            map.members.remove(&NodeId::from_bytes([0, 0, 0, 0, 0, 0, 0, 1]));
            map.node_records.clear();
            let update = map.full(scene.authority());
            scene.must_refuse(update, "does not contain this node").await;
        });
    });
}

#[test]
fn a_secret_sealed_to_somebody_else_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (_, mut update) = scene.honest();
            update.secrets = vec![scene.authority().sealed_secret(&scene.peer.noise_key, 2)];
            scene.must_refuse(update, "does not open").await;
        });
    });
}

/// The next whole map, with these epochs in its head and the secrets of those beside it.
fn with_epochs(scene: &Scene, named: &[u64], beside: &[u64]) -> (MapBuilder, MapUpdate) {
    let own = scene.coordinator.shared.enrolled.lock().unwrap().keys().next().unwrap().noise_key();
    let (mut map, _) = scene.honest();
    map.epochs = named.to_vec();
    let secrets = beside.iter().map(|epoch| scene.authority().sealed_secret(&own, *epoch)).collect();
    let update = MapUpdate { secrets, ..map.full(scene.authority()) };
    (map, update)
}

#[test]
fn secrets_that_the_head_does_not_name_are_refused() {
    in_sandbox(|| {
        block_on(async {
            // Withheld, replayed, only in part, and more than there are.
            for (named, beside) in [(&[1, 2][..], &[][..]), (&[2], &[1]), (&[1, 2], &[2]), (&[1], &[1, 2])] {
                let scene = Scene::new().await;
                let (_, update) = with_epochs(&scene, named, beside);
                scene.must_refuse(update, "the secrets beside the map").await;
            }
        });
    });
}

#[test]
fn an_older_epoch_is_refused_with_its_own_secret() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new().await;
            let (map, update) = with_epochs(&scene, &[1, 2], &[1, 2]);
            *scene.coordinator.shared.map.lock().unwrap() = map;
            scene.coordinator.send(Out::Update(update)).await;
            scene
                .node
                .until("the second epoch is in force", |status| status.network.as_ref().unwrap().epoch == 2)
                .await;
            let (_, update) = with_epochs(&scene, &[1], &[1]);
            scene.must_refuse(update, "epoch 1").await;
        });
    });
}

#[test]
fn a_heartbeat_that_names_other_secrets_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (map, _) = with_epochs(&scene, &[1, 2], &[]);
            let head =
                to_wire(&Envelope::sign(&map.head(scene.authority()), &scene.authority().head).unwrap());
            scene.must_refuse_message(Out::Head(head), "the secrets beside the map").await;
        });
    });
}

#[test]
fn an_own_record_with_another_key_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (mut map, _) = scene.honest();
            let other = Member {
                serial: 2,
                ..scene.authority().member(1, "alpha", IdentitySecret::generate().public_key())
            };
            map.members.insert(other.id, scene.authority().sign_member(&other));
            map.node_records.clear();
            let update = map.full(scene.authority());
            scene.must_refuse(update, "another key than this node").await;
        });
    });
}

#[test]
fn a_map_that_could_not_be_installed_is_not_kept() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new().await;
            let kept = std::fs::read(scene.place.state("map")).unwrap();
            let (mut map, _) = scene.honest();
            let id = NodeId::from_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
            let own = Member::parse(&map.members[&id].payload).unwrap();
            let outside = Member { serial: 2, ipv4: Some([10, 9, 0, 1].into()), ..own };
            map.members.insert(id, scene.authority().sign_member(&outside));
            let update = map.full(scene.authority());
            scene.coordinator.shared.mischief.lock().unwrap().mapless = true;
            scene.coordinator.send(Out::Update(update)).await;
            let refused = scene.node.until("it is refused", |status| {
                status.coordinator.as_ref().unwrap().last_error.contains("none of the network's pools")
            });
            assert_eq!(refused.await.state, "running");
            assert_eq!(std::fs::read(scene.place.state("map")).unwrap(), kept);
        });
    });
}

#[test]
fn a_message_that_makes_no_sense_is_refused() {
    in_sandbox(|| {
        block_on(async {
            let scene = Scene::new().await;
            let (_, mut update) = scene.honest();
            update.removed.push(vec![1, 2, 3]);
            scene.must_refuse(update, "makes no sense").await;
        });
    });
}
