//! ChaCha20 (RFC 8439 §2.3), sixteen blocks side by side and two of those at once: lane by lane a packet's block.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_rol_epi32, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_xor_si512,
};
use std::array;
use std::ops::Range;

use super::vector::{WIDTH, from_words, load, load_part, store, store_part, transpose_words};

/// Lanes in a state: blocks of key stream made side by side.
pub(super) const LANES: usize = 16;

/// "expand 32-byte k", little endian.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The key streams of `N` packets. The lanes of a state are shared evenly: lane `packet * (16 / N) + i` has the `i`-th of the
/// blocks asked for.
pub(super) struct Streams<'a, const N: usize> {
    key: &'a [u32; 8],
    counters_low: [u32; LANES],
    counters_high: [u32; LANES],
    places: [u32; LANES],
}

impl<'a, const N: usize> Streams<'a, N> {
    /// Blocks of each packet in a state.
    pub(super) const PER_STATE: usize = LANES / N;

    pub(super) fn new(key: &'a [u32; 8], counters: &[u64; N]) -> Self {
        let counter = |lane: usize| counters[lane / Self::PER_STATE];
        Self {
            key,
            counters_low: array::from_fn(|lane| counter(lane) as u32),
            counters_high: array::from_fn(|lane| (counter(lane) >> 32) as u32),
            places: array::from_fn(|lane| (lane % Self::PER_STATE) as u32),
        }
    }
}

/// One of the four steps of quarter rounds (§2.1), of all four columns or diagonals and all states, so that there is always
/// something to do while a result is on its way: `$a += $b; $d ^= $a; $d <<<= $by`.
macro_rules! step {
    ($states:ident, $by:literal, $(($a:literal, $b:literal, $d:literal)),*) => {
        for state in $states.iter_mut() {
            $( state[$a] = _mm512_add_epi32(state[$a], state[$b]); )*
            $( state[$d] = _mm512_xor_si512(state[$d], state[$a]); )*
            $( state[$d] = _mm512_rol_epi32::<$by>(state[$d]); )*
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

/// A packet's text, and where its other shape is written, in blocks of 64 bytes.
pub(super) trait Text {
    /// Blocks that lie somewhere else than the others and come first.
    fn head(&self) -> usize;
    /// The whole blocks behind the head.
    fn rest(&self) -> &[[u8; WIDTH]];
    /// The whole blocks that are written, those of the head too.
    fn target(&mut self) -> &mut [[u8; WIDTH]];
    /// What is to be read of a block; zeros follow.
    fn source_part(&self, block: usize) -> &[u8];
    /// What is written of a block: nothing behind the end of the text.
    fn target_part(&mut self, block: usize) -> &mut [u8];
}

/// Which blocks of a chunk's texts can be worked on without a look at each: those that are whole in all, or in all but the last.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    head: usize,
    all: usize,
    all_but_last: usize,
    count: usize,
}

impl Whole {
    /// Looks at the first `count` texts; the others are empty.
    pub(super) fn new<T: Text>(texts: &[T], count: usize) -> Self {
        let mut whole = Self { head: 0, all: usize::MAX, all_but_last: usize::MAX, count };
        for (index, text) in texts[..count].iter().enumerate() {
            if index == 0 {
                whole.head = text.head();
            }
            // Without a common place where the rest begins, none is worked on that way.
            let end = if text.head() == whole.head { whole.head + text.rest().len() } else { 0 };
            whole.all_but_last = whole.all;
            whole.all = whole.all.min(end);
        }
        whole
    }

    /// How many texts, from the first on, have these blocks whole.
    fn count(&self, blocks: Range<usize>) -> usize {
        if blocks.start < self.head || blocks.end > self.all_but_last {
            0
        } else if blocks.end > self.all {
            self.count - 1
        } else {
            self.count
        }
    }
}

/// What states begin with: constants, key, block number, nonce. A macro, as are the others: all states have to stay in registers.
macro_rules! start {
    ($streams:ident, $first:expr) => {{
        let mut state = [_mm512_setzero_si512(); LANES];
        for (word, value) in state.iter_mut().zip(CONSTANTS.iter().chain($streams.key)) {
            *word = _mm512_set1_epi32(value.cast_signed());
        }
        state[12] = _mm512_add_epi32(from_words(&$streams.places), _mm512_set1_epi32($first as i32));
        state[14] = from_words(&$streams.counters_low);
        state[15] = from_words(&$streams.counters_high);
        state
    }};
}

/// What the rounds made of what a state began with, turned: lane by lane a block of key stream.
macro_rules! finish {
    ($streams:ident, $first:expr, $state:expr) => {{
        let mut state = $state;
        for (word, start) in state.iter_mut().zip(start!($streams, $first)) {
            *word = _mm512_add_epi32(*word, start);
        }
        transpose_words(state)
    }};
}

/// Makes two states of key stream, which begin with the first block of each packet.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn make_two<const N: usize>(
    streams: &Streams<'_, N>,
    one: &mut [__m512i; LANES],
    two: &mut [__m512i; LANES],
) {
    let second = Streams::<N>::PER_STATE;
    let mut states = [start!(streams, 0), start!(streams, second)];
    rounds!(states);
    *one = finish!(streams, 0, states[0]);
    *two = finish!(streams, second, states[1]);
}

/// The same with one state.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn make_one<const N: usize>(streams: &Streams<'_, N>, one: &mut [__m512i; LANES]) {
    let mut states = [start!(streams, 0)];
    rounds!(states);
    *one = finish!(streams, 0, states[0]);
}

