//! Many small datagrams with one system call (sendmmsg(2), recvmmsg(2)): with one call each, the load generator would
//! be what is measured.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

/// Most datagrams that one call moves.
pub(crate) const BATCH: usize = 64;
/// The payload of a small packet, in bytes.
pub(crate) const SIZE: usize = 64;

/// Begins every payload, so that a stray packet is not counted.
const MARK: [u8; 8] = *b"ringmesh";
/// Where the datagram's number stands in it.
const NUMBER: std::ops::Range<usize> = MARK.len()..MARK.len() + 8;

/// Returns the number of a datagram of ours; nothing for what is not, or damaged.
pub(crate) fn number(datagram: &[u8]) -> Option<u64> {
    let rest = datagram.get(NUMBER.end..)?;
    let ours = datagram.len() == SIZE && datagram.starts_with(&MARK) && rest.iter().all(|byte| *byte == 0x5a);
    let number = datagram.get(NUMBER)?.try_into().ok()?;
    ours.then(|| u64::from_be_bytes(number))
}

/// Sends numbered datagrams.
#[derive(Debug)]
pub(crate) struct Sender {
    headers: MultiHeaders<()>,
    payloads: [[u8; SIZE]; BATCH],
    next: u64,
}

impl Sender {
    /// Prepares to send.
    pub(crate) fn new() -> Self {
        let mut payload = [0x5a; SIZE];
        payload[..MARK.len()].copy_from_slice(&MARK);
        payload[NUMBER].fill(0);
        Self { headers: MultiHeaders::preallocate(BATCH, None), payloads: [payload; BATCH], next: 0 }
    }

    /// Sends up to [`BATCH`] datagrams to the socket's peer; returns how many the kernel took.
    ///
    /// # Errors
    /// Those of sendmmsg(2), when not even the first was taken.
    pub(crate) fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        for (payload, number) in self.payloads.iter_mut().zip(self.next..) {
            payload[NUMBER].copy_from_slice(&number.to_be_bytes());
        }
        let parts = self.payloads.each_ref().map(|payload| [IoSlice::new(payload)]);
        let to_peer = [None::<()>; BATCH];
        let sent = sendmmsg(socket.as_raw_fd(), &mut self.headers, &parts, to_peer, [], MsgFlags::empty())?;
        let count = sent.count();
        self.next += count as u64;
        Ok(count)
    }
}

/// Sends one datagram after the other to many addresses in turn, always the same.
#[derive(Debug)]
pub(crate) struct Spreader {
    headers: MultiHeaders<SockaddrIn>,
    to: Vec<Option<SockaddrIn>>,
    next: usize,
}

impl Spreader {
    /// Prepares to send to these, at a port that nobody has to listen at (RFC 863).
    pub(crate) fn new(to: &[Ipv4Addr]) -> Self {
        let at = |address: &Ipv4Addr| Some(SockaddrIn::from(SocketAddrV4::new(*address, 9)));
        // A batch never wraps: the list is repeated until it is a whole number of them.
        let times = (BATCH / gcd(BATCH, to.len().max(1))).max(1);
        let list: Vec<_> = to.iter().map(at).collect();
        let to = list.repeat(times);
        Self { headers: MultiHeaders::preallocate(BATCH, None), to, next: 0 }
    }

    /// Sends up to [`BATCH`] datagrams; returns how many the kernel took.
    ///
    /// # Errors
    /// Those of sendmmsg(2), when not even the first was taken.
    pub(crate) fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let payload = [0x5a; SIZE];
        let parts = [[IoSlice::new(&payload)]; BATCH];
        let end = (self.next + BATCH).min(self.to.len());
        let Some(to) = self.to.get(self.next..end) else { return Ok(0) };
        let parts = &parts[..to.len()];
        let sent = sendmmsg(socket.as_raw_fd(), &mut self.headers, parts, to, [], MsgFlags::empty())?;
        let count = sent.count();
        self.next = (self.next + count) % self.to.len().max(1);
        Ok(count)
    }
}

fn gcd(one: usize, other: usize) -> usize {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// Receives datagrams into buffers of its own.
#[derive(Debug)]
pub(crate) struct Receiver {
    headers: MultiHeaders<()>,
    buffers: [[u8; SIZE]; BATCH],
    lengths: Vec<usize>,
}

impl Receiver {
    /// Prepares empty buffers.
    pub(crate) fn new() -> Self {
        let headers = MultiHeaders::preallocate(BATCH, None);
        Self { headers, buffers: [[0; SIZE]; BATCH], lengths: Vec::with_capacity(BATCH) }
    }

    /// Receives up to [`BATCH`] datagrams, waiting (at most the socket's read timeout) for the first, and gives their
    /// bytes; those of a longer datagram are cut to `SIZE`.
    ///
    /// # Errors
    /// Those of recvmmsg(2), when nothing was received.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<impl Iterator<Item = &[u8]>> {
        let mut parts = self.buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let flags = MsgFlags::MSG_WAITFORONE;
        let received = recvmmsg(socket.as_raw_fd(), &mut self.headers, &mut parts, flags, None)?;
        self.lengths.clear();
        self.lengths.extend(received.map(|message| message.bytes));
        Ok(self.buffers.iter().zip(&self.lengths).map(|(buffer, &length)| &buffer[..length.min(SIZE)]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_batch_arrives_whole() {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let source = UdpSocket::bind("127.0.0.1:0").unwrap();
        source.connect(sink.local_addr().unwrap()).unwrap();
        let mut sender = Sender::new();
        assert_eq!(sender.send(&source).unwrap(), BATCH);
        assert_eq!(sender.send(&source).unwrap(), BATCH);
        source.send(b"short").unwrap();

        let (mut receiver, mut seen) = (Receiver::new(), Vec::new());
        while seen.len() < 2 * BATCH + 1 {
            seen.extend(receiver.receive(&sink).unwrap().map(<[u8]>::to_vec));
        }
        assert_eq!(seen.pop().unwrap(), b"short");
        let numbers: Vec<_> = seen.iter().filter_map(|datagram| number(datagram)).collect();
        let all: Vec<_> = (0..2 * BATCH as u64).collect();
        assert_eq!(numbers, all);
    }

    #[test]
    fn a_damaged_datagram_has_no_number() {
        let mut datagram = Sender::new().payloads[0];
        assert_eq!(number(&datagram), Some(0));
        datagram[SIZE - 1] ^= 1;
        assert_eq!(number(&datagram), None);
        assert_eq!(number(&datagram[..SIZE - 1]), None);
    }

    #[test]
    fn a_spreader_goes_round_all_addresses() {
        let list: Vec<_> = (1..=3).map(|number| Ipv4Addr::new(127, 0, 0, number)).collect();
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut spreader = Spreader::new(&list);
        assert_eq!(spreader.to.len(), 3 * BATCH);
        for batch in 1..=3 {
            assert_eq!(spreader.send(&sink).unwrap(), BATCH);
            assert_eq!(spreader.next, batch % 3 * BATCH);
        }
    }

    #[test]
    fn a_silent_socket_times_out() {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        sink.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let error = Receiver::new().receive(&sink).map(Iterator::count).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
