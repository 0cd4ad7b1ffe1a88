//! Whom to hold responsible for a connection before anybody has said who they are, and how many of them one may have.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Who may be counted together: an IPv4 address, or the /64 from which an IPv6 host chooses its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The address.
    V4(u32),
    /// The upper half of the addresses.
    V6(u64),
}

impl Source {
    /// That of `address`; an IPv4 address written as an IPv6 one (`::ffff:192.0.2.1`) is an IPv4 address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }

    /// The networks that it is part of, widest first, and itself at the end. One owner may have all of a network: an IPv4 /24; of
    /// IPv6, a /48 is what a site gets and a /56 what a household gets.
    const fn networks(self) -> [Self; 3] {
        match self {
            Self::V4(bits) => [Self::V4(bits & !0xff), Self::V4(bits & !0xff), self],
            Self::V6(bits) => [Self::V6(bits & !0xffff), Self::V6(bits & !0xff), self],
        }
    }
}

/// Connections that have proved nothing yet. When there are as many as there may be, one of whoever has most of them makes room
/// for the next: so many addresses of one owner's keep nobody else out.
#[derive(Debug, Clone)]
pub(super) struct Unproven {
    in_all: usize,
    per_source: usize,
    crowd: Arc<Mutex<Crowd>>,
}

#[derive(Debug, Default)]
struct Crowd {
    /// By the order in which they came.
    members: BTreeMap<u64, Member>,
    last: u64,
}

#[derive(Debug)]
struct Member {
    /// None: a proxy has not said yet.
    source: Option<Source>,
    waker: Option<Waker>,
}

/// A connection's place among those that have proved nothing yet; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    unproven: Unproven,
    number: u64,
}

impl Unproven {
    pub(super) fn new(in_all: usize, per_source: usize) -> Self {
        Self { in_all, per_source, crowd: Arc::default() }
    }

    /// A place for a connection whose source is not known yet. It is there at once, and another one lost if need be.
    pub(super) fn enter(&self) -> Place {
        let mut crowd = self.crowd();
        while crowd.members.len() >= self.in_all.max(1) {
            crowd.drop_one();
        }
        crowd.last += 1;
        let number = crowd.last;
        crowd.members.insert(number, Member { source: None, waker: None });
        Place { unproven: self.clone(), number }
    }

    /// A place for a connection from `source`; none if they have as many as they may.
    pub(super) fn enter_from(&self, source: Source) -> Option<Place> {
        // Asked first: nobody loses a place to one who is not let in.
        self.has_room_for(source).then(|| {
            let place = self.enter();
            place.set(source);
            place
        })
    }

    pub(super) fn count(&self) -> usize {
        self.crowd().members.len()
    }

