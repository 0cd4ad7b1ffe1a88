//! One network as this node belongs to it: what is known, what is installed, and the tasks that keep the two together.
//!
//! A map goes one way: verified, written to disk, installed in the data plane, and only then acknowledged. What is refused on
//! the way changes nothing.

mod link;
mod status;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ringmesh_proto::control::{self as wire, Reason};
use ringmesh_tunnel::{
    key::{NodeId, PublicKey},
    netmap::{Envelope, MapError, NetworkMap, NodeRecord},
};
use tokio::{sync::watch, task::JoinSet};
use tracing::{error, info, warn};

pub(crate) use self::{
    link::{Link, Live},
    status::endpoint_text,
};
use crate::{
    clock::{self, SleepWatch},
    config::Config,
    control::{connect::Pin, convert, sync},
    error::Failure,
    host::{self, AddressWatch, Netlink, Plan},
    peers,
    plane::{DataPlane, Prepared},
    state::{Identity, Membership, Secrets, Standing, StateDir, StateFile, TIMESTAMP_RENEWAL, Timestamps},
};

/// How often is looked whether the machine slept.
const SLEEP_CHECK: Duration = Duration::from_secs(2);

/// Which map is held, and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) map: Arc<NetworkMap>,
    pub(crate) secrets: Arc<Secrets>,
    /// Durable revision of the map in the data plane; 0 if none is.
    pub(crate) installed: u64,
    /// When a coordinator last vouched for the map.
    pub(crate) vouched: Option<Instant>,
}

/// How far a mesh has come, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    /// No map is installed yet.
    Waiting,
    /// The last attempt to get one failed like this; others follow.
    Stuck(Failure),
    /// A map is installed.
    Running,
    /// It cannot go on.
    Failed(Failure),
}

/// The data plane in use and what it was set up for.
#[derive(Debug)]
struct Running {
    plan: Plan,
    plane: Arc<DataPlane>,
}

/// A joined network.
#[derive(Debug)]
pub(crate) struct Mesh {
    config: Config,
    state: Arc<StateDir>,
    identity: Identity,
    own_key: PublicKey,
    netlink: Netlink,
    membership: RwLock<Membership>,
    held: RwLock<Held>,
    timestamps: Mutex<Timestamps>,
    /// Taken for the whole of an installation, so that a newer map never ends up under an older one.
    running: tokio::sync::Mutex<Option<Running>>,
    plane: watch::Sender<Option<Arc<DataPlane>>>,
    prepared: Mutex<Option<Prepared>>,
    /// The map on disk lacks what is not durable.
    unsaved: AtomicBool,
    stage: watch::Sender<Stage>,
    link: watch::Sender<Link>,
    live: Mutex<Option<Live>>,
    /// The last thing refused, until something is taken.
    refusal: Mutex<Option<Failure>>,
    /// Unknown until the data plane runs.
    endpoints: watch::Sender<Option<Vec<SocketAddr>>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl Mesh {
    /// A mesh that holds a membership and possibly a map, and does nothing yet.
    pub(crate) fn new(
        config: Config,
        state: Arc<StateDir>,
        identity: Identity,
        membership: Membership,
        map: NetworkMap,
        secrets: Secrets,
    ) -> Result<Self, Failure> {
        let timestamps = Timestamps::load(&state)?;
        Ok(Self {
            own_key: identity.public_key().noise_key(),
            netlink: Netlink::open()?,
            config,
            state,
            identity,
            membership: RwLock::new(membership),
            held: RwLock::new(Held { map: map.into(), secrets: secrets.into(), installed: 0, vouched: None }),
            timestamps: Mutex::new(timestamps),
            running: tokio::sync::Mutex::new(None),
            plane: watch::Sender::new(None),
            prepared: Mutex::new(None),
            unsaved: AtomicBool::new(false),
            stage: watch::Sender::new(Stage::Waiting),
            link: watch::Sender::new(Link::default()),
            live: Mutex::new(None),
            refusal: Mutex::new(None),
            endpoints: watch::Sender::new(None),
            tasks: tokio::sync::Mutex::new(JoinSet::new()),
        })
    }

    /// Reads what the state directory knows; `None` if the node has not joined.
    ///
    /// # Errors
    /// A file that cannot be replaced is corrupt.
    pub(crate) fn load(config: &Config, state: &Arc<StateDir>) -> Result<Option<Self>, Failure> {
        let Some(membership) = Membership::load(state)? else { return Ok(None) };
        let identity = Identity::load(state)?.ok_or_else(|| Identity::missing(state))?;
        let secrets = Secrets::load(state, membership.network, &identity.noise_secret())?;
        let map = load_map(state, &membership)?;
        Self::new(config.clone(), Arc::clone(state), identity, membership, map, secrets).map(Some)
    }

    /// Hands over a TUN device and a port that were taken early.
    pub(crate) fn use_prepared(&self, prepared: Prepared) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
    }

