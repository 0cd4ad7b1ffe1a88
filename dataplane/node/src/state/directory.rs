//! The state directory: 0700, locked by one daemon, its files written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use ringmesh_proto::control::Reason;
use tracing::warn;
use zeroize::Zeroizing;

use crate::error::Failure;

/// No state file is longer: a map of some hundred thousand records.
const MAX_FILE: u64 = 256 << 20;
/// Files of an interrupted write end like this.
const TEMPORARY: &str = ".tmp";
/// How often the lock is tried, and how long apart: half a second in all.
const LOCK_ATTEMPTS: u32 = 26;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// One of the files that this crate keeps in a [`StateDir`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateFile {
    /// The private key.
    Identity,
    /// The membership.
    Network,
    /// The verified map.
    Map,
    /// The secrets.
    Secrets,
    /// Spent timestamps and serials.
    Timestamps,
    /// What this node's owner denies.
    Denials,
    /// The join whose answer is awaited.
    Pending,
    /// What was changed on the machine and is to be taken back.
    Undo,
}

impl StateFile {
    /// The file's name in the directory.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Network => "network.json",
            Self::Map => "map",
            Self::Secrets => "secrets",
            Self::Timestamps => "timestamps",
            Self::Denials => "denials.json",
            Self::Pending => "join.json",
            Self::Undo => "undo.json",
        }
    }
}

/// An open, locked state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
    /// How often the directory itself was written out, for tests: no test can cut the power.
    #[cfg(test)]
    syncs: std::sync::atomic::AtomicUsize,
}

/// Takes the lock, or waits a moment for it: who has just ended may still be cleared up, and a program that it was starting holds
/// its descriptors until it runs.
fn lock_soon(lock: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_ATTEMPTS {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            result => return result,
        }
    }
    lock.try_lock()
}

impl StateDir {
    /// Opens `path`, creating it (0700) if it is missing, and locks it.
    ///
    /// # Errors
    /// Another daemon holds it, it is somebody else's, somebody else may write to it, or the system refuses.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Failure::host(format!("creating the state directory {shown}"), &error))?;
        make_private(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(|error| Failure::host(format!("locking the state directory {shown}"), &error))?;
        match lock_soon(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::new(
                    Reason::Conflict,
                    format!(
                        "another daemon uses the state directory {shown}: stop it, or give this one its own --state-dir"
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Failure::host(format!("locking the state directory {shown}"), &error));
            }
        }
        let directory = Self {
            path: path.to_owned(),
            _lock: lock,
            #[cfg(test)]
            syncs: std::sync::atomic::AtomicUsize::new(0),
        };
        directory.sweep();
        Ok(directory)
    }

