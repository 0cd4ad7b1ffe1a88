//! A node of the virtual internet: the whole core, driven as a daemon would drive it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_tunnel::handshake::Floors;
use ringmesh_tunnel::key::{NodeId, SecretKey};
use ringmesh_tunnel::message::MAX_OVERHEAD;
use ringmesh_tunnel::tunnel::DEFAULT_MTU;
use ringmesh_tunnel::{
    Dial, DropReason, Event, Handshaker, Hop, Inbound, Link, Now, Outbound, PeerConfig, PeerStatus, Random,
    Tunnel, relayed,
};

use crate::relay::Channels;
use crate::world::{NodeIndex, pool};

const BUFFER_LEN: usize = DEFAULT_MTU as usize + MAX_OVERHEAD;
/// Turns of work after one input that are more than any honest node takes.
const MAX_TURNS: u32 = 1000;

/// What a node wants done.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) sent: Vec<(Hop, Vec<u8>)>,
    pub(crate) dials: Vec<Dial>,
}

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
}

/// One machine: its tunnel and handshaker, and what happened to it.
#[derive(Debug)]
pub struct Node {
    index: NodeIndex,
    tunnel: Tunnel,
    handshaker: Handshaker,
    peers: Vec<PeerConfig>,
    own_candidates: Vec<SocketAddr>,
    channels: Option<Channels>,
    /// Its addresses as others see it, by who told, IPv4 and IPv6 apart.
    seen_from: BTreeMap<(NodeId, bool), SocketAddr>,
    running: bool,
    /// How far its wall clock is from the world's: positive is ahead.
    pub(crate) wall_offset_ms: i64,
    /// What is wrong with it.
    pub fault: Fault,
    /// What the core reported, with its time.
    pub events: Vec<(Duration, Event)>,
}

impl Node {
    pub(crate) fn new(index: NodeIndex, relay: bool, seed: u64) -> Self {
        let secret = secret(index);
        let tunnel = Tunnel::new(0, secret.public_key(), Random::seeded(seed));
        let mut tunnel = tunnel.expect("invariant: a seed always has random bytes");
        tunnel.set_pools(&[pool()]);
        Self {
            index,
            tunnel,
            handshaker: Handshaker::new(&secret, Random::seeded(!seed)),
            peers: Vec::new(),
            own_candidates: Vec::new(),
            channels: relay.then(Channels::default),
            seen_from: BTreeMap::new(),
            running: true,
            wall_offset_ms: 0,
            fault: Fault::None,
            events: Vec::new(),
        }
    }

    /// Its core, to look at.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Whether it is a relay.
    #[must_use]
    pub const fn is_relay(&self) -> bool {
        self.channels.is_some()
    }

    /// Datagrams that it passed on as a relay, in all its lives.
    #[must_use]
    pub fn passed_on(&self) -> u64 {
        self.channels.as_ref().map_or(0, |channels| channels.passed_on)
    }

    /// Whether its process runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// What the core says of a peer.
    #[must_use]
    pub fn peer(&self, peer: NodeIndex, now: Now) -> Option<PeerStatus> {
        self.tunnel.peers(now).find(|status| status.id == peer.id())
    }

    /// Sessions that came up, as initiator and as responder.
    #[must_use]
    pub fn sessions(&self) -> (usize, usize) {
        let with = |began: bool| {
            let is =
                |event: &Event| matches!(event, Event::Established { initiator, .. } if *initiator == began);
            self.events.iter().filter(|(_, event)| is(event)).count()
        };
        (with(true), with(false))
    }

