//! What the network promises its tests: that it breaks what it says it breaks, and nothing else.

use super::*;

const A: NodeIndex = NodeIndex::FIRST;
const B: NodeIndex = NodeIndex::SECOND;

fn network() -> Network {
    Network::new(Rng::new(1))
}

fn two_public() -> Network {
    let mut network = network();
    for _ in 0..2 {
        let place = network.fresh_place(Realm::INTERNET, true, true);
        network.add_host(place);
    }
    network
}

/// Sends from one host to an address; tells who got it and from where.
fn passes(network: &mut Network, from: NodeIndex, to: SocketAddr) -> Option<(NodeIndex, SocketAddr)> {
    network.send(from, to, vec![], Duration::ZERO);
    network.receive(Duration::from_secs(1)).map(|datagram| (datagram.at, datagram.from))
}

fn arrivals(weather: Weather, count: u32) -> Vec<u32> {
    let mut network = two_public();
    network.weather = weather;
    let to = network.place(B).addresses()[0];
    for number in 0..count {
        network.send(A, to, number.to_be_bytes().to_vec(), Duration::ZERO);
    }
    let end = Duration::from_secs(1);
    std::iter::from_fn(|| network.receive(end))
        .map(|datagram| u32::from_be_bytes(datagram.payload.try_into().unwrap()))
        .collect()
}

#[test]
fn fine_weather_delivers_everything_in_order() {
    assert_eq!(arrivals(Weather::fine(), 1000), (0..1000).collect::<Vec<_>>());
}

#[test]
fn foul_weather_loses_duplicates_and_reorders() {
    let arrived = arrivals(Weather::foul(), 10_000);
    let different: BTreeSet<u32> = arrived.iter().copied().collect();
    assert!((7_800..8_200).contains(&different.len()), "{} arrived", different.len());
    let twice = arrived.len() - different.len();
    assert!((300..500).contains(&twice), "{twice} arrived twice");
    assert!(!arrived.is_sorted());
}

#[test]
fn cut_is_one_way_until_mended() {
    let mut network = two_public();
    let (to_a, to_b) = (network.place(A).addresses()[0], network.place(B).addresses()[0]);
    network.cut(A, B);
    assert!(passes(&mut network, A, to_b).is_none());
    assert!(passes(&mut network, B, to_a).is_some());
    network.mend(A, B);
    assert!(passes(&mut network, A, to_b).is_some());
    assert_eq!((network.sent(), network.lost()), (3, 1));
}

#[test]
fn blocked_host_neither_sends_nor_receives() {
    let mut network = two_public();
    let (to_a, to_b) = (network.place(A).addresses()[0], network.place(B).addresses()[0]);
    network.block_udp(A, true);
    assert!(passes(&mut network, A, to_b).is_none());
    assert!(passes(&mut network, B, to_a).is_none());
    assert!(network.tcp_passes(A, B));
    network.block_tcp(B, true);
    assert!(!network.tcp_passes(A, B));
}

#[test]
fn host_behind_a_nat_is_seen_from_its_router_and_answered_there() {
    let mut network = network();
    let inside = network.add_router(Realm::INTERNET, NatKind::port_restricted(), None);
    let (a, b) =
        (network.fresh_place(inside, true, false), network.fresh_place(Realm::INTERNET, true, false));
    network.add_host(a);
    network.add_host(b);
    let (at, seen) = passes(&mut network, A, b.addresses()[0]).unwrap();
    assert_eq!(at, B);
    assert_ne!(seen, a.addresses()[0]);
    assert_eq!(passes(&mut network, B, seen), Some((A, b.addresses()[0])));
    assert_eq!(
        passes(&mut network, B, a.addresses()[0]),
        None,
        "a private address leads nowhere from outside"
    );
    network.reboot_router(inside);
    assert_eq!(passes(&mut network, B, seen), None, "the mapping is gone");
}

#[test]
fn private_address_leads_to_another_host_in_another_realm() {
    let mut network = network();
    for _ in 0..2 {
        let inside = network.add_router(Realm::INTERNET, NatKind::full_cone(), None);
        let place = network.fresh_place(inside, true, false);
        network.add_host(place);
    }
    assert_eq!(network.place(A).v4, network.place(B).v4);
    let to_b = network.place(B).addresses()[0];
    assert_eq!(passes(&mut network, A, to_b).unwrap().0, A, "it is its own address, too");
}

#[test]
fn two_nats_in_series_translate_twice() {
    let mut network = network();
    let carrier = network.add_router(Realm::INTERNET, NatKind::full_cone(), None);
    let home = network.add_router(carrier, NatKind::full_cone(), None);
    let (a, b) = (network.fresh_place(home, true, false), network.fresh_place(Realm::INTERNET, true, false));
    network.add_host(a);
    network.add_host(b);
    let (_, seen) = passes(&mut network, A, b.addresses()[0]).unwrap();
    assert_eq!(passes(&mut network, B, seen).unwrap().0, A);
    assert_eq!(network.routers_above(home), [home, carrier]);
}

#[test]
fn own_outer_address_leads_back_inside_only_with_hairpinning() {
    for hairpinning in [false, true] {
        let mut network = network();
        let kind = NatKind { hairpinning, ..NatKind::full_cone() };
        let inside = network.add_router(Realm::INTERNET, kind, None);
        for realm in [inside, inside, Realm::INTERNET] {
            let place = network.fresh_place(realm, true, false);
            network.add_host(place);
        }
        let outside = network.place(NodeIndex::numbered(2)).addresses()[0];
        let (_, a_seen) = passes(&mut network, A, outside).unwrap();
        let arrived = passes(&mut network, B, a_seen);
        assert_eq!(arrived.map(|(at, _)| at), hairpinning.then_some(A));
    }
}

#[test]
fn firewall_lets_ipv6_in_once_asked_for_and_translates_nothing() {
    let mut network = network();
    let inside = network.add_router(Realm::INTERNET, NatKind::symmetric(), Some(Dependence::AddressAndPort));
    let (a, b) =
        (network.fresh_place(inside, false, true), network.fresh_place(Realm::INTERNET, false, true));
    network.add_host(a);
    network.add_host(b);
    let (to_a, to_b) = (a.addresses()[0], b.addresses()[0]);
    assert_eq!(passes(&mut network, B, to_a), None);
    assert_eq!(passes(&mut network, A, to_b), Some((B, to_a)));
    assert_eq!(passes(&mut network, B, to_a), Some((A, to_b)));
}

#[test]
fn datagrams_to_a_silent_address_are_counted_until_something_comes_from_there() {
    let mut network = two_public();
    let (to_a, to_b) = (network.place(A).addresses()[0], network.place(B).addresses()[0]);
    network.cut(A, B);
    for second in 0..90 {
        network.send(A, to_b, vec![], Duration::from_secs(second));
    }
    assert_eq!(network.most_unverified(), Some((A, to_b, 61)));
    assert!(passes(&mut network, B, to_a).is_some());
    assert_eq!(network.most_unverified(), Some((B, to_a, 1)), "and b does not know yet that it is heard");
}
