//! What a handler sees: a [`SuperPacket`] from TUN, a [`Train`] of datagrams from the network, and the [`Delivery`]
//! that takes the ranges of a train that are packets.
//!
//! Both are runs of equal pieces in one buffer, of which only the last may be shorter. Without offloads a run has one.

use std::ops::Range;

use thiserror::Error;

use crate::MAX_SEGMENTS;
use crate::outbox::Outbox;
use crate::tun::virtio;

/// A packet from TUN, or a super-packet of equal segments, seen one packet at a time.
///
/// It is not an iterator: a segment is made by writing its header over the end of the one before, so only one exists
/// at any time.
#[derive(Debug)]
pub struct SuperPacket<'a> {
    bytes: &'a mut [u8],
    taken: bool,
}

impl<'a> SuperPacket<'a> {
    /// A single packet.
    #[must_use]
    pub fn new(packet: &'a mut [u8]) -> Self {
        Self { bytes: packet, taken: false }
    }

    /// How many packets this is.
    #[must_use]
    pub fn segments(&self) -> usize {
        1
    }

    /// The first packet's bytes: enough to decide once for all segments, which share addresses, protocol and ports.
    #[must_use]
    pub fn first(&self) -> &[u8] {
        self.bytes
    }

    /// The next packet, complete with its own header and checksums.
    pub fn next_packet(&mut self) -> Option<&mut [u8]> {
        if std::mem::replace(&mut self.taken, true) {
            return None;
        }
        Some(self.bytes)
    }
}

/// Datagrams of one sender in one buffer: equal lengths, save the last.
#[derive(Debug)]
pub struct Train<'a> {
    bytes: &'a mut [u8],
    stride: usize,
}

impl<'a> Train<'a> {
    /// A single datagram.
    #[must_use]
    pub fn new(datagram: &'a mut [u8]) -> Self {
        let stride = datagram.len().max(1);
        Self { bytes: datagram, stride }
    }

    /// How many datagrams this is, at most [`MAX_SEGMENTS`]; never 0, as a datagram may be empty.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a train is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len().div_ceil(self.stride).max(1)
    }

    /// The bytes of datagram `index`, to open in place; `None` past the last.
    pub fn datagram(&mut self, index: usize) -> Option<&mut [u8]> {
        let range = cut(self.bytes.len(), self.stride, index)?;
        self.bytes.get_mut(range)
    }
}

/// Where datagram `index` lies in a buffer of `len` bytes cut every `stride`.
fn cut(len: usize, stride: usize, index: usize) -> Option<Range<usize>> {
    let start = index.checked_mul(stride)?;
    // An empty datagram is a datagram, so the first exists even in an empty buffer.
    if start >= len && index > 0 {
        return None;
    }
    Some(start..len.min(start.saturating_add(stride)))
}

/// Takes the packets found in a train, and what is to be sent in answer.
///
/// A range is written to TUN from the buffer it was received in; the buffer goes back to the kernel after that.
#[derive(Debug)]
pub struct Delivery<'a> {
    outbox: &'a mut Outbox,
    len: usize,
    stride: usize,
    next: usize,
    ranges: heapless::Vec<Range<usize>, MAX_SEGMENTS>,
}

/// Why a range is not a packet of the train. Always the handler's mistake, never the network's doing.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RangeError {
    /// The train has no datagram of this index.
    #[error("the train has no such datagram")]
    NoSuchDatagram,
    /// The range is empty or leaves its datagram.
    #[error("the range is empty or reaches outside its datagram")]
    OutOfBounds,
    /// A later datagram, or this one, was delivered already.
    #[error("datagrams are delivered once, in ascending order")]
    OutOfOrder,
    /// There is no room for the offload header in front of the packet.
    #[error("a packet must leave {} bytes of its datagram in front of it", virtio::HEADER)]
    NoHeadroom,
}

