//! The daemon: one state directory, at most one network, and what people may ask of it.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ringmesh_aead::{Cipher, Key};
use ringmesh_monitor::{Monitor, Subject};
use ringmesh_proto::{control::Reason, local};
use ringmesh_tunnel::{
    enroll::{JoinToken, TokenError},
    netmap::{Member, MemberKind, NetworkMap},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tonic::Status;
use tracing::{error, info, warn};

use crate::{
    config::Config,
    control::{
        VERSION,
        enroll::{self, Asked},
    },
    error::Failure,
    host,
    join::JoinKey,
    local::{LocalSocket, serve},
    mesh::{Mesh, Route, Stage},
    plane::{Plane, Prepared},
    relaying::RelayPorts,
    state::{Identity, StateDir, StateFile},
    watched::Watched,
    worker::{Work, Worker},
};

/// How long `join` waits for the first map once the node is enrolled.
const FIRST_MAP_TIMEOUT: Duration = Duration::from_secs(30);

/// The group that may read through a node's socket where none is configured and the machine has it.
const NODE_GROUP: &str = "mesh";
/// The same of a relay.
const RELAY_GROUP: &str = "mesh-relay";

/// A daemon that has its state directory, its socket and, if it is a relay, its ports, and does not run yet. Dropping it gives them
/// back.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    state: Arc<StateDir>,
    socket: LocalSocket,
    ports: Option<Arc<RelayPorts>>,
    monitor: Option<Monitor>,
    work: Work,
}

/// Takes what can be taken before a runtime and threads are there, and with rights that a process may give up afterwards: all a relay
/// needs, and a node's socket, which is given to its group. What a node needs of the network it takes when it joins, by
/// `CAP_NET_ADMIN` and `CAP_NET_BIND_SERVICE`.
///
/// # Errors
/// The configuration, the state or the machine does not let it start; the message names the cure.
pub fn bind(config: Config) -> Result<Bound, Failure> {
    config.check()?;
    let state = Arc::new(StateDir::open(&config.state_dir)?);
    let usual = if config.relay.is_some() { RELAY_GROUP } else { NODE_GROUP };
    let socket = LocalSocket::bind(&config.socket, config.socket_group.as_deref(), usual)?;
    let ports = match &config.relay {
        Some(mode) => Some(Arc::new(RelayPorts::bind(&config, mode)?)),
        None => None,
    };
    let monitor = bind_monitor(&config)?;
    Ok(Bound { config, state, socket, ports, monitor, work: Worker::run::<Key> })
}

/// Takes the address of the metrics, if there are to be any.
fn bind_monitor(config: &Config) -> Result<Option<Monitor>, Failure> {
    config.metrics.listen.bind(config.usual_metrics()).map_err(|error| {
        let text = format!("metrics.listen: {error}");
        let kind = error.source.kind();
        if kind == io::ErrorKind::PermissionDenied {
            return Failure::permission(text);
        }
        Failure::new(if kind == io::ErrorKind::AddrInUse { Reason::Conflict } else { Reason::Host }, text)
    })
}

/// [`bind`]s and runs the daemon in a process that keeps its rights; see [`Bound::run`].
///
/// # Errors
/// As [`bind`] and [`Bound::run`].
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
    ready: oneshot::Sender<Arc<dyn Subject>>,
) -> Result<(), Failure> {
    bind(config)?.run(shutdown, ready).await
}

impl Bound {
    /// Has packets sealed and opened by `C` instead: for a benchmark's limit, the same daemon with a cipher that does nothing. The
    /// status names the kernel chosen all the same.
    #[must_use]
    pub fn with_cipher<C: Cipher>(self) -> Self {
        Self { work: Worker::run::<C>, ..self }
    }

