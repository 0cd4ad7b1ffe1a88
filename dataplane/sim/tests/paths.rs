//! What must never happen to a pair again, one scenario each.

mod scene;

use std::time::Duration;

use ringmesh_sim::network::Realm;
use ringmesh_sim::{NatKind, World, seeds};
use ringmesh_tunnel::DropReason;
use scene::{
    By, MINUTE, SECOND, behind, both_by, by, missing, moves, pair_with_relay, public, relayed_pair, sessions,
    talk, until_heard, worst_stall,
};

// Sessions.

#[test]
fn restarted_peer_that_speaks_is_heard_within_three_seconds() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        world.restart(a);
        let start = world.elapsed();
        while !world.ledger.iter().any(|entry| entry.sent >= start && entry.delivered.is_some()) {
            assert!(world.elapsed() - start <= 3 * SECOND, "not within 3 s");
            world.send(a, b, 10);
            world.run(scene::PACE);
        }
    });
}

#[test]
fn restarted_peer_that_is_silent_is_found_within_sixteen_seconds() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        world.restart(a);
        let start = world.elapsed();
        while !world.ledger.iter().any(|entry| entry.sent >= start && entry.delivered.is_some()) {
            assert!(world.elapsed() - start <= 16 * SECOND, "not within 16 s");
            world.send(b, a, 10);
            world.run(scene::PACE);
        }
    });
}

#[test]
fn handshakes_that_cross_leave_one_session_that_both_use() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        world.run(2 * SECOND);
        world.send(a, b, 10);
        world.send(b, a, 10);
        talk(&mut world, a, b, 30 * SECOND);
        assert_eq!(missing(&world, a, b, Duration::ZERO), 0);
        assert!(sessions(&world, a, b) <= 2 && sessions(&world, b, a) <= 2);
    });
}

#[test]
fn idle_session_is_used_again_without_a_handshake() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let before = sessions(&world, a, b);
        world.run(95 * SECOND);
        let number = world.send(a, b, 10);
        world.run(2 * SECOND);
        let entry = world.ledger.get(number).unwrap();
        let took = entry.delivered.expect("it arrives") - entry.sent;
        assert!(took <= SECOND, "{took:?}");
        assert_eq!(sessions(&world, a, b), before);
    });
}

#[test]
fn first_packet_after_ten_idle_minutes_arrives() {
    for kind in [NatKind::port_restricted(), NatKind::symmetric()] {
        seeds::check(0..10, |seed| {
            let mut world = World::new(seed);
            let kind = NatKind { timeout: 30 * SECOND, ..kind };
            let (a, b) = (behind(&mut world, kind), behind(&mut world, kind));
            world.add_relay();
            world.introduce_all();
            talk(&mut world, a, b, 15 * SECOND);
            world.run(10 * MINUTE);
            let number = world.send(a, b, 10);
            world.run(20 * SECOND);
            let entry = world.ledger.get(number).unwrap();
            let took = entry.delivered.map(|at| at - entry.sent);
            assert!(
                took.is_some_and(|took| took <= SECOND),
                "{took:?} {:?}",
                world.node(a).events.iter().rev().take(9).collect::<Vec<_>>()
            );
        });
    }
}

#[test]
fn idle_pairs_say_nothing_to_each_other() {
    seeds::check(0..10, |seed| {
        let (mut direct, a, b, relay) = pair_with_relay(seed);
        talk(&mut direct, a, b, 15 * SECOND);
        direct.run(30 * SECOND);
        let before = (direct.network.between_nodes(&[relay]), direct.node(relay).passed_on());
        direct.run(3 * MINUTE);
        assert_eq!((direct.network.between_nodes(&[relay]), direct.node(relay).passed_on()), before);

        let (mut relayed, a, b, relay) = relayed_pair(seed);
        talk(&mut relayed, a, b, 15 * SECOND);
        relayed.run(45 * SECOND);
        let before = relayed.node(relay).passed_on();
        relayed.run(3 * MINUTE);
        assert_eq!(relayed.node(relay).passed_on(), before, "what a relay passes on for nobody");
    });
}

