//! The store of a single coordinator: one SQLite file in WAL mode with `synchronous=FULL`.
//!
//! This folder is the only place with SQL. One thread owns the connection; transactions that wait are committed together,
//! so that one sync of the disk serves many. Every value carries a checksum, and everything is read and checked at start.

mod copy;
mod open;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::oneshot;

use self::writer::{Command, Request, Writer};
pub use self::{copy::copy, open::OpenError};
use super::{
    Compare, LeaseId, Op, Outcome, Revision, Snapshot, Store, StoreError, Watch, check_bounds, log::Log,
};

/// The name of the database in the state directory.
pub const FILE: &str = "coordinator.db";

/// The most requests that wait for the writer.
const MAX_QUEUE: usize = 4096;

/// A [`Store`] in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    commands: SyncSender<Command>,
    log: Arc<Log>,
}

impl SqliteStore {
    /// Opens or creates the database in `directory`, checks it whole, and takes the lock that keeps other coordinators out
    /// until this value and its pending requests are gone.
    ///
    /// # Errors
    /// [`OpenError`], naming the file and the cure.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::begin(open::open(directory)?)
    }

    /// As [`open`](Self::open), but a file that came from a backup: its revision is raised by `step`, beyond all that were
    /// counted between the backup and its loss.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_restored(directory: &Path, step: Revision) -> Result<Self, OpenError> {
        let mut opened = open::open(directory)?;
        open::raise(&mut opened, step)?;
        Self::begin(opened)
    }

    fn begin(opened: open::Opened) -> Result<Self, OpenError> {
        let log = Arc::new(Log::new(opened.revision));
        let (commands, queue) = std::sync::mpsc::sync_channel(MAX_QUEUE);
        let path = opened.path.clone();
        let writer = Writer::new(opened, log.clone(), queue);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run())
            .map_err(|source| OpenError::Io { path, source })?;
        Ok(Self { commands, log })
    }

    /// Commits what waits and lets go of the file and the lock. Every later request fails.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let mut command = Command::Close { done };
        while let Err(TrySendError::Full(again)) = self.commands.try_send(command) {
            command = again;
            tokio::task::yield_now().await;
        }
        // An error says that the thread has ended already, or is about to.
        drop(closed.await);
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Failed("its thread has ended".into());
        self.commands.try_send(command(reply)).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => gone(),
        })?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        check_bounds(&compare, &ops)?;
        self.ask(|reply| Command::txn(compare, ops, reply)).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.ask(|reply| Command::Request(Request::Snapshot { reply })).await
    }

    async fn watch(&self, after: Revision) -> Result<Watch, StoreError> {
        self.log.watch(after)
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.ask(|reply| Command::Request(Request::Lease { ttl, reply })).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Command::Request(Request::KeepAlive { lease, reply })).await
    }
}

#[cfg(test)]
mod tests;
