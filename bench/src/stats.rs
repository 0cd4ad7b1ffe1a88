//! The few statistics a comparison rests on: medians, ranges and percentiles. No means: one disturbed sample must not
//! move a result.

use serde::Serialize;

/// What repetitions of one measurement say together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// The middle sample, or halfway between the two middle ones.
    pub(crate) median: f64,
    /// The smallest sample.
    pub(crate) min: f64,
    /// The largest sample.
    pub(crate) max: f64,
}

impl Summary {
    /// Summarises samples, or nothing if there are none.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[upper]
        } else {
            f64::midpoint(sorted[upper - 1], sorted[upper])
        };
        Some(Self { median, min, max })
    }
}

/// Returns the sample below or at which `percent` of all samples lie (nearest rank), or nothing if there are none.
pub(crate) fn percentile(samples: &[f64], percent: usize) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_odd_number_is_the_middle_sample() {
        let summary = Summary::of(&[9.0, 1.0, 4.0]).unwrap();
        assert_eq!(summary, Summary { median: 4.0, min: 1.0, max: 9.0 });
    }

    #[test]
    fn median_of_an_even_number_lies_between_the_middle_samples() {
        assert_eq!(Summary::of(&[8.0, 2.0, 4.0, 100.0]).unwrap().median, 6.0);
    }

    #[test]
    fn nothing_has_no_summary_and_no_percentile() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn percentiles_are_samples_at_their_nearest_rank() {
        let samples: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        assert_eq!(percentile(&samples, 50), Some(500.0));
        assert_eq!(percentile(&samples, 99), Some(990.0));
        assert_eq!(percentile(&[7.0], 99), Some(7.0));
    }
}
