//! A worker's peers: by slot on the packet path, by name and key elsewhere.

use std::collections::BTreeMap;

use crate::key::{NodeId, PublicKey};
use crate::peer::{Peer, PeerConfig};

/// Where a peer lives. A slot is reused once its peer is gone.
pub(crate) type Slot = u32;

/// All peers of a worker.
#[derive(Debug)]
pub(crate) struct Peers<C> {
    slots: Vec<Option<Peer<C>>>,
    free: Vec<Slot>,
    by_key: BTreeMap<PublicKey, Slot>,
    by_id: BTreeMap<NodeId, Slot>,
}

impl<C> Default for Peers<C> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), by_key: BTreeMap::new(), by_id: BTreeMap::new() }
    }
}

impl<C> Peers<C> {
    pub(crate) fn get(&self, slot: Slot) -> Option<&Peer<C>> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut Peer<C>> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(crate) fn by_key(&self, key: &PublicKey) -> Option<Slot> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn by_id(&self, id: NodeId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, &Peer<C>)> {
        self.slots.iter().enumerate().filter_map(|(slot, peer)| Some((slot as Slot, peer.as_ref()?)))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Slots there are, with a peer or without.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn find_or_insert(&mut self, config: &PeerConfig) -> Slot {
        if let Some(slot) = self.by_key(&config.key) {
            return slot;
        }
        let peer = Some(Peer::new(config));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = peer;
                slot
            }
            None => {
                self.slots.push(peer);
                (self.slots.len() - 1) as Slot
            }
        };
        self.by_key.insert(config.key, slot);
        self.by_id.insert(config.id, slot);
        slot
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Peer<C>> {
        let peer = self.slots.get_mut(slot as usize)?.take()?;
        self.by_key.remove(&peer.key);
        if self.by_id(peer.id) == Some(slot) {
            self.by_id.remove(&peer.id);
        }
        self.free.push(slot);
        Some(peer)
    }
}
