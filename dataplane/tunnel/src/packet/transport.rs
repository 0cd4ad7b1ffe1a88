//! What of a transport's header tells flows apart, and says what a packet does to its flow.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use super::Family;
use crate::drop_reason::DropReason;
use crate::ip::protocol::{ICMP, ICMPV6};
pub(crate) use crate::ip::protocol::{TCP, UDP};

const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: u16 = 8;

/// What a packet is for the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Of a flow, which it may open.
    Flow {
        ends: Ends,
        /// What it does to a TCP connection; none for other transports.
        segment: Option<Segment>,
    },
    /// An ICMP error: what it quotes says to which flow it belongs.
    Error,
    /// ICMP that neither asks nor answers, and is no error: redirects, router and neighbour discovery, and what is obsolete.
    Unasked,
    /// A fragment that is not the first: the transport's header is not in it.
    Later,
}

/// What tells flows between two addresses apart, as the sender of a packet sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The ports of TCP and UDP.
    Ports { source: u16, destination: u16 },
    /// The number by which an ICMP request and its answers find each other.
    Query { query: Query, id: u16, reply: bool },
    /// Nothing: one flow of that protocol between two addresses.
    Nothing,
}

/// What an ICMP request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Query {
    /// Its own bytes.
    Echo = 0,
    /// The time; only over IPv4.
    Timestamp = 1,
}

/// What a segment does to a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// SYN: asks for one.
    Open,
    /// SYN and ACK: agrees.
    Agree,
    /// ACK: goes on.
    Go,
    /// FIN: one side has nothing more to say.
    Finish,
    /// RST: breaks it off.
    Reset,
}

impl Segment {
    /// Reads the flags; none but these sets are sent by any TCP, whatever PSH and the bits of congestion control say.
    #[inline]
    const fn of(flags: u8) -> Option<Self> {
        const FIN: u8 = 1;
        const SYN: u8 = 2;
        const RST: u8 = 4;
        const ACK: u8 = 16;
        const URG: u8 = 32;
        const FIN_ACK: u8 = FIN | ACK;
        const FIN_ACK_URG: u8 = FIN | ACK | URG;
        const SYN_ACK: u8 = SYN | ACK;
        const SYN_URG: u8 = SYN | URG;
        const RST_ACK: u8 = RST | ACK;
        const ACK_URG: u8 = ACK | URG;
        Some(match flags & (FIN | SYN | RST | ACK | URG) {
            ACK | ACK_URG => Self::Go,
            SYN | SYN_URG => Self::Open,
            SYN_ACK => Self::Agree,
            FIN_ACK | FIN_ACK_URG => Self::Finish,
            RST | RST_ACK => Self::Reset,
            _ => return None,
        })
    }
}

impl Transport {
    /// Reads the beginning of `payload`, which is all that `protocol` sent or, if not `whole`, the first fragment of it.
    #[inline]
    pub(super) fn read(
        family: Family,
        protocol: u8,
        payload: &[u8],
        whole: bool,
    ) -> Result<Self, DropReason> {
        // A first fragment has the whole header in it, or a later one could change what was judged (RFC 1858, RFC 7112).
        let short = if whole { DropReason::UnreadablePacket } else { DropReason::TinyFragment };
        match (protocol, family) {
            (TCP, _) => {
                let header = payload.first_chunk::<TCP_HEADER_LEN>().ok_or(short)?;
                let header_len = usize::from(header[12] >> 4).saturating_mul(4);
                if header_len < TCP_HEADER_LEN {
                    return Err(DropReason::UnreadablePacket);
                }
                if header_len > payload.len() {
                    return Err(short);
                }
                let segment = Segment::of(header[13]).ok_or(DropReason::ImpossibleFlags)?;
                Ok(Self::Flow { ends: Ends::ports(header), segment: Some(segment) })
            }
            (UDP, _) => {
                let header = payload.first_chunk::<8>().ok_or(short)?;
                let len = u16::from_be_bytes([header[4], header[5]]);
                if len < UDP_HEADER_LEN || (whole && usize::from(len) > payload.len()) {
                    return Err(DropReason::UnreadablePacket);
                }
                Ok(Self::Flow { ends: Ends::ports(header), segment: None })
            }
            (ICMP, Family::V4) | (ICMPV6, Family::V6) => {
                let header = payload.first_chunk::<8>().ok_or(short)?;
                Ok(match Ends::query(family, header) {
                    Some(ends) => Self::Flow { ends, segment: None },
                    // No error is so long that it needs fragments: it quotes no more than the least MTU has room for.
                    None if whole && is_error(family, header[0]) => Self::Error,
                    None => Self::Unasked,
                })
            }
            // One family's ICMP in a packet of the other: nobody sends it, and nobody should have to read it.
            (ICMP, Family::V6) | (ICMPV6, Family::V4) => Ok(Self::Unasked),
            _ => Ok(Self::Flow { ends: Ends::Nothing, segment: None }),
        }
    }
}

impl Ends {
    /// Reads the eight bytes that an ICMP error quotes at least (RFC 792); nothing if they belong to no flow.
    pub(super) fn quoted(family: Family, protocol: u8, payload: &[u8]) -> Option<Self> {
        match (protocol, family) {
            (TCP | UDP, _) => Some(Self::ports(payload.first_chunk::<8>()?)),
            (ICMP, Family::V4) | (ICMPV6, Family::V6) => Self::query(family, payload.first_chunk()?),
            (ICMP, Family::V6) | (ICMPV6, Family::V4) => None,
            _ => Some(Self::Nothing),
        }
    }

    #[inline]
    const fn ports<const N: usize>(header: &[u8; N]) -> Self {
        match header.first_chunk::<4>() {
            Some(&[a, b, c, d]) => {
                Self::Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) }
            }
            None => Self::Nothing,
        }
    }

    const fn query(family: Family, header: &[u8; 8]) -> Option<Self> {
        // There is but one kind of each (RFC 792, RFC 4443 §4.1).
        if header[1] != 0 {
            return None;
        }
        let (query, reply) = match (family, header[0]) {
            (Family::V4, 8) | (Family::V6, 128) => (Query::Echo, false),
            (Family::V4, 0) | (Family::V6, 129) => (Query::Echo, true),
            (Family::V4, 13) => (Query::Timestamp, false),
            (Family::V4, 14) => (Query::Timestamp, true),
            _ => return None,
        };
        Some(Self::Query { query, id: u16::from_be_bytes([header[4], header[5]]), reply })
    }
}

/// Whether an ICMP type says that something became of a packet: not reached, too big, too old, not understood. Redirects and
/// source quench (RFC 6633) are none: nobody should heed them.
const fn is_error(family: Family, kind: u8) -> bool {
    match family {
        Family::V4 => matches!(kind, 3 | 11 | 12),
        Family::V6 => matches!(kind, 1..=4),
    }
}
