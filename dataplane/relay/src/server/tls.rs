//! A TLS listener for a relay that runs alone, with nobody else on its port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Handle;
use super::source::{Source, Unproven};

/// What strangers may hold before their TLS handshake is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsLimits {
    /// Handshakes under way. For one more, the oldest of whoever has most of them is ended.
    pub handshakes: usize,
    /// Those of one IPv4 address or IPv6 /64.
    pub per_source: usize,
    /// The longest handshake.
    pub timeout: Duration,
}

impl Default for TlsLimits {
    fn default() -> Self {
        Self { handshakes: 256, per_source: 16, timeout: Duration::from_secs(5) }
    }
}

/// How long the loop rests when the system has no file descriptor to give.
const REST: Duration = Duration::from_millis(50);
/// Bytes that may wait in the kernel for a slow reader, besides what waits in the relay.
const SEND_BUFFER: usize = 256 << 10;

impl Handle {
    /// Accepts connections, does their TLS handshakes on this runtime, and offers them to the server as WebSockets. Runs until
    /// it is dropped. `tls` should offer no protocol but `http/1.1`.
    pub async fn serve_tls(&self, listener: TcpListener, tls: Arc<ServerConfig>, limits: TlsLimits) {
        let acceptor = TlsAcceptor::from(tls);
        let strangers = Unproven::new(limits.handshakes, limits.per_source);
        // Dropped, and with it every handshake under way, when this is.
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        rest(&error).await;
                        continue;
                    }
                },
                Some(_) = tasks.join_next() => continue,
            };
            let Some(place) = strangers.enter_from(Source::of(peer.ip())) else {
                tracing::debug!(%peer, "refused a connection: too many of this source are not done yet");
                continue;
            };
            let (handle, acceptor) = (self.clone(), acceptor.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = handle.handshake(&acceptor, stream, peer, limits.timeout) => {}
                    () = place.lost() => tracing::debug!(%peer, "ended a TLS handshake for another one"),
                }
            });
        }
    }

    async fn handshake(
        &self,
        acceptor: &TlsAcceptor,
        stream: TcpStream,
        peer: SocketAddr,
        timeout: Duration,
    ) {
        let tuned = stream
            .set_nodelay(true)
            .and_then(|()| socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER));
        if let Err(error) = tuned {
            tracing::debug!(%peer, %error, "cannot tune a connection");
        }
        match tokio::time::timeout(timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                if let Err(refused) = self.offer_websocket(stream, peer) {
                    tracing::debug!(%peer, %refused, "closed a connection");
                }
            }
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }
}

/// One connection's fault is no reason to wait; a lack of descriptors or memory is, as the next call would fail as well.
async fn rest(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        tracing::warn!(event = "accept_failed", %error, "cannot accept connections at the moment");
        tokio::time::sleep(REST).await;
    }
}
