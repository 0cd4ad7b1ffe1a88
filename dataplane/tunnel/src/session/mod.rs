//! A session: the keys of one handshake, used to seal and open datagrams until they are too old.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

mod replay;
mod slots;

use std::fmt;
use std::time::Instant;

use ringmesh_aead::{Cipher, Kernel, Opening, Sealing};

use crate::drop_reason::DropReason;
use crate::handshake::TransportKeys;
use crate::message;
use crate::run::{MAX_RUN, Packet, Shape};
use crate::timers::{REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_ON_RECEIVE_AFTER, REKEY_TIMEOUT};

use self::replay::ReplayWindow;
pub(crate) use self::slots::{Position, Sessions};

/// Messages after which either side starts a new handshake (whitepaper §6.1).
pub(crate) const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which a session is dead (whitepaper §6.1): no counter ever comes near to wrapping.
pub(crate) const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// What opening a run came to: for each datagram whether its text is the peer's and new.
pub(crate) type Opened = heapless::Vec<Result<(), DropReason>, MAX_RUN>;

/// One session: keys for both directions, their counters and the replay window.
#[repr(C)]
pub(crate) struct Session<C> {
    local_index: u32,
    remote_index: u32,
    created: Instant,
    /// The counter of the next datagram sealed: never used twice, so no nonce is.
    counter: u64,
    initiator: bool,
    sealing: C,
    opening: C,
    replay: ReplayWindow,
}

impl<C: Cipher> Session<C> {
    /// Takes the keys of a finished handshake into use.
    pub(crate) fn new(
        local_index: u32,
        remote_index: u32,
        initiator: bool,
        keys: &TransportKeys,
        kernel: Kernel,
        now: Instant,
    ) -> Self {
        Self {
            local_index,
            remote_index,
            initiator,
            created: now,
            counter: 0,
            sealing: C::new(keys.sending(), kernel),
            opening: C::new(keys.receiving(), kernel),
            replay: ReplayWindow::new(),
        }
    }

    /// Seals packets out of place into `datagrams`, as they lie by their shape, with `front` before each message. Either all are
    /// sealed, each with a counter of its own, or nothing is used.
    pub(crate) fn seal_run(
        &mut self,
        packets: &[Packet<'_>],
        shape: &Shape,
        front: &[u8],
        datagrams: &mut [u8],
    ) -> Result<(), DropReason> {
        let datagrams = datagrams.get_mut(..shape.len).ok_or(DropReason::BufferTooSmall)?;
        let first = self.counter;
        let next = first.checked_add(packets.len() as u64).filter(|&next| next <= REJECT_AFTER_MESSAGES);
        let next = next.ok_or(DropReason::SessionExpired)?;
        let mut run = heapless::Vec::<Sealing<'_>, MAX_RUN>::new();
        for ((packet, datagram), counter) in
            packets.iter().zip(datagrams.chunks_mut(shape.stride)).zip(first..next)
        {
            let (place, message) =
                datagram.split_at_mut_checked(front.len()).ok_or(DropReason::BufferTooSmall)?;
            place.copy_from_slice(front);
            let (header, out) = message.split_first_chunk_mut().ok_or(DropReason::BufferTooSmall)?;
            *header = message::data_header(self.remote_index, counter);
            let sealing = Sealing { head: packet.head, rest: packet.rest, out };
            run.push(sealing).map_err(|_| DropReason::PacketUnfit)?;
        }
        // Counted before use, so that not even a failure behind this could repeat a nonce.
        self.counter = next;
        self.sealing.seal_run(first, &mut run).map_err(|_| DropReason::BadSeal)
    }

    /// Opens datagrams in place that lie `stride` bytes apart, at most [`MAX_RUN`], with `front` bytes before each message. What
    /// fails changes nothing.
    ///
    /// # Errors
    ///
    /// When the session is too old to open anything.
    pub(crate) fn open_run(
        &mut self,
        datagrams: &mut [u8],
        stride: usize,
        front: usize,
        now: Instant,
    ) -> Result<Opened, DropReason> {
        if self.expired(now) {
            return Err(DropReason::SessionExpired);
        }
        let mut opened = Opened::new();
        let mut run = heapless::Vec::<Opening<'_>, MAX_RUN>::new();
        for datagram in datagrams.chunks_mut(stride).take(MAX_RUN) {
            let message = datagram.get_mut(front..).unwrap_or_default().split_first_chunk_mut();
            let fresh = message.ok_or(DropReason::UnknownMessage).and_then(|(header, bytes)| {
                let counter = message::data_counter(*header);
                self.replay.check(counter)?;
                Ok(Opening { counter, bytes, opened: false })
            });
            let fresh = fresh.and_then(|fresh| run.push(fresh).map_err(|_| DropReason::PacketUnfit));
            if opened.push(fresh).is_err() {
                break;
            }
        }
        self.opening.open_run(&mut run);
        for (one, opening) in opened.iter_mut().filter(|one| one.is_ok()).zip(&run) {
            *one = self.accept(opening);
        }
        Ok(opened)
    }

    /// Takes what was opened, if it was, and is not what another datagram of the run was already.
    fn accept(&mut self, opening: &Opening<'_>) -> Result<(), DropReason> {
        self.replay.check(opening.counter)?;
        if !opening.opened {
            return Err(DropReason::BadSeal);
        }
        // Only now is the counter the peer's and not a stranger's (W20).
        self.replay.accept(opening.counter);
        Ok(())
    }
}

impl<C> Session<C> {
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

