//! What is to be done about a peer's paths, now and later.

use std::time::{Duration, Instant};

use super::attend::{BIND_TIMEOUT, PATIENCE};
use super::choose::SILENT_AFTER;
use super::entry::{BACK_OFF, Entry};
use super::{Paths, RelayViews};
use crate::key::NodeId;
use crate::path::budget::Budgets;
use crate::path::score::Rank;
use crate::path::{Candidate, Link, Path, PathFailure, PathState};
use crate::peer::LinkCandidate;

/// How often the path in use is probed while there is traffic.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How often a relay is probed that nobody is reached through at the moment: it must know where we are.
const REST_INTERVAL: Duration = Duration::from_secs(20);
/// How often a path is probed that works and is not in use.
const STANDBY_INTERVAL: Duration = Duration::from_secs(5);
/// Missed probes, in a row, that end the use of a path.
const LEAVE_AFTER: u32 = 3;
/// The same for a path that loses some all the time, and for one from which other things are still heard.
const LEAVE_LATE_AFTER: u32 = 6;
/// Probes after which a path can be said to lose some all the time.
const OFTEN_LOSES_SAMPLES: u32 = 8;
/// Loss that counts as that, percent.
const OFTEN_LOSES_FROM: u8 = 10;
/// Silence on every path, none of which works, after which the peer may have forgotten the session.
const SILENCE: Duration = Duration::from_secs(5);
/// How long after the search for any path began that is believed at the earliest.
const LAST_CHANCE: Duration = Duration::from_secs(4);
/// How long a stream of ours stays open while something better is in use.
const LINGER: Duration = Duration::from_secs(60);
/// Between two looks at the same peer's paths.
pub(crate) const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// What is to be done for a peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a probe by this path. `selected`: say that it is the one in use. `streamed`: and that it leaves us over a stream.
    Probe { path: Path, selected: bool, streamed: bool, token: u64 },
    /// Ask a relay for a channel.
    Bind { relay: NodeId },
    /// Open a stream.
    Open(LinkCandidate),
    /// Close a stream.
    Close(Link),
    /// Tell the peer where we are, and ask where it is.
    Offer,
}

/// What the peer's state is, as far as paths are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) relays: &'a RelayViews,
    /// There is traffic, or a session is sought: it matters how the peer is reached.
    pub(crate) wanted: bool,
    /// The peer relays for us: it matters all the time, a little.
    pub(crate) kept: bool,
    /// There is a session to seal probes with.
    pub(crate) session: bool,
}

/// What [`Paths::due`] changed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Another path is selected.
    pub(crate) changed: bool,
    /// The last path that worked has died.
    pub(crate) lost: bool,
}

impl Paths {
    /// Does what needs nobody else, and appends what somebody else must do.
    pub(crate) fn due(
        &mut self,
        context: Context<'_>,
        budgets: &mut Budgets,
        mut token: impl FnMut() -> Option<u64>,
        actions: &mut Vec<Action>,
        now: Instant,
    ) -> Outcome {
        actions.extend(std::mem::take(&mut self.evicted).into_iter().map(Action::Close));
        self.follow_relays(context.relays, now);
        self.expire(now);
        self.close_dead(actions, now);
        let sought = context.wanted || context.kept;
        // A side that does not probe knows nothing better than what the peer leads it to.
        let alive = sought || self.selected.is_none();
        let mut changed = alive && self.choose(context, now);
        let works = self.anything_works();
        self.searching_since = match (sought, works) {
            (true, false) => self.searching_since.or(Some(now)),
            _ => None,
        };
        for at in 0..self.entries.len() {
            if self.entries[at].next.is_some_and(|next| next <= now) {
                self.entries[at].next = None;
                self.attend(at, context, budgets, &mut token, actions, now);
            }
        }
        self.offer_if_due(context, actions, now);
        changed |= alive && self.choose(context, now);
        self.set_twin(context.relays);
        self.close_surplus(context, actions, now);
        self.plan(context, now);
        // Silence says nothing of a peer that nobody asked.
        Outcome { changed, lost: sought && self.is_lost(now) }
    }

