//! How long to wait before the next attempt, so that a thousand nodes do not come back as one.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait.
const LAST: Duration = Duration::from_secs(30);
/// The longest wait while it is not long that the stream was lost: a revocation must not wait for us.
const LAST_AT_FIRST: Duration = Duration::from_secs(5);
/// For how long after a loss [`LAST_AT_FIRST`] holds.
const AT_FIRST: Duration = Duration::from_secs(120);

/// Exponential back-off with full jitter above half: the n-th wait is between half and all of `min(30 s, 0.2 s * 2^n)`, and
/// of 5 s at most in the first two minutes.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Begins anew after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after one more failure, `since_loss` after the last stream was lost. `random` is uniform over all `u32`.
    pub(crate) fn next(&mut self, random: u32, since_loss: Duration) -> Duration {
        let last = if since_loss < AT_FIRST { LAST_AT_FIRST } else { LAST };
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(16)).min(last);
        self.failures = self.failures.saturating_add(1);
        let half = ceiling / 2;
        (half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))).max(FIRST / 2).min(LAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_anew_after_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.next(u32::MAX, AT_FIRST)).collect();
        assert_eq!(waits[0], FIRST);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[11], LAST);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX, AT_FIRST), FIRST);
    }

    #[test]
    fn soon_after_a_loss_no_wait_is_longer_than_five_seconds() {
        let mut backoff = Backoff { failures: 40 };
        let high = backoff.next(u32::MAX, AT_FIRST - Duration::from_millis(1));
        let low = backoff.next(0, Duration::ZERO);
        assert_eq!((low, high), (LAST_AT_FIRST / 2, LAST_AT_FIRST), "with jitter");
        assert_eq!(backoff.next(u32::MAX, AT_FIRST), LAST);
    }

    #[test]
    fn jitter_spreads_over_the_upper_half() {
        for failures in [0, 3, 40] {
            let low = Backoff { failures }.next(0, AT_FIRST);
            let high = Backoff { failures }.next(u32::MAX, AT_FIRST);
            assert_eq!(low * 2, high);
        }
    }
}
