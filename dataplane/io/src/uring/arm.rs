//! Whether a lasting operation (multishot receive and read, the waker's read) is with the kernel, and when to start it
//! again after the kernel ended it.
//!
//! The endings that are part of normal life are followed by a start at once, errors by a [`Pause`].

use std::time::Instant;

use crate::pause::Pause;

/// The state of one lasting operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arm {
    armed: bool,
    pause: Pause,
}

impl Arm {
    /// Whether the operation is with the kernel.
    pub(super) fn is_armed(&self) -> bool {
        self.armed
    }

    /// Whether the operation should be started at `now`.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.armed && self.pause.is_over(now)
    }

    /// When a pause ends that the worker must not sleep through.
    pub(super) fn due_at(&self) -> Option<Instant> {
        if self.armed { None } else { self.pause.until() }
    }

    /// The operation was handed to the kernel.
    pub(super) fn start(&mut self) {
        self.armed = true;
        self.pause.end();
    }

    /// The operation brought something.
    pub(super) fn succeed(&mut self) {
        self.pause.succeed();
    }

    /// The kernel ended the operation as it does in normal life: every buffer was in use, or an empty datagram came.
    pub(super) fn end(&mut self) {
        self.armed = false;
    }

    /// The kernel ended the operation with an error.
    pub(super) fn fail(&mut self, now: Instant) {
        self.armed = false;
        self.pause.fail(now);
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
            assert!(!arm.is_due(now) && arm.due_at().is_none());
            arm.end();
        }
    }

    #[test]
    fn errors_in_a_row_are_remembered_across_starts() {
        let now = Instant::now();
        let mut arm = Arm::default();
        for _ in 0..2 {
            assert!(arm.is_due(now));
            arm.start();
            arm.fail(now);
        }
        assert!(!arm.is_due(now));
        assert!(arm.is_due(arm.due_at().unwrap()));
    }
}
