//! HTTP on one connection: HTTP/2 or HTTP/1.1 by hyper, with all that it would hold for a peer bounded.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, Request, Response, header};
use http_body::{Frame, SizeHint};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::Watcher,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Status, body::Body, codegen::Bytes, service::Routes};

use super::{
    KEEP_ALIVE, KEEP_ALIVE_TIMEOUT, MAX_HEADERS, MAX_NODE_STREAMS, MAX_RESETS, MAX_STRANGER_MESSAGE,
    MAX_STREAMS, NODE_WINDOW, connection::Connection, local::Caller, protocol::Protocol,
};
use crate::api::json;

/// Bytes that may wait in one stream for a peer that does not read, besides the message that did not fit any more.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes of an HTTP/1.1 connection that are read or written at once; the head of a request must fit.
const HTTP1_BUFFER: usize = MAX_HEADERS as usize;
/// Header fields of an HTTP/1.1 request.
const HTTP1_FIELDS: usize = 64;
/// How long the head of an HTTP/1.1 request may take, and how long a connection may be idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

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
            let mut kept = http::HeaderMap::with_capacity(KEPT.len());
            for name in KEPT {
                if let Some(value) = parts.headers.get(&name) {
                    kept.insert(name, value.clone());
                }
            }
            parts.headers = kept;
            parts.extensions.insert(connection.clone());
            let body = RemoteBody::new(body, connection.clone());
            let request = Request::from_parts(parts, Body::new(body));
            match connection.begin() {
                Some(_asking) => json::answer(request, routes).await,
                None => json::refuse(
                    &request,
                    Status::resource_exhausted(
                        "too many requests at once on a connection on which nothing was proved",
                    ),
                ),
            }
        }
    }
}

/// A request's body, of which little is read as long as nobody has proved anything on its connection.
#[derive(Debug)]
struct RemoteBody {
    body: Incoming,
    connection: Connection,
    /// Bytes so far.
    length: usize,
    /// The head of the first message of gRPC, as far as it came.
    head: Vec<u8>,
}

/// Bytes in front of a message of gRPC: whether it is compressed, and its length.
const HEAD: usize = 5;

impl RemoteBody {
    const fn new(body: Incoming, connection: Connection) -> Self {
        Self { body, connection, length: 0, head: Vec::new() }
    }

    /// Whether the body goes on being acceptable with `data`.
    fn check(&mut self, data: &Bytes) -> Result<(), Status> {
        if self.connection.is_proven() {
            return Ok(());
        }
        self.length = self.length.saturating_add(data.len());
        let wanted = HEAD.saturating_sub(self.head.len());
        self.head.extend(data.iter().take(wanted));
        // Of JSON the first bytes are no length, but are none that could be taken for one either: no text begins with a zero.
        let claimed = match *self.head.as_slice() {
            [0 | 1, a, b, c, d] => u32::from_be_bytes([a, b, c, d]) as usize,
            _ => 0,
        };
        if self.length.max(claimed) > MAX_STRANGER_MESSAGE.saturating_add(HEAD) {
            return Err(Status::out_of_range(format!(
                "a message of more than {MAX_STRANGER_MESSAGE} bytes from somebody who has not proved anything"
            )));
        }
        Ok(())
    }
}

impl http_body::Body for RemoteBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|error| Status::from_error(Box::new(error)))?;
            if let Some(data) = frame.data_ref() {
                self.check(data)?;
            }
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
