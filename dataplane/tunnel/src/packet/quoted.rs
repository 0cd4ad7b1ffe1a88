//! The packet that an ICMP error is about, as far as the error quotes it.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::net::IpAddr;

use super::ipv6::Chain;
use super::{Ends, Family, V4_HEADER_LEN, V6_HEADER_LEN};

/// The header of ICMP errors.
const ICMP_HEADER_LEN: usize = 8;

/// A quoted packet, as its sender sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quoted {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) ends: Ends,
}

impl Quoted {
    /// Reads what an ICMP error quotes, of the error's own family; `error` is a packet whose header was read.
    ///
    /// Nothing if the quotation ends before it tells the flow, or quotes what no error answers: another error, or a fragment
    /// that is not the first (RFC 1122 §3.2.2, RFC 4443 §2.4).
    #[cold]
    pub(crate) fn parse(family: Family, error: &[u8]) -> Option<Self> {
        match family {
            Family::V4 => {
                let header_len = usize::from(error.first()? & 0xf).checked_mul(4)?;
                Self::v4(error.get(header_len..)?.get(ICMP_HEADER_LEN..)?)
            }
            Family::V6 => {
                let chain = Chain::walk(*error.get(6)?, error.get(V6_HEADER_LEN..)?, true).ok()?;
                Self::v6(chain.rest.get(ICMP_HEADER_LEN..)?)
            }
        }
    }

    fn v4(quoted: &[u8]) -> Option<Self> {
        let header = quoted.first_chunk::<V4_HEADER_LEN>()?;
        let header_len = usize::from(header[0] & 0xf).checked_mul(4)?;
        let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        if header[0] >> 4 != 4 || header_len < V4_HEADER_LEN || !first {
            return None;
        }
        let [.., a, b, c, d, e, f, g, h] = *header;
        Some(Self {
            source: [a, b, c, d].into(),
            destination: [e, f, g, h].into(),
            protocol: header[9],
            ends: Ends::quoted(Family::V4, header[9], quoted.get(header_len..)?)?,
        })
    }

    fn v6(quoted: &[u8]) -> Option<Self> {
        let (header, rest) = quoted.split_first_chunk::<V6_HEADER_LEN>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let source = header.get(8..24)?.first_chunk::<16>()?;
        let destination = header.get(24..)?.first_chunk::<16>()?;
        let chain = Chain::walk(header[6], rest, false).ok()?;
        if chain.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return None;
        }
        Some(Self {
            source: (*source).into(),
            destination: (*destination).into(),
            protocol: chain.protocol,
            ends: Ends::quoted(Family::V6, chain.protocol, chain.rest)?,
        })
    }
}
