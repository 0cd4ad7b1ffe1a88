//! The server: UDP sockets, WebSockets, several networks on one port, and one thread that passes datagrams on.
//!
//! ```text
//!   Handle ── commands ──▶ ┌ thread "relay" ───────────────────────┐        ┌ thread "relay-handshake" ┐
//!   (any runtime)          │ sockets ─▶ Engine ─▶ trains ─▶ sockets │ ─jobs─▶│ Handshaker per network    │
//!   offer_websocket ─────▶ │ streams ─▶ Relay per network ─▶ queues │ ◀─done─│                           │
//!                          └────────────────────────────────────────┘        └───────────────────────────┘
//! ```
//!
//! The thread has a runtime of its own, so that a flood of calls elsewhere in the process does not delay what is relayed, nor
//! the reverse.

mod clock;
mod engine;
mod handshakes;
mod link;
mod metered;
mod report;
mod source;
mod tls;
mod udp;
mod upgrade;
mod websocket;

use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NetworkId, PublicKey, SecretKey};
use ringmesh_tunnel::{Floors, Hop, JobDone, PeerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

use self::engine::Engine;
use self::handshakes::{Life, Queues, Request};
use self::metered::Budget;
use self::source::Unproven;
use self::udp::{Batch, Port, Sockets};
use self::upgrade::Rules;
use self::websocket::Connection;
use crate::rate::Rates;

pub use self::engine::MAX_NETWORKS;
pub use self::report::{NetworkReport, Report};
pub use self::source::Source;
pub use self::tls::TlsLimits;
pub use self::udp::Ports;
pub use self::upgrade::{ForwardedHeader, PATH, SUBPROTOCOL, UnknownHeader};

/// Commands that wait for the thread; then their senders do.
const COMMANDS: usize = 64;
/// Connections that wait to be taken; more are refused.
const OFFERS: usize = 256;
/// Batches of one socket before others have their turn.
const BATCHES_PER_TURN: usize = 4;
/// How long a socket that reports an error is left alone.
const SOCKET_REST: Duration = Duration::from_millis(10);

/// What a server is to do.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// IPv4 address of the UDP socket; none: no IPv4. On a machine with several addresses, name the one that clients are told:
    /// an answer from another one does not reach a client behind a NAT.
    pub listen_v4: Option<Ipv4Addr>,
    /// IPv6 address of the UDP socket; none: no IPv6. A machine without IPv6 is served by IPv4 alone.
    pub listen_v6: Option<Ipv6Addr>,
    /// UDP port of both; 0: one that is free.
    pub port: u16,
    /// How much clients may have passed on.
    pub rates: Rates,
    /// What clients and strangers may hold.
    pub limits: Limits,
    /// What is in front of `/relay/v1` in a WebSocket's path, if a proxy does not take it off; none: anything may be.
    pub base_path: Option<String>,
    /// Reverse proxies whose word on where a connection comes from is believed.
    pub trusted_proxies: Vec<Prefix>,
    /// In which header they give it.
    pub forwarded_header: ForwardedHeader,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen_v4: Some(Ipv4Addr::UNSPECIFIED),
            listen_v6: Some(Ipv6Addr::UNSPECIFIED),
            port: 0,
            rates: Rates::default(),
            limits: Limits::default(),
            base_path: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
        }
    }
}

/// What clients and strangers may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// WebSockets in all.
    pub websockets: usize,
    /// WebSockets of one member; the oldest is cut for another.
    pub websockets_per_client: usize,
    /// Connections by which nothing authentic came yet. Each may cost about 100 KiB, TLS included. For one more, the oldest of
    /// whoever has most of them is cut, counted by IPv4 /24 and IPv6 /48, by /56 in that, and by source in that.
    pub unproven: usize,
    /// Those of one IPv4 address or IPv6 /64.
    pub unproven_per_source: usize,
    /// How long a connection may take for its upgrade and the first authentic datagram together.
    pub time_to_prove: Duration,
    /// How long a WebSocket lives by which nothing comes, not even a ping.
    pub idle: Duration,
    /// Bytes that wait for one WebSocket to drain; more are dropped.
    pub send_queue: usize,
    /// How long a WebSocket whose queue is full may write nothing before it is cut.
    pub stalled: Duration,
}

