//! A chunk: up to sixteen packets sealed or opened side by side.

use std::arch::x86_64::_mm512_setzero_si512;
use std::array;
use std::hint::black_box;

use super::chacha::{self, Streams, Text, Whole, add_one, add_rows, add_two};
use super::poly::{self, Tag};
use super::vector::{Secret, WIDTH};
use crate::run::{Opening, Sealing, TAG_LEN};

/// Seals the packets of a chunk, of which there are at most `N`, with the counters from `first_counter` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn seal<const N: usize>(key: &[u32; 8], first_counter: u64, chunk: &mut [Sealing<'_>]) {
    let mut counters = [0; N];
    let mut texts: [Plain<'_>; N] = array::from_fn(|_| Plain::default());
    let (count, mut longest) = (chunk.len(), 0);
    for (index, packet) in chunk.iter_mut().enumerate() {
        counters[index] = first_counter + index as u64;
        let len = packet.out.len() - TAG_LEN;
        longest = longest.max(len);
        texts[index] = Plain::new(packet.head, packet.rest, &mut packet.out[..len]);
    }
    let mut streams = Begun::<N>::new(key, &counters, longest);
    streams.translate(&mut texts, count);

    let mut sealed: [&[u8]; N] = [&[]; N];
    for (text, packet) in sealed.iter_mut().zip(&*chunk) {
        *text = &packet.out[..packet.out.len() - TAG_LEN];
    }
    let tags = streams.tags(&sealed);
    streams.wipe();
    for (packet, tag) in chunk.iter_mut().zip(tags) {
        if let Some(place) = packet.out.last_chunk_mut() {
            *place = tag.to_bytes();
        }
    }
}

/// Opens the packets of a chunk, of which there are at most `N` and each has a tag. All tags are checked before anything is
/// written, and of a packet that does not open nothing is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn open<const N: usize>(key: &[u32; 8], chunk: &mut [Opening<'_>]) {
    let mut counters = [0; N];
    let mut sealed: [&[u8]; N] = [&[]; N];
    let mut tags = [Tag::default(); N];
    let mut longest = 0;
    for (index, packet) in chunk.iter().enumerate() {
        counters[index] = packet.counter;
        if let Some((text, tag)) = packet.bytes.split_last_chunk() {
            longest = longest.max(text.len());
            sealed[index] = text;
            tags[index] = Tag::from_bytes(tag);
        }
    }
    let mut streams = Begun::<N>::new(key, &counters, longest);
    let made = streams.tags(&sealed);

    let mut texts: [Sealed<'_>; N] = array::from_fn(|_| Sealed::default());
    let count = chunk.len();
    for (index, packet) in chunk.iter_mut().enumerate() {
        packet.opened = made[index].is(tags[index]);
        if packet.opened {
            let len = packet.bytes.len() - TAG_LEN;
            texts[index] = Sealed::new(&mut packet.bytes[..len]);
        }
    }
    streams.translate(&mut texts, count);
    streams.wipe();
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

/// A text to be sealed, in blocks and what is left of less than one.
#[derive(Default)]
struct Plain<'a> {
    head: &'a [[u8; WIDTH]],
    rest: &'a [[u8; WIDTH]],
    rest_end: &'a [u8],
    out: &'a mut [[u8; WIDTH]],
    out_end: &'a mut [u8],
}

impl<'a> Plain<'a> {
    fn new(head: &'a [u8], rest: &'a [u8], out: &'a mut [u8]) -> Self {
        // A text that is all head is all rest here.
        let (head, rest) = if rest.is_empty() { (rest, head) } else { (head, rest) };
        let (rest, rest_end) = rest.as_chunks();
        let (out, out_end) = out.as_chunks_mut();
        Self { head: head.as_chunks().0, rest, rest_end, out, out_end }
    }
}

