//! The commits that are remembered for watchers: a bounded tail, read by any number of cursors at their own pace.
//!
//! A watcher that falls behind the tail is told so and takes a new snapshot; nobody is waited for.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

use super::{Commit, Revision, StoreError, Watch};

/// The most commits that are remembered.
pub(super) const MAX_COMMITS: usize = 4096;
/// The most bytes that are remembered of them: large ones, as of policies, are fewer.
pub(super) const MAX_BYTES: usize = 64 << 20;
/// Commits that are remembered however large they are, as many as may come at once: a watcher that keeps up must not be lost.
pub(super) const MIN_COMMITS: usize = 64;

/// The newest commits, and their size.
#[derive(Debug, Default)]
struct Tail {
    commits: VecDeque<Arc<Commit>>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, commit: Commit) {
        self.bytes += size(&commit);
        self.commits.push_back(Arc::new(commit));
        while self.commits.len() > MAX_COMMITS || (self.bytes > MAX_BYTES && self.commits.len() > MIN_COMMITS)
        {
            self.bytes -= self.commits.pop_front().map_or(0, |forgotten| size(&forgotten));
        }
    }
}

fn size(commit: &Commit) -> usize {
    commit.changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// The remembered tail of commits, shared by the writer and the watchers.
#[derive(Debug)]
pub(super) struct Log {
    tail: Mutex<Tail>,
    /// The newest revision, or why there will be no newer one.
    head: watch::Sender<Result<Revision, StoreError>>,
}

impl Log {
    /// A log of a store that is at `revision`; what came before is not remembered.
    pub(super) fn new(revision: Revision) -> Self {
        Self { tail: Mutex::default(), head: watch::Sender::new(Ok(revision)) }
    }

    /// Appends commits that are durable and wakes the watchers.
    pub(super) fn append(&self, commits: impl IntoIterator<Item = Commit>) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        for commit in commits {
            let revision = commit.revision;
            tail.push(commit);
            drop(self.head.send_replace(Ok(revision)));
        }
    }

    /// Tells the watchers that no commit will follow.
    pub(super) fn fail(&self, error: StoreError) {
        drop(self.head.send_replace(Err(error)));
    }

    /// The commits after `after`.
    pub(super) fn watch(self: &Arc<Self>, after: Revision) -> Result<Watch, StoreError> {
        let head = self.head.subscribe();
        // Refuses at once what the first read would refuse, so that the caller need not poll to find out.
        self.after(after, head.borrow().clone()?)?;
        let cursor = Cursor { log: self.clone(), head, seen: after, ended: false };
        Ok(Box::pin(futures_util::stream::unfold(cursor, |mut cursor| async {
            if cursor.ended {
                return None;
            }
            let item = cursor.next().await;
            cursor.ended = item.is_err();
            Some((item, cursor))
        })))
    }

    /// The commit that follows `revision`, if there is one yet.
    fn after(&self, revision: Revision, newest: Revision) -> Result<Option<Arc<Commit>>, StoreError> {
        if revision >= newest {
            return Ok(None);
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = tail.commits.front().map_or(newest + 1, |commit| commit.revision);
        if revision + 1 < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        // Revisions are consecutive, so the distance to the oldest is the index.
        Ok(tail.commits.get((revision + 1 - oldest) as usize).cloned())
    }
}

/// One watcher's place in the log.
struct Cursor {
    log: Arc<Log>,
    head: watch::Receiver<Result<Revision, StoreError>>,
    seen: Revision,
    ended: bool,
}

impl Cursor {
    async fn next(&mut self) -> Result<Arc<Commit>, StoreError> {
        loop {
            let newest = self.head.borrow_and_update().clone()?;
            if let Some(commit) = self.log.after(self.seen, newest)? {
                self.seen = commit.revision;
                return Ok(commit);
            }
            let closed = StoreError::Failed("it was closed".into());
            self.head.changed().await.map_err(|_| closed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_in_bytes_and_commits() {
        let commit = |revision, bytes| Commit { revision, changes: vec![("k".into(), Some(vec![0; bytes]))] };
        let mut tail = Tail::default();
        for revision in 0..MAX_COMMITS as u64 + 10 {
            tail.push(commit(revision, 1));
        }
        assert_eq!((tail.commits.len(), tail.bytes), (MAX_COMMITS, 2 * MAX_COMMITS));
        for revision in 0..200 {
            tail.push(commit(revision, MAX_BYTES / 100));
        }
        assert_eq!(tail.commits.len(), 99);
        assert!(tail.bytes <= MAX_BYTES);
        for revision in 0..MIN_COMMITS as u64 {
            tail.push(commit(revision, MAX_BYTES / 10));
        }
        assert_eq!(tail.commits.len(), MIN_COMMITS, "however large");
        assert_eq!(tail.bytes, tail.commits.iter().map(|commit| size(commit)).sum::<usize>());
    }
}
