//! What opens a flow, what belongs to it, and how long it lasts.

use super::*;

#[test]
fn nothing_passes_without_a_rule_in_either_direction() {
    let mut node = Node::new(&[]);
    for ends in ENDS {
        for direction in [Out, In] {
            for packet in [
                asking(ends, direction),
                segment(ends, direction, direction, SYN),
                between(ends, direction, 253, b"?"),
                between(
                    ends,
                    direction,
                    build::icmp_of(addresses(ends)[0]),
                    &build::icmp(echo(ends), 1, &[]),
                ),
            ] {
                assert_eq!(node.judge(direction, &packet), Err(DropReason::Denied));
            }
        }
    }
    assert_eq!(node.count(PEER), 0, "what is denied leaves no trace");
}

fn echo(ends: [&str; 2]) -> u8 {
    build::echo_of(addresses(ends)[0])[0]
}

#[test]
fn new_filter_denies_and_the_open_one_lets_even_nonsense_pass() {
    let mut node = Node::new(&[]);
    let nonsense = between(ENDS[0], In, TCP, b"short");
    node.apply(Filter::deny_all());
    assert_eq!(node.judge(Out, &asking(ENDS[0], Out)), Err(DropReason::NotFromUs), "nothing is ours");
    node.apply(Filter::allow_all());
    assert_eq!(node.judge(In, &nonsense), Ok(()));
    assert_eq!(node.judge(In, &segment(ENDS[0], Out, In, RST)), Ok(()));
    node.apply(filter(&[rule(In, Protocol::Any, None)], &[]));
    assert_eq!(node.judge(In, &nonsense), Err(DropReason::UnreadablePacket));
}

#[test]
fn replies_to_what_went_out_come_in_and_nothing_else_does() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, Some(53))]);
    for ends in ENDS {
        assert_eq!(node.judge(In, &answering(ends, In)), Err(DropReason::Denied), "nobody asked yet");
        assert_eq!(node.judge(Out, &asking(ends, Out)), Ok(()));
        for _ in 0..3 {
            assert_eq!(node.judge(In, &answering(ends, In)), Ok(()));
        }
        assert_eq!(
            node.judge(In, &asking(ends, In)),
            Err(DropReason::Denied),
            "the same ports the other way round"
        );
        let other_port = between(ends, In, UDP, &udp(53, 1001, b"!"));
        assert_eq!(node.judge(In, &other_port), Err(DropReason::Denied));
        let other_source = between(ends, In, UDP, &udp(54, 1000, b"!"));
        assert_eq!(node.judge(In, &other_source), Err(DropReason::Denied));
        let tcp_reply = between(ends, In, TCP, &tcp(53, 1000, ACK, b"!"));
        assert_eq!(node.judge(In, &tcp_reply), Err(DropReason::Denied), "by another transport");
        assert_eq!(
            node.judge_with(3, In, &answering(ends, In)),
            Err(DropReason::Denied),
            "from another peer"
        );
    }
}

#[test]
fn replies_to_what_came_in_go_out() {
    let mut node = Node::new(&[rule(In, Protocol::Udp, Some(53))]);
    for ends in ENDS {
        assert_eq!(node.judge(Out, &answering(ends, Out)), Err(DropReason::Denied));
        assert_eq!(node.judge(In, &asking(ends, In)), Ok(()));
        assert_eq!(node.judge(Out, &answering(ends, Out)), Ok(()));
        assert_eq!(node.judge(Out, &asking(ends, Out)), Err(DropReason::Denied));
    }
}

