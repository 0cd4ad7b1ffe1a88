//! The thread that owns the connection: takes what waits, commits it together, then answers.

use std::{
    collections::BTreeMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use tokio::sync::oneshot;

use super::{
    super::{Commit, Compare, Entry, LeaseId, Op, Outcome, Revision, Snapshot, StoreError, log::Log},
    open::{Opened, mark},
};

/// The most transactions that share one sync of the disk.
const MAX_BATCH: usize = 64;
/// After how long the deletion of an expired lease is tried again.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the store asks of its thread.
pub(super) enum Command {
    Txn(Pending),
    Request(Request),
    /// Ends the thread; answered when the file and the lock are let go of.
    Close {
        done: oneshot::Sender<()>,
    },
}

/// What is not a transaction.
pub(super) enum Request {
    Snapshot { reply: Reply<Snapshot> },
    Lease { ttl: Duration, reply: Reply<LeaseId> },
    KeepAlive { lease: LeaseId, reply: Reply<()> },
}

impl Command {
    pub(super) fn txn(compare: Vec<Compare>, ops: Vec<Op>, reply: Reply<Outcome>) -> Self {
        Self::Txn(Pending { compare, ops, reply: Some(reply) })
    }
}

struct Lease {
    ttl: Duration,
    deadline: Instant,
}

/// A transaction with the one who waits for it.
pub(super) struct Pending {
    compare: Vec<Compare>,
    ops: Vec<Op>,
    reply: Option<Reply<Outcome>>,
}

pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    revision: Revision,
    leases: BTreeMap<LeaseId, Lease>,
    next_lease: u64,
    log: Arc<Log>,
    queue: Receiver<Command>,
    failed: Option<StoreError>,
    _lock: File,
}

impl Writer {
    pub(super) fn new(opened: Opened, log: Arc<Log>, queue: Receiver<Command>) -> Self {
        let Opened { connection, path, revision, lock } = opened;
        let (leases, next_lease) = (BTreeMap::new(), 1);
        Self { connection, path, revision, leases, next_lease, log, queue, failed: None, _lock: lock }
    }

    /// Serves until it is told to close, or every sender is gone.
    pub(super) fn run(mut self) {
        // Leases of an earlier process: it is dead, as this one has the lock.
        self.delete_leased("lease IS NOT NULL");
        while let Some(first) = self.wait() {
            let mut commands = vec![first];
            commands.extend(self.queue.try_iter().take(MAX_BATCH - 1));
            if let Some(done) = self.serve(commands) {
                drop(self);
                // Whoever asked may have gone away.
                let _gone = done.send(());
                return;
            }
        }
    }

