//! A node of the virtual internet: the whole core, driven as a daemon would drive it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh_relay::{Limiter, Rates, Relay, Verdict};
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::handshake::Floors;
use ringmesh_tunnel::key::{NodeId, SecretKey};
use ringmesh_tunnel::message::MAX_OVERHEAD;
use ringmesh_tunnel::tunnel::DEFAULT_MTU;
use ringmesh_tunnel::{
    Dial, DropReason, Event, Handshaker, Hop, Inbound, Link, Now, Outbound, PeerConfig, PeerStatus, Random,
    Tunnel,
};

use crate::fault::{Fault, Faulty};
use crate::liar::{Liar, Lie};
use crate::rng::Rng;
use crate::world::{NodeIndex, pool};

const BUFFER_LEN: usize = DEFAULT_MTU as usize + MAX_OVERHEAD;
/// Datagrams sent after one input that are more than any honest node sends.
const MAX_SENT: usize = 2000;

/// What a node wants done.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) sent: Vec<(Hop, Vec<u8>)>,
    pub(crate) dials: Vec<Dial>,
}

/// What a machine's process is.
#[derive(Debug)]
enum Core {
    Node(Box<Tunnel>),
    Relay(Box<Relay>, Box<Limiter>),
}

/// One machine: its tunnel or relay, its handshaker, and what happened to it.
#[derive(Debug)]
pub struct Node {
    index: NodeIndex,
    core: Core,
    handshaker: Handshaker,
    peers: Vec<PeerConfig>,
    own_candidates: Vec<SocketAddr>,
    /// Datagrams that earlier lives passed on.
    passed_on: u64,
    /// Its addresses as others see it, by who told, IPv4 and IPv6 apart.
    seen_from: BTreeMap<(NodeId, bool), SocketAddr>,
    running: bool,
    /// How far its wall clock is from the world's: positive is ahead.
    pub(crate) wall_offset_ms: i64,
    /// What is wrong with it.
    faulty: Faulty,
    /// What it does with what it should pass on, if it is a relay.
    liar: Liar,
    /// What the core reported, with its time. A relay reports nothing.
    pub events: Vec<(Duration, Event)>,
}

impl Node {
    pub(crate) fn new(index: NodeIndex, relay: bool, seed: u64, now: Now) -> Self {
        let secret = secret(index);
        let (local, random) = (secret.public_key(), Random::seeded(seed));
        let core = if relay {
            let limiter = Limiter::new(Rates::default(), now.monotonic);
            Relay::new(0, local, random, now).map(|relay| Core::Relay(Box::new(relay), Box::new(limiter)))
        } else {
            Tunnel::new(0, local, random).map(|mut tunnel| {
                tunnel.set_pools(&[pool()]);
                tunnel.apply_filter(Arc::new(Filter::allow_all()), now);
                Core::Node(Box::new(tunnel))
            })
        };
        Self {
            index,
            core: core.expect("invariant: a seed always has random bytes"),
            handshaker: Handshaker::new(&secret, Random::seeded(!seed)),
            peers: Vec::new(),
            own_candidates: Vec::new(),
            passed_on: 0,
            seen_from: BTreeMap::new(),
            running: true,
            wall_offset_ms: 0,
            faulty: Faulty::new(Fault::None, now),
            liar: Liar::new(Rng::new(seed)),
            events: Vec::new(),
        }
    }

    /// Its core, to look at, unless it is a relay.
    #[must_use]
    pub const fn tunnel(&self) -> Option<&Tunnel> {
        match &self.core {
            Core::Node(tunnel) => Some(tunnel),
            Core::Relay(..) => None,
        }
    }

    fn tunnel_mut(&mut self) -> Option<&mut Tunnel> {
        match &mut self.core {
            Core::Node(tunnel) => Some(tunnel),
            Core::Relay(..) => None,
        }
    }

    /// Whether it is a relay.
    #[must_use]
    pub const fn is_relay(&self) -> bool {
        matches!(self.core, Core::Relay(..))
    }

    /// Where it reaches a client, if it is a relay.
    #[must_use]
    pub fn client_hop(&self, client: NodeIndex) -> Option<Hop> {
        let Core::Relay(relay, _) = &self.core else { return None };
        relay.clients().find(|report| report.id == client.id())?.hop
    }

