//! What a handler sees of the network: a [`Train`] of datagrams, and the [`Delivery`] that takes the ranges of it that
//! are packets.
//!
//! A train is a run of equal datagrams in one buffer, of which only the last may be shorter. Without offloads it has one.

use std::net::SocketAddr;
use std::ops::Range;

use thiserror::Error;

use crate::offload::Place;
use crate::outbox::Outbox;
use crate::writes::Writes;
use crate::{Handler, MAX_SEGMENTS, Now};

/// The longest that the kernel merges datagrams to.
pub(crate) const TRAIN_BYTES: usize = 1 << 16;

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

    /// Datagrams of `stride` bytes, one behind the other; the last may be shorter.
    pub(crate) fn of(bytes: &'a mut [u8], stride: usize) -> Self {
        Self { bytes, stride: stride.max(1) }
    }

    /// The bytes of all datagrams, one behind the other.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Bytes of each datagram but the last.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
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

/// Where a train lies that a back end received, and whose it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) from: SocketAddr,
    pub(crate) stride: usize,
    /// The back end's buffer, and where in it the train begins.
    pub(crate) buffer: u16,
    pub(crate) start: usize,
}

impl Arrived {
    /// Shows the train to the handler, and takes the packets that it finds for TUN; tells whether there were any.
    ///
    /// # Panics
    ///
    /// When there is no room for as many writes as the train has datagrams.
    pub(crate) fn show(
        self,
        bytes: &mut [u8],
        handler: &mut impl Handler,
        outbox: &mut Outbox,
        writes: &mut Writes,
        now: Now,
    ) -> bool {
        let train = Train::of(bytes, self.stride);
        let mut delivery = Delivery::new(outbox, &train);
        handler.datagrams(train, self.from, &mut delivery, now);
        let ranges = delivery.into_ranges();
        for range in &ranges {
            let len = u16::try_from(range.len()).expect("invariant: a datagram is shorter than 64 KiB");
            let place = Place { buffer: self.buffer, start: (self.start + range.start) as u32, len };
            writes.push(place, &bytes[range.clone()]);
        }
        !ranges.is_empty()
    }
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
}

impl<'a> Delivery<'a> {
    /// For a train of `len` bytes cut every `stride`.
    pub(crate) fn new(outbox: &'a mut Outbox, train: &Train<'_>) -> Self {
        Self { outbox, len: train.bytes.len(), stride: train.stride, next: 0, ranges: heapless::Vec::new() }
    }

    /// Delivers bytes `range` of datagram `index` to TUN: they are written from where they lie, and must not change any
    /// more.
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
    fn delivery_takes_only_packets_of_its_train() {
        let mut outbox = Outbox::new(1408);
        let mut bytes = vec![0; 250];
        let train = Train { bytes: &mut bytes, stride: 100 };
        let mut delivery = Delivery::new(&mut outbox, &train);
        assert_eq!(delivery.packet(3, 16..20), Err(RangeError::NoSuchDatagram));
        assert_eq!(delivery.packet(0, 16..101), Err(RangeError::OutOfBounds));
        assert_eq!(delivery.packet(0, 16..16), Err(RangeError::OutOfBounds));
        assert_eq!(delivery.packet(0, 16..84), Ok(()));
        assert_eq!(delivery.packet(0, 16..84), Err(RangeError::OutOfOrder));
        assert_eq!(delivery.packet(2, 0..50), Ok(()));
        assert_eq!(delivery.packet(1, 16..84), Err(RangeError::OutOfOrder));
        assert_eq!(delivery.packet(2, 10..51), Err(RangeError::OutOfOrder));
        assert_eq!(delivery.into_ranges().as_slice(), &[16..84, 200..250]);
    }
}
