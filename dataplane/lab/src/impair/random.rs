//! Chance that can be had again: SplitMix64 (Steele, Lea, Flood 2014), which is enough to decide what a road does.

/// A seeded source of numbers.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number from 0 up to but not including 1.
    pub(super) fn fraction(&mut self) -> f64 {
        // As many bits as an `f64` holds exactly.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
