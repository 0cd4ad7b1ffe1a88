//! What is to happen, and when. Things due at one moment happen in the order in which they were entered.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Things to happen, each at its time.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    entries: BinaryHeap<Entry<T>>,
    entered: u64,
}

#[derive(Debug)]
struct Entry<T> {
    at: Duration,
    order: u64,
    what: T,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), entered: 0 }
    }
}

impl<T> Agenda<T> {
    /// Enters something.
    pub(crate) fn enter(&mut self, at: Duration, what: T) {
        self.entered += 1;
        self.entries.push(Entry { at, order: self.entered, what });
    }

    /// When the next thing happens.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.entries.peek().map(|entry| entry.at)
    }

    /// Takes out the next thing that is due by `now`.
    pub(crate) fn take(&mut self, now: Duration) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.entries.pop().map(|entry| entry.what)
    }
}

impl<T> Ord for Entry<T> {
    // Reversed: a heap has its greatest on top.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_in_order_of_time_and_then_of_entry() {
        let mut agenda = Agenda::default();
        for (at, what) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            agenda.enter(Duration::from_secs(at), what);
        }
        assert_eq!(agenda.next(), Some(Duration::from_secs(1)));
        assert_eq!(agenda.take(Duration::ZERO), None);
        let all: String = std::iter::from_fn(|| agenda.take(Duration::from_secs(2))).collect();
        assert_eq!(all, "abcd");
    }
}
