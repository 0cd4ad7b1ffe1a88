//! Handshakes: the half of the protocol that takes Diffie-Hellman, and what shields it from floods.
//!
//! A worker turns what it sees into [`Job`]s; a [`Handshaker`] on a thread of its own does them in order and returns
//! [`JobDone`]s. It alone knows the static secret key and the preshared keys. What it returns are Noise parts and session
//! keys; the worker adds indices and MACs, which Noise does not cover.
//!
//! Before a job costs any Diffie-Hellman, the worker has checked `mac1` (W12), and here, while too many jobs wait, a
//! message must carry a cookie (W13, W14) and its source may send 20 a second (W15). "Under load" is one signal for all
//! sources: a flood from random addresses never reaches a limit of any one of them.

pub(crate) mod cookie;
mod crypto;
pub(crate) mod mac;
mod noise;
mod rate_limit;
pub mod timestamp;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counts::Role;
use crate::drop_reason::DropReason;
use crate::key::{NodeId, PresharedKey, PublicKey, SecretKey};
use crate::message::{
    self, COOKIE_REPLY_LEN, INITIATION_LEN, INITIATION_NOISE_LEN, RESPONSE_LEN, RESPONSE_NOISE_LEN,
};
use crate::path::Path;
use crate::peer::{PeerConfig, Psk};
use crate::random::Random;
use crate::time::Now;

use self::cookie::CookieJar;
use self::crypto::{Shared, StaticKey};
use self::mac::Stamp;
pub(crate) use self::noise::TransportKeys;
use self::noise::{Noise, Read};
use self::rate_limit::RateLimit;
pub use self::timestamp::{BadFloors, Floors, Tai64n};

/// Jobs that a queue to the handshaker should hold; what comes beyond is dropped, and retried by its sender.
pub const MAX_QUEUED_JOBS: usize = 4096;
/// Waiting jobs from which on we are under load (W13).
pub const UNDER_LOAD_FROM: usize = MAX_QUEUED_JOBS / 8;
/// How long being under load outlasts its cause.
const UNDER_LOAD_FOR: Duration = Duration::from_secs(1);
/// Initiations of one peer closer to each other than this are a flood (W11: 50 a second).
const MIN_INITIATION_GAP: Duration = Duration::from_millis(20);
/// Floors kept for keys that are no peers any more, so that removing and adding a peer opens no replay.
const MAX_FORMER_FLOORS: usize = 4096;

/// Tells one attempt at a handshake from the next; unique within a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HandshakeId(pub(crate) u64);

/// Work for a [`Handshaker`]. Dropping one is like losing a datagram: a timer repeats what mattered.
#[derive(Debug)]
pub struct Job {
    worker: u8,
    kind: JobKind,
}

#[derive(Debug)]
enum JobKind {
    Initiate { peer: PublicKey, id: HandshakeId },
    Respond { message: [u8; INITIATION_LEN], from: Path },
    Finish { peer: PublicKey, id: HandshakeId, message: [u8; RESPONSE_LEN], from: Path },
    Abandon { peer: PublicKey },
}

impl Job {
    pub(crate) const fn initiate(worker: u8, peer: PublicKey, id: HandshakeId) -> Self {
        Self { worker, kind: JobKind::Initiate { peer, id } }
    }

    pub(crate) const fn respond(worker: u8, message: [u8; INITIATION_LEN], from: Path) -> Self {
        Self { worker, kind: JobKind::Respond { message, from } }
    }

    pub(crate) const fn finish(
        worker: u8,
        peer: PublicKey,
        id: HandshakeId,
        message: [u8; RESPONSE_LEN],
        from: Path,
    ) -> Self {
        Self { worker, kind: JobKind::Finish { peer, id, message, from } }
    }

    pub(crate) const fn abandon(worker: u8, peer: PublicKey) -> Self {
        Self { worker, kind: JobKind::Abandon { peer } }
    }

    /// The worker that asked.
    #[must_use]
    pub const fn worker(&self) -> u8 {
        self.worker
    }
}

/// What became of a [`Job`]; goes to `Tunnel::handle_job` of the worker that has the peer.
#[derive(Debug)]
pub struct JobDone {
    worker: u8,
    peer: Option<NodeId>,
    /// On whose side of a handshake the job was; none if it only ended one.
    pub(crate) role: Option<Role>,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Initiated {
        peer: PublicKey,
        id: HandshakeId,
        noise: [u8; INITIATION_NOISE_LEN],
    },
    Responded {
        peer: PublicKey,
        from: Path,
        sender: u32,
        noise: [u8; RESPONSE_NOISE_LEN],
        keys: TransportKeys,
    },
    Finished {
        peer: PublicKey,
        id: HandshakeId,
        from: Path,
        sender: u32,
        keys: TransportKeys,
    },
    CookieReply {
        to: Path,
        message: [u8; COOKIE_REPLY_LEN],
    },
    Dropped(DropReason),
    Abandoned,
}

