//! Whom to hold responsible for a connection before anybody has said who they are, and how many of them one may have.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// An IPv4 address, or the /64 from which an IPv6 host chooses its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

/// Connections that have proved nothing yet.
#[derive(Debug)]
pub(super) struct Unproven {
    in_all: usize,
    per_source: usize,
    counts: RefCell<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    sources: HashMap<Source, usize>,
}

/// A connection's place among those that have proved nothing yet; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    unproven: Rc<Unproven>,
    source: Option<Source>,
}

impl Unproven {
    pub(super) fn new(in_all: usize, per_source: usize) -> Rc<Self> {
        Rc::new(Self { in_all, per_source, counts: RefCell::default() })
    }

    /// A place among all; its source is not known yet.
    pub(super) fn enter(self: &Rc<Self>) -> Option<Place> {
        let mut counts = self.counts.borrow_mut();
        if counts.all >= self.in_all {
            return None;
        }
        counts.all += 1;
        Some(Place { unproven: self.clone(), source: None })
    }

    pub(super) fn count(&self) -> usize {
        self.counts.borrow().all
    }
}

impl Place {
    /// Says who is behind the connection. `false`: they have as many as they may.
    pub(super) fn name(&mut self, source: Source) -> bool {
        let mut counts = self.unproven.counts.borrow_mut();
        let count = counts.sources.get(&source).copied().unwrap_or(0);
        if self.source.is_some() || count >= self.unproven.per_source {
            return false;
        }
        counts.sources.insert(source, count + 1);
        self.source = Some(source);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.unproven.counts.borrow_mut();
        counts.all -= 1;
        if let Some(source) = self.source
            && let Some(count) = counts.sources.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                counts.sources.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse().unwrap())
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    #[test]
    fn places_are_bounded_in_all_and_per_source_and_are_given_back() {
        let unproven = Unproven::new(3, 2);
        let mut places: Vec<_> = std::iter::from_fn(|| unproven.enter()).collect();
        assert_eq!((places.len(), unproven.count()), (3, 3));
        assert!(places[0].name(source("192.0.2.1")) && places[1].name(source("192.0.2.1")));
        assert!(!places[2].name(source("192.0.2.1")));
        assert!(places[2].name(source("192.0.2.2")));
        assert!(!places[2].name(source("192.0.2.3")), "it is named once");
        places.remove(0);
        let mut again = unproven.enter().unwrap();
        assert!(again.name(source("192.0.2.1")));
        drop((places, again));
        assert_eq!(unproven.count(), 0);
        assert!(unproven.counts.borrow().sources.is_empty(), "nothing is remembered of who left");
    }
}
