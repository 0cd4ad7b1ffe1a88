//! A connection as handlers see it: who is at the other end, and what ties a signature to this very connection. And as the sockets
//! see it: what it may send, and until when.

use std::{
    fmt,
    io::{self, Read as _},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::FutureExt as _;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};

use super::{
    MAX_STRANGER_REQUESTS,
    accept::Limits,
    records::Records,
    seats::{Seat, Seats},
    strangers::{Leave, Place, Source, Strangers, lock},
};
use crate::{
    metrics::{Census, Counted, Standing as As},
    network::api_keys::ApiKeyId,
};

/// Challenges that are answered on one connection.
const MAX_CHALLENGES: u32 = 16;
/// How long a connection that shall end has for what was said last.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a connection may do at the moment.
#[derive(Debug)]
enum Standing {
    /// Nobody has proved anything on it: it counts against its source, and ends at a time.
    Unproven { place: Place, until: Instant },
    /// So many streams of nodes that proved themselves, and requests with a valid key; each key has a seat.
    Proven { streams: usize, seats: Vec<Seat<Remote>> },
    /// It shall not be used any more, and ends at a time, so that a last word gets through.
    Closing { place: Place, until: Instant },
    /// Somebody else bounds it.
    Elsewhere,
    /// It ends now.
    Closed,
}

#[derive(Debug)]
struct Shared {
    strangers: Arc<Strangers>,
    seats: Arc<Seats<Remote>>,
    time_to_prove: Duration,
    exporter: OnceLock<[u8; 32]>,
    challenges: AtomicU32,
    /// Requests that wait for an answer.
    requests: AtomicU32,
    standing: Mutex<Standing>,
    /// Bytes that the other end was sent.
    written: AtomicU64,
    /// As what metrics count it.
    counted: Mutex<Counted>,
    /// Wakes the task that serves the connection, which has to look at `standing` again.
    leave: Arc<Leave>,
}

impl Shared {
    /// Counts the connection by its standing from now on.
    fn count(&self, standing: As) {
        lock(&self.counted).become_now(standing);
    }
}

/// What handlers learn of a node's connection, from the request's extensions.
#[derive(Clone)]
pub struct Connection {
    peer: SocketAddr,
    shared: Arc<Shared>,
}

/// A connection as others know it: it does not live by that.
#[derive(Debug)]
pub(super) struct Remote {
    peer: SocketAddr,
    shared: Weak<Shared>,
}

impl Remote {
    /// Ends it, if it is there.
    fn close_soon(self) {
        if let Some(shared) = self.shared.upgrade() {
            Connection { peer: self.peer, shared }.close_soon();
        }
    }
}

impl Connection {
    /// A connection that was just accepted.
    pub(super) fn enter(
        strangers: &Arc<Strangers>,
        seats: &Arc<Seats<Remote>>,
        peer: SocketAddr,
        census: &Census,
    ) -> Self {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let leave = Arc::<Leave>::default();
        let place = strangers.enter(Source::of(peer.ip()), leave.clone());
        let Limits { handshake, time_to_prove, .. } = *strangers.limits();
        let until = Instant::now() + handshake + time_to_prove;
        let shared = Shared {
            strangers: strangers.clone(),
            seats: seats.clone(),
            time_to_prove,
            exporter: OnceLock::new(),
            challenges: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            written: AtomicU64::new(0),
            standing: Mutex::new(Standing::Unproven { place, until }),
            counted: Mutex::new(census.enter(As::Handshaking)),
            leave,
        };
        Self { peer, shared: Arc::new(shared) }
    }

    /// One of a stranger, with nothing below it.
    #[cfg(test)]
    pub(crate) fn of_stranger() -> Self {
        let strangers = Arc::new(Strangers::new(Limits::default()));
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        Self::enter(&strangers, &Seats::new(1, 1), peer, &Census::default())
    }

    /// Its TLS handshake is done: from now on there is time to prove something.
    pub(super) fn opened(&self, exporter: [u8; 32]) {
        // Once for each connection, and before there is a request.
        self.shared.exporter.get_or_init(|| exporter);
        if let Standing::Unproven { until, .. } = &mut *lock(&self.shared.standing) {
            *until = Instant::now() + self.shared.time_to_prove;
            self.shared.count(As::Unproven);
        }
    }

    /// Somebody else bounds it from now on.
    pub(super) fn hand_over(&self) {
        *lock(&self.shared.standing) = Standing::Elsewhere;
        self.shared.count(As::WebSocket);
    }

