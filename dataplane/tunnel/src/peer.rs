//! A peer: another node or a stock WireGuard device, as one worker sees it.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::filter::Flows;
use crate::handshake::HandshakeId;
use crate::handshake::mac::{Stamp, Tag};
use crate::ip::Prefix;
use crate::key::{NodeId, PresharedKey, PublicKey};
use crate::message::INITIATION_LEN;
use crate::notice::Notice;
use crate::path::budget::Budgets;
use crate::path::set::{Paths, RelayViews};
use crate::path::{Carrier, Hop, Link, Path, PathStatus};
use crate::session::Sessions;
use crate::time::UnixTime;
use crate::timers::Timers;

/// Packets held for one peer while it has no session; the oldest is dropped for the next (W29).
pub const MAX_HELD_PACKETS: usize = 128;
/// Candidates kept for one peer.
pub const MAX_CANDIDATES: usize = 32;
/// Addresses that one initiation goes to at most.
pub const MAX_FAN_OUT: usize = 8;
/// Streams that can be opened to one peer.
pub const MAX_LINKS: usize = 8;
/// How long after a packet went or came it matters how the peer is reached.
pub(crate) const ACTIVE_FOR: Duration = Duration::from_secs(10);
/// How often a relay hears something at least: it must know where we are.
const RELAY_KEEPALIVE: Duration = Duration::from_secs(25);
/// Notices waiting for a session, and requests waiting for their answer, for one peer.
pub const MAX_NOTICES: usize = 16;

/// What the network map and the local configuration say about a peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its name in the network, whatever its key.
    pub id: NodeId,
    /// The key it handshakes with.
    pub key: PublicKey,
    /// What is mixed into each handshake besides.
    pub psk: Psk,
    /// Whether it is one of our nodes and understands notices, or a stock WireGuard device.
    pub mesh: bool,
    /// The inner addresses it may send from, and gets the packets to.
    pub allowed_ips: Vec<Prefix>,
    /// Whether it relays for this node: then a session with it is always kept, and channels to other peers are asked of it.
    pub relay: bool,
    /// Outer addresses it may be reached at, best first; 32 are kept.
    pub candidates: Vec<SocketAddr>,
    /// Streams that can be opened to it where UDP does not pass; 8 are kept.
    pub links: Vec<LinkCandidate>,
    /// Send something at least every so many seconds, to keep a NAT's mapping open; none or 0: only when there is cause.
    pub persistent_keepalive: Option<u16>,
}

/// A stream that can be opened to a peer. What it takes to open it is known to whoever gave the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkCandidate {
    /// Tells it from the peer's others.
    pub number: u32,
    /// What the stream would be made of.
    pub carrier: Carrier,
}

/// A peer's preshared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Psk {
    /// Of the network's epochs: the newest to answer with; when initiating, the one before it may be tried as well, for a
    /// peer that has not heard yet.
    Epochs {
        /// The newest epoch's.
        current: PresharedKey,
        /// The one before, as long as it may still be used to initiate.
        previous: Option<PresharedKey>,
    },
    /// A stock device's own. All zeros is what WireGuard means by none.
    Fixed(PresharedKey),
}

/// How far things are with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// No session, and nothing under way.
    Idle,
    /// A handshake is under way and there is no session yet.
    Handshaking,
    /// There is a session to seal packets with.
    Established,
}

/// What can be said about a peer to people and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name in the network.
    pub id: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Whether it is one of our nodes.
    pub mesh: bool,
    /// How far things are.
    pub state: PeerState,
    /// Whether it relays for us.
    pub relay: bool,
    /// The path that sealed packets take, once one was confirmed.
    pub endpoint: Option<Path>,
    /// Where they leave this machine: the relay's own path, if it leads through one.
    pub hop: Option<Hop>,
    /// Every candidate, best first.
    pub paths: Vec<PathStatus>,
    /// When the last handshake completed, by the wall clock.
    pub last_handshake: Option<UnixTime>,
    /// When anything authentic last came.
    pub last_received: Option<Instant>,
    /// Bytes of datagrams sent, handshakes included.
    pub sent_bytes: u64,
    /// Bytes of authentic datagrams received.
    pub received_bytes: u64,
    /// The round trip of the last answered ping.
    pub rtt: Option<Duration>,
    /// Packets waiting for a session.
    pub held_packets: usize,
}

/// Why no ping was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PingError {
    /// No peer has this id.
    #[error("no such peer, or policy does not let the two of us talk")]
    UnknownPeer,
    /// A stock WireGuard device does not understand notices.
    #[error("the peer is a stock WireGuard device: ping its address instead")]
    StockPeer,
    /// There is neither a confirmed endpoint nor a candidate.
    #[error("no address of the peer is known yet")]
    NoPath,
    /// Earlier pings wait for a session.
    #[error("too many pings are waiting for a session with this peer")]
    TooMany,
}

