//! The core on a wire that loses a fifth, duplicates, delays and reorders. That nothing is delivered twice, changed or to
//! the wrong node is the ledger's business, and holds in all of these.

use std::net::SocketAddr;
use std::time::Duration;

use ringmesh_sim::{NodeIndex, Place, Weather, World, seeds};
use ringmesh_tunnel::DropReason;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn pair(seed: u64, weather: Weather) -> (World, NodeIndex, NodeIndex) {
    let mut world = World::mesh(seed, 2);
    world.network.weather = weather;
    let [a, b] = world.indices()[..] else { unreachable!("two nodes were asked for") };
    (world, a, b)
}

/// Sends packets of random sizes in random directions, one every 50 ms on average.
fn chatter(world: &mut World, time: Duration) {
    let end = world.elapsed() + time;
    while world.elapsed() < end {
        let nodes = world.indices();
        let (from, to) = (*world.rng.pick(&nodes), *world.rng.pick(&nodes));
        let len = world.rng.below(1300) as usize;
        if from != to {
            world.send(from, to, len);
        }
        let pause = world.rng.duration(&(Duration::ZERO..=Duration::from_millis(100)));
        world.run(pause);
    }
}

/// The time until a ping in each direction is answered; asks again each second, as a user would.
fn until_connected(world: &mut World, a: NodeIndex, b: NodeIndex, limit: Duration) -> Duration {
    let start = world.elapsed();
    let first = world.rng.bits() >> 1;
    for token in first.. {
        let done = |world: &World| {
            (first..=token).any(|token| world.answered(a, token))
                && (first..=token).any(|token| world.answered(b, token))
        };
        world.ping(a, b, token);
        world.ping(b, a, token);
        for _ in 0..100 {
            if done(world) {
                return world.elapsed() - start;
            }
            world.run(Duration::from_millis(10));
        }
        assert!(world.elapsed() - start < limit, "not connected within {limit:?}");
    }
    unreachable!("the range of tokens does not end")
}

#[test]
fn session_comes_up_in_foul_weather() {
    seeds::check(0..300, |seed| {
        let (mut world, a, b) = pair(seed, Weather::foul());
        // Two thirds of the attempts get through, and there is one every five seconds.
        until_connected(&mut world, a, b, MINUTE);
    });
}

#[test]
fn session_comes_up_in_one_round_trip_in_fine_weather() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b) = pair(seed, Weather::fine());
        let number = world.send(a, b, 100);
        world.run(Duration::from_millis(30));
        let entry = world.ledger.get(number).unwrap();
        assert_eq!(
            entry.delivered,
            Some(Duration::from_millis(30)),
            "there, back, and there with the packet"
        );
    });
}

#[test]
fn chatter_in_foul_weather_loses_no_more_than_the_weather_takes() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b) = pair(seed, Weather::foul());
        until_connected(&mut world, a, b, MINUTE);
        let start = world.elapsed();
        chatter(&mut world, 10 * MINUTE);
        world.run(SECOND);
        let rate = world.ledger.delivery_rate(start);
        assert!((0.77..0.83).contains(&rate), "{rate} arrived");
        // A session lasts two minutes before it is renewed, and is dead after three.
        let (began, answered) = world.node(a).sessions();
        let sessions = began + answered;
        assert!((5..=16).contains(&sessions), "{sessions} sessions in ten minutes");
        let expired = world.node(a).dropped(DropReason::SessionExpired);
        assert_eq!(expired, 0, "no session was used up");
        assert!(world.node(a).dropped(DropReason::Replayed) > 0, "duplicates were there to be dropped");
    });
}

#[test]
fn fine_weather_loses_nothing_through_ten_rekeys() {
    seeds::check(0..10, |seed| {
        let (mut world, a, b) = pair(seed, Weather::fine());
        until_connected(&mut world, a, b, SECOND);
        chatter(&mut world, 20 * MINUTE);
        world.run(SECOND);
        assert_eq!(world.ledger.delivery_rate(Duration::ZERO), 1.0);
        let (began, answered) = world.node(a).sessions();
        assert!(began + answered >= 9);
    });
}

#[test]
fn packets_that_overtake_each_other_all_arrive() {
    seeds::check(0..10, |seed| {
        let delay = Duration::ZERO..=2 * SECOND;
        let (mut world, a, b) = pair(seed, Weather { loss: 0.0, duplication: 0.3, delay });
        until_connected(&mut world, a, b, MINUTE);
        let start = world.elapsed();
        chatter(&mut world, MINUTE);
        world.run(5 * SECOND);
        assert_eq!(world.ledger.delivery_rate(start), 1.0);
    });
}

#[test]
fn five_nodes_chatter_in_foul_weather() {
    seeds::check(0..6, |seed| {
        let mut world = World::mesh(seed, 5);
        world.network.weather = Weather::foul();
        chatter(&mut world, 3 * MINUTE);
        let start = world.elapsed();
        chatter(&mut world, 3 * MINUTE);
        world.run(SECOND);
        let rate = world.ledger.delivery_rate(start);
        assert!((0.74..0.86).contains(&rate), "{rate} arrived");
    });
}