    /// When sessions with `peer` came up.
    pub fn sessions_with(&self, peer: NodeIndex) -> impl Iterator<Item = Duration> + '_ {
        let id = peer.id();
        let is = move |event: &Event| matches!(event, Event::Established { peer, .. } if *peer == id);
        self.events.iter().filter(move |(_, event)| is(event)).map(|(at, _)| *at)
    }

    /// How often it dropped something for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.tunnel.drops().get(reason)
    }

    /// Its addresses as others told it.
    pub(crate) fn reflexive(&self) -> Vec<SocketAddr> {
        self.seen_from.values().copied().collect()
    }

    pub(crate) fn stop(&mut self) {
        self.running = false;
    }

    /// Begins anew with its key, its peers and what a daemon writes to disk.
    pub(crate) fn restart(&mut self, seed: u64, now: Now) {
        let floors = Floors::parse(&self.handshaker.floors().emit()).expect("invariant: floors read back");
        let old = std::mem::replace(self, Self::new(self.index, self.channels.is_some(), seed));
        self.wall_offset_ms = old.wall_offset_ms;
        self.fault = old.fault;
        self.events = old.events;
        if let (Some(channels), Some(old)) = (&mut self.channels, &old.channels) {
            channels.passed_on = old.passed_on;
        }
        self.handshaker.restore(floors);
        self.set_own_candidates(old.own_candidates);
        self.apply(old.peers, now);
    }

    pub(crate) fn apply(&mut self, peers: Vec<PeerConfig>, now: Now) {
        self.tunnel.apply(&peers, now);
        self.handshaker.apply(&peers);
        self.peers = peers;
    }

    pub(crate) fn set_own_candidates(&mut self, candidates: Vec<SocketAddr>) {
        self.tunnel.set_own_candidates(&candidates);
        self.own_candidates = candidates;
    }

    /// Tells peers that it may be reached at this address, which is not its own.
    pub fn claim(&mut self, address: SocketAddr) {
        let others = self.own_candidates.iter().copied();
        self.set_own_candidates(others.chain([address]).collect());
    }

    /// The machine's addresses changed, and its daemon heard of it.
    pub(crate) fn network_changed(&mut self, candidates: Vec<SocketAddr>, now: Now) {
        self.seen_from.clear();
        self.set_own_candidates(candidates);
        self.tunnel.network_changed(now);
    }

    pub(crate) fn outbound(&mut self, packet: &[u8], now: Now, output: &mut Output) {
        let mut buffer = [0; BUFFER_LEN];
        if let Ok(Outbound::Send { len, to }) = self.tunnel.outbound(packet, &mut buffer, now) {
            output.sent.push((to, buffer[..len].to_vec()));
        }
    }

    /// Takes a datagram; returns the packet that was in it and whose it is.
    pub(crate) fn inbound(
        &mut self,
        mut bytes: Vec<u8>,
        from: Hop,
        now: Now,
        output: &mut Output,
    ) -> Option<(Vec<u8>, Option<NodeIndex>)> {
        if let Some(channels) = &mut self.channels
            && relayed::parse(&bytes).is_some()
        {
            let to = channels.pass_on(&self.tunnel, &mut bytes, from);
            output.sent.extend(to.map(|to| (to, bytes)));
            return None;
        }
        match self.tunnel.inbound(&mut bytes, from, now) {
            Ok(Inbound::Packet { range, peer }) => Some((bytes[range].to_vec(), NodeIndex::from_id(peer))),
            Ok(Inbound::Consumed) | Err(_) => None,
        }
    }

    pub(crate) fn ping(&mut self, peer: NodeIndex, token: u64, now: Now) -> bool {
        self.tunnel.ping(peer.id(), token, now).is_ok()
    }

    pub(crate) fn link_opened(&mut self, peer: NodeId, candidate: u32, link: Link, now: Now) {
        self.tunnel.link_opened(peer, candidate, link, now);
    }

    pub(crate) fn link_failed(&mut self, peer: NodeId, candidate: u32, now: Now) {
        self.tunnel.link_failed(peer, candidate, now);
    }

    pub(crate) fn link_closed(&mut self, link: Link, now: Now) {
        self.tunnel.link_closed(link, now);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let works = self.running && self.fault != Fault::NeverRetries;
        self.tunnel.poll_deadline().filter(|_| works)
    }

    /// Does what is due and all that follows. Tells whether others may see it from another address now.
    pub(crate) fn work(&mut self, now: Now, at: Duration, output: &mut Output) -> bool {
        if self.next_deadline().is_some_and(|deadline| deadline <= now.monotonic) {
            self.tunnel.handle_deadline(now);
        }
        let mut seen_elsewhere = false;
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "{:?} works without end at {at:?}", self.index);
            let mut idle = true;
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, 0, now);
                self.tunnel.handle_job(done, now);
                idle = false;
            }
            while let Some(event) = self.tunnel.poll_event() {
                seen_elsewhere |= self.react(event);
                self.events.push((at, event));
                idle = false;
            }
            let mut buffer = [0; BUFFER_LEN];
            while let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, now) {
                output.sent.push((transmit.to, buffer[..transmit.len].to_vec()));
                idle = false;
            }
            let dials = std::iter::from_fn(|| self.tunnel.poll_dial());
            output.dials.extend(dials.filter(|_| self.fault != Fault::NeverDials));
            if idle {
                break;
            }
        }
        seen_elsewhere
    }

    fn react(&mut self, event: Event) -> bool {
        match event {
            Event::SeenFrom { peer, address } => {
                self.seen_from.insert((peer, address.is_ipv4()), address) != Some(address)
            }
            Event::BindRequested { client, target } => {
                let members: Vec<NodeId> = self.peers.iter().map(|peer| peer.id).collect();
                if let Some(channels) = &mut self.channels {
                    channels.bind(&mut self.tunnel, client, target, &members);
                }
                false
            }
            Event::Established { .. } | Event::Unreachable { .. } | Event::Expired { .. } => {
                if let Some(channels) = &mut self.channels {
                    channels.tell_changes(&mut self.tunnel);
                }
                false
            }
            Event::PathSelected { .. } | Event::Pong { .. } => false,
        }
    }
}

/// Each node has the key of its number, in every world.
pub(crate) fn secret(index: NodeIndex) -> SecretKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(index.id().as_bytes());
    SecretKey::from_bytes(bytes)
}
