//! Routers that translate addresses, by the vocabulary of RFC 4787, and the firewalls that stand beside them for IPv6.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::rng::Rng;

/// On how much of the remote end something depends (RFC 4787 sections 4.1 and 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    /// On nothing: one mapping for everybody, or a filter that lets everybody in.
    EndpointIndependent,
    /// On the remote address.
    Address,
    /// On the remote address and port.
    AddressAndPort,
}

/// What a mapping or a filter remembers of the remote end.
type Remembered = (Option<IpAddr>, Option<u16>);

impl Dependence {
    const fn remembered(self, remote: SocketAddr) -> Remembered {
        match self {
            Self::EndpointIndependent => (None, None),
            Self::Address => (Some(remote.ip()), None),
            Self::AddressAndPort => (Some(remote.ip()), Some(remote.port())),
        }
    }
}

/// How outer ports are chosen (RFC 4787 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// The inner port, unless another mapping has it.
    Preserved,
    /// Any port.
    Random,
    /// The inner port, for ever and for everybody: the one host inside has an outer address of its own.
    OneToOne,
}

/// What a NAT does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatKind {
    /// When a host's next remote end gets it another outer port.
    pub mapping: Dependence,
    /// Who may send to an outer port.
    pub filtering: Dependence,
    /// How outer ports are chosen.
    pub ports: Ports,
    /// How long a mapping, and a remote end's leave to use it, last after what was last sent through them.
    pub timeout: Duration,
    /// Whether a host inside can reach another one inside by its outer address.
    pub hairpinning: bool,
}

impl NatKind {
    const fn cone(filtering: Dependence) -> Self {
        Self {
            mapping: Dependence::EndpointIndependent,
            filtering,
            ports: Ports::Random,
            timeout: Duration::from_secs(60),
            hairpinning: false,
        }
    }

    /// One host with an outer address to itself.
    #[must_use]
    pub const fn one_to_one() -> Self {
        Self { ports: Ports::OneToOne, ..Self::cone(Dependence::EndpointIndependent) }
    }

    /// One mapping for everybody, and everybody may use it.
    #[must_use]
    pub const fn full_cone() -> Self {
        Self::cone(Dependence::EndpointIndependent)
    }

    /// One mapping for everybody; whoever has been sent something may use it, from any port.
    #[must_use]
    pub const fn address_restricted() -> Self {
        Self::cone(Dependence::Address)
    }

    /// One mapping for everybody; whoever has been sent something may use it, from that port.
    #[must_use]
    pub const fn port_restricted() -> Self {
        Self::cone(Dependence::AddressAndPort)
    }

    /// Another mapping for each remote end, which alone may use it.
    #[must_use]
    pub const fn symmetric() -> Self {
        Self { mapping: Dependence::AddressAndPort, ..Self::port_restricted() }
    }
}

/// Mappings that a router keeps; the one unused for longest goes for the next.
const MAX_MAPPINGS: usize = 1024;

/// A router's table.
#[derive(Debug)]
pub(crate) struct Nat {
    kind: NatKind,
    rng: Rng,
    /// By outer port.
    mappings: BTreeMap<u16, Mapping>,
    ports: BTreeMap<(SocketAddr, Remembered), u16>,
}

#[derive(Debug)]
struct Mapping {
    inner: SocketAddr,
    remote: Remembered,
    last_used: Duration,
    /// Who may send to it, and when something was last sent to them.
    admitted: BTreeMap<Remembered, Duration>,
}

impl Nat {
    pub(crate) const fn new(kind: NatKind, rng: Rng) -> Self {
        Self { kind, rng, mappings: BTreeMap::new(), ports: BTreeMap::new() }
    }

    pub(crate) const fn kind(&self) -> NatKind {
        self.kind
    }

    /// Forgets every mapping, as a router does when it loses power.
    pub(crate) fn reboot(&mut self) {
        self.mappings.clear();
        self.ports.clear();
    }

