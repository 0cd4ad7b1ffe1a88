//! WireGuard's four messages as bytes: what tells them apart, where their fields are, and how ours are written.
//!
//! All integers are little-endian (whitepaper §5.4). The Noise part of a handshake message is one run of bytes, so it is
//! carried whole between the handshaker that makes it and the worker that stamps indices and MACs around it.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use crate::drop_reason::DropReason;

/// Bytes of a handshake initiation (type 1).
pub const INITIATION_LEN: usize = 148;
/// Bytes of a handshake response (type 2).
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply (type 3).
pub const COOKIE_REPLY_LEN: usize = 64;
/// Bytes of a data message (type 4) before its sealed packet.
pub const DATA_HEADER_LEN: usize = 16;
/// Bytes of an authentication tag.
pub const TAG_LEN: usize = 16;
/// Bytes of a keepalive: a data message with an empty packet, and the shortest there is.
pub const KEEPALIVE_LEN: usize = DATA_HEADER_LEN + TAG_LEN;
/// The most that a datagram is longer than its packet: a relay's header, the message's own, padding to a multiple of 16, tag.
pub const MAX_OVERHEAD: usize = crate::relayed::HEADER_LEN + DATA_HEADER_LEN + 15 + TAG_LEN;

/// Bytes of the Noise part of an initiation: ephemeral key, sealed static key, sealed timestamp.
pub(crate) const INITIATION_NOISE_LEN: usize = 108;
/// Bytes of the Noise part of a response: ephemeral key, sealed nothing.
pub(crate) const RESPONSE_NOISE_LEN: usize = 48;
/// Bytes of a MAC or cookie.
pub(crate) const MAC_LEN: usize = 16;

const INITIATION: [u8; 4] = [1, 0, 0, 0];
const RESPONSE: [u8; 4] = [2, 0, 0, 0];
const COOKIE_REPLY: [u8; 4] = [3, 0, 0, 0];
const DATA: [u8; 4] = [4, 0, 0, 0];

/// A datagram told apart by type and size, and by nothing else: all else it says is still a stranger's claim.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Message<'a> {
    Initiation(&'a [u8; INITIATION_LEN]),
    Response(&'a [u8; RESPONSE_LEN]),
    CookieReply(&'a [u8; COOKIE_REPLY_LEN]),
    Data { receiver: u32 },
}

impl<'a> Message<'a> {
    /// Tells the message by its first four bytes (the three reserved ones must be zero) and its exact size.
    pub(crate) fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        let (kind, rest) = datagram.split_first_chunk::<4>().ok_or(DropReason::UnknownMessage)?;
        let message = match *kind {
            INITIATION => datagram.try_into().map(Self::Initiation),
            RESPONSE => datagram.try_into().map(Self::Response),
            COOKIE_REPLY => datagram.try_into().map(Self::CookieReply),
            DATA if datagram.len() >= KEEPALIVE_LEN => {
                let receiver = rest.first_chunk::<4>().ok_or(DropReason::UnknownMessage)?;
                Ok(Self::Data { receiver: u32::from_le_bytes(*receiver) })
            }
            _ => return Err(DropReason::UnknownMessage),
        };
        message.map_err(|_| DropReason::UnknownMessage)
    }
}

/// The worker that a datagram claims to be for; none in an initiation, which comes before any index.
///
/// What receives for several workers hands it to that one; a wrong claim is found out there.
#[must_use]
pub fn receiver_worker(datagram: &[u8]) -> Option<u8> {
    receiver_index(datagram).map(crate::index::worker_of)
}

fn receiver_index(datagram: &[u8]) -> Option<u32> {
    let (kind, rest) = datagram.split_first_chunk::<4>()?;
    let at_start = || rest.first_chunk::<4>();
    let index = match *kind {
        COOKIE_REPLY | DATA => at_start()?,
        RESPONSE => rest.get(4..8)?.first_chunk::<4>()?,
        _ => return None,
    };
    Some(u32::from_le_bytes(*index))
}

/// Writes the header of a data message.
pub(crate) fn data_header(receiver: u32, counter: u64) -> [u8; DATA_HEADER_LEN] {
    let mut header = [0; DATA_HEADER_LEN];
    header[..4].copy_from_slice(&DATA);
    header[4..8].copy_from_slice(&receiver.to_le_bytes());
    header[8..].copy_from_slice(&counter.to_le_bytes());
    header
}

/// The counter in the header of a data message.
pub(crate) fn data_counter(header: [u8; DATA_HEADER_LEN]) -> u64 {
    u64::from_le_bytes(copy(&header[8..]))
}

/// An initiation without its MACs.
pub(crate) fn initiation(sender: u32, noise: &[u8; INITIATION_NOISE_LEN]) -> [u8; INITIATION_LEN] {
    let mut message = [0; INITIATION_LEN];
    message[..4].copy_from_slice(&INITIATION);
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..116].copy_from_slice(noise);
    message
}

