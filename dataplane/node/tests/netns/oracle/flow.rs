//! Flows that both sides let be opened, and what passes in them.

use std::net::IpAddr;

use ringmesh_tunnel::filter::{Direction, Opening};

use super::packet::{self, ACK, FIN, ICMP, ICMPV6, PSH, RST, SYN, TCP, UDP};

/// An address and a port: of ICMP the identifier on the opener's side, of other protocols 0.
pub type End = (IpAddr, u16);

/// What a flow is told from others by, whoever opened it.
pub type Key = (u8, End, End);

/// What opens flows, as far as it is kept in state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub peer: usize,
    pub opener: Direction,
    pub protocol: u8,
    pub from: End,
    pub to: End,
    /// Of ICMP over IPv4: asks for the time rather than for an echo.
    pub stamp: bool,
    pub phase: Phase,
    pub answered: bool,
}

/// How far a TCP connection got; all else is open from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Asked,
    Answered,
    Open,
    /// One FIN passed.
    HalfClosed,
    /// And a second.
    LastAck,
    /// And its ACK.
    Over,
    Reset,
}

/// What becomes of a flow that something passed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    GoesOn,
    /// It is not known any more.
    Forgotten,
    /// What conntrack makes of it hangs on numbers that we do not follow.
    Unclear,
}

/// One direction of a flow: who sends, and to whom.
#[derive(Debug, Clone, Copy)]
pub struct Leg {
    pub peer: usize,
    pub direction: Direction,
    pub protocol: u8,
    pub source: End,
    pub destination: End,
    pub stamp: bool,
    /// Whether the sender is who opened it.
    pub by_opener: bool,
}

pub fn other(direction: Direction) -> Direction {
    match direction {
        Direction::In => Direction::Out,
        Direction::Out => Direction::In,
    }
}

impl Flow {
    pub fn leg(&self, by_opener: bool) -> Leg {
        let Self { peer, opener, protocol, from, to, stamp, .. } = *self;
        if by_opener {
            Leg { peer, direction: opener, protocol, source: from, destination: to, stamp, by_opener }
        } else {
            Leg { peer, direction: other(opener), protocol, source: to, destination: from, stamp, by_opener }
        }
    }

    /// Takes note of a segment that passed; of anything else, with the flags of an ACK.
    pub fn passed(&mut self, flags: u8, by_opener: bool) -> After {
        let unanswered = !self.answered;
        self.answered |= !by_opener;
        if self.protocol != TCP {
            return After::GoesOn;
        }
        let (syn, ack, fin) = (flags & SYN != 0, flags & ACK != 0, flags & FIN != 0);
        self.phase = match self.phase {
            _ if flags & RST != 0 && unanswered => return After::Forgotten,
            _ if flags & RST != 0 => Phase::Reset,
            // Another connection, or a word about the old one: that is told by the sequence number. And who was asked may ask.
            Phase::Reset | Phase::LastAck if syn && !ack => return After::Unclear,
            _ if syn && !ack && !by_opener => return After::Unclear,
            Phase::Over if syn && !ack => {
                self.answered = false;
                Phase::Asked
            }
            Phase::Asked if syn && ack && !by_opener => Phase::Answered,
            Phase::Answered | Phase::Open if fin => Phase::HalfClosed,
            Phase::HalfClosed if fin => Phase::LastAck,
            Phase::Answered if !syn && by_opener => Phase::Open,
            Phase::LastAck if !syn && !fin => Phase::Over,
            same => same,
        };
        After::GoesOn
    }
}

impl Leg {
    pub fn is_v4(&self) -> bool {
        self.source.0.is_ipv4()
    }

    pub fn key(&self) -> Key {
        let (one, other) = (self.source, self.destination);
        let bare = |end: End| if matches!(self.protocol, ICMP | ICMPV6) { (end.0, 0) } else { end };
        // The two ends of an echo share one identifier.
        let (one, other) = match self.protocol {
            ICMP | ICMPV6 => {
                let id = one.1.max(other.1);
                ((bare(one).0, id), (bare(other).0, id))
            }
            _ => (one, other),
        };
        (self.protocol, one.min(other), one.max(other))
    }

    /// What it asks of the rules if it is the first of its flow.
    pub fn opening(&self) -> Opening {
        let port = matches!(self.protocol, TCP | UDP).then_some(self.destination.1);
        Opening { source: self.source.0, destination: self.destination.0, protocol: self.protocol, port }
    }

    /// What the sender might say in an open flow, or to open one: with TCP by `flags`.
    pub fn transport(&self, flags: u8, data: &[u8]) -> Vec<u8> {
        let (from, to) = (self.source, self.destination);
        match self.protocol {
            TCP => {
                // Where each side begins, and what the other has of it: an RST must be exactly there to be believed.
                let (own, others) = if self.by_opener { (1 << 28, 2 << 28) } else { (2 << 28, 1 << 28) };
                packet::tcp(from.0, to.0, (from.1, to.1), flags, (own, others), data)
            }
            UDP => packet::udp(from.0, to.0, (from.1, to.1), data),
            ICMP | ICMPV6 => {
                let kind = match (from.0.is_ipv4(), self.by_opener) {
                    (true, true) => 8 + 5 * u8::from(self.stamp),
                    (true, false) => 14 * u8::from(self.stamp),
                    (false, true) => 128,
                    (false, false) => 129,
                };
                let [high, low] = from.1.max(to.1).to_be_bytes();
                packet::icmp(from.0, to.0, kind, 0, [high, low, 0, 1], data)
            }
            _ => [&[0; 20], data].concat(),
        }
    }

    /// The same as a packet.
    pub fn packet(&self, flags: u8, data: &[u8]) -> Vec<u8> {
        packet::packet(self.source.0, self.destination.0, self.protocol, 7, &self.transport(flags, data))
    }

    /// What is neither the first nor the last of a flow.
    pub fn ordinary(&self, data: &[u8]) -> Vec<u8> {
        self.packet(ACK | PSH, data)
    }
}
