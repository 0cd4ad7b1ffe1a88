//! Session indices: the 32-bit names by which a peer addresses one of our handshakes or sessions.
//!
//! ```text
//!  31                                     6 5          0
//! +----------------------------------------+------------+
//! |  keyed permutation of (generation, slab) |  worker  |
//! +----------------------------------------+------------+
//! ```
//!
//! The worker is in clear, so that the kernel can steer by it. The rest finds its slab entry by running the permutation
//! backwards, without a hash table; since it is a permutation, two live entries never share an index. The key hides
//! which slabs are live from strangers (W19). It need not hide it from those on the path, who see indices pass.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::VecDeque;

/// Bits of an index that name the worker.
pub(crate) const WORKER_BITS: u32 = 6;
const WORKER_MASK: u32 = (1 << WORKER_BITS) - 1;
/// Workers that an index can name.
pub(crate) const MAX_WORKERS: u8 = 1 << WORKER_BITS;
/// Handshakes and sessions of one worker at the same time: four for each of 16,384 peers.
const SLAB_BITS: u32 = 16;
const SLABS: usize = 1 << SLAB_BITS;
/// How often a slab is reused before an index repeats, as a power of two.
const GENERATION_BITS: u32 = 10;
const HALF_BITS: u32 = (SLAB_BITS + GENERATION_BITS) / 2;
const HALF_MASK: u32 = (1 << HALF_BITS) - 1;

/// The worker whose session an index names.
pub(crate) const fn worker_of(index: u32) -> u8 {
    (index & WORKER_MASK) as u8
}

/// Gives out indices and finds what they stand for.
pub(crate) struct IndexTable<T> {
    worker: u8,
    permutation: Permutation,
    slabs: Vec<Slab<T>>,
    free: VecDeque<u32>,
    /// The permuted number that was last run backwards, and what came of it. It is the same for ever.
    recent: (u32, u32),
}

struct Slab<T> {
    generation: u32,
    value: Option<T>,
}

impl<T: Copy> IndexTable<T> {
    /// An empty table of a worker, permuted by secret random bytes.
    pub(crate) fn new(worker: u8, key: [u8; 32]) -> Self {
        let permutation = Permutation::new(key);
        let recent = (0, permutation.backward(0));
        Self { worker, permutation, slabs: Vec::new(), free: VecDeque::new(), recent }
    }

    /// Gives out an index for `value`; none if all are taken.
    pub(crate) fn insert(&mut self, value: T) -> Option<u32> {
        // A fresh slab as long as there are some, then the one that rested longest: a late datagram of an ended session
        // should find nothing for as long as possible.
        let slab = if self.slabs.len() < SLABS && self.free.len() < SLABS / 4 {
            self.slabs.push(Slab { generation: 0, value: None });
            self.slabs.len().checked_sub(1)? as u32
        } else {
            self.free.pop_front()?
        };
        let entry = self.slabs.get_mut(slab as usize)?;
        entry.value = Some(value);
        let generation = entry.generation;
        Some(self.emit(slab, generation))
    }

    /// What an index stands for now.
    #[inline]
    pub(crate) fn get(&mut self, index: u32) -> Option<T> {
        let (slab, generation) = self.parse(index)?;
        let entry = self.slabs.get(slab as usize)?;
        if entry.generation == generation { entry.value } else { None }
    }

    /// Takes an index back; nothing happens if it was not live.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let (slab, generation) = self.parse(index)?;
        let entry = self.slabs.get_mut(slab as usize)?;
        if entry.generation != generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1) & ((1 << GENERATION_BITS) - 1);
        self.free.push_back(slab);
        Some(value)
    }

    /// How many indices are live.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slabs.iter().filter(|slab| slab.value.is_some()).count()
    }

    fn emit(&self, slab: u32, generation: u32) -> u32 {
        (self.permutation.forward((generation << SLAB_BITS) | slab) << WORKER_BITS) | u32::from(self.worker)
    }

    #[inline]
    fn parse(&mut self, index: u32) -> Option<(u32, u32)> {
        if worker_of(index) != self.worker {
            return None;
        }
        let permuted = index >> WORKER_BITS;
        if self.recent.0 != permuted {
            self.recent = (permuted, self.permutation.backward(permuted));
        }
        let plain = self.recent.1;
        Some((plain & ((1 << SLAB_BITS) - 1), plain >> SLAB_BITS))
    }
}

