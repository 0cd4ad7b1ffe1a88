//! Where the durable state of a coordinator lives: a revisioned map of keys to bytes that can be watched.
//!
//! Nodes, keys, tokens, policy and names go through here; endpoints and presence never do. The rest of the coordinator
//! is a function of (snapshot, commits), so a second engine needs nothing but this trait and the suite in `contract`.
//! The semantics are etcd's, because that is the engine a coordinator with several replicas will use:
//!
//! * there is one revision for the whole store; it grows by one in the same transaction as the change it names;
//! * a transaction compares the revisions at which keys were last written, then writes, all or nothing;
//! * a watch gives every commit after a revision, once and in order, or says that it cannot.

#[cfg(test)]
mod contract;
mod log;
pub mod sqlite;
pub(crate) mod timed;

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::Stream;

/// Counts the commits of a store. 0 is the empty store.
pub type Revision = u64;

/// The most operations or compares of one transaction. A policy that changes the groups of thousands of members is one; etcd, whose
/// default is 128, takes as many with `--max-txn-ops`.
pub const MAX_OPS: usize = 4096;
/// The longest key in bytes.
pub const MAX_KEY: usize = 512;
/// The largest value in bytes (etcd takes requests of 1.5 MiB).
pub const MAX_VALUE: usize = 1 << 20;

/// A condition of a transaction: `key` was last written by the commit `revision`; 0 says that there is no such key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key that is looked at.
    pub key: String,
    /// The revision that wrote its present value; 0: the key must be absent.
    pub revision: Revision,
}

impl Compare {
    /// Demands that `key` does not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        Self { key: key.into(), revision: 0 }
    }

    /// Demands that `key` still has the value which commit `revision` wrote.
    pub fn unchanged(key: impl Into<String>, revision: Revision) -> Self {
        Self { key: key.into(), revision }
    }
}

/// One change of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes `value` under `key`.
    Put {
        /// Where.
        key: String,
        /// What.
        value: Vec<u8>,
        /// The key disappears with this lease.
        lease: Option<LeaseId>,
    },
    /// Removes `key`; nothing happens if it is absent.
    Delete {
        /// What to remove.
        key: String,
    },
}

impl Op {
    /// Writes `value` under `key` for good.
    pub fn put(key: impl Into<String>, value: Vec<u8>) -> Self {
        Self::Put { key: key.into(), value, lease: None }
    }

    /// Removes `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Names the key and not the value, which may hold what must not be in a log.
impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put { key, value, .. } => write!(f, "put {key} ({} bytes)", value.len()),
            Self::Delete { key } => write!(f, "delete {key}"),
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was written by this commit, and is durable. Without operations: the revision that was compared with.
    Committed(Revision),
    /// A compare did not hold, nothing was written; the store was at this revision.
    Conflict(Revision),
}

/// A key with its value and the commit that wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision that wrote the value.
    pub revision: Revision,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{} ({} bytes)", self.key, self.revision, self.value.len())
    }
}

/// Everything at one revision, sorted by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision of the last commit that it contains.
    pub revision: Revision,
    /// The entries.
    pub entries: Vec<Entry>,
}

/// What one transaction changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Commit {
    /// The revision that it made.
    pub revision: Revision,
    /// Keys and their new values; `None`: removed. In the order of the transaction.
    pub changes: Vec<(String, Option<Vec<u8>>)>,
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<&str> = self.changes.iter().map(|(key, _)| key.as_str()).collect();
        write!(f, "commit {} of {keys:?}", self.revision)
    }
}

/// The commits after a revision. Ends with an error, after which the caller takes a new snapshot or gives up.
pub type Watch = Pin<Box<dyn Stream<Item = Result<Arc<Commit>, StoreError>> + Send>>;

/// A promise to be alive: keys put under it disappear when it is not renewed for its time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space is left; nothing was written, and writing works again once there is space.
    #[error("the disk of the state directory is full: nothing was changed; free some space and try again")]
    Full,
    /// The queue is full, or another program holds the database; nothing was written.
    #[error("the store is busy: nothing was changed; try again")]
    Busy,
    /// The commits that a watch asked for are no longer remembered.
    #[error("the changes before revision {oldest} are no longer remembered; a new snapshot is needed")]
    Compacted {
        /// The oldest commit that is remembered.
        oldest: Revision,
    },
    /// The lease was not renewed in time, or never existed.
    #[error("the lease has expired")]
    LeaseExpired,
    /// A key, a value or a transaction is above the bounds of this module.
    #[error("{what} of {size} is above the bound of {bound}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        size: usize,
        /// How large it may be.
        bound: usize,
    },
    /// Writing failed in a way that leaves open what is on the disk. Nothing more is acknowledged; the process must end.
    #[error("the store failed and takes no more changes: {0}")]
    Failed(Arc<str>),
}

/// A revisioned map of keys to bytes.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug + 'static {
    /// Writes `ops` if every one of `compare` holds. When it returns [`Outcome::Committed`], the change survives a crash.
    ///
    /// # Errors
    /// Any [`StoreError`] but `Compacted`. Only after [`StoreError::Failed`] it is unknown whether the change was made.
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError>;

    /// Reads everything at the newest revision.
    ///
    /// # Errors
    /// [`StoreError::Failed`] or [`StoreError::Busy`].
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// Gives every commit with a revision above `after`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if some of them are forgotten, [`StoreError::Failed`].
    async fn watch(&self, after: Revision) -> Result<Watch, StoreError>;

    /// Starts a lease of `ttl`.
    ///
    /// # Errors
    /// [`StoreError::Failed`] or [`StoreError::Busy`].
    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Renews a lease for another of its time to live.
    ///
    /// # Errors
    /// [`StoreError::LeaseExpired`] if it is too late for that, [`StoreError::Failed`] or [`StoreError::Busy`].
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;
}

/// Checks a transaction against the bounds of this module, so that every engine refuses the same.
fn check_bounds(compare: &[Compare], ops: &[Op]) -> Result<(), StoreError> {
    let within = |what, size, bound| {
        if size > bound { Err(StoreError::TooLarge { what, size, bound }) } else { Ok(()) }
    };
    within("a transaction", ops.len().max(compare.len()), MAX_OPS)?;
    for key in compare.iter().map(|c| c.key.as_str()).chain(ops.iter().map(Op::key)) {
        within("a key", key.len(), MAX_KEY)?;
    }
    for op in ops {
        if let Op::Put { value, .. } = op {
            within("a value", value.len(), MAX_VALUE)?;
        }
    }
    Ok(())
}
