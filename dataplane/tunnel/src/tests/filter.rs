//! The filter inside the tunnel: on both ends, for packets that are held, and with the check of sources before it.

use super::*;
use crate::filter::{Denial, FilterReport, Scope};
use crate::ip::Prefix;
use crate::key::NetworkId;
use crate::netmap::{Member, MemberKind, PortRange, Protocol, Rule, Selector};
use crate::packet::build::{self, ACK, SYN, fragment, icmp, tcp, udp};
use crate::packet::{TCP, UDP};

/// The record of test node `number`.
fn member(number: u8, routes: Vec<Prefix>) -> Member {
    Member {
        network: NetworkId::from_bytes([7; 16]),
        id: NodeId::from_bytes([number; 8]),
        name: format!("n{number}"),
        kind: MemberKind::Mesh,
        relay: false,
        noise_key: key_of(number),
        identity_key: None,
        ipv4: Some([10, 0, 0, number].into()),
        ipv6: format!("fd00::{number}").parse().unwrap(),
        tags: Vec::new(),
        groups: Vec::new(),
        routes,
        serial: 1,
        not_after: UnixTime::from_secs(2_000_000_000),
    }
}

/// That node `source` may open flows to node `destination`.
pub(super) fn rule(source: u8, destination: u8, protocol: Protocol, port: Option<u16>) -> Rule {
    let node = |number| vec![Selector::Node(NodeId::from_bytes([number; 8]))];
    let ports = port.into_iter().map(PortRange::from).collect();
    Rule { sources: node(source), destinations: node(destination), protocol, ports }
}

pub(super) fn filter_of(number: u8, rules: &[Rule], denials: &[Denial]) -> Arc<Filter> {
    let members: Vec<Member> = (1..=3).map(|number| member(number, Vec::new())).collect();
    let me = &members[usize::from(number) - 1];
    Arc::new(Filter::of(me, &members, (0..).zip(rules), denials))
}

impl Pair {
    /// Gives each of the two its filter.
    fn police(&mut self, near: &[Rule], far: &[Rule]) {
        self.near.tunnel.apply_filter(filter_of(1, near, &[]), self.now);
        self.far.tunnel.apply_filter(filter_of(2, far, &[]), self.now);
    }

    /// Sends a packet and says what became of it at the other end.
    fn pass_near(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let datagram = self.near.send(packet, self.now)?.expect("there is a session");
        self.deliver(&datagram).unwrap().map(|_| ())
    }

    fn pass_far(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let datagram = self.far.send(packet, self.now)?.expect("there is a session");
        self.deliver(&datagram).unwrap().map(|_| ())
    }
}

fn near_sends(protocol: u8, payload: &[u8]) -> Vec<u8> {
    build::with([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), protocol, payload)
}

fn far_sends(protocol: u8, payload: &[u8]) -> Vec<u8> {
    build::with([10, 0, 0, 2].into(), [10, 0, 0, 1].into(), protocol, payload)
}

#[test]
fn new_tunnel_lets_nothing_pass_in_either_direction() {
    let mut pair = Pair::connected(1);
    let datagram = pair.near.send(&Pair::near_packet(b"x"), pair.now).unwrap().unwrap();
    for node in [&mut pair.near, &mut pair.far] {
        node.tunnel.apply_filter(Arc::new(Filter::deny_all()), pair.now);
    }
    assert_eq!(pair.deliver(&datagram), Some(Err(DropReason::NotForUs)));
    assert_eq!(pair.near.send(&Pair::near_packet(b"x"), pair.now).err(), Some(DropReason::NotFromUs));
    let fresh = Tunnel::new(0, key_of(1), Random::seeded(1)).unwrap();
    let mut fresh = Node { tunnel: fresh, ..Node::new(1, 1) };
    fresh.apply(std::slice::from_ref(&pair.far.config), pair.now);
    assert_eq!(fresh.send(&Pair::near_packet(b"x"), pair.now).err(), Some(DropReason::NotFromUs));
    assert!(fresh.work(pair.now).is_empty(), "what is denied begins no handshake");
}

