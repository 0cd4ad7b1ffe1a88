//! [`Relay`]: one network's clients and channels, without a clock or a socket.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::key::{NodeId, PublicKey};
use ringmesh_tunnel::{
    BindAnswer, BindRefusal, Candidate, Dial, DropCounters, Event as TunnelEvent, Hop, Inbound, Job, JobDone,
    Link, NoRandomness, Now, Path, PeerConfig, Random, Transmit, Tunnel, relayed,
};

use crate::channels::{Channels, Place, Slot, opposite};
use crate::client::{Client, Clients};
use crate::drops::{Dropped, RelayDrop, RelayDrops};
use crate::frame::MAX_DATAGRAM_LEN;
use crate::pairs::Pairs;
use crate::rate::{Limited, Limiter};

pub use crate::channels::MAX_PAIRS;
pub use crate::client::{ClientReport, Traffic, UNDER_WAY};
pub use crate::pairs::{FORGET_AFTER, MAX_CHANNELS_PER_CLIENT};

/// A client that was not heard this long is away: nothing is passed on to it or from it.
pub const AWAY_AFTER: Duration = Duration::from_secs(90);
/// How often is looked who is here.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Answers that wait to be told, besides one for each end of a pair.
const MAX_REFUSALS: usize = 4096;
/// Answers given to the tunnel before what it has to send was taken: less than it keeps for one peer.
const TOLD_AT_ONCE: usize = 8;
/// Events that wait to be taken; the oldest is dropped for the next.
const MAX_WAITING_EVENTS: usize = 4096;

/// What to do with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The whole buffer goes on to here; its header was rewritten for the receiver.
    Forward {
        /// Where the receiver was last heard.
        to: Hop,
        /// Whom to name to [`Relay::not_sent`] if it cannot be sent.
        receiver: Receiver,
    },
    /// It was part of a handshake with the relay. Whoever sent it has proved nothing yet.
    Consumed,
    /// It was of a client's session with the relay: authentic and new.
    Heard,
}

/// Names the client that a datagram was passed on to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receiver(Slot);

/// Something that a log wants to hear about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEvent {
    /// A client is here: there is a session with it, or it is heard again.
    Came(NodeId),
    /// A client was not heard for 90 s.
    Went(NodeId),
}

enum Owed {
    /// How things are with the end that has this number.
    Word {
        place: Place,
        number: u32,
    },
    Refusal {
        client: NodeId,
        target: NodeId,
        refusal: BindRefusal,
    },
}

/// One network's clients, their sessions with the relay, and the channels between them.
///
/// Driven as a [`Tunnel`] is: input by [`handle_datagram`](Self::handle_datagram), [`handle_job`](Self::handle_job),
/// [`handle_deadline`](Self::handle_deadline), [`apply`](Self::apply) and [`link_closed`](Self::link_closed); after any of
/// them, output by [`poll_transmit`](Self::poll_transmit), [`poll_job`](Self::poll_job) and
/// [`poll_event`](Self::poll_event), until there is none.
///
/// The relay cannot read what it passes on, and believes nothing in it. It passes on from a member's present hop only, or the one
/// before for a second after it moved, to the other member of the pair only, and only what looks like one of the four messages.
pub struct Relay {
    tunnel: Tunnel,
    /// Counts what may have moved a client's hop.
    state: u64,
    clients: Clients,
    pairs: Pairs,
    owed: VecDeque<Owed>,
    refusals: usize,
    next_look: Instant,
    events: VecDeque<RelayEvent>,
    drops: RelayDrops,
    taken: Traffic,
    passed_on: Traffic,
}

impl Relay {
    /// A relay without clients, as number `worker` (0 to 63) of its server, with the public key `local`.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes to give.
    ///
    /// # Panics
    ///
    /// If `worker` is 64 or more.
    pub fn new(worker: u8, local: PublicKey, mut random: Random, now: Now) -> Result<Self, NoRandomness> {
        let channels = Channels::new(worker, u32::from_le_bytes(random.bytes()?));
        let mut tunnel = Tunnel::new(worker, local, random)?;
        // A relay has nobody to give a packet to: it counts those of each client here, and drops them.
        tunnel.apply_filter(Arc::new(Filter::allow_all()), now);
        Ok(Self {
            tunnel,
            state: 1,
            clients: Clients::default(),
            pairs: Pairs::new(channels),
            owed: VecDeque::new(),
            refusals: 0,
            next_look: now.monotonic,
            events: VecDeque::new(),
            drops: RelayDrops::default(),
            taken: Traffic::default(),
            passed_on: Traffic::default(),
        })
    }

