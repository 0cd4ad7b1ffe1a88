//! What happens, as it is told to who watches: durable events are looked up when there is room for them, the rest is passed on once.
//!
//! A watcher has a place, the revision up to which it was told everything. So a slow one costs no memory for what is durable, and
//! one that was cut off goes on from its place. What is not durable waits in one ring for all watchers; who falls behind by a whole
//! ring is ended with word to go on from its place, as what it missed is nowhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use ringmesh_tunnel::{UnixTime, key::NetworkId};
use tokio::sync::broadcast;

use super::Coordinator;
use crate::{
    auth::NodeOf,
    error::Refused,
    network::{
        NetworkState, Registry,
        events::{Actor, Event, Happening, Name, Page, Unknown},
    },
    store::Revision,
};

/// What the ring of events that are not durable holds.
pub(crate) const RING: usize = 4096;
/// How many may watch one network at a time, and how many everything.
pub(crate) const WATCHERS_MAX: usize = 64;
/// How many revisions of a network are followed until they are installed. Who waits for one that is older than these is told of a
/// newer one, with which it is installed, too.
const FOLLOWED_MAX: usize = 256;

/// What is there for a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// All networks, and what belongs to none.
    Everything,
    Network(NetworkId),
}

impl Seen {
    fn has(self, network: Option<NetworkId>) -> bool {
        match self {
            Self::Everything => true,
            Self::Network(own) => network == Some(own),
        }
    }
}

/// Something that changed nothing durable.
#[derive(Debug, Clone)]
pub(crate) struct Occurrence {
    pub(super) time: UnixTime,
    pub(super) what: What,
}

/// What it was.
#[derive(Debug, Clone)]
pub(super) enum What {
    Online { who: NodeOf, version: String },
    Offline { who: NodeOf },
    Installed { network: NetworkId, revision: Revision, installed: usize, behind: usize },
}

impl What {
    const fn network(&self) -> NetworkId {
        match self {
            Self::Online { who, .. } | Self::Offline { who } => who.network,
            Self::Installed { network, .. } => *network,
        }
    }
}

/// Tells whoever listens at that moment.
#[derive(Debug, Clone)]
pub(crate) struct Herald(broadcast::Sender<Arc<Occurrence>>);

impl Default for Herald {
    fn default() -> Self {
        Self(broadcast::Sender::new(RING))
    }
}

impl Herald {
    pub(super) fn tell(&self, time: UnixTime, what: What) {
        // Nobody may be listening.
        drop(self.0.send(Arc::new(Occurrence { time, what })));
    }

    fn listen(&self) -> broadcast::Receiver<Arc<Occurrence>> {
        self.0.subscribe()
    }
}

/// How many watch what.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<BTreeMap<Seen, usize>>);

/// The right to watch, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Seat {
    coordinator: Coordinator,
    seen: Seen,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut watchers = self.coordinator.0.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = watchers.get_mut(&self.seen) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                watchers.remove(&self.seen);
            }
        }
    }
}

impl Coordinator {
    /// Durable events after a revision, about `most` of them.
    pub(crate) fn events_after(&self, seen: Seen, after: Revision, most: usize) -> Result<Page, Unknown> {
        self.with_registry(|registry| registry.events_after(|network| seen.has(network), after, most))
    }

    /// Takes a seat to watch.
    ///
    /// # Errors
    /// If all are taken.
    pub(crate) fn take_seat(&self, seen: Seen) -> Result<Seat, Refused> {
        let mut watchers = self.0.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = watchers.entry(seen).or_default();
        if *count >= WATCHERS_MAX {
            return Err(Refused::TooManyWatchers { most: WATCHERS_MAX });
        }
        *count += 1;
        Ok(Seat { coordinator: self.clone(), seen })
    }

    /// How many watch this.
    #[cfg(test)]
    pub(crate) fn watchers(&self, seen: Seen) -> usize {
        let watchers = self.0.watchers.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.get(&seen).copied().unwrap_or_default()
    }

