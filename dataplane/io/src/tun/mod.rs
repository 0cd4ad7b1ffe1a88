//! The TUN device: a network interface whose other end is a file descriptor of ours.
//!
//! Only the queue is made here; addresses, routes, the MTU and bringing the interface up are the caller's, by netlink.
//! Every packet has the offload header in front; a back end says which offloads it can do, for all queues at once.
//!
//! An interface may have a queue for each worker. The kernel gives a flow to the queue that last wrote a packet of it in the other
//! direction, and by a hash of its addresses and ports to any as long as none has, or when none did for three seconds. So a flow
//! whose replies are written by its owner comes to its owner; what comes to another worker first is a stray.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use thiserror::Error;

use crate::sys;

const DEVICE: &str = "/dev/net/tun";

/// The longest interface name, in bytes (`IFNAMSIZ` less the terminating zero).
const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// How often, and at what interval, a name that is taken is tried: the kernel takes apart a dead process's rings, which
/// hold its files, some tens of milliseconds after its death.
const NAME_ATTEMPTS: usize = 40;
const NAME_PAUSE: Duration = Duration::from_millis(25);

/// One queue of a TUN interface. The interface goes away with its last queue.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
}

/// Why there is no TUN device, and what to do about it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TunError {
    /// The kernel has no TUN driver, or the container was not given the device.
    #[error(
        "{DEVICE} does not exist or has no driver: load it with `sudo modprobe tun`, or give the container the device \
         (`--device {DEVICE}`)"
    )]
    NoDevice,
    /// The device file's mode forbids opening it.
    #[error("{DEVICE} may not be opened: run with sudo, or `sudo chmod 0666 {DEVICE}` (the usual mode)")]
    NotReadable,
    /// The process lacks `CAP_NET_ADMIN` in the network namespace.
    #[error(
        "creating the interface {name} needs CAP_NET_ADMIN: run with sudo, or once \
         `sudo setcap cap_net_admin+ep {program}`"
    )]
    NotPermitted {
        /// The interface asked for.
        name: String,
        /// The running program's file.
        program: String,
    },
    /// There is an interface of that name already.
    #[error(
        "the interface {name} exists already: choose another name, or stop what made it (`ip link show {name}`)"
    )]
    NameTaken {
        /// The interface asked for.
        name: String,
    },
    /// The kernel cannot have an interface of that name.
    #[error(
        "{name:?} is no interface name: 1 to {MAX_NAME} bytes without '/', ':' or white space, `%d` at most once"
    )]
    BadName {
        /// The interface asked for.
        name: String,
    },
    /// The interface was removed while in use.
    #[error("the interface {name} was removed by someone else; it is made anew when the daemon is restarted")]
    Gone {
        /// The interface that was.
        name: String,
    },
    /// Anything else.
    #[error("cannot {what} the interface {name}: {source}")]
    Other {
        /// What was being done.
        what: &'static str,
        /// The interface asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Tun {
    /// Creates an interface and opens its first queue.
    ///
    /// `name` is exact, or holds `%d` for the first free number (`mesh%d`). An interface that exists is never taken
    /// over; but as the kernel takes a moment to clear up behind a process that was killed, the call waits up to a
    /// second for the name.
    ///
    /// # Errors
    ///
    /// Each names its cause and cure; nothing is left behind.
    pub fn create(name: &str) -> Result<Self, TunError> {
        for _ in 1..NAME_ATTEMPTS {
            match Self::open(name, sys::TunFlags::New) {
                Err(TunError::NameTaken { .. }) => std::thread::sleep(NAME_PAUSE),
                result => return result,
            }
        }
        Self::open(name, sys::TunFlags::New)
    }

    /// Creates an interface as [`Tun::create`] does, and opens as many queues of it, one at least: one for each worker.
    ///
    /// # Errors
    ///
    /// As for [`Tun::create`] and [`Tun::another_queue`].
    pub fn create_queues(name: &str, queues: usize) -> Result<Vec<Self>, TunError> {
        let mut all = vec![Self::create(name)?];
        for _ in 1..queues {
            let another = all.first().map(Self::another_queue);
            all.extend(another.transpose()?);
        }
        Ok(all)
    }

    /// Opens one more queue of this interface, for another worker.
    ///
    /// # Errors
    ///
    /// When the interface is gone, or has as many queues as the kernel allows (256).
    pub fn another_queue(&self) -> Result<Self, TunError> {
        Self::open(&self.name, sys::TunFlags::Attach)
    }

    /// The interface's name, without `%d`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn open(name: &str, flags: sys::TunFlags) -> Result<Self, TunError> {
        check_name(name)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|source| open_error(name, source))?;
        let name =
            sys::tun_set_interface(file.as_fd(), name, flags).map_err(|source| set_error(name, source))?;
        Ok(Self { file, name })
    }

    /// Has the interface leave checksums and the cutting of super-packets to us, as far as this kernel knows the
    /// offloads; answers which of TCP's and UDP's it does.
    pub(crate) fn offer(&self, tso: bool, uso: bool) -> (bool, bool) {
        let offers = [(tso, uso), (tso, false), (false, false)];
        let taken = |(tso, uso): &(bool, bool)| sys::tun_set_offloads(self.as_fd(), *tso, *uso).is_ok();
        offers.into_iter().find(taken).unwrap_or_default()
    }

    /// The queue, to read packets from and write packets to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether an error of this queue's file means that the interface is gone.
    pub(crate) fn is_gone(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::EBADFD | libc::ENODEV) => true,
            // A reader that was waiting when the interface went away is told EFAULT; a bad buffer would be as well.
            Some(libc::EFAULT) => !self.is_attached(),
            _ => false,
        }
    }

    /// Asks the kernel whether the queue still belongs to an interface.
    pub(crate) fn is_attached(&self) -> bool {
        sys::tun_is_attached(self.file.as_fd())
    }

    /// The error that ends a worker whose interface is gone.
    pub(crate) fn gone(&self) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, TunError::Gone { name: self.name.clone() })
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn check_name(name: &str) -> Result<(), TunError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    let (stem, rest) = name.split_once("%d").unwrap_or((name, ""));
    let fits = (1..=MAX_NAME).contains(&name.len()) && name != "." && name != "..";
    if fits && stem.bytes().chain(rest.bytes()).all(plain) {
        return Ok(());
    }
    Err(TunError::BadName { name: name.to_owned() })
}

