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
use crate::key::NodeId;

/// The first nibble of every notice.
pub(crate) const NIBBLE: u8 = 1;
const FIRST_BYTE: u8 = NIBBLE << 4;
const HEADER_LEN: usize = 4;
const ECHO_REQUEST: u8 = 1;
const ECHO_REPLY: u8 = 2;
const OFFER: u8 = 3;
const BIND: u8 = 4;
const BOUND: u8 = 5;
const BIND_REFUSED: u8 = 6;
/// In an echo request: the sender's own packets take this path.
const SELECTED: u8 = 1;
/// In an echo request: the sender reaches the relay in between over a stream.
const STREAMED: u8 = 2;
/// In an offer: the receiver is asked to offer its candidates too.
const ANSWER: u8 = 1;
/// In the word that a channel is bound: its other end is there.
const PRESENT: u8 = 1;
/// Candidates in one offer.
pub(crate) const MAX_OFFERED: usize = 16;
/// Bytes of an address: family, IPv6, port.
const MAX_ADDRESS_LEN: usize = 1 + 16 + 2;
/// Bytes of the longest notice there is: an offer of as many IPv6 addresses as fit.
pub(crate) const MAX_LEN: usize = HEADER_LEN + 1 + MAX_OFFERED * MAX_ADDRESS_LEN;

/// Addresses that one node tells another to try.
pub(crate) type Offered = heapless::Vec<SocketAddr, MAX_OFFERED>;

/// One notice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "notices are few, short-lived and never many at once")]
pub(crate) enum Notice {
    /// Asks for a reply with the same token, by the path it came. `selected`: the sender's packets take this path, too.
    /// `streamed`: the sender reaches the relay in between over a stream.
    EchoRequest { token: u64, selected: bool, streamed: bool },
    /// Answers a request, and tells from which address it was seen to come, if it came from one.
    EchoReply { token: u64, seen_from: Option<SocketAddr> },
    /// Where the sender may be reached; try now, the sender tries too. `answer`: tell me the same.
    Offer { candidates: Offered, answer: bool },
    /// To a relay: give me a channel to this node.
    Bind { target: NodeId },
    /// From a relay: datagrams on `channel` go to this node and come from it. `present`: it is there now.
    Bound { target: NodeId, channel: u32, present: bool },
    /// From a relay: there is no channel to this node.
    BindRefused { target: NodeId, refusal: BindRefusal },
}

/// Why a relay gives no channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindRefusal {
    /// The relay knows no such node, or it is the asker itself.
    UnknownNode,
    /// The asker has as many channels as one node may have, or the relay has no more to give.
    Full,
}

impl Notice {
    /// Whether an answer is owed: until it comes, this counts as data sent (a peer that is gone is noticed).
    pub(crate) const fn is_request(&self) -> bool {
        matches!(self, Self::EchoRequest { .. } | Self::Bind { .. })
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
        let mut reader = Reader(body);
        let notice = match kind {
            ECHO_REQUEST => reader.echo_request(),
            ECHO_REPLY => reader.echo_reply(),
            OFFER => reader.offer(),
            BIND => reader.node().map(|target| Self::Bind { target }),
            BOUND => reader.bound(),
            BIND_REFUSED => reader.bind_refused(),
            _ => return Err(DropReason::UnknownNotice),
        };
        // What follows in an echo request is padding, for probing what a path can carry.
        let whole = kind == ECHO_REQUEST || reader.0.is_empty();
        notice.filter(|_| whole).ok_or(DropReason::MalformedNotice)
    }

