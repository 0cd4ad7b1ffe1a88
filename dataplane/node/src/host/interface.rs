//! Addresses, MTU and routes of the TUN device.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::ip::Prefix;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use super::{collision, netlink::Netlink};
use crate::error::Failure;

/// What the TUN device will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The device.
    pub(crate) interface: String,
    /// Its MTU in bytes.
    pub(crate) mtu: u16,
    /// How many packets it keeps for the worker.
    pub(crate) queue: u32,
    /// The node's IPv4 address, if the network has one for it.
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// The node's IPv6 address.
    pub(crate) ipv6: Ipv6Addr,
    /// What is routed into the device.
    pub(crate) pools: Vec<Prefix>,
}

/// How long the device of a killed daemon may stay after its process is gone.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(2);
/// How often is looked whether it has gone.
const PREDECESSOR_INTERVAL: Duration = Duration::from_millis(2);

/// Waits for this daemon's predecessor to let go of the device, if it was killed just before this one was started.
///
/// The kernel closes what an io_uring holds in a worker of its own, tens of milliseconds after the process was reaped.
/// Until then the device has our addresses, and a socket our port. A device that stays is somebody else's, which the next
/// steps will say.
///
/// # Errors
/// Netlink fails.
pub(crate) async fn await_predecessor(netlink: &Netlink, interface: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + PREDECESSOR_PATIENCE;
    while netlink.index_of(interface).await?.is_some() && Instant::now() < deadline {
        sleep(PREDECESSOR_INTERVAL).await;
    }
    Ok(())
}

/// Looks for anything on the machine that the plan's pools would fight with. Changes nothing.
///
/// # Errors
/// [`Reason::Conflict`] for a colliding pool, naming both sides.
pub(crate) async fn preflight(netlink: &Netlink, plan: &Plan) -> Result<(), Failure> {
    let interfaces = netlink.interfaces().await?;
    let addresses = netlink.addresses().await?;
    let routes = netlink.routes().await?;
    collision::check(&plan.pools, &addresses, &routes, &interfaces)
}

/// Gives the device, which must exist, its MTU, queue, addresses and routes. They go when the device goes.
///
/// # Errors
/// The kernel refuses a step; the caller drops the device, and with it what was done so far.
pub(crate) async fn bring_up(netlink: &Netlink, plan: &Plan) -> Result<(), Failure> {
    let index = netlink.index_of(&plan.interface).await?.ok_or_else(|| {
        Failure::new(Reason::Host, format!("the interface {} vanished while it was set up", plan.interface))
    })?;
    quiet_link_local(&plan.interface);
    netlink.raise(index, plan.mtu, plan.queue).await?;
    if let Some(address) = plan.ipv4 {
        netlink.add_address(index, address.into()).await?;
        for pool in plan.pools.iter().filter(|pool| pool.is_ipv4()) {
            netlink.add_route(index, *pool, address.into()).await?;
        }
    }
    if has_ipv6(&plan.interface) {
        netlink.add_address(index, plan.ipv6.into()).await?;
        for pool in plan.pools.iter().filter(|pool| !pool.is_ipv4()) {
            netlink.add_route(index, *pool, plan.ipv6.into()).await?;
        }
    } else {
        warn!(
            event = "ipv6_off",
            interface = plan.interface,
            "IPv6 is switched off on this machine (net.ipv6.conf.*.disable_ipv6): the mesh is IPv4 only here"
        );
    }
    Ok(())
}

/// Asks the kernel not to invent a link-local address, so that no router solicitation goes into the tunnel.
fn quiet_link_local(interface: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/addr_gen_mode");
    if let Err(error) = fs::write(&path, "1") {
        debug!(path, %error, "cannot keep the kernel from adding a link-local address; harmless");
    }
}

fn has_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match fs::read_to_string(path) {
        Ok(text) => text.trim() == "0",
        // No such file: a kernel without IPv6. Not readable: assume that it is there, the kernel will tell.
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}