#[test]
fn both_ends_judge_by_their_own_filter() {
    let web = [rule(1, 2, Protocol::Tcp, Some(443))];
    let syn = near_sends(TCP, &tcp(5000, 443, SYN, &[]));
    for (near, far, expected) in [
        (&web[..], &web[..], Ok(())),
        (&[], &web, Err(DropReason::Denied)),
        (&web, &[], Err(DropReason::Denied)),
    ] {
        let mut pair = Pair::connected(2);
        pair.police(near, far);
        assert_eq!(pair.pass_near(&syn), expected);
        assert_eq!(pair.near.dropped(DropReason::Denied), u64::from(near.is_empty()));
        assert_eq!(pair.far.dropped(DropReason::Denied), u64::from(far.is_empty()));
        assert_eq!(pair.far.received.len(), usize::from(expected.is_ok()));
    }
}

#[test]
fn whole_conversations_pass_both_ends_by_one_rule_and_nothing_beside_them() {
    let mut pair = Pair::connected(3);
    let rules = [rule(1, 2, Protocol::Any, None)];
    pair.police(&rules, &rules);
    let question = near_sends(UDP, &udp(1000, 53, b"?"));
    assert_eq!(
        pair.pass_far(&far_sends(UDP, &udp(53, 1000, b"!"))),
        Err(DropReason::Denied),
        "not asked yet"
    );
    pair.pass_near(&question).unwrap();
    pair.pass_far(&far_sends(UDP, &udp(53, 1000, b"!"))).unwrap();
    pair.pass_far(&far_sends(1, &icmp(3, 0, &question))).unwrap();
    assert_eq!(pair.pass_far(&far_sends(UDP, &udp(53, 1001, b"!"))), Err(DropReason::Denied));
    let ends = [[10, 0, 0, 2].into(), [10, 0, 0, 1].into()];
    let answer = udp(53, 1000, &[1; 40]);
    assert_eq!(
        pair.pass_far(&fragment(ends, UDP, 5, (24, false), &answer[24..])),
        Err(DropReason::UnaskedFragment)
    );
    pair.pass_far(&fragment(ends, UDP, 5, (0, true), &answer[..24])).unwrap();
    pair.pass_far(&fragment(ends, UDP, 5, (24, false), &answer[24..])).unwrap();
    pair.pass_near(&near_sends(TCP, &tcp(5000, 22, SYN, &[]))).unwrap();
    pair.pass_far(&far_sends(TCP, &tcp(22, 5000, SYN | ACK, &[]))).unwrap();
    pair.pass_near(&near_sends(TCP, &tcp(5000, 22, ACK, &[]))).unwrap();
    assert_eq!(pair.pass_far(&far_sends(TCP, &tcp(5001, 22, SYN, &[]))), Err(DropReason::Denied));
    assert_eq!((pair.near.received.len(), pair.far.received.len()), (5, 3));
}

/// Asks the receiving end alone: its peer may run anything.
fn arrives(pair: &mut Pair, packet: &[u8]) -> Result<(), DropReason> {
    let datagram = routing::seal_anyway(pair, packet);
    pair.deliver(&datagram).unwrap().map(|_| ())
}

#[test]
fn peer_that_judges_nothing_is_judged_here() {
    let mut pair = Pair::connected(4);
    pair.far.tunnel.apply_filter(filter_of(2, &[rule(1, 2, Protocol::Udp, Some(53))], &[]), pair.now);
    for (packet, expected) in [
        (near_sends(UDP, &udp(9, 53, &[])), Ok(())),
        (near_sends(UDP, &udp(9, 54, &[])), Err(DropReason::Denied)),
        (near_sends(UDP, &[0; 7]), Err(DropReason::UnreadablePacket)),
        (near_sends(TCP, &tcp(9, 53, 0, &[])), Err(DropReason::ImpossibleFlags)),
        (near_sends(253, b"unknown"), Err(DropReason::Denied)),
        (near_sends(1, &icmp(0, 1, &[])), Err(DropReason::UnaskedIcmp)),
        (near_sends(1, &icmp(5, 1, &near_sends(UDP, &udp(9, 53, &[])))), Err(DropReason::UnaskedIcmp)),
        (
            build::with([10, 0, 0, 1].into(), [10, 0, 0, 3].into(), UDP, &udp(9, 53, &[])),
            Err(DropReason::NotForUs),
        ),
        (
            build::with([10, 0, 0, 1].into(), [255, 255, 255, 255].into(), UDP, &udp(9, 53, &[])),
            Err(DropReason::NotForUs),
        ),
        (
            build::with([10, 0, 0, 3].into(), [10, 0, 0, 2].into(), UDP, &udp(9, 53, &[])),
            Err(DropReason::SpoofedSource),
        ),
    ] {
        assert_eq!(arrives(&mut pair, &packet), expected, "{packet:?}");
    }
    assert_eq!(pair.far.received.len(), 1);
}

