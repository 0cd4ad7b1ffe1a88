//! From the network to TUN: datagrams are told apart, those of one session opened as a run, each packet's source checked, and the
//! packet judged.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::ops::Range;

use ringmesh_aead::Cipher;

use crate::counts::PathKind;
use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::filter::{Direction, Neighbour, Passage};
use crate::handshake::Job;
use crate::handshake::cookie;
use crate::key::NodeId;
use crate::message::{
    self, COOKIE_REPLY_LEN, DATA_HEADER_LEN, INITIATION_LEN, KEEPALIVE_LEN, Message, RESPONSE_LEN, TAG_LEN,
};
use crate::notice::{self, Notice};
use crate::packet::Header;
use crate::path::{Channel, Hop, Path};
use crate::peer::{MAX_NOTICES, QueuedNotice};
use crate::relayed;
use crate::run::MAX_RUN;
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

/// What became of each datagram, in their order: its place among them, and what [`Tunnel::inbound`] would have said.
trait Answers: FnMut(usize, Result<Inbound, DropReason>) {}

impl<F: FnMut(usize, Result<Inbound, DropReason>)> Answers for F {}

/// Data messages of one session that came by one path, one behind the other.
struct Run<'a> {
    datagrams: &'a mut [u8],
    /// From the beginning of one datagram to that of the next.
    stride: usize,
    /// Bytes before each message: a relay's header, or none.
    front: usize,
    /// The session.
    receiver: u32,
    path: Path,
    from: Hop,
    /// The place of the first of them in their train.
    first: usize,
}

/// What is known of a run's sender, and was done for it so far.
struct Sender {
    slot: Slot,
    id: NodeId,
    mesh: bool,
    position: Position,
    path: Path,
    /// Whether anything of the run was authentic and new, and so what is noted once for all of it.
    heard: bool,
    /// Whether it was heard that packets take this path; none if that is to be told again.
    led: Option<bool>,
    /// Whether a packet came that deserves a sign of life.
    data: bool,
    neighbour: Neighbour,
    /// Bytes of the authentic datagrams.
    bytes: u64,
    /// Packets that passed, and their bytes.
    packets: u64,
    packets_len: usize,
}

impl<C: Cipher> Tunnel<C> {
    /// Takes a datagram that came by `from`, and opens it in place.
    ///
    /// # Errors
    ///
    /// The reason for which it was dropped; it has been counted. Nothing is ever sent in reply.
    pub fn inbound(&mut self, datagram: &mut [u8], from: Hop, now: Now) -> Result<Inbound, DropReason> {
        let mut answer = Ok(Inbound::Consumed);
        let stride = datagram.len();
        self.take_train(datagram, stride, from, now, &mut |_, said| answer = said);
        answer
    }

    /// Takes the datagrams of a train that came by `from`, one every `stride` bytes, and opens them in place. Tells for each that
    /// carried a packet, in their order, its place in the train and where in the datagram the packet lies.
    ///
    /// It is the same as taking one after the other. What is dropped has been counted, and nothing is ever sent in reply; there
    /// may be jobs, transmits and events.
    pub fn inbound_run(
        &mut self,
        train: &mut [u8],
        stride: usize,
        from: Hop,
        now: Now,
        deliver: &mut impl FnMut(usize, Range<usize>),
    ) {
        self.take_train(train, stride, from, now, &mut |index, said| {
            if let Ok(Inbound::Packet { range, .. }) = said {
                deliver(index, range);
            }
        });
    }

