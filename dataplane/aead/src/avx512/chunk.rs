//! A chunk: up to sixteen packets sealed or opened side by side.

use std::arch::x86_64::_mm512_setzero_si512;
use std::hint::black_box;

use super::chacha::{self, Lanes, Rows, Streams, Text};
use super::poly::{self, Tag};
use super::vector::{Secret, WIDTH};
use crate::run::{Opening, Sealing, TAG_LEN};

/// Seals the packets of a chunk, of which there are at most `lanes`, with the counters from `first_counter` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn seal(key: &[u32; 8], lanes: usize, first_counter: u64, chunk: &mut [Sealing<'_>]) {
    let mut counters = [0; chacha::LANES];
    let mut longest = 0;
    for (index, (packet, counter)) in chunk.iter().zip(&mut counters).enumerate() {
        *counter = first_counter + index as u64;
        longest = longest.max(packet.out.len() - TAG_LEN);
    }
    let mut first = Secret([[_mm512_setzero_si512(); chacha::LANES]; 2]);
    let begun = Begun::new(key, &counters[..lanes], longest, &mut first);
    begun.translate(chunk);

    let mut sealed: [&[u8]; chacha::LANES] = [&[]; chacha::LANES];
    for (text, packet) in sealed.iter_mut().zip(&*chunk) {
        *text = &packet.out[..packet.out.len() - TAG_LEN];
    }
    let mut tags = [Tag::default(); chacha::LANES];
    begun.tags(&sealed[..chunk.len()], &mut tags[..chunk.len()]);
    first.wipe();
    for (packet, tag) in chunk.iter_mut().zip(tags) {
        if let Some(place) = packet.out.last_chunk_mut() {
            *place = tag.to_bytes();
        }
    }
}

/// Opens the packets of a chunk, of which there are at most `lanes` and each has a tag. All tags are checked before anything is
/// written, and of a packet that does not open nothing is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn open(key: &[u32; 8], lanes: usize, chunk: &mut [Opening<'_>]) {
    let mut counters = [0; chacha::LANES];
    let mut sealed: [&[u8]; chacha::LANES] = [&[]; chacha::LANES];
    let mut tags = [Tag::default(); chacha::LANES];
    let mut longest = 0;
    for (index, packet) in chunk.iter().enumerate() {
        counters[index] = packet.counter;
        if let Some((text, tag)) = packet.bytes.split_last_chunk() {
            longest = longest.max(text.len());
            sealed[index] = text;
            tags[index] = Tag::from_bytes(tag);
        }
    }
    let mut first = Secret([[_mm512_setzero_si512(); chacha::LANES]; 2]);
    let begun = Begun::new(key, &counters[..lanes], longest, &mut first);
    let mut made = [Tag::default(); chacha::LANES];
    begun.tags(&sealed[..chunk.len()], &mut made[..chunk.len()]);
    for ((packet, made), tag) in chunk.iter_mut().zip(made).zip(tags) {
        packet.opened = made.is(tag);
    }
    begun.translate(chunk);
    first.wipe();
}

impl Tag {
    fn from_bytes(bytes: &[u8; TAG_LEN]) -> Self {
        let whole = u128::from_le_bytes(*bytes);
        Self(whole as u64, (whole >> 64) as u64)
    }

    fn to_bytes(self) -> [u8; TAG_LEN] {
        (u128::from(self.0) | u128::from(self.1) << 64).to_le_bytes()
    }

    /// Whether it is the other one, in a time that does not depend on where they differ.
    fn is(self, other: Self) -> bool {
        // The box keeps the compiler from looking at one half before the other.
        black_box((self.0 ^ other.0) | (self.1 ^ other.1)) == 0
    }
}

/// A text that is all head is all rest here.
impl Text for Sealing<'_> {
    #[inline(always)]
    fn head(&self) -> usize {
        if self.rest.is_empty() { 0 } else { self.head.len() / WIDTH }
    }

    #[inline(always)]
    fn rest(&self) -> &[[u8; WIDTH]] {
        let rest = if self.rest.is_empty() { self.head } else { self.rest };
        rest.as_chunks().0
    }

    #[inline(always)]
    fn target(&mut self) -> &mut [[u8; WIDTH]] {
        let len = self.out.len() - TAG_LEN;
        self.out[..len].as_chunks_mut().0
    }

    #[inline(always)]
    fn pointers(&mut self) -> (*const u8, *mut u8) {
        let before = self.head() * WIDTH;
        (self.rest().as_ptr().cast::<u8>().wrapping_sub(before), self.out.as_mut_ptr())
    }

    fn source_part(&self, block: usize) -> &[u8] {
        let (head, rest) = if self.rest.is_empty() { (self.rest, self.head) } else { (self.head, self.rest) };
        match head.as_chunks::<WIDTH>().0.get(block) {
            Some(block) => block,
            None => block_of(rest, block - self.head()),
        }
    }

    fn target_part(&mut self, block: usize) -> &mut [u8] {
        let len = self.out.len() - TAG_LEN;
        self.out[..len].get_mut(block * WIDTH..).unwrap_or_default()
    }
}