#[test]
fn idle_node_does_not_move_between_the_addresses_of_its_relay() {
    let mut world = World::new(1);
    let place = world.network.fresh_place(Realm::INTERNET, true, true);
    let node = world.add_node(place);
    let relay = world.add_relay();
    world.introduce_all();
    world.run(MINUTE);
    let since = world.elapsed();
    world.run(10 * MINUTE);
    assert_eq!(moves(&world, node, relay, since), 0);
    let sent = world.network.sent();
    world.run(10 * MINUTE);
    let sent = world.network.sent() - sent;
    // Two addresses, each asked every 20 s and answering, and a handshake every two minutes.
    assert!(sent <= 200, "{sent} datagrams to keep a mapping in ten minutes");
}

// Roaming and network events.

#[test]
fn roaming_node_is_reached_though_its_old_address_is_dead() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let (since, before) = (world.elapsed(), sessions(&world, a, b));
        let inside = world.network.add_router(Realm::INTERNET, NatKind::port_restricted(), None);
        let place = world.network.fresh_place(inside, true, false);
        world.roam(a, place);
        talk(&mut world, a, b, 20 * SECOND);
        let stall = worst_stall(&world, a, b, since);
        assert!(stall <= 2 * SECOND, "{stall:?}");
        assert_eq!(sessions(&world, a, b), before, "without a handshake");
        assert_eq!(both_by(&world, a, b), Some(By::Udp));
    });
}

#[test]
fn both_nodes_roam_at_once_and_find_each_other_through_the_relay() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        // Nobody else tells them.
        world.set_away(a, true);
        world.set_away(b, true);
        let since = world.elapsed();
        for node in [a, b] {
            let inside = world.network.add_router(Realm::INTERNET, NatKind::port_restricted(), None);
            let place = world.network.fresh_place(inside, true, false);
            world.roam(node, place);
        }
        talk(&mut world, a, b, 20 * SECOND);
        let stall = worst_stall(&world, a, b, since);
        assert!(stall <= 5 * SECOND, "{stall:?}");
        assert_eq!(both_by(&world, a, b), Some(By::Udp));
    });
}

#[test]
fn node_moves_from_ipv4_to_ipv6_and_keeps_its_session() {
    seeds::check(0..20, |seed| {
        let mut world = World::new(seed);
        let [a, b] = [(); 2].map(|()| {
            let place = world.network.fresh_place(Realm::INTERNET, true, true);
            world.add_node(place)
        });
        world.add_relay();
        world.introduce_all();
        let place = world.network.fresh_place(Realm::INTERNET, true, false);
        world.roam(a, place);
        talk(&mut world, a, b, 12 * SECOND);
        let (since, before) = (world.elapsed(), sessions(&world, a, b));
        let place = world.network.fresh_place(Realm::INTERNET, false, true);
        world.roam(a, place);
        talk(&mut world, a, b, 20 * SECOND);
        assert!(worst_stall(&world, a, b, since) <= 2 * SECOND);
        assert_eq!((sessions(&world, a, b), both_by(&world, a, b)), (before, Some(By::Udp)));
    });
}

#[test]
fn network_event_tears_nothing_down() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let (since, before) = (world.elapsed(), sessions(&world, a, b));
        for _ in 0..30 {
            world.rattle(a);
            talk(&mut world, a, b, SECOND);
        }
        assert_eq!(missing(&world, a, b, since), 0);
        assert_eq!((sessions(&world, a, b), both_by(&world, a, b)), (before, Some(By::Udp)));
    });
}

