//! What names a flow, whoever sends the packet: this node's side first, the peer's second.

use std::net::IpAddr;

use crate::filter::{Direction, Opening};
use crate::packet::{Ends, TCP, UDP};

/// Names a flow among those of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    near: [u64; 2],
    far: [u64; 2],
    /// Ports, ours in the upper half; or a request's number, and who asks for what.
    ends: u32,
    protocol: u8,
    family: u8,
}

const V4: u8 = 4;
const V6: u8 = 6;
/// In the family of a fragment's key: it leaves this node.
const OUTWARD: u8 = 0x10;

impl Key {
    pub(super) const ZERO: Self = Self { near: [0; 2], far: [0; 2], ends: 0, protocol: 0, family: 0 };

    /// The flow of a packet with these addresses that goes in this direction.
    #[inline]
    pub(crate) fn of(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        ends: Ends,
        direction: Direction,
    ) -> Self {
        let outward = direction == Direction::Out;
        let (near, far) = if outward { (source, destination) } else { (destination, source) };
        let ends = match ends {
            Ends::Ports { source, destination } => {
                let (near, far) = if outward { (source, destination) } else { (destination, source) };
                u32::from(near) << 16 | u32::from(far)
            }
            Ends::Query { query, id, reply } => {
                // Both sides may ask with the same number.
                let asked_by_us = outward != reply;
                u32::from(id) << 16 | (query as u32) << 1 | u32::from(asked_by_us)
            }
            Ends::Nothing => 0,
        };
        let family = if destination.is_ipv4() { V4 } else { V6 };
        Self { near: words(near), far: words(far), ends, protocol, family }
    }

    /// What names the datagram of a fragment: the number instead of what the flow has.
    pub(super) fn of_fragment(
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        id: u32,
        direction: Direction,
    ) -> Self {
        let key = Self::of(source, destination, protocol, Ends::Nothing, direction);
        // Each direction has its own numbers.
        let family = key.family | if direction == Direction::Out { OUTWARD } else { 0 };
        Self { ends: id, family, ..key }
    }

    /// What the flow's opening was, as rules see it.
    pub(crate) fn opening(&self, opened: Direction) -> Opening {
        let (near, far) = (self.address(self.near), self.address(self.far));
        let (source, destination, port) = match opened {
            Direction::Out => (near, far, self.ends as u16),
            Direction::In => (far, near, (self.ends >> 16) as u16),
        };
        let port = matches!(self.protocol, TCP | UDP).then_some(port);
        Opening { source, destination, protocol: self.protocol, port }
    }

    fn address(&self, words: [u64; 2]) -> IpAddr {
        let [high, low] = words;
        match self.family {
            V4 => IpAddr::V4((low as u32).into()),
            _ => IpAddr::V6((u128::from(high) << 64 | u128::from(low)).into()),
        }
    }

    /// All of it, in pieces of 32 bits.
    #[inline]
    pub(super) const fn pieces(&self) -> [u32; 10] {
        let [[a, b], [c, d]] = [self.near, self.far];
        let rest = (self.protocol as u32) << 8 | self.family as u32;
        [
            (a >> 32) as u32,
            a as u32,
            (b >> 32) as u32,
            b as u32,
            (c >> 32) as u32,
            c as u32,
            (d >> 32) as u32,
            d as u32,
            self.ends,
            rest,
        ]
    }
}

#[inline]
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, u64::from(v4.to_bits())],
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            [(bits >> 64) as u64, bits as u64]
        }
    }
}
