//! The HTTP side: few routes, little read, everything bounded. A connection is answered once and closed.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::{Subject, answer, visitor};

/// How many connections there are at most. Who comes when there are as many makes the oldest one go, first of those that asked for
/// nothing yet, so that no one can keep the others out by holding theirs, or break off their answers.
pub const CONNECTIONS: usize = 64;
/// How long a request's head may take to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last, with the reading of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a request is read at most, in bytes; and how many headers. Prometheus sends half a kilobyte.
const HEAD_LIMIT: usize = 8192;
const HEADERS: usize = 64;
/// How long there is nothing accepted when the system has no descriptor left.
const EXHAUSTED: Duration = Duration::from_millis(100);

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

    /// Answers until `shutdown` ends. What is being answered then is cut.
    ///
    /// # Errors
    /// Only if the listener cannot be used at all.
    pub async fn serve(
        self,
        subject: Arc<dyn Subject>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        let routes = answer::routes(subject, visitor::is_loopback(listener.local_addr()?));
        let mut crowd = Crowd::default();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => crowd.admit(stream, routes.clone()),
                    Err(error) => {
                        tracing::debug!(%error, "a connection to the metrics was not accepted");
                        sleep(EXHAUSTED).await;
                    }
                },
                Some(_) = crowd.running.join_next() => {}
            }
        }
    }
}

/// The connections there are, oldest first.
#[derive(Debug, Default)]
struct Crowd {
    running: JoinSet<()>,
    order: VecDeque<Visit>,
}

#[derive(Debug)]
struct Visit {
    connection: AbortHandle,
    /// Whether a whole head has come.
    asked: Arc<AtomicBool>,
}

impl Crowd {
    fn admit(&mut self, stream: TcpStream, routes: Router) {
        self.order.retain(|visit| !visit.connection.is_finished());
        if self.order.len() >= CONNECTIONS {
            let silent = self.order.iter().position(|visit| !visit.asked.load(Ordering::Relaxed));
            if let Some(visit) = self.order.remove(silent.unwrap_or(0)) {
                visit.connection.abort();
            }
        }
        let asked = Arc::new(AtomicBool::new(false));
        let asks = Arc::clone(&asked);
        let connection = self.running.spawn(async move {
            // Broken off by either side: nobody is left to be told.
            let _ = timeout(CONNECTION_TIMEOUT, answer(stream, routes, &asks)).await;
        });
        self.order.push_back(Visit { connection, asked });
    }
}

async fn answer(stream: TcpStream, routes: Router, asked: &AtomicBool) -> hyper::Result<()> {
    let routes = TowerToHyperService::new(routes);
    let routes = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        routes.call(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .max_headers(HEADERS)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), routes)
        .await
}
