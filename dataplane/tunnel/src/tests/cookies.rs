//! Under load: cookies, the second MAC and the rate limit, through the whole core.

use super::*;
use crate::handshake::UNDER_LOAD_FROM;

#[test]
fn node_under_load_asks_for_a_cookie_and_then_answers() {
    let mut pair = Pair::new(1);
    pair.far.load = UNDER_LOAD_FROM;
    pair.send_near(b"hello");
    pair.settle();
    let kinds: Vec<(u8, usize)> =
        pair.sent.iter().map(|(_, datagram)| (datagram.kind(), datagram.bytes.len())).collect();
    assert_eq!(kinds, [(1, 148), (3, 64)], "the reply is smaller, and nothing is repeated at once");
    assert_eq!(pair.far.dropped(DropReason::CookieRequired), 1);
    assert_eq!(
        pair.near.peer(2, pair.now).endpoint,
        None,
        "a cookie reply says nothing about where a peer is"
    );

    pair.run(millis(5334));
    assert_eq!(pair.near.established(), [true]);
    pair.assert_traffic();
}

#[test]
fn response_needs_a_cookie_too_when_the_initiator_is_under_load() {
    // With this seed the initiator's timer goes off before the responder's.
    let mut pair = Pair::new(21);
    pair.near.load = UNDER_LOAD_FROM;
    pair.send_near(b"hello");
    pair.settle();
    assert_eq!(pair.near.dropped(DropReason::CookieRequired), 1);
    assert!(pair.near.established().is_empty());
    // The responder has a cookie now, and its next response carries it.
    pair.run(millis(5334));
    assert_eq!(pair.near.established(), [true]);
}

#[test]
fn being_under_load_lasts_a_second_longer_than_its_cause() {
    for (wait, asked) in [(millis(999), true), (millis(1000), false)] {
        let mut pair = Pair::new(3);
        pair.far.load = UNDER_LOAD_FROM;
        pair.send_near(b"hello");
        pair.settle();
        pair.far.load = 0;
        pair.now = pair.now.later(wait);
        let mut other = Node::new(3, 33);
        pair.far.apply(&[pair.near.config.clone(), other.config.clone()], pair.now);
        other.apply(&[pair.far.config.clone()], pair.now);
        other.send(&packet("10.0.0.3", "10.0.0.2", b"x"), pair.now).unwrap();
        for datagram in other.work(pair.now) {
            pair.deliver(&datagram);
        }
        assert_eq!(pair.wire.pop_back().unwrap().kind(), if asked { 3 } else { 2 });
    }
}

#[test]
fn stolen_cookie_does_not_work_from_elsewhere() {
    let mut pair = Pair::new(4);
    pair.far.load = UNDER_LOAD_FROM;
    pair.send_near(b"hello");
    pair.settle();
    pair.pass(millis(5334), |_| {});
    let stamped = pair.wire.pop_front().unwrap();
    let elsewhere = Datagram { from: path("192.0.2.1:1001"), ..stamped.clone() };
    pair.deliver(&elsewhere);
    assert_eq!(pair.far.dropped(DropReason::CookieRequired), 2);
    pair.deliver(&stamped);
    assert_eq!(pair.wire.pop_back().unwrap().kind(), 2);
}

#[test]
fn source_with_a_cookie_is_still_limited() {
    let mut pair = Pair::new(5);
    pair.far.load = UNDER_LOAD_FROM;
    pair.send_near(b"hello");
    pair.settle();
    pair.pass(millis(5334), |_| {});
    let stamped = pair.wire.pop_front().unwrap();
    for _ in 0..100 {
        pair.deliver(&stamped);
    }
    assert_eq!(pair.far.dropped(DropReason::RateLimited), 95, "five at once");
    assert_eq!(pair.far.dropped(DropReason::OldTimestamp), 4, "of which one is new");
}

#[test]
fn forged_and_repeated_cookie_replies_are_refused() {
    let mut pair = Pair::new(6);
    pair.far.load = UNDER_LOAD_FROM;
    pair.send_near(b"hello");
    let initiation = pair.wire.pop_front().unwrap();
    pair.deliver(&initiation);
    let reply = pair.wire.pop_front().unwrap();
    for bit in (8 * 8..64 * 8).step_by(7) {
        let mut forged = reply.clone();
        forged.bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(pair.deliver(&forged), Some(Err(DropReason::BadCookieReply)), "bit {bit}");
    }
    let mut other = reply.clone();
    other.bytes[5] ^= 0x10;
    assert_eq!(pair.deliver(&other), Some(Err(DropReason::UnknownIndex)));
    assert_eq!(pair.deliver(&reply), Some(Ok(Inbound::Consumed)));
    assert_eq!(pair.deliver(&reply), Some(Err(DropReason::BadCookieReply)), "one reply to each message");
    pair.far.load = UNDER_LOAD_FROM;
    pair.run(millis(5334));
    assert_eq!(pair.near.established(), [true]);
}

#[test]
fn without_load_no_cookie_is_asked_for() {
    let mut pair = Pair::new(7);
    pair.far.load = UNDER_LOAD_FROM - 1;
    pair.send_near(b"hello");
    pair.settle();
    assert_eq!(pair.near.established(), [true]);
}
