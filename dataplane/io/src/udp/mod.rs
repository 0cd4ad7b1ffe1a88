//! The UDP sockets of a worker: one for IPv4 and one for IPv6, on the same port. Several workers share the port.

pub(crate) mod control;
pub(crate) mod messages;
pub(crate) mod segmentation;
mod steering;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::sys;
pub use steering::MAX_WORKERS;

/// How often a free port is looked for that both families have, when the kernel may choose it.
const ANY_PORT_ATTEMPTS: usize = 16;

/// How often, and at what interval, a port that is taken is tried: the kernel takes apart a dead process's rings, which
/// hold its sockets, some tens of milliseconds after its death.
const PORT_ATTEMPTS: usize = 20;
const PORT_PAUSE: Duration = Duration::from_millis(25);

/// The socket buffers asked for, in bytes. The kernel doubles what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketBuffers {
    /// `SO_RCVBUF`: what may arrive while the worker is busy.
    pub receive: usize,
    /// `SO_SNDBUF`: what may wait for the device.
    pub send: usize,
}

impl Default for SocketBuffers {
    /// 4 MiB each.
    fn default() -> Self {
        Self { receive: 4 << 20, send: 4 << 20 }
    }
}

/// The sockets of a worker. At least one family is there.
#[derive(Debug)]
pub struct Udp {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    port: u16,
}

/// Why there is no socket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum UdpError {
    /// Another process has the port.
    #[error(
        "UDP port {port} is taken by another program (`ss -ulpn sport = :{port}` names it): choose another port"
    )]
    PortTaken {
        /// The port asked for.
        port: u16,
    },
    /// The port is below `net.ipv4.ip_unprivileged_port_start`.
    #[error("UDP port {port} needs CAP_NET_BIND_SERVICE: choose a port from 1024 up, or run with sudo")]
    NotPermitted {
        /// The port asked for.
        port: u16,
    },
    /// More workers than a receiver index can name, or none.
    #[error("{asked} workers cannot share a UDP port: choose 1 to {MAX_WORKERS}")]
    Workers {
        /// The workers asked for.
        asked: usize,
    },
    /// The kernel does not let sockets share a port, or takes no program that chooses among them.
    #[error("the kernel does not spread UDP port {port} over several workers: choose one worker ({source})")]
    NotShared {
        /// The port asked for.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The machine has neither IPv4 nor IPv6.
    #[error("this machine has neither IPv4 nor IPv6 sockets")]
    NoFamily,
    /// Anything else.
    #[error("cannot open UDP port {port}: {source}")]
    Other {
        /// The port asked for.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Udp {
    /// Binds `port` on every address of both families; 0 lets the kernel choose a port that is free in both.
    ///
    /// A family that the machine does not have is left out. The sockets do not believe ICMP about the path's MTU
    /// (anybody can forge it) and never fragment. As the kernel takes a moment to clear up behind a process that was
    /// killed, the call waits up to half a second for a port that is taken.
    ///
    /// # Errors
    ///
    /// When the port is taken in either family, not permitted, or there is no family.
    pub fn bind(port: u16, buffers: SocketBuffers) -> Result<Self, UdpError> {
        let (attempts, pause) =
            if port == 0 { (ANY_PORT_ATTEMPTS, Duration::ZERO) } else { (PORT_ATTEMPTS, PORT_PAUSE) };
        for _ in 1..attempts {
            match Self::bind_once(port, buffers) {
                Err(UdpError::PortTaken { .. }) => std::thread::sleep(pause),
                result => return result,
            }
        }
        Self::bind_once(port, buffers)
    }

    fn bind_once(port: u16, buffers: SocketBuffers) -> Result<Self, UdpError> {
        let any6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let v6 = open(any6, buffers).map_err(|source| bind_error(port, source))?;
        let port = match &v6 {
            Some(socket) => local_port(socket, port)?,
            None => port,
        };
        let any4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let v4 = open(any4, buffers).map_err(|source| bind_error(port, source))?;
        Self::from_sockets(v4, v6).map_err(|source| bind_error(port, source))
    }

    /// Binds `port` once for each of `workers`, and has the kernel steer what arrives: a message that carries a receiver index,
    /// straight or relayed, to the worker whose number is in it, an initiation to any, all else to worker 0. For one worker
    /// this is [`Udp::bind`].
    ///
    /// The sockets are a group: close them together, and switch `UDP_GRO` on for all or none. A train is steered by its first
    /// datagram.
    ///
    /// # Errors
    ///
    /// As [`Udp::bind`]; a port that anybody has is taken, also a group of the same user. And when there are no workers or more
    /// than [`MAX_WORKERS`], or the kernel does not share or steer.
    pub fn bind_group(port: u16, buffers: SocketBuffers, workers: usize) -> Result<Vec<Self>, UdpError> {
        if !(1..=MAX_WORKERS).contains(&workers) {
            return Err(UdpError::Workers { asked: workers });
        }
        steering::share(Self::bind(port, buffers)?, buffers, workers)
    }

    /// Takes over bound sockets, as handed down by a service manager, as they are, but makes them non-blocking.
    ///
    /// # Errors
    ///
    /// When both are missing, a socket is of the other family, or they are bound to different ports.
    pub fn from_sockets(v4: Option<UdpSocket>, v6: Option<UdpSocket>) -> io::Result<Self> {
        let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidInput, message);
        let address = |socket: &Option<UdpSocket>| socket.as_ref().map(UdpSocket::local_addr).transpose();
        let (at4, at6) = (address(&v4)?, address(&v6)?);
        if at4.is_some_and(|at| !at.is_ipv4()) || at6.is_some_and(|at| !at.is_ipv6()) {
            return Err(invalid("a socket is not of the family it was given for"));
        }
        let port = match (at4, at6) {
            (Some(at4), Some(at6)) if at4.port() != at6.port() => {
                return Err(invalid("the IPv4 and the IPv6 socket have different ports"));
            }
            (Some(at), _) | (None, Some(at)) => at.port(),
            (None, None) => return Err(invalid("there is no socket")),
        };
        for socket in [&v4, &v6].into_iter().flatten() {
            socket.set_nonblocking(true)?;
        }
        Ok(Self { v4, v6, port })
    }

    /// The port that both sockets have.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether datagrams can be sent to IPv4 addresses.
    #[must_use]
    pub fn has_ipv4(&self) -> bool {
        self.v4.is_some()
    }

    /// Whether datagrams can be sent to IPv6 addresses.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.v6.is_some()
    }

    /// Has datagrams arrive in trains, or one by one; answers whether they do now, which needs every socket's consent.
    pub(crate) fn merge(&self, on: bool) -> bool {
        let sockets = || Family::ALL.into_iter().filter_map(|family| self.socket(family));
        let done = sockets().all(|socket| sys::set_gro(socket, on).is_ok());
        if on && !done {
            for socket in sockets() {
                // Refused by a kernel that does not know it.
                let _ = sys::set_gro(socket, false);
            }
        }
        on && done
    }

    /// The socket for `family`.
    pub(crate) fn socket(&self, family: Family) -> Option<BorrowedFd<'_>> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
        .map(AsFd::as_fd)
    }
}