/// A response without its MACs.
pub(crate) fn response(sender: u32, receiver: u32, noise: &[u8; RESPONSE_NOISE_LEN]) -> [u8; RESPONSE_LEN] {
    let mut message = [0; RESPONSE_LEN];
    message[..4].copy_from_slice(&RESPONSE);
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..12].copy_from_slice(&receiver.to_le_bytes());
    message[12..60].copy_from_slice(noise);
    message
}

/// A cookie reply: the 24-byte nonce, then the sealed cookie.
pub(crate) fn cookie_reply(receiver: u32, nonce: &[u8; 24], sealed: &[u8; 32]) -> [u8; COOKIE_REPLY_LEN] {
    let mut message = [0; COOKIE_REPLY_LEN];
    message[..4].copy_from_slice(&COOKIE_REPLY);
    message[4..8].copy_from_slice(&receiver.to_le_bytes());
    message[8..32].copy_from_slice(nonce);
    message[32..].copy_from_slice(sealed);
    message
}

/// The fields of an initiation: the sender's index and the Noise part.
pub(crate) fn initiation_fields(message: &[u8; INITIATION_LEN]) -> (u32, [u8; INITIATION_NOISE_LEN]) {
    (u32::from_le_bytes(copy(&message[4..8])), copy(&message[8..116]))
}

/// The fields of a response: the sender's index, the receiver's index and the Noise part.
pub(crate) fn response_fields(message: &[u8; RESPONSE_LEN]) -> (u32, u32, [u8; RESPONSE_NOISE_LEN]) {
    let (sender, receiver) = (copy(&message[4..8]), copy(&message[8..12]));
    (u32::from_le_bytes(sender), u32::from_le_bytes(receiver), copy(&message[12..60]))
}

/// The fields of a cookie reply: the receiver's index, the nonce and the sealed cookie.
pub(crate) fn cookie_reply_fields(message: &[u8; COOKIE_REPLY_LEN]) -> (u32, [u8; 24], [u8; 32]) {
    (u32::from_le_bytes(copy(&message[4..8])), copy(&message[8..32]), copy(&message[32..]))
}

/// Copies as many bytes as both have.
fn copy<const N: usize>(from: &[u8]) -> [u8; N] {
    let mut to = [0; N];
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(kind: [u8; 4], len: usize) -> Vec<u8> {
        let mut datagram = vec![0; len];
        datagram[..4.min(len)].copy_from_slice(&kind[..4.min(len)]);
        datagram
    }

    #[test]
    fn only_the_exact_sizes_and_types_are_messages() {
        for kind in 0..=255u8 {
            for len in 0..200 {
                let datagram = padded([kind, 0, 0, 0], len);
                let parsed = Message::parse(&datagram);
                let known = match kind {
                    1 => len == 148,
                    2 => len == 92,
                    3 => len == 64,
                    4 => len >= 32,
                    _ => false,
                };
                assert_eq!(parsed.is_ok(), known, "type {kind}, {len} bytes");
            }
        }
    }

    #[test]
    fn reserved_bytes_must_be_zero() {
        for (kind, len) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            for reserved in 1..4 {
                let mut datagram = padded([kind, 0, 0, 0], len);
                datagram[reserved] = 1;
                assert_eq!(Message::parse(&datagram).err(), Some(DropReason::UnknownMessage));
                assert_eq!(receiver_index(&datagram), None);
            }
        }
    }

    #[test]
    fn fields_come_back_as_they_were_written() {
        let noise = std::array::from_fn(|i| i as u8);
        let message = initiation(0x0102_0304, &noise);
        assert_eq!(&message[..8], &[1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(initiation_fields(&message), (0x0102_0304, noise));
        assert_eq!(receiver_index(&message), None);

        let noise = std::array::from_fn(|i| i as u8);
        let message = response(7, 0xa0b0_c0d0, &noise);
        assert_eq!(response_fields(&message), (7, 0xa0b0_c0d0, noise));
        assert_eq!(receiver_index(&message), Some(0xa0b0_c0d0));

        let message = cookie_reply(9, &[5; 24], &[6; 32]);
        assert_eq!(cookie_reply_fields(&message), (9, [5; 24], [6; 32]));
        assert_eq!(receiver_index(&message), Some(9));

        let header = data_header(11, u64::MAX - 1);
        let mut datagram = header.to_vec();
        datagram.extend([0; 16]);
        assert!(matches!(Message::parse(&datagram), Ok(Message::Data { receiver: 11 })));
        assert_eq!(data_counter(header), u64::MAX - 1);
        assert_eq!(receiver_index(&datagram), Some(11));
    }
}
