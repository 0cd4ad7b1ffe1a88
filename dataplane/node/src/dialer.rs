//! Opens the streams that the tunnel asks for, and carries what goes through them.
//!
//! The tunnel knows a stream by its number, the list of [roads](crate::roads) knows what it takes to open it. Whether a stream
//! is of use is decided by the tunnel: here nobody is believed and nothing is retried.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ringmesh_proto::control::Reason;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};
use tracing::{debug, info};

use crate::{
    error::Failure,
    fallback::{
        DialOpen, Hub, LinkEnd, Opened,
        doors::{Doors, Visit},
        ssh,
        websocket::{self, Proxies},
    },
    links::LinkBook,
    roads::{Road, Roads},
    state::Identity,
};

/// Streams that are being opened at the same time; further ones wait.
const DIALLING_MAX: usize = 32;

/// What it takes to open streams.
#[derive(Debug)]
pub(crate) struct Dialer {
    hub: Hub,
    roads: Arc<Mutex<Roads>>,
    book: Arc<LinkBook>,
    proxies: Proxies,
    doors: Doors,
    /// What peers' own SSH endpoints know this node by.
    identity: Arc<Identity>,
    dialling: Semaphore,
}

impl Dialer {
    /// A dialer for one data plane.
    pub(crate) fn new(
        hub: Hub,
        roads: Arc<Mutex<Roads>>,
        book: Arc<LinkBook>,
        identity: Arc<Identity>,
    ) -> Self {
        let proxies = Proxies::from_env();
        Self {
            hub,
            roads,
            book,
            proxies,
            doors: Doors::default(),
            identity,
            dialling: Semaphore::new(DIALLING_MAX),
        }
    }

    /// Serves the tunnel until it is gone. Dropped, it takes every stream with it.
    pub(crate) async fn run(self, mut asks: mpsc::Receiver<DialOpen>) {
        let dialer = Arc::new(self);
        let mut streams = JoinSet::new();
        loop {
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => {
                        streams.spawn(Arc::clone(&dialer).serve(ask));
                    }
                    None => return,
                },
                Some(_) = streams.join_next() => {}
            }
        }
    }

    /// From the wish to the stream's end.
    async fn serve(self: Arc<Self>, ask: DialOpen) {
        let DialOpen { peer, candidate, .. } = ask;
        let (road, pools) = {
            let roads = self.roads.lock().unwrap_or_else(PoisonError::into_inner);
            (roads.find(peer, candidate).cloned(), roads.pools().to_vec())
        };
        let relay = matches!(road, Some(Road::WebSocket { .. }));
        let visit = Visit::new(&self.doors, &pools, peer, relay);
        let result = match &road {
            // The map has changed since the tunnel was told.
            None => Err(Failure::new(Reason::Unreachable, "the peer does not name this address any more")),
            Some(road) => self.open(road, &visit).await,
        };
        let (stream, road) = match (result, road) {
            (Ok(stream), Some(road)) => (stream, road),
            (Ok(_), None) => return,
            (Err(failure), road) => {
                let road = road.map(|road| road.to_string()).unwrap_or_default();
                debug!(%peer, road, %failure, "a stream cannot be opened");
                self.book.failed(peer, candidate, &failure.to_string());
                self.hub.failed(peer, candidate);
                return;
            }
        };
        let end = self.hub.open(ask);
        let link = end.link();
        info!(%peer, %link, "a stream is open");
        self.book.opened(link, peer, candidate, road.to_string());
        let ended = {
            let mut carry = pin!(stream.carry(&end));
            tokio::select! {
                ended = &mut carry => ended,
                () = end.proven() => {
                    if let Some(door) = visit.door().filter(|_| end.has_session()) {
                        self.doors.answered(door, Instant::now());
                    }
                    carry.await
                }
            }
        };
        self.book.failed(peer, candidate, &format!("the stream ended: {ended}"));
        self.book.ended(link);
    }

    async fn open(&self, road: &Road, visit: &Visit<'_>) -> Result<Stream, Failure> {
        let _turn = self.dialling.acquire().await;
        match road {
            Road::WebSocket { url } => {
                let socket = websocket::dial(&url.parse()?, &self.proxies, Some(visit)).await?;
                Ok(Stream::WebSocket(Box::new(socket)))
            }
            Road::Endpoint { address, host_key } => {
                let stream =
                    ssh::dial_endpoint(*address, host_key, self.identity.secret(), Some(visit)).await?;
                Ok(Stream::Ssh(Box::new(stream)))
            }
            Road::Server(road) => Ok(Stream::Ssh(Box::new(ssh::dial_road(road).await?))),
        }
    }
}

/// An open stream.
enum Stream {
    WebSocket(Box<websocket::RelaySocket>),
    Ssh(Box<ssh::SshStream>),
}

impl Stream {
    /// Carries datagrams both ways until it ends; gives why.
    async fn carry(self, end: &LinkEnd) -> String {
        match self {
            Self::WebSocket(socket) => websocket::pump(*socket, end, Opened::Here).await.to_string(),
            Self::Ssh(stream) => stream.pump(end).await.to_string(),
        }
    }
}
