//! A node that an operator removes is cut off everywhere.

use std::time::Duration;

use ringmesh_io::Choice;
use ringmesh_lab::in_sandbox;

use crate::{
    support::block_on,
    world::{World, within},
};

#[test]
fn a_removed_node_is_cut_off_within_five_seconds() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let mut bob = world.node("bob", Choice::Auto).await;
            let mut carol = world.node("carol", Choice::Auto).await;
            for member in [&mut alice, &mut bob, &mut carol] {
                member.until_peers(2).await;
            }
            alice.echo("carol").await;
            bob.echo("carol").await;
            alice.echo("bob").await;
            let epoch = alice.node.status().await.network.unwrap().epoch;

            // The one that is removed hears nothing of it: what counts is that the others drop it.
            let head = world.head.host.ipv4();
            carol.machine.sh(&format!(
                "ip route add blackhole {head}/32; ip -6 route add blackhole {}/128",
                world.head.host.ipv6()
            ));
            world.remove("carol").await;
            let took = within(Duration::from_secs(5), "carol is cut off", || {
                !carol.machine.reaches(alice.ipv4) && !carol.machine.reaches(bob.ipv4)
            });
            println!("cut off after {took:?}");
            for member in [&mut alice, &mut bob] {
                member.until_peers(1).await;
                assert!(!member.machine.reaches(carol.ipv4));
            }
            alice
                .node
                .until("a new epoch began", |status| {
                    status.network.as_ref().is_some_and(|network| network.epoch > epoch)
                })
                .await;
            // Those who stay go on, in the new epoch.
            alice.machine.ping(bob.ipv4);
            alice.echo("bob").await;
        });
    });
}

#[test]
fn a_node_that_hears_of_its_removal_takes_its_interface_down() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            alice.until_connected().await;
            world.remove("alice").await;
            alice.node.until("it is removed", |status| status.state == "removed").await;
            assert!(!alice.machine.host.links().unwrap().contains(&"mesh0".to_owned()));
        });
    });
}

#[test]
fn a_node_that_leaves_is_gone_for_the_others() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let mut bob = world.node("bob", Choice::Auto).await;
            alice.until_peers(1).await;
            bob.until_connected().await;
            assert!(bob.node.leave().await.unwrap(), "the coordinator was told");
            alice.until_peers(0).await;
            assert_eq!(world.nodes().await.nodes.len(), 1);
            // With a new key the same machine may come again.
            let token = world.token().await;
            bob.node.join(&token, "bob").await.unwrap();
            alice.until_peers(1).await;
        });
    });
}