#[test]
fn router_that_forgets_its_mappings_costs_two_seconds() {
    for relayed in [false, true] {
        seeds::check(0..20, |seed| {
            let (mut world, a, b, _) = if relayed { relayed_pair(seed) } else { pair_with_relay(seed) };
            talk(&mut world, a, b, 12 * SECOND);
            let since = world.elapsed();
            let home = world.network.place(a).realm;
            world.network.reboot_router(home);
            talk(&mut world, a, b, 20 * SECOND);
            let stall = worst_stall(&world, a, b, since);
            assert!(stall <= 5 * SECOND, "{stall:?}");
            assert_eq!(both_by(&world, a, b), Some(if relayed { By::Relay } else { By::Udp }));
        });
    }
}

#[test]
fn relay_follows_a_client_whose_address_changed() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, relay) = relayed_pair(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let home = world.network.place(a).realm;
        world.network.reboot_router(home);
        talk(&mut world, a, b, 10 * SECOND);
        let hop = world.node(relay).client_hop(a);
        for _ in 0..60 {
            talk(&mut world, a, b, SECOND);
            assert_eq!(world.node(relay).client_hop(a), hop, "it goes back and forth");
        }
    });
}

// Paths.

#[test]
fn both_sides_come_to_the_same_path() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        world.add_ssh(a, b);
        world.introduce_all();
        talk(&mut world, a, b, 12 * SECOND);
        assert_eq!(both_by(&world, a, b), Some(By::Udp));
        world.network.block_udp(b, true);
        talk(&mut world, a, b, 15 * SECOND);
        assert_eq!(both_by(&world, a, b), Some(By::Ssh));
    });
}

#[test]
fn relayed_packet_on_a_good_direct_path_changes_nothing() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let before = sessions(&world, a, b);
        for _ in 0..10 {
            // Long enough for a probe to be missed: twins go through the relay.
            world.network.cut(b, a);
            talk(&mut world, a, b, Duration::from_millis(1200));
            world.network.mend(b, a);
            talk(&mut world, a, b, 8 * SECOND);
            assert_eq!(both_by(&world, a, b), Some(By::Udp));
        }
        assert_eq!(sessions(&world, a, b), before);
    });
}

#[test]
fn one_way_partition_is_noticed_from_both_ends() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let (since, before) = (world.elapsed(), sessions(&world, a, b));
        world.network.cut(a, b);
        talk(&mut world, a, b, 20 * SECOND);
        assert_eq!(both_by(&world, a, b), Some(By::Relay));
        let stall = worst_stall(&world, a, b, since);
        assert!(stall <= 5 * SECOND, "{stall:?}");
        world.network.heal();
        let since = world.elapsed();
        talk(&mut world, a, b, MINUTE);
        assert_eq!(both_by(&world, a, b), Some(By::Udp));
        assert_eq!(missing(&world, a, b, since), 0, "going back costs nothing");
        assert_eq!(sessions(&world, a, b), before);
    });
}

#[test]
fn partition_heals_within_six_seconds_however_long_it_was() {
    for outage in [30 * SECOND, 5 * MINUTE, 60 * MINUTE] {
        seeds::check(0..5, |seed| {
            let (mut world, a, b, relay) = pair_with_relay(seed);
            talk(&mut world, a, b, 12 * SECOND);
            let cut = [(a, b), (b, a), (a, relay), (relay, a)];
            cut.iter().for_each(|&(from, to)| world.network.cut(from, to));
            let end = world.elapsed() + outage;
            while world.elapsed() < end {
                world.send(a, b, 10);
                world.send(b, a, 10);
                world.run(SECOND);
            }
            world.network.heal();
            let took = until_heard(&mut world, a, b, 10 * SECOND);
            assert!(took <= 6 * SECOND, "{took:?} after {outage:?}");
        });
    }
}

#[test]
fn loss_of_the_relay_alone_is_nothing_to_a_direct_pair() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, relay) = pair_with_relay(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let (since, before) = (world.elapsed(), sessions(&world, a, b));
        world.network.cut(a, relay);
        world.network.cut(relay, a);
        talk(&mut world, a, b, 30 * SECOND);
        world.network.heal();
        world.stop(relay);
        talk(&mut world, a, b, 30 * SECOND);
        world.restart(relay);
        talk(&mut world, a, b, 30 * SECOND);
        assert_eq!(missing(&world, a, b, since), 0);
        assert_eq!((sessions(&world, a, b), moves(&world, a, b, since)), (before, 0));
    });
}

