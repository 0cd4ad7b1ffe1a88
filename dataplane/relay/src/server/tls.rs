//! A TLS listener for a relay that runs alone, with nobody else on its port.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::Handle;
use super::source::Source;

/// What strangers may hold before their TLS handshake is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsLimits {
    /// Handshakes under way.
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

/// Handshakes under way, by source.
type Sources = Arc<Mutex<HashMap<Source, usize>>>;

struct Place {
    sources: Sources,
    source: Source,
}

impl Place {
    fn take(sources: &Sources, source: Source, most: usize) -> Option<Self> {
        let mut counts = sources.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&source).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        counts.insert(source, count + 1);
        Some(Self { sources: sources.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.source);
            }
        }
    }
}

impl Handle {
    /// Accepts connections, does their TLS handshakes on this runtime, and offers them to the server as WebSockets. Runs until
    /// it is dropped. `tls` should offer no protocol but `http/1.1`.
    pub async fn serve_tls(&self, listener: TcpListener, tls: Arc<ServerConfig>, limits: TlsLimits) {
        let acceptor = TlsAcceptor::from(tls);
        let slots = Arc::new(Semaphore::new(limits.handshakes));
        let sources = Sources::default();
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
            let slot = slots.clone().try_acquire_owned();
            let place = Place::take(&sources, Source::of(peer.ip()), limits.per_source);
            let (Ok(slot), Some(place)) = (slot, place) else {
                tracing::debug!(%peer, "refused a connection above the bounds");
                continue;
            };
            let (handle, acceptor) = (self.clone(), acceptor.clone());
            tasks.spawn(async move {
                handle.handshake(&acceptor, stream, peer, limits.timeout).await;
                drop((slot, place));
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
        tracing::warn!(%error, "cannot accept connections at the moment");
        tokio::time::sleep(REST).await;
    }
}
