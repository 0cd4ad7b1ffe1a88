//! One candidate: what is known of it, and when it is tried next.

use std::time::{Duration, Instant};

use super::RelayViews;
use crate::path::probe::Probes;
use crate::path::score::{Rank, Score};
use crate::path::{Candidate, Channel, Hop, Link, Origin, Path, PathFailure, PathState};

/// Pauses between tries of a path that does not answer.
pub(super) const BACK_OFF: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(10),
];
/// The longest pause while nothing works at all.
const BACK_OFF_CUT_OFF: Duration = Duration::from_secs(3);
/// Bytes of an Ethernet frame's payload, which is what a path is taken to carry until it is measured.
const OUTER_MTU: u16 = 1500;
/// Bytes of a data message around its packet.
const MESSAGE_OVERHEAD: u16 = 32;
const UDP_V4_OVERHEAD: u16 = 28;
const UDP_V6_OVERHEAD: u16 = 48;
const RELAY_OVERHEAD: u16 = 8;
/// The longest packet that a stream's frames carry.
const LINK_MTU: u16 = 9000;

/// What is known of one candidate.
#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Entry {
    // What datagrams touch comes first.
    pub(super) candidate: Candidate,
    /// Something authentic came by it.
    pub(super) heard: Option<Instant>,
    pub(super) state: PathState,
    /// Something authentic came by it at any time since the process began. Its source may have been forged.
    pub(super) verified: bool,
    /// Something came back by it that only the receiver could answer.
    pub(super) proven: bool,
    /// It lost some probes before it became suspect, too.
    pub(super) often_loses: bool,
    /// A relay is to be asked (again) for a channel.
    pub(super) must_bind: bool,
    /// The peer reaches the relay over a stream.
    pub(super) peer_streams: bool,
    pub(super) origin: Origin,
    pub(super) channel: Option<u32>,
    pub(super) link: Option<Link>,
    pub(super) failure: Option<PathFailure>,
    pub(super) probes: Probes,
    /// When it wants attention next.
    pub(super) next: Option<Instant>,
    /// Tries in a row that came to nothing.
    pub(super) failed_tries: usize,
    /// Probes of the present try that were sent already: a try is a burst of them.
    pub(super) sent_in_try: usize,
    /// Since when a stream of ours is not needed.
    pub(super) idle_since: Option<Instant>,
}

impl Entry {
    pub(super) fn new(candidate: Candidate, origin: Origin) -> Self {
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
            failed_tries: 0,
            sent_in_try: 0,
            must_bind: false,
            peer_streams: false,
            idle_since: None,
        }
    }

    /// The path that it is, once there is one.
    pub(super) fn path(&self) -> Option<Path> {
        match self.candidate {
            Candidate::Udp(address) => Some(Path::Udp(address)),
            Candidate::Incoming(link) => Some(Path::Link(link)),
            Candidate::Link(_) => self.link.map(Path::Link),
            Candidate::Relay(relay) => self.channel.map(|number| Path::Relay(Channel { relay, number })),
        }
    }

    /// The hop to its relay, if it has one.
    pub(super) fn relay_hop(&self, relays: &RelayViews) -> Option<Hop> {
        let Candidate::Relay(id) = self.candidate else { return None };
        relays.iter().find(|relay| relay.id == id)?.hop
    }

    /// The path, if a datagram can be sent by it now.
    pub(super) fn usable(&self, relays: &RelayViews) -> Option<Path> {
        let reached = !matches!(self.candidate, Candidate::Relay(_)) || self.relay_hop(relays).is_some();
        self.path().filter(|_| reached)
    }

    pub(super) fn rank(&self, relays: &RelayViews) -> Rank {
        let rank = Rank::of(self.candidate, self.relay_hop(relays));
        // The worse half is what counts, or the two sides would choose differently.
        if rank == Rank::Relayed && self.peer_streams { Rank::WebSocket } else { rank }
    }

    pub(super) fn works(&self) -> bool {
        self.state == PathState::Working
    }

    pub(super) fn score(&self, relays: &RelayViews) -> Score {
        Score {
            rank: self.rank(relays),
            rtt: self.probes.rtt(),
            loss: self.probes.loss(),
            samples: self.probes.samples(),
            answered: self.probes.answered_in_a_row(),
        }
    }

    /// Another try begins now.
    pub(super) fn try_now(&mut self, now: Instant) {
        self.sent_in_try = 0;
        self.next = Some(now);
    }

    /// A stream or a channel is there: it is tried as if it were new.
    pub(super) fn open(&mut self, now: Instant) {
        self.state = PathState::Untried;
        self.failure = None;
        self.probes.restart();
        self.failed_tries = 0;
        self.idle_since = None;
        self.try_now(now);
    }

    pub(super) fn fail(&mut self, failure: PathFailure, state: PathState) {
        self.failure = Some(failure);
        self.state = state;
    }

    pub(super) fn wait(&mut self, now: Instant, anything_works: bool) {
        let pause = BACK_OFF[self.failed_tries.min(BACK_OFF.len() - 1)];
        self.failed_tries = self.failed_tries.saturating_add(1);
        self.sent_in_try = 0;
        self.next = Some(now + if anything_works { pause } else { pause.min(BACK_OFF_CUT_OFF) });
    }

    pub(super) const fn mtu(&self, hop: Option<Hop>) -> u16 {
        let (address, relayed) = match (self.candidate, hop) {
            (Candidate::Udp(address), _) => (address, 0),
            (Candidate::Relay(_), Some(Hop::Udp(address))) => (address, RELAY_OVERHEAD),
            (Candidate::Link(_) | Candidate::Incoming(_) | Candidate::Relay(_), _) => return LINK_MTU,
        };
        let udp = if address.is_ipv4() { UDP_V4_OVERHEAD } else { UDP_V6_OVERHEAD };
        OUTER_MTU - udp - relayed - MESSAGE_OVERHEAD
    }
}
