//! That a packet like the one before it need not be judged: whoever judges each comes to the same.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use super::model::{Step, filters, step};
use super::*;
use crate::packet::build::{PSH, fragment};

/// Between two trains, or one: packets of one peer that go the same way at the same time.
#[derive(Clone, Debug)]
enum Event {
    Train(Direction, Vec<Vec<u8>>),
    Wait(u64),
    Apply(usize),
}

/// Trains with many neighbours that are alike: each packet goes several times, and comes back behind others.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let train = prop::collection::vec((step(), 1..9_usize), 1..8).prop_map(|steps| {
        let mut events = Vec::new();
        let mut train: Option<(Direction, Vec<Vec<u8>>)> = None;
        for (step, times) in steps {
            match step {
                Step::Wait(eighths) => events.push(Event::Wait(eighths)),
                Step::Apply(which) => events.push(Event::Apply(which)),
                Step::Packet(direction, mut sent) => {
                    let (way, packets) = train.get_or_insert((direction, Vec::new()));
                    if *way != direction {
                        sent.addresses.reverse();
                    }
                    packets.extend(std::iter::repeat_n(sent.bytes(), times));
                }
            }
        }
        events.extend(train.map(|(direction, packets)| Event::Train(direction, packets)));
        events
    });
    prop::collection::vec(train, 1..40).prop_map(|events| events.concat())
}

/// Judges a train, each packet by itself unless it is like its neighbour; returns the verdicts and how many had such a neighbour.
fn judge_train(
    node: &mut Node,
    direction: Direction,
    packets: &[Vec<u8>],
) -> (Vec<Result<(), DropReason>>, usize) {
    let (mut neighbour, mut spared) = (Neighbour::default(), 0);
    let mut judge = |packet: &Vec<u8>| {
        let header = Header::parse(packet)?;
        let pass = match neighbour.pass_of(&header) {
            Some(pass) => {
                spared += 1;
                pass
            }
            None => {
                neighbour.forget();
                let flows = node.flows.entry(PEER).or_default();
                let passage = Passage { direction, header: &header, packet, packets: 1 };
                let pass = node.gate.judge(id(PEER), flows, passage, node.now)?;
                neighbour.remember(&header, pass);
                pass
            }
        };
        node.gate.passed(direction, pass, 1);
        Ok(())
    };
    (packets.iter().map(&mut judge).collect(), spared)
}

/// All that a filter keeps: its counters, and each flow with its place in its queue.
fn state(node: &Node) -> String {
    format!("{:?} {:?}", node.gate.report(), node.flows)
}

/// Plays the events to a node that judges each packet and to one that spares those like their neighbours; returns how many were
/// spared, and how many were not.
fn compare(events: &[Event]) -> Result<(usize, usize), TestCaseError> {
    let (mut each, mut sparing) = (Node::new(&[]), Node::new(&[]));
    let filters = filters();
    let (mut spared, mut judged) = (0, 0);
    for node in [&mut each, &mut sparing] {
        node.apply(filters[0].clone());
    }
    for (number, event) in events.iter().enumerate() {
        match event {
            Event::Wait(eighths) => {
                let time = TICK * u32::try_from(*eighths).unwrap();
                [&mut each, &mut sparing].into_iter().for_each(|node| node.wait(time));
            }
            Event::Apply(which) => {
                let filter = &filters[which % filters.len()];
                [&mut each, &mut sparing].into_iter().for_each(|node| node.apply(filter.clone()));
            }
            Event::Train(direction, packets) => {
                let expected: Vec<_> = packets.iter().map(|packet| each.judge(*direction, packet)).collect();
                let (verdicts, count) = judge_train(&mut sparing, *direction, packets);
                prop_assert_eq!(verdicts, expected, "event {}: {:?}", number, event);
                (spared, judged) = (spared + count, judged + packets.len() - count);
            }
        }
        prop_assert_eq!(state(&sparing), state(&each), "event {}: {:?}", number, event);
    }
    Ok((spared, judged))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn sparing_neighbours_equals_judging_each(events in events()) {
        compare(&events)?;
    }
}

