//! What `meshctl status` shows, from what is held, installed and counted.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::PoisonError,
    time::{Duration, Instant},
};

use ringmesh_proto::{control::Reason, local};
use ringmesh_relay::ClientReport;
use ringmesh_tunnel::{
    Hop, PeerState, PeerStatus,
    key::NodeId,
    netmap::{Member, MemberKind},
    path::Path,
    time::UnixTime,
};

use super::{
    Held, Mesh, durable,
    link::LinkState,
    reach::{Route, View, rtt_of, selected},
};
use crate::{
    clock,
    control::VERSION,
    error::Failure,
    peers::{self, is_relay},
    plane::{DataPlane, Plane, WorkerReport},
    relaying::RelayPlane,
    roads::Roads,
};

/// A session with traffic in this time is `active` (as long as a handshake may stay unanswered, whitepaper section 6.4).
const ACTIVE: Duration = Duration::from_secs(45);

impl Mesh {
    /// Everything there is to say, at this moment.
    pub(crate) async fn status(&self) -> local::StatusResponse {
        let held = self.held();
        let running = self.plane();
        let plane = running.as_deref().and_then(Plane::packets);
        let report = match plane {
            Some(plane) => plane.report().await.ok(),
            None => None,
        };
        let relay_service = match running.as_deref().and_then(Plane::relay) {
            Some(relay) => self.relay_status(&held, relay).await,
            None => None,
        };
        let state = match &running {
            _ if self.is_removed() => "removed",
            None => "starting",
            Some(_) => state_of(&held, clock::wall()),
        };
        let roads = self.roads();
        let view = self.view(&held, &roads, plane, report.as_ref());
        let now = clock::wall();
        local::StatusResponse {
            version: VERSION.to_owned(),
            state: state.to_owned(),
            network: Some(self.network_status(&held)),
            data_plane: plane.map(|plane| data_plane_status(plane, report.as_ref())),
            peers: if relay_service.is_some() { Vec::new() } else { peers_status(&held, &view, plane) },
            coordinator: Some(self.link_status()),
            relays: match relay_service {
                Some(_) => Vec::new(),
                None => {
                    held.map.peers(now).filter(|it| is_relay(it)).map(|relay| view.relay(relay)).collect()
                }
            },
            relay_service,
            metrics: String::new(),
        }
    }

    /// What this node passes on as a relay.
    async fn relay_status(&self, held: &Held, relay: &RelayPlane) -> Option<local::RelayService> {
        let report = relay.report().await.ok()?;
        let network = report.networks.iter().find(|network| network.id == held.map.network());
        let passed_on = network.map(|network| network.passed_on).unwrap_or_default();
        let own = self.own_record.borrow().clone().unwrap_or_default();
        let drops = network.map(|network| &network.drops).into_iter().chain([&report.drops]);
        let mut counted = HashMap::new();
        for (reason, count) in drops.flat_map(|drops| drops.iter()).filter(|(_, count)| *count > 0) {
            *counted.entry(reason.as_str().to_owned()).or_default() += count;
        }
        let clients = network.map(|network| network.clients.as_slice()).unwrap_or_default();
        Some(local::RelayService {
            listen_port: relay.port().into(),
            websocket_urls: own.websockets,
            websockets: number(report.websockets),
            unproven: number(report.unproven_connections),
            passed_on_datagrams: passed_on.datagrams,
            passed_on_bytes: passed_on.bytes,
            drops: counted,
            pairs: network.map_or(0, |network| number(network.pairs)),
            clients: clients.iter().map(|client| client_status(held, client)).collect(),
        })
    }

