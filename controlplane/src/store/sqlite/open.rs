//! Opening the database: permissions, the lock, the schema's version, and a check of every byte that will be served.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _};
use sha2::{Digest as _, Sha256};

use super::{super::Revision, FILE};

/// Marks the file as ours ("RMsh").
const APPLICATION_ID: i32 = 0x524d_7368;
/// The newest schema that this program knows.
const SCHEMA_VERSION: i32 = 1;

/// Schema 1. `mark` is a checksum, see [`mark`]; `lease` marks entries that die with the process that wrote them.
const SCHEMA: &str = "
CREATE TABLE entry (
    key      TEXT    PRIMARY KEY,
    value    BLOB    NOT NULL,
    revision INTEGER NOT NULL,
    lease    INTEGER,
    mark     BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL) STRICT;
INSERT INTO head VALUES (1, 0);
";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another coordinator has it open.
    #[error(
        "{path}: another coordinator is using this state directory; stop it, or give this one its own state_dir"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A newer program wrote it.
    #[error(
        "{path}: written by a newer version (schema {found}, this one knows {known}); install that version again, or \
         restore a backup from before the upgrade"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i32,
        /// The newest schema known here.
        known: i32,
    },
    /// The file is an SQLite database of something else.
    #[error("{path}: this is not a coordinator's database; move it away, or set another state_dir")]
    NotOurs {
        /// The database.
        path: PathBuf,
    },
    /// What is in the file is not what was written.
    #[error(
        "{path}: the database is corrupted ({detail}); stop the coordinator and restore this file from a backup"
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What the check found.
        detail: String,
    },
    /// The file cannot be read or written.
    #[error("{path}: {source}; check that the directory exists and belongs to the coordinator's user")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite could not open the file for another reason.
    #[error("{path}: {source}; check the directory's owner and free space")]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}

/// A database that passed every check.
pub(super) struct Opened {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) revision: Revision,
    /// Holds the lock while it lives.
    pub(super) lock: File,
}

/// The checksum of an entry: a flipped bit in a value is not something SQLite notices.
pub(super) fn mark(key: &str, value: &[u8], revision: Revision) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_be_bytes());
    hash.update(key);
    hash.update(revision.to_be_bytes());
    hash.update(value);
    let digest: [u8; 32] = hash.finalize().into();
    let mut mark = [0; 16];
    mark.copy_from_slice(&digest[..16]);
    mark
}

/// Opens or creates the database in `directory`.
pub(super) fn open(directory: &Path) -> Result<Opened, OpenError> {
    let lock = lock(&directory.join("lock"))?;
    let path = directory.join(FILE);
    create(directory, &path)?;
    let connection = Connection::open(&path).map_err(|error| blame(&path, error))?;
    prepare(&connection, &path)?;
    check(&connection, &path)?;
    let revision = revision(&connection, &path)?;
    Ok(Opened { connection, path, revision, lock })
}

/// The revision of a database.
pub(super) fn revision(connection: &Connection, path: &Path) -> Result<Revision, OpenError> {
    let found = connection.query_row("SELECT revision FROM head", [], |row| row.get(0)).optional();
    found.map_err(|error| blame(path, error))?.ok_or_else(|| corrupt(path, "the revision is missing"))
}

/// Raises the revision by `step`, for good.
pub(super) fn raise(opened: &mut Opened, step: Revision) -> Result<(), OpenError> {
    let raised = opened.revision.saturating_add(step).min(i64::MAX.unsigned_abs());
    let Opened { connection, path, revision, .. } = opened;
    connection.execute("UPDATE head SET revision = ?1", [raised]).map_err(|error| blame(path, error))?;
    *revision = raised;
    Ok(())
}

/// Keeps a second coordinator out. The kernel drops the lock with the process, however it ends.
fn lock(path: &Path) -> Result<File, OpenError> {
    let io = |source| OpenError::Io { path: path.into(), source };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Makes the file before SQLite does: for its mode, which the WAL inherits, and to sync its directory entry.
fn create(directory: &Path, path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.into(), source };
    if fs::exists(path).map_err(io)? {
        return Ok(());
    }
    OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

/// Tells whether the file is empty; one of somebody else, or of a newer version of ours, is an error.
pub(super) fn identify(connection: &Connection, path: &Path) -> Result<bool, OpenError> {
    let fault = |error| blame(path, error);
    connection.busy_timeout(Duration::from_secs(5)).map_err(fault)?;
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(fault)?;
    let version: i32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(fault)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(fault)?;
    let fresh = application == 0 && version == 0 && tables == 0;
    if !fresh && application != APPLICATION_ID {
        return Err(OpenError::NotOurs { path: path.into() });
    }
    if version > SCHEMA_VERSION {
        return Err(OpenError::Newer { path: path.into(), found: version, known: SCHEMA_VERSION });
    }
    Ok(fresh)
}

/// Sets the modes that durability rests on, and creates the schema in an empty file.
fn prepare(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let fault = |error| blame(path, error);
    let fresh = identify(connection, path)?;
    let mode: String =
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(fault)?;
    if mode != "wal" {
        let refused = format!("the file system does not allow WAL, journal mode stays {mode}");
        return Err(OpenError::Io { path: path.into(), source: io::Error::other(refused) });
    }
    connection.pragma_update(None, "synchronous", "FULL").map_err(fault)?;
    // What is deleted (a revoked token, an old secret) shall not stay in the file.
    connection.pragma_update(None, "secure_delete", true).map_err(fault)?;
    if fresh {
        let create = format!(
            "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; \
             PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        );
        connection.execute_batch(&create).map_err(fault)?;
    }
    Ok(())
}

/// Reads every page and every entry.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let fault = |error| blame(path, error);
    let verdict: String =
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(fault)?;
    if verdict != "ok" {
        return Err(corrupt(path, &verdict));
    }
    let mut all = connection.prepare("SELECT key, value, revision, mark FROM entry").map_err(fault)?;
    let mut rows = all.query([]).map_err(fault)?;
    while let Some(row) = rows.next().map_err(fault)? {
        let (key, revision): (String, Revision) = (row.get(0).map_err(fault)?, row.get(2).map_err(fault)?);
        let value = row.get_ref(1).map_err(fault)?;
        let found = row.get_ref(3).map_err(fault)?;
        let (Ok(value), Ok(found)) = (value.as_blob(), found.as_blob()) else {
            return Err(corrupt(path, "an entry is not of the type that was written"));
        };
        if mark(&key, value, revision) != found {
            // The key is not shown: it may be what was damaged.
            return Err(corrupt(path, "an entry does not have its checksum"));
        }
    }
    Ok(())
}

fn corrupt(path: &Path, detail: &str) -> OpenError {
    OpenError::Corrupt { path: path.into(), detail: detail.into() }
}

/// Tells a damaged file from one that cannot be used for other reasons.
pub(super) fn blame(path: &Path, source: rusqlite::Error) -> OpenError {
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => corrupt(path, &source.to_string()),
        _ if matches!(
            source,
            rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::Utf8Error(..)
        ) =>
        {
            corrupt(path, &source.to_string())
        }
        _ => OpenError::Sqlite { path: path.into(), source },
    }
}
