//! The accept loop of the nodes' port. It survives what ends a naive one: no file descriptors left, a connection gone before it was
//! taken, a peer that opens many connections or lingers in its handshake.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use ringmesh_tunnel::enroll::transcript::EXPORTER_LABEL;
use rustls::{ServerConfig, server::Acceptor as HelloReader};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tonic::service::Routes;

use super::{
    connection::{Connection, Guarded, Remote},
    http::{self, Visitor},
    protocol::{Protocol, Rewound},
    seats::Seats,
    strangers::{Source, Strangers},
    turns::Turns,
};
use crate::metrics::Census;

/// What strangers may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all; a daemon has fewer if it may not have as many file descriptors. When fifteen of sixteen are taken, strangers have to leave for those who come.
    pub connections: usize,
    /// Connections of one IPv4 address or IPv6 /64 on which nobody has proved anything. One more is refused, or the oldest one leaves if it
    /// has had its time.
    /// [`BYTES_PER_CONNECTION`](super::BYTES_PER_CONNECTION) says what each may cost.
    pub unproven_per_source: usize,
    /// That time: longer than who proves something needs, also when many come at once from one address.
    pub unproven_patience: Duration,
    /// Connections on which requests with one API key are open, and nothing else was proved; when there are more the oldest one leaves.
    pub proven_per_key: usize,
    /// Bytes that are read of a connection, TLS and all, before something is proved on it, and the record of TLS that began within them.
    /// What joins a network has three thousand.
    pub unproven_bytes: usize,
    /// Bytes that are read of all those connections together; when there were more, of each only its share is read.
    pub unproven_bytes_of_all: usize,
    /// Bytes that are read of such a connection in any case.
    pub unproven_share: usize,
    /// The longest TLS handshake.
    pub handshake: Duration,
    /// How long a connection lives on which nobody proves anything.
    pub time_to_prove: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Limits {
    /// What holds unless something else is said.
    pub const DEFAULT: Self = Self {
        connections: 16 << 10,
        unproven_per_source: 32,
        unproven_patience: Duration::from_secs(3),
        proven_per_key: 64,
        unproven_bytes: 16 << 10,
        unproven_bytes_of_all: 24 << 20,
        unproven_share: 6 << 10,
        handshake: Duration::from_secs(5),
        time_to_prove: Duration::from_secs(30),
    };

    /// Of all connections, those that are left to who comes when the others are taken.
    const fn for_newcomers(&self) -> usize {
        self.connections / 16
    }

    /// Of all connections, those that may be proven by API keys; the others are left to nodes.
    pub(super) const fn for_keys(&self) -> usize {
        self.connections / 8
    }
}

/// How long the loop rests when the system has no file descriptor to give.
const REST: Duration = Duration::from_millis(50);
/// Bytes that may wait in the kernel for the reader of a WebSocket, besides what waits in the relay.
const WEBSOCKET_BUFFER: usize = 128 << 10;

/// A decrypted stream that counts against the bounds above.
pub type NodeStream = Rewound<TlsStream<Guarded>>;

/// Where connections go on which a WebSocket is to begin.
pub type WebSockets = mpsc::Sender<WebSocket>;

/// A connection on which a WebSocket is to begin. Whoever takes it bounds how long, and how many of one source, may prove nothing; here it
/// counts only among all connections.
#[derive(Debug)]
pub struct WebSocket {
    /// The decrypted stream; what was read of it is read again.
    pub stream: NodeStream,
    /// The other end of the TCP connection, be it a proxy; IPv4 as IPv4.
    pub peer: SocketAddr,
}

/// Accepts until `shutdown`, and serves what has finished its TLS handshake; then lets requests end. With `websockets`, connections
/// of HTTP/1.1 that begin with a GET go there.
pub(super) async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: Limits,
    routes: Routes,
    websockets: Option<WebSockets>,
    census: Census,
    shutdown: impl Future<Output = ()> + Send,
) {
    let graceful = GracefulShutdown::new();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let acceptor = Acceptor {
        slots: Arc::new(Semaphore::new(limits.connections)),
        strangers: Arc::new(Strangers::new(limits)),
        seats: Seats::new(limits.proven_per_key, limits.for_keys()),
        census,
        door: Door { config, limits, turns: Turns::new(processors), routes, websockets },
    };
    tokio::select! {
        () = shutdown => {}
        () = acceptor.run(&listener, &graceful) => {}
    }
    drop((acceptor, listener));
    graceful.shutdown().await;
}