    /// Waits until the connection has to leave, as others need its place.
    pub(super) async fn told_to_leave(&self) {
        std::future::poll_fn(|cx| self.shared.leave.poll_told(cx)).await;
    }

    /// How many connections of strangers its source has.
    pub(super) fn open_of_source(&self) -> usize {
        self.shared.strangers.count(self.source())
    }

    /// Begins a request; `None` if a stranger has as many of them as it may.
    pub(super) fn begin(&self) -> Option<Asking> {
        let before = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        let asking = Asking(self.clone());
        (before < MAX_STRANGER_REQUESTS || self.is_proven()).then_some(asking)
    }

    /// Whether somebody has proved something on it, and still uses it.
    pub(super) fn is_proven(&self) -> bool {
        matches!(*lock(&self.shared.standing), Standing::Proven { .. })
    }

    /// Counts what was received, if it counts.
    fn receive(&self, bytes: usize) {
        match &mut *lock(&self.shared.standing) {
            Standing::Unproven { place, .. } | Standing::Closing { place, .. } => place.receive(bytes),
            Standing::Proven { .. } | Standing::Elsewhere | Standing::Closed => {}
        }
    }

    /// The other end of the TCP connection; IPv4 as IPv4.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Keying material that only the two ends of this TLS connection know.
    #[must_use]
    pub fn exporter(&self) -> &[u8; 32] {
        // Nobody knows an exporter that is not there: no signature fits it.
        self.shared.exporter.get().unwrap_or(&[0; 32])
    }

    pub(crate) fn source(&self) -> Source {
        Source::of(self.peer.ip())
    }

    /// Lifts the bounds for strangers from this connection for as long as the returned value lives: a node that proved itself
    /// has a map stream on it, or a request with this valid key is open. `None` if the connection is about to end. If the key is open on
    /// too many, the oldest of them ends.
    pub(crate) fn admit(&self, key: Option<ApiKeyId>) -> Option<Admission> {
        let mut standing = lock(&self.shared.standing);
        if matches!(*standing, Standing::Unproven { .. }) {
            *standing = Standing::Proven { streams: 0, seats: Vec::new() };
            self.shared.count(As::Proven);
            self.shared.leave.forget();
        }
        let Standing::Proven { streams, seats } = &mut *standing else { return None };
        *streams = streams.saturating_add(1);
        let loser = key.and_then(|key| self.sit(seats, key));
        drop(standing);
        // Only now: each is held for its own standing.
        if let Some(loser) = loser {
            loser.close_soon();
        }
        // What it sent beyond a stranger's allowance is read now.
        self.shared.leave.task.wake();
        Some(Admission { connection: self.clone(), key })
    }

    /// Counts a request with `key`; who loses his seat for it.
    fn sit(&self, seats: &mut Vec<Seat<Remote>>, key: ApiKeyId) -> Option<Remote> {
        if let Some(seat) = seats.iter_mut().find(|seat| seat.key == key) {
            seat.uses = seat.uses.saturating_add(1);
            return None;
        }
        let this = Remote { peer: self.peer, shared: Arc::downgrade(&self.shared) };
        let (seat, loser) = self.shared.seats.take(key, this);
        seats.push(seat);
        loser
    }

    /// Ends the connection, after a moment in which what was said last gets through.
    pub(crate) fn close_soon(&self) {
        let mut standing = lock(&self.shared.standing);
        if matches!(*standing, Standing::Closing { .. } | Standing::Elsewhere | Standing::Closed) {
            return;
        }
        let until = Instant::now() + LAST_WORD;
        *standing = match self.place(&mut standing) {
            Some(place) => Standing::Closing { place, until },
            None => Standing::Closed,
        };
        self.shared.count(As::Closing);
        self.shared.leave.task.wake();
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
            Standing::Unproven { place, .. } | Standing::Closing { place, .. } => Some(place),
            Standing::Proven { .. } => {
                Some(self.shared.strangers.enter(self.source(), self.shared.leave.clone()))
            }
            Standing::Elsewhere | Standing::Closed => None,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.peer)
    }
}

/// That a map stream lives on a connection, or a request with a valid key is open. With the last one the connection is a stranger's
/// again.
#[derive(Debug)]
pub(crate) struct Admission {
    connection: Connection,
    key: Option<ApiKeyId>,
}

impl Admission {
    /// How long a connection may go on without having proved anything, or without taking what it asked for.
    pub(crate) fn patience(&self) -> Duration {
        self.connection.shared.time_to_prove
    }

