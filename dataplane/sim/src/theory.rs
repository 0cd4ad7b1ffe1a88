//! Which roads there are between two nodes, by what is known of NATs and by nothing that the nodes do.
//!
//! The core is held to this, so it is worked out from the network alone: RFC 5128 says when two NATs can be opened from
//! both sides.

use std::collections::BTreeSet;

use crate::nat::{Dependence, NatKind, Ports};
use crate::network::Realm;
use crate::world::{NodeIndex, World};

/// Whether two nodes can talk by UDP without a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direct {
    /// No datagram of one can ever reach the other.
    Impossible,
    /// With luck: a port may be guessed, or an address known by chance.
    Unclear,
    /// Always, if both try.
    Possible,
}

/// Something that a road stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Footing {
    /// UDP between the two, and both know each other's addresses.
    Direct,
    /// UDP between a node and a relay.
    Udp(NodeIndex, NodeIndex),
    /// A WebSocket from a node to a relay.
    WebSocket(NodeIndex, NodeIndex),
    /// An SSH stream between the two.
    Ssh,
}

/// A way from one node to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Road {
    /// Straight over UDP.
    Direct,
    /// Through a relay, which each reaches by UDP or by a WebSocket.
    Relay {
        /// What `a` has to the relay.
        a: Footing,
        /// What `b` has to it.
        b: Footing,
    },
    /// Over an SSH stream.
    Ssh,
}

impl Road {
    /// What it stands on.
    #[must_use]
    pub fn footings(self) -> Vec<Footing> {
        match self {
            Self::Direct => vec![Footing::Direct],
            Self::Relay { a, b } => vec![a, b],
            Self::Ssh => vec![Footing::Ssh],
        }
    }
}

impl World {
    /// Whether the two can talk by UDP without a relay at present. To say yes, each must also be able to learn where the
    /// other is seen, from a relay that it reaches by UDP.
    #[must_use]
    pub fn direct(&self, a: NodeIndex, b: NodeIndex) -> Direct {
        if !self.network.udp_passes(a, b) || !self.network.udp_passes(b, a) {
            return Direct::Impossible;
        }
        let (at_a, at_b) = (self.network.place(a), self.network.place(b));
        // Addresses are known and never translated, and a filter lets in whoever was sent to.
        if at_a.v6.is_some() && at_b.v6.is_some() {
            return Direct::Possible;
        }
        if at_a.v4.is_none() || at_b.v4.is_none() {
            return Direct::Impossible;
        }
        self.direct_v4(a, b)
    }

    fn direct_v4(&self, a: NodeIndex, b: NodeIndex) -> Direct {
        let above = |node| {
            let mut realms = self.network.routers_above(self.network.place(node).realm);
            realms.push(Realm::INTERNET);
            realms
        };
        let (above_a, above_b) = (above(a), above(b));
        let Some(&common) = above_a.iter().find(|realm| above_b.contains(realm)) else {
            return Direct::Impossible;
        };
        let routers = |above: &[Realm]| -> Vec<NatKind> {
            let below = above.iter().take_while(|&&realm| realm != common);
            below.filter_map(|&realm| self.network.nat_kind(realm)).collect()
        };
        let (at_a, at_b) = (Series::of(&routers(&above_a)), Series::of(&routers(&above_b)));
        if at_a.is_empty || at_b.is_empty {
            return Direct::Possible;
        }
        if common != Realm::INTERNET {
            // Relays see both from outside the common realm: only a router that turns datagrams around helps.
            let shared = above_a.iter().skip_while(|&&realm| realm != common);
            let shared: Vec<NatKind> = shared.filter_map(|&realm| self.network.nat_kind(realm)).collect();
            if !shared.first().is_some_and(|router| router.hairpinning) {
                return Direct::Unclear;
            }
            let with = |own: &Series| own.clone().and(&shared);
            return with(&at_a)
                .against(&with(&at_b))
                .min(self.learnt(a))
                .min(self.learnt(b))
                .max(Direct::Unclear);
        }
        match at_a.against(&at_b) {
            Direct::Possible => self.learnt(a).min(self.learnt(b)),
            unlike @ (Direct::Unclear | Direct::Impossible) => unlike,
        }
    }

