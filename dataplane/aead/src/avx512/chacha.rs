//! ChaCha20 (RFC 8439 §2.3), sixteen blocks side by side and two of those at once: lane by lane a packet's block.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_rol_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_xor_si512,
};
use std::ops::Range;

use super::vector::{Secret, WIDTH, from_words, load, load_part, store, store_part, transpose_words, xor};

/// Lanes in a state: blocks of key stream made side by side.
pub(super) const LANES: usize = 16;

/// "expand 32-byte k", little endian.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A state's key stream: a row for each lane.
pub(super) type Rows = [__m512i; LANES];

/// One of the four steps of quarter rounds (§2.1), of all four columns or diagonals and all states, so that there is always
/// something to do while a result is on its way: `$a += $b; $d ^= $a; $d <<<= $by`.
macro_rules! step {
    ($states:ident, $by:literal, $(($a:literal, $b:literal, $d:literal)),*) => {
        for state in &mut $states {
            $( state[$a] = _mm512_add_epi32(state[$a], state[$b]); )*
            $(
                state[$d] = _mm512_xor_si512(state[$d], state[$a]);
                state[$d] = _mm512_rol_epi32::<$by>(state[$d]);
            )*
        }
    };
}

/// The twenty rounds (§2.3): ten times one of columns and one of diagonals. A macro, since all states have to stay in registers.
macro_rules! rounds {
    ($states:ident) => {
        for _ in 0..10 {
            step!($states, 16, (0, 4, 12), (1, 5, 13), (2, 6, 14), (3, 7, 15));
            step!($states, 12, (8, 12, 4), (9, 13, 5), (10, 14, 6), (11, 15, 7));
            step!($states, 8, (0, 4, 12), (1, 5, 13), (2, 6, 14), (3, 7, 15));
            step!($states, 7, (8, 12, 4), (9, 13, 5), (10, 14, 6), (11, 15, 7));
            step!($states, 16, (0, 5, 15), (1, 6, 12), (2, 7, 13), (3, 4, 14));
            step!($states, 12, (10, 15, 5), (11, 12, 6), (8, 13, 7), (9, 14, 4));
            step!($states, 8, (0, 5, 15), (1, 6, 12), (2, 7, 13), (3, 4, 14));
            step!($states, 7, (10, 15, 5), (11, 12, 6), (8, 13, 7), (9, 14, 4));
        }
    };
}

/// The key streams of up to sixteen packets. They share the lanes of a state evenly: the first lanes have the first packet's blocks,
/// one behind the other.
pub(super) struct Streams<'a> {
    key: &'a [u32; 8],
    /// The nonce of each lane's packet.
    counters_low: [u32; LANES],
    counters_high: [u32; LANES],
    /// Which of its packet's blocks a lane has.
    places: [u32; LANES],
    /// Blocks of a packet in a state: 1, 2, 4, 8 or 16.
    pub(super) per_state: usize,
}

impl<'a> Streams<'a> {
    /// As many streams as there are counters, which are 1, 2, 4, 8 or 16.
    pub(super) fn new(key: &'a [u32; 8], counters: &[u64]) -> Self {
        let per_state = LANES / counters.len();
        let mut streams =
            Self { key, counters_low: [0; LANES], counters_high: [0; LANES], places: [0; LANES], per_state };
        let lanes =
            counters.iter().flat_map(|counter| (0..per_state as u32).map(move |place| (place, *counter)));
        for (lane, (place, counter)) in lanes.take(LANES).enumerate() {
            streams.counters_low[lane] = counter as u32;
            streams.counters_high[lane] = (counter >> 32) as u32;
            streams.places[lane] = place;
        }
        streams
    }

    /// What a state begins with: constants, key, block number, nonce.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn start(&self, first: usize) -> Rows {
        let mut state = [_mm512_setzero_si512(); LANES];
        for (word, value) in state.iter_mut().zip(CONSTANTS.iter().chain(self.key)) {
            *word = _mm512_set1_epi32(value.cast_signed());
        }
        state[12] = _mm512_add_epi32(from_words(&self.places), _mm512_set1_epi32(first as i32));
        state[14] = from_words(&self.counters_low);
        state[15] = from_words(&self.counters_high);
        state
    }

    /// Makes two states of key stream, from block `first` of each packet on.
    ///
    /// A function of its own, since the rounds need all 32 registers: what is around them must not get into their way.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    pub(super) fn make_two(&self, first: usize) -> [Rows; 2] {
        let second = first + self.per_state;
        let mut states = [self.start(first), self.start(second)];
        rounds!(states);
        [finish(states[0], self.start(first)), finish(states[1], self.start(second))]
    }

    /// Makes two states of key stream, from block `first` of each packet on, and adds it to what the lanes read: the first state
    /// `at` bytes from where they point, the second `per_state` blocks further.
    ///
    /// # Safety
    ///
    /// At both places each lane's source is good for reading 64 bytes, and its target for writing them.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    unsafe fn add_two(&self, first: usize, lanes: &Lanes, at: usize) {
        let second = first + self.per_state;
        let mut states = [self.start(first), self.start(second)];
        rounds!(states);
        for (lane, row) in finish(states[0], self.start(first)).into_iter().enumerate() {
            let (source, target) = (lanes.source[lane].wrapping_add(at), lanes.target[lane].wrapping_add(at));
            // SAFETY: the caller promises that both are good for 64 bytes.
            unsafe { xor(source, row, target) }
        }
        let at = at + self.per_state * WIDTH;
        for (lane, row) in finish(states[1], self.start(second)).into_iter().enumerate() {
            let (source, target) = (lanes.source[lane].wrapping_add(at), lanes.target[lane].wrapping_add(at));
            // SAFETY: the caller promises that both are good for 64 bytes.
            unsafe { xor(source, row, target) }
        }
    }

    /// The same with one state.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    pub(super) fn make_one(&self, first: usize) -> Rows {
        let mut states = [self.start(first)];
        rounds!(states);
        finish(states[0], self.start(first))
    }
}

