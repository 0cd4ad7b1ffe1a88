//! The few facts about IP, TCP and UDP headers that cutting and merging share.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

/// IP's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

/// What can be cut and merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IANA's number.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Where the checksum is, from the transport header's first byte.
    pub(crate) const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// Bytes of an IPv4 header without options.
pub(crate) const IPV4: usize = 20;
/// Bytes of an IPv6 header.
pub(crate) const IPV6: usize = 40;
/// Bytes of a TCP header without options.
pub(crate) const TCP: usize = 20;
/// Bytes of a UDP header.
pub(crate) const UDP: usize = 8;

/// FIN, in the word that begins with TCP's data offset.
pub(crate) const FIN: u16 = 0x001;
/// PSH.
pub(crate) const PSH: u16 = 0x008;
/// ACK.
pub(crate) const ACK: u16 = 0x010;
/// ECE: the receiver of data saw congestion.
pub(crate) const ECE: u16 = 0x040;
/// CWR: the sender has reacted to that.
pub(crate) const CWR: u16 = 0x080;
/// All flags and the bits that are reserved: what is in the word beside the data offset.
pub(crate) const FLAGS: u16 = 0xfff;

/// In the word of IPv4's fragment offset: more fragments follow, or this is not the first.
pub(crate) const FRAGMENT: u16 = 0x3fff;
/// In the same word: may not be fragmented.
pub(crate) const DONT_FRAGMENT: u16 = 0x4000;

/// A number of 16 bits in a header.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

/// A number of 32 bits in a header.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes)
}

/// Writes a number of 16 bits into a header, where there is room for it.
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_be_bytes();
    }
}

/// Writes a number of 32 bits into a header, where there is room for it.
pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_be_bytes();
    }
}

/// The version, the protocol and where its header begins (past the end, perhaps), of a packet that is exactly as long as
/// it says and no fragment.
pub(crate) fn transport(packet: &[u8]) -> Option<(Ip, u8, usize)> {
    let first = *packet.first()?;
    match first >> 4 {
        4 => {
            let header = usize::from(first & 0xf).wrapping_mul(4);
            let exact = usize::from(be16(packet, 2)?) == packet.len();
            let whole = be16(packet, 6)? & FRAGMENT == 0;
            let protocol = *packet.get(9)?;
            (header >= IPV4 && exact && whole).then_some((Ip::V4, protocol, header))
        }
        6 => {
            let exact = usize::from(be16(packet, 4)?).wrapping_add(IPV6) == packet.len();
            if !exact {
                return None;
            }
            let (mut protocol, mut at) = (*packet.get(6)?, IPV6);
            // Hop-by-hop options, routing, destination options: each tells its length, and each is at least 8 bytes
            // of the packet, so this ends.
            while matches!(protocol, 0 | 43 | 60) {
                let &[next, units] = packet.get(at..)?.first_chunk()?;
                protocol = next;
                at = at.checked_add(usize::from(units).wrapping_add(1).wrapping_mul(8))?;
            }
            Some((Ip::V6, protocol, at))
        }
        _ => None,
    }
}
