//! HTTP on one connection: HTTP/2 or HTTP/1.1 by hyper, with all that it would hold for a peer bounded.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Request, Response, header};
use http_body::{Body as _, Frame};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::Watcher,
};
use ringmesh_proto::access::{self, Access};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Status, body::Body, service::Routes};

use super::{
    KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, MAX_HEADERS, MAX_NODE_MESSAGE, MAX_NODE_STREAMS, MAX_RESETS,
    MAX_STRANGER_MESSAGE, MAX_STREAMS, NODE_WINDOW, connection::Connection, local::Caller,
    protocol::Protocol,
};
use crate::{
    api::{json, limit},
    error::Refused,
};

/// Bytes that may wait in one stream for a peer that does not read, besides the message that did not fit any more.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes of an HTTP/1.1 connection that are read or written at once; the head of a request must fit.
const HTTP1_BUFFER: usize = MAX_HEADERS as usize;
/// Header fields of an HTTP/1.1 request.
const HTTP1_FIELDS: usize = 64;
/// How long the head of an HTTP/1.1 request may take, and how long a connection may be idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the rest of a request may take that was answered before it was read.
const LINGER: Duration = Duration::from_millis(500);

/// What is kept of a request's header on the nodes' port; what strangers say beside it is forgotten before anything is waited for.
const KEPT: [HeaderName; 12] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TE,
    HeaderName::from_static("connect-protocol-version"),
    HeaderName::from_static("connect-timeout-ms"),
    HeaderName::from_static("connect-content-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(super) enum Visitor {
    /// Somebody who connected to the nodes' port.
    Remote(Connection),
    /// A program of this machine.
    Local(Caller),
}

