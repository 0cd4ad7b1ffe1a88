//! A filter that is changed between two packets.

use proptest::prelude::*;

use super::*;

/// What a policy may say about the few flows of these tests.
fn rules() -> Vec<Rule> {
    vec![
        rule(Out, Protocol::Udp, Some(53)),
        rule(In, Protocol::Udp, Some(53)),
        rule(Out, Protocol::Tcp, Some(22)),
        rule(In, Protocol::Tcp, Some(22)),
        rule(Out, Protocol::Icmp, None),
        rule(In, Protocol::Number(47), None),
    ]
}

#[test]
fn flow_that_is_not_allowed_any_more_is_cut_in_both_directions() {
    for (opener, direction) in [(Out, Out), (Out, In), (In, Out), (In, In)] {
        let mut node = Node::new(&[rule(opener, Protocol::Tcp, Some(22))]);
        for (by, flags) in [(opener, SYN), (opener.other(), SYN | ACK), (opener, ACK)] {
            node.judge(by, &segment(ENDS[0], opener, by, flags)).unwrap();
        }
        node.apply(filter(&[rule(opener, Protocol::Tcp, Some(23))], &[]));
        let cut = node.judge(direction, &segment(ENDS[0], opener, direction, ACK));
        assert_eq!(cut, Err(DropReason::Denied));
        assert_eq!(node.count(PEER), 0, "and forgotten");
        node.apply(filter(&[rule(opener, Protocol::Tcp, Some(22))], &[]));
        let reply = node.judge(opener.other(), &segment(ENDS[0], opener, opener.other(), ACK));
        assert_eq!(reply, Ok(()), "allowed again, it goes on");
    }
}

#[test]
fn cut_flow_is_not_opened_again_the_other_way_round_by_its_own_packets() {
    let out = rule(Out, Protocol::Any, None);
    for by_denial in [false, true] {
        let mut node = Node::new(&[out.clone(), rule(In, Protocol::Tcp, Some(22))]);
        for (by, flags) in [(In, SYN), (Out, SYN | ACK), (In, ACK), (Out, ACK)] {
            node.judge(by, &segment(ENDS[0], In, by, flags)).unwrap();
        }
        if by_denial {
            let denial = denial(1, Scope::Only(In), Protocol::Tcp);
            node.apply(filter(&[out.clone(), rule(In, Protocol::Tcp, Some(22))], &[denial]));
        } else {
            node.apply(filter(std::slice::from_ref(&out), &[]));
        }
        // Our server goes on to send, to a port that this node may open flows to.
        for _ in 0..20 {
            assert!(node.judge(Out, &segment(ENDS[0], In, Out, ACK)).is_err());
            assert!(node.judge(In, &segment(ENDS[0], In, In, ACK)).is_err());
            // Nor can the peer have it forgotten by asking anew for what is denied.
            assert!(node.judge(In, &segment(ENDS[0], In, In, SYN)).is_err());
            node.wait(seconds(200));
        }
        // A connection that really is begun from here is another matter.
        assert_eq!(node.judge(Out, &segment(ENDS[0], In, Out, SYN)), Ok(()));
        assert_eq!(node.judge(In, &segment(ENDS[0], In, In, SYN | ACK)), Ok(()));
    }
}

#[test]
fn cut_udp_flow_stays_cut_while_its_opener_goes_on() {
    let out = rule(Out, Protocol::Any, None);
    let mut node = Node::new(&[out.clone(), rule(In, Protocol::Udp, Some(53))]);
    node.judge(In, &asking(ENDS[0], In)).unwrap();
    node.apply(filter(&[out], &[]));
    for _ in 0..20 {
        assert_eq!(node.judge(In, &asking(ENDS[0], In)), Err(DropReason::Denied));
        assert_eq!(node.judge(Out, &answering(ENDS[0], Out)), Err(DropReason::Denied), "a late answer");
        node.wait(seconds(20));
    }
    node.wait(seconds(120));
    assert_eq!(node.judge(Out, &answering(ENDS[0], Out)), Ok(()), "it is over: now it opens one");
}

#[test]
fn flow_that_another_rule_allows_goes_on() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, Some(53))]);
    node.judge(Out, &asking(ENDS[0], Out)).unwrap();
    node.apply(filter(&[rule(Out, Protocol::Tcp, None), rule(Out, Protocol::Any, None)], &[]));
    assert_eq!(node.judge(In, &answering(ENDS[0], In)), Ok(()));
    assert_eq!(node.gate.report().rules[&1].packets, 1, "counted there from then on");
}

#[test]
fn flow_is_judged_anew_in_the_direction_in_which_it_was_opened() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, None)]);
    node.judge(Out, &asking(ENDS[0], Out)).unwrap();
    // The peer may open what looks like the reply; the flow was ours.
    node.apply(filter(&[rule(In, Protocol::Udp, Some(1000))], &[]));
    assert_eq!(node.judge(In, &answering(ENDS[0], In)), Err(DropReason::Denied));
    node.wait(seconds(30));
    assert_eq!(node.judge(In, &answering(ENDS[0], In)), Ok(()), "now it opens one");
}