    fn expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created) >= REJECT_AFTER_TIME
    }

    /// Pretends that this many datagrams were sealed.
    #[cfg(test)]
    pub(crate) fn preset_counter(&mut self, counter: u64) {
        self.counter = counter;
    }

    /// What was sealed and opened so far.
    #[cfg(test)]
    fn progress(&self) -> String {
        format!("{} sealed, {:?}", self.counter, self.replay)
    }

    /// The counter of the next datagram.
    #[cfg(test)]
    pub(crate) fn counter(&self) -> u64 {
        self.counter
    }
}

impl<C> fmt::Debug for Session<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("local_index", &self.local_index)
            .field("initiator", &self.initiator)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::time::Duration;

    use ringmesh_aead::Key;

    use super::*;
    use crate::message::{DATA_HEADER_LEN, TAG_LEN};
    use crate::run::padded_len;
    use crate::time::test_epoch;

    fn pair(now: Instant) -> (Session<Key>, Session<Key>) {
        let (ours, theirs) = ([1; 32], [2; 32]);
        let kernel = Kernel::Portable;
        let near = Session::new(10, 20, true, &TransportKeys::new(ours, theirs), kernel, now);
        let far = Session::new(20, 10, false, &TransportKeys::new(theirs, ours), kernel, now);
        (near, far)
    }

    /// Seals one packet; returns the datagram's length.
    fn seal(session: &mut Session<Key>, packet: &[u8], datagram: &mut [u8]) -> Result<usize, DropReason> {
        let packets = [Packet::whole(packet)];
        let shape = Shape::of(&packets, 0, 1408)?;
        session.seal_run(&packets, &shape, &[], datagram)?;
        Ok(shape.len)
    }

    /// Opens one datagram; returns where its packet lies.
    fn open(
        session: &mut Session<Key>,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Range<usize>, DropReason> {
        let len = datagram.len();
        session.open_run(datagram, len, 0, now)?[0].map(|()| DATA_HEADER_LEN..len - TAG_LEN)
    }

    /// Ten thousand peers may have three each; most of it is the replay window.
    #[test]
    fn a_session_takes_little_more_than_its_replay_window() {
        assert_eq!(size_of::<ReplayWindow>(), 1032);
        assert!(size_of::<Session<Key>>() <= 1536, "{}", size_of::<Session<Key>>());
    }

    #[test]
    fn every_length_seals_and_opens_to_itself() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let packet: Vec<u8> = (0..1408u32).map(|i| i as u8).collect();
        for len in 0..=packet.len() {
            let mut datagram = [0xff; 1408 + message::MAX_OVERHEAD];
            let padded = padded_len(len, 1408);
            let sealed = seal(&mut near, &packet[..len], &mut datagram).unwrap();
            assert_eq!(sealed, padded + 32);
            let opened = open(&mut far, &mut datagram[..sealed], now).unwrap();
            assert_eq!(opened.len(), padded);
            let opened = &datagram[opened];
            assert_eq!(&opened[..len], &packet[..len]);
            assert!(opened[len..].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_refused_and_changes_nothing() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let mut datagram = [0; 64];
        let len = seal(&mut near, b"twelve bytes", &mut datagram).unwrap();
        for bit in 128..len * 8 {
            let mut forged = datagram;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut far, &mut forged[..len], now), Err(DropReason::BadSeal), "bit {bit}");
        }
        let mut other = datagram;
        other[8] = 1;
        assert_eq!(open(&mut far, &mut other[..len], now), Err(DropReason::BadSeal), "other counter");
        assert!(open(&mut far, &mut datagram[..len], now).is_ok(), "the window did not move");
    }

    #[test]
    fn a_datagram_opens_once() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let mut datagram = [0; 64];
        let len = seal(&mut near, b"once", &mut datagram).unwrap();
        let mut copy = datagram;
        assert!(open(&mut far, &mut datagram[..len], now).is_ok());
        assert_eq!(open(&mut far, &mut copy[..len], now), Err(DropReason::Replayed));
    }

    #[test]
    fn a_session_dies_after_180_seconds_both_ways() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        let mut datagram = [0; 64];
        let len = seal(&mut near, b"late", &mut datagram).unwrap();
        let last = now + Duration::from_secs(180) - Duration::from_millis(1);
        let dead = now + Duration::from_secs(180);
        assert!(near.can_seal(last) && !near.can_seal(dead));
        assert_eq!(open(&mut far, &mut { datagram }[..len], dead), Err(DropReason::SessionExpired));
        assert!(open(&mut far, &mut datagram[..len], last).is_ok());
    }

    #[test]
    fn the_last_counter_is_below_the_limit() {
        let now = test_epoch();
        let (mut near, mut far) = pair(now);
        near.preset_counter(REJECT_AFTER_MESSAGES - 10);
        let mut datagram = [0; 64];
        for counter in REJECT_AFTER_MESSAGES - 10..REJECT_AFTER_MESSAGES {
            assert!(near.can_seal(now));
            let len = seal(&mut near, b"last", &mut datagram).unwrap();
            assert_eq!(message::data_counter(*datagram.first_chunk().unwrap()), counter);
            assert!(open(&mut far, &mut datagram[..len], now).is_ok());
        }
        assert!(!near.can_seal(now));
        assert_eq!(seal(&mut near, b"beyond", &mut datagram), Err(DropReason::SessionExpired));
        assert_eq!(near.counter(), REJECT_AFTER_MESSAGES);
    }

    #[test]
    fn a_buffer_that_is_too_small_is_refused_without_using_a_counter() {
        let (mut near, _) = pair(test_epoch());
        for len in 0..16 + 16 + 16 {
            let mut datagram = vec![0; len];
            assert_eq!(seal(&mut near, b"twelve bytes", &mut datagram), Err(DropReason::BufferTooSmall));
        }
        assert_eq!(near.counter(), 0);
    }
}
