//! The little that routing needs to know of an inner IP packet.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::net::IpAddr;

use crate::drop_reason::DropReason;

const V4_HEADER_LEN: usize = 20;
const V6_HEADER_LEN: usize = 40;

/// The addresses of a packet and its length as its header tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Bytes of the packet; what follows them is padding.
    pub(crate) len: usize,
}

impl Header {
    /// Reads the header; the packet must have a whole one and all the bytes that it speaks of (W24).
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        let version = packet.first().ok_or(DropReason::MalformedPacket)? >> 4;
        let header = match version {
            4 => parse_v4(packet),
            6 => parse_v6(packet),
            _ => None,
        };
        header.filter(|header| header.len <= packet.len()).ok_or(DropReason::MalformedPacket)
    }
}

fn parse_v4(packet: &[u8]) -> Option<Header> {
    let header = packet.first_chunk::<V4_HEADER_LEN>()?;
    let header_len = usize::from(header[0] & 0xf).checked_mul(4)?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let [.., a, b, c, d, e, f, g, h] = *header;
    (header_len >= V4_HEADER_LEN && len >= header_len).then_some(Header {
        source: [a, b, c, d].into(),
        destination: [e, f, g, h].into(),
        len,
    })
}

fn parse_v6(packet: &[u8]) -> Option<Header> {
    let header = packet.first_chunk::<V6_HEADER_LEN>()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let source = header.get(8..24)?.first_chunk::<16>()?;
    let destination = header.get(24..)?.first_chunk::<16>()?;
    Some(Header {
        source: (*source).into(),
        destination: (*destination).into(),
        len: payload_len.checked_add(V6_HEADER_LEN)?,
    })
}

/// Packets for tests.
#[cfg(test)]
pub(crate) mod build {
    use std::net::IpAddr;

    /// A packet of 20 or 40 header bytes and `payload`, from and to addresses of one family.
    pub(crate) fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0; 20];
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
                packet[12..16].copy_from_slice(&source.octets());
                packet[16..20].copy_from_slice(&destination.octets());
                packet.extend_from_slice(payload);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0; 40];
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
                packet[8..24].copy_from_slice(&source.octets());
                packet[24..40].copy_from_slice(&destination.octets());
                packet.extend_from_slice(payload);
                packet
            }
            _ => panic!("one family, please"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_length_are_read_for_both_families() {
        for (source, destination, header_len) in [("10.0.0.1", "10.0.0.2", 20), ("fd00::1", "fd00::2", 40)] {
            let mut packet = build::packet(source, destination, b"hello");
            packet.extend([0; 9]);
            let header = Header::parse(&packet).unwrap();
            assert_eq!(header.source, source.parse::<IpAddr>().unwrap());
            assert_eq!(header.destination, destination.parse::<IpAddr>().unwrap());
            assert_eq!(header.len, header_len + 5);
        }
    }

    #[test]
    fn lies_about_lengths_are_malformed() {
        let good = build::packet("10.0.0.1", "10.0.0.2", &[1; 20]);
        for cut in 1..=good.len() {
            assert!(Header::parse(&good[..good.len() - cut]).is_err(), "{cut} bytes short");
        }
        let mut beyond = good.clone();
        beyond[3] += 1;
        assert!(Header::parse(&beyond).is_err(), "longer than there is");
        let mut short_header = good.clone();
        short_header[0] = 0x44;
        assert!(Header::parse(&short_header).is_err(), "a header of 16 bytes");
        let mut inside_header = good.clone();
        inside_header[3] = 19;
        assert!(Header::parse(&inside_header).is_err(), "ends inside its header");
        let mut options = good.clone();
        (options[0], options[3]) = (0x4f, 59);
        assert!(Header::parse(&options).is_err(), "a header longer than the packet");

        let good = build::packet("fd00::1", "fd00::2", &[1; 20]);
        for cut in 1..=good.len() {
            assert!(Header::parse(&good[..good.len() - cut]).is_err(), "{cut} bytes short");
        }
    }

    #[test]
    fn only_versions_four_and_six_are_packets() {
        for version in (0..16u8).filter(|version| ![4, 6].contains(version)) {
            let mut packet = build::packet("fd00::1", "fd00::2", &[]);
            packet[0] = version << 4;
            assert_eq!(Header::parse(&packet), Err(DropReason::MalformedPacket));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_parsing_panic_or_overrun(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(header) = Header::parse(&packet) {
                prop_assert!(header.len <= packet.len() && header.len >= 20);
            }
        }
    }
}
