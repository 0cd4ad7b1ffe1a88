//! Datagrams in fragments: the first is judged, and what follows it passes by that.

use super::*;
use crate::packet::build::fragment;

/// The part of a UDP datagram of 64 bytes from `offset` to `end`, under a number.
fn part(ends: [&str; 2], direction: Direction, id: u16, offset: u16, end: u16) -> Vec<u8> {
    let datagram = udp(1000, 53, &[7; 56]);
    let [near, far] = addresses(ends);
    let addresses = if direction == Out { [near, far] } else { [far, near] };
    let bytes = &datagram[usize::from(offset)..usize::from(end)];
    fragment(addresses, UDP, id, (offset, end < 64), bytes)
}

const UNASKED: Result<(), DropReason> = Err(DropReason::UnaskedFragment);

#[test]
fn later_fragments_follow_a_first_one_that_passed() {
    for (ends, direction) in ENDS.into_iter().flat_map(|ends| [(ends, Out), (ends, In)]) {
        let mut node = Node::new(&[rule(direction, Protocol::Udp, Some(53))]);
        assert_eq!(node.judge(direction, &part(ends, direction, 9, 24, 48)), UNASKED, "before the first");
        assert_eq!(node.judge(direction, &part(ends, direction, 9, 0, 24)), Ok(()));
        assert_eq!(node.judge(direction, &part(ends, direction, 9, 48, 64)), Ok(()), "in any order");
        assert_eq!(node.judge(direction, &part(ends, direction, 9, 24, 48)), Ok(()));
        assert_eq!(node.judge(direction, &part(ends, direction, 10, 24, 48)), UNASKED, "of another datagram");
        let back = direction.other();
        assert_eq!(node.judge(back, &part(ends, back, 9, 24, 48)), UNASKED, "the other way");
        assert_eq!(node.judge_with(3, direction, &part(ends, direction, 9, 24, 48)), UNASKED, "another peer");
    }
}

#[test]
fn fragments_of_replies_pass_like_replies() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, Some(1000))]);
    let [near, far] = addresses(ENDS[0]);
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 0, 24)), Err(DropReason::Denied));
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 24, 48)), UNASKED, "its first was denied");
    node.judge(Out, &build::with(near, far, UDP, &udp(53, 1000, b"?"))).unwrap();
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 0, 24)), Ok(()));
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 24, 48)), Ok(()));
}

#[test]
fn numbers_and_protocols_of_fragments_are_all_compared() {
    let mut node = Node::new(&[rule(In, Protocol::Any, None)]);
    for ends in ENDS {
        let [near, far] = addresses(ends);
        node.judge(In, &part(ends, In, 9, 0, 24)).unwrap();
        let of = |source, protocol| fragment([source, near], protocol, 9, (24, false), &[0; 16]);
        assert_eq!(node.judge(In, &of(far, UDP)), Ok(()));
        assert_eq!(node.judge(In, &of(far, TCP)), UNASKED);
        let other = if ends == ENDS[0] { "10.2.0.7" } else { "fd00::22" };
        assert_eq!(node.judge(In, &of(other.parse().unwrap(), UDP)), UNASKED);
    }
}

#[test]
fn later_fragments_may_not_write_over_the_first() {
    for ends in ENDS {
        let mut node = Node::new(&[rule(In, Protocol::Udp, Some(53))]);
        node.judge(In, &part(ends, In, 9, 0, 24)).unwrap();
        for offset in [8, 16] {
            let over = node.judge(In, &part(ends, In, 9, offset, 48));
            assert_eq!(over, Err(DropReason::OverlappingFragment), "at {offset}");
        }
        assert_eq!(node.judge(In, &part(ends, In, 9, 24, 48)), Ok(()));
        // Another first one under the same number is judged as such, and the rest goes by it.
        let [near, far] = addresses(ends);
        let forbidden = fragment([far, near], UDP, 9, (0, true), &udp(1000, 54, &[0; 16]));
        assert_eq!(node.judge(In, &forbidden), Err(DropReason::Denied));
        node.judge(In, &part(ends, In, 9, 0, 48)).unwrap();
        assert_eq!(node.judge(In, &part(ends, In, 9, 24, 48)), Err(DropReason::OverlappingFragment));
    }
}

