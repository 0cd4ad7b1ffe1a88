//! All networks of a coordinator at one revision.

use std::collections::BTreeMap;

use ringmesh_tunnel::key::NetworkId;

use super::{
    api_keys::{ApiKey, ApiKeyId},
    events::Events,
    key::Key,
    requests::Requests,
    row::{self, Damage},
    state::NetworkState,
};
use crate::{
    store::{Commit, Revision, Snapshot},
    vault::Vault,
};

/// Everything durable, in memory.
#[derive(Debug, Default)]
pub struct Registry {
    pub(crate) revision: Revision,
    pub(crate) networks: BTreeMap<NetworkId, NetworkState>,
    pub(crate) names: BTreeMap<String, NetworkId>,
    pub(crate) api_keys: BTreeMap<ApiKeyId, ApiKey>,
    /// The number that the newest coordinator process took, and the revision at which it did.
    pub(crate) replica_counter: (u32, Revision),
    /// The endpoints of live coordinators.
    pub(crate) replicas: BTreeMap<u32, Vec<String>>,
    /// What happened that belongs to no network.
    pub(crate) events: Events,
    /// Requests that belong to no network.
    pub(crate) requests: Requests,
}

impl Registry {
    /// Builds it from a snapshot.
    ///
    /// # Errors
    /// [`Damage`], naming the entry.
    pub fn load(snapshot: &Snapshot, vault: &Vault) -> Result<Self, Damage> {
        let mut registry = Self { revision: snapshot.revision, ..Self::default() };
        for entry in &snapshot.entries {
            registry.put(&entry.key, Some(&entry.value), entry.revision, vault)?;
        }
        for network in registry.networks.values_mut() {
            network.check_complete()?;
            network.changes.forget();
        }
        Ok(registry)
    }

    /// Takes over a commit.
    ///
    /// # Errors
    /// [`Damage`], naming the entry. The registry is unusable then.
    pub fn apply(&mut self, commit: &Commit, vault: &Vault) -> Result<(), Damage> {
        for (key, value) in &commit.changes {
            self.put(key, value.as_deref(), commit.revision, vault)?;
        }
        self.revision = commit.revision;
        Ok(())
    }

    fn put(
        &mut self,
        text: &str,
        value: Option<&[u8]>,
        revision: Revision,
        vault: &Vault,
    ) -> Result<(), Damage> {
        let key = Key::parse(text).ok_or_else(|| Damage::at(text, "no such key is known"))?;
        match (key, value) {
            (Key::Network(id), Some(value)) => {
                self.networks.insert(id, NetworkState::new(id, text, row::parse(text, value)?, revision)?);
            }
            (Key::Network(id), None) => drop(self.networks.remove(&id)),
            (Key::Of(id, part), value) => self
                .networks
                .get_mut(&id)
                .ok_or_else(|| Damage::at(text, "its network is missing"))?
                .apply(part, value, revision, vault)?,
            (Key::NetworkName(name), Some(value)) => {
                let id = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                self.names.insert(name, id.ok_or_else(|| Damage::at(text, "not a network id"))?);
            }
            (Key::NetworkName(name), None) => drop(self.names.remove(&name)),
            (Key::Api(id), Some(value)) => {
                self.api_keys.insert(id, ApiKey::parse(text, value, revision)?);
            }
            (Key::Api(id), None) => drop(self.api_keys.remove(&id)),
            (Key::ReplicaCounter, value) => {
                let number = value.map_or(Ok(0), |value| row::parse(text, value))?;
                self.replica_counter = (number, revision);
            }
            (Key::Replica(number), Some(value)) => {
                self.replicas.insert(number, row::parse(text, value)?);
            }
            (Key::Replica(number), None) => drop(self.replicas.remove(&number)),
            (Key::Event(number), value) => self.events.apply(number, text, value, revision)?,
            (Key::EventsForgotten, value) => self.events.apply_forgotten(text, value)?,
            (Key::Request(request), value) => self.requests.apply(request, text, value, revision)?,
        }
        Ok(())
    }

    /// Each network with the number of its newest change of what maps tell.
    pub(crate) fn newest_changes(&self) -> BTreeMap<NetworkId, u64> {
        self.networks.iter().map(|(id, network)| (*id, network.newest_change())).collect()
    }

    /// The revision of everything in here.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// A network by its id.
    #[must_use]
    pub fn network(&self, id: NetworkId) -> Option<&NetworkState> {
        self.networks.get(&id)
    }

    /// All networks.
    pub fn networks(&self) -> impl Iterator<Item = &NetworkState> {
        self.networks.values()
    }
}
