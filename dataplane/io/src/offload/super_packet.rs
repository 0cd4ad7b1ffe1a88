//! Cutting: one [`SuperPacket`] from TUN stands for up to some hundreds of packets of one flow.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use thiserror::Error;

use super::checksum::Sum;
use super::headers::{self, Ip, Protocol};
use super::virtio::{self, HEADER, Header};

/// What a segment's head is a multiple of, unless the whole segment is shorter: a block of the cipher.
const HEAD_UNIT: usize = 64;

/// Where the headers of one segment are written, with the payload's first bytes.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Head([u8; Self::CAPACITY]);

impl Head {
    /// The most bytes a segment's head can have, and so its headers: a super-packet of longer ones is refused.
    pub const CAPACITY: usize = 192;

    /// An empty one. It may be used again and again.
    #[must_use]
    pub const fn new() -> Self {
        Self([0; Self::CAPACITY])
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

/// A packet from TUN, or many of one flow of which only the last may be shorter, with one header for all.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    whole: &'a [u8],
    cut: Option<Cut>,
}

/// What is known of a packet besides its bytes, to make it again of a copy of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape(Option<Cut>);

/// How a super-packet of two segments and more is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    ip: Ip,
    protocol: Protocol,
    /// Where the header of TCP or UDP begins.
    transport: usize,
    /// Bytes of all headers.
    headers: usize,
    /// Payload bytes of every segment but the last.
    size: usize,
    segments: usize,
    /// The sum of the IPv4 header without what differs from segment to segment.
    ip_sum: Sum,
    /// The sum of pseudo header and transport header without what differs from segment to segment.
    transport_sum: Sum,
}

/// Why what came from TUN cannot be cut. The kernel does not make such; a packet socket on the interface might.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The offload header names a kind that was not asked for.
    #[error("a super-packet of unknown kind {0}")]
    Kind(u8),
    /// The packet ends before a header or a checksum does.
    #[error("the packet is shorter than its headers")]
    Short,
    /// The packet is of another protocol, or of another length, than said.
    #[error("the packet is not what its offload header says")]
    Mismatch,
    /// There is more header than a [`Head`] holds.
    #[error("more than {} bytes of headers", Head::CAPACITY)]
    LongHeaders,
    /// A super-packet whose checksum is not left to us: cutting it could make a damaged one whole.
    #[error("a super-packet with a checksum of its own")]
    Checksum,
    /// Segments of no size.
    #[error("a super-packet of empty segments")]
    Empty,
}

impl<'a> SuperPacket<'a> {
    /// A packet that is complete as it is.
    #[must_use]
    pub fn single(packet: &'a [u8]) -> Self {
        Self { whole: packet, cut: None }
    }

    /// All but the bytes.
    pub(crate) fn shape(&self) -> Shape {
        Shape(self.cut)
    }

    /// A packet of a shape. Other bytes than the ones it was taken of make a wrong packet, and no worse.
    pub(crate) fn of_shape(whole: &'a [u8], Shape(cut): Shape) -> Self {
        Self { whole, cut }
    }

    /// Takes what a read from TUN gave: its offload header, and the packet behind it, whose checksum is finished in
    /// place if it is a single one.
    pub(crate) fn parse(header: &[u8; HEADER], packet: &'a mut [u8]) -> Result<Self, Unfit> {
        let header = Header::parse(header);
        let cut = match header.kind() {
            virtio::GSO_NONE => None,
            virtio::GSO_TCPV4 => Some(Cut::parse(&header, packet, Protocol::Tcp, Some(Ip::V4))?),
            virtio::GSO_TCPV6 => Some(Cut::parse(&header, packet, Protocol::Tcp, Some(Ip::V6))?),
            virtio::GSO_UDP_L4 => Some(Cut::parse(&header, packet, Protocol::Udp, None)?),
            kind => return Err(Unfit::Kind(kind)),
        };
        let cut = cut.filter(|cut| cut.segments > 1);
        if cut.is_none() && header.needs_csum() {
            finish_checksum(packet, usize::from(header.csum_start), usize::from(header.csum_offset))?;
        }
        Ok(Self { whole: packet, cut })
    }

