//! `meshctl status`.

use std::collections::BTreeMap;

use ringmesh_proto::local;
use serde::Serialize;

use super::{
    Document,
    path::{Relay, relay_table, relays},
    peers::{Peer, both, peer_table, peers},
    relay::Service,
    table::{Columns, bytes, span},
};

/// What the node daemon knows of itself and its peers: `schemas/status.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) state: String,
    pub(crate) network: Option<Network>,
    pub(crate) data_plane: Option<DataPlane>,
    pub(crate) coordinator: Option<Coordinator>,
    pub(crate) relays: Vec<Relay>,
    pub(crate) relay_service: Option<Service>,
    pub(crate) peers: Vec<Peer>,
    /// The address and port of the metrics; `null`: there are none.
    pub(crate) metrics: Option<String>,
}

/// The network joined, and how far the map of it is installed.
#[derive(Debug, Serialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) zone: String,
    #[serde(rename = "self")]
    pub(crate) me: Me,
    pub(crate) revision: u64,
    pub(crate) installed_revision: u64,
    pub(crate) map_age_ms: Option<u64>,
    pub(crate) epoch: u64,
}

/// This node.
#[derive(Debug, Serialize)]
pub(crate) struct Me {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) ipv4: String,
    pub(crate) ipv6: String,
    pub(crate) noise_key: String,
    pub(crate) identity_fingerprint: String,
    pub(crate) expires_ms: u64,
}

/// The connection to a coordinator.
#[derive(Debug, Serialize)]
pub(crate) struct Coordinator {
    pub(crate) state: String,
    pub(crate) address: String,
    pub(crate) last_error: String,
    pub(crate) next_try_ms: u64,
}

/// What moves the packets.
#[derive(Debug, Serialize)]
pub(crate) struct DataPlane {
    pub(crate) interface: String,
    pub(crate) mtu: u32,
    pub(crate) listen_port: u32,
    pub(crate) back_end: String,
    pub(crate) back_end_reason: String,
    pub(crate) crypto: String,
    pub(crate) crypto_reason: String,
    pub(crate) offloads: String,
    pub(crate) workers: u32,
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_packets: u64,
    pub(crate) received_bytes: u64,
    pub(crate) system_calls: u64,
    pub(crate) drops: BTreeMap<String, u64>,
}

impl From<local::StatusResponse> for Status {
    fn from(status: local::StatusResponse) -> Self {
        Self {
            version: status.version,
            state: status.state,
            network: status.network.map(Network::from),
            data_plane: status.data_plane.map(DataPlane::from),
            coordinator: status.coordinator.map(Coordinator::from),
            relays: relays(status.relays),
            relay_service: status.relay_service.map(Service::from),
            peers: peers(status.peers),
            metrics: Some(status.metrics).filter(|address| !address.is_empty()),
        }
    }
}

impl From<local::Network> for Network {
    fn from(network: local::Network) -> Self {
        Self {
            name: network.name,
            id: network.id,
            zone: network.zone,
            me: Me::from(network.self_.unwrap_or_default()),
            revision: network.revision,
            installed_revision: network.installed_revision,
            map_age_ms: network.map_age_ms,
            epoch: network.epoch,
        }
    }
}

impl From<local::Self_> for Me {
    fn from(me: local::Self_) -> Self {
        Self {
            id: me.id,
            name: me.name,
            ipv4: me.ipv4,
            ipv6: me.ipv6,
            noise_key: me.noise_key,
            identity_fingerprint: me.identity_fingerprint,
            expires_ms: me.expires_ms,
        }
    }
}

impl From<local::Coordinator> for Coordinator {
    fn from(coordinator: local::Coordinator) -> Self {
        Self {
            state: coordinator.state,
            address: coordinator.address,
            last_error: coordinator.last_error,
            next_try_ms: coordinator.next_try_ms,
        }
    }
}

impl From<local::DataPlane> for DataPlane {
    fn from(plane: local::DataPlane) -> Self {
        Self {
            interface: plane.interface,
            mtu: plane.mtu,
            listen_port: plane.listen_port,
            back_end: plane.back_end,
            back_end_reason: plane.back_end_reason,
            crypto: plane.crypto,
            crypto_reason: plane.crypto_reason,
            offloads: plane.offloads,
            workers: plane.workers,
            sent_packets: plane.sent_packets,
            sent_bytes: plane.sent_bytes,
            received_packets: plane.received_packets,
            received_bytes: plane.received_bytes,
            system_calls: plane.system_calls,
            drops: plane.drops.into_iter().collect(),
        }
    }
}

