//! All paths to one peer: what is known of each, which one is taken, and what to do about the others and when.
//!
//! Plain state: `heard`, `answered` and the like go in ([`input`]), [`Paths::due`] says what is to be done now ([`due`],
//! [`attend`]) and which path is taken ([`choose`]), and whoever asked does it. What is known of one candidate is an
//! [`Entry`](entry::Entry).
//!
//! * What works is used at once, whatever it is; a better path is moved to when it has shown that it works.
//! * The path in use is probed every second while there is traffic. One missed probe makes it suspect: what is sent goes by the
//!   second best as well from then on. Three make it dead, and the next best is taken.
//! * What is better than the path in use is tried for ever, at growing intervals; what is worse is left alone, but for one or
//!   two that are kept warm.
//!
//! What is remembered besides the entries:
//!
//! | field | meaning | set by | cleared by |
//! |---|---|---|---|
//! | `selected` | sealed packets go by it | `select`: for `due` when something better works, for `heard`, `proved` and `answered` when the peer has moved; a channel's new number | its entry goes or closes |
//! | `twin` | they go by this one as well | `due` while the selected one is suspect, `revive` after a long rest | the selected one is heard again; the twin becomes it or cannot be sent by |
//! | `unproven_lead` | the peer's packets come from there, and nothing shows yet that it receives there | `heard` | a probe answered there (which may select it), a try there that came to nothing, another path of the peer's that needs no such proof |
//! | `prompted_at` | the peer has just said that it tries us: so do we, even if idle | `offered`, once a second at most | never; it counts for three seconds |
//! | `next_offer`, `offers_made` | when we say the same, and how long the pauses have grown | each offer in `due`; at once again after `revive` and `network_changed`; sooner by `offer_soon` | never; without effect while the path is direct |
//! | `searching_since` | the peer is wanted and nothing works: after a moment streams are dialled | `due` | `proved`, `answered`; `due` when something works or nobody asks |
//! | `told_lost` | that nothing works any more was reported: once for each outage | `due`, after silence on every path | `due` when something works, or the selected path is not dead |
//! | `evicted` | streams that lost their entry to another candidate while they were open | `make_room` | `due` and `configure`, which have them closed; heard once more; ended |
//! | `next` | when `due` wants to be asked | `wake` by everything that goes in, `due` for the rest | `due` when nothing is planned, `rest` |

mod attend;
mod choose;
mod due;
mod entry;
mod input;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::entry::Entry;
use super::{Candidate, Hop, Link, Origin, Path, PathState, PathStatus};
use crate::key::NodeId;
use crate::peer::LinkCandidate;

pub(crate) use self::due::{Action, Context, LEAST_PAUSE};

/// Candidates of one peer that are kept. Of those it offered or was heard at, the deadest goes first.
pub(crate) const MAX_PATHS: usize = 64;
/// Relays that a node uses at a time.
pub(crate) const MAX_RELAYS: usize = 4;
/// A path not heard from for so long may have lost its mapping in a NAT: the first packets go by another one as well.
const DOUBT_AFTER: Duration = Duration::from_secs(25);

/// A relay as the paths through it see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelayView {
    pub(crate) id: NodeId,
    /// Where it is reached; none if it is not.
    pub(crate) hop: Option<Hop>,
}

/// All relays of this node.
pub(crate) type RelayViews = heapless::Vec<RelayView, MAX_RELAYS>;

/// Where the peer's packets come from of late, without proof that it receives there: the source of a datagram can be forged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lead {
    path: Path,
    /// We do not probe the peer, so it is the one who knows: the path is taken as soon as it answers, not only in doubt.
    follow: bool,
}

/// All paths to a peer. Who sets and clears each field is told in the module's documentation.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub(crate) struct Paths {
    // What packets touch comes first.
    /// Sealed packets go by it.
    selected: Option<Path>,
    /// While the selected path is in doubt: they go by this one as well.
    twin: Option<Path>,
    /// When anything here wants attention.
    next: Option<Instant>,
    entries: Vec<Entry>,
    /// Where in the list the last datagram came in: usually so does the next.
    last_heard: usize,
    /// Since when the peer is wanted and nothing works.
    searching_since: Option<Instant>,
    /// When our candidates are offered next, while there is no direct path.
    next_offer: Option<Instant>,
    /// Offers since the pauses between them last began to grow.
    offers_made: usize,
    /// When the last one was made.
    offered_at: Option<Instant>,
    /// When the last try was begun because the peer asked for it.
    prompted_at: Option<Instant>,
    /// Whoever asks what is due was told that no path works any more.
    told_lost: bool,
    /// Where the peer's packets come from, as long as it has not shown that it receives there as well.
    unproven_lead: Option<Lead>,
    /// Open streams whose entries made room for other candidates: to be closed. Each stream is here once, so there are no more of
    /// them than are open.
    evicted: BTreeSet<Link>,
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
                    self.make_room(now);
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
        closed.extend(std::mem::take(&mut self.evicted));
        closed
    }

    /// Makes room for one more candidate. A stream that goes with its entry would stay open for nobody: it is to be closed.
    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < MAX_PATHS {
            return;
        }
        let selected = self.selected;
        let expendable = |entry: &Entry| entry.path() != selected || selected.is_none();
        let value = |entry: &Entry| (entry.origin == Origin::Map, entry.works(), entry.heard);
        let least = (0..self.entries.len())
            .filter(|&at| expendable(&self.entries[at]))
            .min_by_key(|&at| value(&self.entries[at]));
        if let Some(least) = least
            && let Some(Path::Link(link)) = self.entries.remove(least).path()
        {
            self.evicted.insert(link);
            self.wake(now);
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

    fn is_suspect(&self, path: Path) -> bool {
        let entry = self.position(path).and_then(|at| self.entries.get(at));
        entry.is_none_or(|entry| matches!(entry.state, PathState::Suspect | PathState::Dead))
    }

    fn state_of(&self, path: Path) -> Option<PathState> {
        self.position(path).and_then(|at| self.entries.get(at)).map(|entry| entry.state)
    }

    fn is_verified(&self, path: Path) -> bool {
        self.position(path).and_then(|at| self.entries.get(at)).is_some_and(|entry| entry.verified)
    }

    /// Whether the peer is reached without anybody in between, over UDP.
    fn is_direct(&self) -> bool {
        matches!(self.selected, Some(path @ Path::Udp(_)) if !self.is_suspect(path))
    }

    /// Whether anything answers.
    pub(crate) fn anything_works(&self) -> bool {
        self.entries.iter().any(Entry::works)
    }

    /// Whether there is anything to send a handshake message by, now or perhaps soon.
    pub(crate) fn any(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Streams that are open, those that are about to be closed included.
    pub(crate) fn links(&self) -> impl Iterator<Item = Link> + '_ {
        let known = self.entries.iter().filter_map(|entry| match entry.path()? {
            Path::Link(link) => Some(link),
            Path::Udp(_) | Path::Relay(_) => None,
        });
        known.chain(self.evicted.iter().copied())
    }

    /// The path through a relay, if it gave a channel.
    pub(crate) fn relayed_by(&self, relay: NodeId) -> Option<Path> {
        self.entries.iter().find(|entry| entry.candidate == Candidate::Relay(relay))?.path()
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

    /// Where the peer was heard, of whatever path.
    pub(crate) fn is_heard_at(&self, path: Path) -> bool {
        self.position(path).is_some_and(|at| self.entries[at].verified)
    }

    /// The round trip of the selected path.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.selected.and_then(|path| self.position(path)).and_then(|at| self.entries[at].probes.rtt())
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
}
