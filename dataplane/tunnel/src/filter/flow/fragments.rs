//! Datagrams in fragments: the first carries the decision, and what follows it within its time passes by that.

use std::net::IpAddr;

use super::state::FRAGMENTS_LAST;
use super::{FlowHash, Key, RuleSlot, Tick};
use crate::filter::{Direction, Opening};
use crate::packet::Fragment;

/// Rows of four: 1,024 datagrams of one peer whose later fragments may pass, both ways together. The oldest of a row makes
/// room for the next.
const ROWS: usize = 256;
const ROW: usize = 4;

/// Which datagrams of a peer began to pass. Takes no memory until there is one.
#[derive(Debug, Default)]
pub(crate) struct Fragments(Vec<[Option<Datagram>; ROW]>);

/// What a first fragment was judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    /// The opening of its flow, and whose it was.
    pub(crate) opening: Opening,
    pub(crate) opened: Direction,
    pub(crate) rule: RuleSlot,
    /// Of the filter that judged it.
    pub(crate) generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Datagram {
    key: Key,
    passed: Passed,
    /// Where the first fragment ended: what begins before it would write over a header that was judged (RFC 1858, RFC 5722).
    end: u16,
    seen: Tick,
}

/// A fragment of a packet that goes some way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    key: Key,
    fragment: Fragment,
}

impl Piece {
    pub(crate) fn of(source: IpAddr, destination: IpAddr, fragment: Fragment, direction: Direction) -> Self {
        let key = Key::of_fragment(source, destination, fragment.protocol, fragment.id, direction);
        Self { key, fragment }
    }
}

impl Fragments {
    /// The first fragment of a datagram passed.
    pub(crate) fn begin(&mut self, piece: &Piece, passed: Passed, hash: &FlowHash, now: Tick) {
        if self.0.is_empty() {
            self.0 = vec![[None; ROW]; ROWS];
        }
        let row = &mut self.0[row_of(&piece.key, hash)];
        let same = row.iter().position(|held| held.is_some_and(|held| held.key == piece.key));
        // A shorter one of the same name must not make room over the header of one that was judged before.
        let judged =
            same.and_then(|at| row[at]).filter(|held| now.saturating_sub(held.seen) < FRAGMENTS_LAST);
        let end = judged.map_or(0, |held| held.end).max(piece.fragment.end);
        let datagram = Datagram { key: piece.key, passed, end, seen: now };
        let oldest = || (0..ROW).min_by_key(|&at| row[at].map(|held| held.seen)).unwrap_or_default();
        let at = same.unwrap_or_else(oldest);
        row[at] = Some(datagram);
    }

    /// What the first fragment of the same datagram was judged by, if it was; and whether this one leaves it as it was.
    pub(crate) fn find(&self, piece: &Piece, hash: &FlowHash, now: Tick) -> Option<(Passed, bool)> {
        let row = self.0.get(row_of(&piece.key, hash))?;
        let held = row.iter().flatten().find(|held| held.key == piece.key)?;
        let follows = piece.fragment.offset >= held.end;
        (now.saturating_sub(held.seen) < FRAGMENTS_LAST).then_some((held.passed, follows))
    }

    /// The filter was changed: the datagram is judged by this now, or not to pass any more.
    pub(crate) fn renew(&mut self, piece: &Piece, passed: Option<Passed>, hash: &FlowHash) {
        let row = self.0.get_mut(row_of(&piece.key, hash)).into_iter().flatten();
        for held in row.filter(|held| held.is_some_and(|held| held.key == piece.key)) {
            *held = passed.and_then(|passed| held.map(|held| Datagram { passed, ..held }));
        }
    }
}

fn row_of(key: &Key, hash: &FlowHash) -> usize {
    hash.of(key) as usize & (ROWS - 1)
}
