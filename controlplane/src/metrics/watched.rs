//! The coordinator as it is watched: its numbers, whether it lives, and whether it serves.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use ringmesh_monitor::{COMMIT, Check, Registry, Series, Subject, Unit, Version};
use ringmesh_tunnel::{
    UnixTime,
    key::NetworkId,
    netmap::{MemberKind, Role},
};
use tokio::time::{Instant, timeout};

use super::{Census, Counters, UpdateKind};
use crate::{
    auth::NodeOf,
    coordinator::{Coordinator, INTERVAL, Lag},
    network::{NetworkState, authority::Signer, row},
    store::{StoreError, sqlite},
};

/// How long the store and the relay may take to say that they are there.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes that must be free where the store is: what a few large transactions write.
const FREE_MIN: u64 = 16 << 20;
/// After this long without a look at what is due, the task that does that is gone or stuck.
const MAINTENANCE_LATE: Duration = Duration::from_secs(3 * INTERVAL.as_secs());

/// What the tasks of the daemon say of themselves.
#[derive(Debug, Default)]
pub struct Tasks {
    said: Mutex<Said>,
}

#[derive(Debug, Clone, Default)]
struct Said {
    serving: bool,
    /// When what is due was last looked for, and what went wrong.
    maintained: Option<(Instant, Option<String>)>,
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests are taken from now on, or are not any more.
    pub(crate) fn serving(&self, serving: bool) {
        self.lock().serving = serving;
    }

    /// What is due was looked for.
    pub(crate) fn maintained(&self, trouble: Option<String>) {
        self.lock().maintained = Some((Instant::now(), trouble));
    }
}

/// A coordinator with what it is watched by.
pub struct Watched {
    coordinator: Coordinator,
    tasks: Arc<Tasks>,
    census: Census,
    state_dir: PathBuf,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("state_dir", &self.state_dir).finish_non_exhaustive()
    }
}

impl Watched {
    /// Watches `coordinator`, whose store is in `state_dir` and whose connections `census` counts.
    pub const fn new(
        coordinator: Coordinator,
        tasks: Arc<Tasks>,
        census: Census,
        state_dir: PathBuf,
    ) -> Self {
        Self { coordinator, tasks, census, state_dir }
    }

    /// Calls `give_back` whenever much memory may have become free, as many connections have ended; for ever. To be run beside the
    /// coordinator by whoever knows how its process gives memory back to the machine.
    pub async fn after_crowds(&self, give_back: fn()) {
        self.census.after_crowds(give_back).await;
    }
}

#[async_trait]
impl Subject for Watched {
    fn version(&self) -> Version {
        Version {
            daemon: "mesh-coordinator",
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: COMMIT.to_owned(),
            backend: String::new(),
        }
    }

    async fn measure(&self, registry: &mut Registry) {
        self.measure_networks(registry);
        self.measure_counted(registry);
        self.measure_store(registry);
        self.measure_server(registry);
        if let Some(Some(relay)) = self.coordinator.own_relay()
            && let Ok(Ok(report)) = timeout(PATIENCE, relay.report()).await
        {
            ringmesh_monitor::relay::measure(registry, &report);
        }
    }

    async fn live(&self) -> Vec<Check> {
        let said = self.tasks.lock().clone();
        let maintenance = match &said.maintained {
            Some((at, _)) if at.elapsed() > MAINTENANCE_LATE => {
                Err(format!("what is due was last looked for {} s ago", at.elapsed().as_secs()))
            }
            _ => Ok("what is due is looked for".to_owned()),
        };
        vec![check("store", self.store_answers().await), check("tasks", maintenance)]
    }

    async fn ready(&self) -> Vec<Check> {
        let said = self.tasks.lock().clone();
        let serving = if said.serving {
            Ok("requests are taken".to_owned())
        } else {
            Err("requests are not taken".to_owned())
        };
        let renewal = match said.maintained {
            Some((_, Some(trouble))) => Err(format!("what is due cannot be signed or stored: {trouble}")),
            _ => Ok("nothing that is due waits".to_owned()),
        };
        let mut checks = vec![
            check("serving", serving),
            check("store", self.store_writes()),
            check("keys", self.keys_sign()),
            check("renewal", renewal),
        ];
        if let Some(relay) = self.relay_answers().await {
            checks.push(check("relay", relay));
        }
        checks
    }
}

