//! What people want to know of streams: where each leads, and what was last wrong with those that are not there.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ringmesh_tunnel::{Link, key::NodeId};

/// A failure's text is cut here: it may hold what the other side said.
const FAILURE_MAX: usize = 300;

/// Names of open links, and why others are not open.
#[derive(Debug, Default)]
pub(crate) struct LinkBook {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    names: BTreeMap<u32, String>,
    failures: BTreeMap<(NodeId, u32), String>,
}

impl LinkBook {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link was opened; nothing is wrong with its candidate any more.
    pub(crate) fn opened(&self, link: Link, peer: NodeId, candidate: u32, name: String) {
        let mut inner = self.inner();
        inner.failures.remove(&(peer, candidate));
        inner.names.insert(link.number, name);
    }

    /// A link ended.
    pub(crate) fn ended(&self, link: Link) {
        self.inner().names.remove(&link.number);
    }

    /// A candidate could not be opened, or its link ended, for this reason.
    pub(crate) fn failed(&self, peer: NodeId, candidate: u32, why: &str) {
        // What a stranger's server said goes to a terminal.
        let why = why.chars().filter(|letter| !letter.is_control()).take(FAILURE_MAX).collect();
        self.inner().failures.insert((peer, candidate), why);
    }

    /// Forgets failures of candidates that are no more.
    pub(crate) fn retain(&self, exists: impl Fn(NodeId, u32) -> bool) {
        self.inner().failures.retain(|(peer, candidate), _| exists(*peer, *candidate));
    }

    /// Where a link leads.
    pub(crate) fn name(&self, link: Link) -> String {
        let known = self.inner().names.get(&link.number).cloned();
        known.unwrap_or_else(|| format!("incoming {} link", link.carrier))
    }

    /// What was last wrong with a candidate.
    pub(crate) fn failure(&self, peer: NodeId, candidate: u32) -> Option<String> {
        self.inner().failures.get(&(peer, candidate)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::Carrier;

    use super::*;

    const PEER: NodeId = NodeId::from_bytes([7; 8]);

    #[test]
    fn a_failure_lasts_until_the_candidate_opens_or_goes() {
        let book = LinkBook::default();
        let link = Link { number: 5, carrier: Carrier::Ssh };
        book.failed(PEER, 1, "refused\u{1b}[2J");
        book.failed(PEER, 2, &"x".repeat(10_000));
        assert_eq!(book.failure(PEER, 1).unwrap(), "refused[2J", "no control character reaches a terminal");
        assert_eq!(book.failure(PEER, 2).unwrap().len(), FAILURE_MAX);
        book.opened(link, PEER, 1, "mesh@gate:22".to_owned());
        assert_eq!((book.failure(PEER, 1), book.name(link)), (None, "mesh@gate:22".to_owned()));
        book.ended(link);
        assert_eq!(book.name(link), "incoming ssh link", "a name ends with its link");
        book.retain(|_, _| false);
        assert_eq!(book.failure(PEER, 2), None);
    }
}