    /// Where a file is, for messages.
    pub(crate) fn path_of(&self, file: StateFile) -> PathBuf {
        self.path.join(file.name())
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// It exists but cannot be read, or is somebody else's, who could write into it what he likes.
    pub(crate) fn read(&self, file: StateFile) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
        let path = self.path_of(file);
        let opened = match File::open(&path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::host(format!("reading {}", path.display()), &error)),
        };
        let found = opened
            .metadata()
            .map_err(|error| Failure::host(format!("reading {}", path.display()), &error))?;
        check_owner(&path, found.uid())?;
        let size = found.len().min(MAX_FILE);
        // Room for the whole file at once, so that no half-filled buffer with secrets is left behind unwiped.
        let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
        opened
            .take(MAX_FILE)
            .read_to_end(&mut content)
            .map_err(|error| Failure::host(format!("reading {}", path.display()), &error))?;
        Ok(Some(content))
    }

    /// Replaces a file, wholly or not at all, even if the power fails meanwhile.
    ///
    /// # Errors
    /// The disk refuses; the old content is then still there.
    pub(crate) fn write(&self, file: StateFile, content: &[u8]) -> Result<(), Failure> {
        let path = self.path_of(file);
        self.replace(&path, content)
            .map_err(|error| Failure::host(format!("writing {}", path.display()), &error))
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("state");
        let temporary = self.path.join(format!(".{name}.{:016x}{TEMPORARY}", u64::from_ne_bytes(random)));
        let result = (|| {
            let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            new.write_all(content)?;
            new.sync_all()?;
            fs::rename(&temporary, path)?;
            self.sync()
        })();
        if result.is_err() {
            // The rename may have happened; then there is nothing to remove.
            let _ = fs::remove_file(&temporary);
        }
        result
    }

    /// Makes what was renamed or removed survive a power cut.
    fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        self.syncs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        File::open(&self.path)?.sync_all()
    }

    /// Removes a file, so that it stays away even if the power fails right afterwards; it is no error if there is none.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn remove(&self, file: StateFile) -> Result<(), Failure> {
        let path = self.path_of(file);
        match fs::remove_file(&path).and_then(|()| self.sync()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Failure::host(format!("removing {}", path.display()), &error)),
        }
    }

    /// Renames a file that cannot be understood, so that it can be looked at and a new one written.
    pub(crate) fn set_aside(&self, file: StateFile, why: &dyn std::fmt::Display) {
        let from = self.path_of(file);
        let stamp = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let to = self.path.join(format!("{}.corrupt-{stamp}", file.name()));
        match fs::rename(&from, &to) {
            Ok(()) => tracing::error!(
                event = "state_file_unusable", file = %from.display(), kept_as = %to.display(), %why,
                "a state file cannot be used; it was moved aside and a coordinator will be asked for its content"
            ),
            Err(error) => {
                tracing::error!(event = "state_file_unusable", file = %from.display(), %why, %error, "a state file can neither be used nor moved")
            }
        }
    }

    /// Renames a file that is good, but in the way; gives where it is now.
    ///
    /// # Errors
    /// The disk refuses; the file is where it was.
    pub(crate) fn keep_as(&self, file: StateFile, suffix: &str) -> Result<PathBuf, Failure> {
        let from = self.path_of(file);
        let to = self.path.join(format!("{}.{suffix}", file.name()));
        fs::rename(&from, &to).and_then(|()| self.sync()).map_err(|error| {
            Failure::host(format!("renaming {} to {}", from.display(), to.display()), &error)
        })?;
        Ok(to)
    }

    /// Removes what interrupted writes left.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(TEMPORARY));
            if ours && let Err(error) = fs::remove_file(entry.path()) {
                warn!(event = "state_write_failed", file = %entry.path().display(), %error, "cannot remove what an interrupted write left");
            }
        }
    }
}

/// Refuses what belongs to neither root nor the user we act for. What is in a state directory is acted on with all our rights, so
/// its owner would have them too.
fn check_owner(path: &Path, owner: u32) -> Result<(), Failure> {
    let user = rustix::process::geteuid().as_raw();
    if trusts(user, owner) {
        return Ok(());
    }
    let shown = path.display();
    Err(Failure::permission(format!(
        "{shown} belongs to user {owner}, not to root or user {user}, who runs this: run it as user {owner}, use another \
         --state-dir, or give it to user {user} once you know what is in it (`chown -R {user} {shown}`)"
    )))
}

/// Whether what `user` does may follow from what `owner` wrote.
fn trusts(user: u32, owner: u32) -> bool {
    owner == user || owner == 0
}

