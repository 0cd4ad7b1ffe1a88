//! What completions mean.

use std::io;
use std::time::Instant;

use io_uring::cqueue;

use super::completion::Operation;
use super::ring::Completed;
use super::{PREFIX, Received, UringIo};
use crate::udp::Family;

/// The kernel takes what is queued at once, save for want of memory or room for completions. If it still has not after so
/// many tries, it will not.
const TRIES: usize = 1000;

impl UringIo {
    /// Takes in every completion that has arrived, until the kernel has taken everything that was queued: what is only
    /// told when it fails is done then.
    ///
    /// # Errors
    ///
    /// When the kernel takes nothing.
    pub(super) fn settle(&mut self, now: Instant) -> io::Result<()> {
        for _ in 0..TRIES {
            while let Some(completed) = self.ring.completed() {
                self.complete(completed, now);
            }
            if self.ring.is_settled() {
                return Ok(());
            }
            self.submit(0, None)?;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "io_uring does not take what it is given"))
    }

    fn complete(&mut self, completed: Completed, now: Instant) {
        let operation = completed.operation();
        if operation.is_lasting() && !cqueue::more(completed.flags) {
            self.outstanding -= 1;
        }
        match operation {
            Operation::Receive(family) => self.received(family, completed, now),
            Operation::Read => self.was_read(completed, now),
            Operation::Wake => self.woke(completed.result, now),
            Operation::Room => (self.stalled, self.awaiting_room) = (false, false),
            Operation::Send(message) => self.sends[usize::from(message)].1 = -completed.result,
            Operation::Write => self.write_failed(-completed.result),
            Operation::Deliver(write) => self.failed_writes.push((write, -completed.result)),
        }
    }

    fn received(&mut self, family: Family, completed: Completed, now: Instant) {
        let Completed { result, flags, .. } = completed;
        if let Some(number) = cqueue::buffer_select(flags) {
            let buffer = self.memory.datagrams.take(number);
            match usize::try_from(result).ok().and_then(|len| len.checked_sub(PREFIX)) {
                Some(len) => {
                    self.memory.datagrams.note(len);
                    self.datagrams.push_back(Received { buffer, len });
                }
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

    fn was_read(&mut self, completed: Completed, now: Instant) {
        let Completed { result, flags, .. } = completed;
        if let Some(number) = cqueue::buffer_select(flags) {
            let buffer = self.memory.packets.take(number);
            match usize::try_from(result) {
                Ok(len) if len > 0 => {
                    self.memory.packets.note(len);
                    self.packets.push_back(Received { buffer, len });
                }
                _ => self.memory.packets.give_back(buffer),
            }
        }
        if result >= 0 {
            self.read.succeed();
        }
        if cqueue::more(flags) {
            return;
        }
        self.counters.rearms += 1;
        if result >= 0 || result == -libc::ENOBUFS {
            self.read.end();
            return;
        }
        self.counters.receive_errors += 1;
        self.read.fail(now);
        self.gone |= self.parts.tun.is_gone(&io::Error::from_raw_os_error(-result));
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

    /// TUN did not take a packet of the outbox.
    fn write_failed(&mut self, code: i32) {
        self.counters.packets_written -= 1;
        self.refused_by_tun(code, 1);
    }

    /// Counts packets that TUN did not take, and notes if it is no more.
    pub(super) fn refused_by_tun(&mut self, code: i32, packets: u64) {
        if self.parts.tun.is_gone(&io::Error::from_raw_os_error(code)) {
            self.gone = true;
        } else {
            self.counters.packets_refused += packets;
        }
    }
}
