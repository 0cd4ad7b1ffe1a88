//! Notices: only between our nodes, and with their own part in the timers.

use super::*;
use crate::peer::{MAX_NOTICES, PingError};

const FAR: NodeId = NodeId::from_bytes([2; 8]);

fn pongs(node: &Node) -> Vec<(u64, Duration)> {
    let pong = |event: &Event| match event {
        Event::Pong { token, rtt, .. } => Some((*token, *rtt)),
        Event::Established { .. }
        | Event::Unreachable { .. }
        | Event::Expired { .. }
        | Event::PathSelected { .. }
        | Event::SeenFrom { .. }
        | Event::BindRequested { .. } => None,
    };
    node.events.iter().filter_map(pong).collect()
}

#[test]
fn ping_tells_the_round_trip_and_is_answered_where_it_came_from() {
    let mut pair = Pair::connected(1);
    pair.near.tunnel.ping(FAR, 42, pair.now).unwrap();
    pair.work();
    let request = pair.wire.pop_front().unwrap();
    pair.now = pair.now.later(millis(30));
    let mapped = path("203.0.113.7:4000");
    pair.far.take(&Datagram { from: mapped, ..request }, pair.now).unwrap();
    pair.work();
    let reply = pair.wire.pop_front().unwrap();
    assert_eq!(reply.to, mapped, "by the way the request came");
    pair.now = pair.now.later(millis(12));
    pair.near.events.clear();
    pair.near.take(&reply, pair.now).unwrap();
    pair.work();
    assert_eq!(
        pair.near.events,
        [Event::Pong { peer: FAR, token: 42, path: pair.far.path, rtt: millis(42) }]
    );
    assert_eq!(pair.near.peer(2, pair.now).rtt, Some(millis(42)));
}

/// What `near` is told about where it is seen.
fn seen(pair: &Pair) -> Vec<SocketAddr> {
    let seen = |event: &Event| match event {
        Event::SeenFrom { address, .. } => Some(*address),
        Event::Established { .. }
        | Event::Unreachable { .. }
        | Event::Expired { .. }
        | Event::PathSelected { .. }
        | Event::Pong { .. }
        | Event::BindRequested { .. } => None,
    };
    pair.near.events.iter().filter_map(seen).collect()
}

#[test]
fn a_relay_tells_how_we_are_seen_once_and_other_peers_are_not_asked() {
    for relay in [true, false] {
        let mut pair = Pair::with(9, |_| {}, |far| far.relay = relay);
        pair.near.tunnel.ping(FAR, 1, pair.now).unwrap();
        pair.run(seconds(30));
        let expected: Vec<SocketAddr> = if relay { vec![pair.near.path.address().unwrap()] } else { vec![] };
        assert_eq!(seen(&pair), expected);
    }
}

#[test]
fn what_answers_no_probe_tells_nothing_about_where_we_are() {
    let mut pair = Pair::with(10, |_| {}, |far| far.relay = true);
    pair.near.tunnel.ping(FAR, 1, pair.now).unwrap();
    pair.run(seconds(5));
    let before = seen(&pair);
    for token in 0..100 {
        let victim = SocketAddr::from(([198, 51, 100, 1], 1000 + token as u16));
        let reply = crate::notice::Notice::EchoReply { token, seen_from: Some(victim) };
        let peer = pair.far.tunnel.peers.get_mut(0).unwrap();
        peer.notices.push_back(crate::peer::QueuedNotice { notice: reply, path: None });
        pair.far.tunnel.list(0);
        pair.settle();
    }
    assert_eq!(seen(&pair), before);
}

#[test]
fn ping_without_a_session_makes_one() {
    let mut pair = Pair::new(2);
    pair.near.tunnel.ping(FAR, 7, pair.now).unwrap();
    pair.settle();
    assert_eq!(pongs(&pair.near), [(7, Duration::ZERO)]);
    assert_eq!(pair.near.established(), [true]);
    assert!(pair.far.received.is_empty(), "no notice reaches TUN");
}

