//! Sums, against the reference.

use proptest::prelude::*;

use super::packet::{noise, reference_sum};
use crate::offload::checksum::Sum;

#[test]
fn every_length_at_every_alignment_is_summed() {
    let bytes = noise(1, 2_300);
    for start in 0..64 {
        for len in (0..600).chain([1_399, 1_400, 1_401, 1_420, 2_047, 2_048]) {
            let bytes = &bytes[start..start + len];
            let want = reference_sum(bytes);
            assert_eq!(Sum::of(bytes).fold(), want, "{len} bytes from {start}");
            assert_eq!(
                Sum::of_portable(bytes).fold(),
                want,
                "{len} bytes from {start}, without wide vectors"
            );
        }
    }
}

#[test]
fn not_a_byte_in_front_or_behind_is_touched() {
    const PAGE: usize = 4_096;
    let (flags, protection) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_NONE);
    // SAFETY: memory of our own at a place of the kernel's choice; nobody may touch it yet.
    let first = unsafe { libc::mmap(std::ptr::null_mut(), 3 * PAGE, protection, flags, -1, 0) };
    assert_ne!(first, libc::MAP_FAILED);
    // SAFETY: the second of three pages.
    let page: *mut u8 = unsafe { first.cast::<u8>().add(PAGE) };
    // SAFETY: the page is ours, and no reference to it exists.
    assert_eq!(unsafe { libc::mprotect(page.cast(), PAGE, libc::PROT_READ | libc::PROT_WRITE) }, 0);
    // SAFETY: the page is ours, initialised with zeros, and may be read and written from here on.
    let page = unsafe { std::slice::from_raw_parts_mut(page, PAGE) };
    page.copy_from_slice(&noise(3, PAGE));
    for len in (0..700).chain([PAGE - 1, PAGE]) {
        for bytes in [&page[..len], &page[PAGE - len..]] {
            assert_eq!(Sum::of(bytes).fold(), reference_sum(bytes));
            assert_eq!(Sum::of_portable(bytes).fold(), reference_sum(bytes));
        }
    }
    // SAFETY: all of what was mapped, which nothing refers to any more.
    assert_eq!(unsafe { libc::munmap(first, 3 * PAGE) }, 0);
}

#[test]
fn the_longest_packets_of_all_ones_do_not_overflow() {
    for len in [65_535, 65_536, 1 << 20] {
        assert_eq!(Sum::of(&vec![0xff; len]).fold(), reference_sum(&vec![0xff; len]));
        assert_eq!(Sum::of_portable(&vec![0xff; len]).fold(), reference_sum(&vec![0xff; len]));
    }
    let most = Sum::of(&[0xff; 8]).plus(Sum::of(&[0xff; 65_536]));
    assert_eq!(most.fold(), 0xffff);
}

#[test]
fn the_example_of_rfc_1071_comes_out() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
    assert_eq!(Sum::of(&bytes).checksum(), 0x220d);
}

#[test]
fn zero_is_no_checksum_in_udp() {
    assert_eq!(Sum::of(&[0xff, 0xff]).checksum(), 0);
    assert_eq!(Sum::of(&[0xff, 0xff]).checksum_udp(), 0xffff);
    assert_eq!(Sum::of(&[0xff, 0xfe]).checksum_udp(), 1);
}

#[test]
fn one_bit_makes_a_sum_invalid() {
    let mut bytes = noise(2, 1_400);
    let checksum = Sum::of(&bytes).checksum();
    bytes.extend(checksum.to_be_bytes());
    assert!(Sum::of(&bytes).is_valid());
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!Sum::of(&bytes).is_valid(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

proptest! {
    #[test]
    fn parts_sum_to_the_whole(a in prop::collection::vec(any::<u8>(), 0..300), b in prop::collection::vec(any::<u8>(), 0..300)) {
        let a = &a[..a.len() & !1];
        let whole = reference_sum(&[a, &b].concat());
        prop_assert_eq!(Sum::of(a).plus(Sum::of(&b)).fold(), whole);
    }

    #[test]
    fn numbers_sum_as_their_bytes(word: u16, long: u32) {
        prop_assert_eq!(Sum::of_word(word).fold(), reference_sum(&word.to_be_bytes()));
        prop_assert_eq!(Sum::of_long(long).fold(), reference_sum(&long.to_be_bytes()));
    }

    #[test]
    fn a_field_is_exchanged_without_summing_the_rest_again(mut bytes: [u8; 20], at in 0..9usize, new: u16) {
        let old = Sum::of(&bytes);
        let field = u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]);
        bytes[2 * at..2 * at + 2].copy_from_slice(&new.to_be_bytes());
        // Both are right up to the two zeros, which are the same to whoever verifies.
        let zero = |sum: u16| if sum == 0xffff { 0 } else { sum };
        let exchanged = old.minus(Sum::of_word(field)).plus(Sum::of_word(new)).fold();
        prop_assert_eq!(zero(exchanged), zero(reference_sum(&bytes)));
    }
}
