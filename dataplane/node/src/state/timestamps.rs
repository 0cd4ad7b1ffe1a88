//! What must only ever grow, even if the clock is set back between two starts: handshake timestamps and record serials.
//!
//! A responder drops an initiation whose timestamp is not greater than the last one it saw (whitepaper section 5.1), and a peer
//! drops a node record whose serial is not greater. So a stretch of timestamps is reserved on disk before any of it is used:
//! after a crash the daemon goes on beyond the stretch, whatever the clock says. What was *received* is kept too, so that a
//! captured initiation cannot be replayed to a daemon that has just started.

use std::time::Duration;

use ringmesh_tunnel::{
    Floors,
    handshake::Tai64n,
    time::UnixTime,
};

use super::directory::{StateDir, StateFile};
use crate::error::Failure;

/// How far ahead of the clock timestamps are reserved at a time.
const STRETCH: Duration = Duration::from_secs(120);
/// How often the reservation is renewed; well within [`STRETCH`].
pub(crate) const RENEWAL: Duration = Duration::from_secs(45);

/// Reserved timestamps, those received, and the last serial.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timestamps {
    floors: Floors,
    /// The serial of the last node record.
    record_serial: u64,
}

impl Timestamps {
    /// Reads what earlier starts reserved. A file that cannot be read is set aside: then the clock alone decides.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load(state: &StateDir) -> Result<Self, Failure> {
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

    /// What a handshaker of this start begins with.
    pub fn floors(&self) -> Floors {
        self.floors.clone()
    }

    /// Reserves a stretch from `now` on, beyond what `used` says was sent, and writes it down with what was received.
    ///
    /// # Errors
    /// The disk refuses; the reservation stays as it was.
    pub fn reserve(&mut self, state: &StateDir, used: Floors, now: UnixTime) -> Result<(), Failure> {
        let sent = Tai64n::of(now.saturating_add(STRETCH)).max(used.sent).max(self.floors.sent);
        let next = Self { floors: Floors { sent, ..used }, ..*self };
        next.save(state)?;
        *self = next;
        Ok(())
    }

    /// A serial greater than any before, written down before it is given out.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn next_serial(&mut self, state: &StateDir, now: UnixTime) -> Result<u64, Failure> {
        let serial = self.record_serial.saturating_add(1).max(now.as_millis());
        let next = Self { record_serial: serial, floors: self.floors.clone() };
        next.save(state)?;
        *self = next;
        Ok(serial)
    }

    fn save(&self, state: &StateDir) -> Result<(), Failure> {
        let content = [&self.record_serial.to_be_bytes()[..], &self.floors.emit()].concat();
        state.write(StateFile::Timestamps, &content)
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::key::PublicKey;

    use super::*;

    #[test]
    fn a_clock_set_back_between_starts_lowers_nothing() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let noon = UnixTime::from_secs(1_000_000);
        let mut before = Timestamps::load(&state).unwrap();
        before.reserve(&state, before.floors(), noon).unwrap();
        let serial = before.next_serial(&state, noon).unwrap();

        let morning = UnixTime::from_secs(900_000);
        let mut after = Timestamps::load(&state).unwrap();
        let reserved = Tai64n::of(noon.saturating_add(STRETCH));
        assert!(after.floors().sent >= reserved);
        assert!(after.next_serial(&state, morning).unwrap() > serial);
        after.reserve(&state, after.floors(), morning).unwrap();
        assert!(Timestamps::load(&state).unwrap().floors().sent >= reserved);
    }

    #[test]
    fn what_was_received_is_remembered() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let mut used = Floors::default();
        used.received.insert(PublicKey::from_bytes([3; 32]), Tai64n::of(UnixTime::from_secs(77)));
        let mut timestamps = Timestamps::default();
        timestamps.reserve(&state, used.clone(), UnixTime::from_secs(80)).unwrap();
        assert_eq!(Timestamps::load(&state).unwrap().floors().received, used.received);
    }

    #[test]
    fn a_corrupt_file_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        state.write(StateFile::Timestamps, b"\0\0\0").unwrap();
        assert_eq!(Timestamps::load(&state).unwrap(), Timestamps::default());
        let kept = std::fs::read_dir(root.path()).unwrap().flatten();
        assert!(kept.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("timestamps.corrupt-")));
    }
}