// Relays.

#[test]
fn restarted_relay_is_used_again_without_a_handshake_of_its_clients() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, relay) = relayed_pair(seed);
        talk(&mut world, a, b, 12 * SECOND);
        let since = world.elapsed();
        world.restart(relay);
        talk(&mut world, a, b, 20 * SECOND);
        let stall = worst_stall(&world, a, b, since);
        assert!(stall <= 10 * SECOND, "{stall:?}");
        let since = world.elapsed();
        talk(&mut world, a, b, 10 * SECOND);
        assert_eq!(missing(&world, a, b, since), 0);
    });
}

#[test]
fn relay_that_is_not_there_at_first_is_tried_for_ever() {
    seeds::check(0..10, |seed| {
        let (mut world, a, b, relay) = relayed_pair(seed);
        world.stop(relay);
        let end = world.elapsed() + 20 * MINUTE;
        while world.elapsed() < end {
            world.send(a, b, 10);
            world.send(b, a, 10);
            world.run(SECOND);
        }
        world.restart(relay);
        let took = until_heard(&mut world, a, b, 30 * SECOND);
        assert!(took <= 10 * SECOND, "{took:?}");
    });
}

#[test]
fn death_of_one_relay_of_two_costs_five_seconds() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = relayed_pair(seed);
        world.add_relay();
        world.introduce_all();
        talk(&mut world, a, b, 15 * SECOND);
        let before = sessions(&world, a, b);
        for relay in world.relays() {
            let since = world.elapsed();
            world.stop(relay);
            talk(&mut world, a, b, 15 * SECOND);
            let stall = worst_stall(&world, a, b, since);
            assert!(stall <= 5 * SECOND, "{stall:?}");
            world.restart(relay);
            talk(&mut world, a, b, 15 * SECOND);
        }
        assert_eq!(sessions(&world, a, b), before);
    });
}

// Links.

#[test]
fn udp_blocked_on_the_way_is_replaced_by_ssh_or_websocket_and_comes_back() {
    for ssh in [true, false] {
        seeds::check(0..20, |seed| {
            let (mut world, a, b, _) = pair_with_relay(seed);
            if ssh {
                world.add_ssh(a, b);
                world.introduce_all();
            }
            talk(&mut world, a, b, 12 * SECOND);
            let (since, before) = (world.elapsed(), sessions(&world, a, b));
            world.network.block_udp(a, true);
            talk(&mut world, a, b, 20 * SECOND);
            let stall = worst_stall(&world, a, b, since);
            assert!(stall <= 8 * SECOND, "{stall:?}");
            assert_eq!(both_by(&world, a, b), Some(if ssh { By::Ssh } else { By::Relay }));
            let since = world.elapsed();
            world.network.block_udp(a, false);
            talk(&mut world, a, b, MINUTE);
            assert_eq!(both_by(&world, a, b), Some(By::Udp));
            let stall = worst_stall(&world, a, b, since);
            assert!(stall <= Duration::from_millis(200), "{stall:?} to come back");
            assert_eq!(sessions(&world, a, b), before);
        });
    }
}

#[test]
fn ssh_lost_after_udp_leaves_the_websocket() {
    seeds::check(0..10, |seed| {
        let mut world = World::new(seed);
        // Two hosts, of which one can be dialled: SSH stands on the pair, the WebSocket on the relay.
        let (a, b) = (public(&mut world), public(&mut world));
        let relay = world.add_relay();
        world.add_ssh(a, b);
        world.introduce_all();
        talk(&mut world, a, b, 10 * SECOND);
        world.network.block_udp(a, true);
        talk(&mut world, a, b, 15 * SECOND);
        assert_eq!(both_by(&world, a, b), Some(By::Ssh));
        let since = world.elapsed();
        world.network.cut(a, b);
        world.network.cut(b, a);
        talk(&mut world, a, b, 20 * SECOND);
        assert_eq!(both_by(&world, a, b), Some(By::Relay));
        assert_eq!(by(&world, a, relay), By::WebSocket);
        let stall = worst_stall(&world, a, b, since);
        assert!(stall <= 8 * SECOND, "{stall:?}");
        world.network.heal();
        world.network.block_udp(a, false);
        talk(&mut world, a, b, MINUTE);
        assert_eq!(both_by(&world, a, b), Some(By::Udp));
    });
}

