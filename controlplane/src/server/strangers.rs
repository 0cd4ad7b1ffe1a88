//! The connections on which nobody has proved anything: how many there are of one source, what they have sent, and who has to leave
//! when others need the room.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use futures_util::task::AtomicWaker;
pub(crate) use ringmesh_relay::Source;

use super::accept::Limits;

/// All strangers' connections.
#[derive(Debug)]
pub(super) struct Strangers {
    limits: Limits,
    table: Mutex<Table>,
    /// What those connections have sent, in bytes.
    received: AtomicUsize,
    /// Those of whom nothing is read because all together have sent too much; they wait for the end of that.
    stalled: Mutex<BTreeMap<u64, Arc<Leave>>>,
}

#[derive(Debug, Default)]
struct Table {
    last: u64,
    /// By age; never empty.
    sources: HashMap<Source, BTreeMap<u64, Arc<Leave>>>,
    /// The sources: who has most connections first, and of those who has the oldest.
    ranks: BTreeSet<(Reverse<usize>, u64, Source)>,
}

impl Strangers {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, table: Mutex::default(), received: AtomicUsize::new(0), stalled: Mutex::default() }
    }

    pub(super) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a newcomer of `source` is let in: it has not all it may have, or its oldest connection has had its time. Many may be
    /// behind one address: those who come at once shall not push out each other, and those who say nothing not keep out who comes.
    pub(super) fn admits(&self, source: Source) -> bool {
        let table = lock(&self.table);
        let Some(held) = table.sources.get(&source) else { return true };
        let oldest = held.first_key_value();
        held.len() < self.limits.unproven_per_source
            || oldest.is_none_or(|(_, leave)| leave.since.elapsed() >= self.limits.unproven_patience)
    }

    /// Takes a place for `source`. If it has all it may have, its oldest one leaves. The table is as long as there are connections, at
    /// most.
    pub(super) fn enter(self: &Arc<Self>, source: Source, leave: Arc<Leave>) -> Place {
        let mut table = lock(&self.table);
        table.last = table.last.wrapping_add(1);
        let number = table.last;
        let most = self.limits.unproven_per_source.max(1);
        table.change(source, |held| {
            if held.len() >= most
                && let Some((_, oldest)) = held.pop_first()
            {
                oldest.tell();
            }
            held.insert(number, leave.clone());
        });
        Place { strangers: self.clone(), source, number, received: 0, leave, stalled: false }
    }

    /// Whether all of them have sent more than they may.
    fn is_crowded(&self) -> bool {
        self.received.load(Ordering::Acquire) >= self.limits.unproven_bytes_of_all
    }

    /// Forgets what was sent by one who went. The others are told when much less is there than may be: not at every step, as they would
    /// be over the bound again at once.
    fn forget(&self, bytes: usize) {
        let low = self.limits.unproven_bytes_of_all / 8 * 7;
        let before = self.received.fetch_sub(bytes, Ordering::AcqRel);
        if before >= low && before.saturating_sub(bytes) < low {
            let stalled = std::mem::take(&mut *lock(&self.stalled));
            stalled.values().for_each(|leave| leave.task.wake());
        }
    }

    /// Tells a connection to leave: the oldest one of the source that has most. Whoever just came is not the one, unless there is no
    /// other; whether there was any.
    pub(super) fn make_room(&self) -> bool {
        let mut table = lock(&self.table);
        let Some((_, _, source)) = table.ranks.first().copied() else { return false };
        let mut told = false;
        table.change(source, |held| {
            // Out of the table at once, so that the next one who asks tells another.
            if let Some((_, leave)) = held.pop_first() {
                leave.tell();
                told = true;
            }
        });
        told
    }

    /// How many connections `source` has.
    pub(super) fn count(&self, source: Source) -> usize {
        lock(&self.table).sources.get(&source).map_or(0, BTreeMap::len)
    }

    #[cfg(test)]
    pub(super) fn sources(&self) -> usize {
        lock(&self.table).sources.len()
    }
}

impl Table {
    /// Changes the connections of `source`, and where it stands among the sources.
    fn change(&mut self, source: Source, change: impl FnOnce(&mut BTreeMap<u64, Arc<Leave>>)) {
        let rank = |held: &BTreeMap<u64, _>| Some((Reverse(held.len()), *held.first_key_value()?.0, source));
        let held = self.sources.entry(source).or_default();
        if let Some(rank) = rank(held) {
            self.ranks.remove(&rank);
        }
        change(held);
        match rank(held) {
            Some(rank) => drop(self.ranks.insert(rank)),
            None => drop(self.sources.remove(&source)),
        }
    }
}

