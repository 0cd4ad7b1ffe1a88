//! One direction of an impaired road: what becomes of each datagram is decided here, by a seed and nothing else.

use std::time::Duration;

use super::random::Random;

/// How bad a road is in one direction. The default loses, delays and alters nothing.
///
/// Shares are of all datagrams, from 0 (never) to 1 (always).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Road {
    /// How long each datagram takes.
    pub delay: Duration,
    /// Up to how much longer some take, by chance. Order is kept, as in a queue.
    pub jitter: Duration,
    /// Share of datagrams lost, each by itself.
    pub loss: f64,
    /// Share of datagrams with which a burst of losses begins.
    pub burst: f64,
    /// How many datagrams in a row a burst takes, the first included.
    pub burst_length: u32,
    /// Share of datagrams that are held back by [`Road::reorder_by`], and so are overtaken.
    pub reorder: f64,
    /// How long those are held back.
    pub reorder_by: Duration,
    /// Share of datagrams that arrive twice.
    pub duplicate: f64,
    /// Share of datagrams of which one bit is turned over.
    pub corrupt: f64,
    /// Nothing passes: set on one of two directions it makes the road one-way.
    pub closed: bool,
    /// Only datagrams that begin with this byte are concerned; all others pass as on the best of roads.
    pub only: Option<u8>,
}

impl Road {
    /// A road on which every datagram takes `delay`.
    #[must_use]
    pub fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// A road that loses `share` of all datagrams.
    #[must_use]
    pub fn lossy(share: f64) -> Self {
        Self { loss: share, ..Self::default() }
    }

    /// The road as `datagram` finds it.
    #[must_use]
    pub fn for_datagram(self, datagram: &[u8]) -> Self {
        match self.only {
            Some(first) if datagram.first() != Some(&first) => Self::default(),
            Some(_) | None => self,
        }
    }

    /// A road that nothing passes.
    #[must_use]
    pub fn closed() -> Self {
        Self { closed: true, ..Self::default() }
    }
}

/// What becomes of one datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// After how long it is sent on; `None`: it is lost.
    pub after: Option<Duration>,
    /// Whether it overtakes nobody and may itself be overtaken.
    pub held_back: bool,
    /// Whether it is sent twice.
    pub twice: bool,
    /// Which of its bits is turned over: a number to be taken modulo how many it has.
    pub flip: Option<u64>,
}

/// Decides the fates of one direction's datagrams, in the order in which they come.
#[derive(Debug, Clone)]
pub struct Fates {
    random: Random,
    /// Datagrams that the burst now raging still takes.
    burst_left: u32,
}