    /// Installs the map that is held, if there is one.
    ///
    /// # Errors
    /// The machine refuses.
    pub(crate) async fn resume(&self) -> Result<(), Failure> {
        if self.is_removed() || self.held().map.position().is_none() {
            return Ok(());
        }
        let held = self.held();
        info!(revision = durable(&held.map), "starting from the map on disk");
        self.install(held.map, held.secrets).await
    }

    /// Starts the tasks that keep the node in step with its coordinator.
    pub(crate) async fn start(self: &Arc<Self>) {
        if self.is_removed() {
            self.link.send_replace(Link::removed());
            return;
        }
        let mut tasks = self.tasks.lock().await;
        tasks.spawn(sync::keep_in_step(Arc::clone(self)));
        tasks.spawn(Arc::clone(self).keep());
        tasks.spawn(Arc::clone(self).watch_endpoints());
        tasks.spawn(Arc::clone(self).watch_sleep());
    }

    /// Ends all tasks and the data plane; interface and routes are gone afterwards.
    pub(crate) async fn stop(&self) {
        let mut tasks = self.tasks.lock().await;
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        self.note_timestamps().await;
        self.save_now().await;
        self.stop_plane().await;
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    async fn stop_plane(&self) {
        let mut running = self.running.lock().await;
        self.plane.send_replace(None);
        if let Some(running) = running.take() {
            running.plane.stop().await;
        }
    }

    /// Verifies an update, writes the result down and installs it. Gives the durable revision to acknowledge.
    ///
    /// # Errors
    /// Something in it does not hold, or the machine refuses; the last good map stays in force.
    pub(crate) async fn accept(&self, update: wire::MapUpdate) -> Result<u64, Failure> {
        let (update, beside) = convert::map_update(update).map_err(|error| refused(&error))?;
        let held = self.held();
        let base = Arc::clone(&held.map);
        let full = update.full;
        // Signatures of a full map may take a while; the heartbeats of other tasks go on meanwhile.
        let verified = tokio::task::spawn_blocking(move || base.verify(update, clock::wall())).await;
        let map = verified.map_err(|error| refused(&error))?.map_err(|error| map_refused(&error))?;
        let secrets = self.open_secrets(&held.secrets, beside.secrets, beside.peer_secrets, full, &map)?;
        let map = Arc::new(map);
        self.save(&map, &secrets).await;
        self.take_coordinators(beside.coordinators);
        self.install(Arc::clone(&map), secrets).await?;
        Ok(durable(&map))
    }

    /// Takes the head of a heartbeat: the map did not change.
    ///
    /// # Errors
    /// It does not hold, or names another map.
    pub(crate) fn renew(&self, head: wire::Envelope) -> Result<(), Failure> {
        let head = convert::envelope(head).map_err(|error| refused(&error))?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.map = Arc::new(held.map.renew(head, clock::wall()).map_err(|error| map_refused(&error))?);
        Ok(())
    }

    /// Notes that a coordinator just vouched for the map.
    pub(crate) fn vouch(&self) {
        self.held.write().unwrap_or_else(PoisonError::into_inner).vouched = Some(Instant::now());
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Notes that what a coordinator sent was refused; status shows it until something is taken.
    pub(crate) fn set_refusal(&self, failure: &Failure) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
    }

    fn open_secrets(
        &self,
        held: &Arc<Secrets>,
        epochs: Vec<wire::SealedSecret>,
        peers: Vec<wire::PeerSecret>,
        full: bool,
        map: &NetworkMap,
    ) -> Result<Arc<Secrets>, Failure> {
        let members: BTreeSet<_> = map.members().map(|member| member.id).collect();
        if epochs.is_empty() && peers.is_empty() && held.has_only(&members) {
            return Ok(Arc::clone(held));
        }
        let key = self.identity.noise_secret();
        let network = map.network();
        let epochs = epochs.into_iter().map(|secret| (secret.epoch, secret.sealed));
        let peers = peers
            .into_iter()
            .map(|secret| {
                Ok((NodeId::from_bytes(convert::array(&secret.node_id, "a node id")?), secret.sealed))
            })
            .collect::<Result<Vec<_>, convert::Malformed>>()
            .map_err(|error| refused(&error))?;
        let mut next = held.with_epochs(network, &key, epochs).map_err(|error| refused(&error))?;
        if full && !peers.is_empty() {
            next.retain_peers(&BTreeSet::new());
        }
        let mut next = next.with_peers(network, &key, peers).map_err(|error| refused(&error))?;
        next.retain_peers(&members);
        Ok(Arc::new(next))
    }

    /// Writes down what was verified: at once if it is durable, else with the next such, so that a peer on the move does not
    /// wear out the disk. A full disk must not keep a revocation from being installed, so it is only reported.
    async fn save(&self, map: &Arc<NetworkMap>, secrets: &Arc<Secrets>) {
        let due = {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            durable(map) != durable(&held.map) || !Arc::ptr_eq(&held.secrets, secrets)
        };
        self.unsaved.store(!due, Ordering::Relaxed);
        if due {
            self.write(Arc::clone(map), Arc::clone(secrets)).await;
        }
    }

    /// Writes down what [`save`](Self::save) put off.
    async fn save_now(&self) {
        if self.unsaved.swap(false, Ordering::Relaxed) {
            let held = self.held();
            self.write(held.map, held.secrets).await;
        }
    }

    async fn write(&self, map: Arc<NetworkMap>, secrets: Arc<Secrets>) {
        let state = Arc::clone(&self.state);
        let written = tokio::task::spawn_blocking(move || {
            state.write(StateFile::Map, &map.emit()).and_then(|()| secrets.save(&state))
        });
        let failure = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure.to_string(),
            Err(error) => error.to_string(),
        };
        error!(
            failure,
            "the map is used but not kept: a restart without a coordinator would use an older one"
        );
    }

