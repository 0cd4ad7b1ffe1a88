//! One way to reach a peer.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A way by which a sealed datagram goes to or came from a peer.
///
/// A session belongs to a peer and never to a path: any path may carry any datagram of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// Straight over UDP to this address.
    Udp(SocketAddr),
}

impl Path {
    /// The UDP address, where the path has one.
    #[must_use]
    pub const fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Udp(address) => Some(address),
        }
    }

    /// What a cookie is bound to: the address and port, so that a cookie proves that its holder receives there.
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
        }
    }

    /// Whom to hold responsible when limiting rates: one IPv4 address, or the /64 an IPv6 host chooses addresses from.
    pub(crate) fn rate_source(self) -> RateSource {
        match self {
            Self::Udp(address) => match address.ip() {
                IpAddr::V4(v4) => RateSource::V4(v4.to_bits()),
                IpAddr::V6(v6) => RateSource::V6(network_half(v6)),
            },
        }
    }
}

/// What the rate limit counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RateSource {
    V4(u32),
    V6(u64),
}

fn network_half(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> 64) as u64
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(address) => write!(f, "udp {address}"),
        }
    }
}
