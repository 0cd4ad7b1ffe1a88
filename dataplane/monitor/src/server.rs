//! The HTTP side: few routes, little read, everything bounded.

use std::{io, net::SocketAddr, sync::Arc};

use crate::Subject;

/// Why the address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {source}; choose another address for metrics, or false for none")]
pub struct BindError {
    /// What was asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// A listener that is bound and does not serve yet.
#[derive(Debug)]
pub struct Monitor {
    listener: std::net::TcpListener,
}

impl Monitor {
    /// Takes the address. Needs no runtime, so that it can be done before rights are given up.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bound = std::net::TcpListener::bind(address)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        bound.map(|listener| Self { listener }).map_err(|source| BindError { address, source })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `shutdown` ends.
    ///
    /// # Errors
    /// Only if the listener cannot be used at all.
    pub async fn serve(
        self,
        subject: Arc<dyn Subject>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let routes = axum::Router::new().with_state(subject);
        axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
    }
}
