//! The offload header in front of every packet on a TUN queue (`struct virtio_net_hdr` of `linux/virtio_net.h`), parsed
//! and emitted. Its numbers are in the machine's byte order, as TUN has them unless told otherwise.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

/// Bytes of the header.
pub(crate) const HEADER: usize = 10;

/// The header of a packet that is complete as it is. It has one place, so that the kernel can be told to read it there.
pub(crate) static PLAIN: [u8; HEADER] = [0; HEADER];

/// In `flags`: the checksum is unfinished.
pub(crate) const NEEDS_CSUM: u8 = 1;

/// In `gso_type`: one packet.
pub(crate) const GSO_NONE: u8 = 0;
/// In `gso_type`: segments of a TCP stream over IPv4.
pub(crate) const GSO_TCPV4: u8 = 1;
/// In `gso_type`: segments of a TCP stream over IPv6.
pub(crate) const GSO_TCPV6: u8 = 4;
/// In `gso_type`: UDP datagrams of equal size, over either version of IP.
pub(crate) const GSO_UDP_L4: u8 = 5;
/// Beside the type in `gso_type`: the first segment has CWR set.
pub(crate) const GSO_ECN: u8 = 0x80;

/// What the header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// [`NEEDS_CSUM`], and hints that nobody here uses.
    pub(crate) flags: u8,
    /// One of the `GSO_` kinds.
    pub(crate) gso_type: u8,
    /// Bytes of all headers. From TUN it may be more: whatever the kernel had in one piece.
    pub(crate) hdr_len: u16,
    /// Payload bytes of every segment but the last.
    pub(crate) gso_size: u16,
    /// Where the checksum begins to sum, from the packet's first byte.
    pub(crate) csum_start: u16,
    /// Where the checksum is stored, from `csum_start`.
    pub(crate) csum_offset: u16,
}

impl Header {
    /// Any bytes are a header; whether it tells the truth is [`super::SuperPacket::parse`]'s question.
    pub(crate) fn parse(bytes: &[u8; HEADER]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *bytes;
        let word = u16::from_ne_bytes;
        Self {
            flags,
            gso_type,
            hdr_len: word([a, b]),
            gso_size: word([c, d]),
            csum_start: word([e, f]),
            csum_offset: word([g, h]),
        }
    }

    /// The header's bytes.
    pub(crate) fn emit(&self) -> [u8; HEADER] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// Whether the packet's checksum is unfinished.
    pub(crate) fn needs_csum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// The kind of super-packet, without the remark about ECN.
    pub(crate) fn kind(&self) -> u8 {
        self.gso_type & !GSO_ECN
    }
}
