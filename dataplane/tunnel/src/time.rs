//! Time as the core sees it: always an argument, never a clock.
//!
//! Timers run on the monotonic clock; only handshake timestamps and the expiry of signed records need the wall clock,
//! which may jump. Both are read once per turn and travel together as [`Now`].

use std::fmt;
use std::time::{Duration, Instant};

/// A wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(u64);

impl UnixTime {
    /// The start of 1970; also "never", where a serial or time is absent.
    pub const EPOCH: Self = Self(0);

    /// Takes milliseconds since 1970.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Takes whole seconds since 1970; saturates.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// This time plus a duration, in whole milliseconds; saturates.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This time minus a duration, in whole milliseconds; stops at 1970.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The time that passed since `earlier`; zero if `earlier` lies ahead.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnixTime({}.{:03})", self.0 / 1000, self.0 % 1000)
    }
}

/// Both clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// What timers run on: never goes backwards.
    pub monotonic: Instant,
    /// What handshake timestamps and expiry dates are measured by: may jump.
    pub wall: UnixTime,
}

impl Now {
    /// Joins two readings of one moment.
    #[must_use]
    pub const fn new(monotonic: Instant, wall: UnixTime) -> Self {
        Self { monotonic, wall }
    }

    /// The moment `duration` later, on both clocks.
    #[must_use]
    pub fn later(self, duration: Duration) -> Self {
        Self { monotonic: self.monotonic + duration, wall: self.wall.saturating_add(duration) }
    }
}

/// Some instant for tests to count from; none can be made up.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the only way to get an instant; tests then count from it")]
pub(crate) fn test_epoch() -> Instant {
    Instant::now()
}
