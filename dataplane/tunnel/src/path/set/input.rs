//! What happens to paths: everything that is heard, opened, closed, bound, told or noticed.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::due::PROBE_INTERVAL;
use super::entry::{BACK_OFF, Entry};
use super::{DOUBT_AFTER, Lead, Paths};
use crate::key::NodeId;
use crate::path::{Candidate, Channel, Link, Origin, Path, PathFailure, PathState};

/// Between the first two answers of a path that may become the one in use.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);
/// Between two offers at least, whatever prompts them.
const LEAST_OFFER_PAUSE: Duration = Duration::from_secs(2);

/// What the answer to a probe came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// From the probe to its answer.
    pub(crate) took: Duration,
    /// Another path is selected: the peer was waited for there.
    pub(crate) changed: bool,
}

impl Paths {
    /// Something authentic and new came by `path`. `leads`: it tells that the peer's own packets take this path. `follow`: we do
    /// not probe this peer, so it is the one who knows. Returns whether the selected path changed.
    pub(crate) fn heard(&mut self, path: Path, leads: bool, follow: bool, now: Instant) -> bool {
        let at = self.position(path).unwrap_or_else(|| self.insert_heard(path, now));
        self.last_heard = at;
        let Some(entry) = self.entries.get_mut(at) else { return false };
        let proven = entry.proven || !matches!(path, Path::Udp(_));
        let first = entry.heard.replace(now).is_none();
        if !entry.verified || matches!(entry.state, PathState::Dead) {
            entry.verified = true;
            // The peer is there: no reason to wait for the next try.
            if !entry.probes.awaits() {
                entry.try_now(now);
            }
            self.wake(now);
        }
        if self.selected == Some(path) {
            if self.twin.is_some() && !self.is_suspect(path) {
                self.twin = None;
            }
            return false;
        }
        if first && leads {
            // Perhaps it has moved: then the path in use will not answer.
            self.doubt_selected(now);
        }
        let doubted = self.selected.is_none_or(|selected| self.is_doubted(selected, now));
        if self.selected.is_some() && !(leads && (follow || doubted)) {
            return false;
        }
        if proven {
            self.unproven_lead = None;
            return self.select(path, now);
        }
        // The source of a datagram can be forged: the peer is believed to be there when it answers from there.
        if leads && self.unproven_lead.is_none_or(|lead| lead.path != path) {
            self.unproven_lead = Some(Lead { path, follow });
            if let Some(entry) = self.entries.get_mut(at) {
                entry.try_now(now);
            }
            self.wake(now);
        }
        false
    }

    /// The selected path is asked at once whether it still works.
    fn doubt_selected(&mut self, now: Instant) {
        if let Some(entry) = self.selected.and_then(|path| self.by_path(path))
            && !entry.probes.awaits()
        {
            entry.next = Some(now);
            self.wake(now);
        }
    }

    /// A probe of the peer's came by `path`, and told whether it left the peer over a stream to the relay.
    pub(crate) fn probed(&mut self, path: Path, streamed: bool, now: Instant) {
        if let Some(entry) = self.by_path(path)
            && entry.peer_streams != streamed
        {
            entry.peer_streams = streamed;
            self.wake(now);
        }
    }

    /// A path that the peer was heard at and that nobody named.
    fn insert_heard(&mut self, path: Path, now: Instant) -> usize {
        match path {
            // Channels are named by the relay; the peer may have bound the pair before we did.
            Path::Relay(Channel { relay, number }) => {
                let known = self.entries.iter().position(|entry| entry.candidate == Candidate::Relay(relay));
                let at = known.unwrap_or_else(|| self.push(Candidate::Relay(relay), now));
                self.name_channel(at, number);
                let entry = &mut self.entries[at];
                if !entry.works() {
                    entry.open(now);
                }
                at
            }
            Path::Udp(address) => self.push(Candidate::Udp(address), now),
            Path::Link(link) => {
                self.evicted.remove(&link);
                self.push(Candidate::Incoming(link), now)
            }
        }
    }

    /// A relay's channel has this number from now on; it stays the same path, selected or not.
    fn name_channel(&mut self, at: usize, number: u32) {
        let entry = &mut self.entries[at];
        let former = entry.path();
        entry.channel = Some(number);
        entry.must_bind = false;
        let present = entry.path();
        for path in [&mut self.selected, &mut self.twin] {
            if former.is_some() && *path == former {
                *path = present;
            }
        }
    }

    fn push(&mut self, candidate: Candidate, now: Instant) -> usize {
        self.make_room(now);
        self.entries.push(Entry::new(candidate, Origin::Heard));
        self.entries.len() - 1
    }

