//! Buffers lent to the kernel, which picks one for each packet or datagram that arrives.
//!
//! A buffer belongs to the kernel or to a [`Taken`], and only a `Taken` gives access to it. A `Taken` comes from a
//! completion and ends in [`BufferRing::give_back`]; it cannot be copied, so a buffer the kernel may write to cannot
//! be reached.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;
use crate::region::Region;

/// A ring of equal buffers, known to the kernel as a group.
#[derive(Debug)]
pub(super) struct BufferRing {
    /// What the kernel reads: which buffers it may use next.
    entries: Region,
    buffers: Region,
    /// Where in its slot a buffer begins: chosen so that what follows the headers is aligned.
    offset: usize,
    len: u32,
    mask: u16,
    tail: u16,
    group: u16,
    with_us: Box<[bool]>,
    lent: usize,
    /// Buffers with us that hold nothing. The last one used is the next one lent, as its bytes are in the cache.
    spare: Vec<u16>,
    /// How full buffers come back, in bytes, as a moving average.
    filled: usize,
}

/// As many bytes as what arrives may be spread over, buffer by buffer, before the first one is used again: more than that
/// and each arrival would push another one's bytes out of the cache.
const SPREAD: usize = 1 << 20;

/// Never fewer than this are lent, however full they come back.
const FEWEST: usize = 16;

/// A buffer that the kernel filled and gave up.
#[derive(Debug)]
pub(super) struct Taken(u16);

impl Taken {
    /// The buffer's number.
    pub(super) fn number(&self) -> u16 {
        self.0
    }
}

impl BufferRing {
    /// `count` buffers (a power of two) of `len` bytes, beginning at `offset` of a cache line's address; none is lent.
    pub(super) fn new(group: u16, count: u16, offset: usize, len: usize) -> Self {
        assert!(count.is_power_of_two(), "invariant: the kernel takes powers of two");
        Self {
            entries: Region::new(1, usize::from(count) * size_of::<BufRingEntry>()),
            buffers: Region::new(usize::from(count), offset + len),
            offset,
            len: u32::try_from(len).expect("invariant: a buffer is shorter than 4 GiB"),
            mask: count - 1,
            tail: 0,
            group,
            with_us: vec![true; usize::from(count)].into_boxed_slice(),
            lent: 0,
            spare: Vec::with_capacity(usize::from(count)),
            filled: 0,
        }
    }

    /// Makes the group known to the kernel and lends it all buffers.
    ///
    /// # Safety
    ///
    /// `self` must outlive the ring's operations on this group.
    pub(super) unsafe fn register(&mut self, ring: &Ring) -> io::Result<()> {
        let entries = self.mask + 1;
        // SAFETY: regions are page aligned, this one has room for the entries, and the caller keeps it.
        unsafe { ring.register_buffers(self.entries.address(0), entries, self.group) }?;
        self.spare.extend(0..entries);
        self.lend();
        Ok(())
    }

    /// The group's number.
    pub(super) fn group(&self) -> u16 {
        self.group
    }

    /// How many buffers the kernel has.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }

    /// Takes over the buffer that a completion names.
    ///
    /// # Panics
    ///
    /// When the kernel did not have it: two users of one buffer.
    pub(super) fn take(&mut self, number: u16) -> Taken {
        let with_us = &mut self.with_us[usize::from(number)];
        assert!(!*with_us, "invariant: the kernel fills only buffers lent to it");
        *with_us = true;
        self.lent -= 1;
        Taken(number)
    }

    /// Takes note that a buffer is of no more use to us; the next [`BufferRing::lend`] may lend it again.
    pub(super) fn give_back(&mut self, taken: Taken) {
        self.spare.push(taken.0);
    }

    /// Takes note of how many bytes a buffer came back with.
    pub(super) fn note(&mut self, bytes: usize) {
        self.filled = (self.filled * 7 + bytes) / 8;
    }