#[test]
fn pings_that_cannot_be_sent_say_why() {
    let mut pair = Pair::with(3, |_| {}, |far| far.mesh = false);
    assert_eq!(pair.near.tunnel.ping(FAR, 1, pair.now), Err(PingError::StockPeer));
    assert_eq!(pair.near.tunnel.ping(NodeId::from_bytes([9; 8]), 1, pair.now), Err(PingError::UnknownPeer));
    let mut pair = Pair::with(3, |_| {}, |far| far.candidates.clear());
    assert_eq!(pair.near.tunnel.ping(FAR, 1, pair.now), Err(PingError::NoPath));
    let mut pair = Pair::new(3);
    for token in 0..MAX_NOTICES as u64 {
        pair.near.tunnel.ping(FAR, token, pair.now).unwrap();
    }
    assert_eq!(pair.near.tunnel.ping(FAR, 99, pair.now), Err(PingError::TooMany));
    pair.settle();
    assert_eq!(pongs(&pair.near).len(), MAX_NOTICES);
}

#[test]
fn notices_of_a_stock_peer_are_dropped_unanswered() {
    let mut pair = Pair::with(4, |near| near.mesh = false, |_| {}).connect();
    let before = pair.far.dropped(DropReason::NoticeFromStock);
    pair.near.tunnel.ping(FAR, 1, pair.now).unwrap();
    pair.settle();
    assert_eq!(pair.far.dropped(DropReason::NoticeFromStock), before + 1);
    assert!(pongs(&pair.near).is_empty());
    assert_eq!(pair.sent.iter().filter(|(_, datagram)| datagram.from == pair.far.path).count(), 0);
}

#[test]
fn notices_never_earn_a_keepalive_and_a_ping_is_soon_forgotten() {
    let mut pair = Pair::connected(5);
    pair.near.tunnel.ping(FAR, 1, pair.now).unwrap();
    pair.settle();
    pair.run(seconds(60));
    assert_eq!(pongs(&pair.near).len(), 1);
    assert!(!pair.sent.iter().any(|(_, datagram)| datagram.is_keepalive()));
    let last = pair.sent.iter().map(|(at, _)| *at).max().unwrap();
    assert!(last <= seconds(11), "no probe later than ten seconds after the ping: {last:?}");
}

#[test]
fn a_ping_to_a_peer_that_answers_nothing_begins_a_handshake_after_three_missed_probes() {
    let mut pair = Pair::connected(6);
    pair.near.tunnel.ping(FAR, 1, pair.now).unwrap();
    pair.work();
    pair.cut(seconds(20));
    let first = pair.near_initiations()[0];
    assert!(
        first >= seconds(5) && first < millis(5340),
        "as soon as the last handshake is old enough: {first:?}"
    );
}

#[test]
fn replies_to_nothing_are_dropped() {
    let mut pair = Pair::connected(7);
    pair.near.tunnel.ping(FAR, 5, pair.now).unwrap();
    pair.settle();
    let reply = crate::notice::Notice::EchoReply { token: 5, seen_from: None };
    pair.far
        .tunnel
        .peers
        .get_mut(0)
        .unwrap()
        .notices
        .push_back(crate::peer::QueuedNotice { notice: reply, path: None });
    pair.far.tunnel.list(0);
    pair.settle();
    assert_eq!(pongs(&pair.near).len(), 1);
    assert_eq!(pair.near.dropped(DropReason::UnknownNotice), 1);
}

#[test]
fn a_flood_of_pings_is_bounded() {
    let mut pair = Pair::connected(8);
    for token in 0..1000 {
        if pair.near.tunnel.ping(FAR, token, pair.now).is_err() {
            pair.work();
        }
    }
    pair.work();
    for datagram in std::mem::take(&mut pair.wire) {
        let _ = pair.far.take(&datagram, pair.now);
    }
    assert_eq!(pair.far.tunnel.peers.get(0).unwrap().notices.len(), MAX_NOTICES);
    assert_eq!(pair.near.tunnel.peers.get(0).unwrap().pings.len(), MAX_NOTICES);
    pair.assert_traffic();
}