impl JobDone {
    /// The worker that asked for the job.
    #[must_use]
    pub const fn worker(&self) -> u8 {
        self.worker
    }

    /// The peer it concerns, once known: its worker gets the result, or the one that asked if there is none.
    #[must_use]
    pub const fn peer(&self) -> Option<NodeId> {
        self.peer
    }
}

struct Peer {
    id: NodeId,
    psk: Psk,
    last_initiation: Option<Instant>,
}

impl Peer {
    /// A responder only ever uses the newest.
    const fn newest_psk(&self) -> &PresharedKey {
        match &self.psk {
            Psk::Epochs { current, .. } => current,
            Psk::Fixed(psk) => psk,
        }
    }

    /// An initiator may find that its peer has not heard of the newest epoch yet.
    const fn older_psk(&self) -> Option<&PresharedKey> {
        match &self.psk {
            Psk::Epochs { previous, .. } => previous.as_ref(),
            Psk::Fixed(_) => None,
        }
    }
}

/// Does what takes Diffie-Hellman, for all workers, in order.
///
/// Nothing here waits or reads a clock; the thread that owns it calls [`Handshaker::run`] for each job it takes from its
/// queue, and says how many are still waiting.
pub struct Handshaker {
    key: Arc<StaticKey>,
    stamp: Stamp,
    random: Random,
    peers: BTreeMap<PublicKey, Peer>,
    /// Static-static agreements of all peers with usable keys: made once, used in every handshake.
    agreements: Arc<BTreeMap<PublicKey, Shared>>,
    pending: BTreeMap<PublicKey, (HandshakeId, Noise)>,
    floors: Floors,
    floors_revision: u64,
    cookies: CookieJar,
    rate_limit: RateLimit,
    under_load_until: Option<Instant>,
}

impl Handshaker {
    /// Takes our static secret key into use.
    #[must_use]
    pub fn new(secret: &SecretKey, random: Random) -> Self {
        let key = StaticKey::new(secret).expect("invariant: any 32 bytes are an X25519 key");
        Self {
            stamp: Stamp::of(key.public()),
            key: Arc::new(key),
            random,
            peers: BTreeMap::new(),
            agreements: Arc::default(),
            pending: BTreeMap::new(),
            floors: Floors::default(),
            floors_revision: 0,
            cookies: CookieJar::default(),
            rate_limit: RateLimit::default(),
            under_load_until: None,
        }
    }

