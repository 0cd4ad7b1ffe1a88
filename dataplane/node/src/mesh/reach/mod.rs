//! How peers and relays are reached, in words for people: `status`, `ping` and `why`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ringmesh_proto::local;
use ringmesh_tunnel::{
    Candidate, Hop, Path, PathFailure, PathState, PathStatus, PeerState, PeerStatus,
    key::NodeId,
    netmap::{Member, MemberKind},
};

use super::status::{micros, millis};
use crate::{links::LinkBook, roads::Roads};

/// Everything it takes to put a path into words.
#[derive(Debug)]
pub(super) struct View<'a> {
    /// Names of relays.
    pub(super) names: BTreeMap<NodeId, &'a str>,
    pub(super) roads: &'a Roads,
    pub(super) book: &'a LinkBook,
    pub(super) peers: BTreeMap<NodeId, &'a PeerStatus>,
    /// This node's address as each relay sees it.
    pub(super) seen: BTreeMap<NodeId, SocketAddr>,
    pub(super) now: Instant,
}

/// A path in words, as `Peer` and `PingResponse` of the local API have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// `direct`, `relay`, `websocket`, `ssh`, or empty.
    pub(crate) path: String,
    /// The relay's name, or empty.
    pub(crate) via: String,
    /// Where datagrams leave this machine.
    pub(crate) endpoint: String,
    /// Probes that were not answered.
    pub(crate) loss_percent: Option<u32>,
}

