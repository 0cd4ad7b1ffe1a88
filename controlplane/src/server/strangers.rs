//! The connections on which nobody has proved anything: how many there are of one source, what they have sent, and who has to leave
//! when others need the room.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use super::accept::Limits;

/// Who may be counted together: an IPv4 address or an IPv6 /64, which one host can fill at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// All strangers' connections.
#[derive(Debug)]
pub(super) struct Strangers {
    limits: Limits,
    table: Mutex<Table>,
    /// What those connections have sent, in bytes.
    received: AtomicUsize,
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
        Self { limits, table: Mutex::default(), received: AtomicUsize::new(0) }
    }

    pub(super) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a place for `source` unless it has all it may have. The table is as long as there are connections, at most.
    pub(super) fn enter(self: &Arc<Self>, source: Source, leave: Arc<Leave>) -> Option<Place> {
        let mut table = lock(&self.table);
        if table.sources.get(&source).is_some_and(|held| held.len() >= self.limits.unproven_per_source) {
            return None;
        }
        table.last = table.last.wrapping_add(1);
        let number = table.last;
        table.change(source, |held| {
            held.insert(number, leave);
        });
        Some(Place { strangers: self.clone(), source, number, received: 0 })
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
}

impl Place {
    /// Counts what was received.
    pub(super) fn receive(&mut self, bytes: usize) {
        self.received = self.received.saturating_add(bytes);
        self.strangers.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether more is read of the connection: it has an allowance, and a share of it alone while all strangers together have sent
    /// more than they may.
    pub(super) fn may_receive(&self) -> bool {
        let limits = &self.strangers.limits;
        let crowded = self.strangers.received.load(Ordering::Relaxed) >= limits.unproven_bytes_of_all;
        self.received < if crowded { limits.unproven_share } else { limits.unproven_bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.strangers.received.fetch_sub(self.received, Ordering::Relaxed);
        let mut table = lock(&self.strangers.table);
        // One that was told to leave is not there any more.
        if table.sources.get(&self.source).is_some_and(|held| held.contains_key(&self.number)) {
            table.change(self.source, |held| drop(held.remove(&self.number)));
        }
    }
}

/// Tells a connection that it has to leave.
#[derive(Debug, Default)]
pub(super) struct Leave {
    told: AtomicBool,
    /// The task that has the connection.
    pub(super) task: AtomicWaker,
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
    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse::<IpAddr>().unwrap())
    }

    fn strangers(limits: Limits) -> Arc<Strangers> {
        Arc::new(Strangers::new(limits))
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    #[test]
    fn unproven_connections_of_a_source_are_bounded_and_forgotten_when_gone() {
        let strangers = strangers(Limits { unproven_per_source: 2, ..Limits::default() });
        let enter = |address| strangers.enter(source(address), Arc::default());
        let places: Vec<_> = (0..3).map_while(|_| enter("192.0.2.1")).collect();
        assert_eq!((places.len(), strangers.count(source("192.0.2.1"))), (2, 2));
        let other = enter("192.0.2.2");
        assert!(other.is_some());
        assert_eq!(strangers.sources(), 2);
        drop((places, other));
        assert_eq!((strangers.sources(), strangers.count(source("192.0.2.1"))), (0, 0));
        assert!(lock(&strangers.table).ranks.is_empty());
        assert!(!strangers.make_room(), "nobody is there");
    }

    #[test]
    fn room_is_made_by_the_oldest_of_the_source_that_has_most() {
        let strangers = strangers(Limits::default());
        let leaves: Vec<Arc<Leave>> = (0..5).map(|_| Arc::default()).collect();
        let sources = ["192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2", "192.0.2.3"];
        let mut places: Vec<_> = sources
            .iter()
            .zip(&leaves)
            .map(|(address, leave)| strangers.enter(source(address), leave.clone()).unwrap())
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
        let enter = || strangers.enter(source("192.0.2.1"), Arc::default()).unwrap();
        let (mut first, mut second, mut third) = (enter(), enter(), enter());
        first.receive(99);
        assert!(first.may_receive());
        first.receive(1);
        assert!(!first.may_receive(), "as much as one may send");
        second.receive(49);
        assert!(second.may_receive());
        second.receive(1);
        assert!(!second.may_receive(), "more than its share, and all have sent 150");
        third.receive(9);
        assert!(third.may_receive(), "less than its share");
        third.receive(1);
        assert!(!third.may_receive());
        drop((first, third));
        assert!(second.may_receive(), "what was sent by those who are gone does not count");
        drop(second);
        assert_eq!(strangers.received.load(Ordering::Relaxed), 0);
    }
}