/// A loop that is unrolled whatever the compiler thinks of it, so that each lane's row is a register.
macro_rules! for_lanes {
    ($lane:ident in $($number:literal),* => $body:block) => { $({ let $lane = $number; $body })* };
}

/// Adds a state's key stream to the texts, from block `$first` on, as far as that is whole in as many as `$whole` says. What is
/// for others goes by way of `$spare`.
macro_rules! add_state {
    ($rows:expr, $first:expr, $texts:ident, $whole:ident, $spare:ident) => {
        let (rows, first, per_state) = ($rows, $first, Streams::<N>::PER_STATE);
        let count = $whole.count(first..first + per_state);
        for_lanes!(lane in 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 => {
            let (packet, block) = (lane / per_state, first + lane % per_state);
            if packet < count {
                let source = &$texts[packet].rest()[block - $whole.head];
                let sum = _mm512_xor_si512(load(source), rows[lane]);
                store(&mut $texts[packet].target()[block], sum);
            } else {
                $spare[lane] = rows[lane];
            }
        });
        for (text, rows) in
            $texts.iter_mut().zip($spare.chunks_exact(per_state)).take($whole.count).skip(count)
        {
            add_rows(text, first, rows);
        }
    };
}

/// Makes two states of key stream, which begin with block `first` of each packet, and adds it to the texts. The first block of a
/// text is number 1: number 0 is where the one-time key is from.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_two<const N: usize, T: Text>(
    streams: &Streams<'_, N>,
    first: usize,
    texts: &mut [T; N],
    whole: Whole,
    spare: &mut [__m512i; LANES],
) {
    let second = first + Streams::<N>::PER_STATE;
    let mut states = [start!(streams, first), start!(streams, second)];
    rounds!(states);
    add_state!(finish!(streams, first, states[0]), first - 1, texts, whole, spare);
    add_state!(finish!(streams, second, states[1]), second - 1, texts, whole, spare);
}

/// The same with one state.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_one<const N: usize, T: Text>(
    streams: &Streams<'_, N>,
    first: usize,
    texts: &mut [T; N],
    whole: Whole,
    spare: &mut [__m512i; LANES],
) {
    let mut states = [start!(streams, first)];
    rounds!(states);
    add_state!(finish!(streams, first, states[0]), first - 1, texts, whole, spare);
}

/// Adds key stream to a text, from block `first` on: to as much as there is of it.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn add_rows<T: Text>(text: &mut T, first: usize, rows: &[__m512i]) {
    for (block, row) in (first..).zip(rows) {
        let input = match block.checked_sub(text.head()).and_then(|block| text.rest().get(block)) {
            Some(whole) => load(whole),
            None => load_part(text.source_part(block)),
        };
        let sum = _mm512_xor_si512(input, *row);
        match text.target().get_mut(block) {
            Some(whole) => store(whole, sum),
            None => store_part(text.target_part(block), sum),
        }
    }
}
