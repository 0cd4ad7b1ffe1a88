//! Single addresses: a table with open addressing. Nearly all ranges of a mesh are of one address, and a walk down a trie costs a
//! cache line for each bit in which they differ.

/// An address as a key: all of its bits, and where the search for it begins.
pub(super) trait Address: Copy + Eq {
    /// Bits that are spread evenly, the upper ones best.
    fn spread(self) -> u64;
}

/// An odd number without a pattern: 2 to the 64, divided by the golden ratio. What follows one another ends up far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Address for u32 {
    fn spread(self) -> u64 {
        u64::from(self).wrapping_mul(GOLDEN)
    }
}

impl Address for u128 {
    fn spread(self) -> u64 {
        let (high, low) = ((self >> 64) as u64, self as u64);
        (high.wrapping_mul(GOLDEN).rotate_left(32) ^ low).wrapping_mul(GOLDEN)
    }
}

/// Values by address.
///
/// Addresses are given by the network's authority, so nobody is kept from choosing them badly by a secret; the table is half empty
/// at least.
#[derive(Debug)]
pub(super) struct Hosts<A, T> {
    /// A power of two, or none. Each entry is at the place where the search for it begins or behind it, with no gap between.
    places: Vec<Option<(A, T)>>,
    len: usize,
}

impl<A, T> Default for Hosts<A, T> {
    fn default() -> Self {
        Self { places: Vec::new(), len: 0 }
    }
}

impl<A: Address, T: Copy> Hosts<A, T> {
    #[inline]
    pub(super) fn get(&self, address: A) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        self.places[self.find(address)].map(|(_, value)| value)
    }

    /// Gives `address` to `value`; returns whose it was.
    pub(super) fn insert(&mut self, address: A, value: T) -> Option<T> {
        if 2 * (self.len + 1) > self.places.len() {
            self.grow();
        }
        let place = self.find(address);
        let before = self.places[place].replace((address, value));
        self.len += usize::from(before.is_none());
        before.map(|(_, value)| value)
    }

    /// Takes `address` away; returns whose it was.
    pub(super) fn remove(&mut self, address: A) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        let mut gap = self.find(address);
        let (_, value) = self.places[gap].take()?;
        self.len -= 1;
        // What comes behind the gap moves into it, if the search for it begins there or before.
        let mut place = self.after(gap);
        while let Some((other, _)) = self.places[place] {
            let from_home = |place: usize| place.wrapping_sub(self.home(other)) & self.mask();
            if from_home(gap) < from_home(place) {
                self.places.swap(gap, place);
                gap = place;
            }
            place = self.after(place);
        }
        Some(value)
    }

    /// Where the address is, or the gap in which it would be.
    #[inline]
    fn find(&self, address: A) -> usize {
        let mut place = self.home(address);
        while self.places[place].is_some_and(|(other, _)| other != address) {
            place = self.after(place);
        }
        place
    }

    fn grow(&mut self) {
        let room = (2 * self.places.len()).max(16);
        let before = std::mem::replace(&mut self.places, vec![None; room]);
        for (address, value) in before.into_iter().flatten() {
            let place = self.find(address);
            self.places[place] = Some((address, value));
        }
    }

    #[inline]
    fn home(&self, address: A) -> usize {
        (address.spread() >> 32) as usize & self.mask()
    }

    #[inline]
    fn after(&self, place: usize) -> usize {
        (place + 1) & self.mask()
    }

    #[inline]
    fn mask(&self) -> usize {
        self.places.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// An address whose search begins wherever it likes: many begin at the same place.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Crowded(u8);

    impl Address for Crowded {
        fn spread(self) -> u64 {
            u64::from(self.0 / 8).wrapping_mul(7) << 32
        }
    }

    proptest! {
        #[test]
        fn table_equals_a_map(steps in proptest::collection::vec((any::<bool>(), 0..64_u8, any::<u16>()), 1..300)) {
            let (mut table, mut model) = (Hosts::default(), BTreeMap::new());
            for (insert, address, value) in steps {
                let address = Crowded(address);
                if insert {
                    prop_assert_eq!(table.insert(address, value), model.insert(address, value));
                } else {
                    prop_assert_eq!(table.remove(address), model.remove(&address));
                }
                prop_assert_eq!(table.len, model.len());
                for address in (0..64).map(Crowded) {
                    prop_assert_eq!(table.get(address), model.get(&address).copied());
                }
            }
        }
    }

    /// The longest way from where a search begins to where it ends.
    fn longest_search<A: Address>(addresses: impl Iterator<Item = A> + Clone) -> usize {
        let mut table = Hosts::default();
        for address in addresses.clone() {
            table.insert(address, ());
        }
        let search = |address| table.find(address).wrapping_sub(table.home(address)) & table.mask();
        addresses.map(search).max().unwrap_or_default()
    }

    #[test]
    fn neighbouring_addresses_are_found_at_once() {
        for count in [10, 1_000, 100_000_u32] {
            let pool = 0x6440_0000..0x6440_0000 + count;
            assert!(longest_search(pool.clone()) < 32, "{count}");
            assert!(longest_search(pool.clone().map(|address| address << 8)) < 32, "{count}");
            assert!(
                longest_search(pool.clone().map(|low| 0xfd00_u128 << 112 | u128::from(low))) < 32,
                "{count}"
            );
            assert!(longest_search(pool.map(|high| u128::from(high) << 64 | 1)) < 32, "{count}");
        }
    }
}
