//! [`Tunnel`]: one worker's peers, sessions and timers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_aead::{Cipher, Kernel, Key};

use crate::allowed_ips::AllowedIps;
use crate::counts::{Carried, HandshakeCounts};
use crate::drop_reason::{DropCounters, DropReason};
use crate::establish::Begin;
use crate::filter::{Direction, Gate};
use crate::handshake::mac::Stamp;
use crate::handshake::{Job, JobDone, Outcome};
use crate::index::{IndexTable, MAX_WORKERS};
use crate::ip::Prefix;
use crate::key::{NodeId, PublicKey};
use crate::notice::Notice;
use crate::path::budget::Budgets;
use crate::path::set::{Action, MAX_RELAYS};
use crate::path::{Link, Path};
use crate::peer::{MAX_HELD_PACKETS, MAX_NOTICES, PeerConfig, PeerStatus, PingError, QueuedNotice};
use crate::peers::Peers;
pub(crate) use crate::peers::Slot;
use crate::random::{NoRandomness, Random};
use crate::reach::Dial;
use crate::schedule::Schedule;
use crate::session::Session;
use crate::time::Now;
use crate::timers::Due;
use crate::transmit::ControlMessage;

/// The inner MTU that padding respects until it is set: fits IPv6, UDP and a relay's header in 1500.
pub const DEFAULT_MTU: u16 = 1408;
/// Jobs waiting to be taken to the handshaker.
pub const MAX_OUTGOING_JOBS: usize = 1024;
/// Events waiting to be taken; the oldest is dropped for the next.
pub const MAX_WAITING_EVENTS: usize = 4096;
/// A peer that used the current session this lately is content with it. Less than the time for which a response may stay
/// unconfirmed, so that what was under way when a peer forgot the session does not count.
const CONTENT_FOR: Duration = Duration::from_secs(4);
/// Looks at one peer's timers in one call, on average at most.
const LOOKS_AT_ONCE: usize = 8;
/// Empty buffers kept for held packets.
const MAX_SPARE_BUFFERS: usize = MAX_HELD_PACKETS;

/// Something that a user, a log or a metric wants to hear about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is a new session, and both sides are known to have it.
    Established {
        /// With whom.
        peer: NodeId,
        /// Whether we began the handshake.
        initiator: bool,
    },
    /// Nobody answered for 90 s; what was held is dropped. The next packet begins anew.
    Unreachable {
        /// Who did not answer.
        peer: NodeId,
    },
    /// Nothing new was agreed for 540 s, and all keys were erased.
    Expired {
        /// With whom.
        peer: NodeId,
    },
    /// Sealed packets take another path from now on.
    PathSelected {
        /// To whom.
        peer: NodeId,
        /// The new path.
        path: Path,
    },
    /// A ping was answered.
    Pong {
        /// By whom.
        peer: NodeId,
        /// The token that the ping was given.
        token: u64,
        /// The path by which the answer came.
        path: Path,
        /// From the ping's sealing to its answer.
        rtt: Duration,
    },
    /// A peer sees our datagrams come from this address: a candidate for others to reach us at. Told when it changes.
    SeenFrom {
        /// Who sees them.
        peer: NodeId,
        /// Our address as seen from there.
        address: SocketAddr,
    },
    /// A peer asks us, as a relay, for a channel to another: answer with [`Tunnel::answer_bind`].
    BindRequested {
        /// Who asks.
        client: NodeId,
        /// Whom it wants to reach.
        target: NodeId,
    },
}

