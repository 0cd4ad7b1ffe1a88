//! What the relay must remember of handshakes across restarts, one file for each network.
//!
//! Without it a captured first message could be played to a coordinator that has just started, and one whose clock was set back
//! would be refused by nodes as old (WireGuard whitepaper, section 5.1).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use ringmesh_tunnel::{Floors, handshake::Tai64n, key::NetworkId};

use crate::state_dir::{self, FileError};

/// How often what was used is written down, if there is news.
pub(super) const INTERVAL: Duration = Duration::from_secs(30);

/// The files, and what they hold.
#[derive(Debug)]
pub(super) struct Keeper {
    directory: PathBuf,
    written: BTreeMap<NetworkId, Floors>,
}

impl Keeper {
    pub(super) const fn new(directory: PathBuf) -> Self {
        Self { directory, written: BTreeMap::new() }
    }

    fn path(&self, network: NetworkId) -> PathBuf {
        self.directory.join(format!("relay-{network}.floors"))
    }

    /// What the relay of `network` begins with: beyond all that it may have sent since the last writing. A file that cannot be read
    /// is passed over: then the clock alone decides.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn load(&self, network: NetworkId) -> Result<Floors, FileError> {
        let path = self.path(network);
        let Some(content) = state_dir::read(&path)? else { return Ok(Floors::default()) };
        let mut floors = Floors::parse(&content).unwrap_or_else(|error| {
            tracing::warn!(event = "relay_floors_unusable", path = %path.display(), %error, "passed over what the relay remembered of handshakes");
            Floors::default()
        });
        if floors.sent != Tai64n::ZERO {
            floors.sent = later(floors.sent, INTERVAL);
        }
        Ok(floors)
    }

    /// Writes down what was used, if that is news.
    ///
    /// # Errors
    /// The disk refuses; the file stays as it was.
    pub(super) fn note(&mut self, network: NetworkId, used: Floors) -> Result<(), FileError> {
        if self.written.get(&network) == Some(&used) || used == Floors::default() {
            return Ok(());
        }
        state_dir::replace(&self.path(network), 0o600, &used.emit())?;
        self.written.insert(network, used);
        Ok(())
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
    use std::os::unix::fs::PermissionsExt as _;

    use ringmesh_tunnel::{UnixTime, key::PublicKey};

    use super::*;

    const NETWORK: NetworkId = NetworkId::from_bytes([1; 16]);

    fn used(at: u64) -> Floors {
        let at = Tai64n::of(UnixTime::from_secs(at));
        Floors { sent: at, received: [(PublicKey::from_bytes([2; 32]), at)].into() }
    }

    #[test]
    fn what_was_received_comes_back_and_what_is_sent_goes_on_beyond_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(directory.path().into());
        assert_eq!(keeper.load(NETWORK).unwrap(), Floors::default());
        keeper.note(NETWORK, used(1000)).unwrap();
        let again = Keeper::new(directory.path().into()).load(NETWORK).unwrap();
        assert_eq!(again.received, used(1000).received);
        assert_eq!(again.sent, Tai64n::of(UnixTime::from_secs(1030)));
        let mode = std::fs::metadata(keeper.path(NETWORK)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Each network has its own.
        assert_eq!(keeper.load(NetworkId::from_bytes([2; 16])).unwrap(), Floors::default());
    }

    #[test]
    fn a_damaged_file_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(directory.path().into());
        std::fs::write(keeper.path(NETWORK), "nonsense").unwrap();
        assert_eq!(keeper.load(NETWORK).unwrap(), Floors::default());
    }

    #[test]
    fn only_news_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(directory.path().into());
        keeper.note(NETWORK, used(1000)).unwrap();
        std::fs::remove_file(keeper.path(NETWORK)).unwrap();
        keeper.note(NETWORK, used(1000)).unwrap();
        assert!(!keeper.path(NETWORK).exists());
        keeper.note(NETWORK, used(1001)).unwrap();
        assert!(keeper.path(NETWORK).exists());
    }
}
