//! What directed scenarios share: nodes in places, pairs that talk, and what was seen of their paths.
#![allow(dead_code, reason = "every scenario file uses its part of this")]

use std::time::Duration;

use ringmesh_sim::network::Realm;
use ringmesh_sim::{NatKind, NodeIndex, World};
use ringmesh_tunnel::{Carrier, Event, Path};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// How often each side of a talking pair sends.
pub(crate) const PACE: Duration = Duration::from_millis(50);

/// How one node reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Nothing,
    Udp,
    Relay,
    Ssh,
    WebSocket,
}

/// A node on the internet, by IPv4.
pub(crate) fn public(world: &mut World) -> NodeIndex {
    let place = world.network.fresh_place(Realm::INTERNET, true, false);
    world.add_node(place)
}

/// A node behind a router of its own.
pub(crate) fn behind(world: &mut World, kind: NatKind) -> NodeIndex {
    let inside = world.network.add_router(Realm::INTERNET, kind, None);
    let place = world.network.fresh_place(inside, true, false);
    world.add_node(place)
}

/// Two nodes that can be direct, and a relay.
pub(crate) fn pair_with_relay(seed: u64) -> (World, NodeIndex, NodeIndex, NodeIndex) {
    let mut world = World::new(seed);
    let a = behind(&mut world, NatKind::port_restricted());
    let b = behind(&mut world, NatKind::address_restricted());
    let relay = world.add_relay();
    world.introduce_all();
    (world, a, b, relay)
}

/// Two nodes that only a relay can bring together, and it.
pub(crate) fn relayed_pair(seed: u64) -> (World, NodeIndex, NodeIndex, NodeIndex) {
    let mut world = World::new(seed);
    let a = behind(&mut world, NatKind::symmetric());
    let b = behind(&mut world, NatKind::symmetric());
    let relay = world.add_relay();
    world.introduce_all();
    (world, a, b, relay)
}

/// Lets a pair talk for a while.
pub(crate) fn talk(world: &mut World, a: NodeIndex, b: NodeIndex, time: Duration) {
    let end = world.elapsed() + time;
    while world.elapsed() < end {
        world.send(a, b, 100);
        world.send(b, a, 100);
        world.run(PACE);
    }
}

/// How `a` reaches `b` at present.
pub(crate) fn by(world: &World, a: NodeIndex, b: NodeIndex) -> By {
    match world.peer(a, b).and_then(|status| status.endpoint) {
        None => By::Nothing,
        Some(Path::Udp(_)) => By::Udp,
        Some(Path::Relay(_)) => By::Relay,
        Some(Path::Link(link)) if link.carrier == Carrier::Ssh => By::Ssh,
        Some(Path::Link(_)) => By::WebSocket,
    }
}

/// How the two reach each other, if it is the same way.
pub(crate) fn both_by(world: &World, a: NodeIndex, b: NodeIndex) -> Option<By> {
    let way = by(world, a, b);
    (way == by(world, b, a)).then_some(way)
}

/// Packets between the two sent from `since` on that did not arrive, though they had a second.
pub(crate) fn missing(world: &World, a: NodeIndex, b: NodeIndex, since: Duration) -> usize {
    let judged = world.elapsed().saturating_sub(SECOND);
    let between = |from, to| (from, to) == (a, b) || (from, to) == (b, a);
    let due = world.ledger.iter().filter(|entry| entry.sent >= since && entry.sent < judged);
    due.filter(|entry| between(entry.from, entry.to) && entry.delivered.is_none()).count()
}

/// The longest time, from `since` on, in which nothing arrived at `to`.
pub(crate) fn stall(world: &World, from: NodeIndex, to: NodeIndex, since: Duration) -> Duration {
    let arrivals = world.ledger.iter().filter(|entry| entry.from == from && entry.to == to);
    let mut times: Vec<Duration> =
        arrivals.filter_map(|entry| entry.delivered).filter(|&at| at >= since).collect();
    times.extend([since, world.elapsed()]);
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// The longer stall of both directions.
pub(crate) fn worst_stall(world: &World, a: NodeIndex, b: NodeIndex, since: Duration) -> Duration {
    stall(world, a, b, since).max(stall(world, b, a, since))
}

/// Lets the pair talk until both hear each other again; tells how long that took.
pub(crate) fn until_heard(world: &mut World, a: NodeIndex, b: NodeIndex, limit: Duration) -> Duration {
    let start = world.elapsed();
    let heard = |world: &World, from, to| {
        let mut sent = world.ledger.iter().rev().take_while(|entry| entry.sent >= start);
        sent.any(|entry| (entry.from, entry.to) == (from, to) && entry.delivered.is_some())
    };
    while !(heard(world, a, b) && heard(world, b, a)) {
        assert!(world.elapsed() - start <= limit, "not heard within {limit:?}");
        talk(world, a, b, PACE);
    }
    world.elapsed() - start
}

/// Sessions that `a` had with `b`.
pub(crate) fn sessions(world: &World, a: NodeIndex, b: NodeIndex) -> usize {
    world.node(a).sessions_with(b).count()
}

/// How often `a` selected another path to `b` from `since` on.
pub(crate) fn moves(world: &World, a: NodeIndex, b: NodeIndex, since: Duration) -> usize {
    let is = |event: &Event| matches!(event, Event::PathSelected { peer, .. } if *peer == b.id());
    world.node(a).events.iter().filter(|(at, event)| *at >= since && is(event)).count()
}