/// A place among the strangers; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    strangers: Arc<Strangers>,
    source: Source,
    number: u64,
    /// What the connection sent since it has this place, in bytes.
    received: usize,
    leave: Arc<Leave>,
    /// Whether it may wait for the end of a crowd.
    stalled: bool,
}

impl Place {
    /// Counts what was received.
    pub(super) fn receive(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes);
        self.strangers.received.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Whether more is read of the connection: it has an allowance, and a share of it alone while all strangers together have sent
    /// more than they may. A record that began within it is read to its end, for half of one proves nothing; `inside` bytes were
    /// received of one that has not ended.
    pub(super) fn may_receive(&mut self, inside: usize) -> bool {
        let limits = &self.strangers.limits;
        let counted = self.received.saturating_sub(inside);
        if counted < limits.unproven_share || counted < limits.unproven_bytes && !self.strangers.is_crowded()
        {
            return true;
        }
        if counted >= limits.unproven_bytes {
            return false;
        }
        lock(&self.strangers.stalled).insert(self.number, self.leave.clone());
        self.stalled = true;
        // The crowd may have gone in the meantime, and not seen who waits.
        !self.strangers.is_crowded()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.stalled {
            lock(&self.strangers.stalled).remove(&self.number);
        }
        self.strangers.forget(self.received);
        let mut table = lock(&self.strangers.table);
        // One that was told to leave is not there any more.
        if table.sources.get(&self.source).is_some_and(|held| held.contains_key(&self.number)) {
            table.change(self.source, |held| drop(held.remove(&self.number)));
        }
    }
}

/// Tells a connection that it has to leave.
#[derive(Debug)]
pub(super) struct Leave {
    told: AtomicBool,
    /// When the connection was accepted.
    since: Instant,
    /// The task that has the connection.
    pub(super) task: AtomicWaker,
}

impl Default for Leave {
    fn default() -> Self {
        Self { told: AtomicBool::new(false), since: Instant::now(), task: AtomicWaker::new() }
    }
}

impl Leave {
    fn tell(&self) {
        self.told.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Forgets it, as the connection is no stranger's any more.
    pub(super) fn forget(&self) {
        self.told.store(false, Ordering::Release);
    }

    pub(super) fn is_told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Is ready once the connection has to leave.
    pub(super) fn poll_told(&self, cx: &Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        if self.is_told() { Poll::Ready(()) } else { Poll::Pending }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse::<IpAddr>().unwrap())
    }

    fn strangers(limits: Limits) -> Arc<Strangers> {
        Arc::new(Strangers::new(limits))
    }

    #[test]
    fn unproven_connections_of_a_source_are_bounded_and_forgotten_when_gone() {
        let strangers = strangers(Limits { unproven_per_source: 2, ..Limits::default() });
        let leaves: Vec<Arc<Leave>> = (0..4).map(|_| Arc::default()).collect();
        let enter = |address, leave: &Arc<Leave>| strangers.enter(source(address), leave.clone());
        let places: Vec<_> = leaves[..3].iter().map(|leave| enter("192.0.2.1", leave)).collect();
        assert_eq!(strangers.count(source("192.0.2.1")), 2);
        let other = enter("192.0.2.2", &leaves[3]);
        let told: Vec<bool> = leaves.iter().map(|leave| leave.is_told()).collect();
        assert_eq!(told, [true, false, false, false], "the oldest makes room for who comes");
        assert_eq!(strangers.sources(), 2);
        drop((places, other));
        assert_eq!((strangers.sources(), strangers.count(source("192.0.2.1"))), (0, 0));
        assert!(lock(&strangers.table).ranks.is_empty());
        assert!(!strangers.make_room(), "nobody is there");
    }

