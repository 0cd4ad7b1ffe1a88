//! A fingerprint of all that happened, to tell whether two runs were the same.

use std::time::Duration;

/// A running hash (FNV-1a) over events, their times and their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace(u64);

impl Default for Trace {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Trace {
    /// Takes down an event.
    pub fn record(&mut self, at: Duration, what: &str, bytes: &[u8]) {
        let at = at.as_nanos().to_le_bytes();
        for byte in at.iter().chain(what.as_bytes()).chain(&(bytes.len() as u64).to_le_bytes()).chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The fingerprint so far.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.0
    }
}