#[test]
fn held_packets_are_judged_again_when_they_are_released() {
    let mut pair = Pair::new(5);
    let rules = [rule(1, 2, Protocol::Udp, Some(53)), rule(1, 2, Protocol::Udp, Some(54))];
    pair.police(&rules, &rules);
    for port in [53, 54, 53] {
        let held = pair.near.send(&near_sends(UDP, &udp(9, port, &[])), pair.now).unwrap();
        assert!(held.is_none(), "there is no session yet");
    }
    pair.near.tunnel.apply_filter(filter_of(1, &rules[..1], &[]), pair.now);
    pair.settle();
    let port = |packet: &Vec<u8>| packet[23];
    assert_eq!(pair.far.received.iter().map(port).collect::<Vec<u8>>(), [53, 53]);
    assert_eq!(pair.near.dropped(DropReason::Denied), 1);
    let report = pair.near.tunnel.filter_report();
    assert_eq!(report.rules[&0].packets, 2, "a packet counts once, however often it is judged");
}

#[test]
fn flow_of_a_packet_that_was_held_for_long_begins_with_its_release() {
    let mut pair = Pair::new(6);
    let rules = [rule(1, 2, Protocol::Udp, Some(53))];
    pair.police(&rules, &rules);
    assert!(pair.near.send(&near_sends(UDP, &udp(9, 53, b"?")), pair.now).unwrap().is_none());
    // Longer than an unanswered flow lasts.
    pair.cut(seconds(40));
    pair.run(seconds(10));
    assert_eq!(pair.far.received.len(), 1);
    assert_eq!(pair.pass_far(&far_sends(UDP, &udp(53, 9, b"!"))), Ok(()));
}

#[test]
fn report_tells_flows_by_peer_and_hits_by_rule_and_denial() {
    let mut pair = Pair::connected(7);
    assert_eq!(Tunnel::new(0, key_of(1), Random::seeded(1)).unwrap().filter_report().rules.len(), 0);
    let rules = [rule(3, 1, Protocol::Any, None), rule(1, 2, Protocol::Udp, None)];
    let denial = Denial {
        id: 9,
        scope: Scope::Both,
        peers: Some([NodeId::from_bytes([2; 8])].into()),
        protocol: Protocol::Udp,
        ports: vec![PortRange::from(99)],
    };
    pair.police(&rules, &rules);
    pair.near.tunnel.apply_filter(filter_of(1, &rules, &[denial]), pair.now);
    pair.pass_near(&near_sends(UDP, &udp(9, 53, b"?"))).unwrap();
    pair.pass_far(&far_sends(UDP, &udp(53, 9, b"!"))).unwrap();
    assert_eq!(pair.pass_near(&near_sends(UDP, &udp(9, 99, b"?"))), Err(DropReason::DeniedLocally));
    let FilterReport { rules, denials, flows, .. } = pair.near.tunnel.filter_report();
    assert_eq!(rules.values().map(|hits| (hits.packets, hits.flows)).collect::<Vec<_>>(), [(0, 0), (2, 1)]);
    assert_eq!((denials[&9], flows[&NodeId::from_bytes([2; 8])]), (1, 1));
}

