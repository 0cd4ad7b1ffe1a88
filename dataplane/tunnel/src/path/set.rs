//! All paths to one peer: what is known of each, which one is taken, and what to do about the others and when.
//!
//! Plain state: `heard`, `answered` and the like go in, [`Paths::due`] says what is to be done now, and whoever asked does it.
//!
//! * What works is used at once, whatever it is; a better path is moved to when it has shown that it works.
//! * The path in use is probed every second while there is traffic. One missed probe makes it suspect: what is sent goes by the
//!   second best as well from then on. Three make it dead, and the next best is taken.
//! * What is better than the path in use is tried for ever, at growing intervals; what is worse is left alone, but for one or
//!   two that are kept warm.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::key::NodeId;
use crate::peer::LinkCandidate;

use super::budget::Budgets;
use super::probe::Probes;
use super::score::{Rank, Score};
use super::{Candidate, Channel, Hop, Link, Origin, Path, PathFailure, PathState, PathStatus};

/// Candidates of one peer that are kept. Of those it offered or was heard at, the deadest goes first.
pub(crate) const MAX_PATHS: usize = 64;
/// Relays that a node uses at a time.
pub(crate) const MAX_RELAYS: usize = 4;
/// How often the path in use is probed while there is traffic.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a relay is probed that nobody is reached through at the moment: it must know where we are.
const REST_INTERVAL: Duration = Duration::from_secs(20);
/// How often a path is probed that works and is not in use.
const STANDBY_INTERVAL: Duration = Duration::from_secs(5);
/// Between the first two answers of a path that may become the one in use.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// Missed probes, in a row, that end the use of a path.
const LEAVE_AFTER: u32 = 3;
/// The same for a path that loses some all the time, and for one from which other things are still heard.
const LEAVE_LATE_AFTER: u32 = 6;
/// Probes from which loss is believed.
const LOSS_SAMPLES: u32 = 8;
/// Loss that counts as "all the time", percent.
const OFTEN_LOSES: u8 = 10;
/// Pauses between tries of a path that does not answer.
const BACK_OFF: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(10),
];
/// The longest pause while nothing works at all.
const BACK_OFF_CUT_OFF: Duration = Duration::from_secs(3);
/// Probes of one try, and how far they are apart: the first opens our NAT, and what the peer's drops is the second's chance.
const BURST: [Duration; 3] = [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(400)];
/// Silence on every path, none of which works, after which the peer may have forgotten the session.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a peer's offer makes an idle side probe: it is about to send.
const PROMPTED_FOR: Duration = Duration::from_secs(3);
/// Between two offers at least, whatever prompts them.
const LEAST_OFFER_PAUSE: Duration = Duration::from_secs(2);
/// How long a stream may take to open before it is asked for again.
const OPENING_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a relay may take to answer, before it is asked again.
const BIND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a search may go without any working path before streams are opened.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a stream of ours stays open while something better is in use.
const LINGER: Duration = Duration::from_secs(60);
/// A path not heard from for so long may have lost its mapping in a NAT: the first packets go by another one as well.
const DOUBT_AFTER: Duration = Duration::from_secs(25);
/// Bytes of an Ethernet frame's payload, which is what a path is taken to carry until it is measured.
const OUTER_MTU: u16 = 1500;
/// Bytes of a data message around its packet.
const MESSAGE_OVERHEAD: u16 = 32;
const UDP_V4_OVERHEAD: u16 = 28;
const UDP_V6_OVERHEAD: u16 = 48;
const RELAY_OVERHEAD: u16 = 8;
/// The longest packet that a stream's frames carry.
const LINK_MTU: u16 = 9000;

/// A relay as the paths through it see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayView {
    pub(crate) id: NodeId,
    /// Where it is reached; none if it is not.
    pub(crate) hop: Option<Hop>,
}

/// All relays of this node.
pub(crate) type RelayViews = heapless::Vec<RelayView, MAX_RELAYS>;

/// What is to be done for a peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a probe by this path. `selected`: say that it is the one in use. `streamed`: and that it leaves us over a stream.
    Probe { path: Path, selected: bool, streamed: bool, token: u64 },
    /// Ask a relay for a channel.
    Bind { relay: NodeId },
    /// Open a stream.
    Open(LinkCandidate),
    /// Close a stream.
    Close(Link),
    /// Tell the peer where we are, and ask where it is.
    Offer,
}

/// What the peer's state is, as far as paths are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) relays: &'a RelayViews,
    /// There is traffic, or a session is sought: it matters how the peer is reached.
    pub(crate) wanted: bool,
    /// The peer relays for us: it matters all the time, a little.
    pub(crate) kept: bool,
    /// There is a session to seal probes with.
    pub(crate) session: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    candidate: Candidate,
    origin: Origin,
    state: PathState,
    link: Option<Link>,
    channel: Option<u32>,
    probes: Probes,
    /// It lost some probes before it became suspect, too.
    often_loses: bool,
    /// Something authentic came by it.
    heard: Option<Instant>,
    /// Something authentic came by it at any time since the process began. Its source may have been forged.
    verified: bool,
    /// Something came back by it that only the receiver could answer.
    proven: bool,
    failure: Option<PathFailure>,
    /// When it wants attention next.
    next: Option<Instant>,
    /// Tries in a row that came to nothing.
    round: usize,
    /// Place in the burst of the present try.
    burst: usize,
    /// A relay is to be asked (again) for a channel.
    bind: bool,
    /// The peer reaches the relay over a stream.
    streamed: bool,
    /// Since when a stream of ours is not needed.
    idle_since: Option<Instant>,
}

impl Entry {
    fn new(candidate: Candidate, origin: Origin) -> Self {
        let state = match candidate {
            Candidate::Udp(_) | Candidate::Incoming(_) => PathState::Untried,
            Candidate::Relay(_) | Candidate::Link(_) => PathState::Closed,
        };
        Self {
            candidate,
            origin,
            state,
            link: None,
            channel: None,
            probes: Probes::default(),
            often_loses: false,
            heard: None,
            verified: false,
            proven: false,
            failure: None,
            next: None,
            round: 0,
            burst: 0,
            bind: false,
            streamed: false,
            idle_since: None,
        }
    }

