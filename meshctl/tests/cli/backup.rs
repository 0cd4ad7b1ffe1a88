//! A coordinator lost, and restored from a backup that was made while it ran.

use std::time::{Duration, Instant};

use ringmesh_lab::in_sandbox;

use crate::support::{Machine, mesh, run_with};

/// How long a node has to find the coordinator again and take its map.
const PATIENCE: Duration = Duration::from_secs(40);

/// The revision that a node runs.
fn revision(node: &Machine) -> u64 {
    node.json("status", &["status"])["network"]["revision"].as_u64().unwrap()
}

#[test]
fn a_coordinator_restored_from_a_backup_is_believed_by_its_nodes() {
    in_sandbox(|| {
        let (_site, coordinator, alice, _web) = mesh(&[]);
        let made = coordinator.json("backup", &["coordinator", "backup", "/var/lib/monday"]);
        let backed_up = made["revision"].as_u64().unwrap();
        let again = coordinator.run(&["coordinator", "backup", "/var/lib/monday"]).failed(9);
        assert!(again.contains("exists already"), "{again}");

        // After the backup a token is made, and then the machine is lost with all that it knew.
        let late = coordinator.token();
        coordinator.run(&["coordinator", "down"]).ok();
        let mut copy = coordinator.host.command("sh").unwrap();
        copy.args([
            "-c",
            "rm -rf /var/lib/mesh-coordinator && cp -a /var/lib/monday /var/lib/mesh-coordinator",
        ]);
        run_with(copy, b"").ok();
        coordinator.run(&["coordinator", "up"]).ok();
        let log = coordinator.read("/var/lib/mesh-coordinator/coordinator.log").unwrap();
        assert!(log.contains("the state was restored"), "{log}");
        let restored = coordinator.json("nodes", &["nodes", "list"])["revision"].as_u64().unwrap();
        assert!(
            restored >= backed_up + (1 << 32),
            "{restored} is beyond all that nodes saw since {backed_up}"
        );
        let began = Instant::now();
        while revision(&alice) < restored {
            assert!(began.elapsed() < PATIENCE, "the node runs r{} and not r{restored}", revision(&alice));
            std::thread::sleep(Duration::from_millis(100));
        }
        alice.run(&["ping", "web", "--count", "1"]).ok();
        let known = coordinator.json("tokens", &["token", "list"]);
        let known = known["tokens"].as_array().unwrap();
        assert_eq!(known.len(), 4, "one of each start, and one of each node; not the late one {late}");

        // The mark is gone: a second start raises nothing.
        coordinator.run(&["coordinator", "down"]).ok();
        coordinator.run(&["coordinator", "up"]).ok();
        let later = coordinator.json("nodes", &["nodes", "list"])["revision"].as_u64().unwrap();
        assert!(later < restored + (1 << 31), "{later}");
    });
}