impl<'a> Delivery<'a> {
    /// For a train of `len` bytes cut every `stride`.
    pub(crate) fn new(outbox: &'a mut Outbox, train: &Train<'_>) -> Self {
        Self { outbox, len: train.bytes.len(), stride: train.stride, next: 0, ranges: heapless::Vec::new() }
    }

    /// Delivers bytes `range` of datagram `index` to TUN, where they are written in place.
    ///
    /// At least 10 bytes of the datagram must lie in front of the packet: the offload header goes there. A transport
    /// message has 16.
    ///
    /// # Errors
    ///
    /// When the range cannot be a packet of this train; nothing is delivered then.
    pub fn packet(&mut self, index: usize, range: Range<usize>) -> Result<(), RangeError> {
        let datagram = cut(self.len, self.stride, index).ok_or(RangeError::NoSuchDatagram)?;
        if index < self.next {
            return Err(RangeError::OutOfOrder);
        }
        if range.is_empty() || range.end > datagram.len() {
            return Err(RangeError::OutOfBounds);
        }
        if range.start < virtio::HEADER {
            return Err(RangeError::NoHeadroom);
        }
        let packet = datagram.start + range.start..datagram.start + range.end;
        self.ranges.push(packet).map_err(|_| RangeError::NoSuchDatagram)?;
        self.next = index + 1;
        Ok(())
    }

    /// The outbox, for answers to the sender or anybody else.
    pub fn outbox(&mut self) -> &mut Outbox {
        self.outbox
    }

    /// The ranges delivered, relative to the train.
    pub(crate) fn into_ranges(self) -> heapless::Vec<Range<usize>, MAX_SEGMENTS> {
        self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_train_is_cut_at_its_stride() {
        let mut bytes: Vec<u8> = (0..25).collect();
        let mut train = Train { bytes: &mut bytes, stride: 10 };
        assert_eq!(train.len(), 3);
        assert_eq!(train.datagram(0).expect("first").len(), 10);
        assert_eq!(train.datagram(2).expect("last"), &[20, 21, 22, 23, 24]);
        assert!(train.datagram(3).is_none());
        assert!(train.datagram(usize::MAX).is_none());
    }

    #[test]
    fn an_empty_datagram_is_one_datagram() {
        let mut train = Train::new(&mut []);
        assert_eq!(train.len(), 1);
        assert_eq!(train.datagram(0).expect("empty"), &[]);
        assert!(train.datagram(1).is_none());
    }

    #[test]
    fn a_super_packet_ends() {
        let mut bytes = [1, 2, 3];
        let mut packets = SuperPacket::new(&mut bytes);
        assert_eq!(packets.first(), &[1, 2, 3]);
        assert_eq!(packets.next_packet().expect("one"), &[1, 2, 3]);
        assert!(packets.next_packet().is_none());
    }

    #[test]
    fn delivery_takes_only_packets_of_its_train() {
        let mut outbox = Outbox::new(1408);
        let mut bytes = vec![0; 250];
        let train = Train { bytes: &mut bytes, stride: 100 };
        let mut delivery = Delivery::new(&mut outbox, &train);
        assert_eq!(delivery.packet(3, 16..20), Err(RangeError::NoSuchDatagram));
        assert_eq!(delivery.packet(0, 16..101), Err(RangeError::OutOfBounds));
        assert_eq!(delivery.packet(0, 16..16), Err(RangeError::OutOfBounds));
        assert_eq!(delivery.packet(0, 9..20), Err(RangeError::NoHeadroom));
        assert_eq!(delivery.packet(0, 16..84), Ok(()));
        assert_eq!(delivery.packet(0, 16..84), Err(RangeError::OutOfOrder));
        assert_eq!(delivery.packet(2, 10..50), Ok(()));
        assert_eq!(delivery.packet(1, 16..84), Err(RangeError::OutOfOrder));
        assert_eq!(delivery.packet(2, 10..51), Err(RangeError::OutOfOrder));
        assert_eq!(delivery.into_ranges().as_slice(), &[16..84, 210..250]);
    }
}
