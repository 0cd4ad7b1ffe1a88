//! What a server tells about itself: for metrics and for people.

use ringmesh_tunnel::DropCounters;
use ringmesh_tunnel::key::NetworkId;

use crate::drops::RelayDrops;
use crate::relay::{ClientReport, Traffic};

/// What can be said about a server at one moment. Counters begin at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Each network that is served here.
    pub networks: Vec<NetworkReport>,
    /// WebSockets that are open, proven or not.
    pub websockets: usize,
    /// Connections by which nothing authentic came yet, those among them that are not upgraded yet.
    pub unproven_connections: usize,
    /// WebSockets that were cut: they did not drain, or their owner had too many or is no member any more.
    pub cut_websockets: u64,
    /// What left by UDP, the relay's own messages included.
    pub udp_sent: Traffic,
    /// Datagrams for no network that is served here.
    pub drops: RelayDrops,
}

/// What can be said about one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkReport {
    /// Which.
    pub id: NetworkId,
    /// Its members.
    pub clients: Vec<ClientReport>,
    /// Pairs that have channels.
    pub pairs: usize,
    /// What was taken from members to be passed on, of former ones as well.
    pub taken: Traffic,
    /// What was passed on, of former members as well.
    pub passed_on: Traffic,
    /// What was not, of former members and strangers as well.
    pub drops: RelayDrops,
    /// What the relay's own sessions refused. An initiation counts as one with a bad first MAC at each network it is not for.
    pub session_drops: DropCounters,
}
