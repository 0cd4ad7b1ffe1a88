//! Names that no resolver is asked for, because what they mean is written down (RFC 6761).

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use core::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{
    Name, RData, RecordType,
    rdata::{A, AAAA},
};

/// What a special name comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// `localhost` and names below it (RFC 6761 §6.3): loopback addresses, and nothing else.
    Loopback(Option<RData>),
    /// Names that DNS has no say in: `onion` (RFC 7686 §2), `invalid` (RFC 6761 §6.4). Not `local`, whatever RFC 6762 says: many a
    /// network has its own names there, and the resolver in place knows them.
    Nowhere,
}

/// Tells whether `name` is special, and what it has of type `kind`.
pub(super) fn special(name: &Name, kind: RecordType) -> Option<Special> {
    let last = name.iter().next_back()?;
    if last.eq_ignore_ascii_case(b"localhost") {
        let ipv4 = || RData::A(A(Ipv4Addr::LOCALHOST));
        let ipv6 = || RData::AAAA(AAAA(Ipv6Addr::LOCALHOST));
        let ipv6 = (kind == RecordType::AAAA).then(ipv6);
        return Some(Special::Loopback((kind == RecordType::A).then(ipv4).or(ipv6)));
    }
    let nowhere: [&[u8]; 2] = [b"onion", b"invalid"];
    nowhere.iter().any(|end| last.eq_ignore_ascii_case(end)).then_some(Special::Nowhere)
}