/// Makes sure that nobody else can read or exchange what is in the directory.
fn make_private(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let found = fs::metadata(path)
        .map_err(|error| Failure::host(format!("reading the state directory {shown}"), &error))?;
    check_owner(path, found.uid())?;
    let mode = found.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    // A directory that others may write to is somebody's shared place (/tmp, say), not ours to lock away.
    if mode & 0o022 != 0 {
        return Err(Failure::permission(format!(
            "others may write to the state directory {shown} (mode {mode:o}): use one of its own, or `chmod 700 {shown}`"
        )));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| {
        Failure::host(format!("making the state directory {shown} private (`chmod 700 {shown}`)"), &error)
    })?;
    warn!(event = "state_mode_corrected", directory = %shown, "others could read the state directory; its mode is 0700 now");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn directory_and_files_are_private() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let state = StateDir::open(&path).unwrap();
        state.write(StateFile::Secrets, b"s").unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&state.path_of(StateFile::Secrets)), 0o600);
        assert_eq!(state.read(StateFile::Secrets).unwrap().unwrap().as_slice(), b"s");
        assert!(state.read(StateFile::Map).unwrap().is_none());
    }

    #[test]
    fn a_readable_directory_is_closed_and_a_shared_one_refused() {
        let root = tempfile::tempdir().unwrap();
        let readable = root.path().join("readable");
        fs::create_dir(&readable).unwrap();
        fs::set_permissions(&readable, fs::Permissions::from_mode(0o755)).unwrap();
        drop(StateDir::open(&readable).unwrap());
        assert_eq!(mode(&readable), 0o700);

        let shared = root.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
        let error = StateDir::open(&shared).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
        assert_eq!(mode(&shared), 0o1777, "and nothing was changed");
        assert!(!shared.join("lock").exists());
    }

    #[test]
    fn only_root_and_the_user_itself_are_trusted() {
        for (user, owner, trusted) in
            [(0, 0, true), (1000, 1000, true), (1000, 0, true), (0, 1000, false), (1000, 1001, false)]
        {
            assert_eq!(trusts(user, owner), trusted, "{user} reads what {owner} wrote");
        }
    }

    #[test]
    fn a_directory_or_a_file_of_somebody_else_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state");
        let state = StateDir::open(&path).unwrap();
        state.write(StateFile::Undo, b"{}").unwrap();
        let give = |path: &Path, user| std::os::unix::fs::chown(path, Some(user), None);
        if give(&state.path_of(StateFile::Undo), 65534).is_err() {
            // Without rights nobody can be given anything; `trusts` was asked above.
            return;
        }
        let error = state.read(StateFile::Undo).unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
        assert!(error.to_string().contains("undo.json belongs to user 65534"), "{error}");
        drop(state);
        give(&path, 65534).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
        assert!(error.to_string().contains("chown -R"), "{error}");
        give(&path, rustix::process::geteuid().as_raw()).unwrap();
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn two_daemons_do_not_share_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let first = StateDir::open(root.path()).unwrap();
        let error = StateDir::open(root.path()).unwrap_err();
        assert_eq!(error.reason(), Reason::Conflict);
        assert!(error.to_string().contains("--state-dir"), "{error}");
        drop(first);
        StateDir::open(root.path()).unwrap();
    }

    #[test]
    fn an_interrupted_write_leaves_the_old_content_and_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        state.write(StateFile::Map, b"old").unwrap();
        let left = root.path().join(".map.0011.tmp");
        fs::write(&left, b"half of the n").unwrap();
        drop(state);
        let state = StateDir::open(root.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(state.read(StateFile::Map).unwrap().unwrap().as_slice(), b"old");
    }

    #[test]
    fn a_removal_is_written_out_to_the_disk() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let syncs = || state.syncs.load(std::sync::atomic::Ordering::Relaxed);
        state.write(StateFile::Identity, b"key").unwrap();
        let written = syncs();
        state.remove(StateFile::Identity).unwrap();
        assert_eq!(syncs(), written + 1);
        state.remove(StateFile::Identity).unwrap();
        assert_eq!(syncs(), written + 1, "nothing was removed, so there is nothing to write out");
    }

    #[test]
    fn what_is_set_aside_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        state.write(StateFile::Map, b"broken").unwrap();
        state.set_aside(StateFile::Map, &"a flipped byte");
        assert!(state.read(StateFile::Map).unwrap().is_none());
        let kept = fs::read_dir(root.path())
            .unwrap()
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with("map.corrupt-"))
            .expect("the old content is kept");
        assert_eq!(fs::read(kept.path()).unwrap(), b"broken");
    }
}