/// A text is opened where it is; one that must not be is none.
impl Text for Opening<'_> {
    #[inline(always)]
    fn head(&self) -> usize {
        0
    }

    #[inline(always)]
    fn rest(&self) -> &[[u8; WIDTH]] {
        text_of(self).as_chunks().0
    }

    #[inline(always)]
    fn target(&mut self) -> &mut [[u8; WIDTH]] {
        text_of_mut(self).as_chunks_mut().0
    }

    #[inline(always)]
    fn pointers(&mut self) -> (*const u8, *mut u8) {
        let both = self.bytes.as_mut_ptr();
        (both, both)
    }

    fn source_part(&self, block: usize) -> &[u8] {
        block_of(text_of(self), block)
    }

    fn target_part(&mut self, block: usize) -> &mut [u8] {
        text_of_mut(self).get_mut(block * WIDTH..).unwrap_or_default()
    }
}

#[inline(always)]
fn text_of<'a>(packet: &'a Opening<'_>) -> &'a [u8] {
    let len = if packet.opened { packet.bytes.len() - TAG_LEN } else { 0 };
    &packet.bytes[..len]
}

#[inline(always)]
fn text_of_mut<'a>(packet: &'a mut Opening<'_>) -> &'a mut [u8] {
    let len = if packet.opened { packet.bytes.len() - TAG_LEN } else { 0 };
    &mut packet.bytes[..len]
}

/// What there is of a block.
fn block_of(bytes: &[u8], block: usize) -> &[u8] {
    let rest = bytes.get(block * WIDTH..).unwrap_or_default();
    rest.get(..WIDTH).unwrap_or(rest)
}

/// The key streams of a chunk's packets, of which the first part is made.
struct Begun<'a> {
    streams: Streams<'a>,
    /// Blocks of the longest packet, with the one that its one-time key is from.
    blocks: usize,
    /// The first states of key stream, which begin with the one-time keys. The second may not be made.
    first: &'a mut First,
}

type First = Secret<[Rows; 2]>;

impl<'a> Begun<'a> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn new(key: &'a [u32; 8], counters: &[u64], longest: usize, first: &'a mut First) -> Self {
        let streams = Streams::new(key, counters);
        let blocks = 1 + longest.div_ceil(WIDTH);
        if blocks <= streams.per_state {
            first.0[0] = streams.make_one(0);
        } else {
            first.0 = streams.make_two(0);
        }
        Self { streams, blocks, first }
    }

    /// Makes the tags of the sealed texts.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn tags(&self, texts: &[&[u8]], tags: &mut [Tag]) {
        let mut keys = Secret([_mm512_setzero_si512(); chacha::LANES]);
        for (key, row) in keys.0.iter_mut().zip(self.first.0[0].iter().step_by(self.streams.per_state)) {
            *key = *row;
        }
        poly::tags(texts, &keys.0, tags);
        keys.wipe();
    }

    /// Adds the key stream to the texts: seals or opens them. The first block of a text is number 1: number 0 is where the one-time
    /// key is from.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn translate<T: Text>(&self, texts: &mut [T]) {
        let per_state = self.streams.per_state;
        let whole = chacha::whole_in_all(texts);
        for (text, rows) in texts.iter_mut().zip(self.first.0[0].chunks_exact(per_state)) {
            for (block, row) in rows[1..].iter().enumerate() {
                chacha::add_at_edge(text, block, row);
            }
        }
        if self.blocks > per_state {
            chacha::add_rows(texts, per_state - 1, &self.first.0[1], per_state);
        }
        let mut block = 2 * per_state;
        let mut lanes = Lanes::new();
        while block + per_state < self.blocks {
            chacha::add_two(&self.streams, block, texts, &whole, &mut lanes);
            block += 2 * per_state;
        }
        if block < self.blocks {
            chacha::add_one(&self.streams, block, texts);
        }
    }
}
