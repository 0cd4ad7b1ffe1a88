//! Much in one system call: the arrays that recvmmsg wants, and what they point to; buffers for what TUN gives.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::address::{self, RawAddress};
use crate::region::{LINE, Region};
use crate::sys;
use crate::udp::control;

/// The most receives of one call.
const RECEIVE_BATCH: usize = 64;

/// The same while each brings a train of some length: more would push each other's bytes out of the cache.
const RECEIVE_TRAINS: usize = 8;

/// A receive that brings more bytes than this is one of a long train.
const LONG: usize = 8 << 10;

/// Bytes for control messages (`UDP_GRO`).
const CONTROL_LEN: usize = 64;

/// What one call received.
pub(super) struct ReceiveBatch {
    /// One datagram or train, and one byte by which a longer one shows.
    region: Region,
    capacity: usize,
    /// How many receives the next call makes.
    wanted: usize,
    names: Box<[RawAddress; RECEIVE_BATCH]>,
    controls: Box<[Control; RECEIVE_BATCH]>,
    vectors: Box<[libc::iovec; RECEIVE_BATCH]>,
    headers: Box<[libc::mmsghdr; RECEIVE_BATCH]>,
}

/// Room for control messages, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

impl ReceiveBatch {
    /// For datagrams or trains of at most `capacity` bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            region: Region::new(RECEIVE_BATCH, capacity + LINE),
            capacity,
            wanted: RECEIVE_BATCH,
            names: Box::new([RawAddress::EMPTY; RECEIVE_BATCH]),
            controls: Box::new([Control([0; CONTROL_LEN]); RECEIVE_BATCH]),
            vectors: Box::new([NO_VECTOR; RECEIVE_BATCH]),
            headers: Box::new([no_header(); RECEIVE_BATCH]),
        }
    }

    /// Receives what the socket has, without waiting; answers how many receives that was.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for index in 0..self.wanted {
            let first = self.region.address(index as u16);
            self.vectors[index] = libc::iovec { iov_base: first.cast(), iov_len: self.capacity + 1 };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index].bytes).cast();
            header.msg_namelen = address::MAX_LEN as u32;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = CONTROL_LEN;
        }
        let headers = self.headers.as_mut_ptr();
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: `wanted` headers of RECEIVE_BATCH, each pointing to a name of MAX_LEN bytes, a control buffer of its
        // length and one vector, which points into a slot of its own with room for its length; all live in self and are
        // not otherwise borrowed.
        let count = sys::check(unsafe {
            libc::recvmmsg(socket.as_raw_fd(), headers, self.wanted as u32, flags, std::ptr::null_mut())
        })?;
        let count = usize::try_from(count).unwrap_or(0);
        let bytes: usize = self.headers[..count].iter().map(|header| header.msg_len as usize).sum();
        self.wanted = if bytes > count * LONG { RECEIVE_TRAINS } else { RECEIVE_BATCH };
        Ok(count)
    }

    /// What a receive of the last call brought: bytes, their sender, and the size of each datagram if they are several.
    /// `None` when it was longer than any of ours can be.
    pub(super) fn received(&mut self, index: usize) -> Option<(&mut [u8], SocketAddr, Option<u16>)> {
        let header = &self.headers[index];
        let len = header.msg_len as usize;
        if len > self.capacity {
            return None;
        }
        let name = &self.names[index].bytes[..address::MAX_LEN.min(header.msg_hdr.msg_namelen as usize)];
        let from = RawAddress::parse(name)?;
        let control = &self.controls[index].0[..CONTROL_LEN.min(header.msg_hdr.msg_controllen)];
        let size = control::gro_size(control);
        // SAFETY: the kernel uses the region only during `receive`, and while packets are written from it.
        Some((unsafe { self.region.bytes_mut(index as u16, 0..len) }, from, size))
    }

    /// Where byte `at` of a receive lies.
    pub(super) fn address(&self, index: u16, at: usize) -> *const u8 {
        assert!(at <= self.capacity, "invariant: byte {at} of {}", self.capacity);
        self.region.address(index).wrapping_add(at).cast_const()
    }
}

const NO_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn no_header() -> libc::mmsghdr {
    // SAFETY: an mmsghdr is integers and pointers, for which zero is a value.
    unsafe { mem::zeroed() }
}

// SAFETY: the pointers in the arrays are written before every call and used by it alone.
unsafe impl Send for ReceiveBatch {}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}