    /// Bytes that the other end of the connection was sent.
    pub(crate) fn written(&self) -> u64 {
        self.connection.shared.written.load(Ordering::Relaxed)
    }

    /// Gives it up for good: the connection ends, unless something else is proved on it.
    pub(crate) fn end(self) {
        let connection = self.connection.clone();
        drop(self);
        if !connection.is_proven() {
            connection.close_soon();
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let shared = &self.connection.shared;
        let mut standing = lock(&shared.standing);
        let Standing::Proven { streams, seats } = &mut *standing else { return };
        if let Some(seat) = seats.iter_mut().find(|seat| Some(seat.key) == self.key) {
            seat.uses = seat.uses.saturating_sub(1);
        }
        seats.retain(|seat| seat.uses > 0);
        *streams = streams.saturating_sub(1);
        if *streams > 0 {
            return;
        }
        // There is always a place: an answer may be on its way.
        *standing = match self.connection.place(&mut standing) {
            Some(place) => Standing::Unproven { place, until: Instant::now() + shared.time_to_prove },
            None => Standing::Closed,
        };
        shared.count(As::Unproven);
        shared.leave.task.wake();
    }
}

/// That a request waits for its answer.
#[derive(Debug)]
pub(super) struct Asking(Connection);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.shared.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The byte stream below TLS, which ends when its [`Connection`] shall.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    connection: Connection,
    deadline: Pin<Box<Sleep>>,
    records: Records,
    /// Whether the runtime was told to forget that there are bytes to read; see [`Self::poll_gone`].
    forgot: bool,
    /// A place among all connections.
    _slot: OwnedSemaphorePermit,
}

impl Guarded {
    pub(super) fn new(stream: TcpStream, connection: Connection, slot: OwnedSemaphorePermit) -> Self {
        let deadline = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { stream, connection, deadline, records: Records::default(), forgot: false, _slot: slot }
    }

    pub(super) const fn get_ref(&self) -> &TcpStream {
        &self.stream
    }

    /// Is ready once the peer hung up; nothing is read for that. Bytes that wait to be read would have the runtime say at once that
    /// there is something: it is made to forget them, and tells of what comes after.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.stream.poll_read_ready(cx)) {
                Ok(()) => {
                    let now = self.stream.ready(Interest::READABLE).now_or_never();
                    if now.is_some_and(|now| now.map_or(true, |now| now.is_read_closed())) {
                        return Poll::Ready(());
                    }
                }
                Err(_) => return Poll::Ready(()),
            }
            self.forgot = true;
            // An answer that only says to forget.
            drop(
                self.stream
                    .try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into())),
            );
        }
    }

    /// Reads what the runtime was made to forget.
    fn read_forgotten(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        while self.forgot {
            match (&*SockRef::from(&self.stream)).read(buf.initialize_unfilled()) {
                Ok(length) => {
                    buf.advance(length);
                    return Ok(true);
                }
                // What comes from now on is told again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.forgot = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Fails once the connection's time is over. Asked on every path into the stream: a peer that does not read keeps the
    /// server from reading, and one that says nothing from writing. Otherwise, whether the peer may send more: what a stranger sends
    /// beyond that waits in the kernel until something is proved, by what came before it, or the time is over.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let shared = &self.connection.shared;
        shared.leave.task.register(cx.waker());
        let (until, may_receive) = match &mut *lock(&shared.standing) {
            Standing::Proven { .. } | Standing::Elsewhere => return Ok(true),
            Standing::Unproven { until, place } | Standing::Closing { until, place } => {
                (Some(*until), place.may_receive(self.records.inside()))
            }
            Standing::Closed => (None, false),
        };
        if let Some(until) = until.filter(|_| !shared.leave.is_told()) {
            if self.deadline.deadline() != until {
                self.deadline.as_mut().reset(until);
            }
            if self.deadline.as_mut().poll(cx).is_pending() {
                return Ok(may_receive);
            }
        }
        tracing::debug!(peer = %self.connection.peer, "closed a connection on which nobody has proved anything");
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.check(cx)? {
            return self.poll_gone(cx).map(|()| Err(io::ErrorKind::ConnectionReset.into()));
        }
        let before = buf.filled().len();
        if !self.read_forgotten(buf)? {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        }
        let read = buf.filled().get(before..).unwrap_or_default();
        self.records.advance(read);
        self.connection.receive(read.len());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf))?;
        self.connection.shared.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs))?;
        self.connection.shared.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
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
