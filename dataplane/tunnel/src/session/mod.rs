//! A session: the keys of one handshake, used to seal and open datagrams until they are too old.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

mod replay;
mod slots;

use std::fmt;
use std::ops::Range;
use std::time::Instant;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::drop_reason::DropReason;
use crate::handshake::TransportKeys;
use crate::message::{self, DATA_HEADER_LEN, TAG_LEN};
use crate::timers::{REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_ON_RECEIVE_AFTER, REKEY_TIMEOUT};

use self::replay::ReplayWindow;
pub(crate) use self::slots::{Position, Sessions};

/// Messages after which either side starts a new handshake (whitepaper §6.1).
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which a session is dead (whitepaper §6.1): no counter ever comes near to wrapping.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Padding is a part of the sealed text: at most this much.
const ZEROS: [u8; 15] = [0; 15];

/// One session: keys for both directions, their counters and the replay window.
pub(crate) struct Session {
    local_index: u32,
    remote_index: u32,
    initiator: bool,
    created: Instant,
    sealing: LessSafeKey,
    opening: LessSafeKey,
    /// The counter of the next datagram sealed: never used twice, so no nonce is.
    counter: u64,
    replay: ReplayWindow,
}

impl Session {
    /// Takes the keys of a finished handshake into use; none if the library refuses them, which it does for no key.
    pub(crate) fn new(
        local_index: u32,
        remote_index: u32,
        initiator: bool,
        keys: &TransportKeys,
        now: Instant,
    ) -> Option<Self> {
        let key = |bytes| UnboundKey::new(&CHACHA20_POLY1305, bytes).ok().map(LessSafeKey::new);
        Some(Self {
            local_index,
            remote_index,
            initiator,
            created: now,
            sealing: key(keys.sending())?,
            opening: key(keys.receiving())?,
            counter: 0,
            replay: ReplayWindow::new(),
        })
    }

    /// The name by which the peer addresses this session.
    pub(crate) const fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Whether it was made less than a handshake's time-out ago.
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) < REKEY_TIMEOUT
    }

    /// Whether a packet may still be sealed.
    pub(crate) fn can_seal(&self, now: Instant) -> bool {
        self.counter < REJECT_AFTER_MESSAGES && !self.expired(now)
    }

    /// Whether sending should start the next handshake: by count on either side, by time only on the initiator's, so that
    /// both sides do not start one at once.
    pub(crate) fn wants_rekey_on_send(&self, now: Instant) -> bool {
        self.counter > REKEY_AFTER_MESSAGES
            || (self.initiator && now.saturating_duration_since(self.created) >= REKEY_AFTER_TIME)
    }

    /// Whether receiving should start the next handshake: the initiator's last chance before the session dies.
    pub(crate) fn wants_rekey_on_receive(&self, now: Instant) -> bool {
        self.initiator && now.saturating_duration_since(self.created) >= REKEY_ON_RECEIVE_AFTER
    }

    /// Seals `packet`, padded to `padded_len` with zeros, out of place into `datagram`; returns the datagram's length.
    pub(crate) fn seal(
        &mut self,
        packet: &[u8],
        padded_len: usize,
        datagram: &mut [u8],
    ) -> Result<usize, DropReason> {
        let padding = padded_len.checked_sub(packet.len()).and_then(|len| ZEROS.get(..len));
        let padding = padding.ok_or(DropReason::BufferTooSmall)?;
        let (header, rest) = datagram.split_first_chunk_mut().ok_or(DropReason::BufferTooSmall)?;
        let (sealed, rest) = rest.split_at_mut_checked(packet.len()).ok_or(DropReason::BufferTooSmall)?;
        let tail_len = padding.len().saturating_add(TAG_LEN);
        let tail = rest.get_mut(..tail_len).ok_or(DropReason::BufferTooSmall)?;

        if self.counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::SessionExpired);
        }
        let counter = self.counter;
        // Counted before use, so that not even a failure inside the library could repeat a nonce.
        self.counter = counter.saturating_add(1);
        *header = message::data_header(self.remote_index, counter);
        self.sealing
            .seal_out_of_place_scatter(nonce(counter), Aad::empty(), packet, sealed, padding, tail)
            .map_err(|_| DropReason::BadSeal)?;
        Ok(DATA_HEADER_LEN.saturating_add(packet.len()).saturating_add(tail_len))
    }

    /// Opens a datagram in place; returns where its packet, with padding, lies. What fails changes nothing.
    pub(crate) fn open(
        &mut self,
        counter: u64,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Range<usize>, DropReason> {
        if self.expired(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::SessionExpired);
        }
        let sealed = datagram.get_mut(DATA_HEADER_LEN..).ok_or(DropReason::BadSeal)?;
        let packet = self
            .opening
            .open_in_place(nonce(counter), Aad::empty(), sealed)
            .map_err(|_| DropReason::BadSeal)?;
        let len = packet.len();
        // Only now is the counter the peer's and not a stranger's (W20).
        if !self.replay.accept(counter) {
            return Err(DropReason::Replayed);
        }
        Ok(DATA_HEADER_LEN..DATA_HEADER_LEN.saturating_add(len))
    }

    fn expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME
    }

    /// Pretends that this many datagrams were sealed.
    #[cfg(test)]
    pub(crate) fn preset_counter(&mut self, counter: u64) {
        self.counter = counter;
    }

    /// The counter of the next datagram.
    #[cfg(test)]
    pub(crate) fn counter(&self) -> u64 {
        self.counter
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}