/// Which of the two sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, in the order in which they are served.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family that reaches `to`.
    pub(crate) fn of(to: &SocketAddr) -> Self {
        if to.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A socket bound to `at`, or `None` when the machine does not have the family.
fn open(at: SocketAddr, buffers: SocketBuffers) -> io::Result<Option<UdpSocket>> {
    open_with(at, buffers, |_| Ok(()))
}

/// As [`open`], with something done to the socket before it is bound.
fn open_with(
    at: SocketAddr,
    buffers: SocketBuffers,
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<Option<UdpSocket>> {
    let socket = match Socket::new(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP)) {
        Ok(socket) => socket,
        Err(error) if is_missing_family(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    socket.set_nonblocking(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    sys::set_mtu_probe(socket.as_fd(), at.is_ipv6())?;
    sys::set_buffers(socket.as_fd(), buffers)?;
    prepare(socket.as_fd())?;
    match socket.bind(&at.into()) {
        Ok(()) => Ok(Some(socket.into())),
        Err(error) if is_missing_family(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// IPv6 compiled out (EAFNOSUPPORT), or switched off by `net.ipv6.conf.all.disable_ipv6` (EADDRNOTAVAIL at bind).
fn is_missing_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL | libc::EPROTONOSUPPORT))
}

fn local_port(socket: &UdpSocket, asked: u16) -> Result<u16, UdpError> {
    let address = socket.local_addr().map_err(|source| UdpError::Other { port: asked, source })?;
    Ok(address.port())
}

fn bind_error(port: u16, source: io::Error) -> UdpError {
    match source.raw_os_error() {
        Some(libc::EADDRINUSE) => UdpError::PortTaken { port },
        Some(libc::EACCES | libc::EPERM) => UdpError::NotPermitted { port },
        // Ours, of `from_sockets`: each family was missing.
        None => UdpError::NoFamily,
        Some(_) => UdpError::Other { port, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_share_a_port() {
        let udp = Udp::bind(0, SocketBuffers::default()).unwrap();
        assert_ne!(udp.port(), 0);
        assert!(udp.has_ipv4());
        let address = udp.v4.as_ref().unwrap().local_addr().unwrap();
        assert_eq!(address.port(), udp.port());
        if let Some(v6) = &udp.v6 {
            assert_eq!(v6.local_addr().unwrap().port(), udp.port());
        }
    }

    #[test]
    fn a_taken_port_is_its_own_error_in_either_family() {
        let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Udp::bind(port, SocketBuffers::default()).unwrap_err();
        assert!(matches!(error, UdpError::PortTaken { port: named } if named == port));
        assert!(error.to_string().contains(&format!("port {port} is taken")));
    }

    #[test]
    fn sockets_never_fragment_and_never_believe_icmp() {
        let udp = Udp::bind(0, SocketBuffers::default()).unwrap();
        for family in Family::ALL {
            if let Some(socket) = udp.socket(family) {
                assert!(sys::mtu_probe(socket, family == Family::V6).unwrap());
            }
        }
    }

    #[test]
    fn handed_down_sockets_are_checked() {
        assert!(Udp::from_sockets(None, None).is_err());
        let v4 = || UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(Udp::from_sockets(None, Some(v4())).is_err());
        assert!(!Udp::from_sockets(Some(v4()), None).unwrap().has_ipv6());
    }
}
