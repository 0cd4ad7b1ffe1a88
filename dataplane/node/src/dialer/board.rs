//! Which dial is next: the order, the bounds and the time of what the tunnel asked for. Time moves by an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ringmesh_tunnel::key::NodeId;

use crate::fallback::DialOpen;

/// Streams that are being opened at the same time; further ones wait.
const DIALLING_MAX: usize = 32;
/// Of these, places that only the [favoured](Ask::favoured) take.
const RESERVED: usize = 8;
/// The same of one peer: its dead addresses take no more than that from the others.
const DIALLING_MAX_OF_ONE: usize = 2;
/// Asks that wait, of one peer, and in all, the favoured apart. The tunnel keeps no more streams of a peer, so that further ones are of roads that have
/// gone.
const WAITING_MAX_OF_ONE: usize = 16;
const WAITING_MAX: usize = 1024;
/// Time from the tunnel's ask to its answer, of which waiting is a part: it gives an ask up after 15 s.
pub(super) const ANSWER_AFTER: Duration = Duration::from_secs(8);

/// What a dial is known by: the peer, and the number of its candidate.
pub(super) type Key = (NodeId, u32);

/// A dial that the tunnel wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) open: DialOpen,
    /// Whether it leads to a relay, or was configured by the user: it does not wait behind what members say of themselves.
    pub(super) favoured: bool,
    /// When the tunnel asked.
    pub(super) since: Instant,
}

impl Ask {
    fn key(&self) -> Key {
        (self.open.peer, self.open.candidate)
    }

    /// When it has to be answered.
    pub(super) fn due(&self) -> Instant {
        self.since + ANSWER_AFTER
    }
}

/// What became of an ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It waits for its turn.
    Waits,
    /// The answer to an earlier one, which waits or is being dialled, answers it too.
    Twin,
    /// Too many wait.
    Full,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    /// Dial; tell [`Board::done`] when there is an answer, before it is given.
    Dial(Ask),
    /// Its time was over before its turn came.
    Late(Ask),
}

/// Dials that wait and dials under way.
#[derive(Debug, Default)]
pub(super) struct Board {
    waiting: Vec<Ask>,
    /// And whether each is favoured.
    dialling: BTreeMap<Key, bool>,
}

impl Board {
    /// Takes an ask, unless there is one for the same or there are too many.
    pub(super) fn ask(&mut self, ask: Ask) -> Taken {
        let key = ask.key();
        if self.dialling.contains_key(&key) || self.waiting.iter().any(|waits| waits.key() == key) {
            return Taken::Twin;
        }
        let of_peer = self.waiting.iter().filter(|waits| waits.open.peer == ask.open.peer).count();
        let alike = self.waiting.iter().filter(|waits| waits.favoured == ask.favoured).count();
        if of_peer >= WAITING_MAX_OF_ONE || alike >= WAITING_MAX {
            return Taken::Full;
        }
        self.waiting.push(ask);
        Taken::Waits
    }

    /// What is to be done at `now`; call it until it gives nothing.
    ///
    /// Favoured ones come first, then those of the peer with the fewest under way, then the oldest.
    pub(super) fn next(&mut self, now: Instant) -> Option<Next> {
        if let Some(at) = self.waiting.iter().position(|ask| ask.due() <= now) {
            return Some(Next::Late(self.waiting.remove(at)));
        }
        let common = self.dialling.values().filter(|favoured| !**favoured).count();
        let room = |ask: &Ask| {
            self.dialling.len() < DIALLING_MAX
                && (ask.favoured || common < DIALLING_MAX - RESERVED)
                && self.dialling_of(ask.open.peer) < DIALLING_MAX_OF_ONE
        };
        let able = self.waiting.iter().enumerate().filter(|(_, ask)| room(ask));
        let first = able.min_by_key(|(_, ask)| (!ask.favoured, self.dialling_of(ask.open.peer), ask.since));
        let at = first.map(|(at, _)| at)?;
        let ask = self.waiting.remove(at);
        self.dialling.insert(ask.key(), ask.favoured);
        Some(Next::Dial(ask))
    }

    fn dialling_of(&self, peer: NodeId) -> usize {
        self.dialling.range((peer, 0)..=(peer, u32::MAX)).count()
    }

    /// A dial is over: the same may be asked for again.
    pub(super) fn done(&mut self, key: Key) {
        self.dialling.remove(&key);
    }

    /// When the next ask that waits is late.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(Ask::due).min()
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::Carrier;

