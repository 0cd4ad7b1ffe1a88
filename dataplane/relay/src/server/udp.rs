//! The UDP sockets of a server: batches come in, trains of equal datagrams go out.
//!
//! Datagrams for the same address that are equal in length leave in one system call (GSO), whatever they came in: a sender's
//! own train, or one by one. A train waits for no longer than the batch lasts in which its first datagram came.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// One socket.
#[derive(Debug)]
pub(super) struct Socket1 {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket1 {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        // Less than asked for is no reason not to start.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(Self { socket, state })
    }

    /// Waits until something is there, or may be.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Takes a batch; `None` if nothing is there.
    pub(super) fn receive(&self, batch: &mut Batch) -> io::Result<Option<usize>> {
        let mut slices = batch.buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
        let received = self.socket.try_io(Interest::READABLE, || {
            self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut batch.meta)
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
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
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

/// The sockets of both families, on one port.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) v4: Option<Socket1>,
    pub(super) v6: Option<Socket1>,
    port: u16,
}

impl Sockets {
    /// Binds those that are asked for; IPv6 may be missing if IPv4 is there.
    pub(super) fn bind(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, port: u16) -> io::Result<Self> {
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
        let bind = |ip: IpAddr, port| Socket1::bind(SocketAddr::new(ip, port));
        let v4 = v4.map(|ip| bind(ip.into(), port)).transpose()?;
        if let Some(v4) = &v4 {
            port = v4.socket.local_addr()?.port();
        }
        let v6 = match v6.map(|ip| bind(ip.into(), port)).transpose() {
            Err(error) if v4.is_some() && error.kind() != io::ErrorKind::AddrInUse => {
                tracing::info!(%error, "no IPv6 here: the relay serves IPv4 only");
                None
            }
            bound => bound?,
        };
        if let Some(v6) = &v6 {
            port = v6.socket.local_addr()?.port();
        }
        if v4.is_none() && v6.is_none() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the relay was given no address to listen at",
            ));
        }
        Ok(Self { v4, v6, port })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    fn of(&self, to: SocketAddr) -> Option<&Socket1> {
        if to.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    fn max_segments(&self, to: SocketAddr) -> usize {
        self.of(to).map_or(1, |socket| socket.state.max_gso_segments())
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
