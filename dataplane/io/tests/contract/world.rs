//! The two sides a back end stands between: applications behind TUN and a peer on the network.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ringmesh_io::{
    BackEnd, Choice, Delivery, Handler, Head, KernelIo, MemoryIo, Now, Offloads, Outbox, PacketIo, Parts,
    SocketBuffers, SuperPacket, Train, Tun, Udp, Waker,
};

use crate::namespace;

pub(crate) const MTU: u16 = 1408;

const OURS_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const THEIRS_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const THEIRS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// How long anything may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Bytes of IP and UDP header.
    pub(crate) fn headers(self) -> usize {
        match self {
            Self::V4 => 28,
            Self::V6 => 48,
        }
    }
}

/// A handler that puts each packet into a datagram behind 16 bytes, and takes it out again: a tunnel without secrets.
pub(crate) struct Courier {
    pub(crate) peer: SocketAddr,
    pub(crate) seen: VecDeque<(SocketAddr, Vec<u8>)>,
    pub(crate) times: Vec<Now>,
    pub(crate) packets: u64,
    pub(crate) dropped: u64,
    pub(crate) wakes: u64,
    pub(crate) idles: u64,
    head: Head,
}

impl Courier {
    /// Bytes in front of the packet.
    pub(crate) const HEADER: usize = 16;
    /// First byte of a datagram with a packet.
    pub(crate) const PACKET: u8 = 4;
    /// First byte of a datagram that only is looked at.
    pub(crate) const NOT_A_PACKET: u8 = 0xfe;

    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            seen: VecDeque::new(),
            times: Vec::new(),
            packets: 0,
            dropped: 0,
            wakes: 0,
            idles: 0,
            head: Head::new(),
        }
    }
}

impl Handler for Courier {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, now: Now) {
        self.times.push(now);
        for packet in packets.iter().filter(|packet| is_udp(packet.whole())) {
            for index in 0..packet.segments() {
                self.packets += 1;
                let Some(mut slot) = outbox.datagram() else {
                    self.dropped += 1;
                    continue;
                };
                // What lies in front of a packet must not be taken for an offload header.
                slot[..Self::HEADER].fill(0xff);
                slot[0] = Self::PACKET;
                let mut at = Self::HEADER;
                let (head, rest) = packet.segment(index, &mut self.head);
                for part in [head, rest] {
                    slot[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
                slot.commit(at, self.peer);
            }
        }
    }

    fn datagrams(&mut self, mut train: Train<'_>, from: SocketAddr, delivery: &mut Delivery<'_>, now: Now) {
        self.times.push(now);
        for index in 0..train.len() {
            let datagram = train.datagram(index).expect("a train has its datagrams");
            if datagram.first() == Some(&Self::PACKET) && datagram.len() > Self::HEADER {
                let range = Self::HEADER..datagram.len();
                delivery.packet(index, range).expect("a packet of the train");
            } else {
                self.seen.push_back((from, datagram.to_vec()));
            }
        }
    }

    fn wake(&mut self, _: &mut Outbox, now: Now) {
        self.times.push(now);
        self.wakes += 1;
    }

    fn idle(&mut self, _: &mut Outbox, now: Now) {
        self.times.push(now);
        self.idles += 1;
    }
}

fn is_udp(packet: &[u8]) -> bool {
    let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
    i32::from(protocol) == libc::IPPROTO_UDP
}

/// Swaps source and destination of the packet in a datagram: an answer from the far end, with a valid checksum, as
/// the sum does not depend on the order.
pub(crate) fn reflect(datagram: &[u8]) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    let packet = &mut datagram[Courier::HEADER..];
    let (addresses, ports) = if packet[0] >> 4 == 4 { (12..20, 20..24) } else { (8..40, 40..44) };
    for range in [addresses, ports] {
        let half = range.len() / 2;
        packet[range].rotate_left(half);
    }
    datagram
}

pub(crate) trait World {
    type Io: PacketIo;

    fn io(&mut self) -> &mut Self::Io;
    /// Where the network's side is.
    fn peer(&self, family: Family) -> SocketAddr;
    /// An application sends `payload` to the far end of the tunnel.
    fn app_send(&mut self, family: Family, payload: &[u8]);
    /// What the application has received, if anything.
    fn app_recv(&mut self, family: Family) -> Option<Vec<u8>>;
    /// The peer sends us a datagram.
    fn net_send(&mut self, family: Family, datagram: &[u8]);
    /// What the peer has received, if anything.
    fn net_recv(&mut self, family: Family) -> Option<Vec<u8>>;

