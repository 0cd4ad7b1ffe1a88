//! WebSockets to relays: over TLS, through a proxy if the environment names one, and a pump for what they carry.
//!
//! TLS here only makes us look like every other client, and hides from the network in between what the relay is told. Who the
//! relay is, the session inside says, so its certificate is not judged.

mod proxy;
mod url;

use std::{io, sync::Arc, time::Duration};

use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use ringmesh_proto::control::Reason;
use ringmesh_relay::frame::{FrameError, MAX_MESSAGE_LEN, whole};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, Message, Utf8Bytes,
        client::ClientRequestBuilder,
        error::ProtocolError,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

pub(crate) use self::{proxy::Proxies, url::RelayUrl};
use super::{
    doors::Visit,
    link::{Allowance, Ended, Opened, QUIET, SIGN_OF_LIFE_AFTER, guard, in_time},
    queue::LinkEnd,
    tcp,
};
use crate::{control::tls, error::Failure};

/// The subprotocol of RFC 6455 §1.9 that relays speak.
pub(crate) const SUBPROTOCOL: &str = "ringmesh.relay.v1";
/// Time for everything from the name to the upgrade.
const DIAL: Duration = Duration::from_secs(5);
/// Time in which the other side may hear that we close.
const FAREWELL: Duration = Duration::from_millis(500);
/// What the WebSocket reads at a time.
const READ: usize = 64 * 1024;
/// What it holds until a batch is complete: two messages and their headers.
const WRITE: usize = 2 * MAX_MESSAGE_LEN + 64;

/// A WebSocket that a relay accepted.
pub(crate) type RelaySocket = WebSocketStream<TlsStream<TcpStream>>;

/// Opens a WebSocket to a relay; `visit` judges where to, unless the user named it.
///
/// # Errors
/// [`Reason::Unreachable`], with the step that failed and what the other side said.
pub(crate) async fn dial(
    url: &RelayUrl,
    proxies: &Proxies,
    visit: Option<&Visit<'_>>,
) -> Result<RelaySocket, Failure> {
    match timeout(DIAL, open(url, proxies, visit)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(why)) => Err(Failure::new(Reason::Unreachable, format!("relay {url}: {why}"))),
        Err(_) => Err(Failure::new(
            Reason::Unreachable,
            format!("relay {url}: no answer in {} s (a firewall?)", DIAL.as_secs()),
        )),
    }
}

async fn open(url: &RelayUrl, proxies: &Proxies, visit: Option<&Visit<'_>>) -> Result<RelaySocket, String> {
    let (host, port) = (url.host(), url.port());
    let tcp = match proxies.for_host(host)? {
        // The user named the proxy; what the proxy may reach is for its owner to say.
        Some(proxy) => {
            let door = visit.map(|visit| visit.to_host(host, port)).transpose();
            let door = door.map_err(|error| error.to_string())?;
            let tcp = proxy.connect(host, port).await?;
            if let (Some(visit), Some(door)) = (visit, door) {
                visit.entered(door);
            }
            tcp
        }
        None => tcp::connect(host, port, visit).await.map_err(|error| format!("TCP failed: {error}"))?,
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("`{host}` is no host name"))?;
    let config = tls::client_config(b"http/1.1").map_err(|failure| failure.to_string())?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| format!("TLS failed: {error}"))?;
    let request = ClientRequestBuilder::new(url.uri().clone()).with_sub_protocol(SUBPROTOCOL);
    let (socket, _) = client_async_with_config(request, stream, Some(config_of()))
        .await
        .map_err(|error| refusal(&error))?;
    Ok(socket)
}

/// No message is longer than the protocol's, and nothing is held back beyond a batch.
pub(super) fn config_of() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ)
        .write_buffer_size(WRITE)
        .max_write_buffer_size(4 * WRITE)
        .max_message_size(Some(MAX_MESSAGE_LEN))
        .max_frame_size(Some(MAX_MESSAGE_LEN))
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the others explain themselves")]
fn refusal(error: &tungstenite::Error) -> String {
    match error {
        tungstenite::Error::Http(answer) => {
            let status = answer.status();
            let hint = match status.as_u16() {
                404 => ": nothing takes WebSockets at this path (a base path?)",
                400 | 426 => ": a proxy in front that does not pass WebSockets on?",
                429 | 503 => ": it is full or busy",
                _ => "",
            };
            format!("it answers {status} instead of an upgrade{hint}")
        }
        tungstenite::Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => {
            format!("it takes WebSockets, but does not speak {SUBPROTOCOL}")
        }
        other => format!("the upgrade failed: {other}"),
    }
}

