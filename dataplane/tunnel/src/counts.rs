//! What a tunnel counts besides drops: packets and bytes by kind of path, and handshakes by their end. Plain words of one
//! worker, copied out by whoever reports them.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::net::SocketAddr;
use std::time::Duration;

use crate::path::{Carrier, Hop, Path};

/// What a packet travels by, as far as metrics tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathKind {
    /// Straight, over UDP and IPv4.
    Udp4,
    /// Straight, over UDP and IPv6.
    Udp6,
    /// Through a relay that is reached over UDP.
    RelayUdp,
    /// Through a relay that is reached over a WebSocket.
    RelayWs,
    /// Over an SSH stream, to the peer or to a relay.
    Ssh,
}

impl PathKind {
    /// Every kind there is, in the order of their counters.
    pub const ALL: [Self; 5] = [Self::Udp4, Self::Udp6, Self::RelayUdp, Self::RelayWs, Self::Ssh];

    /// The name used as a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp4 => "udp4",
            Self::Udp6 => "udp6",
            Self::RelayUdp => "relay_udp",
            Self::RelayWs => "relay_ws",
            Self::Ssh => "ssh",
        }
    }

    /// The kind of a path whose datagrams leave this machine by `hop`, or come in by it.
    #[must_use]
    pub const fn of(path: Path, hop: Hop) -> Self {
        match (path, hop) {
            (_, Hop::Link(link)) => match link.carrier {
                Carrier::Ssh => Self::Ssh,
                // Only relays are reached by them.
                Carrier::WebSocket => Self::RelayWs,
            },
            (Path::Relay(_), Hop::Udp(_)) => Self::RelayUdp,
            (Path::Udp(_) | Path::Link(_), Hop::Udp(SocketAddr::V4(_))) => Self::Udp4,
            (Path::Udp(_) | Path::Link(_), Hop::Udp(SocketAddr::V6(_))) => Self::Udp6,
        }
    }
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// How many.
    pub packets: u64,
    /// Bytes of the IP packets, without what they travel in.
    pub bytes: u64,
}

/// What went to peers and came from them, by kind of path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    sent: [Volume; PathKind::ALL.len()],
    received: [Volume; PathKind::ALL.len()],
}

impl Carried {
    /// Packets sealed for each kind of path. Copies that went by a second path are not among them.
    pub fn sent(&self) -> impl Iterator<Item = (PathKind, Volume)> + '_ {
        PathKind::ALL.into_iter().zip(self.sent)
    }

    /// Packets that came by each kind of path and passed.
    pub fn received(&self) -> impl Iterator<Item = (PathKind, Volume)> + '_ {
        PathKind::ALL.into_iter().zip(self.received)
    }

    #[inline]
    pub(crate) fn add_sent(&mut self, kind: PathKind, packets: u64, bytes: usize) {
        add(&mut self.sent, kind, packets, bytes);
    }

    #[inline]
    pub(crate) fn add_received(&mut self, kind: PathKind, packets: u64, bytes: usize) {
        add(&mut self.received, kind, packets, bytes);
    }
}

#[inline]
fn add(volumes: &mut [Volume; PathKind::ALL.len()], kind: PathKind, packets: u64, bytes: usize) {
    if let Some(volume) = volumes.get_mut(kind as usize) {
        volume.packets = volume.packets.wrapping_add(packets);
        volume.bytes = volume.bytes.wrapping_add(bytes as u64);
    }
}

/// Who began a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This node.
    Initiator,
    /// The peer.
    Responder,
}

/// How handshakes ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeCounts {
    /// Sessions of handshakes that this node began.
    pub initiated: u64,
    /// Initiations that nobody answered before the next one was due, or at all.
    pub unanswered: u64,
    /// Responses that did not hold, and initiations that could not be made.
    pub initiator_refused: u64,
    /// Sessions of handshakes that peers began, once they used them.
    pub responded: u64,
    /// Our responses whose session the peer did not use in time.
    pub unconfirmed: u64,
    /// Initiations that were not answered: forged, old, too many, of a stranger, or without the cookie asked for.
    pub responder_refused: u64,
    /// From the first initiation of an attempt to its session, for those that this node began.
    pub duration: Durations,
}

