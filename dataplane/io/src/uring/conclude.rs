//! What became of sends and writes, once the kernel has taken them.
//!
//! They never wait in the kernel, so they are done when it has taken them; only failures have a completion. What failed
//! because it was several datagrams or packets in one is done again one by one.

use std::io;
use std::time::Instant;

use super::{Memory, UringIo};
use crate::udp::Family;
use crate::udp::segmentation::is_about_segments;

impl UringIo {
    /// Frees what was sent and written, and does again what has to be.
    ///
    /// # Errors
    ///
    /// When the kernel takes nothing.
    pub(super) fn conclude(&mut self, now: Instant) -> io::Result<()> {
        self.segmentation.forget_old(now);
        self.conclude_sends(now);
        for slot in self.own.drain(..) {
            self.memory.outbox.packets.complete(slot);
        }
        if self.conclude_writes() {
            // The packets of writes that were refused, one by one.
            self.submit(0, None)?;
            self.settle(now)?;
            self.conclude_writes();
        }
        let Memory { writes, delivering, datagrams, .. } = &mut *self.memory;
        writes.clear();
        for buffer in delivering.drain(..) {
            datagrams.give_back(buffer);
        }
        Ok(())
    }

    fn conclude_sends(&mut self, now: Instant) {
        let (mut sent, mut no_memory) = (false, false);
        // The youngest first, so that what goes back to the head of the queue is in order.
        while let Some((piece, code)) = self.sends.pop() {
            let datagrams = piece.datagrams();
            let queue = &mut self.memory.outbox.datagrams;
            match code {
                0 => {
                    self.counters.datagrams_sent += datagrams as u64;
                    self.counters.trains_sent += u64::from(datagrams > 1);
                    queue.complete(&piece);
                    sent = true;
                }
                libc::EAGAIN => {
                    queue.take_back(piece);
                    if !self.stalled {
                        self.counters.send_stalls += 1;
                        self.stalled = true;
                    }
                }
                libc::ENOBUFS | libc::ENOMEM => {
                    queue.take_back(piece);
                    no_memory = true;
                }
                code if datagrams > 1 && is_about_segments(code) => {
                    queue.take_back(piece);
                    self.counters.offloads_refused += 1;
                    self.segmentation.refuse(&piece.to, datagrams, now);
                }
                _ => {
                    queue.complete(&piece);
                    self.counters.datagrams_refused += datagrams as u64;
                }
            }
        }
        if no_memory {
            // Once for a turn, however many sends met it, and whatever went before them.
            self.counters.send_stalls += 1;
            self.send_pause.fail(now);
        } else if sent {
            self.send_pause.succeed();
        }
        if self.stalled && !self.awaiting_room {
            if let Some(to) = self.memory.outbox.datagrams.next_destination() {
                self.await_room(Family::of(&to));
            } else {
                self.stalled = false;
            }
        }
    }

    /// Counts what was written; tells whether something has to be written again, and was queued.
    fn conclude_writes(&mut self) -> bool {
        let mut again = false;
        // In the order in which they were written: packets of one flow may be in several.
        let mut failed = std::mem::take(&mut self.failed_writes);
        for (index, code) in failed.drain(..) {
            let write = self.memory.writes.get(usize::from(index));
            self.counters.packets_written -= write.packets as u64;
            self.counters.super_packets_written -= u64::from(write.packets > 1);
            if write.packets > 1 && code == libc::EINVAL {
                self.counters.offloads_refused += 1;
                self.stage_again(usize::from(index));
                again = true;
            } else {
                self.refused_by_tun(code, write.packets as u64);
            }
        }
        self.failed_writes = failed;
        again
    }
}
