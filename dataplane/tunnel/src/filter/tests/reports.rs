//! What is counted.

use super::*;
use crate::packet::build::{fragment, icmp};

fn report(node: &Node) -> FilterReport {
    node.gate.report()
}

#[test]
fn packets_and_flows_are_counted_for_the_first_rule_that_allows_them() {
    let rules =
        [rule(In, Protocol::Tcp, None), rule(Out, Protocol::Udp, Some(53)), rule(Out, Protocol::Any, None)];
    let mut node = Node::new(&rules);
    let question = asking(ENDS[0], Out);
    node.judge(Out, &question).unwrap();
    node.judge(In, &answering(ENDS[0], In)).unwrap();
    node.judge(In, &between(ENDS[0], In, 1, &icmp(3, 0, &question))).unwrap();
    let [near, far] = addresses(ENDS[0]);
    node.judge(Out, &fragment([near, far], UDP, 1, (0, true), &udp(1000, 53, &[0; 8]))).unwrap();
    node.judge(Out, &fragment([near, far], UDP, 1, (16, false), &[0; 8])).unwrap();
    node.judge(Out, &segment(ENDS[0], Out, Out, SYN)).unwrap();
    node.judge(In, &asking(ENDS[0], In)).unwrap_err();
    let hits = |packets, flows| RuleHits { packets, flows };
    let counted: Vec<RuleHits> = report(&node).rules.into_values().collect();
    assert_eq!(counted, [hits(0, 0), hits(5, 1), hits(1, 1)]);
    assert_eq!(report(&node).most_flows, 16_384);
}

#[test]
fn counts_go_on_for_rules_and_denials_that_stay() {
    let [tcp, udp] = [rule(Out, Protocol::Tcp, None), rule(Out, Protocol::Udp, None)];
    let mut node = Node::new(&[tcp.clone(), udp.clone()]);
    node.judge(Out, &segment(ENDS[0], Out, Out, SYN)).unwrap();
    node.judge(Out, &asking(ENDS[0], Out)).unwrap();
    let denials = [denial(1, Scope::Both, Protocol::Icmp), denial(2, Scope::Both, Protocol::Icmp)];
    let [near, far] = addresses(ENDS[0]);
    let echo = build::with(near, far, 1, &icmp(8, 1, &[]));
    node.apply(filter(&[tcp.clone(), rule(Out, Protocol::Icmp, None)], &denials));
    node.judge(Out, &echo).unwrap_err();
    let packets = |node: &Node, rule: u64| report(node).rules[&rule].packets;
    assert_eq!((packets(&node, 0), packets(&node, 1)), (1, 0), "another rule in the place of the second");
    assert_eq!(report(&node).denials, BTreeMap::from([(1, 1), (2, 0)]), "the first that forbids it");
    node.apply(filter(&[tcp, udp], &denials[..1]));
    assert_eq!((packets(&node, 0), packets(&node, 1)), (1, 0));
    assert_eq!(report(&node).denials, BTreeMap::from([(1, 1)]));
}

#[test]
fn reports_of_workers_add_up() {
    let mut sum = FilterReport::default();
    let one = FilterReport {
        rules: BTreeMap::from([(3, RuleHits { packets: 5, flows: 2 })]),
        denials: BTreeMap::from([(1, 4)]),
        flows: BTreeMap::from([(id(2), 7)]),
        most_flows: 16_384,
        passed_in: 3,
        passed_out: 2,
    };
    sum.merge(one.clone());
    sum.merge(FilterReport { flows: BTreeMap::from([(id(3), 1)]), ..one.clone() });
    assert_eq!(sum.rules[&3], RuleHits { packets: 10, flows: 4 });
    assert_eq!(sum.denials[&1], 8);
    assert_eq!(sum.flows, BTreeMap::from([(id(2), 7), (id(3), 1)]));
    assert_eq!((sum.most_flows, sum.passed_in, sum.passed_out), (16_384, 6, 4));
}
