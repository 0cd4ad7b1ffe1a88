//! The data plane as the asynchronous side sees it: opened, fed with peers, asked, stopped.
//!
//! Behind it run two threads: the worker, which alone moves packets, and the handshaker, which alone does key agreement.
//! Two bounded channels and a waker lead to the worker; its answers come back as [`Event`]s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use ringmesh_io::{Chosen, Counters, Offloads, Parts, SocketBuffers, Tun, TunError, Udp, UdpError, Waker};
use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{
    Carried, DropCounters, DropReason, Event, Floors, HandshakeCounts, Path, PeerConfig, PeerStatus,
    PingError,
    filter::{Filter, FilterReport},
    ip::Prefix,
    key::{NodeId, SecretKey},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info, warn};

use crate::{
    config::{Config, DEFAULT_PORT},
    error::Failure,
    fallback::{self, DialOpen, Hub},
    handshaker,
    relaying::{PreparedRelay, RelayPlane, RelayPorts},
    worker::{Started, Work, Worker},
};

/// Commands that wait for the worker.
const COMMANDS: usize = 64;
/// Events that wait for the asynchronous side; beyond it they are lost and counted.
const EVENTS: usize = 1024;
/// Ports tried from [`DEFAULT_PORT`] on before the kernel chooses.
const PORTS_TRIED: u16 = 64;
/// While no address of a peer is known, a ping looks again this often.
const ADDRESS_RETRY: Duration = Duration::from_millis(100);
/// A worker that does not answer for so long is broken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What the asynchronous side asks of the worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Makes exactly these the peers and this the filter, between two packets; answered once no packet is judged by the old
    /// ones any more.
    Apply(Vec<PeerConfig>, Arc<Filter>, oneshot::Sender<()>),
    /// Sends an echo; its answer is an [`Event::Pong`] with the same token.
    Ping(NodeId, u64, oneshot::Sender<Result<(), PingError>>),
    /// Erases all session keys: the machine slept, or its memory was copied.
    ExpireSessions,
    /// This machine's addresses or ways out changed.
    NetworkChanged,
    /// Where this node may be reached, best first, besides what its relays see.
    OwnCandidates(Vec<SocketAddr>),
    /// The network's own ranges, in which no candidate lies.
    Pools(Vec<Prefix>),
    /// Copies out all counters.
    Report(oneshot::Sender<WorkerReport>),
    /// Ends the worker's loop.
    Stop,
}

/// Everything a worker counts, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct WorkerReport {
    pub(crate) io: Counters,
    pub(crate) traffic: Traffic,
    /// What was dropped at all, in both directions together.
    pub(crate) drops: BTreeMap<DropReason, u64>,
    /// The same by direction, zeros included.
    pub(crate) dropped: DropCounters,
    pub(crate) carried: Carried,
    pub(crate) handshakes: HandshakeCounts,
    pub(crate) peers: Vec<PeerStatus>,
    pub(crate) filter: FilterReport,
}

/// Packets that crossed the TUN device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) sent_packets: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_packets: u64,
    pub(crate) received_bytes: u64,
}

/// Datagrams and packets that links were too slow, too short-lived or too narrow for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LinkDrops {
    /// The stream takes less than is sent.
    pub(crate) full: u64,
    /// The stream ended, and the tunnel had not heard yet.
    pub(crate) gone: u64,
    /// Longer than a frame.
    pub(crate) unfit: u64,
    /// From a stream: longer than the MTU.
    pub(crate) unfit_in: u64,
}

/// The answer to an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pong {
    pub(crate) path: Path,
    pub(crate) rtt: Duration,
}

/// What runs for a network: packets flow, or, on a relay, sealed datagrams are passed on.
#[derive(Debug)]
pub(crate) enum Plane {
    /// A node's.
    Packets(DataPlane),
    /// A relay's.
    Relay(RelayPlane),
}

impl Plane {
    /// The data plane, but of a relay.
    pub(crate) const fn packets(&self) -> Option<&DataPlane> {
        match self {
            Self::Packets(plane) => Some(plane),
            Self::Relay(_) => None,
        }
    }

    /// The relay, if it is one.
    pub(crate) const fn relay(&self) -> Option<&RelayPlane> {
        match self {
            Self::Packets(_) => None,
            Self::Relay(relay) => Some(relay),
        }
    }

