//! Headers of sends (`struct mmsghdr`) and what they point to: one fixed array, filled anew for each call.

use std::mem;

use crate::address::RawAddress;
use crate::outbox::Piece;

use super::control::{self, SEGMENT_SIZE_LEN};

/// The most sends that are with the kernel at once.
pub(crate) const SENDS: usize = crate::outbox::OUTBOX_TRAINS;

/// Headers of sends, and the names, vectors and control messages that they point to.
pub(crate) struct Messages {
    headers: Box<[libc::mmsghdr]>,
    names: Box<[RawAddress]>,
    vectors: Box<[libc::iovec]>,
    controls: Box<[Control]>,
}

/// A control message, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; SEGMENT_SIZE_LEN]);

impl Messages {
    pub(crate) fn new() -> Self {
        // SAFETY: an mmsghdr is integers and pointers, for which zero is a value.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let vector = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            headers: vec![header; SENDS].into_boxed_slice(),
            names: vec![RawAddress::EMPTY; SENDS].into_boxed_slice(),
            vectors: vec![vector; SENDS].into_boxed_slice(),
            controls: vec![Control([0; SEGMENT_SIZE_LEN]); SENDS].into_boxed_slice(),
        }
    }

    /// Makes header `at` that of a piece, whose bytes lie at `address`. The header points into `self` and to there.
    ///
    /// # Panics
    ///
    /// When there is no such header: there are [`SENDS`].
    pub(crate) fn fill(&mut self, at: usize, piece: &Piece, address: *const u8) {
        self.names[at] = RawAddress::emit(&piece.to);
        self.vectors[at] = libc::iovec { iov_base: address.cast_mut().cast(), iov_len: piece.len };
        let header = &mut self.headers[at].msg_hdr;
        header.msg_name = (&raw mut self.names[at].bytes).cast();
        header.msg_namelen = self.names[at].len;
        header.msg_iov = &raw mut self.vectors[at];
        header.msg_iovlen = 1;
        header.msg_control = std::ptr::null_mut();
        header.msg_controllen = 0;
        if piece.datagrams() > 1 {
            let size = u16::try_from(piece.stride).expect("invariant: a datagram is shorter than 64 KiB");
            self.controls[at] = Control(control::segment_size(size));
            header.msg_control = (&raw mut self.controls[at]).cast();
            header.msg_controllen = SEGMENT_SIZE_LEN;
        }
    }

    /// The header at `at`, for an operation on it.
    pub(crate) fn header(&self, at: usize) -> *const libc::msghdr {
        &raw const self.headers[at].msg_hdr
    }

    /// The first header, for a call that takes several.
    pub(crate) fn first(&mut self) -> *mut libc::mmsghdr {
        self.headers.as_mut_ptr()
    }
}

// SAFETY: the pointers in the arrays are written before every use and lead into the same boxes, or to memory that whoever
// filled them keeps.
unsafe impl Send for Messages {}

impl std::fmt::Debug for Messages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Messages").finish_non_exhaustive()
    }
}
