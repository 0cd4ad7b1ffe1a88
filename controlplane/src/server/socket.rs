//! The operators' unix socket: made with its final mode, in a directory that only its owner can write.

use std::{
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use crate::state_dir::{self, FileError};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why the socket cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another coordinator answers there.
    #[error(
        "{path}: another coordinator answers on this socket; stop it, or give this one another admin_socket"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{path}: exists and is not a socket; move it away, or set another admin_socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The directory is not safe.
    #[error(transparent)]
    Directory(#[from] FileError),
    /// The system refused.
    #[error("{path}: {source}; check the directory's owner, or set another admin_socket")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
    /// The inode, so that a successor's file is never removed.
    inode: Option<u64>,
}

impl AdminSocket {
    /// Listens on `path` with mode 0600. The directory is made with 0750 if missing, and must not be writable by others.
    /// A socket file that nobody answers on is removed. Needs no runtime.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io { path: path.into(), source };
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        state_dir::prepare(directory, 0o750)?;
        clear(path)?;
        let listener = private_listener(path).map_err(io)?;
        Ok(Self { listener, path: path.into(), inode: inode(path) })
    }

    /// The listener, for the runtime that is to wait for it.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        if inode(&self.path) == self.inode
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|found| found.ino())
}

/// Removes a socket that a killed coordinator left.
fn clear(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io { path: path.into(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.into() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
    }
}

/// Linux gives the file of a unix socket the mode that the socket had when it was bound, so there is no moment at which
/// the file exists with another mode.
fn private_listener(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = File::from(socket(AddressFamily::Unix, SockType::Stream, flags, None)?);
    socket.set_permissions(Permissions::from_mode(0o600))?;
    let socket = OwnedFd::from(socket);
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_alone_and_goes_with_the_listener() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/coordinator.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()) & 0o027, 0);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_that_answers_is_left_alone_and_a_dead_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coordinator.sock");
        let alive = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        drop(alive);
        // As kill -9 leaves it: the file without a listener.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        AdminSocket::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_successors_socket_stays_when_the_former_one_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coordinator.sock");
        let former = AdminSocket::bind(&path).unwrap();
        // Moved, not removed: a free inode could be given to the successor.
        fs::rename(&path, directory.path().join("moved")).unwrap();
        let _successor = AdminSocket::bind(&path).unwrap();
        drop(former);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coordinator.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(AdminSocket::bind(&path), Err(SocketError::NotASocket { .. })));
        std::os::unix::fs::symlink(&path, directory.path().join("link")).unwrap();
        assert!(matches!(
            AdminSocket::bind(&directory.path().join("link")),
            Err(SocketError::NotASocket { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_directory_that_others_may_write_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            AdminSocket::bind(&directory.path().join("s")),
            Err(SocketError::Directory(FileError::Unsafe { .. }))
        ));
    }
}
