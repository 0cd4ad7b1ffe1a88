//! The socket file: opened to its group only once it is that group's, and removed at the end.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, lchown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use ringmesh_proto::control::Reason;
use rustix::{
    fs::{Mode, fchmod},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tracing::{debug, warn};

use crate::error::Failure;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A listening socket file of ours. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    path: PathBuf,
    /// The inode, so that a successor's file is never removed.
    inode: Option<u64>,
    listener: Option<UnixListener>,
}

impl LocalSocket {
    /// Binds `path` with mode 0660, replacing a file that a dead daemon left. It is given to `group`, which must be there, or to
    /// `usual` if the machine has that. Needs no runtime.
    ///
    /// # Errors
    /// A daemon answers there already, something else is in the way, or the system refuses.
    pub(crate) fn bind(path: &Path, group: Option<&str>, usual: &str) -> Result<Self, Failure> {
        let shown = path.display();
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            // 0755: who may connect is decided by the socket's own mode.
            DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(|error| {
                Failure::host(format!("creating {} for the socket", directory.display()), &error)
            })?;
        }
        clear_the_way(path)?;
        let listener =
            private_listener(path).map_err(|error| Failure::host(format!("listening on {shown}"), &error))?;
        let inode = fs::symlink_metadata(path).ok().map(|found| found.ino());
        let socket = Self { path: path.to_owned(), inode, listener: Some(listener) };
        socket.give_to_group(group, usual)?;
        fs::set_permissions(path, Permissions::from_mode(0o660))
            .map_err(|error| Failure::host(format!("opening {shown} to its group"), &error))?;
        debug!(socket = %shown, "the local API listens");
        Ok(socket)
    }

    /// The listener, for the runtime that is to wait for it; once.
    pub(crate) fn take_listener(&mut self) -> Option<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.take()?).ok()
    }

    fn give_to_group(&self, group: Option<&str>, usual: &str) -> Result<(), Failure> {
        let name = group.unwrap_or(usual);
        let Some(id) = group_id(name) else {
            return match group {
                Some(name) => Err(Failure::invalid(format!(
                    "socket_group = \"{name}\": this machine has no such group; make it (`groupadd {name}`) or leave the key out"
                ))),
                None => Ok(()),
            };
        };
        // Where systemd runs the daemon as a user of that group, it may not even ask.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.gid() == id) {
            return Ok(());
        }
        match lchown(&self.path, None, Some(id)) {
            Ok(()) => Ok(()),
            Err(error) if group.is_none() => {
                warn!(event = "socket_group_failed", group = name, %error, "cannot give the socket to its group; only this user can use it");
                Ok(())
            }
            Err(error) => {
                Err(Failure::host(format!("giving {} to the group {name}", self.path.display()), &error))
            }
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let still_ours = fs::symlink_metadata(&self.path).ok().map(|found| found.ino()) == self.inode;
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            debug!(socket = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

/// Listens with mode 0600. Linux gives the file of a unix socket the mode that the socket had when it was bound, less the
/// umask: there is no moment at which the file is open to more, and the umask, which all threads share, is left alone.
fn private_listener(path: &Path) -> io::Result<UnixListener> {
    let socket = unix_stream()?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// One that never waits: not even for a daemon that accepts nothing.
fn unix_stream() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Removes a socket file that nobody listens on; anything else stays.
fn clear_the_way(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::host(format!("looking at {shown}"), &error)),
    };
    if !found.file_type().is_socket() {
        return Err(Failure::new(
            Reason::Conflict,
            format!("{shown} is in the way and is not a socket: move it, or give another --socket"),
        ));
    }
    let asking = |error: io::Error| Failure::host(format!("asking who listens on {shown}"), &error);
    let address = SocketAddrUnix::new(path).map_err(|error| asking(error.into()))?;
    match rustix::net::connect(unix_stream().map_err(asking)?, &address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path)
            .map_err(|error| Failure::host(format!("removing the stale socket {shown}"), &error)),
        // It listens, and has more connections waiting than it takes.
        Ok(()) | Err(Errno::AGAIN) => Err(Failure::new(
            Reason::Conflict,
            format!("a daemon listens on {shown} already: stop it, or give this one its own --socket"),
        )),
        Err(error) => Err(asking(error.into())),
    }
}

/// A group's number from `/etc/group` (group(5)); groups of other sources are given by number in the file system anyway.
fn group_id(name: &str) -> Option<u32> {
    let text = fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let id = fields.nth(1)?.parse().ok()?;
        found.then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_for_owner_and_group_only_and_is_removed_at_the_end() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run/meshd.sock");
        let socket = LocalSocket::bind(&path, None, "no-such-group").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_fresh_socket_is_for_its_owner_only_until_its_group_is_set() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("meshd.sock");
        let _listener = private_listener(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_successors_socket_stays_when_the_former_one_ends() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("meshd.sock");
        let former = LocalSocket::bind(&path, None, "no-such-group").unwrap();
        // Moved, not removed: a free inode could be given to the successor.
        fs::rename(&path, root.path().join("moved")).unwrap();
        let _successor = LocalSocket::bind(&path, None, "no-such-group").unwrap();
        drop(former);
        assert!(path.exists());
    }

    #[test]
    fn a_listening_daemon_is_not_displaced_but_a_dead_ones_file_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("meshd.sock");
        let first = LocalSocket::bind(&path, None, "no-such-group").unwrap();
        let refused = LocalSocket::bind(&path, None, "no-such-group").unwrap_err();
        assert_eq!(refused.reason(), Reason::Conflict);
        assert!(path.exists());
        drop(first);

        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a dead daemon's file");
        LocalSocket::bind(&path, None, "no-such-group").unwrap();
    }

    #[test]
    fn a_plain_file_is_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("precious");
        fs::write(&path, "text").unwrap();
        let refused = LocalSocket::bind(&path, None, "no-such-group").unwrap_err();
        assert_eq!(refused.reason(), Reason::Conflict);
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    #[test]
    fn an_unknown_group_is_named() {
        let root = tempfile::tempdir().unwrap();
        let refused = LocalSocket::bind(&root.path().join("s"), Some("no-such-group"), "mesh").unwrap_err();
        assert!(refused.to_string().contains("groupadd no-such-group"), "{refused}");
    }

    #[test]
    fn groups_are_found_by_name() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group"), None);
    }
}
