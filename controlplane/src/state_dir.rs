//! The state directory and the small files beside the database: made with their final mode, replaced whole.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::OFlag};

/// A file or directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be made, read or written.
    #[error(
        "{path}: {source}; check that its directory exists, is writable and belongs to the coordinator's user"
    )]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may write into the directory, so that what lies in it cannot be trusted.
    #[error(
        "{path}: others may write into this directory (mode {mode:03o}, owner {owner}); run: chmod go-w {path}"
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner's user id.
        owner: u32,
    },
    /// The content is not what was written.
    #[error("{path}: {detail}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        detail: String,
    },
}

impl FileError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.into(), source }
    }

    pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), detail: detail.into() }
    }
}

/// Makes `path` with `mode` and its parents, or checks that only its owner (we, or root) may write into it.
///
/// # Errors
/// [`FileError`].
pub fn prepare(path: &Path, mode: u32) -> Result<(), FileError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(FileError::io(path))?;
    let found = fs::metadata(path).map_err(FileError::io(path))?;
    let owned = found.uid() == 0 || found.uid() == nix::unistd::geteuid().as_raw();
    if owned && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(FileError::Unsafe { path: path.into(), mode: found.mode() & 0o777, owner: found.uid() })
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// [`FileError::Io`].
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::Io { path: path.into(), source }),
    }
}

/// Reads a file as [`read`] does, for a process with more rights than who may write into its directory: only a regular file of `owner`,
/// and no link to another, so that nothing is read for somebody that this one could not read.
///
/// # Errors
/// [`FileError`]; [`FileError::Damaged`] for anything else than such a file.
pub(crate) fn read_of(path: &Path, owner: u32) -> Result<Option<Vec<u8>>, FileError> {
    // Without O_NONBLOCK a pipe would be waited for.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
            return Err(FileError::damaged(
                path,
                "a symbolic link, which a coordinator does not make; look who did",
            ));
        }
        Err(source) => return Err(FileError::Io { path: path.into(), source }),
    };
    is_of(&file.metadata().map_err(FileError::io(path))?, path, owner)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(FileError::io(path))?;
    Ok(Some(bytes))
}

/// Whether what was found at `path` is a regular file of `owner`.
///
/// # Errors
/// [`FileError::Damaged`].
pub(crate) fn is_of(found: &Metadata, path: &Path, owner: u32) -> Result<(), FileError> {
    if !found.is_file() {
        return Err(FileError::damaged(path, "not a regular file; look who put it there"));
    }
    if found.uid() == owner {
        return Ok(());
    }
    let holder = found.uid();
    let detail = format!(
        "it belongs to user {holder}, and its directory to user {owner}; if it is right, give it to that one: chown {owner} {}",
        path.display()
    );
    Err(FileError::damaged(path, detail))
}

/// Replaces a file as a whole and for good: a temporary one with the final mode, synced, then renamed.
///
/// # Errors
/// [`FileError::Io`].
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let write = || {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
    };
    write().map_err(FileError::io(path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_is_made_for_the_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        prepare(&path, 0o700).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused_with_the_cure() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let error = prepare(directory.path(), 0o700).unwrap_err().to_string();
        assert!(error.contains("mode 770") && error.contains("chmod go-w"), "{error}");
    }

    #[test]
    fn only_a_regular_file_of_that_owner_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let owner = fs::metadata(directory.path()).unwrap().uid();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("key"), b"secret").unwrap();
        assert_eq!(read_of(&at("key"), owner).unwrap().unwrap(), b"secret");
        assert_eq!(read_of(&at("nothing"), owner).unwrap(), None);
        std::os::unix::fs::symlink(at("key"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (name, owner, why) in [
            ("link", owner, "symbolic link"),
            ("dangling", owner, "symbolic link"),
            ("pipe", owner, "not a regular file"),
            (".", owner, "not a regular file"),
            ("key", owner + 1, "belongs to user"),
        ] {
            let refused = read_of(&at(name), owner).unwrap_err();
            assert!(
                matches!(&refused, FileError::Damaged { detail, .. } if detail.contains(why)),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_file_is_replaced_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert_eq!(read(&path).unwrap(), None);
        for content in [b"one", b"two"] {
            replace(&path, 0o600, content).unwrap();
            assert_eq!(read(&path).unwrap().unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
