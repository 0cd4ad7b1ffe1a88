//! How long a change takes to be everywhere, and who is behind: for metrics.
//!
//! A commit that changes maps is followed until every node that is online, and had a map by then, has it installed. Each
//! acknowledgement costs a look at the ends of two ordered maps, however many nodes there are.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use crate::{metrics::Durations, store::Revision};

/// The most commits of a network that are followed at a time; later ones count from when the last of these was made.
const MAX_FOLLOWED: usize = 1024;

/// What is installed in the nodes of one network that are online.
#[derive(Debug, Default)]
pub(crate) struct Track {
    /// Commits that changed maps and are not everywhere yet, oldest first.
    followed: VecDeque<Followed>,
    /// The newest commit that changed maps.
    newest: Revision,
    /// How many nodes have installed which revision, of those that have a map.
    installed: BTreeMap<Revision, usize>,
    /// Streams of nodes without a map yet, by their numbers, with when they began.
    fresh: BTreeMap<u64, Instant>,
    /// From commits to the last node.
    convergence: Durations,
}

#[derive(Debug)]
struct Followed {
    revision: Revision,
    since: Instant,
}

/// A node's open stream and the revision that it has installed; 0: no map yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Online {
    pub(super) stream: u64,
    pub(super) installed: Revision,
}

/// Who is behind at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Lag {
    /// Nodes that are online and have not installed the newest change of maps.
    pub(crate) nodes: usize,
    /// For how long the oldest change that one of them lacks has been there, in seconds; 0: none is behind.
    pub(crate) seconds: f64,
}

impl Track {
    /// Takes note of a commit that changed maps.
    pub(super) fn committed(&mut self, revision: Revision, now: Instant) {
        self.newest = revision;
        if self.installed.is_empty() {
            return; // Nobody to have it: whoever comes gets it with the first map.
        }
        let full = self.followed.len() >= MAX_FOLLOWED;
        match self.followed.back_mut() {
            Some(last) if full => last.revision = revision,
            _ => self.followed.push_back(Followed { revision, since: now }),
        }
    }

    /// Takes note of what became of one node: how it stood, and how it stands.
    pub(super) fn moved(&mut self, before: Option<Online>, after: Option<Online>, now: Instant) {
        if before == after {
            return;
        }
        if let Some(Online { stream, installed }) = before {
            self.fresh.remove(&stream);
            if let Some(count) = self.installed.get_mut(&installed) {
                *count -= 1;
                if *count == 0 {
                    self.installed.remove(&installed);
                }
            }
        }
        match after {
            Some(Online { stream, installed: 0 }) => drop(self.fresh.insert(stream, now)),
            Some(Online { installed, .. }) => *self.installed.entry(installed).or_default() += 1,
            None => {}
        }
        self.settle(now);
    }

    /// Counts what is everywhere now. What was left to nodes that are gone is no measurement.
    fn settle(&mut self, now: Instant) {
        let Some(everywhere) = self.installed.keys().next().copied() else {
            self.followed.clear();
            return;
        };
        while let Some(first) = self.followed.front()
            && first.revision <= everywhere
        {
            self.convergence.add(now.saturating_duration_since(first.since));
            self.followed.pop_front();
        }
    }

    /// Who is behind.
    pub(crate) fn lag(&self, now: Instant) -> Lag {
        let late: usize = self.installed.range(..self.newest).map(|(_, count)| count).sum();
        let since = [self.followed.front().map(|first| first.since), self.fresh.values().next().copied()];
        let oldest = since.into_iter().flatten().min();
        Lag {
            nodes: late + self.fresh.len(),
            seconds: oldest.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
        }
    }

    /// The revision that all who are online have installed; the greatest there is, if nobody is.
    pub(crate) fn everywhere(&self) -> Revision {
        if !self.fresh.is_empty() {
            return 0;
        }
        self.installed.keys().next().copied().unwrap_or(Revision::MAX)
    }

    /// Map streams that are open.
    pub(crate) fn streams(&self) -> usize {
        self.installed.values().sum::<usize>() + self.fresh.len()
    }

    /// From commits to the last node that had to hear of them.
    pub(crate) const fn convergence(&self) -> &Durations {
        &self.convergence
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Scene {
        track: Track,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            Self { track: Track::default(), now: Instant::now() }
        }

        fn after(&mut self, ms: u64) -> &mut Self {
            self.now += Duration::from_millis(ms);
            self
        }

        fn commit(&mut self, revision: Revision) {
            self.track.committed(revision, self.now);
        }

        fn moves(&mut self, stream: u64, before: Option<Revision>, after: Option<Revision>) {
            let of = |installed| Online { stream, installed };
            self.track.moved(before.map(of), after.map(of), self.now);
        }

        /// How many were counted, and their sum in seconds.
        fn measured(&self) -> (u64, f64) {
            (self.track.convergence().count(), self.track.convergence().sum())
        }

        fn lag(&self) -> (usize, f64) {
            let Lag { nodes, seconds } = self.track.lag(self.now);
            (nodes, seconds)
        }
    }

    #[test]
    fn a_commit_is_everywhere_when_the_last_node_has_it() {
        let mut scene = Scene::new();
        scene.moves(1, None, Some(5));
        scene.moves(2, None, Some(5));
        scene.commit(6);
        scene.after(100).moves(1, Some(5), Some(6));
        assert_eq!(scene.measured().0, 0);
        assert_eq!(scene.lag(), (1, 0.1));
        scene.after(150).moves(2, Some(5), Some(7));
        assert_eq!(scene.measured(), (1, 0.25));
        assert_eq!(scene.lag(), (0, 0.0));
    }

    #[test]
    fn a_node_that_goes_is_waited_for_no_longer() {
        let mut scene = Scene::new();
        scene.moves(1, None, Some(5));
        scene.moves(2, None, Some(5));
        scene.commit(6);
        scene.after(10).moves(1, Some(5), Some(6));
        scene.after(10).moves(2, Some(5), None);
        assert_eq!(scene.measured(), (1, 0.02));
        scene.commit(7);
        scene.after(10).moves(1, Some(6), None);
        assert_eq!(scene.measured().0, 1, "nobody was left to have it");
        assert_eq!((scene.lag(), scene.track.streams()), ((0, 0.0), 0));
    }

    #[test]
    fn a_node_without_a_map_is_behind_and_delays_no_measurement() {
        let mut scene = Scene::new();
        scene.moves(1, None, Some(5));
        scene.after(1000).moves(2, None, Some(0));
        scene.commit(6);
        scene.after(50).moves(1, Some(5), Some(6));
        assert_eq!(scene.measured(), (1, 0.05));
        scene.after(950);
        assert_eq!(scene.lag(), (1, 1.0));
        assert_eq!(scene.track.streams(), 2);
        scene.moves(2, Some(0), Some(6));
        assert_eq!(scene.lag(), (0, 0.0));
    }

    #[test]
    fn what_is_followed_is_bounded() {
        let mut scene = Scene::new();
        scene.moves(1, None, Some(1));
        for revision in 2..2 * MAX_FOLLOWED as u64 {
            scene.after(1).commit(revision);
        }
        assert_eq!(scene.track.followed.len(), MAX_FOLLOWED);
        let before_last = 2 * MAX_FOLLOWED as u64 - 2;
        scene.moves(1, Some(1), Some(before_last));
        assert_eq!(scene.measured().0, MAX_FOLLOWED as u64 - 1);
        scene.moves(1, Some(before_last), Some(before_last + 1));
        assert_eq!(scene.measured().0, MAX_FOLLOWED as u64);
    }
}