    /// Datagrams that it passed on as a relay, in all its lives.
    #[must_use]
    pub fn passed_on(&self) -> u64 {
        let Core::Relay(relay, _) = &self.core else { return 0 };
        self.passed_on + relay.passed_on().datagrams
    }

    /// What it does wrong as a relay.
    #[must_use]
    pub const fn lie(&self) -> Option<Lie> {
        self.liar.lie()
    }

    /// What it did wrong with datagrams and names, as a relay that lies.
    #[must_use]
    pub const fn lies_told(&self) -> u64 {
        self.liar.told()
    }

    pub(crate) fn set_lie(&mut self, lie: Option<Lie>) {
        self.liar.set(lie);
    }

    /// Whether its process runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running
    }

    /// What the core says of a peer.
    #[must_use]
    pub fn peer(&self, peer: NodeIndex, now: Now) -> Option<PeerStatus> {
        let status = self.tunnel()?.peers(now).find(|status| status.id == peer.id())?;
        Some(self.faulty.status(status, &self.peers))
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
        self.tunnel().map_or(0, |tunnel| tunnel.drops().get(reason))
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
        let passed_on = self.passed_on();
        let old = std::mem::replace(self, Self::new(self.index, self.is_relay(), seed, now));
        self.wall_offset_ms = old.wall_offset_ms;
        self.faulty = old.faulty;
        self.liar = old.liar;
        self.liar.forget();
        self.events = old.events;
        self.passed_on = passed_on;
        self.handshaker.restore(floors);
        self.set_own_candidates(old.own_candidates);
        self.apply(old.peers, now);
    }

    pub(crate) fn apply(&mut self, peers: Vec<PeerConfig>, now: Now) {
        match &mut self.core {
            Core::Node(tunnel) => tunnel.apply(&self.faulty.taken(&peers), now),
            Core::Relay(relay, limiter) => {
                relay.apply(&self.liar.members(&peers), limiter, now);
            }
        }
        self.handshaker.apply(&peers);
        self.peers = peers;
    }

    pub(crate) fn set_own_candidates(&mut self, candidates: Vec<SocketAddr>) {
        if let Some(tunnel) = self.tunnel_mut() {
            tunnel.set_own_candidates(&candidates);
        }
        self.own_candidates = candidates;
    }

    /// Builds a fault into it, for the rest of its life and those after.
    pub(crate) fn set_fault(&mut self, fault: Fault, now: Now) {
        self.faulty = Faulty::new(fault, now);
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
        if let Some(tunnel) = self.tunnel_mut() {
            tunnel.network_changed(now);
        }
    }

    pub(crate) fn outbound(&mut self, packet: &[u8], now: Now, output: &mut Output) {
        let mut buffer = [0; BUFFER_LEN];
        let sealed = self.tunnel_mut().map(|tunnel| tunnel.outbound(packet, &mut buffer, now));
        if let Some(Ok(Outbound::Send { len, to, .. })) = sealed {
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
        match &mut self.core {
            Core::Relay(relay, limiter) => {
                if let Ok(Verdict::Forward { to, .. }) = relay.handle_datagram(&mut bytes, from, limiter, now)
                {
                    let ends = [from, to].map(|hop| client_at(relay, hop));
                    self.liar.pass_on(ends, (from, to), bytes, &mut output.sent);
                }
                None
            }
            Core::Node(_) if self.faulty.ignores(from, &self.peers) => None,
            Core::Node(tunnel) => {
                let sealed = self.faulty.sealed(&bytes);
                match tunnel.inbound(&mut bytes, from, now) {
                    Ok(Inbound::Packet { range, peer }) => {
                        let (packet, sender) = (bytes[range].to_vec(), NodeIndex::from_id(peer));
                        if let Some(sealed) = sealed {
                            self.faulty.opened(sealed, packet.clone(), sender);
                        }
                        Some((packet, sender))
                    }
                    Err(DropReason::Replayed) => self.faulty.opened_before(&sealed?),
                    Ok(Inbound::Consumed) | Err(_) => None,
                }
            }
        }
    }

    pub(crate) fn ping(&mut self, peer: NodeIndex, token: u64, now: Now) -> bool {
        self.tunnel_mut().is_some_and(|tunnel| tunnel.ping(peer.id(), token, now).is_ok())
    }

    pub(crate) fn link_opened(&mut self, peer: NodeId, candidate: u32, link: Link, now: Now) {
        if let Some(tunnel) = self.tunnel_mut() {
            tunnel.link_opened(peer, candidate, link, now);
        }
    }

    pub(crate) fn link_failed(&mut self, peer: NodeId, candidate: u32, now: Now) {
        if let Some(tunnel) = self.tunnel_mut() {
            tunnel.link_failed(peer, candidate, now);
        }
    }

    pub(crate) fn link_closed(&mut self, link: Link, now: Now) {
        match &mut self.core {
            Core::Node(tunnel) => tunnel.link_closed(link, now),
            Core::Relay(relay, _) => relay.link_closed(link, now),
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let works = self.running && self.faulty.fault != Fault::NeverRetries;
        let deadline = match &self.core {
            Core::Node(tunnel) if self.faulty.fault == Fault::NeverRests => {
                tunnel.poll_deadline().into_iter().chain([self.faulty.next_ask]).min()
            }
            Core::Node(tunnel) => tunnel.poll_deadline(),
            Core::Relay(relay, _) => Some(relay.poll_deadline()),
        };
        deadline.filter(|_| works)
    }

    /// Does what is due and all that follows. Tells whether others may see it from another address now.
    pub(crate) fn work(&mut self, now: Now, at: Duration, output: &mut Output) -> bool {
        let due = self.next_deadline().is_some_and(|deadline| deadline <= now.monotonic);
        let mut seen_elsewhere = false;
        let mut buffer = [0; BUFFER_LEN];
        match &mut self.core {
            Core::Node(tunnel) => {
                if due {
                    tunnel.handle_deadline(now);
                }
                self.faulty.err(tunnel, &self.peers, now);
                while let Some(job) = tunnel.poll_job() {
                    let done = self.handshaker.run(job, 0, now);
                    tunnel.handle_job(done, now);
                }
                while let Some(transmit) = tunnel.poll_transmit(&mut buffer, now) {
                    output.sent.push((transmit.to, buffer[..transmit.len].to_vec()));
                    assert!(output.sent.len() < MAX_SENT, "{:?} sends without end at {at:?}", self.index);
                }
                // Sending may have begun a handshake: its job is for the next turn.
                while let Some(job) = tunnel.poll_job() {
                    let done = self.handshaker.run(job, 0, now);
                    tunnel.handle_job(done, now);
                    while let Some(transmit) = tunnel.poll_transmit(&mut buffer, now) {
                        output.sent.push((transmit.to, buffer[..transmit.len].to_vec()));
                    }
                }
                let fault = self.faulty.fault;
                let dials = std::iter::from_fn(|| tunnel.poll_dial());
                output.dials.extend(dials.filter(|_| fault != Fault::NeverDials));
                while let Some(event) = tunnel.poll_event() {
                    if let Event::SeenFrom { peer, address } = event {
                        let before = self.seen_from.insert((peer, address.is_ipv4()), address);
                        seen_elsewhere |= before != Some(address);
                    }
                    let event = self.faulty.told(event, tunnel, &self.peers);
                    self.events.push((at, event));
                }
            }
            Core::Relay(relay, _) => {
                if due {
                    relay.handle_deadline(now);
                }
                loop {
                    let mut idle = true;
                    while let Some(job) = relay.poll_job() {
                        let done = self.handshaker.run(job, 0, now);
                        relay.handle_job(done, now);
                        idle = false;
                    }
                    while let Some(transmit) = relay.poll_transmit(&mut buffer, now) {
                        output.sent.push((transmit.to, buffer[..transmit.len].to_vec()));
                        assert!(output.sent.len() < MAX_SENT, "{:?} sends without end at {at:?}", self.index);
                        idle = false;
                    }
                    if idle {
                        break;
                    }
                }
                let closed = std::iter::from_fn(|| relay.poll_close());
                output.dials.extend(closed.map(|link| Dial::Close { link }));
                while relay.poll_event().is_some() {}
            }
        }
        self.faulty.repeat(&mut output.sent);
        seen_elsewhere
    }
}

/// The client that a relay hears from there.
fn client_at(relay: &Relay, hop: Hop) -> Option<NodeIndex> {
    let client = relay.clients().find(|client| client.hop == Some(hop))?;
    NodeIndex::from_id(client.id)
}

/// Each node has the key of its number, in every world.
pub(crate) fn secret(index: NodeIndex) -> SecretKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(index.id().as_bytes());
    SecretKey::from_bytes(bytes)
}
