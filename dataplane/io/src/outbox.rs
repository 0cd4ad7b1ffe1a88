//! What waits to be sent: trains of datagrams for the network, and packets of our own for TUN, in memory that the kernel
//! reads from directly.
//!
//! Datagrams are written one behind the other into one arena, a ring of bytes. A train of equal datagrams (save the
//! last) leaves in as few sends as the kernel's segmentation allows, each a [`Piece`] of it. Pieces leave in the order
//! in which their trains were committed; bytes are used again when the kernel is done with every piece before them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};

use crate::offload::virtio;
use crate::region::{LINE, Region};

/// Bytes of datagrams that wait or are in flight, at most.
pub const OUTBOX_BYTES: usize = 1 << 20;

/// The most trains that wait or are in flight.
pub const OUTBOX_TRAINS: usize = 512;

/// The most packets of our own for TUN that wait or are in flight.
pub const OUTBOX_PACKETS: usize = 64;

/// What a datagram may be longer than the TUN's MTU: header and tag of a transport message (32), a relay's channel
/// header (8), padding to 16, and some room.
pub const DATAGRAM_OVERHEAD: usize = 64;

/// A place for a datagram is never smaller than this, so that handshakes and notices fit whatever the MTU.
const MIN_DATAGRAM: usize = 1500;

/// The most bytes of one send: the largest UDP payload over IPv4 (65,535 less both headers). IPv6 could have 20 more.
const SEND_BYTES: usize = 65_507;

/// The bytes a place for one datagram holds when the TUN's MTU is `mtu`.
#[must_use]
pub fn datagram_capacity(mtu: u16) -> usize {
    (usize::from(mtu) + DATAGRAM_OVERHEAD).max(MIN_DATAGRAM).next_multiple_of(16)
}

/// Bounded queues of what leaves with the next turn.
#[derive(Debug)]
pub struct Outbox {
    pub(crate) datagrams: SendQueue,
    pub(crate) packets: PacketQueue,
    datagram: usize,
}

impl Outbox {
    pub(crate) fn new(mtu: u16) -> Self {
        Self {
            datagrams: SendQueue::new(),
            packets: PacketQueue::new(usize::from(mtu)),
            datagram: datagram_capacity(mtu),
        }
    }

    /// Room for one datagram, or `None` when the outbox is full: a drop for the caller to count.
    ///
    /// Nothing is sent unless it is committed.
    pub fn datagram(&mut self) -> Option<TrainSlot<'_>> {
        self.train(self.datagram)
    }

    /// Room for a train of `bytes` in all, or `None` when the outbox has less: a drop for the caller to count, who looks
    /// at [`Outbox::room`] before he begins what cannot be undone.
    ///
    /// Nothing is sent unless it is committed.
    pub fn train(&mut self, bytes: usize) -> Option<TrainSlot<'_>> {
        let start = self.datagrams.place(bytes.max(1))?;
        Some(TrainSlot { queue: &mut self.datagrams, start, len: bytes })
    }

    /// Room for a packet of our own to TUN (an ICMP error, a released packet), or `None` when [`OUTBOX_PACKETS`] wait.
    pub fn packet(&mut self) -> Option<PacketSlot<'_>> {
        let slot = self.packets.peek_free()?;
        Some(PacketSlot { queue: &mut self.packets, slot })
    }

    /// How many bytes a train can have now.
    #[must_use]
    pub fn room(&self) -> usize {
        self.datagrams.room()
    }

    /// How many trains still fit, whatever their length.
    #[must_use]
    pub fn train_room(&self) -> usize {
        OUTBOX_TRAINS - self.datagrams.trains.len()
    }

    /// How many packets to TUN still fit.
    #[must_use]
    pub fn packet_room(&self) -> usize {
        self.packets.free.len()
    }
}

/// Room for a train being filled; dereferences to its bytes, whose former content is unspecified.
#[derive(Debug)]
pub struct TrainSlot<'a> {
    queue: &'a mut SendQueue,
    start: usize,
    len: usize,
}

