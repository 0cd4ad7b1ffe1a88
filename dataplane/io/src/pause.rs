//! How long to leave a file alone after errors.
//!
//! What failed and is tried again at once fails again at once: a loop that does so spins. The first error is most likely
//! an ICMP message's, which is gone once it was told, and costs nothing; those that follow cost a growing pause.

use std::time::{Duration, Instant};

/// The pause after the second error in a row; it doubles from there.
const FIRST: Duration = Duration::from_millis(1);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// The errors in a row of one file, and the pause they earned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pause {
    failures: u32,
    until: Option<Instant>,
}

impl Pause {
    /// Whether the file may be used at `now`.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// When the pause ends, if there is one: the worker must not sleep through it.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// The file is used again; past errors are remembered.
    pub(crate) fn end(&mut self) {
        self.until = None;
    }

    /// Something arrived: past errors are forgiven.
    pub(crate) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// The file had an error.
    pub(crate) fn fail(&mut self, now: Instant) {
        let length = match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST.saturating_mul(1 << doublings.min(16)).min(LONGEST),
        };
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_errors_pause_longer_and_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let mut pause = Pause::default();
        let mut lengths = Vec::new();
        for _ in 0..40 {
            assert!(pause.is_over(now));
            pause.end();
            pause.fail(now);
            let until = pause.until().unwrap();
            assert!(until == now || !pause.is_over(now));
            lengths.push(until - now);
            now = until;
        }
        assert_eq!(lengths[..4], [0, 1, 2, 4].map(Duration::from_millis));
        assert!(lengths.is_sorted());
        assert_eq!(*lengths.last().unwrap(), LONGEST);
    }

    #[test]
    fn success_forgives_past_errors() {
        let now = Instant::now();
        let mut pause = Pause::default();
        pause.fail(now);
        pause.fail(now);
        assert!(!pause.is_over(now));
        pause.succeed();
        pause.fail(now);
        assert!(pause.is_over(now));
    }
}
