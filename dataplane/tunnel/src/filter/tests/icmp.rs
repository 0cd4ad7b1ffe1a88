//! Requests of ICMP with their answers, and errors about flows.

use super::*;
use crate::packet::build::{echo_of, fragment, icmp, icmp_of};

/// An ICMP message.
fn message(ends: [&str; 2], direction: Direction, kind: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    between(ends, direction, icmp_of(addresses(ends)[0]), &icmp(kind, id, payload))
}

/// An error of a type that the family has: destination unreachable.
fn error(ends: [&str; 2], direction: Direction, quoted: &[u8]) -> Vec<u8> {
    let kind = if ends == ENDS[0] { 3 } else { 1 };
    message(ends, direction, kind, 0, quoted)
}

#[test]
fn answers_come_to_who_asked_and_with_its_number() {
    for (ends, asker) in ENDS.into_iter().flat_map(|ends| [(ends, Out), (ends, In)]) {
        let [request, answer] = echo_of(addresses(ends)[0]);
        let mut node = Node::new(&[rule(asker, Protocol::Icmp, None)]);
        let unasked = Err(DropReason::UnaskedIcmp);
        assert_eq!(node.judge(asker.other(), &message(ends, asker.other(), answer, 7, &[])), unasked);
        assert_eq!(node.judge(asker, &message(ends, asker, request, 7, &[])), Ok(()));
        assert_eq!(node.judge(asker.other(), &message(ends, asker.other(), answer, 7, &[])), Ok(()));
        assert_eq!(node.judge(asker.other(), &message(ends, asker.other(), answer, 8, &[])), unasked);
        assert_eq!(node.judge(asker, &message(ends, asker, answer, 7, &[])), unasked, "its own question");
        let asked_back = node.judge(asker.other(), &message(ends, asker.other(), request, 7, &[]));
        assert_eq!(asked_back, Err(DropReason::Denied), "with the same number");
    }
}

#[test]
fn both_sides_may_ask_with_one_number() {
    let mut node = Node::new(&[rule(Out, Protocol::Icmp, None), rule(In, Protocol::Icmp, None)]);
    for (direction, kind) in [(Out, 8), (In, 8), (In, 0), (Out, 0)] {
        assert_eq!(node.judge(direction, &message(ENDS[0], direction, kind, 7, &[])), Ok(()));
    }
    assert_eq!(node.count(PEER), 2);
}

#[test]
fn time_is_answered_to_who_asked_for_it_and_not_for_an_echo() {
    let mut node = Node::new(&[rule(Out, Protocol::Icmp, None)]);
    node.judge(Out, &message(ENDS[0], Out, 8, 7, &[])).unwrap();
    assert_eq!(node.judge(In, &message(ENDS[0], In, 14, 7, &[0; 12])), Err(DropReason::UnaskedIcmp));
    assert_eq!(node.judge(Out, &message(ENDS[0], Out, 13, 7, &[0; 12])), Ok(()));
    assert_eq!(node.judge(In, &message(ENDS[0], In, 14, 7, &[0; 12])), Ok(()));
}

#[test]
fn icmp_that_nobody_asks_for_passes_by_no_rule() {
    let mut node = Node::new(&[rule(Out, Protocol::Any, None), rule(In, Protocol::Any, None)]);
    for direction in [Out, In] {
        // Source quench, redirect, router discovery, and requests that are obsolete.
        for kind in [4, 5, 9, 10, 15, 16, 17, 18, 30, 40, 255] {
            let packet = message(ENDS[0], direction, kind, 7, &asking(ENDS[0], direction.other()));
            assert_eq!(node.judge(direction, &packet), Err(DropReason::UnaskedIcmp), "type {kind}");
        }
        // Multicast listeners, routers, neighbours, redirects.
        for kind in [0, 130, 131, 132, 133, 134, 135, 136, 137, 143, 255] {
            let packet = message(ENDS[1], direction, kind, 7, &asking(ENDS[1], direction.other()));
            assert_eq!(node.judge(direction, &packet), Err(DropReason::UnaskedIcmp), "ICMPv6 type {kind}");
        }
    }
}

