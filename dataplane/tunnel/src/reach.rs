//! How peers are reached: the tunnel's side of the path engine, and a relay's side of its channels.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_aead::Cipher;

use crate::drop_reason::DropReason;
use crate::establish::Begin;
use crate::ip::Prefix;
use crate::key::NodeId;
use crate::netmap::candidate_is_allowed;
use crate::notice::{BindRefusal, MAX_OFFERED, Notice, Offered};
use crate::outbound::relay_header;
use crate::path::set::{Action, Context, LEAST_PAUSE, RelayView, RelayViews};
use crate::path::{Carrier, Hop, Link, Path, PathFailure};
use crate::peer::{ACTIVE_FOR, MAX_NOTICES, QueuedNotice};
use crate::time::Now;
use crate::transmit::Transmit;
use crate::tunnel::{Event, Slot, Tunnel};

/// Wishes about links waiting to be taken; the oldest is dropped for the next, and repeated by its timer.
const MAX_WAITING_DIALS: usize = 256;
/// Notices waiting for a relay: it may be asked for channels to many peers at once.
const MAX_RELAY_NOTICES: usize = 256;
/// After so long the answer to an initiation is taken for lost when another path appears, which is then tried at once.
const ANSWER_OVERDUE: Duration = Duration::from_millis(1500);

/// What a caller is to do about links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    /// Open a stream to a peer; answer with [`Tunnel::link_opened`] or [`Tunnel::link_failed`].
    Open {
        /// To whom.
        peer: NodeId,
        /// The number of one of its [`LinkCandidate`](crate::LinkCandidate)s.
        candidate: u32,
        /// What the stream is to be made of.
        carrier: Carrier,
    },
    /// Close a stream: it is not needed, or nothing comes through it.
    Close {
        /// Which.
        link: Link,
    },
}

/// What a relay answers to a node that asks for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BindAnswer {
    /// There is one.
    Bound {
        /// The asker's name for the pair.
        channel: u32,
        /// Whether the other node is at the relay now. When that changes, the same is said again.
        present: bool,
    },
    /// There is none.
    Refused(BindRefusal),
}

impl<C: Cipher> Tunnel<C> {
    /// Takes the next wish about links.
    pub fn poll_dial(&mut self) -> Option<Dial> {
        self.dials.pop_front()
    }

    pub(crate) fn push_dial(&mut self, dial: Dial) {
        if self.dials.len() >= MAX_WAITING_DIALS {
            self.dials.pop_front();
        }
        self.dials.push_back(dial);
    }

    /// A stream that [`Dial::Open`] asked for is there.
    pub fn link_opened(&mut self, peer: NodeId, candidate: u32, link: Link, now: Now) {
        let Some(slot) = self.peers.by_id(peer) else { return self.push_dial(Dial::Close { link }) };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.paths.link_opened(candidate, link, now.monotonic) {
            self.path_appeared(slot, Path::Link(link), now);
        } else {
            self.push_dial(Dial::Close { link });
        }
    }