    /// How many packets this is, at least one. There is no bound below the 65,535 that segments of one byte allow.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.cut.map_or(1, |cut| cut.segments)
    }

    /// All segments as one IP packet, for one decision about all of them. Its lengths are those of the whole, its
    /// checksums are unfinished.
    #[must_use]
    pub fn whole(&self) -> &'a [u8] {
        self.whole
    }

    /// The bytes of segment `index` with its headers; 0 past the last.
    #[must_use]
    pub fn segment_len(&self, index: usize) -> usize {
        match &self.cut {
            None if index == 0 => self.whole.len(),
            None => 0,
            Some(cut) if index >= cut.segments => 0,
            Some(cut) => cut.headers.saturating_add(cut.payload(self.whole, index).len()),
        }
    }

    /// Segment `index`: its headers, and payload up to a multiple of 64 bytes, written into `head`, and the rest of
    /// its payload where it was read. A segment that is short enough is all in the first part; a single packet all in
    /// the second. Past the last segment both are empty.
    pub fn segment<'h>(&self, index: usize, head: &'h mut Head) -> (&'h [u8], &'a [u8]) {
        match &self.cut {
            None if index == 0 => (&[], self.whole),
            None => (&[], &[]),
            Some(cut) if index >= cut.segments => (&[], &[]),
            Some(cut) => cut.segment(self.whole, index, head),
        }
    }
}

impl Cut {
    /// Believes the offload header only where the packet agrees with it.
    fn parse(header: &Header, packet: &[u8], protocol: Protocol, version: Option<Ip>) -> Result<Self, Unfit> {
        let (ip, number, transport) = headers::transport(packet).ok_or(Unfit::Mismatch)?;
        let as_said = number == protocol.number()
            && version.is_none_or(|version| version == ip)
            && transport == usize::from(header.csum_start);
        if !as_said {
            return Err(Unfit::Mismatch);
        }
        if !header.needs_csum() || usize::from(header.csum_offset) != protocol.checksum_at() {
            return Err(Unfit::Checksum);
        }
        if header.gso_size == 0 {
            return Err(Unfit::Empty);
        }
        let rest = packet.get(transport..).ok_or(Unfit::Short)?;
        // The kernel's own `hdr_len` is of no use: for forwarded packets it is whatever lies in one piece.
        let transport_len = match protocol {
            Protocol::Tcp => usize::from(*rest.get(12).ok_or(Unfit::Short)? >> 4).wrapping_mul(4),
            Protocol::Udp => headers::UDP,
        };
        if protocol == Protocol::Tcp && transport_len < headers::TCP {
            return Err(Unfit::Mismatch);
        }
        let (transport_header, payload) = rest.split_at_checked(transport_len).ok_or(Unfit::Short)?;
        let headers = transport.wrapping_add(transport_len);
        if headers > Head::CAPACITY {
            return Err(Unfit::LongHeaders);
        }
        if protocol == Protocol::Udp && headers::be16(rest, 4).map(usize::from) != Some(rest.len()) {
            return Err(Unfit::Mismatch);
        }
        let size = usize::from(header.gso_size);
        Ok(Self {
            ip,
            protocol,
            transport,
            headers,
            size,
            segments: payload.len().div_ceil(size).max(1),
            ip_sum: ip_sum(packet, ip, transport).ok_or(Unfit::Short)?,
            transport_sum: transport_sum(transport_header, protocol, rest.len()).ok_or(Unfit::Short)?,
        })
    }

