//! Names that outlive keys: of nodes, networks and tokens. Written in hex.

use core::fmt;
use core::net::{IpAddr, Ipv6Addr};
use core::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::{IdentityKey, random};
use crate::ip::Prefix;

/// A text or a slice is not a name of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: it is {bytes} bytes, written as {} hexadecimal digits", bytes * 2)]
pub struct BadName {
    kind: &'static str,
    bytes: usize,
}

/// Writes bytes as lower-case hex.
pub(super) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `N` bytes of hex, of either case.
fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != N.checked_mul(2)? {
        return None;
    }
    let mut bytes = [0; N];
    let mut digits = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
    for byte in &mut bytes {
        *byte = (digits.next()?? << 4) | digits.next()??;
    }
    Some(bytes)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $length:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $length]);

        impl $name {
            /// Takes the bytes as they travel.
            pub const fn from_bytes(bytes: [u8; $length]) -> Self {
                Self(bytes)
            }

            /// Returns the bytes as they travel.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            const BAD: BadName = BadName { kind: $kind, bytes: $length };
        }

        impl TryFrom<&[u8]> for $name {
            type Error = BadName;

            /// Takes a slice of exactly the name's length.
            fn try_from(bytes: &[u8]) -> Result<Self, BadName> {
                bytes.try_into().map(Self).map_err(|_| Self::BAD)
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                parse_hex(text).map(Self).ok_or(Self::BAD)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

name! {
    /// Names a node for life: its addresses and its name hang on it, its keys come and go.
    NodeId, 8, "node id"
}
name! {
    /// Names a network: the first 16 bytes of a hash of its root key.
    NetworkId, 16, "network id"
}
name! {
    /// Names a join token in public; the token's secret is another matter.
    TokenId, 8, "token id"
}

impl NodeId {
    /// Makes a new one from the operating system's randomness.
    ///
    /// Never all zero: as the host part of an address that would be the anycast address of routers (RFC 4291 §2.6.1).
    pub fn generate() -> Self {
        loop {
            let bytes = random();
            if bytes != [0; 8] {
                return Self(bytes);
            }
        }
    }

    /// Returns the node's address in its network's IPv6 prefix: the prefix, zeros up to bit 64, and the node id.
    ///
    /// `None` if `prefix` is not IPv6 or longer than /64, which leaves no room for the id.
    pub fn ipv6_in(&self, prefix: Prefix) -> Option<Ipv6Addr> {
        let IpAddr::V6(network) = prefix.address() else { return None };
        if prefix.len() > 64 {
            return None;
        }
        Some(Ipv6Addr::from_bits(network.to_bits() | u128::from(u64::from_be_bytes(self.0))))
    }
}

impl TokenId {
    /// Makes a new one from the operating system's randomness.
    pub fn generate() -> Self {
        Self(random())
    }
}

impl NetworkId {
    /// Returns the name of the network of which `root` is the root key: the first 16 bytes of SHA-256 over
    /// `"ringmesh network"` and the key. Whoever knows the name can check the key.
    pub fn of_root(root: &IdentityKey) -> Self {
        let hash: [u8; 32] =
            Sha256::new().chain_update(b"ringmesh network").chain_update(root.as_bytes()).finalize().into();
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(hash) {
            *to = from;
        }
        Self(id)
    }

    /// Returns the network's own IPv6 /48 (RFC 4193): `fd` and the first 40 bits of the id, which are as good as random.
    pub fn ula(&self) -> Prefix {
        let [a, b, c, d, e, ..] = self.0;
        let address = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Prefix::new(address.into(), 48).expect("invariant: the last 80 bits are zero")
    }
}
