//! Poly1305 (RFC 8439 §2.5) of up to eight texts side by side.
//!
//! A number is three limbs of 44, 44 and 42 bits, which the multiply-add of 52 bits takes with room to spare. A lane has one text
//! or, where there are fewer than eight, every second, fourth or eighth group of four blocks of one. The four blocks of a group
//! are multiplied by r⁴, r³, r² and r and added up before carries are spread.
//!
//! Texts end side by side, and a shorter one begins later. Before it begins a lane is zero, so nothing has to be masked meanwhile.

use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_cmpge_epi64_mask, _mm512_cmplt_epu64_mask,
    _mm512_madd52hi_epu64, _mm512_madd52lo_epu64, _mm512_mask_add_epi64, _mm512_mask_blend_epi64,
    _mm512_mask_set1_epi64, _mm512_maskz_set1_epi64, _mm512_or_si512, _mm512_permutex_epi64,
    _mm512_set1_epi64, _mm512_setzero_si512, _mm512_shuffle_i64x2, _mm512_slli_epi64, _mm512_srli_epi64,
    _mm512_sub_epi64,
};
use std::ops::Range;

use super::vector::{Secret, WIDTH, from_longs, load, load_part, longs, move_up, transpose_longs};

/// Lanes of 64 bits.
pub(super) const LANES: usize = 8;
/// Bytes in a block.
const BLOCK_LEN: usize = 16;
/// Blocks in a group.
const BLOCKS: usize = WIDTH / BLOCK_LEN;

/// A number modulo 2¹³⁰-5 in each lane, in limbs of 44, 44 and 42 bits. The second may be some bits longer.
type Number = [__m512i; 3];

/// What a number is multiplied by: its limbs, and the second and third times 20: what is beyond 2¹³² comes back times 4 · 5.
type Factor = [__m512i; 5];

/// The factors of a run of groups: r⁴, r³, r², r, and what a lane is multiplied by from one of its groups to the next.
type Factors = Secret<[Factor; 5]>;

/// A tag in two halves, little endian.
#[derive(Clone, Copy, Default)]
pub(super) struct Tag(pub(super) u64, pub(super) u64);

/// Makes the tags of at most sixteen texts, with no data but the text (§2.8). The first 32 bytes of a row are a one-time key.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn tags(texts: &[&[u8]], keys: &[__m512i], tags: &mut [Tag]) {
    let groups = texts.iter().map(|text| padded_len(text).div_ceil(WIDTH)).max().unwrap_or(1);
    // A text has a lane, or two, four or eight.
    let share = match texts.len() {
        1 => 8,
        2 => 4,
        3 | 4 => 2,
        _ => 1,
    };
    let share = groups.next_power_of_two().min(share);
    let steps = (groups + share - 1) >> share.ilog2();
    if let Some((first, others)) = texts.split_at_checked(LANES)
        && !others.is_empty()
    {
        // Sixteen lanes: what waits for a product of one half does the other meanwhile.
        let (first_keys, other_keys) = keys.split_at(LANES);
        let (first_tags, other_tags) = tags.split_at_mut(LANES);
        let mut one = Half::new(first, first_keys, share, steps);
        let mut two = Half::new(others, other_keys, share, steps);
        let sums = add_up::<true, 2>([&one, &two]);
        one.finish(sums[0], first_tags);
        two.finish(sums[1], other_tags);
    } else {
        let mut half = Half::new(texts, keys, share, steps);
        let [sum] = if share == 1 { add_up::<true, 1>([&half]) } else { add_up::<false, 1>([&half]) };
        half.finish(sum, tags);
    }
}

/// Length of what the tag is made of: the text, padded to a block, and a block with its length.
fn padded_len(text: &[u8]) -> usize {
    text.len().next_multiple_of(BLOCK_LEN) + BLOCK_LEN
}

