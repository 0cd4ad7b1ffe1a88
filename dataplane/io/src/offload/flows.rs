//! Which group the last packet of a flow went to: a small table that forgets rather than grows.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use super::look::Key;

/// Flows that are remembered at a time; a power of two.
pub(super) const FLOWS: usize = 64;

/// Places looked at for a flow, from the one its hash names.
const PROBES: usize = 8;

/// Flows and their open groups. To forget one is always right, as its next packet then begins a group of its own, later
/// than all others; so a flow that finds no place takes another's.
#[derive(Debug)]
pub(super) struct Flows {
    entries: Box<[Entry; FLOWS]>,
    /// Entries of former ages are empty: forgetting all is one addition.
    age: u64,
    /// Where the last flow was found: it is mostly that of the next packet too.
    last: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: Key,
    age: u64,
    /// `None`: what comes next of the flow begins one.
    group: Option<u16>,
}

impl Flows {
    pub(super) fn new() -> Self {
        Self { entries: Box::new([Entry::default(); FLOWS]), age: 1, last: 0 }
    }

    /// A flow's place, which is its own until the next one asks for its.
    pub(super) fn place(&mut self, key: &Key) -> usize {
        let at = self.find(key).unwrap_or_else(|| self.take_place(key));
        self.last = at;
        at
    }

    /// The group that the next packet of the flow at `place` may join, if it fits.
    pub(super) fn group(&self, place: usize) -> Option<u16> {
        self.entries.get(place).and_then(|entry| entry.group)
    }

    /// Notes which group the next packet of the flow at `place` may join.
    pub(super) fn set_group(&mut self, place: usize, group: Option<u16>) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.group = group;
        }
    }

    /// Notes that a flow's next packet begins a group.
    pub(super) fn seal(&mut self, key: &Key) {
        if let Some(entry) = self.find(key).and_then(|at| self.entries.get_mut(at)) {
            entry.group = None;
        }
    }

    /// Forgets all flows.
    pub(super) fn clear(&mut self) {
        self.age = self.age.wrapping_add(1);
    }

    fn find(&self, key: &Key) -> Option<usize> {
        if self.holds(self.last, key) {
            return Some(self.last);
        }
        // Nothing is ever taken out within an age, so a flow lies before the first empty place.
        probes(key).take_while(|at| !self.is_empty(*at)).find(|at| self.holds(*at, key))
    }

    fn take_place(&mut self, key: &Key) -> usize {
        let at = probes(key).find(|at| self.is_empty(*at)).unwrap_or_else(|| home(key));
        if let Some(entry) = self.entries.get_mut(at) {
            *entry = Entry { key: *key, age: self.age, group: None };
        }
        at
    }

    fn holds(&self, at: usize, key: &Key) -> bool {
        self.entries.get(at).is_some_and(|entry| entry.age == self.age && entry.key.is(key))
    }

    fn is_empty(&self, at: usize) -> bool {
        self.entries.get(at).is_none_or(|entry| entry.age != self.age)
    }
}

fn home(key: &Key) -> usize {
    // The upper bits depend on all others.
    (key.hash() >> u64::BITS.wrapping_sub(FLOWS.ilog2())) as usize
}

fn probes(key: &Key) -> impl Iterator<Item = usize> + use<> {
    let home = home(key);
    (0..PROBES).map(move |step| home.wrapping_add(step) % FLOWS)
}
