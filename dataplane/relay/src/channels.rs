//! Channels: which two clients belong together, and under which numbers each of them knows the other.
//!
//! A pair has two numbers, one for each end. A number names the network in its low six bits, as a session's index does, so
//! that a server finds the network without asking; the other bits are a place and a tag, mixed with a secret, so that numbers
//! are not used again soon and a stranger does not guess a live one. Knowing one is of little use anyway: it is accepted only
//! from where its owner is heard.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::BTreeMap;
use std::time::Instant;

/// Pairs of one network.
pub const MAX_PAIRS: usize = 1 << (PLACE_BITS - 1);

const WORKER_BITS: u32 = 6;
const WORKER_MASK: u32 = (1 << WORKER_BITS) - 1;
const PLACE_BITS: u32 = 18;
const PLACE_MASK: u32 = (1 << PLACE_BITS) - 1;

/// Where a client is in its relay's list.
pub(crate) type Slot = u32;
/// Where an end is: the other end of the pair has the same but for the lowest bit.
pub(crate) type Place = u32;

/// The network that a channel claims to belong to.
pub(crate) const fn network_of(number: u32) -> u8 {
    (number & WORKER_MASK) as u8
}

/// One end of a pair.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// Its owner's name for the pair.
    pub(crate) number: u32,
    pub(crate) owner: Slot,
    /// Whether the owner made the pair, and so is charged with it.
    pub(crate) maker: bool,
    /// Whether word of it waits to be sent.
    pub(crate) owed: bool,
}

/// All channels of a network.
#[derive(Debug)]
pub(crate) struct Channels {
    network: u8,
    mask: u32,
    /// Two for each pair, side by side.
    ends: Vec<Option<End>>,
    /// What is known of each pair's place, used or not.
    uses: Vec<Use>,
    free: Vec<u32>,
    by_clients: BTreeMap<(Slot, Slot), u32>,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    /// Makes the numbers of each pair in this place others.
    tag: u8,
    /// When the pair was asked for or something was passed on in it.
    last: Instant,
}

const fn sorted(a: Slot, b: Slot) -> (Slot, Slot) {
    if a < b { (a, b) } else { (b, a) }
}

/// The other end's place.
pub(crate) const fn opposite(place: Place) -> Place {
    place ^ 1
}

impl Channels {
    /// None yet. `mask` is secret and random.
    pub(crate) fn new(network: u8, mask: u32) -> Self {
        Self {
            network,
            mask: mask >> WORKER_BITS,
            ends: Vec::new(),
            uses: Vec::new(),
            free: Vec::new(),
            by_clients: BTreeMap::new(),
        }
    }

    /// How many pairs there are.
    pub(crate) fn pairs(&self) -> usize {
        self.by_clients.len()
    }

    /// The end that has this number.
    pub(crate) fn find(&self, number: u32) -> Option<(Place, &End)> {
        let place = ((number >> WORKER_BITS) ^ self.mask) & PLACE_MASK;
        let end = self.end(place)?;
        (end.number == number).then_some((place, end))
    }

    pub(crate) fn end(&self, place: Place) -> Option<&End> {
        self.ends.get(place as usize)?.as_ref()
    }

    pub(crate) fn end_mut(&mut self, place: Place) -> Option<&mut End> {
        self.ends.get_mut(place as usize)?.as_mut()
    }

    /// The end of `owner` in its pair with `other`.
    pub(crate) fn between(&self, owner: Slot, other: Slot) -> Option<Place> {
        let pair = *self.by_clients.get(&sorted(owner, other))?;
        let place = pair << 1;
        let first = self.end(place)?.owner == owner;
        Some(if first { place } else { opposite(place) })
    }

