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

use super::vector::{Secret, WIDTH, from_longs, load, load_behind, longs, transpose_longs};

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
type Factors = Secret<25>;

/// A tag in two halves, little endian.
#[derive(Clone, Copy, Default)]
pub(super) struct Tag(pub(super) u64, pub(super) u64);

/// Makes the tags of at most eight texts, with no data but the text (§2.8). The first 32 bytes of a row are a one-time key.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn tags(texts: &[&[u8]], keys: &[__m512i], tags: &mut [Tag]) {
    let groups = texts.iter().map(|text| padded_len(text).div_ceil(WIDTH)).max().unwrap_or(1);
    let share = (LANES / texts.len()).min(groups.next_power_of_two());
    let mut rows = [_mm512_setzero_si512(); LANES];
    let mut lanes = Lanes { texts: [&[]; LANES], at: [0; LANES], share, steps: groups.div_ceil(share) };
    for (lane, row) in rows.iter_mut().enumerate() {
        // Lanes that are left over do again what others do.
        let text = lane / share % texts.len();
        *row = keys[text];
        lanes.texts[lane] = texts[text];
        lanes.at[lane] = lanes.begin(padded_len(texts[text]), lane % share);
    }
    let [r_low, r_high, s_low, s_high, ..] = transpose_longs(rows);
    let r = limbs(
        _mm512_and_si512(r_low, _mm512_set1_epi64(0x0fff_fffc_0fff_ffff)),
        _mm512_and_si512(r_high, _mm512_set1_epi64(0x0fff_fffc_0fff_fffc)),
    );

    let (mut factors, mut fold) = factors(r, share);
    let sum = if share == 1 {
        add_up::<true>(&lanes, &factors)
    } else {
        fold_shares(add_up::<false>(&lanes, &factors), &fold.0, share)
    };
    factors.wipe();
    fold.wipe();
    let (low, high) = finish(sum, s_low, s_high);
    for (tag, lane) in tags.iter_mut().zip((0..).step_by(share)) {
        *tag = Tag(longs(low)[lane], longs(high)[lane]);
    }
}

/// Length of what the tag is made of: the text, padded to a block, and a block with its length.
fn padded_len(text: &[u8]) -> usize {
    text.len().next_multiple_of(BLOCK_LEN) + BLOCK_LEN
}

/// What lies in the lanes: the texts, and where in each its first group begins, which may be before its beginning.
struct Lanes<'a> {
    texts: [&'a [u8]; LANES],
    at: [isize; LANES],
    /// How many lanes a text has. In each step it is that many groups further.
    share: usize,
    steps: usize,
}

impl<'a> Lanes<'a> {
    /// Where the `place`-th lane of a text begins, so that the last lane ends with it.
    fn begin(&self, padded_len: usize, place: usize) -> isize {
        padded_len.cast_signed() - ((self.share * self.steps - place) * WIDTH).cast_signed()
    }

    /// Where each lane is in a step.
    fn at(&self, step: usize) -> [isize; LANES] {
        self.at.map(|at| at + (step * self.share * WIDTH).cast_signed())
    }

    /// The steps in which each lane has a group that is all text: all but the last and, mostly, the first.
    fn whole(&self) -> Range<usize> {
        let before = self.at.iter().min().map_or(0, |at| (-at).max(0).cast_unsigned());
        let first = before.div_ceil(self.share * WIDTH);
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

/// The sum of each lane. If each is `ALONE` with its text, its sum is complete.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add_up<const ALONE: bool>(lanes: &Lanes<'_>, factors: &Factors) -> Number {
    let mut sum = Product::new();
    let whole = lanes.whole();
    for step in 0..whole.start {
        sum = add_edge::<ALONE>(sum, lanes, step, factors);
    }
    let groups = lanes.groups(whole.start);
    for place in (0..whole.len()).map(|step| step * lanes.share) {
        let mut rows = [_mm512_setzero_si512(); LANES];
        for (row, groups) in rows.iter_mut().zip(&groups) {
            *row = load(&groups[place]);
        }
        sum = add_groups::<ALONE>(sum, rows, [_mm512_set1_epi64(TOP); BLOCKS], factors);
    }
    for step in whole.end..lanes.steps {
        sum = add_edge::<ALONE>(sum, lanes, step, factors);
    }
    sum.carried()
}

/// Adds groups of which some begin before their text, or end with it: zeros, text, zeros, and the length if it is the last.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn add_edge<const ALONE: bool>(sum: Product, lanes: &Lanes<'_>, step: usize, factors: &Factors) -> Product {
    let at = lanes.at(step);
    let mut rows = [_mm512_setzero_si512(); LANES];
    for ((row, text), at) in rows.iter_mut().zip(lanes.texts).zip(at) {
        let end = at + WIDTH.cast_signed();
        if end <= 0 {
            continue;
        }
        let end = end.cast_unsigned();
        let part = text.get(at.max(0).cast_unsigned()..end.min(text.len())).unwrap_or_default();
        *row = load_behind(part, (-at).max(0).cast_unsigned());
        // Only the last group reaches beyond the text, behind which are at most 31 bytes.
        if end > text.len() {
            *row = _mm512_mask_set1_epi64(*row, 0x80, text.len() as i64);
        }
    }
    // The bit above a block's 128 (§2.5.1), where there is a block.
    let at = from_longs(&at);
    let mut tops = [_mm512_setzero_si512(); BLOCKS];
    for (block, top) in tops.iter_mut().enumerate() {
        let begins = _mm512_set1_epi64(-((block * BLOCK_LEN) as i64));
        *top = _mm512_maskz_set1_epi64(_mm512_cmpge_epi64_mask(at, begins), TOP);
    }
    add_groups::<ALONE>(sum, rows, tops, factors)
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
    let factors = factors.0.as_chunks::<5>().0;
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
fn factors(r: Number, share: usize) -> (Factors, Secret<5>) {
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

    let mut factors = Factors::new();
    for (place, factor) in
        factors.0.as_chunks_mut::<5>().0.iter_mut().zip([fourth, third, second, first, between])
    {
        *place = factor;
    }
    (factors, Secret(factor(fold)))
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
    let times_20 = |limb| _mm512_add_epi64(_mm512_slli_epi64::<4>(limb), _mm512_slli_epi64::<2>(limb));
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
    // The first time brings all limbs below their bounds but for a carry; the second, that one.
    for _ in 0..2 {
        h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
        h0 = _mm512_and_si512(h0, limb);
        h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
        h1 = _mm512_and_si512(h1, limb);
        h0 = _mm512_add_epi64(h0, times_5(_mm512_srli_epi64::<42>(h2)));
        h2 = _mm512_and_si512(h2, last_limb);
    }
    h1 = _mm512_add_epi64(h1, _mm512_srli_epi64::<44>(h0));
    h0 = _mm512_and_si512(h0, limb);
    h2 = _mm512_add_epi64(h2, _mm512_srli_epi64::<44>(h1));
    h1 = _mm512_and_si512(h1, limb);

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