/// Both ways it can be are said in words.
fn check(name: &'static str, found: Result<String, String>) -> Check {
    let ok = found.is_ok();
    let (Ok(detail) | Err(detail)) = found;
    Check { name, ok, detail }
}

impl Watched {
    async fn store_answers(&self) -> Result<String, String> {
        let asked = async {
            let revision = self.coordinator.ledger().ask().await.map_err(|error| error.to_string())?;
            self.coordinator.applied(revision).await.map_err(|error| error.to_string())?;
            Ok(format!("at revision {revision}"))
        };
        let late = || format!("no answer within {} s, or its commits are not followed", PATIENCE.as_secs());
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(late()))
    }

    fn store_writes(&self) -> Result<String, String> {
        let free = self.free_bytes();
        if let Some(free) = free.filter(|free| *free < FREE_MIN) {
            return Err(format!(
                "{} has {} KiB left: free some space, {} MiB at least",
                self.state_dir.display(),
                free >> 10,
                FREE_MIN >> 20
            ));
        }
        match self.coordinator.ledger().notes().trouble {
            // There is space by now.
            Some(StoreError::Full) if free.is_some() => Ok("there is space again".to_owned()),
            Some(trouble) => Err(trouble.to_string()),
            None => Ok("changes are written".to_owned()),
        }
    }

    fn keys_sign(&self) -> Result<String, String> {
        let now = self.coordinator.now();
        self.coordinator.with_registry(|registry| {
            for network in registry.networks() {
                for role in [Role::Head, Role::Coordinator] {
                    let wrong = |what: String| Err(format!("network {}: {what}", network.name));
                    if let Err(error) = network.authority().key(Signer::Role(role)) {
                        return wrong(error.to_string());
                    }
                    let certificate = network.certificates.get(&role);
                    if certificate.is_none_or(|certificate| certificate.record.not_after <= now) {
                        return wrong(format!("the {role} certificate has expired"));
                    }
                }
            }
            Ok("all keys are there and certified".to_owned())
        })
    }

    /// `None`: this coordinator runs no relay.
    async fn relay_answers(&self) -> Option<Result<String, String>> {
        let relay = self.coordinator.own_relay()?;
        let Some(handle) = relay else {
            return Some(
                Err("it ended by itself and is being started again; nodes do without it".to_owned()),
            );
        };
        Some(match timeout(PATIENCE, handle.report()).await {
            Ok(Ok(_)) => Ok("it passes datagrams on".to_owned()),
            Ok(Err(stopped)) => Err(stopped.to_string()),
            Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        })
    }

    fn free_bytes(&self) -> Option<u64> {
        let space = nix::sys::statvfs::statvfs(&self.state_dir).ok()?;
        Some(space.blocks_available().saturating_mul(space.fragment_size()))
    }

    fn store_bytes(&self) -> u64 {
        let files =
            ["", "-wal", "-shm"].map(|suffix| self.state_dir.join(format!("{}{suffix}", sqlite::FILE)));
        files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.len()).sum()
    }
}

/// What the networks are like at a moment.
struct Shown {
    nodes: Series,
    tokens: Series,
    expiry: Series,
    epoch: Series,
}

