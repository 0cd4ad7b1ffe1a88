//! BLAKE2s as WireGuard uses it outside Noise: the two MACs at the end of a handshake message (whitepaper §5.4.4).

use blake2::digest::{FixedOutput, KeyInit, Mac, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use subtle::ConstantTimeEq;

use crate::key::PublicKey;
use crate::message::MAC_LEN;

type Mac128 = Blake2sMac<blake2::digest::consts::U16>;

const LABEL_MAC1: &[u8; 8] = b"mac1----";
const LABEL_COOKIE: &[u8; 8] = b"cookie--";

/// A cookie or a MAC.
pub(crate) type Tag = [u8; MAC_LEN];

/// What the messages to one receiver are stamped with, derived from its public key.
///
/// Not a secret: `mac1` only proves that the sender knows whom it is talking to, so that a port scan finds nothing.
#[derive(Clone)]
pub(crate) struct Stamp {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
}

impl Stamp {
    pub(crate) fn of(receiver: &PublicKey) -> Self {
        Self {
            mac1_key: hash(&[LABEL_MAC1, receiver.as_bytes()]),
            cookie_key: hash(&[LABEL_COOKIE, receiver.as_bytes()]),
        }
    }

    /// The key under which this receiver seals cookies.
    pub(crate) const fn cookie_key(&self) -> &[u8; 32] {
        &self.cookie_key
    }

    /// Fills in both MACs at the end of `message`, the second one with a cookie; returns the first.
    pub(crate) fn seal<const N: usize>(&self, message: &mut [u8; N], cookie: Option<&Tag>) -> Tag {
        let (body, mac1) = message[..N - MAC_LEN].split_at_mut(N - 2 * MAC_LEN);
        let tag = keyed(&self.mac1_key, &[body]);
        mac1.copy_from_slice(&tag);
        if let Some(cookie) = cookie {
            let (body, mac2) = message.split_at_mut(N - MAC_LEN);
            mac2.copy_from_slice(&keyed(cookie, &[body]));
        }
        tag
    }

    /// Whether the first MAC is right, in constant time.
    pub(crate) fn verify<const N: usize>(&self, message: &[u8; N]) -> bool {
        let (body, macs) = message.split_at(N - 2 * MAC_LEN);
        keyed(&self.mac1_key, &[body]).ct_eq(&macs[..MAC_LEN]).into()
    }
}

/// The first MAC of a message, as it is there.
pub(crate) fn mac1_of<const N: usize>(message: &[u8; N]) -> Tag {
    let mut tag = [0; MAC_LEN];
    tag.copy_from_slice(&message[N - 2 * MAC_LEN..N - MAC_LEN]);
    tag
}

/// Whether the second MAC was made with `cookie`, in constant time.
pub(crate) fn verify_mac2<const N: usize>(message: &[u8; N], cookie: &Tag) -> bool {
    let (body, mac2) = message.split_at(N - MAC_LEN);
    keyed(cookie, &[body]).ct_eq(mac2).into()
}

/// `HASH` of the whitepaper.
pub(crate) fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Blake2s256::new();
    for part in parts {
        Update::update(&mut hash, part);
    }
    hash.finalize_fixed().into()
}

/// `MAC` of the whitepaper: keyed BLAKE2s of 16 bytes.
pub(crate) fn keyed(key: &[u8], parts: &[&[u8]]) -> Tag {
    let mut mac =
        <Mac128 as KeyInit>::new_from_slice(key).expect("invariant: keys here have at most 32 bytes");
    for part in parts {
        Update::update(&mut mac, part);
    }
    Mac::finalize(mac).into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_breaks_mac1() {
        let stamp = Stamp::of(&PublicKey::from_bytes([3; 32]));
        let mut message = [0x5a; 92];
        stamp.seal(&mut message, None);
        assert!(stamp.verify(&message));
        for bit in 0..(92 - MAC_LEN) * 8 {
            let mut forged = message;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!stamp.verify(&forged), "bit {bit}");
        }
        assert!(!Stamp::of(&PublicKey::from_bytes([4; 32])).verify(&message), "another receiver");
    }

    #[test]
    fn mac2_covers_mac1_and_needs_the_cookie() {
        let stamp = Stamp::of(&PublicKey::from_bytes([3; 32]));
        let mut message = [0x5a; 148];
        let mac1 = stamp.seal(&mut message, Some(&[9; 16]));
        assert_eq!(mac1_of(&message), mac1);
        assert!(stamp.verify(&message));
        assert!(verify_mac2(&message, &[9; 16]));
        assert!(!verify_mac2(&message, &[8; 16]));
        message[120] ^= 1;
        assert!(!verify_mac2(&message, &[9; 16]));
    }
}
