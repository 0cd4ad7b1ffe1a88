//! A relay's client: what is known and counted of one member.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ringmesh_tunnel::Hop;
use ringmesh_tunnel::key::{NodeId, PublicKey};

use crate::channels::{Place, Slot};
use crate::drops::RelayDrops;
use crate::rate::Ticket;

/// How long after a client moved its datagrams are also taken from where it was before: what was under way there may be
/// overtaken by what it sent on a faster way.
pub const UNDER_WAY: Duration = Duration::from_secs(1);

/// Datagrams and their bytes, the relay's header included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub datagrams: u64,
    /// Bytes of them all.
    pub bytes: u64,
}

impl Traffic {
    pub(crate) fn add(&mut self, bytes: usize) {
        self.datagrams = self.datagrams.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    pub(crate) fn take_back(&mut self, bytes: usize) {
        self.datagrams = self.datagrams.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// What can be said about a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReport {
    /// Its name in the network.
    pub id: NodeId,
    /// Where it was last heard.
    pub hop: Option<Hop>,
    /// Whether it was heard in the last 90 s.
    pub here: bool,
    /// Pairs it made by asking for a channel.
    pub channels: usize,
    /// What it sent that was passed on.
    pub from: Traffic,
    /// What was passed on to it.
    pub to: Traffic,
    /// What it sent that was not passed on, and what could not be sent to it.
    pub drops: RelayDrops,
}

/// A member, here or not.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: NodeId,
    pub(crate) keys: BTreeSet<PublicKey>,
    pub(crate) ticket: Ticket,
    pub(crate) here: bool,
    /// Pairs it made by asking for a channel.
    pub(crate) made: usize,
    /// Pairs it is in, by its own end.
    pub(crate) ends: BTreeSet<Place>,
    /// Where it was heard, as of that state of the tunnel.
    pub(crate) hop: (u64, Option<Hop>),
    /// Where it moved to last.
    home: Option<Hop>,
    /// Where it was before that, and until when that matters.
    former: Option<(Hop, Instant)>,
    pub(crate) from: Traffic,
    pub(crate) to: Traffic,
    pub(crate) drops: RelayDrops,
}

impl Client {
    /// One that was never heard.
    pub(crate) fn new(id: NodeId, keys: BTreeSet<PublicKey>, ticket: Ticket) -> Self {
        Self {
            id,
            keys,
            ticket,
            here: false,
            made: 0,
            ends: BTreeSet::new(),
            hop: (0, None),
            home: None,
            former: None,
            from: Traffic::default(),
            to: Traffic::default(),
            drops: RelayDrops::default(),
        }
    }

    /// It is heard elsewhere from now on.
    pub(crate) fn moved(&mut self, home: Option<Hop>, now: Instant) {
        if self.home != home {
            let until = now.checked_add(UNDER_WAY);
            self.former = self.home.zip(until);
            self.home = home;
        }
    }

    /// It is away: where it was is nobody's place any more.
    pub(crate) fn left(&mut self) {
        (self.home, self.former) = (None, None);
    }

    /// Whether this is where it was until a moment ago.
    pub(crate) fn was_at(&self, hop: Hop, now: Instant) -> bool {
        self.former.is_some_and(|(former, until)| former == hop && now < until)
    }

    pub(crate) fn report(&self, hop: Option<Hop>) -> ClientReport {
        ClientReport {
            id: self.id,
            hop,
            here: self.here,
            channels: self.made,
            from: self.from,
            to: self.to,
            drops: self.drops.clone(),
        }
    }
}

/// All members, each in a slot that it keeps.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    slots: Vec<Option<Client>>,
    free: Vec<Slot>,
    by_id: BTreeMap<NodeId, Slot>,
}

impl Clients {
    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn get(&self, slot: Slot) -> Option<&Client> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Client> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(crate) fn slot_of(&self, id: NodeId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn insert(&mut self, client: Client) -> Slot {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(None);
                self.slots.len().saturating_sub(1) as Slot
            }
        };
        self.by_id.insert(client.id, slot);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(client);
        }
        slot
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Client> {
        let client = self.slots.get_mut(slot as usize)?.take()?;
        self.by_id.remove(&client.id);
        self.free.push(slot);
        Some(client)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Client)> {
        self.slots.iter().enumerate().filter_map(|(slot, client)| Some((slot as Slot, client.as_ref()?)))
    }
}
