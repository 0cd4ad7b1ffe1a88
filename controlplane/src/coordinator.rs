//! The coordinator itself: the registry in memory, kept up by the store's commits, and everything that changes it.
//!
//! A change goes one way only: planned from the registry, committed by the store, seen in the store's watch, applied to the
//! registry, told to those who wait. What was answered is therefore both durable and visible.

mod answers;
mod api_keys;
mod convergence;
mod events;
mod installation;
mod maintenance;
mod operations;
mod policy;
mod presence;
mod relay;
mod takeovers;
#[cfg(test)]
pub(crate) mod tests;
mod transact;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures_util::StreamExt as _;
use ringmesh_tunnel::{
    UnixTime,
    key::NetworkId,
    netmap::{NodeRecord, Record as _, candidate_is_allowed},
};
use tokio::sync::{Semaphore, watch};

#[cfg(test)]
pub(crate) use self::events::{RING, WATCHERS_MAX};
pub use self::maintenance::MaintenanceError;
use self::relay::Standing;
pub(crate) use self::{
    answers::{NewApiKey, NewDevice, NewToken, RemovedNode, RevokedApiKey, RevokedToken},
    api_keys::Listed as ApiKeyListed,
    convergence::Lag,
    events::{Occurrence, Seat, Seen},
    installation::Installation,
    maintenance::INTERVAL,
    policy::{Applied, Forecast, NameChange, Proposal},
    presence::{Presence, Presences, SentHead},
    transact::{Acts, Done},
};
use crate::{
    auth::{Failures, NodeOf, Nonces},
    clock::Clock,
    error::Refused,
    metrics::Counters,
    network::{Damage, NetworkState, Registry, Signed, map::Place, relay::Places},
    server::Connection,
    store::{
        Store, StoreError, Watch,
        timed::{Ledger, TimedStore},
    },
    vault::Vault,
};

/// How often a change is planned anew when others change the same, before the caller is put off.
const MAX_TRIES: usize = 32;

/// How far the clock of a node may be off, and with it the time of its records.
const CLOCK_SKEW: Duration = Duration::from_secs(600);