    /// Our public key.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        *self.key.public()
    }

    /// Takes the list of all peers, of whatever worker. A changed preshared key is used from the next handshake on; what a
    /// removed peer had under way ends.
    pub fn apply(&mut self, peers: &[PeerConfig]) {
        let mut old = std::mem::take(&mut self.peers);
        let mut old_agreements = std::mem::take(&mut self.agreements);
        let mut agreements = BTreeMap::new();
        for config in peers.iter().filter(|config| config.key != *self.key.public()) {
            let last_initiation = old.remove(&config.key).and_then(|peer| peer.last_initiation);
            let peer = Peer { id: config.id, psk: config.psk.clone(), last_initiation };
            self.peers.insert(config.key, peer);
            let known = Arc::get_mut(&mut old_agreements).and_then(|known| known.remove(&config.key));
            if let Some(shared) = known.or_else(|| self.key.agree(&config.key)) {
                agreements.insert(config.key, shared);
            }
        }
        self.agreements = Arc::new(agreements);
        self.pending.retain(|key, _| self.peers.contains_key(key));
        if self.floors.received.len() > self.peers.len() + MAX_FORMER_FLOORS {
            self.floors.received.retain(|key, _| self.peers.contains_key(key));
        }
    }

    /// Timestamps to store, so that a restart neither accepts an old initiation nor sends one.
    #[must_use]
    pub const fn floors(&self) -> &Floors {
        &self.floors
    }

    /// Changes whenever [`Handshaker::floors`] does.
    #[must_use]
    pub const fn floors_revision(&self) -> u64 {
        self.floors_revision
    }

    /// Raises the floors to what was stored before a restart; never lowers one.
    pub fn restore(&mut self, stored: Floors) {
        self.floors.sent = self.floors.sent.max(stored.sent);
        for (key, timestamp) in stored.received {
            let floor = self.floors.received.entry(key).or_insert(Tai64n::ZERO);
            *floor = timestamp.max(*floor);
        }
    }

    /// Does one job. `waiting` is how many more wait, of all workers: enough of them, and we are under load.
    pub fn run(&mut self, job: Job, waiting: usize, now: Now) -> JobDone {
        let under_load = self.under_load(waiting, now.monotonic);
        let role = match job.kind {
            JobKind::Initiate { .. } | JobKind::Finish { .. } => Some(Role::Initiator),
            JobKind::Respond { .. } => Some(Role::Responder),
            JobKind::Abandon { .. } => None,
        };
        let outcome = match job.kind {
            JobKind::Initiate { peer, id } => self.initiate(peer, id, now),
            JobKind::Respond { message, from } => self
                .shield(&message, message::initiation_fields(&message).0, from, under_load, now)
                .and_then(|reply| reply.map_or_else(|| self.respond(&message, from, now), Ok)),
            JobKind::Finish { peer, id, message, from } => self
                .shield(&message, message::response_fields(&message).0, from, under_load, now)
                .and_then(|reply| reply.map_or_else(|| self.finish(peer, id, &message, from), Ok)),
            JobKind::Abandon { peer } => {
                self.pending.remove(&peer);
                Ok(Outcome::Abandoned)
            }
        };
        let outcome = outcome.unwrap_or_else(Outcome::Dropped);
        let peer = match &outcome {
            Outcome::Initiated { peer, .. }
            | Outcome::Responded { peer, .. }
            | Outcome::Finished { peer, .. } => self.peers.get(peer).map(|peer| peer.id),
            Outcome::CookieReply { .. } | Outcome::Dropped(_) | Outcome::Abandoned => None,
        };
        JobDone { worker: job.worker, peer, role, outcome }
    }

    fn under_load(&mut self, waiting: usize, now: Instant) -> bool {
        if waiting >= UNDER_LOAD_FROM {
            self.under_load_until = Some(now + UNDER_LOAD_FOR);
        }
        self.under_load_until.is_some_and(|until| now < until)
    }

    /// Under load, lets only those pass who receive where they send from, and not too many of them; others get a cookie.
    fn shield<const N: usize>(
        &mut self,
        message: &[u8; N],
        sender: u32,
        from: Path,
        under_load: bool,
        now: Now,
    ) -> Result<Option<Outcome>, DropReason> {
        if !under_load {
            return Ok(None);
        }
        let now = now.monotonic;
        if !self.cookies.verify(message, from, &mut self.random, now)? {
            let message = self.cookies.reply(&self.stamp, message, sender, from, &mut self.random, now)?;
            return Ok(Some(Outcome::CookieReply { to: from, message }));
        }
        if !self.rate_limit.allow(from.rate_source(), now) {
            return Err(DropReason::RateLimited);
        }
        Ok(None)
    }

    fn initiate(&mut self, peer: PublicKey, id: HandshakeId, now: Now) -> Result<Outcome, DropReason> {
        if !self.peers.contains_key(&peer) {
            return Err(DropReason::PeerRemoved);
        }
        let shared = self.agreements.get(&peer).ok_or(DropReason::LowOrderKey)?;
        // Never the same twice and never backwards, whatever the clock does.
        let timestamp = Tai64n::of(now.wall).max(self.floors.sent.next());
        let (noise, message) = Noise::initiate(&self.key, &peer, shared, timestamp, &mut self.random)?;
        self.floors.sent = timestamp;
        self.floors_revision += 1;
        self.pending.insert(peer, (id, noise));
        Ok(Outcome::Initiated { peer, id, noise: message })
    }

    fn respond(
        &mut self,
        message: &[u8; INITIATION_LEN],
        from: Path,
        now: Now,
    ) -> Result<Outcome, DropReason> {
        let (sender, noise) = message::initiation_fields(message);
        let read = Read::initiation(&self.key, &self.agreements, &noise, &mut self.random)?;
        let key = read.initiator;
        let peer = self.peers.get_mut(&key).ok_or(DropReason::UnknownPeer)?;
        let floor = self.floors.received.entry(key).or_insert(Tai64n::ZERO);
        if read.timestamp <= *floor {
            return Err(DropReason::OldTimestamp);
        }
        let gap = peer.last_initiation.map(|last| now.monotonic.saturating_duration_since(last));
        if gap.is_some_and(|gap| gap < MIN_INITIATION_GAP) {
            return Err(DropReason::InitiationFlood);
        }
        *floor = read.timestamp;
        self.floors_revision += 1;
        peer.last_initiation = Some(now.monotonic);
        let (noise, keys) = read.respond(peer.newest_psk())?;
        Ok(Outcome::Responded { peer: key, from, sender, noise, keys })
    }

    fn finish(
        &mut self,
        key: PublicKey,
        id: HandshakeId,
        message: &[u8; RESPONSE_LEN],
        from: Path,
    ) -> Result<Outcome, DropReason> {
        let peer = self.peers.get(&key).ok_or(DropReason::PeerRemoved)?;
        let (pending, noise) = self.pending.get_mut(&key).ok_or(DropReason::SupersededHandshake)?;
        if *pending != id {
            return Err(DropReason::SupersededHandshake);
        }
        let (sender, _, response) = message::response_fields(message);
        // The initiation did not depend on the preshared key, so one response can be tried with both.
        let keys = noise.finish(peer.newest_psk(), &response).or_else(|reason| match peer.older_psk() {
            Some(older) => noise.finish(older, &response),
            None => Err(reason),
        })?;
        self.pending.remove(&key);
        Ok(Outcome::Finished { peer: key, id, from, sender, keys })
    }
}

impl fmt::Debug for Handshaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshaker")
            .field("key", &self.key)
            .field("peers", &self.peers.len())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}
