//! What the kernel's own TCP and UDP send through a device with offloads, cut by us, beside what it sends through the
//! same device without them.

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use crate::device::{Device, cut};
use crate::namespace::check;
use crate::packet::{ACK, Ip, PSH, Packet, SYN, Transport, noise, reference_sum};

const NUMBER: u8 = 1;
const PORT: u16 = 443;

fn neighbour(v4: bool) -> SocketAddr {
    let address = if v4 { IpAddr::from(Device::v4(NUMBER, 9)) } else { IpAddr::from(Device::v6(NUMBER, 9)) };
    SocketAddr::new(address, PORT)
}

/// A socket that has the kernel cut what is sent every `size` bytes.
fn cutting_socket(v4: bool) -> UdpSocket {
    let any = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((any, 0)).expect("a free port");
    socket.connect(neighbour(v4)).expect("connected");
    socket
}

fn set_segment(socket: &UdpSocket, size: usize) {
    const UDP_SEGMENT: libc::c_int = 103;
    let size = size as libc::c_int;
    let (pointer, len) = ((&raw const size).cast(), size_of_val(&size) as libc::socklen_t);
    // SAFETY: the option's value is an int of the size given, and lives through the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, UDP_SEGMENT, pointer, len) })
        .expect("UDP_SEGMENT");
}

/// Packets with the first one's identification taken off, which counts on from one send to the next.
fn relative(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
    let first = id(&packets[0]);
    let relative = |packet: &Vec<u8>| {
        let mut packet = packet.clone();
        if packet[0] >> 4 == 4 {
            assert_eq!(reference_sum(&packet[..20]), 0xffff, "IPv4's checksum");
            let id = id(&packet).wrapping_sub(first);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet[10..12].fill(0);
        }
        packet
    };
    packets.iter().map(relative).collect()
}

fn udp_that_the_kernel_leaves_to_us_is_cut_as_it_does() {
    let device = Device::new(NUMBER, true);
    for v4 in [true, false] {
        let socket = cutting_socket(v4);
        let check = |size: usize, payload: &[u8]| {
            set_segment(&socket, size);
            device.set_offloads(true);
            assert_eq!(socket.send(payload).expect("sent"), payload.len());
            let (header, packet) = device.read();
            let count = payload.len().div_ceil(size);
            assert_eq!(header[1], if count > 1 { 5 } else { 0 }, "{count} in one piece");
            let ours = cut(&header, packet).expect("fit");
            assert!(device.try_read().is_none());
            device.set_offloads(false);
            assert_eq!(socket.send(payload).expect("sent"), payload.len());
            assert_eq!(relative(&ours), relative(&device.read_packets(count)), "{count} of {size}");
        };
        for count in 1..=127usize {
            let size = 1 + count * 5 % 431;
            for tail in [1, size / 2 + 1, size] {
                check(size, &noise(count as u64, size * (count - 1) + tail));
            }
        }
        (1..=1_392).step_by(7).for_each(|tail| check(1_392, &noise(tail as u64, 1_392 + tail)));
        // As many of the greatest size as there can be.
        check(1_392, &noise(3, 1_392 * 47));
    }
}

/// The machine's connection to a neighbour that speaks as much TCP as it takes to read.
struct Reader<'a> {
    device: &'a Device,
    answer: Packet,
    /// What comes next, from the connection's beginning.
    next: u32,
}

