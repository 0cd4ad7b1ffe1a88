//! The table of WireGuard's timers (whitepaper §6), to the millisecond.

use super::*;
use crate::peer::PeerState;
use crate::timers::{MAX_HANDSHAKE_TRIES, REKEY_TIMEOUT_JITTER_MAX_MS};

/// Whether `at` is `due` or up to the jitter later.
fn within_jitter(at: Duration, due: Duration) -> bool {
    at >= due && at <= due + millis(REKEY_TIMEOUT_JITTER_MAX_MS.into())
}

/// Data a session of this age, both ways, without anything being due on the way.
fn aged(seed: u64, age: Duration) -> Pair {
    let mut pair = Pair::connected(seed).stock();
    pair.run(age);
    pair.sent.clear();
    pair
}

#[test]
fn initiator_rekeys_when_sending_after_120_seconds_and_not_before() {
    let mut pair = aged(1, seconds(120) - millis(1));
    pair.send_near(b"young");
    pair.settle();
    assert!(pair.near_initiations().is_empty());
    let mut pair = aged(1, seconds(120));
    pair.send_near(b"old");
    assert_eq!(pair.near_initiations(), [seconds(120)]);
    pair.settle();
    assert_eq!(pair.near.established(), [true, true]);
    assert_eq!(pair.far.received.len(), 1, "the packet itself went with the old session");
}

#[test]
fn responder_does_not_rekey_by_time() {
    let mut pair = aged(2, seconds(179));
    pair.send_far(b"old");
    assert!(pair.far_initiations().is_empty());
    let mut pair = aged(2, seconds(170));
    pair.send_near(b"old");
    assert!(pair.far_initiations().is_empty(), "nor when receiving");
}

#[test]
fn initiator_rekeys_when_receiving_after_165_seconds_once() {
    let mut pair = aged(3, seconds(165) - millis(1));
    pair.send_far(b"young");
    pair.settle();
    assert!(pair.near_initiations().is_empty());
    let mut pair = aged(3, seconds(165));
    for _ in 0..3 {
        pair.send_far(b"old");
        let data = pair.wire.pop_front().unwrap();
        pair.deliver(&data);
        pair.wire.clear();
        pair.now = pair.now.later(millis(10));
    }
    assert_eq!(pair.near_initiations(), [seconds(165)]);
}

#[test]
fn nothing_is_sealed_or_opened_after_180_seconds() {
    let mut pair = aged(4, seconds(179));
    pair.send_far(b"late");
    let late = pair.wire.pop_front().unwrap();
    pair.now = pair.now.later(seconds(1));
    assert_eq!(pair.near.take(&late, pair.now), Err(DropReason::SessionExpired));
    assert!(pair.near.send(&Pair::near_packet(b"x"), pair.now).unwrap().is_none(), "held instead");
    assert!(pair.far.send(&Pair::far_packet(b"x"), pair.now).unwrap().is_none());
    assert_eq!(pair.near.peer(2, pair.now).state, PeerState::Handshaking);
    pair.settle();
    pair.assert_traffic();
}

#[test]
fn unanswered_initiations_repeat_every_five_seconds_with_jitter_and_end_after_90() {
    let mut pair = Pair::new(5);
    pair.send_near(b"anyone?");
    pair.cut(seconds(200));
    let times = pair.near_initiations();
    assert_eq!(times.len(), MAX_HANDSHAKE_TRIES as usize);
    assert_eq!(times[0], Duration::ZERO);
    assert!(times.windows(2).all(|pair| within_jitter(pair[1] - pair[0], seconds(5))), "{times:?}");
    assert_eq!(pair.near.events, [Event::Unreachable { peer: NodeId::from_bytes([2; 8]) }]);
    assert_eq!(pair.near.dropped(DropReason::PeerUnreachable), 1, "the held packet");
    assert_eq!(pair.near.peer(2, pair.now).state, PeerState::Idle);
    assert_eq!(pair.near.tunnel.indices.len(), 0);
    pair.send_near(b"and now?");
    pair.settle();
    assert_eq!(pair.near.established(), [true], "the next packet begins anew");
}