    /// Writes the notice; returns it as the bytes and their count.
    pub(crate) fn emit(&self) -> ([u8; MAX_LEN], usize) {
        let mut writer = Writer { bytes: [0; MAX_LEN], len: HEADER_LEN };
        let kind = match self {
            Self::EchoRequest { token, selected, streamed } => {
                writer.put(&token.to_be_bytes());
                writer.put(&[if *selected { SELECTED } else { 0 } | if *streamed { STREAMED } else { 0 }]);
                ECHO_REQUEST
            }
            Self::EchoReply { token, seen_from } => {
                writer.put(&token.to_be_bytes());
                writer.address(*seen_from);
                ECHO_REPLY
            }
            Self::Offer { candidates, answer } => {
                writer.flag(*answer, ANSWER);
                candidates.iter().for_each(|&candidate| writer.address(Some(candidate)));
                OFFER
            }
            Self::Bind { target } => {
                writer.put(target.as_bytes());
                BIND
            }
            Self::Bound { target, channel, present } => {
                writer.put(target.as_bytes());
                writer.put(&channel.to_be_bytes());
                writer.flag(*present, PRESENT);
                BOUND
            }
            Self::BindRefused { target, refusal } => {
                writer.put(target.as_bytes());
                writer.put(&[match refusal {
                    BindRefusal::UnknownNode => 1,
                    BindRefusal::Full => 2,
                }]);
                BIND_REFUSED
            }
        };
        let Writer { mut bytes, len } = writer;
        let [high, low] = (len.saturating_sub(HEADER_LEN) as u16).to_be_bytes();
        bytes[..HEADER_LEN].copy_from_slice(&[FIRST_BYTE, kind, high, low]);
        (bytes, len)
    }
}

/// Whether what begins with this byte, or has none, is no packet: a keepalive or a notice.
#[inline]
pub(crate) fn is_own(first: Option<u8>) -> bool {
    first.is_none_or(|first| first >> 4 == NIBBLE)
}

