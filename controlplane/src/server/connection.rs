//! A connection as handlers see it: who is at the other end, and what ties a signature to this very connection.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};
use tonic::transport::server::Connected;

/// Challenges that are answered on one connection.
const MAX_CHALLENGES: u32 = 16;
/// How long a connection that shall end has for what was said last.
const LAST_WORD: Duration = Duration::from_secs(1);

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

/// Counts the connections of each source on which no node has a map stream.
#[derive(Debug)]
pub(super) struct Unproven {
    counts: Mutex<HashMap<Source, usize>>,
    /// The most of one source.
    most: usize,
}

impl Unproven {
    pub(super) fn new(most: usize) -> Self {
        Self { counts: Mutex::default(), most }
    }

    /// Takes a place for `source` unless it has all it may have. The table is as long as there are connections, at most.
    pub(super) fn enter(self: &Arc<Self>, source: Source) -> Option<Place> {
        let mut counts = lock(&self.counts);
        let count = counts.entry(source).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place { unproven: self.clone(), source })
    }

    #[cfg(test)]
    pub(super) fn sources(&self) -> usize {
        lock(&self.counts).len()
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
        let mut counts = lock(&self.unproven.counts);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection may do at the moment.
#[derive(Debug)]
enum Standing {
    /// No node has a map stream on it: it counts against its source, and ends at a time.
    Unproven { _place: Place, until: Instant },
    /// So many streams of nodes that proved themselves.
    Proven { streams: usize },
    /// It shall not be used any more, and ends at a time, so that a last word gets through.
    Closing { _place: Place, until: Instant },
    /// It ends now.
    Closed,
}

#[derive(Debug)]
struct Shared {
    unproven: Arc<Unproven>,
    time_to_prove: Duration,
    challenges: AtomicU32,
    standing: Mutex<Standing>,
    /// The task that serves the connection, which has to look at `standing` again.
    server: AtomicWaker,
}

/// What handlers learn of a node's connection, from the request's extensions.
#[derive(Clone)]
pub struct Connection {
    peer: SocketAddr,
    exporter: [u8; 32],
    shared: Arc<Shared>,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr, exporter: [u8; 32], place: Place, time_to_prove: Duration) -> Self {
        let shared = Shared {
            unproven: place.unproven.clone(),
            time_to_prove,
            challenges: AtomicU32::new(0),
            standing: Mutex::new(Standing::Unproven { _place: place, until: Instant::now() + time_to_prove }),
            server: AtomicWaker::new(),
        };
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        Self { peer, exporter, shared: Arc::new(shared) }
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

    /// Lifts the bounds for strangers from this connection for as long as the returned value lives: a node that proved itself
    /// has a map stream on it. `None` if the connection is about to end.
    pub(crate) fn admit(&self) -> Option<Admission> {
        let mut standing = lock(&self.shared.standing);
        match &mut *standing {
            Standing::Unproven { .. } => *standing = Standing::Proven { streams: 1 },
            Standing::Proven { streams } => *streams += 1,
            Standing::Closing { .. } | Standing::Closed => return None,
        }
        Some(Admission(self.clone()))
    }

    /// Ends the connection, after a moment in which what was said last gets through.
    pub(crate) fn close_soon(&self) {
        let mut standing = lock(&self.shared.standing);
        if matches!(*standing, Standing::Closing { .. } | Standing::Closed) {
            return;
        }
        let until = Instant::now() + LAST_WORD;
        *standing = match self.place(&mut standing) {
            Some(place) => Standing::Closing { _place: place, until },
            None => Standing::Closed,
        };
        self.shared.server.wake();
    }

    /// Whether `other` is this connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether a challenge may be answered: each costs a signature, and one is enough to prove oneself.
    pub(crate) fn may_challenge(&self) -> bool {
        self.shared.challenges.fetch_add(1, Ordering::Relaxed) < MAX_CHALLENGES
    }

    /// A place among the unproven, the one that `standing` has or a new one.
    fn place(&self, standing: &mut Standing) -> Option<Place> {
        match std::mem::replace(standing, Standing::Closed) {
            Standing::Unproven { _place: place, .. } | Standing::Closing { _place: place, .. } => Some(place),
            Standing::Proven { .. } => self.shared.unproven.enter(self.source()),
            Standing::Closed => None,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}

/// That a map stream lives on a connection. With the last one the connection is a stranger's again.
#[derive(Debug)]
pub(crate) struct Admission(Connection);

impl Drop for Admission {
    fn drop(&mut self) {
        let Connection { shared, .. } = &self.0;
        let mut standing = lock(&shared.standing);
        match &mut *standing {
            Standing::Proven { streams: 1 } => {
                *standing = match self.0.place(&mut standing) {
                    Some(place) => {
                        Standing::Unproven { _place: place, until: Instant::now() + shared.time_to_prove }
                    }
                    None => Standing::Closed,
                };
                shared.server.wake();
            }
            Standing::Proven { streams } => *streams -= 1,
            Standing::Unproven { .. } | Standing::Closing { .. } | Standing::Closed => {}
        }
    }
}

/// A node's byte stream that ends when its [`Connection`] shall.
pub(super) struct NodeStream<S> {
    stream: S,
    connection: Connection,
    deadline: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl<S> NodeStream<S> {
    pub(super) fn new(stream: S, connection: Connection, slot: OwnedSemaphorePermit) -> Self {
        Self { stream, connection, deadline: Box::pin(tokio::time::sleep(Duration::ZERO)), _slot: slot }
    }

    /// Fails once the connection's time is over. Asked on every path into the stream: a peer that does not read keeps the
    /// server from reading, and one that says nothing from writing.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.connection.shared.server.register(cx.waker());
        let until = match &*lock(&self.connection.shared.standing) {
            Standing::Proven { .. } => return Ok(()),
            Standing::Unproven { until, .. } | Standing::Closing { until, .. } => Some(*until),
            Standing::Closed => None,
        };
        if let Some(until) = until {
            if self.deadline.deadline() != until {
                self.deadline.as_mut().reset(until);
            }
            if self.deadline.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
        }
        tracing::debug!(peer = %self.connection.peer, "closed a connection on which no node has a stream");
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NodeStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NodeStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S> Connected for NodeStream<S> {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

/// A stream that has a place among all connections, and no other bound here.
#[derive(Debug)]
pub struct Slotted<S> {
    stream: S,
    _slot: OwnedSemaphorePermit,
}

impl<S> Slotted<S> {
    pub(super) const fn new(stream: S, slot: OwnedSemaphorePermit) -> Self {
        Self { stream, _slot: slot }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Slotted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Slotted<S> {
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
