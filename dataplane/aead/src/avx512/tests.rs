//! Poly1305 in lanes, for keys and texts that no packet will ever have: those at the edges of its arithmetic.

use super::*;
use crate::plain;
use poly::{LANES, Tag};

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize * bound) >> 31
    }

    /// Bytes of one kind: none set, all set, at the edge of the prime, or anything.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        match self.below(6) {
            0 => vec![0; len],
            1 | 2 => vec![0xff; len],
            3 => (0..len).map(|index| if index % 16 == 0 { 0xfb } else { 0xff }).collect(),
            4 => (0..len).map(|_| if self.below(2) == 0 { 0 } else { 0xff }).collect(),
            _ => (0..len).map(|_| self.below(256) as u8).collect(),
        }
    }
}

/// What the tag of a text with a key is made of, as it stands in RFC 8439 §2.8.
fn expected(key: &[u8; 32], text: &[u8]) -> [u8; 16] {
    let mut message = text.to_vec();
    message.resize(text.len().next_multiple_of(16), 0);
    message.extend_from_slice(&0_u64.to_le_bytes());
    message.extend_from_slice(&(text.len() as u64).to_le_bytes());
    plain::poly1305(key, &message)
}

fn check(random: &mut Random, rounds: usize, longest: usize) {
    assert!(is_here(), "only where there is AVX-512");
    for _ in 0..rounds {
        let count = 1 + random.below(2 * LANES);
        let same = random.below(2) == 0;
        let len = random.below(longest + 1);
        let texts: Vec<_> = (0..count)
            .map(|_| {
                let len = if same { len } else { random.below(longest + 1) };
                random.bytes(len)
            })
            .collect();
        let keys: Vec<[u8; 32]> =
            (0..count).map(|_| [random.bytes(16), random.bytes(16)].concat().try_into().unwrap()).collect();
        let mut tags = vec![Tag::default(); count];
        // SAFETY: it was asked for above.
        unsafe { tags_of(&texts, &keys, &mut tags) }
        for ((text, key), tag) in texts.iter().zip(&keys).zip(tags) {
            let made = (u128::from(tag.0) | u128::from(tag.1) << 64).to_le_bytes();
            assert_eq!(made, expected(key, text), "{count} texts, {} bytes, key {key:02x?}", text.len());
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512ifma")]
fn tags_of(texts: &[Vec<u8>], keys: &[[u8; 32]], tags: &mut [Tag]) {
    let texts: Vec<_> = texts.iter().map(Vec::as_slice).collect();
    let mut rows = Vec::new();
    for key in keys {
        rows.push(vector::load_part(key));
    }
    poly::tags(&texts, &rows, tags);
}

#[test]
fn tags_are_right_at_the_edges_of_the_arithmetic() {
    if is_here() {
        check(&mut Random(1), 2_000, 200);
        check(&mut Random(2), 100, 3_000);
    }
}

/// By hand: some hundred thousand tags.
#[test]
#[ignore = "takes minutes; the same with fewer rounds is in every run of the tests"]
fn hundreds_of_thousands_of_tags_are_right() {
    if is_here() {
        check(&mut Random(3), 40_000, 300);
    }
}