/// What the rounds made of what a state began with, turned: lane by lane a block of key stream.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn finish(mut state: Rows, start: Rows) -> Rows {
    for (word, start) in state.iter_mut().zip(start) {
        *word = _mm512_add_epi32(*word, start);
    }
    transpose_words(state)
}

/// A packet's text, and where its other shape is written, in blocks of 64 bytes.
pub(super) trait Text {
    /// Blocks that lie somewhere else than the others and come first.
    fn head(&self) -> usize;
    /// The whole blocks behind the head.
    fn rest(&self) -> &[[u8; WIDTH]];
    /// The whole blocks that are written, those of the head too.
    fn target(&mut self) -> &mut [[u8; WIDTH]];
    /// Where block 0 would be read if the head were where the rest is, and where it is written.
    fn pointers(&mut self) -> (*const u8, *mut u8);
    /// What is to be read of a block; zeros follow.
    fn source_part(&self, block: usize) -> &[u8];
    /// What is written of a block: nothing behind the end of the text.
    fn target_part(&mut self, block: usize) -> &mut [u8];
}

/// The blocks that are whole in all texts of a chunk, and so can be worked on without a look at each.
pub(super) fn whole_in_all<T: Text>(texts: &mut [T]) -> Range<usize> {
    let head = texts.first().map_or(0, Text::head);
    let mut end = usize::MAX;
    for text in texts {
        // Where heads differ, all blocks are looked at.
        let whole = if text.head() == head { head + text.rest().len() } else { 0 };
        end = end.min(whole).min(text.target().len());
    }
    head..end
}

/// Makes two states of key stream, from block `first` of each packet on, and adds it to the texts: to as much as there is of each. The
/// first block of a text is number 1: number 0 is where the one-time key is from.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_two<T: Text>(
    streams: &Streams<'_>,
    first: usize,
    texts: &mut [T],
    whole: &Range<usize>,
    lanes: &mut Lanes,
) {
    let (block, blocks) = (first - 1, 2 * streams.per_state);
    if block < whole.start || block + blocks > whole.end || texts.len() * streams.per_state < LANES {
        // What comes now uses the texts themselves.
        lanes.pointed = false;
        add_two_at_edge(streams, first, texts);
        return;
    }
    if !lanes.pointed {
        lanes.point(texts, streams.per_state);
    }
    // SAFETY: each lane is a text's, and points to the text's first block or one of the next; `whole` says that from `block` on
    // `blocks` can be read and written there. The texts were not used otherwise since the lanes point to them.
    unsafe { streams.add_two(first, lanes, block * WIDTH) }
}

/// The same where texts end, or are fewer than lanes.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add_two_at_edge<T: Text>(streams: &Streams<'_>, first: usize, texts: &mut [T]) {
    let mut rows = Secret(streams.make_two(first));
    add_rows(texts, first - 1, &rows.0[0], streams.per_state);
    add_rows(texts, first - 1 + streams.per_state, &rows.0[1], streams.per_state);
    rows.wipe();
}

/// The same with one state.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_one<T: Text>(streams: &Streams<'_>, first: usize, texts: &mut [T]) {
    let mut rows = Secret(streams.make_one(first));
    add_rows(texts, first - 1, &rows.0, streams.per_state);
    rows.wipe();
}

/// Where the lanes of a state read and write: block 0 of their text, or one of the next.
pub(super) struct Lanes {
    source: [*const u8; LANES],
    target: [*mut u8; LANES],
    /// Whether they point to the texts.
    pointed: bool,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self { source: [std::ptr::null(); LANES], target: [std::ptr::null_mut(); LANES], pointed: false }
    }

    /// Points to the texts, of which there is one for each `per_state` lanes.
    fn point<T: Text>(&mut self, texts: &mut [T], per_state: usize) {
        for (lane, (source, target)) in self.source.iter_mut().zip(&mut self.target).enumerate() {
            let (text, place) = (lane >> per_state.ilog2(), lane & (per_state - 1));
            let (input, output) = texts[text].pointers();
            (*source, *target) = (input.wrapping_add(place * WIDTH), output.wrapping_add(place * WIDTH));
        }
        self.pointed = true;
    }
}

/// Adds a state's key stream to the texts, from block `first` on: to as much as there is of each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_rows<T: Text>(texts: &mut [T], first: usize, rows: &Rows, per_state: usize) {
    for (text, rows) in texts.iter_mut().zip(rows.chunks_exact(per_state)) {
        for (block, row) in (first..).zip(rows) {
            add_at_edge(text, block, row);
        }
    }
}

/// Adds a block of key stream, where the text may be in two pieces, end, or have ended.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_at_edge<T: Text>(text: &mut T, block: usize, row: &__m512i) {
    let input = match block.checked_sub(text.head()).and_then(|block| text.rest().get(block)) {
        Some(source) => load(source),
        None => load_part(text.source_part(block)),
    };
    let sum = _mm512_xor_si512(input, *row);
    match text.target().get_mut(block) {
        Some(target) => store(target, sum),
        None => store_part(text.target_part(block), sum),
    }
}
