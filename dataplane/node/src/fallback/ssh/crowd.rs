//! Who is connected to the endpoint, and who may still come.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ringmesh_tunnel::key::IdentityKey;
use tokio::sync::oneshot;

/// Connections in all.
const MAX_CONNECTIONS: usize = 512;
/// Connections in all that have not shown a member's key and opened the channel.
const MAX_STRANGERS: usize = 64;
/// The same of one IPv4 address, or of one /64.
const MAX_STRANGERS_PER_SOURCE: usize = 8;
/// Links that one member may have; a new one closes its oldest, which is likely dead.
const MAX_PER_MEMBER: usize = 4;

/// Whom to hold responsible: an IPv4 address, or the /64 from which an IPv6 host takes its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Source {
    fn of(address: SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Everybody who is here. Clones are the same crowd.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowd {
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    connections: usize,
    strangers: usize,
    sources: BTreeMap<Source, usize>,
    /// What ends each member's links, the oldest first.
    links: BTreeMap<IdentityKey, VecDeque<oneshot::Sender<()>>>,
}

impl Crowd {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in, unless there are too many.
    pub(super) fn admit(&self, from: SocketAddr) -> Option<Stranger> {
        let source = Source::of(from);
        let mut counts = self.counts();
        let of_source = counts.sources.get(&source).copied().unwrap_or_default();
        if counts.connections >= MAX_CONNECTIONS
            || counts.strangers >= MAX_STRANGERS
            || of_source >= MAX_STRANGERS_PER_SOURCE
        {
            return None;
        }
        counts.connections = counts.connections.saturating_add(1);
        counts.strangers = counts.strangers.saturating_add(1);
        counts.sources.insert(source, of_source.saturating_add(1));
        let place = Some(Place { crowd: self.clone() });
        Some(Stranger { crowd: self.clone(), source, place })
    }

    /// A place among the links of one member: resolves when newer ones need it.
    pub(super) fn register(&self, member: IdentityKey) -> oneshot::Receiver<()> {
        let (ends, ended) = oneshot::channel();
        let mut counts = self.counts();
        let links = counts.links.entry(member).or_default();
        links.retain(|link| !link.is_closed());
        links.push_back(ends);
        while links.len() > MAX_PER_MEMBER {
            links.pop_front();
        }
        counts.links.retain(|_, links| links.iter().any(|link| !link.is_closed()));
        ended
    }
}

/// Counts a connection while it lasts.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Crowd,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        counts.connections = counts.connections.saturating_sub(1);
    }
}

/// Counts a connection while it has proven nothing, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    crowd: Crowd,
    source: Source,
    place: Option<Place>,
}

impl Stranger {
    /// It has shown a member's key and opened the channel: only its place is counted from now on.
    pub(super) fn become_known(mut self) -> Option<Place> {
        self.place.take()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        counts.strangers = counts.strangers.saturating_sub(1);
        if let Some(count) = counts.sources.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.sources.remove(&self.source);
            }
        }
        // The place, if it is still here, is dropped after this and takes the lock for itself.
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::key::IdentitySecret;

    use super::*;

    fn from(source: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (source >> 8) as u8, source as u8], 1))
    }

    #[test]
    fn strangers_have_a_bound_in_all_and_one_for_each_source() {
        let crowd = Crowd::default();
        let mut here: Vec<_> = (0..8).map(|_| crowd.admit(from(0)).unwrap()).collect();
        assert!(crowd.admit(from(0)).is_none());
        here.extend((8..MAX_STRANGERS).map(|source| crowd.admit(from(source)).unwrap()));
        assert!(crowd.admit(from(999)).is_none());
        here.remove(0);
        assert!(crowd.admit(from(0)).is_some(), "who leaves makes room");
        drop(here);
        let counts = crowd.counts();
        assert_eq!((counts.connections, counts.strangers, counts.sources.len()), (0, 0, 0));
    }

    #[test]
    fn an_ipv6_host_is_one_source_whatever_address_it_takes_and_ipv4_is_ipv4_in_either_form() {
        let v6 = |text: &str| Source::of(SocketAddr::new(text.parse().unwrap(), 1));
        assert_eq!(v6("2001:db8:0:1::1"), v6("2001:db8:0:1:ffff::2"));
        assert_ne!(v6("2001:db8:0:1::1"), v6("2001:db8:0:2::1"));
        assert_eq!(v6("::ffff:192.0.2.1"), v6("192.0.2.1"));
        assert_ne!(v6("192.0.2.2"), v6("192.0.2.1"));
    }

    #[test]
    fn members_are_no_strangers_and_connections_have_a_bound() {
        let crowd = Crowd::default();
        let mut places = Vec::new();
        for source in 0..MAX_CONNECTIONS {
            places.push(crowd.admit(from(source)).unwrap().become_known().unwrap());
        }
        assert!(crowd.admit(from(0)).is_none());
        assert_eq!(crowd.counts().strangers, 0);
        places.pop();
        assert!(crowd.admit(from(0)).is_some());
    }

    #[test]
    fn a_members_newest_links_stay_and_what_ended_takes_no_place() {
        let crowd = Crowd::default();
        let [one, two] = [1, 2].map(|number| IdentitySecret::from_seed([number; 32]).public_key());
        let mut links: Vec<_> = (0..MAX_PER_MEMBER).map(|_| crowd.register(one)).collect();
        drop(links.remove(1));
        links.push(crowd.register(one));
        let mut other = crowd.register(two);
        assert!(links.iter_mut().all(|link| link.try_recv() == Err(oneshot::error::TryRecvError::Empty)));
        links.push(crowd.register(one));
        assert_eq!(links[0].try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(links[1].try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(other.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(links);
        drop(crowd.register(two));
        drop(other);
        drop(crowd.register(one));
        assert!(crowd.counts().links.len() <= 1, "who is gone is forgotten");
    }
}