#[test]
fn trains_spare_some_neighbours_and_judge_others() {
    let mut runner = TestRunner::deterministic();
    let (mut spared, mut judged) = (0, 0);
    for _ in 0..100 {
        let (some, others) = compare(&events().new_tree(&mut runner).unwrap().current()).unwrap();
        (spared, judged) = (spared + some, judged + others);
    }
    assert!(spared > 1500 && judged > 1500, "{spared} spared, {judged} judged");
}

/// How many of these packets from us are not judged, each behind the others.
fn spared(packets: &[Vec<u8>]) -> usize {
    let mut node = Node::new(&[rule(Out, Protocol::Any, None), rule(In, Protocol::Any, None)]);
    judge_train(&mut node, Out, packets).1
}

#[test]
fn a_flow_is_judged_until_it_is_settled_and_then_no_more() {
    for ends in ENDS {
        let go = segment(ends, Out, Out, ACK);
        let push = segment(ends, Out, Out, ACK | PSH);
        let ask = asking(ends, Out);
        assert_eq!(spared(&[&go, &push, &go, &push].map(Clone::clone)), 2, "opened, marked as used, settled");
        assert_eq!(spared(&vec![ask; 45]), 43);
    }
}

#[test]
fn what_may_change_a_flow_or_is_of_another_is_always_judged() {
    for ends in ENDS {
        let go = segment(ends, Out, Out, ACK);
        for flags in [SYN, FIN | ACK, RST | ACK] {
            let other = segment(ends, Out, Out, flags);
            let train = [vec![go.clone(); 3], vec![other; 4]].concat();
            assert_eq!(spared(&train), 1, "flags {flags}");
        }
        let between = |payload: &[u8]| between(ends, Out, UDP, payload);
        let ports: Vec<Vec<u8>> = (0..10).map(|number| between(&udp(1000 + number % 2, 53, b"?"))).collect();
        assert_eq!(spared(&ports), 0, "two flows take turns");
        let part = fragment(addresses(ends), UDP, 1, (0, true), &udp(1, 2, &[0; 16]));
        assert_eq!(spared(&vec![part; 5]), 0, "fragments");
    }
}

#[test]
fn what_is_denied_is_judged_each_time() {
    let mut node = Node::new(&[]);
    let denials = [denial(3, Scope::Only(Out), Protocol::Udp)];
    node.apply(filter(&[rule(Out, Protocol::Any, None)], &denials));
    let (verdicts, spared) = judge_train(&mut node, Out, &vec![asking(ENDS[0], Out); 5]);
    assert_eq!((verdicts, spared), (vec![Err(DropReason::DeniedLocally); 5], 0));
    assert_eq!(node.gate.report().denials[&3], 5);
}

#[test]
fn segments_are_judged_once_and_counted_each() {
    let mut node = Node::new(&[]);
    let denials = [denial(3, Scope::Only(Out), Protocol::Udp)];
    node.apply(filter(&[rule(Out, Protocol::Any, None)], &denials));
    let mut judge = |packet: &[u8], packets: u64| {
        let header = Header::parse(packet)?;
        let passage = Passage { direction: Out, header: &header, packet, packets };
        let pass = node.gate.judge(id(PEER), node.flows.entry(PEER).or_default(), passage, node.now)?;
        node.gate.passed(Out, pass, packets);
        Ok(())
    };
    assert_eq!(judge(&segment(ENDS[0], Out, Out, ACK), 45), Ok(()));
    assert_eq!(judge(&segment(ENDS[0], Out, Out, ACK), 1), Ok(()));
    assert_eq!(judge(&asking(ENDS[0], Out), 30), Err(DropReason::DeniedLocally));
    let report = node.gate.report();
    assert_eq!((report.rules[&0].packets, report.rules[&0].flows), (46, 1));
    assert_eq!((report.passed_out, report.denials[&3]), (46, 30));
}