/// The protocol state of one worker: its peers, their sessions, and when each needs attention.
///
/// Input: [`route`](Self::route), [`seal_run`](Self::seal_run), [`inbound_run`](Self::inbound_run) (one packet at a time:
/// [`outbound`](Self::outbound), [`inbound`](Self::inbound)), [`handle_job`](Self::handle_job),
/// [`handle_deadline`](Self::handle_deadline), [`apply`](Self::apply), [`apply_filter`](Self::apply_filter) and
/// [`ping`](Self::ping). After any of them take
/// the output, until there is none: [`poll_transmit`](Self::poll_transmit), [`poll_job`](Self::poll_job),
/// [`poll_event`](Self::poll_event); then wait no longer than until [`poll_deadline`](Self::poll_deadline).
pub struct Tunnel<C: Cipher = Key> {
    pub(crate) worker: u8,
    pub(crate) local: PublicKey,
    /// What messages to us are stamped with.
    pub(crate) stamp: Stamp,
    pub(crate) random: Random,
    pub(crate) mtu: usize,
    /// What sessions seal and open with.
    pub(crate) kernel: Kernel,
    pub(crate) peers: Peers<C>,
    pub(crate) allowed_ips: AllowedIps<Slot>,
    prefixes: BTreeMap<Prefix, Slot>,
    /// Says which packets pass.
    pub(crate) gate: Gate,
    pub(crate) indices: IndexTable<Slot>,
    schedule: Schedule,
    pub(crate) messages: VecDeque<ControlMessage>,
    /// Peers that may have something to send, each once.
    pub(crate) listed: VecDeque<Slot>,
    jobs: VecDeque<Job>,
    events: VecDeque<Event>,
    pub(crate) dials: VecDeque<Dial>,
    /// Copies of datagrams whose path is in doubt, and the path they take.
    pub(crate) twins: VecDeque<(Path, Vec<u8>)>,
    /// Where relays see us: one address each, and one of IPv6.
    pub(crate) reflexive: BTreeMap<(Slot, bool), SocketAddr>,
    /// Where else we may be reached.
    pub(crate) own_candidates: Vec<SocketAddr>,
    /// The network's own ranges.
    pub(crate) pools: Vec<Prefix>,
    /// What went to addresses that never answered.
    pub(crate) budgets: Budgets,
    /// Room for what the path engine asks for, kept from one time to the next.
    pub(crate) actions: Vec<Action>,
    /// The peers that relay for us.
    pub(crate) relays: Vec<Slot>,
    pub(crate) drops: DropCounters,
    pub(crate) carried: Carried,
    pub(crate) handshakes: HandshakeCounts,
    pub(crate) spare_buffers: Vec<Vec<u8>>,
    pub(crate) last_handshake_id: u64,
}

impl Tunnel<Key> {
    /// A tunnel without peers that lets no packet pass, for worker number `worker` (0 to 63) of a node with public key `local`.
    /// Its sessions use the portable kernel; [`with_cipher`](Self::with_cipher) takes another one.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes to give.
    ///
    /// # Panics
    ///
    /// If `worker` is 64 or more.
    pub fn new(worker: u8, local: PublicKey, random: Random) -> Result<Self, NoRandomness> {
        Self::with_cipher(worker, local, random, Kernel::Portable)
    }
}

impl<C: Cipher> Tunnel<C> {
    /// The same as [`Tunnel::new`], with sessions that seal and open with `kernel`.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes to give.
    ///
    /// # Panics
    ///
    /// If `worker` is 64 or more.
    pub fn with_cipher(
        worker: u8,
        local: PublicKey,
        mut random: Random,
        kernel: Kernel,
    ) -> Result<Self, NoRandomness> {
        assert!(worker < MAX_WORKERS, "a session index has room for {MAX_WORKERS} workers");
        Ok(Self {
            worker,
            local,
            stamp: Stamp::of(&local),
            indices: IndexTable::new(worker, random.bytes()?),
            gate: Gate::new(&mut random)?,
            random,
            mtu: DEFAULT_MTU.into(),
            kernel,
            peers: Peers::default(),
            allowed_ips: AllowedIps::default(),
            prefixes: BTreeMap::new(),
            schedule: Schedule::default(),
            messages: VecDeque::new(),
            listed: VecDeque::new(),
            jobs: VecDeque::new(),
            events: VecDeque::new(),
            dials: VecDeque::new(),
            twins: VecDeque::new(),
            reflexive: BTreeMap::new(),
            own_candidates: Vec::new(),
            pools: Vec::new(),
            budgets: Budgets::default(),
            actions: Vec::new(),
            relays: Vec::new(),
            drops: DropCounters::default(),
            carried: Carried::default(),
            handshakes: HandshakeCounts::default(),
            spare_buffers: Vec::new(),
            last_handshake_id: 0,
        })
    }

