//! One task for each WebSocket: it reads messages, hands them to the engine, and writes what the engine queued.
//!
//! Reading and writing go on side by side, so that a client that waits for us to read before it reads itself does not stop
//! both. What is queued leaves as one message, and one write, for each turn.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_util::{Sink, Stream};
use ringmesh_tunnel::Link;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::link::Chunk;
use super::metered::Metered;
use super::source::{Place, Source};
use super::{Limits, Shared, clock, upgrade};
use crate::frame::MAX_MESSAGE_LEN;

/// A connection that somebody else accepted and, if it is encrypted, decrypts.
pub(super) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

/// Messages that one stream may bring before others have their turn.
const MESSAGES_PER_TURN: usize = 4;
/// Bytes that are read at once at first; a longer message takes what it needs.
const READ_BUFFER: usize = 4 << 10;

/// Why a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The other side closed it, or it broke.
    Closed,
    /// The engine wants it to.
    Cut,
    /// Nothing authentic came by it in time.
    Unproven,
    /// Nothing authentic came by it before too many others of its source were there.
    Crowded,
    /// Nothing came by it for long.
    Idle,
    /// What came is not what we speak.
    Protocol,
}

/// Serves a connection to its end.
pub(super) async fn serve(shared: Rc<Shared>, mut stream: Box<dyn Connection>, peer: SocketAddr) {
    let until = Instant::now() + shared.limits.time_to_prove;
    let proxied = shared.rules.trusted_proxies.iter().any(|proxy| proxy.contains(peer.ip().to_canonical()));
    let place = if proxied {
        Some(shared.unproven.enter())
    } else {
        shared.unproven.enter_from(Source::of(peer.ip()))
    };
    let Some(place) = place else {
        return tracing::debug!(%peer, "refused a WebSocket: too many of this source have proved nothing yet");
    };
    let accepted = tokio::select! {
        accepted = timeout_at(until, upgrade::accept(&mut stream, peer, &shared.rules)) => accepted,
        () = place.lost() => {
            return tracing::debug!(%peer, "no WebSocket: too many of this source have proved nothing yet");
        }
    };
    let upgraded = match accepted {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "no WebSocket"),
        Err(_) => return tracing::debug!(%peer, "no WebSocket: the request took too long"),
    };
    let client = upgraded.forwarded_for.unwrap_or_else(|| peer.ip());
    if proxied && !place.name(Source::of(client)) {
        return tracing::debug!(%client, "refused a WebSocket: too many of this source have proved nothing yet");
    }
    let Some(link) = shared.engine.borrow_mut().open_link() else {
        return tracing::debug!(%client, "refused a WebSocket: there are as many as there may be");
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        // Each message is written at once.
        .write_buffer_size(0)
        .max_message_size(Some(MAX_MESSAGE_LEN))
        .max_frame_size(Some(MAX_MESSAGE_LEN));
    let stream = Metered::new(stream, shared.budget.clone());
    let socket =
        WebSocketStream::from_partially_read(stream, upgraded.rest, Role::Server, Some(config)).await;
    let mut session = Session {
        shared: &shared,
        socket,
        link,
        place: Some(place),
        prove_until: until,
        heard: Instant::now(),
        timer: Box::pin(sleep_until(until)),
        writing: false,
    };
    let end = poll_fn(|context| session.poll(context)).await;
    tracing::debug!(%client, %link, ?end, "WebSocket ended");
    drop(session);
    shared.engine.borrow_mut().close_link(link, clock::now());
}

struct Session<'a> {
    shared: &'a Shared,
    socket: WebSocketStream<Metered<Box<dyn Connection>>>,
    link: Link,
    /// Held until the stream is proven.
    place: Option<Place>,
    prove_until: Instant,
    heard: Instant,
    timer: Pin<Box<Sleep>>,
    /// The last message is not written whole yet.
    writing: bool,
}

impl Session<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        if let Some(end) = self.read(context) {
            return Poll::Ready(end);
        }
        if let Some(end) = self.write(context) {
            return Poll::Ready(end);
        }
        if self.place.as_ref().is_some_and(|place| place.poll_lost(context).is_ready()) {
            return Poll::Ready(End::Crowded);
        }
        self.wait(context)
    }

    fn read(&mut self, context: &mut Context<'_>) -> Option<End> {
        for _ in 0..MESSAGES_PER_TURN {
            let message = match Pin::new(&mut self.socket).poll_next(context) {
                Poll::Ready(Some(Ok(message))) => message,
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(link = %self.link, %error, "WebSocket failed");
                    return Some(End::Closed);
                }
                Poll::Ready(None) => return Some(End::Closed),
                Poll::Pending => return None,
            };
            self.heard = Instant::now();
            self.socket.get_mut().message_ended();
            match message {
                Message::Binary(bytes) => {
                    if let Err(end) = self.take(&bytes) {
                        return Some(end);
                    }
                }
                // Pings are answered beneath.
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => return Some(End::Closed),
                Message::Text(_) | Message::Frame(_) => return Some(End::Protocol),
            }
        }
        // There may be more: after the others' turn.
        context.waker().wake_by_ref();
        None
    }

    fn take(&mut self, message: &Bytes) -> Result<(), End> {
        let now = clock::now();
        let mut engine = self.shared.engine.borrow_mut();
        let taken = engine.message(self.link, message, now);
        engine.settle(now);
        if self.place.is_some() && engine.is_proven(self.link) {
            self.place = None;
            self.socket.get_mut().prove();
            // From now on it is idleness that ends it.
            self.timer.as_mut().reset(self.heard + self.shared.limits.idle);
        }
        taken.map_err(|error| {
            tracing::debug!(link = %self.link, %error, "WebSocket speaks something else");
            End::Protocol
        })
    }

    fn write(&mut self, context: &mut Context<'_>) -> Option<End> {
        loop {
            // This also lets out what answers a ping.
            match Pin::new(&mut self.socket).poll_flush(context) {
                Poll::Ready(Ok(())) if self.writing => {
                    self.writing = false;
                    self.shared.engine.borrow_mut().written(self.link);
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Some(End::Closed),
                Poll::Pending => {
                    let cut = self.shared.engine.borrow_mut().wake_when_cut(self.link, context.waker());
                    return cut.then_some(End::Cut);
                }
            }
            let chunk = self.shared.engine.borrow_mut().next_chunk(self.link, context.waker());
            let message = match chunk {
                Chunk::Message(message) => message,
                Chunk::Nothing => return None,
                Chunk::Cut => return Some(End::Cut),
            };
            self.writing = true;
            if Pin::new(&mut self.socket).start_send(Message::Binary(message.into())).is_err() {
                return Some(End::Closed);
            }
        }
    }

    fn wait(&mut self, context: &mut Context<'_>) -> Poll<End> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let Limits { idle, .. } = self.shared.limits;
            let (until, end) = match self.place {
                Some(_) => (self.prove_until, End::Unproven),
                None => (self.heard + idle, End::Idle),
            };
            if until <= Instant::now() {
                return Poll::Ready(end);
            }
            self.timer.as_mut().reset(until);
        }
    }
}
