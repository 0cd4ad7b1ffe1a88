//! The header of IPv6 and those that may come between it and the transport (RFC 8200).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use super::{Content, Family, Fragment, Header, V6_HEADER_LEN};
use crate::drop_reason::DropReason;

/// Extension headers that are read; with more, a packet is refused.
pub(crate) const MAX_EXTENSION_HEADERS: u32 = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

#[inline]
pub(super) fn parse(packet: &[u8]) -> Option<Header> {
    let header = packet.first_chunk::<V6_HEADER_LEN>()?;
    let payload_len = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let len = payload_len.checked_add(V6_HEADER_LEN)?;
    let payload = packet.get(V6_HEADER_LEN..len)?;
    let source = header.get(8..24)?.first_chunk::<16>()?;
    let destination = header.get(24..)?.first_chunk::<16>()?;
    Some(Header {
        source: (*source).into(),
        destination: (*destination).into(),
        len,
        content: content(header[6], payload),
    })
}

#[inline]
fn content(next: u8, payload: &[u8]) -> Result<Content, DropReason> {
    let Chain { protocol, rest, fragment } = Chain::walk(next, payload, true)?;
    Content::read(Family::V6, protocol, rest, fragment)
}

/// What is behind the extension headers.
pub(super) struct Chain<'a> {
    pub(super) protocol: u8,
    pub(super) rest: &'a [u8],
    /// Of a fragment; one that begins and ends its datagram is none (RFC 6946).
    pub(super) fragment: Option<Fragment>,
}

impl<'a> Chain<'a> {
    /// Goes from header to header up to the transport, or to a later fragment's first byte. Unless the payload is `whole`,
    /// it may end anywhere.
    #[inline]
    pub(super) fn walk(next: u8, payload: &'a [u8], whole: bool) -> Result<Self, DropReason> {
        let mut chain = Self { protocol: next, rest: payload, fragment: None };
        let (mut read, mut divided) = (0_u32, false);
        while is_extension(chain.protocol) {
            // Only where every router looks; and it says itself that nothing follows it.
            let misplaced = chain.protocol == HOP_BY_HOP && read > 0;
            // Behind an authentication header rules would have to see both what it is and what follows.
            let opaque = matches!(chain.protocol, NO_NEXT_HEADER | AUTHENTICATION);
            if misplaced || opaque || read >= MAX_EXTENSION_HEADERS {
                return Err(DropReason::UnreadablePacket);
            }
            read = read.saturating_add(1);
            if chain.protocol != FRAGMENT {
                chain.step()?;
                continue;
            }
            if std::mem::replace(&mut divided, true) {
                return Err(DropReason::UnreadablePacket);
            }
            chain.divide(whole)?;
            if chain.fragment.is_some_and(|fragment| fragment.offset > 0) {
                break;
            }
        }
        Ok(chain)
    }

    /// Takes one header off that is no fragment's.
    fn step(&mut self) -> Result<(), DropReason> {
        let first = self.rest.first_chunk::<8>().ok_or_else(|| self.too_short())?;
        // Where segments are left, the destination is not who gets it in the end; and type 0 has no right use (RFC 5095).
        if self.protocol == ROUTING && (first[2] == 0 || first[3] != 0) {
            return Err(DropReason::SourceRouted);
        }
        let len = usize::from(first[1]).saturating_add(1).saturating_mul(8);
        self.rest = self.rest.get(len..).ok_or_else(|| self.too_short())?;
        self.protocol = first[0];
        Ok(())
    }

    /// Takes a fragment's header off.
    fn divide(&mut self, whole: bool) -> Result<(), DropReason> {
        let (first, rest) = self.rest.split_first_chunk::<8>().ok_or(DropReason::UnreadablePacket)?;
        let place = u16::from_be_bytes([first[2], first[3]]);
        let (offset, more) = (place & 0xfff8, place & 1 != 0);
        if more || offset != 0 {
            let id = u32::from_be_bytes([first[4], first[5], first[6], first[7]]);
            let len = if whole { rest.len() } else { 8 };
            self.fragment = Some(Fragment::new(id, offset, more, first[0], len, u16::MAX)?);
        }
        (self.protocol, self.rest) = (first[0], rest);
        Ok(())
    }

    /// Why headers end too early: those of a fragment may be in the next one (RFC 7112).
    const fn too_short(&self) -> DropReason {
        if self.fragment.is_some() { DropReason::TinyFragment } else { DropReason::UnreadablePacket }
    }
}

const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | NO_NEXT_HEADER | DESTINATION_OPTIONS
    )
}