/// Eight lanes: their texts, where in each its first group begins, which may be before its beginning, and the keys.
struct Half<'a> {
    texts: [&'a [u8]; LANES],
    at: [isize; LANES],
    /// How many lanes a text has, a power of two. In each step it is that many groups further.
    share: usize,
    steps: usize,
    /// Whether all are of one length and at one place.
    uniform: bool,
    factors: Factors,
    /// What the sum of each lane is multiplied by in the end.
    fold: Secret<Factor>,
    /// What is added in the end.
    pad: Secret<[__m512i; 2]>,
}

impl<'a> Half<'a> {
    /// Puts at most eight texts into lanes, so that all end in the same step.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn new(texts: &[&'a [u8]], keys: &[__m512i], share: usize, steps: usize) -> Self {
        let mut rows = Secret([_mm512_setzero_si512(); LANES]);
        let mut lanes: [&[u8]; LANES] = [&[]; LANES];
        let mut at = [0; LANES];
        let (mut text, mut place) = (0, 0);
        for (lane, row) in rows.0.iter_mut().enumerate() {
            *row = keys[text];
            lanes[lane] = texts[text];
            at[lane] =
                padded_len(texts[text]).cast_signed() - ((share * steps - place) * WIDTH).cast_signed();
            place += 1;
            if place == share {
                // Lanes that are left over do again what others do.
                (text, place) = (if text + 1 == texts.len() { 0 } else { text + 1 }, 0);
            }
        }
        let uniform = share == 1 && texts.iter().all(|text| text.len() == texts[0].len());
        let [r_low, r_high, s_low, s_high, ..] = transpose_longs(rows.0);
        rows.wipe();
        let r = limbs(
            _mm512_and_si512(r_low, _mm512_set1_epi64(0x0fff_fffc_0fff_ffff)),
            _mm512_and_si512(r_high, _mm512_set1_epi64(0x0fff_fffc_0fff_fffc)),
        );
        let (factors, fold) = factors(r, share);
        Self { texts: lanes, at, share, steps, uniform, factors, fold, pad: Secret([s_low, s_high]) }
    }

    /// Makes tags of the sums of all lanes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn finish(&mut self, sum: Number, tags: &mut [Tag]) {
        let sum = if self.share == 1 { sum } else { fold_shares(sum, &self.fold.0, self.share) };
        let (low, high) = finish(sum, self.pad.0[0], self.pad.0[1]);
        let (low, high) = (longs(low), longs(high));
        let lanes = low.into_iter().zip(high).step_by(self.share);
        for (tag, (low, high)) in tags.iter_mut().zip(lanes) {
            *tag = Tag(low, high);
        }
        self.factors.wipe();
        self.fold.wipe();
        self.pad.wipe();
    }

    /// Where each lane is in a step.
    fn at(&self, step: usize) -> [isize; LANES] {
        self.at.map(|at| at + (step * self.share * WIDTH).cast_signed())
    }

    /// The steps in which each lane has a group that is all text: all but the last and, mostly, the first.
    fn whole(&self) -> Range<usize> {
        let before = self.at.iter().min().map_or(0, |at| (-at).max(0).cast_unsigned());
        let first = (before + self.share * WIDTH - 1) >> (self.share * WIDTH).ilog2();
        first..first.max(self.steps - 1)
    }

    /// The groups of each lane from a step on, if they are whole. The lane's are those at every `share`-th place.
    fn groups(&self, step: usize) -> [&'a [[u8; WIDTH]]; LANES] {
        let at = self.at(step);
        let mut groups = [Default::default(); LANES];
        for ((groups, text), at) in groups.iter_mut().zip(self.texts).zip(at) {
            *groups = text.get(at.cast_unsigned()..).unwrap_or_default().as_chunks().0;
        }
        groups
    }
}