    /// Takes the coordinators' addresses as they are told, and keeps the one in use: it is known to work from here.
    fn take_coordinators(&self, mut told: Vec<String>) {
        if told.is_empty() {
            return;
        }
        let in_use = self.link.borrow().address.clone();
        if !in_use.is_empty() && !told.contains(&in_use) {
            told.push(in_use);
        }
        let mut membership = self.membership.write().unwrap_or_else(PoisonError::into_inner);
        if membership.coordinators == told {
            return;
        }
        membership.coordinators = told;
        // While joining, the file is written last, by the joiner.
        if *self.stage.borrow() == Stage::Running
            && let Err(failure) = membership.save(&self.state)
        {
            error!(%failure, "the coordinators' new addresses are not kept");
        }
    }

    /// Puts a verified map in force. Nothing is judged by the old one afterwards.
    async fn install(&self, map: Arc<NetworkMap>, secrets: Arc<Secrets>) -> Result<(), Failure> {
        let mut running = self.running.lock().await;
        let plan = self.plan(&map)?;
        if running.as_ref().is_some_and(|running| running.plan != plan)
            && let Some(old) = running.take()
        {
            warn!("this node's addresses changed; the interface is made anew");
            self.plane.send_replace(None);
            old.plane.stop().await;
        }
        let current = match running.as_ref() {
            Some(running) => Arc::clone(&running.plane),
            None => {
                let plane = Arc::new(self.start_plane(&plan).await?);
                *running = Some(Running { plan, plane: Arc::clone(&plane) });
                plane
            }
        };
        current.apply(peers::of_map(&map, &secrets, &self.own_key, clock::wall())).await?;
        let installed = durable(&map);
        {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            *held = Held { map, secrets, installed, vouched: held.vouched };
        }
        self.plane.send_replace(Some(current));
        self.stage.send_replace(Stage::Running);
        Ok(())
    }