impl View<'_> {
    /// The path that sealed packets to a peer take.
    pub(super) fn route(&self, peer: &PeerStatus) -> Route {
        let Some(path) = peer.endpoint else { return Route::default() };
        let loss_percent = selected(peer).and_then(|path| path.loss).map(u32::from);
        Route { loss_percent, ..self.route_of(path) }
    }

    /// Any path, as it leads now.
    pub(super) fn route_of(&self, path: Path) -> Route {
        let (via, hop) = match path {
            Path::Udp(address) => (None, Some(Hop::Udp(address))),
            Path::Link(link) => (None, Some(Hop::Link(link))),
            Path::Relay(channel) => (Some(channel.relay), self.hop_of(channel.relay)),
        };
        let word = match hop {
            Some(Hop::Link(link)) => link.carrier.as_str(),
            Some(Hop::Udp(_)) | None if via.is_some() => "relay",
            Some(Hop::Udp(_)) | None => "direct",
        };
        Route {
            path: word.to_owned(),
            via: via.map(|relay| self.name_of(relay)).unwrap_or_default(),
            endpoint: hop.map(|hop| self.hop_text(hop)).unwrap_or_default(),
            loss_percent: None,
        }
    }

    fn hop_of(&self, relay: NodeId) -> Option<Hop> {
        let relay = self.peers.get(&relay)?;
        relay.hop.or(match relay.endpoint? {
            Path::Udp(address) => Some(Hop::Udp(address)),
            Path::Link(link) => Some(Hop::Link(link)),
            Path::Relay(_) => None,
        })
    }

    fn hop_text(&self, hop: Hop) -> String {
        match hop {
            Hop::Udp(address) => address.to_string(),
            Hop::Link(link) => self.book.name(link),
        }
    }

    fn name_of(&self, node: NodeId) -> String {
        self.names.get(&node).map_or_else(|| node.to_string(), |name| (*name).to_owned())
    }

    /// A relay of the map.
    pub(super) fn relay(&self, member: &Member) -> local::Relay {
        let peer = self.peers.get(&member.id).copied();
        let established = peer.filter(|peer| peer.state == PeerState::Established);
        let route = established.map(|peer| self.route(peer)).unwrap_or_default();
        let state = match peer.map(|peer| peer.state) {
            Some(PeerState::Established) => "connected",
            Some(PeerState::Handshaking) => "connecting",
            Some(PeerState::Idle) | None => "unreachable",
        };
        local::Relay {
            id: member.id.to_string(),
            name: member.name.clone(),
            state: state.to_owned(),
            path: route.path,
            endpoint: route.endpoint,
            rtt_us: established.and_then(rtt_of).map(micros),
            loss_percent: route.loss_percent,
            seen_as: self.seen.get(&member.id).map(ToString::to_string).unwrap_or_default(),
        }
    }

    /// Every candidate of a peer, best first.
    pub(super) fn reports(&self, peer: &PeerStatus) -> Vec<local::PathReport> {
        peer.paths.iter().map(|path| self.report(peer.id, path)).collect()
    }

    fn report(&self, peer: NodeId, path: &PathStatus) -> local::PathReport {
        let (kind, address) = self.candidate(peer, path.candidate);
        local::PathReport {
            kind: kind.to_owned(),
            address,
            origin: path.origin.as_str().to_owned(),
            state: path.state.as_str().to_owned(),
            selected: path.selected,
            rtt_us: path.rtt.map(micros),
            loss_percent: path.loss.map(u32::from),
            mtu: path.mtu.into(),
            heard_age_ms: path.last_heard.map(|at| millis(self.now.saturating_duration_since(at))),
            last_error: self.failure(peer, path).unwrap_or_default(),
            next_try_ms: path.next_try.map(|at| millis(at.saturating_duration_since(self.now))),
        }
    }

    fn candidate(&self, peer: NodeId, candidate: Candidate) -> (&'static str, String) {
        match candidate {
            Candidate::Udp(address) => ("udp", address.to_string()),
            Candidate::Relay(relay) => {
                let kind = match self.hop_of(relay) {
                    Some(Hop::Link(link)) => link.carrier.as_str(),
                    Some(Hop::Udp(_)) | None => "relay",
                };
                (kind, self.name_of(relay))
            }
            Candidate::Link(link) => {
                let road = self.roads.find(peer, link.number);
                (link.carrier.as_str(), road.map(ToString::to_string).unwrap_or_default())
            }
            Candidate::Incoming(link) => (link.carrier.as_str(), self.book.name(link)),
        }
    }

    /// What was last wrong with a candidate: for a stream, in the words of whoever dialled.
    fn failure(&self, peer: NodeId, path: &PathStatus) -> Option<String> {
        let failure = path.failure?;
        let dialled = match (path.candidate, failure) {
            (Candidate::Link(link), PathFailure::LinkRefused | PathFailure::LinkClosed) => {
                self.book.failure(peer, link.number)
            }
            _ => None,
        };
        Some(dialled.unwrap_or_else(|| failure.to_string()))
    }

    /// One sentence: how a peer is reached, and what stands in the way of a better path.
    pub(super) fn verdict(&self, member: &Member) -> String {
        let name = &member.name;
        let Some(peer) = self.peers.get(&member.id).copied() else {
            return format!(
                "{name} is not reached: this node has no key for it yet, which a coordinator has to send"
            );
        };
        if peer.state != PeerState::Established || peer.endpoint.is_none() {
            return self.unreached(name, peer);
        }
        let route = self.route(peer);
        let Route { path, via, endpoint, .. } = &route;
        let reached = match (path.as_str(), via.as_str()) {
            ("direct", _) => {
                return format!("{name} is reached directly over UDP at {endpoint}; there is no better path");
            }
            ("relay", via) => format!("{name} is reached over UDP through the relay {via}"),
            ("websocket", "") => format!("{name} is reached over a WebSocket ({endpoint})"),
            ("websocket", via) => {
                format!("{name} is reached over a WebSocket to the relay {via} ({endpoint})")
            }
            (_, "") => format!("{name} is reached over SSH ({endpoint})"),
            (_, via) => format!("{name} is reached over SSH to the relay {via} ({endpoint})"),
        };
        if member.kind == MemberKind::Stock {
            return reached;
        }
        format!("{reached}; {}", self.why_not_direct(peer))
    }

    fn unreached(&self, name: &str, peer: &PeerStatus) -> String {
        if peer.paths.is_empty() && peer.endpoint.is_none() {
            return format!(
                "{name} is not reached: no address of it is known, and there is no relay in common"
            );
        }
        let doing = match peer.state {
            PeerState::Handshaking => "a handshake is under way",
            PeerState::Idle => {
                "nothing was sent to it lately, so there is no session; `meshctl ping` begins one"
            }
            PeerState::Established => "there is a session, and no path for it yet",
        };
        let worst = peer.paths.iter().find_map(|path| {
            let (kind, address) = self.candidate(peer.id, path.candidate);
            Some(format!("; {kind} {address}: {}", self.failure(peer.id, path)?))
        });
        format!("{name} is not reached: {doing}{}", worst.unwrap_or_default())
    }

    /// What stands between this node and a direct path.
    fn why_not_direct(&self, peer: &PeerStatus) -> String {
        let direct: Vec<_> =
            peer.paths.iter().filter(|path| matches!(path.candidate, Candidate::Udp(_))).collect();
        if direct.is_empty() {
            return "no address of it for a direct path is known".to_owned();
        }
        let address = |path: &PathStatus| self.candidate(peer.id, path.candidate).1;
        if let Some(path) = direct.iter().find(|path| path.state == PathState::Working) {
            return format!("directly at {} it answers too, and will be taken if it stays so", address(path));
        }
        let failed = direct.iter().find_map(|path| Some((path, path.failure?)));
        let next = direct.iter().filter_map(|path| path.next_try).min();
        let next = next.map_or_else(String::new, |at| {
            let wait = at.saturating_duration_since(self.now);
            format!(", tried again in {} s", (wait + Duration::from_millis(999)).as_secs())
        });
        let count = direct.len();
        let addresses = if count == 1 { "its address".to_owned() } else { format!("its {count} addresses") };
        match failed {
            Some((path, failure)) => {
                format!("no direct path works: {addresses} tried; {}: {failure}{next}", address(path))
            }
            None => format!("no direct path is known to work yet: {addresses} being tried{next}"),
        }
    }
}

/// What is known of the path in use.
pub(super) fn selected(peer: &PeerStatus) -> Option<&PathStatus> {
    peer.paths.iter().find(|path| path.selected)
}

/// The round trip of the path in use, or of the last ping.
pub(super) fn rtt_of(peer: &PeerStatus) -> Option<Duration> {
    selected(peer).and_then(|path| path.rtt).or(peer.rtt)
}

#[cfg(test)]
mod tests;
