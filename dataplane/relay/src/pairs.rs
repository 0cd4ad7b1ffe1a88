//! Pairs of clients: who made them, how many one may make, and when they end.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::time::{Duration, Instant};

use ringmesh_tunnel::BindRefusal;

use crate::channels::{Channels, End, MAX_PAIRS, Place, Slot, opposite};
use crate::client::Clients;

/// Channels that one client may have asked for.
pub const MAX_CHANNELS_PER_CLIENT: usize = 1024;
/// A pair of which neither end was here this long may be taken away when there is no room for another. Whoever comes back
/// after that asks anew, as it needs a new session first.
pub const FORGET_AFTER: Duration = Duration::from_secs(3600);

/// All pairs of a relay, by their channels.
#[derive(Debug)]
pub(crate) struct Pairs {
    channels: Channels,
}

impl Pairs {
    pub(crate) const fn new(channels: Channels) -> Self {
        Self { channels }
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

    /// The end of `asker` in its pair with `other`, which is made if there is none.
    pub(crate) fn find_or_make(
        &mut self,
        clients: &mut Clients,
        asker: Slot,
        other: Slot,
        now: Instant,
    ) -> Result<Place, BindRefusal> {
        let known = self.channels.between(asker, other);
        if let Some(place) = known
            && self.channels.end(place).is_some_and(|end| end.asked)
        {
            return Ok(place);
        }
        if clients.get(asker).is_none_or(|client| client.asked >= MAX_CHANNELS_PER_CLIENT) {
            return Err(BindRefusal::Full);
        }
        let place = match known {
            Some(place) => place,
            None => self.make(clients, asker, other, now).ok_or(BindRefusal::Full)?,
        };
        if let Some(end) = self.channels.end_mut(place) {
            end.asked = true;
        }
        if let Some(client) = clients.get_mut(asker) {
            client.asked = client.asked.saturating_add(1);
        }
        Ok(place)
    }

    fn make(&mut self, clients: &mut Clients, asker: Slot, other: Slot, now: Instant) -> Option<Place> {
        if self.channels.pairs() >= MAX_PAIRS {
            self.forget_old(clients, now);
        }
        let place = self.channels.insert(asker, other)?;
        for (slot, place) in [(asker, place), (other, opposite(place))] {
            if let Some(client) = clients.get_mut(slot) {
                client.ends.insert(place);
            }
        }
        Some(place)
    }

    /// Ends a pair, given one of its ends.
    pub(crate) fn remove(&mut self, clients: &mut Clients, place: Place) {
        let Some(ends) = self.channels.remove(place) else { return };
        for (end, place) in ends.iter().zip([place, opposite(place)]) {
            if let Some(client) = clients.get_mut(end.owner) {
                client.ends.remove(&place);
                client.asked = client.asked.saturating_sub(usize::from(end.asked));
            }
        }
    }

    fn forget_old(&mut self, clients: &mut Clients, now: Instant) {
        let long_gone = |end: Option<&End>| {
            let client = end.and_then(|end| clients.get(end.owner));
            client.is_none_or(|client| {
                !client.here && now.saturating_duration_since(client.last_here) >= FORGET_AFTER
            })
        };
        let old: Vec<Place> = self
            .channels
            .all()
            .filter(|&place| {
                long_gone(self.channels.end(place)) && long_gone(self.channels.end(opposite(place)))
            })
            .collect();
        for place in old {
            self.remove(clients, place);
        }
    }
}