    async fn start_plane(&self, plan: &Plan) -> Result<DataPlane, Failure> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        if prepared.is_none() {
            host::await_predecessor(&self.netlink, &plan.interface).await?;
        }
        host::preflight(&self.netlink, plan).await?;
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => Prepared::open(&self.config)?,
        };
        host::bring_up(&self.netlink, plan).await?;
        let floors = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner).floors();
        DataPlane::start(prepared, &self.config, &self.identity.noise_secret(), floors).await
    }

    fn plan(&self, map: &NetworkMap) -> Result<Plan, Failure> {
        let me = map.me().ok_or_else(|| refused(&MapError::OwnRecordMissing { id: map.id() }))?;
        let membership = self.membership();
        let pools: Vec<_> = membership.pools().collect();
        let own = me.ipv4.map(Into::into).into_iter().chain([me.ipv6.into()]);
        for address in own {
            if !pools.iter().any(|pool| pool.contains(address)) {
                return Err(refused(&format!(
                    "this node's address {address} is in none of the network's pools"
                )));
            }
        }
        Ok(Plan {
            interface: self.config.interface.clone(),
            mtu: self.config.mtu,
            ipv4: me.ipv4,
            ipv6: me.ipv6,
            pools,
        })
    }

    /// A coordinator says that this node was removed: it keeps quiet from now on, also after a restart.
    pub(crate) async fn removed(&self) {
        warn!("this node was removed from its network by an operator; `meshctl leave` clears its state");
        self.stop_plane().await;
        {
            let mut membership = self.membership.write().unwrap_or_else(PoisonError::into_inner);
            membership.standing = Standing::Removed;
            if let Err(failure) = membership.save(&self.state) {
                error!(%failure, "the removal is not kept: a restart will ask the coordinator again");
            }
        }
        self.link.send_replace(Link::removed());
    }

    /// Writes down timestamps and drops peers whose records ended, for as long as the mesh lives.
    async fn keep(self: Arc<Self>) {
        loop {
            let held = self.held();
            let now = clock::wall();
            let wait = peers::until_next_expiry(&held.map, now, TIMESTAMP_RENEWAL);
            let something_ends = wait < TIMESTAMP_RENEWAL;
            tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
            self.note_timestamps().await;
            self.save_now().await;
            if something_ends && self.plane.borrow().is_some() {
                info!("a record of the map ended");
                let held = self.held();
                if let Err(failure) = self.install(held.map, held.secrets).await {
                    error!(%failure, "what ended in the map is still in force");
                }
            }
        }
    }

    /// Erases session keys after the machine slept, so that none outlives it and nobody waits for a dead session's timeout.
    async fn watch_sleep(self: Arc<Self>) {
        let mut watch = SleepWatch::default();
        loop {
            if let Some(slept) = watch.slept()
                && let Some(plane) = self.plane()
            {
                info!(seconds = slept.as_secs(), "the machine slept; sessions begin anew");
                // The only failure is that there is no data plane, and then there are no sessions.
                let _ = plane.expire_sessions().await;
            }
            tokio::time::sleep(SLEEP_CHECK).await;
        }
    }

    /// Keeps [`endpoints`](Self::endpoints) true.
    async fn watch_endpoints(self: Arc<Self>) {
        let mut changes = AddressWatch::open();
        let mut plane = self.plane.subscribe();
        loop {
            let port = plane.borrow_and_update().as_ref().map(|plane| plane.port());
            if let Some(port) = port {
                match self.look_for_endpoints(port).await {
                    Ok(found) => {
                        let found = Some(found);
                        self.endpoints.send_if_modified(|known| {
                            let changed = *known != found;
                            *known = found;
                            changed
                        });
                    }
                    Err(failure) => warn!(%failure, "cannot list this machine's addresses"),
                }
            }
            tokio::select! {
                () = changes.changed() => {}
                changed = plane.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn look_for_endpoints(&self, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let pools: Vec<_> = self.membership().pools().collect();
        let mut found = self.config.endpoints.clone();
        found.extend(host::local_endpoints(&self.netlink, &self.config.interface, &pools, port).await?);
        let mut seen = BTreeSet::new();
        found.retain(|endpoint| seen.insert(*endpoint));
        found.truncate(ringmesh_tunnel::netmap::ENDPOINTS_MAX);
        Ok(found)
    }

    /// What the node says of itself, signed, for `endpoints`.
    ///
    /// # Errors
    /// The record is beyond its bounds.
    pub(crate) fn node_record(&self, endpoints: Vec<SocketAddr>) -> Result<Envelope, Failure> {
        let now = clock::wall();
        let serial = {
            let mut timestamps = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner);
            timestamps.next_serial(&self.state, now)
        };
        let membership = self.membership();
        let record =
            NodeRecord { network: membership.network, id: membership.node, serial, endpoints, time: now };
        Envelope::sign(&record, self.identity.secret())
            .map_err(|error| Failure::new(Reason::Host, format!("signing this node's record: {error}")))
    }

    /// Writes down which handshake timestamps were used.
    async fn note_timestamps(&self) {
        let plane = self.plane.borrow().clone();
        let Some(plane) = plane else { return };
        let Ok(used) = plane.floors().await else { return };
        let mut timestamps = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(failure) = timestamps.note(&self.state, used) {
            error!(%failure, "handshake timestamps are not kept");
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn membership(&self) -> Membership {
        self.membership.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.membership.read().unwrap_or_else(PoisonError::into_inner).standing == Standing::Removed
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn pin(&self) -> Pin {
        let membership = self.membership.read().unwrap_or_else(PoisonError::into_inner);
        Pin { network: membership.network, root: membership.root }
    }

    /// The data plane, if it runs.
    pub(crate) fn plane(&self) -> Option<Arc<DataPlane>> {
        self.plane.borrow().clone()
    }

    /// Follows the data plane as it comes and goes.
    pub(crate) fn watch_plane(&self) -> watch::Receiver<Option<Arc<DataPlane>>> {
        self.plane.subscribe()
    }

    /// Follows the endpoints to tell peers.
    pub(crate) fn watch_own_endpoints(&self) -> watch::Receiver<Option<Vec<SocketAddr>>> {
        self.endpoints.subscribe()
    }

    /// Follows how far the mesh has come.
    pub(crate) fn watch_stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// Notes a failure on the way to the first map.
    pub(crate) fn set_stuck(&self, failure: &Failure, for_good: bool) {
        self.stage.send_if_modified(|stage| {
            if *stage == Stage::Running && !for_good {
                return false;
            }
            *stage = if for_good { Stage::Failed(failure.clone()) } else { Stage::Stuck(failure.clone()) };
            true
        });
    }
}

/// The map on disk; one that cannot be used is set aside, and a coordinator will send it again.
fn load_map(state: &StateDir, membership: &Membership) -> Result<NetworkMap, Failure> {
    let empty = NetworkMap::empty(membership.network, membership.root, membership.node);
    let Some(content) = state.read(StateFile::Map)? else { return Ok(empty) };
    match NetworkMap::parse(&content, membership.network, membership.root, membership.node, clock::wall()) {
        Ok(map) => Ok(map),
        // Not damaged, only over: a coordinator will renew it, or say that the node was removed.
        Err(why) if why.clock() => {
            warn!(%why, "the map on disk is over");
            Ok(empty)
        }
        Err(why) => {
            state.set_aside(StateFile::Map, &why);
            Ok(empty)
        }
    }
}

/// The durable revision of a map, 0 for the empty one.
pub(crate) fn durable(map: &NetworkMap) -> u64 {
    map.position().map_or(0, |position| position.durable)
}

fn refused(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Reason::NotTrusted,
        format!("refused what the coordinator sent; the last good map stays in force: {why}"),
    )
}

fn map_refused(why: &MapError) -> Failure {
    let reason = if why.clock() { Reason::Clock } else { Reason::NotTrusted };
    Failure::new(
        reason,
        format!("refused what the coordinator sent; the last good map stays in force: {why}"),
    )
}
