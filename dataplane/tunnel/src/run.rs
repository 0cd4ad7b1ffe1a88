//! Runs: packets of one peer that are sealed as one, and how their datagrams lie.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use crate::drop_reason::DropReason;
use crate::message::{DATA_HEADER_LEN, TAG_LEN};

/// Packets that are sealed, and datagrams that are opened, at once; a longer train is opened in several runs.
pub const MAX_RUN: usize = 128;
/// The head of a packet in two pieces ends with a block of the cipher.
const BLOCK_LEN: usize = 64;

/// A packet to seal, in one piece or in two: a segment of a super-packet has headers of its own, and its payload lies where it
/// was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packet<'a> {
    /// How it begins; a multiple of 64 bytes, unless `rest` is empty.
    pub head: &'a [u8],
    /// How it goes on.
    pub rest: &'a [u8],
}

impl<'a> Packet<'a> {
    /// A packet that lies in one piece.
    #[must_use]
    pub const fn whole(packet: &'a [u8]) -> Self {
        Self { head: &[], rest: packet }
    }

    /// Its bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.head.len().saturating_add(self.rest.len())
    }

    /// Whether it has no bytes, as a keepalive.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.head.is_empty() && self.rest.is_empty()
    }

    /// The first byte, which tells a packet from a notice.
    pub(crate) fn first_byte(&self) -> Option<u8> {
        self.head.first().or_else(|| self.rest.first()).copied()
    }
}

/// How the datagrams of a run lie: one behind the other, of equal length but for the last, which may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// From the beginning of one datagram to that of the next, bytes.
    pub(crate) stride: usize,
    /// Bytes of all datagrams.
    pub(crate) len: usize,
    /// Bytes of all packets, without what surrounds them.
    pub(crate) packets_len: usize,
}

impl Shape {
    /// The shape of packets that are padded up to `mtu`, each datagram with `front` bytes before its message.
    ///
    /// # Errors
    ///
    /// If they make no run: there are none or too many, or their lengths differ too much.
    pub(crate) fn of(packets: &[Packet<'_>], front: usize, mtu: usize) -> Result<Self, DropReason> {
        let (last, others) = packets.split_last().ok_or(DropReason::PacketUnfit)?;
        let first = packets.first().map_or(0, Packet::len);
        let padded = padded_len(first, mtu);
        let fits =
            |packet: &Packet<'_>| packet.rest.is_empty() || packet.head.len().is_multiple_of(BLOCK_LEN);
        let equal = |packet: &Packet<'_>| fits(packet) && padded_len(packet.len(), mtu) == padded;
        let last_padded = padded_len(last.len(), mtu);
        if packets.len() > MAX_RUN || !others.iter().all(equal) || !fits(last) || last_padded > padded {
            return Err(DropReason::PacketUnfit);
        }
        let around = front.saturating_add(DATA_HEADER_LEN).saturating_add(TAG_LEN);
        let stride = padded.saturating_add(around);
        let len = stride.saturating_mul(others.len()).saturating_add(last_padded).saturating_add(around);
        let packets_len = packets.iter().map(Packet::len).fold(0, usize::saturating_add);
        Ok(Self { stride, len, packets_len })
    }
}

/// The length a packet is padded to: a multiple of 16, but never beyond the interface's MTU (W25).
pub(crate) fn padded_len(len: usize, mtu: usize) -> usize {
    let padded = len.next_multiple_of(16);
    if padded > mtu { len.max(mtu) } else { padded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_to_sixteen_and_never_beyond_the_mtu() {
        for mtu in [1299, 1408, 1420, 9000] {
            for len in 0..=mtu {
                let padded = padded_len(len, mtu);
                assert!(
                    padded >= len && padded <= mtu && padded - len < 16,
                    "{len} of {mtu} became {padded}"
                );
                assert!(padded.is_multiple_of(16) || padded == mtu);
            }
        }
        assert_eq!(padded_len(1500, 1408), 1500, "what is too long already is not made longer");
    }
}