    fn has_room_for(&self, source: Source) -> bool {
        let crowd = self.crowd();
        crowd.members.values().filter(|member| member.source == Some(source)).count() < self.per_source
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crowd {
    /// Drops the oldest of the biggest source: of the biggest network, and there of the biggest in it, and so on. Of several that
    /// are equal in number, the one that came first.
    fn drop_one(&mut self) {
        let mut candidates: Vec<(u64, Option<[Source; 3]>)> = self
            .members
            .iter()
            .map(|(&number, member)| (number, member.source.map(Source::networks)))
            .collect();
        for level in 0..3 {
            let network =
                |candidate: &(u64, Option<[Source; 3]>)| candidate.1.map(|networks| networks[level]);
            let mut counts: BTreeMap<Option<Source>, usize> = BTreeMap::new();
            for candidate in &candidates {
                *counts.entry(network(candidate)).or_default() += 1;
            }
            let most = counts.values().copied().max();
            // The candidates are still in the order in which they came.
            let biggest = candidates.iter().map(network).find(|network| counts.get(network).copied() == most);
            candidates.retain(|candidate| Some(network(candidate)) == biggest);
        }
        if let Some((number, _)) = candidates.first()
            && let Some(member) = self.members.remove(number)
            && let Some(waker) = member.waker
        {
            waker.wake();
        }
    }
}

impl Place {
    /// Says who is behind the connection. `false`: they have as many as they may, or the place is lost.
    pub(super) fn name(&self, source: Source) -> bool {
        self.unproven.has_room_for(source) && self.set(source)
    }

    fn set(&self, source: Source) -> bool {
        let mut crowd = self.unproven.crowd();
        let member = crowd.members.get_mut(&self.number).filter(|member| member.source.is_none());
        member.map(|member| member.source = Some(source)).is_some()
    }

    /// Ready once the place is lost to another connection.
    pub(super) fn poll_lost(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut crowd = self.unproven.crowd();
        let Some(member) = crowd.members.get_mut(&self.number) else { return Poll::Ready(()) };
        if !member.waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
            member.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Ends when the place is lost to another connection.
    pub(super) async fn lost(&self) {
        poll_fn(|context| self.poll_lost(context)).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Its waker is dropped when the lock is not held any more.
        let _member = self.unproven.crowd().members.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse().unwrap())
    }

    fn is_lost(place: &Place) -> bool {
        place.poll_lost(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn lost(places: &[Place]) -> Vec<usize> {
        (0..places.len()).filter(|&at| is_lost(&places[at])).collect()
    }

    fn enter(unproven: &Unproven, addresses: &[&str]) -> Vec<Place> {
        addresses.iter().map(|address| unproven.enter_from(source(address)).unwrap()).collect()
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        let [site, household, link] = source("2001:db8:1:2345::1").networks();
        assert_eq!(site, source("2001:db8:1::"));
        assert_eq!(household, source("2001:db8:1:2300::"));
        assert_eq!(link, source("2001:db8:1:2345::"));
        assert_eq!(source("192.0.2.77").networks()[0], source("192.0.2.0"));
    }

    #[test]
    fn places_are_bounded_per_source_and_are_given_back() {
        let unproven = Unproven::new(3, 2);
        let mut places: Vec<_> = (0..3).map(|_| unproven.enter()).collect();
        assert!(places[0].name(source("192.0.2.1")) && places[1].name(source("192.0.2.1")));
        assert!(!places[2].name(source("192.0.2.1")));
        assert!(unproven.enter_from(source("192.0.2.1")).is_none());
        assert_eq!(lost(&places), [0; 0], "nobody loses a place to one who is not let in");
        assert!(places[2].name(source("192.0.2.2")));
        assert!(!places[2].name(source("192.0.2.3")), "it is named once");
        places.remove(0);
        let again = unproven.enter();
        assert!(again.name(source("192.0.2.1")));
        assert_eq!(unproven.count(), 3);
        drop((places, again));
        assert_eq!(unproven.count(), 0);
    }

    #[test]
    fn one_site_with_all_places_keeps_nobody_else_out() {
        let unproven = Unproven::new(512, 16);
        let of_site = |number: u32| source(&format!("2001:db8:7:{:x}::1", number / 16));
        let places: Vec<_> = (0..512).map(|number| unproven.enter_from(of_site(number)).unwrap()).collect();
        let mut others = Vec::new();
        for number in 0..100 {
            let other = unproven.enter_from(source(&format!("2001:db8:8:{number:x}::1"))).unwrap();
            assert_eq!(unproven.count(), 512);
            others.push(other);
            assert_eq!(lost(&places).len(), others.len(), "it is the site that loses one for each");
        }
        // And whatever the site does now, it does to itself.
        let more: Vec<_> = (0..1000).map(|_| unproven.enter()).collect();
        more.iter().enumerate().for_each(|(number, place)| {
            place.name(of_site(600 + number as u32));
        });
        assert_eq!(lost(&others), [0; 0]);
    }

    #[test]
    fn the_oldest_of_the_biggest_source_makes_room() {
        let unproven = Unproven::new(6, 16);
        let addresses =
            ["203.0.113.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "198.51.100.1", "198.51.100.1"];
        let places = enter(&unproven, &addresses);
        let _next = enter(&unproven, &["2001:db8::1"]);
        assert_eq!(lost(&places), [2], "the /24 has three, and one address in it two");
        let _next = enter(&unproven, &["2001:db8:1::1"]);
        assert_eq!(lost(&places), [1, 2], "of equals, the one that came first");
        let _next = enter(&unproven, &["2001:db8:2::1"]);
        assert_eq!(lost(&places), [1, 2, 4]);

        let unproven = Unproven::new(4, 16);
        let addresses = ["2001:db8:0:100::1", "2001:db8:0:201::1", "2001:db8:0:202::1", "2001:db8:1::1"];
        let places = enter(&unproven, &addresses);
        let _next = enter(&unproven, &["192.0.2.1"]);
        assert_eq!(lost(&places), [1], "the /48 has three, and one /56 in it two");
    }

    #[test]
    fn a_crowd_behind_a_proxy_that_says_nothing_is_one_source() {
        let unproven = Unproven::new(4, 1);
        let silent: Vec<_> = (0..3).map(|_| unproven.enter()).collect();
        let named = enter(&unproven, &["192.0.2.1"]);
        let _more: Vec<_> = (0..2).map(|_| unproven.enter()).collect();
        assert_eq!((lost(&silent), lost(&named)), (vec![0, 1], vec![]));
        assert!(!silent[0].name(source("192.0.2.2")), "it is too late");
    }
}