/// Four zero bytes, then the counter (whitepaper §5.4.6).
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The length a packet is padded to: a multiple of 16, but never beyond the interface's MTU (W25).
pub(crate) fn padded_len(len: usize, mtu: usize) -> usize {
    let padded = len.next_multiple_of(16);
    if padded > mtu { len.max(mtu) } else { padded }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::test_epoch;

    fn pair(now: Instant) -> (Session, Session) {
        let (ours, theirs) = ([1; 32], [2; 32]);
        let near = Session::new(10, 20, true, &TransportKeys::new(ours, theirs), now).unwrap();
        let far = Session::new(20, 10, false, &TransportKeys::new(theirs, ours), now).unwrap();
        (near, far)
    }

    #[test]
    fn every_length_seals_and_opens_to_itself() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let packet: Vec<u8> = (0..1408u32).map(|i| i as u8).collect();
        for len in 0..=packet.len() {
            let mut datagram = [0xff; 1408 + message::MAX_OVERHEAD];
            let padded = padded_len(len, 1408);
            let sealed = near.seal(&packet[..len], padded, &mut datagram).unwrap();
            assert_eq!(sealed, padded + 32);
            let opened = far.open(len as u64, &mut datagram[..sealed], now).unwrap();
            assert_eq!(opened.len(), padded);
            let opened = &datagram[opened];
            assert_eq!(&opened[..len], &packet[..len]);
            assert!(opened[len..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn padding_is_to_sixteen_and_never_beyond_the_mtu() {
        for mtu in [1299, 1408, 1420, 9000] {
            for len in 0..=mtu {
                let padded = padded_len(len, mtu);
                assert!(
                    padded >= len && padded <= mtu && padded - len < 16,
                    "{len} of {mtu} became {padded}"
                );
                assert!(padded.is_multiple_of(16) || padded == mtu);
            }
        }
        assert_eq!(padded_len(1500, 1408), 1500, "what is too long already is not made longer");
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused_and_changes_nothing() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let mut datagram = [0; 64];
        let len = near.seal(b"twelve bytes", 16, &mut datagram).unwrap();
        for bit in 128..len * 8 {
            let mut forged = datagram;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(far.open(0, &mut forged[..len], now), Err(DropReason::BadSeal), "bit {bit}");
        }
        assert_eq!(far.open(1, &mut { datagram }[..len], now), Err(DropReason::BadSeal), "other counter");
        assert!(far.open(0, &mut datagram[..len], now).is_ok(), "the window did not move");
    }

    #[test]
    fn a_datagram_opens_once() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let mut datagram = [0; 64];
        let len = near.seal(b"once", 16, &mut datagram).unwrap();
        let mut copy = datagram;
        assert!(far.open(0, &mut datagram[..len], now).is_ok());
        assert_eq!(far.open(0, &mut copy[..len], now), Err(DropReason::Replayed));
    }

    #[test]
    fn a_session_dies_after_180_seconds_both_ways() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let mut datagram = [0; 64];
        let len = near.seal(b"late", 16, &mut datagram).unwrap();
        let last = now + Duration::from_secs(180) - Duration::from_millis(1);
        let dead = now + Duration::from_secs(180);
        assert!(near.can_seal(last) && !near.can_seal(dead));
        assert_eq!(far.open(0, &mut { datagram }[..len], dead), Err(DropReason::SessionExpired));
        assert!(far.open(0, &mut datagram[..len], last).is_ok());
    }

    #[test]
    fn the_last_counter_is_below_the_limit() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        near.preset_counter(REJECT_AFTER_MESSAGES - 10);
        let mut datagram = [0; 64];
        for counter in REJECT_AFTER_MESSAGES - 10..REJECT_AFTER_MESSAGES {
            assert!(near.can_seal(now));
            let len = near.seal(b"last", 16, &mut datagram).unwrap();
            assert!(far.open(counter, &mut datagram[..len], now).is_ok());
        }
        assert!(!near.can_seal(now));
        assert_eq!(near.seal(b"beyond", 16, &mut datagram), Err(DropReason::SessionExpired));
        assert_eq!(near.counter(), REJECT_AFTER_MESSAGES);
    }

    #[test]
    fn a_buffer_that_is_too_small_is_refused_without_using_a_counter() {
        let (mut near, _) = pair(test_epoch());
        for len in 0..16 + 16 + 16 {
            let mut datagram = vec![0; len];
            assert_eq!(near.seal(b"twelve bytes", 16, &mut datagram), Err(DropReason::BufferTooSmall));
        }
        assert_eq!(near.counter(), 0);
    }
}