#[test]
fn tiny_first_fragments_carry_no_decision() {
    let mut node = Node::new(&[rule(In, Protocol::Any, None)]);
    let [near, far] = addresses(ENDS[0]);
    let whole = tcp(1, 22, SYN, &[0; 20]);
    let first = fragment([far, near], TCP, 9, (0, true), &whole[..8]);
    assert_eq!(node.judge(In, &first), Err(DropReason::TinyFragment));
    let rest = fragment([far, near], TCP, 9, (8, false), &whole[8..]);
    assert_eq!(node.judge(In, &rest), UNASKED);
}

#[test]
fn fragments_may_follow_for_thirty_seconds_whatever_came_since() {
    let mut node = Node::new(&[rule(In, Protocol::Udp, None)]);
    node.judge(In, &part(ENDS[0], In, 9, 0, 24)).unwrap();
    node.wait(seconds(30) - TICK);
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 24, 48)), Ok(()));
    node.wait(TICK);
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 48, 64)), UNASKED);
}

#[test]
fn fragments_of_another_filter_are_judged_by_the_opening_of_their_flow() {
    let allowing = [rule(Out, Protocol::Udp, Some(1000))];
    let with_more = [rule(In, Protocol::Tcp, None), rule(Out, Protocol::Udp, Some(1000))];
    let mut node = Node::new(&allowing);
    let [near, far] = addresses(ENDS[0]);
    node.judge(Out, &build::with(near, far, UDP, &udp(53, 1000, b"?"))).unwrap();
    node.judge(In, &part(ENDS[0], In, 9, 0, 24)).unwrap();
    node.apply(filter(&with_more, &[]));
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 24, 48)), Ok(()), "still allowed");
    node.apply(filter(&with_more[..1], &[]));
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 48, 64)), Err(DropReason::Denied));
    node.apply(filter(&allowing, &[]));
    assert_eq!(node.judge(In, &part(ENDS[0], In, 9, 48, 64)), UNASKED, "and forgotten");
}

#[test]
fn datagrams_beyond_the_bound_push_out_their_own_peers_oldest() {
    let mut node = Node::new(&[rule(In, Protocol::Udp, None)]);
    let begin = |node: &mut Node, peer: u8, id: u16| {
        let ends = ["100.64.0.1", &format!("100.64.0.{peer}")];
        node.judge_with(peer, In, &part(ends, In, id, 0, 24)).unwrap();
        ends.map(str::to_owned)
    };
    let followed = |node: &mut Node, peer: u8, id: u16| {
        let ends = ["100.64.0.1", &format!("100.64.0.{peer}")];
        node.judge_with(peer, In, &part(ends, In, id, 24, 64)).is_ok()
    };
    begin(&mut node, 3, 1);
    for id in 0..10_000 {
        begin(&mut node, 2, id);
        node.wait(Duration::from_micros(100));
    }
    assert!(followed(&mut node, 2, 9_999), "the last one is there");
    assert!(followed(&mut node, 3, 1), "and that of another peer");
    let left = (0..10_000).filter(|&id| followed(&mut node, 2, id)).count();
    assert!((512..=1024).contains(&left), "{left} are left");
}

#[test]
fn a_second_first_fragment_that_is_shorter_makes_no_room_over_the_first() {
    let [near, far] = addresses(ENDS[0]);
    let mut node = Node::new(&[rule(In, Protocol::Udp, Some(53))]);
    let first = |length: usize| {
        let payload = udp(1000, 53, &[0; 64]);
        fragment([far, near], UDP, 7, (0, true), &payload[..length])
    };
    node.judge(In, &first(64)).unwrap();
    node.judge(In, &first(16)).unwrap();
    let over = fragment([far, near], UDP, 7, (16, false), &[0; 8]);
    assert_eq!(node.judge(In, &over), Err(DropReason::OverlappingFragment));
    let behind = fragment([far, near], UDP, 7, (64, false), &[0; 8]);
    assert_eq!(node.judge(In, &behind), Ok(()));
}
