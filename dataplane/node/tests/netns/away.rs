//! The coordinator is away: what works goes on working.

use std::time::{Duration, Instant};

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;

use crate::{
    support::{block_on, daemon::Place, process::Process},
    world::{Machine, World, within},
};

#[test]
fn pings_go_on_and_the_coordinator_is_found_again() {
    in_sandbox(|| {
        block_on(async {
            let mut world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let mut bob = world.node("bob", Choice::Auto).await;
            alice.until_peers(1).await;
            alice.echo("bob").await;
            world.kill_coordinator();
            for _ in 0..5 {
                alice.machine.ping(bob.ipv4);
                bob.machine.ping(alice.ipv6);
            }
            alice
                .node
                .until("it misses the coordinator", |status| {
                    status.coordinator.as_ref().unwrap().state != "connected"
                })
                .await;
            world.start_coordinator().await;
            alice.until_connected().await;
            bob.until_connected().await;
            // In step again: what changes now arrives.
            let _carol = world.node("carol", Choice::Auto).await;
            alice.until_peers(2).await;
            bob.until_peers(2).await;
        });
    });
}

#[test]
fn a_node_whose_secrets_file_is_damaged_has_sessions_again() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let mut bob = world.node("bob", Choice::Auto).await;
            alice.until_peers(1).await;
            alice.echo("bob").await;
            alice.node.stop().await.unwrap();
            let file = alice.place.state("secrets");
            let mut content = std::fs::read(&file).unwrap();
            let middle = content.iter().position(|byte| *byte == b'=').unwrap() - 9;
            content[middle] = if content[middle] == b'A' { b'B' } else { b'A' };
            std::fs::write(&file, content).unwrap();
            let place = std::sync::Arc::clone(&alice.place);
            alice.node = alice.machine.run(async move { place.start().await.unwrap() }).await;
            alice.node.until("it runs with its key", |status| status.state == "running").await;
            alice.echo("bob").await;
            bob.echo("alice").await;
            let status = alice.node.status().await;
            assert_eq!((status.network.unwrap().epoch, status.peers[0].sessions), (1, 1));
        });
    });
}

/// A node as a process of its own, joined to `world`.
async fn process(world: &World, machine: &Machine, place: &Place, name: &str) -> Process {
    let mut process = Process::start(machine.this_program(), place).await;
    process.node.join(&world.token().await, name).await.unwrap();
    process
}

async fn a_killed_node_forwards_again_from_its_map(io: Choice) {
    let mut world = World::new().await;
    let mut alice = world.node("alice", io).await;
    let machine = Machine::new(&world.switch, "bob");
    let mut place = Place::new();
    place.config.io = io;
    let mut bob = process(&world, &machine, &place, "bob").await;
    alice.until_peers(1).await;
    alice.echo("bob").await;
    alice.machine.ping("100.64.0.2".parse::<std::net::Ipv4Addr>().unwrap());

    world.kill_coordinator();
    bob.kill();
    let began = Instant::now();
    let mut again = Process::start(machine.this_program(), &place).await;
    let ready = began.elapsed();
    within(Duration::from_secs(1), "the restarted node forwards", || machine.reaches(alice.ipv4));
    let forwards = began.elapsed();
    assert!(forwards < Duration::from_secs(1), "ready after {ready:?}, forwards after {forwards:?}");
    // From the other side as well, whose session was with the killed daemon.
    alice.machine.ping(
        again.node.status().await.network.unwrap().self_.unwrap().ipv4.parse::<std::net::Ipv4Addr>().unwrap(),
    );
    let links = machine.host.links().unwrap();
    assert_eq!(links.iter().filter(|name| name.starts_with("mesh")).count(), 1, "{links:?}");
    again.terminate();
    assert!(!machine.host.links().unwrap().contains(&"mesh0".to_owned()), "a clean stop leaves nothing");
    assert!(!place.config.socket.exists());
}

#[test]
fn a_killed_node_forwards_again_from_its_map_by_uring() {
    in_sandbox(|| block_on(a_killed_node_forwards_again_from_its_map(Choice::Uring)));
}

#[test]
fn a_killed_node_forwards_again_from_its_map_by_poll() {
    in_sandbox(|| block_on(a_killed_node_forwards_again_from_its_map(Choice::Poll)));
}

#[test]
fn sessions_are_renewed_while_the_coordinator_is_away_and_no_packet_is_lost() {
    in_sandbox(|| {
        block_on(async {
            let mut world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let bob = world.node("bob", Choice::Auto).await;
            alice.until_peers(1).await;
            alice.echo("bob").await;
            assert_eq!(alice.node.status().await.peers[0].sessions, 1);
            world.kill_coordinator();
            // REKEY_AFTER_TIME is 120 s, by the wire's constants: it cannot be hurried.
            let told = alice.machine.sh(&format!("ping -n -q -i 0.25 -c 500 -W 5 {}", bob.ipv4));
            assert!(told.contains(" 0% packet loss"), "{told}");
            let peer = alice.node.status().await.peers.remove(0);
            assert_eq!(peer.sessions, 2, "{peer:?}");
            assert!(peer.handshake_age_ms.unwrap() < 60_000, "{peer:?}");
        });
    });
}