    /// Lends spare buffers to the kernel: all of them while little arrives in each, few while they come back full.
    pub(super) fn lend(&mut self) {
        let most = usize::from(self.mask) + 1;
        let wanted = (SPREAD / self.filled.max(1)).max(FEWEST).min(most);
        if self.lent >= wanted || self.spare.is_empty() {
            return;
        }
        let base = self.entries.address(0).cast::<BufRingEntry>();
        while self.lent < wanted {
            let Some(number) = self.spare.pop() else { break };
            self.with_us[usize::from(number)] = false;
            self.lent += 1;
            let address = self.address(number, 0) as u64;
            // SAFETY: masked, so within the entries allocated.
            let entry = unsafe { base.add(usize::from(self.tail & self.mask)) };
            // SAFETY: zeroed at first and only ever written here; the kernel reads it only below the tail, which this
            // entry is not yet.
            let entry = unsafe { &mut *entry };
            entry.set_addr(address);
            entry.set_len(self.len);
            entry.set_bid(number);
            self.tail = self.tail.wrapping_add(1);
        }
        // SAFETY: `base` is the first entry of the registered entries.
        let tail = unsafe { BufRingEntry::tail(base) };
        // SAFETY: aligned and valid as long as self; the kernel reads it and only we write it, here.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // What was written to the entries, and read from the buffers, happens before the kernel sees the new tail.
        tail.store(self.tail, Ordering::Release);
    }

    /// The bytes of a buffer of ours.
    pub(super) fn bytes_mut<'a>(&'a self, taken: &'a mut Taken, range: Range<usize>) -> &'a mut [u8] {
        assert!(
            range.start <= range.end && range.end <= self.len as usize,
            "invariant: {range:?} of {}",
            self.len
        );
        let first = self.address(taken.0, range.start);
        // SAFETY: the range lies inside one buffer of an initialised allocation that lives as long as self. A `Taken`
        // exists only between the kernel's giving up the buffer and its return, there is one for each buffer, and it
        // is borrowed for as long as the answer.
        unsafe { std::slice::from_raw_parts_mut(first, range.len()) }
    }

    /// The address of byte `at` of a buffer, for an operation on it.
    pub(super) fn address(&self, number: u16, at: usize) -> *mut u8 {
        assert!(at <= self.len as usize, "invariant: byte {at} of {}", self.len);
        self.buffers.address(number).wrapping_add(self.offset + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered(ring: &Ring) -> BufferRing {
        let mut buffers = BufferRing::new(3, 8, 54, 100);
        // SAFETY: the tests start no operation on the group.
        unsafe { buffers.register(ring) }.unwrap();
        buffers
    }

    #[test]
    fn buffers_circulate_and_none_is_lost() {
        let ring = Ring::open().unwrap();
        let mut buffers = registered(&ring);
        for _ in 0..100_000 {
            assert_eq!(buffers.lent(), 8);
            let taken = [buffers.take(5), buffers.take(0), buffers.take(7)];
            assert_eq!(buffers.lent(), 5);
            for taken in taken {
                buffers.give_back(taken);
            }
            buffers.lend();
        }
    }

    #[test]
    fn full_buffers_are_lent_few_at_a_time_and_the_last_one_used_first() {
        let ring = Ring::open().unwrap();
        let mut buffers = BufferRing::new(3, 128, 0, 1 << 16);
        // SAFETY: the test starts no operation on the group.
        unsafe { buffers.register(&ring) }.unwrap();
        assert_eq!(buffers.lent(), 128);
        for _ in 0..64 {
            buffers.note(1 << 16);
        }
        let all: Vec<_> = (0..128).map(|number| buffers.take(number)).collect();
        assert_eq!(buffers.lent(), 0);
        for taken in all {
            buffers.give_back(taken);
        }
        buffers.lend();
        assert_eq!(buffers.lent(), 16);
        // Those are the ones given back last.
        let _ = (112..128).map(|number| buffers.take(number)).collect::<Vec<_>>();
        for _ in 0..64 {
            buffers.note(100);
        }
        buffers.lend();
        assert_eq!(buffers.lent(), 112, "little in each: all that are there");
    }

    #[test]
    #[should_panic(expected = "invariant")]
    fn a_buffer_is_taken_once() {
        let ring = Ring::open().unwrap();
        let mut buffers = registered(&ring);
        let _first = buffers.take(2);
        let _ = buffers.take(2);
    }

    #[test]
    fn content_is_aligned_behind_the_offload_header() {
        let ring = Ring::open().unwrap();
        let buffers = registered(&ring);
        for number in 0..8 {
            assert_eq!(buffers.address(number, 10) as usize % 64, 0);
        }
    }
}