impl Limits {
    /// What is so unless somebody says otherwise.
    pub const DEFAULT: Self = Self {
        websockets: 16 << 10,
        websockets_per_client: 4,
        unproven: 512,
        unproven_per_source: 16,
        time_to_prove: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        send_queue: 1 << 20,
        stalled: Duration::from_secs(2),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Why a server does not start or does not take a network.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The UDP sockets cannot be had.
    #[error("cannot listen for relayed datagrams on UDP port {port}: another program may have it")]
    Bind {
        /// The port asked for.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no thread or event queue.
    #[error("cannot start the relay's threads")]
    Threads(#[source] io::Error),
    /// The operating system has no random bytes to give.
    #[error("the operating system gave no random bytes (getrandom failed)")]
    NoRandomness,
    /// There are 64 networks already.
    #[error("a relay serves at most {MAX_NETWORKS} networks on one port")]
    TooManyNetworks,
    /// The server was stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// The server was stopped, or its thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay has stopped")]
pub struct Stopped;

/// A connection was not taken: too many wait, or the server has stopped. It has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the relay takes no more connections at the moment")]
pub struct Refused;

/// Starts servers.
#[derive(Debug)]
pub struct Server(());

enum Command {
    Apply {
        network: NetworkId,
        key: PublicKey,
        peers: Vec<PeerConfig>,
        done: oneshot::Sender<Result<(u8, Life), StartError>>,
    },
    Remove {
        network: NetworkId,
        done: oneshot::Sender<()>,
    },
    Report {
        done: oneshot::Sender<Report>,
    },
    Stop,
    #[cfg(test)]
    Panic,
}

struct Offer {
    stream: Box<dyn Connection>,
    peer: SocketAddr,
}

/// What the tasks of the thread share.
struct Shared {
    engine: RefCell<Engine>,
    unproven: Unproven,
    budget: Budget,
    limits: Limits,
    rules: Rules,
}

/// Tells a running server what to do; clones are for the same one. It stops when the last is dropped.
#[derive(Clone)]
pub struct Handle {
    port: u16,
    commands: mpsc::Sender<Command>,
    offers: mpsc::Sender<Offer>,
    requests: crossbeam::channel::Sender<Request>,
    threads: Arc<Mutex<Vec<thread::JoinHandle<()>>>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds the sockets and starts the threads. No network is served until [`Handle::apply`].
    ///
    /// # Errors
    ///
    /// If the port cannot be had, or no thread.
    pub fn start(config: ServerConfig) -> Result<Handle, StartError> {
        let port = config.port;
        let ports = Ports::bind(config.listen_v4, config.listen_v6, port)
            .map_err(|source| StartError::Bind { port, source })?;
        Self::start_on(config, ports)
    }

    /// The same on sockets that were taken before; what the configuration says of addresses and port is not looked at.
    ///
    /// # Errors
    ///
    /// If no thread can be had.
    pub fn start_on(config: ServerConfig, ports: Ports) -> Result<Handle, StartError> {
        let port = ports.port();
        let (handshakes, handshake_thread) = handshakes::start().map_err(StartError::Threads)?;
        let requests = handshakes.requests.clone();
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (offers, offers_in) = mpsc::channel(OFFERS);
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let relay_thread = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || run(config, ports, handshakes, commands_in, offers_in, &started))
            .map_err(StartError::Threads)?;
        start.recv().map_err(|_| Stopped)??;
        let threads = Arc::new(Mutex::new(vec![relay_thread, handshake_thread]));
        Ok(Handle { port, commands, offers, requests, threads })
    }
}

impl Handle {
    /// The UDP port, of both families.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Serves a network as the relay with this key, or takes its new list of members. When it returns, who is not in the list
    /// has no session and no channel any more.
    ///
    /// # Errors
    ///
    /// If there are too many networks or the server has stopped.
    pub async fn apply(
        &self,
        network: NetworkId,
        key: &SecretKey,
        peers: Vec<PeerConfig>,
    ) -> Result<(), StartError> {
        let (done, answer) = oneshot::channel();
        let command = Command::Apply { network, key: key.public_key(), peers: peers.clone(), done };
        self.commands.send(command).await.map_err(|_| Stopped)?;
        let (worker, life) = answer.await.map_err(|_| Stopped)??;
        let (done, answer) = oneshot::channel();
        let key = Box::new(SecretKey::from_bytes(*key.expose()));
        self.request(Request::Apply { network, life, worker, key, peers, done })?;
        answer.await.map_err(|_| Stopped)?;
        Ok(())
    }

    /// Serves a network no longer.
    ///
    /// # Errors
    ///
    /// If the server has stopped.
    pub async fn remove(&self, network: NetworkId) -> Result<(), Stopped> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Remove { network, done }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)?;
        self.request(Request::Remove { network })
    }

    /// The handshake timestamps of a network, to be stored: without them a captured initiation could be played again after a
    /// restart. `None` if it is not known.
    ///
    /// # Errors
    ///
    /// If the server has stopped.
    pub async fn floors(&self, network: NetworkId) -> Result<Option<Floors>, Stopped> {
        let (answer, floors) = oneshot::channel();
        self.request(Request::Floors { network, answer })?;
        floors.await.map_err(|_| Stopped)
    }

    /// Takes what [`floors`](Self::floors) gave before a restart; best before the first [`apply`](Self::apply).
    ///
    /// # Errors
    ///
    /// If the server has stopped.
    pub async fn restore(&self, network: NetworkId, floors: Floors) -> Result<(), Stopped> {
        let (done, answer) = oneshot::channel();
        self.request(Request::Restore { network, floors, done })?;
        answer.await.map_err(|_| Stopped)
    }

    /// What can be said about the server now.
    ///
    /// # Errors
    ///
    /// If the server has stopped.
    pub async fn report(&self) -> Result<Report, Stopped> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Report { done }).await.map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)
    }

    /// Offers a connection on which an HTTP/1.1 request for a WebSocket is about to come, or has come and can be read again.
    /// `peer` is who is at its other end, be it a proxy. The rest is the server's: refusing, answering, closing.
    ///
    /// The stream's TLS is the caller's and done already. Set `TCP_NODELAY`, as each message is written at once and whole, and
    /// small socket buffers (`TCP_NOTSENT_LOWAT` or `SO_SNDBUF`, 128 KiB or so): what waits in the kernel is beyond the
    /// server's own bound of 1 MiB.
    ///
    /// # Errors
    ///
    /// If too many wait already or the server has stopped; the connection is closed then.
    pub fn offer_websocket<S>(&self, stream: S, peer: SocketAddr) -> Result<(), Refused>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // The offers' other end may outlive the rest by a moment.
        if self.commands.is_closed() {
            return Err(Refused);
        }
        self.offers.try_send(Offer { stream: Box::new(stream), peer }).map_err(|_| Refused)
    }

    /// Waits until the server has ended: it was stopped, or one of its threads failed. Never returns while all is well.
    pub async fn ended(&self) {
        // The two threads end with each other, and the first of them takes the commands' other end with it.
        self.commands.closed().await;
    }

    /// Stops the server: the port is free and all streams are closed when it returns. Blocks for a moment, so call it where
    /// that is allowed (`spawn_blocking`).
    pub fn stop(&self) {
        // If the queue is full, the thread still ends it in order; if it is closed, there is nothing to end.
        while let Err(mpsc::error::TrySendError::Full(_)) = self.commands.try_send(Command::Stop) {
            thread::yield_now();
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(event = "thread_panicked", "a thread of the relay panicked");
            }
        }
    }

    fn request(&self, request: Request) -> Result<(), Stopped> {
        // The other thread may outlive the first by a moment, and must not answer for it.
        if self.commands.is_closed() {
            return Err(Stopped);
        }
        self.requests.send(request).map_err(|_| Stopped)
    }
}

