//! Socket addresses as the kernel writes them (`sockaddr_in`, `sockaddr_in6`), read and written as bytes.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Bytes of the longer of the two forms, `sockaddr_in6`.
pub(crate) const MAX_LEN: usize = 28;

/// Bytes of `sockaddr_in`.
const V4_LEN: usize = 16;

/// An address in the kernel's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub(crate) struct RawAddress {
    pub(crate) bytes: [u8; MAX_LEN],
    pub(crate) len: u32,
}

impl RawAddress {
    /// No address: what the kernel will write one into.
    pub(crate) const EMPTY: Self = Self { bytes: [0; MAX_LEN], len: MAX_LEN as u32 };

    /// The kernel's form of `address`.
    pub(crate) fn emit(address: &SocketAddr) -> Self {
        let mut bytes = [0; MAX_LEN];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let len = match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                V4_LEN
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                MAX_LEN
            }
        };
        Self { bytes, len: len as u32 }
    }

    /// The address that the kernel wrote, or `None` when it is of neither form.
    pub(crate) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        match i32::from(family) {
            libc::AF_INET => {
                let octets: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some(SocketAddr::from((Ipv4Addr::from(octets), port)))
            }
            libc::AF_INET6 => {
                let octets: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
                // The flow label is a property of one datagram, not of its sender's address.
                Some(SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_emitted_parses(address: SocketAddr) {
            let raw = RawAddress::emit(&address);
            let mut expected = address;
            if let SocketAddr::V6(v6) = &mut expected {
                v6.set_flowinfo(0);
            }
            prop_assert_eq!(RawAddress::parse(&raw.bytes[..raw.len as usize]), Some(expected));
            prop_assert_eq!(socket2::SockAddr::from(address).len(), raw.len);
        }

        #[test]
        fn any_bytes_are_harmless(bytes: Vec<u8>) {
            let _ = RawAddress::parse(&bytes);
        }
    }

    #[test]
    fn a_truncated_address_is_none() {
        for address in ["192.0.2.1:7", "[2001:db8::1]:7"] {
            let raw = RawAddress::emit(&address.parse().unwrap());
            let shortest = if address.starts_with('[') { 28 } else { 8 };
            assert!(RawAddress::parse(&raw.bytes[..shortest]).is_some());
            for len in 0..shortest {
                assert_eq!(RawAddress::parse(&raw.bytes[..len]), None);
            }
        }
    }
}
