//! From TUN to the network: a packet is routed and judged, once for all of its segments; runs of packets to one peer are sealed
//! and given a path, or held until there is a session.

use std::time::Instant;

use ringmesh_aead::Cipher;

use crate::counts::PathKind;
use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::filter::{Direction, Passage};
use crate::notice;
use crate::packet::Header;
use crate::path::{Hop, Path};
use crate::peer::MAX_HELD_PACKETS;
use crate::relayed;
use crate::run::{Packet, Shape};
use crate::time::Now;
use crate::tunnel::{Slot, Tunnel};

/// Twins of datagrams waiting to be sent; the rest go without.
pub(crate) const MAX_TWINS: usize = 128;

/// To whom packets go that have passed the filter. Good until anything else but packets and datagrams is given to the tunnel:
/// within a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route(Slot);

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Sealed: send the first `len` bytes of the buffer to `to`, a datagram every `stride` bytes.
    Send {
        /// Bytes of all datagrams.
        len: usize,
        /// Bytes of each datagram but the last, which may be shorter.
        stride: usize,
        /// Where they go.
        to: Hop,
    },
    /// Kept until there is a session, which was begun; they come out of `poll_transmit` then, one by one.
    Held,
}

/// Datagrams as they were sealed into a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// Bytes of all.
    pub(crate) len: usize,
    /// Bytes of each but the last.
    pub(crate) stride: usize,
    /// Where they go.
    pub(crate) to: Hop,
}

/// What sealing something means for the timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// An answer is to be expected.
    Data,
    /// None is: a keepalive, or a notice that answers.
    Quiet,
}

impl<C: Cipher> Tunnel<C> {
    /// Seals `packet` into `datagram`, which must have room for [`crate::message::MAX_OVERHEAD`] bytes more.
    ///
    /// # Errors
    ///
    /// The reason for which the packet was dropped; it has been counted.
    pub fn outbound(&mut self, packet: &[u8], datagram: &mut [u8], now: Now) -> Result<Outbound, DropReason> {
        let route = self.route(packet, 1, now)?;
        self.seal_run(route, &[Packet::whole(packet)], datagram, now)
    }

    /// Says to whom a packet goes, if it may: for all the segments that it is to be cut into, once. As many packets are counted.
    ///
    /// # Errors
    ///
    /// The reason for which all of them were dropped; they have been counted.
    pub fn route(&mut self, packet: &[u8], segments: usize, now: Now) -> Result<Route, DropReason> {
        let packets = segments as u64;
        self.judge_outbound(packet, packets, now)
            .inspect_err(|&reason| self.drops.add(Direction::Out, reason, packets))
    }

    fn judge_outbound(&mut self, packet: &[u8], packets: u64, now: Now) -> Result<Route, DropReason> {
        let header = Header::parse(packet)?;
        let slot = self.allowed_ips.lookup(header.destination).ok_or(DropReason::NoAllowedIp)?;
        let passage = Passage { direction: Direction::Out, header: &header, packet, packets };
        let pass = self.judge(slot, passage, now)?;
        self.gate.passed(Direction::Out, pass, packets);
        self.touch(slot, now.monotonic);
        Ok(Route(slot))
    }