    /// Runs the daemon until `shutdown` completes; then interface, routes and socket are gone.
    ///
    /// Once the local API answers and, if the node has joined and holds a map, packets flow, `ready` is sent what the daemon can be
    /// watched by.
    ///
    /// # Errors
    /// The state or the machine does not let it start, or the data plane broke; the message names the cure.
    pub async fn run(
        self,
        shutdown: impl Future<Output = ()> + Send,
        ready: oneshot::Sender<Arc<dyn Subject>>,
    ) -> Result<(), Failure> {
        let Self { config, state, socket, ports, monitor, work } = self;
        take_back_what_was_left(&state).await;
        let metrics = monitor.as_ref().and_then(|monitor| monitor.address().ok());
        let daemon = Arc::new(Daemon::new(config, state, ports, metrics, work));
        let subject: Arc<dyn Subject> = Arc::new(Watched::new(Arc::clone(&daemon)));
        // Before anything is asked of a coordinator or the machine: that a start hangs is worth being seen.
        let monitoring = tokio::spawn(tell_metrics(monitor, Arc::clone(&subject)));
        if let Err(failure) = daemon.resume().await {
            // It holds the daemon, and with it the state directory.
            end(monitoring).await;
            return Err(failure);
        }
        let (stop, stopped) = watch::channel(false);
        let mut wait = stopped.clone();
        let mut api = tokio::spawn(serve(Arc::clone(&daemon), socket, async move {
            let _ = wait.wait_for(|stop| *stop).await;
        }));
        info!(event = "node_started", version = VERSION, socket = %daemon.config.socket.display(), "the node daemon runs");
        // Nobody has to wait for it.
        let _ = ready.send(subject);
        let result = tokio::select! {
            () = shutdown => Ok(()),
            words = daemon.broken() => Err(Failure::new(Reason::Host, words)),
            ended = &mut api => ended.unwrap_or_else(|error| Err(Failure::new(Reason::Host, error.to_string()))),
        };
        end(monitoring).await;
        daemon.close().await;
        let _ = stop.send(true);
        // An open ping must not keep the daemon from ending.
        let _ = timeout(Duration::from_secs(1), api).await;
        info!(event = "node_stopped", "the node daemon ends");
        result
    }
}

/// Ends a task, and waits until what it held is let go.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

/// Answers who asks for metrics, for as long as the daemon runs.
async fn tell_metrics(monitor: Option<Monitor>, subject: Arc<dyn Subject>) {
    let Some(monitor) = monitor else { return };
    if let Ok(address) = monitor.address() {
        info!(event = "metrics_started", %address, "metrics are told");
    }
    if let Err(error) = monitor.serve(subject, std::future::pending()).await {
        warn!(event = "metrics_unavailable", %error, "there are no metrics: their socket cannot be used");
    }
}

/// Takes back what a killed predecessor told the machine of names. What cannot be taken back is no reason not to start.
async fn take_back_what_was_left(state: &Arc<StateDir>) {
    let state = Arc::clone(state);
    let done =
        tokio::task::spawn_blocking(move || host::dns::clean_up(&state, &host::dns::Paths::default())).await;
    if let Ok(Err(failure)) = done {
        error!(event = "leftovers_kept", %failure, "what a killed daemon left on this machine is still there");
    }
}

/// Takes back what a killed daemon left on this machine, and tells line by line what that was; nothing, if there was nothing.
///
/// Besides what is noted in the state directory it finds the block of the configured interface in `/etc/hosts`, should the
/// directory be lost.
///
/// # Errors
/// A daemon that uses the same state directory or interface runs ([`Reason::Conflict`]): it takes its changes back itself when
/// it ends. Something cannot be taken back.
pub fn cleanup(config: &Config) -> Result<Vec<String>, Failure> {
    config.check()?;
    let mut done = Vec::new();
    // None is made: it would be something left on this machine.
    if config.state_dir.exists() {
        let state = StateDir::open(&config.state_dir).map_err(|failure| {
            if failure.reason() != Reason::Conflict {
                return failure;
            }
            failure.with_hint("a daemon that runs takes its changes back itself when it is stopped")
        })?;
        done = host::dns::clean_up(&state, &host::dns::Paths::default())?;
    }
    let interface = &config.interface;
    if rustix::net::netdevice::name_to_index(interface_socket()?, interface).is_err() {
        done.extend(host::dns::remove_block(&host::dns::Paths::default(), interface)?);
    }
    Ok(done)
}

/// Any socket will do to ask for an interface's index.
fn interface_socket() -> Result<std::net::UdpSocket, Failure> {
    std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .map_err(|error| Failure::host("looking for the interface", &error))
}

/// What the local API acts on.
#[derive(Debug)]
pub(crate) struct Daemon {
    config: Config,
    state: Arc<StateDir>,
    /// A relay's.
    ports: Option<Arc<RelayPorts>>,
    mesh: RwLock<Option<Arc<Mesh>>>,
    /// Tells [`broken`](Self::broken) to look at the mesh anew.
    changed: watch::Sender<()>,
    /// Where metrics are told.
    metrics: Option<SocketAddr>,
    /// What a worker does.
    work: Work,
    /// Held while joining or leaving: one at a time.
    change: tokio::sync::Mutex<()>,
    /// Becomes true when the daemon was told to end: a join does not keep it.
    closing: watch::Sender<bool>,
}

