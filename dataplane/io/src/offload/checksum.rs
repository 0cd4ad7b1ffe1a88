//! The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.
//!
//! It runs over every byte of payload in both directions, so it is written for the width of the machine: the sum does
//! not care about the order of its words nor, but for a final swap, about the order of their bytes.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

/// What one step of the wide loop takes.
const BLOCK: usize = 64;

/// From here on it is worth asking which machine this is.
#[cfg(target_arch = "x86_64")]
const WIDE: usize = 64;

/// A sum that is not folded yet, in words of the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Of bytes that begin at an even offset of what is summed. An odd last byte counts as if a zero followed, so
    /// nothing may come behind it.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if bytes.len() >= WIDE && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")
        {
            // SAFETY: the machine has the instructions, asked in the line above.
            return Self(unsafe { accumulate_avx512(bytes) });
        }
        Self(accumulate(bytes))
    }

    /// As [`Sum::of`] on a machine without wide vectors.
    #[cfg(test)]
    pub(crate) fn of_portable(bytes: &[u8]) -> Self {
        Self(accumulate(bytes))
    }

    /// Of a number that has its place in a header: ports, lengths, the protocol.
    pub(crate) fn of_word(word: u16) -> Self {
        Self(u64::from(word.to_be()))
    }

    /// Of a 32-bit number in a header.
    pub(crate) fn of_long(long: u32) -> Self {
        Self(u64::from(long.to_be()))
    }

    /// Both together.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        let (sum, carry) = self.0.overflowing_add(other.0);
        // The carry cannot overflow again: two numbers below 2^64 sum to less than 2^65 - 1.
        Self(sum.wrapping_add(u64::from(carry)))
    }

    /// Without `other`, which was added before (RFC 1624): what is the checksum when a field changes.
    #[must_use]
    pub(crate) fn minus(self, other: Self) -> Self {
        self.plus(Self(!other.0))
    }

    /// The 16-bit sum, as a number to be stored in network byte order. Not complemented.
    pub(crate) fn fold(self) -> u16 {
        let halves = |sum: u64, bits: u32| {
            let mask = (1u64 << bits).wrapping_sub(1);
            (sum & mask).wrapping_add(sum >> bits)
        };
        // 64 -> 33 -> 18 -> 17 -> 16 bits.
        let sum = halves(halves(halves(halves(self.0, 32), 16), 16), 16);
        u16::from_be((sum & 0xffff) as u16)
    }

    /// The checksum of what was summed, with the checksum's own field counted as zero.
    pub(crate) fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum where zero means that there is none (RFC 768, RFC 8200 §8.1).
    pub(crate) fn checksum_udp(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether what was summed, with its checksum, is undamaged.
    pub(crate) fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

/// Adds 32-bit words in lanes of 64 bits, which cannot overflow below 16 GiB and which every compiler makes vectors of.
#[inline(always)]
fn accumulate(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut sum = 0u64;
    // Headers are shorter, and are not to pay for what payload gains.
    if !blocks.is_empty() {
        let mut lanes = [0u64; BLOCK / 4];
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane = lane.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
            }
        }
        sum = lanes.iter().fold(0u64, |sum, lane| sum.wrapping_add(*lane));
    }
    let (longs, rest) = rest.as_chunks::<4>();
    for long in longs {
        sum = sum.wrapping_add(u64::from(u32::from_ne_bytes(*long)));
    }
    let tail = match *rest {
        [a, b, c] => u32::from_ne_bytes([a, b, c, 0]),
        [a, b] => u32::from_ne_bytes([a, b, 0, 0]),
        [a] => u32::from_ne_bytes([a, 0, 0, 0]),
        _ => 0,
    };
    sum.wrapping_add(u64::from(tail))
}

/// As [`accumulate`], in lanes of a whole cache line: the vectors that the compiler makes of the plain loop for this
/// machine are slower than those it makes for the oldest.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn accumulate_avx512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        _mm512_add_epi64, _mm512_and_si512, _mm512_loadu_si512, _mm512_maskz_loadu_epi8,
        _mm512_reduce_add_epi64, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_srli_epi64,
    };

    let low = _mm512_set1_epi64(0xffff_ffff);
    let mut sums = [_mm512_setzero_si512(); 4];
    let [a, b, c, d] = &mut sums;
    let (pairs, rest) = bytes.as_chunks::<{ 2 * BLOCK }>();
    for pair in pairs {
        let first = pair.as_ptr();
        // SAFETY: the pair is 128 bytes, of which these are the first 64.
        let x = unsafe { _mm512_loadu_si512(first.cast()) };
        // SAFETY: offset 64 lies inside the pair.
        let second = unsafe { first.add(BLOCK) };
        // SAFETY: the pair is 128 bytes, of which these are the last 64.
        let y = unsafe { _mm512_loadu_si512(second.cast()) };
        *a = _mm512_add_epi64(*a, _mm512_and_si512(x, low));
        *b = _mm512_add_epi64(*b, _mm512_srli_epi64::<32>(x));
        *c = _mm512_add_epi64(*c, _mm512_and_si512(y, low));
        *d = _mm512_add_epi64(*d, _mm512_srli_epi64::<32>(y));
    }
    for part in rest.chunks(BLOCK) {
        let mask = u64::MAX >> (BLOCK.wrapping_sub(part.len()) & 63);
        // SAFETY: the mask has as many bits as the part has bytes (one to 64), and no others are read.
        let x = unsafe { _mm512_maskz_loadu_epi8(mask, part.as_ptr().cast()) };
        *a = _mm512_add_epi64(*a, _mm512_and_si512(x, low));
        *b = _mm512_add_epi64(*b, _mm512_srli_epi64::<32>(x));
    }
    let [a, b, c, d] = sums;
    _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_add_epi64(a, b), _mm512_add_epi64(c, d))).cast_unsigned()
}
