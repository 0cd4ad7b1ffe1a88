//! Datagrams on their way: let go in the order in which they are due, and among equals in the order in which they came.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::road::Fate;

/// Datagrams that may be on their way at once in one direction; those that come when it is full are lost, as in any queue.
pub(super) const MAX_QUEUED: usize = 16_384;

/// A datagram on its way, and to whom.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    due: Instant,
    number: u64,
    to: usize,
    datagram: Vec<u8>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<Item>>,
    number: u64,
    /// When the last one is due that nobody may overtake.
    last: Option<Instant>,
}

impl Queue {
    /// Takes a datagram for `to` that came at `now`, as its fate wants it; answers how many are on their way by it.
    pub(super) fn push(&mut self, to: usize, datagram: &[u8], fate: Fate, now: Instant) -> usize {
        let Some(after) = fate.after else { return 0 };
        let mut due = now + after;
        if !fate.held_back {
            due = self.last.map_or(due, |last| last.max(due));
            self.last = Some(due);
        }
        let mut datagram = datagram.to_vec();
        if let Some(bit) = fate.flip {
            flip(&mut datagram, bit);
        }
        let copies = if fate.twice { 2 } else { 1 };
        let mut taken = 0;
        for _ in 0..copies {
            if self.heap.len() < MAX_QUEUED {
                self.number += 1;
                self.heap.push(Reverse(Item { due, number: self.number, to, datagram: datagram.clone() }));
                taken += 1;
            }
        }
        taken
    }

    /// Gives out the next one that is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        if self.heap.peek()?.0.due > now {
            return None;
        }
        self.heap.pop().map(|Reverse(item)| (item.to, item.datagram))
    }

    /// How long it is until the next one is due.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.heap.peek().map(|Reverse(item)| item.due.saturating_duration_since(now))
    }
}

/// Turns bit number `bit` over, counted round and round; an empty datagram has none.
fn flip(datagram: &mut [u8], bit: u64) {
    let bits = datagram.len() as u64 * 8;
    if bits > 0 {
        let bit = bit % bits;
        datagram[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(ms: u32) -> Fate {
        Fate { after: Some(MS * ms), held_back: false, twice: false, flip: None }
    }

    fn drain(queue: &mut Queue, now: Instant) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| queue.pop(now)).map(|(_, datagram)| datagram).collect()
    }

    #[test]
    fn jitter_keeps_the_order_and_holding_back_does_not() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(0, b"slow", after(30), now);
        queue.push(0, b"fast", after(10), now);
        assert_eq!(drain(&mut queue, now + MS * 29), Vec::<Vec<u8>>::new());
        assert_eq!(drain(&mut queue, now + MS * 30), [b"slow", b"fast"]);

        queue.push(0, b"held", Fate { held_back: true, ..after(60) }, now);
        queue.push(0, b"next", after(40), now);
        assert_eq!(queue.wait(now), Some(MS * 40));
        assert_eq!(drain(&mut queue, now + MS * 60), [b"next", b"held"]);
        assert_eq!(queue.wait(now), None);
    }

    #[test]
    fn twins_are_alike_and_one_bit_is_turned_over() {
        let now = Instant::now();
        let mut queue = Queue::default();
        assert_eq!(queue.push(3, &[0, 0], Fate { twice: true, flip: Some(16 + 9), ..after(0) }, now), 2);
        assert_eq!(queue.pop(now), Some((3, vec![0, 2])));
        assert_eq!(queue.pop(now), Some((3, vec![0, 2])));
        queue.push(0, &[], Fate { flip: Some(1), ..after(0) }, now);
        assert_eq!(drain(&mut queue, now), [Vec::<u8>::new()]);
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for _ in 0..MAX_QUEUED {
            assert_eq!(queue.push(0, b"x", after(1), now), 1);
        }
        assert_eq!(queue.push(0, b"x", after(1), now), 0);
        assert_eq!(drain(&mut queue, now + MS).len(), MAX_QUEUED);
    }
}
