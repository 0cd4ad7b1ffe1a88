//! Real sockets behind what we merge: they get the very stream, the very datagrams, and nothing that was damaged.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use crate::device::{Device, PATIENCE};
use crate::packet::{ACK, Ip, PSH, Packet, Transport, noise};

const NUMBER: u8 = 1;
const PORT: u16 = 443;

fn our_address(v4: bool) -> SocketAddr {
    let address = if v4 { IpAddr::from(Device::v4(NUMBER, 1)) } else { IpAddr::from(Device::v6(NUMBER, 1)) };
    SocketAddr::new(address, PORT)
}

/// From a neighbour to the machine.
fn addressed(mut packet: Packet) -> Packet {
    match &mut packet.ip {
        Ip::V4 { source, destination, .. } => {
            *source = Device::v4(NUMBER, 9).octets();
            *destination = Device::v4(NUMBER, 1).octets();
        }
        Ip::V6 { source, destination, .. } => {
            *source = Device::v6(NUMBER, 9).octets();
            *destination = Device::v6(NUMBER, 1).octets();
        }
    }
    packet.destination_port = PORT;
    packet
}

/// A neighbour that speaks as much TCP as it takes to send.
struct Sender<'a> {
    device: &'a Device,
    next: Packet,
}

impl<'a> Sender<'a> {
    fn connect(device: &'a Device, v4: bool) -> (Self, TcpStream) {
        let listener = TcpListener::bind(our_address(v4)).expect("a free port");
        let packet = addressed(if v4 { Packet::tcp4(Vec::new()) } else { Packet::tcp6(Vec::new()) });
        let mut sender = Self { device, next: packet };
        let mut opening = sender.next.clone();
        let Transport::Tcp { flags, options, .. } = &mut opening.transport else { unreachable!() };
        *flags = crate::packet::SYN;
        *options = vec![2, 4, 0x05, 0x64];
        device.write(&[0; 10], &opening.emit()).expect("written");
        let (_, answer) = device.read();
        let at = opening.ip_len() + 4;
        let sequence = u32::from_be_bytes(answer[at..at + 4].try_into().expect("four bytes"));
        let Transport::Tcp { acknowledgement, .. } = &mut sender.next.transport else { unreachable!() };
        *acknowledgement = sequence.wrapping_add(1);
        sender.skip(1);
        device.write(&[0; 10], &sender.next.emit()).expect("written");
        let (stream, _) = listener.accept().expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        (sender, stream)
    }

    fn skip(&mut self, bytes: usize) {
        let sequence = self.next.sequence_mut();
        *sequence = sequence.wrapping_add(bytes as u32);
    }

    /// The next packets of the stream.
    fn packets(&mut self, payload: Vec<u8>, size: usize) -> Vec<Vec<u8>> {
        let len = payload.len();
        let mut whole = Packet { payload, ..self.next.clone() };
        *whole.flags_mut() = ACK | PSH;
        let packets = whole.cut(size);
        self.skip(len);
        if let Ip::V4 { id, .. } = &mut self.next.ip {
            *id = id.wrapping_add(packets.len() as u16);
        }
        packets.iter().map(Packet::emit).collect()
    }

    /// The acknowledgements are of no interest.
    fn drain(&self) {
        while self.device.try_read().is_some() {}
    }
}

fn expect_stream(stream: &mut TcpStream, want: &[u8]) {
    let mut got = vec![0; want.len()];
    stream.read_exact(&mut got).expect("the stream goes on");
    assert!(got == want, "another stream than was sent");
}

fn expect_nothing(stream: &mut TcpStream) {
    stream.set_nonblocking(true).expect("set");
    let mut byte = [0];
    assert_eq!(stream.read(&mut byte).expect_err("nothing").kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).expect("set");
}

fn a_tcp_socket_reads_the_stream_that_we_merged() {
    for v4 in [true, false] {
        let device = Device::new(NUMBER, false);
        let (mut sender, mut stream) = Sender::connect(&device, v4);
        for count in 1..=64usize {
            let size = 1 + count * 5 % 431;
            for tail in [1, size / 2 + 1, size] {
                let payload = noise(count as u64, size * (count - 1) + tail);
                let packets = sender.packets(payload.clone(), size);
                assert_eq!(device.write_merged(&packets).expect("taken"), [count]);
                expect_stream(&mut stream, &payload);
                sender.drain();
            }
        }
        for tail in (1..1_380).step_by(3) {
            let payload = noise(tail as u64, 1_380 * (1 + tail % 40) + tail);
            let packets = sender.packets(payload.clone(), 1_380);
            assert_eq!(device.write_merged(&packets).expect("taken").len(), 1);
            expect_stream(&mut stream, &payload);
            sender.drain();
        }
    }
}

