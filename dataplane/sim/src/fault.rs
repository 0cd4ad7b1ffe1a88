//! Faults built into nodes, to show that the checks find them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_tunnel::message::INITIATION_LEN;
use ringmesh_tunnel::{Event, Hop, Now, Path, PeerConfig, PeerStatus, Tunnel, relayed};

use crate::world::NodeIndex;

/// A fault built into a node, to show that the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fault {
    /// It is sound.
    #[default]
    None,
    /// What its timers ask for is not done: nothing is tried twice.
    NeverRetries,
    /// Its streams are never opened.
    NeverDials,
    /// When packets to a node take another path, all its sessions are replaced.
    RenewsSessions,
    /// A datagram that comes twice is delivered twice: its replay window is off.
    ForgetsCounters,
    /// Its routes are mixed up: what is for one node is sealed for another.
    Misroutes,
    /// It asks all that it knows for a sign of life every ten seconds, though nobody talks to them.
    NeverRests,
    /// It says of paths through relays and streams that they are direct.
    ClaimsDirect,
    /// It hears nothing over UDP but its relays.
    ShunsDirect,
    /// It sends everything by UDP eight times over.
    Floods,
}

impl Fault {
    /// Whether, in a life with this fault, the node has it. Where everybody's routes are mixed up nobody takes anything, and
    /// where nobody rests there is too much of it all.
    pub(crate) fn befalls(self, node: NodeIndex) -> bool {
        !matches!(self, Self::Misroutes | Self::NeverRests) || node.number() == 0
    }
}

/// How often a node that never rests asks.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How often a node that floods sends the same again.
const AGAIN: usize = 7;
/// Packets that a node with a faulty replay window can deliver again.
const MAX_KEPT: usize = 256;

/// What a faulty node remembers for its fault's sake.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) fault: Fault,
    /// What was opened lately, as it came.
    opened: VecDeque<(Vec<u8>, Vec<u8>, Option<NodeIndex>)>,
    pub(crate) next_ask: Instant,
}

impl Faulty {
    pub(crate) const fn new(fault: Fault, now: Now) -> Self {
        Self { fault, opened: VecDeque::new(), next_ask: now.monotonic }
    }

    /// What was sealed, to know it again: a relay's header is not part of it. None for a node that has no use for it.
    pub(crate) fn sealed(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let from = if relayed::parse(datagram).is_some() { relayed::HEADER_LEN } else { 0 };
        (self.fault == Fault::ForgetsCounters).then(|| datagram[from..].to_vec())
    }

    pub(crate) fn opened(&mut self, sealed: Vec<u8>, packet: Vec<u8>, sender: Option<NodeIndex>) {
        if self.opened.len() == MAX_KEPT {
            self.opened.pop_front();
        }
        self.opened.push_back((sealed, packet, sender));
    }

    /// The packet of a datagram that was opened before.
    pub(crate) fn opened_before(&self, sealed: &[u8]) -> Option<(Vec<u8>, Option<NodeIndex>)> {
        let known = self.opened.iter().find(|(known, ..)| known == sealed);
        known.map(|(_, packet, sender)| (packet.clone(), *sender))
    }

    /// Whether the node does not listen to what comes from there.
    pub(crate) fn ignores(&self, from: Hop, peers: &[PeerConfig]) -> bool {
        let Hop::Udp(address) = from else { return false };
        let relays = || peers.iter().filter(|peer| peer.relay);
        self.fault == Fault::ShunsDirect && !relays().any(|relay| relay.candidates.contains(&address))
    }

    /// The peers as the node takes them from the map.
    pub(crate) fn taken(&self, peers: &[PeerConfig]) -> Vec<PeerConfig> {
        let mut taken = peers.to_vec();
        if self.fault == Fault::Misroutes {
            let nodes: Vec<usize> = (0..taken.len()).filter(|&at| !taken[at].relay).collect();
            for (&at, &next) in nodes.iter().zip(nodes.iter().cycle().skip(1)) {
                taken[at].allowed_ips.clone_from(&peers[next].allowed_ips);
            }
        }
        taken
    }

    /// Does what only a node with this fault does.
    pub(crate) fn err(&mut self, tunnel: &mut Tunnel, peers: &[PeerConfig], now: Now) {
        if self.fault == Fault::NeverRests && self.next_ask <= now.monotonic {
            self.next_ask = now.later(ASK_EVERY).monotonic;
            for peer in peers.iter().filter(|peer| !peer.relay) {
                // Who has no path yet is asked the next time.
                let _ = tunnel.ping(peer.id, u64::MAX, now);
            }
        }
    }

    /// An event as the node tells it, and what it does then.
    pub(crate) fn told(&self, event: Event, tunnel: &mut Tunnel, peers: &[PeerConfig]) -> Event {
        let Event::PathSelected { peer, path } = event else { return event };
        if self.fault == Fault::RenewsSessions {
            tunnel.expire_sessions();
        }
        Event::PathSelected { peer, path: self.claimed(peer_named(peers, peer), path) }
    }

    /// What the node says of a peer.
    pub(crate) fn status(&self, mut status: PeerStatus, peers: &[PeerConfig]) -> PeerStatus {
        status.endpoint = status.endpoint.map(|path| self.claimed(peer_named(peers, status.id), path));
        status
    }

    fn claimed(&self, peer: Option<&PeerConfig>, path: Path) -> Path {
        let address: Option<SocketAddr> = peer.and_then(|peer| peer.candidates.first().copied());
        match address.filter(|_| self.fault == Fault::ClaimsDirect) {
            Some(address) => Path::Udp(address),
            None => path,
        }
    }

    /// Repeats what it should not.
    pub(crate) fn repeat(&self, sent: &mut Vec<(Hop, Vec<u8>)>) {
        if self.fault == Fault::Floods {
            // Initiations have a limit of their own, WireGuard's.
            let once = sent
                .iter()
                .filter(|(to, datagram)| matches!(to, Hop::Udp(_)) && datagram.len() != INITIATION_LEN);
            let again: Vec<_> = once.flat_map(|one| std::iter::repeat_n(one.clone(), AGAIN)).collect();
            sent.extend(again);
        }
    }
}

fn peer_named(peers: &[PeerConfig], id: ringmesh_tunnel::key::NodeId) -> Option<&PeerConfig> {
    peers.iter().find(|peer| peer.id == id && !peer.relay)
}