    /// Takes a datagram from inside; returns the outer port it leaves by.
    pub(crate) fn outbound(&mut self, inner: SocketAddr, remote: SocketAddr, now: Duration) -> u16 {
        if self.kind.ports == Ports::OneToOne {
            return inner.port();
        }
        let key = (inner, self.kind.mapping.remembered(remote));
        let known = self.ports.get(&key).copied().filter(|&port| self.is_live(port, now));
        let port = known.unwrap_or_else(|| self.map(key, now));
        if let Some(mapping) = self.mappings.get_mut(&port) {
            mapping.last_used = now;
            mapping.admitted.insert(self.kind.filtering.remembered(remote), now);
        }
        port
    }

    /// Takes a datagram for outer port `port` from outside; returns whom it is for, if it may come in.
    pub(crate) fn inbound(
        &self,
        port: u16,
        remote: SocketAddr,
        only_host: Option<Ipv4Addr>,
        now: Duration,
    ) -> Option<SocketAddr> {
        if self.kind.ports == Ports::OneToOne {
            return only_host.map(|host| SocketAddr::new(host.into(), port));
        }
        let mapping = self.mappings.get(&port).filter(|_| self.is_live(port, now))?;
        let admitted = mapping.admitted.get(&self.kind.filtering.remembered(remote))?;
        (now.saturating_sub(*admitted) <= self.kind.timeout).then_some(mapping.inner)
    }

    fn is_live(&self, port: u16, now: Duration) -> bool {
        let used = self.mappings.get(&port).map(|mapping| mapping.last_used);
        used.is_some_and(|used| now.saturating_sub(used) <= self.kind.timeout)
    }

    fn map(&mut self, key: (SocketAddr, Remembered), now: Duration) -> u16 {
        if let Some(old) = self.ports.get(&key).copied() {
            self.forget(old);
        }
        if self.mappings.len() >= MAX_MAPPINGS
            && let Some((&oldest, _)) = self.mappings.iter().min_by_key(|(_, mapping)| mapping.last_used)
        {
            self.forget(oldest);
        }
        let (inner, remote) = key;
        let mut port = if self.kind.ports == Ports::Preserved { inner.port() } else { self.any_port() };
        while self.is_live(port, now) {
            port = self.any_port();
        }
        self.forget(port);
        self.ports.insert(key, port);
        self.mappings.insert(port, Mapping { inner, remote, last_used: now, admitted: BTreeMap::new() });
        port
    }

    fn any_port(&mut self) -> u16 {
        // Below 1024 nobody is mapped (RFC 4787 REQ-3).
        1024 + self.rng.below(64_512) as u16
    }

    fn forget(&mut self, port: u16) {
        if let Some(mapping) = self.mappings.remove(&port) {
            self.ports.remove(&(mapping.inner, mapping.remote));
        }
    }
}

/// A stateful filter for IPv6: it translates nothing.
#[derive(Debug)]
pub(crate) struct Firewall {
    filtering: Option<Dependence>,
    timeout: Duration,
    admitted: BTreeMap<(SocketAddr, Remembered), Duration>,
}

impl Firewall {
    /// `filtering` none lets everything in.
    pub(crate) const fn new(filtering: Option<Dependence>, timeout: Duration) -> Self {
        Self { filtering, timeout, admitted: BTreeMap::new() }
    }

    pub(crate) fn reboot(&mut self) {
        self.admitted.clear();
    }

    pub(crate) fn outbound(&mut self, inner: SocketAddr, remote: SocketAddr, now: Duration) {
        if let Some(filtering) = self.filtering {
            self.admitted.retain(|_, used| now.saturating_sub(*used) <= self.timeout);
            self.admitted.insert((inner, filtering.remembered(remote)), now);
        }
    }

