//! One network as this node belongs to it: what is known, what is installed, and the tasks that keep the two together.
//!
//! A map goes one way: verified, written to disk, installed in the data plane, and only then acknowledged. What is refused on
//! the way changes nothing.

mod filter;
mod link;
mod metrics;
mod names;
mod reach;
mod status;
mod tasks;
mod trace;
mod update;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicBool},
    time::Instant,
};

use ringmesh_aead::Key;
use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{
    filter::Filter,
    key::PublicKey,
    netmap::{MapError, NetworkMap},
    time::UnixTime,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tracing::{error, info, warn};

pub(crate) use self::{
    link::{Link, Live},
    reach::Route,
};
use self::{
    names::NameService,
    update::{check_secrets, refused},
};
use crate::{
    candidates::OwnRecord,
    clock::{self, Moment},
    config::{self, Config},
    control::{connect::Pin, sync},
    dialer::Dialer,
    error::Failure,
    fallback::{
        Hub,
        link_socket::LinkSocket,
        ssh::{self, Members, SshServer},
    },
    filter::Denials,
    host::{self, Netlink, Plan},
    links::LinkBook,
    peers,
    plane::{DataPlane, Plane, Prepared},
    relaying::{RelayPlane, RelayPorts},
    roads::Roads,
    state::{Identity, Membership, Secrets, Standing, StateDir, StateFile, Timestamps},
    worker::{Work, Worker},
};

/// Which map is held, and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) map: Arc<NetworkMap>,
    pub(crate) secrets: Arc<Secrets>,
    /// Durable revision of the map in the data plane; 0 if none is.
    pub(crate) installed: u64,
    /// When what is installed ceases to be right by itself, because a record or the policy ends.
    until: Option<UnixTime>,
    /// What the workers judge by; denies all while there is no data plane.
    pub(crate) filter: Arc<Filter>,
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
    plane: Arc<Plane>,
    _streams: Option<Streams>,
}

/// Open streams and those who open and accept them; they end with this.
#[derive(Debug)]
struct Streams {
    _dialer: JoinSet<()>,
    _ssh: Option<SshServer>,
    _link_socket: Option<LinkSocket>,
}

