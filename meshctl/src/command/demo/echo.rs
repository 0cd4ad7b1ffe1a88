//! ICMP echo, so that the demo needs no `ping` program: a socket of the kind that needs no rights, if the host allows it.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketType, ipproto, socket};

/// ICMP's and ICMPv6's echo request (RFC 792, RFC 4443).
const REQUEST: [u8; 2] = [8, 128];
/// Type, code, checksum, identifier, sequence number; the kernel fills in the checksum and the identifier.
const HEADER: usize = 8;
/// As many bytes as ping(8) sends.
const PAYLOAD: usize = 56;
/// How often an unanswered request is repeated.
const REPEAT: Duration = Duration::from_millis(10);

/// Asks one host for echoes. Belongs to the host it was made on.
#[derive(Debug)]
pub(super) struct Echo {
    socket: UdpSocket,
    to: SocketAddr,
    request: u8,
    sequence: u16,
}

impl Echo {
    /// Prepares to ask `to`.
    pub(super) fn new(to: IpAddr) -> io::Result<Self> {
        let (family, protocol, request) = match to {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, REQUEST[0]),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, REQUEST[1]),
        };
        // An ICMP socket of this type is used like a UDP socket (icmp(7)).
        let socket = UdpSocket::from(socket(family, SocketType::DGRAM, Some(protocol))?);
        Ok(Self { socket, to: SocketAddr::new(to, 0), request, sequence: 0 })
    }

    /// Asks once; `None` if there is no reply within `timeout`.
    ///
    /// That the kernel has no route or no device to send by counts as no reply.
    pub(super) fn ask(&mut self, timeout: Duration) -> Option<Duration> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = [0; HEADER + PAYLOAD];
        message[0] = self.request;
        message[6..HEADER].copy_from_slice(&self.sequence.to_be_bytes());
        message[HEADER..].fill(b'r');
        let asked = Instant::now();
        self.socket.send_to(&message, self.to).ok()?;
        let mut reply = [0; 2 * (HEADER + PAYLOAD)];
        loop {
            let left = timeout.checked_sub(asked.elapsed()).filter(|left| !left.is_zero())?;
            self.socket.set_read_timeout(Some(left)).ok()?;
            let length = self.socket.recv(&mut reply).ok()?;
            // Late replies to earlier requests come here too.
            if reply.get(6..length) == message.get(6..) {
                return Some(asked.elapsed());
            }
        }
    }

    /// Asks until there is a reply, at short intervals, for `patience` at most; tells how long that took.
    pub(super) fn until_reply(&mut self, patience: Duration) -> Option<Duration> {
        let started = Instant::now();
        while started.elapsed() < patience {
            let asked = Instant::now();
            if self.ask(REPEAT).is_some() {
                return Some(started.elapsed());
            }
            // Sending may have been refused at once.
            std::thread::sleep(REPEAT.saturating_sub(asked.elapsed()));
        }
        None
    }
}
