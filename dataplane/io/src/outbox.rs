//! What waits to be sent: datagrams for the network and packets of our own for TUN, each in a slot the kernel reads
//! from directly.
//!
//! A slot is free, then being filled, ready, in flight (the kernel may read it), and free again once the kernel said
//! that it is done. Ready slots leave in the order in which they were committed.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut, Range};

use crate::region::{LINE, Region};
use crate::tun::virtio;

/// The most datagrams that wait or are in flight.
pub const OUTBOX_DATAGRAMS: usize = 256;

/// The most packets of our own for TUN that wait or are in flight.
pub const OUTBOX_PACKETS: usize = 64;

/// What a datagram may be longer than the TUN's MTU: header and tag of a transport message (32), a relay's channel
/// header (8), padding to 16, and some room.
pub const DATAGRAM_OVERHEAD: usize = 64;

/// A datagram slot is never smaller than this, so that handshakes and notices fit whatever the MTU.
const MIN_DATAGRAM: usize = 1500;

/// The bytes a datagram slot holds when the TUN's MTU is `mtu`.
#[must_use]
pub fn datagram_capacity(mtu: u16) -> usize {
    (usize::from(mtu) + DATAGRAM_OVERHEAD).max(MIN_DATAGRAM).next_multiple_of(16)
}

/// Bounded queues of what leaves with the next turn.
#[derive(Debug)]
pub struct Outbox {
    pub(crate) datagrams: SendQueue,
    pub(crate) packets: SendQueue,
}

impl Outbox {
    pub(crate) fn new(mtu: u16) -> Self {
        Self {
            datagrams: SendQueue::new(OUTBOX_DATAGRAMS, 0, datagram_capacity(mtu)),
            packets: SendQueue::new(OUTBOX_PACKETS, virtio::HEADER, usize::from(mtu)),
        }
    }

    /// An empty slot for a datagram, or `None` when [`OUTBOX_DATAGRAMS`] wait: a drop for the caller to count.
    ///
    /// Nothing is sent unless the slot is committed.
    pub fn datagram(&mut self) -> Option<DatagramSlot<'_>> {
        let slot = self.datagrams.peek_free()?;
        Some(DatagramSlot { queue: &mut self.datagrams, slot })
    }

    /// An empty slot for a packet of our own to TUN (an ICMP error, a released packet), or `None` when
    /// [`OUTBOX_PACKETS`] wait.
    pub fn packet(&mut self) -> Option<PacketSlot<'_>> {
        let slot = self.packets.peek_free()?;
        Some(PacketSlot { queue: &mut self.packets, slot })
    }

    /// How many datagrams still fit.
    #[must_use]
    pub fn datagram_room(&self) -> usize {
        self.datagrams.free.len()
    }

    /// How many packets to TUN still fit.
    #[must_use]
    pub fn packet_room(&self) -> usize {
        self.packets.free.len()
    }
}

/// A free datagram slot being filled; dereferences to its bytes, whose former content is unspecified.
#[derive(Debug)]
pub struct DatagramSlot<'a> {
    queue: &'a mut SendQueue,
    slot: u16,
}

impl DatagramSlot<'_> {
    /// Queues the first `len` bytes as one datagram to `to`.
    ///
    /// # Panics
    ///
    /// When `len` exceeds the slot.
    pub fn commit(self, len: usize, to: SocketAddr) {
        self.queue.commit(self.slot, len, to);
    }
}

impl Deref for DatagramSlot<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.queue.filling(self.slot)
    }
}

impl DerefMut for DatagramSlot<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.queue.filling_mut(self.slot)
    }
}

/// A free packet slot being filled; dereferences to its bytes, whose former content is unspecified.
#[derive(Debug)]
pub struct PacketSlot<'a> {
    queue: &'a mut SendQueue,
    slot: u16,
}

impl PacketSlot<'_> {
    /// Queues the first `len` bytes as one packet to TUN.
    ///
    /// # Panics
    ///
    /// When `len` exceeds the slot.
    pub fn commit(self, len: usize) {
        self.queue.commit(self.slot, len, NOBODY);
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

/// The address of a slot that has none: a packet to TUN.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Free,
    Ready,
    InFlight,
}

