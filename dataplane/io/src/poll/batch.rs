//! Many datagrams in one system call: the arrays that recvmmsg and sendmmsg want, and what they point to.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::address::{self, RawAddress};
use crate::outbox::{SendQueue, Sending};
use crate::region::{LINE, Region};
use crate::sys;
use crate::tun::virtio;
use crate::udp::Family;

/// The most datagrams received by one call.
pub(super) const RECEIVE_BATCH: usize = 64;

/// The most datagrams sent by one call.
pub(super) const SEND_BATCH: usize = 64;

/// What one call received.
pub(super) struct ReceiveBatch {
    /// A cache line of headroom, one datagram, and one byte by which a longer datagram shows.
    region: Region,
    capacity: usize,
    names: Box<[RawAddress; RECEIVE_BATCH]>,
    vectors: Box<[libc::iovec; RECEIVE_BATCH]>,
    headers: Box<[libc::mmsghdr; RECEIVE_BATCH]>,
}

impl ReceiveBatch {
    /// For datagrams of at most `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            region: Region::new(RECEIVE_BATCH, LINE + capacity + 1),
            capacity,
            names: Box::new([RawAddress::EMPTY; RECEIVE_BATCH]),
            vectors: Box::new([NO_VECTOR; RECEIVE_BATCH]),
            headers: Box::new([no_header(); RECEIVE_BATCH]),
        }
    }

    /// Receives what the socket has, without waiting; answers how many datagrams.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for index in 0..RECEIVE_BATCH {
            let first = self.region.address(index as u16).wrapping_add(LINE);
            self.vectors[index] = libc::iovec { iov_base: first.cast(), iov_len: self.capacity + 1 };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index].bytes).cast();
            header.msg_namelen = address::MAX_LEN as u32;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
        }
        let headers = self.headers.as_mut_ptr();
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: RECEIVE_BATCH headers, each pointing to a name of MAX_LEN bytes and one vector, which points into a
        // slot of its own with room for its length; all live in self and are not otherwise borrowed.
        let count = sys::check(unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers, RECEIVE_BATCH as u32, flags, std::ptr::null_mut())
        })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// A datagram of the last call and its sender; `None` when it was longer than any of ours can be.
    pub(super) fn datagram(&mut self, index: usize) -> Option<(&mut [u8], SocketAddr)> {
        let header = &self.headers[index];
        let len = header.msg_len as usize;
        if len > self.capacity {
            return None;
        }
        let name = &self.names[index].bytes[..address::MAX_LEN.min(header.msg_hdr.msg_namelen as usize)];
        let from = RawAddress::parse(name)?;
        // SAFETY: the kernel uses the region only during `receive`.
        Some((unsafe { self.region.bytes_mut(index as u16, LINE..LINE + len) }, from))
    }

    /// A packet found at `range` of a datagram, behind an empty offload header.
    pub(super) fn packet(&mut self, index: usize, range: Range<usize>) -> &[u8] {
        let with_header = LINE + range.start - virtio::HEADER..LINE + range.end;
        // SAFETY: the kernel uses the region only during `receive`.
        let bytes = unsafe { self.region.bytes_mut(index as u16, with_header) };
        bytes[..virtio::HEADER].copy_from_slice(&virtio::PLAIN);
        bytes
    }
}

/// A run of datagrams of one family on their way out.
pub(super) struct SendBatch {
    started: heapless::Vec<Sending, SEND_BATCH>,
    names: Box<[RawAddress; SEND_BATCH]>,
    vectors: Box<[libc::iovec; SEND_BATCH]>,
    headers: Box<[libc::mmsghdr; SEND_BATCH]>,
}

impl SendBatch {
    pub(super) fn new() -> Self {
        Self {
            started: heapless::Vec::new(),
            names: Box::new([RawAddress::EMPTY; SEND_BATCH]),
            vectors: Box::new([NO_VECTOR; SEND_BATCH]),
            headers: Box::new([no_header(); SEND_BATCH]),
        }
    }

    /// Takes the run of datagrams of `family` at the head of the queue.
    pub(super) fn fill(&mut self, queue: &mut SendQueue, family: Family) {
        while !self.started.is_full() && queue.next_destination().is_some_and(|to| Family::of(&to) == family)
        {
            let Some(sending) = queue.start() else { break };
            let index = self.started.len();
            self.names[index] = RawAddress::emit(&sending.to);
            self.vectors[index] =
                libc::iovec { iov_base: sending.address.cast_mut().cast(), iov_len: sending.len };
            // Cannot fail: the loop ends when it is full.
            let _ = self.started.push(sending);
        }
    }

    /// Sends the run without waiting; answers how many of its datagrams the kernel took.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for index in 0..self.started.len() {
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index].bytes).cast();
            header.msg_namelen = self.names[index].len;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
        }
        let count = self.started.len() as u32;
        // SAFETY: `count` headers, each pointing to a name of its length and one vector, which points into a slot in
        // flight with at least its length; the kernel only reads, and only during the call.
        let sent = sys::check(unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_DONTWAIT)
        })?;
        Ok(usize::try_from(sent).unwrap_or(0))
    }

    /// Ends the run: the first `done` datagrams are finished with, the others go back to the head of the queue.
    pub(super) fn settle(&mut self, queue: &mut SendQueue, done: usize) {
        while self.started.len() > done {
            if let Some(sending) = self.started.pop() {
                queue.take_back(sending.slot);
            }
        }
        for sending in &self.started {
            queue.complete(sending.slot);
        }
        self.started.clear();
    }
}

const NO_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn no_header() -> libc::mmsghdr {
    // SAFETY: an mmsghdr is integers and pointers, for which zero is a value.
    unsafe { mem::zeroed() }
}

// SAFETY: the pointers in the arrays are written before every call and used by it alone.
unsafe impl Send for ReceiveBatch {}

// SAFETY: the pointers in the arrays are written before every call and used by it alone.
unsafe impl Send for SendBatch {}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SendBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendBatch").field("started", &self.started.len()).finish_non_exhaustive()
    }
}
