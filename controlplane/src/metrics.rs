//! What the coordinator counts for monitoring, and what it tells.
//!
//! Whoever does something counts it in [`Counters`] in plain words; [`Watched`] gathers these and everything that can be read off
//! the coordinator's state when somebody asks. Labels are words of ours and names of networks, of which there are few: nothing
//! that a stranger sends becomes one.

mod census;
mod durations;
mod requests;
mod watched;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ringmesh_tunnel::key::NetworkId;

use crate::{
    network::{
        events::{EventRow, Name},
        key::{Key, Part},
    },
    store::Commit,
};

pub use self::{
    census::Census,
    watched::{Tasks, Watched},
};
pub(crate) use self::{
    census::{Counted, Standing},
    durations::Durations,
    requests::{Counting, Requests},
};

/// Whether an update had everything, or what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UpdateKind {
    Full,
    Delta,
}

impl UpdateKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Delta => "delta",
        }
    }
}

/// How many, and their bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    updates: u64,
    bytes: u64,
}

/// What is counted while the coordinator runs.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counted: Mutex<Tally>,
    pub(crate) requests: Requests,
}

#[derive(Debug, Default)]
struct Tally {
    updates: BTreeMap<(NetworkId, UpdateKind), Sent>,
    /// Of networks, and of none.
    events: BTreeMap<(Option<NetworkId>, Name), u64>,
    /// Proofs that did not hold.
    guesses: u64,
    /// Of them, those of sources that had made too many.
    barred: u64,
}

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an update of a node's map, of so many bytes before encryption.
    pub(crate) fn update_sent(&self, network: NetworkId, kind: UpdateKind, bytes: usize) {
        let mut counted = self.lock();
        let sent = counted.updates.entry((network, kind)).or_default();
        sent.updates += 1;
        sent.bytes += bytes as u64;
    }

    /// Counts the events that a commit tells.
    pub(crate) fn happened(&self, commit: &Commit) {
        for (key, value) in &commit.changes {
            let network = match Key::parse(key) {
                Some(Key::Of(network, Part::Event(_))) => Some(network),
                Some(Key::Event(_)) => None,
                _ => continue,
            };
            let row = value.as_ref().and_then(|value| serde_json::from_slice::<EventRow>(value).ok());
            if let Some(name) = row.and_then(|row| row.name.parse().ok()) {
                *self.lock().events.entry((network, name)).or_default() += 1;
            }
        }
    }

    /// Counts a proof that did not hold.
    pub(crate) fn guessed(&self, barred: bool) {
        let mut counted = self.lock();
        counted.guesses += 1;
        counted.barred += u64::from(barred);
    }
}
