//! What is counted for metrics: each with its cause, and nothing without.

use super::*;
use crate::counts::{HandshakeCounts, PathKind, Volume};
use crate::filter::Direction;

fn sent(node: &Node, kind: PathKind) -> Volume {
    node.tunnel.carried().sent().find(|(of, _)| *of == kind).unwrap().1
}

fn received(node: &Node, kind: PathKind) -> Volume {
    node.tunnel.carried().received().find(|(of, _)| *of == kind).unwrap().1
}

/// The ends of handshakes, without how long they took.
fn ends(node: &Node) -> HandshakeCounts {
    HandshakeCounts { duration: Default::default(), ..*node.tunnel.handshakes() }
}

#[test]
fn packets_are_counted_with_their_bytes_and_what_keeps_sessions_alive_is_not() {
    let mut pair = Pair::connected(1);
    assert_eq!(
        pair.near.tunnel.carried().sent().map(|(_, volume)| volume.packets).sum::<u64>(),
        0,
        "a ping is none"
    );
    let length = Pair::near_packet(&[7; 100]).len() as u64;
    for _ in 0..3 {
        pair.send_near(&[7; 100]);
        pair.settle();
    }
    pair.run(seconds(60));
    let three = Volume { packets: 3, bytes: 3 * length };
    assert_eq!((sent(&pair.near, PathKind::Udp4), received(&pair.far, PathKind::Udp4)), (three, three));
    assert_eq!((sent(&pair.far, PathKind::Udp4), received(&pair.near, PathKind::Udp4)), Default::default());
    assert_eq!(received(&pair.far, PathKind::Udp6), Volume::default());
}

#[test]
fn a_packet_that_was_held_is_counted_when_it_goes() {
    let mut pair = Pair::new(2);
    pair.send_near(b"held");
    assert_eq!(sent(&pair.near, PathKind::Udp4).packets, 0);
    pair.settle();
    assert_eq!(
        (sent(&pair.near, PathKind::Udp4).packets, received(&pair.far, PathKind::Udp4).packets),
        (1, 1)
    );
}

#[test]
fn a_handshake_is_counted_on_both_sides() {
    let mut pair = Pair::new(3);
    pair.send_near(b"hello");
    pair.settle();
    assert_eq!(ends(&pair.near), HandshakeCounts { initiated: 1, ..Default::default() });
    assert_eq!(ends(&pair.far), HandshakeCounts { responded: 1, ..Default::default() });
    let timed: u64 = pair.near.tunnel.handshakes().duration.buckets().map(|(_, count)| count).sum();
    assert_eq!(timed, 1);
    assert_eq!(pair.far.tunnel.handshakes().duration.buckets().map(|(_, count)| count).sum::<u64>(), 0);
}

#[test]
fn an_attempt_lasts_from_its_first_initiation_and_each_unanswered_one_is_counted() {
    let mut pair = Pair::new(4);
    pair.send_near(b"is anybody there?");
    pair.cut(seconds(12));
    let tries = pair.near_initiations().len() as u64;
    assert!(tries >= 2, "{tries}");
    assert_eq!(ends(&pair.near), HandshakeCounts { unanswered: tries - 1, ..Default::default() });
    pair.run(seconds(10));
    let counted = pair.near.tunnel.handshakes();
    assert_eq!(counted.initiated, 1);
    assert!(counted.duration.sum() >= seconds(12), "{:?}", counted.duration.sum());
}

#[test]
fn an_attempt_that_is_given_up_is_counted_to_its_end() {
    let mut pair = Pair::new(5);
    pair.send_near(b"is anybody there?");
    pair.cut(seconds(120));
    let tries = pair.near_initiations().len() as u64;
    assert_eq!(ends(&pair.near), HandshakeCounts { unanswered: tries, ..Default::default() });
}

#[test]
fn an_initiation_of_a_stranger_is_refused_and_counted() {
    let mut pair = Pair::new(6);
    pair.far.apply(&[], pair.now);
    pair.send_near(b"hello");
    pair.settle();
    assert_eq!(ends(&pair.far), HandshakeCounts { responder_refused: 1, ..Default::default() });
    assert_eq!(pair.far.tunnel.drops().by(Direction::In, DropReason::UnknownPeer), 1);
}

#[test]
fn a_drop_is_counted_in_the_direction_of_what_was_dropped() {
    let mut pair = Pair::connected(7);
    let nowhere = packet("10.0.0.1", "10.9.9.9", b"nobody");
    assert!(pair.near.send(&nowhere, pair.now).is_err());
    let drops = pair.near.tunnel.drops();
    assert_eq!(drops.by(Direction::Out, DropReason::NoAllowedIp), 1);
    assert_eq!(drops.by(Direction::In, DropReason::NoAllowedIp), 0);

    let spoofed = packet("10.9.9.9", "10.0.0.2", b"not mine");
    let datagram = pair.near.send(&spoofed, pair.now).unwrap().unwrap();
    assert_eq!(pair.deliver(&datagram), Some(Err(DropReason::SpoofedSource)));
    let drops = pair.far.tunnel.drops();
    assert_eq!(drops.by(Direction::In, DropReason::SpoofedSource), 1);
    assert_eq!(drops.by(Direction::Out, DropReason::SpoofedSource), 0);
}

#[test]
fn what_the_filter_let_pass_is_counted_by_direction() {
    let mut pair = Pair::connected(8);
    pair.assert_traffic();
    let report = pair.near.tunnel.filter_report();
    assert_eq!((report.passed_out, report.passed_in), (1, 1));
    pair.near.tunnel.apply_filter(Arc::new(Filter::deny_all()), pair.now);
    assert!(pair.near.send(&Pair::near_packet(b"no"), pair.now).is_err());
    assert_eq!(pair.near.tunnel.filter_report().passed_out, 1, "and a change of filter resets nothing");
}