/// How a ping is to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingPlan {
    pub(crate) count: u32,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Daemon {
    fn new(
        config: Config,
        state: Arc<StateDir>,
        ports: Option<Arc<RelayPorts>>,
        metrics: Option<SocketAddr>,
        work: Work,
    ) -> Self {
        Self {
            config,
            state,
            ports,
            mesh: RwLock::new(None),
            changed: watch::Sender::new(()),
            metrics,
            work,
            change: tokio::sync::Mutex::new(()),
            closing: watch::Sender::new(false),
        }
    }

    /// Whether the daemon passes on for others what they sealed, and nothing else.
    pub(crate) const fn is_relay(&self) -> bool {
        self.config.relay.is_some()
    }

    pub(crate) fn mesh(&self) -> Option<Arc<Mesh>> {
        self.mesh.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_mesh(&self, mesh: Option<Arc<Mesh>>) {
        *self.mesh.write().unwrap_or_else(PoisonError::into_inner) = mesh;
        self.changed.send_replace(());
    }

    /// Goes on where the last start ended.
    async fn resume(&self) -> Result<(), Failure> {
        let Some(mesh) = Mesh::load(&self.config, &self.state)? else { return Ok(()) };
        // A crash came between the membership and this.
        self.state.remove(StateFile::Pending)?;
        let mesh = Arc::new(mesh.with(self.work, self.ports.clone()));
        mesh.resume().await?;
        mesh.start().await;
        self.set_mesh(Some(mesh));
        Ok(())
    }

    async fn close(&self) {
        self.closing.send_replace(true);
        let _change = self.change.lock().await;
        if let Some(mesh) = self.mesh() {
            mesh.stop().await;
        }
    }

    /// Lets something take its time until the daemon is told to end.
    async fn unless_closing<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let mut closing = self.closing.subscribe();
        tokio::select! {
            result = work => result,
            // Cannot fail: the sender is ours.
            _ = closing.wait_for(|closing| *closing) => {
                Err(Failure::new(Reason::Busy, "the daemon was told to end before the join was done"))
            }
        }
    }

    /// Ends when the data plane breaks.
    async fn broken(&self) -> String {
        let mut changed = self.changed.subscribe();
        loop {
            let failed = async {
                let Some(mesh) = self.mesh() else { return std::future::pending().await };
                let mut plane = mesh.watch_plane();
                loop {
                    let current = plane.borrow_and_update().clone();
                    let failed = async {
                        match current {
                            Some(current) => current.failure().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        words = failed => return words,
                        next = plane.changed() => if next.is_err() { return std::future::pending().await },
                    }
                }
            };
            tokio::select! {
                words = failed => return words,
                next = changed.changed() => if next.is_err() { return std::future::pending().await },
            }
        }
    }

    /// How a peer is reached.
    ///
    /// # Errors
    /// There is no such peer.
    pub(crate) async fn why(&self, text: &str) -> Result<local::WhyResponse, Failure> {
        let member = self.find_peer(text)?;
        Ok(self.joined()?.why(&member).await)
    }

    pub(crate) async fn status(&self) -> local::StatusResponse {
        let status = match self.mesh() {
            Some(mesh) => mesh.status().await,
            None => local::StatusResponse {
                version: VERSION.to_owned(),
                state: "not-joined".to_owned(),
                ..Default::default()
            },
        };
        local::StatusResponse {
            metrics: self.metrics.map(|address| address.to_string()).unwrap_or_default(),
            ..status
        }
    }

    /// Joins a network, whole: enrolled, a map installed, packets able to flow. `tell` hears each step.
    ///
    /// # Errors
    /// Any step fails; then no packet flows, and nothing stays but, where the coordinator may have made the node already,
    /// the key and a note of the join, for the next attempt.
    pub(crate) async fn join(
        &self,
        token: &str,
        name: &str,
        identity_pem: &str,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<local::StatusResponse, Failure> {
        let _change = self.one_change("join")?;
        if let Some(mesh) = self.mesh() {
            return Err(already_joined(&mesh));
        }
        let token: JoinToken =
            token.trim().parse().map_err(|error: TokenError| Failure::invalid(error.to_string()))?;
        let wanted = if self.config.relay.is_some() { "its ports" } else { "a TUN device and a UDP port" };
        tell(&format!("asking this machine for {wanted}"));
        // Before the token is spent on a machine that would not let packets flow.
        let prepared = Prepared::open(&self.config, self.ports.as_deref())?;
        match &prepared {
            Prepared::Packets(_) => {
                tell(&format!("{} and UDP port {} are there", self.config.interface, prepared.port()));
            }
            Prepared::Relay(_) => tell(&format!("UDP port {} is there", prepared.port())),
        }
        let chosen = JoinKey::choose(&self.state, identity_pem, &token, name, tell)?;
        tell(&format!("asking the coordinator at {}", token.coordinators().join(" or ")));
        let asked = Asked::default();
        let relay = self.config.relay.is_some();
        let enrolling = enroll::enroll(&token, &chosen.identity, relay, name, &asked);
        let enrolled = self
            .unless_closing(enrolling)
            .await
            .map_err(|failure| chosen.after_failure(&self.state, asked.may_have_taken(), failure))?;
        tell(&format!("enrolled as {} by {}; waiting for the map", enrolled.name, enrolled.address));
        let result = self.bring_up(chosen.identity, enrolled, prepared).await;
        match result {
            Ok(mesh) => {
                let status = mesh.status().await;
                self.set_mesh(Some(mesh));
                Ok(status)
            }
            Err(failure) => {
                self.clear_all_but_identity();
                Err(failure.with_hint(
                    "the coordinator has taken this node, but nothing is left here except its key: once this is solved, join again \
                     with the same token, which counts as the same use",
                ))
            }
        }
    }

    /// Waits until the first map is in force, and only then writes the membership down.
    async fn bring_up(
        &self,
        identity: Identity,
        enrolled: enroll::Enrolled,
        prepared: Prepared,
    ) -> Result<Arc<Mesh>, Failure> {
        let membership = enrolled.membership;
        let map = NetworkMap::empty(membership.network, membership.root, membership.node);
        let state = Arc::clone(&self.state);
        let mesh = Mesh::new(self.config.clone(), state, identity, membership, map, enrolled.secrets)?;
        mesh.use_prepared(prepared);
        let mesh = Arc::new(mesh.with(self.work, self.ports.clone()));
        mesh.start().await;
        let joined = match self.unless_closing(first_map(&mesh)).await {
            Ok(()) => {
                mesh.membership().save(&self.state).and_then(|()| self.state.remove(StateFile::Pending))
            }
            Err(failure) => Err(failure),
        };
        match joined {
            Ok(()) => {
                let membership = mesh.membership();
                info!(event = "joined", network = membership.network_name, node = %membership.node, "joined");
                Ok(mesh)
            }
            Err(failure) => {
                mesh.stop().await;
                Err(failure)
            }
        }
    }

    fn clear_all_but_identity(&self) {
        for file in [StateFile::Network, StateFile::Map, StateFile::Secrets] {
            if let Err(failure) = self.state.remove(file) {
                warn!(event = "join_cleanup_failed", %failure, "cannot clean up after a join that failed");
            }
        }
    }

    /// Leaves the network and forgets its keys; tells whether a coordinator heard of it.
    ///
    /// # Errors
    /// The node has not joined, or its files cannot be removed.
    pub(crate) async fn leave(&self) -> Result<bool, Failure> {
        let _change = self.one_change("leave")?;
        let mesh = self.joined()?;
        let told = mesh.tell_leaving().await;
        mesh.stop().await;
        self.set_mesh(None);
        // The membership first: a daemon that dies in between starts as one that has not joined.
        for file in [
            StateFile::Network,
            StateFile::Identity,
            StateFile::Pending,
            StateFile::Denials,
            StateFile::Secrets,
            StateFile::Map,
            StateFile::Timestamps,
        ] {
            self.state.remove(file)?;
        }
        info!(event = "left", coordinator_told = told, "left the network");
        Ok(told)
    }

    fn one_change(&self, what: &str) -> Result<tokio::sync::MutexGuard<'_, ()>, Failure> {
        self.change.try_lock().map_err(|_| {
            Failure::new(
                Reason::Busy,
                format!("cannot {what} now: another join or leave is under way; wait for it"),
            )
        })
    }

    /// The peer that a person means.
    ///
    /// # Errors
    /// There is none, or it is this node itself.
    pub(crate) fn find_peer(&self, text: &str) -> Result<Member, Failure> {
        self.joined()?.find_peer(text)
    }

    /// The network that this node belongs to.
    ///
    /// # Errors
    /// It has not joined.
    pub(crate) fn joined(&self) -> Result<Arc<Mesh>, Failure> {
        self.mesh().ok_or_else(not_joined)
    }

    /// Sends echoes and answers each, until all are answered or nobody listens.
    pub(crate) async fn ping(
        &self,
        target: Member,
        plan: PingPlan,
        answers: mpsc::Sender<Result<local::PingResponse, Status>>,
    ) {
        for sequence in 1..=plan.count {
            let next = Instant::now() + plan.interval;
            let answer = tokio::select! {
                answer = self.ping_once(&target, sequence, plan.timeout) => answer,
                () = answers.closed() => return,
            };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
            if sequence < plan.count {
                sleep_until(next).await;
            }
        }
    }

    async fn ping_once(&self, target: &Member, sequence: u32, timeout: Duration) -> local::PingResponse {
        let answer = local::PingResponse {
            sequence,
            node: target.name.clone(),
            ipv4: target.ipv4.map(|address| address.to_string()).unwrap_or_default(),
            ..Default::default()
        };
        let mesh = self.mesh();
        let running = mesh.as_ref().and_then(|mesh| mesh.plane());
        let plane = running.as_deref().and_then(Plane::packets);
        let unreachable = mesh.as_ref().and_then(|mesh| mesh.why_unreachable(target));
        let result = match plane {
            _ if target.kind == MemberKind::Stock => Err(format!(
                "{} is a stock WireGuard device, which answers no echo of ours; use the system's ping",
                target.name
            )),
            Some(plane) => match unreachable {
                Some(why) => Err(why.to_owned()),
                None => plane.ping(target.id, timeout).await.map_err(|failure| failure.to_string()),
            },
            None if running.is_some() => {
                Err("this node is a relay, which sends nothing of its own".to_owned())
            }
            None => Err("the data plane does not run; see `meshctl status`".to_owned()),
        };
        match result {
            Ok(pong) => {
                let route = match &mesh {
                    Some(mesh) => mesh.route_of(pong.path, target.id).await,
                    None => Route::default(),
                };
                local::PingResponse {
                    path: route.path,
                    endpoint: route.endpoint,
                    via: route.via,
                    loss_percent: route.loss_percent,
                    rtt_us: u32::try_from(pong.rtt.as_micros()).unwrap_or(u32::MAX),
                    ..answer
                }
            }
            Err(error) => local::PingResponse { error, ..answer },
        }
    }
}

/// Waits until the mesh runs, or cannot.
async fn first_map(mesh: &Mesh) -> Result<(), Failure> {
    let mut stage = mesh.watch_stage();
    let mut last = Failure::new(Reason::Unreachable, "no map came within 30 s");
    let waited = timeout(FIRST_MAP_TIMEOUT, async {
        loop {
            let now = stage.borrow_and_update().clone();
            match now {
                Stage::Running => return Ok(()),
                Stage::Failed(failure) => return Err(failure),
                // Only what may pass by itself is waited for.
                Stage::Stuck(failure) if matches!(failure.reason(), Reason::Unreachable | Reason::Busy) => {
                    last = failure;
                }
                Stage::Stuck(failure) => return Err(failure),
                Stage::Waiting => {}
            }
            if stage.changed().await.is_err() {
                return Err(Failure::new(Reason::Host, "the mesh ended while joining"));
            }
        }
    });
    match waited.await {
        Ok(result) => result,
        Err(_) => Err(last),
    }
}

fn not_joined() -> Failure {
    Failure::new(Reason::NotJoined, "this node has not joined a network: `meshctl join --token TOKEN`")
}

fn already_joined(mesh: &Mesh) -> Failure {
    let membership = mesh.membership();
    let name = membership.network_name;
    let text = if mesh.is_removed() {
        format!("this node was removed from the network {name}; `meshctl leave` first, then join")
    } else {
        format!("this node belongs to the network {name} already; `meshctl leave` first to join another")
    };
    Failure::new(Reason::AlreadyJoined, text)
}