struct Acceptor {
    slots: Arc<Semaphore>,
    strangers: Arc<Strangers>,
    seats: Arc<Seats<Remote>>,
    census: Census,
    door: Door,
}

impl Acceptor {
    async fn run(&self, listener: &TcpListener, graceful: &GracefulShutdown) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.take(stream, peer, graceful.watcher()),
                Err(error) => rest(&error).await,
            }
        }
    }

    fn take(&self, stream: TcpStream, peer: SocketAddr, watcher: Watcher) {
        let limits = &self.door.limits;
        if !self.strangers.admits(Source::of(peer.ip())) {
            return self.refuse(peer);
        }
        if self.slots.available_permits() <= limits.for_newcomers() {
            self.strangers.make_room();
        }
        let slot = self.slots.clone().try_acquire_owned();
        match slot {
            Ok(slot) => {
                let connection = Connection::enter(&self.strangers, &self.seats, peer, &self.census);
                let door = self.door.clone();
                // On a task of its own, so that a slow peer delays nobody.
                tokio::spawn(async move { door.pass(stream, connection, slot, watcher).await });
            }
            Err(_) => self.refuse(peer),
        }
    }

    /// Dropping a connection resets it: the peer sees at once that it shall come back later.
    fn refuse(&self, peer: SocketAddr) {
        self.census.refuse();
        tracing::debug!(%peer, "refused a connection above the bounds");
    }
}

/// What a connection goes through before somebody serves it.
#[derive(Clone)]
struct Door {
    config: Arc<ServerConfig>,
    limits: Limits,
    turns: Arc<Turns>,
    routes: Routes,
    websockets: Option<WebSockets>,
}

impl Door {
    async fn pass(
        self,
        stream: TcpStream,
        connection: Connection,
        slot: OwnedSemaphorePermit,
        watcher: Watcher,
    ) {
        let peer = connection.peer();
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
        }
        let opened = tokio::select! {
            () = connection.told_to_leave() => return tracing::debug!(%peer, "made room for others"),
            opened = tokio::time::timeout(self.limits.handshake, self.open(stream, &connection, slot)) => opened,
        };
        match opened {
            Ok(Ok((Protocol::WebSocket, stream))) if self.websockets.is_some() => {
                self.hand_over(stream, &connection).await;
            }
            Ok(Ok((protocol, stream))) => {
                http::serve(stream, protocol, Visitor::Remote(connection), self.routes, watcher).await;
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    /// Runs the handshake, and finds out what the connection is for.
    async fn open(
        &self,
        stream: TcpStream,
        connection: &Connection,
        slot: OwnedSemaphorePermit,
    ) -> io::Result<(Protocol, NodeStream)> {
        let stream = Guarded::new(stream, connection.clone(), slot);
        let hello = LazyConfigAcceptor::new(HelloReader::default(), stream).await?;
        let computed = {
            // Who is slow to say hello keeps nobody waiting; what follows is computed at once.
            let _turn = self.turns.take(connection.open_of_source()).await;
            hello.into_stream(self.config.clone())
        };
        let stream = computed.await?;
        let tls = stream.get_ref().1;
        let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)?;
        let agreed = tls.alpn_protocol().map(<[u8]>::to_vec);
        connection.opened(exporter);
        Protocol::tell(stream, agreed.as_deref()).await
    }

    async fn hand_over(&self, stream: NodeStream, connection: &Connection) {
        let peer = connection.peer();
        if let Err(error) =
            SockRef::from(stream.get_ref().get_ref().0.get_ref()).set_send_buffer_size(WEBSOCKET_BUFFER)
        {
            tracing::debug!(%peer, %error, "cannot bound what waits in the kernel");
        }
        if let Some(websockets) = &self.websockets
            && let Ok(Ok(place)) = tokio::time::timeout(self.limits.time_to_prove, websockets.reserve()).await
        {
            place.send(WebSocket { stream, peer });
            // Only now: until the relay counts it, it counts here.
            connection.hand_over();
        }
    }
}

/// One connection's fault is no reason to wait; a lack of descriptors or memory is, as the next call would fail as well.
pub(super) async fn rest(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(event = "accept_failed", %error, "cannot accept connections at the moment");
        tokio::time::sleep(REST).await;
    }
}
