//! What a packet is to the coalescer: one look at its bytes, without memory of others.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use super::checksum::Sum;
use super::headers::{ACK, DONT_FRAGMENT, ECE, FLAGS, FRAGMENT, IPV4, IPV6, Ip, PSH, Protocol, TCP, UDP};

/// What is merged as a kind of its own, and can be refused as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either version of IP: a device takes both or none.
    Udp,
}

impl Class {
    /// A bit of its own in [`Classes`].
    const fn bit(self) -> u8 {
        match self {
            Self::Tcp4 => 1,
            Self::Tcp6 => 2,
            Self::Udp => 4,
        }
    }
}

/// A set of classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Classes(u8);

impl Classes {
    /// With `class`, or without it.
    pub(crate) fn set(&mut self, class: Class, member: bool) {
        if member { self.0 |= class.bit() } else { self.0 &= !class.bit() }
    }

    /// Whether `class` is in it.
    pub(crate) fn has(self, class: Class) -> bool {
        self.0 & class.bit() != 0
    }
}

/// Which flow: versions, protocols, addresses and ports in one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Key {
    /// Source, then destination; IPv4's fill the first.
    addresses: [u64; 4],
    ports: u32,
    /// Never 0, so that no packet has an empty table's key.
    kind: u32,
}

impl Key {
    /// Whether both are the same. In numbers, since vectors would wait for what has just been written by number.
    #[inline(always)]
    pub(super) fn is(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.addresses, other.addresses);
        let ports = u64::from(self.ports ^ other.ports) | u64::from(self.kind ^ other.kind);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) | ports == 0
    }

    fn v4(addresses: [u8; 8], ports: [u8; 4], protocol: Protocol) -> Self {
        Self {
            addresses: [u64::from_ne_bytes(addresses), 0, 0, 0],
            ports: u32::from_ne_bytes(ports),
            kind: 0x400 | u32::from(protocol.number()),
        }
    }

    fn v6(addresses: &[u8; 32], ports: [u8; 4], protocol: Protocol) -> Self {
        let (words, _) = addresses.as_chunks::<8>();
        let mut key = Self {
            addresses: [0; 4],
            ports: u32::from_ne_bytes(ports),
            kind: 0x600 | u32::from(protocol.number()),
        };
        for (to, from) in key.addresses.iter_mut().zip(words) {
            *to = u64::from_ne_bytes(*from);
        }
        key
    }

    /// A number that depends on all of it. Who makes flows collide has them merged less, and harms nobody else's order.
    pub(super) fn hash(&self) -> u64 {
        let [a, b, c, d] = self.addresses;
        let ports = u64::from(self.ports) << 32 | u64::from(self.kind);
        (a ^ b.rotate_left(13) ^ c.rotate_left(29) ^ d.rotate_left(43))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32)
            .wrapping_add(ports)
            .wrapping_mul(0xd6e8_feb8_6659_fd93)
    }
}

/// What must be equal in all packets of a group, besides the flow and TCP's options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Alike {
    /// IPv4: type of service with ECN, fragment word, time to live. IPv6: version, traffic class with ECN, flow label,
    /// hop limit.
    ip: u64,
    acknowledgement: u32,
    /// Data offset and flags, without PSH.
    flags: u16,
    window: u16,
    urgent: u16,
}

/// A packet that may be merged with others. Its checksums are right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mergeable {
    pub(super) key: Key,
    pub(super) alike: Alike,
    pub(super) class: Class,
    pub(super) ip: Ip,
    pub(super) protocol: Protocol,
    /// Where TCP or UDP begins.
    pub(super) transport: u8,
    /// Bytes of all headers.
    pub(super) headers: u8,
    /// Bytes behind them that are the packet's: never 0, and padding is not counted.
    pub(super) payload: u16,
    /// TCP's; 0 in UDP.
    pub(super) sequence: u32,
    /// IPv4's, where it must count up because the packet may be fragmented.
    pub(super) id: Option<u16>,
    pub(super) push: bool,
}