fn open_error(name: &str, source: io::Error) -> TunError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDevice,
        Some(libc::EACCES | libc::EPERM) => TunError::NotReadable,
        _ => TunError::Other { what: "open the driver for", name: name.to_owned(), source },
    }
}

fn set_error(name: &str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted { name, program: program() },
        Some(libc::EBUSY | libc::EEXIST | libc::ENFILE) => TunError::NameTaken { name },
        _ => TunError::Other { what: "create", name, source },
    }
}

/// The running program's file, for a command line that the user can copy.
fn program() -> String {
    std::env::current_exe().map_or_else(|_| "meshctl".to_owned(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_are_refused_with_the_rule() {
        for bad in
            ["", ".", "..", "a/b", "a:b", "a b", "mesh%s", "mesh%", "%d%d", "sixteen-bytes-xx", "mesh\u{e9}"]
        {
            assert!(matches!(check_name(bad), Err(TunError::BadName { .. })), "{bad:?}");
        }
        for good in ["mesh0", "mesh%d", "fifteen-bytes-x", "%d"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn refusals_name_their_cure() {
        let text = |error: TunError| error.to_string();
        let os = io::Error::from_raw_os_error;
        assert!(text(open_error("mesh0", os(libc::ENOENT))).contains("modprobe tun"));
        assert!(text(open_error("mesh0", os(libc::EACCES))).contains("chmod 0666"));
        assert!(text(set_error("mesh0", os(libc::EPERM))).contains("sudo setcap cap_net_admin+ep /"));
        assert!(text(set_error("mesh0", os(libc::EBUSY))).contains("ip link show mesh0"));
        assert!(text(set_error("mesh0", os(libc::ENOMEM))).contains("cannot create"));
    }
}
