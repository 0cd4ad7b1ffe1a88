//! What is handed to the kernel by the next `enter`.

use std::ops::Range;
use std::time::Instant;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};

use super::buffers::BufferRing;
use super::completion::Operation;
use super::{Memory, PREFIX, TUN, UringIo, WAKER, socket};
use crate::offload::Place;
use crate::train::TRAIN_BYTES;
use crate::udp::Family;
use crate::udp::messages::SENDS;

impl UringIo {
    /// Queues what is to be sent and written, and starts what is to last. Answers for how many completions to wait: one,
    /// unless what is queued makes room for something that is waiting for it.
    pub(super) fn stage(&mut self) -> u32 {
        let unshown = !self.datagrams.is_empty() || !self.packets.is_empty();
        let room = self.memory.outbox.room();
        let delivering = !self.memory.delivering.is_empty();
        self.stage_writes();
        self.stage_outbox();
        self.memory.datagrams.lend();
        self.memory.packets.lend();
        let starved = self.start_lasting();
        let wanted = unshown || room < TRAIN_BYTES || (starved && delivering);
        // Without an operation as well: of datagrams for which there is no socket, only their room is left.
        let makes_room = wanted && (self.fresh > 0 || self.memory.outbox.room() > room);
        // More is to be sent than there are messages for.
        let unsent = !self.is_held_up() && self.memory.outbox.datagrams.is_waiting();
        u32::from(!makes_room && !unsent && self.datagrams.is_empty())
    }

    /// Whether the network takes nothing at the moment.
    fn is_held_up(&self) -> bool {
        self.stalled || self.send_pause.until().is_some()
    }

