//! How a change is made: planned from the newest state, committed with the events that tell it, answered once it can be seen.
//!
//! A request that names itself is done once. What was answered is written by the same transaction, and a repeat is answered with
//! that; two at once take turns, or conflict, so that the second finds what the first wrote.

use std::sync::LazyLock;

use ringmesh_tunnel::{UnixTime, key::NetworkId};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::MutexGuard, time::Instant};

use super::{Coordinator, MAX_TRIES};
use crate::{
    auth::{Authed, Itself, MayLook, NodeOf, Operator, Steward},
    error::Refused,
    network::{
        Change, Plan, Registry,
        events::{Actor, Origin},
        requests::{Asked, Known, Request},
    },
    store::{Outcome, Revision, StoreError},
};

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Done<T> {
    pub(crate) value: T,
    /// The commit that did it.
    pub(crate) revision: Revision,
    /// When it was committed; of a repeat, when that was found.
    pub(crate) at: Instant,
    /// It had been done before, and nothing was done now.
    pub(crate) repeated: bool,
}

/// Who can make a change, and so is named by its event.
pub(crate) trait Acts: Sync {
    /// Who it is.
    fn acts(&self, coordinator: &Coordinator) -> impl Future<Output = Actor> + Send;
}

impl Acts for Operator {
    async fn acts(&self, _: &Coordinator) -> Actor {
        self.actor().await
    }
}

impl Acts for Steward {
    async fn acts(&self, _: &Coordinator) -> Actor {
        self.actor().await
    }
}

impl Acts for Itself {
    async fn acts(&self, _: &Coordinator) -> Actor {
        Actor::coordinator()
    }
}

impl Acts for NodeOf {
    async fn acts(&self, coordinator: &Coordinator) -> Actor {
        let named = |state: &crate::network::NetworkState| state.name_of(self.node).map(str::to_owned);
        let name = coordinator.with_network(self.network, named).ok().flatten();
        Actor::node(self.node, name.unwrap_or_default())
    }
}

/// The request that is to be known again, if there is one.
fn asked(origin: &Origin, network: Option<NetworkId>) -> Option<Asked<'_>> {
    let Origin { actor: caller, request } = origin;
    request.as_ref().map(|request| Asked { network, caller, request })
}

/// What one look at the state comes to.
enum Step<T> {
    /// To be written.
    Write(T, Plan),
    /// Nothing is to be done.
    Nothing(T),
    /// It was done before.
    Known(T, Revision),
}

impl Coordinator {
    /// From whom a change comes that `by` may make.
    pub(super) async fn origin(&self, by: &Authed<impl Acts>, request: Option<Request>) -> Origin {
        Origin { actor: by.who().acts(self).await, request }
    }

    /// Plans a change from the newest state and commits it; plans anew if somebody else was faster. When this returns, the
    /// change is durable, and in the registry together with everything before it.
    pub(super) async fn transact<T, E: Into<Refused>>(
        &self,
        origin: &Origin,
        plan: impl Fn(&Registry, UnixTime) -> Result<(T, Change), E>,
    ) -> Result<(T, Revision), Refused> {
        let turn = self.0.turn.lock().await;
        let step = |registry: &Registry, now| {
            let (value, change) = plan(registry, now).map_err(Into::into)?;
            Ok(Step::Write(value, change.with_events(registry, origin, now)))
        };
        let done = self.commit(&turn, step).await?;
        Ok((done.value, done.revision))
    }

    /// As [`transact`](Self::transact), once for all repeats of the request that `origin` names: they are answered with the value
    /// that was planned first. The request belongs to `network`, or to none.
    pub(super) async fn transact_once<T: Serialize + DeserializeOwned, E: Into<Refused>>(
        &self,
        origin: &Origin,
        network: Option<NetworkId>,
        plan: impl Fn(&Registry, UnixTime) -> Result<(T, Change), E>,
    ) -> Result<Done<T>, Refused> {
        let turn = self.0.turn.lock().await;
        let plan =
            |registry: &Registry, now| plan(registry, now).map(|(value, change)| (value, Some(change)));
        self.transact_once_in(&turn, origin, network, plan).await
    }

