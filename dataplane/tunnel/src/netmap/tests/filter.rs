//! The filter that a map is compiled to: of what is in force, and of nothing else.

use std::net::IpAddr;

use super::*;
use crate::filter::{Decision, Direction, Filter, Opening};

/// What node 1's filter says at a time to a connection to a port, from node 2 or to it.
fn judged(map: &NetworkMap, at: UnixTime, direction: Direction, port: u16) -> Decision {
    let address = |node: u8| IpAddr::from([100, 64, 0, node]);
    let (source, destination) = match direction {
        Direction::Out => (address(1), address(2)),
        Direction::In => (address(2), address(1)),
    };
    let opening = Opening { source, destination, protocol: 6, port: Some(port) };
    Filter::compile(map, &[], at).decide(node_id(2), direction, &opening)
}

#[test]
fn filter_of_a_map_allows_what_its_proven_rules_do() {
    let map = Network::new().map();
    for direction in [Direction::In, Direction::Out] {
        assert_eq!(judged(&map, NOW, direction, 22), Decision::Allowed { rule: Some(0) });
        assert_eq!(judged(&map, NOW, direction, 443), Decision::Allowed { rule: Some(2) });
        assert_eq!(judged(&map, NOW, direction, 80), Decision::Denied, "its rule was not shown");
    }
}

#[test]
fn filter_allows_nothing_once_the_policy_the_peer_or_the_node_itself_has_ended() {
    let network = Network::new();
    let just_before = |end: UnixTime| end.saturating_sub(Duration::from_millis(1));
    let (end, map) = (later(30 * DAY), network.map());
    assert!(judged(&map, just_before(end), Direction::In, 22).is_allowed());
    assert_eq!(judged(&map, end, Direction::In, 22), Decision::Denied);
    for node in [ME, 2] {
        let mut full = network.full_without_head();
        let mut short = network.member(node);
        short.not_after = later(HOUR);
        full.members[usize::from(node) - 1] = network.admit(&short);
        let map = network.empty_map().verify(network.finish(&Content::default(), full), NOW).unwrap();
        assert!(judged(&map, just_before(later(HOUR)), Direction::In, 22).is_allowed());
        assert_eq!(judged(&map, later(HOUR), Direction::In, 22), Decision::Denied, "node {node} has ended");
    }
    assert_eq!(Filter::compile(&network.empty_map(), &[], NOW), Filter::deny_all());
}