    fn take_train(
        &mut self,
        train: &mut [u8],
        stride: usize,
        from: Hop,
        now: Now,
        answers: &mut impl Answers,
    ) {
        // An empty datagram is one, too.
        let stride = if stride == 0 { train.len().max(1) } else { stride };
        let (mut rest, mut index) = (train, 0_usize);
        loop {
            let taken = self.take_some(rest, stride, index, from, now, answers);
            index = index.saturating_add(taken);
            rest = rest.get_mut(taken.saturating_mul(stride)..).unwrap_or_default();
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Takes the first datagram of those that are left of a train, and all that belong to one run with it; says how many.
    fn take_some(
        &mut self,
        rest: &mut [u8],
        stride: usize,
        index: usize,
        from: Hop,
        now: Now,
        answers: &mut impl Answers,
    ) -> usize {
        let first = rest.get(..stride).unwrap_or(rest);
        let (front, said) = match relayed::parse(first) {
            None => (0, Ok(Path::from(from))),
            Some(number) => {
                let relay = self.relay_at(from).ok_or(DropReason::UnknownRelay);
                (relayed::HEADER_LEN, relay.map(|relay| Path::Relay(Channel { relay, number })))
            }
        };
        let message = first.get(front..).unwrap_or_default();
        let said = said.and_then(|path| Ok((path, Message::parse(message)?)));
        let said = match said {
            Ok((path, Message::Data { receiver, .. })) => {
                let count = run_length(rest, stride, front);
                let len = rest.len().min(count.saturating_mul(stride));
                let datagrams = rest.get_mut(..len).unwrap_or_default();
                let run = Run { datagrams, stride, front, receiver, path, from, first: index };
                self.data(run, now, answers);
                return count;
            }
            Ok((path, Message::Initiation(message))) => self.initiation(message, path),
            Ok((path, Message::Response(message))) => self.response(message, path),
            Ok((_, Message::CookieReply(message))) => self.cookie_reply(message, now),
            Err(reason) => Err(reason),
        };
        answers(index, said.inspect_err(|&reason| self.drops.add(Direction::In, reason, 1)));
        1
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

    /// Opens a run, then takes what was in it, one after the other.
    fn data(&mut self, run: Run<'_>, now: Now, answers: &mut impl Answers) {
        let Run { datagrams, stride, front, receiver, path, from, first } = run;
        let slot = self.indices.get(receiver);
        let found = slot.and_then(|slot| {
            let peer = self.peers.get_mut(slot)?;
            let (position, session) = peer.sessions.find_mut(receiver)?;
            Some((Sender::new(slot, peer.id, peer.mesh, position, path), session))
        });
        let opened = found.ok_or(DropReason::UnknownIndex).and_then(|(sender, session)| {
            Ok((sender, session.open_run(datagrams, stride, front, now.monotonic)?))
        });
        let (mut sender, opened) = match opened {
            Ok(opened) => opened,
            Err(reason) => {
                for (index, _) in (first..).zip(datagrams.chunks(stride)) {
                    self.drops.add(Direction::In, reason, 1);
                    answers(index, Err(reason));
                }
                return;
            }
        };
        let start = front.saturating_add(DATA_HEADER_LEN);
        for (index, (datagram, opened)) in (first..).zip(datagrams.chunks(stride).zip(opened)) {
            let text = datagram.get(start..datagram.len().saturating_sub(TAG_LEN)).unwrap_or_default();
            let said = opened.and_then(|()| {
                let message_len = datagram.len().saturating_sub(front);
                self.authentic(&mut sender, text, message_len, now);
                self.packet(&mut sender, text, now)
            });
            let said =
                said.inspect_err(|&reason| self.drops.add(Direction::In, reason, 1)).map(|len| match len {
                    Some(len) => Inbound::Packet { range: start..start.saturating_add(len), peer: sender.id },
                    None => Inbound::Consumed,
                });
            answers(index, said);
        }
        self.note(&sender, from);
    }

    /// Notes that a datagram was the peer's own, and new. What is the same for all datagrams of a run is done for the first one:
    /// for the others it would change nothing.
    #[inline]
    fn authentic(&mut self, sender: &mut Sender, text: &[u8], message_len: usize, now: Now) {
        let Sender { slot, path, mesh, .. } = *sender;
        sender.bytes = sender.bytes.saturating_add(message_len as u64);
        let first = !std::mem::replace(&mut sender.heard, true);
        if first && sender.position == Position::Next {
            self.confirm(slot, path, now);
        }
        let leads = notice::leads(text);
        if sender.led.is_none_or(|led| leads && !led) {
            sender.led = Some(leads);
            self.heard(slot, path, leads, now.monotonic);
        }
        if first {
            if let Path::Relay(channel) = path {
                self.touch_relay(channel.relay, now.monotonic);
            }
            self.keep_fresh_on_receive(slot, now);
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.last_received = Some(now.monotonic);
                peer.last_opened = Some(now.monotonic);
                peer.timers.authenticated_received(now.monotonic);
            }
        }
        let quiet = text.is_empty() || (mesh && notice::is_own(text.first().copied()));
        if !quiet && !sender.data {
            sender.data = true;
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.timers.data_received(now.monotonic);
            }
            self.touch(slot, now.monotonic);
        }
    }

    /// Takes what was in a datagram: says how long the packet is that may pass, if it is one.
    #[inline]
    fn packet(&mut self, sender: &mut Sender, text: &[u8], now: Now) -> Result<Option<usize>, DropReason> {
        if notice::is_own(text.first().copied()) {
            if !text.is_empty() {
                // What it says may change whether the path is believed.
                sender.led = None;
                if !sender.mesh {
                    return Err(DropReason::NoticeFromStock);
                }
                self.notice(sender.slot, Notice::parse(text)?, sender.path, now)?;
            }
            return Ok(None);
        }
        let header = Header::parse(text)?;
        let pass = match sender.neighbour.pass_of(&header) {
            Some(pass) => pass,
            None => {
                sender.neighbour.forget();
                if self.allowed_ips.lookup(header.source) != Some(sender.slot) {
                    return Err(DropReason::SpoofedSource);
                }
                let passage = Passage { direction: Direction::In, header: &header, packet: text, packets: 1 };
                let pass = self.judge(sender.slot, passage, now)?;
                sender.neighbour.remember(&header, pass);
                pass
            }
        };
        self.gate.passed(Direction::In, pass, 1);
        sender.packets = sender.packets.saturating_add(1);
        sender.packets_len = sender.packets_len.saturating_add(header.len);
        Ok(Some(header.len))
    }

    /// Notes what a run came to.
    fn note(&mut self, sender: &Sender, from: Hop) {
        if !sender.heard {
            return;
        }
        if let Some(peer) = self.peers.get_mut(sender.slot) {
            peer.received_bytes = peer.received_bytes.saturating_add(sender.bytes);
        }
        self.carried.add_received(PathKind::of(sender.path, from), sender.packets, sender.packets_len);
        self.reschedule(sender.slot);
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

/// How many datagrams from the first one on are data messages of the same session that came by the same path: those that begin
/// with the same bytes as far as their counters.
fn run_length(train: &[u8], stride: usize, front: usize) -> usize {
    const COUNTER_AT: usize = 8;
    let same = train.get(..front.saturating_add(COUNTER_AT)).unwrap_or_default();
    let least = front.saturating_add(KEEPALIVE_LEN);
    let others = train.chunks(stride).skip(1).take(MAX_RUN - 1);
    let alike = others.take_while(|datagram| datagram.len() >= least && datagram.starts_with(same));
    alike.count().saturating_add(1)
}

impl Sender {
    fn new(slot: Slot, id: NodeId, mesh: bool, position: Position, path: Path) -> Self {
        Self {
            slot,
            id,
            mesh,
            position,
            path,
            heard: false,
            led: None,
            data: false,
            neighbour: Neighbour::default(),
            bytes: 0,
            packets: 0,
            packets_len: 0,
        }
    }
}