    /// Takes the list of members. Those who are gone, or have another key, lose their sessions and channels at once; the
    /// others keep theirs. Returns who was removed.
    pub fn apply(&mut self, peers: &[PeerConfig], limiter: &mut Limiter, now: Now) -> Vec<NodeId> {
        let mut wanted: BTreeMap<NodeId, BTreeSet<PublicKey>> = BTreeMap::new();
        for peer in peers {
            wanted.entry(peer.id).or_default().insert(peer.key);
        }
        let stays =
            |client: &Client| wanted.get(&client.id).is_some_and(|keys| !keys.is_disjoint(&client.keys));
        let gone: Vec<(NodeId, Slot)> = self
            .clients
            .iter()
            .filter(|(_, client)| !stays(client))
            .map(|(slot, client)| (client.id, slot))
            .collect();
        for &(_, slot) in &gone {
            self.remove(slot, limiter);
        }
        self.tunnel.apply(peers, now);
        for (id, keys) in wanted {
            match self.clients.slot_of(id).and_then(|slot| self.clients.get_mut(slot)) {
                Some(client) => client.keys = keys,
                None => {
                    let ticket = limiter.join(now.monotonic);
                    self.clients.insert(Client::new(id, keys, ticket));
                }
            }
        }
        self.after_tunnel(now);
        gone.into_iter().map(|(id, _)| id).collect()
    }

    fn remove(&mut self, slot: Slot, limiter: &mut Limiter) {
        let Some(client) = self.clients.remove(slot) else { return };
        for place in client.ends {
            self.pairs.remove(&mut self.clients, place);
        }
        limiter.leave(client.ticket);
    }