    /// Queues what the outbox holds.
    pub(super) fn stage_outbox(&mut self) {
        while let Some(sending) = self.memory.outbox.packets.start() {
            let entry = opcode::Write::new(TUN, sending.address, sending.len as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build();
            self.own.push(sending.slot);
            self.counters.packets_written += 1;
            // SAFETY: a slot in flight keeps its content until it completes.
            unsafe { self.hand_over_once(entry, Operation::Write) };
        }
        if self.send_pause.until().is_some_and(|until| Instant::now() >= until) {
            self.send_pause.end();
        }
        while !self.is_held_up() && self.sends.len() < SENDS {
            let segmentation = &self.segmentation;
            let Some(piece) = self.memory.outbox.datagrams.start(|to| segmentation.most(to)) else { break };
            let family = Family::of(&piece.to);
            if self.parts.udp.socket(family).is_none() {
                self.counters.datagrams_refused += piece.datagrams() as u64;
                self.memory.outbox.datagrams.complete(&piece);
                continue;
            }
            let message = self.sends.len();
            let address = self.memory.outbox.datagrams.address(&piece);
            self.memory.messages.fill(message, &piece, address);
            self.sends.push((piece, 0));
            // Not to wait for room in the socket, where later datagrams would overtake this one.
            let entry = opcode::SendMsg::new(socket(family), self.memory.messages.header(message))
                .flags(libc::MSG_DONTWAIT as u32)
                .build();
            // SAFETY: the message and the piece are in use, and neither reused nor changed, until the kernel has taken it.
            unsafe { self.hand_over_once(entry, Operation::Send(message as u16)) };
        }
    }

    /// Queues the packets that were found in buffers; these go back to the kernel when all are written.
    pub(super) fn stage_writes(&mut self) {
        let Memory { writes, datagrams, .. } = &mut *self.memory;
        if writes.is_empty() {
            return;
        }
        let count = writes.gather(|place| address(datagrams, place));
        self.stage_gathered(0..count);
    }

    /// Queues the packets of a write that was refused, one by one.
    pub(super) fn stage_again(&mut self, index: usize) {
        let Memory { writes, datagrams, .. } = &mut *self.memory;
        let again = writes.refuse(index, |place| address(datagrams, place));
        self.stage_gathered(again);
    }

    fn stage_gathered(&mut self, range: Range<usize>) {
        for index in range {
            let write = self.memory.writes.get(index);
            let entry = opcode::Writev::new(TUN, write.vectors, write.count as u32)
                .rw_flags(libc::RWF_NOWAIT)
                .build();
            self.counters.packets_written += write.packets as u64;
            self.counters.super_packets_written += u64::from(write.packets > 1);
            // SAFETY: vectors, headers and buffers stay as they are until `conclude`, when the kernel has taken this.
            unsafe { self.hand_over_once(entry, Operation::Deliver(index as u16)) };
        }
    }

    /// Starts the lasting operations that are not with the kernel, unless they pause after an error. Answers whether
    /// one could not be started because all of its buffers are in use.
    fn start_lasting(&mut self) -> bool {
        let mut starved = false;
        let idle = self.receive.iter().chain([&self.read, &self.wake]).any(|arm| !arm.is_armed());
        if !idle {
            return false;
        }
        let now = Instant::now();
        for family in Family::ALL {
            let arm = self.receive[family as usize];
            if self.parts.udp.socket(family).is_none() || !arm.is_due(now) {
                continue;
            }
            if self.memory.datagrams.lent() == 0 {
                starved = true;
                continue;
            }
            self.start_receive(family);
        }
        if self.read.is_due(now) {
            if self.memory.packets.lent() == 0 {
                starved = true;
            } else {
                self.start_read();
            }
        }
        if self.wake.is_due(now) {
            self.start_wake();
        }
        starved
    }

    fn start_receive(&mut self, family: Family) {
        let Memory { receive_header, datagrams, .. } = &*self.memory;
        let entry =
            opcode::RecvMsgMulti::new(socket(family), &raw const **receive_header, datagrams.group()).build();
        // SAFETY: the header is never changed and, like the buffers, lives until all operations have ended.
        unsafe { self.hand_over(entry, Operation::Receive(family)) };
        self.receive[family as usize].start();
    }

    fn start_read(&mut self) {
        // `ReadMulti::build` forgets that the file is a registered one.
        let entry =
            opcode::ReadMulti::new(TUN, 0, self.memory.packets.group()).build().flags(Flags::FIXED_FILE);
        // SAFETY: the buffers live until all operations have ended.
        unsafe { self.hand_over(entry, Operation::Read) };
        self.read.start();
    }

    fn start_wake(&mut self) {
        let entry = opcode::Read::new(WAKER, self.memory.wakes.address(0), size_of::<u64>() as u32).build();
        // SAFETY: nobody else uses these eight bytes, and they live until all operations have ended.
        unsafe { self.hand_over(entry, Operation::Wake) };
        self.wake.start();
    }

    /// Asks to be told when the socket takes datagrams again.
    pub(super) fn await_room(&mut self, family: Family) {
        let entry = opcode::PollAdd::new(socket(family), libc::POLLOUT as u32).build();
        // SAFETY: points to nothing.
        unsafe { self.hand_over(entry, Operation::Room) };
        self.awaiting_room = true;
    }

    /// Queues an operation that stays with the kernel, under its name.
    ///
    /// # Safety
    ///
    /// As for [`super::Ring::push`].
    unsafe fn hand_over(&mut self, entry: Entry, operation: Operation) {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.ring.push(&entry.user_data(operation.emit())) };
        self.outstanding += 1;
    }

    /// Queues an operation that is done when the kernel has taken it, and has a completion only if it failed.
    ///
    /// # Safety
    ///
    /// As for [`super::Ring::push`], until the kernel has taken it.
    unsafe fn hand_over_once(&mut self, entry: Entry, operation: Operation) {
        // Added, for an entry may say already that its file is a registered one.
        let entry = entry.flags(Flags::SKIP_SUCCESS | Flags::FIXED_FILE).user_data(operation.emit());
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.ring.push(&entry) };
        self.fresh += 1;
    }
}

/// Where a place's bytes are: behind what the kernel wrote in front of a datagram.
fn address(datagrams: &BufferRing, place: Place) -> *const u8 {
    debug_assert!(place.start as usize >= PREFIX, "invariant: packets lie in datagrams");
    datagrams.address(place.buffer, place.start as usize).cast_const()
}
