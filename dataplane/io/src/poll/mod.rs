//! The portable back end: ppoll, recvmmsg and sendmmsg, one read and one write per packet on TUN.
//!
//! For machines on which io_uring is forbidden. Same order of events and same bounds as the ring.

mod batch;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use crate::outbox::datagram_capacity;
use crate::pause::Pause;
use crate::tun::virtio;
use crate::udp::Family;
use crate::{Counters, Delivery, Handler, Now, Outbox, PacketIo, Parts, SuperPacket, Train, Waker, sys};
use batch::{ReceiveBatch, SendBatch};

/// The most packets read from TUN in one turn, so that the network has its say in between.
const TUN_BUDGET: usize = 64;

/// Talks to the kernel by plain system calls.
#[derive(Debug)]
pub struct PollIo {
    parts: Parts,
    outbox: Outbox,
    receive: ReceiveBatch,
    send: SendBatch,
    /// Offload header, one packet, and one byte by which a longer packet shows.
    read: Box<[u8]>,
    /// The socket that took nothing more when we last sent.
    stalled: Option<Family>,
    /// After errors of TUN and of the sockets, in the order of `wait`.
    pauses: [Pause; WAKER],
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
    pub fn new(parts: Parts) -> Self {
        Self {
            outbox: Outbox::new(parts.mtu),
            receive: ReceiveBatch::new(datagram_capacity(parts.mtu)),
            send: SendBatch::new(),
            read: vec![0; virtio::HEADER + usize::from(parts.mtu) + 1].into_boxed_slice(),
            stalled: None,
            pauses: [Pause::default(); WAKER],
            counters: Counters::default(),
            parts,
        }
    }

    /// Sends what is ready; stops where a socket takes no more.
    fn send(&mut self) -> io::Result<()> {
        while let Some(sending) = self.outbox.packets.start() {
            let result =
                write(self.parts.tun.file(), self.outbox.packets.sent_bytes(&sending), &mut self.counters);
            self.outbox.packets.complete(sending.slot);
            self.written(result)?;
        }
        self.stalled = None;
        while let Some(to) = self.outbox.datagrams.next_destination() {
            let family = Family::of(&to);
            if !self.send_run(family) {
                self.stalled = Some(family);
                self.counters.send_stalls += 1;
                break;
            }
        }
        Ok(())
    }

    /// Sends the datagrams of one family at the head of the queue; false when the socket takes no more.
    fn send_run(&mut self, family: Family) -> bool {
        let queue = &mut self.outbox.datagrams;
        let Some(socket) = self.parts.udp.socket(family) else {
            if let Some(sending) = queue.start() {
                queue.complete(sending.slot);
                self.counters.datagrams_refused += 1;
            }
            return true;
        };
        self.send.fill(queue, family);
        self.counters.system_calls += 1;
        match self.send.send(socket) {
            Ok(sent) => {
                self.counters.datagrams_sent += sent as u64;
                self.send.settle(queue, sent);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.send.settle(queue, 0);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.send.settle(queue, 0);
                false
            }
            Err(_) => {
                // The error is the first datagram's; the others have not been tried.
                self.counters.datagrams_refused += 1;
                self.send.settle(queue, 1);
                true
            }
        }
    }

    /// Counts a write to TUN; an error only when the interface is gone.
    fn written(&mut self, result: io::Result<()>) -> io::Result<()> {
        match result {
            Ok(()) => self.counters.packets_written += 1,
            Err(error) if self.parts.tun.is_gone(&error) => return Err(self.parts.tun.gone()),
            Err(_) => self.counters.packets_refused += 1,
        }
        Ok(())
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
        let until = self.pauses.iter().filter_map(Pause::until).chain(deadline).min();
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
        self.counters.system_calls += 1;
        match sys::poll(&mut set, timeout) {
            Ok(_) => Ok(set.map(|polled| polled.revents & !libc::POLLOUT != 0)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; POLLED]),
            Err(error) => Err(error),
        }
    }

    fn has_room(&self) -> bool {
        self.outbox.datagram_room() >= self.max_segments()
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
            let Some((datagram, from)) = self.receive.datagram(index) else {
                self.counters.datagrams_unfit += 1;
                continue;
            };
            self.counters.datagrams_received += 1;
            let train = Train::new(datagram);
            let mut delivery = Delivery::new(&mut self.outbox, &train);
            handler.datagrams(train, from, &mut delivery, now);
            for range in delivery.into_ranges() {
                let packet = self.receive.packet(index, range);
                let result = write(self.parts.tun.file(), packet, &mut self.counters);
                self.written(result)?;
            }
        }
        Ok(())
    }

    /// Shows what TUN has, within the budget and while the outbox has room.
    fn read(&mut self, handler: &mut impl Handler, now: Now) -> io::Result<()> {
        for _ in 0..TUN_BUDGET {
            if !self.has_room() {
                break;
            }
            self.counters.system_calls += 1;
            let len = match self.parts.tun.file().read(&mut self.read) {
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => break,
                Err(error) if self.parts.tun.is_gone(&error) => return Err(self.parts.tun.gone()),
                Err(_) => {
                    self.counters.receive_errors += 1;
                    self.pauses[TUN].fail(now.monotonic);
                    break;
                }
            };
            self.pauses[TUN].succeed();
            let fits = len < self.read.len();
            let Some((header, packet)) = self.read[..len].split_at_mut_checked(virtio::HEADER) else {
                self.counters.packets_unfit += 1;
                continue;
            };
            if !fits || !virtio::is_plain(header) {
                self.counters.packets_unfit += 1;
                continue;
            }
            self.counters.packets_read += 1;
            handler.packets(SuperPacket::new(packet), &mut self.outbox, now);
        }
        Ok(())
    }
}

/// Writes one packet with its offload header.
fn write(mut tun: &File, packet: &[u8], counters: &mut Counters) -> io::Result<()> {
    counters.system_calls += 1;
    tun.write(packet).map(drop)
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
            if !self.has_room() && !self.parts.tun.is_attached() {
                return Err(self.parts.tun.gone());
            }
            self.read(handler, now)?;
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

    fn max_segments(&self) -> usize {
        1
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn waker(&self) -> Waker {
        self.parts.waker.clone()
    }
}
