//! From the network to TUN: a datagram is told apart, opened, its packet's source checked, and the packet judged.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::ops::Range;

use crate::counts::PathKind;
use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::filter::Direction;
use crate::handshake::Job;
use crate::handshake::cookie;
use crate::key::NodeId;
use crate::message::{self, COOKIE_REPLY_LEN, INITIATION_LEN, Message, RESPONSE_LEN};
use crate::notice::{self, Notice};
use crate::packet::Header;
use crate::path::{Channel, Hop, Path};
use crate::peer::{MAX_NOTICES, QueuedNotice};
use crate::relayed;
use crate::session::Position;
use crate::time::Now;
use crate::tunnel::{Event, Slot, Tunnel};

/// What became of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// It carried a packet, which lies in this range of the buffer now.
    Packet {
        /// Where the packet lies, padding cut off.
        range: Range<usize>,
        /// Who sent it: the owner of its source address.
        peer: NodeId,
    },
    /// It was for the protocol itself. There may be jobs, transmits and events now.
    Consumed,
}

impl Tunnel {
    /// Takes a datagram that came by `from`, and opens it in place.
    ///
    /// # Errors
    ///
    /// The reason for which it was dropped; it has been counted. Nothing is ever sent in reply.
    pub fn inbound(&mut self, datagram: &mut [u8], from: Hop, now: Now) -> Result<Inbound, DropReason> {
        self.unwrap(datagram, from, now).inspect_err(|&reason| self.drops.add(Direction::In, reason, 1))
    }

    /// Takes off a relay's header, if there is one and the relay was heard at `from`.
    fn unwrap(&mut self, datagram: &mut [u8], from: Hop, now: Now) -> Result<Inbound, DropReason> {
        let Some(number) = relayed::parse(datagram) else {
            let taken = self.sort(datagram, from.into(), now)?;
            self.count_received(from.into(), from, &taken);
            return Ok(taken);
        };
        let relay = self.relay_at(from).ok_or(DropReason::UnknownRelay)?;
        let inner = datagram.get_mut(relayed::HEADER_LEN..).ok_or(DropReason::UnknownMessage)?;
        let path = Path::Relay(Channel { relay, number });
        let taken = self.sort(inner, path, now)?;
        self.count_received(path, from, &taken);
        Ok(match taken {
            Inbound::Packet { range, peer } => {
                let moved = |at: usize| at.saturating_add(relayed::HEADER_LEN);
                Inbound::Packet { range: moved(range.start)..moved(range.end), peer }
            }
            Inbound::Consumed => Inbound::Consumed,
        })
    }

    #[inline]
    fn count_received(&mut self, path: Path, from: Hop, taken: &Inbound) {
        if let Inbound::Packet { range, .. } = taken {
            self.carried.add_received(PathKind::of(path, from), range.len());
        }
    }

    fn sort(&mut self, datagram: &mut [u8], from: Path, now: Now) -> Result<Inbound, DropReason> {
        match Message::parse(datagram)? {
            Message::Data { receiver, counter } => self.data(datagram, receiver, counter, from, now),
            Message::Initiation(message) => self.initiation(message, from),
            Message::Response(message) => self.response(message, from),
            Message::CookieReply(message) => self.cookie_reply(message, now),
        }
    }

    fn initiation(&mut self, message: &[u8; INITIATION_LEN], from: Path) -> Result<Inbound, DropReason> {
        if !self.stamp.verify(message) {
            return Err(DropReason::BadMac1);
        }
        self.push_job(Job::respond(self.worker, *message, from))?;
        Ok(Inbound::Consumed)
    }

    fn response(&mut self, message: &[u8; RESPONSE_LEN], from: Path) -> Result<Inbound, DropReason> {
        if !self.stamp.verify(message) {
            return Err(DropReason::BadMac1);
        }
        let (_, receiver, _) = message::response_fields(message);
        let slot = self.indices.get(receiver).ok_or(DropReason::UnknownIndex)?;
        let peer = self.peers.get(slot).ok_or(DropReason::UnknownIndex)?;
        let pending = peer.handshake.as_ref().filter(|pending| pending.index == Some(receiver));
        let id = pending.ok_or(DropReason::UnknownIndex)?.id;
        self.push_job(Job::finish(self.worker, peer.key, id, *message, from))?;
        Ok(Inbound::Consumed)
    }

