//! Nodes behind routers that translate addresses.

use std::time::{Duration, Instant};

use ringmesh_io::Choice;
use ringmesh_lab::{Router, in_sandbox};

use crate::{
    roads::{Behind, assert_unreachable, first_answer, path_to, until_path},
    support::{block_on, daemon::Place},
    world::{Machine, Member, World},
};

/// So long after the second node began to join, the first packet must have gone there and back, by whatever way.
const FIRST_BYTE: Duration = Duration::from_secs(3);
/// So long after that the way must be the straight one, where there is one.
const DIRECT: Duration = Duration::from_secs(10);

/// Two nodes, each behind a router of its own, just joined.
struct Scene {
    alice: Member,
    bob: Member,
    /// When Bob's daemon began to join: before that nobody could have a session with him.
    joined: Instant,
    routers: [Router; 2],
    world: World,
}

impl Scene {
    async fn new(alices: fn(&Router) -> Result<(), ringmesh_lab::LabError>) -> Self {
        let world = World::new().await;
        let left = Behind::new(&world.lab, &world.switch, "alice", alices);
        let right = Behind::new(&world.lab, &world.switch, "bob", Router::masquerade);
        let outside = [&world.head.host, left.router.host()];
        assert_unreachable(outside, &right.machine.host);
        let outside = [&world.head.host, right.router.host()];
        assert_unreachable(outside, &left.machine.host);
        let member = async |machine: Machine, name| {
            let mut place = Place::new();
            place.config.io = Choice::Auto;
            world.member(machine, place, name).await
        };
        let alice = member(left.machine, "alice").await;
        let joined = Instant::now();
        let bob = member(right.machine, "bob").await;
        Self { alice, bob, joined, routers: [left.router, right.router], world }
    }

    /// Waits for the first answer to Alice, which must come in time since Bob joined; tells when, and by which path it goes
    /// then. Whatever that is, the relay carried something first, as nothing else could.
    async fn first_byte(&mut self) -> (Duration, String) {
        first_answer(&self.alice.machine, self.bob.ipv4, FIRST_BYTE);
        let first = self.joined.elapsed();
        let path = path_to(&mut self.alice, "bob").await;
        assert!(first <= FIRST_BYTE, "the first answer came {first:?} after the join ({path})");
        let relay = self.world.relay().await;
        assert!(relay.relayed_datagrams > 0, "the first byte went by {path:?}: {relay:?}");
        (first, path)
    }
}

#[test]
fn two_nodes_behind_two_masquerading_routers_talk_at_once_and_then_straight() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new(Router::masquerade).await;
            let (first, before) = scene.first_byte().await;
            // The upgrade may have been faster than the question.
            assert!(["relay", "direct"].contains(&before.as_str()), "first by {before:?}");
            // Paths are only looked after while there is traffic.
            let at = scene.bob.ipv4;
            let background = scene
                .alice
                .machine
                .host
                .command("ping")
                .unwrap()
                .args(["-q", "-i", "0.2"])
                .arg(at.to_string())
                .spawn();
            let mut background = background.unwrap();
            until_path(&mut scene.alice, "bob", "direct", DIRECT).await;
            until_path(&mut scene.bob, "alice", "direct", DIRECT).await;
            let direct = scene.joined.elapsed();
            println!("since the join: first answer after {first:?} ({before}), direct after {direct:?}");
            assert!(direct <= DIRECT, "direct after {direct:?}");
            for (member, peers_router) in
                [(&mut scene.alice, &scene.routers[1]), (&mut scene.bob, &scene.routers[0])]
            {
                let peer = member.node.status().await.peers.remove(0);
                let endpoint: std::net::SocketAddr = peer.endpoint.parse().unwrap();
                assert_eq!(endpoint.ip(), peers_router.outside().ipv4(), "{peer:?}");
                assert_eq!(peer.via, "");
            }
            scene.alice.machine.ping(scene.bob.ipv6);
            scene.bob.machine.ping(scene.alice.ipv4);
            background.kill().unwrap();
            background.wait().unwrap();
        });
    });
}

#[test]
fn a_node_behind_a_symmetric_router_is_reached_by_the_relay_and_never_called_direct() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new(Router::symmetric).await;
            let (first, path) = scene.first_byte().await;
            assert_eq!(path, "relay");
            let back = first_answer(&scene.bob.machine, scene.alice.ipv4, FIRST_BYTE);
            println!("first answer {first:?} after the join, and after {back:?} the other way");
            let began = Instant::now();
            let mut looks = 0;
            while began.elapsed() < Duration::from_secs(15) {
                for (member, peer) in [(&mut scene.alice, "bob"), (&mut scene.bob, "alice")] {
                    for answer in member.node.ping(peer, 1, 2_000).await.unwrap() {
                        assert_eq!(
                            (answer.error.as_str(), answer.path.as_str()),
                            ("", "relay"),
                            "{answer:?}"
                        );
                        assert_ne!(answer.via, "", "{answer:?}");
                    }
                    assert_eq!(path_to(member, peer).await, "relay");
                }
                looks += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(looks > 50, "it was looked {looks} times");
        });
    });
}
