//! An interface with several queues, and the traffic of the machine on it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use ringmesh_io::Tun;

use crate::namespace::{self, check};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

const OURS4: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const THEIRS4: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const OURS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1);
const THEIRS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 2);

/// Bytes of the offload header.
pub(crate) const HEADER: usize = 10;

/// One of the two versions of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V6,
}

impl Version {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The machine's address on the interface.
    pub(crate) fn ours(self) -> IpAddr {
        match self {
            Self::V4 => OURS4.into(),
            Self::V6 => OURS6.into(),
        }
    }

    /// The address of somebody behind it.
    pub(crate) fn theirs(self) -> IpAddr {
        match self {
            Self::V4 => THEIRS4.into(),
            Self::V6 => THEIRS6.into(),
        }
    }
}

/// Gives the interface addresses and brings it up.
pub(crate) fn bring_up(name: &str) {
    namespace::hush_ipv6(name).expect("silence");
    namespace::add_ipv4(name, OURS4).expect("an address");
    namespace::interface_up(name).expect("up");
    namespace::add_ipv6(name, OURS6).expect("an address");
    // The kernel takes its time to find that there is nobody to ask whether it is taken.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = UdpSocket::bind((OURS6, 0)) {
        assert!(Instant::now() < deadline, "the address is not there: {error}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads and writes packets of one queue.
pub(crate) struct Queue(File);

impl Queue {
    pub(crate) fn new(tun: &Tun) -> Self {
        Self(tun.as_fd().try_clone_to_owned().expect("a descriptor").into())
    }

    /// The next packet of TCP or UDP, if any: its offload header, and its bytes.
    pub(crate) fn read(&self) -> Option<([u8; HEADER], Vec<u8>)> {
        loop {
            let mut bytes = vec![0; HEADER + 65_536];
            let len = (&self.0).read(&mut bytes).ok()?;
            bytes.truncate(len);
            let packet = bytes.split_off(HEADER);
            let protocol = if packet[0] >> 4 == 4 { packet[9] } else { packet[6] };
            if matches!(protocol, 6 | 17) {
                return Some((bytes.try_into().expect("an offload header"), packet));
            }
        }
    }

    /// Hands the kernel a packet that is complete.
    pub(crate) fn write(&self, packet: &[u8]) {
        let bytes = [&[0; HEADER], packet].concat();
        assert_eq!((&self.0).write(&bytes).expect("written"), bytes.len());
    }

    fn wait(queues: &[Self]) {
        let mut set: Vec<_> = queues
            .iter()
            .map(|queue| libc::pollfd { fd: queue.0.as_raw_fd(), events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: a slice of its length, which lives through the call.
        check(unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, 100) }).expect("poll");
    }
}

/// An interface that is up, and its queues.
pub(crate) struct Interface {
    pub(crate) queues: Vec<Queue>,
}

impl Interface {
    pub(crate) fn new(queues: usize) -> Self {
        let tuns = Tun::create_queues("mesh%d", queues).expect("TUN is available: these tests need it");
        assert_eq!(tuns.len(), queues);
        bring_up(tuns[0].name());
        Self { queues: tuns.iter().map(Queue::new).collect() }
    }

    /// What the machine sends, when as many packets have come: each with the queue that it came from.
    pub(crate) fn read(&self, count: usize) -> Vec<(usize, Vec<u8>)> {
        let packets = self.read_raw(count);
        packets.into_iter().map(|(queue, _, packet)| (queue, packet)).collect()
    }

    /// The same, with offload headers.
    pub(crate) fn read_raw(&self, count: usize) -> Vec<(usize, [u8; HEADER], Vec<u8>)> {
        let deadline = Instant::now() + PATIENCE;
        let mut packets = Vec::new();
        while packets.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} packets came", packets.len());
            Queue::wait(&self.queues);
            for (number, queue) in self.queues.iter().enumerate() {
                let all = std::iter::from_fn(|| queue.read());
                packets.extend(all.map(|(header, packet)| (number, header, packet)));
            }
        }
        assert_eq!(packets.len(), count);
        packets
    }

    /// A socket that sends to `theirs`, and receives from there.
    pub(crate) fn socket(version: Version, port: u16) -> UdpSocket {
        let socket = UdpSocket::bind((version.ours(), 0)).expect("a free port");
        socket.connect(SocketAddr::new(version.theirs(), port)).expect("an address");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        socket
    }
}

/// The same packet from its destination to its source. Its checksums are as right as before, as sums have no order.
pub(crate) fn with_addresses_swapped(packet: &[u8]) -> Vec<u8> {
    let mut swapped = packet.to_vec();
    let (first, len) = if packet[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
    let (source, destination) = swapped[first..first + 2 * len].split_at_mut(len);
    source.swap_with_slice(destination);
    swapped
}

/// A reply: addresses and ports are swapped.
pub(crate) fn reply_to(packet: &[u8]) -> Vec<u8> {
    let mut reply = with_addresses_swapped(packet);
    let ports = if packet[0] >> 4 == 4 { 20 } else { 40 };
    let (source, destination) = reply[ports..ports + 4].split_at_mut(2);
    source.swap_with_slice(destination);
    reply
}

/// Has the kernel cut what a socket sends every `size` bytes; 0 has it leave that.
pub(crate) fn set_segment_size(socket: &UdpSocket, size: usize) {
    let size = size as libc::c_int;
    let pointer = (&raw const size).cast();
    let len = size_of_val(&size) as libc::socklen_t;
    // SAFETY: the option's value is an int of the size given, and lives through the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, pointer, len) })
        .expect("a kernel with UDP_SEGMENT");
}
