//! Backups: a copy of the state directory that a coordinator can be started on, taken while it runs.
//!
//! A backup carries a mark. Whoever starts on it, wherever it was copied to, sees the mark and raises revision and serials beyond
//! what nodes can have seen since; so nobody has to remember to say so.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
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
    /// Others could put another directory in the place of the backup while it is written.
    #[error(
        "{path}: others may write into this directory (mode {mode:03o}, owner {owner}), and a backup holds keys; choose one \
         that is yours alone"
    )]
    Shared {
        /// The directory above the backup.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner's user id.
        owner: u32,
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
/// The copy holds the key that opens its secrets: keep it as you keep the coordinator. Whoever may write into `state_dir` is not
/// trusted with the rights of who makes the backup: no link is followed there, and only files of its owner are read.
///
/// # Errors
/// [`BackupError`]; then `destination` is not there.
pub fn back_up(state_dir: &Path, destination: &Path) -> Result<Revision, BackupError> {
    is_ours_alone(destination)?;
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

/// Whether nobody but this user and root can rename what is made at `destination`.
fn is_ours_alone(destination: &Path) -> Result<(), BackupError> {
    let above =
        destination.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let found = fs::metadata(above)
        .map_err(|source| BackupError::Destination { path: destination.into(), source })?;
    let owned = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
    // With the sticky bit, as in /tmp, they may make files and not touch those of others.
    let sticky = found.mode() & 0o1000 != 0;
    if owned && (sticky || found.mode() & 0o022 == 0) {
        return Ok(());
    }
    Err(BackupError::Shared { path: above.into(), mode: found.mode() & 0o7777, owner: found.uid() })
}

fn copy(state_dir: &Path, destination: &Path) -> Result<Revision, BackupError> {
    // The directory itself may be reached by a link: where it lies is its administrator's choice.
    let state_dir = &fs::canonicalize(state_dir).map_err(FileError::io(state_dir))?;
    let owner = fs::metadata(state_dir).map_err(FileError::io(state_dir))?.uid();
    // The mark first: a copy of the database without it would be taken for the original.
    state_dir::replace(&destination.join(MARK), 0o600, MARK_TEXT)?;
    let database = state_dir.join(sqlite::FILE);
    // Not by opening it: closing any descriptor of it would give up the locks that this process has on it (fcntl(2)).
    if let Ok(found) = fs::symlink_metadata(&database) {
        state_dir::is_of(&found, &database, owner)?;
    }
    let revision = sqlite::copy(state_dir, destination)?;
    for (name, mode) in [(vault::FILE, 0o600), (tls::KEY_FILE, 0o600), (tls::CERTIFICATE_FILE, 0o644)] {
        let path = state_dir.join(name);
        let content = state_dir::read_of(&path, owner)?.map(Zeroizing::new);
        let content =
            content.ok_or_else(|| FileError::damaged(&path, "missing; is this a state directory?"))?;
        state_dir::replace(&destination.join(name), mode, &content)?;
    }
    Ok(revision)
}

/// Whether `state_dir` is a copy that was not yet [taken into use](take_into_use).
pub(crate) fn is_restored(state_dir: &Path) -> Result<bool, FileError> {
    Ok(state_dir::read(&state_dir.join(MARK))?.is_some())
}

/// Removes the mark once revision and serials were raised, so that the next start does not raise them again.
pub(crate) fn take_into_use(state_dir: &Path) -> Result<(), FileError> {
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
        take_into_use(&destination).unwrap();
        take_into_use(&destination).unwrap();
        assert!(!is_restored(&destination).unwrap());
    }

    #[tokio::test]
    async fn a_backup_follows_no_link_of_whoever_may_write_into_the_state() {
        for name in [vault::FILE, tls::KEY_FILE, tls::CERTIFICATE_FILE, sqlite::FILE] {
            let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            drop(state(directory.path()).await);
            let (file, victim) = (directory.path().join(name), elsewhere.path().join("victim"));
            fs::rename(&file, &victim).unwrap();
            std::os::unix::fs::symlink(&victim, &file).unwrap();
            let destination = elsewhere.path().join("copy");
            back_up(directory.path(), &destination).unwrap_err();
            assert!(!destination.exists(), "{name}");
        }
    }

    #[tokio::test]
    async fn the_directory_itself_may_be_a_link() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let _store = state(directory.path()).await;
        let link = elsewhere.path().join("state");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert_eq!(back_up(&link, &elsewhere.path().join("copy")).unwrap(), 20);
    }

    #[tokio::test]
    async fn a_backup_is_not_written_where_others_could_put_theirs_in_its_place() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let _store = state(directory.path()).await;
        let destination = elsewhere.path().join("copy");
        for (mode, fits) in [(0o777, false), (0o770, false), (0o702, false), (0o1777, true), (0o755, true)] {
            fs::set_permissions(elsewhere.path(), fs::Permissions::from_mode(mode)).unwrap();
            let made = back_up(directory.path(), &destination);
            assert_eq!(made.is_ok(), fits, "{mode:o}");
            assert_eq!(destination.exists(), fits, "{mode:o}");
            assert!(fits || matches!(made, Err(BackupError::Shared { .. })), "{mode:o}");
            drop(fs::remove_dir_all(&destination));
        }
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