/// Carries frames both ways until the stream, the worker or a limit ends it.
pub(crate) async fn pump<S>(socket: WebSocketStream<S>, end: &LinkEnd, opened: Opened) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, stream) = socket.split();
    let both = async {
        tokio::select! {
            ended = read(stream, end, opened) => ended,
            ended = write(&mut sink, end) => ended,
        }
    };
    let ended = guard(end, opened, both).await;
    let code = match ended {
        Ended::Closed => CloseCode::Normal,
        Ended::Frame(_) | Ended::Flood | Ended::Unproven => CloseCode::Policy,
        Ended::Eof | Ended::Quiet | Ended::Stalled | Ended::Io(_) => CloseCode::Away,
    };
    let farewell = Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::from_static("") }));
    // Only a courtesy: the stream ends in any case.
    let _ = timeout(FAREWELL, sink.send(farewell)).await;
    ended
}

async fn read(
    mut stream: impl Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
    end: &LinkEnd,
    opened: Opened,
) -> Ended {
    let mut allowance = Allowance::new(opened);
    loop {
        let message = match timeout(QUIET, stream.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return ended(error),
            Ok(None) => return Ended::Eof,
            Err(_) => return Ended::Quiet,
        };
        // A ping or a pong is a sign of life, which is all that it is; it costs a stranger as much as a datagram.
        if let Err(ended) = allowance.spend(message.len().max(1), end) {
            return ended;
        }
        match message {
            Message::Binary(frames) => match whole(&frames) {
                Ok(all) if all == frames.len() && all > 0 => {
                    let mut buffer = end.buffer(all);
                    buffer.extend_from_slice(&frames);
                    end.deliver(buffer).await;
                }
                Ok(_) => return Ended::Frame(FrameError::Cut),
                Err(bad) => return Ended::Frame(bad),
            },
            Message::Text(_) => return Ended::Frame(FrameError::Cut),
            Message::Close(_) => return Ended::Eof,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

async fn write(sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin), end: &LinkEnd) -> Ended {
    let mut buffer = Vec::new();
    // Also while there is much to send: what comes back to a link that only sends is the answers to its pings.
    let mut pings = interval_at(Instant::now() + SIGN_OF_LIFE_AFTER, SIGN_OF_LIFE_AFTER);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let result = tokio::select! {
            biased;
            _ = pings.tick() => send(sink, Message::Ping(Default::default())).await,
            () = end.outgoing(&mut buffer) => write_frames(sink, &buffer).await,
        };
        if let Err(ended) = result {
            return ended;
        }
        buffer.clear();
    }
}

/// Sends whole frames as messages, each as long as a message may be.
async fn write_frames(
    sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    frames: &[u8],
) -> Result<(), Ended> {
    let mut rest = frames;
    while !rest.is_empty() {
        let most = rest.get(..MAX_MESSAGE_LEN).unwrap_or(rest);
        let (message, after) = rest.split_at(whole(most)?);
        if message.is_empty() {
            return Err(Ended::Frame(FrameError::Cut));
        }
        send(sink, Message::Binary(message.to_vec().into())).await?;
        rest = after;
    }
    Ok(())
}

async fn send(
    sink: &mut (impl Sink<Message, Error = tungstenite::Error> + Unpin),
    message: Message,
) -> Result<(), Ended> {
    in_time(async { sink.send(message).await.map_err(io::Error::other) }).await
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the others explain themselves")]
fn ended(error: tungstenite::Error) -> Ended {
    match error {
        tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ended::Eof,
        tungstenite::Error::Io(error) => Ended::Io(error),
        other => Ended::Io(io::Error::other(other)),
    }
}
