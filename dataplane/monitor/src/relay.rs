//! The series of a relay, which a daemon of its own has and a coordinator beside its others.

use ringmesh_relay::{RelayDrop, Report};

use crate::{Registry, Series, Unit};

/// Puts what a relay reports into `registry`. Counters begin at the relay's start, and count for all networks together.
pub fn measure(registry: &mut Registry, report: &Report) {
    let clients = || report.networks.iter().flat_map(|network| &network.clients);
    let here = clients().filter(|client| client.here).count();
    registry.register(
        "relay_clients",
        "Members that are connected to the relay",
        Series::gauge().count([], here as u64),
    );
    registry.register(
        "relay_members",
        "Members that the relay would serve, connected or not",
        Series::gauge().count([], clients().count() as u64),
    );
    let pairs: usize = report.networks.iter().map(|network| network.pairs).sum();
    registry.register(
        "relay_pairs",
        "Pairs of members that have channels",
        Series::gauge().count([], pairs as u64),
    );
    let (mut bytes, mut datagrams) = (Series::counter(), Series::counter());
    for network in &report.networks {
        for (direction, traffic) in [("in", network.taken), ("out", network.passed_on)] {
            bytes.add([("direction", direction)], traffic.bytes);
            datagrams.add([("direction", direction)], traffic.datagrams);
        }
    }
    registry.register_with_unit(
        "relay",
        "Bytes of datagrams taken from members to be passed on, and passed on",
        Unit::Bytes,
        bytes,
    );
    registry.register(
        "relay_datagrams",
        "Datagrams taken from members to be passed on, and passed on",
        datagrams,
    );
    let mut drops = Series::counter();
    for &reason in RelayDrop::ALL {
        let of_networks: u64 = report.networks.iter().map(|network| network.drops.get(reason)).sum();
        let all = of_networks.saturating_add(report.drops.get(reason));
        drops.add([("reason", reason.as_str())], all);
    }
    registry.register("relay_drops", "Datagrams that were not passed on", drops);
    registry.register(
        "relay_websockets",
        "WebSockets that are open",
        Series::gauge().count([], report.websockets as u64),
    );
    registry.register(
        "relay_websockets_cut",
        "WebSockets that were cut: they did not drain, or their owner had too many or is no member any more",
        Series::counter().count([], report.cut_websockets),
    );
    registry.register(
        "relay_unproven_connections",
        "Connections by which nothing authentic came yet",
        Series::gauge().count([], report.unproven_connections as u64),
    );
}
