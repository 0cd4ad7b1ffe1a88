//! Sixty-four bytes at once: how memory is read and written, and how rows become columns.
//!
//! All reading and writing of the kernel is here, from and to slices, so that nothing outside them can be touched.

use std::arch::x86_64::{
    __m512i, _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8,
    _mm512_maskz_permutexvar_epi64, _mm512_set_epi64, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shuffle_i64x2, _mm512_storeu_si512, _mm512_sub_epi64, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

/// Bytes in a vector.
pub(super) const WIDTH: usize = 64;

/// Reads 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn load(bytes: &[u8; WIDTH]) -> __m512i {
    // SAFETY: the reference is good for the 64 bytes that are read; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// Writes 64 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn store(bytes: &mut [u8; WIDTH], value: __m512i) {
    // SAFETY: the reference is good for the 64 bytes that are written; the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), value) }
}

/// Reads the first bytes of a vector, as many as there are up to 64; the others are zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn load_part(bytes: &[u8]) -> __m512i {
    if bytes.is_empty() {
        // Where nothing is read the address may be nobody's, which costs the CPU hundreds of cycles to overlook.
        return _mm512_setzero_si512();
    }
    // SAFETY: byte `i` is read only if bit `i` of the mask is set, so for `i < bytes.len()`. What the mask leaves out is not accessed
    // and cannot fault.
    unsafe { _mm512_maskz_loadu_epi8(first(bytes.len()), bytes.as_ptr().cast()) }
}

/// Moves the 64-bit words of a vector up by `places`, of which there are at most eight; zeros follow from below.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn move_up(value: __m512i, places: usize) -> __m512i {
    let from = _mm512_sub_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi64(places as i64));
    _mm512_maskz_permutexvar_epi64((0xff_u32 << places) as u8, from, value)
}

/// Writes the first bytes of `value`, as many as there is room for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn store_part(bytes: &mut [u8], value: __m512i) {
    if bytes.is_empty() {
        return;
    }
    // SAFETY: byte `i` is written only if bit `i` of the mask is set, so for `i < bytes.len()`. What the mask leaves out is not
    // accessed and cannot fault.
    unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), first(bytes.len()), value) }
}

/// Adds a vector to 64 bytes at `source`, and writes the sum to `target`.
///
/// # Safety
///
/// `source` must be good for reading 64 bytes, `target` for writing them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) unsafe fn xor(source: *const u8, value: __m512i, target: *mut u8) {
    // SAFETY: the caller promises that these bytes can be read; the instruction asks for no alignment.
    let input = unsafe { _mm512_loadu_si512(source.cast()) };
    let sum = _mm512_xor_si512(input, value);
    // SAFETY: the caller promises that these bytes can be written; the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(target.cast(), sum) }
}

/// Takes a vector apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn longs(value: __m512i) -> [u64; 8] {
    let mut longs = [0; 8];
    // SAFETY: the array is good for the 64 bytes that are written; the instruction asks for no alignment.
    unsafe { _mm512_storeu_si512(longs.as_mut_ptr().cast(), value) }
    longs
}

/// Puts a vector together from words of 64 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn from_longs(longs: &[isize; 8]) -> __m512i {
    // SAFETY: the array is good for the 64 bytes that are read; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(longs.as_ptr().cast()) }
}

/// Puts a vector together from words of 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn from_words(words: &[u32; 16]) -> __m512i {
    // SAFETY: the array is good for the 64 bytes that are read; the instruction asks for no alignment.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// A mask of the first `count` bytes; of all 64 if there are more.
#[inline(always)]
fn first(count: usize) -> u64 {
    if count >= WIDTH { u64::MAX } else { (1 << count) - 1 }
}

/// Secrets that are overwritten when they are no longer needed: key stream, one-time keys and what is made of them.
///
/// What the compiler keeps in registers, or copies to the stack to get registers free, is beyond its reach.
pub(super) struct Secret<T: Vectors>(pub(super) T);

impl<T: Vectors> Secret<T> {
    /// Overwrites it with zeros, which the compiler may not leave out.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
    pub(super) fn wipe(&mut self) {
        let zero = _mm512_setzero_si512();
        for value in self.0.vectors() {
            // SAFETY: a reference is good for a write of what it refers to, which has no destructor.
            unsafe { std::ptr::write_volatile(value, zero) }
        }
    }
}

/// What is made of vectors.
pub(super) trait Vectors {
    /// All of them.
    fn vectors(&mut self) -> &mut [__m512i];
}

impl<const LEN: usize> Vectors for [__m512i; LEN] {
    fn vectors(&mut self) -> &mut [__m512i] {
        self
    }
}

impl<const LEN: usize, const OF: usize> Vectors for [[__m512i; LEN]; OF] {
    fn vectors(&mut self) -> &mut [__m512i] {
        self.as_flattened_mut()
    }
}

/// Sixteen rows of sixteen 32-bit words, turned into columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn transpose_words(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut quads = [[_mm512_setzero_si512(); 4]; 4];
    for (quad, four) in quads.iter_mut().zip(rows.as_chunks::<4>().0) {
        let low = [_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpacklo_epi32(four[2], four[3])];
        let high = [_mm512_unpackhi_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[2], four[3])];
        *quad = [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ];
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let turned = transpose_quarters([quads[0][i], quads[1][i], quads[2][i], quads[3][i]]);
        for (j, column) in turned.into_iter().enumerate() {
            columns[4 * j + i] = column;
        }
    }
    columns
}

/// Eight rows of eight 64-bit words, turned into columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
pub(super) fn transpose_longs(rows: [__m512i; 8]) -> [__m512i; 8] {
    let [a, b, c, d, e, f, g, h] = rows;
    let even = transpose_quarters([
        _mm512_unpacklo_epi64(a, b),
        _mm512_unpacklo_epi64(c, d),
        _mm512_unpacklo_epi64(e, f),
        _mm512_unpacklo_epi64(g, h),
    ]);
    let odd = transpose_quarters([
        _mm512_unpackhi_epi64(a, b),
        _mm512_unpackhi_epi64(c, d),
        _mm512_unpackhi_epi64(e, f),
        _mm512_unpackhi_epi64(g, h),
    ]);
    [even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3]]
}

/// Four rows of four 128-bit quarters, turned into columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn transpose_quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let ab = [_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0xdd>(a, b)];
    let cd = [_mm512_shuffle_i64x2::<0x88>(c, d), _mm512_shuffle_i64x2::<0xdd>(c, d)];
    [
        _mm512_shuffle_i64x2::<0x88>(ab[0], cd[0]),
        _mm512_shuffle_i64x2::<0x88>(ab[1], cd[1]),
        _mm512_shuffle_i64x2::<0xdd>(ab[0], cd[0]),
        _mm512_shuffle_i64x2::<0xdd>(ab[1], cd[1]),
    ]
}