/// A handshake that we began and that nobody has answered yet.
#[derive(Debug)]
pub(crate) struct PendingHandshake {
    pub(crate) id: HandshakeId,
    /// Given out when the initiation is sent.
    pub(crate) index: Option<u32>,
    /// Begun because a peer did not confirm our response: it must not give way to that peer's next initiation.
    pub(crate) insist: bool,
    /// Begun because no path answered.
    pub(crate) doubt: bool,
    /// The initiation, once made: what goes again, unchanged, when there is another path to send it by.
    pub(crate) message: Option<Box<[u8; INITIATION_LEN]>>,
    /// When the first initiation of the attempt was asked for.
    pub(crate) begun: Instant,
}

/// A ping whose answer is awaited.
#[derive(Debug)]
pub(crate) struct Ping {
    pub(crate) token: u64,
    pub(crate) sent: Instant,
}

/// A notice that waits to be sealed, and by which path if not the usual one.
#[derive(Debug)]
pub(crate) struct QueuedNotice {
    pub(crate) notice: Notice,
    pub(crate) path: Option<Path>,
}

/// All that one worker knows of a peer.
///
/// What packets touch comes first and lies together: with traffic spread over many peers, each cache line costs more than what is
/// done with it.
#[repr(C, align(64))]
pub(crate) struct Peer<C> {
    pub(crate) sessions: Sessions<C>,
    pub(crate) id: NodeId,
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
    /// When a packet last went or came: it matters how the peer is reached.
    pub(crate) active: Option<Instant>,
    /// When the schedule wakes the peer; none if it does not.
    pub(crate) wakes_at: Option<Instant>,
    pub(crate) last_received: Option<Instant>,
    /// When a datagram was last opened: unlike a handshake message, it shows that the peer has the session.
    pub(crate) last_opened: Option<Instant>,
    pub(crate) mesh: bool,
    pub(crate) relay: bool,
    /// An empty packet is to be sent as soon as there is a session.
    pub(crate) owes_keepalive: bool,
    /// Whether the peer is in the list of those with something to send.
    pub(crate) listed: bool,
    pub(crate) timers: Timers,
    /// Where sealed packets go, and might go.
    pub(crate) paths: Paths,
    /// Whose packets pass.
    pub(crate) flows: Flows,
    pub(crate) key: PublicKey,
    pub(crate) stamp: Box<Stamp>,
    candidates: Vec<SocketAddr>,
    /// Where the next fan-out goes on in the list of candidates.
    next_candidate: usize,
    /// Our IPv4 and IPv6 address as the peer last saw them.
    pub(crate) seen_as: [Option<SocketAddr>; 2],
    /// Where the last initiation came from. It may have been an old one, repeated from elsewhere, so it moves no endpoint;
    /// but a peer without any other address may be waiting there.
    pub(crate) heard_at: Option<Path>,
    pub(crate) handshake: Option<PendingHandshake>,
    /// Proves to a peer under load that we receive where we send from.
    cookie: Option<(Tag, Instant)>,
    /// The first MAC of the last handshake message sent: what a cookie reply must answer.
    pub(crate) last_mac1: Option<Tag>,
    pub(crate) held: VecDeque<Vec<u8>>,
    pub(crate) notices: VecDeque<QueuedNotice>,
    pub(crate) pings: VecDeque<Ping>,
    pub(crate) last_handshake: Option<UnixTime>,
    pub(crate) rtt: Option<Duration>,
}

impl<C> Peer<C> {
    pub(crate) fn new(config: &PeerConfig) -> Self {
        Self {
            id: config.id,
            key: config.key,
            mesh: config.mesh,
            relay: config.relay,
            stamp: Box::new(Stamp::of(&config.key)),
            candidates: Vec::new(),
            next_candidate: 0,
            paths: Paths::default(),
            active: None,
            seen_as: [None; 2],
            heard_at: None,
            sessions: Sessions::default(),
            flows: Flows::default(),
            handshake: None,
            cookie: None,
            last_mac1: None,
            timers: Timers::default(),
            wakes_at: None,
            held: VecDeque::new(),
            notices: VecDeque::new(),
            pings: VecDeque::new(),
            owes_keepalive: false,
            listed: false,
            last_handshake: None,
            last_received: None,
            last_opened: None,
            sent_bytes: 0,
            received_bytes: 0,
            rtt: None,
        }
    }

