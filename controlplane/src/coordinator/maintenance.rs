//! What the coordinator does unasked: it registers itself, makes the first network, renews, and drops who stays away.

use std::{sync::Arc, time::Duration};

use ringmesh_tunnel::key::NetworkId;

use super::{Coordinator, Fault, Inner};
use crate::{
    auth::{Authed, Itself, NodeOf},
    config::NetworkConfig,
    error::Refused,
    network::{key::Key, members, renew, row},
    store::{Compare, LeaseId, Op, Outcome},
};

/// For how long a coordinator counts as alive that is not heard of.
const LEASE: Duration = Duration::from_secs(30);
/// How often what is due is looked for.
pub(crate) const INTERVAL: Duration = Duration::from_secs(600);
/// How long an ephemeral node may stay away.
const EPHEMERAL_ABSENCE: Duration = Duration::from_secs(30 * 60);

impl Inner {
    /// Takes a number that no process of this store had before, and tells the others how nodes reach us.
    pub(super) async fn register(&mut self) -> Result<LeaseId, Fault> {
        let lease = self.store.lease(LEASE).await?;
        for _ in 0..super::MAX_TRIES {
            let snapshot = self.store.snapshot().await?;
            let counter = Key::ReplicaCounter.to_string();
            let found = snapshot.entries.iter().find(|entry| entry.key == counter);
            let last: u32 = found.map_or(Ok(0), |entry| row::parse(&counter, &entry.value))?;
            let number = last.wrapping_add(1);
            let value = row::emit(&self.options.endpoints);
            let mine = Op::Put { key: Key::Replica(number).to_string(), value, lease: Some(lease) };
            let compare = Compare::unchanged(&counter, found.map_or(0, |entry| entry.revision));
            let ops = vec![Op::put(&counter, row::emit(&number)), mine];
            if let Outcome::Committed(_) = self.store.txn(vec![compare], ops).await? {
                self.replica = number;
                return Ok(lease);
            }
        }
        Err(Fault::Contended)
    }
}

impl Coordinator {
    /// Renews the lease on a task that ends with the coordinator.
    pub(super) fn keep_registered(&self, mut lease: LeaseId) {
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LEASE / 3).await;
                let Some(inner) = weak.upgrade() else { return };
                if let Err(error) = inner.store.keep_alive(lease).await {
                    tracing::warn!(event = "registration_lapsed", %error, "cannot renew the registration of this coordinator");
                    match inner.register_again().await {
                        Ok(renewed) => lease = renewed,
                        Err(error) => {
                            tracing::warn!(event = "registration_failed", %error, "cannot register this coordinator again")
                        }
                    }
                }
            }
        });
    }

    /// Makes the configured network if there is none at all; says so if there is another one.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn ensure_network(&self, config: &NetworkConfig) -> Result<(), MaintenanceError> {
        let (empty, named) = self.with_registry(|registry| {
            (
                registry.networks.is_empty(),
                registry
                    .names
                    .get(&config.name)
                    .and_then(|id| registry.network(*id))
                    .map(|state| (state.ipv4_pool == config.ipv4_pool, state.zone == config.zone)),
            )
        });
        match named {
            _ if empty => {
                self.create_network(&Authed::<Itself>::itself(), config, None).await?;
            }
            Some((true, true)) => {}
            Some(_) => tracing::warn!(
                event = "network_config_ignored",
                network = config.name,
                "the configured pool or zone is not the network's; they are fixed when a network is made, and stay as they are"
            ),
            None => tracing::warn!(
                event = "network_config_ignored",
                network = config.name,
                "the configured network is not among those that exist; make it with the admin API, or correct its name"
            ),
        }
        Ok(())
    }

    /// Renews what is at half of its life and drops what is over, in all networks.
    ///
    /// # Errors
    /// If something due cannot be signed or stored.
    pub async fn maintain(&self) -> Result<(), MaintenanceError> {
        let networks: Vec<NetworkId> =
            self.with_registry(|registry| registry.networks.keys().copied().collect());
        for network in networks {
            self.renew(network, renew::Why::Due).await?;
            self.drop_absent(network).await?;
        }
        // What belongs to no network.
        let due = self.with_registry(|registry| {
            [registry.events.prune(None), registry.requests.prune(None, self.now())]
        });
        for change in due.into_iter().flatten() {
            self.commit_if_unchanged(change).await?;
        }
        self.drop_old_api_keys().await?;
        Ok(())
    }

    /// Signs everything anew with serials beyond any that a node can have seen, and begins such an epoch, after the state came
    /// from a backup. The revision was raised when the store was opened. What was removed since the backup is a member again,
    /// and who joined since is not.
    ///
    /// # Errors
    /// If something cannot be signed or stored.
    pub async fn heal_restored(&self) -> Result<(), MaintenanceError> {
        let networks: Vec<NetworkId> =
            self.with_registry(|registry| registry.networks.keys().copied().collect());
        for network in networks {
            self.renew(network, renew::Why::Restored).await?;
        }
        let revision = self.with_registry(crate::network::Registry::revision);
        tracing::warn!(
            event = "state_restored",
            revision,
            "the state was restored: check with `meshctl nodes list` who was removed or joined since the backup"
        );
        Ok(())
    }

    async fn renew(&self, network: NetworkId, why: renew::Why) -> Result<(), Refused> {
        let changes = self.with_network(network, |state| {
            let mut changes = renew::plan(state, why, self.now())?;
            if why == renew::Why::Restored {
                changes.push(members::plan_restored_epoch(state, &self.0.vault));
            }
            Ok::<_, Refused>(changes)
        })??;
        for change in changes {
            if let Some(revision) = self.commit_if_unchanged(change).await? {
                tracing::debug!(%network, revision, "renewed or dropped what was due");
            }
        }
        Ok(())
    }

    /// Removes ephemeral nodes that were away for too long; a restart of the coordinator counts as seen.
    async fn drop_absent(&self, network: NetworkId) -> Result<(), Refused> {
        let ephemeral: Vec<NodeOf> = self.with_network(network, |state| {
            let nodes = state.nodes.iter().filter(|(_, node)| node.row.ephemeral);
            nodes.map(|(id, _)| NodeOf { network, node: *id }).collect()
        })?;
        let now = self.now();
        for who in ephemeral {
            self.0.presences.notice(&who, now);
            let absent = self.0.presences.get(&who).is_some_and(|presence| {
                presence.stream == 0 && now.saturating_since(presence.last_seen) >= EPHEMERAL_ABSENCE
            });
            if absent {
                tracing::info!(event = "node_expired", node = %who.node, "an ephemeral node stayed away");
                self.remove(&Authed::<Itself>::itself(), network, who.node).await?;
            }
        }
        Ok(())
    }
}

impl Inner {
    async fn register_again(&self) -> Result<LeaseId, Fault> {
        let lease = self.store.lease(LEASE).await?;
        let value = row::emit(&self.options.endpoints);
        let mine = Op::Put { key: Key::Replica(self.replica).to_string(), value, lease: Some(lease) };
        self.store.txn(Vec::new(), vec![mine]).await?;
        Ok(lease)
    }
}

/// Why something that the coordinator does unasked could not be done.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MaintenanceError(#[from] Refused);
