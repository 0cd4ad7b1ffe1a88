//! `meshctl peers`, and the peers' part of `meshctl status`.

use ringmesh_proto::local;
use serde::Serialize;

use super::{
    Document,
    path::{loss, named, rtt},
    table::{Columns, bytes, span},
};

/// Another node, seen from here.
#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) ipv4: String,
    pub(crate) ipv6: String,
    pub(crate) state: String,
    pub(crate) path: String,
    pub(crate) via: String,
    pub(crate) endpoint: String,
    pub(crate) rtt_us: Option<u32>,
    pub(crate) loss_percent: Option<u32>,
    pub(crate) path_mtu: Option<u32>,
    pub(crate) handshake_age_ms: Option<u64>,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    pub(crate) noise_key: String,
    pub(crate) allowed_ips: Vec<String>,
    pub(crate) sessions: u64,
}

impl From<local::Peer> for Peer {
    fn from(peer: local::Peer) -> Self {
        Self {
            id: peer.id,
            name: peer.name,
            kind: peer.kind,
            ipv4: peer.ipv4,
            ipv6: peer.ipv6,
            state: peer.state,
            path: peer.path,
            via: peer.via,
            endpoint: peer.endpoint,
            rtt_us: peer.rtt_us,
            loss_percent: peer.loss_percent,
            path_mtu: (peer.path_mtu > 0).then_some(peer.path_mtu),
            handshake_age_ms: peer.handshake_age_ms,
            sent_bytes: peer.sent_bytes,
            received_bytes: peer.received_bytes,
            noise_key: peer.noise_key,
            allowed_ips: peer.allowed_ips,
            sessions: peer.sessions,
        }
    }
}

impl Peer {
    /// The path in words, as [`named`] has it.
    pub(crate) fn path_line(&self) -> String {
        named(&self.path, &self.via, &self.endpoint)
    }

    fn handshake(&self) -> String {
        self.handshake_age_ms.map_or_else(String::new, |age| format!("{} ago", span(age)))
    }
}

/// An IPv4 and an IPv6 address, of which either may be missing.
pub(crate) fn both(ipv4: &str, ipv6: &str) -> String {
    [ipv4, ipv6].into_iter().filter(|address| !address.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Peers by name, so that two calls can be compared.
pub(crate) fn peers(peers: Vec<local::Peer>) -> Vec<Peer> {
    let mut peers: Vec<Peer> = peers.into_iter().map(Peer::from).collect();
    peers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    peers
}

/// A line for each peer.
pub(crate) fn peer_table(peers: &[Peer]) -> String {
    let mut table =
        Columns::new(["PEER", "ADDRESS", "STATE", "PATH", "RTT", "LOSS", "HANDSHAKE", "SENT", "RECEIVED"]);
    for peer in peers {
        table.row([
            peer.name.clone(),
            peer.ipv4.clone(),
            peer.state.clone(),
            peer.path_line(),
            rtt(peer.rtt_us),
            loss(peer.loss_percent),
            peer.handshake(),
            bytes(peer.sent_bytes),
            bytes(peer.received_bytes),
        ]);
    }
    table.text()
}

/// The peers alone, with everything known of each: `schemas/peers.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Peers {
    pub(crate) peers: Vec<Peer>,
}

impl From<local::StatusResponse> for Peers {
    fn from(status: local::StatusResponse) -> Self {
        Self { peers: peers(status.peers) }
    }
}

impl Document for Peers {
    fn text(&self, _: u64) -> String {
        if self.peers.is_empty() {
            return "no peer yet\n".to_owned();
        }
        let mut text = String::new();
        for (place, peer) in self.peers.iter().enumerate() {
            if place > 0 {
                text.push('\n');
            }
            let mut facts = Columns::bare();
            for (name, value) in [
                ("peer", format!("{} (id {}, {})", peer.name, peer.id, peer.kind)),
                ("  addresses", both(&peer.ipv4, &peer.ipv6)),
                ("  state", peer.state.clone()),
                ("  sessions", peer.sessions.to_string()),
                ("  path", peer.path_line()),
                ("  round trip", rtt(peer.rtt_us)),
                ("  loss", loss(peer.loss_percent)),
                ("  path mtu", peer.path_mtu.map_or_else(String::new, |mtu| mtu.to_string())),
                ("  handshake", peer.handshake()),
                (
                    "  traffic",
                    format!("sent {}, received {}", bytes(peer.sent_bytes), bytes(peer.received_bytes)),
                ),
                ("  allowed ips", peer.allowed_ips.join(", ")),
                ("  key", peer.noise_key.clone()),
            ] {
                facts.row([name.to_owned(), value]);
            }
            text.push_str(&facts.text());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::status::tests::{NOW, by_every_path, not_joined, running};

    #[test]
    fn peers_one_by_one() {
        insta::assert_snapshot!(Peers::from(running()).text(NOW));
        assert_eq!(Peers::from(not_joined()).text(NOW), "no peer yet\n");
    }

    #[test]
    fn peers_reached_by_every_kind_of_path() {
        insta::assert_snapshot!(peer_table(&Peers::from(by_every_path()).peers));
    }
}