/// A joined network.
#[derive(Debug)]
pub(crate) struct Mesh {
    config: Config,
    /// Since when this node waits for a coordinator's word.
    begun: Instant,
    state: Arc<StateDir>,
    identity: Arc<Identity>,
    own_key: PublicKey,
    netlink: Netlink,
    membership: RwLock<Membership>,
    held: RwLock<Held>,
    timestamps: Mutex<Timestamps>,
    /// What this node's owner denies.
    denials: Mutex<Denials>,
    /// Taken for the whole of an installation, so that a newer map never ends up under an older one.
    running: tokio::sync::Mutex<Option<Running>>,
    plane: watch::Sender<Option<Arc<Plane>>>,
    /// A map was installed.
    installed: Notify,
    prepared: Mutex<Option<Prepared>>,
    /// A relay's.
    ports: Option<Arc<RelayPorts>>,
    /// What a worker does.
    work: Work,
    /// The map on disk lacks what is not durable.
    unsaved: AtomicBool,
    /// The same, for the task that waits for it.
    put_off: Notify,
    /// Held while the map is written, so that a newer one never ends up under an older one.
    saving: tokio::sync::Mutex<()>,
    stage: watch::Sender<Stage>,
    link: watch::Sender<Link>,
    live: Mutex<Option<Live>>,
    /// The last thing refused, until something is taken.
    refusal: Mutex<Option<Failure>>,
    /// Unknown until the data plane runs.
    own_record: watch::Sender<Option<OwnRecord>>,
    /// What it takes to open each link that the data plane may ask for.
    roads: Arc<Mutex<Roads>>,
    /// What is known of links.
    book: Arc<LinkBook>,
    /// Whose keys open this node's SSH endpoint.
    ssh_members: Members,
    /// The names of the map in force, and who answers for them.
    names: NameService,
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
        let denials = Denials::load(&state, membership.network, Moment::now())?;
        Ok(Self {
            own_key: identity.public_key().noise_key(),
            netlink: Netlink::open()?,
            begun: Instant::now(),
            config,
            state,
            identity: identity.into(),
            membership: RwLock::new(membership),
            held: RwLock::new(Held {
                map: map.into(),
                secrets: secrets.into(),
                installed: 0,
                until: None,
                filter: Filter::deny_all().into(),
                vouched: None,
            }),
            timestamps: Mutex::new(timestamps),
            denials: Mutex::new(denials),
            running: tokio::sync::Mutex::new(None),
            plane: watch::Sender::new(None),
            installed: Notify::new(),
            prepared: Mutex::new(None),
            ports: None,
            work: Worker::run::<Key>,
            unsaved: AtomicBool::new(false),
            put_off: Notify::new(),
            saving: tokio::sync::Mutex::new(()),
            stage: watch::Sender::new(Stage::Waiting),
            link: watch::Sender::new(Link::default()),
            live: Mutex::new(None),
            refusal: Mutex::new(None),
            own_record: watch::Sender::new(None),
            roads: Arc::default(),
            book: Arc::default(),
            ssh_members: Members::new(),
            names: NameService::new()?,
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

    /// Says what a worker does, and of a relay on whose ports it is to be.
    pub(crate) fn with(mut self, work: Work, ports: Option<Arc<RelayPorts>>) -> Self {
        (self.work, self.ports) = (work, ports);
        self
    }

    /// Hands over a TUN device and a port that were taken early.
    pub(crate) fn use_prepared(&self, prepared: Prepared) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
    }

    /// Installs the map that is held, if there is one. Without one that can be used, the node waits for a coordinator's.
    ///
    /// # Errors
    /// The machine refuses.
    pub(crate) async fn resume(&self) -> Result<(), Failure> {
        if self.is_removed() || self.held().map.position().is_none() {
            return Ok(());
        }
        let held = self.held();
        info!(event = "map_loaded", revision = durable(&held.map), "starting from the map on disk");
        if let Err(why) = check_secrets(&held.map, &held.secrets) {
            warn!(event = "secrets_mismatch", %why, "the secrets on disk do not go with the map; a coordinator will send them again");
        }
        match self.install(held.map, held.secrets).await {
            // No other start would use it either; a coordinator may have a better one.
            Err(failure) if failure.reason() == Reason::NotTrusted => {
                error!(event = "map_unusable", %failure, "the map on disk cannot be used; waiting for a coordinator");
                self.set_stuck(&failure, false);
                Ok(())
            }
            result => result,
        }
    }

    /// Starts the tasks that keep the node in step with its coordinator.
    pub(crate) async fn start(self: &Arc<Self>) {
        if self.is_removed() {
            self.link.send_replace(Link::removed(None));
        }
        let mut tasks = self.tasks.lock().await;
        let mesh = Arc::clone(self);
        tasks.spawn(async move { match sync::keep_in_step(mesh).await {} });
        tasks.spawn(Arc::clone(self).keep());
        tasks.spawn(Arc::clone(self).save_what_was_put_off());
        tasks.spawn(Arc::clone(self).watch_surroundings());
        tasks.spawn(Arc::clone(self).watch_sleep());
        self.start_names().await;
    }

    /// Ends all tasks and the data plane; interface and routes are gone afterwards.
    pub(crate) async fn stop(&self) {
        // While the interface is there: what was told of it is taken back first.
        self.stop_names().await;
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
        {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            // Nothing is in force that could end.
            held.until = None;
            held.filter = Filter::deny_all().into();
        }
        if let Some(running) = running.take() {
            running.plane.stop().await;
        }
    }

    /// Puts a verified map in force. Nothing is judged by the old one afterwards, nor by the old policy.
    async fn install(&self, map: Arc<NetworkMap>, secrets: Arc<Secrets>) -> Result<(), Failure> {
        let mut running = self.running.lock().await;
        let (filter, until) = self.put_in_force(&mut running, &map, &secrets).await?;
        let installed = durable(&map);
        {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            *held = Held { map, secrets, installed, until, filter, vouched: held.vouched };
        }
        self.installed.notify_one();
        self.stage.send_replace(Stage::Running);
        Ok(())
    }

    /// Puts the held map in force again: part of it ended, or the owner denies something else.
    async fn install_again(&self) -> Result<(), Failure> {
        let mut running = self.running.lock().await;
        if running.is_none() {
            return Ok(());
        }
        // Read under the lock: a newer map may just have been installed.
        let Held { map, secrets, .. } = self.held();
        let (filter, until) = self.put_in_force(&mut running, &map, &secrets).await?;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        (held.filter, held.until) = (filter, until);
        Ok(())
    }

    /// Gives the filter in force then, and when all that is ceases to be right by itself.
    async fn put_in_force(
        &self,
        running: &mut Option<Running>,
        map: &Arc<NetworkMap>,
        secrets: &Secrets,
    ) -> Result<(Arc<Filter>, Option<UnixTime>), Failure> {
        let plan = self.plan(map)?;
        if running.as_ref().is_some_and(|running| running.plan != plan)
            && let Some(old) = running.take()
        {
            warn!(event = "addresses_changed", "this node's addresses changed; the interface is made anew");
            self.plane.send_replace(None);
            old.plane.stop().await;
        }
        let current = match running.as_ref() {
            Some(running) => Arc::clone(&running.plane),
            None => {
                let plane = Arc::new(self.start_plane(&plan).await?);
                let streams = match plane.packets() {
                    Some(plane) => Some(self.start_streams(plane).await?),
                    None => None,
                };
                *running = Some(Running { plan, plane: Arc::clone(&plane), _streams: streams });
                plane
            }
        };
        let now = clock::wall();
        let filter = self.compile(map, now).await?;
        let pools: Vec<_> = self.membership().pools().collect();
        let known = peers::Known { secrets, own: &self.own_key, pools: &pools, ssh: &self.config.ssh };
        let peers = {
            let mut roads = self.roads();
            let peers = match self.config.relay {
                Some(_) => peers::clients(map, &known, now),
                None => peers::of_map(map, &known, &mut roads, now),
            };
            self.book.retain(|peer, candidate| roads.find(peer, candidate).is_some());
            peers
        };
        self.ssh_members.set(map.peers(now).filter_map(|member| member.identity_key));
        current.apply(peers, Arc::clone(&filter)).await?;
        if current.packets().is_some() {
            self.names.publish(map, self.membership().zone, pools.clone(), now).await?;
        }
        self.plane.send_if_modified(|known| {
            let same = known.as_ref().is_some_and(|known| Arc::ptr_eq(known, &current));
            *known = Some(current);
            !same
        });
        Ok((filter, map.next_expiry(now)))
    }

    async fn start_plane(&self, plan: &Plan) -> Result<Plane, Failure> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.config.relay.is_none() {
            if prepared.is_none() {
                host::await_predecessor(&self.netlink, &plan.interface).await?;
            }
            host::preflight(&self.netlink, plan).await?;
        }
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => Prepared::open(&self.config, self.ports.as_deref())?,
        };
        let floors = self.timestamps.lock().unwrap_or_else(PoisonError::into_inner).floors();
        match prepared {
            Prepared::Packets(prepared) => {
                host::bring_up(&self.netlink, plan).await?;
                let key = self.identity.noise_secret();
                let plane = DataPlane::start(prepared, &self.config, &key, floors, self.work).await?;
                plane.set_pools(plan.pools.clone()).await?;
                Ok(Plane::Packets(plane))
            }
            Prepared::Relay(prepared) => {
                let (network, identity) = (self.membership().network, Arc::clone(&self.identity));
                Ok(Plane::Relay(RelayPlane::start(prepared, network, identity, floors).await?))
            }
        }
    }

    /// Lets streams be opened, from here and from elsewhere, for as long as a data plane runs.
    ///
    /// # Errors
    /// The machine refuses what the configuration asks for.
    async fn start_streams(&self, plane: &DataPlane) -> Result<Streams, Failure> {
        let hub = plane.hub();
        let ssh = match self.config.ssh_port {
            Some(port) => {
                let listener = ssh::listen(port).map_err(|error| ssh_port_failure(port, &error))?;
                let members = self.ssh_members.clone();
                Some(SshServer::start(listener, self.identity.secret(), members, hub.clone())?)
            }
            None => None,
        };
        let mut dialer = JoinSet::new();
        if let Some(asks) = plane.take_dials() {
            let (roads, book) = (Arc::clone(&self.roads), Arc::clone(&self.book));
            dialer.spawn(Dialer::new(hub.clone(), roads, book, Arc::clone(&self.identity)).run(asks));
        }
        Ok(Streams { _dialer: dialer, _ssh: ssh, _link_socket: self.link_socket(hub).await? })
    }

    /// The socket for streams that the machine's SSH server forwards. That nobody asked for may be missing.
    async fn link_socket(&self, hub: &Hub) -> Result<Option<LinkSocket>, Failure> {
        let Some(path) = self.config.link_socket_path() else { return Ok(None) };
        match LinkSocket::bind(&path, hub.clone()).await {
            Ok(socket) => Ok(Some(socket)),
            Err(failure) if self.config.link_socket == config::LinkSocket::Beside => {
                warn!(
                    event = "link_socket_unavailable",
                    %failure,
                    "no link socket: peers cannot come by this machine's SSH server (link_socket = false says that this is meant)"
                );
                Ok(None)
            }
            Err(failure) => Err(failure.context("link_socket")),
        }
    }

    fn plan(&self, map: &NetworkMap) -> Result<Plan, Failure> {
        let me = map.me().ok_or_else(|| refused(&MapError::OwnRecordMissing { id: map.id() }))?;
        if me.identity_key != Some(self.identity.public_key()) || me.noise_key != self.own_key {
            return Err(refused(&"this node's record in the map has another key than this node"));
        }
        match (&self.config.relay, me.relay) {
            (Some(_), true) | (None, false) => {}
            (Some(_), false) => {
                return Err(Failure::new(
                    Reason::Conflict,
                    "this daemon is to be a relay, but it joined with the token of an ordinary node: leave, and join with a relay's token",
                ));
            }
            (None, true) => {
                return Err(Failure::new(
                    Reason::Conflict,
                    "this node joined with a relay's token, so it must run as a relay (`meshctl relay run`, or [relay] in its configuration)",
                ));
            }
        }
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
            queue: self.config.tun_queue,
            ipv4: me.ipv4,
            ipv6: me.ipv6,
            pools,
        })
    }

    /// A coordinator says that this node was removed: no packet flows from now on, also after a restart, until a coordinator
    /// sends a map with this node in it.
    pub(crate) async fn removed(&self, next_try: Instant) {
        self.stop_plane().await;
        if self.set_standing(Standing::Removed) {
            warn!(
                event = "removed",
                "this node was removed from its network by an operator; `meshctl leave` clears its state"
            );
        }
        self.set_link(Link::removed(Some(next_try)), None);
    }

    /// A map that holds has this node in it: whoever said that it was removed was wrong, or an operator took it back.
    fn belongs(&self) {
        if self.set_standing(Standing::Member) {
            info!(
                event = "reinstated",
                "a coordinator sent a map with this node in it: it is a member again"
            );
        }
    }

    /// Whether that is news. While joining, nothing is on disk to be changed.
    fn set_standing(&self, standing: Standing) -> bool {
        let mut membership = self.membership.write().unwrap_or_else(PoisonError::into_inner);
        if membership.standing == standing {
            return false;
        }
        membership.standing = standing;
        let joined = self.state.read(StateFile::Network).is_ok_and(|found| found.is_some());
        if joined && let Err(failure) = membership.save(&self.state) {
            error!(event = "state_write_failed", %failure, "how this node stands to its network is not kept; a restart begins with what was before");
        }
        true
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
    pub(crate) fn plane(&self) -> Option<Arc<Plane>> {
        self.plane.borrow().clone()
    }

    /// Follows the data plane as it comes and goes.
    pub(crate) fn watch_plane(&self) -> watch::Receiver<Option<Arc<Plane>>> {
        self.plane.subscribe()
    }

    /// Follows what this node has to say of itself.
    pub(crate) fn watch_own_record(&self) -> watch::Receiver<Option<OwnRecord>> {
        self.own_record.subscribe()
    }

    fn roads(&self) -> MutexGuard<'_, Roads> {
        self.roads.lock().unwrap_or_else(PoisonError::into_inner)
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

fn ssh_port_failure(port: u16, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        let text = "another program listens there (the system's own SSH server?); give another port";
        return Failure::new(Reason::Conflict, format!("ssh_port = {port}: {text}"));
    }
    Failure::host(format!("ssh_port = {port}"), error)
}

/// The map on disk; one that cannot be used is set aside, and a coordinator will send it again.
fn load_map(state: &StateDir, membership: &Membership) -> Result<NetworkMap, Failure> {
    let empty = NetworkMap::empty(membership.network, membership.root, membership.node);
    let Some(content) = state.read(StateFile::Map)? else { return Ok(empty) };
    match NetworkMap::parse(&content, membership.network, membership.root, membership.node, clock::wall()) {
        Ok(map) => Ok(map),
        // Not damaged, only over: a coordinator will renew it, or say that the node was removed.
        Err(why) if why.clock() => {
            warn!(event = "map_unusable", %why, "the map on disk is over");
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
