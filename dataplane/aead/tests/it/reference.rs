//! What the kernels are held to: `ring`, and runs of packets that own their bytes.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ringmesh_aead::{Choice, Kernel, Opening, Sealing, TAG_LEN, choose};

/// What follows each packet's room, and must be there afterwards.
const FENCE: [u8; 64] = [0xa5; 64];

/// The kernels of this machine.
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Portable];
    if choose(Choice::Auto).kernel == Kernel::Avx512 {
        kernels.push(Kernel::Avx512);
    }
    kernels
}

/// The sealed text and tag that `ring` makes of `text`.
pub(crate) fn seal(key: &[u8; 32], counter: u64, text: &[u8]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let mut sealed = text.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed).unwrap();
    sealed
}

/// A packet to seal that owns its text, and the room it is sealed into.
pub(crate) struct Packet {
    pub(crate) head: Vec<u8>,
    pub(crate) rest: Vec<u8>,
    padding: usize,
    room: Vec<u8>,
}

impl Packet {
    /// The first `head` bytes of `text` are its head; `padding` zeros follow.
    pub(crate) fn new(text: &[u8], head: usize, padding: usize) -> Self {
        let (head, rest) = text.split_at(head.min(text.len()));
        let mut room = vec![0x77; text.len() + padding + TAG_LEN];
        room.extend_from_slice(&FENCE);
        Self { head: head.to_vec(), rest: rest.to_vec(), padding, room }
    }

    pub(crate) fn sealing(&mut self) -> Sealing<'_> {
        let len = self.room.len() - FENCE.len();
        Sealing { head: &self.head, rest: &self.rest, out: &mut self.room[..len] }
    }

    /// The text with its padding.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut text = [&self.head[..], &self.rest].concat();
        text.resize(text.len() + self.padding, 0);
        text
    }

    /// What was written; nothing behind it was.
    pub(crate) fn sealed(&self) -> &[u8] {
        let (sealed, fence) = self.room.split_at(self.room.len() - FENCE.len());
        assert_eq!(fence, FENCE, "something was written behind a packet");
        sealed
    }

    /// The sealed packet, to be opened where it is.
    pub(crate) fn opening(&mut self, counter: u64) -> Opening<'_> {
        let len = self.room.len() - FENCE.len();
        Opening { counter, bytes: &mut self.room[..len], opened: false }
    }

    pub(crate) fn damage(&mut self, bit: usize) {
        self.room[bit / 8] ^= 1 << (bit % 8);
    }
}
