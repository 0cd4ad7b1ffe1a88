//! Whether a lasting operation (multishot receive and read, the waker's read) is with the kernel, and when to start it
//! again after the kernel ended it.
//!
//! An operation that failed and is started again at once fails again at once: a loop that does so spins. So only the
//! endings that are part of normal life are free, errors cost a growing pause.

use std::time::{Duration, Instant};

/// The pause after the second error in a row; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The state of one lasting operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arm {
    armed: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl Arm {
    /// Whether the operation is with the kernel.
    pub(super) fn is_armed(&self) -> bool {
        self.armed
    }

    /// Whether the operation should be started at `now`.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.armed && self.not_before.is_none_or(|then| now >= then)
    }

    /// When a pause ends that the worker must not sleep through.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.armed { None } else { self.not_before }
    }

    /// The operation was handed to the kernel.
    pub(super) fn start(&mut self) {
        self.armed = true;
        self.not_before = None;
    }

    /// The operation brought something.
    pub(super) fn succeed(&mut self) {
        self.failures = 0;
    }

    /// The kernel ended the operation as it does in normal life: every buffer was in use, or an empty datagram came.
    pub(super) fn end(&mut self) {
        self.armed = false;
    }

    /// The kernel ended the operation with an error.
    pub(super) fn fail(&mut self, now: Instant) {
        self.armed = false;
        // The first error is most likely an ICMP message's, which is gone once it was told.
        let pause = match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_endings_cost_nothing() {
        let now = Instant::now();
        let mut arm = Arm::default();
        for _ in 0..1000 {
            assert!(arm.is_due(now));
            arm.start();
            assert!(!arm.is_due(now));
            arm.end();
        }
    }

    #[test]
    fn repeated_errors_pause_longer_and_longer_up_to_a_bound() {
        let mut now = Instant::now();
        let mut arm = Arm::default();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            arm.start();
            arm.fail(now);
            let due = arm.due_at().unwrap();
            assert!(arm.is_due(due));
            assert!(due == now || !arm.is_due(now));
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(pauses[..4], [0, 1, 2, 4].map(Duration::from_millis));
        assert!(pauses.is_sorted());
        assert_eq!(*pauses.last().unwrap(), LONGEST_PAUSE);
    }

    #[test]
    fn success_forgives_past_errors() {
        let now = Instant::now();
        let mut arm = Arm::default();
        arm.fail(now);
        arm.fail(now);
        arm.succeed();
        arm.fail(now);
        assert!(arm.is_due(now));
    }
}
