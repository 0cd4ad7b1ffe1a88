//! The machine's clocks, read here and nowhere else in the daemon's asynchronous half.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringmesh_tunnel::time::UnixTime;
use rustix::time::ClockId;

/// Wall time. Before 1970 counts as 1970.
pub(crate) fn wall() -> UnixTime {
    from_system(SystemTime::now())
}

/// The core's form of a wall time.
pub(crate) fn from_system(time: SystemTime) -> UnixTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Both clocks that a time to live is measured by, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// What people and files know; somebody may set it.
    pub(crate) wall: UnixTime,
    /// Time since the machine started, its sleep included; nobody sets it.
    pub(crate) boot: Duration,
}

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        Self { wall: wall(), boot: read(ClockId::Boottime) }
    }
}

/// Notices that the machine slept: the boot clock went on while the monotonic one stood still.
#[derive(Debug, Default)]
pub(crate) struct SleepWatch {
    /// The boot clock's lead over the monotonic clock.
    lead: Option<Duration>,
}

/// Leads that differ by less are rounding.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

impl SleepWatch {
    /// Reads both clocks; tells how long the machine slept since the last call.
    pub(crate) fn slept(&mut self) -> Option<Duration> {
        self.compare(read(ClockId::Boottime), read(ClockId::Monotonic))
    }

    fn compare(&mut self, boot: Duration, monotonic: Duration) -> Option<Duration> {
        let lead = boot.saturating_sub(monotonic);
        let before = self.lead.replace(lead)?;
        lead.checked_sub(before).filter(|slept| *slept >= SHORTEST_SLEEP)
    }
}

fn read(clock: ClockId) -> Duration {
    Duration::try_from(rustix::time::clock_gettime(clock)).unwrap_or_default()
}

/// A wall time for people, in UTC (RFC 3339).
pub(crate) fn format(time: UnixTime) -> String {
    let seconds = time.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month and day of a day since 1970, by counting years from March on, so that a leap day is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    let since = days + 719_468;
    let (era, day) = (since / 146_097, since % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_noticed_once_and_waking_hours_are_none() {
        let mut watch = SleepWatch::default();
        let secs = Duration::from_secs;
        assert_eq!(watch.compare(secs(100), secs(90)), None, "what was before the start does not count");
        assert_eq!(watch.compare(secs(200), secs(190)), None);
        assert_eq!(watch.compare(secs(3800), secs(195)), Some(secs(3595)));
        assert_eq!(watch.compare(secs(3801), secs(196)), None);
        assert!(SleepWatch::default().slept().is_none());
    }

    #[test]
    fn times_are_written_by_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_102_444_800, "2100-01-01 00:00:00 UTC"),
        ] {
            assert_eq!(format(UnixTime::from_secs(seconds)), text);
        }
    }
}
