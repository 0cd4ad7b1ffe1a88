//! Runs a scenario over many seeds, and names those that fail.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Set to a seed, it is the only one that runs: to look at a failure again.
pub const SEED_VARIABLE: &str = "RINGMESH_SIM_SEED";

/// Runs `scenario` for each seed, or only for the one in `RINGMESH_SIM_SEED`.
///
/// # Panics
///
/// At the end, if any seed failed, with the list of those that did.
pub fn check(seeds: Range<u64>, scenario: impl Fn(u64)) {
    let only = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    let failed = match only {
        Some(seed) => failures(seed..seed + 1, scenario),
        None => failures(seeds, scenario),
    };
    assert!(failed.is_empty(), "these seeds failed: {failed:?}; run one with {SEED_VARIABLE}={}", failed[0]);
}

/// The seeds for which `scenario` panics.
pub fn failures(seeds: Range<u64>, scenario: impl Fn(u64)) -> Vec<u64> {
    seeds.filter(|&seed| catch_unwind(AssertUnwindSafe(|| scenario(seed))).is_err()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_seeds_are_named() {
        let failed = failures(0..10, |seed| assert!(seed % 4 != 3, "this is a failure on purpose"));
        assert_eq!(failed, [3, 7]);
    }

    #[test]
    #[should_panic(expected = "these seeds failed: [2]; run one with RINGMESH_SIM_SEED=2")]
    fn check_ends_with_the_list() {
        check(0..5, |seed| assert!(seed != 2, "this is a failure on purpose"));
    }
}
