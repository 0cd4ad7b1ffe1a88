//! Pairs of clients: who made them, how many one may make, and when they end.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::time::{Duration, Instant};

use ringmesh_tunnel::BindRefusal;

use crate::channels::{Channels, End, MAX_PAIRS, Place, Slot, opposite};
use crate::client::Clients;

/// Pairs that one client may have made by asking for a channel. That others asked for one to it costs it nothing.
pub const MAX_CHANNELS_PER_CLIENT: usize = 1024;
/// A pair that was not asked for and in which nothing was passed on for so long may be taken away when there is no room for another,
/// be its ends here or not. Who needs it again asks again.
pub const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// How often all pairs are looked at at most, however many clients ask in vain.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// All pairs of a relay, by their channels.
#[derive(Debug)]
pub(crate) struct Pairs {
    channels: Channels,
    /// When they may all be looked at again.
    next_look: Option<Instant>,
}

impl Pairs {
    pub(crate) const fn new(channels: Channels) -> Self {
        Self { channels, next_look: None }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.channels.pairs()
    }

    /// The end that has this number.
    pub(crate) fn find(&self, number: u32) -> Option<(Place, &End)> {
        self.channels.find(number)
    }

    pub(crate) fn end(&self, place: Place) -> Option<&End> {
        self.channels.end(place)
    }

    pub(crate) fn end_mut(&mut self, place: Place) -> Option<&mut End> {
        self.channels.end_mut(place)
    }

    /// Something is passed on in the pair that has this end.
    pub(crate) fn used(&mut self, place: Place, now: Instant) {
        self.channels.used(place, now);
    }

    /// The end of `asker` in its pair with `other`, which is made if there is none.
    pub(crate) fn find_or_make(
        &mut self,
        clients: &mut Clients,
        asker: Slot,
        other: Slot,
        now: Instant,
    ) -> Result<Place, BindRefusal> {
        if let Some(place) = self.channels.between(asker, other) {
            self.channels.used(place, now);
            return Ok(place);
        }
        if !self.has_room(clients, asker) {
            self.forget_old(clients, now);
            if !self.has_room(clients, asker) {
                return Err(BindRefusal::Full);
            }
        }
        let place = self.channels.insert(asker, other, now).ok_or(BindRefusal::Full)?;
        for (slot, place) in [(asker, place), (other, opposite(place))] {
            if let Some(client) = clients.get_mut(slot) {
                client.ends.insert(place);
            }
        }
        if let Some(client) = clients.get_mut(asker) {
            client.made = client.made.saturating_add(1);
        }
        Ok(place)
    }

    fn has_room(&self, clients: &Clients, asker: Slot) -> bool {
        let made = clients.get(asker).map(|client| client.made);
        self.channels.pairs() < MAX_PAIRS && made.is_some_and(|made| made < MAX_CHANNELS_PER_CLIENT)
    }

    /// Ends a pair, given one of its ends.
    pub(crate) fn remove(&mut self, clients: &mut Clients, place: Place) {
        let Some(ends) = self.channels.remove(place) else { return };
        for (end, place) in ends.iter().zip([place, opposite(place)]) {
            if let Some(client) = clients.get_mut(end.owner) {
                client.ends.remove(&place);
                client.made = client.made.saturating_sub(usize::from(end.maker));
            }
        }
    }