/// Slots of one kind. Headers that the kernel wants in front of the content lie in zeroed headroom.
#[derive(Debug)]
pub(crate) struct SendQueue {
    region: Region,
    content: Range<usize>,
    headroom: usize,
    free: Vec<u16>,
    ready: VecDeque<u16>,
    slots: Box<[Queued]>,
}

#[derive(Clone, Copy, Debug)]
struct Queued {
    life: Life,
    len: usize,
    to: SocketAddr,
}

impl SendQueue {
    fn new(slots: usize, headroom: usize, capacity: usize) -> Self {
        let first = if headroom == 0 { 0 } else { headroom.next_multiple_of(LINE) };
        let count = u16::try_from(slots).expect("invariant: queue bounds fit 16 bits");
        Self {
            region: Region::new(slots, first + capacity),
            content: first..first + capacity,
            headroom,
            free: (0..count).rev().collect(),
            ready: VecDeque::with_capacity(slots),
            slots: vec![Queued { life: Life::Free, len: 0, to: NOBODY }; slots].into_boxed_slice(),
        }
    }

    fn peek_free(&self) -> Option<u16> {
        self.free.last().copied()
    }

    fn filling(&self, slot: u16) -> &[u8] {
        assert_eq!(self.slots[usize::from(slot)].life, Life::Free, "invariant: only free slots are filled");
        // SAFETY: a free slot is not in flight, so the kernel does not use it; `&self` excludes writers of ours.
        unsafe { self.region.bytes(slot, self.content.clone()) }
    }

    fn filling_mut(&mut self, slot: u16) -> &mut [u8] {
        assert_eq!(self.slots[usize::from(slot)].life, Life::Free, "invariant: only free slots are filled");
        // SAFETY: a free slot is not in flight, so the kernel does not use it.
        unsafe { self.region.bytes_mut(slot, self.content.clone()) }
    }

    fn commit(&mut self, slot: u16, len: usize, to: SocketAddr) {
        assert!(len <= self.content.len(), "invariant: {len} bytes fit a slot of {}", self.content.len());
        let free = self.free.pop();
        assert_eq!(free, Some(slot), "invariant: the slot being filled is the next free one");
        self.slots[usize::from(slot)] = Queued { life: Life::Ready, len, to };
        self.ready.push_back(slot);
    }

    /// How many slots are ready.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// How many slots the kernel holds.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() - self.ready.len()
    }

    /// The destination of the oldest ready slot.
    pub(crate) fn next_destination(&self) -> Option<SocketAddr> {
        self.ready.front().map(|slot| self.slots[usize::from(*slot)].to)
    }

    /// Takes the oldest ready slot to hand it to the kernel: it stays in flight until [`SendQueue::complete`] or
    /// [`SendQueue::take_back`].
    pub(crate) fn start(&mut self) -> Option<Sending> {
        let slot = self.ready.pop_front()?;
        let queued = &mut self.slots[usize::from(slot)];
        queued.life = Life::InFlight;
        let (len, to) = (queued.len, queued.to);
        let skip = self.content.start - self.headroom;
        // SAFETY: headroom <= content.start < stride, so the sum stays inside the slot.
        let address = unsafe { self.region.address(slot).add(skip) };
        Some(Sending { slot, address, len: self.headroom + len, to })
    }

    /// Frees a slot that the kernel is done with.
    ///
    /// # Panics
    ///
    /// When the slot is not in flight: it would be handed out while the kernel reads it.
    pub(crate) fn complete(&mut self, slot: u16) {
        let queued = &mut self.slots[usize::from(slot)];
        assert_eq!(queued.life, Life::InFlight, "invariant: only slots in flight complete");
        queued.life = Life::Free;
        self.free.push(slot);
    }

    /// Makes a slot that the kernel did not accept the next to go. To take back several, begin with the youngest.
    ///
    /// # Panics
    ///
    /// When the slot is not in flight.
    pub(crate) fn take_back(&mut self, slot: u16) {
        let queued = &mut self.slots[usize::from(slot)];
        assert_eq!(queued.life, Life::InFlight, "invariant: only slots in flight are taken back");
        queued.life = Life::Ready;
        self.ready.push_front(slot);
    }

    /// The content of a slot in flight, for a back end that sends by copying.
    pub(crate) fn sent_bytes(&self, sending: &Sending) -> &[u8] {
        let start = self.content.start - self.headroom;
        // SAFETY: the kernel only reads slots of a send queue, and `&self` excludes writers of ours.
        unsafe { self.region.bytes(sending.slot, start..start + sending.len) }
    }
}