    /// Whether no path works any more and nothing was heard for a while: told once for each time that it comes to that.
    fn is_lost(&mut self, now: Instant) -> bool {
        // One that never answered, a stream just opened to a peer that restarted, say, is no reason to wait.
        if self.anything_works()
            || self.selected.is_some_and(|path| self.state_of(path) == Some(PathState::Suspect))
        {
            self.told_lost = false;
            return false;
        }
        let Some(silent_at) = self.silent_at() else { return false };
        silent_at <= now && !std::mem::replace(&mut self.told_lost, true)
    }

    /// When the peer has been silent for so long, on every path, that it may have forgotten the session.
    ///
    /// A peer that rested was not asked for a long time: it gets a moment to answer.
    fn silent_at(&self) -> Option<Instant> {
        let heard = self.entries.iter().filter_map(|entry| entry.heard).max()?;
        let asked = self.searching_since.map(|since| since + LAST_CHANCE);
        Some((heard + SILENCE).max(asked.unwrap_or(heard)))
    }

    /// A path through a relay is as good as the way to the relay.
    fn follow_relays(&mut self, relays: &RelayViews, now: Instant) {
        for entry in self.entries.iter_mut().filter(|entry| entry.channel.is_some()) {
            match (entry.relay_hop(relays), entry.failure) {
                (None, failure) if failure != Some(PathFailure::RelayUnreached) => {
                    entry.probes.restart();
                    entry.fail(PathFailure::RelayUnreached, PathState::Dead);
                    entry.next = Some(now + BIND_TIMEOUT);
                }
                (Some(_), Some(PathFailure::RelayUnreached)) => entry.open(now),
                (None | Some(_), _) => {}
            }
        }
    }

    /// Counts probes that were not answered in time.
    fn expire(&mut self, now: Instant) {
        let anything_else = |entries: &[Entry], at: usize| {
            entries.iter().enumerate().any(|(other, entry)| other != at && entry.works())
        };
        for at in 0..self.entries.len() {
            let others = anything_else(&self.entries, at);
            let entry = &mut self.entries[at];
            let loss_before =
                entry.probes.loss().filter(|_| entry.probes.samples() >= OFTEN_LOSES_SAMPLES).unwrap_or(0);
            if !entry.probes.expire(now) {
                continue;
            }
            match entry.state {
                PathState::Working => {
                    entry.state = PathState::Suspect;
                    entry.often_loses = loss_before >= OFTEN_LOSES_FROM;
                    entry.next = Some(now);
                }
                PathState::Suspect => {
                    let missed = entry.probes.missed();
                    let heard_since =
                        entry.heard.is_some_and(|heard| now.saturating_duration_since(heard) < SILENT_AFTER);
                    let patient = heard_since || entry.often_loses;
                    if missed >= if patient { LEAVE_LATE_AFTER } else { LEAVE_AFTER } {
                        entry.fail(PathFailure::NoAnswer, PathState::Dead);
                        // The relay may have forgotten the channel.
                        entry.must_bind = matches!(entry.candidate, Candidate::Relay(_));
                        entry.failed_tries = 0;
                        entry.wait(now, others);
                    } else {
                        entry.next = Some(now);
                    }
                }
                PathState::Untried | PathState::Dead if !entry.probes.awaits() => {
                    entry.fail(PathFailure::NoAnswer, PathState::Dead);
                    entry.must_bind = matches!(entry.candidate, Candidate::Relay(_));
                    // The next try may have been set already, by an offer or by what may still be sent there.
                    if entry.next.is_none() {
                        entry.wait(now, others);
                    }
                    let path = entry.path();
                    self.unproven_lead.take_if(|lead| Some(lead.path) == path);
                }
                PathState::Untried | PathState::Dead | PathState::Closed | PathState::Opening => {}
            }
        }
    }

    /// While there is no direct path, both sides try at the same time, again and again.
    fn offer_if_due(&mut self, context: Context<'_>, actions: &mut Vec<Action>, now: Instant) {
        if !context.wanted || !context.session || context.kept || self.is_direct() {
            return;
        }
        let due = *self.next_offer.get_or_insert(now);
        if due > now || !self.anything_works() {
            return;
        }
        actions.push(Action::Offer);
        self.offered_at = Some(now);
        self.try_addresses(now);
        let pause = BACK_OFF[self.offers_made.min(BACK_OFF.len() - 1)];
        self.offers_made = self.offers_made.saturating_add(1);
        self.next_offer = Some(now + pause);
        self.wake(now);
    }