    /// Takes over what may change while sessions go on (W28).
    ///
    /// Returns the streams that are not wanted any more.
    pub(crate) fn configure(&mut self, config: &PeerConfig, relays: &[NodeId], now: Instant) -> Vec<Link> {
        self.mesh = config.mesh;
        self.relay = config.relay && config.mesh;
        if !self.mesh {
            self.notices.clear();
            self.pings.clear();
        }
        let count = config.candidates.len().min(MAX_CANDIDATES);
        if self.candidates != config.candidates[..count] {
            self.candidates.clear();
            self.candidates.extend_from_slice(&config.candidates[..count]);
            self.next_candidate = 0;
        }
        let interval = config.persistent_keepalive.filter(|&secs| secs > 0);
        let interval = interval.map(|secs| Duration::from_secs(secs.into()));
        self.timers.set_persistent(interval.or_else(|| self.relay.then_some(RELAY_KEEPALIVE)), now);
        if !self.mesh {
            return Vec::new();
        }
        let relays = if self.relay { &[] } else { relays };
        let links = &config.links[..config.links.len().min(MAX_LINKS)];
        self.paths.configure(&self.candidates, links, relays, now)
    }

    /// Whether a handshake message has anywhere to go, or may have soon.
    pub(crate) fn has_path(&self) -> bool {
        self.paths.any() || self.heard_at.is_some() || !self.candidates.is_empty()
    }

    /// Whether there is a session to seal with, and the path engine is looking for a way to send by.
    pub(crate) fn lacks_only_a_path(&self, now: Instant) -> bool {
        self.mesh && self.sessions.current().is_some_and(|session| session.can_seal(now))
    }

    /// Whether it matters at the moment how the peer is reached: packets pass, or a session is sought.
    pub(crate) fn is_wanted(&self, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < ACTIVE_FOR;
        self.mesh && (self.active.is_some_and(lately) || self.timers.retrying() || !self.held.is_empty())
    }

    /// Where the next initiation goes: by the selected path alone at first, if it was heard lately; otherwise, or when that did not
    /// answer, by all others that there are and to candidates as well, another eight of them at each try.
    pub(crate) fn initiation_paths(
        &mut self,
        relays: &RelayViews,
        budgets: &mut Budgets,
        now: Instant,
    ) -> FanOut {
        let mut paths = FanOut::default();
        if let Some(selected) = self.paths.selected() {
            paths.push(selected);
            if self.timers.tries() <= 1 && (!self.mesh || self.paths.is_sure(now)) {
                return paths;
            }
        }
        if self.mesh {
            self.paths.for_handshake(relays).into_iter().for_each(|path| paths.push(path));
        }
        if let Some(heard_at) = self.heard_at {
            paths.push(heard_at);
        }
        let count = self.candidates.len();
        for _ in 0..count {
            if paths.is_full() {
                break;
            }
            let address = self.candidates[self.next_candidate];
            // A stock device's address is what an operator wrote; a node's is what it says of itself.
            if !self.mesh || self.paths.is_proven(address) || budgets.take(address, now).is_ok() {
                paths.push(Path::Udp(address));
            }
            self.next_candidate = (self.next_candidate + 1) % count;
        }
        paths
    }

    /// The cookie to stamp the next handshake message with.
    pub(crate) fn fresh_cookie(&self, now: Instant, lifetime: Duration) -> Option<&Tag> {
        self.cookie
            .as_ref()
            .filter(|(_, received)| now.saturating_duration_since(*received) < lifetime)
            .map(|(cookie, _)| cookie)
    }

    pub(crate) fn set_cookie(&mut self, cookie: Tag, now: Instant) {
        self.cookie = Some((cookie, now));
    }

    pub(crate) fn status(&self, relays: &RelayViews, hop: Option<Hop>, now: Instant) -> PeerStatus {
        let established = self.sessions.current().is_some_and(|session| session.can_seal(now));
        let state = match (established, self.timers.retrying()) {
            (true, _) => PeerState::Established,
            (false, true) => PeerState::Handshaking,
            (false, false) => PeerState::Idle,
        };
        PeerStatus {
            id: self.id,
            key: self.key,
            mesh: self.mesh,
            state,
            relay: self.relay,
            endpoint: self.paths.selected(),
            hop,
            paths: self.paths.status(relays),
            last_handshake: self.last_handshake,
            last_received: self.last_received,
            sent_bytes: self.sent_bytes,
            received_bytes: self.received_bytes,
            rtt: self.paths.rtt().or(self.rtt),
            held_packets: self.held.len(),
        }
    }
}

impl<C> fmt::Debug for Peer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("key", &self.key).finish_non_exhaustive()
    }
}

/// The paths that one initiation takes, each once.
#[derive(Debug, Default)]
pub(crate) struct FanOut {
    paths: [Option<Path>; MAX_FAN_OUT],
    len: usize,
}

impl FanOut {
    fn push(&mut self, path: Path) {
        if !self.is_full() && !self.paths.contains(&Some(path)) {
            self.paths[self.len] = Some(path);
            self.len += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.len == MAX_FAN_OUT
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Path> + '_ {
        self.paths.iter().flatten().copied()
    }
}