impl Document for Status {
    fn text(&self, now: u64) -> String {
        let mut facts = Columns::bare();
        match &self.network {
            None => facts.row(["state".to_owned(), self.state.clone()]),
            Some(network) => network.rows(&mut facts, &self.state, now),
        }
        if let Some(coordinator) = &self.coordinator {
            facts.row(["coordinator".to_owned(), coordinator.line()]);
        }
        if let Some(plane) = &self.data_plane {
            plane.rows(&mut facts);
        }
        if let Some(service) = &self.relay_service {
            service.rows(&mut facts);
        }
        let metrics =
            self.metrics.as_ref().map_or_else(|| "none".to_owned(), |at| format!("http://{at}/metrics"));
        facts.row(["metrics".to_owned(), metrics]);
        facts.row(["version".to_owned(), self.version.clone()]);
        let mut text = facts.text();
        if let Some(service) = self.relay_service.as_ref().filter(|service| !service.clients.is_empty()) {
            text.push('\n');
            text.push_str(&service.client_table());
        }
        if !self.relays.is_empty() {
            text.push('\n');
            text.push_str(&relay_table(&self.relays));
        }
        if !self.peers.is_empty() {
            text.push('\n');
            text.push_str(&peer_table(&self.peers));
        }
        text
    }
}

impl Network {
    fn rows(&self, facts: &mut Columns, state: &str, now: u64) {
        facts.row(["node".to_owned(), format!("{} (id {}), {state}", self.me.name, self.me.id)]);
        facts.row(["network".to_owned(), format!("{} (zone {}, id {})", self.name, self.zone, self.id)]);
        facts.row(["addresses".to_owned(), self.me.addresses()]);
        facts.row(["map".to_owned(), self.map_line()]);
        facts.row(["key".to_owned(), self.me.key_line(now)]);
    }

    fn map_line(&self) -> String {
        let installed = if self.installed_revision >= self.revision {
            "installed".to_owned()
        } else {
            format!("{} installed", self.installed_revision)
        };
        let vouched = match self.map_age_ms {
            Some(age) => format!("confirmed {} ago", span(age)),
            None => "not confirmed since meshd started".to_owned(),
        };
        format!("revision {}, {installed}, {vouched}, epoch {}", self.revision, self.epoch)
    }
}

impl Me {
    /// The addresses that there are.
    pub(crate) fn addresses(&self) -> String {
        both(&self.ipv4, &self.ipv6)
    }

    fn key_line(&self, now: u64) -> String {
        let expiry = match self.expires_ms {
            0 => String::new(),
            at if at <= now => ", membership expired".to_owned(),
            at => format!(", membership ends in {}", span(at - now)),
        };
        format!("{}{expiry}", self.identity_fingerprint)
    }
}

impl Coordinator {
    fn line(&self) -> String {
        let mut line = self.state.clone();
        if !self.address.is_empty() {
            line.push_str(&format!(" {}", self.address));
        }
        if !self.last_error.is_empty() {
            line.push_str(&format!("; last error: {}", self.last_error));
        }
        if self.next_try_ms > 0 {
            line.push_str(&format!("; next try in {}", span(self.next_try_ms)));
        }
        line
    }
}

impl DataPlane {
    /// The back end, and why.
    pub(crate) fn io_line(&self) -> String {
        format!("{} ({})", self.back_end, self.back_end_reason)
    }

    /// What encrypts packets, and why.
    pub(crate) fn crypto_line(&self) -> String {
        format!("{} ({})", self.crypto, self.crypto_reason)
    }