#[test]
fn roaming_node_is_found_again_by_what_it_sends() {
    seeds::check(0..50, |seed| {
        // Nothing is lost: three lost probes would rightly begin a handshake.
        let (mut world, a, b) = pair(seed, Weather::delayed(1, 120));
        until_connected(&mut world, a, b, MINUTE);
        // Both began at once; what that leaves behind is sorted out before anyone moves.
        chatter(&mut world, 20 * SECOND);
        for place in 0..5u16 {
            let sessions = world.node(b).sessions();
            let address = SocketAddr::from(([0x2001, 0xdb8, 7, 0, 0, 0, 0, 7], 4000 + place));
            world.roam_unnoticed(a, Place::public(address));
            until_connected(&mut world, a, b, 10 * SECOND);
            assert_eq!(world.node(b).sessions(), sessions, "without a handshake");
            world.run(SECOND);
        }
    });
}

#[test]
fn partition_heals_within_a_retry() {
    seeds::check(0..30, |seed| {
        let (mut world, a, b) = pair(seed, Weather::fine());
        until_connected(&mut world, a, b, SECOND);
        world.network.cut(a, b);
        if seed % 2 == 0 {
            world.network.cut(b, a);
        }
        let outage = world.rng.duration(&(SECOND..=20 * MINUTE));
        chatter(&mut world, outage);
        world.network.heal();
        let took = until_connected(&mut world, a, b, 7 * SECOND);
        assert!(took <= Duration::from_millis(6_400), "{took:?} after {outage:?}");
    });
}

#[test]
fn restarted_node_is_back_within_a_round_trip_when_it_speaks_first() {
    seeds::check(0..50, |seed| {
        let (mut world, a, b) = pair(seed, Weather::fine());
        until_connected(&mut world, a, b, SECOND);
        world.run(5 * SECOND);
        world.restart(a);
        let number = world.send(a, b, 10);
        world.run(Duration::from_millis(30));
        assert!(world.ledger.get(number).unwrap().delivered.is_some());
    });
}

#[test]
fn peers_of_a_silently_restarted_node_notice_in_time() {
    seeds::check(0..30, |seed| {
        let (mut world, a, b) = pair(seed, Weather::fine());
        until_connected(&mut world, a, b, SECOND);
        world.run(5 * SECOND);
        world.restart(a);
        // b does not know; what it sends is lost until the silence tells it, 15.333 s later at most.
        let start = world.elapsed();
        let found =
            |world: &World| world.ledger.iter().any(|entry| entry.sent >= start && entry.delivered.is_some());
        while !found(&world) {
            assert!(world.elapsed() - start < 18 * SECOND);
            world.send(b, a, 10);
            world.run(SECOND);
        }
    });
}

#[test]
fn wall_clocks_that_jump_do_not_stop_handshakes() {
    seeds::check(0..20, |seed| {
        let (mut world, a, b) = pair(seed, Weather::fine());
        until_connected(&mut world, a, b, SECOND);
        for _ in 0..5 {
            let hours = world.rng.below(20_000) as i64 - 10_000;
            world.set_wall_clock(a, hours * 3_600_000);
            if world.rng.chance(0.5) {
                world.restart(a);
            }
            world.run(10 * MINUTE);
            until_connected(&mut world, a, b, 7 * SECOND);
        }
        assert_eq!(world.node(b).dropped(DropReason::OldTimestamp), 0);
    });
}

#[test]
fn idle_week_ends_with_a_session_at_the_first_packet() {
    let (mut world, a, b) = pair(1, Weather::fine());
    until_connected(&mut world, a, b, SECOND);
    world.run(7 * 24 * 60 * MINUTE);
    let sent = world.network.sent();
    let number = world.send(a, b, 10);
    world.run(SECOND);
    assert!(world.ledger.get(number).unwrap().delivered.is_some());
    // A handshake, the packet, and both sides' first probes.
    assert!(world.network.sent() - sent < 16);
}

#[test]
fn forgotten_node_gets_nothing_more() {
    seeds::check(0..10, |seed| {
        let (mut world, a, b) = pair(seed, Weather::foul());
        until_connected(&mut world, a, b, MINUTE);
        world.introduce(b, &[]);
        let start = world.elapsed();
        chatter(&mut world, MINUTE);
        assert_eq!(world.ledger.delivery_rate(start), 0.0);
    });
}

fn scenario(seed: u64) -> (u64, u64) {
    let mut world = World::mesh(seed, 3);
    world.network.weather = Weather::foul();
    chatter(&mut world, MINUTE);
    let node = *world.rng.pick(&world.indices());
    world.restart(node);
    chatter(&mut world, 3 * MINUTE);
    (world.fingerprint(), world.network.sent())
}

#[test]
fn run_replays_identically_from_its_seed() {
    for seed in 0..5 {
        assert_eq!(scenario(seed), scenario(seed));
    }
    assert_ne!(scenario(1).0, scenario(2).0);
}