impl HandshakeCounts {
    /// Counts what the handshaker refused to go on with.
    pub(crate) fn refused(&mut self, role: Role) {
        let count = match role {
            Role::Initiator => &mut self.initiator_refused,
            Role::Responder => &mut self.responder_refused,
        };
        *count = count.wrapping_add(1);
    }

    /// Counts a session of a handshake that this node began so long ago.
    pub(crate) fn initiated(&mut self, after: Duration) {
        self.initiated = self.initiated.wrapping_add(1);
        self.duration.add(after);
    }
}

/// How many durations fell below each of some bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    counts: [u64; Self::BOUNDS.len()],
    /// Above the last bound.
    longer: u64,
    /// The sum of all.
    sum: Duration,
}

impl Durations {
    /// The buckets' upper bounds in microseconds: from a handshake within one machine to the 90 s after which one is given up.
    pub const BOUNDS: [u64; 14] = [
        500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
        30_000_000, 90_000_000,
    ];

    /// The sum of all durations.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        self.sum
    }

    /// Each bound in seconds with what fell below it and not below the one before; the last one is infinite.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let bounds = Self::BOUNDS.iter().map(|&bound| Duration::from_micros(bound).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.counts.iter().copied().chain([self.longer]))
    }

    fn add(&mut self, duration: Duration) {
        let place = Self::BOUNDS.iter().position(|&bound| duration <= Duration::from_micros(bound));
        let count = place.and_then(|place| self.counts.get_mut(place)).unwrap_or(&mut self.longer);
        *count = count.wrapping_add(1);
        self.sum = self.sum.saturating_add(duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::NodeId;
    use crate::path::{Channel, Link};

    #[test]
    fn a_path_is_told_by_where_its_datagrams_leave() {
        let v4 = Hop::Udp("192.0.2.1:1".parse().unwrap());
        let v6 = Hop::Udp("[2001:db8::1]:1".parse().unwrap());
        let link = |carrier| Hop::Link(Link { number: 1, carrier });
        let relay = Path::Relay(Channel { relay: NodeId::from_bytes([1; 8]), number: 1 });
        for (path, hop, kind) in [
            (v4.into(), v4, "udp4"),
            (v6.into(), v6, "udp6"),
            (relay, v4, "relay_udp"),
            (relay, v6, "relay_udp"),
            (relay, link(Carrier::WebSocket), "relay_ws"),
            (relay, link(Carrier::Ssh), "ssh"),
            (link(Carrier::Ssh).into(), link(Carrier::Ssh), "ssh"),
        ] {
            assert_eq!(PathKind::of(path, hop).as_str(), kind, "{path} by {hop}");
        }
    }

    #[test]
    fn each_kind_has_its_own_counters() {
        let mut carried = Carried::default();
        for (many, kind) in PathKind::ALL.into_iter().enumerate() {
            carried.add_sent(kind, 1, many + 1);
            carried.add_received(kind, 1, many + 10);
        }
        assert!(carried.sent().zip(1..).all(|((_, volume), bytes)| volume == Volume { packets: 1, bytes }));
        assert!(
            carried.received().zip(10..).all(|((_, volume), bytes)| volume == Volume { packets: 1, bytes })
        );
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let mut durations = Durations::default();
        for micros in [1, 500, 501, 1_000_000, 90_000_000, 90_000_001] {
            durations.add(Duration::from_micros(micros));
        }
        let full: Vec<(f64, u64)> = durations.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(full, [(0.0005, 2), (0.001, 1), (1.0, 1), (90.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(durations.sum(), Duration::from_micros(181_001_003));
    }
}