    /// Seals packets that go the same way into `datagrams`, one behind the other: at most [`MAX_RUN`](crate::MAX_RUN), of equal
    /// length once padded, save the last, which may be shorter. The buffer must have room for
    /// [`crate::message::MAX_OVERHEAD`] bytes more for each.
    ///
    /// # Errors
    ///
    /// The reason for which all of them were dropped; they have been counted, and no counter of the session was used.
    pub fn seal_run(
        &mut self,
        route: Route,
        packets: &[Packet<'_>],
        datagrams: &mut [u8],
        now: Now,
    ) -> Result<Outbound, DropReason> {
        self.seal_or_hold(route.0, packets, datagrams, now)
            .inspect_err(|&reason| self.drops.add(Direction::Out, reason, packets.len() as u64))
    }

    fn seal_or_hold(
        &mut self,
        slot: Slot,
        packets: &[Packet<'_>],
        datagrams: &mut [u8],
        now: Now,
    ) -> Result<Outbound, DropReason> {
        if let Some(sealed) = self.seal(slot, packets, None, Sent::Data, datagrams, now)? {
            let Sealed { len, stride, to } = sealed;
            self.send_twins(slot, datagrams.get(..len).unwrap_or_default(), stride);
            return Ok(Outbound::Send { len, stride, to });
        }
        self.hold(slot, packets, now)?;
        Ok(Outbound::Held)
    }

    /// Seals packets for a peer by `path`, or by its endpoint; nothing if there is no session or no endpoint. What is of the peer,
    /// its session and its path is looked at once for all of them.
    pub(crate) fn seal(
        &mut self,
        slot: Slot,
        packets: &[Packet<'_>],
        path: Option<Path>,
        sent: Sent,
        datagrams: &mut [u8],
        now: Now,
    ) -> Result<Option<Sealed>, DropReason> {
        let peer = self.peers.get(slot).ok_or(DropReason::PeerRemoved)?;
        let Some(path) = path.or_else(|| peer.paths.selected()) else { return Ok(None) };
        let Some(hop) = self.hop(path, now.monotonic) else { return Ok(None) };
        let relay_header = header_of(path);
        let front = relay_header.as_ref().map_or::<&[u8], _>(&[], |header| header);
        let shape = Shape::of(packets, front.len(), self.mtu)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        let Some(session) = peer.sessions.current_mut().filter(|session| session.can_seal(now.monotonic))
        else {
            return Ok(None);
        };
        session.seal_run(packets, &shape, front, datagrams)?;
        let rekey = session.wants_rekey_on_send(now.monotonic);

        peer.sent_bytes += shape.len as u64;
        let first = packets.first().and_then(Packet::first_byte);
        if !notice::is_own(first) {
            self.carried.add_sent(PathKind::of(path, hop), packets.len() as u64, shape.packets_len);
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
        Ok(Some(Sealed { len: shape.len, stride: shape.stride, to: hop }))
    }

    /// Where a datagram for `path` leaves this machine; nothing if the path leads through a relay that is not reached.
    pub(crate) fn hop(&self, path: Path, now: Instant) -> Option<Hop> {
        let Path::Relay(channel) = path else { return path.hop() };
        self.relay_hop(self.relay_slot(channel.relay)?, now)
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
    fn send_twins(&mut self, slot: Slot, sent: &[u8], stride: usize) {
        let Some(peer) = self.peers.get(slot) else { return };
        let Some(twin) = peer.paths.twin() else { return };
        let front = peer.paths.selected().and_then(header_of).map_or(0, |header| header.len());
        for datagram in sent.chunks(stride).take(MAX_TWINS.saturating_sub(self.twins.len())) {
            let mut buffer = self.spare_buffers.pop().unwrap_or_default();
            buffer.clear();
            buffer.extend_from_slice(datagram.get(front..).unwrap_or_default());
            self.twins.push_back((twin, buffer));
        }
    }

    /// Judges a packet once more that was held: filter and flows may have changed. It was counted before.
    pub(crate) fn judge_held(&mut self, slot: Slot, packet: &[u8], now: Now) -> Result<(), DropReason> {
        let header = Header::parse(packet)?;
        let passage = Passage { direction: Direction::Out, header: &header, packet, packets: 1 };
        let _counted = self.judge(slot, passage, now)?;
        Ok(())
    }

    /// Keeps packets until there is a session, and sees to it that there will be one.
    fn hold(&mut self, slot: Slot, packets: &[Packet<'_>], now: Now) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        if !peer.has_path() {
            return Err(DropReason::NoPath);
        }
        for packet in packets {
            let mut buffer = if peer.held.len() >= MAX_HELD_PACKETS {
                self.drops.add(Direction::Out, DropReason::HeldTooMany, 1);
                peer.held.pop_front().unwrap_or_default()
            } else {
                self.spare_buffers.pop().unwrap_or_default()
            };
            buffer.clear();
            buffer.extend_from_slice(packet.head);
            buffer.extend_from_slice(packet.rest);
            peer.held.push_back(buffer);
        }
        if peer.lacks_only_a_path(now.monotonic) {
            // They go as soon as there is one; the session is good.
            peer.paths.wake(now.monotonic);
            self.reschedule(slot);
        } else {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
        Ok(())
    }
}

/// What goes in front of the message on this path.
const fn header_of(path: Path) -> Option<[u8; relayed::HEADER_LEN]> {
    match path {
        Path::Relay(channel) => Some(relayed::emit(channel.number)),
        Path::Udp(_) | Path::Link(_) => None,
    }
}

/// Writes what goes in front of the message; returns the length of that, and the rest of the buffer.
pub(crate) fn relay_header(path: Path, datagram: &mut [u8]) -> Result<(usize, &mut [u8]), DropReason> {
    let Some(header) = header_of(path) else { return Ok((0, datagram)) };
    let (place, rest) = datagram.split_first_chunk_mut().ok_or(DropReason::BufferTooSmall)?;
    *place = header;
    Ok((relayed::HEADER_LEN, rest))
}
