//! A store that takes note of how long its transactions take and how they end.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::{Compare, LeaseId, Op, Outcome, Revision, Snapshot, Store, StoreError, Watch};
use crate::metrics::Durations;

/// Passes everything on to another store.
#[derive(Debug)]
pub(crate) struct TimedStore {
    store: Arc<dyn Store>,
    notes: Arc<Mutex<Notes>>,
}

/// How transactions went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes {
    /// Those that committed, found a conflict or failed.
    pub(crate) took: Durations,
    /// How many found that somebody was faster.
    pub(crate) conflicts: u64,
    /// How many failed because the disk is full, the store is busy, or for another reason.
    pub(crate) failures: Failures,
    /// Why the last one that changes something failed; `None`: it did not.
    pub(crate) trouble: Option<StoreError>,
}

/// Failures by what they say of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    pub(crate) full: u64,
    pub(crate) busy: u64,
    pub(crate) failed: u64,
}

/// The notes of a [`TimedStore`]; clones are of the same one.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    store: Arc<dyn Store>,
    notes: Arc<Mutex<Notes>>,
}

impl TimedStore {
    /// Surrounds `store`.
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, notes: Arc::default() }
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger { store: self.store.clone(), notes: self.notes.clone() }
    }
}

impl Ledger {
    /// The notes as they are now.
    pub(crate) fn notes(&self) -> Notes {
        lock(&self.notes).clone()
    }

    /// Asks the store for its revision, which goes through all that a transaction does but the disk; not noted.
    ///
    /// # Errors
    /// As [`Store::txn`].
    pub(crate) async fn ask(&self) -> Result<Revision, StoreError> {
        let (Outcome::Committed(revision) | Outcome::Conflict(revision)) =
            self.store.txn(Vec::new(), Vec::new()).await?;
        Ok(revision)
    }
}

fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Notes {
    fn take(&mut self, outcome: &Result<Outcome, StoreError>, took: Duration, changes: bool) {
        self.took.add(took);
        match outcome {
            Ok(Outcome::Committed(_)) if changes => self.trouble = None,
            Ok(Outcome::Committed(_)) => {}
            Ok(Outcome::Conflict(_)) => self.conflicts += 1,
            Err(error) => {
                match error {
                    StoreError::Full => self.failures.full += 1,
                    StoreError::Busy => self.failures.busy += 1,
                    StoreError::Failed(_) => self.failures.failed += 1,
                    // Whose fault that is, is said to the caller.
                    StoreError::Compacted { .. } | StoreError::LeaseExpired | StoreError::TooLarge { .. } => {
                        return;
                    }
                }
                self.trouble = Some(error.clone());
            }
        }
    }
}

#[async_trait]
impl Store for TimedStore {
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        let (began, changes) = (Instant::now(), !ops.is_empty());
        let outcome = self.store.txn(compare, ops).await;
        lock(&self.notes).take(&outcome, began.elapsed(), changes);
        outcome
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.store.snapshot().await
    }

    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(after).await
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_remembered_until_something_is_written_again() {
        let mut notes = Notes::default();
        let took = Duration::from_millis(1);
        notes.take(&Ok(Outcome::Committed(1)), took, true);
        assert_eq!(notes.trouble, None);
        notes.take(&Err(StoreError::Full), took, true);
        notes.take(&Ok(Outcome::Committed(1)), took, false);
        notes.take(&Ok(Outcome::Conflict(1)), took, true);
        assert_eq!(notes.trouble, Some(StoreError::Full), "neither of them wrote");
        notes.take(&Ok(Outcome::Committed(2)), took, true);
        assert_eq!(notes.trouble, None);
        notes.take(&Err(StoreError::LeaseExpired), took, true);
        assert_eq!(notes.trouble, None, "the store is well");
        assert_eq!(notes.failures, Failures { full: 1, ..Failures::default() });
        assert_eq!((notes.took.count(), notes.conflicts), (6, 1));
    }
}
