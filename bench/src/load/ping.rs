//! Round-trip times of ICMP echo (RFC 792) on an otherwise idle path. The far end's answer comes from its kernel, so
//! what is measured is the path and the two daemons, not a third program's wake-up.

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::cpu::{Snapshot, Usage};

/// Between two requests.
pub(crate) const INTERVAL: Duration = Duration::from_millis(2);
/// How long one receive waits; set once, for a system call per request would be part of its time.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A reply later than this is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
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
    to: Ipv4Addr,
    sequence: u16,
}

impl Pinger {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW` there.
    pub(crate) fn open(to: Ipv4Addr) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).context("opening ICMP")?;
        socket.connect(&SocketAddrV4::new(to, 0).into()).with_context(|| format!("no route to {to}"))?;
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

    /// Sends `count` requests, one every [`INTERVAL`], each after the reply to the one before or its loss.
    ///
    /// # Errors
    /// When the socket fails, or more than one request in a hundred is lost.
    pub(crate) fn series(&mut self, count: usize, daemons: &[u32]) -> Result<Series> {
        let before = Snapshot::take()?;
        let (mut micros, mut lost) = (Vec::with_capacity(count), 0);
        let mut next = Instant::now();
        for _ in 0..count {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            match self.round_trip(LOST_AFTER)? {
                Some(time) => micros.push(time.as_secs_f64() * 1e6),
                None => lost += 1,
            }
            // A late reply delays the requests after it; it does not make them bunch up.
            next = (next + INTERVAL).max(Instant::now());
        }
        ensure!(lost * 100 <= count, "{lost} of {count} pings of {} were lost", self.to);
        let usage = Snapshot::take()?.since(&before, daemons);
        Ok(Series { micros, usage })
    }

    fn round_trip(&mut self, limit: Duration) -> Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = echo_request(self.identity, self.sequence);
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
                    if is_reply(&packet[..length], self.identity, self.sequence) {
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

fn echo_request(identity: u16, sequence: u16) -> [u8; HEADER + PAYLOAD] {
    let mut message = [0x5a; HEADER + PAYLOAD];
    message[..4].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0]);
    message[4..6].copy_from_slice(&identity.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(message: &[u8]) -> u16 {
    let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Raw sockets see every ICMP packet of their namespace, with its IP header.
fn is_reply(packet: &[u8], identity: u16, sequence: u16) -> bool {
    let Some(first) = packet.first() else { return false };
    let header_length = usize::from(first & 0x0f) * 4;
    let Some(message) = packet.get(header_length..) else { return false };
    let expected = [identity.to_be_bytes(), sequence.to_be_bytes()].concat();
    message.first() == Some(&ECHO_REPLY) && message.get(4..HEADER) == Some(expected.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_sums_to_zero() {
        assert_eq!(checksum(&echo_request(0x1234, 77)), 0);
    }

    #[test]
    fn only_the_reply_to_this_very_request_counts() {
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(&echo_request(7, 9));
        assert!(!is_reply(&packet, 7, 9), "a request is no reply");
        packet[20] = ECHO_REPLY;
        assert!(is_reply(&packet, 7, 9));
        assert!(!is_reply(&packet, 7, 10));
        assert!(!is_reply(&packet, 8, 9));
        assert!(!is_reply(&packet[..22], 7, 9));
        assert!(!is_reply(&[], 7, 9));
    }
}