    /// Ends the pairs that nobody uses. Looks at them all, and so not each time that somebody asks in vain.
    fn forget_old(&mut self, clients: &mut Clients, now: Instant) {
        if self.next_look.is_some_and(|next| now < next) {
            return;
        }
        self.next_look = now.checked_add(LOOK_EVERY);
        let Some(then) = now.checked_sub(FORGET_AFTER) else { return };
        let old: Vec<Place> = self.channels.unused_since(then).collect();
        for place in old {
            self.remove(clients, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ringmesh_tunnel::key::{NodeId, PublicKey};

    use super::*;
    use crate::client::Client;
    use crate::rate::{Limiter, Rates};

    const SECOND: Duration = Duration::from_secs(1);

    /// So many clients, without a pair.
    fn world(count: u16, now: Instant) -> (Pairs, Clients) {
        let mut clients = Clients::default();
        let mut limiter = Limiter::new(Rates::default(), now);
        for number in 0..count {
            let [a, b] = number.to_be_bytes();
            let id = NodeId::from_bytes([a, b, 0, 0, 0, 0, 0, 1]);
            let keys = BTreeSet::<PublicKey>::new();
            let slot = clients.insert(Client::new(id, keys, limiter.join(now)));
            clients.get_mut(slot).unwrap().here = true;
        }
        (Pairs::new(Channels::new(1, 0x0815_4711)), clients)
    }

    fn made(clients: &Clients, slot: Slot) -> usize {
        clients.get(slot).unwrap().made
    }

    #[test]
    fn who_makes_a_pair_is_charged_and_who_finds_it_is_not() {
        let now = Instant::now();
        let (mut pairs, mut clients) = world(1200, now);
        for other in 1..=1100 {
            pairs.find_or_make(&mut clients, other, 0, now).unwrap();
            pairs.find_or_make(&mut clients, 0, other, now).unwrap();
        }
        assert_eq!((made(&clients, 0), made(&clients, 1), pairs.count()), (0, 1, 1100));
        pairs.find_or_make(&mut clients, 0, 1101, now).unwrap();
        assert_eq!(made(&clients, 0), 1);
        let place = pairs.channels.between(1101, 0).unwrap();
        pairs.remove(&mut clients, place);
        assert_eq!((made(&clients, 0), made(&clients, 1101)), (0, 0));
    }

    #[test]
    fn pairs_unused_for_an_hour_make_room_though_their_ends_are_here() {
        let start = Instant::now();
        let (mut pairs, mut clients) = world(1100, start);
        let mut now = start;
        for other in 1..=MAX_CHANNELS_PER_CLIENT as Slot {
            pairs.find_or_make(&mut clients, 0, other, now).unwrap();
        }
        let used = pairs.channels.between(1, 0).unwrap();
        now += FORGET_AFTER - SECOND;
        assert_eq!(pairs.find_or_make(&mut clients, 0, 1050, now), Err(BindRefusal::Full));
        pairs.used(used, now);
        pairs.find_or_make(&mut clients, 2, 0, now).unwrap();
        now += LOOK_EVERY;
        pairs.find_or_make(&mut clients, 0, 1050, now).unwrap();
        assert_eq!(pairs.count(), 3, "what was used and what was asked for stays");
        assert!(pairs.end(used).is_some() && pairs.channels.between(0, 2).is_some());
        assert_eq!(clients.get(0).unwrap().ends.len(), 3);
    }

    #[test]
    fn all_pairs_are_looked_at_once_in_five_seconds_however_many_ask_in_vain() {
        let start = Instant::now();
        let makers = (MAX_PAIRS / MAX_CHANNELS_PER_CLIENT) as Slot;
        let (mut pairs, mut clients) = world(makers as u16 + 1025, start);
        for maker in 0..makers {
            for other in makers..makers + MAX_CHANNELS_PER_CLIENT as Slot {
                pairs.find_or_make(&mut clients, maker, other, start).unwrap();
            }
        }
        assert_eq!(pairs.count(), MAX_PAIRS);
        let (asker, other) = (makers, makers + 1);
        let mut ask = |pairs: &mut Pairs, now| pairs.find_or_make(&mut clients, asker, other, now);
        // In the last moment before they are old they are looked at, and then not again though they are.
        let looked = start + FORGET_AFTER - Duration::from_millis(1);
        assert_eq!(ask(&mut pairs, looked), Err(BindRefusal::Full));
        for millis in 1..LOOK_EVERY.as_millis() as u64 {
            assert_eq!(ask(&mut pairs, looked + Duration::from_millis(millis)), Err(BindRefusal::Full));
        }
        assert_eq!(pairs.count(), MAX_PAIRS, "nobody looked");
        assert!(ask(&mut pairs, looked + LOOK_EVERY).is_ok());
        assert_eq!(pairs.count(), 1);
    }
}