/// The sums of the lanes of each half. If each is `ALONE` with its text, they are complete.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add_up<const ALONE: bool, const HALVES: usize>(halves: [&Half<'_>; HALVES]) -> [Number; HALVES] {
    let mut sums = [Product::new(); HALVES];
    let (mut begin, mut end) = (0, halves[0].steps);
    for half in halves {
        let whole = half.whole();
        (begin, end) = (begin.max(whole.start), end.min(whole.end));
    }
    for step in 0..begin {
        for (sum, half) in sums.iter_mut().zip(halves) {
            *sum = add_edge::<ALONE>(*sum, half, step);
        }
    }
    let groups = halves.map(|half| half.groups(begin));
    for place in (0..end.saturating_sub(begin)).map(|step| step * halves[0].share) {
        for ((sum, half), groups) in sums.iter_mut().zip(halves).zip(&groups) {
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (row, groups) in rows.iter_mut().zip(groups) {
                *row = load(&groups[place]);
            }
            *sum = add_groups::<ALONE>(*sum, rows, [_mm512_set1_epi64(TOP); BLOCKS], &half.factors);
        }
    }
    for step in begin.max(end)..halves[0].steps {
        for (sum, half) in sums.iter_mut().zip(halves) {
            *sum = add_edge::<ALONE>(*sum, half, step);
        }
    }
    let mut numbers = [[_mm512_setzero_si512(); 3]; HALVES];
    for (number, sum) in numbers.iter_mut().zip(sums) {
        *number = sum.carried();
    }
    numbers
}

/// A group that begins before its text or ends with it.
struct Edge {
    part: Range<usize>,
    /// Words of 64 bits that are left out before it.
    skipped: usize,
    /// Whether the length follows: it is the last.
    last: bool,
}

impl Edge {
    #[inline(always)]
    fn new(at: isize, len: usize) -> Self {
        let end = (at + WIDTH.cast_signed()).max(0).cast_unsigned();
        Self {
            part: at.max(0).cast_unsigned().min(len)..end.min(len),
            skipped: (-at).clamp(0, WIDTH.cast_signed()).cast_unsigned() / size_of::<u64>(),
            // Behind the text are at most 31 bytes, so only the last group reaches beyond it.
            last: end > len,
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn load(&self, text: &[u8]) -> __m512i {
        let row = move_up(load_part(text.get(self.part.clone()).unwrap_or_default()), self.skipped);
        if self.last { _mm512_mask_set1_epi64(row, 0x80, text.len() as i64) } else { row }
    }
}

/// Adds groups of which some begin before their text, or end with it: zeros, text, zeros, and the length if it is the last.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add_edge<const ALONE: bool>(sum: Product, lanes: &Half<'_>, step: usize) -> Product {
    let at = lanes.at(step);
    let mut rows = [_mm512_setzero_si512(); LANES];
    if lanes.uniform {
        let group = Edge::new(at[0], lanes.texts[0].len());
        for (row, text) in rows.iter_mut().zip(lanes.texts) {
            *row = group.load(text);
        }
    } else {
        for ((row, text), at) in rows.iter_mut().zip(lanes.texts).zip(at) {
            *row = Edge::new(at, text.len()).load(text);
        }
    }
    // The bit above a block's 128 (§2.5.1), where there is a block.
    let at = from_longs(&at);
    let mut tops = [_mm512_setzero_si512(); BLOCKS];
    for (block, top) in tops.iter_mut().enumerate() {
        let begins = _mm512_set1_epi64(-((block * BLOCK_LEN) as i64));
        *top = _mm512_maskz_set1_epi64(_mm512_cmpge_epi64_mask(at, begins), TOP);
    }
    add_groups::<ALONE>(sum, rows, tops, &lanes.factors)
}

/// 2¹²⁸ in the third limb, which begins at 2⁸⁸.
const TOP: i64 = 1 << 40;
/// The first and the second limb of a number.
const LIMB: i64 = (1 << 44) - 1;
/// The third.
const LAST_LIMB: i64 = (1 << 42) - 1;

/// Adds a group of each lane to the lane's sum and multiplies: `(sum + m₀)·r⁴ + m₁·r³ + m₂·r² + m₃·r`, with `sum` multiplied by
/// a factor of its own where lanes share a text.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add_groups<const ALONE: bool>(
    sum: Product,
    rows: [__m512i; LANES],
    tops: [__m512i; BLOCKS],
    factors: &Factors,
) -> Product {
    let columns = transpose_longs(rows);
    let block = |index: usize| {
        let [low, middle, high] = limbs(columns[2 * index], columns[2 * index + 1]);
        [low, middle, _mm512_or_si512(high, tops[index])]
    };
    let factors = &factors.0;
    let mut product = Product::new();
    product.add(block(3), &factors[3]);
    product.add(block(2), &factors[2]);
    product.add(block(1), &factors[1]);
    // What depends on the group before comes last, when that is ready.
    if ALONE {
        product.add(add(block(0), sum.carried()), &factors[0]);
    } else {
        product.add(block(0), &factors[0]);
        product.add(sum.carried(), &factors[4]);
    }
    product
}

