//! Addresses of packets and routes: the checked [`Prefix`]; and protocols by number.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

/// Numbers of the protocols above IP that are known by name (IANA's registry; RFC 5237).
pub mod protocol {
    /// ICMP, of IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMPv6, of IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
}

/// A range of addresses in CIDR form, IPv4 or IPv6, whose host bits are zero.
///
/// Ordered by family (IPv4 first), address, then length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// Why something is not a [`Prefix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The text has no address that can be read.
    #[error("not an address range: write it as 10.1.0.0/16 or fd00:1::/32")]
    Syntax,
    /// The length is beyond 32 (IPv4) or 128 (IPv6).
    #[error("the prefix length /{len} is beyond /{most}, the longest for this address family")]
    Length {
        /// The length that was asked for, bits.
        len: u8,
        /// The longest there is, bits.
        most: u8,
    },
    /// Bits beyond the length are set.
    #[error("the address has bits set beyond the prefix: did you mean {meant}?")]
    HostBits {
        /// The same range, written right.
        meant: Prefix,
    },
}

impl Prefix {
    /// Makes the range of `len` leading bits of `address`.
    ///
    /// # Errors
    ///
    /// If `len` is beyond the address family's or `address` has bits set beyond it.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let meant = Self::containing(address, len)?;
        if meant.address == address { Ok(meant) } else { Err(PrefixError::HostBits { meant }) }
    }

    /// Makes the range of `len` leading bits that `address` is in, clearing its host bits.
    ///
    /// # Errors
    ///
    /// [`PrefixError::Length`] if `len` is beyond the address family's.
    pub fn containing(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let most = Self::width(address);
        if len > most {
            return Err(PrefixError::Length { len, most });
        }
        Ok(Self { address: mask(address, len), len })
    }

    /// Makes the range of one address.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, len: Self::width(address) }
    }

    /// Returns the first address of the range.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Returns the count of leading bits that addresses of the range share.
    #[expect(
        clippy::len_without_is_empty,
        reason = "the length of a prefix, which always contains addresses"
    )]
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Tells whether this is a range of IPv4 addresses.
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// Tells whether the range is a single address.
    pub const fn is_host(&self) -> bool {
        self.len == Self::width(self.address)
    }

    /// Tells whether `address` is in the range; one of the other family never is.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && mask(address, self.len) == self.address
    }

    /// Tells whether all of `other` is in this range.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }

    /// Tells whether the two ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Returns the width of an address of the family, bits.
    const fn width(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }
}

/// Clears all but the first `len` bits.
fn mask(address: IpAddr, len: u8) -> IpAddr {
    let len = u32::from(len);
    match address {
        // A shift by the full width, of the prefix 0, is no shift in Rust: it clears everything here.
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(len).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & !host).into())
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(len).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & !host).into())
        }
    }
}

impl From<IpAddr> for Prefix {
    /// Makes the range of one address.
    fn from(address: IpAddr) -> Self {
        Self::host(address)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// Reads `address/length`, or an address alone as the range of it.
    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Syntax)?;
        let Some(len) = len else { return Ok(Self::host(address)) };
        // `u8::from_str` takes a sign, and a length has none.
        if !len.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(PrefixError::Syntax);
        }
        Self::new(address, len.parse().map_err(|_| PrefixError::Syntax)?)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn prefix_reads_what_it_writes() {
        for text in ["0.0.0.0/0", "10.1.0.0/16", "192.0.2.1/32", "::/0", "fd00:1::/32", "fd00::1/128"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("192.0.2.1"), prefix("192.0.2.1/32"));
        assert_eq!(prefix("fd00::1"), prefix("fd00::1/128"));
    }

    #[test]
    fn prefix_refuses_host_bits_and_names_the_cure() {
        let error = "10.1.2.3/16".parse::<Prefix>().unwrap_err();
        assert_eq!(error, PrefixError::HostBits { meant: prefix("10.1.0.0/16") });
        assert!(error.to_string().contains("did you mean 10.1.0.0/16?"));
        assert!(matches!("::1/0".parse::<Prefix>(), Err(PrefixError::HostBits { .. })));
    }

    #[test]
    fn prefix_refuses_what_is_none() {
        assert_eq!("10.0.0.0/33".parse::<Prefix>(), Err(PrefixError::Length { len: 33, most: 32 }));
        assert_eq!("fd00::/129".parse::<Prefix>(), Err(PrefixError::Length { len: 129, most: 128 }));
        for bad in [
            "",
            "/",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0/8",
            "10.0.0.0/8/8",
            "x/8",
            "10.0.0.0/256",
        ] {
            assert_eq!(bad.parse::<Prefix>(), Err(PrefixError::Syntax), "{bad}");
        }
    }

    #[test]
    fn prefix_knows_what_is_inside() {
        assert!(prefix("10.1.0.0/16").contains("10.1.255.255".parse().unwrap()));
        assert!(!prefix("10.1.0.0/16").contains("10.2.0.0".parse().unwrap()));
        assert!(prefix("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
        assert!(!prefix("0.0.0.0/0").contains("::".parse().unwrap()));
        assert!(!prefix("::/0").contains("1.2.3.4".parse().unwrap()));
        assert!(prefix("10.0.0.0/8").covers(&prefix("10.1.0.0/16")));
        assert!(!prefix("10.1.0.0/16").covers(&prefix("10.0.0.0/8")));
        assert!(prefix("10.1.0.0/16").overlaps(&prefix("10.0.0.0/8")));
        assert!(!prefix("10.1.0.0/16").overlaps(&prefix("10.2.0.0/16")));
        assert!(prefix("10.1.2.3/32").is_host() && !prefix("10.1.2.0/31").is_host());
    }

    /// Compares bit by bit, as the text of CIDR (RFC 4632 §3.1) says it.
    fn naive_contains(bits: &[u8], len: u8, address: &[u8]) -> bool {
        let bit = |bytes: &[u8], i: usize| bytes[i / 8] >> (7 - i % 8) & 1;
        (0..usize::from(len)).all(|i| bit(bits, i) == bit(address, i))
    }

    proptest! {
        #[test]
        fn prefix_contains_what_shares_its_leading_bits(a: [u8; 16], b: [u8; 16], len in 0_u8..=128, keep in 0_u32..=128) {
            // Makes `b` share a random count of leading bits, else nothing is ever inside.
            let low = u128::MAX.checked_shr(keep).unwrap_or(0);
            let b = (u128::from_be_bytes(a) & !low | u128::from_be_bytes(b) & low).to_be_bytes();
            let range = Prefix::containing(IpAddr::from(a), len).unwrap();
            prop_assert_eq!(range.contains(b.into()), naive_contains(&a, len, &b));
            let (a, b): ([u8; 4], [u8; 4]) = (a[..4].try_into().unwrap(), b[..4].try_into().unwrap());
            let len = len / 4;
            let range = Prefix::containing(IpAddr::from(a), len).unwrap();
            prop_assert_eq!(range.contains(b.into()), naive_contains(&a, len, &b));
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }
    }
}