/// Says so in the log when its thread panics, as nobody may be waiting for the thread's end. The other thread ends as well, and
/// so whoever holds a [`Handle`] is told [`Stopped`].
struct TellPanic(&'static str);

impl Drop for TellPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!(
                event = "thread_panicked",
                thread = self.0,
                "a thread of the relay panicked: the relay has stopped"
            );
        }
    }
}

/// The thread: makes its runtime, says whether it could, and runs until it is told to stop.
fn run(
    config: ServerConfig,
    ports: Ports,
    handshakes: Queues,
    commands: mpsc::Receiver<Command>,
    offers: mpsc::Receiver<Offer>,
    started: &std::sync::mpsc::SyncSender<Result<(), StartError>>,
) {
    let _tell = TellPanic("passes datagrams on");
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(StartError::Threads(error)))),
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let port = ports.port();
        let sockets = match Sockets::new(ports) {
            Ok(sockets) => Rc::new(sockets),
            Err(source) => return drop(started.send(Err(StartError::Bind { port, source }))),
        };
        let _ = started.send(Ok(()));
        let shared = Rc::new(Shared {
            engine: RefCell::new(Engine::new(sockets.clone(), config.rates, config.limits, handshakes.jobs)),
            unproven: Unproven::new(config.limits.unproven, config.limits.unproven_per_source),
            budget: Budget::default(),
            limits: config.limits,
            rules: Rules {
                base_path: config.base_path,
                trusted_proxies: config.trusted_proxies,
                forwarded_header: config.forwarded_header,
            },
        });
        // Each is ended by dropping it.
        tokio::select! {
            () = serve_commands(&shared, commands) => {}
            () = serve_socket(&shared, sockets.v4.as_ref()) => {}
            () = serve_socket(&shared, sockets.v6.as_ref()) => {}
            () = serve_results(&shared, handshakes.results) => {}
            () = serve_deadlines(&shared) => {}
            () = serve_offers(&shared, offers) => {}
        }
    });
}

