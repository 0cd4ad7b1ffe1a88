//! Memory that the kernel and we take turns to use: allocated once, cut into equal slots, never moved.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::Range;
use std::ptr::NonNull;

/// Slots begin on cache lines.
pub(crate) const LINE: usize = 64;

const PAGE: usize = 4096;

/// Zeroed memory of `slots` equal pieces, page aligned.
///
/// It is reached by raw pointers only, because the kernel may hold some slots while we use others: a `Box<[u8]>` would
/// promise the compiler that nobody else does.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    layout: Layout,
    stride: usize,
    slots: usize,
}

// SAFETY: a region owns its memory, as a `Box<[u8]>` does; nothing in it depends on the thread.
unsafe impl Send for Region {}

impl Region {
    /// Allocates `slots` pieces of at least `size` bytes, each beginning on a cache line.
    ///
    /// # Panics
    ///
    /// When the size does not fit the address space; aborts like `Vec` when there is no memory.
    pub(crate) fn new(slots: usize, size: usize) -> Self {
        assert!(slots > 0 && size > 0, "invariant: a region has slots");
        let stride = size.next_multiple_of(LINE);
        let bytes = stride.checked_mul(slots).expect("invariant: buffers fit the address space");
        let layout = Layout::from_size_align(bytes, PAGE).expect("invariant: buffers fit the address space");
        // SAFETY: the layout's size is not zero, asserted above.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { handle_alloc_error(layout) };
        Self { base, layout, stride, slots }
    }

    /// Where `slot` begins, for giving its address to the kernel.
    ///
    /// # Panics
    ///
    /// When there is no such slot.
    pub(crate) fn address(&self, slot: u16) -> *mut u8 {
        let slot = usize::from(slot);
        assert!(slot < self.slots, "invariant: slot {slot} of {}", self.slots);
        // SAFETY: slot < slots, so the offset lies inside the allocation.
        unsafe { self.base.as_ptr().add(slot * self.stride) }
    }

    /// The bytes of `range` in `slot`, to read.
    ///
    /// # Safety
    ///
    /// The kernel must not write to the slot while the answer lives.
    ///
    /// # Panics
    ///
    /// When the range is not inside the slot.
    pub(crate) unsafe fn bytes(&self, slot: u16, range: Range<usize>) -> &[u8] {
        assert!(
            range.start <= range.end && range.end <= self.stride,
            "invariant: {range:?} of {}",
            self.stride
        );
        // SAFETY: address() is checked, and start <= stride keeps the sum inside the slot or at its end.
        let first = unsafe { self.address(slot).add(range.start) };
        // SAFETY: the range lies inside one slot of an initialised allocation; `&self` excludes writers of ours, and
        // the caller promises that the kernel does not write.
        unsafe { std::slice::from_raw_parts(first, range.end - range.start) }
    }

    /// The bytes of `range` in `slot`.
    ///
    /// # Safety
    ///
    /// The kernel must not use the slot while the answer lives.
    ///
    /// # Panics
    ///
    /// When the range is not inside the slot.
    pub(crate) unsafe fn bytes_mut(&mut self, slot: u16, range: Range<usize>) -> &mut [u8] {
        assert!(
            range.start <= range.end && range.end <= self.stride,
            "invariant: {range:?} of {}",
            self.stride
        );
        // SAFETY: address() is checked, and start <= stride keeps the sum inside the slot or at its end.
        let first = unsafe { self.address(slot).add(range.start) };
        // SAFETY: the range lies inside one slot of an initialised allocation; `&mut self` excludes other slices of
        // ours, and the caller promises that the kernel does not write.
        unsafe { std::slice::from_raw_parts_mut(first, range.end - range.start) }
    }

    /// As [`Region::bytes_mut`], and several slots may be borrowed at once.
    ///
    /// # Safety
    ///
    /// The kernel must not use the slot, and nobody else may borrow it, while the answer lives.
    ///
    /// # Panics
    ///
    /// When the range is not inside the slot.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that each slot is borrowed once")]
    pub(crate) unsafe fn slot_mut(&self, slot: u16, range: Range<usize>) -> &mut [u8] {
        assert!(
            range.start <= range.end && range.end <= self.stride,
            "invariant: {range:?} of {}",
            self.stride
        );
        // SAFETY: address() is checked, and start <= stride keeps the sum inside the slot or at its end.
        let first = unsafe { self.address(slot).add(range.start) };
        // SAFETY: the range lies inside one slot of an initialised allocation that lives as long as `&self`; the caller
        // promises that nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(first, range.len()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` by the same allocator with the same layout, and dropped once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_aligned_apart_and_zeroed() {
        let mut region = Region::new(3, 100);
        assert_eq!(region.address(0) as usize % PAGE, 0);
        assert_eq!(region.address(2) as usize - region.address(1) as usize, 128);
        // SAFETY: no kernel knows this region.
        let bytes = unsafe { region.bytes_mut(1, 0..128) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes.fill(7);
        // SAFETY: no kernel knows this region.
        assert!(unsafe { region.bytes_mut(2, 0..128) }.iter().all(|byte| *byte == 0));
    }

    #[test]
    #[should_panic(expected = "invariant")]
    fn a_slot_that_does_not_exist_is_refused() {
        let _ = Region::new(3, 100).address(3);
    }

    #[test]
    #[should_panic(expected = "invariant")]
    fn a_range_across_slots_is_refused() {
        let mut region = Region::new(3, 100);
        // SAFETY: no kernel knows this region.
        let _ = unsafe { region.bytes_mut(0, 100..129) };
    }
}
