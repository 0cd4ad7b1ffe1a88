//! How much each client may have passed on: a limit of its own, and a fair share of what all may have together.
//!
//! A limit of one client is a token bucket. What all may have together is poured like water: every few milliseconds the bytes
//! of that time are spread evenly over the clients that are active, and what one has no room for goes to the others. So
//! whoever asks for less than a fair share gets all of it, whatever the others do, and nothing is kept from those who ask for
//! more while there is some left (max-min fairness). There are no queues: what is not allowed is dropped at once, as a full
//! router would do, and the sender's own congestion control takes it from there.

use std::time::{Duration, Instant};

/// Mbit/s (10^6 bits a second) that one client may send by default.
pub const DEFAULT_CLIENT_MBIT: u32 = 1000;
/// Mbit/s (10^6 bits a second) that all may send together by default: more than one client may, so that none ever takes all.
pub const DEFAULT_TOTAL_MBIT: u32 = 2000;
/// Bytes per second in one Mbit/s.
const MBIT: u64 = 125_000;
/// Bytes per second that no machine reaches.
const NO_BOUND: u64 = 1 << 50;
/// A bucket holds what comes in this time, so that a burst at line rate passes.
const DEPTH: Duration = Duration::from_millis(50);
/// A bucket holds no less than this, bytes: a super-packet of 64 KiB passes whole.
const LEAST_DEPTH: u64 = 128 << 10;
/// Own buckets are refilled no more often than this, and the common one is poured no more often.
const STEP: Duration = Duration::from_millis(1);
/// Time that was slept through is no credit beyond this.
const LONGEST_STEP: Duration = Duration::from_millis(100);
/// Who asked for nothing this long, and has a full bucket, takes no part in sharing.
const ACTIVE_FOR: Duration = Duration::from_secs(1);

/// What clients may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Bytes per second that each client may send.
    pub client: u64,
    /// Bytes per second that all may send together, shared fairly; none: no such limit.
    pub total: Option<u64>,
}

impl Rates {
    /// Rates as people write them: in Mbit/s (10^6 bits a second), where 0 is no limit.
    #[must_use]
    pub fn from_mbit(client: u32, total: u32) -> Self {
        let limit = |mbit: u32| (mbit != 0).then(|| u64::from(mbit) * MBIT);
        Self { client: limit(client).unwrap_or(NO_BOUND), total: limit(total) }
    }
}

impl Default for Rates {
    fn default() -> Self {
        Self::from_mbit(DEFAULT_CLIENT_MBIT, DEFAULT_TOTAL_MBIT)
    }
}

/// Names a client to its [`Limiter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u32);

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// The client's own.
    Own,
    /// Its share of what all may have together.
    Share,
}

/// The limits of all clients of a relay server.
#[derive(Debug)]
pub struct Limiter {
    rates: Rates,
    own_depth: u64,
    share_depth: u64,
    buckets: Vec<Bucket>,
    free: Vec<u32>,
    /// Those who take part in sharing, each once.
    active: Vec<u32>,
    poured: Instant,
    /// What could not be divided evenly the last time.
    rest: u64,
    /// Kept for its memory.
    thirsty: Vec<u32>,
}

#[derive(Debug)]
struct Bucket {
    own: u64,
    share: u64,
    refilled: Instant,
    asked: Instant,
    active: bool,
}

impl Limiter {
    /// Nobody is here yet at `now`.
    #[must_use]
    pub fn new(rates: Rates, now: Instant) -> Self {
        let depth = |rate| in_time(rate, DEPTH).max(LEAST_DEPTH);
        Self {
            rates,
            own_depth: depth(rates.client),
            share_depth: rates.total.map_or(0, depth),
            buckets: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            poured: now,
            rest: 0,
            thirsty: Vec::new(),
        }
    }

    /// Takes in a client, with full buckets.
    pub fn join(&mut self, now: Instant) -> Ticket {
        let bucket =
            Bucket { own: self.own_depth, share: self.share_depth, refilled: now, asked: now, active: false };
        match self.free.pop() {
            Some(slot) => {
                self.buckets[slot as usize] = bucket;
                Ticket(slot)
            }
            None => {
                self.buckets.push(bucket);
                Ticket((self.buckets.len() - 1) as u32)
            }
        }
    }

    /// Forgets a client; its ticket must not be used again.
    pub fn leave(&mut self, ticket: Ticket) {
        self.active.retain(|&slot| slot != ticket.0);
        self.free.push(ticket.0);
    }