    /// Makes exactly `peers` the peers, or the relay's clients, and `filter` what packets are judged by; returns once it is so.
    /// A relay sees no packet.
    ///
    /// # Errors
    /// It has stopped.
    pub(crate) async fn apply(&self, peers: Vec<PeerConfig>, filter: Arc<Filter>) -> Result<(), Failure> {
        match self {
            Self::Packets(plane) => plane.apply(peers, filter).await,
            Self::Relay(relay) => relay.apply(peers).await,
        }
    }

    /// The timestamps that a restart must not go behind.
    ///
    /// # Errors
    /// It has stopped.
    pub(crate) async fn floors(&self) -> Result<Floors, Failure> {
        match self {
            Self::Packets(plane) => plane.floors().await,
            Self::Relay(relay) => relay.floors().await,
        }
    }

    /// Waits until it fails, and gives its last words. Never returns while all is well.
    pub(crate) async fn failure(&self) -> String {
        match self {
            Self::Packets(plane) => plane.failure().await,
            Self::Relay(relay) => relay.failure().await,
        }
    }

    /// Stops it and waits until it is gone.
    pub(crate) async fn stop(&self) {
        match self {
            Self::Packets(plane) => plane.stop().await,
            Self::Relay(relay) => relay.stop().await,
        }
    }

    /// The UDP port.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Packets(plane) => plane.port(),
            Self::Relay(relay) => relay.port(),
        }
    }
}

/// What a plane needs of the machine, taken before anything else is done.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// A node's.
    Packets(PreparedPackets),
    /// A relay's.
    Relay(PreparedRelay),
}

impl Prepared {
    /// Takes what the configuration asks for. `ports` are a relay's, taken before.
    ///
    /// # Errors
    /// Names what the machine refuses and the cure; nothing is left behind.
    pub(crate) fn open(config: &Config, ports: Option<&RelayPorts>) -> Result<Self, Failure> {
        match config.relay.as_ref().zip(ports) {
            Some((mode, ports)) => PreparedRelay::open(ports, mode).map(Self::Relay),
            None => PreparedPackets::open(config).map(Self::Packets),
        }
    }

    /// The UDP port.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Packets(packets) => packets.udp.port(),
            Self::Relay(relay) => relay.port(),
        }
    }
}

/// A TUN device and UDP sockets, taken before anything else is done, so that a machine which refuses them is noticed first.
#[derive(Debug)]
pub(crate) struct PreparedPackets {
    tun: Tun,
    udp: Udp,
}

impl PreparedPackets {
    /// Creates the TUN device and binds the UDP port.
    ///
    /// # Errors
    /// Names what the machine refuses and the cure; nothing is left behind.
    pub(crate) fn open(config: &Config) -> Result<Self, Failure> {
        let udp = bind(config.listen_port)?;
        let tun = Tun::create(&config.interface).map_err(|error| tun_failure(&error))?;
        Ok(Self { tun, udp })
    }
}

