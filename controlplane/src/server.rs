//! The two listeners: TLS over TCP for nodes and for whoever has an API key, a unix socket for operators. Both serve gRPC and the same
//! methods as JSON; connections on which a WebSocket begins go to the relay.
//!
//! What a stranger can make us hold is bounded here: connections, handshakes, streams, headers, messages, and all bytes that he sends
//! before he has proved anything.

mod accept;
mod connection;
mod descriptors;
mod http;
mod local;
mod protocol;
mod records;
mod seats;
mod socket;
mod strangers;
mod turns;

use std::{future::Future, io, time::Duration};

use nix::sys::socket::Backlog;
use tokio::net::TcpListener;
use tonic::service::Routes;

pub use self::{
    accept::{Limits, NodeStream, WebSocket, WebSockets},
    connection::{Connection, Guarded},
    local::Caller,
    protocol::Rewound,
    socket::{AdminSocket, SocketError},
};
pub(crate) use self::{
    connection::Admission,
    descriptors::raise as raise_file_limit,
    protocol::{H2, HTTP_1_1},
    strangers::Source,
};
use crate::{metrics::Census, tls::Identity};

/// Connections of nodes that wait to be accepted: a burst of thousands of strangers shall not make honest machines ask twice, which
/// they would only after a second.
const BACKLOG: i32 = 4096;
/// Streams of one operator's connection at a time.
const MAX_STREAMS: u32 = 64;
/// Streams of one node's connection at a time: its map stream, and a few short calls beside it. HTTP/2 cannot raise the bound for
/// those who proved themselves, and they need no more.
const MAX_NODE_STREAMS: u32 = 8;
/// Requests that are answered at once on a connection on which nobody has proved anything; further ones are refused.
const MAX_STRANGER_REQUESTS: u32 = 4;
/// Bytes that a node's connection, or a stream of it, may send before they are read.
const NODE_WINDOW: u32 = 64 << 10;
/// Bytes of headers of one request. In memory short ones take four times as much.
const MAX_HEADERS: u32 = 8 << 10;
/// The largest message that is read of an operator, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The largest message that is read of a node, in bytes: four times the largest node record.
pub const MAX_NODE_MESSAGE: usize = 64 << 10;
/// The largest message that is read of somebody who has proved nothing, in bytes: what joins a network or begins a map stream has
/// less than two thousand.
pub const MAX_STRANGER_MESSAGE: usize = 8 << 10;
/// What a stranger's connection can make us hold on average when there are thousands, in bytes, besides 64 MiB for all of them: the
/// buffers of TLS and HTTP/2, and what is read of it ([`Limits::unproven_bytes`], [`Limits::unproven_share`]).
/// [`Limits::connections`] is the cap for their number.
pub const BYTES_PER_CONNECTION: usize = 48 << 10;
/// How often an idle connection is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How long it has for that.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that a request without a stream may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a client reset before they were looked at (CVE-2023-44487), or that were reset for what it did on them.
const MAX_RESETS: usize = 20;

/// Serves `routes` to nodes over TLS until `shutdown`, then lets requests end. Connections on which a WebSocket begins go to
/// `websockets`; without it their GET is answered as any other.
///
/// # Errors
/// None at the moment: what one connection does wrong ends that connection.
pub async fn serve_nodes(
    listener: TcpListener,
    identity: &Identity,
    limits: Limits,
    routes: Routes,
    websockets: Option<WebSockets>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    serve_nodes_counted(listener, identity, limits, routes, websockets, Census::default(), shutdown).await
}

/// The same, with its connections counted in `census`.
///
/// # Errors
/// As [`serve_nodes`].
pub async fn serve_nodes_counted(
    listener: TcpListener,
    identity: &Identity,
    limits: Limits,
    routes: Routes,
    websockets: Option<WebSockets>,
    census: Census,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    accept::serve(listener, identity.config(), limits, routes, websockets, census, shutdown).await;
    Ok(())
}

/// Serves `routes` to operators on `socket` until `shutdown`. Requests carry a [`Caller`] in their extensions.
///
/// # Errors
/// Only if the socket cannot be waited for.
pub async fn serve_operators(
    socket: AdminSocket,
    routes: Routes,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    local::serve(socket, routes, shutdown).await
}

/// Takes the TCP port, in any context: no runtime is needed. Falls back to IPv4 if all of IPv6 was asked for and the machine has
/// none.
///
/// # Errors
/// What the system says; see [`crate::StartError`] for the cures.
pub fn listen(address: std::net::SocketAddr) -> io::Result<std::net::TcpListener> {
    let bind = |address| {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        // Once more: the standard library is content with fewer connections that wait.
        nix::sys::socket::listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(listener)
    };
    match bind(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&error) => {
            bind((std::net::Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        result => result,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}