impl TrainSlot<'_> {
    /// Queues the first `len` bytes as one datagram to `to`.
    ///
    /// # Panics
    ///
    /// When `len` exceeds the room.
    pub fn commit(self, len: usize, to: SocketAddr) {
        self.commit_train(len, len.max(1), to);
    }

    /// Queues the first `len` bytes as datagrams of `stride` bytes each, save the last, which may be shorter.
    ///
    /// # Panics
    ///
    /// When `len` exceeds the room, or the stride is 0 or longer than a datagram can be.
    pub fn commit_train(self, len: usize, stride: usize, to: SocketAddr) {
        assert!(len <= self.len, "invariant: {len} bytes fit in {}", self.len);
        assert!((1..=SEND_BYTES).contains(&stride), "invariant: a datagram of {stride} bytes exists");
        self.queue.commit(self.start, len, stride, to);
    }
}

impl Deref for TrainSlot<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: room given out by `place` belongs to no train, so the kernel does not use it; the queue is borrowed.
        unsafe { self.queue.arena.bytes(0, self.start..self.start + self.len) }
    }
}

impl DerefMut for TrainSlot<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { self.queue.arena.bytes_mut(0, self.start..self.start + self.len) }
    }
}

/// Trains on their way out.
#[derive(Debug)]
pub(crate) struct SendQueue {
    arena: Region,
    /// Oldest first. Its bytes, and those of all that follow, are in use.
    trains: VecDeque<Queued>,
    /// The number of the oldest train: numbers only grow.
    oldest: u64,
    /// The oldest train of which something has not been handed over.
    next: u64,
    /// Where the next train begins, unless it has to begin at the start again.
    tail: usize,
    /// Pieces that the kernel did not take, oldest first.
    returned: VecDeque<Piece>,
    in_flight: usize,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    start: usize,
    len: usize,
    stride: usize,
    to: SocketAddr,
    /// Bytes handed over so far.
    begun: usize,
    /// Datagrams that are not done.
    left: usize,
}

/// One send: neighbouring datagrams of one train. It is with the kernel until it is completed or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    train: u64,
    start: usize,
    /// Bytes of all its datagrams.
    pub(crate) len: usize,
    /// Bytes of each but the last.
    pub(crate) stride: usize,
    pub(crate) to: SocketAddr,
}

impl Piece {
    /// How many datagrams this is.
    pub(crate) fn datagrams(&self) -> usize {
        // An empty datagram is a datagram.
        self.len.div_ceil(self.stride).max(1)
    }
}

impl SendQueue {
    fn new() -> Self {
        Self {
            arena: Region::new(1, OUTBOX_BYTES),
            trains: VecDeque::with_capacity(OUTBOX_TRAINS),
            oldest: 0,
            next: 0,
            tail: 0,
            returned: VecDeque::with_capacity(OUTBOX_TRAINS * 2),
            in_flight: 0,
        }
    }

    /// Where the oldest bytes in use lie.
    fn head(&self) -> Option<usize> {
        self.trains.front().map(|train| train.start)
    }

    /// Free bytes behind the tail, and at the arena's start. Never all: a full ring would look like an empty one.
    fn free(&self) -> (usize, usize) {
        match self.head() {
            // The next train begins at the start again: without anything in use there is all the room.
            None => (OUTBOX_BYTES, 0),
            Some(head) if self.tail > head => (OUTBOX_BYTES - self.tail, head.saturating_sub(1)),
            Some(head) => (head.saturating_sub(self.tail + 1), 0),
        }
    }

    fn room(&self) -> usize {
        if self.trains.len() == OUTBOX_TRAINS {
            return 0;
        }
        let (behind, before) = self.free();
        behind.max(before)
    }

    /// Where `bytes` fit.
    fn place(&mut self, bytes: usize) -> Option<usize> {
        if self.trains.len() == OUTBOX_TRAINS {
            return None;
        }
        if self.trains.is_empty() {
            // The same bytes again: they are in the cache.
            self.tail = 0;
        }
        let (behind, before) = self.free();
        if bytes <= behind {
            Some(self.tail)
        } else if bytes <= before {
            Some(0)
        } else {
            None
        }
    }

    fn commit(&mut self, start: usize, len: usize, stride: usize, to: SocketAddr) {
        let left = len.div_ceil(stride).max(1);
        self.trains.push_back(Queued { start, len, stride, to, begun: 0, left });
        // A train has at least one byte of its own, so that the tail never stands still.
        self.tail = (start + len.max(1)).next_multiple_of(16).min(OUTBOX_BYTES);
    }

