//! Runs a scenario over many seeds, and names those that fail.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// Runs `scenario` for each seed on as many threads as there are processors, or only for the one in `RINGMESH_SIM_SEED`.
///
/// # Errors
///
/// With all that came of the seeds that failed, lowest first.
pub fn check_at_once<T: Send, E: Send>(
    seeds: Range<u64>,
    scenario: impl Fn(u64) -> Result<T, E> + Sync,
) -> Result<Vec<T>, Vec<E>> {
    let only = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(seeds, |seed: u64| seed..seed + 1);
    let next = AtomicU64::new(seeds.start);
    let outcomes = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&seed| seed < seeds.end)
                {
                    let outcome = scenario(seed);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((seed, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|(seed, _)| *seed);
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for (_, outcome) in outcomes {
        match outcome {
            Ok(outcome) => good.push(outcome),
            Err(outcome) => bad.push(outcome),
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
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
    fn seeds_at_once_come_back_in_order() {
        let even = |seed: u64| if seed % 4 == 3 { Err(seed) } else { Ok(seed) };
        assert_eq!(check_at_once(0..3, even), Ok(vec![0, 1, 2]));
        assert_eq!(check_at_once(0..100, even).unwrap_err(), (0..25).map(|n| 4 * n + 3).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "these seeds failed: [2]; run one with RINGMESH_SIM_SEED=2")]
    fn check_ends_with_the_list() {
        check(0..5, |seed| assert!(seed != 2, "this is a failure on purpose"));
    }
}
