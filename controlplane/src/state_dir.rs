//! The state directory and the small files beside the database: made with their final mode, replaced whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

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
