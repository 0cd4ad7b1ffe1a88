//! The replay window (RFC 6479).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use super::REJECT_AFTER_MESSAGES;
use crate::drop_reason::DropReason;

const WORD_BITS: u64 = 64;
const WORDS: usize = 128;
/// Counters behind the newest that are still told apart: 8,192 bits less the word being filled.
pub(crate) const WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// Remembers which counters were seen, so a captured datagram cannot be delivered twice (whitepaper §5.4.6).
///
/// Only counters of datagrams that were authenticated are accepted: a forged one must not move the window.
#[derive(Debug)]
pub(crate) struct ReplayWindow {
    /// One more than the highest counter accepted.
    next: u64,
    /// A ring: the bit of counter `c` is bit `c % 64` of word `c / 64 % 128`.
    words: [u64; WORDS],
}

impl ReplayWindow {
    pub(crate) const fn new() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }

    /// Whether a counter was not seen yet and can still be told from those that were. Changes nothing, so it may be asked about
    /// a stranger's datagram: what fails here need not be opened.
    #[inline]
    pub(crate) fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::SessionExpired);
        }
        // What is ahead of the newest shares its bit with one of a lap ago.
        let seen = counter < self.next
            && (counter.saturating_add(WINDOW) < self.next.saturating_sub(1)
                || self.word(counter / WORD_BITS) & bit_of(counter) != 0);
        if seen { Err(DropReason::Replayed) } else { Ok(()) }
    }

    /// Notes a counter that was checked and whose datagram was authenticated.
    #[inline]
    pub(crate) fn accept(&mut self, counter: u64) {
        debug_assert!(self.check(counter).is_ok(), "invariant: a counter is checked before it is accepted");
        let newest = self.next.saturating_sub(1);
        let word = counter / WORD_BITS;
        if counter >= self.next {
            // The words between the newest counter and this one still hold counters of a lap ago.
            let stale = word.saturating_sub(newest / WORD_BITS).min(WORDS as u64);
            for ahead in 0..stale {
                *self.word_mut(word.wrapping_sub(ahead)) = 0;
            }
            self.next = counter.saturating_add(1);
        }
        *self.word_mut(word) |= bit_of(counter);
    }

    #[expect(clippy::indexing_slicing, reason = "a place is below the length")]
    const fn word(&self, word: u64) -> u64 {
        self.words[place_of(word)]
    }

    #[expect(clippy::indexing_slicing, reason = "a place is below the length")]
    const fn word_mut(&mut self, word: u64) -> &mut u64 {
        &mut self.words[place_of(word)]
    }
}

/// Where a word is in the ring.
#[expect(clippy::arithmetic_side_effects, reason = "the length is not zero")]
const fn place_of(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

const fn bit_of(counter: u64) -> u64 {
    1 << (counter % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Checks a counter, and accepts it if it may be.
    fn take(window: &mut ReplayWindow, counter: u64) -> bool {
        let fresh = window.check(counter).is_ok();
        if fresh {
            window.accept(counter);
        }
        fresh
    }

    fn window(steps: impl IntoIterator<Item = (u64, bool)>) {
        let mut window = ReplayWindow::new();
        for (step, (counter, accepted)) in steps.into_iter().enumerate() {
            assert_eq!(take(&mut window, counter), accepted, "step {step}: counter {counter}");
        }
    }

    /// The steps that WireGuard's implementations agree on.
    #[test]
    fn window_follows_the_agreed_steps() {
        const SPAN: u64 = WINDOW + 1;
        const LIMIT: u64 = REJECT_AFTER_MESSAGES;
        window([
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (SPAN, true),
            (SPAN - 1, true),
            (SPAN - 1, false),
            (SPAN - 2, true),
            (2, true),
            (2, false),
            (SPAN + 16, true),
            (3, false),
            (SPAN + 16, false),
            (SPAN * 4, true),
            (SPAN * 4 - (SPAN - 1), true),
            (10, false),
            (SPAN * 4 - SPAN, false),
            (SPAN * 4 - (SPAN + 1), false),
            (SPAN * 4 - (SPAN - 2), true),
            (SPAN * 4 + 1 - SPAN, false),
            (0, false),
            (LIMIT, false),
            (LIMIT - 1, true),
            (LIMIT, false),
            (LIMIT - 1, false),
            (LIMIT - 2, true),
            (LIMIT + 1, false),
            (LIMIT + 2, false),
            (LIMIT - 2, false),
            (LIMIT - 3, true),
            (0, false),
        ]);
    }

    #[test]
    fn window_takes_a_full_sweep_in_any_direction() {
        let fresh = |counter| (counter, true);
        window((1..=WINDOW).map(fresh).chain([(0, true), (0, false)]));
        window((2..=WINDOW + 1).map(fresh).chain([(1, true), (0, false)]));
        window((0..=WINDOW).rev().map(fresh));
        window((1..=WINDOW + 1).rev().map(fresh).chain([(0, false)]));
        window((1..=WINDOW).rev().map(fresh).chain([(WINDOW + 1, true), (0, false)]));
        window((1..=WINDOW).rev().map(fresh).chain([(0, true), (WINDOW + 1, true)]));
    }

    #[test]
    fn no_counter_at_or_beyond_the_limit_is_ever_accepted() {
        for counter in [REJECT_AFTER_MESSAGES, REJECT_AFTER_MESSAGES + 1, u64::MAX - 1, u64::MAX] {
            window([(counter, false), (0, true)]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn window_equals_a_set_of_all_counters_seen(
            start in prop_oneof![Just(0u64), any::<u32>().prop_map(u64::from), Just(REJECT_AFTER_MESSAGES - 20_000)],
            steps in proptest::collection::vec(prop_oneof![
                6 => -40i64..60,
                3 => -9000i64..100,
                1 => -20i64..20_000,
            ], 1..3000),
        ) {
            let mut window = ReplayWindow::new();
            let mut seen = BTreeSet::new();
            let mut newest: Option<u64> = None;
            for step in steps {
                let counter = newest.unwrap_or(start).saturating_add_signed(step);
                let in_window = newest.is_none_or(|newest| counter >= newest.saturating_sub(WINDOW));
                let expected = counter < REJECT_AFTER_MESSAGES && in_window && !seen.contains(&counter);
                prop_assert_eq!(take(&mut window, counter), expected, "counter {}", counter);
                if expected {
                    seen.insert(counter);
                    newest = newest.max(Some(counter));
                }
            }
        }
    }
}