    /// Sets when each entry wants attention next, and so when all of this does.
    fn plan(&mut self, context: Context<'_>, now: Instant) {
        let alive = context.wanted || context.kept;
        let best = self.selected.and_then(|path| self.position(path)).map(|at| &self.entries[at]);
        let best = best.filter(|entry| entry.works()).map(|entry| entry.rank(context.relays));
        let selected = self.selected;
        let lead = self.unproven_lead.map(|lead| lead.path);
        let prompted = self.is_prompted(now);
        let mut next: Option<Instant> = None;
        for entry in &mut self.entries {
            entry.plan(entry.path() == selected, context, best, now);
            let own = if context.session || entry.path().is_none() { entry.next } else { None };
            let lead = lead.is_some() && entry.path() == lead;
            let prompted = prompted && matches!(entry.candidate, Candidate::Udp(_));
            let own = if alive || lead || prompted { own } else { None };
            let idle = entry.idle_since.filter(|_| entry.link.is_some()).map(|since| since + LINGER);
            next = [next, own, idle, entry.probes.next_expiry()].into_iter().flatten().min();
        }
        if context.wanted && context.session && !context.kept && !self.is_direct() && self.anything_works() {
            next = [next, self.next_offer].into_iter().flatten().min();
        }
        if alive && !self.told_lost && !self.anything_works() {
            next = [next, self.silent_at()].into_iter().flatten().min();
        }
        // Never now: whoever asks until nothing is due would ask for ever.
        self.next = next.map(|next| next.max(now + LEAST_PAUSE));
    }

    /// A stream of ours from which nothing comes is opened anew: what carries it may have lost its way for good.
    fn close_dead(&mut self, actions: &mut Vec<Action>, now: Instant) {
        let anything_works = self.anything_works();
        for entry in &mut self.entries {
            if let (Candidate::Link(_), PathState::Dead, Some(link)) =
                (entry.candidate, entry.state, entry.link)
            {
                actions.push(Action::Close(link));
                entry.link = None;
                entry.probes.restart();
                entry.fail(PathFailure::NoAnswer, PathState::Closed);
                entry.wait(now, anything_works);
            }
        }
        self.forget_lost();
    }

    /// Closes streams of ours that nothing has needed for a while.
    fn close_surplus(&mut self, context: Context<'_>, actions: &mut Vec<Action>, now: Instant) {
        let selected = self.selected.filter(|path| !self.is_suspect(*path));
        let best = self.entries.iter().find(|entry| selected.is_some() && entry.path() == selected);
        let best = best.filter(|entry| entry.works()).map(|entry| entry.rank(context.relays));
        for entry in &mut self.entries {
            let (Candidate::Link(_), Some(link)) = (entry.candidate, entry.link) else { continue };
            let as_good = best.is_none_or(|best| best >= entry.rank(context.relays));
            if (context.wanted || context.kept) && as_good {
                entry.idle_since = None;
            } else if now.saturating_duration_since(*entry.idle_since.get_or_insert(now)) >= LINGER {
                actions.push(Action::Close(link));
                entry.idle_since = Some(now);
            }
        }
    }
}

impl Entry {
    /// Sets when it wants attention next. `best`: the kind of the selected path, if that one works.
    fn plan(&mut self, selected: bool, context: Context<'_>, best: Option<Rank>, now: Instant) {
        let interval = match (selected, context.wanted) {
            (true, true) => PROBE_INTERVAL,
            (true, false) | (false, false) => REST_INTERVAL,
            // A better kind that is passed over for its losses shall soon show that they are over.
            (false, true) if best.is_some_and(|best| self.rank(context.relays) < best) => PROBE_INTERVAL,
            (false, true) => STANDBY_INTERVAL,
        };
        if self.works() && self.next.is_none_or(|next| next > now + interval) && !self.probes.awaits() {
            self.next = Some(now + interval);
        }
        // What is no better than what works is left in peace. A relay's other addresses are not: they tell how the rest of the world
        // sees us by that family.
        let pointless = matches!(self.candidate, Candidate::Udp(_))
            && self.state == PathState::Dead
            && !context.kept
            && best.is_some_and(|best| best <= self.rank(context.relays));
        if pointless {
            self.next = None;
        }
        if matches!(self.state, PathState::Closed) && self.next.is_none() {
            self.next = Some(now + PATIENCE / 4);
        }
    }
}
