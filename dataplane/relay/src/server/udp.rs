//! The UDP sockets of a server: batches come in, trains of equal datagrams go out.
//!
//! Datagrams for the same address that are equal in length leave in one system call (GSO), whatever they came in: a sender's
//! own train, or one by one. A train waits for no longer than the batch lasts in which its first datagram came.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::relay::Receiver;

/// What is asked of the kernel for each socket's buffers; it may give less (`net.core.rmem_max`, `wmem_max`).
const SOCKET_BUFFER: usize = 8 << 20;
/// Bytes of a batch's buffer: the longest train that the kernel delivers.
const RECEIVE_BUFFER: usize = 64 << 10;
/// How often another port is tried when the first socket got one at random that the second cannot have.
const PORT_TRIES: usize = 16;
/// Trains that are put together at the same time.
const TRAINS: usize = 16;
/// The longest payload of a train: what fits one IPv4 datagram, as the kernel sees it before it cuts.
const MAX_TRAIN: usize = 65_000;
/// The longest datagram that goes in a train. One that is too long for the device makes the kernel refuse the train, which
/// looks like a device that cannot do trains at all.
const MAX_SEGMENT: usize = 1472;

/// How long a socket goes without trains after the kernel refused one. It was one train too long for its device, perhaps, and
/// whoever sent it must not slow down all others for good.
const TRAINLESS: Duration = Duration::from_secs(10);

/// One socket.
#[derive(Debug)]
pub(super) struct Port {
    socket: UdpSocket,
    state: RefCell<UdpSocketState>,
    /// Datagrams that a train could have at the start.
    segments: usize,
    /// Since when trains are refused.
    refused: Cell<Option<Instant>>,
}