    /// The path that it is, once there is one.
    fn path(&self) -> Option<Path> {
        match self.candidate {
            Candidate::Udp(address) => Some(Path::Udp(address)),
            Candidate::Incoming(link) => Some(Path::Link(link)),
            Candidate::Link(_) => self.link.map(Path::Link),
            Candidate::Relay(relay) => self.channel.map(|number| Path::Relay(Channel { relay, number })),
        }
    }

    /// The hop to its relay, if it has one.
    fn relay_hop(&self, relays: &RelayViews) -> Option<Hop> {
        let Candidate::Relay(id) = self.candidate else { return None };
        relays.iter().find(|relay| relay.id == id)?.hop
    }

    /// The path, if a datagram can be sent by it now.
    fn usable(&self, relays: &RelayViews) -> Option<Path> {
        let reached = !matches!(self.candidate, Candidate::Relay(_)) || self.relay_hop(relays).is_some();
        self.path().filter(|_| reached)
    }

    fn rank(&self, relays: &RelayViews) -> Rank {
        let rank = Rank::of(self.candidate, self.relay_hop(relays));
        // The worse half is what counts, or the two sides would choose differently.
        if rank == Rank::Relayed && self.streamed { Rank::WebSocket } else { rank }
    }

    fn works(&self) -> bool {
        self.state == PathState::Working
    }

    fn score(&self, relays: &RelayViews) -> Score {
        Score {
            rank: self.rank(relays),
            rtt: self.probes.rtt(),
            loss: self.probes.loss(),
            samples: self.probes.samples(),
            answered: self.probes.answered_in_a_row(),
        }
    }

    /// Another try begins now.
    fn try_now(&mut self, now: Instant) {
        self.burst = 0;
        self.next = Some(now);
    }

    /// A stream or a channel is there: it is tried as if it were new.
    fn open(&mut self, now: Instant) {
        self.state = PathState::Untried;
        self.failure = None;
        self.probes.restart();
        self.round = 0;
        self.idle_since = None;
        self.try_now(now);
    }

    fn fail(&mut self, failure: PathFailure, state: PathState) {
        self.failure = Some(failure);
        self.state = state;
    }

    fn wait(&mut self, now: Instant, anything_works: bool) {
        let pause = BACK_OFF[self.round.min(BACK_OFF.len() - 1)];
        self.round = self.round.saturating_add(1);
        self.burst = 0;
        self.next = Some(now + if anything_works { pause } else { pause.min(BACK_OFF_CUT_OFF) });
    }

    const fn mtu(&self, hop: Option<Hop>) -> u16 {
        let (address, relayed) = match (self.candidate, hop) {
            (Candidate::Udp(address), _) => (address, 0),
            (Candidate::Relay(_), Some(Hop::Udp(address))) => (address, RELAY_OVERHEAD),
            (Candidate::Link(_) | Candidate::Incoming(_) | Candidate::Relay(_), _) => return LINK_MTU,
        };
        let udp = if address.is_ipv4() { UDP_V4_OVERHEAD } else { UDP_V6_OVERHEAD };
        OUTER_MTU - udp - relayed - MESSAGE_OVERHEAD
    }
}

/// Where a peer's packets come from of late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Led {
    path: Path,
    /// We do not probe the peer, so it is the one who knows.
    follow: bool,
}

/// All paths to a peer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    entries: Vec<Entry>,
    /// Sealed packets go by it.
    selected: Option<Path>,
    /// While the selected path is in doubt: they go by this one as well.
    twin: Option<Path>,
    /// Where in the list the last datagram came in: usually so does the next.
    last_heard: usize,
    /// Since when the peer is wanted and nothing works.
    searching_since: Option<Instant>,
    /// The next offer of our candidates, while there is no direct path.
    offer: Option<Instant>,
    offers: usize,
    /// When the last one was made.
    offered_at: Option<Instant>,
    /// When the last try was begun because the peer asked for it.
    prompted: Option<Instant>,
    /// When anything here wants attention.
    next: Option<Instant>,
    /// The selected path is probed every second at present.
    brisk: bool,
    /// It was told that no path works any more.
    told_lost: bool,
    /// Where the peer's packets come from, as long as it has not shown that it receives there as well.
    led: Option<Led>,
}

impl Paths {
    /// The path that sealed packets take.
    pub(crate) fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// The path that they take besides, while the selected one is in doubt.
    pub(crate) fn twin(&self) -> Option<Path> {
        self.twin
    }