/// A keyed permutation of 26-bit numbers: a Feistel network of eight rounds.
struct Permutation([u32; 8]);

impl Permutation {
    fn new(key: [u8; 32]) -> Self {
        let mut rounds = [0; 8];
        for (round, bytes) in rounds.iter_mut().zip(key.as_chunks::<4>().0) {
            *round = u32::from_le_bytes(*bytes);
        }
        Self(rounds)
    }

    fn forward(&self, plain: u32) -> u32 {
        let (mut left, mut right) = (plain >> HALF_BITS, plain & HALF_MASK);
        for &key in &self.0 {
            (left, right) = (right, left ^ mix(right, key));
        }
        (left << HALF_BITS) | right
    }

    fn backward(&self, permuted: u32) -> u32 {
        let (mut left, mut right) = (permuted >> HALF_BITS, permuted & HALF_MASK);
        for &key in self.0.iter().rev() {
            (left, right) = (right ^ mix(left, key), left);
        }
        (left << HALF_BITS) | right
    }
}

/// The round function: 13 well-mixed bits of a half and a round key.
fn mix(half: u32, key: u32) -> u32 {
    let mut mixed = half.wrapping_mul(0x9e37_79b1) ^ key;
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    (mixed ^ (mixed >> 16)) & HALF_MASK
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_live_indices_differ_and_name_their_worker() {
        let mut table = IndexTable::new(5, [7; 32]);
        let indices: BTreeSet<u32> = (0..SLABS).map(|value| table.insert(value).unwrap()).collect();
        assert_eq!(indices.len(), SLABS);
        assert!(indices.iter().all(|&index| worker_of(index) == 5));
        assert_eq!(table.insert(0), None, "all 65,536 are taken");
    }

    #[test]
    fn a_removed_index_stands_for_nothing_even_after_its_slab_is_reused() {
        let mut table = IndexTable::new(0, [1; 32]);
        let old: Vec<u32> = (0..SLABS).map(|value| table.insert(value).unwrap()).collect();
        for &index in &old {
            assert!(table.remove(index).is_some());
            assert_eq!(table.remove(index), None);
        }
        for value in 0..SLABS {
            table.insert(value).unwrap();
        }
        assert!(old.iter().all(|&index| table.get(index).is_none()));
    }

    #[test]
    fn an_index_of_another_worker_stands_for_nothing() {
        let mut table = IndexTable::new(0, [1; 32]);
        let index = table.insert(1).unwrap();
        assert_eq!(table.get(index), Some(1));
        assert_eq!(table.get(index | 1), None);
        assert_eq!(table.remove(index | 1), None);
    }

    #[test]
    fn other_keys_give_other_indices() {
        let first = |key| {
            let mut table = IndexTable::new(0, key);
            (0..64).map(|value| table.insert(value).unwrap()).collect::<BTreeSet<u32>>()
        };
        assert!(first([1; 32]).intersection(&first([2; 32])).count() < 4);
    }

    #[test]
    fn neighbouring_slabs_get_scattered_indices() {
        let mut table = IndexTable::new(0, std::array::from_fn(|i| (i as u8).wrapping_mul(37)));
        let indices: Vec<u32> = (0..1000).map(|value| table.insert(value).unwrap() >> WORKER_BITS).collect();
        let quarter = 1 << (SLAB_BITS + GENERATION_BITS - 2);
        for part in 0..4 {
            let hits = indices.iter().filter(|&&index| index / quarter == part).count();
            assert!((180..320).contains(&hits), "quarter {part} got {hits} of 1000");
        }
    }

    proptest! {
        #[test]
        fn permutation_runs_backwards(key: [u8; 32], plain in 0u32..(1 << 26)) {
            let permutation = Permutation::new(key);
            let permuted = permutation.forward(plain);
            prop_assert!(permuted < 1 << 26);
            prop_assert_eq!(permutation.backward(permuted), plain);
        }

        #[test]
        fn table_equals_a_map(steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
            let mut table = IndexTable::new(3, [9; 32]);
            let mut model = std::collections::BTreeMap::new();
            for (value, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || model.is_empty() {
                    prop_assert_eq!(model.insert(table.insert(value).unwrap(), value), None);
                } else {
                    let index = *model.keys().nth(pick % model.len()).unwrap();
                    prop_assert_eq!(table.remove(index), model.remove(&index));
                }
                for (&index, &value) in &model {
                    prop_assert_eq!(table.get(index), Some(value));
                }
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
