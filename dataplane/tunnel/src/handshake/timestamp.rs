//! Handshake timestamps (TAI64N, whitepaper §5.4.2, W11) and the floors that make them survive a restart.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::BTreeMap;

use crate::key::PublicKey;
use crate::time::UnixTime;

/// TAI64's label of the second in which 1970 began, with the ten leap seconds there were by then.
const UNIX_EPOCH: u64 = 0x4000_0000_0000_000a;
/// Timestamps are whitened to this step, so that they tell little about when exactly a message was made.
const STEP_NANOS: u32 = 1 << 24;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// A timestamp as it is on the wire: big-endian seconds and nanoseconds, so that bytes compare as times do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tai64n([u8; 12]);

impl Tai64n {
    /// Earlier than any timestamp of a handshake.
    pub const ZERO: Self = Self([0; 12]);

    /// Takes 12 bytes as a message carries them.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// The 12 bytes for a message.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }

    /// A wall-clock time, rounded down to 2^24 ns (16.8 ms).
    #[must_use]
    pub fn of(time: UnixTime) -> Self {
        let nanos = time.as_millis().wrapping_rem(1000).wrapping_mul(1_000_000) as u32;
        Self::join(UNIX_EPOCH.saturating_add(time.as_secs()), nanos & !STEP_NANOS.wrapping_sub(1))
    }

    /// The next timestamp that still compares as later, one step on.
    #[must_use]
    pub fn next(self) -> Self {
        let (secs, nanos) = self.split();
        match nanos.checked_add(STEP_NANOS) {
            Some(nanos) if nanos < NANOS_PER_SECOND => Self::join(secs, nanos),
            _ => Self::join(secs.saturating_add(1), 0),
        }
    }

    fn join(secs: u64, nanos: u32) -> Self {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&secs.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    fn split(self) -> (u64, u32) {
        let [a, b, c, d, e, f, g, h, nanos @ ..] = self.0;
        (u64::from_be_bytes([a, b, c, d, e, f, g, h]), u32::from_be_bytes(nanos))
    }
}

/// What must be remembered across restarts: without it a captured initiation could be replayed once, and after the clock
/// went backwards every peer would refuse ours as old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floors {
    /// The latest timestamp we ever sent.
    pub sent: Tai64n,
    /// The latest timestamp accepted from each peer.
    pub received: BTreeMap<PublicKey, Tai64n>,
}

/// What was read are not floors: another file, a newer version, or cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of handshake timestamps, or one cut short")]
pub struct BadFloors;

const MAGIC: [u8; 8] = *b"rmtime\x00\x01";
const ENTRY_LEN: usize = 44;

impl Default for Floors {
    fn default() -> Self {
        Self { sent: Tai64n::ZERO, received: BTreeMap::new() }
    }
}

impl Floors {
    /// The bytes to store: 20, and 44 for each peer.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(self.sent.as_bytes());
        for (key, timestamp) in &self.received {
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(timestamp.as_bytes());
        }
        bytes
    }

    /// Reads what [`Floors::emit`] wrote.
    ///
    /// # Errors
    ///
    /// If it is something else or incomplete.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadFloors> {
        let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(BadFloors)?;
        let (sent, rest) = rest.split_first_chunk::<12>().ok_or(BadFloors)?;
        let (entries, rest) = rest.as_chunks::<ENTRY_LEN>();
        if *magic != MAGIC || !rest.is_empty() {
            return Err(BadFloors);
        }
        let received = entries.iter().map(|entry| {
            let (key, timestamp) = entry.split_first_chunk::<32>().ok_or(BadFloors)?;
            let timestamp = timestamp.first_chunk::<12>().ok_or(BadFloors)?;
            Ok((PublicKey::from_bytes(*key), Tai64n(*timestamp)))
        });
        Ok(Self { sent: Tai64n(*sent), received: received.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_tai64n_rounded_to_the_step() {
        let stamp = Tai64n::of(UnixTime::from_millis(1_700_000_000_999));
        let nanos = 999_000_000u32 / STEP_NANOS * STEP_NANOS;
        let mut expected = (0x4000_0000_0000_000a_u64 + 1_700_000_000).to_be_bytes().to_vec();
        expected.extend(nanos.to_be_bytes());
        assert_eq!(stamp.as_bytes().as_slice(), expected);
    }

    #[test]
    fn next_is_later_and_on_the_step() {
        let mut stamp = Tai64n::of(UnixTime::from_millis(1_700_000_000_000));
        for _ in 0..200 {
            let next = stamp.next();
            assert!(next > stamp);
            assert!(next.split().1.is_multiple_of(STEP_NANOS) && next.split().1 < NANOS_PER_SECOND);
            stamp = next;
        }
        assert_eq!(stamp.split().0 - UNIX_EPOCH, 1_700_000_000 + 3, "60 steps to a second");
    }

    #[test]
    fn floors_come_back_and_anything_cut_short_is_refused() {
        let mut floors = Floors { sent: Tai64n::of(UnixTime::from_secs(7)), ..Floors::default() };
        for key in 0..3 {
            floors
                .received
                .insert(PublicKey::from_bytes([key; 32]), Tai64n::of(UnixTime::from_secs(key.into())));
        }
        let bytes = floors.emit();
        assert_eq!(Floors::parse(&bytes), Ok(floors.clone()));
        for len in 0..bytes.len() {
            let whole = len >= 20 && (len - 20) % 44 == 0;
            assert_eq!(Floors::parse(&bytes[..len]).is_ok(), whole, "{len} bytes");
        }
        let mut newer = bytes;
        newer[7] = 2;
        assert_eq!(Floors::parse(&newer), Err(BadFloors));
    }
}