    /// When [`due`](Self::due) wants to be asked.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Something changed that [`due`](Self::due) should look at.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.next = Some(self.next.map_or(now, |next| next.min(now)));
    }

    /// Nothing here wants attention: the peer is not one of ours.
    pub(crate) fn rest(&mut self) {
        self.next = None;
    }

    /// Brings what the map says in line: UDP addresses, streams to open, relays.
    pub(crate) fn configure(
        &mut self,
        addresses: &[SocketAddr],
        links: &[LinkCandidate],
        relays: &[NodeId],
        now: Instant,
    ) -> Vec<Link> {
        let wanted: Vec<Candidate> = (addresses.iter().map(|&address| Candidate::Udp(address)))
            .chain(links.iter().map(|&link| Candidate::Link(link)))
            .chain(relays.iter().map(|&relay| Candidate::Relay(relay)))
            .collect();
        let mut closed = Vec::new();
        let selected = self.selected;
        self.entries.retain(|entry| {
            let stays = entry.origin != Origin::Map
                || wanted.contains(&entry.candidate)
                // A path that works is not given up because a record is late.
                || (matches!(entry.candidate, Candidate::Udp(_)) && entry.verified && entry.path() == selected);
            closed.extend(entry.link.filter(|_| !stays));
            stays
        });
        for candidate in wanted {
            match self.entries.iter_mut().find(|entry| entry.candidate == candidate) {
                Some(entry) => entry.origin = Origin::Map,
                None => {
                    self.make_room();
                    let mut entry = Entry::new(candidate, Origin::Map);
                    if matches!(candidate, Candidate::Udp(_)) {
                        entry.try_now(now);
                    }
                    self.entries.push(entry);
                    self.wake(now);
                }
            }
        }
        self.forget_lost();
        closed
    }

    /// Makes room for one more candidate.
    fn make_room(&mut self) {
        if self.entries.len() < MAX_PATHS {
            return;
        }
        let selected = self.selected;
        let expendable = |entry: &Entry| entry.path() != selected || selected.is_none();
        let value = |entry: &Entry| (entry.origin == Origin::Map, entry.works(), entry.heard);
        let least = (0..self.entries.len())
            .filter(|&at| expendable(&self.entries[at]))
            .min_by_key(|&at| value(&self.entries[at]));
        if let Some(least) = least {
            self.entries.remove(least);
        }
    }

    /// A selected or second path that is no entry's any more is none.
    fn forget_lost(&mut self) {
        let exists = |path: &Path| self.entries.iter().any(|entry| entry.path() == Some(*path));
        if self.selected.as_ref().is_some_and(|path| !exists(path)) {
            self.selected = None;
        }
        if self.twin.as_ref().is_some_and(|path| !exists(path)) {
            self.twin = None;
        }
    }

    fn by_path(&mut self, path: Path) -> Option<&mut Entry> {
        let at = self.position(path)?;
        self.entries.get_mut(at)
    }

    fn position(&self, path: Path) -> Option<usize> {
        let here = |entry: &Entry| entry.path() == Some(path);
        if self.entries.get(self.last_heard).is_some_and(here) {
            return Some(self.last_heard);
        }
        self.entries.iter().position(here)
    }

    /// Something authentic and new came by `path`. `leads`: it tells that the peer's own packets take this path. `follow`: we do
    /// not probe this peer, so it is the one who knows. Returns whether the selected path changed.
    pub(crate) fn heard(&mut self, path: Path, leads: bool, follow: bool, now: Instant) -> bool {
        let at = self.position(path).unwrap_or_else(|| self.insert_heard(path, now));
        self.last_heard = at;
        let Some(entry) = self.entries.get_mut(at) else { return false };
        let proven = entry.proven || !matches!(path, Path::Udp(_));
        let first = entry.heard.replace(now).is_none();
        if !entry.verified || matches!(entry.state, PathState::Dead) {
            entry.verified = true;
            // The peer is there: no reason to wait for the next try.
            if !entry.probes.awaits() {
                entry.try_now(now);
            }
            self.wake(now);
        }
        if self.selected == Some(path) {
            if self.twin.is_some() && !self.is_suspect(path) {
                self.twin = None;
            }
            return false;
        }
        if first && leads {
            // Perhaps it has moved: then the path in use will not answer.
            self.doubt_selected(now);
        }
        let doubted = self.selected.is_none_or(|selected| self.is_doubted(selected, now));
        if self.selected.is_some() && !(leads && (follow || doubted)) {
            return false;
        }
        if proven {
            self.led = None;
            return self.select(path, now);
        }
        // The source of a datagram can be forged: the peer is believed to be there when it answers from there.
        if leads && self.led.is_none_or(|led| led.path != path) {
            self.led = Some(Led { path, follow });
            if let Some(entry) = self.entries.get_mut(at) {
                entry.try_now(now);
            }
            self.wake(now);
        }
        false
    }

    /// The selected path is asked at once whether it still works.
    fn doubt_selected(&mut self, now: Instant) {
        if let Some(entry) = self.selected.and_then(|path| self.by_path(path))
            && !entry.probes.awaits()
        {
            entry.next = Some(now);
            self.wake(now);
        }
    }

    /// A probe of the peer's came by `path`, and told whether it left the peer over a stream to the relay.
    pub(crate) fn probed(&mut self, path: Path, streamed: bool, now: Instant) {
        if let Some(entry) = self.by_path(path)
            && entry.streamed != streamed
        {
            entry.streamed = streamed;
            self.wake(now);
        }
    }

    /// A path that the peer was heard at and that nobody named.
    fn insert_heard(&mut self, path: Path, now: Instant) -> usize {
        match path {
            // Channels are named by the relay; the peer may have bound the pair before we did.
            Path::Relay(Channel { relay, number }) => {
                let known = self.entries.iter().position(|entry| entry.candidate == Candidate::Relay(relay));
                let at = known.unwrap_or_else(|| self.push(Candidate::Relay(relay)));
                let entry = &mut self.entries[at];
                let former = entry.path();
                entry.channel = Some(number);
                entry.bind = false;
                if !entry.works() {
                    entry.open(now);
                }
                let present = entry.path();
                if former.is_some() && self.selected == former {
                    self.selected = present;
                }
                if former.is_some() && self.twin == former {
                    self.twin = present;
                }
                at
            }
            Path::Udp(address) => self.push(Candidate::Udp(address)),
            Path::Link(link) => self.push(Candidate::Incoming(link)),
        }
    }

    fn push(&mut self, candidate: Candidate) -> usize {
        self.make_room();
        self.entries.push(Entry::new(candidate, Origin::Heard));
        self.entries.len() - 1
    }

    fn is_suspect(&self, path: Path) -> bool {
        let entry = self.position(path).and_then(|at| self.entries.get(at));
        entry.is_none_or(|entry| matches!(entry.state, PathState::Suspect | PathState::Dead))
    }

    /// Whether a path is suspect, or silent for longer than the peer's own probes would let it be.
    fn is_doubted(&self, path: Path, now: Instant) -> bool {
        let entry = self.position(path).and_then(|at| self.entries.get(at));
        let silent = entry
            .and_then(|entry| entry.heard)
            .is_none_or(|heard| now.saturating_duration_since(heard) > PROBE_INTERVAL + FIRST_SILENCE);
        self.is_suspect(path) || silent
    }

    fn select(&mut self, path: Path, now: Instant) -> bool {
        let changed = self.selected != Some(path);
        self.selected = Some(path);
        if changed && let Some(entry) = self.by_path(path) {
            // The peer hears at once that this is our path now: its side follows if it does not probe us.
            entry.next = Some(now);
        }
        if self.twin == Some(path) {
            self.twin = None;
        }
        changed
    }

    /// The peer, which has no paths but UDP addresses, was heard at `path`: that is where it is (W21).
    pub(crate) fn follow(&mut self, path: Path, now: Instant) -> bool {
        let at = self.position(path).unwrap_or_else(|| self.insert_heard(path, now));
        self.last_heard = at;
        if let Some(entry) = self.entries.get_mut(at) {
            entry.heard = Some(now);
            entry.verified = true;
        }
        self.select(path, now)
    }

    /// A handshake went there and back by `path`.
    pub(crate) fn proved(&mut self, path: Path, now: Instant) -> bool {
        if self.position(path).is_none() {
            self.insert_heard(path, now);
        }
        let Some(entry) = self.by_path(path) else { return false };
        entry.heard = Some(now);
        entry.verified = true;
        entry.proven = true;
        if !matches!(entry.state, PathState::Working | PathState::Suspect) {
            entry.probes.forget_losses();
        }
        entry.state = PathState::Working;
        entry.failure = None;
        entry.round = 0;
        entry.probes.restart();
        entry.next = Some(now);
        self.searching_since = None;
        self.wake(now);
        let better = self
            .selected
            .is_none_or(|selected| self.is_doubted(selected, now) || !self.is_verified(selected));
        better && self.select(path, now)
    }

    fn is_verified(&self, path: Path) -> bool {
        self.position(path).and_then(|at| self.entries.get(at)).is_some_and(|entry| entry.verified)
    }

    /// A probe was answered by the path that it took, unless this is no answer to any of ours.
    pub(crate) fn answered(&mut self, path: Path, token: u64, now: Instant) -> Option<Answered> {
        let entry = self.by_path(path)?;
        let took = entry.probes.answered(token, now)?;
        if !entry.works() {
            if entry.state != PathState::Suspect {
                // What was lost while it was gone says nothing about it now.
                entry.probes.forget_losses();
            }
            entry.state = PathState::Working;
            entry.failure = None;
        }
        entry.verified = true;
        entry.proven = true;
        entry.round = 0;
        entry.burst = 0;
        // The next one when its turn comes, unless the first answer is to be confirmed.
        entry.next = (entry.probes.answered_in_a_row() < 2).then(|| now + CONFIRM_AFTER);
        self.searching_since = None;
        self.wake(now);
        let led = self.led.take_if(|led| led.path == path);
        let doubted = self.selected.is_none_or(|selected| self.is_doubted(selected, now));
        let changed = led.is_some_and(|led| led.follow || doubted) && self.select(path, now);
        Some(Answered { took, changed })
    }

    /// A stream was opened.
    pub(crate) fn link_opened(&mut self, number: u32, link: Link, now: Instant) -> bool {
        let is =
            |entry: &&mut Entry| matches!(entry.candidate, Candidate::Link(known) if known.number == number);
        let Some(entry) = self.entries.iter_mut().find(is) else { return false };
        entry.link = Some(link);
        entry.open(now);
        self.wake(now);
        true
    }

    /// A stream could not be opened.
    pub(crate) fn link_failed(&mut self, number: u32, now: Instant) {
        let anything_works = self.anything_works();
        let is =
            |entry: &&mut Entry| matches!(entry.candidate, Candidate::Link(known) if known.number == number);
        if let Some(entry) = self.entries.iter_mut().find(is) {
            entry.fail(PathFailure::LinkRefused, PathState::Closed);
            entry.wait(now, anything_works);
            self.wake(now);
        }
    }

    /// A stream ended. Tells whether it was one of these.
    pub(crate) fn link_closed(&mut self, link: Link, now: Instant) -> bool {
        let Some(at) = self.position(Path::Link(link)) else { return false };
        let anything_works = self.anything_works();
        let entry = &mut self.entries[at];
        if let Candidate::Link(_) = entry.candidate {
            entry.link = None;
            entry.probes.restart();
            entry.fail(PathFailure::LinkClosed, PathState::Closed);
            entry.wait(now, anything_works);
        } else {
            self.entries.remove(at);
        }
        self.forget_lost();
        self.wake(now);
        true
    }

    /// A relay gave a channel. Tells whether something can be sent by it that could not before.
    pub(crate) fn bound(&mut self, relay: NodeId, number: u32, present: bool, now: Instant) -> bool {
        let Some(at) = self.entries.iter().position(|entry| entry.candidate == Candidate::Relay(relay))
        else {
            return false;
        };
        let entry = &mut self.entries[at];
        let former = entry.path();
        let news = entry.channel != Some(number) || entry.failure == Some(PathFailure::PeerNotAtRelay);
        entry.channel = Some(number);
        entry.bind = false;
        if present && (news || matches!(entry.state, PathState::Closed | PathState::Opening)) {
            entry.open(now);
        } else if !present {
            entry.fail(PathFailure::PeerNotAtRelay, PathState::Dead);
            entry.next = Some(now + BACK_OFF[2]);
        }
        let path = entry.path();
        if former.is_some() && self.selected == former {
            self.selected = path;
        }
        if former.is_some() && self.twin == former {
            self.twin = path;
        }
        self.wake(now);
        present && news
    }

    /// A relay refused a channel.
    pub(crate) fn bind_refused(&mut self, relay: NodeId, failure: PathFailure, now: Instant) {
        let is = |entry: &&mut Entry| entry.candidate == Candidate::Relay(relay);
        if let Some(entry) = self.entries.iter_mut().find(is) {
            entry.channel = None;
            entry.bind = false;
            entry.fail(failure, PathState::Closed);
            entry.round = entry.round.max(3);
            entry.wait(now, true);
            self.forget_lost();
            self.wake(now);
        }
    }

    /// There is a new session with a relay, which may have forgotten its channels.
    pub(crate) fn rebind(&mut self, relay: NodeId, now: Instant) {
        let is = |entry: &&mut Entry| entry.candidate == Candidate::Relay(relay);
        if let Some(entry) = self.entries.iter_mut().find(is) {
            entry.bind = true;
            entry.next = Some(now);
            self.wake(now);
        }
    }

    /// The peer says where it may be reached, and tries us now.
    pub(crate) fn offered(&mut self, addresses: impl Iterator<Item = SocketAddr>, now: Instant) {
        let addresses: Vec<SocketAddr> = addresses.collect();
        let selected = self.selected;
        self.entries.retain(|entry| {
            let Candidate::Udp(address) = entry.candidate else { return true };
            entry.origin != Origin::Offered
                || addresses.contains(&address)
                || entry.works()
                || entry.path() == selected
        });
        for address in addresses {
            if !self.entries.iter().any(|entry| entry.candidate == Candidate::Udp(address)) {
                self.make_room();
                self.entries.push(Entry::new(Candidate::Udp(address), Origin::Offered));
            }
        }
        self.last_heard = 0;
        let lately = |at: Instant| now.saturating_duration_since(at) < PROBE_INTERVAL;
        if !self.prompted.is_some_and(lately) {
            self.prompted = Some(now);
            self.try_addresses(now);
        }
        self.wake(now);
    }

    /// Every address that does not work is tried now.
    fn try_addresses(&mut self, now: Instant) {
        for entry in &mut self.entries {
            let silent = matches!(entry.state, PathState::Untried | PathState::Dead);
            if matches!(entry.candidate, Candidate::Udp(_)) && silent {
                entry.try_now(now);
            }
        }
    }

    /// There is a session where there was none, or traffic after a rest: everything is looked at.
    pub(crate) fn revive(&mut self, now: Instant) {
        self.offers = 0;
        self.offer = Some(now);
        for entry in &mut self.entries {
            entry.round = 0;
            if matches!(entry.state, PathState::Working | PathState::Suspect) || entry.path().is_some() {
                entry.try_now(now);
            } else if entry.next.is_none() {
                entry.next = Some(now);
            }
        }
        let silent = |entry: &Entry| {
            entry.heard.is_none_or(|heard| now.saturating_duration_since(heard) > DOUBT_AFTER)
        };
        let selected = self.selected.and_then(|path| self.position(path));
        if selected.is_some_and(|at| silent(&self.entries[at])) {
            self.twin = self.second_best_path();
        }
        self.wake(now);
    }

    /// Where packets might go besides the selected path, without regard to whether it works.
    fn second_best_path(&self) -> Option<Path> {
        let others = self.entries.iter().filter(|entry| entry.path() != self.selected);
        let streams = others.filter(|entry| !matches!(entry.candidate, Candidate::Udp(_)) || entry.works());
        streams.filter(|entry| entry.state != PathState::Dead).find_map(Entry::path)
    }

    /// We know better where we are: the peer should hear of it.
    pub(crate) fn offer_soon(&mut self, now: Instant) {
        let soon = self.offered_at.map_or(now, |at| (at + LEAST_OFFER_PAUSE).max(now));
        if !self.is_direct() && self.offer.is_none_or(|offer| offer > soon) {
            self.offer = Some(soon);
            self.wake(soon);
        }
    }

    /// The machine's network changed: what works over UDP may not do so any more.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        for entry in &mut self.entries {
            let stream = matches!(entry.candidate, Candidate::Link(_) | Candidate::Incoming(_))
                && entry.path().is_some();
            if matches!(entry.candidate, Candidate::Udp(_)) || stream {
                if entry.works() {
                    entry.state = PathState::Suspect;
                }
                entry.round = 0;
                entry.probes.restart();
                entry.try_now(now);
            } else if entry.state == PathState::Closed {
                entry.round = 0;
                entry.next = Some(now);
            }
        }
        self.offers = 0;
        self.offer = Some(now);
        self.wake(now);
    }

    /// Whether anything answers.
    pub(crate) fn anything_works(&self) -> bool {
        self.entries.iter().any(Entry::works)
    }

    /// Whether there is anything to send a handshake message by, now or perhaps soon.
    pub(crate) fn any(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Streams that are open.
    pub(crate) fn links(&self) -> impl Iterator<Item = Link> + '_ {
        self.entries.iter().filter_map(|entry| match entry.path()? {
            Path::Link(link) => Some(link),
            Path::Udp(_) | Path::Relay(_) => None,
        })
    }

    /// The path through a relay, if it gave a channel.
    pub(crate) fn relayed_by(&self, relay: NodeId) -> Option<Path> {
        self.entries.iter().find(|entry| entry.candidate == Candidate::Relay(relay))?.path()
    }

    /// Whether the peer is reached without anybody in between, over UDP.
    fn is_direct(&self) -> bool {
        matches!(self.selected, Some(path @ Path::Udp(_)) if !self.is_suspect(path))
    }

    /// Paths for a handshake message besides UDP addresses that are only candidates: the selected one first.
    pub(crate) fn for_handshake(&self, relays: &RelayViews) -> Vec<Path> {
        let mut paths: Vec<&Entry> =
            self.entries.iter().filter(|entry| entry.usable(relays).is_some()).collect();
        paths.retain(|entry| entry.proven || !matches!(entry.candidate, Candidate::Udp(_)));
        paths.sort_by_key(|entry| (entry.path() != self.selected, !entry.works(), entry.rank(relays)));
        paths.into_iter().filter_map(Entry::path).collect()
    }

    /// Whether anything came back from this address that only the receiver could answer.
    pub(crate) fn is_proven(&self, address: SocketAddr) -> bool {
        self.entries.iter().any(|entry| entry.candidate == Candidate::Udp(address) && entry.proven)
    }

    /// Whether the selected path was heard lately enough for a handshake to go by it alone.
    pub(crate) fn is_sure(&self, now: Instant) -> bool {
        let selected = self.selected.and_then(|path| self.position(path)).and_then(|at| self.entries.get(at));
        selected.is_some_and(|entry| {
            !matches!(entry.state, PathState::Suspect | PathState::Dead)
                && entry.heard.is_some_and(|heard| now.saturating_duration_since(heard) < DOUBT_AFTER)
        })
    }

    /// Does what needs nobody else, and appends what somebody else must do. Returns whether the selected path changed, and whether the
    /// last path that worked has just died.
    pub(crate) fn due(
        &mut self,
        context: Context<'_>,
        budgets: &mut Budgets,
        mut token: impl FnMut() -> Option<u64>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) -> Outcome {
        self.follow_relays(context.relays, now);
        self.expire(now);
        self.close_dead(actions, now);
        self.brisk = context.wanted;
        // A side that does not probe knows nothing better than what the peer leads it to.
        let alive = context.wanted || context.kept || self.selected.is_none();
        let mut changed = alive && self.choose(context.relays, now);
        let works = self.anything_works();
        self.searching_since = match (context.wanted || context.kept, works) {
            (true, false) => self.searching_since.or(Some(now)),
            _ => None,
        };
        for at in 0..self.entries.len() {
            if self.entries[at].next.is_some_and(|next| next <= now) {
                self.entries[at].next = None;
                self.attend(at, context, budgets, &mut token, actions, now);
            }
        }
        self.offer_if_due(context, actions, now);
        changed |= alive && self.choose(context.relays, now);
        self.set_twin(context.relays);
        self.close_surplus(context, actions, now);
        self.plan(context, now);
        Outcome { changed, lost: alive && self.is_lost(now) }
    }

    /// Whether no path works any more and nothing was heard for a while: told once for each time that it comes to that.
    fn is_lost(&mut self, now: Instant) -> bool {
        if self.anything_works() || self.selected.is_some_and(|path| !self.is_dead(path)) {
            self.told_lost = false;
            return false;
        }
        let Some(silent_at) = self.silent_at() else { return false };
        silent_at <= now && !std::mem::replace(&mut self.told_lost, true)
    }

    /// When the peer has been silent for so long, on every path, that it may have forgotten the session.
    fn silent_at(&self) -> Option<Instant> {
        self.entries.iter().filter_map(|entry| entry.heard).max().map(|heard| heard + SILENCE)
    }

    fn is_dead(&self, path: Path) -> bool {
        let entry = self.position(path).and_then(|at| self.entries.get(at));
        entry.is_none_or(|entry| entry.state == PathState::Dead)
    }

    /// A path through a relay is as good as the way to the relay.
    fn follow_relays(&mut self, relays: &RelayViews, now: Instant) {
        for entry in self.entries.iter_mut().filter(|entry| entry.channel.is_some()) {
            match (entry.relay_hop(relays), entry.failure) {
                (None, failure) if failure != Some(PathFailure::RelayUnreached) => {
                    entry.probes.restart();
                    entry.fail(PathFailure::RelayUnreached, PathState::Dead);
                    entry.next = Some(now + BIND_TIMEOUT);
                }
                (Some(_), Some(PathFailure::RelayUnreached)) => entry.open(now),
                (None | Some(_), _) => {}
            }
        }
    }

    /// Counts probes that were not answered in time.
    fn expire(&mut self, now: Instant) {
        let anything_else = |entries: &[Entry], at: usize| {
            entries.iter().enumerate().any(|(other, entry)| other != at && entry.works())
        };
        for at in 0..self.entries.len() {
            let others = anything_else(&self.entries, at);
            let entry = &mut self.entries[at];
            let loss_before =
                entry.probes.loss().filter(|_| entry.probes.samples() >= LOSS_SAMPLES).unwrap_or(0);
            if !entry.probes.expire(now) {
                continue;
            }
            match entry.state {
                PathState::Working => {
                    entry.state = PathState::Suspect;
                    entry.often_loses = loss_before >= OFTEN_LOSES;
                    entry.next = Some(now);
                }
                PathState::Suspect => {
                    let missed = entry.probes.missed();
                    let heard_since = entry.heard.is_some_and(|heard| {
                        now.saturating_duration_since(heard) < PROBE_INTERVAL + FIRST_SILENCE
                    });
                    let patient = heard_since || entry.often_loses;
                    if missed >= if patient { LEAVE_LATE_AFTER } else { LEAVE_AFTER } {
                        entry.fail(PathFailure::NoAnswer, PathState::Dead);
                        // The relay may have forgotten the channel.
                        entry.bind = matches!(entry.candidate, Candidate::Relay(_));
                        entry.round = 0;
                        entry.wait(now, others);
                    } else {
                        entry.next = Some(now);
                    }
                }
                PathState::Untried | PathState::Dead if !entry.probes.awaits() && entry.next.is_none() => {
                    entry.fail(PathFailure::NoAnswer, PathState::Dead);
                    entry.bind = matches!(entry.candidate, Candidate::Relay(_));
                    entry.wait(now, others);
                    let path = entry.path();
                    self.led.take_if(|led| Some(led.path) == path);
                }
                PathState::Untried | PathState::Dead | PathState::Closed | PathState::Opening => {}
            }
        }
    }

    /// Takes the best path there is, if the one in use is not good enough.
    fn choose(&mut self, relays: &RelayViews, now: Instant) -> bool {
        let best = self
            .entries
            .iter()
            .filter(|entry| entry.works() && entry.usable(relays).is_some())
            .min_by_key(|entry| entry.score(relays).order());
        let current = self.selected.and_then(|path| self.position(path)).and_then(|at| self.entries.get(at));
        let current = current.filter(|entry| entry.usable(relays).is_some());
        let path = match (current, best) {
            (None, Some(best)) => best.path(),
            (None, None) => self.untried(relays),
            (Some(current), best) => match (current.state, best) {
                (PathState::Working, Some(_)) => self.better_than(current, relays),
                (PathState::Suspect, _) => None,
                // Not known to work, but in use: what is known to work is better.
                (_, Some(best)) => best.path(),
                (PathState::Dead, None) => self.untried(relays),
                (_, None) => None,
            },
        };
        path.is_some_and(|path| self.select(path, now))
    }

    /// The best of those that are worth leaving `current` for.
    fn better_than(&self, current: &Entry, relays: &RelayViews) -> Option<Path> {
        let score = current.score(relays);
        // The peer was heard elsewhere since it was last heard here: it has moved.
        let moved = |entry: &Entry| {
            self.brisk
                && entry.rank(relays) <= score.rank
                && entry.heard > current.heard
                && current.heard.zip(entry.heard).is_some_and(|(here, there)| {
                    there.saturating_duration_since(here) > PROBE_INTERVAL + FIRST_SILENCE
                })
        };
        // It worked, but nothing came by it for longer than by the one in use.
        let stale = |entry: &Entry| {
            current.heard.zip(entry.heard).is_some_and(|(here, there)| {
                here.saturating_duration_since(there) > PROBE_INTERVAL + FIRST_SILENCE
            })
        };
        self.entries
            .iter()
            .filter(|entry| entry.works() && entry.usable(relays).is_some() && entry.path() != current.path())
            .filter(|entry| (entry.score(relays).beats(&score) && !stale(entry)) || moved(entry))
            .min_by_key(|entry| entry.score(relays).order())
            .and_then(Entry::path)
    }

    /// Something to send by of which it is not known that it does not work.
    fn untried(&self, relays: &RelayViews) -> Option<Path> {
        let open = |entry: &&Entry| {
            !matches!(entry.candidate, Candidate::Udp(_))
                && matches!(entry.state, PathState::Untried | PathState::Suspect)
                && entry.usable(relays).is_some()
        };
        self.entries.iter().filter(open).min_by_key(|entry| entry.rank(relays)).and_then(Entry::path)
    }

    /// While the selected path is suspect, packets go by the next best as well.
    fn set_twin(&mut self, relays: &RelayViews) {
        let suspect = self
            .selected
            .and_then(|path| self.position(path))
            .is_some_and(|at| self.entries[at].state == PathState::Suspect);
        if suspect {
            let others = self.entries.iter().filter(|entry| entry.path() != self.selected);
            let able = others.filter(|entry| {
                let open = !matches!(entry.candidate, Candidate::Udp(_)) && entry.state == PathState::Untried;
                (entry.works() || open) && entry.usable(relays).is_some()
            });
            self.twin =
                able.min_by_key(|entry| (!entry.works(), entry.score(relays).order())).and_then(Entry::path);
        } else if let Some(twin) = self.twin {
            // One set because of a long rest stays until something is heard.
            let usable = self.position(twin).is_some_and(|at| self.entries[at].usable(relays).is_some());
            if !usable {
                self.twin = None;
            }
        }
    }

    /// Does what an entry is due for.
    fn attend(
        &mut self,
        at: usize,
        context: Context<'_>,
        budgets: &mut Budgets,
        token: &mut impl FnMut() -> Option<u64>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        let prompted = matches!(self.entries[at].candidate, Candidate::Udp(_)) && self.is_prompted(now);
        if !context.wanted && !context.kept && !prompted && !self.is_led(at) {
            return;
        }
        let may_dial = self.may_dial(at, context, now);
        let entry = &mut self.entries[at];
        match entry.candidate {
            Candidate::Relay(relay) => {
                let reached = entry.relay_hop(context.relays).is_some();
                if !reached {
                    entry.failure = Some(PathFailure::RelayUnreached);
                    entry.next = Some(now + BIND_TIMEOUT);
                    return;
                }
                if entry.channel.is_none() || entry.bind {
                    if entry.state == PathState::Opening {
                        entry.failure = Some(PathFailure::RelaySilent);
                    }
                    if entry.channel.is_none() {
                        entry.state = PathState::Opening;
                    }
                    actions.push(Action::Bind { relay });
                    entry.next = Some(now + BIND_TIMEOUT);
                    if entry.channel.is_none() {
                        return;
                    }
                }
            }
            Candidate::Link(candidate) if entry.link.is_none() => {
                if may_dial {
                    entry.state = PathState::Opening;
                    entry.next = Some(now + OPENING_TIMEOUT);
                    actions.push(Action::Open(candidate));
                } else {
                    entry.state = PathState::Closed;
                    entry.next = Some(now + PATIENCE / 4);
                }
                return;
            }
            Candidate::Link(_) | Candidate::Incoming(_) | Candidate::Udp(_) => {}
        }
        if !context.session {
            // As soon as there is one.
            entry.next = Some(now);
        } else {
            self.probe(at, context.relays, budgets, token, actions, now);
        }
    }

    /// Whether the peer has just said that it tries us.
    fn is_prompted(&self, now: Instant) -> bool {
        self.prompted.is_some_and(|at| now.saturating_duration_since(at) < PROMPTED_FOR)
    }

    /// Whether the peer's packets come by this path, and nothing shows yet that it receives there.
    fn is_led(&self, at: usize) -> bool {
        self.led.is_some_and(|led| self.entries[at].path() == Some(led.path))
    }

    /// Whether a stream should be opened: nothing that is as good works, for a moment at least.
    fn may_dial(&self, at: usize, context: Context<'_>, now: Instant) -> bool {
        let entry = &self.entries[at];
        let rank = entry.rank(context.relays);
        let as_good = |other: &Entry| {
            other.works() && other.usable(context.relays).is_some() && other.rank(context.relays) <= rank
        };
        if self.entries.iter().any(as_good) {
            return false;
        }
        let doubted = |other: &Entry| {
            other.state == PathState::Suspect && other.probes.missed() >= 2 && other.path() == self.selected
        };
        let impatient =
            self.searching_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        self.anything_works() || self.entries.iter().any(doubted) || impatient
    }

    fn probe(
        &mut self,
        at: usize,
        relays: &RelayViews,
        budgets: &mut Budgets,
        token: &mut impl FnMut() -> Option<u64>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        let (selected, anything_works) = (self.selected, self.anything_works());
        let entry = &mut self.entries[at];
        let Some(path) = entry.path() else { return };
        let settled = matches!(entry.state, PathState::Working | PathState::Suspect);
        if let Candidate::Udp(address) = entry.candidate
            && !entry.proven
            && let Err(again) = budgets.take(address, now)
        {
            entry.next = Some(again);
            return;
        }
        let Some(token) = token() else { return };
        entry.probes.sent(token, now);
        let streamed = matches!(entry.relay_hop(relays), Some(Hop::Link(_)));
        actions.push(Action::Probe { path, selected: selected == Some(path), streamed, token });
        if settled {
            return;
        }
        // Another of this burst; when nothing works at all, tries are so frequent that one probe is enough.
        let burst = if anything_works || entry.round == 0 { BURST.len() } else { 1 };
        entry.burst += 1;
        if entry.burst < burst {
            entry.next = Some(now + (BURST[entry.burst] - BURST[entry.burst - 1]));
        }
    }

    /// While there is no direct path, both sides try at the same time, again and again.
    fn offer_if_due(&mut self, context: Context<'_>, actions: &mut Vec<Action>, now: Instant) {
        if !context.wanted || !context.session || context.kept || self.is_direct() {
            return;
        }
        let due = *self.offer.get_or_insert(now);
        if due > now || !self.anything_works() {
            return;
        }
        actions.push(Action::Offer);
        self.offered_at = Some(now);
        self.try_addresses(now);
        let pause = BACK_OFF[self.offers.min(BACK_OFF.len() - 1)];
        self.offers = self.offers.saturating_add(1);
        self.offer = Some(now + pause);
        self.wake(now);
    }

    /// Sets when each entry wants attention next, and so when all of this does.
    fn plan(&mut self, context: Context<'_>, now: Instant) {
        let alive = context.wanted || context.kept;
        let best = self.selected.and_then(|path| self.position(path)).map(|at| &self.entries[at]);
        let best = best.filter(|entry| entry.works()).map(|entry| entry.rank(context.relays));
        let selected = self.selected;
        let led = self.led.map(|led| led.path);
        let prompted = self.is_prompted(now);
        let mut next: Option<Instant> = None;
        for entry in &mut self.entries {
            let interval = match (entry.path() == selected, context.wanted) {
                (true, true) => PROBE_INTERVAL,
                (true, false) | (false, false) => REST_INTERVAL,
                (false, true) => STANDBY_INTERVAL,
            };
            if entry.works() && entry.next.is_none_or(|next| next > now + interval) && !entry.probes.awaits()
            {
                entry.next = Some(now + interval);
            }
            // What is no better than what works is left in peace.
            let pointless = matches!(entry.candidate, Candidate::Udp(_))
                && entry.state == PathState::Dead
                && best.is_some_and(|best| best <= entry.rank(context.relays));
            if pointless {
                entry.next = None;
            }
            if matches!(entry.state, PathState::Closed) && entry.next.is_none() {
                entry.next = Some(now + PATIENCE / 4);
            }
            let own = if context.session || entry.path().is_none() { entry.next } else { None };
            let led = led.is_some() && entry.path() == led;
            let prompted = prompted && matches!(entry.candidate, Candidate::Udp(_));
            let own = if alive || led || prompted { own } else { None };
            let idle = entry.idle_since.filter(|_| entry.link.is_some()).map(|since| since + LINGER);
            next = [next, own, idle, entry.probes.next_expiry()].into_iter().flatten().min();
        }
        if context.wanted && context.session && !context.kept && !self.is_direct() && self.anything_works() {
            next = [next, self.offer].into_iter().flatten().min();
        }
        if alive && !self.told_lost && !self.anything_works() {
            next = [next, self.silent_at()].into_iter().flatten().min();
        }
        // Never now: whoever asks until nothing is due would ask for ever.
        self.next = next.map(|next| next.max(now + LEAST_PAUSE));
    }

    /// A stream of ours from which nothing comes is opened anew: what carries it may have lost its way for good.
    fn close_dead(&mut self, actions: &mut Vec<Action>, now: Instant) {
        let anything_works = self.anything_works();
        for entry in &mut self.entries {
            if let (Candidate::Link(_), PathState::Dead, Some(link)) =
                (entry.candidate, entry.state, entry.link)
            {
                actions.push(Action::Close(link));
                entry.link = None;
                entry.probes.restart();
                entry.fail(PathFailure::NoAnswer, PathState::Closed);
                entry.wait(now, anything_works);
            }
        }
        self.forget_lost();
    }

    /// Closes streams of ours that nothing has needed for a while.
    fn close_surplus(&mut self, context: Context<'_>, actions: &mut Vec<Action>, now: Instant) {
        let selected = self.selected.filter(|path| !self.is_suspect(*path));
        let best = self.entries.iter().find(|entry| selected.is_some() && entry.path() == selected);
        let best = best.filter(|entry| entry.works()).map(|entry| entry.rank(context.relays));
        for entry in &mut self.entries {
            let (Candidate::Link(_), Some(link)) = (entry.candidate, entry.link) else { continue };
            let as_good = best.is_none_or(|best| best >= entry.rank(context.relays));
            if (context.wanted || context.kept) && as_good {
                entry.idle_since = None;
            } else if now.saturating_duration_since(*entry.idle_since.get_or_insert(now)) >= LINGER {
                actions.push(Action::Close(link));
                entry.idle_since = Some(now);
            }
        }
    }

    /// What can be said about each, best first.
    pub(crate) fn status(&self, relays: &RelayViews) -> Vec<PathStatus> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| {
            (
                entry.path() != self.selected || self.selected.is_none(),
                !entry.works(),
                entry.score(relays).order(),
            )
        });
        let status = |entry: &Entry| PathStatus {
            candidate: entry.candidate,
            origin: entry.origin,
            state: entry.state,
            selected: entry.path().is_some() && entry.path() == self.selected,
            link: match entry.candidate {
                Candidate::Incoming(link) => Some(link),
                Candidate::Link(_) | Candidate::Relay(_) | Candidate::Udp(_) => entry.link,
            },
            rtt: entry.probes.rtt(),
            loss: entry.probes.loss(),
            mtu: entry.mtu(entry.relay_hop(relays)),
            last_heard: entry.heard,
            failure: entry.failure.filter(|_| !entry.works()),
            next_try: entry.next,
        };
        entries.into_iter().map(status).collect()
    }

    /// The round trip of the selected path.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.selected.and_then(|path| self.position(path)).and_then(|at| self.entries[at].probes.rtt())
    }

    /// Where the peer was heard, of whatever path.
    pub(crate) fn is_heard_at(&self, path: Path) -> bool {
        self.position(path).is_some_and(|at| self.entries[at].verified)
    }
}

/// How long a path may be silent beyond the interval of probes before it is doubted.
const FIRST_SILENCE: Duration = Duration::from_millis(500);

/// Between two looks at the same peer's paths.
pub(crate) const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// What the answer to a probe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// From the probe to its answer.
    pub(crate) took: Duration,
    /// Another path is selected: the peer was waited for there.
    pub(crate) changed: bool,
}

/// What [`Paths::due`] changed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Another path is selected.
    pub(crate) changed: bool,
    /// The last path that worked has died.
    pub(crate) lost: bool,
}
