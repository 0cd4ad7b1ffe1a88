//! Trying one candidate: asking its relay for a channel, opening its stream, probing it.

use std::time::{Duration, Instant};

use super::due::{Action, Context};
use super::entry::Entry;
use super::{Paths, RelayViews};
use crate::key::NodeId;
use crate::path::budget::Budgets;
use crate::path::{Candidate, Hop, PathFailure, PathState};

/// Probes of one try, and how far they are apart: the first opens our NAT, and what the peer's drops is the second's chance.
const BURST: [Duration; 3] = [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(400)];
/// How long a peer's offer makes an idle side probe: it is about to send.
const PROMPTED_FOR: Duration = Duration::from_secs(3);
/// How long a stream may take to open before it is asked for again.
const OPENING_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a relay may take to answer, before it is asked again.
pub(super) const BIND_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a search may go without any working path before streams are opened.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

impl Paths {
    /// Does what an entry is due for.
    pub(super) fn attend(
        &mut self,
        at: usize,
        context: Context<'_>,
        budgets: &mut Budgets,
        token: &mut impl FnMut() -> Option<u64>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        let prompted = matches!(self.entries[at].candidate, Candidate::Udp(_)) && self.is_prompted(now);
        if !context.wanted && !context.kept && !prompted && !self.is_lead(at) {
            return;
        }
        if !self.make_ready(at, context, actions, now) {
            return;
        }
        if !context.session {
            // As soon as there is one.
            self.entries[at].next = Some(now);
        } else {
            self.probe(at, context.relays, budgets, token, actions, now);
        }
    }

    /// Asks for what a candidate lacks, or may lack soon: a channel or a stream. Returns whether it can be sent by now.
    fn make_ready(
        &mut self,
        at: usize,
        context: Context<'_>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) -> bool {
        let may_dial = self.may_dial(at, context, now);
        let entry = &mut self.entries[at];
        match entry.candidate {
            Candidate::Relay(relay) => entry.make_bound(relay, context.relays, actions, now),
            Candidate::Link(candidate) if entry.link.is_none() => {
                if may_dial {
                    entry.state = PathState::Opening;
                    entry.next = Some(now + OPENING_TIMEOUT);
                    actions.push(Action::Open(candidate));
                } else {
                    entry.state = PathState::Closed;
                    entry.next = Some(now + PATIENCE / 4);
                }
                false
            }
            Candidate::Link(_) | Candidate::Incoming(_) | Candidate::Udp(_) => true,
        }
    }

    /// Whether the peer has just said that it tries us.
    pub(super) fn is_prompted(&self, now: Instant) -> bool {
        self.prompted_at.is_some_and(|at| now.saturating_duration_since(at) < PROMPTED_FOR)
    }

    /// Whether the peer's packets come by this path, and nothing shows yet that it receives there.
    fn is_lead(&self, at: usize) -> bool {
        self.unproven_lead.is_some_and(|lead| self.entries[at].path() == Some(lead.path))
    }

    /// Whether a stream should be opened: nothing that is as good works, for a moment at least.
    fn may_dial(&self, at: usize, context: Context<'_>, now: Instant) -> bool {
        let entry = &self.entries[at];
        let rank = entry.rank(context.relays);
        let as_good = |other: &Entry| {
            other.works() && other.usable(context.relays).is_some() && other.rank(context.relays) <= rank
        };
        if self.entries.iter().any(as_good) {
            return false;
        }
        let doubted = |other: &Entry| {
            other.state == PathState::Suspect && other.probes.missed() >= 2 && other.path() == self.selected
        };
        let impatient =
            self.searching_since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        self.anything_works() || self.entries.iter().any(doubted) || impatient
    }

    fn probe(
        &mut self,
        at: usize,
        relays: &RelayViews,
        budgets: &mut Budgets,
        token: &mut impl FnMut() -> Option<u64>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) {
        let (selected, anything_works) = (self.selected, self.anything_works());
        let entry = &mut self.entries[at];
        let Some(path) = entry.path() else { return };
        let settled = matches!(entry.state, PathState::Working | PathState::Suspect);
        if let Candidate::Udp(address) = entry.candidate
            && !entry.proven
            && let Err(again) = budgets.take(address, now)
        {
            entry.next = Some(again);
            return;
        }
        let Some(token) = token() else { return };
        entry.probes.sent(token, now);
        let streamed = matches!(entry.relay_hop(relays), Some(Hop::Link(_)));
        actions.push(Action::Probe { path, selected: selected == Some(path), streamed, token });
        if settled {
            return;
        }
        // Another of this burst; when nothing works at all, tries are so frequent that one probe is enough.
        let burst = if anything_works || entry.failed_tries == 0 { BURST.len() } else { 1 };
        entry.sent_in_try += 1;
        if entry.sent_in_try < burst {
            entry.next = Some(now + (BURST[entry.sent_in_try] - BURST[entry.sent_in_try - 1]));
        }
    }
}

impl Entry {
    /// Asks a relay for a channel if there is none, or if the relay may have forgotten it. Returns whether there is one to send by.
    fn make_bound(
        &mut self,
        relay: NodeId,
        relays: &RelayViews,
        actions: &mut Vec<Action>,
        now: Instant,
    ) -> bool {
        if self.relay_hop(relays).is_none() {
            self.failure = Some(PathFailure::RelayUnreached);
            self.next = Some(now + BIND_TIMEOUT);
            return false;
        }
        if self.channel.is_none() || self.must_bind {
            if self.state == PathState::Opening {
                self.failure = Some(PathFailure::RelaySilent);
            }
            if self.channel.is_none() {
                self.state = PathState::Opening;
            }
            actions.push(Action::Bind { relay });
            self.next = Some(now + BIND_TIMEOUT);
        }
        self.channel.is_some()
    }
}