impl Watched {
    fn measure_networks(&self, registry: &mut Registry) {
        let now = self.coordinator.now();
        let mut shown = Shown {
            nodes: Series::gauge(),
            tokens: Series::gauge(),
            expiry: Series::gauge(),
            epoch: Series::gauge(),
        };
        let (revision, names) = self.coordinator.with_registry(|all| {
            let mut names = BTreeMap::new();
            for state in all.networks() {
                self.show(state, now, &mut shown);
                names.insert(state.id(), state.name.clone());
            }
            (all.revision(), names)
        });
        registry.register(
            "coordinator_revision",
            "Newest durable revision of the store",
            Series::gauge().count([], revision),
        );
        registry.register("coordinator_nodes", "Members by network and state", shown.nodes);
        registry.register("coordinator_tokens", "Join tokens by network and state", shown.tokens);
        registry.register_with_unit(
            "coordinator_expiry",
            "Time until the first of its kind lapses unless it is renewed; negative once it has",
            Unit::Seconds,
            shown.expiry,
        );
        registry.register("coordinator_epoch", "Epoch of the network secret in force", shown.epoch);
        self.measure_tracks(registry, &names);
        self.measure_updates(registry, &names);
    }

    fn show(&self, state: &NetworkState, now: UnixTime, shown: &mut Shown) {
        let network = ("network", state.name.as_str());
        let members = state.nodes.values().map(|node| &node.member.record);
        let mut count = BTreeMap::from([("online", 0), ("offline", 0), ("stock", 0)]);
        let mut mesh = Vec::new();
        for member in members {
            if member.kind == MemberKind::Stock {
                *count.entry("stock").or_default() += 1;
            } else if !self.coordinator.runs(state, member.id) {
                mesh.push(NodeOf { network: state.id(), node: member.id });
            }
        }
        for standing in self.coordinator.presence().standing(mesh) {
            *count.entry(if standing.online { "online" } else { "offline" }).or_default() += 1;
        }
        for (name, count) in count {
            shown.nodes.add([network, ("state", name)], count);
        }
        let mut tokens = BTreeMap::from([("usable", 0), ("used_up", 0), ("expired", 0), ("revoked", 0)]);
        for token in state.tokens.values() {
            let row = &token.row;
            let standing = if row.revoked {
                "revoked"
            } else if row::time(row.expires_ms) <= now {
                "expired"
            } else if row.max_uses != 0 && row.uses >= row.max_uses {
                "used_up"
            } else {
                "usable"
            };
            *tokens.entry(standing).or_default() += 1;
        }
        for (name, count) in tokens {
            shown.tokens.add([network, ("state", name)], count);
        }
        for (what, first) in first_to_lapse(state) {
            shown.expiry.set([network, ("of", what)], seconds_until(first, now));
        }
        shown.epoch.add([network], state.epoch());
    }

    fn measure_tracks(&self, registry: &mut Registry, names: &BTreeMap<NetworkId, String>) {
        let (mut streams, mut behind, mut age) = (Series::gauge(), Series::gauge(), Series::gauge());
        let mut convergence = Series::histogram();
        self.coordinator.presence().with_tracks(|tracks| {
            for (id, name) in names {
                let network = ("network", name.as_str());
                let track = tracks.get(id);
                let Lag { nodes, seconds } = track.map(|track| track.lag(Instant::now())).unwrap_or_default();
                streams.add([network], track.map_or(0, |track| track.streams() as u64));
                behind.add([network], nodes as u64);
                age.set([network], seconds);
                let took = track.map(|track| track.convergence().clone()).unwrap_or_default();
                convergence = std::mem::replace(&mut convergence, Series::histogram()).observed(
                    [network],
                    took.sum(),
                    took.buckets(),
                );
            }
        });
        registry.register("coordinator_streams", "Map streams that are open", streams);
        registry.register(
            "coordinator_nodes_behind",
            "Nodes that are online and have not installed the newest change of maps",
            behind,
        );
        registry.register_with_unit(
            "coordinator_behind",
            "For how long a node that is online lacks a change, the oldest of all; 0 if none does",
            Unit::Seconds,
            age,
        );
        registry.register_with_unit(
            "coordinator_convergence",
            "From a commit to the last node that is online having it installed",
            Unit::Seconds,
            convergence,
        );
    }

