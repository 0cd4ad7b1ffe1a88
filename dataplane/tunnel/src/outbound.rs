//! From TUN to the network: a packet is routed, judged, sealed and given a path, or held until there is a session.

use std::time::Instant;

use crate::counts::PathKind;
use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::filter::Direction;
use crate::notice;
use crate::packet::Header;
use crate::path::{Hop, Path};
use crate::peer::MAX_HELD_PACKETS;
use crate::relayed;
use crate::session::padded_len;
use crate::time::Now;
use crate::tunnel::{Slot, Tunnel};

/// Twins of datagrams waiting to be sent; the rest go without.
pub(crate) const MAX_TWINS: usize = 128;

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Sealed: send the first `len` bytes of the buffer to `to`.
    Send {
        /// Bytes of the datagram.
        len: usize,
        /// Where it goes.
        to: Hop,
    },
    /// Kept until there is a session, which was begun; it comes out of `poll_transmit` then.
    Held,
}

/// What sealing something means for the timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// An answer is to be expected.
    Data,
    /// None is: a keepalive, or a notice that answers.
    Quiet,
}

impl Tunnel {
    /// Seals `packet` into `datagram`, which must have room for [`crate::message::MAX_OVERHEAD`] bytes more.
    ///
    /// # Errors
    ///
    /// The reason for which the packet was dropped; it has been counted.
    pub fn outbound(&mut self, packet: &[u8], datagram: &mut [u8], now: Now) -> Result<Outbound, DropReason> {
        self.route(packet, datagram, now).inspect_err(|&reason| self.drops.add(Direction::Out, reason, 1))
    }

    fn route(&mut self, packet: &[u8], datagram: &mut [u8], now: Now) -> Result<Outbound, DropReason> {
        let header = Header::parse(packet)?;
        let slot = self.allowed_ips.lookup(header.destination).ok_or(DropReason::NoAllowedIp)?;
        let pass = self.judge(slot, Direction::Out, &header, packet, now)?;
        self.gate.passed(Direction::Out, pass);
        self.touch(slot, now.monotonic);
        if let Some((len, to)) = self.seal(slot, packet, None, Sent::Data, datagram, now)? {
            self.send_twin(slot, datagram.get(..len).unwrap_or_default());
            return Ok(Outbound::Send { len, to });
        }
        self.hold(slot, packet, now)?;
        Ok(Outbound::Held)
    }

    /// Seals a packet for a peer by `path`, or by its endpoint; nothing if there is no session or no endpoint.
    pub(crate) fn seal(
        &mut self,
        slot: Slot,
        packet: &[u8],
        path: Option<Path>,
        sent: Sent,
        datagram: &mut [u8],
        now: Now,
    ) -> Result<Option<(usize, Hop)>, DropReason> {
        let peer = self.peers.get(slot).ok_or(DropReason::PeerRemoved)?;
        let Some(path) = path.or_else(|| peer.paths.selected()) else { return Ok(None) };
        let Some(hop) = self.hop(path, now.monotonic) else { return Ok(None) };
        let (header, place) = relay_header(path, datagram)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        let Some(session) = peer.sessions.current_mut().filter(|session| session.can_seal(now.monotonic))
        else {
            return Ok(None);
        };
        let len = session.seal(packet, padded_len(packet.len(), self.mtu), place)? + header;
        let rekey = session.wants_rekey_on_send(now.monotonic);

        peer.sent_bytes += len as u64;
        if !notice::is_own(packet) {
            self.carried.add_sent(PathKind::of(path, hop), packet.len());
        }
        peer.timers.authenticated_sent(now.monotonic);
        if sent == Sent::Data {
            peer.timers.data_sent(now.monotonic, &mut self.random);
        }
        if rekey {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
        if let (Path::Relay(channel), Sent::Data) = (path, sent) {
            self.touch_relay(channel.relay, now.monotonic);
        }
        self.reschedule(slot);
        Ok(Some((len, hop)))
    }

    /// Where a datagram for `path` leaves this machine; nothing if the path leads through a relay that is not reached.
    pub(crate) fn hop(&self, path: Path, now: Instant) -> Option<Hop> {
        let Path::Relay(channel) = path else { return path.hop() };
        let slot = self.peers.by_id(channel.relay).filter(|slot| self.relays.contains(slot))?;
        self.relay_hop(slot, now)
    }

    /// Where a relay is reached; nothing without a session with it, as it would not know us.
    pub(crate) fn relay_hop(&self, slot: Slot, now: Instant) -> Option<Hop> {
        let relay = self.peers.get(slot)?;
        relay.sessions.current().filter(|session| session.can_seal(now))?;
        // A relay is never reached through a relay.
        relay.paths.selected()?.hop()
    }

    /// While the path in use is in doubt, what was sealed goes by the second best as well: the peer's replay window drops
    /// whichever comes later.
    fn send_twin(&mut self, slot: Slot, sent: &[u8]) {
        let Some(peer) = self.peers.get(slot) else { return };
        let Some(twin) = peer.paths.twin() else { return };
        if self.twins.len() >= MAX_TWINS {
            return;
        }
        let sealed = match peer.paths.selected() {
            Some(Path::Relay(_)) => sent.get(relayed::HEADER_LEN..).unwrap_or_default(),
            Some(Path::Udp(_) | Path::Link(_)) | None => sent,
        };
        let mut buffer = self.spare_buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(sealed);
        self.twins.push_back((twin, buffer));
    }

    /// Judges a packet once more that was held: filter and flows may have changed. It was counted before.
    pub(crate) fn judge_held(&mut self, slot: Slot, packet: &[u8], now: Now) -> Result<(), DropReason> {
        let header = Header::parse(packet)?;
        let _counted = self.judge(slot, Direction::Out, &header, packet, now)?;
        Ok(())
    }

    /// Keeps a packet until there is a session, and sees to it that there will be one.
    fn hold(&mut self, slot: Slot, packet: &[u8], now: Now) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        if !peer.has_path() {
            return Err(DropReason::NoPath);
        }
        let mut buffer = if peer.held.len() >= MAX_HELD_PACKETS {
            self.drops.add(Direction::Out, DropReason::HeldTooMany, 1);
            peer.held.pop_front().unwrap_or_default()
        } else {
            self.spare_buffers.pop().unwrap_or_default()
        };
        buffer.clear();
        buffer.extend_from_slice(packet);
        peer.held.push_back(buffer);
        if peer.lacks_only_a_path(now.monotonic) {
            // It goes as soon as there is one; the session is good.
            peer.paths.wake(now.monotonic);
            self.reschedule(slot);
        } else {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
        Ok(())
    }
}

/// Writes what goes in front of the message; returns the length of that, and the rest of the buffer.
pub(crate) fn relay_header(path: Path, datagram: &mut [u8]) -> Result<(usize, &mut [u8]), DropReason> {
    let Path::Relay(channel) = path else { return Ok((0, datagram)) };
    let (header, rest) = datagram.split_first_chunk_mut().ok_or(DropReason::BufferTooSmall)?;
    *header = relayed::emit(channel.number);
    Ok((relayed::HEADER_LEN, rest))
}