    /// Makes a pair, charged to `owner`, and returns its end; none if there is no room.
    pub(crate) fn insert(&mut self, owner: Slot, other: Slot, now: Instant) -> Option<Place> {
        let pair = match self.free.pop() {
            Some(pair) => pair,
            None if self.uses.len() < MAX_PAIRS => {
                self.ends.extend([None, None]);
                self.uses.push(Use { tag: 0, last: now });
                u32::try_from(self.uses.len().checked_sub(1)?).ok()?
            }
            None => return None,
        };
        let used = self.uses.get_mut(pair as usize)?;
        *used = Use { tag: used.tag.wrapping_add(1), last: now };
        let tag = u32::from(used.tag) << PLACE_BITS;
        let place = pair << 1;
        for (place, owner, maker) in [(place, owner, true), (opposite(place), other, false)] {
            let number = (((tag | place) ^ self.mask) << WORKER_BITS) | u32::from(self.network);
            *self.ends.get_mut(place as usize)? = Some(End { number, owner, maker, owed: false });
        }
        self.by_clients.insert(sorted(owner, other), pair);
        Some(place)
    }

    /// Ends a pair, given one of its ends; returns both.
    pub(crate) fn remove(&mut self, place: Place) -> Option<[End; 2]> {
        let one = self.ends.get_mut(place as usize)?.take()?;
        let other = self.ends.get_mut(opposite(place) as usize)?.take()?;
        self.by_clients.remove(&sorted(one.owner, other.owner));
        self.free.push(place >> 1);
        Some([one, other])
    }

    /// A pair is in use.
    pub(crate) fn used(&mut self, place: Place, now: Instant) {
        if let Some(used) = self.uses.get_mut((place >> 1) as usize) {
            used.last = now;
        }
    }

    /// One end of every pair that was not used since `then`.
    pub(crate) fn unused_since(&self, then: Instant) -> impl Iterator<Item = Place> + '_ {
        let old = (0..).zip(&self.uses).filter(move |(_, used)| used.last <= then);
        old.map(|(pair, _): (u32, _)| pair << 1).filter(|&place| self.end(place).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_number_finds_its_end_and_no_other(
            mask: u32,
            network in 0u8..64,
            steps in proptest::collection::vec((0u32..8, 0u32..8, any::<bool>()), 1..80),
        ) {
            let mut channels = Channels::new(network, mask);
            let (mut live, now) = (BTreeMap::new(), Instant::now());
            for (a, b, keep) in steps {
                if a == b { continue }
                match channels.between(a, b) {
                    Some(place) if !keep => {
                        let ends = channels.remove(place).unwrap();
                        for end in ends {
                            live.remove(&end.number);
                            prop_assert!(channels.find(end.number).is_none());
                        }
                    }
                    Some(place) => prop_assert_eq!(channels.end(place).unwrap().owner, a),
                    None => {
                        let place = channels.insert(a, b, now).unwrap();
                        for (place, owner) in [(place, a), (opposite(place), b)] {
                            let end = channels.end(place).unwrap();
                            prop_assert_eq!(end.owner, owner);
                            prop_assert_eq!(network_of(end.number), network);
                            prop_assert!(live.insert(end.number, owner).is_none());
                        }
                    }
                }
                for (&number, &owner) in &live {
                    prop_assert_eq!(channels.find(number).unwrap().1.owner, owner);
                }
                prop_assert_eq!(channels.pairs() * 2, live.len());
            }
        }

        #[test]
        fn no_number_makes_it_panic(mask: u32, number: u32) {
            let mut channels = Channels::new(1, mask);
            channels.insert(0, 1, Instant::now()).unwrap();
            let _ = channels.find(number).map(|(place, _)| place);
        }
    }

    #[test]
    fn a_place_used_again_has_other_numbers() {
        let mut channels = Channels::new(3, 0x1234_5678);
        let mut numbers = BTreeSet::new();
        for _ in 0..200 {
            let place = channels.insert(1, 2, Instant::now()).unwrap();
            assert_eq!(place >> 1, 0);
            for end in channels.remove(place).unwrap() {
                assert!(numbers.insert(end.number));
            }
        }
    }

    #[test]
    fn there_is_an_end_to_pairs() {
        let mut channels = Channels::new(0, 7);
        let now = Instant::now();
        let made = (0..).take_while(|&other| channels.insert(u32::MAX, other, now).is_some()).count();
        assert_eq!((made, channels.pairs()), (MAX_PAIRS, MAX_PAIRS));
        let place = channels.between(u32::MAX, 99).unwrap();
        channels.remove(place).unwrap();
        assert!(channels.insert(u32::MAX, 99, now).is_some());
    }
}