    /// As [`transact_once`](Self::transact_once), for who has the turn already. Without a change nothing is done, and nothing
    /// remembered.
    pub(super) async fn transact_once_in<T: Serialize + DeserializeOwned, E: Into<Refused>>(
        &self,
        turn: &MutexGuard<'_, ()>,
        origin: &Origin,
        network: Option<NetworkId>,
        plan: impl Fn(&Registry, UnixTime) -> Result<(T, Option<Change>), E>,
    ) -> Result<Done<T>, Refused> {
        let step = |registry: &Registry, now| {
            let asked = asked(origin, network);
            if let Some(asked) = asked
                && let Known::Done(value, revision) = registry.recall(asked, &self.0.vault, now)?
            {
                return Ok(Step::Known(value, revision));
            }
            let (value, change) = plan(registry, now).map_err(Into::into)?;
            let Some(change) = change else { return Ok(Step::Nothing(value)) };
            let mut plan = change.with_events(registry, origin, now);
            if let Some(asked) = asked {
                registry.remember(asked, &value, &self.0.vault, now, &mut plan)?;
            }
            Ok(Step::Write(value, plan))
        };
        self.commit(turn, step).await
    }

    /// What was answered to the request that `origin` names, if it was done. For what has much to do before it can plan.
    pub(super) fn recall<T: DeserializeOwned>(
        &self,
        origin: &Origin,
        network: Option<NetworkId>,
    ) -> Result<Option<Done<T>>, Refused> {
        let Some(asked) = asked(origin, network) else { return Ok(None) };
        let now = self.now();
        let known = self.with_registry(|registry| registry.recall(asked, &self.0.vault, now))?;
        Ok(match known {
            Known::Done(value, revision) => {
                Some(Done { value, revision, at: Instant::now(), repeated: true })
            }
            Known::New => None,
        })
    }

    async fn commit<T>(
        &self,
        _turn: &MutexGuard<'_, ()>,
        step: impl Fn(&Registry, UnixTime) -> Result<Step<T>, Refused>,
    ) -> Result<Done<T>, Refused> {
        for _ in 0..MAX_TRIES {
            let now = self.now();
            let (planned, newest) = self.with_registry(|registry| (step(registry, now), registry.revision()));
            let (value, Plan { compare, ops }) = match planned? {
                Step::Write(value, plan) => (value, plan),
                Step::Nothing(value) => {
                    return Ok(Done { value, revision: newest, at: Instant::now(), repeated: false });
                }
                Step::Known(value, revision) => {
                    return Ok(Done { value, revision, at: Instant::now(), repeated: true });
                }
            };
            let outcome = self.0.store.txn(compare, ops).await?;
            let at = Instant::now();
            let (Outcome::Committed(revision) | Outcome::Conflict(revision)) = outcome;
            self.applied(revision).await?;
            if matches!(outcome, Outcome::Committed(_)) {
                return Ok(Done { value, revision, at, repeated: false });
            }
        }
        Err(Refused::Contended)
    }

    /// Commits a change that need not be made now: if somebody was faster, the next round sees what is still due.
    pub(super) async fn commit_if_unchanged(&self, change: Change) -> Result<Option<Revision>, Refused> {
        static ORIGIN: LazyLock<Origin> = LazyLock::new(Origin::coordinator);
        let _turn = self.0.turn.lock().await;
        let now = self.now();
        let Plan { compare, ops } = self.with_registry(|registry| change.with_events(registry, &ORIGIN, now));
        let outcome = self.0.store.txn(compare, ops).await?;
        match outcome {
            Outcome::Committed(revision) => {
                self.applied(revision).await?;
                Ok(Some(revision))
            }
            Outcome::Conflict(_) => Ok(None),
        }
    }

    /// Waits until the registry contains `revision`.
    pub(crate) async fn applied(&self, revision: Revision) -> Result<(), StoreError> {
        let mut changed = self.changed();
        let mut fault = self.0.fault.subscribe();
        loop {
            changed.borrow_and_update();
            if self.with_registry(Registry::revision) >= revision {
                return Ok(());
            }
            tokio::select! {
                _ = changed.changed() => {}
                _ = fault.wait_for(Option::is_some) => {
                    return Err(StoreError::Failed("the coordinator is shutting down".into()));
                }
            }
        }
    }
}