/// The powers of r that groups are multiplied by, and what the sum of each lane is multiplied by in the end, so that those of
/// lanes that share a text can be added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn factors(r: Number, share: usize) -> (Factors, Secret<Factor>) {
    let first = factor(r);
    let second = factor(multiply(r, &first));
    let third = factor(multiply([second[0], second[1], second[2]], &first));
    let fourth = factor(multiply([second[0], second[1], second[2]], &second));

    // A lane has `share - 1 - place` groups less behind it than it is multiplied for.
    let mut between = fourth;
    let mut fold = [_mm512_set1_epi64(1), _mm512_setzero_si512(), _mm512_setzero_si512()];
    for bit in 0..share.ilog2() {
        let mut lanes = 0;
        for lane in 0..LANES {
            lanes |= u8::from((share - 1 - lane % share) >> bit & 1 == 1) << lane;
        }
        let folded = multiply(fold, &between);
        for (limb, folded) in fold.iter_mut().zip(folded) {
            *limb = _mm512_mask_blend_epi64(lanes, *limb, folded);
        }
        between = factor(multiply([between[0], between[1], between[2]], &between));
    }

    (Secret([fourth, third, second, first, between]), Secret(factor(fold)))
}

/// Brings the sums of the lanes that share a text together; each of these has the whole afterwards.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn fold_shares(sum: Number, fold: &Factor, share: usize) -> Number {
    let mut sum = multiply(sum, fold);
    for limb in &mut sum {
        if share >= 2 {
            *limb = _mm512_add_epi64(*limb, _mm512_permutex_epi64::<0xb1>(*limb));
        }
        if share >= 4 {
            *limb = _mm512_add_epi64(*limb, _mm512_permutex_epi64::<0x4e>(*limb));
        }
        if share >= 8 {
            *limb = _mm512_add_epi64(*limb, _mm512_shuffle_i64x2::<0x4e>(*limb, *limb));
        }
    }
    sum
}

