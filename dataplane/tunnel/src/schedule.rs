//! When each peer next needs attention: a binary heap of deadlines that can be moved in place.
//!
//! Packets move deadlines all the time, and nearly always later. Those moves are not made: a deadline that fires early
//! only means that the peer looks at its timers and asks for the next one. So a packet costs the heap nothing, and after
//! the number of peers has settled nothing here allocates.

use std::time::Instant;

const ABSENT: usize = usize::MAX;

/// The earliest deadline of every slot that has one.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    heap: Vec<(Instant, u32)>,
    positions: Vec<usize>,
}

impl Schedule {
    /// Makes room for a slot.
    pub(crate) fn grow(&mut self, slots: usize) {
        if self.positions.len() < slots {
            self.positions.resize(slots, ABSENT);
            self.heap.reserve(slots - self.heap.len());
        }
    }

    /// Wakes `slot` at `deadline` or, if it is due before that already, earlier.
    pub(crate) fn at_latest(&mut self, slot: u32, deadline: Instant) {
        match self.positions[slot as usize] {
            ABSENT => {
                self.heap.push((deadline, slot));
                self.positions[slot as usize] = self.heap.len() - 1;
                self.rise(self.heap.len() - 1);
            }
            position if deadline < self.heap[position].0 => {
                self.heap[position].0 = deadline;
                self.rise(position);
            }
            _ => {}
        }
    }

    /// Forgets a slot.
    pub(crate) fn cancel(&mut self, slot: u32) {
        let position = self.positions[slot as usize];
        if position != ABSENT {
            self.take(position);
        }
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|&(deadline, _)| deadline)
    }

    /// Takes out a slot that is due.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        let &(deadline, slot) = self.heap.first()?;
        if deadline > now {
            return None;
        }
        self.take(0);
        Some(slot)
    }

    fn take(&mut self, position: usize) {
        let (_, slot) = self.heap.swap_remove(position);
        self.positions[slot as usize] = ABSENT;
        if position < self.heap.len() {
            self.positions[self.heap[position].1 as usize] = position;
            self.rise(position);
            self.sink(position);
        }
    }

    fn rise(&mut self, mut position: usize) {
        while position > 0 {
            let parent = (position - 1) / 2;
            if self.heap[parent].0 <= self.heap[position].0 {
                return;
            }
            self.swap(parent, position);
            position = parent;
        }
    }

    fn sink(&mut self, mut position: usize) {
        loop {
            let children = 2 * position + 1..(2 * position + 3).min(self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.heap[child].0) else { return };
            if self.heap[position].0 <= self.heap[least].0 {
                return;
            }
            self.swap(position, least);
            position = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.positions[self.heap[a].1 as usize] = a;
        self.positions[self.heap[b].1 as usize] = b;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::time::test_epoch;

    proptest! {
        #[test]
        fn schedule_equals_a_sorted_map(steps in proptest::collection::vec((0u32..8, 0u64..50, 0u8..4), 1..300)) {
            let start = test_epoch();
            let mut schedule = Schedule::default();
            schedule.grow(8);
            let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
            for (slot, at, what) in steps {
                let at = start + Duration::from_millis(at);
                match what {
                    0 | 1 => {
                        schedule.at_latest(slot, at);
                        let due = model.entry(slot).or_insert(at);
                        *due = at.min(*due);
                    }
                    2 => {
                        schedule.cancel(slot);
                        model.remove(&slot);
                    }
                    _ => match schedule.pop(at) {
                        Some(slot) => {
                            let due = model.remove(&slot).unwrap();
                            prop_assert!(due <= at);
                            prop_assert!(model.values().all(|&other| other >= due));
                        }
                        None => prop_assert!(model.values().all(|&due| due > at)),
                    },
                }
                prop_assert_eq!(schedule.next(), model.values().min().copied());
            }
        }
    }
}
