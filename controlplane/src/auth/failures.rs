//! Counts failed proofs, so that guessing is slow for one source and for all together.
//!
//! Only what is not proved counts: a used token that is signed for correctly is no guess. A source that is barred is not told
//! any more what was wrong with its proof; one that holds is let in all the same, so that no flood of guesses keeps honest
//! machines out, not even those behind the same address.

use std::{collections::HashMap, time::Duration};

use ringmesh_tunnel::UnixTime;

use crate::server::Source;

/// Failures of one source in a window before it has to wait.
pub(crate) const MAX_OF_SOURCE: u32 = 10;
/// Failures of all sources in a window before every source that failed has to wait.
pub(crate) const MAX_OF_ALL: u32 = 300;
/// How long failures count.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// The most sources that are counted at a time.
pub(crate) const MAX_SOURCES: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Window {
    start: UnixTime,
    count: u32,
}

impl Window {
    const fn starting(now: UnixTime) -> Self {
        Self { start: now, count: 0 }
    }

    /// A window that lies ahead is as over as one that is past: the clock was set back.
    fn is_over(&self, now: UnixTime) -> bool {
        self.start > now || now.saturating_since(self.start) >= WINDOW
    }
}

/// The failed proofs of the last minute.
#[derive(Debug)]
pub(crate) struct Failures {
    sources: HashMap<Source, Window>,
    all: Window,
}

impl Default for Failures {
    fn default() -> Self {
        Self { sources: HashMap::new(), all: Window::starting(UnixTime::EPOCH) }
    }
}

impl Failures {
    /// Whether `source` has to wait.
    pub(crate) fn is_barred(&self, source: Source, now: UnixTime) -> bool {
        let Some(window) = self.sources.get(&source).filter(|window| !window.is_over(now)) else {
            return false;
        };
        window.count >= MAX_OF_SOURCE || (!self.all.is_over(now) && self.all.count >= MAX_OF_ALL)
    }

    /// Counts a failure of `source`.
    pub(crate) fn count(&mut self, source: Source, now: UnixTime) {
        if self.all.is_over(now) {
            self.all = Window::starting(now);
        }
        self.all.count = self.all.count.saturating_add(1);
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            self.make_room(now);
        }
        let window = self.sources.entry(source).or_insert_with(|| Window::starting(now));
        if window.is_over(now) {
            *window = Window::starting(now);
        }
        window.count = window.count.saturating_add(1);
    }

    /// Drops what is over, or else the source that has the least to answer for.
    fn make_room(&mut self, now: UnixTime) {
        self.sources.retain(|_, window| !window.is_over(now));
        if self.sources.len() >= MAX_SOURCES {
            let least = self.sources.iter().min_by_key(|(_, window)| (window.count, window.start));
            if let Some(source) = least.map(|(source, _)| *source) {
                self.sources.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn source(number: u32) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::from_bits(number)))
    }

    const START: UnixTime = UnixTime::from_secs(1_000);

    #[test]
    fn a_source_is_barred_after_ten_failures_for_the_rest_of_a_minute() {
        let mut failures = Failures::default();
        for _ in 0..MAX_OF_SOURCE {
            assert!(!failures.is_barred(source(1), START));
            failures.count(source(1), START);
        }
        assert!(failures.is_barred(source(1), START));
        assert!(!failures.is_barred(source(2), START));
        let later = START.saturating_add(WINDOW);
        assert!(failures.is_barred(source(1), later.saturating_sub(Duration::from_millis(1))));
        assert!(!failures.is_barred(source(1), later));
        failures.count(source(1), later);
        assert!(!failures.is_barred(source(1), later));
    }

    #[test]
    fn a_distributed_guess_bars_those_who_guessed_and_nobody_else() {
        let mut failures = Failures::default();
        for number in 0..MAX_OF_ALL {
            failures.count(source(number), START);
        }
        assert!(failures.is_barred(source(0), START));
        assert!(failures.is_barred(source(MAX_OF_ALL - 1), START));
        assert!(!failures.is_barred(source(MAX_OF_ALL), START));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_worst() {
        let mut failures = Failures::default();
        for _ in 0..MAX_OF_SOURCE {
            failures.count(source(0), START);
        }
        for number in 1..=2 * MAX_SOURCES as u32 {
            failures.count(source(number), START);
        }
        assert_eq!(failures.sources.len(), MAX_SOURCES);
        assert!(failures.is_barred(source(0), START));
    }

    #[test]
    fn a_clock_set_back_bars_nobody_for_long() {
        let mut failures = Failures::default();
        for _ in 0..MAX_OF_SOURCE {
            failures.count(source(1), UnixTime::from_secs(9_000));
        }
        assert!(!failures.is_barred(source(1), START));
    }
}
