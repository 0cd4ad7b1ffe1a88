//! `RelayService`: whom the relay of this process serves.

use std::collections::HashMap;

use ringmesh_proto::admin as proto;
use ringmesh_relay::{ClientReport, NetworkReport};
use ringmesh_tunnel::Hop;

use crate::network::NetworkState;

/// The clients that were ever here, with what was relayed, as operators read it.
pub(super) fn clients(report: &NetworkReport, network: &NetworkState) -> proto::ListRelayClientsResponse {
    let mut drops: HashMap<String, u64> = HashMap::new();
    let relay = report.drops.iter().map(|(reason, count)| (reason.as_str(), count));
    let session = report.session_drops.iter().map(|(reason, count)| (reason.as_str(), count));
    for (reason, count) in relay.chain(session).filter(|(_, count)| *count > 0) {
        *drops.entry(reason.into()).or_default() += count;
    }
    let was_here = |client: &&ClientReport| {
        client.here || client.hop.is_some() || client.from.datagrams + client.to.datagrams > 0
    };
    let seen = report.clients.iter().filter(was_here);
    proto::ListRelayClientsResponse {
        clients: seen.map(|client| self::client(client, network)).collect(),
        relayed_datagrams: report.passed_on.datagrams,
        relayed_bytes: report.passed_on.bytes,
        drops,
    }
}

fn client(client: &ClientReport, network: &NetworkState) -> proto::RelayClient {
    let (path, endpoint) = match client.hop {
        Some(Hop::Udp(address)) => ("udp".into(), address.to_string()),
        Some(Hop::Link(link)) => (link.carrier.to_string(), String::new()),
        None => (String::new(), String::new()),
    };
    let name = network.member(client.id).map(|member| member.name.clone());
    proto::RelayClient {
        id: client.id.to_string(),
        name: name.unwrap_or_default(),
        path,
        endpoint,
        channels: client.channels.try_into().unwrap_or(u32::MAX),
        from_datagrams: client.from.datagrams,
        from_bytes: client.from.bytes,
        to_datagrams: client.to.datagrams,
        to_bytes: client.to.bytes,
        dropped: client.drops.total(),
        state: if client.here { "here" } else { "away" }.into(),
    }
}
