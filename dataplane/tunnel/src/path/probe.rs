//! Whether a path answers: the probes sent by it, and what became of them.

use std::time::{Duration, Instant};

/// Probes whose answers are awaited; the oldest is forgotten for the next.
const MAX_OUTSTANDING: usize = 8;
/// How long an answer may take before anything is known of the path.
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const MIN_TIMEOUT: Duration = Duration::from_millis(300);
const MAX_TIMEOUT: Duration = Duration::from_secs(3);
/// What is granted on top of the round trip and its variation, for a machine that is busy.
const LENIENCE: Duration = Duration::from_millis(100);
/// An answer that comes later than this is worth nothing, not even as a measure.
const FORGET_AFTER: Duration = Duration::from_secs(8);
/// Probes that the loss is reckoned from.
const HISTORY: u32 = 16;

#[derive(Clone, Copy, Debug)]
struct Probe {
    token: u64,
    sent: Instant,
    /// When it counts as missed; none if it was counted already.
    deadline: Option<Instant>,
}

/// The probes of one path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probes {
    outstanding: heapless::Vec<Probe, MAX_OUTSTANDING>,
    round_trip: Option<RoundTrip>,
    /// One bit for each of the last probes that were decided: set if it was missed.
    history: u16,
    decided: u32,
    missed: u32,
    answered: u32,
}

/// A smoothed round trip and its variation (RFC 6298 §2).
#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
}

impl Probes {
    /// A probe was sent.
    pub(crate) fn sent(&mut self, token: u64, now: Instant) {
        if self.outstanding.is_full() {
            self.outstanding.remove(0);
        }
        let probe = Probe { token, sent: now, deadline: Some(now + self.timeout()) };
        let pushed = self.outstanding.push(probe);
        debug_assert!(pushed.is_ok(), "invariant: there is room for one");
    }

    /// An answer came; tells how long it took, unless nobody asked. A late one still shows that the path works.
    pub(crate) fn answered(&mut self, token: u64, now: Instant) -> Option<Duration> {
        let at = self.outstanding.iter().position(|probe| probe.token == token)?;
        let probe = self.outstanding.remove(at);
        let took = now.saturating_duration_since(probe.sent);
        if probe.deadline.is_some() {
            self.decide(false);
        }
        self.measure(took);
        self.missed = 0;
        self.answered = self.answered.saturating_add(1);
        Some(took)
    }

    /// Counts what was not answered in time; tells whether there was any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let mut newly = 0;
        for probe in &mut self.outstanding {
            if probe.deadline.take_if(|deadline| *deadline <= now).is_some() {
                newly += 1;
            }
        }
        self.outstanding.retain(|probe| now.saturating_duration_since(probe.sent) < FORGET_AFTER);
        for _ in 0..newly {
            self.decide(true);
        }
        self.missed = self.missed.saturating_add(newly);
        if newly > 0 {
            self.answered = 0;
        }
        newly > 0
    }

    /// When the next of them counts as missed.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.outstanding.iter().filter_map(|probe| probe.deadline).min()
    }

    /// Whether an answer is still awaited.
    pub(crate) fn awaits(&self) -> bool {
        self.next_expiry().is_some()
    }

    /// How many in a row were not answered.
    pub(crate) const fn missed(&self) -> u32 {
        self.missed
    }

    /// How many in a row were.
    pub(crate) const fn answered_in_a_row(&self) -> u32 {
        self.answered
    }

    /// The smoothed round trip.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.round_trip.map(|round_trip| round_trip.smoothed)
    }

    /// Percent of the last probes that were missed.
    pub(crate) fn loss(&self) -> Option<u8> {
        let counted = self.decided.min(HISTORY);
        (counted > 0).then(|| (self.history.count_ones() * 100 / counted) as u8)
    }

    /// Probes that the loss was reckoned from.
    pub(crate) fn samples(&self) -> u32 {
        self.decided.min(HISTORY)
    }

    /// What was asked before is of no interest any more: the path is looked at anew.
    pub(crate) fn restart(&mut self) {
        self.outstanding.clear();
        self.missed = 0;
        self.answered = 0;
    }

    /// Reckons the loss from the last answer on.
    pub(crate) fn forget_losses(&mut self) {
        self.history = 0;
        self.decided = 1;
    }

    fn decide(&mut self, missed: bool) {
        self.history = (self.history << 1) | u16::from(missed);
        self.decided = self.decided.saturating_add(1);
    }

    fn timeout(&self) -> Duration {
        let known = self.round_trip.map(|known| known.smoothed + 4 * known.variation + LENIENCE);
        known.map_or(FIRST_TIMEOUT, |timeout| timeout.clamp(MIN_TIMEOUT, MAX_TIMEOUT))
    }

    fn measure(&mut self, took: Duration) {
        self.round_trip = Some(match self.round_trip {
            None => RoundTrip { smoothed: took, variation: took / 2 },
            Some(RoundTrip { smoothed, variation }) => RoundTrip {
                variation: (variation * 3 + smoothed.abs_diff(took)) / 4,
                smoothed: (smoothed * 7 + took) / 8,
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::test_epoch;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn an_unanswered_probe_is_missed_once() {
        let (mut probes, start) = (Probes::default(), test_epoch());
        probes.sent(1, start);
        assert!(!probes.expire(start + millis(999)));
        assert!(probes.expire(start + millis(1000)));
        assert!(!probes.expire(start + millis(1001)));
        assert_eq!((probes.missed(), probes.loss()), (1, Some(100)));
        assert!(!probes.awaits());
    }

    #[test]
    fn a_late_answer_shows_that_the_path_works_and_is_slow() {
        let (mut probes, start) = (Probes::default(), test_epoch());
        probes.sent(1, start);
        probes.expire(start + millis(1000));
        assert_eq!(probes.answered(1, start + millis(2000)), Some(millis(2000)));
        assert_eq!((probes.missed(), probes.answered_in_a_row()), (0, 1));
        assert_eq!(probes.samples(), 1, "one probe is one sample");
        probes.sent(2, start + millis(3000));
        assert!(!probes.expire(start + millis(5000)), "more patience now");
        assert!(probes.expire(start + millis(6000)));
    }

    #[test]
    fn only_what_was_asked_is_an_answer_and_only_once() {
        let (mut probes, start) = (Probes::default(), test_epoch());
        probes.sent(1, start);
        assert_eq!(probes.answered(2, start), None);
        assert_eq!(probes.answered(1, start), Some(Duration::ZERO));
        assert_eq!(probes.answered(1, start), None);
    }

    #[test]
    fn a_fast_path_is_given_up_on_sooner_but_never_below_the_least_time() {
        let (mut probes, start) = (Probes::default(), test_epoch());
        probes.sent(1, start);
        probes.answered(1, start + millis(2));
        probes.sent(2, start + millis(1000));
        assert!(!probes.expire(start + millis(1299)));
        assert!(probes.expire(start + millis(1300)));
    }

    #[test]
    fn outstanding_probes_are_bounded_and_loss_is_of_the_last_sixteen() {
        let (mut probes, start) = (Probes::default(), test_epoch());
        for token in 0..100 {
            probes.sent(token, start);
        }
        assert_eq!(probes.outstanding.len(), MAX_OUTSTANDING);
        probes.expire(start + FIRST_TIMEOUT);
        assert_eq!(probes.missed(), 8);
        for token in 100..112 {
            probes.sent(token, start);
            probes.answered(token, start);
        }
        assert_eq!(probes.loss(), Some(25), "4 of 16");
    }
}
