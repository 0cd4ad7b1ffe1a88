//! The library, one packet after the other.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::run::{MAX_TEXT_LEN, Opening, Sealing, TAG_LEN};

/// What the text of a packet without a head is padded with while it is sealed: more than WireGuard ever pads.
const ZEROS: [u8; 15] = [0; 15];

/// A key of the library's, which wipes it when it is dropped.
pub(crate) struct LibraryKey(LessSafeKey);

impl LibraryKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let unbound = UnboundKey::new(&CHACHA20_POLY1305, key);
        Self(LessSafeKey::new(unbound.expect("invariant: every 32 bytes are a key of ChaCha20")))
    }

    /// Seals one packet that was checked.
    pub(crate) fn seal(&self, counter: u64, packet: &mut Sealing<'_>) {
        let (text, tag) = packet.out.split_at_mut(packet.out.len() - TAG_LEN);
        let padding_len = text.len() - packet.head.len() - packet.rest.len();
        let sealed = if packet.head.is_empty() && padding_len <= ZEROS.len() {
            self.seal_from(counter, packet.rest, packet.out)
        } else {
            let (head, rest) = text.split_at_mut(packet.head.len());
            let (rest, padding) = rest.split_at_mut(packet.rest.len());
            head.copy_from_slice(packet.head);
            rest.copy_from_slice(packet.rest);
            padding.fill(0);
            self.0
                .seal_in_place_separate_tag(nonce(counter), Aad::empty(), text)
                .map(|made| tag.copy_from_slice(made.as_ref()))
        };
        sealed.expect("invariant: the library seals every text this short");
    }

    /// Seals `text`, padded with at most [`ZEROS`], out of place: without a copy.
    fn seal_from(
        &self,
        counter: u64,
        text: &[u8],
        out: &mut [u8],
    ) -> Result<(), aws_lc_rs::error::Unspecified> {
        let padding = &ZEROS[..out.len() - TAG_LEN - text.len()];
        let (sealed, padding_and_tag) = out.split_at_mut(text.len());
        self.0.seal_out_of_place_scatter(nonce(counter), Aad::empty(), text, sealed, padding, padding_and_tag)
    }

    /// Opens one packet, or zeroes its text.
    pub(crate) fn open(&self, packet: &mut Opening<'_>) {
        packet.opened = packet.bytes.len() <= MAX_TEXT_LEN + TAG_LEN
            && self.0.open_in_place(nonce(packet.counter), Aad::empty(), packet.bytes).is_ok();
    }
}

/// Four zero bytes and the counter, little endian (WireGuard whitepaper §5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
