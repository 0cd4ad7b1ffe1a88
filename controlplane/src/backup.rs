//! Backups: a copy of the state directory that a coordinator can be started on, taken while it runs.
//!
//! A backup carries a mark. Whoever starts on it, wherever it was copied to, sees the mark and raises revision and serials beyond
//! what nodes can have seen since; so nobody has to remember to say so.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{
    state_dir::{self, FileError},
    store::{
        Revision,
        sqlite::{self, OpenError},
    },
    tls, vault,
};

/// The file that says of a state directory that it is a copy.
const MARK: &str = "restored";
/// What the mark says to people.
const MARK_TEXT: &[u8] = b"This directory is a backup. The first coordinator that starts on it raises revision and serials, and removes this file.\n";

/// Why there is no backup. The text names the cause and the cure.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is something already.
    #[error("{0}: this exists already; a backup is a new directory each time")]
    Exists(PathBuf),
    /// The directory cannot be made.
    #[error("{path}: {source}; does the directory above it exist, and may this user write there?")]
    Destination {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database cannot be read, or its copy not be written or is not what was read.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// Another file cannot be copied.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Copies what a coordinator needs from `state_dir` into the new directory `destination` (mode 0700), which can be started on as
/// it is. The coordinator may go on meanwhile. Returns the revision that the copy stands at.
///
/// The copy holds the key that opens its secrets: keep it as you keep the coordinator.
///
/// # Errors
/// [`BackupError`]; then `destination` is not there.
pub fn back_up(state_dir: &Path, destination: &Path) -> Result<Revision, BackupError> {
    match DirBuilder::new().mode(0o700).create(destination) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists(destination.into()));
        }
        Err(source) => return Err(BackupError::Destination { path: destination.into(), source }),
    }
    let copied = copy(state_dir, destination);
    if copied.is_err() {
        // A half backup is worse than none; what is in it was made here.
        drop(fs::remove_dir_all(destination));
    }
    copied
}

fn copy(state_dir: &Path, destination: &Path) -> Result<Revision, BackupError> {
    // The mark first: a copy of the database without it would be taken for the original.
    state_dir::replace(&destination.join(MARK), 0o600, MARK_TEXT)?;
    let revision = sqlite::copy(state_dir, destination)?;
    for (name, mode) in [(vault::FILE, 0o600), (tls::KEY_FILE, 0o600), (tls::CERTIFICATE_FILE, 0o644)] {
        let path = state_dir.join(name);
        let content = state_dir::read(&path)?.map(Zeroizing::new);
        let content =
            content.ok_or_else(|| FileError::damaged(&path, "missing; is this a state directory?"))?;
        state_dir::replace(&destination.join(name), mode, &content)?;
    }
    Ok(revision)
}

/// Whether `state_dir` is a copy on which no coordinator has run to the point of [`is_in_use`].
pub(crate) fn is_restored(state_dir: &Path) -> Result<bool, FileError> {
    Ok(state_dir::read(&state_dir.join(MARK))?.is_some())
}

/// Says that revision and serials were raised, so that the next start does not do it again.
pub(crate) fn is_in_use(state_dir: &Path) -> Result<(), FileError> {
    let path = state_dir.join(MARK);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::io(&path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::store::{Op, Store as _, sqlite::SqliteStore};

    /// A state directory with everything that one has, its store open.
    async fn state(directory: &Path) -> SqliteStore {
        let store = SqliteStore::open(directory).unwrap();
        for i in 0..20_u8 {
            store.txn(vec![], vec![Op::put(format!("key/{i}"), vec![i; 300])]).await.unwrap();
        }
        for name in [vault::FILE, tls::KEY_FILE, tls::CERTIFICATE_FILE] {
            state_dir::replace(&directory.join(name), 0o600, name.as_bytes()).unwrap();
        }
        store
    }

    #[tokio::test]
    async fn a_backup_of_a_running_coordinator_has_what_was_committed_and_is_marked() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = state(directory.path()).await;
        let destination = elsewhere.path().join("monday");
        assert_eq!(back_up(directory.path(), &destination).unwrap(), 20);
        // What comes after it is not in it, and the original goes on.
        store.txn(vec![], vec![Op::put("key/late".to_owned(), vec![1])]).await.unwrap();
        assert!(is_restored(&destination).unwrap());
        assert!(!is_restored(directory.path()).unwrap());
        assert_eq!(fs::metadata(&destination).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&destination).unwrap() {
            let entry = entry.unwrap();
            let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
            let public = entry.file_name() == tls::CERTIFICATE_FILE;
            assert_eq!(mode, if public { 0o644 } else { 0o600 }, "{:?}", entry.file_name());
        }
        let copy = SqliteStore::open(&destination).unwrap();
        let snapshot = copy.snapshot().await.unwrap();
        assert_eq!((snapshot.revision, snapshot.entries.len()), (20, 20));
        is_in_use(&destination).unwrap();
        is_in_use(&destination).unwrap();
        assert!(!is_restored(&destination).unwrap());
    }

    #[tokio::test]
    async fn a_backup_replaces_nothing_and_a_failed_one_leaves_nothing() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let _store = state(directory.path()).await;
        let destination = elsewhere.path().join("copy");
        fs::create_dir(&destination).unwrap();
        assert!(matches!(back_up(directory.path(), &destination), Err(BackupError::Exists(_))));
        fs::remove_dir(&destination).unwrap();
        fs::remove_file(directory.path().join(vault::FILE)).unwrap();
        assert!(matches!(back_up(directory.path(), &destination), Err(BackupError::File(_))));
        assert!(!destination.exists());
        let nothing = tempfile::tempdir().unwrap();
        assert!(matches!(back_up(nothing.path(), &destination), Err(BackupError::Database(_))));
        assert!(!destination.exists());
        assert_eq!(fs::read_dir(nothing.path()).unwrap().count(), 0, "none was made");
    }
}
