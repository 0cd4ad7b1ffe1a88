//! Two nodes.

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;

use crate::{support::block_on, world::World};

async fn two_nodes_reach_each_other(io: Choice) {
    let world = World::new().await;
    let mut alice = world.node("alice", io).await;
    let bob = world.node("bob", io).await;
    alice.node.until("it knows its peer", |status| status.peers.len() == 1).await;
    let answers = alice.node.ping("bob", 3, 5000).await.unwrap();
    for answer in &answers {
        assert_eq!(answer.error, "", "{answer:?}");
        assert_eq!(answer.path, "direct");
    }
    alice.machine.ping(bob.ipv4);
    alice.machine.ping(bob.ipv6);
    bob.machine.ping(alice.ipv4);
    let status = alice.node.status().await;
    println!("{status:#?}");
    alice.node.stop().await.unwrap();
    bob.node.stop().await.unwrap();
}

#[test]
fn two_nodes_reach_each_other_by_poll() {
    in_sandbox(|| block_on(two_nodes_reach_each_other(Choice::Poll)));
}

#[test]
fn two_nodes_reach_each_other_by_uring() {
    in_sandbox(|| block_on(two_nodes_reach_each_other(Choice::Uring)));
}
