//! `join.json`: a join that has begun and whose answer may be lost, so that trying again is the same join and not another.
//!
//! A coordinator that took this node before the connection broke answers the same key and token as it did at first. So the
//! key stays on disk beside this note until the join is done, or until a coordinator definitely refuses it.

use ringmesh_tunnel::key::{NetworkId, TokenId};
use serde::{Deserialize, Serialize};

use super::directory::{StateDir, StateFile};
use crate::error::Failure;

/// What a begun join asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingJoin {
    /// The network.
    pub(crate) network: NetworkId,
    /// The token that may have been used.
    pub(crate) token: TokenId,
    /// The name asked for; empty: any.
    pub(crate) name: String,
    /// Whether the key was made or brought for this join, and was not there before.
    pub(crate) own_key: bool,
}

/// The same, as written.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    v: u32,
    network: String,
    token: String,
    name: String,
    own_key: bool,
}

/// The format written today.
const VERSION: u32 = 1;

impl PendingJoin {
    /// Reads the note; `None` if no join is under way. One that cannot be read is set aside: the key alone still makes a
    /// repeated join the same one.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn load(state: &StateDir) -> Result<Option<Self>, Failure> {
        let Some(content) = state.read(StateFile::Pending)? else { return Ok(None) };
        match Self::parse(&content) {
            Ok(pending) => Ok(Some(pending)),
            Err(why) => {
                state.set_aside(StateFile::Pending, &why);
                Ok(None)
            }
        }
    }

    fn parse(content: &[u8]) -> Result<Self, String> {
        let file: File = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if file.v != VERSION {
            return Err(format!("its version is {}, this program knows {VERSION}", file.v));
        }
        Ok(Self {
            network: file.network.parse().map_err(|error| format!("`network`: {error}"))?,
            token: file.token.parse().map_err(|error| format!("`token`: {error}"))?,
            name: file.name,
            own_key: file.own_key,
        })
    }

    /// Writes the note.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn save(&self, state: &StateDir) -> Result<(), Failure> {
        let file = File {
            v: VERSION,
            network: self.network.to_string(),
            token: self.token.to_string(),
            name: self.name.clone(),
            own_key: self.own_key,
        };
        let text =
            serde_json::to_string_pretty(&file).expect("invariant: strings and numbers are always JSON");
        state.write(StateFile::Pending, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_join_survives_the_disk_and_a_corrupt_note_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        assert_eq!(PendingJoin::load(&state).unwrap(), None);
        let pending = PendingJoin {
            network: NetworkId::from_bytes([3; 16]),
            token: TokenId::from_bytes([4; 8]),
            name: "alpha".to_owned(),
            own_key: true,
        };
        pending.save(&state).unwrap();
        assert_eq!(PendingJoin::load(&state).unwrap(), Some(pending));
        state.write(StateFile::Pending, b"{}").unwrap();
        assert_eq!(PendingJoin::load(&state).unwrap(), None);
        let kept = std::fs::read_dir(root.path()).unwrap().flatten();
        assert!(
            kept.into_iter()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("join.json.corrupt-"))
        );
    }
}
