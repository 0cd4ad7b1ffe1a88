//! The ways to reach a peer, and which of them is taken.
//!
//! A session belongs to a peer and never to a path: any path may carry any datagram of it, and moving to another one is
//! a choice of where the next datagram goes, nothing more.
//!
//! ```text
//!            path to B                      hop
//!   ┌──────────────────────────┐
//!   │ Udp(B's address)         │── the same address
//!   │ Link(a stream to B)      │── the same stream
//!   │ Relay(R, channel of B)   │── the hop of the path selected to R
//!   └──────────────────────────┘
//! ```
//!
//! A relay is a peer like any other, with paths of its own. So a path through a relay goes on when the relay is reached in
//! another way, over a WebSocket instead of UDP, say, and nobody but the node itself needs to know.

pub(crate) mod budget;
mod candidate;
mod probe;
mod score;
pub(crate) mod set;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::key::NodeId;

pub use self::candidate::{Candidate, Origin, PathFailure, PathState, PathStatus};

/// A way by which a sealed datagram goes to or came from a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Straight over UDP to this address.
    Udp(SocketAddr),
    /// Over a stream that ends at the peer.
    Link(Link),
    /// Through a relay.
    Relay(Channel),
}

/// Where a datagram leaves this machine, or came in: a path without the relay in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    /// The UDP socket, and the address of the other end.
    Udp(SocketAddr),
    /// A stream.
    Link(Link),
}

/// A stream that carries datagrams where UDP cannot pass. Its number is not reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Tells it from all others of this process.
    pub number: u32,
    /// What it is made of.
    pub carrier: Carrier,
}

/// What a link is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// A WebSocket over TLS.
    WebSocket,
    /// A channel of an SSH connection.
    Ssh,
}

/// A relay's name for a pair: what one of the two writes before a datagram that is for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel {
    /// The relay.
    pub relay: NodeId,
    /// The number it gave out.
    pub number: u32,
}

impl Path {
    /// The UDP address, where the path has one.
    #[must_use]
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Udp(address) => Some(address),
            Self::Link(_) | Self::Relay(_) => None,
        }
    }

    /// Where a datagram that takes this path leaves the machine, unless a relay is in between.
    #[must_use]
    pub const fn hop(self) -> Option<Hop> {
        match self {
            Self::Udp(address) => Some(Hop::Udp(address)),
            Self::Link(link) => Some(Hop::Link(link)),
            Self::Relay(_) => None,
        }
    }

    /// What a cookie is bound to, so that it proves that its holder receives there: the address and port, or, where there is
    /// none, the link's number or the relay's channel. The three forms differ in length.
    pub(crate) fn cookie_binding(self) -> ([u8; 18], usize) {
        let mut bytes = [0; 18];
        match self {
            Self::Udp(SocketAddr::V4(v4)) => {
                bytes[..4].copy_from_slice(&v4.ip().octets());
                bytes[4..6].copy_from_slice(&v4.port().to_be_bytes());
                (bytes, 6)
            }
            Self::Udp(SocketAddr::V6(v6)) => {
                bytes[..16].copy_from_slice(&v6.ip().octets());
                bytes[16..].copy_from_slice(&v6.port().to_be_bytes());
                (bytes, 18)
            }
            Self::Link(link) => {
                bytes[..4].copy_from_slice(&link.number.to_be_bytes());
                (bytes, 4)
            }
            Self::Relay(channel) => {
                bytes[..8].copy_from_slice(channel.relay.as_bytes());
                bytes[8..12].copy_from_slice(&channel.number.to_be_bytes());
                (bytes, 12)
            }
        }
    }

    /// Whom to hold responsible when limiting rates: one IPv4 address, the /64 an IPv6 host chooses addresses from, one link,
    /// or one relay.
    pub(crate) fn rate_source(self) -> RateSource {
        match self {
            Self::Udp(address) => match address.ip() {
                IpAddr::V4(v4) => RateSource::V4(v4.to_bits()),
                IpAddr::V6(v6) => RateSource::V6(network_half(v6)),
            },
            Self::Link(link) => RateSource::Link(link.number),
            // A relay can name any channel: all of its own count as one.
            Self::Relay(channel) => RateSource::Relay(channel.relay),
        }
    }
}

/// What the rate limit counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RateSource {
    V4(u32),
    V6(u64),
    Link(u32),
    Relay(NodeId),
}

fn network_half(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> 64) as u64
}

impl From<Hop> for Path {
    fn from(hop: Hop) -> Self {
        match hop {
            Hop::Udp(address) => Self::Udp(address),
            Hop::Link(link) => Self::Link(link),
        }
    }
}

impl Carrier {
    /// The name used in status tables and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Ssh => "ssh",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} link {}", self.carrier, self.number)
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Path::from(*self).fmt(f)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Link(link) => link.fmt(f),
            Self::Relay(channel) => write!(f, "relay {} channel {}", channel.relay, channel.number),
        }
    }
}
