//! A relay that is a daemon of its own: it joins like a node, has no device, and passes on what cannot go straight.

use std::time::Duration;

use ringmesh_lab::{Blocks, Router, in_sandbox};
use ringmesh_node::config::RelayMode;
use ringmesh_proto::admin::CreateTokenRequest;
use ringmesh_proto::local::{StatusResponse, WhyRequest};

use crate::{
    roads::{Behind, first_answer, until_path},
    support::{block_on, daemon::Place},
    world::{Machine, World},
};

/// Within this the first packet must be there.
const FIRST_BYTE: Duration = Duration::from_secs(5);
/// Within this a way that is left is noticed and another one taken.
const SECOND_ROAD: Duration = Duration::from_secs(15);

fn client<'a>(status: &'a StatusResponse, name: &str) -> &'a ringmesh_proto::local::RelayClient {
    let service = status.relay_service.as_ref().expect("it is a relay");
    service.clients.iter().find(|client| client.name == name).expect("it serves everybody")
}

#[test]
fn nodes_that_only_a_daemon_of_its_own_can_relay_reach_each_other_by_udp_and_by_websocket() {
    in_sandbox(|| {
        block_on(async {
            let world = World::with(|config, _| config.relay.enabled = false).await;
            let mut machine = Machine::new(&world.switch, "relay");
            let mut place = Place::new();
            place.config.relay = Some(RelayMode {
                websocket_listen: Some("[::]:8443".parse().unwrap()),
                ..RelayMode::default()
            });
            let token = world.token_with(CreateTokenRequest { relay: true, ..Default::default() }).await;
            let (mut relay, _place) = machine
                .run(async move {
                    let mut node = place.start().await.unwrap();
                    let status = node.join(&token, "carrier").await.unwrap();
                    assert_eq!(status.state, "running");
                    (node, place)
                })
                .await;
            assert!(!machine.shell("ip link show mesh0").status.success(), "a relay has no device");

            let left = Behind::new(&world.lab, &world.switch, "alice", Router::symmetric);
            let right = Behind::new(&world.lab, &world.switch, "bob", Router::symmetric);
            let mut alice = world.member(left.machine, Place::new(), "alice").await;
            let bob = world.member(right.machine, Place::new(), "bob").await;
            first_answer(&alice.machine, bob.ipv4, FIRST_BYTE);
            until_path(&mut alice, "bob", "relay", FIRST_BYTE).await;

            let status = alice.node.status().await;
            let [seen] = status.relays.as_slice() else { panic!("{:?}", status.relays) };
            assert_eq!(
                (seen.name.as_str(), seen.state.as_str(), seen.path.as_str()),
                ("carrier", "connected", "direct")
            );
            let outside: std::net::SocketAddr = seen.seen_as.parse().unwrap();
            assert_eq!(outside.ip(), left.router.outside().ipv4());
            assert!(status.peers.iter().all(|peer| peer.name == "bob"), "a relay is no peer");

            let told = relay.status().await;
            assert!(told.peers.is_empty() && told.data_plane.is_none());
            for name in ["alice", "bob"] {
                let client = client(&told, name);
                assert_eq!((client.state.as_str(), client.path.as_str()), ("here", "direct"), "{client:?}");
            }
            assert!(told.relay_service.unwrap().passed_on_datagrams > 0);

            left.router.host().block(&Blocks::udp()).unwrap();
            first_answer(&alice.machine, bob.ipv4, SECOND_ROAD);
            until_path(&mut alice, "bob", "websocket", SECOND_ROAD).await;
            assert_eq!(client(&relay.status().await, "alice").path, "websocket");

            let answer = alice.node.ping("bob", 1, 5000).await.unwrap().remove(0);
            assert_eq!((answer.path.as_str(), answer.via.as_str()), ("websocket", "carrier"), "{answer:?}");
            assert!(answer.endpoint.starts_with("wss://"), "{answer:?}");
            // While direct paths are tried again, nothing is known of them.
            let began = std::time::Instant::now();
            let why = loop {
                let request = WhyRequest { node: "bob".to_owned() };
                let why = alice.node.client.why(request).await.unwrap().into_inner();
                assert!(why.verdict.contains("over a WebSocket to the relay carrier"), "{}", why.verdict);
                if why.verdict.contains("no direct path works") {
                    break why;
                }
                assert!(began.elapsed() < SECOND_ROAD, "{}", why.verdict);
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            let dead = why.paths.iter().filter(|path| path.kind == "udp");
            for path in dead.clone() {
                assert_eq!((path.last_error.as_str(), path.selected), ("no answer", false), "{path:?}");
                assert!(path.next_try_ms.is_some(), "{path:?}");
            }
            assert!(dead.count() > 0);
            assert_eq!(why.paths.iter().filter(|path| path.selected).count(), 1);
            assert_eq!(why.relays[0].path, "websocket");
        });
    });
}

#[test]
fn the_token_decides_who_is_a_relay_and_the_configuration_must_agree() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            for relay in [true, false] {
                let mut machine = Machine::new(&world.switch, if relay { "one" } else { "two" });
                let mut place = Place::new();
                place.config.relay = relay.then(RelayMode::default);
                // The other kind's.
                let request = CreateTokenRequest { relay: !relay, ..Default::default() };
                let token = world.token_with(request).await;
                let once = token.clone();
                let refused = machine
                    .run(async move {
                        let mut node = place.start().await.unwrap();
                        let name = if relay { "one" } else { "two" };
                        let refused = node.join(&token, name).await.unwrap_err();
                        assert_eq!(node.status().await.state, "not-joined");
                        let key = place.state("identity");
                        assert!(!key.exists(), "nobody knows its key, so it is not kept");
                        refused
                    })
                    .await;
                let word = if relay { "a relay's token" } else { "[relay]" };
                assert!(refused.message().contains(word), "{refused}");
                // The token has one use, and still has it for what it was made for.
                let mut right = Place::new();
                right.config.relay = (!relay).then(RelayMode::default);
                machine
                    .run(async move {
                        let mut node = right.start().await.unwrap();
                        node.join(&once, "right").await.unwrap();
                        node.leave().await.unwrap();
                    })
                    .await;
                assert!(world.nodes().await.nodes.is_empty(), "nobody was left behind");
            }
        });
    });
}
