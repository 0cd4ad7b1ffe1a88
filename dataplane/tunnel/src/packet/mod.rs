//! What routing and the filter need to know of an inner IP packet, read once and in one pass.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

mod ipv4;
mod ipv6;
mod quoted;
mod transport;

#[cfg(test)]
pub(crate) mod build;
#[cfg(test)]
pub(crate) mod tests;

use std::net::IpAddr;

use crate::drop_reason::DropReason;

pub(crate) use quoted::Quoted;
pub(crate) use transport::{Ends, Segment, TCP, Transport, UDP};

const V4_HEADER_LEN: usize = 20;
const V6_HEADER_LEN: usize = 40;

/// Which of the two a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The addresses of a packet and its length as its header tells it, and what is behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Bytes of the packet; what follows them is padding.
    pub(crate) len: usize,
    /// What the filter asks; or why it cannot be read, which is no reason for the routing to stumble.
    pub(crate) content: Result<Content, DropReason>,
}

/// What is behind the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// The number of the transport; of a later fragment, what its header says comes next.
    pub(crate) protocol: u8,
    pub(crate) transport: Transport,
    /// Its place, unless the packet is whole.
    pub(crate) fragment: Option<Fragment>,
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// Names the datagram among those from its source to its destination: 16 bits of IPv4, 32 of IPv6.
    pub(crate) id: u32,
    /// Where it begins, bytes; the first one at 0.
    pub(crate) offset: u16,
    /// Where it ends, bytes.
    pub(crate) end: u16,
    /// Whether others come behind it.
    pub(crate) more: bool,
    /// What the datagram carries, by the header that tells of the fragment.
    pub(crate) protocol: u8,
}

impl Header {
    /// Reads the header; the packet must have a whole one and all the bytes that it speaks of (W24).
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, DropReason> {
        let version = packet.first().ok_or(DropReason::MalformedPacket)? >> 4;
        let header = match version {
            4 => ipv4::parse(packet),
            6 => ipv6::parse(packet),
            _ => None,
        };
        header.ok_or(DropReason::MalformedPacket)
    }

    /// The family of its addresses.
    pub(crate) const fn family(&self) -> Family {
        if self.destination.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

impl Content {
    /// Reads what `protocol` has put into `payload`, all of a packet or what a fragment carries of it.
    #[inline]
    fn read(
        family: Family,
        protocol: u8,
        payload: &[u8],
        fragment: Option<Fragment>,
    ) -> Result<Self, DropReason> {
        let transport = match fragment {
            Some(Fragment { offset: 1.., .. }) => Transport::Later,
            Some(_) => Transport::read(family, protocol, payload, false)?,
            None => Transport::read(family, protocol, payload, true)?,
        };
        Ok(Self { protocol, transport, fragment })
    }
}

impl Fragment {
    /// A fragment with `len` bytes at `offset`, of a datagram that may have `most`.
    fn new(
        id: u32,
        offset: u16,
        more: bool,
        protocol: u8,
        len: usize,
        most: u16,
    ) -> Result<Self, DropReason> {
        let end = u16::try_from(len).ok().and_then(|len| offset.checked_add(len));
        let end = end.filter(|&end| end <= most).ok_or(DropReason::UnreadablePacket)?;
        // All but the last are of whole eights (RFC 791 §2.3, RFC 8200 §4.5), and none is empty.
        if len == 0 || (more && len & 7 != 0) {
            return Err(DropReason::UnreadablePacket);
        }
        Ok(Self { id, offset, end, more, protocol })
    }
}
