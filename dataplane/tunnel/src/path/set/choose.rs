//! Which path is taken: the selected one, and a twin while that one is in doubt.

use std::time::{Duration, Instant};

use super::due::{Context, PROBE_INTERVAL};
use super::entry::Entry;
use super::{Paths, RelayViews};
use crate::path::{Candidate, Path, PathState};

/// How long a path may be silent beyond the interval of probes before it is doubted.
const FIRST_SILENCE: Duration = Duration::from_millis(500);
/// A path from which nothing came for so long is silent: with the peer's probes, something would have come.
pub(super) const SILENT_AFTER: Duration = PROBE_INTERVAL.saturating_add(FIRST_SILENCE);

impl Paths {
    /// Takes the best path there is, if the one in use is not good enough.
    pub(super) fn choose(&mut self, context: Context<'_>, now: Instant) -> bool {
        let relays = context.relays;
        let best = self
            .entries
            .iter()
            .filter(|entry| entry.works() && entry.usable(relays).is_some())
            .min_by_key(|entry| entry.score(relays).order());
        let current = self.selected.and_then(|path| self.position(path)).and_then(|at| self.entries.get(at));
        let current = current.filter(|entry| entry.usable(relays).is_some());
        let path = match (current, best) {
            (None, Some(best)) => best.path(),
            (None, None) => self.untried(relays),
            (Some(current), best) => match (current.state, best) {
                (PathState::Working, Some(_)) => self.better_than(current, context),
                (PathState::Suspect, _) => None,
                // Not known to work, but in use: what is known to work is better.
                (_, Some(best)) => best.path(),
                (PathState::Dead, None) => self.untried(relays),
                (_, None) => None,
            },
        };
        path.is_some_and(|path| self.select(path, now))
    }

    /// The best of those that are worth leaving `current` for.
    fn better_than(&self, current: &Entry, context: Context<'_>) -> Option<Path> {
        let relays = context.relays;
        let score = current.score(relays);
        // The peer was heard elsewhere since it was last heard here, though it is asked here every second: it has moved.
        let moved = |entry: &Entry| {
            context.wanted
                && entry.rank(relays) <= score.rank
                && entry.heard > current.heard
                && current
                    .heard
                    .zip(entry.heard)
                    .is_some_and(|(here, there)| there.saturating_duration_since(here) > SILENT_AFTER)
        };
        // It worked, but nothing came by it for longer than by the one in use.
        let stale = |entry: &Entry| {
            current
                .heard
                .zip(entry.heard)
                .is_some_and(|(here, there)| here.saturating_duration_since(there) > SILENT_AFTER)
        };
        self.entries
            .iter()
            .filter(|entry| entry.works() && entry.usable(relays).is_some() && entry.path() != current.path())
            .filter(|entry| (entry.score(relays).beats(&score) && !stale(entry)) || moved(entry))
            .min_by_key(|entry| entry.score(relays).order())
            .and_then(Entry::path)
    }

    /// Something to send by of which it is not known that it does not work.
    fn untried(&self, relays: &RelayViews) -> Option<Path> {
        let open = |entry: &&Entry| {
            !matches!(entry.candidate, Candidate::Udp(_))
                && matches!(entry.state, PathState::Untried | PathState::Suspect)
                && entry.usable(relays).is_some()
        };
        self.entries.iter().filter(open).min_by_key(|entry| entry.rank(relays)).and_then(Entry::path)
    }

    pub(super) fn select(&mut self, path: Path, now: Instant) -> bool {
        let changed = self.selected != Some(path);
        self.selected = Some(path);
        if changed && let Some(entry) = self.by_path(path) {
            // The peer hears at once that this is our path now: its side follows if it does not probe us.
            entry.next = Some(now);
        }
        if self.twin == Some(path) {
            self.twin = None;
        }
        changed
    }

    /// Whether a path is suspect, or silent for longer than the peer's own probes would let it be.
    pub(super) fn is_doubted(&self, path: Path, now: Instant) -> bool {
        let entry = self.position(path).and_then(|at| self.entries.get(at));
        let silent = entry
            .and_then(|entry| entry.heard)
            .is_none_or(|heard| now.saturating_duration_since(heard) > SILENT_AFTER);
        self.is_suspect(path) || silent
    }

    /// While the selected path is suspect, packets go by the next best as well.
    pub(super) fn set_twin(&mut self, relays: &RelayViews) {
        let suspect = self
            .selected
            .and_then(|path| self.position(path))
            .is_some_and(|at| self.entries[at].state == PathState::Suspect);
        if suspect {
            let others = self.entries.iter().filter(|entry| entry.path() != self.selected);
            let able = others.filter(|entry| {
                let open = !matches!(entry.candidate, Candidate::Udp(_)) && entry.state == PathState::Untried;
                (entry.works() || open) && entry.usable(relays).is_some()
            });
            self.twin =
                able.min_by_key(|entry| (!entry.works(), entry.score(relays).order())).and_then(Entry::path);
        } else if let Some(twin) = self.twin {
            // One set because of a long rest stays until something is heard.
            let usable = self.position(twin).is_some_and(|at| self.entries[at].usable(relays).is_some());
            if !usable {
                self.twin = None;
            }
        }
    }

    /// Where packets might go besides the selected path, without regard to whether it works.
    pub(super) fn second_best_path(&self) -> Option<Path> {
        let others = self.entries.iter().filter(|entry| entry.path() != self.selected);
        let streams = others.filter(|entry| !matches!(entry.candidate, Candidate::Udp(_)) || entry.works());
        streams.filter(|entry| entry.state != PathState::Dead).find_map(Entry::path)
    }
}