/// Takes 128 bits apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn limbs(low: __m512i, high: __m512i) -> Number {
    let limb = _mm512_set1_epi64(LIMB);
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    [_mm512_and_si512(low, limb), _mm512_and_si512(middle, limb), _mm512_srli_epi64::<24>(high)]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add(a: Number, b: Number) -> Number {
    [_mm512_add_epi64(a[0], b[0]), _mm512_add_epi64(a[1], b[1]), _mm512_add_epi64(a[2], b[2])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn factor(limbs: Number) -> Factor {
    let (zero, twenty) = (_mm512_setzero_si512(), _mm512_set1_epi64(20));
    let times_20 = |limb| _mm512_madd52lo_epu64(zero, limb, twenty);
    [limbs[0], limbs[1], limbs[2], times_20(limbs[1]), times_20(limbs[2])]
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn multiply(a: Number, b: &Factor) -> Number {
    let mut product = Product::new();
    product.add(a, b);
    product.carried()
}

/// A sum of products before carries are spread: of each limb the low 52 bits of its products, and what was above those. Limbs are
/// shorter than 46 bits and factors than 50, so up to five products are far from filling 64.
#[derive(Clone, Copy)]
struct Product {
    low: Number,
    high: Number,
}

impl Product {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn new() -> Self {
        Self { low: [_mm512_setzero_si512(); 3], high: [_mm512_setzero_si512(); 3] }
    }

    /// Adds `a * b`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn add(&mut self, a: Number, b: &Factor) {
        let [b0, b1, b2, b1_20, b2_20] = *b;
        // By limb of `a`: what each limb of the product gets of it.
        for (limb, others) in a.into_iter().zip([[b0, b1, b2], [b2_20, b0, b1], [b1_20, b2_20, b0]]) {
            for (index, other) in others.into_iter().enumerate() {
                self.low[index] = _mm512_madd52lo_epu64(self.low[index], limb, other);
                self.high[index] = _mm512_madd52hi_epu64(self.high[index], limb, other);
            }
        }
    }

    /// Spreads the carries, and brings what is beyond 2¹³⁰ back, times 5.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    fn carried(self) -> Number {
        let (limb, last_limb) = (_mm512_set1_epi64(LIMB), _mm512_set1_epi64(LAST_LIMB));
        let Self { low, high } = self;
        // What is above 52 bits is 8 bits above the next limb's begin, and 10 above 2¹³⁰.
        let above_0 = _mm512_add_epi64(_mm512_srli_epi64::<44>(low[0]), _mm512_slli_epi64::<8>(high[0]));
        let middle = _mm512_add_epi64(low[1], above_0);
        let above_1 = _mm512_add_epi64(_mm512_srli_epi64::<44>(middle), _mm512_slli_epi64::<8>(high[1]));
        let last = _mm512_add_epi64(low[2], above_1);
        let above_2 = _mm512_add_epi64(_mm512_srli_epi64::<42>(last), _mm512_slli_epi64::<10>(high[2]));
        let first = _mm512_add_epi64(_mm512_and_si512(low[0], limb), times_5(above_2));
        [
            _mm512_and_si512(first, limb),
            _mm512_add_epi64(_mm512_and_si512(middle, limb), _mm512_srli_epi64::<44>(first)),
            _mm512_and_si512(last, last_limb),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn times_5(value: __m512i) -> __m512i {
    _mm512_add_epi64(value, _mm512_slli_epi64::<2>(value))
}

/// The number below 2¹³⁰-5 that `sum` is, plus s, modulo 2¹²⁸ (§2.5.1), in two halves.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn finish(sum: Number, s_low: __m512i, s_high: __m512i) -> (__m512i, __m512i) {
    let (limb, last_limb) = (_mm512_set1_epi64(LIMB), _mm512_set1_epi64(LAST_LIMB));
    let [mut h0, mut h1, mut h2] = sum;
    // The first time brings all limbs below their bounds but for a carry, the second that one: if it goes all the way round, it finds
    // the first limb next to empty.
    for _ in 0..2 {
        h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
        h0 = _mm512_and_si512(h0, limb);
        h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
        h1 = _mm512_and_si512(h1, limb);
        h0 = _mm512_add_epi64(h0, times_5(_mm512_srli_epi64::<42>(h2)));
        h2 = _mm512_and_si512(h2, last_limb);
    }

    // h + 5 - 2¹³⁰ is not negative if h is 2¹³⁰-5 or more, and then it is what is wanted.
    let g0 = _mm512_add_epi64(h0, _mm512_set1_epi64(5));
    let g1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(g0));
    let g2 = _mm512_sub_epi64(_mm512_add_epi64(h2, _mm512_srli_epi64::<44>(g1)), _mm512_set1_epi64(1 << 42));
    let above = _mm512_cmpge_epi64_mask(g2, _mm512_setzero_si512());
    h0 = _mm512_mask_blend_epi64(above, h0, _mm512_and_si512(g0, limb));
    h1 = _mm512_mask_blend_epi64(above, h1, _mm512_and_si512(g1, limb));
    h2 = _mm512_mask_blend_epi64(above, h2, g2);

    let low = _mm512_or_si512(h0, _mm512_slli_epi64::<44>(h1));
    let high = _mm512_or_si512(_mm512_srli_epi64::<20>(h1), _mm512_slli_epi64::<24>(h2));
    let low = _mm512_add_epi64(low, s_low);
    let high = _mm512_add_epi64(high, s_high);
    let carry = _mm512_cmplt_epu64_mask(low, s_low);
    (low, _mm512_mask_add_epi64(high, carry, high, _mm512_set1_epi64(1)))
}