#[test]
fn only_what_is_ours_is_sent_from_and_received_at() {
    let everything = [rule(In, Protocol::Any, None), rule(Out, Protocol::Any, None)];
    let mut node = Node::new(&everything);
    for ours in ["100.64.0.1", "10.1.2.3"] {
        let ends = [ours, "100.64.0.2"];
        assert_eq!(node.judge(In, &asking(ends, In)), Ok(()), "{ours}");
        assert_eq!(node.judge(Out, &asking(ends, Out)), Ok(()), "{ours}");
    }
    for foreign in
        ["100.64.0.2", "100.64.0.3", "10.3.0.1", "192.168.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
    {
        let ends = [foreign, "10.2.0.1"];
        assert_eq!(node.judge(In, &asking(ends, In)), Err(DropReason::NotForUs), "{foreign}");
        assert_eq!(node.judge(Out, &asking(ends, Out)), Err(DropReason::NotFromUs), "{foreign}");
    }
    for foreign in ["fd00::3", "::1", "ff02::1", "fe80::1", "::ffff:100.64.0.1"] {
        let ends = [foreign, "fd00::2"];
        assert_eq!(node.judge(In, &asking(ends, In)), Err(DropReason::NotForUs), "{foreign}");
        assert_eq!(node.judge(Out, &asking(ends, Out)), Err(DropReason::NotFromUs), "{foreign}");
    }
}

#[test]
fn families_do_not_share_flows() {
    let mut node = Node::new(&[rule(Out, Protocol::Udp, None)]);
    assert_eq!(node.judge(Out, &asking(["100.64.0.1", "100.64.0.2"], Out)), Ok(()));
    // The same bits, as far as there are some.
    let mapped = ["::100.64.0.1", "::100.64.0.2"];
    assert_eq!(node.judge(In, &answering(mapped, In)), Err(DropReason::NotForUs));
}

#[test]
fn connection_is_opened_by_a_syn_or_picked_up_by_an_ack_and_by_nothing_else() {
    for (flags, expected) in [
        (SYN, Ok(())),
        (ACK, Ok(())),
        (SYN | ACK, Err(DropReason::UnaskedSegment)),
        (RST, Err(DropReason::UnaskedSegment)),
        (RST | ACK, Err(DropReason::UnaskedSegment)),
        (FIN | ACK, Err(DropReason::UnaskedSegment)),
        (SYN | FIN, Err(DropReason::ImpossibleFlags)),
        (0, Err(DropReason::ImpossibleFlags)),
    ] {
        for (ends, direction) in ENDS.into_iter().flat_map(|ends| [(ends, Out), (ends, In)]) {
            let mut node = Node::new(&[rule(direction, Protocol::Tcp, Some(22))]);
            let opened = node.judge(direction, &segment(ends, direction, direction, flags));
            assert_eq!(opened, expected, "{flags:#x} {direction:?}");
            let replied = node.judge(direction.other(), &segment(ends, direction, direction.other(), ACK));
            assert_eq!(
                replied,
                expected.and(Ok(())).map_err(|_| DropReason::Denied),
                "{flags:#x}: the reply"
            );
        }
    }
}

#[test]
fn who_was_asked_may_not_ask_back_over_the_same_ports_while_there_is_a_connection() {
    // Not even if it might open one.
    let both = [rule(Out, Protocol::Tcp, Some(22)), rule(In, Protocol::Tcp, Some(50_000))];
    let mut node = Node::new(&both);
    let ends = ENDS[0];
    for (direction, flags) in
        [(Out, SYN), (In, SYN | ACK), (Out, ACK), (In, ACK), (In, FIN | ACK), (Out, FIN | ACK)]
    {
        assert_eq!(node.judge(direction, &segment(ends, Out, direction, flags)), Ok(()));
        let asked = node.judge(In, &segment(ends, Out, In, SYN));
        assert_eq!(asked, Err(DropReason::UnaskedSegment), "after {flags:#x}");
    }
    assert_eq!(node.judge(In, &segment(ends, Out, In, ACK)), Ok(()), "which ended it");
    // Now it may, and is who opened the flow from then on.
    assert_eq!(node.judge(In, &segment(ends, Out, In, SYN)), Ok(()));
    assert_eq!(node.judge(Out, &segment(ends, Out, Out, SYN | ACK)), Ok(()));
    node.apply(filter(&both[..1], &[]));
    assert_eq!(node.judge(Out, &segment(ends, Out, Out, ACK)), Err(DropReason::Denied));
}

/// What passed in a connection, then what the opener may not send after it, and what the other may not.
type Stage<'a> = (&'a [(Direction, u8)], &'a [u8], &'a [u8]);

/// Brings a connection to a stage, from outside the filter.
fn connection(before: &[(Direction, u8)]) -> Node {
    let mut node = Node::new(&[rule(Out, Protocol::Tcp, Some(22))]);
    for &(direction, flags) in before {
        assert_eq!(node.judge(direction, &segment(ENDS[0], Out, direction, flags)), Ok(()), "{before:?}");
    }
    node
}

#[test]
fn segments_that_cannot_come_now_do_not_pass() {
    const OPEN: [(Direction, u8); 3] = [(Out, SYN), (In, SYN | ACK), (Out, ACK)];
    let after = |more: &[(Direction, u8)]| [&OPEN[..], more].concat();
    let (fin, agree) = (FIN | ACK, SYN | ACK);
    let ended = after(&[(Out, fin), (In, fin)]);
    let over = after(&[(Out, fin), (In, fin), (Out, ACK)]);
    let broken = after(&[(In, RST)]);
    let stages: [Stage<'_>; 7] = [
        (&OPEN[..1], &[ACK, fin, agree], &[SYN, fin]),
        (&OPEN[..2], &[], &[SYN]),
        (&OPEN, &[agree], &[SYN]),
        (&after(&[(In, fin)]), &[agree], &[SYN]),
        (&ended, &[agree], &[SYN]),
        // Another connection, which the rules do not let the other side open.
        (&over, &[agree], &[SYN]),
        (&broken, &[agree], &[SYN]),
    ];
    for (before, not_out, not_in) in stages {
        for (direction, refused) in [(Out, not_out), (In, not_in)] {
            for flags in [SYN, agree, ACK, fin, RST] {
                let judged = connection(before).judge(direction, &segment(ENDS[0], Out, direction, flags));
                assert_eq!(judged.is_err(), refused.contains(&flags), "{before:?}, {direction:?} {flags:#x}");
            }
        }
    }
}