    /// Takes turns until there is something; fails when there is nothing for long.
    fn turn_until<T>(
        &mut self,
        handler: &mut impl Handler,
        mut get: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(got) = get(self) {
                return got;
            }
            assert!(Instant::now() < deadline, "nothing arrived: {:?}", self.io().counters());
            let soon = Instant::now() + Duration::from_micros(100);
            self.io().turn(Some(soon), handler).expect("a turn");
        }
    }

    /// Takes turns until the courier was shown a datagram that is not a packet.
    fn turn_until_seen(&mut self, courier: &mut Courier) -> (SocketAddr, Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        while courier.seen.is_empty() {
            assert!(Instant::now() < deadline, "nothing was shown: {:?}", self.io().counters());
            let soon = Instant::now() + Duration::from_micros(100);
            self.io().turn(Some(soon), courier).expect("a turn");
        }
        courier.seen.pop_front().expect("not empty")
    }

    /// What the peer receives without another turn.
    fn net_recv_soon(&mut self, family: Family) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(got) = self.net_recv(family) {
                return got;
            }
            assert!(Instant::now() < deadline, "the peer received nothing");
            std::thread::yield_now();
        }
    }
}

/// Takes turns until nothing happens any more.
pub(crate) fn settle(io: &mut impl PacketIo, handler: &mut impl Handler) {
    loop {
        let before = io.counters();
        io.turn(Some(Instant::now() + Duration::from_millis(20)), handler).expect("a turn");
        let after = io.counters();
        if before.packets_read == after.packets_read && before.datagrams_received == after.datagrams_received
        {
            return;
        }
    }
}

/// A real TUN interface and real sockets on loopback, in the namespace of the calling thread.
pub(crate) struct KernelWorld {
    pub(crate) io: KernelIo,
    pub(crate) tun_name: String,
    port: u16,
    apps: [UdpSocket; 2],
    peers: [UdpSocket; 2],
}

impl KernelWorld {
    pub(crate) fn new(choice: Choice) -> Self {
        Self::with_udp(choice, Udp::bind(0, SocketBuffers::default()).expect("a free port"))
    }

    pub(crate) fn with_udp(choice: Choice, udp: Udp) -> Self {
        Self::with(choice, udp, Offloads::ALL)
    }

    /// With these offloads only.
    pub(crate) fn with_offloads(choice: Choice, offloads: Offloads) -> Self {
        Self::with(choice, Udp::bind(0, SocketBuffers::default()).expect("a free port"), offloads)
    }

    fn with(choice: Choice, udp: Udp, offloads: Offloads) -> Self {
        let tun = Tun::create("mesh%d").expect("TUN is available: these tests need it");
        let (tun_name, port) = (tun.name().to_owned(), udp.port());
        namespace::set_mtu(&tun_name, i32::from(MTU)).expect("an MTU");
        namespace::hush_ipv6(&tun_name).expect("settings of an interface of ours");
        namespace::interface_up(&tun_name).expect("the interface comes up");
        namespace::add_ipv4(&tun_name, OURS_V4).expect("an IPv4 address");
        namespace::add_ipv6(&tun_name, OURS_V6).expect("an IPv6 address");
        let waker = Waker::new().expect("a waker");
        let (mut io, chosen) =
            KernelIo::open(choice, Parts { tun, udp, waker, mtu: MTU, offloads, spin: Duration::ZERO })
                .expect("a back end");
        let expected = if choice == Choice::Poll { BackEnd::Poll } else { BackEnd::Uring };
        assert_eq!(chosen.back_end, expected, "{}", chosen.reason);
        let apps = [app((OURS_V4, THEIRS_V4)), app((OURS_V6, THEIRS_V6))];
        let peers = [peer("127.0.0.1:0"), peer("[::1]:0")];
        // The few packets that the kernel itself sends on a new interface shall not end the tests' turns.
        settle(&mut io, &mut Deaf);
        Self { io, tun_name, port, apps, peers }
    }

    /// The peer sends us datagrams of `size` bytes, the last one shorter, in one call.
    pub(crate) fn net_send_cut(&mut self, family: Family, bytes: &[u8], size: usize) {
        let socket = &self.peers[family as usize];
        cut_at(socket, size);
        socket.send_to(bytes, self.ours(family)).expect("loopback takes it");
        cut_at(socket, 0);
    }

    /// An application sends datagrams of `size` bytes, the last one shorter, in one call.
    pub(crate) fn app_send_cut(&mut self, family: Family, bytes: &[u8], size: usize) {
        let socket = &self.apps[family as usize];
        cut_at(socket, size);
        socket.send(bytes).expect("TUN takes it");
        cut_at(socket, 0);
    }

    /// Where our sockets are reached.
    pub(crate) fn ours(&self, family: Family) -> SocketAddr {
        match family {
            Family::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)),
            Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, self.port)),
        }
    }
}

