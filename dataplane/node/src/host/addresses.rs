//! The addresses under which this machine may be reached, its ways out, and when either changes.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use futures_util::StreamExt as _;
use ringmesh_tunnel::ip::Prefix;
use rtnetlink::{
    MulticastGroup, packet_core::NetlinkMessage, packet_route::RouteNetlinkMessage,
    sys::SocketAddr as NetlinkAddr,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::netlink::{Address, Netlink, WayOut};
use crate::error::Failure;

/// A node record holds no more.
const MAX_ADDRESSES: usize = ringmesh_tunnel::netmap::ENDPOINTS_MAX;
/// Addresses come and go in bursts (a lease, a reconnect); one look after the burst is enough.
const SETTLE: Duration = Duration::from_millis(200);
/// Looks anyway, should the kernel's word have been lost.
const POLL: Duration = Duration::from_secs(15);

/// How the machine hangs on its networks, as far as it matters to paths. What only differs in anything else (a container's
/// interface comes or goes, a lease is renewed, our own interface changes) is equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// Every lasting address under which another machine may reach this one, in order.
    pub(crate) addresses: Vec<IpAddr>,
    /// The ways out, and whether the interface of each has somebody at the other end.
    ways_out: BTreeSet<(WayOut, bool)>,
}

impl Surroundings {
    /// Looks around, past the interface `own` and the ranges `pools`, which are the tunnel's.
    ///
    /// # Errors
    /// Netlink fails.
    pub(crate) async fn look(netlink: &Netlink, own: &str, pools: &[Prefix]) -> Result<Self, Failure> {
        let own = netlink.index_of(own).await?;
        let addresses = netlink.addresses().await?;
        let (ways, running) = (netlink.ways_out().await?, netlink.running().await?);
        Ok(Self::of(&addresses, ways, &running, own, pools))
    }

    fn of(
        addresses: &[Address],
        ways: BTreeSet<WayOut>,
        running: &BTreeSet<u32>,
        own: Option<u32>,
        pools: &[Prefix],
    ) -> Self {
        let runs = |way: &WayOut| way.interface.is_none_or(|index| running.contains(&index));
        let others = ways.into_iter().filter(|way| own.is_none() || way.interface != own);
        Self {
            addresses: usable(addresses, own, pools),
            ways_out: others.map(|way| (way.clone(), runs(&way))).collect(),
        }
    }
}

/// Every lasting address that others can use, which is neither on `own` nor within `pools`.
fn usable(addresses: &[Address], own: Option<u32>, pools: &[Prefix]) -> Vec<IpAddr> {
    let mut found: Vec<_> = addresses
        .iter()
        .filter(|address| address.lasting && Some(address.interface) != own)
        .filter(|address| may_be_reached(address.address))
        .filter(|address| !pools.iter().any(|pool| pool.contains(address.address)))
        .map(|address| address.address)
        .collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_ADDRESSES);
    found
}

fn may_be_reached(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || v4.is_multicast())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast())
        }
    }
}

type Messages = futures_util::stream::BoxStream<'static, (NetlinkMessage<RouteNetlinkMessage>, NetlinkAddr)>;

/// Tells when addresses, links or routes of the machine may have changed.
pub(crate) struct AddressWatch {
    messages: Option<Messages>,
    connection: Option<JoinHandle<()>>,
    /// Something changed, and by then the burst is over.
    settled: Option<Instant>,
}

impl std::fmt::Debug for AddressWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressWatch").field("by_netlink", &self.messages.is_some()).finish()
    }
}

