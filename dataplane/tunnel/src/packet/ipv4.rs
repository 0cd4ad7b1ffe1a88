//! The header of IPv4 and its options (RFC 791).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use super::{Content, Family, Fragment, Header, V4_HEADER_LEN};
use crate::drop_reason::DropReason;

const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;
/// The most that a datagram without options carries.
const MOST: u16 = u16::MAX - V4_HEADER_LEN as u16;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

#[inline]
pub(super) fn parse(packet: &[u8]) -> Option<Header> {
    let header = packet.first_chunk::<V4_HEADER_LEN>()?;
    let header_len = usize::from(header[0] & 0xf).checked_mul(4)?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let options = packet.get(V4_HEADER_LEN..header_len)?;
    let payload = packet.get(header_len..len)?;
    let [.., a, b, c, d, e, f, g, h] = *header;
    Some(Header {
        source: [a, b, c, d].into(),
        destination: [e, f, g, h].into(),
        len,
        content: content(packet.get(..header_len)?, header, options, payload),
    })
}

#[inline]
fn content(
    whole: &[u8],
    header: &[u8; V4_HEADER_LEN],
    options: &[u8],
    payload: &[u8],
) -> Result<Content, DropReason> {
    if !adds_up(whole) {
        return Err(DropReason::UnreadablePacket);
    }
    if !options.is_empty() {
        check_options(options)?;
    }
    let protocol = header[9];
    let place = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (place & MORE_FRAGMENTS != 0, (place & OFFSET_MASK) << 3);
    let fragment = if more || offset != 0 {
        let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
        Some(Fragment::new(id, offset, more, protocol, payload.len(), MOST)?)
    } else {
        None
    };
    Content::read(Family::V4, protocol, payload, fragment)
}

/// Whether the checksum of a header is right: whoever passes packets on looks at it first (RFC 1812 §5.2.2).
#[inline]
fn adds_up(header: &[u8]) -> bool {
    // At most 30 words of 16 bits, so nothing overflows, and two folds do.
    let words = header.chunks_exact(2).filter_map(<[u8]>::first_chunk::<2>);
    let sum = words.fold(0_u32, |sum, word| sum.wrapping_add(u16::from_be_bytes(*word).into()));
    let sum = (sum >> 16).wrapping_add(sum & 0xffff);
    (sum >> 16).wrapping_add(sum & 0xffff) == 0xffff
}

/// Refuses options that lead a packet elsewhere than its header says, and those whose lengths do not add up.
#[cold]
fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    while let Some((&kind, rest)) = options.split_first() {
        options = match kind {
            END_OF_OPTIONS => return Ok(()),
            NO_OPERATION => rest,
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(DropReason::SourceRouted),
            _ => {
                let len = usize::from(*rest.first().ok_or(DropReason::UnreadablePacket)?);
                options.get(len..).filter(|_| len >= 2).ok_or(DropReason::UnreadablePacket)?
            }
        };
    }
    Ok(())
}