/// Binds the port the user fixed, or the next free one.
fn bind(fixed: Option<u16>) -> Result<Udp, Failure> {
    let buffers = SocketBuffers::default();
    if let Some(port) = fixed {
        return Udp::bind(port, buffers).map_err(|error| udp_failure(&error));
    }
    for port in DEFAULT_PORT..DEFAULT_PORT + PORTS_TRIED {
        match Udp::bind(port, buffers) {
            Ok(udp) => return Ok(udp),
            Err(UdpError::PortTaken { .. }) => debug!(port, "UDP port taken; trying the next"),
            Err(error) => return Err(udp_failure(&error)),
        }
    }
    Udp::bind(0, buffers).map_err(|error| udp_failure(&error))
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the list of `ringmesh-io` may grow")]
fn udp_failure(error: &UdpError) -> Failure {
    match error {
        UdpError::PortTaken { .. } => Failure::new(Reason::Conflict, error.to_string()),
        UdpError::NotPermitted { .. } => Failure::permission(error.to_string()),
        _ => Failure::new(Reason::Host, error.to_string()),
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the list of `ringmesh-io` may grow")]
fn tun_failure(error: &TunError) -> Failure {
    match error {
        TunError::NotPermitted { .. } | TunError::NotReadable => Failure::permission(error.to_string()),
        TunError::NameTaken { .. } => Failure::new(Reason::Conflict, error.to_string()),
        TunError::BadName { .. } => Failure::invalid(error.to_string()),
        _ => Failure::new(Reason::Host, error.to_string()),
    }
}

/// The running data plane. Dropping it stops the threads without waiting; [`stop`](Self::stop) waits.
#[derive(Debug)]
pub(crate) struct DataPlane {
    interface: String,
    mtu: u16,
    port: u16,
    chosen: Chosen,
    crypto: ringmesh_aead::Chosen,
    offloads: Offloads,
    commands: mpsc::Sender<Command>,
    requests: crossbeam::channel::Sender<handshaker::Request>,
    waker: Waker,
    heard: Arc<Heard>,
    hub: Hub,
    /// What the tunnel wants dialled, until somebody takes it upon himself.
    dials: Mutex<Option<mpsc::Receiver<DialOpen>>>,
    failed: watch::Receiver<Option<String>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// What the worker's events left behind.
#[derive(Debug, Default)]
struct Heard {
    next_token: AtomicU64,
    /// Echoes that wait for their answer.
    pings: Mutex<BTreeMap<u64, oneshot::Sender<Pong>>>,
    /// How many sessions each peer had.
    sessions: Mutex<BTreeMap<NodeId, u64>>,
    /// The relays: whom this node believes about its own address.
    relays: Mutex<BTreeSet<NodeId>>,
    /// This node's address as each relay sees it.
    seen: watch::Sender<BTreeMap<NodeId, SocketAddr>>,
}

impl Heard {
    fn pings(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Pong>>> {
        self.pings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<NodeId, u64>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relays(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which peers are relays, and forgets what others said.
    fn set_relays(&self, peers: &[PeerConfig]) {
        let relays: BTreeSet<_> = peers.iter().filter(|peer| peer.relay).map(|peer| peer.id).collect();
        self.seen.send_if_modified(|seen| {
            let before = seen.len();
            seen.retain(|relay, _| relays.contains(relay));
            seen.len() != before
        });
        *self.relays() = relays;
    }

    fn set_seen(&self, peer: NodeId, address: SocketAddr) {
        // Anybody could make us tell others to send to a third party; a relay has the network's trust.
        if self.relays().contains(&peer) {
            self.seen.send_if_modified(|seen| seen.insert(peer, address) != Some(address));
        }
    }
}

impl DataPlane {
    /// Starts both threads, the worker's with `work`, and waits until packets can flow.
    ///
    /// # Errors
    /// The back end asked for cannot be had, or the machine gives no thread.
    pub(crate) async fn start(
        prepared: PreparedPackets,
        config: &Config,
        key: &SecretKey,
        floors: Floors,
        work: Work,
    ) -> Result<Self, Failure> {
        let PreparedPackets { tun, udp } = prepared;
        let interface = tun.name().to_owned();
        let port = udp.port();
        let waker = Waker::new().map_err(|error| Failure::host("making an eventfd", &error))?;
        let parts = Parts {
            tun,
            udp,
            waker: waker.clone(),
            mtu: config.mtu,
            offloads: config.offloads,
            spin: config.spin(),
        };
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (events_out, events) = mpsc::channel(EVENTS);
        let (failed_out, failed) = watch::channel(None);
        let (links, hub, dials) = fallback::links(waker.clone());
        let (handshakes, requests, handshake_thread) = handshaker::start(key, floors, waker.clone())
            .map_err(|error| Failure::host("starting the handshake thread", &error))?;
        let (started_out, started) = oneshot::channel();
        let crypto = ringmesh_aead::choose(config.crypto);
        let worker = Worker {
            choice: config.io,
            cpu: config.cpu,
            kernel: crypto.kernel,
            key: key.public_key(),
            parts,
            commands: commands_in,
            events: events_out,
            handshakes,
            links,
        };
        let worker_thread = thread::Builder::new()
            .name("mesh-worker-0".to_owned())
            .spawn(move || {
                if let Err(failure) = work(worker, started_out) {
                    failed_out.send_replace(Some(failure));
                }
            })
            .map_err(|error| Failure::host("starting the worker thread", &error))?;
        let Started { chosen, offloads } = started
            .await
            .map_err(|_| Failure::new(Reason::Host, "the worker ended before it had begun"))??;
        info!(
            event = "data_plane_started",
            interface,
            port,
            back_end = %chosen.back_end,
            reason = chosen.reason,
            crypto = %crypto.kernel,
            crypto_reason = crypto.reason,
            %offloads,
            "the data plane runs"
        );
        let heard = Arc::new(Heard::default());
        tokio::spawn(dispatch(events, Arc::clone(&heard)));
        let threads = Mutex::new(vec![worker_thread, handshake_thread]);
        Ok(Self {
            interface,
            mtu: config.mtu,
            port,
            chosen,
            crypto,
            offloads,
            commands,
            requests,
            waker,
            heard,
            hub,
            dials: Mutex::new(Some(dials)),
            failed,
            threads,
        })
    }

    /// Makes exactly `peers` the peers of both threads and `filter` the worker's, both in one turn of it; returns once it is so.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) async fn apply(&self, peers: Vec<PeerConfig>, filter: Arc<Filter>) -> Result<(), Failure> {
        // The handshaker first: it must know a peer before the worker asks for a handshake with it, and what it still
        // answers for a removed one the worker refuses.
        let (known, wait) = oneshot::channel();
        self.ask_handshaker(handshaker::Request::Apply(peers.clone(), known)).await?;
        answer(wait).await?;
        self.heard.set_relays(&peers);
        let (installed, mut wait) = oneshot::channel();
        self.command(Command::Apply(peers, filter, installed)).await?;
        loop {
            // However long it takes: until then the old ones are in force, and nobody may be told anything else.
            match tokio::time::timeout(ANSWER_TIMEOUT, &mut wait).await {
                Ok(installed) => return installed.map_err(|_| gone()),
                Err(_) => warn!(
                    event = "worker_slow",
                    "the worker has not taken the peers and the filter it was given; waiting on"
                ),
            }
        }
    }

    /// The timestamps that a restart must not go behind.
    ///
    /// # Errors
    /// The handshaker is gone.
    pub(crate) async fn floors(&self) -> Result<Floors, Failure> {
        let (floors, wait) = oneshot::channel();
        self.ask_handshaker(handshaker::Request::Floors(floors)).await?;
        answer(wait).await
    }

    async fn ask_handshaker(&self, request: handshaker::Request) -> Result<(), Failure> {
        let requests = self.requests.clone();
        let sent = tokio::task::spawn_blocking(move || requests.send(request)).await;
        sent.map_err(|_| gone())?.map_err(|_| gone())
    }

    /// How many sessions there were with each peer since the data plane started.
    pub(crate) fn sessions(&self) -> BTreeMap<NodeId, u64> {
        self.heard.sessions().clone()
    }

    /// Sends an echo inside the session with `peer` and waits for its answer, and before that, if need be, for an address.
    ///
    /// # Errors
    /// [`Reason::NoReply`] after `timeout`, or why none could be sent.
    pub(crate) async fn ping(&self, peer: NodeId, timeout: Duration) -> Result<Pong, Failure> {
        let deadline = Instant::now() + timeout;
        let token = self.heard.next_token.fetch_add(1, Ordering::Relaxed);
        let (pong, wait) = oneshot::channel();
        self.heard.pings().insert(token, pong);
        let result = async {
            self.send_ping(peer, token, deadline).await?;
            match timeout_at(deadline, wait).await {
                Ok(Ok(pong)) => Ok(pong),
                Ok(Err(_)) => Err(gone()),
                Err(_) => Err(no_reply(format!("no reply within {} ms", timeout.as_millis()))),
            }
        };
        let result = result.await;
        self.heard.pings().remove(&token);
        result
    }

    async fn send_ping(&self, peer: NodeId, token: u64, deadline: Instant) -> Result<(), Failure> {
        loop {
            let (sent, wait) = oneshot::channel();
            self.command(Command::Ping(peer, token, sent)).await?;
            let retry = Instant::now() + ADDRESS_RETRY;
            match answer(wait).await? {
                Ok(()) => return Ok(()),
                // A peer that has just joined: its endpoints may be on their way to us.
                Err(PingError::NoPath) if retry < deadline => sleep_until(retry).await,
                Err(error) => return Err(no_reply(error)),
            }
        }
    }

    /// Erases all session keys; the next packet of each peer begins a new session.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) async fn expire_sessions(&self) -> Result<(), Failure> {
        self.command(Command::ExpireSessions).await
    }

    /// Has every path doubted and tried at once: addresses or ways out of this machine changed. What relays said of this
    /// node's address is forgotten.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) async fn network_changed(&self) -> Result<(), Failure> {
        self.heard.seen.send_replace(BTreeMap::new());
        self.command(Command::NetworkChanged).await
    }

    /// Tells where this node may be reached, best first, besides what its relays see.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) async fn set_own_candidates(&self, candidates: Vec<SocketAddr>) -> Result<(), Failure> {
        self.command(Command::OwnCandidates(candidates)).await
    }

    /// Tells the network's own ranges.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) async fn set_pools(&self, pools: Vec<Prefix>) -> Result<(), Failure> {
        self.command(Command::Pools(pools)).await
    }

    /// This node's address as each relay sees it.
    pub(crate) fn seen(&self) -> watch::Receiver<BTreeMap<NodeId, SocketAddr>> {
        self.heard.seen.subscribe()
    }

    /// Where links are made.
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// What the tunnel wants dialled; once.
    pub(crate) fn take_dials(&self) -> Option<mpsc::Receiver<DialOpen>> {
        self.dials.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Copies out what the worker counted.
    ///
    /// # Errors
    /// The worker is gone.
    pub(crate) async fn report(&self) -> Result<WorkerReport, Failure> {
        let (report, wait) = oneshot::channel();
        self.command(Command::Report(report)).await?;
        answer(wait).await
    }

    async fn command(&self, command: Command) -> Result<(), Failure> {
        self.commands.send(command).await.map_err(|_| gone())?;
        self.waker.wake();
        Ok(())
    }

    /// Waits until the worker fails, and gives its last words. Never returns while all is well.
    pub(crate) async fn failure(&self) -> String {
        let mut failed = self.failed.clone();
        if failed.wait_for(Option::is_some).await.is_err() {
            // The thread ended without complaint: it was told to.
            std::future::pending::<()>().await;
        }
        failed.borrow().clone().unwrap_or_default()
    }

    /// Stops both threads and waits for them: the interface, its addresses and its routes are gone afterwards.
    pub(crate) async fn stop(&self) {
        let _ = self.command(Command::Stop).await;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let waited = tokio::task::spawn_blocking(move || {
            threads.into_iter().map(thread::JoinHandle::join).filter(Result::is_err).count()
        });
        if let Ok(1..) = waited.await {
            warn!(event = "thread_panicked", "a data plane thread panicked");
        }
    }

    pub(crate) fn interface(&self) -> &str {
        &self.interface
    }

    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The back end in use, and why.
    pub(crate) fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// What seals and opens packets, and why.
    pub(crate) fn crypto(&self) -> &ringmesh_aead::Chosen {
        &self.crypto
    }

    /// The offloads in use.
    pub(crate) fn offloads(&self) -> Offloads {
        self.offloads
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        // Closing the channel is enough; the wake only makes it soon.
        let _ = self.commands.try_send(Command::Stop);
        self.waker.wake();
    }
}

async fn answer<T>(wait: oneshot::Receiver<T>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_TIMEOUT, wait).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(gone()),
        Err(_) => Err(Failure::new(Reason::Host, "the data plane does not answer")),
    }
}

fn no_reply(why: impl std::fmt::Display) -> Failure {
    Failure::new(Reason::NoReply, why.to_string())
}

fn gone() -> Failure {
    Failure::new(Reason::Host, "the data plane has stopped")
}

/// Hands events to those who wait for them, until the worker is gone.
async fn dispatch(mut events: mpsc::Receiver<Event>, heard: Arc<Heard>) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Pong { token, path, rtt, .. } => {
                if let Some(waiting) = heard.pings().remove(&token) {
                    let _ = waiting.send(Pong { path, rtt });
                }
            }
            Event::Established { peer, initiator } => {
                debug!(%peer, initiator, "session established");
                *heard.sessions().entry(peer).or_default() += 1;
            }
            Event::Expired { peer } => debug!(%peer, "session expired"),
            Event::Unreachable { peer } => debug!(%peer, "a peer answers no handshake"),
            Event::PathSelected { peer, path } => {
                debug!(%peer, %path, "a peer is reached by another path")
            }
            Event::SeenFrom { peer, address } => {
                debug!(%peer, %address, "a peer sees this node");
                heard.set_seen(peer, address);
            }
            // A node that is no relay gives no channels.
            Event::BindRequested { .. } => {}
        }
    }
}