/// What a packet is to the coalescer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// May be merged.
    Mergeable(Mergeable),
    /// Of this flow, and goes as it is: nothing of its flow may overtake it, and it nothing.
    Verbatim(Key),
    /// Of none of the flows that are merged.
    Foreign,
    /// Of any flow: a fragment, options in the way, no IP at all.
    Unknown,
}

/// Looks at a packet; `classes` are worth a closer look.
#[inline(always)]
pub(super) fn look(packet: &[u8], classes: Classes) -> Look {
    match packet.first() {
        Some(0x45) => look_v4(packet, classes),
        Some(first) if first >> 4 == 6 => look_v6(packet, classes),
        _ => Look::Unknown,
    }
}

#[inline(always)]
fn look_v4(packet: &[u8], classes: Classes) -> Look {
    let Some((header, _)) = packet.split_first_chunk::<IPV4>() else { return Look::Unknown };
    #[rustfmt::skip]
    let &[_, tos, len0, len1, id0, id1, fragment0, fragment1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = header;
    let fragment = u16::from_be_bytes([fragment0, fragment1]);
    if fragment & FRAGMENT != 0 {
        return Look::Unknown;
    }
    let Some((protocol, class)) = protocol_of(protocol, Class::Tcp4) else { return Look::Foreign };
    if !classes.has(class) {
        return Look::Foreign;
    }
    let Some(packet) = packet.get(..usize::from(u16::from_be_bytes([len0, len1]))) else {
        return Look::Unknown;
    };
    let Some(part) = packet.get(IPV4..).and_then(|bytes| Part::parse(bytes, protocol)) else {
        return Look::Unknown;
    };
    let key = Key::v4([s0, s1, s2, s3, d0, d1, d2, d3], part.ports, protocol);
    // The addresses lie in front of what is summed with them.
    let summed = packet.get(12..).unwrap_or(&[]);
    if !part.merges
        || !Sum::of(header).is_valid()
        || !checks(summed, protocol, packet.len().wrapping_sub(IPV4))
    {
        return Look::Verbatim(key);
    }
    let ip = u64::from(tos) << 32 | u64::from(fragment) << 8 | u64::from(ttl);
    let id = u16::from_be_bytes([id0, id1]);
    let id = (fragment & DONT_FRAGMENT == 0).then_some(id);
    Look::Mergeable(part.mergeable(key, class, Ip::V4, ip, id))
}

#[inline(always)]
fn look_v6(packet: &[u8], classes: Classes) -> Look {
    let Some((header, _)) = packet.split_first_chunk::<IPV6>() else { return Look::Unknown };
    let &[v0, v1, v2, v3, len0, len1, next, hops, ref addresses @ ..] = header;
    // Extension headers, behind which there may be any flow.
    if matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        return Look::Unknown;
    }
    let Some((protocol, class)) = protocol_of(next, Class::Tcp6) else { return Look::Foreign };
    if !classes.has(class) {
        return Look::Foreign;
    }
    let len = usize::from(u16::from_be_bytes([len0, len1])).wrapping_add(IPV6);
    let Some(packet) = packet.get(..len) else { return Look::Unknown };
    let Some(part) = packet.get(IPV6..).and_then(|bytes| Part::parse(bytes, protocol)) else {
        return Look::Unknown;
    };
    let key = Key::v6(addresses, part.ports, protocol);
    let summed = packet.get(8..).unwrap_or(&[]);
    if !part.merges || !checks(summed, protocol, len.wrapping_sub(IPV6)) {
        return Look::Verbatim(key);
    }
    let ip = u64::from(u32::from_be_bytes([v0, v1, v2, v3])) << 32 | u64::from(hops);
    Look::Mergeable(part.mergeable(key, class, Ip::V6, ip, None))
}

fn protocol_of(number: u8, tcp: Class) -> Option<(Protocol, Class)> {
    match number {
        6 => Some((Protocol::Tcp, tcp)),
        17 => Some((Protocol::Udp, Class::Udp)),
        _ => None,
    }
}

