//! A copy of the database at one moment, taken while its coordinator goes on writing.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rusqlite::{Connection, OpenFlags};

use super::{
    super::Revision,
    FILE,
    open::{OpenError, blame, check, identify, revision},
};

/// Writes the database of `directory` into a new file in `destination`, and reads every entry of the copy again.
///
/// `directory` has no symbolic link in it: none is followed, as it may belong to somebody with fewer rights.
///
/// # Errors
/// [`OpenError`]; what was written so far stays in `destination`.
pub fn copy(directory: &Path, destination: &Path) -> Result<Revision, OpenError> {
    let (from, to) = (directory.join(FILE), destination.join(FILE));
    // Not `CREATE`: where there is no database there is nothing to copy.
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let fault = |error| blame(&from, error);
    let source = Connection::open_with_flags(&from, flags).map_err(fault)?;
    if identify(&source, &from)? {
        return Err(OpenError::NotOurs { path: from });
    }
    let io = |source| OpenError::Io { path: to.clone(), source };
    // SQLite takes an empty file as it is, and with it this mode.
    let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&to).map_err(io)?;
    source.execute("VACUUM INTO ?1", [to.to_string_lossy()]).map_err(|error| blame(&to, error))?;
    let written = Connection::open_with_flags(&to, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|error| blame(&to, error))?;
    check(&written, &to)?;
    let revision = revision(&written, &to)?;
    // It was written without regard for a loss of power.
    made.sync_all().map_err(io)?;
    File::open(destination).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(revision)
}