#[test]
fn owners_denial_cuts_flows_and_counts_and_its_end_lets_them_be_opened_again() {
    let allowing = [rule(Out, Protocol::Any, None), rule(In, Protocol::Any, None)];
    let mut node = Node::new(&allowing);
    node.judge(Out, &asking(ENDS[0], Out)).unwrap();
    node.judge(In, &segment(ENDS[0], In, In, SYN)).unwrap();
    node.apply(filter(&allowing, &[denial(5, Scope::Only(Out), Protocol::Udp)]));
    assert_eq!(node.judge(In, &answering(ENDS[0], In)), Err(DropReason::DeniedLocally));
    assert_eq!(node.judge(Out, &segment(ENDS[0], In, Out, SYN | ACK)), Ok(()), "not about that");
    assert_eq!(node.judge(In, &asking(ENDS[0], In)), Ok(()), "nor about the other direction");
    assert_eq!(node.judge(Out, &answering(ENDS[0], Out)), Ok(()), "nor about its replies");
    assert_eq!(node.judge(Out, &asking(ENDS[0], Out)), Err(DropReason::DeniedLocally));
    assert_eq!(node.gate.report().denials[&5], 2);
    node.apply(filter(&allowing, &[]));
    assert_eq!(node.judge(Out, &asking(ENDS[0], Out)), Ok(()));
}

#[test]
fn errors_about_a_flow_that_is_not_allowed_any_more_do_not_pass() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, None)]);
    let question = asking(ENDS[0], Out);
    node.judge(Out, &question).unwrap();
    node.apply(filter(&[rule(Out, Protocol::Tcp, None)], &[]));
    let error = between(ENDS[0], In, 1, &build::icmp(3, 0, &question));
    assert_eq!(node.judge(In, &error), Err(DropReason::Denied));
    assert_eq!(node.count(PEER), 0);
}

#[test]
fn equal_filter_changes_nothing() {
    let mut node = Node::new(&rules());
    node.judge(Out, &asking(ENDS[0], Out)).unwrap();
    node.apply(filter(&rules(), &[]));
    assert_eq!(node.gate.report().rules[&0], RuleHits { packets: 1, flows: 1 });
}

/// Few packets, so that they meet: what they are, and which flow they name in the direction in which somebody could open it.
fn packets() -> Vec<(Direction, Vec<u8>, [Opening; 2])> {
    let mut packets = Vec::new();
    for ends in ENDS {
        let [near, far] = addresses(ends);
        let openings = |protocol, ports: Option<(u16, u16)>| {
            let to = |source, destination, port| Opening { source, destination, protocol, port };
            [to(near, far, ports.map(|(_, far)| far)), to(far, near, ports.map(|(near, _)| near))]
        };
        for direction in [Out, In] {
            for (near_port, far_port) in [(53, 53), (1000, 53), (53, 1000)] {
                let (source, destination) =
                    if direction == Out { (near_port, far_port) } else { (far_port, near_port) };
                let packet = between(ends, direction, UDP, &udp(source, destination, &[]));
                packets.push((direction, packet, openings(UDP, Some((near_port, far_port)))));
            }
            for (near_port, far_port) in [(22, 22), (1000, 22), (22, 1000)] {
                let (source, destination) =
                    if direction == Out { (near_port, far_port) } else { (far_port, near_port) };
                for flags in [SYN, SYN | ACK, ACK, FIN | ACK] {
                    let packet = between(ends, direction, TCP, &tcp(source, destination, flags, &[]));
                    packets.push((direction, packet, openings(TCP, Some((near_port, far_port)))));
                }
            }
            for kind in build::echo_of(near) {
                let packet = between(ends, direction, build::icmp_of(near), &build::icmp(kind, 1, &[]));
                packets.push((direction, packet, openings(build::icmp_of(near), None)));
            }
            packets.push((direction, between(ends, direction, 47, &[]), openings(47, None)));
        }
    }
    packets
}

/// A filter out of some of the rules.
fn some_of(mask: usize) -> Filter {
    let chosen: Vec<Rule> =
        rules().into_iter().enumerate().filter(|(at, _)| mask >> at & 1 == 1).map(|(_, rule)| rule).collect();
    filter(&chosen, &[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn at_no_packet_passes_what_the_filter_in_force_would_let_nobody_open(
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0..64_usize, 0..4_u8, 0..6_u64), 1..200),
    ) {
        let packets = packets();
        let mut node = Node::new(&[]);
        let mut in_force = some_of(0);
        for (which, mask, change, wait) in steps {
            if change == 0 {
                in_force = some_of(mask);
                node.apply(in_force.clone());
            }
            node.wait(seconds(wait));
            let (direction, packet, openings) = &packets[which.index(packets.len())];
            let allowed = [Out, In].into_iter().zip(openings);
            let allowed = allowed.filter(|(by, opening)| in_force.decide(id(PEER), *by, opening).is_allowed());
            if node.judge(*direction, packet).is_ok() {
                prop_assert!(allowed.count() > 0, "{direction:?} {packet:?}");
            }
        }
    }
}
