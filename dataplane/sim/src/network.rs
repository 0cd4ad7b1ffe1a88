//! The internet between the nodes: realms of addresses, the routers between them, and weather. It promises nothing.
//!
//! ```text
//!   realm 0, the internet ──┬── hosts with public addresses, relays
//!                           ├── router ── realm 1: hosts with private addresses
//!                           └── router ── realm 2 ── router ── realm 3: two NATs in series
//! ```
//!
//! Private addresses are the same in every realm, as they are at home: a candidate of one network names a stranger in
//! another. IPv6 addresses are unique and are filtered, but never translated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use ringmesh_tunnel::message::INITIATION_LEN;

use crate::agenda::Agenda;
use crate::nat::{Dependence, Firewall, Nat, NatKind};
use crate::rng::Rng;
use crate::weather::Weather;
use crate::world::NodeIndex;

/// The UDP port of every host.
const PORT: u16 = 51820;
/// Losses remembered, the latest.
const MAX_LOSSES: usize = 4096;
/// Relations between a sender and an address that are watched; more means that somebody sends anywhere.
const MAX_WATCHED: usize = 10_000;
/// Over how long what goes to an unverified address is counted.
const UNVERIFIED_WINDOW: Duration = Duration::from_secs(60);

/// A part of the network with addresses of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Realm(u16);

impl Realm {
    /// Where addresses are public.
    pub const INTERNET: Self = Self(0);
}

/// Where a host is attached, and its addresses there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// In which realm.
    pub realm: Realm,
    /// Its IPv4 address.
    pub v4: Option<SocketAddrV4>,
    /// Its IPv6 address.
    pub v6: Option<SocketAddrV6>,
}

impl Place {
    /// A place on the internet with this address alone.
    #[must_use]
    pub const fn public(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self { realm: Realm::INTERNET, v4: Some(v4), v6: None },
            SocketAddr::V6(v6) => Self { realm: Realm::INTERNET, v4: None, v6: Some(v6) },
        }
    }

    /// The addresses, IPv6 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.v6.map(SocketAddr::V6).into_iter().chain(self.v4.map(SocketAddr::V4)).collect()
    }

    fn like(&self, other: SocketAddr) -> Option<SocketAddr> {
        match other {
            SocketAddr::V4(_) => self.v4.map(SocketAddr::V4),
            SocketAddr::V6(_) => self.v6.map(SocketAddr::V6),
        }
    }
}

/// A host's connection to the network.
#[derive(Debug)]
struct Host {
    place: Place,
    udp_blocked: bool,
    tcp_blocked: bool,
    /// Counts its moves and its routers' reboots: a stream from before is from another place.
    attachment: u32,
}

#[derive(Debug)]
struct Router {
    outside: Realm,
    address: Ipv4Addr,
    nat: Nat,
    firewall: Firewall,
    /// For a one-to-one NAT.
    only_host: Option<Ipv4Addr>,
    hosts: u8,
}

/// A datagram that has arrived at a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// At which host.
    pub at: NodeIndex,
    /// The sender's address as the receiver sees it.
    pub from: SocketAddr,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A datagram under way, in the realm where its destination is.
#[derive(Clone, Debug)]
struct Flight {
    sender: NodeIndex,
    realm: Realm,
    from: SocketAddr,
    to: SocketAddr,
    payload: Vec<u8>,
}

/// A datagram that the weather took.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// When it was sent.
    pub at: Duration,
    /// By whom.
    pub sender: NodeIndex,
    /// For whom, if anybody was there.
    pub receiver: Option<NodeIndex>,
    /// Its payload's length, bytes.
    pub len: usize,
}

/// What a host sent to an address from which nothing came.
#[derive(Debug, Default)]
struct Unverified {
    verified: bool,
    /// When, and by the receiver's index of a data message, for which of the sender's peers.
    sent: VecDeque<(Duration, [u8; 4])>,
}