#[test]
fn flows_go_with_their_peer() {
    let mut pair = Pair::connected(8);
    let rules = [rule(2, 1, Protocol::Udp, None)];
    pair.police(&rules, &rules);
    pair.pass_far(&far_sends(UDP, &udp(9, 53, b"?"))).unwrap();
    let near = pair.near.config.clone();
    pair.far.apply(&[], pair.now);
    pair.far.apply(&[near], pair.now);
    assert_eq!(pair.near.send(&near_sends(UDP, &udp(53, 9, b"!")), pair.now).map(|_| ()), Ok(()));
    pair.run(seconds(20));
    assert!(pair.far.received.is_empty(), "the far end has forgotten what it asked");
}

/// Plays a thousand sets of ranges, which `range` draws as it draws sources, and tells how many packets were refused and passed.
fn play_ranges(
    seed: u64,
    to: std::net::IpAddr,
    range: impl Fn(&mut Random) -> Prefix,
    source: impl Fn(&mut Random) -> std::net::IpAddr,
) -> [u32; 2] {
    let mut pair = Pair::connected(seed);
    let mut random = Random::seeded(99);
    let mut outcomes = [0, 0];
    for set in 0..1000 {
        // Ranges of three peers that lie in and over each other; of the same one, the later peer in the list has it.
        let routes: Vec<Vec<Prefix>> = (0..3).map(|_| (0..3).map(|_| range(&mut random)).collect()).collect();
        let members = [1, 3, 5].map(|number: u8| member(number, routes[usize::from(number) % 3].clone()));
        let configs = members.clone().map(|member| PeerConfig {
            id: member.id,
            key: member.noise_key,
            allowed_ips: member.allowed_ips().collect(),
            ..pair.near.config.clone()
        });
        pair.far.tunnel.apply(&configs, pair.now);
        let everything = Rule {
            sources: vec![Selector::All],
            destinations: vec![Selector::All],
            protocol: Protocol::Any,
            ports: Vec::new(),
        };
        let filter = Filter::of(&member(2, Vec::new()), &members, [(0, &everything)], &[]);
        pair.far.tunnel.apply_filter(Arc::new(filter), pair.now);
        for _ in 0..10 {
            let source = source(&mut random);
            let holds = configs.iter().enumerate().flat_map(|(at, config)| {
                let holding = config.allowed_ips.iter().filter(|range| range.contains(source));
                holding.map(move |range| (range.len(), at))
            });
            let owner = holds.max().map(|(_, at)| at);
            let packet = build::with(source, to, UDP, &udp(1, 2, &[]));
            let expected = if owner == Some(0) { Ok(()) } else { Err(DropReason::SpoofedSource) };
            assert_eq!(
                arrives(&mut pair, &packet),
                expected,
                "set {set}: {source} of {owner:?} in {routes:?}"
            );
            outcomes[usize::from(owner == Some(0))] += 1;
        }
    }
    outcomes
}

#[test]
fn no_peer_sends_from_anothers_address_whatever_the_ranges() {
    let address = |bits: u32| std::net::IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a40_0000 | bits));
    let range = |random: &mut Random| {
        let within = address(random.up_to(255) << 6);
        Prefix::containing(within, 16 + random.up_to(16) as u8).unwrap()
    };
    let outcomes = play_ranges(9, [10, 0, 0, 2].into(), range, |random| address(random.up_to(0x3fff)));
    assert!(outcomes.into_iter().all(|count| count > 1000), "{outcomes:?}");
}

#[test]
fn no_peer_sends_from_anothers_ipv6_address_whatever_the_ranges() {
    // Addresses differ in the bits below /48, on both sides of /64; ranges end there, and at single addresses.
    let address = |high: u32, low: u32| {
        let bits = 0xfd40_u128 << 112 | u128::from(high) << 72 | u128::from(low);
        std::net::IpAddr::from(std::net::Ipv6Addr::from_bits(bits))
    };
    let range = |random: &mut Random| {
        let within = address(random.up_to(3), random.up_to(3));
        Prefix::containing(within, 40 + 8 * random.up_to(11) as u8).unwrap()
    };
    let source = |random: &mut Random| address(random.up_to(3), random.up_to(3));
    let outcomes = play_ranges(10, "fd00::2".parse().unwrap(), range, source);
    assert!(outcomes.into_iter().all(|count| count > 1000), "{outcomes:?}");
}