impl AddressWatch {
    /// Subscribes to the kernel's notices; where that is refused, [`changed`](Self::changed) falls back to looking every 15 s.
    pub(crate) fn open() -> Self {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _, messages)) => Self {
                messages: Some(messages.boxed()),
                connection: Some(tokio::spawn(connection)),
                settled: None,
            },
            Err(error) => {
                debug!(%error, "the kernel does not tell of address changes; looking every 15 s");
                Self { messages: None, connection: None, settled: None }
            }
        }
    }

    /// Returns when it is time to look again. May be dropped and called anew at any point.
    pub(crate) async fn changed(&mut self) {
        let Some(messages) = &mut self.messages else {
            tokio::time::sleep(POLL).await;
            return;
        };
        let settled = match self.settled {
            Some(settled) => settled,
            None => match timeout(POLL, messages.next()).await {
                Err(_) => return,
                Ok(None) => {
                    self.messages = None;
                    return;
                }
                Ok(Some(_)) => *self.settled.insert(Instant::now() + SETTLE),
            },
        };
        loop {
            tokio::select! {
                () = sleep_until(settled) => break,
                message = messages.next() => if message.is_none() { break },
            }
        }
        self.settled = None;
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, interface: u32, lasting: bool) -> Address {
        Address { address: text.parse().unwrap(), len: 24, interface, lasting }
    }

    #[test]
    fn only_addresses_that_others_can_use_become_endpoints() {
        let pools = ["100.64.0.0/10".parse().unwrap(), "fd12::/48".parse().unwrap()];
        let addresses = [
            address("127.0.0.1", 1, true),
            address("::1", 1, true),
            address("192.0.2.7", 2, true),
            address("192.0.2.7", 3, true),
            address("2001:db8::7", 2, true),
            address("2001:db8::dead", 2, false),
            address("fe80::1", 2, true),
            address("169.254.3.4", 2, true),
            address("203.0.113.9", 5, true),
            address("100.64.0.9", 6, true),
        ];
        let found = usable(&addresses, Some(5), &pools);
        assert_eq!(found, ["192.0.2.7".parse::<IpAddr>().unwrap(), "2001:db8::7".parse().unwrap()]);
    }

    #[test]
    fn no_more_addresses_are_told_than_a_record_holds() {
        let addresses: Vec<_> = (1..=100).map(|last| address(&format!("192.0.2.{last}"), 2, true)).collect();
        assert_eq!(usable(&addresses, None, &[]).len(), MAX_ADDRESSES);
    }

    fn way(interface: u32, gateway: &str) -> WayOut {
        let (gateway, interface) = (Some(gateway.parse().unwrap()), Some(interface));
        WayOut { ipv6: false, table: 254, metric: 100, gateway, interface }
    }

    #[test]
    fn surroundings_differ_by_what_paths_depend_on_and_by_nothing_else() {
        let look = |addresses: &[Address], ways: &[WayOut], running: &[u32]| {
            let ways = ways.iter().cloned().collect();
            Surroundings::of(addresses, ways, &running.iter().copied().collect(), Some(5), &[])
        };
        let home = [address("192.0.2.7", 2, true)];
        let before = look(&home, &[way(2, "192.0.2.1")], &[2]);

        let veth = [address("192.0.2.7", 2, true), address("fe80::2", 9, true), address("10.0.0.1", 5, true)];
        assert_eq!(
            look(&veth, &[way(2, "192.0.2.1")], &[2, 9]),
            before,
            "a container's end; our own address"
        );
        let tunnel = [way(2, "192.0.2.1"), way(5, "10.0.0.1")];
        assert_eq!(look(&home, &tunnel, &[2, 5]), before, "a default route into our own interface");
        let renewed = [address("192.0.2.7", 2, true), address("192.0.2.7", 2, true)];
        assert_eq!(look(&renewed, &[way(2, "192.0.2.1")], &[2]), before, "the same address again");

        let moved = [address("198.51.100.7", 2, true)];
        for after in [
            look(&moved, &[way(2, "192.0.2.1")], &[2]),
            look(&home, &[way(2, "192.0.2.254")], &[2]),
            look(&home, &[way(3, "192.0.2.1")], &[2, 3]),
            look(&home, &[], &[2]),
            look(&home, &[way(2, "192.0.2.1")], &[]),
        ] {
            assert_ne!(after, before);
        }
    }
}
