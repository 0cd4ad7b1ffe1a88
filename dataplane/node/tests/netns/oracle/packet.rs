//! Packets, made by hand: right ones, and what it takes to make wrong ones of them.

use std::net::IpAddr;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const NOTHING: u8 = 59;
pub const DESTINATION_OPTIONS: u8 = 60;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;
pub const ECE: u8 = 64;
pub const CWR: u8 = 128;

/// An extension header of IPv6: its number, and its bytes, of which the first is overwritten.
pub type Extension = (u8, Vec<u8>);

/// The ICMP of an address's family.
pub fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMPV6 }
}

/// A packet without options or extension headers.
pub fn packet(source: IpAddr, destination: IpAddr, protocol: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    match source {
        IpAddr::V4(_) => with_options(source, destination, &[], protocol, id, payload),
        IpAddr::V6(_) => with_extensions(source, destination, &[], protocol, payload),
    }
}

/// An IPv4 packet; the length of `options` is a multiple of 4.
pub fn with_options(
    source: IpAddr,
    destination: IpAddr,
    options: &[u8],
    protocol: u8,
    id: u16,
    payload: &[u8],
) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
        panic!("options are IPv4's")
    };
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend([0, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    finish_v4(&mut packet);
    packet.extend(payload);
    packet
}

/// An IPv6 packet with these headers between its own and its transport's.
pub fn with_extensions(
    source: IpAddr,
    destination: IpAddr,
    extensions: &[Extension],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else {
        panic!("extension headers are IPv6's")
    };
    let between: usize = extensions.iter().map(|(_, bytes)| bytes.len()).sum();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(((between + payload.len()) as u16).to_be_bytes());
    packet.extend([extensions.first().map_or(protocol, |&(kind, _)| kind), 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    for (place, (_, bytes)) in extensions.iter().enumerate() {
        packet.push(extensions.get(place + 1).map_or(protocol, |&(kind, _)| kind));
        packet.extend(&bytes[1..]);
    }
    packet.extend(payload);
    packet
}

/// An extension header of options, all of them padding.
pub fn pad(kind: u8, len: usize) -> Extension {
    let mut bytes = vec![0; len];
    bytes[1] = (len / 8 - 1) as u8;
    bytes[2] = 1;
    bytes[3] = (len - 4) as u8;
    (kind, bytes)
}

/// Writes the checksum of an IPv4 header anew.
pub fn finish_v4(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 15) * 4;
    packet[10..12].fill(0);
    let sum = fold(sum(&packet[..header.min(packet.len())]));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Bytes of the headers in front of the transport's, of a packet that was made here.
pub fn header_len(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { usize::from(packet[0] & 15) * 4 } else { 40 }
}

pub fn tcp(
    from: IpAddr,
    to: IpAddr,
    ports: (u16, u16),
    flags: u8,
    numbers: (u32, u32),
    data: &[u8],
) -> Vec<u8> {
    let mut segment = ports.0.to_be_bytes().to_vec();
    segment.extend(ports.1.to_be_bytes());
    segment.extend(numbers.0.to_be_bytes());
    segment.extend(if flags & ACK == 0 { 0 } else { numbers.1 }.to_be_bytes());
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    finish(from, to, TCP, &mut segment, 16);
    segment
}

pub fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut datagram = ports.0.to_be_bytes().to_vec();
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend(((8 + data.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    finish(from, to, UDP, &mut datagram, 6);
    datagram
}

/// An ICMP or ICMPv6 message; `word` is what follows the checksum.
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, word: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(word);
    message.extend(data);
    finish(from, to, icmp_of(from), &mut message, 2);
    message
}

/// Cuts a packet into fragments whose data begin at these places of its own, the first at 0.
pub fn fragments(packet: &[u8], id: u16, starts: &[usize]) -> Vec<Vec<u8>> {
    let header = header_len(packet);
    let data = &packet[header..];
    let pieces = starts.iter().enumerate().map(|(place, &start)| {
        let end = starts.get(place + 1).copied().unwrap_or(data.len());
        fragment(packet, id, start, &data[start..end], end < data.len())
    });
    pieces.collect()
}

/// One fragment of a packet: `data`, which belong at `start`.
pub fn fragment(packet: &[u8], id: u16, start: usize, data: &[u8], more: bool) -> Vec<u8> {
    assert!(start.is_multiple_of(8));
    let mut piece = packet[..header_len(packet)].to_vec();
    if packet[0] >> 4 == 4 {
        let total = piece.len() + data.len();
        piece[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        piece[4..6].copy_from_slice(&id.to_be_bytes());
        piece[6..8].copy_from_slice(&((start / 8) as u16 | u16::from(more) << 13).to_be_bytes());
        finish_v4(&mut piece);
    } else {
        let next = std::mem::replace(&mut piece[6], FRAGMENT);
        piece[4..6].copy_from_slice(&((8 + data.len()) as u16).to_be_bytes());
        piece.extend([next, 0]);
        piece.extend((start as u16 | u16::from(more)).to_be_bytes());
        piece.extend(u32::from(id).to_be_bytes());
    }
    piece.extend(data);
    piece
}

/// Whether packets are one that is in one piece, or all the fragments of one.
pub fn is_whole(packets: &[Vec<u8>]) -> bool {
    let mut pieces: Vec<_> = packets.iter().map(|packet| place(packet)).collect();
    pieces.sort_unstable();
    let mut end = 0;
    for (number, &(start, length, more)) in pieces.iter().enumerate() {
        if start != end || more != (number + 1 < pieces.len()) {
            return false;
        }
        end += length;
    }
    !pieces.is_empty()
}

/// Where the data of a packet begin in its datagram, how many bytes they are, and whether more follow.
pub fn place(packet: &[u8]) -> (usize, usize, bool) {
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    if packet[0] >> 4 == 4 {
        let offset = word(6);
        let length = usize::from(word(2)) - header_len(packet);
        return (usize::from(offset & 0x1fff) * 8, length, offset & 0x2000 != 0);
    }
    let (mut next, mut at) = (packet[6], 40);
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        (next, at) = (packet[at], at + (usize::from(packet[at + 1]) + 1) * 8);
    }
    let end = 40 + usize::from(word(4));
    if next != FRAGMENT {
        return (0, end - 40, false);
    }
    let offset = word(at + 2);
    (usize::from(offset & !7), end - at - 8, offset & 1 != 0)
}

/// Makes the first `len` bytes of the transport all there is of it, and the IP header tell so.
pub fn cut_transport(packet: &mut Vec<u8>, len: usize) {
    let header = header_len(packet);
    packet.truncate(header + len);
    if packet[0] >> 4 == 4 {
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        finish_v4(packet);
    } else {
        packet[4..6].copy_from_slice(&(len as u16).to_be_bytes());
    }
}

/// Writes a transport's checksum at its place.
fn finish(from: IpAddr, to: IpAddr, protocol: u8, segment: &mut [u8], place: usize) {
    let pseudo = match (from, to) {
        _ if protocol == ICMP => 0,
        (IpAddr::V4(from), IpAddr::V4(to)) => sum(&from.octets()) + sum(&to.octets()),
        (IpAddr::V6(from), IpAddr::V6(to)) => sum(&from.octets()) + sum(&to.octets()),
        _ => panic!("one family, please"),
    };
    let length = if protocol == ICMP { 0 } else { segment.len() as u64 + u64::from(protocol) };
    segment[place..place + 2].fill(0);
    let sum = fold(sum(segment) + pseudo + length);
    segment[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// The checksum of RFC 1071, of words summed up.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