/// A slot on its way to the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    pub(crate) slot: u16,
    pub(crate) address: *const u8,
    pub(crate) len: usize,
    pub(crate) to: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn fill(outbox: &mut Outbox, byte: u8) {
        let mut slot = outbox.datagram().expect("room");
        slot[0] = byte;
        slot.commit(1, to(u16::from(byte)));
    }

    #[test]
    fn a_full_outbox_says_so_and_recovers() {
        let mut outbox = Outbox::new(1408);
        for _ in 0..OUTBOX_DATAGRAMS {
            outbox.datagram().expect("room").commit(0, to(1));
        }
        assert_eq!(outbox.datagram_room(), 0);
        assert!(outbox.datagram().is_none());
        let sending = outbox.datagrams.start().expect("ready");
        assert!(outbox.datagram().is_none(), "a slot in flight is not free");
        outbox.datagrams.complete(sending.slot);
        assert!(outbox.datagram().is_some());
    }

    #[test]
    fn a_full_packet_queue_says_so() {
        let mut outbox = Outbox::new(1408);
        for _ in 0..OUTBOX_PACKETS {
            outbox.packet().expect("room").commit(20);
        }
        assert_eq!(outbox.packet_room(), 0);
        assert!(outbox.packet().is_none());
    }

    #[test]
    fn an_uncommitted_slot_is_not_sent() {
        let mut outbox = Outbox::new(1408);
        outbox.datagram().expect("room").fill(1);
        assert_eq!(outbox.datagrams.ready_len(), 0);
        assert_eq!(outbox.datagram_room(), OUTBOX_DATAGRAMS);
    }

    #[test]
    fn datagrams_leave_in_order_even_when_taken_back() {
        let mut outbox = Outbox::new(1408);
        for byte in 0..5 {
            fill(&mut outbox, byte);
        }
        let first: Vec<_> = (0..3).map(|_| outbox.datagrams.start().expect("ready")).collect();
        outbox.datagrams.complete(first[0].slot);
        outbox.datagrams.take_back(first[2].slot);
        outbox.datagrams.take_back(first[1].slot);
        let mut order = Vec::new();
        while let Some(sending) = outbox.datagrams.start() {
            order.push(outbox.datagrams.sent_bytes(&sending)[0]);
        }
        assert_eq!(order, [1, 2, 3, 4]);
        assert_eq!(outbox.datagrams.in_flight(), 4);
    }

    #[test]
    #[should_panic(expected = "invariant")]
    fn a_slot_completes_once() {
        let mut outbox = Outbox::new(1408);
        fill(&mut outbox, 1);
        let sending = outbox.datagrams.start().expect("ready");
        outbox.datagrams.complete(sending.slot);
        outbox.datagrams.complete(sending.slot);
    }

    #[test]
    fn packets_carry_an_empty_offload_header() {
        let mut outbox = Outbox::new(1408);
        let mut slot = outbox.packet().expect("room");
        assert_eq!(slot.len(), 1408);
        slot.fill(0x45);
        slot.commit(3);
        let sending = outbox.packets.start().expect("ready");
        let mut expected = vec![0; virtio::HEADER];
        expected.extend([0x45; 3]);
        assert_eq!(outbox.packets.sent_bytes(&sending), expected);
    }

    #[test]
    fn datagram_slots_fit_the_mtu_and_handshakes() {
        assert_eq!(datagram_capacity(1280), 1504);
        assert_eq!(datagram_capacity(1408), 1504);
        assert_eq!(datagram_capacity(8920), 8992);
        assert!(datagram_capacity(u16::MAX) > usize::from(u16::MAX));
    }
}
