//! The relay that this coordinator runs, as a member of its networks: made, kept, and told about.
//!
//! It has no map stream. Where it is, the coordinator says by itself, and what a stream would acknowledge is what the relay's
//! tunnel last took. So it is online for as long as it runs, and whoever waits for a revision to be installed hears of it only
//! if it lags.

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError},
};

use ringmesh_relay::{Handle, NetworkReport};
use ringmesh_tunnel::key::{NetworkId, NodeId};

use super::{Coordinator, MaintenanceError};
use crate::{
    auth::{Authed, MayLook},
    error::Refused,
    network::{
        NetworkState, Plan, Registry,
        events::Origin,
        relay::{self, Newcomer, Places},
    },
    store::Revision,
};

/// The relay that this process runs, and how much of each network it knows.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// `None`: it is not running.
    handle: Option<Handle>,
    /// Only what it took is here.
    has: BTreeMap<NetworkId, Revision>,
}

impl Coordinator {
    /// Gives a relay to each network that has none, as those have that were made before there were any. Does nothing where this
    /// coordinator runs none.
    ///
    /// # Errors
    /// If a member cannot be signed or stored.
    pub async fn ensure_relays(&self) -> Result<(), MaintenanceError> {
        if !self.0.options.relay {
            return Ok(());
        }
        let without = |registry: &Registry| -> Vec<NetworkId> {
            let networks = registry.networks().filter(|state| state.own_relay().is_none());
            networks.map(NetworkState::id).collect()
        };
        for network in self.with_registry(without) {
            let newcomer = Newcomer::generate();
            let plan = |registry: &Registry, now| {
                let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
                // Another coordinator may have been faster.
                let change = match state.own_relay() {
                    Some(_) => Plan::default().unremarkable(),
                    None => relay::plan(state, &newcomer, &self.0.vault, now)?,
                };
                Ok::<_, Refused>(((), change))
            };
            let ((), revision) = self.transact(&Origin::coordinator(), plan).await?;
            tracing::info!(event = "relay_added", %network, revision, "the network was given a relay");
        }
        Ok(())
    }

    /// Whether `node` is the relay of `network` and this coordinator runs it.
    pub(crate) fn runs(&self, state: &NetworkState, node: NodeId) -> bool {
        self.0.options.relay && state.own_relay().is_some_and(|(id, _)| id == node)
    }

    /// The revision that the relay has, if `node` is the one that this coordinator runs, and it is running.
    pub(crate) fn relay_standing(&self, state: &NetworkState, node: NodeId) -> Option<Revision> {
        let relay = self.lock_relay();
        (self.runs(state, node) && relay.handle.is_some())
            .then(|| relay.has.get(&state.id()).copied().unwrap_or_default())
    }

    /// Notes that the relay took everything of `network` up to `revision`.
    pub(crate) fn relay_has(&self, network: NetworkId, revision: Revision) {
        let former = self.lock_relay().has.insert(network, revision);
        if former != Some(revision) {
            self.0.presences.note_move();
        }
    }

    /// Takes over a relay that has just been started and knows nothing; `None`: it has ended.
    pub(crate) fn attach_relay(&self, handle: Option<Handle>) {
        *self.lock_relay() = Standing { handle, has: BTreeMap::new() };
        self.0.presences.note_move();
    }

    fn lock_relay(&self) -> MutexGuard<'_, Standing> {
        self.0.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The relay that this coordinator runs, for metrics; the inner `None`: it is not running. The outer: there is none.
    pub(crate) fn own_relay(&self) -> Option<Option<Handle>> {
        self.0.options.relay.then(|| self.lock_relay().handle.clone())
    }

    /// What the relay tells of a network.
    pub(crate) async fn relay_report(
        &self,
        _by: &Authed<impl MayLook>,
        network: NetworkId,
    ) -> Result<NetworkReport, Refused> {
        if !self.0.options.relay {
            return Err(Refused::NoRelay);
        }
        let handle = self.lock_relay().handle.clone().ok_or(Refused::RelayDown)?;
        let report = handle.report().await.map_err(|_| Refused::RelayDown)?;
        report.networks.into_iter().find(|report| report.id == network).ok_or(Refused::RelayDown)
    }

    /// Takes over where the relay can be reached, and tells the nodes of all networks if that is news.
    pub(crate) fn place_relay(&self, places: Places) {
        *self.0.relay_places.lock().unwrap_or_else(PoisonError::into_inner) = Some(places);
        self.tell_relay();
    }

    /// Tells the nodes of each network where the relay is, unless they were told just that.
    pub(crate) fn tell_relay(&self) {
        let places = self.0.relay_places.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(places) = places.filter(|_| self.0.options.relay) else { return };
        let now = self.now();
        let is_news = |state: &NetworkState| {
            state.own_relay().is_some_and(|(id, _)| {
                let told = state.node_records.get(&id).map(|held| &held.record);
                told.is_none_or(|told| {
                    told.endpoints != places.endpoints || told.websockets != places.websockets
                })
            })
        };
        if !self.with_registry(|registry| registry.networks().any(is_news)) {
            return;
        }
        {
            let mut registry = self.0.registry.write().unwrap_or_else(PoisonError::into_inner);
            for state in registry.networks.values_mut().filter(|state| is_news(state)) {
                match state.relay_record(&places, now) {
                    Ok(record) => {
                        tracing::debug!(network = %state.id, ?places, "told where the relay is");
                        state.put_node_record(record);
                    }
                    Err(error) => {
                        tracing::error!(event = "relay_untold", network = %state.id, %error, "cannot tell where the relay is")
                    }
                }
            }
        }
        self.wake();
    }
}
