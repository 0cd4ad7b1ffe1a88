//! The dice of the virtual internet: small, fast, and the same on every machine.

use std::ops::RangeInclusive;
use std::time::Duration;

/// xoshiro256++ (Blackman and Vigna), seeded by SplitMix64. For dice, never for keys.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// Equal seeds roll equal dice; neighbouring ones have nothing in common.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`, which must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of a product is uniform up to 2^-64 * bound, far below what a test could see.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits: as many as an f64 has.
        ((self.bits() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// A duration in the range, to the microsecond.
    pub fn duration(&mut self, range: &RangeInclusive<Duration>) -> Duration {
        let (least, most) = (range.start().as_micros() as u64, range.end().as_micros() as u64);
        Duration::from_micros(least + self.below(most.saturating_sub(least) + 1))
    }

    /// One of `choices`, which must not be empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_roll_equal_dice_and_neighbours_do_not() {
        let rolls = |seed| {
            let mut rng = Rng::new(seed);
            (0..8).map(|_| rng.bits()).collect::<Vec<_>>()
        };
        assert_eq!(rolls(1), rolls(1));
        assert!(rolls(1).iter().all(|roll| !rolls(2).contains(roll)));
    }

    #[test]
    fn dice_are_fair_enough() {
        let mut rng = Rng::new(3);
        let mut counts = [0; 6];
        (0..60_000).for_each(|_| counts[rng.below(6) as usize] += 1);
        assert!(counts.iter().all(|count| (9_700..10_300).contains(count)), "{counts:?}");
        let heads = (0..100_000).filter(|_| rng.chance(0.2)).count();
        assert!((19_500..20_500).contains(&heads), "{heads}");
        assert!(!(0..1000).any(|_| rng.chance(0.0)));
        assert!((0..1000).all(|_| rng.chance(1.0)));
    }

    #[test]
    fn durations_stay_in_their_range() {
        let mut rng = Rng::new(4);
        let range = Duration::from_millis(5)..=Duration::from_millis(6);
        assert!((0..1000).all(|_| range.contains(&rng.duration(&range))));
        let only = Duration::from_secs(1)..=Duration::from_secs(1);
        assert_eq!(rng.duration(&only), Duration::from_secs(1));
    }
}