    /// Hears of everything that is not durable, from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<Occurrence>> {
        self.presence().herald().listen()
    }

    /// An occurrence as an event, if it is there for this watcher.
    pub(crate) fn event_of(&self, seen: Seen, occurrence: &Occurrence) -> Option<Event> {
        let Occurrence { time, what } = occurrence;
        let network = what.network();
        if !seen.has(Some(network)) {
            return None;
        }
        let node = |name: Name, who: &NodeOf| {
            let called = |state: &NetworkState| state.name_of(who.node).map(str::to_owned);
            let called = self.with_network(network, called).ok().flatten().unwrap_or_default();
            let actor = Actor::node(who.node, &called);
            Happening::new(network, name).about(who.node, called).by(actor)
        };
        let happening = match what {
            What::Online { who, version } => node(Name::NodeOnline, who).with("version", version),
            What::Offline { who } => node(Name::NodeOffline, who),
            What::Installed { revision, installed, behind, .. } => {
                Happening::new(network, Name::RevisionInstalled)
                    .about(revision, "")
                    .with("revision", revision)
                    .with("installed", installed)
                    .with("behind", behind)
            }
        };
        let (network, row) = happening.told(Actor::coordinator(), *time);
        Some(Event { revision: 0, network, row })
    }

    /// Follows what members hear of in their maps until all that are online have it, on a task that ends with the coordinator.
    pub(super) fn follow_installations(&self) {
        let weak = Arc::downgrade(&self.0);
        let (mut moved, mut changed) = (self.presence().moved(), self.changed());
        let mut followed = Followed::from(self.with_registry(Registry::revision));
        tokio::spawn(async move {
            loop {
                let woken = tokio::select! {
                    woken = moved.changed() => woken,
                    woken = changed.changed() => woken,
                };
                let Some(inner) = weak.upgrade().filter(|_| woken.is_ok()) else { return };
                followed.look(&Self(inner));
            }
        });
    }

    /// The revision that every node of a network that is online has installed, and its relay if this process runs it.
    fn everywhere(&self, network: NetworkId) -> Revision {
        let relay = self.with_network(network, |state| {
            let (own, _) = state.own_relay()?;
            self.relay_standing(state, own)
        });
        let nodes =
            self.presence().with_tracks(|tracks| tracks.get(&network).map(|track| track.everywhere()));
        let relay = relay.ok().flatten();
        nodes.into_iter().chain(relay).min().unwrap_or(Revision::MAX)
    }
}

/// Revisions that are on their way to the nodes.
#[derive(Debug)]
struct Followed {
    /// Up to here events were looked at.
    upto: Revision,
    revisions: BTreeMap<NetworkId, BTreeSet<Revision>>,
}

impl Followed {
    const fn from(upto: Revision) -> Self {
        Self { upto, revisions: BTreeMap::new() }
    }

    /// Takes in what is new, and tells what has arrived.
    fn look(&mut self, coordinator: &Coordinator) {
        self.take_in(coordinator);
        let mut arrived = Vec::new();
        for (network, revisions) in &mut self.revisions {
            let everywhere = coordinator.everywhere(*network);
            while let Some(revision) = revisions.first().copied().filter(|first| *first <= everywhere) {
                revisions.pop_first();
                arrived.push((*network, revision));
            }
        }
        self.revisions.retain(|_, revisions| !revisions.is_empty());
        arrived.sort_by_key(|(_, revision)| *revision);
        for (network, revision) in arrived {
            let Ok(now) = coordinator.installation_now(network, revision) else { continue };
            let (installed, behind) = (now.installed.len(), now.behind.len());
            let what = What::Installed { network, revision, installed, behind };
            coordinator.presence().herald().tell(coordinator.now(), what);
        }
    }

    fn take_in(&mut self, coordinator: &Coordinator) {
        if coordinator.with_registry(Registry::revision) == self.upto {
            return;
        }
        // What is forgotten already was so long ago that nobody waits for it.
        let page = coordinator.events_after(Seen::Everything, self.upto, usize::MAX).unwrap_or_else(|_| {
            Page { upto: coordinator.with_registry(Registry::revision), ..Page::default() }
        });
        self.upto = page.upto;
        for Event { revision, network, row } in page.events {
            let follows = row.name.parse::<Name>().is_ok_and(Name::is_installed);
            if let Some(network) = network.filter(|_| follows) {
                let revisions = self.revisions.entry(network).or_default();
                revisions.insert(revision);
                if revisions.len() > FOLLOWED_MAX {
                    revisions.pop_first();
                }
            }
        }
    }
}