#[test]
fn nothing_is_left_of_a_connection_that_was_broken_off_before_it_was_answered() {
    for (before, by) in [(vec![(Out, SYN)], In), (vec![(Out, SYN)], Out), (vec![(Out, ACK)], In)] {
        let mut node = connection(&before);
        assert_eq!(node.judge(by, &segment(ENDS[0], Out, by, RST)), Ok(()));
        assert_eq!(node.count(PEER), 0);
        assert_eq!(node.judge(In, &segment(ENDS[0], Out, In, ACK)), Err(DropReason::Denied));
    }
    // One that asked back after the end took the end with it.
    let mut node =
        connection(&[(Out, SYN), (In, SYN | ACK), (Out, ACK), (Out, FIN | ACK), (In, FIN | ACK), (Out, ACK)]);
    assert_eq!(node.judge(In, &segment(ENDS[0], Out, In, SYN)), Err(DropReason::Denied));
    assert_eq!(node.count(PEER), 0);
    assert_eq!(node.judge(In, &segment(ENDS[0], Out, In, ACK)), Err(DropReason::Denied));
}

/// Packets of a flow, each from a side; then the time that it lasts.
type Life<'a> = (&'a str, &'a [(Direction, Vec<u8>)], u64);

#[test]
fn each_kind_of_flow_lasts_its_time_and_no_longer() {
    let ends = ENDS[0];
    let part = |direction, flags| (direction, segment(ends, Out, direction, flags));
    let echoes = [
        (Out, between(ends, Out, 1, &build::icmp(8, 1, &[]))),
        (In, between(ends, In, 1, &build::icmp(0, 1, &[]))),
    ];
    let others = [(Out, between(ends, Out, 132, b"!")), (In, between(ends, In, 132, b"!"))];
    let udps = [(Out, asking(ends, Out)), (In, answering(ends, In))];
    let handshake = [part(Out, SYN), part(In, SYN | ACK), part(Out, ACK)];
    let with = |last| [&handshake[..], &[last]].concat();
    let reopened = [&with(part(In, RST))[..], &[part(Out, SYN)]].concat();
    let reopened_whole = [&reopened[..], &handshake[1..]].concat();
    let lives: &[Life<'_>] = &[
        ("UDP that nobody answered", &udps[..1], 30),
        ("UDP that somebody did", &udps, 120),
        ("TCP asked for", &handshake[..1], 240),
        ("TCP agreed to", &handshake[..2], 240),
        ("TCP", &handshake, 7440),
        ("TCP picked up on one side", &[part(Out, ACK)], 240),
        ("TCP picked up on both", &[part(Out, ACK), part(In, ACK)], 7440),
        ("TCP agreed to and broken off", &[part(Out, SYN), part(In, SYN | ACK), part(In, RST)], 240),
        ("TCP ended by who opened it", &with(part(Out, FIN | ACK)), 240),
        ("TCP ended by the other", &with(part(In, FIN | ACK)), 240),
        ("TCP broken off", &with(part(In, RST)), 240),
        ("TCP ended, and asked for again", &reopened, 240),
        ("TCP ended, and opened again", &reopened_whole, 7440),
        ("a request of ICMP", &echoes[..1], 30),
        ("an answered one", &echoes, 30),
        ("another protocol", &others[..1], 600),
        ("another protocol both ways", &others, 600),
    ];
    for (what, packets, lasts) in lives {
        for (wait, alive) in [(seconds(*lasts) - TICK, true), (seconds(*lasts), false)] {
            let mut node = Node::new(&[rule(Out, Protocol::Any, None)]);
            // The first packet of all is not at the beginning of a tick's time by chance only.
            node.wait(seconds(1));
            for (direction, packet) in *packets {
                assert_eq!(node.judge(*direction, packet), Ok(()), "{what}");
                node.wait(seconds(5));
            }
            node.wait(wait - seconds(5));
            assert_eq!(node.count(PEER), usize::from(alive), "{what}: {wait:?}");
            // What comes in passes by state alone here, so this shows whether there is one.
            let reply = match packets[0].1[9] {
                1 => &echoes[1].1,
                17 => &udps[1].1,
                132 => &others[1].1,
                _ => &part(In, ACK).1,
            };
            assert_eq!(node.judge(In, reply).is_ok(), alive, "{what}: {wait:?}");
        }
    }
}

#[test]
fn flow_lives_on_as_long_as_packets_pass_either_way() {
    for direction in [Out, In] {
        let mut node = Node::new(&[rule(Out, Protocol::Udp, None)]);
        node.judge(Out, &asking(ENDS[0], Out)).unwrap();
        node.judge(In, &answering(ENDS[0], In)).unwrap();
        let packet = if direction == Out { asking(ENDS[0], Out) } else { answering(ENDS[0], In) };
        for _ in 0..20 {
            node.wait(seconds(119));
            assert_eq!(node.judge(direction, &packet), Ok(()));
        }
    }
}