    fn measure_updates(&self, registry: &mut Registry, names: &BTreeMap<NetworkId, String>) {
        let (mut updates, mut bytes, mut events) = (Series::counter(), Series::counter(), Series::counter());
        let counted = self.coordinator.counters().lock();
        for (id, name) in names {
            for kind in [UpdateKind::Full, UpdateKind::Delta] {
                let sent = counted.updates.get(&(*id, kind)).copied().unwrap_or_default();
                let labels = [("network", name.as_str()), ("kind", kind.as_str())];
                updates.add(labels, sent.updates);
                bytes.add(labels, sent.bytes);
            }
        }
        for ((id, event), count) in &counted.events {
            let network = id.and_then(|id| names.get(&id)).map_or("", String::as_str);
            events.add([("network", network), ("event", event.as_str())], *count);
        }
        drop(counted);
        registry.register("coordinator_map_updates", "Map updates sent to nodes", updates);
        registry.register_with_unit(
            "coordinator_map",
            "Map updates sent to nodes, before encryption",
            Unit::Bytes,
            bytes,
        );
        registry.register(
            "coordinator_events",
            "Durable changes by what they were; without a network: those of the coordinator itself",
            events,
        );
    }

    fn measure_counted(&self, registry: &mut Registry) {
        let counters: &Counters = self.coordinator.counters();
        let (guesses, barred) = {
            let counted = counters.lock();
            (counted.guesses, counted.barred)
        };
        registry.register(
            "coordinator_failed_proofs",
            "Credentials and proofs that did not hold; barred: of a source that had tried too often",
            Series::counter()
                .count([("barred", "false")], guesses - barred)
                .count([("barred", "true")], barred),
        );
        let mut requests = Series::counter();
        for (method, code, count) in counters.requests.rows() {
            requests.add([("method", method), ("code", code)], count);
        }
        registry.register("coordinator_requests", "Requests that ended, by method and gRPC code", requests);
    }

    fn measure_store(&self, registry: &mut Registry) {
        let notes = self.coordinator.ledger().notes();
        registry.register_with_unit(
            "coordinator_store_txn",
            "Transactions of the store, from the request to the durable answer",
            Unit::Seconds,
            Series::histogram().observed([], notes.took.sum(), notes.took.buckets()),
        );
        registry.register(
            "coordinator_store_conflicts",
            "Transactions that another one was faster than, and that were planned anew",
            Series::counter().count([], notes.conflicts),
        );
        registry.register(
            "coordinator_store_failures",
            "Transactions that the store did not do",
            Series::counter()
                .count([("reason", "full")], notes.failures.full)
                .count([("reason", "busy")], notes.failures.busy)
                .count([("reason", "failed")], notes.failures.failed),
        );
        registry.register_with_unit(
            "coordinator_store",
            "Size of the database with what is not merged into it yet",
            Unit::Bytes,
            Series::gauge().count([], self.store_bytes()),
        );
        if let Some(free) = self.free_bytes() {
            registry.register_with_unit(
                "coordinator_store_free",
                "Free space where the database is",
                Unit::Bytes,
                Series::gauge().count([], free),
            );
        }
    }

    fn measure_server(&self, registry: &mut Registry) {
        let mut connections = Series::gauge();
        for (standing, count) in self.census.rows() {
            connections.add([("standing", standing)], count);
        }
        registry.register("coordinator_connections", "Open TCP connections by their standing", connections);
        registry.register(
            "coordinator_connections_refused",
            "TCP connections refused because there were too many",
            Series::counter().count([], self.census.refused()),
        );
    }
}

/// For each kind of what is signed for a time, the end of that which ends first.
fn first_to_lapse(state: &NetworkState) -> impl Iterator<Item = (&'static str, UnixTime)> {
    let certificate = state.certificates.values().map(|held| held.record.not_after).min();
    let policy = state.policy.as_ref().map(|policy| policy.signed.record.not_after);
    let membership = state.nodes.values().map(|node| node.member.record.not_after).min();
    [("certificate", certificate), ("policy", policy), ("membership", membership)]
        .into_iter()
        .filter_map(|(what, first)| Some((what, first?)))
}

fn seconds_until(then: UnixTime, now: UnixTime) -> f64 {
    (then.as_millis() as f64 - now.as_millis() as f64) / 1000.0
}