    /// Asks whether a client may send `bytes` more, and if so takes them off.
    ///
    /// # Errors
    ///
    /// The limit that is reached; nothing is taken off then.
    pub fn take(&mut self, ticket: Ticket, bytes: u64, now: Instant) -> Result<(), Limited> {
        if let Some(total) = self.rates.total {
            self.pour(total, now);
        }
        let Some(bucket) = self.buckets.get_mut(ticket.0 as usize) else { return Err(Limited::Own) };
        let elapsed = now.saturating_duration_since(bucket.refilled);
        if elapsed >= STEP {
            bucket.own =
                (bucket.own + in_time(self.rates.client, elapsed.min(LONGEST_STEP))).min(self.own_depth);
            bucket.refilled = now;
        }
        if self.rates.total.is_some() {
            bucket.asked = now;
            if !bucket.active {
                bucket.active = true;
                self.active.push(ticket.0);
            }
            if bucket.own < bytes {
                return Err(Limited::Own);
            }
            bucket.share = bucket.share.checked_sub(bytes).ok_or(Limited::Share)?;
        }
        bucket.own = bucket.own.checked_sub(bytes).ok_or(Limited::Own)?;
        Ok(())
    }

    /// Spreads what came since the last time: evenly at first, then what some have no room for over the rest.
    fn pour(&mut self, total: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.poured);
        if elapsed < STEP {
            return;
        }
        self.poured = now;
        let (buckets, depth) = (&mut self.buckets, self.share_depth);
        self.active.retain(|&slot| {
            let bucket = &mut buckets[slot as usize];
            bucket.active = bucket.share < depth || now.saturating_duration_since(bucket.asked) < ACTIVE_FOR;
            bucket.active
        });
        let mut water = self.rest + in_time(total, elapsed.min(LONGEST_STEP));
        self.thirsty.clear();
        self.thirsty.extend_from_slice(&self.active);
        // Each round either pours all but a few bytes or fills somebody, so there are at most as many as clients.
        loop {
            let count = self.thirsty.len() as u64;
            let each = water.checked_div(count).unwrap_or(0);
            if each == 0 {
                self.rest = if count == 0 { 0 } else { water };
                return;
            }
            self.thirsty.retain(|&slot| {
                let bucket = &mut buckets[slot as usize];
                let poured = each.min(depth - bucket.share);
                bucket.share += poured;
                water -= poured;
                bucket.share < depth
            });
        }
    }
}