#[test]
fn node_without_udp_is_connected_within_eight_seconds_of_its_start() {
    for ssh in [true, false] {
        seeds::check(0..20, |seed| {
            let (mut world, a, b, _) = pair_with_relay(seed);
            if ssh {
                world.add_ssh(a, b);
                world.introduce_all();
            }
            world.network.block_udp(a, true);
            world.restart(a);
            let took = until_heard(&mut world, a, b, 8 * SECOND);
            assert!(took <= 8 * SECOND, "{took:?}");
        });
    }
}

#[test]
fn stream_that_is_stuck_is_opened_anew() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        world.network.block_udp(a, true);
        talk(&mut world, a, b, 15 * SECOND);
        let since = world.elapsed();
        let place = world.network.fresh_place(Realm::INTERNET, true, false);
        world.roam(a, place);
        talk(&mut world, a, b, 20 * SECOND);
        let stall = worst_stall(&world, a, b, since);
        assert!(stall <= 8 * SECOND, "TCP itself would say nothing for a minute: {stall:?}");
    });
}

#[test]
fn surplus_streams_are_closed() {
    seeds::check(0..10, |seed| {
        let (mut world, a, b, _) = pair_with_relay(seed);
        for _ in 0..5 {
            world.network.block_udp(a, true);
            talk(&mut world, a, b, 15 * SECOND);
            world.network.block_udp(a, false);
            talk(&mut world, a, b, 15 * SECOND);
        }
        assert!(world.streams.count() <= 4, "{} at once", world.streams.count());
        talk(&mut world, a, b, 3 * MINUTE);
        assert_eq!(world.streams.count(), 0);
    });
}

// Others.

#[test]
fn week_without_the_coordinator_loses_nothing() {
    let (mut world, a, b, _) = pair_with_relay(1);
    talk(&mut world, a, b, 12 * SECOND);
    world.set_away(a, true);
    world.set_away(b, true);
    let since = world.elapsed();
    let end = since + 24 * 60 * MINUTE;
    while world.elapsed() < end {
        world.send(a, b, 10);
        world.send(b, a, 10);
        world.run(5 * SECOND);
    }
    assert_eq!(missing(&world, a, b, since), 0);
    assert_eq!(world.node(a).dropped(DropReason::SessionExpired), 0);
}

#[test]
fn many_peers_that_name_one_address_do_not_make_it_a_target() {
    let mut world = World::new(1);
    let node = public(&mut world);
    let victim = public(&mut world);
    world.stop(victim);
    let address = world.network.place(victim).addresses()[0];
    // Each reaches the node from a network of its own, and says that it lives at the victim's.
    let relay = world.add_relay();
    let peers: Vec<_> = (0..10).map(|_| behind(&mut world, NatKind::symmetric())).collect();
    for &peer in &peers {
        world.node_mut(peer).claim(address);
    }
    for &peer in &peers {
        world.introduce(peer, &[node, relay]);
    }
    world.introduce(node, &[peers.clone(), vec![relay]].concat());
    world.introduce(relay, &[peers.clone(), vec![node]].concat());
    for _ in 0..180 {
        for &peer in &peers {
            world.send(peer, node, 10);
        }
        world.run(SECOND);
        let sent = world.network.sent_unverified(node, address);
        assert!(sent <= 20, "{sent} datagrams in a minute to somebody who never asked");
    }
}
