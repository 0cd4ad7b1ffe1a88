//! What must only ever grow, even if the clock is set back between two starts: handshake timestamps and record serials.
//!
//! A responder drops an initiation whose timestamp is not greater than the last one it saw (whitepaper section 5.1), and a peer
//! drops a node record whose serial is not greater. So what was sent is written down every 30 s, and after a restart we go on
//! 30 s beyond what is written, whatever the clock says. What was *received* is kept too, so that a captured initiation cannot
//! be replayed to a daemon that has just started.

use std::time::Duration;

use ringmesh_tunnel::{Floors, handshake::Tai64n, time::UnixTime};

use tracing::{error, warn};

use super::directory::{StateDir, StateFile};
use crate::error::Failure;

/// How often used timestamps are written down, if there are new ones.
pub(crate) const TIMESTAMP_RENEWAL: Duration = Duration::from_secs(30);

/// A record further ahead is refused by coordinators.
const MAX_SERIAL_AHEAD: Duration = Duration::from_secs(600);

/// Timestamps sent and received, and the last serial.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Timestamps {
    floors: Floors,
    /// The serial of the last node record.
    record_serial: u64,
}

impl Timestamps {
    /// Reads what earlier starts used. A file that cannot be read is set aside: then the clock alone decides.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn load(state: &StateDir) -> Result<Self, Failure> {
        let Some(content) = state.read(StateFile::Timestamps)? else { return Ok(Self::default()) };
        let parsed = content.split_first_chunk::<8>().and_then(|(serial, floors)| {
            let floors = Floors::parse(floors).ok()?;
            Some(Self { floors, record_serial: u64::from_be_bytes(*serial) })
        });
        Ok(parsed.unwrap_or_else(|| {
            state.set_aside(StateFile::Timestamps, &"it is damaged");
            Self::default()
        }))
    }

    /// What a handshaker of this start begins with: beyond all that may have been sent since the last writing.
    pub(crate) fn floors(&self) -> Floors {
        let mut floors = self.floors.clone();
        if floors.sent != Tai64n::ZERO {
            floors.sent = later(floors.sent, TIMESTAMP_RENEWAL);
        }
        floors
    }

    /// Writes down what a handshaker used, if that is news.
    ///
    /// # Errors
    /// The disk refuses; the file stays as it was.
    pub(crate) fn note(&mut self, state: &StateDir, used: Floors) -> Result<(), Failure> {
        if used == self.floors {
            return Ok(());
        }
        let next = Self { floors: used, ..*self };
        next.save(state)?;
        *self = next;
        Ok(())
    }

    /// A serial greater than any before, written down before it is used. `now` is the later of the clock and the last time
    /// that a coordinator signed.
    ///
    /// A serial far ahead of it is of a time when the clock was wrong: no coordinator took it, nor would take the next.
    pub(crate) fn next_serial(&mut self, state: &StateDir, now: UnixTime) -> u64 {
        if self.record_serial > now.saturating_add(MAX_SERIAL_AHEAD).as_millis() {
            warn!(
                event = "clock_was_wrong",
                serial = self.record_serial,
                "the last serial of this node's record is of a clock that was wrong"
            );
            self.record_serial = 0;
        }
        self.record_serial = self.record_serial.saturating_add(1).max(now.as_millis());
        if let Err(failure) = self.save(state) {
            // A full disk must not make the node unreachable; the clock very likely is ahead of this serial at the next start.
            error!(event = "state_write_failed", %failure, "the serial of this node's record is not kept");
        }
        self.record_serial
    }

    fn save(&self, state: &StateDir) -> Result<(), Failure> {
        let content = [&self.record_serial.to_be_bytes()[..], &self.floors.emit()].concat();
        state.write(StateFile::Timestamps, &content)
    }
}

/// A timestamp moved on by whole seconds.
fn later(timestamp: Tai64n, by: Duration) -> Tai64n {
    let mut bytes = *timestamp.as_bytes();
    if let Some(seconds) = bytes.first_chunk_mut::<8>() {
        *seconds = u64::from_be_bytes(*seconds).saturating_add(by.as_secs()).to_be_bytes();
    }
    Tai64n::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::key::PublicKey;

    use super::*;

    fn sent(at: u64) -> Floors {
        Floors { sent: Tai64n::of(UnixTime::from_secs(at)), ..Floors::default() }
    }

    #[test]
    fn a_clock_set_back_between_starts_lowers_nothing() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let noon = UnixTime::from_secs(1_000_000);
        let mut before = Timestamps::load(&state).unwrap();
        assert_eq!(before.floors(), Floors::default(), "a first start goes by the clock");
        before.note(&state, sent(1_000_000)).unwrap();
        let serial = before.next_serial(&state, noon);

        let earlier = UnixTime::from_secs(1_000_000 - 500);
        let mut after = Timestamps::load(&state).unwrap();
        assert_eq!(after.floors(), sent(1_000_030), "what was sent after the last writing is covered");
        assert!(after.next_serial(&state, earlier) > serial);
    }

    #[test]
    fn a_serial_of_a_clock_once_far_ahead_is_dropped() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let now = UnixTime::from_secs(1_000_000);
        let day_ahead = UnixTime::from_secs(1_086_400);
        let far = Timestamps::load(&state).unwrap().next_serial(&state, day_ahead);
        assert_eq!(far, day_ahead.as_millis());
        let mut after = Timestamps::load(&state).unwrap();
        assert_eq!(after.next_serial(&state, now), now.as_millis(), "as by a clock that was never wrong");
        let kept = Timestamps::load(&state).unwrap().next_serial(&state, now);
        assert_eq!(kept, now.as_millis() + 1, "and it grows again from there");
    }

    #[test]
    fn what_was_received_is_remembered() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let mut used = sent(80);
        used.received.insert(PublicKey::from_bytes([3; 32]), Tai64n::of(UnixTime::from_secs(77)));
        Timestamps::default().note(&state, used.clone()).unwrap();
        assert_eq!(Timestamps::load(&state).unwrap().floors().received, used.received);
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        state.write(StateFile::Timestamps, b"\0\0\0").unwrap();
        assert_eq!(Timestamps::load(&state).unwrap(), Timestamps::default());
        let kept = std::fs::read_dir(root.path()).unwrap().flatten();
        assert!(
            kept.into_iter()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("timestamps.corrupt-"))
        );
    }
}
