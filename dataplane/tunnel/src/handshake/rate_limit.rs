//! How many handshakes one source may ask of us while we are under load (W15).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::path::RateSource;

/// Handshakes a second that one source may send in the long run.
const PER_SECOND: u32 = 20;
/// Handshakes that one source may send at once.
const BURST: u32 = 5;
/// Sources watched at the same time; beyond it, new ones are refused.
pub(crate) const MAX_SOURCES: usize = 8192;

const COST: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
const FULL: Duration = Duration::from_nanos(COST.as_nanos() as u64 * BURST as u64);
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A token bucket for each source. Tokens are measured in time: a handshake costs 50 ms, and a bucket holds 250 ms.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    buckets: BTreeMap<RateSource, Bucket>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Bucket {
    tokens: Duration,
    filled: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        self.tokens = FULL.min(self.tokens + now.saturating_duration_since(self.filled));
        self.filled = now;
    }
}

impl RateLimit {
    /// Whether `source` may have one more handshake now.
    pub(crate) fn allow(&mut self, source: RateSource, now: Instant) -> bool {
        self.sweep(now);
        let watched = self.buckets.len();
        let bucket = match self.buckets.get_mut(&source) {
            Some(bucket) => bucket,
            None if watched >= MAX_SOURCES => return false,
            None => self.buckets.entry(source).or_insert(Bucket { tokens: FULL, filled: now }),
        };
        bucket.fill(now);
        let Some(left) = bucket.tokens.checked_sub(COST) else { return false };
        bucket.tokens = left;
        true
    }

    /// Forgets sources whose bucket is full again: there is nothing to remember about them.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.buckets.retain(|_, bucket| {
            bucket.fill(now);
            bucket.tokens < FULL
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::test_epoch;

    const A: RateSource = RateSource::V4(1);

    #[test]
    fn five_at_once_then_twenty_a_second() {
        let start = test_epoch();
        let mut limit = RateLimit::default();
        let allowed = |limit: &mut RateLimit, at: u64| limit.allow(A, start + Duration::from_millis(at));
        for _ in 0..5 {
            assert!(allowed(&mut limit, 0));
        }
        assert!(!allowed(&mut limit, 0));
        assert!(!allowed(&mut limit, 49));
        assert!(allowed(&mut limit, 50));
        assert!(!allowed(&mut limit, 51));
        let granted = (0..10_000).filter(|&at| allowed(&mut limit, 100 + at)).count();
        assert!((199..=201).contains(&granted), "{granted} in ten seconds");
    }

    #[test]
    fn sources_do_not_share_a_bucket() {
        let now = test_epoch();
        let mut limit = RateLimit::default();
        while limit.allow(A, now) {}
        assert!(limit.allow(RateSource::V4(2), now));
        assert!(limit.allow(RateSource::V6(1), now));
    }

    #[test]
    fn the_table_is_capped_and_empties_itself() {
        let start = test_epoch();
        let mut limit = RateLimit::default();
        for source in 0..MAX_SOURCES as u32 {
            assert!(limit.allow(RateSource::V4(source), start));
        }
        assert!(!limit.allow(RateSource::V6(0), start), "full");
        assert_eq!(limit.buckets.len(), MAX_SOURCES);
        let later = start + Duration::from_millis(1001);
        assert!(limit.allow(RateSource::V6(0), later));
        assert_eq!(limit.buckets.len(), 1);
    }
}