    /// The payload of a segment that exists.
    fn payload<'a>(&self, whole: &'a [u8], index: usize) -> &'a [u8] {
        let first = self.headers.saturating_add(index.saturating_mul(self.size));
        let rest = whole.get(first..).unwrap_or(&[]);
        rest.get(..self.size).unwrap_or(rest)
    }

    fn segment<'h, 'a>(&self, whole: &'a [u8], index: usize, head: &'h mut Head) -> (&'h [u8], &'a [u8]) {
        let payload = self.payload(whole, index);
        let unit = self.headers.next_multiple_of(HEAD_UNIT);
        let (in_head, rest) = payload.split_at(unit.saturating_sub(self.headers).min(payload.len()));
        let len = self.headers.saturating_add(in_head.len());
        let parts = head.0.get_mut(..len).and_then(|head| head.split_at_mut_checked(self.headers));
        let (Some((headers, first)), Some(template)) = (parts, whole.get(..self.headers)) else {
            // Not so by construction: the headers are in the packet, and not longer than a head.
            return (&[], &[]);
        };
        headers.copy_from_slice(template);
        first.copy_from_slice(in_head);
        self.stamp_ip(headers, index, payload.len());
        match self.protocol {
            Protocol::Tcp => self.stamp_tcp(headers, index, payload),
            Protocol::Udp => self.stamp_udp(headers, payload),
        }
        (head.0.get(..len).unwrap_or(&[]), rest)
    }

    /// Lengths, and over IPv4 what the kernel does by itself: consecutive identifications.
    fn stamp_ip(&self, headers: &mut [u8], index: usize, payload: usize) {
        let len = self.headers.wrapping_add(payload);
        match self.ip {
            Ip::V4 => {
                let len = len as u16;
                let id = headers::be16(headers, 4).unwrap_or(0).wrapping_add(index as u16);
                let sum = self.ip_sum.plus(Sum::of_word(len)).plus(Sum::of_word(id));
                headers::put16(headers, 2, len);
                headers::put16(headers, 4, id);
                headers::put16(headers, 10, sum.checksum());
            }
            Ip::V6 => headers::put16(headers, 4, len.wrapping_sub(headers::IPV6) as u16),
        }
    }

    /// What ends a stream or hurries its reader is said with the last segment, that the window was reduced with the
    /// first (RFC 3168 §6.1.2).
    fn stamp_tcp(&self, headers: &mut [u8], index: usize, payload: &[u8]) {
        let Some(tcp) = headers.get_mut(self.transport..) else { return };
        let first = index == 0;
        let last = index.wrapping_add(1) == self.segments;
        let mut flags = headers::be16(tcp, 12).unwrap_or(0);
        if !first {
            flags &= !headers::CWR;
        }
        if !last {
            flags &= !(headers::FIN | headers::PSH);
        }
        let offset = index.wrapping_mul(self.size) as u32;
        let sequence = headers::be32(tcp, 4).unwrap_or(0).wrapping_add(offset);
        let len = tcp.len().wrapping_add(payload.len()) as u16;
        let sum = self
            .transport_sum
            .plus(Sum::of_long(sequence))
            .plus(Sum::of_word(flags))
            .plus(Sum::of_word(len))
            .plus(Sum::of(payload));
        headers::put32(tcp, 4, sequence);
        headers::put16(tcp, 12, flags);
        headers::put16(tcp, 16, sum.checksum());
    }

    fn stamp_udp(&self, headers: &mut [u8], payload: &[u8]) {
        let Some(udp) = headers.get_mut(self.transport..) else { return };
        let len = udp.len().wrapping_add(payload.len()) as u16;
        // The length is summed twice: in the header, and in the pseudo header.
        let sum = self.transport_sum.plus(Sum::of_word(len)).plus(Sum::of_word(len)).plus(Sum::of(payload));
        headers::put16(udp, 4, len);
        headers::put16(udp, 6, sum.checksum_udp());
    }
}

/// The sum of an IPv4 header without its length, identification and checksum.
fn ip_sum(packet: &[u8], ip: Ip, transport: usize) -> Option<Sum> {
    if ip == Ip::V6 {
        return Some(Sum::default());
    }
    let header = packet.get(..transport)?;
    let without = [headers::be16(header, 2)?, headers::be16(header, 4)?, headers::be16(header, 10)?];
    Some(without.into_iter().fold(Sum::of(header), |sum, word| sum.minus(Sum::of_word(word))))
}

/// The sum of pseudo header and transport header without lengths, sequence number and flags. The pseudo header of the
/// whole is where the checksum will be: an unfinished checksum is just that. (Addresses would be wrong behind a routing
/// header, whose last entry is summed.)
fn transport_sum(header: &[u8], protocol: Protocol, whole: usize) -> Option<Sum> {
    let sum = Sum::of(header).minus(Sum::of_word(whole as u16));
    Some(match protocol {
        Protocol::Tcp => {
            sum.minus(Sum::of_long(headers::be32(header, 4)?)).minus(Sum::of_word(headers::be16(header, 12)?))
        }
        Protocol::Udp => sum.minus(Sum::of_word(headers::be16(header, 4)?)),
    })
}

/// Does what a network card would have done: sums from `start`, where the pseudo header's sum lies in the checksum's
/// place already, and stores the result. As the kernel, never zero, which in UDP means that there is none.
fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), Unfit> {
    let summed = packet.get_mut(start..).ok_or(Unfit::Short)?;
    if summed.len() < offset.saturating_add(2) {
        return Err(Unfit::Short);
    }
    let checksum = Sum::of(summed).checksum_udp();
    headers::put16(summed, offset, checksum);
    Ok(())
}