fn a_udp_socket_reads_the_datagrams_that_we_merged() {
    for v4 in [true, false] {
        let device = Device::new(NUMBER, false);
        let socket = UdpSocket::bind(our_address(v4)).expect("a free port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let first = addressed(if v4 { Packet::udp4(Vec::new()) } else { Packet::udp6(Vec::new()) });
        let check = |size: usize, count: usize, tail: usize| {
            let payload = noise((size * count + tail) as u64, size * (count - 1) + tail);
            let whole = Packet { payload: payload.clone(), ..first.clone() };
            let packets: Vec<_> = whole.cut(size).iter().map(Packet::emit).collect();
            assert_eq!(device.write_merged(&packets).expect("taken"), [count]);
            let mut datagram = vec![0; size + 1];
            for want in payload.chunks(size) {
                let len = socket.recv(&mut datagram).expect("a datagram");
                assert!(&datagram[..len] == want, "another datagram than was sent");
            }
        };
        for count in 1..=127usize {
            let size = 1 + count * 5 % 431;
            for tail in [1, size / 2 + 1, size] {
                check(size, count, tail);
            }
        }
        (1..1_392).step_by(3).for_each(|tail| check(1_392, 3, tail));
        socket.set_nonblocking(true).expect("set");
        assert_eq!(socket.recv(&mut [0]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
    }
}

fn what_was_damaged_on_the_way_reaches_no_tcp_socket() {
    const SIZE: usize = 700;
    for v4 in [true, false] {
        let device = Device::new(NUMBER, false);
        let (mut sender, mut stream) = Sender::connect(&device, v4);
        for damaged in [0, 1, 4, 8, 9] {
            let payload = noise(damaged as u64, SIZE * 10);
            let good = sender.packets(payload.clone(), SIZE);
            let mut packets = good.clone();
            let at = packets[damaged].len() - 1 - damaged * 31;
            packets[damaged][at] ^= 1 << (damaged % 8);
            let sizes = device.write_merged(&packets).expect("taken");
            let behind = 9 - damaged;
            let want: Vec<_> = [damaged, 1, behind].into_iter().filter(|size| *size > 0).collect();
            assert_eq!(sizes, want);
            expect_stream(&mut stream, &payload[..SIZE * damaged]);
            expect_nothing(&mut stream);
            // Sent again, as TCP does.
            assert_eq!(device.write_merged(&good[damaged..=damaged]).expect("taken"), [1]);
            expect_stream(&mut stream, &payload[SIZE * damaged..]);
            sender.drain();
        }
    }
}

fn what_was_damaged_on_the_way_reaches_no_udp_socket() {
    const SIZE: usize = 700;
    for v4 in [true, false] {
        let device = Device::new(NUMBER, false);
        let socket = UdpSocket::bind(our_address(v4)).expect("a free port");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut whole = addressed(if v4 { Packet::udp4(Vec::new()) } else { Packet::udp6(Vec::new()) });
        for damaged in 0..10 {
            whole.payload = noise(damaged as u64, SIZE * 10);
            let mut packets: Vec<_> = whole.cut(SIZE).iter().map(Packet::emit).collect();
            let at = packets[damaged].len() - 1 - damaged * 31;
            packets[damaged][at] ^= 1 << (damaged % 8);
            device.write_merged(&packets).expect("taken");
            let mut datagram = [0; SIZE + 1];
            for (_, want) in whole.payload.chunks(SIZE).enumerate().filter(|(index, _)| *index != damaged) {
                let len = socket.recv(&mut datagram).expect("a datagram");
                assert!(&datagram[..len] == want, "another datagram than was sent");
            }
        }
        socket.set_nonblocking(true).expect("set");
        assert_eq!(socket.recv(&mut [0]).expect_err("nothing").kind(), ErrorKind::WouldBlock);
    }
}

/// Why checksums are verified before merging: afterwards nobody does.
fn the_kernel_believes_whatever_is_merged() {
    for v4 in [true, false] {
        let device = Device::new(NUMBER, false);
        let (sender, mut stream) = Sender::connect(&device, v4);
        let mut whole = sender.next.clone();
        whole.payload = noise(1, 2_000);
        let (mut header, mut bytes) = whole.emit_unfinished(Some(1_000));
        header[2..4].copy_from_slice(&(whole.header_len() as u16).to_ne_bytes());
        // What came had checksums of other bytes.
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        device.write(&header, &bytes).expect("taken");
        whole.payload[1_999] ^= 1;
        expect_stream(&mut stream, &whole.payload);
    }
}

in_namespaces! {
    a_tcp_socket_reads_the_stream_that_we_merged,
    a_udp_socket_reads_the_datagrams_that_we_merged,
    what_was_damaged_on_the_way_reaches_no_tcp_socket,
    what_was_damaged_on_the_way_reaches_no_udp_socket,
    the_kernel_believes_whatever_is_merged,
}