/// A flow that one side opened, by a rule that lets in nothing else: its first packet, and the answer.
fn flows(ends: [&str; 2]) -> Vec<(Direction, [Vec<u8>; 2])> {
    let [request, answer] = echo_of(addresses(ends)[0]);
    let both = [Out, In];
    let of = |opener: Direction| {
        [
            [asking(ends, opener), answering(ends, opener.other())],
            [segment(ends, opener, opener, SYN), segment(ends, opener, opener.other(), SYN | ACK)],
            [message(ends, opener, request, 3, &[]), message(ends, opener.other(), answer, 3, &[])],
            [between(ends, opener, 47, b"!"), between(ends, opener.other(), 47, b"!")],
        ]
        .map(|packets| (opener, packets))
    };
    both.into_iter().flat_map(of).collect()
}

#[test]
fn errors_about_either_direction_of_a_flow_pass_and_back_to_the_sender_only() {
    for ends in ENDS {
        for (opener, [first, reply]) in flows(ends) {
            let mut node = Node::new(&[rule(opener, Protocol::Any, None)]);
            let unasked = Err(DropReason::UnaskedIcmp);
            let about = |quoted: &[u8], direction| error(ends, direction, quoted);
            assert_eq!(
                node.judge(opener.other(), &about(&first, opener.other())),
                unasked,
                "before it is one"
            );
            node.judge(opener, &first).unwrap();
            node.judge(opener.other(), &reply).unwrap();
            assert_eq!(node.judge(opener.other(), &about(&first, opener.other())), Ok(()));
            assert_eq!(node.judge(opener, &about(&reply, opener)), Ok(()));
            let least = if ends == ENDS[0] { 28 } else { 48 };
            let shortest = &first[..least.min(first.len())];
            assert_eq!(node.judge(opener.other(), &about(shortest, opener.other())), Ok(()));

            assert_eq!(
                node.judge(opener, &about(&first, opener)),
                unasked,
                "about a packet of its own sender"
            );
            assert_eq!(
                node.judge_with(3, opener.other(), &about(&first, opener.other())),
                unasked,
                "another peer"
            );
            let elsewhere = if ends == ENDS[0] { ["10.1.0.9", "10.2.0.9"] } else { ["fd00::9", "fd00::8"] };
            let to_another = between(
                elsewhere,
                opener.other(),
                icmp_of(addresses(ends)[0]),
                &icmp(if ends == ENDS[0] { 3 } else { 1 }, 0, &first),
            );
            assert_eq!(node.judge(opener.other(), &to_another), unasked, "to who did not send it");
        }
    }
}

#[test]
fn errors_about_other_flows_do_not_pass() {
    for ends in ENDS {
        let mut node = Node::new(&[rule(Out, Protocol::Udp, None)]);
        node.judge(Out, &asking(ends, Out)).unwrap();
        for other in [
            between(ends, Out, UDP, &udp(1000, 54, b"?")),
            between(ends, Out, UDP, &udp(1001, 53, b"?")),
            between(ends, Out, TCP, &tcp(1000, 53, SYN, &[])),
            between(ends, Out, 47, &udp(1000, 53, b"?")),
            fragment(addresses(ends), UDP, 1, (8, false), &udp(1000, 53, b"?")),
            Vec::new(),
        ] {
            assert_eq!(node.judge(In, &error(ends, In, &other)), Err(DropReason::UnaskedIcmp), "{other:?}");
        }
        assert_eq!(node.judge(In, &error(ends, In, &asking(ends, Out))), Ok(()));
    }
}

#[test]
fn errors_do_not_keep_a_flow_alive() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, None)]);
    let question = asking(ENDS[0], Out);
    node.judge(Out, &question).unwrap();
    node.wait(seconds(29));
    assert_eq!(node.judge(In, &error(ENDS[0], In, &question)), Ok(()));
    node.wait(seconds(1));
    assert_eq!(node.judge(In, &error(ENDS[0], In, &question)), Err(DropReason::UnaskedIcmp));
}

#[test]
fn routers_behind_a_node_may_tell_of_errors_from_addresses_of_its_own_alone() {
    let mut node = Node::new(&[rule(In, Protocol::Udp, None)]);
    let question = asking(ENDS[0], In);
    node.judge(In, &question).unwrap();
    for (router, expected) in [
        ("10.1.255.1", Ok(())),
        ("192.168.0.1", Err(DropReason::NotFromUs)),
        ("100.64.0.2", Err(DropReason::NotFromUs)),
    ] {
        assert_eq!(node.judge(Out, &error_from(router, &question)), expected, "{router}");
    }
}

fn error_from(router: &str, quoted: &[u8]) -> Vec<u8> {
    between([router, "100.64.0.2"], Out, 1, &icmp(11, 0, quoted))
}
