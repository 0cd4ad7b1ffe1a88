//! The relay that this coordinator runs, as a member of its networks: made, kept, and told about.
//!
//! It has no map stream. Where it is, the coordinator says by itself, and what a stream would acknowledge is what the relay's
//! tunnel was last given. So it is online for as long as this process runs it, and whoever waits for a revision to be installed
//! does not wait for it.

use std::sync::{PoisonError, atomic::Ordering};

use ringmesh_relay::NetworkReport;
use ringmesh_tunnel::key::{NetworkId, NodeId};

use super::{Coordinator, MaintenanceError};
use crate::{
    auth::{Authed, Operator},
    error::Refused,
    network::{
        NetworkState, Plan, Registry,
        relay::{self, Newcomer, Places},
    },
    store::Revision,
};

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
                let plan = match state.own_relay() {
                    Some(_) => Plan::default(),
                    None => relay::plan(state, &newcomer, &self.0.vault, now)?,
                };
                Ok::<_, Refused>(((), plan))
            };
            let ((), revision) = self.transact(plan).await?;
            tracing::info!(%network, revision, "the network was given a relay");
        }
        Ok(())
    }

    /// Whether `node` is the relay of `network` and this coordinator runs it.
    pub(crate) fn runs(&self, state: &NetworkState, node: NodeId) -> bool {
        self.0.options.relay && state.own_relay().is_some_and(|(id, _)| id == node)
    }

    /// The revision that the relay has, if `node` is the one that this coordinator runs.
    pub(crate) fn relay_standing(&self, state: &NetworkState, node: NodeId) -> Option<Revision> {
        self.runs(state, node).then(|| self.0.relay_revision.load(Ordering::Relaxed))
    }

    /// Notes that the relay was given everything up to `revision`.
    pub(crate) fn relay_has(&self, revision: Revision) {
        self.0.relay_revision.store(revision, Ordering::Relaxed);
    }

    /// Says which relay to ask whom it serves.
    pub(crate) fn attach_relay(&self, handle: ringmesh_relay::Handle) {
        drop(self.0.relay_handle.set(handle));
    }

    /// What the relay tells of a network.
    pub(crate) async fn relay_report(
        &self,
        _by: &Authed<Operator>,
        network: NetworkId,
    ) -> Result<NetworkReport, Refused> {
        let handle = self.0.relay_handle.get().ok_or(Refused::NoRelay)?;
        let report = handle.report().await.map_err(|_| Refused::NoRelay)?;
        report.networks.into_iter().find(|report| report.id == network).ok_or(Refused::NoRelay)
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
                        tracing::error!(network = %state.id, %error, "cannot tell where the relay is")
                    }
                }
            }
        }
        self.wake();
    }
}
