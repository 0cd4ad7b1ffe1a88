//! Packets for tests.

use std::net::IpAddr;

/// The number that packets of no particular protocol have here: one for experiments (RFC 3692).
pub(crate) const EXPERIMENT: u8 = 253;

/// A packet of 20 or 40 header bytes and `payload`, from and to addresses of one family.
pub(crate) fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    with(source.parse().unwrap(), destination.parse().unwrap(), EXPERIMENT, payload)
}

/// The same, of a protocol.
pub(crate) fn with(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0; 20];
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
            packet[8..10].copy_from_slice(&[64, protocol]);
            packet[12..16].copy_from_slice(&source.octets());
            packet[16..20].copy_from_slice(&destination.octets());
            packet.extend_from_slice(payload);
            add_up(&mut packet);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0; 40];
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&[protocol, 64]);
            packet[8..24].copy_from_slice(&source.octets());
            packet[24..40].copy_from_slice(&destination.octets());
            packet.extend_from_slice(payload);
            packet
        }
        _ => panic!("one family, please"),
    }
}

/// Makes the checksum of an IPv4 header right, options included, if there is a whole one.
pub(crate) fn add_up(packet: &mut [u8]) {
    let header_len = usize::from(packet[0] & 0xf) * 4;
    if packet[0] >> 4 != 4 || !(20..=packet.len()).contains(&header_len) {
        return;
    }
    packet[10..12].fill(0);
    let header = &packet[..header_len];
    let sum: u32 = header.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = !((sum >> 16) + sum) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;

/// A TCP header and `payload`.
pub(crate) fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..2].copy_from_slice(&source.to_be_bytes());
    segment[2..4].copy_from_slice(&destination.to_be_bytes());
    segment[12..14].copy_from_slice(&[0x50, flags]);
    segment.extend_from_slice(payload);
    segment
}

/// A UDP header and `payload`.
pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [source, destination, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat();
    bytes.extend_from_slice(payload);
    bytes
}

/// An ICMP header of a type and `payload`; `id` means something for requests and answers alone.
pub(crate) fn icmp(kind: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut bytes = vec![kind, 0, 0, 0, high, low, 0, 1];
    bytes.extend_from_slice(payload);
    bytes
}

/// The number of ICMP in the family of an address.
pub(crate) fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 58 }
}

/// The types of an echo request and its answer in the family of an address.
pub(crate) fn echo_of(address: IpAddr) -> [u8; 2] {
    if address.is_ipv4() { [8, 0] } else { [128, 129] }
}

/// The fragment of a datagram of `protocol` with `part` at `offset`.
pub(crate) fn fragment(
    [source, destination]: [IpAddr; 2],
    protocol: u8,
    id: u16,
    (offset, more): (u16, bool),
    part: &[u8],
) -> Vec<u8> {
    if source.is_ipv4() {
        let mut packet = with(source, destination, protocol, part);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        add_up(&mut packet);
        return packet;
    }
    let [high, low] = (offset | u16::from(more)).to_be_bytes();
    let [id_high, id_low] = id.to_be_bytes();
    let header = [protocol, 0, high, low, 0, 0, id_high, id_low];
    with(source, destination, 44, &[&header, part].concat())
}
