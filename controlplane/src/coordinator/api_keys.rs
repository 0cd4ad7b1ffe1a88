//! Making, listing and revoking API keys, and what is known of their use.

use std::{collections::BTreeMap, sync::PoisonError, time::Duration};

use ringmesh_tunnel::UnixTime;
use tokio::time::sleep;

use super::{
    Coordinator, Done,
    answers::{NewApiKey, RevokedApiKey, Secret},
};
use crate::{
    auth::{Authed, Steward},
    error::Refused,
    network::{
        Registry,
        api_keys::{self, ApiKeyId, ApiKeyRow, Credential, Denied, Wish},
        requests::Request,
    },
};

/// The longest sleep until a key expires: the wall clock may be set meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// A key as it is listed.
pub(crate) struct Listed {
    pub(crate) id: ApiKeyId,
    pub(crate) row: ApiKeyRow,
    /// The name of the network that it is for.
    pub(crate) network: Option<String>,
    /// `None`: not since this coordinator started.
    pub(crate) last_used: Option<UnixTime>,
}

impl Coordinator {
    /// Makes an API key. Its maker may do everything, and so no key may do more than its maker.
    pub(crate) async fn create_api_key(
        &self,
        by: &Authed<Steward>,
        wish: &Wish,
        request: Option<Request>,
    ) -> Result<Done<NewApiKey>, Refused> {
        let credential = Credential::generate();
        let origin = self.origin(by, request).await;
        let maker = &origin.actor.name;
        let plan = |registry: &Registry, now| {
            if wish.network.is_some_and(|network| registry.network(network).is_none()) {
                return Err(Refused::NetworkUnknown);
            }
            let (row, change) = api_keys::plan_create(registry, &credential, wish, maker, now)?;
            let (id, text) = (credential.id(), Secret::new(credential.reveal()));
            Ok((NewApiKey { id, row, text }, change))
        };
        let done = self.transact_once(&origin, None, plan).await?;
        if !done.repeated {
            let id = done.value.id;
            tracing::info!(event = "api_key_created", key = %id, name = wish.name, role = ?wish.role, by = maker, "an API key was made");
        }
        Ok(done)
    }

    /// Ends an API key, and the streams that were opened with it.
    pub(crate) async fn revoke_api_key(
        &self,
        by: &Authed<Steward>,
        id: ApiKeyId,
        request: Option<Request>,
    ) -> Result<Done<RevokedApiKey>, Refused> {
        let origin = self.origin(by, request).await;
        let plan = |registry: &Registry, now| {
            let (row, change) = api_keys::plan_revoke(registry, id, now)?;
            Ok::<_, Refused>((RevokedApiKey { id, row }, change))
        };
        let done = self.transact_once(&origin, None, plan).await?;
        if !done.repeated {
            tracing::info!(event = "api_key_revoked", key = %id, by = origin.actor.name, "an API key was revoked");
        }
        Ok(done)
    }

    /// All keys that are not forgotten, by their ids.
    pub(crate) fn list_api_keys(&self, _by: &Authed<Steward>) -> Vec<Listed> {
        let used = self.0.api_key_uses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.with_registry(|registry| {
            let listed = |(id, key): (&ApiKeyId, &api_keys::ApiKey)| Listed {
                id: *id,
                row: key.row.clone(),
                network: network_name(registry, &key.row),
                last_used: used.get(id).copied(),
            };
            registry.api_keys.iter().map(listed).collect()
        })
    }

    /// A key as its row has it, which may be another by now.
    pub(crate) fn listed_api_key(&self, id: ApiKeyId, row: ApiKeyRow) -> Listed {
        let network = self.with_registry(|registry| network_name(registry, &row));
        let uses = self.0.api_key_uses.lock().unwrap_or_else(PoisonError::into_inner);
        Listed { id, row, network, last_used: uses.get(&id).copied() }
    }

    /// Remembers when a key was used last.
    pub(crate) fn note_use(&self, id: ApiKeyId, now: UnixTime) {
        self.0.api_key_uses.lock().unwrap_or_else(PoisonError::into_inner).insert(id, now);
    }

    /// Drops keys whose end is long past.
    pub(super) async fn drop_old_api_keys(&self) -> Result<(), Refused> {
        let old = self.with_registry(|registry| api_keys::plan_drop_old(registry, self.now()));
        if let Some(change) = old {
            self.commit_if_unchanged(change).await?;
        }
        let mut uses = self.0.api_key_uses.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_registry(|registry| uses.retain(|id, _| registry.api_keys.contains_key(id)));
        Ok(())
    }

    /// Waits until a key opens nothing any more, and says why.
    pub(crate) async fn api_key_end(self, id: ApiKeyId) -> Denied {
        let mut changed = self.changed();
        loop {
            changed.borrow_and_update();
            let now = self.now();
            let standing = self.with_registry(|registry| {
                let key = registry.api_keys.get(&id).ok_or(Denied::Revoked)?;
                key.standing(now)?;
                Ok(UnixTime::from_millis(key.row.expires_ms).saturating_since(now))
            });
            let left = match standing {
                Ok(left) => left,
                Err(denied) => return denied,
            };
            tokio::select! {
                // The sender lives as long as this coordinator.
                _ = changed.changed() => {}
                () = sleep(left.min(LOOK_AGAIN)) => {}
            }
        }
    }
}

/// The name of the network that a key is for; of one that is gone its id.
fn network_name(registry: &Registry, row: &ApiKeyRow) -> Option<String> {
    let id = row.network.as_ref()?;
    let found = id.parse().ok().and_then(|network| registry.network(network));
    Some(found.map_or_else(|| id.clone(), |state| state.name.clone()))
}

/// When each key was used last, since the start; at most as many as there are keys.
pub(super) type Uses = BTreeMap<ApiKeyId, UnixTime>;
