//! The in-memory twin: packets and datagrams come from and go to vectors, time is a variable.
//!
//! It keeps the order of events of the real ones (send, wait, show), so a handler cannot tell the difference.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::offload::virtio;
use crate::outbox::datagram_capacity;
use crate::{
    Counters, DATAGRAM_OVERHEAD, Delivery, Handler, Now, Outbox, PacketIo, SuperPacket, Train, Waker,
};

/// A [`PacketIo`] without a kernel, for testing handlers.
#[derive(Debug)]
pub struct MemoryIo {
    outbox: Outbox,
    waker: Waker,
    now: Now,
    mtu: usize,
    arriving: VecDeque<Arrival>,
    stalled: bool,
    datagrams: Vec<(SocketAddr, Vec<u8>)>,
    packets: Vec<Vec<u8>>,
    counters: Counters,
}

#[derive(Debug)]
enum Arrival {
    Packet(Vec<u8>),
    /// Datagrams of a stride.
    Train(SocketAddr, Vec<u8>, usize),
}

impl MemoryIo {
    /// A twin of a back end for a TUN of this MTU, at the time of the call.
    ///
    /// # Errors
    ///
    /// When there is no file descriptor left for its waker.
    pub fn new(mtu: u16) -> io::Result<Self> {
        Ok(Self {
            outbox: Outbox::new(mtu),
            waker: Waker::new()?,
            now: Now::read(),
            mtu: usize::from(mtu),
            arriving: VecDeque::new(),
            stalled: false,
            datagrams: Vec::new(),
            packets: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// The time that handlers are told.
    #[must_use]
    pub fn now(&self) -> Now {
        self.now
    }

    /// Lets time pass on both clocks.
    pub fn advance(&mut self, by: Duration) {
        self.now.monotonic += by;
        self.now.wall += by;
    }

    /// Lets a packet arrive from TUN in the next turn.
    pub fn push_packet(&mut self, packet: &[u8]) {
        self.arriving.push_back(Arrival::Packet(packet.to_vec()));
    }

    /// Lets a datagram arrive from the network in the next turn.
    pub fn push_datagram(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.push_train(from, datagram, datagram.len());
    }

    /// Lets datagrams of `stride` bytes, one behind the other, arrive together in the next turn.
    pub fn push_train(&mut self, from: SocketAddr, bytes: &[u8], stride: usize) {
        self.arriving.push_back(Arrival::Train(from, bytes.to_vec(), stride));
    }

    /// Makes the network take no datagrams, as a full socket buffer does, or take them again.
    pub fn stall(&mut self, stalled: bool) {
        self.stalled = stalled;
    }

    /// What was sent to the network so far, oldest first.
    pub fn take_datagrams(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.datagrams)
    }

    /// What was written to TUN so far, oldest first.
    pub fn take_packets(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.packets)
    }

    fn send(&mut self) {
        while let Some(sending) = self.outbox.packets.start() {
            let bytes = self.outbox.packets.sent_bytes(&sending);
            self.packets.push(bytes[virtio::HEADER..].to_vec());
            self.outbox.packets.complete(sending.slot);
            self.counters.packets_written += 1;
        }
        if self.stalled {
            self.counters.send_stalls += u64::from(self.outbox.datagrams.is_waiting());
            return;
        }
        while let Some(piece) = self.outbox.datagrams.start(|_| 1) {
            let bytes = self.outbox.datagrams.bytes(&piece).to_vec();
            self.datagrams.push((piece.to, bytes));
            self.outbox.datagrams.complete(&piece);
            self.counters.datagrams_sent += 1;
        }
    }

    /// Waits for nothing: when nothing arrives before the deadline, it is the deadline.
    fn wait(&mut self, deadline: Option<Instant>) {
        if !self.arriving.is_empty() || self.waker.is_pending() {
            return;
        }
        let waited = deadline.and_then(|deadline| deadline.checked_duration_since(self.now.monotonic));
        self.advance(waited.unwrap_or_default());
    }

    fn show_packet(&mut self, packet: &[u8], handler: &mut impl Handler) {
        if packet.len() > self.mtu {
            self.counters.packets_unfit += 1;
            return;
        }
        self.counters.packets_read += 1;
        handler.packets(&[SuperPacket::single(packet)], &mut self.outbox, self.now);
    }

    fn show_datagrams(
        &mut self,
        from: SocketAddr,
        mut bytes: Vec<u8>,
        stride: usize,
        handler: &mut impl Handler,
    ) {
        if stride > datagram_capacity(u16::try_from(self.mtu).unwrap_or(u16::MAX)) {
            self.counters.datagrams_unfit += 1;
            return;
        }
        let train = Train::of(&mut bytes, stride);
        self.counters.datagrams_received += train.len() as u64;
        self.counters.trains_received += u64::from(train.len() > 1);
        let mut delivery = Delivery::new(&mut self.outbox, &train);
        handler.datagrams(train, from, &mut delivery, self.now);
        for range in delivery.into_ranges() {
            self.packets.push(bytes[range].to_vec());
            self.counters.packets_written += 1;
        }
    }

    /// Whether any packet has room in the outbox.
    fn has_room(&self) -> bool {
        self.outbox.room() > self.mtu + DATAGRAM_OVERHEAD
    }
}

impl PacketIo for MemoryIo {
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()> {
        let wanted_room = !self.has_room();
        self.send();
        if !wanted_room || !self.has_room() {
            self.wait(deadline);
        }
        self.counters.turns += 1;
        if self.waker.is_pending() {
            self.waker.drain();
            self.waker.seen();
            self.counters.wakes += 1;
            handler.wake(&mut self.outbox, self.now);
        }
        for _ in 0..self.arriving.len() {
            match self.arriving.pop_front() {
                Some(Arrival::Packet(packet)) if !self.has_room() => {
                    self.arriving.push_back(Arrival::Packet(packet));
                }
                Some(Arrival::Packet(packet)) => self.show_packet(&packet, handler),
                Some(Arrival::Train(from, bytes, stride)) => {
                    self.show_datagrams(from, bytes, stride, handler)
                }
                None => break,
            }
        }
        handler.idle(&mut self.outbox, self.now);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send();
        Ok(())
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
