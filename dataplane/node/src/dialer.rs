//! Opens the streams that the tunnel asks for, and carries what goes through them.
//!
//! The tunnel knows a stream by its number, the list of [roads](crate::roads) knows what it takes to open it. Whether a stream
//! is of use is decided by the tunnel: here nobody is believed and nothing is retried.

mod board;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::Link;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info};

use self::board::{ANSWER_AFTER, Ask, Board, Key, Next, Taken};
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

/// Streams of members that are open at the same time, besides those being opened; relays and configured roads have no part in it.
const STREAMS_MAX: usize = 1024;
/// Streams of one peer: as many as the tunnel keeps.
const STREAMS_MAX_OF_ONE: usize = 8;

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
    board: Mutex<Board>,
    /// A dial is over: there is room for another.
    room: Notify,
    streams: Streams,
}

impl Dialer {
    /// A dialer for one data plane.
    pub(crate) fn new(
        hub: Hub,
        roads: Arc<Mutex<Roads>>,
        book: Arc<LinkBook>,
        identity: Arc<Identity>,
    ) -> Self {
        Self {
            hub,
            roads,
            book,
            proxies: Proxies::from_env(),
            doors: Doors::default(),
            identity,
            board: Mutex::default(),
            room: Notify::new(),
            streams: Streams::default(),
        }
    }

    /// Serves the tunnel until it is gone. Dropped, it takes every stream with it.
    pub(crate) async fn run(self, mut asks: mpsc::Receiver<DialOpen>) {
        let dialer = Arc::new(self);
        // Bounded by the places of the board and by the streams that may be open.
        let mut tasks = JoinSet::new();
        loop {
            while let Some(next) = dialer.next() {
                match next {
                    Next::Dial(ask) => {
                        let turn =
                            Turn { dialer: Arc::clone(&dialer), key: (ask.open.peer, ask.open.candidate) };
                        tasks.spawn(Arc::clone(&dialer).serve(ask, turn));
                    }
                    Next::Late(ask) => {
                        dialer.fail(
                            ask.open,
                            "too many others are being dialled; its turn did not come in time",
                        );
                    }
                }
            }
            let late = dialer.board().deadline();
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(open) => dialer.take(open),
                    None => return,
                },
                Some(_) = tasks.join_next() => {}
                () = dialer.room.notified() => {}
                () = sleep_until(late.unwrap_or_else(std::time::Instant::now).into()), if late.is_some() => {}
            }
        }
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roads(&self) -> MutexGuard<'_, Roads> {
        self.roads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Next> {
        self.board().next(Instant::now().into_std())
    }

    /// Puts a wish of the tunnel where it waits for its turn.
    fn take(&self, open: DialOpen) {
        let favoured = self.roads().find(open.peer, open.candidate).is_some_and(Road::is_favoured);
        let ask = Ask { open, favoured, since: Instant::now().into_std() };
        let taken = self.board().ask(ask);
        match taken {
            Taken::Waits | Taken::Twin => {}
            Taken::Full => self.fail(open, "too many others wait to be dialled"),
        }
    }

    fn fail(&self, open: DialOpen, why: &str) {
        let DialOpen { peer, candidate, .. } = open;
        debug!(%peer, candidate, why, "a stream cannot be opened");
        self.book.failed(peer, candidate, why);
        self.hub.failed(peer, candidate);
    }

    /// From the turn to the stream's end.
    async fn serve(self: Arc<Self>, ask: Ask, turn: Turn) {
        let DialOpen { peer, candidate, .. } = ask.open;
        let (road, pools) = {
            let roads = self.roads();
            (roads.find(peer, candidate).cloned(), roads.pools().to_vec())
        };
        // The map may have changed since the tunnel was told.
        let Some(road) = road else {
            drop(turn);
            return self.fail(ask.open, "the peer does not name this address any more");
        };
        let relay = matches!(road, Road::WebSocket { .. });
        let visit = Visit::new(&self.doors, &pools, peer, relay);
        let result = match timeout_at(ask.due().into(), self.open(&road, &visit)).await {
            Ok(result) => result.map_err(|failure| failure.to_string()),
            Err(_) => Err(format!("{road}: no answer in {} s (a firewall?)", ANSWER_AFTER.as_secs())),
        };
        // Before the answer: the tunnel may ask for the same again as soon as it hears it.
        drop(turn);
        let stream = match result {
            Ok(stream) => stream,
            Err(why) => return self.fail(ask.open, &why),
        };
        let end = self.hub.open(ask.open);
        let link = end.link();
        info!(event = "stream_opened", %peer, %link, "a stream is open");
        self.book.opened(link, peer, candidate, road.to_string());
        let ousted = self.streams.register((peer, candidate), link);
        let ended = tokio::select! {
            ended = self.carry(stream, &end, &visit) => ended,
            _ = ousted => "a newer stream took its place".to_owned(),
        };
        self.streams.forget((peer, candidate), link);
        self.book.failed(peer, candidate, &format!("the stream ended: {ended}"));
        self.book.ended(link);
    }

    async fn open(&self, road: &Road, visit: &Visit<'_>) -> Result<Stream, Failure> {
        if !road.is_favoured() && self.streams.count() >= STREAMS_MAX {
            return Err(Failure::new(Reason::Unreachable, format!("{STREAMS_MAX} streams are open already")));
        }
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

    /// Carries datagrams until the stream ends, and remembers where a session began; gives why it ended.
    async fn carry(&self, stream: Stream, end: &LinkEnd, visit: &Visit<'_>) -> String {
        let mut carry = pin!(stream.carry(end));
        tokio::select! {
            ended = &mut carry => return ended,
            () = end.proven() => {}
        }
        if let Some(door) = visit.door().filter(|_| end.has_session()) {
            self.doors.answered(door, Instant::now().into_std());
        }
        carry.await
    }
}

/// A place among the dials under way, until it is dropped.
#[derive(Debug)]
struct Turn {
    dialer: Arc<Dialer>,
    key: Key,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.dialer.board().done(self.key);
        self.dialer.room.notify_one();
    }
}

/// The streams that were dialled and are open. None is forgotten: the one that a newer one replaces ends.
#[derive(Debug, Default)]
struct Streams {
    open: Mutex<BTreeMap<Key, (Link, oneshot::Sender<()>)>>,
}

impl Streams {
    fn open(&self) -> MutexGuard<'_, BTreeMap<Key, (Link, oneshot::Sender<()>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> usize {
        self.open().len()
    }

    /// Ends the stream that the candidate had, and the peer's oldest if it has too many; resolves when this one is to end.
    fn register(&self, key: Key, link: Link) -> oneshot::Receiver<()> {
        let (ends, ousted) = oneshot::channel();
        let mut open = self.open();
        // Dropping the sender is what ends it.
        open.insert(key, (link, ends));
        let of_peer = || open.range((key.0, 0)..=(key.0, u32::MAX));
        if of_peer().count() > STREAMS_MAX_OF_ONE {
            let oldest = of_peer().min_by_key(|(_, (link, _))| link.number).map(|(key, _)| *key);
            oldest.map(|oldest| open.remove(&oldest));
        }
        ousted
    }

    /// A stream has ended.
    fn forget(&self, key: Key, link: Link) {
        let mut open = self.open();
        if open.get(&key).is_some_and(|(newest, _)| *newest == link) {
            open.remove(&key);
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

#[cfg(test)]
mod tests;
