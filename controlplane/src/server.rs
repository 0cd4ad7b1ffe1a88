//! The two listeners: TLS over TCP for nodes, a unix socket for operators. Both hand their connections to tonic, but those on which a
//! WebSocket begins to the relay.
//!
//! What a stranger can make us hold is bounded here: connections, handshakes, streams, headers and messages.

mod accept;
mod connection;
mod protocol;
mod socket;

use std::{future::Future, io, path::Path, time::Duration};

use tokio::net::TcpListener;
use tonic::{service::Routes, transport::Server};

pub use self::{
    accept::{Limits, WebSocket, WebSockets},
    connection::{Caller, Connection, Slotted},
    protocol::Rewound,
    socket::{AdminSocket, SocketError},
};
pub(crate) use self::{
    connection::{Admission, Source},
    protocol::HTTP_1_1,
};
use crate::tls::Identity;

/// Streams of one operator's connection at a time.
const MAX_STREAMS: u32 = 64;
/// Streams of one node's connection at a time: its map stream, and a few short calls beside it. HTTP/2 cannot raise the bound for
/// those who proved themselves, and they need no more.
const MAX_NODE_STREAMS: u32 = 8;
/// Bytes that a node's connection, or a stream of it, may send before they are read.
const NODE_WINDOW: u32 = 64 << 10;
/// Bytes of headers of one request.
const MAX_HEADERS: u32 = 16 << 10;
/// The largest message that is read of an operator, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The largest message that is read of a node, in bytes: four times the largest node record.
pub const MAX_NODE_MESSAGE: usize = 64 << 10;
/// What a stranger's connection can make us hold, in bytes: on each stream an unfinished message and headers, what the window lets
/// in, and the buffers of TLS and HTTP/2 (64 KiB each way). That is 768 KiB for a connection, and 24 MiB for a source: an
/// IPv4 address or an IPv6 /64 has [`Limits::unproven_per_source`] of them.
pub const BYTES_PER_CONNECTION: usize =
    MAX_NODE_STREAMS as usize * (MAX_NODE_MESSAGE + MAX_HEADERS as usize) + NODE_WINDOW as usize + (64 << 10);
/// How often an idle connection is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long it has for that.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a request without a stream may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a client reset before they were looked at (CVE-2023-44487).
const MAX_RESETS: usize = 20;

fn builder(streams: u32) -> Server {
    Server::builder()
        .max_concurrent_streams(streams)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
        .timeout(REQUEST_TIMEOUT)
}

/// Serves `routes` to nodes over TLS until `shutdown`, then lets requests end. Connections on which a WebSocket begins go to
/// `websockets`; without it they are refused.
///
/// # Errors
/// Only if the HTTP server cannot be set up: what one connection does wrong ends that connection.
pub async fn serve_nodes(
    listener: TcpListener,
    identity: &Identity,
    limits: Limits,
    routes: Routes,
    websockets: Option<WebSockets>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let config = if websockets.is_some() { identity.config_with_http1() } else { identity.config() };
    let connections = accept::accept_tls(listener, config, limits, websockets);
    builder(MAX_NODE_STREAMS)
        .initial_stream_window_size(NODE_WINDOW)
        .initial_connection_window_size(NODE_WINDOW)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shutdown)
        .await
        .map_err(io::Error::other)
}

/// Serves `routes` to operators on `socket` until `shutdown`. Requests carry a [`Caller`] in their extensions.
///
/// # Errors
/// Only if the HTTP server cannot be set up.
pub async fn serve_operators(
    socket: AdminSocket,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let connections = accept::accept_local(socket);
    builder(MAX_STREAMS)
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, shutdown)
        .await
        .map_err(io::Error::other)
}

/// Takes the TCP port. Falls back to IPv4 if all of IPv6 was asked for and the machine has none.
///
/// # Errors
/// What the system says; see [`crate::StartError`] for the cures.
pub async fn listen(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) => {
            TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Takes the unix socket at `path`; see [`AdminSocket::bind`].
///
/// # Errors
/// [`SocketError`].
pub fn listen_locally(path: &Path) -> Result<AdminSocket, SocketError> {
    AdminSocket::bind(path)
}
