//! From TUN to the network: a packet is routed, sealed and given a path, or held until there is a session.

use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::packet::Header;
use crate::path::Path;
use crate::peer::MAX_HELD_PACKETS;
use crate::session::padded_len;
use crate::time::Now;
use crate::tunnel::{Slot, Tunnel};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Sealed: send the first `len` bytes of the buffer by `path`.
    Send {
        /// Bytes of the datagram.
        len: usize,
        /// Where it goes.
        path: Path,
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
        self.route(packet, datagram, now).inspect_err(|&reason| self.drops.add(reason))
    }

    fn route(&mut self, packet: &[u8], datagram: &mut [u8], now: Now) -> Result<Outbound, DropReason> {
        let header = Header::parse(packet)?;
        let slot = self.allowed_ips.lookup(header.destination).ok_or(DropReason::NoAllowedIp)?;
        if let Some((len, path)) = self.seal(slot, packet, None, Sent::Data, datagram, now)? {
            return Ok(Outbound::Send { len, path });
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
    ) -> Result<Option<(usize, Path)>, DropReason> {
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        let Some(path) = path.or(peer.endpoint) else { return Ok(None) };
        let Some(session) = peer.sessions.current_mut().filter(|session| session.can_seal(now.monotonic))
        else {
            return Ok(None);
        };
        let len = session.seal(packet, padded_len(packet.len(), self.mtu), datagram)?;
        let rekey = session.wants_rekey_on_send(now.monotonic);

        peer.sent_bytes += len as u64;
        peer.timers.authenticated_sent(now.monotonic);
        if sent == Sent::Data {
            peer.timers.data_sent(now.monotonic, &mut self.random);
        }
        if rekey {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
        self.reschedule(slot);
        Ok(Some((len, path)))
    }

    /// Keeps a packet until there is a session, and sees to it that there will be one.
    fn hold(&mut self, slot: Slot, packet: &[u8], now: Now) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        if !peer.has_path() {
            return Err(DropReason::NoPath);
        }
        let mut buffer = if peer.held.len() >= MAX_HELD_PACKETS {
            self.drops.add(DropReason::HeldTooMany);
            peer.held.pop_front().unwrap_or_default()
        } else {
            self.spare_buffers.pop().unwrap_or_default()
        };
        buffer.clear();
        buffer.extend_from_slice(packet);
        peer.held.push_back(buffer);
        self.begin_handshake(slot, Begin::Fresh, now);
        Ok(())
    }
}
