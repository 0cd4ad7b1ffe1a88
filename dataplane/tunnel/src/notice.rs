//! Notices: what our nodes say to each other inside a session.
//!
//! A notice is the plaintext of a data message whose first nibble is 1, where an IP packet has 4 or 6. Stock WireGuard
//! drops it as malformed, and we send it only to peers whose record says that they are nodes of ours.
//!
//! ```text
//!  byte 0     1      2..4                4..4+length     then
//! +--------+------+------------------+----------------+--------------------+
//! |  0x10  | type | length, big-end. |      body      | zeros to 16 bytes  |
//! +--------+------+------------------+----------------+--------------------+
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::net::{IpAddr, SocketAddr};

use crate::drop_reason::DropReason;
use crate::path::Path;

/// The first nibble of every notice.
pub(crate) const NIBBLE: u8 = 1;
const FIRST_BYTE: u8 = NIBBLE << 4;
const HEADER_LEN: usize = 4;
const ECHO_REQUEST: u8 = 1;
const ECHO_REPLY: u8 = 2;
/// Bytes of the longest notice there is: an echo reply that tells an IPv6 address.
pub(crate) const MAX_LEN: usize = HEADER_LEN + 8 + 1 + 16 + 2;

/// One notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Asks for a reply with the same token, by the path it came.
    EchoRequest { token: u64 },
    /// Answers a request, and tells from where it was seen to come.
    EchoReply { token: u64, seen_from: Option<Path> },
}

impl Notice {
    /// Whether an answer is owed: until it comes, this counts as data sent (a peer that is gone is noticed).
    pub(crate) const fn is_request(&self) -> bool {
        matches!(self, Self::EchoRequest { .. })
    }

    /// Reads the plaintext of a data message whose first nibble is a notice's.
    pub(crate) fn parse(plaintext: &[u8]) -> Result<Self, DropReason> {
        let (header, rest) =
            plaintext.split_first_chunk::<HEADER_LEN>().ok_or(DropReason::MalformedNotice)?;
        let [first, kind, high, low] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (body, padding) = rest.split_at_checked(length).ok_or(DropReason::MalformedNotice)?;
        if first != FIRST_BYTE || padding.iter().any(|&byte| byte != 0) {
            return Err(DropReason::MalformedNotice);
        }
        match kind {
            ECHO_REQUEST => {
                // A longer body is padding, for probing what a path can carry.
                let token = body.first_chunk().ok_or(DropReason::MalformedNotice)?;
                Ok(Self::EchoRequest { token: u64::from_be_bytes(*token) })
            }
            ECHO_REPLY => {
                let (token, seen_from) = body.split_first_chunk().ok_or(DropReason::MalformedNotice)?;
                let seen_from = parse_path(seen_from).ok_or(DropReason::MalformedNotice)?;
                Ok(Self::EchoReply { token: u64::from_be_bytes(*token), seen_from })
            }
            _ => Err(DropReason::UnknownNotice),
        }
    }

    /// Writes the notice; returns it as the bytes and their count.
    pub(crate) fn emit(&self) -> ([u8; MAX_LEN], usize) {
        let mut writer = Writer { bytes: [0; MAX_LEN], len: HEADER_LEN };
        let kind = match *self {
            Self::EchoRequest { token } => {
                writer.put(&token.to_be_bytes());
                ECHO_REQUEST
            }
            Self::EchoReply { token, seen_from } => {
                writer.put(&token.to_be_bytes());
                emit_path(seen_from, &mut writer);
                ECHO_REPLY
            }
        };
        let Writer { mut bytes, len } = writer;
        let [high, low] = (len.saturating_sub(HEADER_LEN) as u16).to_be_bytes();
        bytes[..HEADER_LEN].copy_from_slice(&[FIRST_BYTE, kind, high, low]);
        (bytes, len)
    }
}

struct Writer {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Writer {
    fn put(&mut self, part: &[u8]) {
        let end = self.len.saturating_add(part.len());
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(part);
            self.len = end;
        }
    }
}

/// A family byte (4, 6, or 0 for a path without an address), the address and the port.
fn emit_path(path: Option<Path>, writer: &mut Writer) {
    match path.and_then(Path::address) {
        None => writer.put(&[0]),
        Some(address) => {
            match address.ip() {
                IpAddr::V4(v4) => {
                    writer.put(&[4]);
                    writer.put(&v4.octets());
                }
                IpAddr::V6(v6) => {
                    writer.put(&[6]);
                    writer.put(&v6.octets());
                }
            }
            writer.put(&address.port().to_be_bytes());
        }
    }
}

fn parse_path(bytes: &[u8]) -> Option<Option<Path>> {
    let (family, rest) = bytes.split_first()?;
    let (ip, port) = match family {
        0 if rest.is_empty() => return Some(None),
        4 => {
            let (octets, port) = rest.split_first_chunk::<4>()?;
            (IpAddr::from(*octets), port)
        }
        6 => {
            let (octets, port) = rest.split_first_chunk::<16>()?;
            (IpAddr::from(*octets), port)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(port.try_into().ok()?);
    Some(Some(Path::Udp(SocketAddr::new(ip, port))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_notice() -> impl Strategy<Value = Notice> {
        let path = proptest::option::of(any::<SocketAddr>().prop_map(|address| {
            // Scope and flow of an IPv6 address mean nothing to anybody else.
            Path::Udp(SocketAddr::new(address.ip(), address.port()))
        }));
        prop_oneof![
            any::<u64>().prop_map(|token| Notice::EchoRequest { token }),
            (any::<u64>(), path).prop_map(|(token, seen_from)| Notice::EchoReply { token, seen_from }),
        ]
    }

    proptest! {
        #[test]
        fn notices_come_back_through_padding(notice in any_notice(), padding in 0usize..16) {
            let (bytes, len) = notice.emit();
            let mut plaintext = bytes[..len].to_vec();
            plaintext.resize(len + padding, 0);
            prop_assert_eq!(plaintext[0] >> 4, NIBBLE);
            prop_assert_eq!(Notice::parse(&plaintext), Ok(notice));
        }

        #[test]
        fn no_bytes_make_parsing_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Notice::parse(&bytes);
        }

        #[test]
        fn a_notice_cut_short_is_malformed(notice in any_notice(), cut in 1usize..40) {
            let (bytes, len) = notice.emit();
            let kept = len.saturating_sub(cut);
            prop_assert_eq!(Notice::parse(&bytes[..kept]), Err(DropReason::MalformedNotice));
        }
    }

    #[test]
    fn unknown_types_are_told_from_malformed_ones() {
        assert_eq!(Notice::parse(&[0x10, 99, 0, 0]), Err(DropReason::UnknownNotice));
        assert_eq!(Notice::parse(&[0x11, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DropReason::MalformedNotice));
        assert_eq!(Notice::parse(&[0x10, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0]), Err(DropReason::MalformedNotice));
        assert_eq!(
            Notice::parse(&[0x10, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            Err(DropReason::MalformedNotice),
            "what follows the body must be zeros"
        );
    }
}