/// Whether what was opened tells that its sender's packets take this path: a packet, a keepalive, or an echo request that says so.
pub(crate) fn leads(plaintext: &[u8]) -> bool {
    match plaintext.first() {
        Some(&FIRST_BYTE) => {
            matches!(Notice::parse(plaintext), Ok(Notice::EchoRequest { selected: true, .. }))
        }
        Some(_) | None => true,
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

    /// A byte of flags of which only one is in use.
    fn flag(&mut self, set: bool, flag: u8) {
        self.put(&[if set { flag } else { 0 }]);
    }

    /// A family byte (4, 6, or 0 for no address), the address and the port. Scope ids do not travel.
    fn address(&mut self, address: Option<SocketAddr>) {
        let Some(address) = address else { return self.put(&[0]) };
        match address.ip() {
            IpAddr::V4(v4) => {
                self.put(&[4]);
                self.put(&v4.octets());
            }
            IpAddr::V6(v6) => {
                self.put(&[6]);
                self.put(&v6.octets());
            }
        }
        self.put(&address.port().to_be_bytes());
    }
}

/// What is left of a notice's body; every read shortens it, and `None` means that it was too short or not allowed.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (chunk, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*chunk)
    }

    fn byte(&mut self) -> Option<u8> {
        self.chunk().map(|[byte]| byte)
    }

    /// Flags that later versions may add are ignored.
    fn flag(&mut self, flag: u8) -> Option<bool> {
        self.byte().map(|flags| flags & flag != 0)
    }

    fn node(&mut self) -> Option<NodeId> {
        self.chunk().map(NodeId::from_bytes)
    }

    fn address(&mut self) -> Option<Option<SocketAddr>> {
        let ip = match self.byte()? {
            0 => return Some(None),
            4 => IpAddr::from(self.chunk::<4>()?),
            6 => IpAddr::from(self.chunk::<16>()?),
            _ => return None,
        };
        let port = self.chunk().map(u16::from_be_bytes)?;
        Some(Some(SocketAddr::new(ip, port)))
    }

    fn echo_request(&mut self) -> Option<Notice> {
        let token = self.chunk().map(u64::from_be_bytes)?;
        let flags = self.byte()?;
        let (selected, streamed) = (flags & SELECTED != 0, flags & STREAMED != 0);
        Some(Notice::EchoRequest { token, selected, streamed })
    }

    fn echo_reply(&mut self) -> Option<Notice> {
        let token = self.chunk().map(u64::from_be_bytes)?;
        Some(Notice::EchoReply { token, seen_from: self.address()? })
    }

    fn offer(&mut self) -> Option<Notice> {
        let answer = self.flag(ANSWER)?;
        let mut candidates = Offered::new();
        while !self.0.is_empty() {
            candidates.push(self.address()??).ok()?;
        }
        Some(Notice::Offer { candidates, answer })
    }

    fn bound(&mut self) -> Option<Notice> {
        let (target, channel) = (self.node()?, self.chunk().map(u32::from_be_bytes)?);
        Some(Notice::Bound { target, channel, present: self.flag(PRESENT)? })
    }

    fn bind_refused(&mut self) -> Option<Notice> {
        let target = self.node()?;
        let refusal = match self.byte()? {
            1 => BindRefusal::UnknownNode,
            2 => BindRefusal::Full,
            _ => return None,
        };
        Some(Notice::BindRefused { target, refusal })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        // Scope and flow of an IPv6 address mean nothing to anybody else.
        any::<SocketAddr>().prop_map(|address| SocketAddr::new(address.ip(), address.port()))
    }

    fn any_notice() -> impl Strategy<Value = Notice> {
        let node = any::<[u8; 8]>().prop_map(NodeId::from_bytes);
        let refusal = prop_oneof![Just(BindRefusal::UnknownNode), Just(BindRefusal::Full)];
        let offered = proptest::collection::vec(any_address(), 0..=MAX_OFFERED);
        prop_oneof![
            any::<(u64, bool, bool)>().prop_map(|(token, selected, streamed)| Notice::EchoRequest {
                token,
                selected,
                streamed
            }),
            (any::<u64>(), proptest::option::of(any_address()))
                .prop_map(|(token, seen_from)| Notice::EchoReply { token, seen_from }),
            (offered, any::<bool>()).prop_map(|(candidates, answer)| Notice::Offer {
                candidates: Offered::from_slice(&candidates).unwrap(),
                answer
            }),
            node.clone().prop_map(|target| Notice::Bind { target }),
            (node.clone(), any::<(u32, bool)>()).prop_map(|(target, (channel, present))| Notice::Bound {
                target,
                channel,
                present
            }),
            (node, refusal).prop_map(|(target, refusal)| Notice::BindRefused { target, refusal }),
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
        fn no_bytes_make_parsing_panic(kind in 0u8..8, body in proptest::collection::vec(any::<u8>(), 0..340)) {
            let [high, low] = (body.len() as u16).to_be_bytes();
            let _ = Notice::parse(&[&[FIRST_BYTE, kind, high, low], body.as_slice()].concat());
            let _ = Notice::parse(&body);
        }

        #[test]
        fn a_notice_cut_short_is_malformed(notice in any_notice(), cut in 1usize..40) {
            let (bytes, len) = notice.emit();
            let kept = len.saturating_sub(cut);
            prop_assert_eq!(Notice::parse(&bytes[..kept]), Err(DropReason::MalformedNotice));
        }

        #[test]
        fn a_notice_with_more_in_its_body_is_malformed_unless_it_is_an_echo_request(notice in any_notice()) {
            let (bytes, len) = notice.emit();
            let mut longer = bytes[..len].to_vec();
            longer.extend([9, 9, 9]);
            longer[3] = longer[3].wrapping_add(3);
            longer[2] += u8::from(longer[3] < 3);
            let parsed = Notice::parse(&longer);
            if matches!(notice, Notice::EchoRequest { .. }) {
                prop_assert_eq!(parsed, Ok(notice));
            } else {
                prop_assert_eq!(parsed, Err(DropReason::MalformedNotice));
            }
        }
    }

    #[test]
    fn an_offer_of_more_than_sixteen_candidates_is_malformed() {
        let address = [4, 192, 0, 2, 1, 0x12, 0x34];
        let offer = |count: usize| {
            let body = [vec![0], address.repeat(count)].concat();
            let length = (body.len() as u16).to_be_bytes();
            Notice::parse(&[&[FIRST_BYTE, OFFER, length[0], length[1]], body.as_slice()].concat())
        };
        assert!(offer(MAX_OFFERED).is_ok());
        assert_eq!(offer(MAX_OFFERED + 1), Err(DropReason::MalformedNotice));
    }

    #[test]
    fn unknown_types_are_told_from_malformed_ones() {
        assert_eq!(Notice::parse(&[0x10, 99, 0, 0]), Err(DropReason::UnknownNotice));
        assert_eq!(
            Notice::parse(&[0x11, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(DropReason::MalformedNotice)
        );
        assert_eq!(Notice::parse(&[0x10, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DropReason::MalformedNotice));
        assert_eq!(
            Notice::parse(&[0x10, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            Err(DropReason::MalformedNotice),
            "what follows the body must be zeros"
        );
    }
}
