//! What may become a path, and what can be said about it.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::key::NodeId;
use crate::peer::LinkCandidate;

use super::Link;

/// Something that may become a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Candidate {
    /// A UDP address.
    Udp(SocketAddr),
    /// A relay that both may reach.
    Relay(NodeId),
    /// A stream that we can open.
    Link(LinkCandidate),
    /// A stream that the peer has opened.
    Incoming(Link),
}

/// How we came to know a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The network map or the configuration names it.
    Map,
    /// The peer told us inside the session.
    Offered,
    /// Something authentic of the peer came from there.
    Heard,
}

/// How far things are with a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// There is nothing to send by yet: no channel is bound, no stream opened.
    Closed,
    /// It is being opened: a channel was asked for, a stream is dialled.
    Opening,
    /// It can be sent by; whether anything comes back is not known yet.
    Untried,
    /// What we sent by it was answered.
    Working,
    /// It worked, and the last probe was not answered in time.
    Suspect,
    /// Nothing is answered. It is tried again from time to time.
    Dead,
}

/// Why a candidate is no working path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFailure {
    /// Probes were not answered.
    NoAnswer,
    /// The relay itself is not reached.
    RelayUnreached,
    /// The relay did not answer when asked for a channel.
    RelaySilent,
    /// The relay knows no such node.
    RelayRefused,
    /// The relay has no channel to give.
    RelayFull,
    /// The peer is not at the relay.
    PeerNotAtRelay,
    /// The stream could not be opened.
    LinkRefused,
    /// The stream ended.
    LinkClosed,
}

/// What can be said about a candidate to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathStatus {
    /// What it is.
    pub candidate: Candidate,
    /// How we know it.
    pub origin: Origin,
    /// How far things are.
    pub state: PathState,
    /// Whether sealed packets take it.
    pub selected: bool,
    /// The stream it is, while one is open.
    pub link: Option<Link>,
    /// Smoothed round trip of its probes; none was answered yet.
    pub rtt: Option<Duration>,
    /// Percent of its last probes, 16 at most, that were not answered in time; none was sent yet.
    pub loss: Option<u8>,
    /// The longest packet that fits, bytes.
    pub mtu: u16,
    /// When anything authentic last came by it.
    pub last_heard: Option<Instant>,
    /// What was last wrong with it, until it works.
    pub failure: Option<PathFailure>,
    /// When it is tried next; never by itself.
    pub next_try: Option<Instant>,
}

impl PathState {
    /// The name used in status tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Opening => "opening",
            Self::Untried => "untried",
            Self::Working => "working",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

impl Origin {
    /// The name used in status tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Offered => "offered",
            Self::Heard => "heard",
        }
    }
}

impl fmt::Display for PathFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no answer",
            Self::RelayUnreached => "the relay is not reached",
            Self::RelaySilent => "the relay does not answer",
            Self::RelayRefused => "the relay knows no such node",
            Self::RelayFull => "the relay has no channel left for this node",
            Self::PeerNotAtRelay => "the peer is not connected to the relay",
            Self::LinkRefused => "the stream cannot be opened",
            Self::LinkClosed => "the stream ended",
        })
    }
}
