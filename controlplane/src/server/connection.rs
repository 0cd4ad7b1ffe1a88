//! A connection as handlers see it: who is at the other end, and what ties a signature to this very connection.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tonic::transport::server::Connected;

/// Challenges that are answered on one connection.
const MAX_CHALLENGES: u32 = 16;

/// Who may be counted together: an IPv4 address or an IPv6 /64, which one host can fill at will.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source(IpAddr);

impl Source {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 => v4,
        })
    }
}

/// Counts the connections of each source that have proved nothing yet.
#[derive(Debug, Default)]
pub(super) struct Unproven(Mutex<HashMap<Source, usize>>);

impl Unproven {
    /// Takes a place for `source` unless it has `most` already. The table is as long as there are connections, at most.
    pub(super) fn enter(self: &Arc<Self>, source: Source, most: usize) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Place { unproven: self.clone(), source })
    }

    #[cfg(test)]
    pub(super) fn sources(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A place among the unproven connections of a source; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    unproven: Arc<Unproven>,
    source: Source,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.unproven.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// Whether a connection has shown that it belongs to a node.
#[derive(Debug)]
struct Standing {
    proven: AtomicBool,
    challenges: AtomicU32,
    place: Mutex<Option<Place>>,
}

/// What handlers learn of a node's connection, from the request's extensions.
#[derive(Clone)]
pub struct Connection {
    peer: SocketAddr,
    exporter: [u8; 32],
    standing: Arc<Standing>,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, exporter: [u8; 32], place: Place) -> Self {
        let standing = Standing {
            proven: AtomicBool::new(false),
            challenges: AtomicU32::new(0),
            place: Mutex::new(Some(place)),
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        Self { peer, exporter, standing: Arc::new(standing) }
    }

    /// The other end of the TCP connection; IPv4 as IPv4.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Keying material that only the two ends of this TLS connection know.
    #[must_use]
    pub const fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    pub(crate) fn source(&self) -> Source {
        Source::of(self.peer.ip())
    }

    /// Lifts the bounds for strangers from this connection: a node has proved itself on it.
    pub(crate) fn admit(&self) {
        self.standing.proven.store(true, Ordering::Release);
        drop(self.standing.place.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether a challenge may be answered: each costs a signature, and one is enough to prove oneself.
    pub(crate) fn may_challenge(&self) -> bool {
        self.standing.challenges.fetch_add(1, Ordering::Relaxed) < MAX_CHALLENGES
    }

    fn is_proven(&self) -> bool {
        self.standing.proven.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}

/// A node's byte stream that ends if nothing is proved on it in time.
pub(super) struct NodeStream<S> {
    stream: S,
    connection: Connection,
    deadline: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl<S> NodeStream<S> {
    pub(super) fn new(
        stream: S,
        connection: Connection,
        slot: OwnedSemaphorePermit,
        time_to_prove: Duration,
    ) -> Self {
        Self { stream, connection, deadline: Box::pin(tokio::time::sleep(time_to_prove)), _slot: slot }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NodeStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.connection.is_proven() && self.deadline.as_mut().poll(cx).is_ready() {
            tracing::debug!(peer = %self.connection.peer, "closed a connection on which nothing was proved");
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NodeStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S> Connected for NodeStream<S> {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

/// What the kernel says of the program at the other end of the unix socket (SO_PEERCRED), as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its effective user id.
    pub uid: u32,
    /// Its process id, for the log.
    pub pid: Option<i32>,
}

impl Caller {
    /// Whether it is root or the coordinator's own user.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }
}

/// A unix stream with its caller.
#[derive(Debug)]
pub(super) struct LocalStream {
    pub(super) stream: tokio::net::UnixStream,
    pub(super) caller: Caller,
}

impl Connected for LocalStream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