    /// Whether something waits to be handed over.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.returned.is_empty() || self.next < self.oldest + self.trains.len() as u64
    }

    /// How many pieces the kernel holds.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// The destination of what leaves next.
    pub(crate) fn next_destination(&self) -> Option<SocketAddr> {
        if let Some(piece) = self.returned.front() {
            return Some(piece.to);
        }
        let index = usize::try_from(self.next - self.oldest).ok()?;
        self.trains.get(index).map(|train| train.to)
    }

    /// Takes what leaves next, in one send, to hand it to the kernel: at most as many datagrams as `max_segments` says
    /// for its destination. It stays in flight until [`SendQueue::complete`] or [`SendQueue::take_back`].
    pub(crate) fn start(&mut self, max_segments: impl FnOnce(&SocketAddr) -> usize) -> Option<Piece> {
        let to = self.next_destination()?;
        let most = max_segments(&to).max(1);
        let piece = match self.returned.pop_front() {
            Some(piece) => self.cut_returned(piece, most),
            None => self.cut_next(most)?,
        };
        self.in_flight += 1;
        Some(piece)
    }

    /// The beginning of a piece that was taken back; the rest of it stays next.
    fn cut_returned(&mut self, piece: Piece, most: usize) -> Piece {
        let len = piece.len.min(bytes_of(most, piece.stride));
        if len < piece.len {
            let rest = Piece { start: piece.start + len, len: piece.len - len, ..piece };
            self.returned.push_front(rest);
        }
        Piece { len, ..piece }
    }

    fn cut_next(&mut self, most: usize) -> Option<Piece> {
        let index = usize::try_from(self.next - self.oldest).ok()?;
        let train = self.trains.get_mut(index)?;
        let len = (train.len - train.begun).min(bytes_of(most, train.stride));
        let start = train.start + train.begun;
        train.begun += len;
        let piece = Piece { train: self.next, start, len, stride: train.stride, to: train.to };
        if train.begun == train.len {
            self.next += 1;
        }
        Some(piece)
    }

    /// Frees a piece that the kernel is done with.
    ///
    /// # Panics
    ///
    /// When the piece is not in flight: its bytes would be used again while the kernel reads them.
    pub(crate) fn complete(&mut self, piece: &Piece) {
        self.in_flight = self.in_flight.checked_sub(1).expect("invariant: only pieces in flight complete");
        let index = piece.train.checked_sub(self.oldest).and_then(|index| usize::try_from(index).ok());
        let train = index.and_then(|index| self.trains.get_mut(index));
        let train = train.expect("invariant: a train lives until its last piece completed");
        let left = train.left.checked_sub(piece.datagrams());
        train.left = left.expect("invariant: a datagram completes once");
        while self.trains.front().is_some_and(|train| train.left == 0) {
            self.trains.pop_front();
            self.oldest += 1;
        }
    }

    /// Makes a piece that the kernel did not take the next to go. To take back several, begin with the youngest.
    ///
    /// # Panics
    ///
    /// When no piece is in flight.
    pub(crate) fn take_back(&mut self, piece: Piece) {
        self.in_flight =
            self.in_flight.checked_sub(1).expect("invariant: only pieces in flight are taken back");
        self.returned.push_front(piece);
    }

    /// Where the bytes of a piece lie, for giving their address to the kernel.
    pub(crate) fn address(&self, piece: &Piece) -> *const u8 {
        assert!(piece.start + piece.len <= OUTBOX_BYTES, "invariant: a piece lies in the arena");
        self.arena.address(0).wrapping_add(piece.start)
    }

    /// The bytes of a piece in flight, for a back end that sends by copying.
    pub(crate) fn bytes(&self, piece: &Piece) -> &[u8] {
        // SAFETY: the kernel only reads what a piece covers, and `&self` excludes writers of ours.
        unsafe { self.arena.bytes(0, piece.start..piece.start + piece.len) }
    }
}

/// The bytes of as many datagrams as one send takes.
fn bytes_of(most: usize, stride: usize) -> usize {
    most.min(SEND_BYTES / stride).max(1) * stride
}

/// Room for a packet being filled; dereferences to its bytes, whose former content is unspecified.
#[derive(Debug)]
pub struct PacketSlot<'a> {
    queue: &'a mut PacketQueue,
    slot: u16,
}