/// Bytes that come in `time` at `rate`.
fn in_time(rate: u64, time: Duration) -> u64 {
    u64::try_from(u128::from(rate) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DATAGRAM: u64 = 1400;

    /// Lets clients send at the given rates for a while, in steps of 1 ms; returns bytes per second that passed.
    fn offered(rates: Rates, demands: &[u64], seconds: u64) -> Vec<u64> {
        let start = Instant::now();
        let mut limiter = Limiter::new(rates, start);
        let tickets: Vec<_> = demands.iter().map(|_| limiter.join(start)).collect();
        let mut passed = vec![0; demands.len()];
        let mut debt = vec![0; demands.len()];
        for ms in 0..seconds * 1000 {
            let now = start + Duration::from_millis(ms);
            for (client, &demand) in demands.iter().enumerate() {
                debt[client] += demand / 1000;
                while debt[client] >= DATAGRAM {
                    debt[client] -= DATAGRAM;
                    if limiter.take(tickets[client], DATAGRAM, now).is_ok() {
                        passed[client] += DATAGRAM;
                    }
                }
            }
        }
        passed.into_iter().map(|bytes| bytes / seconds).collect()
    }

    fn about(is: u64, want: u64) -> bool {
        is.abs_diff(want) <= want / 20
    }

    const MB: u64 = 1_000_000;

    #[test]
    fn a_client_gets_its_own_limit_and_no_more() {
        let rates = Rates { client: 5 * MB, total: None };
        let passed = offered(rates, &[50 * MB, 2 * MB], 20);
        assert!(about(passed[0], 5 * MB), "{passed:?}");
        assert!(about(passed[1], 2 * MB), "{passed:?}");
    }

    #[test]
    fn by_default_one_client_alone_is_limited_and_three_share_what_there_is() {
        let one = offered(Rates::default(), &[1000 * MB], 2);
        assert!(about(one[0], 125 * MB), "{one:?}");
        let three = offered(Rates::default(), &[300 * MB, 300 * MB, 300 * MB], 4);
        assert!(three.iter().all(|&rate| about(rate, 250 * MB / 3)), "{three:?}");
    }

    #[test]
    fn rates_are_written_in_mbit_and_zero_is_no_limit() {
        assert_eq!(Rates::from_mbit(8, 80), Rates { client: MB, total: Some(10 * MB) });
        assert_eq!(Rates::from_mbit(0, 0), Rates { client: NO_BOUND, total: None });
        assert_eq!(Rates::default(), Rates { client: 125 * MB, total: Some(250 * MB) });
    }

    #[test]
    fn a_flood_takes_nothing_from_those_who_stay_below_their_share() {
        let rates = Rates { client: 1000 * MB, total: Some(10 * MB) };
        let passed = offered(rates, &[500 * MB, 3 * MB, MB], 10);
        assert!(passed[1] >= 3 * MB - MB / 10 && passed[2] >= MB - MB / 10, "{passed:?}");
        assert!(about(passed[0], 6 * MB), "the rest is for the one that wants it: {passed:?}");
    }

    #[test]
    fn equal_wishes_get_equal_shares_whatever_their_size() {
        let rates = Rates { client: 1000 * MB, total: Some(9 * MB) };
        let passed = offered(rates, &[20 * MB, 40 * MB, 300 * MB], 10);
        assert!(passed.iter().all(|&rate| about(rate, 3 * MB)), "{passed:?}");
    }

    #[test]
    fn one_alone_gets_all() {
        let rates = Rates { client: 1000 * MB, total: Some(9 * MB) };
        let start = Instant::now();
        let mut limiter = Limiter::new(rates, start);
        let (one, other) = (limiter.join(start), limiter.join(start));
        limiter.take(other, 1, start).unwrap();
        let mut passed = 0;
        for ms in 0..10_000 {
            for _ in 0..20 {
                passed += u64::from(limiter.take(one, 1000, start + Duration::from_millis(ms)).is_ok());
            }
        }
        assert!(about(passed / 10, 9000), "{passed}");
    }

    #[test]
    fn a_pause_earns_no_more_than_a_full_bucket() {
        let start = Instant::now();
        let mut limiter = Limiter::new(Rates { client: MB, total: Some(MB) }, start);
        let ticket = limiter.join(start);
        let mut passed_at = |ms| {
            (0..10_000)
                .filter(|_| limiter.take(ticket, 1000, start + Duration::from_millis(ms)).is_ok())
                .count() as u64
        };
        assert_eq!(passed_at(0), LEAST_DEPTH / 1000);
        assert!(passed_at(3_600_000) <= LEAST_DEPTH / 1000);
    }

    #[test]
    fn who_left_leaves_no_trace() {
        let start = Instant::now();
        let mut limiter = Limiter::new(Rates { client: MB, total: Some(MB) }, start);
        let first = limiter.join(start);
        while limiter.take(first, 1000, start).is_ok() {}
        limiter.leave(first);
        assert!(limiter.active.is_empty());
        let second = limiter.join(start);
        assert_eq!(first, second, "the place is used again");
        assert_eq!(limiter.take(second, 1000, start), Ok(()), "with full buckets");
    }

    #[test]
    fn the_limit_that_is_reached_is_named() {
        let start = Instant::now();
        let both = |client, total| {
            let mut limiter = Limiter::new(Rates { client, total }, start);
            let ticket = limiter.join(start);
            (0..1_000_000).find_map(|_| limiter.take(ticket, 1000, start).err())
        };
        assert_eq!(both(MB, None), Some(Limited::Own));
        assert_eq!(both(MB, Some(100 * MB)), Some(Limited::Own));
        assert_eq!(both(100 * MB, Some(MB)), Some(Limited::Share));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The naive model: the largest share that, granted to all, adds up to the total.
        #[test]
        fn shares_are_max_min_fair(demands in proptest::collection::vec(MB / 5..30 * MB, 1..8)) {
            let total = 12 * MB;
            let passed = offered(Rates { client: 1000 * MB, total: Some(total) }, &demands, 8);
            let mut sorted = demands.clone();
            sorted.sort_unstable();
            let (mut left, mut share) = (total, u64::MAX);
            for (at, &demand) in sorted.iter().enumerate() {
                let equal = left / (sorted.len() - at) as u64;
                if demand > equal {
                    share = equal;
                    break;
                }
                left -= demand;
            }
            for (&demand, &rate) in demands.iter().zip(&passed) {
                let fair = demand.min(share);
                // Full buckets at the start are a little more than fair.
                prop_assert!(rate + fair / 10 + 2 * DATAGRAM >= fair, "{demands:?} {passed:?} {share}");
                prop_assert!(rate <= fair + fair / 10 + 100_000, "{demands:?} {passed:?} {share}");
            }
        }
    }
}