/// Whether the checksum over `summed`, which begins with the addresses, is right.
#[inline(always)]
fn checks(summed: &[u8], protocol: Protocol, len: usize) -> bool {
    // A packet is not longer than 65,575 bytes, so its transport part's length has 16 bits.
    let pseudo = Sum::of_word(u16::from(protocol.number())).plus(Sum::of_word(len as u16));
    Sum::of(summed).plus(pseudo).is_valid()
}

/// What TCP's or UDP's header says.
#[derive(Clone, Copy, Debug)]
struct Part {
    protocol: Protocol,
    ports: [u8; 4],
    /// Whether it has nothing that keeps it from being merged, as far as the header tells.
    merges: bool,
    header: usize,
    payload: usize,
    sequence: u32,
    /// Without what IP says.
    alike: Alike,
    push: bool,
}

impl Part {
    #[inline(always)]
    fn parse(bytes: &[u8], protocol: Protocol) -> Option<Self> {
        match protocol {
            Protocol::Tcp => Self::parse_tcp(bytes),
            Protocol::Udp => Self::parse_udp(bytes),
        }
    }

    #[inline(always)]
    fn parse_tcp(bytes: &[u8]) -> Option<Self> {
        #[rustfmt::skip]
        let &[p0, p1, p2, p3, s0, s1, s2, s3, a0, a1, a2, a3, f0, f1, w0, w1, _, _, u0, u1] = bytes.first_chunk::<TCP>()?;
        let header = usize::from(f0 >> 4).wrapping_mul(4);
        if header < TCP {
            return None;
        }
        let payload = bytes.len().checked_sub(header)?;
        let flags = u16::from_be_bytes([f0, f1]);
        Some(Self {
            protocol: Protocol::Tcp,
            ports: [p0, p1, p2, p3],
            // Only data in the middle of a stream; what begins, ends or hurries one goes as it is. So does CWR: it is
            // said once, and a merged packet would say it of all.
            merges: payload > 0 && flags & FLAGS & !(PSH | ECE) == ACK,
            header,
            payload,
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            alike: Alike {
                ip: 0,
                acknowledgement: u32::from_be_bytes([a0, a1, a2, a3]),
                flags: flags & !PSH,
                window: u16::from_be_bytes([w0, w1]),
                urgent: u16::from_be_bytes([u0, u1]),
            },
            push: flags & PSH != 0,
        })
    }

    #[inline(always)]
    fn parse_udp(bytes: &[u8]) -> Option<Self> {
        let &[p0, p1, p2, p3, l0, l1, c0, c1] = bytes.first_chunk::<UDP>()?;
        let payload = bytes.len().checked_sub(UDP)?;
        Some(Self {
            protocol: Protocol::Udp,
            ports: [p0, p1, p2, p3],
            // A datagram without a checksum is as good as one with it, but of a merged one each gets a checksum.
            merges: payload > 0
                && usize::from(u16::from_be_bytes([l0, l1])) == bytes.len()
                && [c0, c1] != [0, 0],
            header: UDP,
            payload,
            sequence: 0,
            alike: Alike::default(),
            push: false,
        })
    }

    #[inline(always)]
    fn mergeable(self, key: Key, class: Class, ip: Ip, alike: u64, id: Option<u16>) -> Mergeable {
        let transport = match ip {
            Ip::V4 => IPV4,
            Ip::V6 => IPV6,
        };
        Mergeable {
            key,
            alike: Alike { ip: alike, ..self.alike },
            class,
            ip,
            protocol: self.protocol,
            // At most 40, and 100 with TCP's longest header.
            transport: transport as u8,
            headers: transport.wrapping_add(self.header) as u8,
            payload: self.payload as u16,
            sequence: self.sequence,
            id,
            push: self.push,
        }
    }
}

impl Mergeable {
    /// By how much TCP's sequence number grows.
    pub(super) fn advance(&self) -> u32 {
        match self.protocol {
            Protocol::Tcp => u32::from(self.payload),
            Protocol::Udp => 0,
        }
    }
}