fn app<A: Into<std::net::IpAddr>>((ours, theirs): (A, A)) -> UdpSocket {
    let ours = ours.into();
    let deadline = Instant::now() + PATIENCE;
    // An IPv6 address is usable when the kernel's address worker has looked at it.
    let socket = loop {
        match UdpSocket::bind((ours, 0)) {
            Ok(socket) => break socket,
            Err(error) => assert!(Instant::now() < deadline, "{ours} is on TUN: {error}"),
        }
        std::thread::yield_now();
    };
    socket.connect((theirs.into(), 9)).expect("the far end is behind TUN");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

/// Has everything that is sent from now on cut every `size` bytes; 0: no more.
fn cut_at(socket: &UdpSocket, size: usize) {
    let size = size as libc::c_int;
    // SAFETY: the option's value is an int, and lives through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    namespace::check(set).expect("UDP_SEGMENT");
}

fn peer(at: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at).expect("loopback");
    socket.set_nonblocking(true).expect("non-blocking");
    // For as many datagrams as an outbox holds, whatever the system's default is.
    socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).expect("a buffer");
    socket
}

pub(crate) fn receive(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 16];
    match socket.recv(&mut bytes) {
        Ok(len) => {
            bytes.truncate(len);
            Some(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("receiving: {error}"),
    }
}

impl World for KernelWorld {
    type Io = KernelIo;

    fn io(&mut self) -> &mut KernelIo {
        &mut self.io
    }

    fn peer(&self, family: Family) -> SocketAddr {
        self.peers[family as usize].local_addr().expect("bound")
    }

    fn app_send(&mut self, family: Family, payload: &[u8]) {
        self.apps[family as usize].send(payload).expect("TUN takes it");
    }

    fn app_recv(&mut self, family: Family) -> Option<Vec<u8>> {
        receive(&self.apps[family as usize])
    }

    fn net_send(&mut self, family: Family, datagram: &[u8]) {
        self.peers[family as usize].send_to(datagram, self.ours(family)).expect("loopback takes it");
    }

    fn net_recv(&mut self, family: Family) -> Option<Vec<u8>> {
        receive(&self.peers[family as usize])
    }
}

/// The twin, with the packets that the kernel would make.
pub(crate) struct MemoryWorld {
    io: MemoryIo,
    sent: [VecDeque<Vec<u8>>; 2],
    delivered: [VecDeque<Vec<u8>>; 2],
}

impl MemoryWorld {
    pub(crate) fn new() -> Self {
        Self {
            io: MemoryIo::new(MTU).expect("a waker"),
            sent: Default::default(),
            delivered: Default::default(),
        }
    }

    fn collect(&mut self) {
        for (to, datagram) in self.io.take_datagrams() {
            self.sent[usize::from(to.is_ipv6())].push_back(datagram);
        }
        for packet in self.io.take_packets() {
            self.delivered[usize::from(packet[0] >> 4 == 6)].push_back(packet);
        }
    }
}

impl World for MemoryWorld {
    type Io = MemoryIo;

    fn io(&mut self) -> &mut MemoryIo {
        &mut self.io
    }

    fn peer(&self, family: Family) -> SocketAddr {
        match family {
            Family::V4 => SocketAddr::from((Ipv4Addr::LOCALHOST, 7)),
            Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, 7)),
        }
    }

    fn app_send(&mut self, family: Family, payload: &[u8]) {
        // Addresses, ports and the version are all that anybody here looks at.
        let mut packet = vec![0; family.headers()];
        let (version, protocol) = if family == Family::V4 { (0x45, 9) } else { (0x60, 6) };
        packet[0] = version;
        packet[protocol] = libc::IPPROTO_UDP as u8;
        packet.extend(payload);
        self.io.push_packet(&packet);
    }

    fn app_recv(&mut self, family: Family) -> Option<Vec<u8>> {
        self.collect();
        let packet = self.delivered[family as usize].pop_front()?;
        Some(packet[family.headers()..].to_vec())
    }

    fn net_send(&mut self, family: Family, datagram: &[u8]) {
        self.io.push_datagram(self.peer(family), datagram);
    }

    fn net_recv(&mut self, family: Family) -> Option<Vec<u8>> {
        self.collect();
        self.sent[family as usize].pop_front()
    }
}

/// Hears nothing.
pub(crate) struct Deaf;

impl Handler for Deaf {
    fn packets(&mut self, _: &[SuperPacket<'_>], _: &mut Outbox, _: Now) {}
    fn datagrams(&mut self, _: Train<'_>, _: SocketAddr, _: &mut Delivery<'_>, _: Now) {}
    fn wake(&mut self, _: &mut Outbox, _: Now) {}
    fn idle(&mut self, _: &mut Outbox, _: Now) {}
}