    pub(crate) fn admits(&self, inner: SocketAddr, remote: SocketAddr, now: Duration) -> bool {
        let Some(filtering) = self.filtering else { return true };
        let used = self.admitted.get(&(inner, filtering.remembered(remote)));
        used.is_some_and(|&used| now.saturating_sub(used) <= self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn inner(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 168, 1, 10], port))
    }

    fn remote(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, host], port))
    }

    fn nat(kind: NatKind) -> Nat {
        Nat::new(kind, Rng::new(1))
    }

    /// Who gets in after something was sent to host 1 port 1: that very end, another port of it, another host.
    fn admitted(kind: NatKind) -> [bool; 3] {
        let mut nat = nat(kind);
        let port = nat.outbound(inner(5), remote(1, 1), NOW);
        [remote(1, 1), remote(1, 2), remote(2, 1)].map(|from| nat.inbound(port, from, None, NOW).is_some())
    }

    #[test]
    fn filters_admit_whom_their_name_says() {
        assert_eq!(admitted(NatKind::full_cone()), [true, true, true]);
        assert_eq!(admitted(NatKind::address_restricted()), [true, true, false]);
        assert_eq!(admitted(NatKind::port_restricted()), [true, false, false]);
        assert_eq!(admitted(NatKind::symmetric()), [true, false, false]);
    }

    #[test]
    fn mappings_depend_on_what_their_name_says() {
        let ports = |mapping| {
            let mut nat = nat(NatKind { mapping, ..NatKind::full_cone() });
            [remote(1, 1), remote(1, 2), remote(2, 1)].map(|to| nat.outbound(inner(5), to, NOW))
        };
        let [a, b, c] = ports(Dependence::EndpointIndependent);
        assert!(a == b && b == c);
        let [a, b, c] = ports(Dependence::Address);
        assert!(a == b && b != c);
        let [a, b, c] = ports(Dependence::AddressAndPort);
        assert!(a != b && b != c && a != c);
    }

    #[test]
    fn unused_mapping_is_forgotten_and_the_next_has_another_port() {
        let mut nat = nat(NatKind::full_cone());
        let port = nat.outbound(inner(5), remote(1, 1), NOW);
        let later = NOW + Duration::from_secs(61);
        assert_eq!(nat.inbound(port, remote(1, 1), None, later), None);
        assert_ne!(nat.outbound(inner(5), remote(1, 1), later), port);
    }

    #[test]
    fn leave_to_send_ends_though_the_mapping_lives() {
        let mut nat = nat(NatKind::port_restricted());
        let port = nat.outbound(inner(5), remote(1, 1), NOW);
        let later = NOW + Duration::from_secs(40);
        assert_eq!(nat.outbound(inner(5), remote(2, 2), later), port);
        let last = NOW + Duration::from_secs(70);
        assert_eq!(nat.inbound(port, remote(1, 1), None, last), None);
        assert_eq!(nat.inbound(port, remote(2, 2), None, last), Some(inner(5)));
    }

    #[test]
    fn preserved_port_is_kept_unless_taken() {
        let mut nat = nat(NatKind { ports: Ports::Preserved, ..NatKind::full_cone() });
        let other = SocketAddr::from(([192, 168, 1, 11], 5));
        assert_eq!(nat.outbound(inner(5), remote(1, 1), NOW), 5);
        assert_ne!(nat.outbound(other, remote(1, 1), NOW), 5);
    }

    #[test]
    fn one_to_one_lets_strangers_in() {
        let nat = nat(NatKind::one_to_one());
        let host = Ipv4Addr::new(192, 168, 1, 10);
        assert_eq!(nat.inbound(5, remote(9, 9), Some(host), NOW), Some(inner(5)));
    }

    #[test]
    fn table_is_bounded() {
        let mut nat = nat(NatKind::symmetric());
        for port in 0..4000 {
            nat.outbound(inner(5), remote(1, port), NOW);
        }
        assert_eq!((nat.mappings.len(), nat.ports.len()), (MAX_MAPPINGS, MAX_MAPPINGS));
    }

    #[test]
    fn firewall_admits_the_answered_only() {
        let mut firewall = Firewall::new(Some(Dependence::AddressAndPort), Duration::from_secs(60));
        assert!(!firewall.admits(inner(5), remote(1, 1), NOW));
        firewall.outbound(inner(5), remote(1, 1), NOW);
        assert!(firewall.admits(inner(5), remote(1, 1), NOW));
        assert!(!firewall.admits(inner(5), remote(1, 2), NOW));
        assert!(!firewall.admits(inner(5), remote(1, 1), NOW + Duration::from_secs(61)));
        assert!(Firewall::new(None, Duration::ZERO).admits(inner(5), remote(1, 1), NOW));
    }
}