    /// Tells the interface's MTU, beyond which no packet is padded.
    pub fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu.into();
    }

    /// Takes the list of this worker's peers. Peers that stay keep their sessions, whatever else about them changed; peers
    /// that are gone, or have another key, lose theirs at once.
    ///
    /// A prefix that two peers claim belongs to the later one in the list.
    pub fn apply(&mut self, peers: &[PeerConfig], now: Now) {
        let wanted: BTreeMap<PublicKey, &PeerConfig> =
            peers.iter().filter(|peer| peer.key != self.local).map(|peer| (peer.key, peer)).collect();
        let gone: Vec<Slot> = self
            .peers
            .iter()
            .filter(|(_, peer)| wanted.get(&peer.key).is_none_or(|config| config.id != peer.id))
            .map(|(slot, _)| slot)
            .collect();
        gone.into_iter().for_each(|slot| self.remove(slot));

        let is_relay = |config: &&&PeerConfig| config.relay && config.mesh;
        let relays: Vec<NodeId> =
            wanted.values().filter(is_relay).map(|config| config.id).take(MAX_RELAYS).collect();
        for config in wanted.values() {
            let slot = self.peers.find_or_insert(config);
            self.schedule.grow(self.peers.capacity());
            let unwanted = match self.peers.get_mut(slot) {
                Some(peer) => peer.configure(config, &relays, now.monotonic),
                None => Vec::new(),
            };
            unwanted.into_iter().for_each(|link| self.push_dial(Dial::Close { link }));
            self.reschedule(slot);
        }
        self.relays = relays.iter().filter_map(|&id| self.peers.by_id(id)).collect();
        self.reflexive.retain(|(slot, _), _| self.relays.contains(slot));
        self.route_prefixes(peers);
    }

    /// Brings the routes in line with the list, touching only those that changed.
    fn route_prefixes(&mut self, peers: &[PeerConfig]) {
        let mut wanted = BTreeMap::new();
        for peer in peers {
            let Some(slot) = self.peers.by_key(&peer.key) else { continue };
            wanted.extend(peer.allowed_ips.iter().map(|&prefix| (prefix, slot)));
        }
        for prefix in self.prefixes.keys().filter(|prefix| !wanted.contains_key(prefix)) {
            self.allowed_ips.remove(*prefix);
        }
        for (&prefix, &slot) in &wanted {
            if self.prefixes.get(&prefix) != Some(&slot) {
                self.allowed_ips.insert(prefix, slot);
            }
        }
        self.prefixes = wanted;
    }

    fn remove(&mut self, slot: Slot) {
        let links: Vec<Link> =
            self.peers.get(slot).map(|peer| peer.paths.links().collect()).unwrap_or_default();
        links.into_iter().for_each(|link| self.push_dial(Dial::Close { link }));
        self.relays.retain(|&relay| relay != slot);
        self.end_sessions(slot);
        self.end_handshake(slot);
        self.drop_held(slot, DropReason::PeerRemoved);
        self.schedule.cancel(slot);
        self.listed.retain(|&listed| listed != slot);
        self.prefixes.retain(|&prefix, owner| {
            if *owner == slot {
                self.allowed_ips.remove(prefix);
            }
            *owner != slot
        });
        self.peers.remove(slot);
    }

    /// Ends all sessions at once, so that no key outlives a suspend or is used twice after a copy of the machine (W8, W9).
    pub fn expire_sessions(&mut self) {
        let slots: Vec<Slot> = self.peers.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.end_sessions(slot);
            self.end_handshake(slot);
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.timers.clear();
            }
        }
    }

    /// Asks a peer for a sign of life, which arrives as [`Event::Pong`] with this token. Begins a handshake if need be.
    ///
    /// # Errors
    ///
    /// If there is no such peer, it is a stock device, no address of it is known, or 16 pings are waiting already.
    pub fn ping(&mut self, peer: NodeId, token: u64, now: Now) -> Result<(), PingError> {
        let slot = self.peers.by_id(peer).ok_or(PingError::UnknownPeer)?;
        let peer = self.peers.get_mut(slot).ok_or(PingError::UnknownPeer)?;
        if !peer.mesh {
            return Err(PingError::StockPeer);
        }
        if !peer.has_path() {
            return Err(PingError::NoPath);
        }
        if peer.notices.len() >= MAX_NOTICES {
            return Err(PingError::TooMany);
        }
        peer.notices.push_back(QueuedNotice {
            notice: Notice::EchoRequest { token, selected: true, streamed: false },
            path: None,
        });
        self.touch(slot, now.monotonic);
        self.flush_or_begin(slot, now);
        Ok(())
    }

    /// Takes the result of a job.
    pub fn handle_job(&mut self, done: JobDone, now: Now) {
        if let (Outcome::Dropped(_) | Outcome::CookieReply { .. }, Some(role)) = (&done.outcome, done.role) {
            self.handshakes.refused(role);
        }
        let handled = match done.outcome {
            Outcome::Initiated { peer, id, noise } => self.initiated(peer, id, &noise, now),
            Outcome::Responded { peer, from, sender, noise, keys } => {
                self.responded(peer, from, sender, &noise, &keys, now)
            }
            Outcome::Finished { peer, id, from, sender, keys } => {
                self.finished(peer, id, from, sender, &keys, now)
            }
            Outcome::CookieReply { to, message } => {
                self.push_message(&message, to);
                Err(DropReason::CookieRequired)
            }
            Outcome::Dropped(reason) => Err(reason),
            Outcome::Abandoned => Ok(()),
        };
        if let Err(reason) = handled {
            self.drops.add(Direction::In, reason, 1);
        }
    }

    /// Something waits to be sent to a peer: it goes now, or a handshake is begun for it.
    fn flush_or_begin(&mut self, slot: Slot, now: Now) {
        let Some(peer) = self.peers.get(slot) else { return };
        let ready = peer.paths.selected().is_some()
            && peer.sessions.current().is_some_and(|session| session.can_seal(now.monotonic));
        if ready || peer.lacks_only_a_path(now.monotonic) {
            self.list(slot);
        } else {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
    }

    /// Takes the next job for the handshaker.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Counts a job that the queue to the handshaker had no room for.
    pub fn drop_job(&mut self, _job: Job) {
        self.drops.add(Direction::In, DropReason::HandshakeQueueFull, 1);
    }

    /// Takes the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`handle_deadline`](Self::handle_deadline) wants to be called. It may find nothing to do then.
    #[must_use]
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.schedule.next()
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now: Now) {
        // Peers that keep waking each other at one instant would never let go of the thread: the rest is for the next call.
        for _ in 0..self.peers.len().saturating_mul(LOOKS_AT_ONCE) {
            let Some(slot) = self.schedule.pop(now.monotonic) else { return };
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.wakes_at = None;
            }
            while let Some(due) = self.peers.get_mut(slot).and_then(|peer| peer.timers.due(now.monotonic)) {
                self.handle_due(slot, due, now);
            }
            if self
                .peers
                .get(slot)
                .is_some_and(|peer| peer.paths.next().is_some_and(|next| next <= now.monotonic))
            {
                self.drive(slot, now);
            }
            self.reschedule(slot);
        }
    }

    fn handle_due(&mut self, slot: Slot, due: Due, now: Now) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        match due {
            Due::Retry => self.begin_handshake(slot, Begin::Retry, now),
            Due::PeerSilent => self.begin_handshake(slot, Begin::Fresh, now),
            Due::ResponseUnconfirmed => {
                // A peer that still uses the session we have had no need of the one we answered: the two initiations
                // crossed, or ours was faster.
                let lately = |at: Instant| now.monotonic.saturating_duration_since(at) < CONTENT_FOR;
                let content = peer.last_opened.is_some_and(lately);
                let unconfirmed = peer.sessions.has_unconfirmed();
                self.handshakes.unconfirmed += u64::from(unconfirmed);
                if unconfirmed && !content {
                    self.begin_handshake(slot, Begin::Insist, now);
                }
            }
            Due::Keepalive => {
                peer.owes_keepalive = true;
                self.flush_or_begin(slot, now);
            }
            Due::GiveUp => {
                let (id, relay) = (peer.id, peer.relay);
                peer.notices.clear();
                peer.owes_keepalive = false;
                self.handshakes.unanswered += u64::from(peer.handshake.is_some());
                self.end_handshake(slot);
                self.drop_held(slot, DropReason::PeerUnreachable);
                self.push_event(Event::Unreachable { peer: id });
                // Without its relay a node may be reached by nobody.
                if relay {
                    self.begin_handshake(slot, Begin::Fresh, now);
                }
            }
            Due::Erase => {
                let had_session = peer.sessions.current().is_some();
                let id = peer.id;
                self.end_sessions(slot);
                self.end_handshake(slot);
                if had_session {
                    self.push_event(Event::Expired { peer: id });
                }
            }
        }
    }

    /// What can be said about each peer at `now`.
    pub fn peers(&self, now: Now) -> impl Iterator<Item = PeerStatus> + '_ {
        let relays = self.relay_views(now.monotonic);
        self.peers.iter().map(move |(_, peer)| {
            let hop = peer.paths.selected().and_then(|path| self.hop(path, now.monotonic));
            peer.status(&relays, hop, now.monotonic)
        })
    }

    /// What was dropped, and why.
    #[must_use]
    pub const fn drops(&self) -> &DropCounters {
        &self.drops
    }

    /// What went and came, by kind of path.
    #[must_use]
    pub const fn carried(&self) -> &Carried {
        &self.carried
    }

    /// How handshakes ended.
    #[must_use]
    pub const fn handshakes(&self) -> &HandshakeCounts {
        &self.handshakes
    }

    /// Whom a packet to `address` goes to.
    #[must_use]
    pub fn owner_of(&self, address: std::net::IpAddr) -> Option<NodeId> {
        self.allowed_ips.lookup(address).and_then(|slot| self.peers.get(slot)).map(|peer| peer.id)
    }

    /// Puts a peer among those that may have something to send.
    pub(crate) fn list(&mut self, slot: Slot) {
        if let Some(peer) = self.peers.get_mut(slot)
            && !peer.listed
        {
            peer.listed = true;
            self.listed.push_back(slot);
        }
    }

    /// Makes sure that the peer's next timer is not slept through.
    pub(crate) fn reschedule(&mut self, slot: Slot) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let next = [peer.timers.next(), peer.paths.next()].into_iter().flatten().min();
        let Some(deadline) = next else { return };
        // Packets put nearly all deadlines off: that it comes too early then costs less than moving it.
        if peer.wakes_at.is_none_or(|wakes_at| deadline < wakes_at) {
            peer.wakes_at = Some(deadline);
            self.schedule.at_latest(slot, deadline);
        }
    }

    pub(crate) fn push_job(&mut self, job: Job) -> Result<(), DropReason> {
        if self.jobs.len() >= MAX_OUTGOING_JOBS {
            return Err(DropReason::HandshakeQueueFull);
        }
        self.jobs.push_back(job);
        Ok(())
    }

    pub(crate) fn push_event(&mut self, event: Event) {
        if self.events.len() >= MAX_WAITING_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn end_sessions(&mut self, slot: Slot) {
        if let Some(peer) = self.peers.get_mut(slot) {
            let ended = peer.sessions.clear();
            self.release(ended.into_iter().flatten());
        }
    }

    pub(crate) fn drop_held(&mut self, slot: Slot, reason: DropReason) {
        while let Some(packet) = self.peers.get_mut(slot).and_then(|peer| peer.held.pop_front()) {
            self.drops.add(Direction::Out, reason, 1);
            self.recycle(packet);
        }
    }

    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare_buffers.len() < MAX_SPARE_BUFFERS {
            self.spare_buffers.push(buffer);
        }
    }

    /// Takes back the indices of sessions that ended.
    pub(crate) fn release(&mut self, ended: impl Iterator<Item = Box<Session<C>>>) {
        for session in ended {
            self.indices.remove(session.local_index());
        }
    }
}

impl<C: Cipher> fmt::Debug for Tunnel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("worker", &self.worker)
            .field("local", &self.local)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
