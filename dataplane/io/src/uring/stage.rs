//! What is handed to the kernel by the next `enter`.

use std::ops::Range;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};

use super::completion::Operation;
use super::{Memory, PREFIX, TUN, Taken, UringIo, WAKER, socket};
use crate::MAX_SEGMENTS;
use crate::address::RawAddress;
use crate::outbox::Sending;
use crate::tun::virtio;
use crate::udp::Family;

impl UringIo {
    /// Queues what the outbox holds and starts what is to last. Answers how many completions to wait for beyond those
    /// of the sends and writes queued: one, unless these make room for something that is waiting for it.
    pub(super) fn stage(&mut self) -> u32 {
        let wants_room = !self.has_room() || !self.packets.is_empty();
        self.stage_outbox();
        let starved = self.start_lasting();
        u32::from(self.fresh == 0 || !(wants_room || starved))
    }

    /// Queues what the outbox holds.
    pub(super) fn stage_outbox(&mut self) {
        while let Some(sending) = self.memory.outbox.packets.start() {
            // SAFETY: a slot in flight keeps its content until it completes.
            unsafe { self.stage_write(sending.address, sending.len, Operation::Write(sending.slot)) };
        }
        while !self.stalled {
            let Some(sending) = self.memory.outbox.datagrams.start() else { break };
            if self.parts.udp.socket(Family::of(&sending.to)).is_none() {
                self.memory.outbox.datagrams.complete(sending.slot);
                self.counters.datagrams_refused += 1;
                continue;
            }
            self.stage_send(&sending);
        }
    }

    fn stage_send(&mut self, sending: &Sending) {
        let header = &mut self.memory.headers[usize::from(sending.slot)];
        header.name = RawAddress::emit(&sending.to);
        header.vector = libc::iovec { iov_base: sending.address.cast_mut().cast(), iov_len: sending.len };
        header.message.msg_name = (&raw mut header.name.bytes).cast();
        header.message.msg_namelen = header.name.len;
        header.message.msg_iov = &raw mut header.vector;
        header.message.msg_iovlen = 1;
        // Not to wait for room in the socket, where later datagrams would overtake this one.
        let entry = opcode::SendMsg::new(socket(Family::of(&sending.to)), &raw const header.message)
            .flags(libc::MSG_DONTWAIT as u32)
            .build();
        // SAFETY: the header belongs to the slot, which is in flight and neither reused nor changed until it completes.
        unsafe { self.hand_over(entry, Operation::Send(sending.slot)) };
        self.fresh += 1;
    }

    /// Queues the packets found in a buffer; the buffer goes back to the kernel when all are written.
    pub(super) fn stage_delivery(
        &mut self,
        buffer: Taken,
        ranges: &heapless::Vec<Range<usize>, MAX_SEGMENTS>,
    ) {
        let number = buffer.number();
        for range in ranges {
            let start = PREFIX + range.start - virtio::HEADER;
            let header = self.memory.datagrams.bytes_mut(&buffer, start..start + virtio::HEADER);
            header.copy_from_slice(&virtio::PLAIN);
            let address = self.memory.datagrams.address(number, start).cast_const();
            let len = virtio::HEADER + range.len();
            // SAFETY: the buffer is kept in `delivering` until the last of its writes completed.
            unsafe { self.stage_write(address, len, Operation::Deliver(number)) };
        }
        self.memory.delivering[usize::from(number)] = Some((buffer, ranges.len()));
    }

    /// Queues a write to TUN.
    ///
    /// # Safety
    ///
    /// As for [`super::Ring::push`]: the bytes must stay until the operation completed.
    unsafe fn stage_write(&mut self, address: *const u8, len: usize, operation: Operation) {
        let entry = opcode::Write::new(TUN, address, len as u32).rw_flags(libc::RWF_NOWAIT).build();
        // SAFETY: the caller keeps the bytes.
        unsafe { self.hand_over(entry, operation) };
        self.fresh += 1;
    }

    /// Starts the lasting operations that are not with the kernel, unless they pause after an error. Answers whether
    /// one could not be started because all of its buffers are in use.
    fn start_lasting(&mut self) -> bool {
        let mut starved = false;
        let idle = self.receive.iter().chain([&self.read, &self.wake]).any(|arm| !arm.is_armed());
        if !idle {
            return false;
        }
        let now = std::time::Instant::now();
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
        unsafe { self.hand_over(entry, Operation::Room(family)) };
    }

    /// Queues an operation under its name.
    ///
    /// # Safety
    ///
    /// As for [`super::Ring::push`].
    unsafe fn hand_over(&mut self, entry: Entry, operation: Operation) {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.ring.push(&entry.user_data(operation.emit())) };
        self.outstanding += 1;
    }
}
