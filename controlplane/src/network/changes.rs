//! What changed since when: the memory behind deltas.
//!
//! Every change gets the next sequence number, and each thing is remembered once, at its newest. So "everything that
//! changed since N" is a range, however far behind the asker is: changes merge by themselves, and the memory is bounded
//! by the number of things.

use std::{collections::BTreeMap, ops::RangeFrom};

use ringmesh_tunnel::key::NodeId;

/// Something that a map may have to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    /// A member's record, or that the member is gone.
    Member(NodeId),
    /// What rules select a member by: which of them touch it.
    Standing(NodeId),
    /// What a member says of itself.
    NodeRecord(NodeId),
    /// The policy was signed anew, with the same leaves.
    Policy,
    /// The leaves of the policy.
    Rules,
    /// The certificates.
    Certificates,
    /// The network secrets.
    Secrets,
}

/// Things by their newest change.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    newest: u64,
    by_number: BTreeMap<u64, Item>,
    by_item: BTreeMap<Item, u64>,
}

impl Changes {
    /// The number of the newest change; 0 if there was none since the start.
    pub(crate) const fn newest(&self) -> u64 {
        self.newest
    }

    /// Remembers that `item` changed now.
    pub(crate) fn touch(&mut self, item: Item) {
        self.newest += 1;
        self.by_number.insert(self.newest, item);
        if let Some(former) = self.by_item.insert(item, self.newest) {
            self.by_number.remove(&former);
        }
    }

    /// Forgets what there was before the first reader: everybody begins with a full map.
    pub(crate) fn forget(&mut self) {
        self.by_number.clear();
        self.by_item.clear();
    }

    /// What changed after `number`, each thing once, in the order of its newest change.
    pub(crate) fn since(&self, number: u64) -> impl Iterator<Item = Item> + Clone {
        let after: RangeFrom<u64> = number.saturating_add(1)..;
        self.by_number.range(after).map(|(_, item)| *item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_told_once_however_often_it_changed() {
        let mut changes = Changes::default();
        let node = |i| Item::NodeRecord(NodeId::from_bytes([i; 8]));
        for round in 0..1000 {
            changes.touch(node(round as u8 % 3));
        }
        changes.touch(Item::Policy);
        assert_eq!(changes.newest(), 1001);
        assert_eq!(changes.since(0).count(), 4);
        assert_eq!(changes.by_item.len(), changes.by_number.len());
        assert_eq!(changes.since(999).collect::<Vec<_>>(), [node(0), Item::Policy]);
        assert_eq!(changes.since(1001).count(), 0);
        assert_eq!(changes.since(u64::MAX).count(), 0);
    }
}
