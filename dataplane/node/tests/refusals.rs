//! What a node refuses, though a coordinator sends it: each time the last good map stays in force.

mod support;

use ringmesh_lab::in_sandbox;
use support::{block_on, coordinator::TestCoordinator, daemon::Place};

#[test]
fn a_node_joins_and_leaves() {
    in_sandbox(|| block_on(async {
        let coordinator = TestCoordinator::start().await;
        let place = Place::new();
        let mut node = place.start().await.unwrap();
        assert_eq!(node.status().await.state, "not-joined");
        let status = node.join(&coordinator.token(), "alpha").await.unwrap();
        println!("{status:#?}");
        assert_eq!(status.state, "running");
        node.stop().await.unwrap();
    }));
}