    use super::*;

    fn ask(peer: u8, candidate: u32, since: Instant) -> Ask {
        let peer = NodeId::from_bytes([peer; 8]);
        Ask { open: DialOpen { peer, candidate, carrier: Carrier::Ssh }, favoured: false, since }
    }

    fn relays(peer: u8, candidate: u32, since: Instant) -> Ask {
        Ask { favoured: true, ..ask(peer, candidate, since) }
    }

    /// Starts what can be started; gives who was dialled, and how many were late.
    fn start(board: &mut Board, now: Instant) -> (Vec<(u8, u32)>, usize) {
        let (mut dialled, mut late) = (Vec::new(), 0);
        while let Some(next) = board.next(now) {
            match next {
                Next::Dial(ask) => dialled.push((ask.open.peer.as_bytes()[0], ask.open.candidate)),
                Next::Late(_) => late += 1,
            }
        }
        (dialled, late)
    }

    #[test]
    fn a_relay_is_dialled_at_once_whatever_members_have_dialled() {
        let (mut board, now) = (Board::default(), Instant::now());
        for peer in 1..=40 {
            for candidate in 0..8 {
                board.ask(ask(peer, candidate, now));
            }
        }
        let (dialled, _) = start(&mut board, now);
        assert_eq!(dialled.len(), DIALLING_MAX - RESERVED);
        assert!(
            (1..=40).all(|peer| dialled.iter().filter(|(of, _)| *of == peer).count() <= DIALLING_MAX_OF_ONE)
        );
        let later = now + Duration::from_millis(1);
        assert_eq!(board.ask(relays(200, 1, later)), Taken::Waits);
        assert_eq!(start(&mut board, later).0, [(200, 1)]);
    }

    #[test]
    fn no_peer_waits_for_another_peers_second_dial() {
        let (mut board, now) = (Board::default(), Instant::now());
        for candidate in 0..3 {
            board.ask(ask(1, candidate, now));
        }
        board.ask(ask(2, 0, now + Duration::from_millis(1)));
        assert_eq!(start(&mut board, now).0, [(1, 0), (2, 0), (1, 1)], "the third of the first peer waits");
        board.done((NodeId::from_bytes([1; 8]), 0));
        assert_eq!(start(&mut board, now).0, [(1, 2)]);
    }

    #[test]
    fn the_same_is_dialled_once_at_a_time_and_again_when_it_was_answered() {
        let (mut board, now) = (Board::default(), Instant::now());
        assert_eq!(board.ask(ask(1, 7, now)), Taken::Waits);
        assert_eq!(board.ask(ask(1, 7, now)), Taken::Twin, "it waits");
        assert_eq!(start(&mut board, now).0, [(1, 7)]);
        assert_eq!(board.ask(ask(1, 7, now)), Taken::Twin, "it is being dialled");
        assert_eq!(board.ask(ask(2, 7, now)), Taken::Waits, "a number is one peer's");
        board.done((NodeId::from_bytes([1; 8]), 7));
        assert_eq!(board.ask(ask(1, 7, now)), Taken::Waits);
    }

    #[test]
    fn waiting_counts_and_who_waited_too_long_is_answered() {
        let (mut board, now) = (Board::default(), Instant::now());
        for candidate in 0..3 {
            board.ask(ask(1, candidate, now));
        }
        start(&mut board, now);
        assert_eq!(board.deadline(), Some(now + ANSWER_AFTER));
        assert_eq!(start(&mut board, now + ANSWER_AFTER - Duration::from_millis(1)), (vec![], 0));
        assert_eq!(start(&mut board, now + ANSWER_AFTER), (vec![], 1));
        assert_eq!(board.deadline(), None);
    }

    #[test]
    fn what_waits_is_bounded_for_each_peer_and_in_all() {
        let (mut board, now) = (Board::default(), Instant::now());
        let taken = (0..100).filter(|candidate| board.ask(ask(1, *candidate, now)) == Taken::Waits).count();
        assert_eq!(taken, WAITING_MAX_OF_ONE);
        for peer in 2..=255 {
            for candidate in 0..100 {
                board.ask(ask(peer, candidate, now));
            }
        }
        assert_eq!(board.waiting.len(), WAITING_MAX);
        assert_eq!(board.ask(relays(1, 1000, now)), Taken::Full, "of one peer, relay or not");
        assert_eq!(
            board.ask(relays(0, 0, now)),
            Taken::Waits,
            "what members ask for does not shut out a relay"
        );
    }
}
