//! What the policy allows here and what the owner denies, as a coordinator and the state directory say it.

use std::{fs, time::Duration};

use ringmesh_lab::{HeldThread, in_sandbox};
use ringmesh_proto::{
    control::{Reason, sync_request::Message as In},
    local::{AddDenialRequest, FilterResponse},
};
use ringmesh_tunnel::{
    key::IdentitySecret,
    netmap::{Envelope, Leaf, MerkleTree, Policy, Protocol, Rule, Selector},
};
use tokio::time::{Instant, sleep};

use super::reason;
use crate::support::{
    authority::{DAY, in_ms},
    block_on,
    coordinator::TestCoordinator,
    daemon::{Node, Place},
    process::{Process, WORKER},
};

/// Gives the network a policy that allows one TCP port to all, and ends in so many milliseconds.
fn set_policy(coordinator: &TestCoordinator, serial: u64, port: u16, ends_in: u64) {
    let authority = &coordinator.shared.authority;
    let rule = Rule {
        sources: vec![Selector::All],
        destinations: vec![Selector::All],
        protocol: Protocol::Tcp,
        ports: vec![port.into()],
    };
    let leaves = vec![Leaf::Rule(rule).emit().unwrap()];
    let tree = MerkleTree::new(&leaves);
    let (root, size) = (tree.root(), tree.size());
    let policy = Policy { network: authority.network, serial, not_after: in_ms(ends_in), root, size };
    let mut map = coordinator.shared.map.lock().unwrap();
    map.policy = Envelope::sign(&policy, &authority.policy).unwrap();
    (map.tree, map.leaves) = (leaves.clone(), leaves);
    map.position.durable += 1;
}

/// Adds a peer that nobody runs.
fn add_peer(coordinator: &TestCoordinator) {
    let authority = &coordinator.shared.authority;
    let peer = authority.member(7, "peer", IdentitySecret::generate().public_key());
    let envelope = authority.sign_member(&peer);
    coordinator.shared.map.lock().unwrap().put(peer.id, envelope);
}

async fn until_filter(
    node: &mut Node,
    what: &str,
    holds: impl Fn(&FilterResponse) -> bool,
) -> FilterResponse {
    let began = Instant::now();
    loop {
        let told = node.filter().await;
        if holds(&told) {
            return told;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}; last: {told:#?}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_policy_that_ends_takes_its_rules_with_it() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            add_peer(&coordinator);
            set_policy(&coordinator, 2, 22, 2000);
            coordinator.send_map().await;
            let told = until_filter(&mut node, "the policy is there", |told| told.policy_serial == 2).await;
            assert_eq!((told.rules.len(), &*told.rules[0].ports), (1, "22"));
            assert!(node.trace("alpha", "peer", "tcp/22").await.unwrap().allowed);

            let told = until_filter(&mut node, "the policy has ended", |told| told.policy_serial == 0).await;
            assert!(told.rules.is_empty(), "{told:?}");
            let began = Instant::now();
            // The filter in force is what the trace asks, and it follows at once.
            loop {
                let traced = node.trace("alpha", "peer", "tcp/22").await.unwrap();
                if !traced.allowed {
                    assert_eq!(traced.by, "no rule");
                    assert!(
                        traced.stages.last().unwrap().detail.contains("no policy is in force"),
                        "{traced:#?}"
                    );
                    break;
                }
                assert!(began.elapsed() < Duration::from_millis(500), "{traced:#?}");
                sleep(Duration::from_millis(5)).await;
            }
            // Nor is it there at the next start; a newer one is, as soon as a coordinator sends it.
            node.stop().await.unwrap();
            set_policy(&coordinator, 3, 23, DAY);
            let mut node = place.start().await.unwrap();
            until_filter(&mut node, "the next one is there", |told| told.policy_serial == 3).await;
            assert!(node.trace("alpha", "peer", "tcp/23").await.unwrap().allowed);
            assert!(!node.trace("alpha", "peer", "tcp/22").await.unwrap().allowed);
        });
    });
}

#[test]
fn a_map_is_acknowledged_when_the_worker_has_it_and_heartbeats_go_on_until_then() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            *coordinator.shared.heartbeat_seconds.lock().unwrap() = 1;
            let place = Place::new();
            let program = std::process::Command::new(std::env::current_exe().unwrap());
            let mut daemon = Process::start(program, &place).await;
            let joined = daemon.node.join(&coordinator.token(), "alpha").await.unwrap();
            coordinator.hear_acknowledgement(joined.network.unwrap().revision).await;

            let holding = HeldThread::of(daemon.pid(), WORKER).unwrap();
            coordinator.forget_heard();
            set_policy(&coordinator, 2, 22, DAY);
            let revision = coordinator.shared.map.lock().unwrap().position.durable;
            coordinator.send_map().await;
            // Longer than a node may be silent.
            let mut heard = coordinator.watch_heard();
            let beats =
                |heard: &[In]| heard.iter().filter(|message| matches!(message, In::Heartbeat(_))).count();
            let waited = tokio::time::timeout(Duration::from_secs(10), async {
                while beats(&heard.borrow_and_update()) < 5 {
                    heard.changed().await.unwrap();
                }
            });
            waited.await.expect("heartbeats go on");
            let acknowledged = |heard: &[In]| {
                heard
                    .iter()
                    .any(|message| matches!(message, In::Acknowledgement(it) if it.durable >= revision))
            };
            assert!(!acknowledged(&coordinator.heard()), "nothing is said before it is so");
            drop(holding);
            coordinator.hear_acknowledgement(revision).await;
            assert_eq!(daemon.node.filter().await.policy_serial, 2);
        });
    });
}

#[test]
fn denials_that_cannot_be_read_stop_the_start() {
    in_sandbox(|| {
        block_on(async {
            let coordinator = TestCoordinator::start().await;
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            node.join(&coordinator.token(), "alpha").await.unwrap();
            node.deny(AddDenialRequest { protocol: "udp".into(), ..Default::default() }).await.unwrap();
            node.stop().await.unwrap();
            let file = place.state("denials.json");
            let good = fs::read(&file).unwrap();
            fs::write(&file, &good[..good.len() - 9]).unwrap();
            let failure = place.start().await.err().expect("it would allow what was denied");
            assert!(failure.to_string().contains("denials.json"), "{failure}");
            fs::write(&file, good).unwrap();
            let mut node = place.start().await.unwrap();
            assert_eq!(node.filter().await.denials.len(), 1);

            node.leave().await.unwrap();
            assert!(!file.exists(), "whoever leaves takes nothing along");
        });
    });
}

#[test]
fn who_has_not_joined_has_no_filter_to_look_at() {
    in_sandbox(|| {
        block_on(async {
            let place = Place::new();
            let mut node = place.start().await.unwrap();
            let refused = [
                node.client.filter(ringmesh_proto::local::FilterRequest {}).await.unwrap_err(),
                node.deny(AddDenialRequest::default()).await.unwrap_err(),
                node.remove_denial(1).await.unwrap_err(),
                node.trace("a", "b", "icmp").await.unwrap_err(),
            ];
            for refused in refused {
                assert_eq!(reason(&refused), Reason::NotJoined);
            }
            assert!(!place.state("denials.json").exists());
        });
    });
}
