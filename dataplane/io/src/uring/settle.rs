//! What completions mean.

use std::io;
use std::time::Instant;

use io_uring::cqueue;

use super::completion::Operation;
use super::ring::Completed;
use super::{PREFIX, Received, UringIo};
use crate::udp::Family;

impl UringIo {
    /// Takes in every completion that has arrived.
    ///
    /// # Errors
    ///
    /// When TUN is gone.
    pub(super) fn settle(&mut self, now: Instant) -> io::Result<()> {
        let mut gone = false;
        while let Some(completed) = self.ring.completed() {
            self.outstanding -= usize::from(!cqueue::more(completed.flags));
            let operation = Operation::parse(completed.name);
            match operation.expect("invariant: the kernel returns the names it was given") {
                Operation::Receive(family) => self.received(family, completed, now),
                Operation::Read => gone |= self.was_read(completed, now),
                Operation::Wake => self.woke(completed.result, now),
                Operation::Room(_) => self.stalled = false,
                Operation::Send(slot) => self.sent(slot, completed.result),
                Operation::Write(slot) => {
                    self.memory.outbox.packets.complete(slot);
                    gone |= self.written(completed.result);
                }
                Operation::Deliver(number) => {
                    self.delivered(number);
                    gone |= self.written(completed.result);
                }
            }
        }
        self.take_back_returned();
        if gone { Err(self.parts.tun.gone()) } else { Ok(()) }
    }

    fn received(&mut self, family: Family, completed: Completed, now: Instant) {
        let Completed { result, flags, .. } = completed;
        if let Some(number) = cqueue::buffer_select(flags) {
            let buffer = self.memory.datagrams.take(number);
            match usize::try_from(result).ok().and_then(|len| len.checked_sub(PREFIX)) {
                Some(len) => self.datagrams.push_back(Received { buffer, len }),
                None => self.memory.datagrams.give_back(buffer),
            }
        }
        let arm = &mut self.receive[family as usize];
        if result >= 0 {
            arm.succeed();
        }
        if cqueue::more(flags) {
            return;
        }
        self.counters.rearms += 1;
        if result >= 0 || result == -libc::ENOBUFS {
            arm.end();
        } else {
            self.counters.receive_errors += 1;
            arm.fail(now);
        }
    }

    /// Answers whether TUN is gone.
    fn was_read(&mut self, completed: Completed, now: Instant) -> bool {
        let Completed { result, flags, .. } = completed;
        if let Some(number) = cqueue::buffer_select(flags) {
            let buffer = self.memory.packets.take(number);
            match usize::try_from(result) {
                Ok(len) if len > 0 => self.packets.push_back(Received { buffer, len }),
                _ => self.memory.packets.give_back(buffer),
            }
        }
        if result >= 0 {
            self.read.succeed();
        }
        if cqueue::more(flags) {
            return false;
        }
        self.counters.rearms += 1;
        if result >= 0 || result == -libc::ENOBUFS {
            self.read.end();
            return false;
        }
        self.counters.receive_errors += 1;
        self.read.fail(now);
        self.parts.tun.is_gone(&io::Error::from_raw_os_error(-result))
    }

    fn woke(&mut self, result: i32, now: Instant) {
        if result >= 0 {
            self.woken = true;
            self.wake.succeed();
            self.wake.end();
        } else {
            self.wake.fail(now);
        }
    }

    fn sent(&mut self, slot: u16, result: i32) {
        if result == -libc::EAGAIN {
            self.returned.push(slot);
            return;
        }
        self.memory.outbox.datagrams.complete(slot);
        if result >= 0 {
            self.counters.datagrams_sent += 1;
        } else {
            self.counters.datagrams_refused += 1;
        }
    }

    /// Puts datagrams that found no room back to the head of the queue, in order.
    fn take_back_returned(&mut self) {
        while let Some(slot) = self.returned.pop() {
            self.memory.outbox.datagrams.take_back(slot);
            if self.returned.is_empty() {
                self.counters.send_stalls += 1;
                self.stalled = true;
                if let Some(to) = self.memory.outbox.datagrams.next_destination() {
                    self.await_room(Family::of(&to));
                }
            }
        }
    }

    /// One write from a buffer is done; after the last the buffer goes back to the kernel.
    fn delivered(&mut self, number: u16) {
        let entry = &mut self.memory.delivering[usize::from(number)];
        let (buffer, left) = entry.take().expect("invariant: only buffers being delivered complete");
        if left > 1 {
            *entry = Some((buffer, left - 1));
        } else {
            self.memory.datagrams.give_back(buffer);
        }
    }

    /// Counts a write to TUN; answers whether TUN is gone.
    fn written(&mut self, result: i32) -> bool {
        if result >= 0 {
            self.counters.packets_written += 1;
            return false;
        }
        let gone = self.parts.tun.is_gone(&io::Error::from_raw_os_error(-result));
        self.counters.packets_refused += u64::from(!gone);
        gone
    }
}