impl Fates {
    /// The same seed and the same roads give the same fates.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), burst_left: 0 }
    }

    /// The next datagram's fate on `road`.
    pub fn next(&mut self, road: &Road) -> Fate {
        // Every datagram takes the same number of draws, so that a setting changes nothing but what it is about.
        let [lost, burst, held, twice, flipped, late] = std::array::from_fn(|_| self.random.fraction());
        let bit = self.random.next();
        if self.burst_left == 0 && burst < road.burst {
            self.burst_left = road.burst_length;
        }
        let in_burst = self.burst_left > 0;
        self.burst_left = self.burst_left.saturating_sub(1);
        if road.closed || in_burst || lost < road.loss {
            return Fate { after: None, held_back: false, twice: false, flip: None };
        }
        let held_back = held < road.reorder;
        let extra = if held_back { road.reorder_by } else { Duration::ZERO };
        Fate {
            after: Some(road.delay + road.jitter.mul_f64(late) + extra),
            held_back,
            twice: twice < road.duplicate,
            flip: (flipped < road.corrupt).then_some(bit),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn fates(seed: u64, road: &Road, count: usize) -> Vec<Fate> {
        let mut fates = Fates::new(seed);
        (0..count).map(|_| fates.next(road)).collect()
    }

    fn share(of: &[Fate], is: impl Fn(&Fate) -> bool) -> f64 {
        of.iter().filter(|fate| is(fate)).count() as f64 / of.len() as f64
    }

    fn roads() -> impl Strategy<Value = Road> {
        let shares = (0.0..0.5_f64, 0.0..0.05_f64, 1..20_u32, 0.0..0.5_f64, 0.0..0.5_f64, 0.0..0.5_f64);
        (shares, 0..300_u32, 0..300_u32, 0..300_u32).prop_map(
            |((loss, burst, burst_length, reorder, duplicate, corrupt), delay, jitter, back)| Road {
                delay: MS * delay,
                jitter: MS * jitter,
                loss,
                burst,
                burst_length,
                reorder,
                reorder_by: MS * back,
                duplicate,
                corrupt,
                ..Road::default()
            },
        )
    }

    proptest! {
        #[test]
        fn the_same_seed_gives_the_same_fates(seed: u64, road in roads()) {
            prop_assert_eq!(fates(seed, &road, 500), fates(seed, &road, 500));
        }

        #[test]
        fn another_seed_gives_other_fates(seed: u64) {
            let road = Road::lossy(0.5);
            prop_assert_ne!(fates(seed, &road, 500), fates(seed ^ 1, &road, 500));
        }

        /// A 20,000-fold trial strays from a share p by more than seven times sqrt(p(1-p)/20,000) about never.
        #[test]
        fn shares_are_as_asked_for(seed: u64, road in roads()) {
            const TRIALS: f64 = 20_000.0;
            let near = |seen: f64, asked: f64, trials: f64| {
                (seen - asked).abs() <= 7.0 * (asked * (1.0 - asked) / trials).sqrt() + 10.0 / trials
            };
            let seen = fates(seed, &Road { burst: 0.0, ..road }, TRIALS as usize);
            let lost = share(&seen, |fate| fate.after.is_none());
            prop_assert!(near(lost, road.loss, TRIALS), "{lost} for {road:?}");
            let kept: Vec<Fate> = seen.into_iter().filter(|fate| fate.after.is_some()).collect();
            let among = kept.len() as f64;
            for (seen, asked) in [
                (share(&kept, |fate| fate.twice), road.duplicate),
                (share(&kept, |fate| fate.held_back), road.reorder),
                (share(&kept, |fate| fate.flip.is_some()), road.corrupt),
            ] {
                prop_assert!(near(seen, asked, among), "{seen} for {asked} of {road:?}");
            }
        }

        #[test]
        fn delays_are_within_bounds(seed: u64, road in roads()) {
            for fate in fates(seed, &road, 2_000) {
                let Some(after) = fate.after else { continue };
                let least = road.delay + if fate.held_back { road.reorder_by } else { Duration::ZERO };
                prop_assert!((least..=least + road.jitter).contains(&after), "{fate:?} on {road:?}");
            }
        }

        #[test]
        fn a_burst_takes_as_many_in_a_row_as_it_is_long(seed: u64, length in 2..50_u32) {
            let road = Road { burst: 0.002, burst_length: length, ..Road::default() };
            let seen = fates(seed, &road, 50_000);
            let mut runs = seen.split(|fate| fate.after.is_some()).map(<[Fate]>::len).filter(|run| *run > 0);
            // Two may touch, and the last one may be cut short by the end.
            let last = seen.iter().rev().take_while(|fate| fate.after.is_none()).count();
            let length = length as usize;
            prop_assert!(runs.all(|run| run % length == 0 || run == last));
            let lost = share(&seen, |fate| fate.after.is_none());
            // Bursts begin only between bursts: a fraction of length * share / (1 + length * share).
            let asked = length as f64 * road.burst / (1.0 + length as f64 * road.burst);
            prop_assert!((asked * 0.4..=asked * 1.8).contains(&lost), "{lost}, not {asked}");
        }

        /// What one direction loses does not depend on what else is asked of it.
        #[test]
        fn a_setting_changes_nothing_but_what_it_is_about(seed: u64, road in roads()) {
            let plain = fates(seed, &Road::lossy(road.loss), 500);
            let more = fates(seed, &Road { burst: 0.0, ..road }, 500);
            for (plain, more) in plain.iter().zip(&more) {
                prop_assert_eq!(plain.after.is_none(), more.after.is_none());
            }
        }
    }

    #[test]
    fn a_road_for_some_is_the_best_for_all_others() {
        let road = Road { only: Some(16), ..Road::closed() };
        assert_eq!(road.for_datagram(&[16, 0]), road);
        for other in [&[4, 16][..], &[]] {
            assert_eq!(road.for_datagram(other), Road::default());
        }
        assert_eq!(Road::closed().for_datagram(&[4]), Road::closed());
    }

    #[test]
    fn a_plain_road_alters_nothing_and_a_closed_one_lets_nothing_pass() {
        let whole = Fate { after: Some(Duration::ZERO), held_back: false, twice: false, flip: None };
        assert!(fates(1, &Road::default(), 1_000).iter().all(|fate| *fate == whole));
        assert!(fates(1, &Road::closed(), 1_000).iter().all(|fate| fate.after.is_none()));
    }
}
