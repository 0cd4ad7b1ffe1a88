//! `[metrics]`: where the daemon tells how it is, and how much.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use ringmesh_monitor::Listen;
use serde::Deserialize;

/// Where a node tells its metrics unless it is told otherwise.
pub const DEFAULT_METRICS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9464));
/// The same of a relay.
pub const DEFAULT_RELAY_METRICS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9466));

/// How the daemon can be watched over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table `[metrics]`")]
pub struct Metrics {
    /// Where: an address and port, or `false` for nowhere.
    pub listen: Listen,
    /// Whether there are series of each peer and rule besides. `false` by default: a network of thousands makes thousands of them.
    pub per_peer: bool,
}
