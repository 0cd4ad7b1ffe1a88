//! The accept loops. They survive what ends a naive one: no file descriptors left, a connection gone before it was taken,
//! a peer that opens many connections or lingers in its handshake.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::Stream;
use ringmesh_tunnel::enroll::transcript::EXPORTER_LABEL;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    connection::{Caller, Connection, LocalStream, NodeStream, Place, Slotted, Source, Unproven},
    protocol::{Protocol, Rewound},
    socket::AdminSocket,
};

/// What strangers may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections of one IPv4 address or IPv6 /64 on which no node has a map stream.
    /// [`BYTES_PER_CONNECTION`](super::BYTES_PER_CONNECTION) says what each may cost.
    pub unproven_per_source: usize,
    /// The longest TLS handshake.
    pub handshake: Duration,
    /// How long a connection lives on which no node has a map stream.
    pub time_to_prove: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16 << 10,
            unproven_per_source: 32,
            handshake: Duration::from_secs(5),
            time_to_prove: Duration::from_secs(30),
        }
    }
}

/// How long the loop rests when the system has no file descriptor to give.
const REST: Duration = Duration::from_millis(50);
/// Bytes that may wait in the kernel for the reader of a WebSocket, besides what waits in the relay.
const WEBSOCKET_BUFFER: usize = 128 << 10;
/// Connections that wait for the HTTP server to take them.
const BACKLOG: usize = 64;

type Accepted<S> = ReceiverStream<io::Result<S>>;

/// A decrypted stream that counts against the bounds above.
type TlsNodeStream = NodeStream<Rewound<TlsStream<TcpStream>>>;

/// Where connections go on which a WebSocket is to begin.
pub type WebSockets = mpsc::Sender<WebSocket>;

/// A connection on which a WebSocket is to begin. Whoever takes it bounds how long, and how many of one source, may prove nothing; here it
/// counts only among all connections.
#[derive(Debug)]
pub struct WebSocket {
    /// The decrypted stream, of which nothing was read.
    pub stream: Slotted<Rewound<TlsStream<TcpStream>>>,
    /// The other end of the TCP connection, be it a proxy; IPv4 as IPv4.
    pub peer: SocketAddr,
}

/// Accepts until the returned stream is dropped; what it yields has finished its TLS handshake. With `websockets`, connections that
/// speak HTTP/1.1 go there; without, they are refused by whoever serves HTTP/2.
pub(super) fn accept_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: Limits,
    websockets: Option<WebSockets>,
) -> impl Stream<Item = io::Result<TlsNodeStream>> {
    let (ready, accepted) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let acceptor = Acceptor {
            slots: Arc::new(Semaphore::new(limits.connections)),
            unproven: Arc::new(Unproven::new(limits.unproven_per_source)),
            door: Door { tls: TlsAcceptor::from(config), limits, ready, websockets },
        };
        tokio::select! {
            () = acceptor.door.ready.closed() => {}
            () = acceptor.run(&listener) => {}
        }
    });
    Accepted::new(accepted)
}

struct Acceptor {
    slots: Arc<Semaphore>,
    unproven: Arc<Unproven>,
    door: Door,
}

impl Acceptor {
    async fn run(&self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let slot = self.slots.clone().try_acquire_owned();
                    let place = self.unproven.enter(Source::of(peer.ip()));
                    match (slot, place) {
                        (Ok(slot), Some(place)) => {
                            let door = self.door.clone();
                            // On a task of its own, so that a slow peer delays nobody.
                            tokio::spawn(async move { door.pass(stream, peer, slot, place).await });
                        }
                        // Dropping it resets the connection: the peer sees at once that it shall come back later.
                        _ => tracing::debug!(%peer, "refused a connection above the bounds"),
                    }
                }
                Err(error) => rest(&error).await,
            }
        }
    }
}

/// What a connection goes through before somebody serves it.
#[derive(Clone)]
struct Door {
    tls: TlsAcceptor,
    limits: Limits,
    ready: mpsc::Sender<io::Result<TlsNodeStream>>,
    websockets: Option<WebSockets>,
}

impl Door {
    async fn pass(&self, stream: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit, place: Place) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
        }
        let (protocol, stream, exporter) =
            match tokio::time::timeout(self.limits.handshake, self.open(stream)).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
            };
        // The server is shutting down if nobody takes it.
        match (protocol, &self.websockets) {
            (Protocol::WebSocket, Some(websockets)) => {
                if let Err(error) =
                    SockRef::from(stream.get_ref().get_ref().0).set_send_buffer_size(WEBSOCKET_BUFFER)
                {
                    tracing::debug!(%peer, %error, "cannot bound what waits in the kernel");
                }
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                drop(websockets.send(WebSocket { stream: Slotted::new(stream, slot), peer }).await);
                // Only now: until the relay counts it, it counts here.
                drop(place);
            }
            (Protocol::Grpc | Protocol::WebSocket, _) => {
                let connection = Connection::new(peer, exporter, place, self.limits.time_to_prove);
                drop(self.ready.send(Ok(NodeStream::new(stream, connection, slot))).await);
            }
        }
    }

    /// Runs the handshake, and finds out what the connection is for.
    async fn open(
        &self,
        stream: TcpStream,
    ) -> io::Result<(Protocol, Rewound<TlsStream<TcpStream>>, [u8; 32])> {
        let stream = self.tls.accept(stream).await?;
        let tls = stream.get_ref().1;
        let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, None).map_err(io::Error::other)?;
        let agreed = tls.alpn_protocol().map(<[u8]>::to_vec);
        let (protocol, stream) = match self.websockets {
            Some(_) => Protocol::tell(stream, agreed.as_deref()).await?,
            None => (Protocol::Grpc, Rewound::untouched(stream)),
        };
        Ok((protocol, stream, exporter))
    }
}

/// Accepts on the unix socket until the returned stream is dropped.
pub(super) fn accept_local(socket: AdminSocket) -> impl Stream<Item = io::Result<LocalStream>> {
    let (ready, accepted) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let accept = async {
            loop {
                let stream = match socket.listener().accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        rest(&error).await;
                        continue;
                    }
                };
                match stream.peer_cred() {
                    Ok(credentials) => {
                        let caller = Caller { uid: credentials.uid(), pid: credentials.pid() };
                        drop(ready.send(Ok(LocalStream { stream, caller })).await);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "refused a local connection: the kernel does not say whose it is")
                    }
                }
            }
        };
        tokio::select! {
            () = ready.closed() => {}
            () = accept => {}
        }
    });
    Accepted::new(accepted)
}

/// One connection's fault is no reason to wait; a lack of descriptors or memory is, as the next call would fail as well.
async fn rest(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(%error, "cannot accept connections at the moment");
        tokio::time::sleep(REST).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    }

    #[test]
    fn unproven_connections_of_a_source_are_bounded_and_forgotten_when_gone() {
        let unproven = Arc::new(Unproven::new(2));
        let places: Vec<_> = (0..3).map_while(|_| unproven.enter(source("192.0.2.1"))).collect();
        assert_eq!(places.len(), 2);
        let other = unproven.enter(source("192.0.2.2"));
        assert!(other.is_some());
        assert_eq!(unproven.sources(), 2);
        drop((places, other));
        assert_eq!(unproven.sources(), 0);
    }
}