    /// Takes out all clients, so that their places in the limiter are free again; the relay is of no further use.
    pub fn close(mut self, limiter: &mut Limiter) {
        let slots: Vec<Slot> = self.clients.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            self.remove(slot, limiter);
        }
    }

    /// Takes a datagram that came by `from`. A relayed one is changed in place for its receiver.
    ///
    /// # Errors
    ///
    /// Why it was dropped; it has been counted. Nothing is ever sent in reply.
    pub fn handle_datagram(
        &mut self,
        datagram: &mut [u8],
        from: Hop,
        limiter: &mut Limiter,
        now: Now,
    ) -> Result<Verdict, Dropped> {
        match relayed::parse(datagram) {
            Some(number) => self.pass_on(number, datagram, from, limiter, now).map_err(Dropped::Relay),
            None => self.open(datagram, from, now),
        }
    }

    /// Something of a client's own session with the relay, or of its handshake.
    fn open(&mut self, datagram: &mut [u8], from: Hop, now: Now) -> Result<Verdict, Dropped> {
        // Only what is sealed with a session's key proves anything: handshake messages are consumed unread.
        let data = datagram.first() == Some(&4);
        let taken = self.tunnel.inbound(datagram, from, now);
        // Heard in another place, a client is asked there at once: until it answers, it is followed by nobody.
        if self.tunnel.poll_deadline().is_some_and(|deadline| deadline <= now.monotonic) {
            self.tunnel.handle_deadline(now);
        }
        self.after_tunnel(now);
        match taken? {
            Inbound::Consumed if data => Ok(Verdict::Heard),
            Inbound::Consumed => Ok(Verdict::Consumed),
            Inbound::Packet { peer, .. } => {
                let slot = self.clients.slot_of(peer);
                Err(self.count(slot, RelayDrop::PlainPacket).into())
            }
        }
    }

    /// Header, owner, hop, seal, receiver, limit: in this order, so that a stranger's datagram is charged to nobody.
    fn pass_on(
        &mut self,
        number: u32,
        datagram: &mut [u8],
        from: Hop,
        limiter: &mut Limiter,
        now: Now,
    ) -> Result<Verdict, RelayDrop> {
        let length = datagram.len();
        if length > MAX_DATAGRAM_LEN {
            return Err(self.count(None, RelayDrop::TooLong));
        }
        let found = self.pairs.find(number).map(|(place, end)| (place, end.owner));
        let Some((place, sender)) = found else { return Err(self.count(None, RelayDrop::UnknownChannel)) };
        let was_there = |client: &Client| client.was_at(from, now.monotonic);
        if self.hop_of(sender) != Some(from) && !self.clients.get(sender).is_some_and(was_there) {
            return Err(self.count(None, RelayDrop::WrongHop));
        }
        let Some((header, inner)) = datagram.split_first_chunk_mut::<{ relayed::HEADER_LEN }>() else {
            return Err(self.count(Some(sender), RelayDrop::NotSealed));
        };
        if !relayed::is_sealed(inner) {
            return Err(self.count(Some(sender), RelayDrop::NotSealed));
        }
        let other = self.pairs.end(opposite(place)).map(|end| (end.number, end.owner));
        let receiver = other.and_then(|(number, owner)| Some((number, owner, self.hop_of(owner)?)));
        let Some((number, receiver, to)) = receiver else {
            return Err(self.count(Some(sender), RelayDrop::Away));
        };
        let Some(client) = self.clients.get_mut(sender) else { return Err(RelayDrop::UnknownChannel) };
        if let Err(limited) = limiter.take(client.ticket, length as u64, now.monotonic) {
            let reason = match limited {
                Limited::Own => RelayDrop::ClientRate,
                Limited::Share => RelayDrop::SharedRate,
            };
            return Err(self.count(Some(sender), reason));
        }
        client.from.add(length);
        self.taken.add(length);
        if let Some(client) = self.clients.get_mut(receiver) {
            client.to.add(length);
        }
        self.passed_on.add(length);
        self.pairs.used(place, now.monotonic);
        *header = relayed::emit(number);
        Ok(Verdict::Forward { to, receiver: Receiver(receiver) })
    }

    /// A datagram of `bytes` that was to be forwarded could not be sent, and so did not reach its receiver's hop.
    pub fn not_sent(&mut self, receiver: Receiver, bytes: usize, reason: RelayDrop) {
        self.passed_on.take_back(bytes);
        if let Some(client) = self.clients.get_mut(receiver.0) {
            client.to.take_back(bytes);
        }
        self.count(Some(receiver.0), reason);
    }

    fn count(&mut self, client: Option<Slot>, reason: RelayDrop) -> RelayDrop {
        self.drops.add(reason, 1);
        if let Some(client) = client.and_then(|slot| self.clients.get_mut(slot)) {
            client.drops.add(reason, 1);
        }
        reason
    }

    /// Where a client is heard, if it is here. Asked of the tunnel once for each of its states, not for each datagram.
    fn hop_of(&mut self, slot: Slot) -> Option<Hop> {
        let client = self.clients.get_mut(slot)?;
        if client.hop.0 != self.state {
            let hop = if client.here { self.tunnel.hop_to(client.id) } else { None };
            client.hop = (self.state, hop);
        }
        client.hop.1
    }

    /// Something happened in the tunnel: hops may have moved, and it may have something to tell.
    fn after_tunnel(&mut self, now: Now) {
        self.state = self.state.wrapping_add(1);
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                TunnelEvent::BindRequested { client, target } => self.bind(client, target, now),
                TunnelEvent::Established { peer, .. } => {
                    self.heard(peer);
                }
                TunnelEvent::Expired { peer } => self.went(peer),
                TunnelEvent::PathSelected { peer, .. } => self.moved(peer, now),
                TunnelEvent::Unreachable { .. } | TunnelEvent::Pong { .. } | TunnelEvent::SeenFrom { .. } => {
                }
            }
        }
    }

    /// A client asks for a channel. Asked again, it gets the same.
    fn bind(&mut self, id: NodeId, target: NodeId, now: Now) {
        let Some(asker) = self.heard(id) else { return };
        let answer = match self.clients.slot_of(target) {
            Some(other) if other != asker => {
                self.pairs.find_or_make(&mut self.clients, asker, other, now.monotonic)
            }
            _ => Err(BindRefusal::UnknownNode),
        };
        match answer {
            Ok(place) => self.owe(place),
            Err(refusal) if self.refusals < MAX_REFUSALS => {
                self.refusals = self.refusals.saturating_add(1);
                self.owed.push_back(Owed::Refusal { client: id, target, refusal });
            }
            Err(_) => {}
        }
    }

    /// A client is here; those who share a channel with it are told if it was not.
    fn heard(&mut self, id: NodeId) -> Option<Slot> {
        let slot = self.clients.slot_of(id)?;
        let client = self.clients.get_mut(slot)?;
        if !client.here {
            client.here = true;
            self.changed(slot, RelayEvent::Came(id));
        }
        Some(slot)
    }

    /// A client is reached elsewhere.
    fn moved(&mut self, id: NodeId, now: Now) {
        let hop = self.tunnel.hop_to(id);
        if let Some(client) = self.clients.slot_of(id).and_then(|slot| self.clients.get_mut(slot)) {
            client.moved(hop, now.monotonic);
        }
    }

    fn went(&mut self, id: NodeId) {
        let Some(slot) = self.clients.slot_of(id) else { return };
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.left();
        if std::mem::take(&mut client.here) {
            self.changed(slot, RelayEvent::Went(id));
        }
    }

    /// Tells both ends of each of a client's pairs how things are now.
    fn changed(&mut self, slot: Slot, event: RelayEvent) {
        if self.events.len() >= MAX_WAITING_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.state = self.state.wrapping_add(1);
        let Some(client) = self.clients.get(slot) else { return };
        let ends: Vec<Place> = client.ends.iter().copied().collect();
        for place in ends {
            self.owe(place);
            self.owe(opposite(place));
        }
    }

    /// Puts an end among those that are to be told, once, if its owner is here.
    fn owe(&mut self, place: Place) {
        let Some(end) = self.pairs.end(place) else { return };
        if end.owed || !self.clients.get(end.owner).is_some_and(|client| client.here) {
            return;
        }
        let number = end.number;
        if let Some(end) = self.pairs.end_mut(place) {
            end.owed = true;
        }
        self.owed.push_back(Owed::Word { place, number });
    }

    /// Gives the tunnel a few answers to send; returns whether there were any.
    fn tell(&mut self) -> bool {
        let count = self.owed.len().min(TOLD_AT_ONCE);
        for _ in 0..count {
            match self.owed.pop_front() {
                Some(Owed::Word { place, number }) => self.tell_end(place, number),
                Some(Owed::Refusal { client, target, refusal }) => {
                    self.refusals = self.refusals.saturating_sub(1);
                    self.tunnel.answer_bind(client, target, BindAnswer::Refused(refusal));
                }
                None => {}
            }
        }
        if count > 0 {
            self.state = self.state.wrapping_add(1);
        }
        count > 0
    }

    fn tell_end(&mut self, place: Place, number: u32) {
        let Some(end) = self.pairs.end_mut(place).filter(|end| end.number == number) else { return };
        end.owed = false;
        let owner = end.owner;
        let other = self.pairs.end(opposite(place)).and_then(|end| self.clients.get(end.owner));
        let Some((client, other)) = self.clients.get(owner).zip(other) else { return };
        let answer = BindAnswer::Bound { channel: number, present: other.here };
        let (client, target) = (client.id, other.id);
        self.tunnel.answer_bind(client, target, answer);
    }

    /// Takes the next datagram of the relay's own to send. `datagram` must have room for
    /// [`MAX_OVERHEAD`](ringmesh_tunnel::message::MAX_OVERHEAD) bytes more than the MTU.
    pub fn poll_transmit(&mut self, datagram: &mut [u8], now: Now) -> Option<Transmit> {
        loop {
            if let Some(transmit) = self.tunnel.poll_transmit(datagram, now) {
                self.state = self.state.wrapping_add(1);
                return Some(transmit);
            }
            if !self.tell() {
                return None;
            }
        }
    }

    /// Takes the next job for the handshaker.
    pub fn poll_job(&mut self) -> Option<Job> {
        self.tunnel.poll_job()
    }

    /// Counts a job that the queue to the handshaker had no room for.
    pub fn drop_job(&mut self, job: Job) {
        self.tunnel.drop_job(job);
    }

    /// Takes the result of a job.
    pub fn handle_job(&mut self, done: JobDone, now: Now) {
        self.tunnel.handle_job(done, now);
        self.after_tunnel(now);
    }

    /// Takes the next stream that is of no use to its client any more, and is to be closed.
    pub fn poll_close(&mut self) -> Option<Link> {
        loop {
            match self.tunnel.poll_dial()? {
                Dial::Close { link } => return Some(link),
                // A relay's clients come to it; no list tells it of a stream to open.
                Dial::Open { .. } => {}
            }
        }
    }

    /// Takes the next event.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// When [`handle_deadline`](Self::handle_deadline) wants to be called.
    #[must_use]
    pub fn poll_deadline(&self) -> Instant {
        self.tunnel.poll_deadline().map_or(self.next_look, |deadline| deadline.min(self.next_look))
    }

    /// Does what is due.
    pub fn handle_deadline(&mut self, now: Now) {
        self.tunnel.handle_deadline(now);
        self.after_tunnel(now);
        if self.next_look <= now.monotonic {
            self.next_look = now.later(LOOK_EVERY).monotonic;
            self.look(now);
        }
    }

    /// Looks who was heard lately: a datagram of a session that goes on makes no event.
    fn look(&mut self, now: Now) {
        let mut came = Vec::new();
        let mut went = Vec::new();
        for peer in self.tunnel.peers(now) {
            let here = peer
                .last_received
                .is_some_and(|last| now.monotonic.saturating_duration_since(last) < AWAY_AFTER)
                && self.tunnel.hop_to(peer.id).is_some();
            match self.clients.slot_of(peer.id).and_then(|slot| self.clients.get(slot)) {
                Some(client) if client.here && !here => went.push(peer.id),
                Some(_) if here => came.push(peer.id),
                _ => {}
            }
        }
        for id in came {
            self.heard(id);
        }
        for id in went {
            self.went(id);
        }
    }

    /// A stream has ended.
    pub fn link_closed(&mut self, link: Link, now: Now) {
        self.tunnel.link_closed(link, now);
        self.after_tunnel(now);
    }

    /// Who was heard on a link: the client that answers for it. Looks at every client.
    #[must_use]
    pub fn client_on(&self, link: Link, now: Now) -> Option<NodeId> {
        let on_link = |candidate: Candidate| candidate == Candidate::Incoming(link);
        self.tunnel
            .peers(now)
            .find(|peer| {
                peer.endpoint == Some(Path::Link(link))
                    || peer.paths.iter().any(|path| on_link(path.candidate))
            })
            .map(|peer| peer.id)
    }

    /// What can be said about each client.
    pub fn clients(&self) -> impl Iterator<Item = ClientReport> + '_ {
        self.clients.iter().map(|(_, client)| client.report(self.tunnel.hop_to(client.id)))
    }

    /// Pairs that have channels.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs.count()
    }

    /// What was taken from clients to be passed on, those that are gone as well.
    #[must_use]
    pub const fn taken(&self) -> Traffic {
        self.taken
    }

    /// What was passed on, of members that are gone as well.
    #[must_use]
    pub const fn passed_on(&self) -> Traffic {
        self.passed_on
    }

    /// What was not passed on, of strangers and members that are gone as well.
    #[must_use]
    pub const fn drops(&self) -> &RelayDrops {
        &self.drops
    }

    /// What the relay's own sessions refused.
    #[must_use]
    pub const fn session_drops(&self) -> &DropCounters {
        self.tunnel.drops()
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("tunnel", &self.tunnel)
            .field("clients", &self.clients.count())
            .field("pairs", &self.pairs.count())
            .finish_non_exhaustive()
    }
}