impl Unverified {
    /// The most for any one peer.
    fn most(&self) -> usize {
        let mut counts = BTreeMap::new();
        self.sent.iter().for_each(|(_, peer)| *counts.entry(peer).or_default() += 1);
        counts.into_values().max().unwrap_or(0)
    }
}

/// Carries datagrams from address to address, through routers and the weather.
#[derive(Debug)]
pub struct Network {
    /// What happens on the internet to datagrams sent from now on.
    pub weather: Weather,
    rng: Rng,
    hosts: Vec<Host>,
    /// Realm n is inside router n - 1.
    routers: Vec<Router>,
    under_way: Agenda<Flight>,
    sent: u64,
    lost: u64,
    arrived: BTreeMap<(NodeIndex, NodeIndex), u64>,
    losses: VecDeque<Loss>,
    cut: BTreeSet<(NodeIndex, NodeIndex)>,
    watched: BTreeMap<(NodeIndex, SocketAddr), Unverified>,
    addresses_given: u16,
}

impl Network {
    /// A network in fine weather.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            weather: Weather::fine(),
            rng,
            hosts: Vec::new(),
            routers: Vec::new(),
            under_way: Agenda::default(),
            sent: 0,
            lost: 0,
            arrived: BTreeMap::new(),
            losses: VecDeque::new(),
            cut: BTreeSet::new(),
            watched: BTreeMap::new(),
            addresses_given: 0,
        }
    }

    // Building.

    /// Puts a router between `outside` and a new realm, which is returned. `firewall` is its filter for IPv6.
    ///
    /// # Panics
    ///
    /// If there are 65,535 routers already.
    pub fn add_router(&mut self, outside: Realm, kind: NatKind, firewall: Option<Dependence>) -> Realm {
        let address = match outside {
            Realm::INTERNET => self.fresh_public(),
            Realm(inside) => {
                let router = &mut self.routers[usize::from(inside) - 1];
                router.hosts += 1;
                let address = Ipv4Addr::new(10, 0, 0, 100 + router.hosts);
                router.only_host = Some(address);
                address
            }
        };
        self.routers.push(Router {
            outside,
            address,
            nat: Nat::new(kind, Rng::new(self.rng.bits())),
            firewall: Firewall::new(firewall, kind.timeout),
            only_host: None,
            hosts: 0,
        });
        Realm(u16::try_from(self.routers.len()).expect("invariant: networks are small"))
    }

    fn fresh_public(&mut self) -> Ipv4Addr {
        self.addresses_given += 1;
        let [high, low] = self.addresses_given.to_be_bytes();
        // For benchmarks (RFC 2544): nobody's, and not private.
        Ipv4Addr::new(198, 18, high, low)
    }

    /// A place in `realm` with addresses that nobody has there.
    pub fn fresh_place(&mut self, realm: Realm, v4: bool, v6: bool) -> Place {
        let v4 = v4.then(|| match realm {
            Realm::INTERNET => self.fresh_public(),
            Realm(inside) => {
                let router = &mut self.routers[usize::from(inside) - 1];
                router.hosts += 1;
                let address = Ipv4Addr::new(192, 168, 1, 9 + router.hosts);
                router.only_host = Some(address);
                address
            }
        });
        let v6 = v6.then(|| {
            self.addresses_given += 1;
            Ipv6Addr::new(0x2001, 0xdb8, realm.0, 0, 0, 0, 1, self.addresses_given)
        });
        let v4 = v4.map(|address| SocketAddrV4::new(address, PORT));
        Place { realm, v4, v6: v6.map(|address| SocketAddrV6::new(address, PORT, 0, 0)) }
    }

    pub(crate) fn add_host(&mut self, place: Place) {
        self.hosts.push(Host { place, udp_blocked: false, tcp_blocked: false, attachment: 0 });
    }

    // What a test does to it.

    /// Moves a host. What is under way to where it was is lost.
    pub(crate) fn move_host(&mut self, host: NodeIndex, place: Place) {
        let host = &mut self.hosts[host.number()];
        host.place = place;
        host.attachment += 1;
        self.watched.retain(|_, relation| relation.verified);
    }

    /// Nothing passes from `from` to `to` from now on, what is under way included; the other direction is another matter.
    pub fn cut(&mut self, from: NodeIndex, to: NodeIndex) {
        self.cut.insert((from, to));
    }

    /// Things pass from `from` to `to` again.
    pub fn mend(&mut self, from: NodeIndex, to: NodeIndex) {
        self.cut.remove(&(from, to));
    }

    /// Everything that was cut is whole again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether any UDP reaches or leaves the host.
    pub fn block_udp(&mut self, host: NodeIndex, blocked: bool) {
        self.hosts[host.number()].udp_blocked = blocked;
    }

    /// Whether any stream reaches or leaves the host.
    pub fn block_tcp(&mut self, host: NodeIndex, blocked: bool) {
        self.hosts[host.number()].tcp_blocked = blocked;
    }

    /// The router that `realm` is behind forgets all mappings and streams.
    pub fn reboot_router(&mut self, realm: Realm) {
        let Some(router) = self.router_mut(realm) else { return };
        router.nat.reboot();
        router.firewall.reboot();
        for at in 0..self.hosts.len() {
            if self.routers_above(self.hosts[at].place.realm).contains(&realm) {
                self.hosts[at].attachment += 1;
            }
        }
    }

    /// A host's process begins anew, and remembers nothing of what it sent where.
    pub(crate) fn forget_sent(&mut self, host: NodeIndex) {
        self.watched.retain(|&(sender, _), relation| sender != host || relation.verified);
    }

    // What a test asks.

    /// Where a host is attached.
    #[must_use]
    pub fn place(&self, host: NodeIndex) -> Place {
        self.hosts[host.number()].place
    }

    /// Whether `from` could send something to `to` by UDP, as far as blocks and cuts are concerned; routers aside.
    #[must_use]
    pub fn udp_passes(&self, from: NodeIndex, to: NodeIndex) -> bool {
        let blocked = |host: NodeIndex| self.hosts[host.number()].udp_blocked;
        !blocked(from) && !blocked(to) && !self.cut.contains(&(from, to))
    }

    /// Whether a stream between the two makes progress; routers aside.
    #[must_use]
    pub fn tcp_passes(&self, a: NodeIndex, b: NodeIndex) -> bool {
        let blocked = |host: NodeIndex| self.hosts[host.number()].tcp_blocked;
        !blocked(a) && !blocked(b) && !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    pub(crate) fn attachment(&self, host: NodeIndex) -> u32 {
        self.hosts[host.number()].attachment
    }

    /// The realms with a router between `realm` and the internet, innermost first: `realm` itself and those around it.
    #[must_use]
    pub fn routers_above(&self, realm: Realm) -> Vec<Realm> {
        let mut above = Vec::new();
        let mut realm = realm;
        while let Some(router) = self.router(realm) {
            above.push(realm);
            realm = router.outside;
        }
        above
    }

    /// What the router that `realm` is behind does; nothing for the internet.
    #[must_use]
    pub fn nat_kind(&self, realm: Realm) -> Option<NatKind> {
        self.router(realm).map(|router| router.nat.kind())
    }

    /// What the weather took lately.
    pub fn losses(&self) -> impl Iterator<Item = &Loss> {
        self.losses.iter().rev()
    }

    /// Datagrams sent so far.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Datagrams that have arrived, but for those from or at one of `but`.
    #[must_use]
    pub fn between_nodes(&self, but: &[NodeIndex]) -> u64 {
        let counts = |(from, at): &(NodeIndex, NodeIndex)| !but.contains(from) && !but.contains(at);
        self.arrived.iter().filter(|(ends, _)| counts(ends)).map(|(_, count)| count).sum()
    }

    /// Datagrams lost or cut off so far.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The most datagrams that a host has sent within the last 60 s, for one of its peers, to an address from which it never got
    /// anything.
    #[must_use]
    pub fn most_unverified(&self) -> Option<(NodeIndex, SocketAddr, usize)> {
        let unverified = self.watched.iter().filter(|(_, relation)| !relation.verified);
        let counted = unverified.map(|(&(host, to), relation)| (host, to, relation.most()));
        counted.max_by_key(|&(.., count)| count)
    }

    /// The datagrams that a host has sent within the last 60 s to one address from which it never got anything.
    #[must_use]
    pub fn sent_unverified(&self, host: NodeIndex, to: SocketAddr) -> usize {
        self.watched
            .get(&(host, to))
            .filter(|relation| !relation.verified)
            .map_or(0, |relation| relation.sent.len())
    }

    // Carrying.

    /// Takes a datagram at time `now`; what becomes of it is up to routers, cuts and the weather.
    pub(crate) fn send(&mut self, sender: NodeIndex, to: SocketAddr, payload: Vec<u8>, now: Duration) {
        self.sent += 1;
        // Initiations have a limit of their own: WireGuard's timer.
        if payload.len() != INITIATION_LEN {
            let peer = payload.get(4..8).and_then(|index| index.try_into().ok());
            self.watch(sender, to, peer.unwrap_or_default(), now);
        }
        let host = &self.hosts[sender.number()];
        let Some(from) = host.place.like(to).filter(|_| !host.udp_blocked) else { return };
        let realm = host.place.realm;
        let left = if to.is_ipv4() {
            self.leave_v4(realm, from, to, now)
        } else {
            self.leave_v6(realm, from, to, now)
        };
        let Some((realm, from)) = left else { return };
        let flight = Flight { sender, realm, from, to, payload };
        if self.weather_takes(&flight, now) {
            return;
        }
        let delay = self.rng.duration(&self.weather.delay);
        if self.rng.chance(self.weather.duplication) {
            let later = self.rng.duration(&self.weather.delay);
            self.under_way.enter(now + delay + later, flight.clone());
        }
        self.under_way.enter(now + delay, flight);
    }

    fn weather_takes(&mut self, flight: &Flight, now: Duration) -> bool {
        let taken = self.rng.chance(self.weather.loss);
        if taken {
            self.lost += 1;
            if self.losses.len() == MAX_LOSSES {
                self.losses.pop_front();
            }
            let receiver = self.enter(flight, now);
            let len = flight.payload.len();
            self.losses.push_back(Loss { at: now, sender: flight.sender, receiver, len });
        }
        taken
    }

    fn watch(&mut self, sender: NodeIndex, to: SocketAddr, peer: [u8; 4], now: Duration) {
        if self.watched.len() < MAX_WATCHED || self.watched.contains_key(&(sender, to)) {
            let relation = self.watched.entry((sender, to)).or_default();
            if !relation.verified {
                relation.sent.push_back((now, peer));
                while relation
                    .sent
                    .front()
                    .is_some_and(|&(sent, _)| now.saturating_sub(sent) > UNVERIFIED_WINDOW)
                {
                    relation.sent.pop_front();
                }
            }
        }
    }

    /// From the sender outwards to the realm in which the destination is, and the address it is seen from there.
    fn leave_v4(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        now: Duration,
    ) -> Option<(Realm, SocketAddr)> {
        let (mut realm, mut from) = (realm, from);
        let mut passed = None;
        loop {
            match self.owner_v4(realm, to.ip()) {
                Some(Owner::Router(inside)) if passed == Some(inside) => {
                    let hairpins = self.router(inside).is_some_and(|router| router.nat.kind().hairpinning);
                    return hairpins.then_some((realm, from));
                }
                Some(_) => return Some((realm, from)),
                None => {}
            }
            passed = Some(realm);
            let router = self.router_mut(realm)?;
            from = SocketAddr::new(router.address.into(), router.nat.outbound(from, to, now));
            realm = router.outside;
        }
    }

    fn leave_v6(
        &mut self,
        realm: Realm,
        from: SocketAddr,
        to: SocketAddr,
        now: Duration,
    ) -> Option<(Realm, SocketAddr)> {
        let mut around = self.routers_above(self.place(self.host_v6(to)?).realm);
        around.push(Realm::INTERNET);
        let mut realm = realm;
        while !around.contains(&realm) {
            let router = self.router_mut(realm)?;
            router.firewall.outbound(from, to, now);
            realm = router.outside;
        }
        Some((realm, from))
    }

    /// From the realm of its destination inwards to a host, if the routers let it in and somebody is there.
    fn enter(&self, flight: &Flight, now: Duration) -> Option<NodeIndex> {
        let (mut realm, mut to) = (flight.realm, flight.to);
        if to.is_ipv6() {
            let host = self.host_v6(to)?;
            let routers = self.routers_above(self.place(host).realm);
            let below = routers.iter().take_while(|&&router| router != realm);
            let admits = |inside: &Realm| {
                self.router(*inside).is_some_and(|router| router.firewall.admits(to, flight.from, now))
            };
            return below.into_iter().all(admits).then_some(host);
        }
        loop {
            match self.owner_v4(realm, to.ip())? {
                Owner::Host(host) => {
                    return self.place(host).v4.filter(|&v4| SocketAddr::V4(v4) == to).map(|_| host);
                }
                Owner::Router(inside) => {
                    let router = self.router(inside)?;
                    to = router.nat.inbound(to.port(), flight.from, router.only_host, now)?;
                    realm = inside;
                }
            }
        }
    }

    /// When the next datagram arrives.
    #[must_use]
    pub(crate) fn next_arrival(&self) -> Option<Duration> {
        self.under_way.next()
    }

    /// Works through what has arrived by `now`, until one reaches a host.
    pub(crate) fn receive(&mut self, now: Duration) -> Option<Datagram> {
        while let Some(flight) = self.under_way.take(now) {
            let Some(at) = self.enter(&flight, now) else { continue };
            if self.hosts[at.number()].udp_blocked || self.cut.contains(&(flight.sender, at)) {
                self.lost += 1;
                continue;
            }
            if let Some(relation) = self.watched.get_mut(&(at, flight.from)) {
                *relation = Unverified { verified: true, sent: VecDeque::new() };
            } else if self.watched.len() < MAX_WATCHED {
                self.watched.insert((at, flight.from), Unverified { verified: true, sent: VecDeque::new() });
            }
            *self.arrived.entry((flight.sender, at)).or_default() += 1;
            return Some(Datagram { at, from: flight.from, payload: flight.payload });
        }
        None
    }

    fn router(&self, inside: Realm) -> Option<&Router> {
        self.routers.get(usize::from(inside.0).checked_sub(1)?)
    }

    fn router_mut(&mut self, inside: Realm) -> Option<&mut Router> {
        self.routers.get_mut(usize::from(inside.0).checked_sub(1)?)
    }

    fn owner_v4(&self, realm: Realm, ip: IpAddr) -> Option<Owner> {
        let IpAddr::V4(v4) = ip else { return None };
        let is = |host: &Host| host.place.realm == realm && host.place.v4.is_some_and(|own| *own.ip() == v4);
        let host = self.hosts.iter().position(is).map(|at| Owner::Host(NodeIndex::numbered(at)));
        let router = |router: &Router| router.outside == realm && router.address == v4;
        host.or_else(|| self.routers.iter().position(router).map(|at| Owner::Router(Realm(at as u16 + 1))))
    }

    fn host_v6(&self, address: SocketAddr) -> Option<NodeIndex> {
        let is = |host: &Host| host.place.v6.is_some_and(|own| SocketAddr::V6(own) == address);
        self.hosts.iter().position(is).map(NodeIndex::numbered)
    }
}

/// Who has an address in a realm.
enum Owner {
    Host(NodeIndex),
    /// The router of this realm.
    Router(Realm),
}

#[cfg(test)]
mod tests;