    /// The next command; lets leases expire while it waits.
    fn wait(&mut self) -> Option<Command> {
        loop {
            let now = Instant::now();
            let Some(deadline) = self.leases.values().map(|lease| lease.deadline).min() else {
                return self.queue.recv().ok();
            };
            match self.queue.recv_timeout(deadline.saturating_duration_since(now)) {
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout) => self.expire(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Runs neighbouring transactions as one batch, and the rest in between, in the order of arrival. Returns whom to tell
    /// if it has to close; what came after that is not answered.
    fn serve(&mut self, commands: Vec<Command>) -> Option<oneshot::Sender<()>> {
        let mut batch = Vec::new();
        for command in commands {
            match command {
                Command::Txn(pending) => batch.push(pending),
                Command::Request(request) => {
                    self.commit(std::mem::take(&mut batch));
                    self.serve_request(request);
                }
                Command::Close { done } => {
                    self.commit(batch);
                    return Some(done);
                }
            }
        }
        self.commit(batch);
        None
    }

    fn serve_request(&mut self, request: Request) {
        let failed = self.failed.clone().map_or(Ok(()), Err);
        match request {
            Request::Snapshot { reply } => drop(reply.send(failed.and_then(|()| self.snapshot()))),
            Request::Lease { ttl, reply } => drop(reply.send(failed.map(|()| self.lease(ttl)))),
            Request::KeepAlive { lease, reply } => {
                drop(reply.send(failed.and_then(|()| self.keep_alive(lease))));
            }
        }
    }

    fn lease(&mut self, ttl: Duration) -> LeaseId {
        let id = LeaseId(self.next_lease);
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, deadline: Instant::now() + ttl });
        id
    }

    fn keep_alive(&mut self, id: LeaseId) -> Result<(), StoreError> {
        self.expire();
        let lease = self.leases.get_mut(&id).ok_or(StoreError::LeaseExpired)?;
        lease.deadline = Instant::now() + lease.ttl;
        Ok(())
    }

    /// Ends the leases that nobody renewed.
    fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<LeaseId> =
            self.leases.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            if self.delete_leased(&format!("lease = {}", id.0)) {
                self.leases.remove(&id);
            } else if let Some(lease) = self.leases.get_mut(&id) {
                // It could not be written (a full disk): its keys are still there, so it still lives.
                lease.deadline = now + EXPIRY_RETRY;
            }
        }
    }

    /// Deletes entries by their lease, in a commit of its own; false if that could not be written.
    fn delete_leased(&mut self, condition: &str) -> bool {
        let keys = self.connection.prepare(&format!("SELECT key FROM entry WHERE {condition}")).and_then(
            |mut select| select.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>(),
        );
        match keys {
            Ok(keys) if keys.is_empty() => true,
            Ok(keys) => {
                let ops = keys.into_iter().map(Op::delete).collect();
                self.commit(vec![Pending { compare: Vec::new(), ops, reply: None }])
            }
            Err(error) => {
                self.fault(&error);
                false
            }
        }
    }

    /// Commits a batch of transactions with one sync, then answers each; false if it could not be written.
    fn commit(&mut self, batch: Vec<Pending>) -> bool {
        if batch.is_empty() {
            return true;
        }
        let done = match self.failed.clone() {
            Some(failed) => Err(failed),
            None => self.write(&batch).map_err(|error| {
                let error = self.fault(&error);
                self.roll_back();
                error
            }),
        };
        match done {
            Ok((outcomes, commits)) => {
                self.revision = commits.last().map_or(self.revision, |commit| commit.revision);
                self.log.append(commits);
                for (pending, outcome) in batch.into_iter().zip(outcomes) {
                    pending.answer(outcome);
                }
                true
            }
            Err(error) => {
                for pending in batch {
                    pending.answer(Err(error.clone()));
                }
                false
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "two lists, named where they are taken apart")]
    fn write(
        &mut self,
        batch: &[Pending],
    ) -> Result<(Vec<Result<Outcome, StoreError>>, Vec<Commit>), rusqlite::Error> {
        let Self { connection, leases, .. } = self;
        let mut revision = self.revision;
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut commits = Vec::new();
        connection.execute_batch("BEGIN IMMEDIATE")?;
        for Pending { compare, ops, .. } in batch {
            if !holds(connection, compare)? {
                outcomes.push(Ok(Outcome::Conflict(revision)));
            } else if ops
                .iter()
                .any(|op| matches!(op, Op::Put { lease: Some(id), .. } if !leases.contains_key(id)))
            {
                outcomes.push(Err(StoreError::LeaseExpired));
            } else if ops.is_empty() {
                outcomes.push(Ok(Outcome::Committed(revision)));
            } else {
                revision += 1;
                commits.push(apply(connection, ops, revision)?);
                outcomes.push(Ok(Outcome::Committed(revision)));
            }
        }
        if revision != self.revision {
            connection.prepare_cached("UPDATE head SET revision = ?1")?.execute([revision])?;
        }
        connection.execute_batch("COMMIT")?;
        Ok((outcomes, commits))
    }

    fn snapshot(&mut self) -> Result<Snapshot, StoreError> {
        let entries = read_all(&self.connection).map_err(|error| self.fault(&error))?;
        Ok(Snapshot { revision: self.revision, entries })
    }

    /// Decides whether to go on: a full disk and a lock of another program leave the file as it was; after anything
    /// else nobody knows what the disk holds (a failed sync may have dropped pages), so nothing is acknowledged any more.
    fn fault(&mut self, error: &rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy,
            _ => self.fail(&error.to_string()),
        }
    }

    fn fail(&mut self, why: &str) -> StoreError {
        let failed = StoreError::Failed(format!("{}: {why}", self.path.display()).into());
        tracing::error!(event = "store_failed", error = %failed, "the store takes no more changes");
        self.log.fail(failed.clone());
        self.failed = Some(failed.clone());
        failed
    }

    fn roll_back(&mut self) {
        // SQLite has rolled back by itself after some errors.
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            self.fail(&format!("cannot roll back: {error}"));
        }
    }
}

impl Pending {
    fn answer(self, outcome: Result<Outcome, StoreError>) {
        if let Some(reply) = self.reply {
            // Whoever asked may have gone away; what was committed stays.
            drop(reply.send(outcome));
        }
    }
}

fn holds(connection: &Connection, compare: &[Compare]) -> Result<bool, rusqlite::Error> {
    let mut select = connection.prepare_cached("SELECT revision FROM entry WHERE key = ?1")?;
    for Compare { key, revision } in compare {
        let found: Option<Revision> = select.query_row([key], |row| row.get(0)).optional()?;
        if found.unwrap_or(0) != *revision {
            return Ok(false);
        }
    }
    Ok(true)
}

fn apply(connection: &Connection, ops: &[Op], revision: Revision) -> Result<Commit, rusqlite::Error> {
    let mut changes = Vec::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Put { key, value, lease } => {
                connection
                    .prepare_cached(
                        "INSERT INTO entry (key, value, revision, lease, mark) VALUES (?1, ?2, ?3, ?4, ?5)
                         ON CONFLICT (key) DO UPDATE SET value = ?2, revision = ?3, lease = ?4, mark = ?5",
                    )?
                    .execute(params![
                        key,
                        value,
                        revision,
                        lease.map(|id| id.0),
                        mark(key, value, revision)
                    ])?;
                changes.push((key.clone(), Some(value.clone())));
            }
            Op::Delete { key } => {
                if connection.prepare_cached("DELETE FROM entry WHERE key = ?1")?.execute([key])? > 0 {
                    changes.push((key.clone(), None));
                }
            }
        }
    }
    Ok(Commit { revision, changes })
}

fn read_all(connection: &Connection) -> Result<Vec<Entry>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT key, value, revision FROM entry ORDER BY key")?
        .query_map([], |row| Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: row.get(2)? }))?
        .collect()
}