/// Ends when it is told to stop, or nobody is left to tell it anything.
async fn serve_commands(shared: &Shared, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        let now = clock::now();
        let mut engine = shared.engine.borrow_mut();
        match command {
            Command::Apply { network, key, peers, done } => {
                let _ = done.send(engine.apply(network, key, &peers, now));
            }
            Command::Remove { network, done } => {
                engine.remove(network);
                let _ = done.send(());
            }
            Command::Report { done } => {
                let _ = done.send(engine.report(shared.unproven.count()));
            }
            Command::Stop => return,
            #[cfg(test)]
            Command::Panic => panic!("a test wants it"),
        }
        engine.settle(now);
    }
}

/// Never ends.
async fn serve_socket(shared: &Shared, socket: Option<&Port>) {
    let Some(socket) = socket else { return std::future::pending().await };
    let mut batch = Batch::new();
    loop {
        let mut ready = socket.readable().await;
        for _ in 0..BATCHES_PER_TURN {
            match socket.receive(&mut batch) {
                Ok(Some(count)) => {
                    let now = clock::now();
                    let mut engine = shared.engine.borrow_mut();
                    for (from, train) in batch.trains(count) {
                        for datagram in train {
                            engine.datagram(datagram, Hop::Udp(from), now);
                        }
                    }
                    engine.settle(now);
                }
                Ok(None) => break,
                Err(error) => {
                    ready = Err(error);
                    break;
                }
            }
        }
        match ready {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => {
                tracing::warn!(event = "relay_socket_failed", %error, "a UDP socket of the relay failed");
                tokio::time::sleep(SOCKET_REST).await;
            }
        }
    }
}

/// Ends when the handshake thread does.
async fn serve_results(shared: &Shared, mut results: mpsc::Receiver<(Life, JobDone)>) {
    while let Some((life, done)) = results.recv().await {
        let now = clock::now();
        let mut engine = shared.engine.borrow_mut();
        engine.job_done(life, done, now);
        engine.settle(now);
    }
}

/// Never ends.
async fn serve_deadlines(shared: &Shared) {
    let earlier = shared.engine.borrow().earlier.clone();
    loop {
        let due = shared.engine.borrow_mut().due(clock::now());
        tokio::select! {
            () = sleep_until(Instant::from_std(due)) => {}
            () = earlier.notified() => {}
        }
    }
}

/// Never ends: the commands say when.
async fn serve_offers(shared: &Rc<Shared>, mut offers: mpsc::Receiver<Offer>) {
    while let Some(Offer { stream, peer }) = offers.recv().await {
        tokio::task::spawn_local(websocket::serve(shared.clone(), stream, peer));
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const WAIT: Duration = Duration::from_secs(10);

    async fn is_stopped(handle: &Handle) {
        timeout(WAIT, handle.ended()).await.expect("the end is told to those who wait for it");
        let network = NetworkId::from_bytes([1; 16]);
        let key = SecretKey::from_bytes([1; 32]);
        let applied = timeout(WAIT, handle.apply(network, &key, Vec::new())).await.unwrap();
        assert!(matches!(applied, Err(StartError::Stopped(Stopped))), "{applied:?}");
        assert_eq!(timeout(WAIT, handle.report()).await.unwrap(), Err(Stopped));
        assert_eq!(timeout(WAIT, handle.floors(network)).await.unwrap(), Err(Stopped));
        assert_eq!(timeout(WAIT, handle.remove(network)).await.unwrap(), Err(Stopped));
        let (stream, _other) = tokio::io::duplex(10);
        assert_eq!(handle.offer_websocket(stream, "192.0.2.1:1".parse().unwrap()), Err(Refused));
        let handle = handle.clone();
        timeout(WAIT, tokio::task::spawn_blocking(move || handle.stop())).await.unwrap().unwrap();
    }

    fn start() -> Handle {
        let listen_v4 = Some(Ipv4Addr::LOCALHOST);
        Server::start(ServerConfig { listen_v4, listen_v6: None, ..ServerConfig::default() }).unwrap()
    }

    #[tokio::test]
    async fn a_panic_of_the_thread_that_passes_on_is_told_to_all_who_have_a_handle() {
        let handle = start();
        assert!(handle.report().await.is_ok());
        handle.commands.send(Command::Panic).await.unwrap();
        // Asked while it ends, or after that: nobody waits for ever.
        assert_eq!(timeout(WAIT, handle.report()).await.unwrap(), Err(Stopped));
        is_stopped(&handle).await;
    }

    #[tokio::test]
    async fn a_panic_of_the_handshake_thread_is_told_as_well() {
        let handle = start();
        assert!(handle.floors(NetworkId::from_bytes([1; 16])).await.is_ok());
        handle.request(Request::Panic).unwrap();
        is_stopped(&handle).await;
    }
}
