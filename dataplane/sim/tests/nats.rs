//! Every NAT against every other, with one relay: who is direct, and who only says so.

mod scene;

use std::time::Duration;

use ringmesh_sim::nat::Dependence;
use ringmesh_sim::network::Realm;
use ringmesh_sim::{NatKind, NodeIndex, World, seeds};
use scene::{By, MINUTE, SECOND, both_by, by, talk};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Public,
    OneToOne,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
    /// A port restricted NAT behind the carrier's.
    Carrier,
    UdpBlocked,
}

impl Home {
    const ALL: [Self; 8] = [
        Self::Public,
        Self::OneToOne,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::Carrier,
        Self::UdpBlocked,
    ];

    /// Whether the two can be direct over IPv4 (RFC 5128).
    fn can_be_direct(self, other: Self) -> bool {
        let strict = |home| matches!(home, Self::PortRestricted | Self::Carrier | Self::Symmetric);
        let one = |a, b| a == Self::UdpBlocked || (a == Self::Symmetric && strict(b));
        !one(self, other) && !one(other, self)
    }

    fn build(self, world: &mut World, firewall: Option<Dependence>, v6: bool) -> NodeIndex {
        let nat = match self {
            Self::Public | Self::UdpBlocked => None,
            Self::OneToOne => Some(NatKind::one_to_one()),
            Self::FullCone => Some(NatKind::full_cone()),
            Self::AddressRestricted => Some(NatKind::address_restricted()),
            Self::PortRestricted | Self::Carrier => Some(NatKind::port_restricted()),
            Self::Symmetric => Some(NatKind::symmetric()),
        };
        let outside = if self == Self::Carrier {
            world.network.add_router(Realm::INTERNET, NatKind::port_restricted(), firewall)
        } else {
            Realm::INTERNET
        };
        let realm = nat.map_or(outside, |nat| world.network.add_router(outside, nat, firewall));
        let place = world.network.fresh_place(realm, !v6, v6);
        let node = world.add_node(place);
        world.network.block_udp(node, self == Self::UdpBlocked);
        node
    }
}

fn pairs() -> impl Iterator<Item = (Home, Home)> {
    let all = Home::ALL;
    (0..all.len()).flat_map(move |a| (a..all.len()).map(move |b| (all[a], all[b])))
}

/// A pair that talks from the first moment on.
fn meet(seed: u64, homes: (Home, Home), v6: bool) -> (World, NodeIndex, NodeIndex) {
    let mut world = World::new(seed);
    let firewall = Some(Dependence::AddressAndPort);
    let a = homes.0.build(&mut world, firewall, v6);
    let b = homes.1.build(&mut world, firewall, v6);
    world.add_relay();
    world.introduce_all();
    (world, a, b)
}

fn first_arrivals(world: &World, a: NodeIndex, b: NodeIndex) -> Option<Duration> {
    let first = |from, to| {
        let arrivals = world.ledger.iter().filter(move |entry| (entry.from, entry.to) == (from, to));
        arrivals.filter_map(|entry| entry.delivered).min()
    };
    Some(first(a, b)?.max(first(b, a)?))
}

#[test]
fn pairs_that_can_be_direct_are_in_ten_seconds_and_others_never_say_so() {
    assert_eq!(pairs().count(), 36);
    for homes in pairs() {
        seeds::check(0..5, |seed| {
            let (mut world, a, b) = meet(seed, homes, false);
            talk(&mut world, a, b, 10 * SECOND);
            let first = first_arrivals(&world, a, b);
            assert!(first.is_some_and(|first| first <= 3 * SECOND), "{homes:?}: first packets at {first:?}");
            if homes.0.can_be_direct(homes.1) {
                assert_eq!(both_by(&world, a, b), Some(By::Udp), "{homes:?}");
            }
            for _ in 0..12 {
                talk(&mut world, a, b, 5 * SECOND);
                for (node, peer) in [(a, b), (b, a)] {
                    let direct = by(&world, node, peer) == By::Udp;
                    assert_eq!(direct, homes.0.can_be_direct(homes.1), "{homes:?}");
                }
            }
        });
    }
}

#[test]
fn firewalls_of_ipv6_keep_nobody_apart_but_those_without_udp() {
    for homes in pairs() {
        let blocked = homes.0 == Home::UdpBlocked || homes.1 == Home::UdpBlocked;
        let (mut world, a, b) = meet(1, homes, true);
        talk(&mut world, a, b, 10 * SECOND);
        let first = first_arrivals(&world, a, b);
        assert!(first.is_some_and(|first| first <= 3 * SECOND), "{homes:?}: first packets at {first:?}");
        assert_eq!(both_by(&world, a, b), Some(if blocked { By::Relay } else { By::Udp }), "{homes:?}");
    }
}

#[test]
fn two_nodes_behind_one_nat_talk_by_their_private_addresses() {
    for hairpinning in [false, true] {
        seeds::check(0..5, |seed| {
            let mut world = World::new(seed);
            let kind = NatKind { hairpinning, ..NatKind::symmetric() };
            let inside = world.network.add_router(Realm::INTERNET, kind, None);
            let [a, b] = [(); 2].map(|()| {
                let place = world.network.fresh_place(inside, true, false);
                world.add_node(place)
            });
            world.add_relay();
            world.introduce_all();
            talk(&mut world, a, b, 10 * SECOND);
            for (node, peer) in [(a, b), (b, a)] {
                let endpoint = world.peer(node, peer).unwrap().endpoint;
                let own = world.network.place(peer).addresses()[0];
                assert_eq!(endpoint.and_then(|path| path.address()), Some(own));
            }
        });
    }
}

#[test]
fn two_homes_behind_one_carrier_are_direct_only_where_it_turns_datagrams_around() {
    for hairpinning in [false, true] {
        seeds::check(0..5, |seed| {
            let mut world = World::new(seed);
            let carrier = NatKind { hairpinning, ..NatKind::full_cone() };
            let carrier = world.network.add_router(Realm::INTERNET, carrier, None);
            let [a, b] = [(); 2].map(|()| {
                let home = world.network.add_router(carrier, NatKind::full_cone(), None);
                let place = world.network.fresh_place(home, true, false);
                world.add_node(place)
            });
            world.add_relay();
            world.introduce_all();
            talk(&mut world, a, b, 15 * SECOND);
            let expected = if hairpinning { By::Udp } else { By::Relay };
            assert_eq!(both_by(&world, a, b), Some(expected));
        });
    }
}

#[test]
fn direct_path_through_short_lived_mappings_lasts_as_long_as_there_is_traffic() {
    seeds::check(0..3, |seed| {
        let mut world = World::new(seed);
        let kind = NatKind { timeout: 5 * SECOND, ..NatKind::port_restricted() };
        let (a, b) = (scene::behind(&mut world, kind), scene::behind(&mut world, kind));
        world.add_relay();
        world.introduce_all();
        talk(&mut world, a, b, 15 * SECOND);
        let since = world.elapsed();
        talk(&mut world, a, b, 5 * MINUTE);
        assert_eq!(scene::missing(&world, a, b, since), 0);
        assert_eq!(both_by(&world, a, b), Some(By::Udp));
        assert_eq!(scene::moves(&world, a, b, since), 0);
    });
}
