//! The addresses under which this machine may be reached, and when they change.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

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

use super::netlink::{Address, Netlink};
use crate::error::Failure;

/// A node record holds no more.
const MAX_ENDPOINTS: usize = 32;
/// Addresses come and go in bursts (a lease, a reconnect); one look after the burst is enough.
const SETTLE: Duration = Duration::from_millis(300);
/// Looks anyway, should the kernel's word have been lost.
const POLL: Duration = Duration::from_secs(15);

/// This machine's endpoints: every lasting, non-loopback address that is neither on `own` nor within `pools`, with `port`.
///
/// # Errors
/// Netlink fails.
pub(crate) async fn local_endpoints(
    netlink: &Netlink,
    own: &str,
    pools: &[Prefix],
    port: u16,
) -> Result<Vec<SocketAddr>, Failure> {
    let own = netlink.index_of(own).await?;
    Ok(endpoints_of(&netlink.addresses().await?, own, pools, port))
}

fn endpoints_of(addresses: &[Address], own: Option<u32>, pools: &[Prefix], port: u16) -> Vec<SocketAddr> {
    let mut found: Vec<_> = addresses
        .iter()
        .filter(|address| address.lasting && Some(address.interface) != own)
        .filter(|address| may_be_reached(address.address))
        .filter(|address| !pools.iter().any(|pool| pool.contains(address.address)))
        .map(|address| SocketAddr::new(address.address, port))
        .collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_ENDPOINTS);
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

/// Tells when addresses or links of the machine may have changed.
pub(crate) struct AddressWatch {
    messages: Option<Messages>,
    connection: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for AddressWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressWatch").field("by_netlink", &self.messages.is_some()).finish()
    }
}

impl AddressWatch {
    /// Subscribes to the kernel's notices; where that is refused, [`changed`](Self::changed) falls back to looking every 15 s.
    pub(crate) fn open() -> Self {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _, messages)) => {
                Self { messages: Some(messages.boxed()), connection: Some(tokio::spawn(connection)) }
            }
            Err(error) => {
                debug!(%error, "the kernel does not tell of address changes; looking every 15 s");
                Self { messages: None, connection: None }
            }
        }
    }

    /// Returns when it is time to look again. May be dropped and called anew at any point.
    pub(crate) async fn changed(&mut self) {
        let Some(messages) = &mut self.messages else {
            tokio::time::sleep(POLL).await;
            return;
        };
        match timeout(POLL, messages.next()).await {
            Err(_) => {}
            Ok(None) => self.messages = None,
            Ok(Some(_)) => {
                let settled = Instant::now() + SETTLE;
                loop {
                    tokio::select! {
                        () = sleep_until(settled) => break,
                        message = messages.next() => if message.is_none() { break },
                    }
                }
            }
        }
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
        let found = endpoints_of(&addresses, Some(5), &pools, 51820);
        assert_eq!(found, ["192.0.2.7:51820".parse().unwrap(), "[2001:db8::7]:51820".parse().unwrap()]);
    }

    #[test]
    fn no_more_endpoints_are_told_than_a_record_holds() {
        let addresses: Vec<_> = (1..=100).map(|last| address(&format!("192.0.2.{last}"), 2, true)).collect();
        assert_eq!(endpoints_of(&addresses, None, &[], 1).len(), MAX_ENDPOINTS);
    }
}