    /// Whether a node behind a NAT can learn where it is seen.
    fn learnt(&self, node: NodeIndex) -> Direct {
        let reflects = self.relays().into_iter().any(|relay| self.reaches_by_udp(node, relay));
        if reflects { Direct::Possible } else { Direct::Unclear }
    }

    /// Whether a node and a running relay reach each other by UDP.
    #[must_use]
    pub fn reaches_by_udp(&self, node: NodeIndex, relay: NodeIndex) -> bool {
        self.node(relay).is_running()
            && self.network.udp_passes(node, relay)
            && self.network.udp_passes(relay, node)
    }

    /// Whether a relay passes on what the two send each other. One that lies is still somebody to talk to itself.
    fn lets_talk(&self, relay: NodeIndex, a: NodeIndex, b: NodeIndex) -> bool {
        let itself = self.node(a).is_relay() || self.node(b).is_relay();
        itself || self.node(relay).lie().is_none_or(|lie| lie.lets_talk(a, b))
    }

    /// All that roads between the two stand on at present.
    ///
    /// That UDP is possible counts only while the two can tell each other where they are: through the coordinator or a relay.
    #[must_use]
    pub fn footings(&self, a: NodeIndex, b: NodeIndex) -> BTreeSet<Footing> {
        let mut footings = BTreeSet::new();
        if !self.node(a).is_running() || !self.node(b).is_running() {
            return footings;
        }
        for relay in self.relays().into_iter().filter(|&relay| self.lets_talk(relay, a, b)) {
            for node in [a, b] {
                if self.reaches_by_udp(node, relay) {
                    footings.insert(Footing::Udp(node, relay));
                }
                if self.node(relay).is_running() && self.network.tcp_passes(node, relay) {
                    footings.insert(Footing::WebSocket(node, relay));
                }
            }
        }
        let told = !self.is_away(a) && !self.is_away(b);
        if self.direct(a, b) == Direct::Possible && (told || !roads(a, b, &footings).is_empty()) {
            footings.insert(Footing::Direct);
        }
        if (self.has_ssh(a, b) || self.has_ssh(b, a)) && self.network.tcp_passes(a, b) {
            footings.insert(Footing::Ssh);
        }
        footings
    }
}

/// The roads between `a` and `b` that stand on these.
#[must_use]
pub fn roads(a: NodeIndex, b: NodeIndex, footings: &BTreeSet<Footing>) -> Vec<Road> {
    let of = |node: NodeIndex| {
        footings.iter().copied().filter_map(move |footing| match footing {
            Footing::Udp(from, relay) | Footing::WebSocket(from, relay) if from == node => {
                Some((footing, relay))
            }
            Footing::Udp(..) | Footing::WebSocket(..) | Footing::Direct | Footing::Ssh => None,
        })
    };
    let mut roads = Vec::new();
    for (at_a, relay) in of(a) {
        let others = of(b).filter(|&(_, other)| other == relay);
        roads.extend(others.map(|(at_b, _)| Road::Relay { a: at_a, b: at_b }));
    }
    roads.extend(footings.contains(&Footing::Direct).then_some(Road::Direct));
    roads.extend(footings.contains(&Footing::Ssh).then_some(Road::Ssh));
    roads
}

/// Routers in series, as the strictest of them.
#[derive(Clone, Debug)]
struct Series {
    is_empty: bool,
    mapping: Dependence,
    filtering: Dependence,
    /// Outer ports can be told from inner ones.
    predictable: bool,
}

impl Series {
    fn of(routers: &[NatKind]) -> Self {
        let none = Self {
            is_empty: true,
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::EndpointIndependent,
            predictable: true,
        };
        none.and(routers)
    }

