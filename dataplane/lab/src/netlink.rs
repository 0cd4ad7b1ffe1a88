//! Links, addresses and routes of a namespace, by netlink: no program is needed.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{InfoData, InfoVeth, LinkAttribute, LinkFlags, State},
    },
};

use crate::{error::LabError, namespace::Namespace};

/// What the kernel does in workers of its own is done after this much at the latest.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked whether it is done.
const INTERVAL: Duration = Duration::from_millis(1);

impl Namespace {
    /// Brings a link up.
    pub(crate) fn link_up(&self, name: &str) -> Result<(), LabError> {
        self.netlink(&format!("bring {name} up"), async |netlink| {
            netlink.link().set(LinkUnspec::new_with_name(name).up().build()).execute().await
        })
    }

    /// Waits until packets pass: a link that is up has its carrier noticed a little later, by a kernel worker.
    pub(crate) fn await_carrier(&self, name: &str) -> Result<(), LabError> {
        self.netlink(&format!("see {name} get a carrier"), async |netlink| {
            let started = Instant::now();
            while started.elapsed() < PATIENCE {
                let link = netlink.link().get().match_name(name.to_owned()).execute().try_next().await?;
                let up = LinkAttribute::OperState(State::Up);
                if link.is_some_and(|link| link.attributes.contains(&up)) {
                    return Ok(());
                }
                tokio::time::sleep(INTERVAL).await;
            }
            Err(rtnetlink::Error::RequestFailed)
        })
    }

    /// Takes a link down, without removing it.
    pub(crate) fn link_down(&self, name: &str) -> Result<(), LabError> {
        self.netlink(&format!("take {name} down"), async |netlink| {
            netlink.link().set(LinkUnspec::new_with_name(name).down().build()).execute().await
        })
    }

    /// Creates a bridge that is up, forwards at once and floods what it does not know.
    pub(crate) fn add_bridge(&self, name: &str) -> Result<(), LabError> {
        self.netlink(&format!("create the bridge {name}"), async |netlink| {
            // Without a querier, snooping could stop forwarding the multicast that IPv6 finds neighbours with.
            let bridge = LinkBridge::new(name).forward_delay(0).mcast_snooping(false).build();
            netlink.link().add(bridge).execute().await
        })
    }

    /// Lays a cable from a new link `name` here to a new link `far_name` in the network namespace `far`; both are down.
    pub(crate) fn add_cable(&self, name: &str, far: &File, far_name: &str) -> Result<(), LabError> {
        let far_net = far.as_raw_fd();
        self.netlink(&format!("create the link {name}"), async |netlink| {
            let far_end = LinkUnspec::new_with_name(far_name).setns_by_fd(far_net).build();
            let cable =
                LinkVeth::new(name, far_name).set_info_data(InfoData::Veth(InfoVeth::Peer(far_end))).build();
            netlink.link().add(cable).execute().await
        })
    }

    /// Makes a link a port of a bridge, and brings it up.
    pub(crate) fn add_port(&self, bridge: &str, port: &str) -> Result<(), LabError> {
        self.netlink(&format!("connect {port} to {bridge}"), async |netlink| {
            let bridge = index_of(&netlink, bridge).await?;
            let port = LinkUnspec::new_with_name(port).controller(bridge).up().build();
            netlink.link().set(port).execute().await
        })
    }

    /// Gives a link an address, usable at once (no duplicate address detection).
    pub(crate) fn add_address(&self, link: &str, address: IpAddr, prefix_len: u8) -> Result<(), LabError> {
        self.netlink(&format!("give {link} the address {address}/{prefix_len}"), async |netlink| {
            let index = index_of(&netlink, link).await?;
            let mut request = netlink.address().add(index, address, prefix_len);
            if address.is_ipv6() {
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await?;
            if let IpAddr::V6(address) = address { await_delivery(address).await } else { Ok(()) }
        })
    }

    /// Takes an address from a link.
    pub(crate) fn remove_address(&self, link: &str, address: IpAddr) -> Result<(), LabError> {
        self.netlink(&format!("take the address {address} from {link}"), async |netlink| {
            let index = index_of(&netlink, link).await?;
            let query = netlink.address().get().set_link_index_filter(index).set_address_filter(address);
            let found = query.execute().try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
            netlink.address().del(found).execute().await
        })
    }

    /// Sends what goes to `destination`/`prefix_len` to the router `via`, or straight out of `link`.
    pub(crate) fn add_route(
        &self,
        (destination, prefix_len): (IpAddr, u8),
        link: &str,
        via: Option<IpAddr>,
    ) -> Result<(), LabError> {
        let what = format!("add a route to {destination}/{prefix_len}");
        let invalid = |_| rtnetlink::Error::InvalidIp(Vec::new());
        self.netlink(&what, async |netlink| {
            let index = index_of(&netlink, link).await?;
            let mut route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(destination, prefix_len)
                .map_err(invalid)?
                .output_interface(index);
            if let Some(via) = via {
                route = route.gateway(via).map_err(invalid)?;
            }
            netlink.route().add(route.build()).execute().await
        })
    }

    /// Names of all links but the loopback.
    pub(crate) fn links(&self) -> Result<Vec<String>, LabError> {
        self.netlink("list the links", async |netlink| {
            let links: Vec<_> = netlink.link().get().execute().try_collect().await?;
            let others = links.into_iter().filter(|link| !link.header.flags.contains(LinkFlags::Loopback));
            Ok(others.filter_map(|link| link.attributes.into_iter().find_map(name)).collect())
        })
    }

    /// Removes a link and, of a cable, the other end with it.
    pub(crate) fn remove_link(&self, name: &str) -> Result<(), LabError> {
        self.netlink(&format!("remove the link {name}"), async |netlink| {
            let index = index_of(&netlink, name).await?;
            netlink.link().del(index).execute().await
        })
    }

    /// Runs `request` on a thread in this namespace, since a netlink socket belongs to the one it was opened in.
    fn netlink<T: Send>(
        &self,
        what: &str,
        request: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error> + Send,
    ) -> Result<T, LabError> {
        let failed = |error| LabError::system("open a netlink socket", error);
        self.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
                runtime.spawn(connection);
                request(handle).await.map_err(|error| LabError::netlink(what, error))
            })
        })?
    }
}

/// Waits until packets for `address` are taken in: for IPv6 a kernel worker adds that route, and until it has come round to
/// it they are dropped, such as the answer to the first question for a neighbour.
async fn await_delivery(address: Ipv6Addr) -> Result<(), rtnetlink::Error> {
    /// `RTF_LOCAL` of the kernel's `ipv6_route.h`.
    const LOCAL: u32 = 0x8000_0000;
    let host_route = format!("{:032x} 80 ", u128::from(address));
    let is_local = |route: &str| {
        let flags = route.split_whitespace().nth(8).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        route.starts_with(&host_route) && flags.is_some_and(|flags| flags & LOCAL != 0)
    };
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
        if routes.lines().any(is_local) {
            return Ok(());
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Err(rtnetlink::Error::RequestFailed)
}

async fn index_of(netlink: &Handle, link: &str) -> Result<u32, rtnetlink::Error> {
    let found = netlink.link().get().match_name(link.to_owned()).execute().try_next().await?;
    found.map(|link| link.header.index).ok_or(rtnetlink::Error::RequestFailed)
}

fn name(attribute: LinkAttribute) -> Option<String> {
    if let LinkAttribute::IfName(name) = attribute { Some(name) } else { None }
}