impl Text for Plain<'_> {
    #[inline(always)]
    fn head(&self) -> usize {
        self.head.len()
    }

    #[inline(always)]
    fn rest(&self) -> &[[u8; WIDTH]] {
        self.rest
    }

    #[inline(always)]
    fn target(&mut self) -> &mut [[u8; WIDTH]] {
        self.out
    }

    fn source_part(&self, block: usize) -> &[u8] {
        match self.head.get(block) {
            Some(block) => block,
            None if block == self.head.len() + self.rest.len() => self.rest_end,
            None => &[],
        }
    }

    fn target_part(&mut self, block: usize) -> &mut [u8] {
        if block == self.out.len() { self.out_end } else { &mut [] }
    }
}

/// A text to be opened where it is.
#[derive(Default)]
struct Sealed<'a> {
    blocks: &'a mut [[u8; WIDTH]],
    end: &'a mut [u8],
}

impl<'a> Sealed<'a> {
    fn new(text: &'a mut [u8]) -> Self {
        let (blocks, end) = text.as_chunks_mut();
        Self { blocks, end }
    }
}

impl Text for Sealed<'_> {
    #[inline(always)]
    fn head(&self) -> usize {
        0
    }

    #[inline(always)]
    fn rest(&self) -> &[[u8; WIDTH]] {
        self.blocks
    }

    #[inline(always)]
    fn target(&mut self) -> &mut [[u8; WIDTH]] {
        self.blocks
    }

    fn source_part(&self, block: usize) -> &[u8] {
        if block == self.blocks.len() { self.end } else { &[] }
    }

    fn target_part(&mut self, block: usize) -> &mut [u8] {
        if block == self.blocks.len() { self.end } else { &mut [] }
    }
}

/// The key streams of a chunk's packets, of which the first part is made.
struct Begun<'a, const N: usize> {
    streams: Streams<'a, N>,
    /// Blocks of the longest packet, with the one that its one-time key is from.
    blocks: usize,
    /// The first states of key stream, which begin with the one-time keys.
    first: Secret<{ 3 * chacha::LANES }>,
    /// How many they are: one or two.
    states: usize,
}

impl<'a, const N: usize> Begun<'a, N> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn new(key: &'a [u32; 8], counters: &[u64; N], longest: usize) -> Self {
        let streams = Streams::new(key, counters);
        let blocks = 1 + longest.div_ceil(WIDTH);
        let mut first = Secret::new();
        let ([one, two, ..], _) = first.0.as_chunks_mut() else { unreachable!() };
        let states = if blocks <= Streams::<N>::PER_STATE {
            chacha::make_one(&streams, one);
            1
        } else {
            chacha::make_two(&streams, one, two);
            2
        };
        Self { streams, blocks, first, states }
    }

    /// The tags of the sealed `texts`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn tags(&self, texts: &[&[u8]; N]) -> [Tag; N] {
        let mut tags = [Tag::default(); N];
        let mut keys = [_mm512_setzero_si512(); N];
        for (key, blocks) in keys.iter_mut().zip(self.first.0.chunks_exact(Streams::<N>::PER_STATE)) {
            *key = blocks[0];
        }
        let lanes = keys.chunks(poly::LANES).zip(texts.chunks(poly::LANES)).zip(tags.chunks_mut(poly::LANES));
        for ((keys, texts), tags) in lanes {
            poly::tags(texts, keys, tags);
        }
        tags
    }

    /// Adds the key stream to the texts, of which there are `count` and no more: seals or opens them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn translate<T: Text>(&mut self, texts: &mut [T; N], count: usize) {
        let per_state = Streams::<N>::PER_STATE;
        let whole = Whole::new(texts, count);
        let mut block = 0;
        for rows in self.first.0.as_chunks::<{ chacha::LANES }>().0.iter().take(self.states) {
            for (text, rows) in texts.iter_mut().zip(rows.chunks_exact(per_state)) {
                if block == 0 {
                    add_rows(text, 0, &rows[1..]);
                } else {
                    add_rows(text, block - 1, rows);
                }
            }
            block += per_state;
        }
        let ([_, _, spare], _) = self.first.0.as_chunks_mut() else { return };
        while block + per_state < self.blocks {
            add_two(&self.streams, block, texts, whole, spare);
            block += 2 * per_state;
        }
        if block < self.blocks {
            add_one(&self.streams, block, texts, whole, spare);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn wipe(&mut self) {
        self.first.wipe();
    }
}