    fn and(self, routers: &[NatKind]) -> Self {
        routers.iter().fold(self, |series, router| {
            let one_to_one = router.ports == Ports::OneToOne;
            let or_none = |dependence| if one_to_one { Dependence::EndpointIndependent } else { dependence };
            Self {
                is_empty: false,
                mapping: series.mapping.max(or_none(router.mapping)),
                filtering: series.filtering.max(or_none(router.filtering)),
                predictable: series.predictable && router.ports != Ports::Random,
            }
        })
    }

    fn against(&self, other: &Self) -> Direct {
        let steady = |side: &Self| side.mapping == Dependence::EndpointIndependent;
        match (steady(self), steady(other)) {
            (true, true) => Direct::Possible,
            (true, false) => self.opened_by(other),
            (false, true) => other.opened_by(self),
            (false, false) if self.predictable || other.predictable => Direct::Unclear,
            (false, false) => {
                let lets_in = |side: &Self| side.filtering == Dependence::EndpointIndependent;
                if lets_in(self) || lets_in(other) { Direct::Unclear } else { Direct::Impossible }
            }
        }
    }

    /// Whether somebody whose port nobody knows beforehand gets in to us.
    fn opened_by(&self, shifting: &Self) -> Direct {
        match self.filtering {
            Dependence::EndpointIndependent | Dependence::Address => Direct::Possible,
            Dependence::AddressAndPort if shifting.predictable => Direct::Unclear,
            Dependence::AddressAndPort => Direct::Impossible,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn against(a: NatKind, b: NatKind) -> Direct {
        Series::of(&[a]).against(&Series::of(&[b]))
    }

    #[test]
    fn theory_says_what_rfc_5128_says() {
        let (full, address) = (NatKind::full_cone(), NatKind::address_restricted());
        let (port, symmetric) = (NatKind::port_restricted(), NatKind::symmetric());
        for kind in [full, address, port, NatKind::one_to_one()] {
            assert_eq!(against(kind, port), Direct::Possible);
        }
        assert_eq!(against(symmetric, full), Direct::Possible);
        assert_eq!(against(address, symmetric), Direct::Possible);
        assert_eq!(against(symmetric, port), Direct::Impossible);
        assert_eq!(against(symmetric, symmetric), Direct::Impossible);
    }

    #[test]
    fn series_is_as_strict_as_its_strictest_router() {
        let series = Series::of(&[NatKind::full_cone(), NatKind::symmetric()]);
        assert_eq!(series.against(&Series::of(&[NatKind::port_restricted()])), Direct::Impossible);
    }

    #[test]
    fn hosts_of_one_realm_need_no_relay_and_hosts_of_two_do() {
        let mut world = World::new(1);
        let inside = [(); 2].map(|()| world.network.add_router(Realm::INTERNET, NatKind::full_cone(), None));
        let nodes = [inside[0], inside[0], inside[1], Realm::INTERNET].map(|realm| {
            let place = world.network.fresh_place(realm, true, false);
            world.add_node(place)
        });
        let [a, b, c, public] = nodes;
        assert_eq!(world.direct(a, b), Direct::Possible);
        assert_eq!(world.direct(a, public), Direct::Possible);
        assert_eq!(world.direct(a, c), Direct::Unclear, "nobody tells them where they are seen");
        let relay = world.add_relay();
        assert_eq!(world.direct(a, c), Direct::Possible);
        world.network.cut(relay, a);
        assert_eq!(world.direct(a, c), Direct::Unclear);
        world.network.block_udp(a, true);
        assert_eq!(world.direct(a, b), Direct::Impossible);
        let footings = world.footings(a, c);
        assert_eq!(roads(a, c, &footings), [], "the cut stops streams, too");
        world.network.heal();
        let footings = world.footings(a, c);
        assert_eq!(roads(a, c, &footings).len(), 2, "a by WebSocket, c by UDP or by WebSocket");
    }
}
