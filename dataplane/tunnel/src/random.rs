//! Where random bytes come from: the operating system, or a seed in a simulation.

use std::fmt;

use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Digest};

/// The operating system gave no random bytes; nothing secret can be made without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no random bytes (getrandom failed)")]
pub struct NoRandomness;

/// A source of random bytes.
///
/// Asks the system at every draw, never a generator in memory: a copied virtual machine would repeat that one.
pub struct Random(Source);

enum Source {
    System,
    Seeded { seed: u64, drawn: u64 },
}

impl Random {
    /// Draws from the operating system.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// Draws the same bytes for the same seed, for simulations and tests only: a seed is no secret.
    #[must_use]
    pub const fn seeded(seed: u64) -> Self {
        Self(Source::Seeded { seed, drawn: 0 })
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    ///
    /// If the system has none to give; what `bytes` holds then must not be used.
    pub fn fill(&mut self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        match &mut self.0 {
            Source::System => getrandom::fill(bytes).map_err(|_| NoRandomness),
            Source::Seeded { seed, drawn } => {
                for chunk in bytes.chunks_mut(32) {
                    let mut hash = Blake2s256::new();
                    Update::update(&mut hash, &seed.to_le_bytes());
                    Update::update(&mut hash, &drawn.to_le_bytes());
                    *drawn += 1;
                    chunk.copy_from_slice(&hash.finalize_fixed()[..chunk.len()]);
                }
                Ok(())
            }
        }
    }

    /// Draws an array.
    ///
    /// # Errors
    ///
    /// If the system has no random bytes to give.
    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], NoRandomness> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Draws a number in `0..=most`, for jitter: without randomness it is zero.
    pub fn up_to(&mut self, most: u32) -> u32 {
        let drawn = u64::from_le_bytes(self.bytes().unwrap_or_default());
        // The bias of a 64-bit draw over a 32-bit range is below 2^-32.
        (drawn % (u64::from(most) + 1)) as u32
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Random(system)",
            Source::Seeded { .. } => "Random(seeded)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_draw_equal_bytes_and_others_do_not() {
        let (mut a, mut b, mut c) = (Random::seeded(7), Random::seeded(7), Random::seeded(8));
        let first: [u8; 40] = a.bytes().unwrap();
        assert_eq!(first, b.bytes().unwrap());
        assert_ne!(first, c.bytes().unwrap());
        assert_ne!(first, a.bytes().unwrap(), "the stream goes on");
    }

    #[test]
    fn up_to_reaches_both_ends() {
        let mut random = Random::seeded(1);
        let drawn: Vec<u32> = (0..200).map(|_| random.up_to(3)).collect();
        assert!((0..=3).all(|value| drawn.contains(&value)));
        assert!(drawn.iter().all(|&value| value <= 3));
    }
}