    /// The peer, which has no paths but UDP addresses, was heard at `path`: that is where it is (W21).
    pub(crate) fn follow(&mut self, path: Path, now: Instant) -> bool {
        let at = self.position(path).unwrap_or_else(|| self.insert_heard(path, now));
        self.last_heard = at;
        if let Some(entry) = self.entries.get_mut(at) {
            entry.heard = Some(now);
            entry.verified = true;
        }
        self.select(path, now)
    }

    /// A handshake went there and back by `path`.
    pub(crate) fn proved(&mut self, path: Path, now: Instant) -> bool {
        if self.position(path).is_none() {
            self.insert_heard(path, now);
        }
        let Some(entry) = self.by_path(path) else { return false };
        entry.heard = Some(now);
        entry.verified = true;
        entry.proven = true;
        if !matches!(entry.state, PathState::Working | PathState::Suspect) {
            entry.probes.forget_losses();
        }
        entry.state = PathState::Working;
        entry.failure = None;
        entry.failed_tries = 0;
        entry.probes.restart();
        entry.next = Some(now);
        self.searching_since = None;
        self.wake(now);
        let better = self
            .selected
            .is_none_or(|selected| self.is_doubted(selected, now) || !self.is_verified(selected));
        better && self.select(path, now)
    }

    /// A probe was answered by the path that it took, unless this is no answer to any of ours.
    pub(crate) fn answered(&mut self, path: Path, token: u64, now: Instant) -> Option<Answered> {
        let entry = self.by_path(path)?;
        let took = entry.probes.answered(token, now)?;
        if !entry.works() {
            if entry.state != PathState::Suspect {
                // What was lost while it was gone says nothing about it now.
                entry.probes.forget_losses();
            }
            entry.state = PathState::Working;
            entry.failure = None;
        }
        entry.verified = true;
        entry.proven = true;
        entry.failed_tries = 0;
        entry.sent_in_try = 0;
        // The next one when its turn comes, unless the first answer is to be confirmed.
        entry.next = (entry.probes.answered_in_a_row() < 2).then(|| now + CONFIRM_AFTER);
        self.searching_since = None;
        self.wake(now);
        let lead = self.unproven_lead.take_if(|lead| lead.path == path);
        let doubted = self.selected.is_none_or(|selected| self.is_doubted(selected, now));
        let changed = lead.is_some_and(|lead| lead.follow || doubted) && self.select(path, now);
        Some(Answered { took, changed })
    }

    /// A stream was opened.
    pub(crate) fn link_opened(&mut self, number: u32, link: Link, now: Instant) -> bool {
        let is =
            |entry: &&mut Entry| matches!(entry.candidate, Candidate::Link(known) if known.number == number);
        let Some(entry) = self.entries.iter_mut().find(is) else { return false };
        entry.link = Some(link);
        entry.open(now);
        self.wake(now);
        true
    }

    /// A stream could not be opened.
    pub(crate) fn link_failed(&mut self, number: u32, now: Instant) {
        let anything_works = self.anything_works();
        let is =
            |entry: &&mut Entry| matches!(entry.candidate, Candidate::Link(known) if known.number == number);
        if let Some(entry) = self.entries.iter_mut().find(is) {
            entry.fail(PathFailure::LinkRefused, PathState::Closed);
            entry.wait(now, anything_works);
            self.wake(now);
        }
    }

    /// A stream ended. Tells whether it was one of these.
    pub(crate) fn link_closed(&mut self, link: Link, now: Instant) -> bool {
        self.evicted.remove(&link);
        let Some(at) = self.position(Path::Link(link)) else { return false };
        let anything_works = self.anything_works();
        let entry = &mut self.entries[at];
        if let Candidate::Link(_) = entry.candidate {
            entry.link = None;
            entry.probes.restart();
            entry.fail(PathFailure::LinkClosed, PathState::Closed);
            entry.wait(now, anything_works);
        } else {
            self.entries.remove(at);
        }
        self.forget_lost();
        self.wake(now);
        true
    }

    /// A relay gave a channel. Tells whether something can be sent by it that could not before.
    pub(crate) fn bound(&mut self, relay: NodeId, number: u32, present: bool, now: Instant) -> bool {
        let Some(at) = self.entries.iter().position(|entry| entry.candidate == Candidate::Relay(relay))
        else {
            return false;
        };
        let entry = &self.entries[at];
        let news = entry.channel != Some(number) || entry.failure == Some(PathFailure::PeerNotAtRelay);
        self.name_channel(at, number);
        let entry = &mut self.entries[at];
        if present && (news || matches!(entry.state, PathState::Closed | PathState::Opening)) {
            entry.open(now);
        } else if !present {
            entry.fail(PathFailure::PeerNotAtRelay, PathState::Dead);
            entry.next = Some(now + BACK_OFF[2]);
        }
        self.wake(now);
        present && news
    }

