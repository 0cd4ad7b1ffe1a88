//! What becomes of datagrams on their way.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What happens to datagrams.
#[derive(Clone, Debug)]
pub struct Weather {
    /// The share of datagrams that never arrive, 0 to 1.
    pub loss: f64,
    /// The share of datagrams that arrive twice, 0 to 1.
    pub duplication: f64,
    /// How long one is under way; a wide range reorders them.
    pub delay: RangeInclusive<Duration>,
}

impl Weather {
    /// Nothing is lost, and everything takes 10 ms.
    #[must_use]
    pub const fn fine() -> Self {
        Self::delayed(10, 10)
    }

    /// Nothing is lost, and everything takes from `least` to `most` milliseconds.
    #[must_use]
    pub const fn delayed(least: u64, most: u64) -> Self {
        let delay = Duration::from_millis(least)..=Duration::from_millis(most);
        Self { loss: 0.0, duplication: 0.0, delay }
    }

    /// A fifth is lost, a twentieth comes twice, and anything may overtake anything.
    #[must_use]
    pub const fn foul() -> Self {
        Self { loss: 0.2, duplication: 0.05, ..Self::delayed(1, 120) }
    }
}
