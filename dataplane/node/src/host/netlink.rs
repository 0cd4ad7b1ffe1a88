//! One connection to the kernel's routing tables, and what it lists.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel has far more attributes than we read, and gets more"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt as _;
use ringmesh_proto::control::Reason;
use ringmesh_tunnel::ip::Prefix;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{LinkAttribute, LinkFlags},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::task::JoinHandle;

use crate::error::Failure;

/// A netlink socket and the task that reads it. Dropping it closes both.
#[derive(Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

/// An address of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) address: IpAddr,
    pub(crate) len: u8,
    /// The interface's index.
    pub(crate) interface: u32,
    /// Valid beyond its link, and meant to stay.
    pub(crate) lasting: bool,
}

/// A route of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Prefix,
    /// The interface's index, if it leaves through one.
    pub(crate) interface: Option<u32>,
    pub(crate) table: u32,
}

/// A default route of the machine: the way out, as far as a change of it matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WayOut {
    pub(crate) ipv6: bool,
    pub(crate) table: u32,
    /// Smaller goes first.
    pub(crate) metric: u32,
    pub(crate) gateway: Option<IpAddr>,
    /// The interface's index, if it leaves through one.
    pub(crate) interface: Option<u32>,
}

/// The kernel's `local` table only mirrors the addresses.
pub(crate) const TABLE_LOCAL: u32 = 255;
/// The table everybody means.
pub(crate) const TABLE_MAIN: u32 = 254;

impl Netlink {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// The system refuses netlink sockets (a sandbox, say).
    pub(crate) fn open() -> Result<Self, Failure> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
            Failure::host("opening a netlink socket (does a sandbox forbid AF_NETLINK?)", &error)
        })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The index of an interface, if there is one of that name.
    pub(crate) async fn index_of(&self, name: &str) -> Result<Option<u32>, Failure> {
        Ok(self.interfaces().await?.into_iter().find(|(_, found)| found == name).map(|(index, _)| index))
    }

    /// Names of all interfaces by index.
    pub(crate) async fn interfaces(&self) -> Result<BTreeMap<u32, String>, Failure> {
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("listing interfaces", &e))?;
        Ok(links
            .into_iter()
            .filter_map(|link| {
                let name = link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })?;
                Some((link.header.index, name))
            })
            .collect())
    }

    /// All addresses of the machine.
    pub(crate) async fn addresses(&self) -> Result<Vec<Address>, Failure> {
        let found: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("listing addresses", &e))?;
        Ok(found.iter().filter_map(address_of).collect())
    }

    /// The indices of all interfaces that are up and have somebody at the other end.
    pub(crate) async fn running(&self) -> Result<BTreeSet<u32>, Failure> {
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| failed("listing interfaces", &e))?;
        let running =
            links.iter().filter(|link| link.header.flags.contains(LinkFlags::Up | LinkFlags::Running));
        Ok(running.map(|link| link.header.index).collect())
    }

    /// All unicast routes of all tables but `local`, default routes not among them.
    pub(crate) async fn routes(&self) -> Result<Vec<Route>, Failure> {
        Ok(self.route_messages().await?.iter().filter_map(route_of).collect())
    }

    /// The default routes of all tables.
    pub(crate) async fn ways_out(&self) -> Result<BTreeSet<WayOut>, Failure> {
        Ok(self.route_messages().await?.iter().filter_map(way_out_of).collect())
    }

    async fn route_messages(&self) -> Result<Vec<RouteMessage>, Failure> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut routes = Vec::new();
        for query in [v4, v6] {
            let found: Vec<_> = self
                .handle
                .route()
                .get(query)
                .execute()
                .try_collect()
                .await
                .map_err(|e| failed("listing routes", &e))?;
            routes.extend(found);
        }
        Ok(routes)
    }

    /// Sets the MTU and how many packets wait in an interface, and brings it up.
    pub(crate) async fn raise(&self, index: u32, mtu: u16, queue: u32) -> Result<(), Failure> {
        let message: LinkMessageBuilder<LinkUnspec> =
            LinkUnspec::new_with_index(index).mtu(u32::from(mtu)).txqueuelen(queue).up();
        self.handle.link().set(message.build()).execute().await.map_err(|error| {
            failed(
                format!("setting MTU {mtu}, a queue of {queue} packets, and bringing the interface up"),
                &error,
            )
        })
    }

    /// Gives an interface a host address.
    pub(crate) async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), Failure> {
        let len = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(index, address, len);
        if address.is_ipv6() {
            // Usable at once: nobody else on a TUN device can have it, and a tentative address is no source for a route.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(|error| failed(format!("adding the address {address}"), &error))
    }

    /// Routes a prefix into an interface, from an address of ours.
    pub(crate) async fn add_route(&self, index: u32, to: Prefix, from: IpAddr) -> Result<(), Failure> {
        let doing = || format!("routing {to} into the tunnel");
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to.address(), to.len())
            .and_then(|builder| builder.pref_source(from))
            .map_err(|error| Failure::new(Reason::Host, format!("{}: {error}", doing())))?
            .output_interface(index)
            .build();
        self.handle.route().add(message).execute().await.map_err(|error| failed(doing(), &error))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Turns a netlink error into ours; the kernel's errno decides whether rights are missing.
pub(crate) fn failed(doing: impl std::fmt::Display, error: &rtnetlink::Error) -> Failure {
    match error {
        rtnetlink::Error::NetlinkError(message) => Failure::host(doing, &message.to_io()),
        other => Failure::new(Reason::Host, format!("{doing}: {other}")),
    }
}

fn address_of(message: &AddressMessage) -> Option<Address> {
    let mut address = None;
    let mut local = None;
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let temporary = message.header.family == AddressFamily::Inet6
        && message.header.flags.contains(AddressHeaderFlags::Secondary);
    let mut lasting = message.header.scope == AddressScope::Universe && !temporary;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(found) => address = Some(*found),
            // On a point-to-point link `Address` is the other end.
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Flags(flags) => lasting &= !flags.intersects(unusable),
            _ => {}
        }
    }
    let address = local.or(address)?;
    Some(Address { address, len: message.header.prefix_len, interface: message.header.index, lasting })
}

fn route_of(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if matches!(
        header.kind,
        RouteType::Multicast | RouteType::Broadcast | RouteType::Anycast | RouteType::Local
    ) {
        return None;
    }
    let mut destination = None;
    let mut interface = None;
    let mut table = u32::from(header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address))
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address))
            }
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    if table == TABLE_LOCAL {
        return None;
    }
    // No destination: a default route.
    let destination = Prefix::new(destination?, header.destination_prefix_length).ok()?;
    Some(Route { destination, interface, table })
}

fn way_out_of(message: &RouteMessage) -> Option<WayOut> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.destination_prefix_length != 0 {
        return None;
    }
    let ipv6 = header.address_family == AddressFamily::Inet6;
    let table = u32::from(header.table);
    let mut way = WayOut { ipv6, table, metric: 0, gateway: None, interface: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => way.gateway = Some((*address).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => way.gateway = Some((*address).into()),
            RouteAttribute::Oif(index) => way.interface = Some(*index),
            RouteAttribute::Priority(metric) => way.metric = *metric,
            RouteAttribute::Table(number) => way.table = *number,
            _ => {}
        }
    }
    Some(way)
}