impl Port {
    /// Within the runtime that is to wait for it.
    fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let socket = UdpSocket::from_std(socket)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let segments = state.max_gso_segments();
        Ok(Self { socket, state: RefCell::new(state), segments, refused: Cell::new(None) })
    }

    /// Tries trains again, if they were refused some time ago.
    fn renew(&self, now: Instant) {
        if self.state.borrow().max_gso_segments() >= self.segments {
            return;
        }
        let since = self.refused.get().unwrap_or(now);
        self.refused.set(Some(since));
        if now.saturating_duration_since(since) >= TRAINLESS
            && let Ok(fresh) = UdpSocketState::new(UdpSockRef::from(&self.socket))
        {
            self.refused.set(None);
            self.state.replace(fresh);
        }
    }

    /// Waits until something is there, or may be.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Takes a batch; `None` if nothing is there.
    pub(super) fn receive(&self, batch: &mut Batch) -> io::Result<Option<usize>> {
        let mut slices = batch.buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
        let received = self.socket.try_io(Interest::READABLE, || {
            self.state.borrow().recv(UdpSockRef::from(&self.socket), &mut slices, &mut batch.meta)
        });
        match received {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn send(&self, to: SocketAddr, contents: &[u8], segment: usize) -> io::Result<()> {
        let segment_size = (segment < contents.len()).then_some(segment);
        let transmit = Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        self.state.borrow().try_send(UdpSockRef::from(&self.socket), &transmit)
    }
}

/// Where datagrams are received into.
pub(super) struct Batch {
    buffers: [Box<[u8]>; BATCH_SIZE],
    meta: [RecvMeta; BATCH_SIZE],
}

impl Batch {
    pub(super) fn new() -> Self {
        let buffers = std::array::from_fn(|_| vec![0; RECEIVE_BUFFER].into_boxed_slice());
        Self { buffers, meta: [RecvMeta::default(); BATCH_SIZE] }
    }

    /// The first `count` trains: who sent each, and its datagrams.
    pub(super) fn trains(
        &mut self,
        count: usize,
    ) -> impl Iterator<Item = (SocketAddr, impl Iterator<Item = &mut [u8]>)> {
        self.buffers.iter_mut().zip(&self.meta).take(count).map(|(buffer, meta)| {
            let length = meta.len.min(buffer.len());
            // An empty datagram has no stride, and yields nothing.
            (meta.addr, buffer[..length].chunks_mut(meta.stride.max(1)))
        })
    }
}

/// The UDP sockets of a server that does not run yet, of both families on one port. Taking them needs no runtime and starts no
/// thread, so that it can be done before a process gives up its rights.
#[derive(Debug)]
pub struct Ports {
    v4: Option<std::net::UdpSocket>,
    v6: Option<std::net::UdpSocket>,
    port: u16,
}

impl Ports {
    /// Binds those that are asked for; IPv6 may be missing if IPv4 is there. Port 0: any.
    ///
    /// # Errors
    /// What the system says of the port.
    pub fn bind(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, port: u16) -> io::Result<Self> {
        let mut tried = 0;
        loop {
            match Self::bind_once(v4, v6, port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port == 0 && tried < PORT_TRIES => {
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    fn bind_once(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, mut port: u16) -> io::Result<Self> {
        let bind = |ip: IpAddr, port| bind(SocketAddr::new(ip, port));
        let v4 = v4.map(|ip| bind(ip.into(), port)).transpose()?;
        if let Some(v4) = &v4 {
            port = v4.local_addr()?.port();
        }
        let v6 = match v6.map(|ip| bind(ip.into(), port)).transpose() {
            Err(error) if v4.is_some() && error.kind() != io::ErrorKind::AddrInUse => {
                tracing::info!(event = "relay_ipv4_only", %error, "no IPv6 here: the relay serves IPv4 only");
                None
            }
            bound => bound?,
        };
        if let Some(v6) = &v6 {
            port = v6.local_addr()?.port();
        }
        if v4.is_none() && v6.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the relay was given no address to listen at",
            ));
        }
        Ok(Self { v4, v6, port })
    }

    /// The port, of both families.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The same sockets once more, for a server that is started again when nothing can be bound any more.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |socket: &Option<std::net::UdpSocket>| {
            socket.as_ref().map(std::net::UdpSocket::try_clone).transpose()
        };
        Ok(Self { v4: again(&self.v4)?, v6: again(&self.v6)?, port: self.port })
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    // Less than asked for is no reason not to start.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The sockets of a server that runs.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) v4: Option<Port>,
    pub(super) v6: Option<Port>,
}

impl Sockets {
    /// Within the runtime that is to wait for them.
    pub(super) fn new(ports: Ports) -> io::Result<Self> {
        let open = |socket: Option<std::net::UdpSocket>| socket.map(Port::new).transpose();
        Ok(Self { v4: open(ports.v4)?, v6: open(ports.v6)? })
    }

    /// Does what is to be done now and then.
    pub(super) fn renew(&self, now: Instant) {
        self.v4.iter().chain(&self.v6).for_each(|socket| socket.renew(now));
    }

    fn of(&self, to: SocketAddr) -> Option<&Port> {
        if to.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    fn max_segments(&self, to: SocketAddr) -> usize {
        self.of(to).map_or(1, |socket| socket.state.borrow().max_gso_segments())
    }

    fn send(&self, to: SocketAddr, contents: &[u8], segment: usize) -> io::Result<()> {
        self.of(to).ok_or(io::ErrorKind::AddrNotAvailable)?.send(to, contents, segment)
    }
}

/// Whose datagram it is, so that it is known who did not get it.
pub(super) type For = Option<(u8, Receiver)>;

/// Datagrams on their way to the sockets.
#[derive(Debug)]
pub(super) struct Outbox {
    trains: Vec<Train>,
    /// Which train is sent next to make room.
    next: usize,
    failed: Vec<(u8, Receiver, usize)>,
    /// Datagrams and bytes that left, the relay's own included.
    pub(super) sent: crate::Traffic,
}

#[derive(Debug)]
struct Train {
    to: SocketAddr,
    bytes: Vec<u8>,
    segment: usize,
    /// The last one was shorter: none may follow.
    closed: bool,
    receivers: Vec<For>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        let train = || Train {
            to: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            bytes: Vec::with_capacity(MAX_TRAIN),
            segment: 0,
            closed: false,
            receivers: Vec::with_capacity(64),
        };
        Self {
            trains: (0..TRAINS).map(|_| train()).collect(),
            next: 0,
            failed: Vec::new(),
            sent: crate::Traffic::default(),
        }
    }

    /// Adds a datagram to the train for `to`. Those for one address keep their order.
    pub(super) fn push(&mut self, sockets: &Sockets, to: SocketAddr, datagram: &[u8], receiver: For) {
        let at = match self.trains.iter().position(|train| train.to == to && !train.bytes.is_empty()) {
            Some(at) => {
                let train = &self.trains[at];
                let fits = !train.closed
                    && datagram.len() <= train.segment
                    && train.segment <= MAX_SEGMENT
                    && train.bytes.len() + datagram.len() <= MAX_TRAIN
                    && train.receivers.len() < sockets.max_segments(to);
                if !fits {
                    self.send(sockets, at);
                }
                at
            }
            None => {
                let at = self.trains.iter().position(|train| train.bytes.is_empty()).unwrap_or(self.next);
                self.next = (at + 1) % TRAINS;
                self.send(sockets, at);
                at
            }
        };
        let train = &mut self.trains[at];
        if train.bytes.is_empty() {
            (train.to, train.segment, train.closed) = (to, datagram.len(), false);
        }
        train.closed = datagram.len() < train.segment;
        train.bytes.extend_from_slice(datagram);
        train.receivers.push(receiver);
    }

    /// Sends everything.
    pub(super) fn flush(&mut self, sockets: &Sockets) {
        for at in 0..self.trains.len() {
            self.send(sockets, at);
        }
    }

    /// Takes those that could not be sent: network, receiver, bytes.
    pub(super) fn failed(&mut self) -> impl Iterator<Item = (u8, Receiver, usize)> + '_ {
        self.failed.drain(..)
    }

    fn send(&mut self, sockets: &Sockets, at: usize) {
        let train = &mut self.trains[at];
        if train.bytes.is_empty() {
            return;
        }
        let count = train.receivers.len();
        let whole = sockets.send(train.to, &train.bytes, train.segment);
        // A full socket is full for each of them; any other fault may be the train's.
        let retry = count > 1 && whole.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock);
        let fault = whole.err();
        for (datagram, receiver) in train.bytes.chunks(train.segment.max(1)).zip(&train.receivers) {
            let sent = if retry {
                sockets.send(train.to, datagram, datagram.len()).is_ok()
            } else {
                fault.is_none()
            };
            if sent {
                self.sent.datagrams += 1;
                self.sent.bytes += datagram.len() as u64;
            } else if let Some((network, receiver)) = *receiver {
                self.failed.push((network, receiver, datagram.len()));
            }
        }
        if let Some(error) = fault {
            tracing::trace!(to = %train.to, %error, count, "datagrams could not be sent");
        }
        train.bytes.clear();
        train.receivers.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;

    fn sockets() -> (Sockets, StdSocket, SocketAddr) {
        let sockets = Sockets::new(Ports::bind(Some(Ipv4Addr::LOCALHOST), None, 0).unwrap()).unwrap();
        let receiver = StdSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let to = receiver.local_addr().unwrap();
        (sockets, receiver, to)
    }

    fn receive(socket: &StdSocket) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[tokio::test]
    async fn datagrams_of_all_lengths_arrive_whole_and_in_order() {
        let (sockets, receiver, to) = sockets();
        let (other, other_to) = {
            let other = StdSocket::bind("127.0.0.1:0").unwrap();
            let to = other.local_addr().unwrap();
            (other, to)
        };
        let mut outbox = Outbox::new();
        let lengths = [100, 100, 100, 60, 100, 100, 1400, 1400, 1, 1, 1500, 1500, 7];
        for (number, &length) in lengths.iter().enumerate() {
            outbox.push(&sockets, to, &vec![number as u8; length], None);
            outbox.push(&sockets, other_to, &[number as u8; 10], None);
        }
        outbox.flush(&sockets);
        for (number, &length) in lengths.iter().enumerate() {
            assert_eq!(receive(&receiver), vec![number as u8; length]);
            assert_eq!(receive(&other), [number as u8; 10]);
        }
        let bytes: usize = lengths.iter().map(|length| length + 10).sum();
        assert_eq!((outbox.sent.datagrams, outbox.sent.bytes), (26, bytes as u64));
        assert_eq!(outbox.failed().count(), 0);
    }

    #[tokio::test]
    async fn more_destinations_than_trains_are_all_served() {
        let (sockets, _, _) = sockets();
        let receivers: Vec<_> =
            (0..TRAINS * 2 + 3).map(|_| StdSocket::bind("127.0.0.1:0").unwrap()).collect();
        let mut outbox = Outbox::new();
        for round in 0..3u8 {
            for receiver in &receivers {
                outbox.push(&sockets, receiver.local_addr().unwrap(), &[round; 50], None);
            }
        }
        outbox.flush(&sockets);
        for receiver in &receivers {
            assert_eq!([0, 1, 2].map(|_| receive(receiver)[0]), [0, 1, 2]);
        }
    }

    #[tokio::test]
    async fn trains_are_tried_again_some_time_after_one_was_refused() {
        let (sockets, _receiver, to) = sockets();
        let port = sockets.v4.as_ref().unwrap();
        if port.segments == 1 {
            return;
        }
        // More segments than any kernel takes in one call.
        assert!(port.send(to, &[0; 60_000], 1).is_err());
        assert_eq!(sockets.max_segments(to), 1);
        let now = Instant::now();
        sockets.renew(now);
        sockets.renew(now + TRAINLESS / 2);
        assert_eq!(sockets.max_segments(to), 1);
        sockets.renew(now + TRAINLESS);
        assert_eq!(sockets.max_segments(to), port.segments);
    }

    #[tokio::test]
    async fn what_has_no_socket_of_its_family_is_told() {
        let (sockets, _, _) = sockets();
        assert!(sockets.send("[::1]:9".parse().unwrap(), b"x", 1).is_err());
        assert_eq!(sockets.max_segments("[::1]:9".parse().unwrap()), 1);
    }
}