#[test]
fn packets_do_not_bring_initiations_closer_together() {
    let mut pair = Pair::new(6);
    for _ in 0..600 {
        pair.near.send(&Pair::near_packet(b"again"), pair.now).unwrap();
        pair.cut(millis(100));
    }
    let times = pair.near_initiations();
    assert!((11..=13).contains(&times.len()), "{times:?}");
    assert!(times.windows(2).all(|pair| within_jitter(pair[1] - pair[0], seconds(5))), "{times:?}");
}

#[test]
fn jitter_fills_its_range() {
    let mut gaps = Vec::new();
    for seed in 0..60 {
        let mut pair = Pair::new(seed);
        pair.send_near(b"anyone?");
        pair.cut(seconds(120));
        let times = pair.near_initiations();
        gaps.extend(times.windows(2).map(|pair| pair[1] - pair[0] - seconds(5)));
    }
    assert!(gaps.len() > 1000);
    assert!(*gaps.iter().min().unwrap() < millis(10));
    assert!(*gaps.iter().max().unwrap() > millis(320) && *gaps.iter().max().unwrap() < millis(334));
}

#[test]
fn keepalive_follows_ten_seconds_after_data_that_nothing_answered() {
    let mut pair = aged(7, seconds(1));
    pair.send_near(b"data");
    pair.settle();
    pair.run(seconds(60));
    let keepalives: Vec<_> = pair.sent.iter().filter(|(_, datagram)| datagram.is_keepalive()).collect();
    assert_eq!(keepalives.len(), 1, "and a keepalive is not answered");
    assert_eq!(keepalives[0].0, seconds(11));
    assert_eq!(keepalives[0].1.from, pair.far.path);
    assert!(pair.near_initiations().is_empty(), "it told that the peer is alive");
}

#[test]
fn anything_sent_spares_the_keepalive() {
    let mut pair = aged(8, seconds(1));
    pair.send_near(b"data");
    pair.settle();
    pair.run(seconds(9));
    pair.send_far(b"answer");
    pair.settle();
    pair.run(seconds(5));
    assert!(!pair.sent.iter().any(|(_, datagram)| datagram.is_keepalive()));
}

#[test]
fn one_keepalive_answers_all_data_before_it() {
    let mut pair = aged(9, seconds(1));
    pair.send_near(b"one");
    pair.settle();
    pair.run(seconds(4));
    pair.send_near(b"two");
    pair.settle();
    pair.run(seconds(60));
    let times: Vec<_> =
        pair.sent.iter().filter(|(_, datagram)| datagram.is_keepalive()).map(|(at, _)| *at).collect();
    assert_eq!(times, [seconds(11)], "ten seconds after the first, and none for the second");
}

#[test]
fn silence_after_data_begins_a_handshake_after_fifteen_seconds() {
    let mut pair = aged(10, seconds(1));
    pair.send_near(b"hello?");
    pair.wire.clear();
    pair.cut(seconds(4));
    pair.send_near(b"hello??");
    pair.wire.clear();
    pair.cut(seconds(20));
    let first = pair.near_initiations()[0];
    assert!(within_jitter(first, seconds(1 + 15)), "counted from the first unanswered packet: {first:?}");
}

#[test]
fn keepalives_alone_do_not_make_a_silent_peer_dead() {
    let mut pair = Pair::with(11, |_| {}, |far| far.persistent_keepalive = Some(3)).connect().stock();
    pair.cut(seconds(100));
    assert!(pair.near_initiations().is_empty());
}

#[test]
fn persistent_keepalive_counts_from_the_last_traffic_either_way() {
    let mut pair = Pair::with(12, |_| {}, |far| far.persistent_keepalive = Some(25)).connect().stock();
    pair.run(seconds(20));
    pair.send_far(b"data");
    pair.settle();
    pair.run(seconds(24));
    // The passive keepalive at 30 s was traffic too.
    let times = |pair: &Pair| -> Vec<Duration> {
        pair.sent.iter().filter(|(_, datagram)| datagram.is_keepalive()).map(|(at, _)| *at).collect()
    };
    assert_eq!(times(&pair), [seconds(30)]);
    pair.run(seconds(50));
    assert_eq!(times(&pair), [seconds(30), seconds(55), seconds(80)]);
}