    fn view<'a>(
        &'a self,
        held: &'a Held,
        roads: &'a Roads,
        plane: Option<&DataPlane>,
        report: Option<&'a WorkerReport>,
    ) -> View<'a> {
        let peers = report.map(|report| report.peers.as_slice()).unwrap_or_default();
        View {
            names: held
                .map
                .members()
                .filter(|member| is_relay(member))
                .map(|relay| (relay.id, relay.name.as_str()))
                .collect(),
            roads,
            book: &self.book,
            peers: peers.iter().map(|peer| (peer.id, peer)).collect(),
            seen: plane.map(|plane| plane.seen().borrow().clone()).unwrap_or_default(),
            now: Instant::now(),
        }
    }

    /// How a member is reached, by what else it could be, and why it is not.
    pub(crate) async fn why(&self, member: &Member) -> local::WhyResponse {
        let held = self.held();
        let running = self.plane();
        let plane = running.as_deref().and_then(Plane::packets);
        let report = match plane {
            Some(plane) => plane.report().await.ok(),
            None => None,
        };
        let roads = self.roads();
        let view = self.view(&held, &roads, plane, report.as_ref());
        let counted = view.peers.get(&member.id).copied();
        let sessions = plane.map(DataPlane::sessions).unwrap_or_default();
        let sessions = sessions.get(&member.id).copied().unwrap_or_default();
        let has_key = peers::has_key(&held.secrets, member);
        let now = clock::wall();
        let relays = held.map.peers(now).filter(|member| is_relay(member));
        let verdict = match self.why_unreachable(member) {
            _ if plane.is_none() => "the data plane does not run; see `meshctl status`".to_owned(),
            Some(why) => format!("{} is not reached: {why}", member.name),
            None => view.verdict(member),
        };
        local::WhyResponse {
            peer: Some(peer_status(&view, member, has_key, counted, sessions)),
            paths: counted.map(|peer| view.reports(peer)).unwrap_or_default(),
            relays: relays.map(|relay| view.relay(relay)).collect(),
            verdict,
        }
    }

    /// A path in words.
    pub(crate) async fn route_of(&self, path: Path, peer: NodeId) -> Route {
        let held = self.held();
        let running = self.plane();
        let plane = running.as_deref().and_then(Plane::packets);
        let report = match plane {
            Some(plane) => plane.report().await.ok(),
            None => None,
        };
        let roads = self.roads();
        let view = self.view(&held, &roads, plane, report.as_ref());
        let selected = view.peers.get(&peer).filter(|peer| peer.endpoint == Some(path));
        selected.map_or_else(|| view.route_of(path), |peer| view.route(peer))
    }

    fn network_status(&self, held: &Held) -> local::Network {
        let membership = self.membership();
        let me = held.map.me();
        let key = self.identity().public_key();
        local::Network {
            name: membership.network_name,
            id: membership.network.to_string(),
            zone: membership.zone,
            self_: Some(local::Self_ {
                id: membership.node.to_string(),
                name: me.map(|me| me.name.clone()).unwrap_or_default(),
                ipv4: me.and_then(|me| me.ipv4).map(|address| address.to_string()).unwrap_or_default(),
                ipv6: me.map(|me| me.ipv6.to_string()).unwrap_or_default(),
                noise_key: key.noise_key().to_string(),
                identity_fingerprint: key.fingerprint(),
                expires_ms: me.map_or(0, |me| me.not_after.as_millis()),
            }),
            revision: durable(&held.map),
            installed_revision: held.installed,
            map_age_ms: held.vouched.map(|vouched| millis(vouched.elapsed())),
            epoch: held.secrets.epoch(),
        }
    }

    fn link_status(&self) -> local::Coordinator {
        let mut link = self.link();
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if link.state == LinkState::Connected && refusal.is_some() {
            (link.state, link.last_error) = (LinkState::Refused, refusal);
        }
        local::Coordinator {
            state: link.state.as_str().to_owned(),
            address: link.address,
            last_error: link.last_error.map(|failure| failure.to_string()).unwrap_or_default(),
            next_try_ms: link.next_try.map_or(0, |at| millis(at.saturating_duration_since(Instant::now()))),
        }
    }

    /// Why this node does not reach a member for certain, if it is so.
    pub(crate) fn why_unreachable(&self, member: &Member) -> Option<&'static str> {
        let held = self.held();
        if !held.map.in_force(clock::wall()) {
            return Some(
                "this node's own membership has ended: a coordinator has to renew it; see `meshctl status`",
            );
        }
        let keyless = held.map.member(member.id).is_some() && !peers::has_key(&held.secrets, member);
        keyless.then_some("no key for this peer yet: a coordinator has to send it")
    }

    /// The peer that a person means.
    ///
    /// # Errors
    /// There is none, or it is this node itself.
    pub(crate) fn find_peer(&self, text: &str) -> Result<Member, Failure> {
        let member = self.find_member(text).ok_or_else(|| {
            Failure::new(
                Reason::NodeUnknown,
                format!("no node that this one may talk to has the name, address or id `{text}`"),
            )
        })?;
        if member.id == self.membership().node {
            return Err(Failure::invalid(format!("`{text}` is this node itself")));
        }
        Ok(member)
    }

    /// The member that a person means by a name, an address or an id.
    pub(crate) fn find_member(&self, text: &str) -> Option<Member> {
        let held = self.held();
        let zone = self.membership().zone;
        let name = text.strip_suffix(&format!(".{zone}")).unwrap_or(text);
        let address: Option<IpAddr> = text.parse().ok();
        let id: Option<NodeId> = text.parse().ok();
        let by_name = held.map.members().find(|member| member.name.eq_ignore_ascii_case(name));
        let by_address = || {
            held.map.members().find(|member| {
                address.is_some_and(|address| {
                    member.allowed_ips().any(|own| own.is_host() && own.contains(address))
                })
            })
        };
        let by_id = || id.and_then(|id| held.map.member(id));
        by_name.or_else(by_address).or_else(by_id).cloned()
    }
}

