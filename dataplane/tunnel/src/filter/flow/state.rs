//! How long flows last without a packet.

use std::time::{Duration, Instant};

/// A time, eighths of a second since the tunnel's first packet: 17 years fit.
pub(crate) type Tick = u32;

const TICKS_PER_SECOND: u32 = 8;

const fn seconds(seconds: u32) -> Tick {
    seconds * TICKS_PER_SECOND
}

/// What kind of flow it is and how far, which is how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// UDP that was not answered.
    UdpOpening,
    /// UDP that was.
    UdpAnswered,
    /// TCP before both sides have sent an ACK.
    TcpOpening,
    /// TCP between two that hear each other.
    TcpEstablished,
    /// TCP after a FIN or RST.
    TcpClosing,
    /// A request of ICMP and its answers.
    Icmp,
    /// Another protocol, one way.
    OtherOpening,
    /// Another protocol, both ways.
    OtherAnswered,
}

impl Class {
    pub(crate) const ALL: [Self; 8] = [
        Self::UdpOpening,
        Self::UdpAnswered,
        Self::TcpOpening,
        Self::TcpEstablished,
        Self::TcpClosing,
        Self::Icmp,
        Self::OtherOpening,
        Self::OtherAnswered,
    ];
    pub(crate) const COUNT: usize = Self::ALL.len();
    /// What makes room for others, group after group.
    pub(super) const DISPENSABLE: [&'static [Self]; 3] = [
        &[Self::UdpOpening, Self::TcpOpening, Self::Icmp, Self::OtherOpening],
        &[Self::TcpClosing],
        &[Self::UdpAnswered, Self::OtherAnswered],
    ];

    /// How long without a packet.
    pub(super) const fn lasts(self) -> Tick {
        match self {
            Self::UdpOpening | Self::Icmp => seconds(30),
            Self::UdpAnswered => seconds(120),
            // RFC 5382 REQ-5: 4 minutes at least, and 2 hours 4 minutes for what is established.
            Self::TcpOpening | Self::TcpClosing => seconds(240),
            Self::TcpEstablished => seconds(7440),
            Self::OtherOpening | Self::OtherAnswered => seconds(600),
        }
    }
}

/// How long the fragments of a datagram may follow the first.
pub(super) const FRAGMENTS_LAST: Tick = seconds(30);

/// Turns instants into ticks; the same one, as all packets of a turn have it, only once.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    first: Option<Instant>,
    last: Option<Instant>,
    tick: Tick,
}

impl Ticks {
    #[inline]
    pub(crate) fn at(&mut self, now: Instant) -> Tick {
        if self.last != Some(now) {
            let since = now.saturating_duration_since(*self.first.get_or_insert(now));
            self.last = Some(now);
            self.tick = self.tick.max(ticks(since));
        }
        self.tick
    }

    /// The last time there was.
    pub(crate) const fn last(&self) -> Tick {
        self.tick
    }
}

fn ticks(since: Duration) -> Tick {
    const NANOS_PER_TICK: u32 = 1_000_000_000 / TICKS_PER_SECOND;
    let whole = since.as_secs().saturating_mul(TICKS_PER_SECOND.into());
    Tick::try_from(whole)
        .map_or(Tick::MAX, |whole| whole.saturating_add(since.subsec_nanos() / NANOS_PER_TICK))
}
