//! A datagram on its way through a relay: eight bytes in front of what the two ends sealed.
//!
//! ```text
//!  byte 0      1..4         4..8                8..
//! +-----------+-------+---------------------+----------------------------+
//! | 16        | zeros | channel, big-endian | one of the four messages   |
//! +-----------+-------+---------------------+----------------------------+
//! ```
//!
//! On the way to the relay the channel is the sender's, on the way from it the receiver's. Neither end nor the relay believes the
//! header alone: the relay takes it only from where the channel's owner was last heard, a node only from where it hears the
//! relay. What follows is told apart and authenticated as if it had come straight.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

/// Bytes in front of a relayed datagram.
pub const HEADER_LEN: usize = 8;
/// The first four bytes of a relayed datagram; no message of WireGuard begins with them.
const RELAYED: [u8; 4] = [16, 0, 0, 0];

/// The header of a datagram for `channel`.
#[must_use]
pub const fn emit(channel: u32) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = RELAYED;
    let [e, f, g, h] = channel.to_be_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The channel, if this is a relayed datagram with something behind its header.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<u32> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let (channel, inner) = rest.split_first_chunk::<4>()?;
    (*kind == RELAYED && !inner.is_empty()).then_some(u32::from_be_bytes(*channel))
}

/// Whether `inner` has the type and a length of one of the four messages: all that a relay can tell of what it carries.
#[must_use]
pub fn is_sealed(inner: &[u8]) -> bool {
    crate::message::Message::parse(inner).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn channel_comes_back(channel: u32, inner in proptest::collection::vec(any::<u8>(), 1..40)) {
            let datagram = [emit(channel).as_slice(), &inner].concat();
            prop_assert_eq!(parse(&datagram), Some(channel));
        }

        #[test]
        fn no_bytes_make_parsing_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = (parse(&bytes), is_sealed(&bytes));
        }
    }

    #[test]
    fn other_types_set_reserved_bytes_and_empty_datagrams_are_not_relayed() {
        let mut good = emit(7).to_vec();
        assert_eq!(parse(&good), None, "nothing behind the header");
        good.push(4);
        assert_eq!(parse(&good), Some(7));
        for byte in 0..4 {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            assert_eq!(parse(&bad), None, "byte {byte}");
        }
    }

    #[test]
    fn only_the_four_messages_look_sealed() {
        for (kind, len, sealed) in [
            (1, 148, true),
            (1, 147, false),
            (2, 92, true),
            (3, 64, true),
            (4, 32, true),
            (4, 31, false),
            (16, 148, false),
        ] {
            let mut inner = vec![0; len];
            inner[0] = kind;
            assert_eq!(is_sealed(&inner), sealed, "type {kind}, {len} bytes");
        }
    }
}
