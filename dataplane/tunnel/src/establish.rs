//! How sessions come about: what to do with each result of the handshaker, and when to begin a handshake at all.

use ringmesh_aead::Cipher;

use crate::drop_reason::DropReason;
use crate::filter::Direction;
use crate::handshake::cookie::COOKIE_LIFETIME;
use crate::handshake::{HandshakeId, Job, TransportKeys};
use crate::key::PublicKey;
use crate::message::{self, INITIATION_LEN, INITIATION_NOISE_LEN, RESPONSE_LEN, RESPONSE_NOISE_LEN};
use crate::path::Path;
use crate::peer::PendingHandshake;
use crate::session::Session;
use crate::time::Now;
use crate::transmit::push_message;
use crate::tunnel::{Event, Slot, Tunnel};

/// Why a handshake is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// A packet or a timer wants a session.
    Fresh,
    /// The last initiation was not answered.
    Retry,
    /// The last initiation was not answered by the paths there were, and now there is another.
    Elsewhere,
    /// Our response was not confirmed: the peer may be unable to open it, so it is for us to begin.
    Insist,
}

impl<C: Cipher> Tunnel<C> {
    /// An initiation is ready: it gets its index and MACs, and goes wherever the peer may be.
    pub(crate) fn initiated(
        &mut self,
        key: PublicKey,
        id: HandshakeId,
        noise: &[u8; INITIATION_NOISE_LEN],
        now: Now,
    ) -> Result<(), DropReason> {
        let slot = self.peers.by_key(&key).ok_or(DropReason::PeerRemoved)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        let pending = peer.handshake.as_mut().filter(|pending| pending.id == id);
        let pending = pending.ok_or(DropReason::SupersededHandshake)?;
        let index = self.indices.insert(slot).ok_or(DropReason::NoFreeIndex)?;
        if let Some(old) = pending.index.replace(index) {
            self.indices.remove(old);
        }
        let mut message = message::initiation(index, noise);
        let cookie = peer.fresh_cookie(now.monotonic, COOKIE_LIFETIME).copied();
        peer.last_mac1 = Some(peer.stamp.seal(&mut message, cookie.as_ref()));
        let relays = self.relay_views(now.monotonic);
        let Some(peer) = self.peers.get_mut(slot) else { return Ok(()) };
        if let Some(pending) = peer.handshake.as_mut() {
            pending.message = Some(Box::new(message));
        }
        let paths = peer.initiation_paths(&relays, &mut self.budgets, now.monotonic);
        for path in paths.iter() {
            peer.sent_bytes += message.len() as u64;
            push_message(&mut self.messages, &message, path);
        }
        peer.timers.authenticated_sent(now.monotonic);
        self.reschedule(slot);
        // Nothing else would notice soon that a relay has forgotten us.
        for path in paths.iter() {
            if let Path::Relay(channel) = path {
                self.touch_relay(channel.relay, now.monotonic);
            }
        }
        Ok(())
    }

    /// A peer's initiation was read and answered: the session waits for its confirmation.
    pub(crate) fn responded(
        &mut self,
        key: PublicKey,
        from: Path,
        sender: u32,
        noise: &[u8; RESPONSE_NOISE_LEN],
        keys: &TransportKeys,
        now: Now,
    ) -> Result<(), DropReason> {
        let slot = self.peers.by_key(&key).ok_or(DropReason::PeerRemoved)?;
        self.give_way(slot);
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        let index = self.indices.insert(slot).ok_or(DropReason::NoFreeIndex)?;
        let session = Session::new(index, sender, false, keys, self.kernel, now.monotonic);
        let ended = peer.sessions.responded(session);
        let mut message = message::response(index, sender, noise);
        let cookie = peer.fresh_cookie(now.monotonic, COOKIE_LIFETIME).copied();
        peer.last_mac1 = Some(peer.stamp.seal(&mut message, cookie.as_ref()));
        peer.sent_bytes += message.len() as u64;
        peer.received_bytes += INITIATION_LEN as u64;
        peer.last_received = Some(now.monotonic);
        peer.timers.authenticated_received(now.monotonic);
        peer.timers.authenticated_sent(now.monotonic);
        peer.timers.responded(now.monotonic, peer.mesh, &mut self.random);
        peer.heard_at = Some(from);
        self.release(ended.into_iter().flatten());
        self.push_message(&message, from);
        self.reschedule(slot);
        Ok(())
    }