impl PacketSlot<'_> {
    /// Queues the first `len` bytes as one packet to TUN.
    ///
    /// # Panics
    ///
    /// When `len` exceeds the slot.
    pub fn commit(self, len: usize) {
        self.queue.commit(self.slot, len);
    }
}

impl Deref for PacketSlot<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.queue.filling(self.slot)
    }
}

impl DerefMut for PacketSlot<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.queue.filling_mut(self.slot)
    }
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Free,
    Ready,
    InFlight,
}

/// Where a packet begins in its slot: the offload header lies in front of it, in zeroed bytes.
const PACKET_START: usize = LINE;

/// Packets of our own for TUN, in slots. A slot is free, then being filled, ready, in flight, and free again once the
/// kernel said that it is done.
#[derive(Debug)]
pub(crate) struct PacketQueue {
    region: Region,
    capacity: usize,
    free: Vec<u16>,
    ready: VecDeque<u16>,
    slots: Box<[(Life, usize)]>,
}

impl PacketQueue {
    fn new(capacity: usize) -> Self {
        Self {
            region: Region::new(OUTBOX_PACKETS, PACKET_START + capacity),
            capacity,
            free: (0..OUTBOX_PACKETS as u16).rev().collect(),
            ready: VecDeque::with_capacity(OUTBOX_PACKETS),
            slots: vec![(Life::Free, 0); OUTBOX_PACKETS].into_boxed_slice(),
        }
    }

    fn peek_free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    fn filling(&self, slot: u16) -> &[u8] {
        assert_eq!(self.slots[usize::from(slot)].0, Life::Free, "invariant: only free slots are filled");
        // SAFETY: a free slot is not in flight, so the kernel does not use it; `&self` excludes writers of ours.
        unsafe { self.region.bytes(slot, PACKET_START..PACKET_START + self.capacity) }
    }

    fn filling_mut(&mut self, slot: u16) -> &mut [u8] {
        assert_eq!(self.slots[usize::from(slot)].0, Life::Free, "invariant: only free slots are filled");
        // SAFETY: a free slot is not in flight, so the kernel does not use it.
        unsafe { self.region.bytes_mut(slot, PACKET_START..PACKET_START + self.capacity) }
    }

    fn commit(&mut self, slot: u16, len: usize) {
        assert!(len <= self.capacity, "invariant: {len} bytes fit a slot of {}", self.capacity);
        let free = self.free.pop();
        assert_eq!(free, Some(slot), "invariant: the slot being filled is the next free one");
        self.slots[usize::from(slot)] = (Life::Ready, len);
        self.ready.push_back(slot);
    }

    /// Takes the oldest ready packet to hand it to the kernel: it stays in flight until [`PacketQueue::complete`].
    pub(crate) fn start(&mut self) -> Option<Sending> {
        let slot = self.ready.pop_front()?;
        let (life, len) = &mut self.slots[usize::from(slot)];
        *life = Life::InFlight;
        let skip = PACKET_START - virtio::HEADER;
        let address = self.region.address(slot).wrapping_add(skip).cast_const();
        Some(Sending { slot, address, len: virtio::HEADER + *len })
    }

    /// Frees a slot that the kernel is done with.
    ///
    /// # Panics
    ///
    /// When the slot is not in flight: it would be handed out while the kernel reads it.
    pub(crate) fn complete(&mut self, slot: u16) {
        let (life, _) = &mut self.slots[usize::from(slot)];
        assert_eq!(*life, Life::InFlight, "invariant: only slots in flight complete");
        *life = Life::Free;
        self.free.push(slot);
    }

    /// The content of a slot in flight, its offload header included, for a back end that sends by copying.
    pub(crate) fn sent_bytes(&self, sending: &Sending) -> &[u8] {
        let start = PACKET_START - virtio::HEADER;
        // SAFETY: the kernel only reads slots of the queue, and `&self` excludes writers of ours.
        unsafe { self.region.bytes(sending.slot, start..start + sending.len) }
    }
}

/// A packet on its way to the kernel, its offload header included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    pub(crate) slot: u16,
    pub(crate) address: *const u8,
    pub(crate) len: usize,
}

#[cfg(test)]
mod tests;
