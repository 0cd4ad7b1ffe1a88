//! The portable back end: ppoll, recvmmsg and sendmmsg, one read or write for a packet or super-packet on TUN.
//!
//! For machines on which io_uring is forbidden. Same offloads, order of events and bounds as the ring.

mod batch;

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crate::offload::Place;
use crate::outbox::{OUTBOX_BYTES, Piece, datagram_capacity};
use crate::pause::Pause;
use crate::region::{LINE, Region};
use crate::train::{Arrived, TRAIN_BYTES};
use crate::udp::Family;
use crate::udp::messages::Messages;
use crate::udp::segmentation::{Segmentation, is_about_segments};
use crate::writes::{Write, Writes, vector};
use crate::{
    Counters, Handler, MAX_PACKETS, MAX_SEGMENTS, Now, Offloads, Outbox, PacketIo, Parts, SuperPacket, Waker,
    offload::virtio, reads, sys,
};
use batch::ReceiveBatch;

/// The most datagrams or trains sent by one call.
const SEND_BATCH: usize = 64;

/// So many bytes read from TUN end a turn: one super-packet, or some tens of packets. What they became is sent before more is
/// read, so that the other end has something to do meanwhile; with four super-packets both ends waited for each other a
/// quarter of the time.
const READ_BYTES: usize = 48 << 10;

/// The most packets read from TUN in one turn, so that the network has its say in between.
const READ_PACKETS: usize = MAX_PACKETS;

/// Where a read begins in its slot, so that the packet behind the offload header begins on a cache line.
const READ_START: usize = LINE - virtio::HEADER;

/// Talks to the kernel by plain system calls.
#[derive(Debug)]
pub struct PollIo {
    parts: Parts,
    outbox: Outbox,
    receive: ReceiveBatch,
    messages: Messages,
    /// What one call sends.
    sending: heapless::Vec<Piece, SEND_BATCH>,
    segmentation: Segmentation,
    writes: Writes,
    /// What was read from TUN: slots of `read_len` bytes from `READ_START` on.
    read: Region,
    read_len: usize,
    /// The socket that took nothing more when we last sent.
    stalled: Option<Family>,
    /// After errors of TUN and of the sockets, in the order of `wait`.
    pauses: [Pause; WAKER],
    /// The kernel had no memory for a datagram.
    send_pause: Pause,
    counters: Counters,
}

/// A descriptor that poll skips.
const NOBODY: RawFd = -1;

/// Who is polled, in this order.
const TUN: usize = 0;
const WAKER: usize = 3;
const POLLED: usize = 4;

impl PollIo {
    /// Makes a back end of its parts.
    #[must_use]
    pub fn new(mut parts: Parts) -> Self {
        parts.offer_offloads();
        let Offloads { tso, uso, udp_gso, udp_gro, .. } = parts.offloads;
        let read_len = reads::buffer_len(parts.mtu, tso || uso);
        Self {
            outbox: Outbox::new(parts.mtu),
            receive: ReceiveBatch::new(if udp_gro { TRAIN_BYTES } else { datagram_capacity(parts.mtu) }),
            messages: Messages::new(),
            sending: heapless::Vec::new(),
            segmentation: Segmentation::new(udp_gso),
            writes: Writes::new(parts.offloads),
            read: Region::new(READ_PACKETS, READ_START + read_len),
            read_len,
            stalled: None,
            pauses: [Pause::default(); WAKER],
            send_pause: Pause::default(),
            counters: Counters::default(),
            parts,
        }
    }