    /// Our initiation was answered: the session is there.
    pub(crate) fn finished(
        &mut self,
        key: PublicKey,
        id: HandshakeId,
        from: Path,
        sender: u32,
        keys: &TransportKeys,
        now: Now,
    ) -> Result<(), DropReason> {
        let slot = self.peers.by_key(&key).ok_or(DropReason::PeerRemoved)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::PeerRemoved)?;
        let pending = peer.handshake.take_if(|pending| pending.id == id);
        let pending = pending.ok_or(DropReason::SupersededHandshake)?;
        let index = pending.index.ok_or(DropReason::SupersededHandshake)?;
        let session = Session::new(index, sender, true, keys, self.kernel, now.monotonic);
        let fresh = peer.sessions.current().is_none();
        let ended = peer.sessions.initiated(session, now.monotonic);
        peer.received_bytes += RESPONSE_LEN as u64;
        peer.last_received = Some(now.monotonic);
        peer.last_handshake = Some(now.wall);
        peer.timers.authenticated_received(now.monotonic);
        peer.timers.session_made(now.monotonic);
        peer.timers.completed();
        // Whatever goes first confirms the session to the peer, so something must go.
        peer.owes_keepalive = true;
        let id = peer.id;
        self.release(ended.into_iter().flatten());
        self.handshakes.initiated(now.monotonic.saturating_duration_since(pending.begun));
        self.proved(slot, from, now);
        self.push_event(Event::Established { peer: id, initiator: true });
        self.list(slot);
        self.session_begun(slot, fresh, now);
        Ok(())
    }

    /// The initiator of the session we answered has used it: so shall we (W17).
    pub(crate) fn confirm(&mut self, slot: Slot, from: Path, now: Now) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let fresh = peer.sessions.current().is_none();
        let answered_there = peer.heard_at == Some(from);
        let ended = peer.sessions.confirm();
        peer.last_handshake = Some(now.wall);
        peer.timers.completed();
        let id = peer.id;
        self.release(ended.into_iter().flatten());
        // What we answered by this path came, or it would not be used.
        if answered_there {
            self.proved(slot, from, now);
        }
        self.handshakes.responded += 1;
        self.push_event(Event::Established { peer: id, initiator: false });
        self.list(slot);
        self.session_begun(slot, fresh, now);
    }

    /// When two of our nodes begin at once, the one with the greater key gives way, so that one session comes of it and not
    /// two. Stock peers forget their own initiation when they answer ours, so with them nobody may give way.
    fn give_way(&mut self, slot: Slot) {
        let Some(peer) = self.peers.get(slot) else { return };
        let yields = peer.handshake.as_ref().is_some_and(|pending| !pending.insist);
        if yields && peer.mesh && self.local > peer.key {
            self.end_handshake(slot);
        }
    }

    /// Asks the handshaker for an initiation, unless the last one is too recent (W4).
    pub(crate) fn begin_handshake(&mut self, slot: Slot, why: Begin, now: Now) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !peer.has_path() {
            self.drop_held(slot, DropReason::NoPath);
            return;
        }
        if why == Begin::Fresh && !peer.timers.retrying() {
            peer.timers.restart_attempt();
        }
        let at_once = matches!(why, Begin::Insist | Begin::Elsewhere);
        if at_once || peer.timers.may_initiate(now.monotonic, &mut self.random) {
            peer.timers.initiated(now.monotonic, &mut self.random);
            self.last_handshake_id += 1;
            let id = HandshakeId(self.last_handshake_id);
            let job = Job::initiate(self.worker, peer.key, id);
            let old = peer.handshake.take();
            let goes_on = matches!(why, Begin::Retry | Begin::Elsewhere);
            let insisted = goes_on && old.as_ref().is_some_and(|old| old.insist);
            let insist = why == Begin::Insist || insisted;
            let doubt = goes_on && old.as_ref().is_some_and(|old| old.doubt);
            // Of one attempt, however many initiations it takes.
            let begun = old.as_ref().map_or(now.monotonic, |old| old.begun);
            peer.handshake = Some(PendingHandshake { id, index: None, insist, doubt, message: None, begun });
            self.handshakes.unanswered += u64::from(old.is_some() && !at_once);
            if let Some(index) = old.and_then(|old| old.index) {
                self.indices.remove(index);
            }
            // A full queue is a lost initiation: the next one is timed already.
            if let Err(reason) = self.push_job(job) {
                self.drops.add(Direction::Out, reason, 1);
            }
        }
        self.reschedule(slot);
    }

    pub(crate) fn end_handshake(&mut self, slot: Slot) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(pending) = peer.handshake.take() else { return };
        let job = Job::abandon(self.worker, peer.key);
        if let Some(index) = pending.index {
            self.indices.remove(index);
        }
        // If the queue is full, the handshaker's next handshake with the peer takes the old one's place.
        if let Err(reason) = self.push_job(job) {
            self.drops.add(Direction::Out, reason, 1);
        }
    }
}
