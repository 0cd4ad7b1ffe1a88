//! Nothing is read or written outside the slices: they end at pages that nobody may touch.
#![expect(unsafe_code, reason = "pages are mapped by system calls")]

use std::ptr;

use ringmesh_aead::{Cipher as _, Key, Opening, Sealing, TAG_LEN};

use crate::random::Random;
use crate::reference::{kernels, seal};

const PAGE: usize = 4096;

/// Memory between two pages that kill whoever touches them.
struct Guarded {
    start: *mut u8,
    len: usize,
}

impl Guarded {
    /// At least `len` bytes, in whole pages.
    fn new(len: usize) -> Self {
        let len = len.next_multiple_of(PAGE).max(PAGE);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping touches nothing that is there.
        let all = unsafe { libc::mmap(ptr::null_mut(), len + 2 * PAGE, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(all, libc::MAP_FAILED);
        let start = all.cast::<u8>().wrapping_add(PAGE);
        // SAFETY: these pages are within the mapping.
        let answer = unsafe { libc::mprotect(start.cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(answer, 0);
        Self { start, len }
    }

    /// Its first `len` bytes, or its last.
    fn bytes(&mut self, len: usize, last: bool) -> &mut [u8] {
        assert!(len <= self.len);
        let skipped = if last { self.len - len } else { 0 };
        let first = self.start.wrapping_add(skipped);
        // SAFETY: they are within the pages that can be read and written, are zeros at first, and are borrowed as the whole is.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: it is the whole of the mapping, to which no reference is left.
        unsafe { libc::munmap(self.start.wrapping_sub(PAGE).cast(), self.len + 2 * PAGE) };
    }
}

/// Seals and opens runs of which each slice lies at a page's border; half of them at their begin, half at their end.
#[test]
fn nothing_outside_the_slices_is_touched() {
    const LONGEST: usize = 2 * PAGE;
    let mut random = Random::new(6);
    let bytes = random.key();
    let mut heads: Vec<_> = (0..20).map(|_| Guarded::new(LONGEST)).collect();
    let mut rests: Vec<_> = (0..20).map(|_| Guarded::new(LONGEST)).collect();
    let mut outs: Vec<_> = (0..20).map(|_| Guarded::new(LONGEST + TAG_LEN)).collect();
    for kernel in kernels() {
        let key = Key::new(&bytes, kernel);
        for round in 0..3000 {
            let count = 1 + random.below(20);
            let len = if round % 2 == 0 { random.below(300) } else { random.below(LONGEST + 1) };
            let last = random.one_in(2);
            let short = random.one_in(2).then(|| random.below(len + 1));
            let mut run = Vec::new();
            let mut texts = Vec::new();
            for (index, ((head, rest), out)) in
                heads.iter_mut().zip(&mut rests).zip(&mut outs).take(count).enumerate()
            {
                let len = short.filter(|_| index + 1 == count).unwrap_or(len);
                let padding = random.below(20).min(len);
                let given = len - padding;
                let in_head = [0, 64, 128][random.below(3)];
                let in_head = if in_head < given { in_head } else { 0 };
                let head = head.bytes(in_head, last);
                let rest = rest.bytes(given - in_head, last);
                random.fill(head);
                random.fill(rest);
                let mut text = [&*head, &*rest].concat();
                text.resize(len, 0);
                texts.push(text);
                run.push(Sealing { head, rest, out: out.bytes(len + TAG_LEN, last) });
            }
            key.seal_run(1, &mut run).unwrap();
            let mut run = Vec::new();
            for ((out, text), counter) in outs.iter_mut().zip(&texts).zip(1..) {
                let sealed = out.bytes(text.len() + TAG_LEN, last);
                if round % 50 == 0 {
                    assert_eq!(sealed, seal(&bytes, counter, text));
                }
                run.push(Opening { counter, bytes: sealed, opened: false });
            }
            key.open_run(&mut run);
            assert!(run.iter().all(|packet| packet.opened));
            for (packet, text) in run.iter().zip(&texts) {
                assert_eq!(packet.bytes[..text.len()], *text);
            }
        }
    }
}
