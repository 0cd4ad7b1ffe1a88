//! Which of several paths is the better one.

use std::time::Duration;

use super::{Candidate, Carrier, Hop};

/// How much a path is liked by its kind alone, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Straight over UDP.
    Direct,
    /// Through a relay that is reached over UDP.
    Relayed,
    /// Over a stream to the peer itself: nobody in between, but a lost segment holds up all that follow.
    Ssh,
    /// Over a WebSocket, to a relay or through one.
    WebSocket,
}

/// A path on which this share of probes is lost is taken for a worse kind than it is, percent.
const LOSSY_FROM: u8 = 30;
/// Probes after which a path may be taken for a lossy one.
const LOSSY_SAMPLES: u32 = 12;
/// A path of the same kind is better only if it is faster by this much, so that two like ones do not take turns.
const FASTER_BY: Duration = Duration::from_millis(5);
/// Answers to probes, in a row, after which a round trip is believed.
const RTT_SAMPLES: u32 = 4;

impl Rank {
    /// The kind of a candidate, whose relay is reached by `hop`.
    pub(crate) const fn of(candidate: Candidate, hop: Option<Hop>) -> Self {
        match (candidate, hop) {
            (Candidate::Udp(_), _) => Self::Direct,
            (Candidate::Relay(_), Some(Hop::Link(link))) => Self::of_carrier(link.carrier),
            (Candidate::Relay(_), Some(Hop::Udp(_)) | None) => Self::Relayed,
            (Candidate::Link(link), _) => Self::of_carrier(link.carrier),
            (Candidate::Incoming(link), _) => Self::of_carrier(link.carrier),
        }
    }

    const fn of_carrier(carrier: Carrier) -> Self {
        match carrier {
            Carrier::Ssh => Self::Ssh,
            Carrier::WebSocket => Self::WebSocket,
        }
    }
}

/// What is weighed of a path that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Score {
    pub(crate) rank: Rank,
    pub(crate) rtt: Option<Duration>,
    /// Percent of probes lost, and of how many.
    pub(crate) loss: Option<u8>,
    pub(crate) samples: u32,
    /// Answers to probes in a row.
    pub(crate) answered: u32,
}

impl Score {
    /// Loss counts as two kinds: a clean relay is better than a direct path that loses a third, and a relay that loses as much is
    /// not.
    fn standing(&self) -> u8 {
        let lossy = self.samples >= LOSSY_SAMPLES && self.loss.is_some_and(|loss| loss >= LOSSY_FROM);
        self.rank as u8 + if lossy { 2 } else { 0 }
    }

    /// Order of preference, nothing else considered.
    pub(crate) fn order(&self) -> (u8, Duration) {
        (self.standing(), self.rtt.unwrap_or(Duration::MAX))
    }

    /// Whether it is worth leaving `other`, which works too.
    pub(crate) fn beats(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.standing(), other.standing());
        if mine != theirs {
            return mine < theirs && self.answered >= 2;
        }
        match (self.rtt, other.rtt) {
            (Some(mine), Some(theirs)) => {
                self.answered >= RTT_SAMPLES && mine + FASTER_BY < theirs && mine * 10 < theirs * 7
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(rank: Rank, rtt_ms: u64) -> Score {
        Score { rank, rtt: Some(Duration::from_millis(rtt_ms)), loss: Some(0), samples: 16, answered: 16 }
    }

    #[test]
    fn a_better_kind_wins_however_slow_once_it_has_answered_twice() {
        let (direct, relayed) = (score(Rank::Direct, 300), score(Rank::Relayed, 3));
        assert!(direct.beats(&relayed) && !relayed.beats(&direct));
        assert!(!Score { answered: 1, ..direct }.beats(&relayed));
        assert!(score(Rank::Relayed, 9).beats(&score(Rank::Ssh, 1)));
        assert!(score(Rank::Ssh, 9).beats(&score(Rank::WebSocket, 1)));
    }

    #[test]
    fn of_one_kind_only_a_clearly_faster_path_wins() {
        assert!(score(Rank::Direct, 10).beats(&score(Rank::Direct, 20)));
        assert!(!score(Rank::Direct, 18).beats(&score(Rank::Direct, 20)));
        assert!(!score(Rank::Direct, 1).beats(&score(Rank::Direct, 5)), "5 ms are nothing to move for");
    }

    #[test]
    fn a_clean_relay_beats_a_direct_path_that_loses_a_third_and_a_lossy_relay_does_not() {
        let lossy = |rank| Score { loss: Some(31), ..score(rank, 10) };
        assert!(score(Rank::Relayed, 50).beats(&lossy(Rank::Direct)));
        assert!(!lossy(Rank::Relayed).beats(&lossy(Rank::Direct)));
        let early = Score { samples: 3, ..lossy(Rank::Direct) };
        assert!(!score(Rank::Relayed, 50).beats(&early), "three probes say nothing");
    }
}