    fn rows(&self, facts: &mut Columns) {
        facts.row([
            "device".to_owned(),
            format!("{}, mtu {}, udp port {}", self.interface, self.mtu, self.listen_port),
        ]);
        let workers = if self.workers == 1 { "worker" } else { "workers" };
        facts.row(["io".to_owned(), format!("{}, {} {workers}", self.io_line(), self.workers)]);
        facts.row(["offloads".to_owned(), self.offloads.clone()]);
        facts.row(["crypto".to_owned(), self.crypto_line()]);
        facts.row([
            "traffic".to_owned(),
            format!(
                "sent {} packets ({}), received {} packets ({}), {} system calls",
                self.sent_packets,
                bytes(self.sent_bytes),
                self.received_packets,
                bytes(self.received_bytes),
                self.system_calls
            ),
        ]);
        let drops: Vec<String> = self
            .drops
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(why, count)| format!("{why} {count}"))
            .collect();
        if !drops.is_empty() {
            facts.row(["drops".to_owned(), drops.join(", ")]);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ringmesh_tunnel::DropReason;

    use super::*;
    use crate::output::{json, peers::Peers, tests::conforms};

    pub(crate) const NOW: u64 = 1_790_000_000_000;

    pub(crate) fn peer(name: &str, number: u8) -> local::Peer {
        local::Peer {
            via: String::new(),
            loss_percent: Some(0),
            path_mtu: 1420,
            id: format!("00000000000000{number:02x}"),
            name: name.to_owned(),
            kind: "mesh".to_owned(),
            ipv4: format!("100.64.0.{number}"),
            ipv6: format!("fd12:3456:789a::{number}"),
            state: "active".to_owned(),
            path: "direct".to_owned(),
            endpoint: format!("203.0.113.{number}:51820"),
            handshake_age_ms: Some(7_000),
            sent_bytes: 3_885_116,
            received_bytes: 38_759_812,
            rtt_us: Some(420),
            noise_key: "bm9pc2Uga2V5IG9mIGEgcGVlciwgMzIgYnl0ZXMgIS4=".to_owned(),
            allowed_ips: vec![format!("100.64.0.{number}/32"), format!("fd12:3456:789a::{number}/128")],
            sessions: 2,
        }
    }

    pub(crate) fn running() -> local::StatusResponse {
        local::StatusResponse {
            relays: vec![relay()],
            relay_service: None,
            metrics: "127.0.0.1:9464".to_owned(),
            version: "0.1.0".to_owned(),
            state: "running".to_owned(),
            network: Some(local::Network {
                name: "mesh".to_owned(),
                id: "0123456789abcdef0123456789abcdef".to_owned(),
                zone: "mesh".to_owned(),
                self_: Some(local::Self_ {
                    id: "00000000000000ff".to_owned(),
                    name: "laptop".to_owned(),
                    ipv4: "100.64.0.255".to_owned(),
                    ipv6: "fd12:3456:789a::ff".to_owned(),
                    noise_key: "bm9pc2Uga2V5IG9mIG15c2VsZiwgMzIgYnl0ZXMgIS4=".to_owned(),
                    identity_fingerprint: "SHA256:u3Vn3mQ4nD7h2b5e8k1Jr0cT6yXo9wZsLpAfGiHqRtE".to_owned(),
                    expires_ms: NOW + 30 * 86_400_000,
                }),
                revision: 14,
                installed_revision: 14,
                map_age_ms: Some(3_100),
                epoch: 2,
            }),
            data_plane: Some(local::DataPlane {
                interface: "mesh0".to_owned(),
                mtu: 1408,
                listen_port: 51820,
                back_end: "uring".to_owned(),
                back_end_reason: "io_uring with multishot receive works here".to_owned(),
                workers: 1,
                drops: [
                    (DropReason::Replayed, 3),
                    (DropReason::HeldTooMany, 1),
                    (DropReason::MalformedPacket, 0),
                ]
                .map(|(reason, count)| (reason.as_str().to_owned(), count))
                .into(),
                sent_packets: 4_000,
                sent_bytes: 3_885_116,
                received_packets: 30_000,
                received_bytes: 38_759_812,
                system_calls: 1_234,
                crypto: "avx512".to_owned(),
                crypto_reason: "this CPU has AVX-512".to_owned(),
                offloads: "tso,tun-gro,udp-gso,udp-gro".to_owned(),
            }),
            // Out of order on purpose: the table sorts by name.
            peers: vec![
                peer("web1", 1),
                local::Peer {
                    state: "no-session".to_owned(),
                    path: String::new(),
                    endpoint: String::new(),
                    handshake_age_ms: None,
                    rtt_us: None,
                    loss_percent: None,
                    path_mtu: 0,
                    sent_bytes: 0,
                    received_bytes: 0,
                    sessions: 0,
                    ..peer("nas", 2)
                },
            ],
            coordinator: Some(local::Coordinator {
                state: "connected".to_owned(),
                address: "192.0.2.1:443".to_owned(),
                last_error: String::new(),
                next_try_ms: 0,
            }),
        }
    }

    pub(crate) fn relay() -> local::Relay {
        local::Relay {
            id: "00000000000000aa".to_owned(),
            name: "fra".to_owned(),
            state: "connected".to_owned(),
            path: "direct".to_owned(),
            endpoint: "198.51.100.2:443".to_owned(),
            rtt_us: Some(11_900),
            loss_percent: Some(0),
            seen_as: "192.0.2.77:40123".to_owned(),
        }
    }

    /// One peer for each way of reaching it.
    pub(crate) fn by_every_path() -> local::StatusResponse {
        let by = |number, path: &str, via: &str, endpoint: &str| local::Peer {
            path: path.to_owned(),
            via: via.to_owned(),
            endpoint: endpoint.to_owned(),
            ..peer(&format!("web{number}"), number)
        };
        let relayed = by(2, "relay", "fra", "198.51.100.2:443");
        local::StatusResponse {
            relays: vec![
                relay(),
                local::Relay {
                    name: "ams".to_owned(),
                    state: "unreachable".to_owned(),
                    path: String::new(),
                    endpoint: String::new(),
                    rtt_us: None,
                    loss_percent: None,
                    seen_as: String::new(),
                    ..relay()
                },
            ],
            peers: vec![
                by(1, "direct", "", "203.0.113.1:51820"),
                local::Peer { rtt_us: Some(32_100), loss_percent: Some(12), ..relayed },
                by(3, "websocket", "fra", "wss://fra.example.org/relay/v1"),
                by(4, "ssh", "", "203.0.113.4:22"),
            ],
            ..running()
        }
    }

    fn behind() -> local::StatusResponse {
        let mut status = running();
        let network = status.network.as_mut().unwrap();
        network.revision = 15;
        network.map_age_ms = None;
        status.coordinator = Some(local::Coordinator {
            state: "connecting".to_owned(),
            address: "192.0.2.1:443".to_owned(),
            last_error: "connection refused".to_owned(),
            next_try_ms: 4_000,
        });
        status.peers.clear();
        status.relays.clear();
        status
    }

    fn serving() -> local::StatusResponse {
        let client = local::RelayClient {
            id: "0000000000000001".to_owned(),
            name: "web1".to_owned(),
            state: "here".to_owned(),
            path: "direct".to_owned(),
            endpoint: "203.0.113.1:51820".to_owned(),
            channels: 1,
            from_bytes: 3_885_116,
            to_bytes: 38_759_812,
            dropped: 0,
        };
        let other = local::RelayClient {
            id: "0000000000000002".to_owned(),
            name: "nas".to_owned(),
            path: "websocket".to_owned(),
            endpoint: String::new(),
            dropped: 7,
            ..client.clone()
        };
        local::StatusResponse {
            data_plane: None,
            peers: Vec::new(),
            relays: Vec::new(),
            relay_service: Some(local::RelayService {
                listen_port: 51820,
                websocket_urls: vec!["wss://fra.example.org/relay/v1".to_owned()],
                websockets: 1,
                unproven: 0,
                passed_on_datagrams: 34_000,
                passed_on_bytes: 42_644_928,
                drops: [("rate".to_owned(), 7), ("malformed".to_owned(), 0)].into(),
                pairs: 1,
                clients: vec![client, other],
            }),
            ..running()
        }
    }

    #[test]
    fn status_of_a_relay() {
        insta::assert_snapshot!(Status::from(serving()).text(NOW));
        conforms("status", &Status::from(serving()));
        let closed = local::RelayService { listen_port: 51820, ..local::RelayService::default() };
        let closed = local::StatusResponse { relay_service: Some(closed), ..serving() };
        let text = Status::from(closed).text(NOW);
        assert!(text.contains("\nwebsocket    nowhere; 0 open, 0 unproven\n"), "{text}");
    }

    pub(crate) fn not_joined() -> local::StatusResponse {
        local::StatusResponse {
            version: "0.1.0".to_owned(),
            state: "not-joined".to_owned(),
            ..local::StatusResponse::default()
        }
    }

    #[test]
    fn status_of_a_running_node() {
        insta::assert_snapshot!(Status::from(running()).text(NOW));
    }

    #[test]
    fn status_as_json() {
        insta::assert_snapshot!(json(&Status::from(running())).unwrap());
    }

    #[test]
    fn status_with_a_dead_coordinator_and_an_older_map_installed() {
        insta::assert_snapshot!(Status::from(behind()).text(NOW));
    }

    #[test]
    fn status_of_a_node_that_has_not_joined() {
        insta::assert_snapshot!(Status::from(not_joined()).text(NOW));
        for state in ["starting", "expired", "no-key", "removed"] {
            conforms(
                "status",
                &Status::from(local::StatusResponse { state: state.to_owned(), ..not_joined() }),
            );
        }
    }
    #[test]
    fn relays_and_paths_of_every_kind() {
        let text = Status::from(by_every_path()).text(NOW);
        let (_, tables) = text.split_once("\n\n").unwrap();
        insta::assert_snapshot!(tables);
        conforms("status", &Status::from(by_every_path()));
        conforms("peers", &Peers::from(by_every_path()));
    }
}