#[test]
fn persistent_keepalive_connects_by_itself_and_keeps_rekeying() {
    let mut pair = Pair::with(13, |_| {}, |far| far.persistent_keepalive = Some(25));
    pair.run(seconds(600));
    assert!(pair.near.established().len() >= 4, "{:?}", pair.near.established());
    pair.assert_traffic();
}

#[test]
fn keys_are_erased_540_seconds_after_the_last_session() {
    let mut pair = aged(14, Duration::ZERO);
    pair.near.events.clear();
    pair.cut(seconds(540) - millis(1));
    assert!(pair.near.tunnel.indices.len() > 0);
    assert!(pair.near.events.is_empty());
    pair.cut(millis(1));
    assert_eq!(pair.near.tunnel.indices.len(), 0);
    assert_eq!(pair.near.events, [Event::Expired { peer: NodeId::from_bytes([2; 8]) }]);
    assert!(pair.near.tunnel.peers.get(0).unwrap().sessions.current().is_none());
    pair.assert_traffic();
}

#[test]
fn expired_sessions_end_at_once_and_come_back() {
    let mut pair = aged(15, seconds(7));
    pair.near.tunnel.expire_sessions();
    assert_eq!(pair.near.tunnel.indices.len(), 0);
    pair.send_near(b"after the suspend");
    assert_eq!(pair.wire.front().unwrap().kind(), 1, "no datagram under an old key");
    pair.settle();
    pair.assert_traffic();
}

#[test]
fn idle_sessions_are_silent() {
    let mut pair = aged(16, seconds(20));
    pair.run(seconds(1000));
    assert!(pair.sent.is_empty());
}

#[test]
fn steady_traffic_rekeys_every_two_minutes_without_losing_a_packet() {
    for one_way in [true, false] {
        let mut pair = Pair::connected(17);
        for second in 0..1200u64 {
            pair.send_near(&second.to_be_bytes());
            if !one_way {
                pair.send_far(&second.to_be_bytes());
            }
            pair.settle();
            pair.run(seconds(1));
        }
        assert_eq!(pair.far.received.len(), 1200);
        let handshakes = pair.near_initiations().len();
        assert!((9..=10).contains(&handshakes), "{handshakes} in 20 minutes");
        assert!(pair.far_initiations().is_empty());
    }
}

#[test]
fn unconfirmed_response_makes_the_responder_begin_within_six_seconds() {
    let mut pair = Pair::new(18);
    pair.send_near(b"hello");
    let initiation = pair.wire.pop_front().unwrap();
    pair.deliver(&initiation);
    pair.wire.clear();
    pair.near = Node::new(1, 77);
    pair.near.apply(&[pair.far.config.clone()], pair.now);
    pair.run(seconds(6));
    let first = pair.far_initiations()[0];
    assert!(within_jitter(first, seconds(5)));
    assert_eq!(pair.far.established(), [true]);
}

#[test]
fn unconfirmed_response_begins_nothing_while_the_peer_still_uses_its_session() {
    for (still_uses, begun) in [(true, 0), (false, 1)] {
        let mut pair = aged(20, seconds(6));
        pair.near.config.mesh = true;
        pair.far.config.mesh = true;
        pair.introduce();
        // An initiation of the far side arrives, which then has no more need of it.
        pair.far.tunnel.begin_handshake(0, crate::establish::Begin::Insist, pair.now);
        pair.work();
        let initiation = pair.wire.pop_front().unwrap();
        pair.deliver(&initiation);
        pair.wire.clear();
        pair.far.tunnel.end_handshake(0);
        pair.far.tunnel.peers.get_mut(0).unwrap().timers.completed();
        for _ in 0..6 {
            if still_uses {
                pair.send_far(b"content");
            }
            pair.run(seconds(1));
        }
        assert_eq!(pair.near_initiations().len(), begun);
    }
}

#[test]
fn unconfirmed_response_to_a_stock_peer_begins_nothing() {
    let mut pair = Pair::with(19, |near| near.mesh = false, |_| {});
    pair.send_near(b"hello");
    let initiation = pair.wire.pop_front().unwrap();
    pair.deliver(&initiation);
    pair.wire.clear();
    pair.near.apply(&[], pair.now);
    pair.cut(seconds(60));
    assert!(pair.far_initiations().is_empty());
}
