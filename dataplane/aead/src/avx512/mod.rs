//! The kernel for CPUs with AVX-512: packets side by side in the lanes of 512-bit registers.
//!
//! A run is cut into chunks of at most sixteen packets. In a chunk, the lanes of ChaCha20 are packets and their blocks
//! ([`chacha`]), of which the first is where the packet's one-time key comes from; the lanes of Poly1305 are packets ([`poly`]).
//! No packet has to be long for that, and all packets of a run pay together for what one of them would pay alone.
//!
//! Nothing that is done, and no address, depends on a key or a text: only on lengths, and on whether a tag was right.
#![expect(
    unsafe_code,
    reason = "memory is read and written by intrinsics, and code is entered that this CPU must have"
)]

mod chacha;
mod chunk;
mod poly;
mod vector;

use zeroize::Zeroize as _;

use crate::run::{MAX_TEXT_LEN, Opening, Sealing, TAG_LEN};

/// The longest text for which one packet alone is quicker with the library, in bytes (Zen 5; `examples/speed.rs` shows it).
const ALONE_FROM: usize = 700;

/// Whether this CPU, and the operating system, have what the kernel needs: AVX-512 F, BW, VL and IFMA.
pub(crate) fn is_here() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512ifma")
}

/// A key, on a CPU that has what the kernel needs: there is none elsewhere.
pub(crate) struct Avx512Key([u32; 8]);

impl Drop for Avx512Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Avx512Key {
    pub(crate) fn new(key: &[u8; 32]) -> Option<Self> {
        let mut made = is_here().then_some(Self([0; 8]))?;
        for (word, bytes) in made.0.iter_mut().zip(key.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Some(made)
    }

    /// Seals packets from the front of a run that was checked, and says how many. None means that the first is for the library.
    pub(crate) fn seal(&self, first_counter: u64, run: &mut [Sealing<'_>]) -> usize {
        let (count, lanes) = chunk_of(run.iter().map(|packet| packet.out.len()));
        if let Some(chunk @ [_, ..]) = run.get_mut(..count) {
            // SAFETY: a key exists only on a CPU with the features that the function is compiled for.
            unsafe { chunk::seal(&self.0, lanes, first_counter, chunk) }
        }
        count
    }

    /// Opens packets from the front of a run, or refuses them, and says how many. None means that the first is for the library.
    pub(crate) fn open(&self, run: &mut [Opening<'_>]) -> usize {
        let (count, lanes) = chunk_of(run.iter().map(|packet| packet.bytes.len()));
        if let Some(chunk @ [_, ..]) = run.get_mut(..count) {
            // SAFETY: a key exists only on a CPU with the features that the function is compiled for.
            unsafe { chunk::open(&self.0, lanes, chunk) }
        }
        count
    }
}

/// How many of the packets with these lengths (with tags) are worked on side by side, and in how many lanes.
///
/// They are of one length, but that the last may be shorter: a lane whose packet has ended works for nothing.
fn chunk_of(lens: impl Iterator<Item = usize>) -> (usize, usize) {
    let possible = TAG_LEN..=MAX_TEXT_LEN + TAG_LEN;
    let mut lens = lens.take(16).take_while(|len| possible.contains(len));
    let Some(first) = lens.next() else { return (0, 0) };
    let mut count = 1;
    for len in lens {
        // A longer one begins a chunk of its own.
        count += usize::from(len <= first);
        if len != first {
            break;
        }
    }
    // Lanes left over cost less than another chunk for the rest, at times.
    match count {
        13.. => (count, 16),
        9.. => (8, 8),
        6.. => (count.min(8), 8),
        5 => (4, 4),
        3.. => (count, 4),
        2 => (2, 2),
        _ if first < ALONE_FROM => (0, 0),
        _ => (1, 1),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod chunks {
    use super::*;

    fn chunk_of(lens: &[usize]) -> (usize, usize) {
        super::chunk_of(lens.iter().copied())
    }

    #[test]
    fn a_train_is_cut_into_sixteens_and_what_is_left() {
        let train = [1436; 45];
        assert_eq!(chunk_of(&train), (16, 16));
        assert_eq!(chunk_of(&train[32..]), (13, 16));
        assert_eq!(chunk_of(&train[36..]), (8, 8));
        assert_eq!(chunk_of(&train[44..]), (1, 1));
    }

    #[test]
    fn a_shorter_packet_ends_a_chunk_and_a_longer_one_begins_the_next() {
        assert_eq!(chunk_of(&[1436, 1436, 1436, 80, 1436]), (4, 4));
        assert_eq!(chunk_of(&[80, 80, 1436, 1436]), (2, 2));
    }

    #[test]
    fn what_is_short_and_alone_or_not_possible_is_for_the_library() {
        assert_eq!(chunk_of(&[80, 1436]), (0, 0));
        assert_eq!(chunk_of(&[]), (0, 0));
        assert_eq!(chunk_of(&[TAG_LEN - 1, 1436]), (0, 0));
        assert_eq!(chunk_of(&[MAX_TEXT_LEN + TAG_LEN + 1; 16]), (0, 0));
        assert_eq!(chunk_of(&[1436, 1436, TAG_LEN - 1]), (2, 2));
    }
}
