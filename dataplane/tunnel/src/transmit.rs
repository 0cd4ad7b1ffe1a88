//! What goes out that is no direct answer to a packet: handshakes, notices, what was held, keepalives and twins.

use std::collections::VecDeque;

use ringmesh_aead::Cipher;

use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::filter::Direction;
use crate::message::INITIATION_LEN;
use crate::notice::Notice;
use crate::outbound::{Sealed, Sent, relay_header};
use crate::path::{Hop, Path};
use crate::peer::{MAX_NOTICES, Ping, QueuedNotice};
use crate::run::Packet;
use crate::time::Now;
use crate::tunnel::{Slot, Tunnel};

/// Handshake messages waiting to be sent; beyond it they are dropped, and retried by their timers.
pub const MAX_WAITING_MESSAGES: usize = 1024;

/// A datagram that came out of [`Tunnel::poll_transmit`]: the first `len` bytes of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Bytes of the datagram.
    pub len: usize,
    /// Where it goes.
    pub to: Hop,
}

pub(crate) struct ControlMessage {
    bytes: [u8; INITIATION_LEN],
    len: u8,
    path: Path,
}

impl ControlMessage {
    /// Writes the message, behind a relay's header if need be; returns the length of both.
    fn emit(&self, datagram: &mut [u8]) -> Result<usize, DropReason> {
        let (header, rest) = relay_header(self.path, datagram)?;
        let len = usize::from(self.len);
        let (place, bytes) =
            rest.get_mut(..len).zip(self.bytes.get(..len)).ok_or(DropReason::BufferTooSmall)?;
        place.copy_from_slice(bytes);
        Ok(header + len)
    }
}

impl<C: Cipher> Tunnel<C> {
    /// Takes the next datagram to send that is not the direct answer to a packet: handshakes, keepalives, notices, and
    /// packets that were held. `datagram` must have room for [`crate::message::MAX_OVERHEAD`] bytes more than the MTU.
    pub fn poll_transmit(&mut self, datagram: &mut [u8], now: Now) -> Option<Transmit> {
        while let Some(message) = self.messages.pop_front() {
            let Some(to) = self.hop(message.path, now.monotonic) else {
                self.drops.add(Direction::Out, DropReason::NoPath, 1);
                continue;
            };
            match message.emit(datagram) {
                Ok(len) => return Some(Transmit { len, to }),
                Err(reason) => self.drops.add(Direction::Out, reason, 1),
            }
        }
        while let Some((path, sealed)) = self.twins.pop_front() {
            let sent = self.emit_twin(path, &sealed, datagram, now.monotonic);
            self.recycle(sealed);
            if sent.is_some() {
                return sent;
            }
        }
        while let Some(&slot) = self.listed.front() {
            match self.next_for_peer(slot, datagram, now) {
                Ok(Some(Sealed { len, to, .. })) => return Some(Transmit { len, to }),
                Ok(None) => {
                    self.listed.pop_front();
                    if let Some(peer) = self.peers.get_mut(slot) {
                        peer.listed = false;
                    }
                }
                Err(reason) => self.drops.add(Direction::Out, reason, 1),
            }
        }
        None
    }

    /// What goes to a peer next: notices, then packets in their order, then a keepalive if nothing else went.
    fn next_for_peer(
        &mut self,
        slot: Slot,
        datagram: &mut [u8],
        now: Now,
    ) -> Result<Option<Sealed>, DropReason> {
        let Some(peer) = self.peers.get_mut(slot) else { return Ok(None) };
        let can_seal = peer.sessions.current().is_some_and(|session| session.can_seal(now.monotonic));
        let by_its_own_path = peer.notices.front().is_some_and(|queued| queued.path.is_some());
        if !can_seal || (peer.paths.selected().is_none() && !by_its_own_path) {
            let waits = peer.owes_keepalive || !peer.notices.is_empty() || !peer.held.is_empty();
            if waits && !peer.lacks_only_a_path(now.monotonic) {
                self.begin_handshake(slot, Begin::Fresh, now);
            }
            return Ok(None);
        }
        while let Some(QueuedNotice { notice, path }) =
            self.peers.get_mut(slot).and_then(|peer| peer.notices.pop_front())
        {
            let sealed = self.seal_notice(slot, &notice, path, datagram, now)?;
            // A notice whose path is gone by now goes nowhere.
            if sealed.is_some() {
                return Ok(sealed);
            }
        }
        let Some(peer) = self.peers.get_mut(slot) else { return Ok(None) };
        if let Some(packet) = peer.held.pop_front() {
            peer.owes_keepalive = false;
            let sealed = match self.judge_held(slot, &packet, now) {
                Ok(()) => self.seal(slot, &[Packet::whole(&packet)], None, Sent::Data, datagram, now),
                Err(reason) => Err(reason),
            };
            self.recycle(packet);
            return sealed;
        }
        if std::mem::take(&mut peer.owes_keepalive) {
            return self.seal(slot, &[Packet::default()], None, Sent::Quiet, datagram, now);
        }
        Ok(None)
    }

    fn seal_notice(
        &mut self,
        slot: Slot,
        notice: &Notice,
        path: Option<Path>,
        datagram: &mut [u8],
        now: Now,
    ) -> Result<Option<Sealed>, DropReason> {
        let Some(peer) = self.peers.get_mut(slot) else { return Ok(None) };
        // The engine's own probes go by a path of their choice, and it keeps their tokens.
        if let (Notice::EchoRequest { token, .. }, None) = (notice, path) {
            if peer.pings.len() >= MAX_NOTICES {
                peer.pings.pop_front();
            }
            peer.pings.push_back(Ping { token: *token, sent: now.monotonic });
        }
        peer.owes_keepalive = false;
        // Whether probes are answered is the path engine's to watch; the last one before a rest may well be lost.
        let asks = notice.is_request() && path.is_none();
        let sent = if asks { Sent::Data } else { Sent::Quiet };
        let (bytes, len) = notice.emit();
        self.seal(slot, &[Packet::whole(&bytes[..len])], path, sent, datagram, now)
    }

    pub(crate) fn push_message(&mut self, message: &[u8], path: Path) {
        push_message(&mut self.messages, message, path);
    }
}

pub(crate) fn push_message(messages: &mut VecDeque<ControlMessage>, message: &[u8], path: Path) {
    if messages.len() >= MAX_WAITING_MESSAGES {
        return;
    }
    let mut bytes = [0; INITIATION_LEN];
    bytes[..message.len()].copy_from_slice(message);
    messages.push_back(ControlMessage { bytes, len: message.len() as u8, path });
}
