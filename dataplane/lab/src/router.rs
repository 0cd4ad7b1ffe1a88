//! A router between two switches, plain or translating addresses as home and company routers do.

use std::{net::IpAddr, time::Duration};

use crate::{
    error::LabError,
    firewall::Nat,
    host::{Host, Interface},
    lab::Lab,
    switch::Switch,
};

/// Everything.
const DEFAULT_ROUTES: [(IpAddr, u8); 2] =
    [(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0), (IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), 0)];

/// A host that forwards between an inside switch (`eth0`) and an outside switch (`eth1`).
#[derive(Debug)]
pub struct Router {
    host: Host,
    inside: Interface,
    outside: Interface,
}

impl Lab {
    /// A router between two switches. It translates nothing, and nobody sends anything through it, until told to.
    pub fn router(&self, name: &str, inside: &Switch, outside: &Switch) -> Result<Router, LabError> {
        let mut host = self.host(name)?;
        let inside = host.attach(inside)?.clone();
        let outside = host.attach(outside)?.clone();
        host.sysctl("net/ipv4/ip_forward", "1")?;
        host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        Ok(Router { host, inside, outside })
    }
}

impl Router {
    /// The router itself, to run programs on or to block something: see [`Host::block`].
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where it is attached to its inside switch.
    #[must_use]
    pub fn inside(&self) -> &Interface {
        &self.inside
    }

    /// Where it is attached to its outside switch.
    #[must_use]
    pub fn outside(&self) -> &Interface {
        &self.outside
    }

    /// Makes what comes from inside look as if it came from the router's outside IPv4 address, with its own port kept.
    ///
    /// In the words of RFC 4787: endpoint-independent mapping (as long as no two inside have the same port), address and
    /// port-dependent filtering. Nothing comes in from outside that was not asked for.
    ///
    /// # Errors
    /// [`LabError::NotInstalled`] without `nft`; [`LabError::Refused`] with its words if it fails.
    pub fn masquerade(&self) -> Result<(), LabError> {
        self.host.translate(self.outside.name(), Nat::Masquerade)
    }

    /// The same, but with another port by chance for every destination: what is called a symmetric NAT
    /// (RFC 4787: address and port-dependent mapping and filtering).
    ///
    /// # Errors
    /// As [`Router::masquerade`].
    pub fn symmetric(&self) -> Result<(), LabError> {
        self.host.translate(self.outside.name(), Nat::Symmetric)
    }

    /// How long a UDP mapping lives after its last datagram: while only one side has spoken, and once both have.
    ///
    /// The kernel counts in seconds; to be called after [`Router::masquerade`] or [`Router::symmetric`].
    pub fn set_udp_timeouts(&self, one_way: Duration, both_ways: Duration) -> Result<(), LabError> {
        let seconds = |timeout: Duration| timeout.as_secs().max(1).to_string();
        self.host.sysctl("net/netfilter/nf_conntrack_udp_timeout", &seconds(one_way))?;
        self.host.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", &seconds(both_ways))
    }

    /// Lets a host of the inside switch send everything else, of both families, through this router.
    pub fn serve(&self, host: &Host) -> Result<(), LabError> {
        self.route(host, &DEFAULT_ROUTES, &self.inside)
    }

    /// Lets a host of the outside switch reach the inside one through this router.
    pub fn announce(&self, inside: &Switch, host: &Host) -> Result<(), LabError> {
        self.route(host, &inside.subnets(), &self.outside)
    }

    fn route(&self, host: &Host, to: &[(IpAddr, u8); 2], by: &Interface) -> Result<(), LabError> {
        let missing = || LabError::NotAttached { host: host.name().to_owned() };
        let interface =
            host.interfaces().iter().find(|own| own.shares_switch_with(by)).ok_or_else(missing)?;
        for (prefix, via) in to.iter().zip([IpAddr::from(by.ipv4()), by.ipv6().into()]) {
            host.add_route(*prefix, interface.name(), Some(via))?;
        }
        Ok(())
    }
}