impl<'a> Reader<'a> {
    fn accept(device: &'a Device, v4: bool) -> (Self, TcpStream) {
        let connecting = thread::spawn(move || TcpStream::connect(neighbour(v4)).expect("connected"));
        let mut answer = if v4 { Packet::tcp4(Vec::new()) } else { Packet::tcp6(Vec::new()) };
        let opening = loop {
            let (header, packet) = device.read();
            let opening = cut(&header, packet).expect("fit").remove(0);
            let (version, flags) = (if v4 { 4 } else { 6 }, answer.ip_len() + 13);
            if opening[0] >> 4 == version && u16::from(opening[flags]) == SYN {
                break opening;
            }
        };
        match &mut answer.ip {
            Ip::V4 { source, destination, .. } => {
                *source = Device::v4(NUMBER, 9).octets();
                *destination = Device::v4(NUMBER, 1).octets();
            }
            Ip::V6 { source, destination, .. } => {
                *source = Device::v6(NUMBER, 9).octets();
                *destination = Device::v6(NUMBER, 1).octets();
            }
        }
        let at = answer.ip_len();
        answer.source_port = PORT;
        answer.destination_port = u16::from_be_bytes([opening[at], opening[at + 1]]);
        let first = u32::from_be_bytes(opening[at + 4..at + 8].try_into().expect("four bytes"));
        let mut reader = Self { device, answer, next: first.wrapping_add(1) };
        let Transport::Tcp { flags, options, .. } = &mut reader.answer.transport else { unreachable!() };
        *flags = SYN | ACK;
        // The longest segment, and a window that is counted in units of 256.
        *options = vec![2, 4, 0x05, 0x64, 3, 3, 8, 0];
        reader.acknowledge();
        let Transport::Tcp { flags, options, .. } = &mut reader.answer.transport else { unreachable!() };
        *flags = ACK;
        options.clear();
        *reader.answer.sequence_mut() = reader.answer.sequence_mut().wrapping_add(1);
        (reader, connecting.join().expect("no panic"))
    }

    fn acknowledge(&mut self) {
        let Transport::Tcp { acknowledgement, window, .. } = &mut self.answer.transport else {
            unreachable!()
        };
        (*acknowledgement, *window) = (self.next, 4_096);
        self.device.write(&[0; 10], &self.answer.emit()).expect("written");
    }

    /// Reads a stream of `len` bytes; answers it, and how many segments the longest piece had.
    fn read(&mut self, len: usize) -> (Vec<u8>, usize) {
        let mut stream = Vec::new();
        let mut longest = 0;
        while stream.len() < len {
            let (header, packet) = self.device.read();
            if !self.is_of_it(&packet) {
                continue;
            }
            let segments = cut(&header, packet).expect("fit");
            longest = longest.max(segments.len());
            for (index, segment) in segments.iter().enumerate() {
                let payload = self.check(segment, index + 1 == segments.len());
                stream.extend(payload);
            }
            self.acknowledge();
        }
        (stream, longest)
    }

    /// A connection that was left is missed by the machine for a while.
    fn is_of_it(&self, packet: &[u8]) -> bool {
        let version = if self.answer.is_v4() { 4 } else { 6 };
        let port = self.answer.destination_port.to_be_bytes();
        packet[0] >> 4 == version && packet[self.answer.ip_len()..][..2] == port
    }

    /// A segment's payload, if everything about it is right.
    fn check<'b>(&mut self, segment: &'b [u8], is_last: bool) -> &'b [u8] {
        let at = self.answer.ip_len();
        let (ip, tcp) = segment.split_at(at);
        let mut pseudo = ip[if self.answer.is_v4() { 12 } else { 8 }..].to_vec();
        pseudo.extend((tcp.len() as u32).to_be_bytes());
        pseudo.extend(6u32.to_be_bytes());
        if self.answer.is_v4() {
            assert_eq!(reference_sum(ip), 0xffff);
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), segment.len());
        } else {
            assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), tcp.len());
        }
        assert_eq!(reference_sum(&[&pseudo, tcp].concat()), 0xffff);
        assert_eq!(tcp[4..8], self.next.to_be_bytes());
        assert!(is_last || u16::from(tcp[13]) & PSH == 0);
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        assert!(payload.len() <= 1_380);
        self.next = self.next.wrapping_add(payload.len() as u32);
        payload
    }
}

fn tcp_that_the_kernel_leaves_to_us_is_the_stream_that_was_written() {
    for offloads in [true, false] {
        for v4 in [true, false] {
            let device = Device::new(NUMBER, offloads);
            let (mut reader, mut socket) = Reader::accept(&device, v4);
            for len in [1, 1_379, 1_380, 1_381, 13_800, 60_001, 500_000] {
                let payload = noise(len as u64, len);
                let sent = payload.clone();
                let writing = thread::spawn(move || {
                    socket.write_all(&sent).expect("written");
                    socket
                });
                let (stream, longest) = reader.read(len);
                assert!(stream == payload, "another stream than was written");
                assert_eq!(longest > 1, offloads && len > 1_380, "{len}");
                socket = writing.join().expect("no panic");
            }
        }
    }
}

in_namespaces! {
    udp_that_the_kernel_leaves_to_us_is_cut_as_it_does,
    tcp_that_the_kernel_leaves_to_us_is_the_stream_that_was_written,
}
