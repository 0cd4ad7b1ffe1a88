//! A virtual switch: a bridge in its own namespace, so that no host sees more of it than its port.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{
    error::LabError,
    host::{Host, Interface},
    lab::Shared,
    namespace::Namespace,
};

/// The bridge's name in its namespace.
const BRIDGE: &str = "switch";
/// Hosts a switch takes: its IPv4 subnet without the network's, the broadcast and a few spare addresses.
const MAX_HOSTS: u8 = 250;

/// A switch; hosts attached to it share a subnet of each family.
#[derive(Debug)]
pub struct Switch {
    shared: Arc<Shared>,
    namespace: Arc<Namespace>,
    number: u8,
    hosts: AtomicU8,
}

impl Switch {
    /// Prefix lengths of the subnets.
    pub(crate) const PREFIX_LENGTHS: (u8, u8) = (24, 64);

    pub(crate) fn new(shared: Arc<Shared>, number: u8) -> Result<Self, LabError> {
        let namespace = shared.namespace(&format!("switch{number}"))?;
        namespace.add_bridge(BRIDGE)?;
        Ok(Self { shared, namespace, number, hosts: AtomicU8::new(0) })
    }

    /// The subnets of both families: address and prefix length.
    #[must_use]
    pub fn subnets(&self) -> [(IpAddr, u8); 2] {
        let (v4, v6) = Self::PREFIX_LENGTHS;
        let ipv6 = Ipv6Addr::new(0xfd10, 0, 0, self.number.into(), 0, 0, 0, 0);
        [(Ipv4Addr::new(10, self.number, 0, 0).into(), v4), (ipv6.into(), v6)]
    }

    /// A new host, attached to this switch.
    pub fn host(&self, name: &str) -> Result<Host, LabError> {
        let mut host = Host::new(&self.shared, name)?;
        host.attach(self)?;
        Ok(host)
    }

    /// Takes the next free addresses and lays a cable from a new port to `link` in `host`.
    pub(crate) fn connect(&self, host: &Arc<Namespace>, link: &str) -> Result<Interface, LabError> {
        let taken = self
            .hosts
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
                (taken < MAX_HOSTS).then_some(taken + 1)
            })
            .map_err(|_| LabError::SwitchFull)?;
        let place = taken + 1;
        let port = format!("port{place}");
        self.namespace.add_cable(&port, host.net(), link)?;
        self.namespace.add_port(BRIDGE, &port)?;
        let ipv4 = Ipv4Addr::new(10, self.number, 0, place);
        let ipv6 = Ipv6Addr::new(0xfd10, 0, 0, self.number.into(), 0, 0, 0, place.into());
        Ok(Interface::new(link.to_owned(), (ipv4, ipv6), Arc::clone(&self.namespace), port))
    }
}
