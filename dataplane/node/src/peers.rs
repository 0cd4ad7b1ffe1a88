//! From the verified map to what the data plane needs: who are the peers, by which keys, addresses, candidates and links.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ringmesh_tunnel::{
    LinkCandidate, PeerConfig, Psk,
    ip::Prefix,
    key::{NodeId, PublicKey},
    netmap::{Member, MemberKind, NetworkMap, NodeRecord, candidate_is_allowed},
    time::UnixTime,
};
use tracing::warn;

use crate::{
    config::SshRoad,
    fallback::websocket::RelayUrl,
    roads::{Road, Roads},
    state::Secrets,
};

/// A relay is to be reached, and to reach us, at any time: often enough for the mappings of usual NATs (RFC 4787 REQ-5).
const RELAY_KEEPALIVE: u16 = 25;

/// What is known besides the map.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// Beside the map: the keys of epochs and stock devices.
    pub(crate) secrets: &'a Secrets,
    /// This node's key.
    pub(crate) own: &'a PublicKey,
    /// The network's own ranges, in which no candidate lies.
    pub(crate) pools: &'a [Prefix],
    /// Configured roads to peers.
    pub(crate) ssh: &'a [SshRoad],
}

/// The peers in force at `now`, relays among them; `roads` are made theirs. A member for whom no pre-shared key is known is
/// left out: it is never reached without one.
pub(crate) fn of_map(
    map: &NetworkMap,
    known: &Known<'_>,
    roads: &mut Roads,
    now: UnixTime,
) -> Vec<PeerConfig> {
    let silent = map.peers(now).map(|member| member.id).filter(|id| map.node_record(*id).is_none());
    let silent: BTreeSet<_> = silent.collect();
    let wanted = map.peers(now).flat_map(|member| roads_to(map, known, member));
    let mut links = roads.replace(wanted, |peer| silent.contains(&peer));
    map.peers(now).filter_map(|member| peer(map, known, member, &mut links)).collect()
}

/// Whom this node serves as a relay at `now`: every node of ours, without inner addresses, as no packet is for a relay.
pub(crate) fn clients(map: &NetworkMap, known: &Known<'_>, now: UnixTime) -> Vec<PeerConfig> {
    let nodes = map.peers(now).filter(|member| member.kind == MemberKind::Mesh);
    let client = |member: &Member| {
        Some(PeerConfig {
            id: member.id,
            key: member.noise_key,
            psk: psk(map, known, member)?,
            mesh: true,
            allowed_ips: Vec::new(),
            candidates: Vec::new(),
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        })
    };
    nodes.filter_map(client).collect()
}

/// Whether a pre-shared key for this member is known; without one it is no peer.
pub(crate) fn has_key(secrets: &Secrets, member: &Member) -> bool {
    match member.kind {
        MemberKind::Mesh => secrets.epoch() != 0,
        MemberKind::Stock => secrets.peer_psk(member.id).is_some(),
    }
}

/// Whether a member passes on what cannot go straight. Only a node of ours can.
pub(crate) fn is_relay(member: &Member) -> bool {
    member.relay && member.kind == MemberKind::Mesh
}

fn psk(map: &NetworkMap, known: &Known<'_>, member: &Member) -> Option<Psk> {
    match member.kind {
        MemberKind::Mesh => known.secrets.epochs_psk(map.network(), known.own, &member.noise_key),
        MemberKind::Stock => known.secrets.peer_psk(member.id).map(Psk::Fixed),
    }
}

fn peer(
    map: &NetworkMap,
    known: &Known<'_>,
    member: &Member,
    links: &mut BTreeMap<NodeId, Vec<LinkCandidate>>,
) -> Option<PeerConfig> {
    let Some(psk) = psk(map, known, member) else {
        warn!(peer = %member.id, name = member.name, "no pre-shared key for this peer yet; it stays unreachable");
        return None;
    };
    // The peer says where it is, so it could have us send to somebody else.
    let said = map.node_record(member.id).map(|record| record.endpoints.as_slice()).unwrap_or_default();
    let candidates =
        said.iter().copied().filter(|address| candidate_is_allowed(*address, known.pools)).collect();
    let relay = is_relay(member);
    Some(PeerConfig {
        id: member.id,
        key: member.noise_key,
        psk,
        mesh: member.kind == MemberKind::Mesh,
        // A relay carries packets of others, sealed, and sends none.
        allowed_ips: if relay { Vec::new() } else { member.allowed_ips().collect() },
        candidates,
        links: links.remove(&member.id).unwrap_or_default(),
        relay,
        persistent_keepalive: relay.then_some(RELAY_KEEPALIVE),
    })
}

/// The streams that can be opened to a member: what the user configured first, then what it says itself.
fn roads_to(map: &NetworkMap, known: &Known<'_>, member: &Member) -> Vec<(NodeId, Road)> {
    let Some(host_key) = member.identity_key.filter(|_| member.kind == MemberKind::Mesh) else {
        return Vec::new();
    };
    let id = member.id.to_string();
    let meant = |road: &&SshRoad| road.peer.eq_ignore_ascii_case(&member.name) || road.peer == id;
    let configured = known.ssh.iter().filter(meant).cloned().map(Road::Server);
    let said = map.node_record(member.id).into_iter().flat_map(|record| said_by(record, known.pools));
    configured
        .chain(said.map(|said| match said {
            Said::Ssh(address) => Road::Endpoint { address, host_key },
            Said::WebSocket(url) => Road::WebSocket { url },
        }))
        .filter(|road| is_relay(member) || !matches!(road, Road::WebSocket { .. }))
        .map(|road| (member.id, road))
        .collect()
}

/// Where a node says that a stream can be opened to it.
enum Said {
    Ssh(SocketAddr),
    WebSocket(String),
}

/// As for UDP, a node could have us connect to somebody else; what can only be this machine or the tunnel is left out.
fn said_by(record: &NodeRecord, pools: &[Prefix]) -> Vec<Said> {
    let ssh = record.ssh.iter().copied().filter(|address| candidate_is_allowed(*address, pools));
    let websockets = record.websockets.iter().filter(|url| url_is_allowed(url, pools));
    ssh.map(Said::Ssh).chain(websockets.cloned().map(Said::WebSocket)).collect()
}

/// Whether a URL's host is a name, or an address that may be sent to.
fn url_is_allowed(url: &str, pools: &[Prefix]) -> bool {
    let Ok(url) = url.parse::<RelayUrl>() else { return false };
    match url.host().parse::<IpAddr>() {
        Ok(address) => candidate_is_allowed(SocketAddr::new(address, url.port()), pools),
        Err(_) => url.host() != "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_cannot_have_its_clients_knock_on_their_own_doors() {
        let pools = ["100.64.0.0/10".parse().unwrap()];
        for (url, allowed) in [
            ("wss://relay.example/relay/v1", true),
            ("wss://relay.example:8443/base/relay/v1", true),
            ("wss://192.0.2.1:443/relay/v1", true),
            ("wss://[2001:db8::1]:443/relay/v1", true),
            ("wss://127.0.0.1:443/relay/v1", false),
            ("wss://[::1]/relay/v1", false),
            ("wss://localhost/relay/v1", false),
            ("wss://100.64.0.9/relay/v1", false),
            ("wss://169.254.169.254/relay/v1", false),
            ("wss://user@192.0.2.1/relay/v1", false),
            ("wss://:443/relay/v1", false),
            ("ws://relay.example/relay/v1", false),
            ("wss://relay.example/", false),
        ] {
            assert_eq!(url_is_allowed(url, &pools), allowed, "{url}");
        }
    }
}