    #[test]
    fn those_of_one_source_who_come_at_once_do_not_push_out_each_other() {
        let (full, other) = (source("192.0.2.1"), source("192.0.2.2"));
        let full_after = |patience| {
            let limits = Limits { unproven_per_source: 2, unproven_patience: patience, ..Limits::default() };
            let strangers = strangers(limits);
            let mut places = vec![strangers.enter(full, Arc::default())];
            assert!(strangers.admits(full));
            places.push(strangers.enter(full, Arc::default()));
            (strangers, places)
        };
        let (strangers, places) = full_after(Duration::from_secs(3600));
        assert!(!strangers.admits(full) && strangers.admits(other));
        drop(places);
        assert!(strangers.admits(full));
        let (strangers, _places) = full_after(Duration::ZERO);
        assert!(strangers.admits(full), "the oldest has had its time");
    }

    #[test]
    fn room_is_made_by_the_oldest_of_the_source_that_has_most() {
        let strangers = strangers(Limits::default());
        let leaves: Vec<Arc<Leave>> = (0..5).map(|_| Arc::default()).collect();
        let sources = ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2", "192.0.2.3"];
        let mut places: Vec<_> = sources
            .iter()
            .zip(&leaves)
            .map(|(address, leave)| strangers.enter(source(address), leave.clone()))
            .collect();
        let told = || leaves.iter().map(|leave| leave.is_told()).collect::<Vec<_>>();
        assert!(strangers.make_room());
        assert_eq!(told(), [false, true, false, false, false]);
        assert!(strangers.make_room());
        assert_eq!(told(), [false, true, true, false, false]);
        // All have one: the oldest of all.
        assert!(strangers.make_room());
        assert_eq!(told(), [true, true, true, false, false]);
        // Those who were told go; the others are still counted.
        places.drain(..3);
        assert_eq!(strangers.sources(), 2);
        leaves[0].forget();
        assert!(!leaves[0].is_told());
    }

    #[test]
    fn strangers_may_send_so_much_and_less_when_all_together_have_sent_much() {
        let limits =
            Limits { unproven_share: 10, unproven_bytes: 100, unproven_bytes_of_all: 150, ..Limits::DEFAULT };
        let strangers = strangers(limits);
        let enter = || strangers.enter(source("192.0.2.1"), Arc::default());
        let (mut first, mut second, mut third) = (enter(), enter(), enter());
        first.receive(99);
        assert!(first.may_receive(0));
        first.receive(1);
        assert!(!first.may_receive(0), "as much as one may send");
        second.receive(49);
        assert!(second.may_receive(0));
        second.receive(1);
        assert!(!second.may_receive(0), "more than its share, and all have sent 150");
        third.receive(9);
        assert!(third.may_receive(0), "less than its share");
        third.receive(1);
        assert!(!third.may_receive(0));
        drop((first, third));
        assert!(second.may_receive(0), "what was sent by those who are gone does not count");
        drop(second);
        assert_eq!(strangers.received.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_record_that_began_within_the_allowance_is_received_whole_in_a_crowd_too() {
        let limits =
            Limits { unproven_share: 10, unproven_bytes: 100, unproven_bytes_of_all: 150, ..Limits::DEFAULT };
        let strangers = strangers(limits);
        let mut one = strangers.enter(source("192.0.2.1"), Arc::default());
        one.receive(140);
        assert!(one.may_receive(41) && !one.may_receive(40) && !one.may_receive(0));
        let mut other = strangers.enter(source("192.0.2.1"), Arc::default());
        other.receive(50);
        assert!(other.may_receive(41) && !other.may_receive(40) && !other.may_receive(0));
    }

    #[test]
    fn who_waits_for_the_end_of_a_crowd_is_told_of_it() {
        let limits =
            Limits { unproven_share: 10, unproven_bytes: 100, unproven_bytes_of_all: 160, ..Limits::DEFAULT };
        let strangers = strangers(limits);
        let (waiting, woken) = (Arc::<Leave>::default(), futures_util::task::noop_waker());
        let mut place = strangers.enter(source("192.0.2.1"), waiting.clone());
        let crowd: Vec<_> = (2..5)
            .map(|last| {
                let mut one = strangers.enter(source(&format!("192.0.2.{last}")), Arc::default());
                one.receive(50);
                one
            })
            .collect();
        place.receive(20);
        waiting.task.register(&woken);
        assert!(!place.may_receive(0));
        let mut crowd = crowd.into_iter();
        drop(crowd.next());
        assert!(waiting.task.take().is_none(), "its waker was used");
        assert!(place.may_receive(0) && lock(&strangers.stalled).is_empty());
    }
}
