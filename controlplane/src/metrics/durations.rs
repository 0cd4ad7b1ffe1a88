//! How long things took, as a histogram in plain words.

use std::time::Duration;

/// Upper bounds of the buckets, in seconds: from a commit on a fast disk to a node that hardly answers.
const BOUNDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// How many took how long.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Durations {
    /// By bucket; the last is for what took longer than all bounds.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Durations {
    /// Adds one.
    pub(crate) fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[bucket] += 1;
        self.sum += seconds;
    }

    /// Their sum in seconds.
    pub(crate) const fn sum(&self) -> f64 {
        self.sum
    }

    /// For each bound, how many are not above it and above the one before; the last bound is infinity.
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        BOUNDS.into_iter().chain([f64::INFINITY]).zip(self.counts).collect()
    }

    /// How many there were.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_below_it() {
        let mut durations = Durations::default();
        for ms in [0, 1, 2, 60_000, 60_001] {
            durations.add(Duration::from_millis(ms));
        }
        let filled: Vec<(f64, u64)> =
            durations.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.0005, 1), (0.001, 1), (0.0025, 1), (60.0, 1), (f64::INFINITY, 1)]);
        assert_eq!(durations.count(), 5);
        assert!((durations.sum() - 120.004).abs() < 1e-9);
    }
}