/// Why a coordinator cannot be opened, or cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored cannot be what was written.
    #[error("{0}; restore the state directory from a backup")]
    Damage(#[from] Damage),
    /// Nobody could take part: another process keeps changing the same.
    #[error("the store is contended by other coordinators; try again")]
    Contended,
    /// A network's keys cannot sign.
    #[error(transparent)]
    CannotSign(#[from] crate::network::authority::CannotSign),
}

/// What differs between a real coordinator and one in a test.
#[derive(Debug, Clone)]
pub struct Options {
    /// The wall clock.
    pub clock: Clock,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// How nodes reach this coordinator, `host:port`.
    pub endpoints: Vec<String>,
    /// SHA-256 of the SubjectPublicKeyInfo of the TLS key.
    pub tls_key: [u8; 32],
    /// Whether this process runs a relay: then every network has a member for it.
    pub relay: bool,
}

/// A running coordinator; clones are the same one.
#[derive(Clone)]
pub struct Coordinator(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    /// How the store's transactions went.
    ledger: Ledger,
    counters: Counters,
    vault: Vault,
    options: Options,
    replica: u32,
    registry: RwLock<Registry>,
    /// Counts what may concern a map: commits, node records, streams that take over.
    changed: watch::Sender<u64>,
    /// Set when the coordinator cannot go on.
    fault: watch::Sender<Option<Fault>>,
    /// Set when it shall not.
    closing: watch::Sender<bool>,
    /// Those who plan here take turns, so that they only conflict with other replicas.
    turn: tokio::sync::Mutex<()>,
    /// Who compiles policies: a few at a time, however many ask, as a thread of theirs runs to its end.
    compiling: Arc<Semaphore>,
    presences: Presences,
    watchers: events::Watchers,
    nonces: Nonces,
    failures: Mutex<Failures>,
    api_key_uses: Mutex<api_keys::Uses>,
    /// Where the relay can be reached, once that is known.
    relay_places: Mutex<Option<Places>>,
    /// The relay, and how much it knows.
    relay: Mutex<Standing>,
}

impl Coordinator {
    /// Loads everything from `store` and keeps up with it, until the returned value and its clones are gone.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn open(store: Arc<dyn Store>, vault: Vault, options: Options) -> Result<Self, Fault> {
        let snapshot = store.snapshot().await?;
        let watch = store.watch(snapshot.revision).await?;
        let registry = Registry::load(&snapshot, &vault)?;
        let store = TimedStore::new(store);
        let mut inner = Inner {
            ledger: store.ledger(),
            counters: Counters::default(),
            store: Arc::new(store),
            vault,
            options,
            replica: 0,
            registry: RwLock::new(registry),
            changed: watch::Sender::new(0),
            fault: watch::Sender::new(None),
            closing: watch::Sender::new(false),
            turn: tokio::sync::Mutex::default(),
            compiling: Arc::new(Semaphore::new(policy::COMPILING_MAX)),
            presences: Presences::default(),
            watchers: events::Watchers::default(),
            nonces: Nonces::new(),
            failures: Mutex::default(),
            api_key_uses: Mutex::default(),
            relay_places: Mutex::default(),
            relay: Mutex::default(),
        };
        let lease = inner.register().await?;
        let coordinator = Self(Arc::new(inner));
        coordinator.follow(watch);
        coordinator.follow_installations();
        coordinator.keep_registered(lease);
        Ok(coordinator)
    }

    /// Applies commits as they come, on a task that ends with the coordinator.
    fn follow(&self, mut watch: Watch) {
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(item) = watch.next().await {
                let Some(inner) = weak.upgrade() else { return };
                let applied = item.map_err(Fault::from).and_then(|commit| {
                    let mut registry = inner.registry.write().unwrap_or_else(PoisonError::into_inner);
                    let before = registry.newest_changes();
                    registry.apply(&commit, &inner.vault)?;
                    inner.counters.happened(&commit);
                    // While nobody can read of it, and so acknowledge it.
                    let mut changed = registry.newest_changes();
                    changed.retain(|network, newest| before.get(network) != Some(newest));
                    inner.presences.committed(changed.into_keys(), commit.revision);
                    Ok(())
                });
                match applied {
                    Ok(()) => inner.changed.send_modify(|count| *count += 1),
                    Err(fault) => {
                        tracing::error!(event = "coordinator_failed", %fault, "the coordinator cannot go on");
                        drop(inner.fault.send_replace(Some(fault)));
                        return;
                    }
                }
            }
        });
    }

    /// Ends when the coordinator cannot go on, and says why.
    pub async fn fault(&self) -> Fault {
        let mut fault = self.0.fault.subscribe();
        let gone = || Fault::Store(StoreError::Failed("the coordinator was dropped".into()));
        let found = fault.wait_for(Option::is_some).await;
        found.ok().and_then(|fault| fault.clone()).unwrap_or_else(gone)
    }

    /// Ends all map streams, with word to come back.
    pub fn close(&self) {
        self.0.closing.send_replace(true);
    }

    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.0.closing.subscribe()
    }

    /// Wakes whenever a map may have changed.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    pub(crate) fn now(&self) -> UnixTime {
        self.0.options.clock.now()
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        self.0.options.heartbeat
    }

    pub(crate) fn tls_key(&self) -> [u8; 32] {
        self.0.options.tls_key
    }

    pub(crate) fn replica(&self) -> u32 {
        self.0.replica
    }

    pub(crate) fn nonces(&self) -> &Nonces {
        &self.0.nonces
    }

    pub(crate) fn presence(&self) -> &Presences {
        &self.0.presences
    }

    /// What is counted for monitoring.
    pub(crate) fn counters(&self) -> &Counters {
        &self.0.counters
    }

    /// How the store's transactions went.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.0.ledger
    }

    /// Reads everything at one moment. For tests that build what a coordinator would send.
    pub fn with_registry<T>(&self, read: impl FnOnce(&Registry) -> T) -> T {
        read(&self.0.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads one network.
    pub(crate) fn with_network<T>(
        &self,
        id: NetworkId,
        read: impl FnOnce(&NetworkState) -> T,
    ) -> Result<T, Refused> {
        self.with_registry(|registry| registry.network(id).map(read)).ok_or(Refused::NetworkUnknown)
    }

    /// Reads one network with the place at which it stands.
    pub(crate) fn with_place<T>(
        &self,
        id: NetworkId,
        read: impl FnOnce(&NetworkState, Place) -> T,
    ) -> Result<T, Refused> {
        self.with_registry(|registry| {
            let place = Place { replica: self.0.replica, durable: registry.revision() };
            registry.network(id).map(|network| read(network, place))
        })
        .ok_or(Refused::NetworkUnknown)
    }

    /// How nodes reach the coordinators of this store: this one first.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let mut endpoints = self.0.options.endpoints.clone();
        self.with_registry(|registry| endpoints.extend(registry.replicas.values().flatten().cloned()));
        let mut seen = std::collections::BTreeSet::new();
        endpoints.retain(|endpoint| seen.insert(endpoint.clone()));
        endpoints.truncate(ringmesh_tunnel::enroll::COORDINATORS_MAX);
        endpoints
    }

    /// Runs a check of a proof, and counts its failure. Where too many failed, a further failure is told nothing; a proof that
    /// holds is let in from anywhere, as honest nodes share an address with those who guess (NAT, a proxy).
    pub(crate) fn watched<T>(
        &self,
        connection: &Connection,
        check: impl FnOnce() -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        check().map_err(|refused| {
            if !refused.is_guess() {
                return refused;
            }
            let (source, now) = (connection.source(), self.now());
            let mut failures = self.lock_failures();
            let barred = failures.is_barred(source, now);
            self.0.counters.guessed(barred);
            if barred {
                return Refused::Barred;
            }
            tracing::debug!(peer = %connection.peer(), reason = %refused, "a proof failed");
            failures.count(source, now);
            refused
        })
    }

    fn lock_failures(&self) -> std::sync::MutexGuard<'_, Failures> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifies what a node says of itself.
    pub(crate) fn check_node_record(
        &self,
        who: &NodeOf,
        envelope: ringmesh_tunnel::netmap::Envelope,
    ) -> Result<Signed<NodeRecord>, Refused> {
        let refused = |what: &dyn fmt::Display| Refused::NodeRecord(what.to_string());
        let wrong = |what: &str| Err(refused(&what));
        if envelope.kind != ringmesh_tunnel::netmap::Kind::NodeRecord {
            return wrong("it is not a node record");
        }
        let (own_key, is_relay) = self.with_network(who.network, |state| {
            state.member(who.node).map_or((None, false), |member| (member.identity_key, member.relay))
        })?;
        if own_key != Some(envelope.signer) {
            return wrong("it is not signed by the node's identity key");
        }
        envelope.check_signature().map_err(|error| refused(&error))?;
        let record = NodeRecord::parse(&envelope.payload).map_err(|error| refused(&error))?;
        if record.network != who.network || record.id != who.node {
            return wrong("it is about another node");
        }
        let now = self.now();
        let latest = now.saturating_add(CLOCK_SKEW);
        if record.time > latest || record.time < now.saturating_sub(CLOCK_SKEW) {
            return Err(Refused::Clock { record_ms: record.time.as_millis(), now_ms: now.as_millis() });
        }
        // Peers never take a lower serial after this one, and after a restart we do not know the last one: so it must be
        // a time of signing, as a later record's will be.
        if record.serial > latest.as_millis() {
            return Err(Refused::Clock { record_ms: record.serial, now_ms: now.as_millis() });
        }
        if record.serial < record.time.as_millis() {
            return wrong("its serial is lower than its time of signing in ms");
        }
        let pools = self.with_network(who.network, |state| [state.ipv4_pool, state.ipv6_pool()])?;
        for (what, addresses) in [("endpoint", &record.endpoints), ("SSH endpoint", &record.ssh)] {
            if let Some(bad) = addresses.iter().find(|address| !candidate_is_allowed(**address, &pools)) {
                return Err(refused(&format_args!("peers must not be sent to its {what} {bad}")));
            }
        }
        // Every peer of a relay connects to what it names; nobody else has a WebSocket, and so none to be sent to.
        if !is_relay && !record.websockets.is_empty() {
            return wrong("it names WebSockets, which only a relay has, and this node is none");
        }
        let held = self.with_network(who.network, |state| state.node_records.get(&who.node).cloned())?;
        match held {
            Some(held) if record.serial < held.record.serial => {
                wrong("its serial is older than the last one's")
            }
            Some(held) if record.serial == held.record.serial && held.hash != envelope.hash() => {
                wrong("its serial is that of another record")
            }
            _ => Ok(Signed::new(record, envelope, 0)),
        }
    }

    /// Takes over what a node said of itself on its stream number `stream`, and tells its peers.
    ///
    /// Time passed since the record was checked: another stream of the node may have taken over and told a newer one. So
    /// both are looked at again while nobody else can write.
    pub(crate) fn put_node_record(&self, who: &NodeOf, stream: u64, record: Signed<NodeRecord>) {
        {
            let mut registry = self.0.registry.write().unwrap_or_else(PoisonError::into_inner);
            let Some(state) = registry.networks.get_mut(&who.network) else { return };
            let held = state.node_records.get(&who.node);
            let news = held.is_none_or(|held| held.record.serial < record.record.serial);
            let current = self.0.presences.get(who).is_some_and(|presence| presence.stream == stream);
            if !news || !current || !state.nodes.contains_key(&who.node) {
                return;
            }
            state.put_node_record(record);
        }
        self.wake();
    }

    pub(crate) fn wake(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coordinator(replica {})", self.0.replica)
    }
}
