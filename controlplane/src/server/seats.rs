//! The connections that are proven by an API key: how many there are of each key and of all, and which one has to leave when there are
//! more. So no key, whatever it may do otherwise, can take the places of nodes, nor of another key for long.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use super::strangers::lock;
use crate::network::api_keys::ApiKeyId;

/// The seats of all keys; each has a `T` that says whose it is.
#[derive(Debug)]
pub(super) struct Seats<T> {
    /// Of one key.
    per_key: usize,
    /// Of all keys.
    in_all: usize,
    table: Mutex<Table<T>>,
}

#[derive(Debug)]
struct Table<T> {
    last: u64,
    count: usize,
    /// By age; never empty.
    keys: HashMap<ApiKeyId, BTreeMap<u64, T>>,
}

impl<T> Seats<T> {
    pub(super) fn new(per_key: usize, in_all: usize) -> Arc<Self> {
        let table = Table { last: 0, count: 0, keys: HashMap::new() };
        Arc::new(Self { per_key: per_key.max(1), in_all: in_all.max(1), table: Mutex::new(table) })
    }

    /// Takes a seat for `who`, and tells who loses his for it: the oldest one of the key if it has too many, and of the key that has
    /// most if all together have.
    pub(super) fn take(self: &Arc<Self>, key: ApiKeyId, who: T) -> (Seat<T>, Option<T>) {
        let mut table = lock(&self.table);
        let too_many = table.keys.get(&key).is_some_and(|held| held.len() >= self.per_key);
        let loses = if too_many {
            Some(key)
        } else if table.count >= self.in_all {
            // Seldom, and there are no more keys here than seats.
            let most = table.keys.iter().max_by_key(|(key, held)| (held.len(), Reverse(**key)));
            most.map(|(key, _)| *key)
        } else {
            None
        };
        let loser = loses.and_then(|key| table.remove(key, None));
        table.last = table.last.wrapping_add(1);
        let number = table.last;
        table.keys.entry(key).or_default().insert(number, who);
        table.count = table.count.saturating_add(1);
        (Seat { seats: self.clone(), key, number, uses: 1 }, loser)
    }
}

impl<T> Table<T> {
    /// Takes a seat back: the one of this number, or the oldest.
    fn remove(&mut self, key: ApiKeyId, number: Option<u64>) -> Option<T> {
        let held = self.keys.get_mut(&key)?;
        let removed = match number {
            Some(number) => held.remove(&number),
            None => held.pop_first().map(|(_, who)| who),
        };
        if held.is_empty() {
            self.keys.remove(&key);
        }
        if removed.is_some() {
            self.count = self.count.saturating_sub(1);
        }
        removed
    }
}

/// That a connection counts for a key; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat<T> {
    seats: Arc<Seats<T>>,
    pub(super) key: ApiKeyId,
    number: u64,
    /// Requests with the key that are open on the connection.
    pub(super) uses: usize,
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        // One that was lost is not there any more.
        drop(lock(&self.seats.table).remove(self.key, Some(self.number)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_a_key_leaves_when_it_has_too_many_and_of_the_key_with_most_when_all_have() {
        let [a, b] = ["0101010101010101", "0202020202020202"].map(|id| id.parse::<ApiKeyId>().unwrap());
        let seats = Seats::new(3, 4);
        let mut held = Vec::new();
        let mut take = |key, name: &'static str| {
            let (seat, loser) = seats.take(key, name);
            held.push(seat);
            loser
        };
        assert_eq!([take(a, "a1"), take(a, "a2"), take(a, "a3")], [None; 3]);
        assert_eq!(take(a, "a4"), Some("a1"));
        assert_eq!(take(b, "b1"), None);
        assert_eq!(take(b, "b2"), Some("a2"), "there are four, and most are of the first key");
        assert_eq!(lock(&seats.table).count, 4);
        // Those who lost theirs give nothing back.
        held.drain(..2);
        assert_eq!(lock(&seats.table).count, 4);
        drop(held);
        assert_eq!(lock(&seats.table).count, 0);
        assert!(lock(&seats.table).keys.is_empty());
    }
}