    /// A peer under load wants proof that we receive where we send from. Says nothing about where the peer is (W21).
    fn cookie_reply(&mut self, message: &[u8; COOKIE_REPLY_LEN], now: Now) -> Result<Inbound, DropReason> {
        let (receiver, nonce, sealed) = message::cookie_reply_fields(message);
        let slot = self.indices.get(receiver).ok_or(DropReason::UnknownIndex)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::UnknownIndex)?;
        let mac1 = peer.last_mac1.ok_or(DropReason::BadCookieReply)?;
        let cookie =
            cookie::open_reply(&peer.stamp, &mac1, nonce, sealed).ok_or(DropReason::BadCookieReply)?;
        // One reply to each message: the next handshake message goes when its timer says so, and carries the cookie.
        peer.last_mac1 = None;
        peer.set_cookie(cookie, now.monotonic);
        Ok(Inbound::Consumed)
    }

    fn data(
        &mut self,
        datagram: &mut [u8],
        receiver: u32,
        counter: u64,
        from: Path,
        now: Now,
    ) -> Result<Inbound, DropReason> {
        let slot = self.indices.get(receiver).ok_or(DropReason::UnknownIndex)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::UnknownIndex)?;
        let (position, session) = peer.sessions.find_mut(receiver).ok_or(DropReason::UnknownIndex)?;
        let opened = session.open(counter, datagram, now.monotonic)?;

        // From here on the datagram is the peer's own, and new.
        let (id, mesh) = (peer.id, peer.mesh);
        peer.received_bytes = peer.received_bytes.saturating_add(datagram.len() as u64);
        if position == Position::Next {
            self.confirm(slot, from, now);
        }
        let plaintext = datagram.get(opened.clone()).ok_or(DropReason::MalformedPacket)?;
        let leads = notice::leads(plaintext);
        self.heard(slot, from, leads, now.monotonic);
        if let Path::Relay(channel) = from {
            self.touch_relay(channel.relay, now.monotonic);
        }
        self.keep_fresh_on_receive(slot, now);
        let is_notice = plaintext.first().is_some_and(|first| first >> 4 == notice::NIBBLE);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.last_received = Some(now.monotonic);
            peer.last_opened = Some(now.monotonic);
            peer.timers.authenticated_received(now.monotonic);
            let quiet = plaintext.is_empty() || (mesh && is_notice);
            if !quiet {
                peer.timers.data_received(now.monotonic);
                self.touch(slot, now.monotonic);
            }
        }
        self.reschedule(slot);

        if plaintext.is_empty() {
            return Ok(Inbound::Consumed);
        }
        if is_notice {
            let notice =
                if mesh { Notice::parse(plaintext)? } else { return Err(DropReason::NoticeFromStock) };
            self.notice(slot, notice, from, now)?;
            return Ok(Inbound::Consumed);
        }
        let header = Header::parse(plaintext)?;
        if self.allowed_ips.lookup(header.source) != Some(slot) {
            return Err(DropReason::SpoofedSource);
        }
        let pass = self.judge(slot, Direction::In, &header, plaintext, now)?;
        self.gate.passed(Direction::In, pass);
        let range = opened.start..opened.start.saturating_add(header.len);
        Ok(Inbound::Packet { range, peer: id })
    }

    fn notice(&mut self, slot: Slot, notice: Notice, from: Path, now: Now) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        match notice {
            Notice::EchoRequest { token, streamed, .. } => {
                peer.paths.probed(from, streamed, now.monotonic);
                if peer.notices.len() >= MAX_NOTICES {
                    return Err(DropReason::HeldTooMany);
                }
                let notice = Notice::EchoReply { token, seen_from: from.address() };
                peer.notices.push_back(QueuedNotice { notice, path: Some(from) });
                self.list(slot);
            }
            Notice::EchoReply { token, seen_from } => {
                if self.probe_answered(slot, from, token, now.monotonic) {
                    // Only now is it the answer to something that took this path.
                    if from.address().is_some() {
                        self.seen(slot, seen_from, now.monotonic);
                    }
                    return Ok(());
                }
                let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
                let awaited = peer.pings.iter().position(|ping| ping.token == token);
                let ping = awaited.and_then(|at| peer.pings.remove(at)).ok_or(DropReason::UnknownNotice)?;
                let rtt = now.monotonic.saturating_duration_since(ping.sent);
                peer.rtt = Some(rtt);
                let peer = peer.id;
                self.push_event(Event::Pong { peer, token, path: from, rtt });
            }
            Notice::Bind { target } => {
                let client = peer.id;
                self.push_event(Event::BindRequested { client, target });
            }
            Notice::Offer { candidates, answer } => self.offered(slot, &candidates, answer, now.monotonic),
            Notice::Bound { target, channel, present } => self.bound(slot, target, channel, present, now)?,
            Notice::BindRefused { target, refusal } => {
                self.bind_refused(slot, target, refusal, now.monotonic)?
            }
        }
        Ok(())
    }

    /// The initiator of a session that receives with it late in its life begins the next one, once (W1).
    fn keep_fresh_on_receive(&mut self, slot: Slot, now: Now) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let late =
            peer.sessions.current().is_some_and(|session| session.wants_rekey_on_receive(now.monotonic));
        if late && peer.timers.rekey_on_receive() {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
    }
}