/// What the map in force comes to, in a word.
fn state_of(held: &Held, now: UnixTime) -> &'static str {
    if !held.map.in_force(now) {
        return "expired";
    }
    let mut peers = held.map.peers(now).peekable();
    let somebody = peers.peek().is_some();
    if somebody && !peers.any(|member| peers::has_key(&held.secrets, member)) { "no-key" } else { "running" }
}

fn client_status(held: &Held, client: &ClientReport) -> local::RelayClient {
    let member = held.map.member(client.id);
    let (path, endpoint) = match client.hop {
        Some(Hop::Udp(address)) => ("direct", address.to_string()),
        Some(Hop::Link(link)) => (link.carrier.as_str(), String::new()),
        None => ("", String::new()),
    };
    local::RelayClient {
        id: client.id.to_string(),
        name: member.map(|member| member.name.clone()).unwrap_or_default(),
        state: if client.here { "here" } else { "away" }.to_owned(),
        path: path.to_owned(),
        endpoint,
        channels: number(client.channels),
        from_bytes: client.from.bytes,
        to_bytes: client.to.bytes,
        dropped: client.drops.total(),
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn data_plane_status(plane: &DataPlane, report: Option<&WorkerReport>) -> local::DataPlane {
    let chosen = plane.chosen();
    let traffic = report.map(|report| report.traffic).unwrap_or_default();
    local::DataPlane {
        interface: plane.interface().to_owned(),
        mtu: plane.mtu().into(),
        listen_port: plane.port().into(),
        back_end: chosen.back_end.to_string(),
        back_end_reason: chosen.reason.clone(),
        workers: 1,
        drops: report.map(drops_of).unwrap_or_default(),
        sent_packets: traffic.sent_packets,
        sent_bytes: traffic.sent_bytes,
        received_packets: traffic.received_packets,
        received_bytes: traffic.received_bytes,
        system_calls: report.map_or(0, |report| report.io.system_calls),
        crypto: plane.crypto().kernel.to_string(),
        crypto_reason: plane.crypto().reason.clone(),
        offloads: plane.offloads().to_string(),
    }
}

/// Every drop that happened, by name.
fn drops_of(report: &WorkerReport) -> HashMap<String, u64> {
    report.drops.iter().map(|(reason, count)| (reason.as_str().to_owned(), *count)).collect()
}

fn peers_status(held: &Held, view: &View<'_>, plane: Option<&DataPlane>) -> Vec<local::Peer> {
    let sessions = plane.map(DataPlane::sessions).unwrap_or_default();
    held.map
        .peers(clock::wall())
        .filter(|member| !is_relay(member))
        .map(|member| {
            let sessions = sessions.get(&member.id).copied().unwrap_or_default();
            let has_key = peers::has_key(&held.secrets, member);
            peer_status(view, member, has_key, view.peers.get(&member.id).copied(), sessions)
        })
        .collect()
}

fn peer_status(
    view: &View<'_>,
    member: &Member,
    has_key: bool,
    counted: Option<&PeerStatus>,
    sessions: u64,
) -> local::Peer {
    let established = counted.filter(|peer| peer.state == PeerState::Established);
    let route = established.map(|peer| view.route(peer)).unwrap_or_default();
    let state = state_of_peer(counted, has_key);
    local::Peer {
        id: member.id.to_string(),
        name: member.name.clone(),
        kind: match member.kind {
            MemberKind::Mesh => "mesh",
            MemberKind::Stock => "stock",
        }
        .to_owned(),
        ipv4: member.ipv4.map(|address| address.to_string()).unwrap_or_default(),
        ipv6: member.ipv6.to_string(),
        state: state.to_owned(),
        path: route.path,
        endpoint: route.endpoint,
        handshake_age_ms: counted
            .and_then(|peer| peer.last_handshake)
            .map(|at| millis(clock::wall().saturating_since(at))),
        sent_bytes: counted.map_or(0, |peer| peer.sent_bytes),
        received_bytes: counted.map_or(0, |peer| peer.received_bytes),
        rtt_us: counted.and_then(rtt_of).map(micros),
        noise_key: member.noise_key.to_string(),
        allowed_ips: member.allowed_ips().map(|prefix| prefix.to_string()).collect(),
        sessions,
        via: route.via,
        loss_percent: route.loss_percent,
        path_mtu: established.and_then(selected).map_or(0, |path| path.mtu.into()),
    }
}

/// How things are with a peer, in a word.
pub(super) fn state_of_peer(counted: Option<&PeerStatus>, has_key: bool) -> &'static str {
    let recent = |peer: &PeerStatus| peer.last_received.is_some_and(|at| at.elapsed() < ACTIVE);
    match counted.filter(|peer| peer.state == PeerState::Established) {
        Some(peer) if recent(peer) => "active",
        Some(_) => "idle",
        None if has_key => "no-session",
        None => "no-key",
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