/// Serves `routes` on `stream` until the peer goes, or everything is shut down and its requests are answered.
pub(super) async fn serve<S>(
    stream: S,
    protocol: Protocol,
    visitor: Visitor,
    routes: Routes,
    watcher: Watcher,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let remote = matches!(visitor, Visitor::Remote(_));
    let service = service_fn(move |request: Request<Incoming>| {
        let (visitor, routes) = (visitor.clone(), routes.clone());
        async move { Ok::<_, Infallible>(answer(request, visitor, routes).await) }
    });
    let stream = TokioIo::new(stream);
    let ended = match protocol {
        Protocol::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(if remote { MAX_NODE_STREAMS } else { MAX_STREAMS })
                .max_header_list_size(MAX_HEADERS)
                .max_pending_accept_reset_streams(MAX_RESETS)
                .max_local_error_reset_streams(MAX_RESETS)
                .max_send_buf_size(SEND_BUFFER)
                .keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
            if remote {
                builder.initial_stream_window_size(NODE_WINDOW).initial_connection_window_size(NODE_WINDOW);
            }
            watcher.watch(builder.serve_connection(stream, service)).await
        }
        Protocol::Http1 | Protocol::WebSocket => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HTTP1_BUFFER)
                .max_headers(HTTP1_FIELDS);
            watcher.watch(builder.serve_connection(stream, service)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Answers one request.
async fn answer(mut request: Request<Incoming>, visitor: Visitor, routes: Routes) -> Response<Body> {
    match visitor {
        Visitor::Local(caller) => {
            request.extensions_mut().insert(caller);
            json::answer(request.map(Body::new), routes).await
        }
        Visitor::Remote(connection) => {
            let (mut parts, body) = request.into_parts();
            let mut kept = HeaderMap::with_capacity(KEPT.len());
            for name in KEPT {
                // All of them: whoever looks at them has to see that there are two.
                for value in parts.headers.get_all(&name) {
                    kept.append(name.clone(), value.clone());
                }
            }
            parts.headers = kept;
            parts.extensions.insert(connection.clone());
            let Some(asking) = connection.begin() else {
                return json::refuse(
                    &parts,
                    Status::resource_exhausted(
                        "too many requests at once on a connection on which nothing was proved",
                    ),
                );
            };
            let mut body = RemoteBody::new(body, connection);
            // Without it somebody who sends half a message would hold all that handles a whole one.
            if is_for_anybody(parts.uri.path())
                && let Err(refused) = body.wait(&parts.headers).await
            {
                return json::refuse(&parts, refused);
            }
            let answer = Box::pin(json::answer(Request::from_parts(parts, Body::new(body)), routes)).await;
            drop(asking);
            answer
        }
    }
}

/// Whether a method is for those who prove themselves in its message, or not at all. The guard looks at the others before anything
/// of them is read.
fn is_for_anybody(path: &str) -> bool {
    match access::of(path) {
        Some(Access::Anybody | Access::Node) => true,
        Some(Access::ReadOnly | Access::Operator | Access::Unspecified) => false,
        None => path.starts_with("/grpc.health.v1.Health/"),
    }
}

/// A request's body, of which little is read as long as nobody has proved anything on its connection.
#[derive(Debug)]
struct RemoteBody {
    /// There until it is dropped.
    body: Option<Incoming>,
    connection: Connection,
    /// Bytes that were read already, and are read again.
    read: BytesMut,
    /// Whether there is nothing after them.
    ended: bool,
    /// Bytes so far.
    length: usize,
}

/// Bytes in front of a message of gRPC: whether it is compressed, and its length.
const HEAD: usize = 5;
/// Bytes of JSON that are waited for: the largest message of a node, which base64 makes longer by a third.
const MAX_WAITED_JSON: usize = 2 * MAX_NODE_MESSAGE;

impl RemoteBody {
    fn new(body: Incoming, connection: Connection) -> Self {
        Self { body: Some(body), connection, read: BytesMut::new(), ended: false, length: 0 }
    }

    /// Waits until the first message of gRPC is there, or else the whole body. It is held here meanwhile, so it is bounded whatever was
    /// proved on the connection.
    async fn wait(&mut self, headers: &HeaderMap) -> Result<(), Status> {
        let grpc = json::is_grpc(headers);
        let whole = async {
            while !(self.ended || grpc && self.has_message()?) {
                match std::future::poll_fn(|cx| self.poll_more(cx)).await {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if !grpc && self.read.len().saturating_add(data.len()) > MAX_WAITED_JSON => {
                            return Err(too_long(MAX_WAITED_JSON));
                        }
                        Ok(data) => self.read.extend_from_slice(&data),
                        // Trailers, which no request of ours has.
                        Err(_) => self.ended = true,
                    },
                    Some(Err(error)) => return Err(error),
                    None => self.ended = true,
                }
            }
            Ok(())
        };
        match tokio::time::timeout(limit(headers), whole).await {
            Ok(result) => result,
            Err(_) => Err(Refused::TooLong.into()),
        }
    }

    /// Whether a whole message was read. Refuses one that says to be too long as soon as it says so.
    fn has_message(&self) -> Result<bool, Status> {
        let Some([_, a, b, c, d]) = self.read.first_chunk::<HEAD>() else { return Ok(false) };
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        self.check(length)?;
        if length > MAX_NODE_MESSAGE {
            return Err(too_long(MAX_NODE_MESSAGE));
        }
        Ok(self.read.len() >= length.saturating_add(HEAD))
    }

    fn check(&self, length: usize) -> Result<(), Status> {
        if length > MAX_STRANGER_MESSAGE && !self.connection.is_proven() {
            return Err(Status::out_of_range(format!(
                "a message of more than {MAX_STRANGER_MESSAGE} bytes from somebody who has not proved anything"
            )));
        }
        Ok(())
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|error| Status::from_error(Box::new(error)))?;
            if let Some(data) = frame.data_ref() {
                self.length = self.length.saturating_add(data.len());
                self.check(self.length.saturating_sub(HEAD))?;
            }
            Ok(frame)
        }))
    }
}

fn too_long(most: usize) -> Status {
    Status::out_of_range(format!("a message of more than {most} bytes, which no node sends"))
}

impl http_body::Body for RemoteBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.read).freeze()))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.poll_more(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && (self.ended || self.body.as_ref().is_none_or(Incoming::is_end_stream))
    }
}

impl Drop for RemoteBody {
    /// Lets the rest of a body that nobody read come, if it is little and comes soon: clients that are cut short while they send do
    /// not look at the answer.
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !self.ended && !body.is_end_stream()) else {
            return;
        };
        let rest = async move {
            let mut length = 0_usize;
            while length < MAX_STRANGER_MESSAGE
                && let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
            {
                length = length.saturating_add(frame.data_ref().map_or(1, Bytes::len));
            }
        };
        tokio::spawn(tokio::time::timeout(LINGER, rest));
    }
}