    /// A relay refused a channel.
    pub(crate) fn bind_refused(&mut self, relay: NodeId, failure: PathFailure, now: Instant) {
        let is = |entry: &&mut Entry| entry.candidate == Candidate::Relay(relay);
        if let Some(entry) = self.entries.iter_mut().find(is) {
            entry.channel = None;
            entry.must_bind = false;
            entry.fail(failure, PathState::Closed);
            entry.failed_tries = entry.failed_tries.max(3);
            entry.wait(now, true);
            self.forget_lost();
            self.wake(now);
        }
    }

    /// There is a new session with a relay, which may have forgotten its channels.
    pub(crate) fn rebind(&mut self, relay: NodeId, now: Instant) {
        let is = |entry: &&mut Entry| entry.candidate == Candidate::Relay(relay);
        if let Some(entry) = self.entries.iter_mut().find(is) {
            entry.must_bind = true;
            entry.next = Some(now);
            self.wake(now);
        }
    }

    /// The peer says where it may be reached, and tries us now.
    pub(crate) fn offered(&mut self, addresses: impl Iterator<Item = SocketAddr>, now: Instant) {
        let addresses: Vec<SocketAddr> = addresses.collect();
        let selected = self.selected;
        self.entries.retain(|entry| {
            let Candidate::Udp(address) = entry.candidate else { return true };
            entry.origin != Origin::Offered
                || addresses.contains(&address)
                || entry.works()
                || entry.path() == selected
        });
        for address in addresses {
            if !self.entries.iter().any(|entry| entry.candidate == Candidate::Udp(address)) {
                self.make_room(now);
                self.entries.push(Entry::new(Candidate::Udp(address), Origin::Offered));
            }
        }
        self.last_heard = 0;
        let lately = |at: Instant| now.saturating_duration_since(at) < PROBE_INTERVAL;
        if !self.prompted_at.is_some_and(lately) {
            self.prompted_at = Some(now);
            self.try_addresses(now);
        }
        self.wake(now);
    }

    /// Every address that does not work is tried now.
    pub(super) fn try_addresses(&mut self, now: Instant) {
        for entry in &mut self.entries {
            let silent = matches!(entry.state, PathState::Untried | PathState::Dead);
            if matches!(entry.candidate, Candidate::Udp(_)) && silent {
                entry.try_now(now);
            }
        }
    }

    /// There is a session where there was none, or traffic after a rest: everything is looked at.
    pub(crate) fn revive(&mut self, now: Instant) {
        self.offers_made = 0;
        self.next_offer = Some(now);
        for entry in &mut self.entries {
            entry.failed_tries = 0;
            if matches!(entry.state, PathState::Working | PathState::Suspect) || entry.path().is_some() {
                entry.try_now(now);
            } else if entry.next.is_none() {
                entry.next = Some(now);
            }
        }
        let silent = |entry: &Entry| {
            entry.heard.is_none_or(|heard| now.saturating_duration_since(heard) > DOUBT_AFTER)
        };
        let selected = self.selected.and_then(|path| self.position(path));
        if selected.is_some_and(|at| silent(&self.entries[at])) {
            self.twin = self.second_best_path();
        }
        self.wake(now);
    }

    /// We know better where we are: the peer should hear of it.
    pub(crate) fn offer_soon(&mut self, now: Instant) {
        let soon = self.offered_at.map_or(now, |at| (at + LEAST_OFFER_PAUSE).max(now));
        if !self.is_direct() && self.next_offer.is_none_or(|offer| offer > soon) {
            self.next_offer = Some(soon);
            self.wake(soon);
        }
    }

    /// The machine's network changed: what works over UDP may not do so any more.
    pub(crate) fn network_changed(&mut self, now: Instant) {
        for entry in &mut self.entries {
            let stream = matches!(entry.candidate, Candidate::Link(_) | Candidate::Incoming(_))
                && entry.path().is_some();
            if matches!(entry.candidate, Candidate::Udp(_)) || stream {
                if entry.works() {
                    entry.state = PathState::Suspect;
                }
                entry.failed_tries = 0;
                entry.probes.restart();
                entry.try_now(now);
            } else if entry.state == PathState::Closed {
                entry.failed_tries = 0;
                entry.next = Some(now);
            }
        }
        self.offers_made = 0;
        self.next_offer = Some(now);
        self.wake(now);
    }
}