    /// The offloads in use: those asked for that the kernel has.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.parts.offloads
    }

    #[cfg(test)]
    pub(crate) fn writes(&mut self) -> &mut Writes {
        &mut self.writes
    }

    /// Sends what is ready; stops where a socket takes no more.
    fn send(&mut self) -> io::Result<()> {
        while let Some(sending) = self.outbox.packets.start() {
            let write = vector(sending.address, sending.len);
            // SAFETY: a slot in flight keeps its content until it completes.
            let result = unsafe { sys::write_vectors(self.parts.tun.as_fd(), &raw const write, 1) };
            self.outbox.packets.complete(sending.slot);
            self.counters.system_calls += 1;
            self.wrote(result, 1)?;
        }
        if self.send_pause.until().is_some() {
            if !self.send_pause.is_over(Instant::now()) {
                return Ok(());
            }
            self.send_pause.end();
        }
        self.stalled = None;
        if self.segmentation.remembers() {
            self.segmentation.forget_old(Instant::now());
        }
        while let Some(to) = self.outbox.datagrams.next_destination() {
            if !self.send_some(Family::of(&to)) {
                self.counters.send_stalls += 1;
                break;
            }
        }
        Ok(())
    }

    /// Sends what is for one family at the head of the queue; false when no more is taken for now.
    fn send_some(&mut self, family: Family) -> bool {
        let queue = &mut self.outbox.datagrams;
        let Some(socket) = self.parts.udp.socket(family) else {
            if let Some(piece) = queue.start(|_| MAX_SEGMENTS) {
                self.counters.datagrams_refused += piece.datagrams() as u64;
                queue.complete(&piece);
            }
            return true;
        };
        while !self.sending.is_full() && queue.next_destination().is_some_and(|to| Family::of(&to) == family)
        {
            let Some(piece) = queue.start(|to| self.segmentation.most(to)) else { break };
            self.messages.fill(self.sending.len(), &piece, queue.address(&piece));
            // Cannot fail: the loop ends when it is full.
            let _ = self.sending.push(piece);
        }
        self.counters.system_calls += 1;
        // SAFETY: as many messages were filled, with pieces that are in flight and neither reused nor changed.
        let result = unsafe { sys::send_messages(socket, self.messages.first(), self.sending.len()) };
        self.conclude(family, result)
    }

    /// Takes note of what became of them: what was not tried goes back to the head of the queue.
    fn conclude(&mut self, family: Family, result: io::Result<usize>) -> bool {
        let queue = &mut self.outbox.datagrams;
        let (mut done, mut goes_on) = (0, true);
        match result {
            Ok(sent) => {
                done = sent;
                self.send_pause.succeed();
                for piece in self.sending.iter().take(sent) {
                    self.counters.datagrams_sent += piece.datagrams() as u64;
                    self.counters.trains_sent += u64::from(piece.datagrams() > 1);
                }
            }
            // An error is the first one's; the others have not been tried.
            Err(error) => match (error.raw_os_error(), self.sending.first()) {
                (Some(libc::EINTR), _) => {}
                (Some(libc::EAGAIN), _) => {
                    self.stalled = Some(family);
                    goes_on = false;
                }
                (Some(libc::ENOBUFS | libc::ENOMEM), _) => {
                    self.send_pause.fail(Instant::now());
                    goes_on = false;
                }
                (Some(code), Some(piece)) if piece.datagrams() > 1 && is_about_segments(code) => {
                    self.counters.offloads_refused += 1;
                    self.segmentation.refuse(&piece.to, piece.datagrams(), Instant::now());
                }
                (_, Some(piece)) => {
                    self.counters.datagrams_refused += piece.datagrams() as u64;
                    done = 1;
                }
                (_, None) => {}
            },
        }
        while self.sending.len() > done {
            if let Some(piece) = self.sending.pop() {
                queue.take_back(piece);
            }
        }
        for piece in &self.sending {
            queue.complete(piece);
        }
        self.sending.clear();
        goes_on
    }

    /// Counts a write of so many packets to TUN; an error only when the interface is gone.
    fn wrote(&mut self, result: io::Result<usize>, packets: usize) -> io::Result<()> {
        match result {
            Ok(_) => {
                self.counters.packets_written += packets as u64;
                self.counters.super_packets_written += u64::from(packets > 1);
            }
            Err(error) if self.parts.tun.is_gone(&error) => return Err(self.parts.tun.gone()),
            Err(_) => self.counters.packets_refused += packets as u64,
        }
        Ok(())
    }

    /// Writes to TUN what was pushed.
    fn write(&mut self) -> io::Result<()> {
        let Self { writes, receive, .. } = self;
        if writes.is_empty() {
            return Ok(());
        }
        let count = writes.gather(|place| address(receive, place));
        for index in 0..count {
            let write = self.writes.get(index);
            let result = self.write_one(write);
            let refused = result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
            if !refused || write.packets == 1 {
                self.wrote(result, write.packets)?;
                continue;
            }
            self.counters.offloads_refused += 1;
            let Self { writes, receive, .. } = self;
            for again in writes.refuse(index, |place| address(receive, place)) {
                let write = self.writes.get(again);
                let result = self.write_one(write);
                self.wrote(result, 1)?;
            }
        }
        self.writes.clear();
        Ok(())
    }

    fn write_one(&mut self, write: Write) -> io::Result<usize> {
        self.counters.system_calls += 1;
        // SAFETY: vectors, headers and buffers stay as they are until the writes are cleared.
        unsafe { sys::write_vectors(self.parts.tun.as_fd(), write.vectors, write.count) }
    }

    /// Waits for any of ours, and answers who has something to say.
    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<[bool; POLLED]> {
        let [v4, v6] = Family::ALL.map(|family| {
            let out = if self.stalled == Some(family) { libc::POLLOUT } else { 0 };
            let fd = self.parts.udp.socket(family).map_or(NOBODY, |socket| socket.as_raw_fd());
            libc::pollfd { fd, events: libc::POLLIN | out, revents: 0 }
        });
        // Without room for what would come of it, TUN is not read. Its removal is reported all the same.
        let tun_events = if self.has_room() { libc::POLLIN } else { 0 };
        let tun = libc::pollfd { fd: self.parts.tun.as_fd().as_raw_fd(), events: tun_events, revents: 0 };
        let waker =
            libc::pollfd { fd: self.parts.waker.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut set = [tun, v4, v6, waker];
        let until =
            self.pauses.iter().filter_map(Pause::until).chain(self.send_pause.until()).chain(deadline).min();
        let mut timeout = None;
        if let Some(until) = until {
            let now = Instant::now();
            timeout = Some(until.saturating_duration_since(now));
            for (polled, pause) in set.iter_mut().zip(&mut self.pauses) {
                if pause.is_over(now) {
                    pause.end();
                } else {
                    polled.fd = NOBODY;
                }
            }
        }
        let spins_until = (!self.parts.spin.is_zero()).then(|| Instant::now() + self.parts.spin);
        while let Some(end) = spins_until.filter(|_| timeout.is_none_or(|timeout| !timeout.is_zero())) {
            self.counters.system_calls += 1;
            match sys::poll(&mut set, Some(Duration::ZERO)) {
                Ok(0) => {}
                _ => timeout = Some(Duration::ZERO),
            }
            let now = Instant::now();
            if let Some(until) = until.filter(|_| timeout != Some(Duration::ZERO)) {
                timeout = Some(until.saturating_duration_since(now));
            }
            if now >= end {
                break;
            }
        }
        self.counters.system_calls += 1;
        match sys::poll(&mut set, timeout) {
            Ok(_) => Ok(set.map(|polled| polled.revents & !libc::POLLOUT != 0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; POLLED]),
            Err(error) => Err(error),
        }
    }

    /// Whether anything that a read from TUN can bring has room in the outbox.
    fn has_room(&self) -> bool {
        self.outbox.room() >= OUTBOX_BYTES / 4 * 3 && self.outbox.train_room() >= 2 * READ_PACKETS
    }

    /// Shows what one socket has, at most one batch.
    fn receive(&mut self, family: Family, handler: &mut impl Handler, now: Now) -> io::Result<()> {
        let Some(socket) = self.parts.udp.socket(family) else { return Ok(()) };
        self.counters.system_calls += 1;
        let count = match self.receive.receive(socket) {
            Ok(count) => {
                self.pauses[TUN + 1 + family as usize].succeed();
                count
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            // Most likely an ICMP message about something we sent, reported once.
            Err(_) => {
                self.counters.receive_errors += 1;
                self.pauses[TUN + 1 + family as usize].fail(now.monotonic);
                0
            }
        };
        for index in 0..count {
            self.show_received(index, handler, now)?;
        }
        self.write()
    }

    /// Shows what one receive brought.
    fn show_received(&mut self, index: usize, handler: &mut impl Handler, now: Now) -> io::Result<()> {
        let Some((bytes, from, size)) = self.receive.received(index) else {
            self.counters.datagrams_unfit += 1;
            return Ok(());
        };
        let len = bytes.len();
        let stride = size.map_or(len, usize::from).max(1);
        if stride > datagram_capacity(self.parts.mtu) {
            self.counters.datagrams_unfit += len.div_ceil(stride) as u64;
            return Ok(());
        }
        self.counters.trains_received += u64::from(len > stride);
        let mut start = 0;
        loop {
            if self.writes.room() < MAX_SEGMENTS {
                self.write()?;
            }
            let Some((bytes, _, _)) = self.receive.received(index) else { return Ok(()) };
            // More than that are of no kernel's making, and yet no reason to lose any.
            let end = len.min(start + stride * MAX_SEGMENTS);
            self.counters.datagrams_received += (end - start).div_ceil(stride).max(1) as u64;
            let arrived = Arrived { from, stride, buffer: index as u16, start };
            arrived.show(&mut bytes[start..end], handler, &mut self.outbox, &mut self.writes, now);
            start = end;
            if start >= len {
                return Ok(());
            }
        }
    }

    /// Shows what TUN has, within the budget and while the outbox has room.
    fn read(&mut self, handler: &mut impl Handler, now: Now) -> io::Result<()> {
        let mut lens = heapless::Vec::<usize, READ_PACKETS>::new();
        let (mut bytes, mut bound) = (0, 0);
        while !lens.is_full() && bytes < READ_BYTES {
            let Some(len) = self.read_one(lens.len() as u16, now)? else { break };
            // SAFETY: the kernel used the slot only during the read.
            let read = unsafe { self.read.bytes(lens.len() as u16, READ_START..READ_START + len) };
            bytes += len;
            bound += reads::bound(read);
            // Cannot fail: the loop ends when it is full.
            let _ = lens.push(len);
            if bound > OUTBOX_BYTES / 4 {
                break;
            }
        }
        let mut shown = heapless::Vec::<SuperPacket<'_>, READ_PACKETS>::new();
        for (slot, len) in lens.iter().enumerate() {
            // SAFETY: the kernel used the slot only during the read, and each slot is borrowed once.
            let read = unsafe { self.read.slot_mut(slot as u16, READ_START..READ_START + len) };
            let fits = *len < self.read_len;
            if let Some(packet) =
                reads::accept(if fits { read } else { &mut [] }, self.parts.mtu, &mut self.counters)
            {
                // Cannot fail: there are not more than were read.
                let _ = shown.push(packet);
            }
        }
        if !shown.is_empty() {
            handler.packets(&shown, &mut self.outbox, now);
        }
        Ok(())
    }

    /// Reads what TUN gives next into a slot; `None` when there is nothing.
    fn read_one(&mut self, slot: u16, now: Now) -> io::Result<Option<usize>> {
        self.counters.system_calls += 1;
        // SAFETY: the slot is ours: nothing of it is borrowed or with the kernel.
        let buffer = unsafe { self.read.bytes_mut(slot, READ_START..READ_START + self.read_len) };
        match self.parts.tun.file().read(buffer) {
            Ok(len) => {
                self.pauses[TUN].succeed();
                Ok(Some(len))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) if self.parts.tun.is_gone(&error) => Err(self.parts.tun.gone()),
            Err(_) => {
                self.counters.receive_errors += 1;
                self.pauses[TUN].fail(now.monotonic);
                Ok(None)
            }
        }
    }
}

/// Where a place's bytes are.
fn address(receive: &ReceiveBatch, place: Place) -> *const u8 {
    receive.address(place.buffer, place.start as usize)
}

impl PacketIo for PollIo {
    fn turn(&mut self, deadline: Option<Instant>, handler: &mut impl Handler) -> io::Result<()> {
        let wanted_room = !self.has_room();
        self.send()?;
        // Whoever could not put everything into the outbox can now.
        let deadline = if wanted_room && self.has_room() { Some(Instant::now()) } else { deadline };
        let ready = self.wait(deadline)?;
        let now = Now::read();
        self.counters.turns += 1;
        if ready[WAKER] {
            self.counters.system_calls += 1;
            self.parts.waker.drain();
            self.parts.waker.seen();
            self.counters.wakes += 1;
            handler.wake(&mut self.outbox, now);
        }
        // The network first: acknowledgements it carries let TUN's senders go on.
        for (index, family) in (TUN + 1..).zip(Family::ALL) {
            if ready[index] {
                self.receive(family, handler, now)?;
            }
        }
        if ready[TUN] {
            if self.has_room() {
                self.read(handler, now)?;
            } else if !self.parts.tun.is_attached() {
                return Err(self.parts.tun.gone());
            }
        }
        handler.idle(&mut self.outbox, now);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn waker(&self) -> Waker {
        self.parts.waker.clone()
    }
}