    /// A stream that [`Dial::Open`] asked for cannot be had now.
    pub fn link_failed(&mut self, peer: NodeId, candidate: u32, now: Now) {
        let Some(slot) = self.peers.by_id(peer) else { return };
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.paths.link_failed(candidate, now.monotonic);
        }
        self.reschedule(slot);
    }

    /// A stream has ended, whoever opened it.
    pub fn link_closed(&mut self, link: Link, now: Now) {
        let path = Path::Link(link);
        for slot in self.slots() {
            let Some(peer) = self.peers.get_mut(slot) else { continue };
            peer.heard_at = peer.heard_at.filter(|&heard_at| heard_at != path);
            if peer.paths.link_closed(link, now.monotonic) {
                self.drive(slot, now);
            }
        }
    }

    /// This machine's addresses or routes changed: every path over UDP is doubted and tried at once, and none is given up.
    pub fn network_changed(&mut self, now: Now) {
        self.reflexive.clear();
        for slot in self.slots() {
            let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.mesh) else { continue };
            peer.seen_as = [None; 2];
            peer.paths.network_changed(now.monotonic);
            self.reschedule(slot);
        }
    }

    /// Tells where this node may be reached besides what its relays see: offered to peers inside sessions, 16 at most.
    pub fn set_own_candidates(&mut self, candidates: &[SocketAddr]) {
        self.own_candidates.clear();
        self.own_candidates.extend(candidates.iter().take(MAX_OFFERED));
    }

    /// Tells the network's own ranges: no address in them is a candidate.
    pub fn set_pools(&mut self, pools: &[Prefix]) {
        self.pools = pools.to_vec();
    }

    /// Where a peer is, if it is reached without a relay: the path that its own packets take, as far as we know.
    #[must_use]
    pub fn hop_to(&self, peer: NodeId) -> Option<Hop> {
        self.peers.get(self.peers.by_id(peer)?)?.paths.selected()?.hop()
    }

    /// Answers [`Event::BindRequested`], or tells anew when the other node came or went.
    pub fn answer_bind(&mut self, client: NodeId, target: NodeId, answer: BindAnswer) {
        let notice = match answer {
            BindAnswer::Bound { channel, present } => Notice::Bound { target, channel, present },
            BindAnswer::Refused(refusal) => Notice::BindRefused { target, refusal },
        };
        let Some(slot) = self.peers.by_id(client) else { return };
        if let Some(peer) = self.peers.get_mut(slot)
            && peer.mesh
            && peer.notices.len() < MAX_RELAY_NOTICES
        {
            peer.notices.push_back(QueuedNotice { notice, path: None });
            self.list(slot);
        }
    }

    fn slots(&self) -> Vec<Slot> {
        self.peers.iter().map(|(slot, _)| slot).collect()
    }

    /// The relay that is heard at `from`.
    pub(crate) fn relay_at(&self, from: Hop) -> Option<NodeId> {
        let relays = self.relays.iter().filter_map(|&slot| self.peers.get(slot));
        relays.into_iter().find(|relay| relay.paths.is_heard_at(from.into())).map(|relay| relay.id)
    }

    /// The relays, as paths through them see them.
    pub(crate) fn relay_views(&self, now: Instant) -> RelayViews {
        let view = |&slot: &Slot| {
            let id = self.peers.get(slot)?.id;
            Some(RelayView { id, hop: self.relay_hop(slot, now) })
        };
        self.relays.iter().filter_map(view).collect()
    }

    /// A packet goes to a peer or came from it: it matters how it is reached.
    pub(crate) fn touch(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let rested = peer.active.is_none_or(|at| now.saturating_duration_since(at) >= ACTIVE_FOR);
        peer.active = Some(now);
        if rested && peer.mesh {
            peer.paths.revive(now);
            self.reschedule(slot);
        }
    }

    /// Which of the relays this is.
    pub(crate) fn relay_slot(&self, relay: NodeId) -> Option<Slot> {
        // There are four at most: shorter than any search.
        self.relays.iter().copied().find(|&slot| self.peers.get(slot).is_some_and(|peer| peer.id == relay))
    }

    /// A packet goes through a relay.
    pub(crate) fn touch_relay(&mut self, relay: NodeId, now: Instant) {
        if let Some(slot) = self.relay_slot(relay) {
            self.touch(slot, now);
        }
    }

    /// Something authentic and new came from a peer (W21). `leads`: the peer's packets take this path.
    pub(crate) fn heard(&mut self, slot: Slot, path: Path, leads: bool, now: Instant) {
        // What a relay took its header off is not straight from the peer, whatever it looks like.
        let usual = self.peers.get(slot).and_then(|peer| peer.paths.selected()) == Some(path);
        if let Path::Udp(address) = path
            && !usual
            && let Some(relay) = self.relay_at(Hop::Udp(address))
            && self.peers.get(slot).is_some_and(|peer| peer.id != relay)
        {
            return;
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let changed = if peer.mesh {
            let follow = !peer.relay && !peer.is_wanted(now);
            peer.paths.heard(path, leads, follow, now)
        } else {
            peer.paths.follow(path, now)
        };
        if changed {
            self.path_selected(slot, now);
        }
    }

    /// A handshake went both ways by `path`.
    pub(crate) fn proved(&mut self, slot: Slot, path: Path, now: Now) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let changed = if peer.mesh {
            peer.paths.proved(path, now.monotonic)
        } else {
            peer.paths.follow(path, now.monotonic)
        };
        if changed {
            self.path_selected(slot, now.monotonic);
        }
    }

    /// There is a session; `fresh`: there was none.
    pub(crate) fn session_begun(&mut self, slot: Slot, fresh: bool, now: Now) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (id, relay) = (peer.id, peer.relay);
        if peer.mesh {
            if fresh {
                peer.paths.revive(now.monotonic);
            }
            peer.paths.wake(now.monotonic);
        }
        self.reschedule(slot);
        if relay {
            // It may be another process than before, which knows no channels.
            for other in self.slots() {
                if let Some(peer) = self.peers.get_mut(other).filter(|peer| peer.mesh && !peer.relay) {
                    peer.paths.rebind(id, now.monotonic);
                    self.reschedule(other);
                }
            }
        }
    }

    /// Packets to a peer take another path.
    fn path_selected(&mut self, slot: Slot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (id, relay) = (peer.id, peer.relay);
        if peer.mesh {
            // Not in this turn of `handle_deadline`, which would come back here.
            peer.paths.wake(now + LEAST_PAUSE);
        }
        let Some(path) = peer.paths.selected() else { return };
        self.push_event(Event::PathSelected { peer: id, path });
        // What was held for want of a path goes now.
        self.list(slot);
        self.reschedule(slot);
        if relay {
            // Every path through it is another one now.
            for other in self.slots() {
                let Some(peer) = self.peers.get_mut(other) else { continue };
                if let Some(path) = peer.paths.relayed_by(id) {
                    peer.paths.wake(now);
                    self.repeat_initiation(other, path);
                    self.list(other);
                    self.reschedule(other);
                }
            }
        }
    }

    /// There is another path to a peer: what waits for a session need not wait for a timer.
    fn path_appeared(&mut self, slot: Slot, path: Path, now: Now) {
        let Some(peer) = self.peers.get(slot) else { return };
        let waits = peer.handshake.is_some() && peer.timers.retrying();
        let no_session = peer.sessions.current().is_none() && !peer.timers.retrying();
        if waits && peer.timers.since_handshake_sent(now.monotonic) >= Some(ANSWER_OVERDUE) {
            // The peer may have got the last one, and its answer was lost: it would drop the same again as old.
            self.begin_handshake(slot, Begin::Elsewhere, now);
        } else if waits {
            self.repeat_initiation(slot, path);
        } else if no_session && (peer.relay || !peer.held.is_empty() || !peer.notices.is_empty()) {
            self.begin_handshake(slot, Begin::Fresh, now);
        }
        self.reschedule(slot);
    }

    /// Sends the initiation that waits for its answer by one more path: the same message, so that whichever copy comes later is
    /// dropped as old.
    fn repeat_initiation(&mut self, slot: Slot, path: Path) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        // One that nobody waits for any more, because the peer's own came first, would only make another session.
        let live = peer.handshake.as_ref().filter(|_| peer.timers.retrying());
        let pending = live.and_then(|pending| pending.message.clone());
        if let Some(message) = pending {
            peer.sent_bytes += message.len() as u64;
            self.push_message(&*message, path);
        }
    }

    /// Does what a peer's paths want to have done now.
    pub(crate) fn drive(&mut self, slot: Slot, now: Now) {
        let relays = self.relay_views(now.monotonic);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !peer.mesh {
            return peer.paths.rest();
        }
        let mut actions = std::mem::take(&mut self.actions);
        let context = Context {
            relays: &relays,
            wanted: peer.is_wanted(now.monotonic),
            kept: peer.relay,
            session: peer.sessions.current().is_some_and(|session| session.can_seal(now.monotonic)),
        };
        let random = &mut self.random;
        let token = || random.bytes().ok().map(u64::from_be_bytes);
        let outcome = peer.paths.due(context, &mut self.budgets, token, &mut actions, now.monotonic);
        let direct = matches!(peer.paths.selected(), Some(Path::Udp(_)));
        let searching = context.wanted && !context.kept && !direct;
        actions.drain(..).for_each(|action| self.act(slot, action, now.monotonic));
        self.actions = actions;
        if searching {
            // The way to the relays matters as much; one that restarted must be noticed.
            relays.iter().for_each(|relay| self.touch_relay(relay.id, now.monotonic));
        }
        if outcome.changed {
            self.path_selected(slot, now.monotonic);
        }
        if outcome.lost {
            // The peer may have forgotten the session. If it only was out of reach, its first answer ends the attempt.
            let pending = self.peers.get(slot).is_some_and(|peer| peer.handshake.is_some());
            self.begin_handshake(slot, Begin::Fresh, now);
            if let Some(handshake) =
                self.peers.get_mut(slot).filter(|_| !pending).and_then(|peer| peer.handshake.as_mut())
            {
                handshake.doubt = true;
            }
        }
        self.reschedule(slot);
    }

    fn act(&mut self, slot: Slot, action: Action, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let id = peer.id;
        match action {
            Action::Probe { path, selected, streamed, token } => {
                if peer.notices.len() < MAX_NOTICES {
                    let notice = Notice::EchoRequest { token, selected, streamed };
                    peer.notices.push_back(QueuedNotice { notice, path: Some(path) });
                    self.list(slot);
                }
            }
            Action::Bind { relay } => {
                self.touch_relay(relay, now);
                let Some(relay) = self.peers.by_id(relay) else { return };
                if let Some(peer) = self.peers.get_mut(relay)
                    && peer.notices.len() < MAX_RELAY_NOTICES
                {
                    peer.notices.push_back(QueuedNotice { notice: Notice::Bind { target: id }, path: None });
                    self.list(relay);
                }
            }
            Action::Open(candidate) => {
                let (candidate, carrier) = (candidate.number, candidate.carrier);
                self.push_dial(Dial::Open { peer: id, candidate, carrier });
            }
            Action::Close(link) => self.push_dial(Dial::Close { link }),
            Action::Offer => self.offer(slot, true),
        }
    }

    /// Tells a peer where we may be reached.
    fn offer(&mut self, slot: Slot, answer: bool) {
        let mut candidates = Offered::new();
        for &address in self.reflexive.values().chain(&self.own_candidates) {
            if !candidates.contains(&address) && candidates.push(address).is_err() {
                break;
            }
        }
        if let Some(peer) = self.peers.get_mut(slot)
            && peer.notices.len() < MAX_NOTICES
        {
            peer.notices.push_back(QueuedNotice { notice: Notice::Offer { candidates, answer }, path: None });
            self.list(slot);
        }
    }

    /// A peer tells where it may be reached, and tries us now: so do we, and answer if asked.
    pub(crate) fn offered(&mut self, slot: Slot, candidates: &[SocketAddr], answer: bool, now: Instant) {
        let pools = &self.pools;
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| !peer.relay) else { return };
        let allowed = candidates.iter().copied().filter(|&address| candidate_is_allowed(address, pools));
        peer.paths.offered(allowed, now);
        if answer {
            self.offer(slot, false);
        }
        self.reschedule(slot);
    }

    /// A peer tells from where it saw one of our probes come.
    pub(crate) fn seen(&mut self, slot: Slot, seen_from: Option<SocketAddr>, now: Instant) {
        let Some(address) = seen_from else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let family = usize::from(address.is_ipv6());
        if peer.seen_as[family].replace(address) == Some(address) {
            return;
        }
        let (id, relay) = (peer.id, peer.relay);
        if relay && candidate_is_allowed(address, &self.pools) {
            self.reflexive.insert((slot, address.is_ipv6()), address);
            self.push_event(Event::SeenFrom { peer: id, address });
            for other in self.slots() {
                if let Some(peer) =
                    self.peers.get_mut(other).filter(|peer| !peer.relay && peer.is_wanted(now))
                {
                    peer.paths.offer_soon(now);
                    self.reschedule(other);
                }
            }
        }
    }

    /// Whether this answers a probe of the engine's.
    pub(crate) fn probe_answered(&mut self, slot: Slot, path: Path, token: u64, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        let Some(answered) = peer.paths.answered(path, token, now) else { return false };
        if peer.handshake.as_ref().is_some_and(|handshake| handshake.doubt) {
            peer.timers.abandon_attempt();
            self.end_handshake(slot);
        }
        if answered.changed {
            self.path_selected(slot, now);
        }
        self.reschedule(slot);
        true
    }

    /// A relay gave a channel to another node.
    pub(crate) fn bound(
        &mut self,
        relay: Slot,
        target: NodeId,
        channel: u32,
        present: bool,
        now: Now,
    ) -> Result<(), DropReason> {
        let relay = self.peers.get(relay).filter(|peer| peer.relay).ok_or(DropReason::UnknownNotice)?.id;
        let slot = self.peers.by_id(target).ok_or(DropReason::UnknownNotice)?;
        let peer = self.peers.get_mut(slot).filter(|peer| peer.mesh).ok_or(DropReason::UnknownNotice)?;
        if peer.paths.bound(relay, channel, present, now.monotonic)
            && let Some(path) = peer.paths.relayed_by(relay)
        {
            self.path_appeared(slot, path, now);
        }
        self.reschedule(slot);
        Ok(())
    }

    /// A relay gives no channel to another node.
    pub(crate) fn bind_refused(
        &mut self,
        relay: Slot,
        target: NodeId,
        refusal: BindRefusal,
        now: Instant,
    ) -> Result<(), DropReason> {
        let relay = self.peers.get(relay).filter(|peer| peer.relay).ok_or(DropReason::UnknownNotice)?.id;
        let slot = self.peers.by_id(target).ok_or(DropReason::UnknownNotice)?;
        let peer = self.peers.get_mut(slot).ok_or(DropReason::UnknownNotice)?;
        let failure = match refusal {
            BindRefusal::UnknownNode => PathFailure::RelayRefused,
            BindRefusal::Full => PathFailure::RelayFull,
        };
        peer.paths.bind_refused(relay, failure, now);
        self.reschedule(slot);
        Ok(())
    }

    /// Writes a twin for sending; nothing if its path is gone by now.
    pub(crate) fn emit_twin(
        &self,
        path: Path,
        sealed: &[u8],
        datagram: &mut [u8],
        now: Instant,
    ) -> Option<Transmit> {
        let to = self.hop(path, now)?;
        let (header, rest) = relay_header(path, datagram).ok()?;
        rest.get_mut(..sealed.len())?.copy_from_slice(sealed);
        Some(Transmit { len: header + sealed.len(), to })
    }
}
