//! Round-trip times of ICMP echo (RFC 792) on an otherwise idle path. The far end's answer comes from its kernel, so
//! what is measured is the path and the two daemons, not a third program's wake-up.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cpu::{Snapshot, Usage};

/// Between two requests, unless it is about daemons that sleep in between.
pub(crate) const INTERVAL: Duration = Duration::from_millis(2);
/// Between two requests, so that everything on the way sleeps in between.
pub(crate) const LONG_INTERVAL: Duration = Duration::from_millis(20);
/// How long one receive waits; set once, for a system call per request would be part of its time.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A reply later than this is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// Most requests of a series on an idle path that may be lost, of a hundred.
const LOSS_LIMIT: usize = 1;
const HEADER: usize = 8;
/// As ping(8) sends by default.
const PAYLOAD: usize = 56;

/// The round trips of one series.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// Times of the requests that were answered, in microseconds.
    pub(crate) micros: Vec<f64>,
    /// The box's CPU time meanwhile.
    pub(crate) usage: Usage,
}

/// A raw ICMP socket and the identity by which it knows its own replies.
#[derive(Debug)]
pub(crate) struct Pinger {
    socket: Socket,
    identity: u16,
    to: IpAddr,
    sequence: u16,
}

impl Pinger {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW` there.
    pub(crate) fn open(to: IpAddr) -> Result<Self> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).context("opening ICMP")?;
        socket.connect(&SocketAddr::new(to, 0).into()).with_context(|| format!("no route to {to}"))?;
        socket.set_read_timeout(Some(LOOK_AGAIN)).context("bounding receives")?;
        Ok(Self { socket, identity: std::process::id() as u16, to, sequence: 0 })
    }

    /// Pings until there is an answer.
    ///
    /// # Errors
    /// When there is none within `limit`.
    pub(crate) fn wait_for_answer(&mut self, limit: Duration) -> Result<()> {
        let give_up = Instant::now() + limit;
        while self.round_trip(LOOK_AGAIN)?.is_none() {
            ensure!(Instant::now() < give_up, "no ping of {} was answered within {limit:?}", self.to);
        }
        Ok(())
    }

    /// Sends `count` requests, one every `interval`, each after the reply to the one before or its loss.
    ///
    /// # Errors
    /// When the socket fails, or more than one request in a hundred is lost.
    pub(crate) fn series(&mut self, count: usize, interval: Duration, daemons: &[u32]) -> Result<Series> {
        let before = Snapshot::take()?;
        let mut micros = Vec::with_capacity(count);
        let lost = self.requests(interval, &mut micros, |sent| sent < count)?;
        ensure!(lost * 100 <= count * LOSS_LIMIT, "{lost} of {count} pings of {} were lost", self.to);
        let usage = Snapshot::take()?.since(&before, daemons);
        Ok(Series { micros, usage })
    }

    /// Sends requests while `go_on` says so of how many were sent; returns how many were lost, since a path that is full may
    /// lose some.
    ///
    /// # Errors
    /// When the socket fails.
    pub(crate) fn requests(
        &mut self,
        interval: Duration,
        micros: &mut Vec<f64>,
        go_on: impl Fn(usize) -> bool,
    ) -> Result<usize> {
        let (mut sent, mut lost, mut next) = (0, 0, Instant::now());
        while go_on(sent) {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            sent += 1;
            match self.round_trip(LOST_AFTER)? {
                Some(time) => micros.push(time.as_secs_f64() * 1e6),
                None => lost += 1,
            }
            // A late reply delays the requests after it; it does not make them bunch up.
            next = (next + interval).max(Instant::now());
        }
        Ok(lost)
    }

    fn round_trip(&mut self, limit: Duration) -> Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = EchoKind::of(self.to);
        let request = kind.request(self.identity, self.sequence);
        let begin = Instant::now();
        match self.socket.send(&request) {
            Ok(_) => {}
            // The path is not up yet, or its queue is full.
            Err(error) if is_passing(&error) => {
                thread::sleep(INTERVAL);
                return Ok(None);
            }
            Err(error) => return Err(error).context("sending a ping"),
        }
        let mut packet = [0; 256];
        loop {
            match (&self.socket).read(&mut packet) {
                Ok(length) => {
                    let time = begin.elapsed();
                    if kind.is_reply(&packet[..length], self.identity, self.sequence) {
                        return Ok(Some(time));
                    }
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error).context("receiving a ping's answer"),
            }
            if begin.elapsed() >= limit {
                return Ok(None);
            }
        }
    }
}

fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::HostUnreachable)
        || matches!(
            error.raw_os_error(),
            Some(libc::ENOBUFS | libc::ENETUNREACH | libc::ENOKEY | libc::EDESTADDRREQ)
        )
}

/// What tells the two versions of ICMP apart here (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug)]
struct EchoKind {
    request: u8,
    reply: u8,
    /// Raw sockets of IPv4 show the IP header, those of IPv6 do not.
    with_header: bool,
}

impl EchoKind {
    fn of(to: IpAddr) -> Self {
        match to {
            IpAddr::V4(_) => Self { request: 8, reply: 0, with_header: true },
            IpAddr::V6(_) => Self { request: 128, reply: 129, with_header: false },
        }
    }

    /// For IPv6 the kernel puts in the checksum, which covers addresses.
    fn request(self, identity: u16, sequence: u16) -> [u8; HEADER + PAYLOAD] {
        let mut message = [0x5a; HEADER + PAYLOAD];
        message[..4].copy_from_slice(&[self.request, 0, 0, 0]);
        message[4..6].copy_from_slice(&identity.to_be_bytes());
        message[6..8].copy_from_slice(&sequence.to_be_bytes());
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    }

    /// Raw sockets see every ICMP packet of their namespace.
    fn is_reply(self, packet: &[u8], identity: u16, sequence: u16) -> bool {
        let Some(first) = packet.first() else { return false };
        let header_length = if self.with_header { usize::from(first & 0x0f) * 4 } else { 0 };
        let Some(message) = packet.get(header_length..) else { return false };
        let expected = [identity.to_be_bytes(), sequence.to_be_bytes()].concat();
        message.first() == Some(&self.reply) && message.get(4..HEADER) == Some(expected.as_slice())
    }
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(message: &[u8]) -> u16 {
    let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: EchoKind = EchoKind { request: 8, reply: 0, with_header: true };
    const V6: EchoKind = EchoKind { request: 128, reply: 129, with_header: false };

    #[test]
    fn a_request_sums_to_zero() {
        assert_eq!(checksum(&V4.request(0x1234, 77)), 0);
    }

    #[test]
    fn only_the_reply_to_this_very_request_counts() {
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(&V4.request(7, 9));
        assert!(!V4.is_reply(&packet, 7, 9), "a request is no reply");
        packet[20] = V4.reply;
        assert!(V4.is_reply(&packet, 7, 9));
        assert!(!V4.is_reply(&packet, 7, 10));
        assert!(!V4.is_reply(&packet, 8, 9));
        assert!(!V4.is_reply(&packet[..22], 7, 9));
        assert!(!V4.is_reply(&[], 7, 9));
    }

    #[test]
    fn a_reply_by_ipv6_has_no_header_in_front() {
        let mut packet = V6.request(7, 9).to_vec();
        assert!(!V6.is_reply(&packet, 7, 9));
        packet[0] = V6.reply;
        assert!(V6.is_reply(&packet, 7, 9) && !V6.is_reply(&packet, 7, 8));
    }
}
