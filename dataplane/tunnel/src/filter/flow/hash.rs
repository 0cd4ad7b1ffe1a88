//! The hash of flows: one that strangers cannot aim at.

use std::fmt;

use super::Key;
use crate::random::{NoRandomness, Random};

/// A secret member of a strongly universal family of hashes (multilinear, over 32-bit pieces with 64-bit coefficients; Lemire
/// and Kaser, "Strongly universal string hashing is fast", theorem 3.1): over the choice of the secret, any two keys are as
/// independent as drawn numbers. So the chains of flows that were chosen by somebody who does not know the secret are as short
/// as those of random ones, on average; and ten multiplications are cheaper than any hash that mixes.
pub(crate) struct FlowHash {
    begin: u64,
    coefficients: [u64; 10],
}

impl FlowHash {
    pub(crate) fn new(random: &mut Random) -> Result<Self, NoRandomness> {
        let draw = |random: &mut Random| random.bytes().map(u64::from_le_bytes);
        let begin = draw(random)?;
        let mut coefficients = [0; 10];
        for coefficient in &mut coefficients {
            *coefficient = draw(random)?;
        }
        Ok(Self { begin, coefficients })
    }

    #[inline]
    pub(crate) fn of(&self, key: &Key) -> u32 {
        let products = self.coefficients.iter().zip(key.pieces());
        let sum =
            products.fold(self.begin, |sum, (a, piece)| sum.wrapping_add(a.wrapping_mul(u64::from(piece))));
        (sum >> 32) as u32
    }
}

impl fmt::Debug for FlowHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlowHash")
    }
}
