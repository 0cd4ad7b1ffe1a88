//! Dials of a whole dialer: who is dialled when, and what the tunnel hears of it.

use std::time::Duration;

use ringmesh_io::Waker;
use ringmesh_tunnel::{
    Carrier, LinkCandidate,
    key::{IdentitySecret, NodeId},
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    config::SshRoad,
    fallback::{Arrival, Links, links},
};

const PEER: NodeId = NodeId::from_bytes([1; 8]);

struct Scene {
    links: Links,
    asks: mpsc::Sender<DialOpen>,
    book: Arc<LinkBook>,
    candidates: BTreeMap<NodeId, Vec<LinkCandidate>>,
    _dialer: JoinSet<()>,
}

impl Scene {
    fn new(wanted: Vec<(NodeId, Road)>) -> Self {
        let (links, hub, _) = links(Waker::new().unwrap());
        let mut roads = Roads::default();
        let candidates = roads.replace(wanted, |_| false);
        let (book, identity) = (Arc::new(LinkBook::default()), Arc::new(Identity::generate()));
        let (asks, asked) = mpsc::channel(256);
        let mut tasks = JoinSet::new();
        tasks.spawn(Dialer::new(hub, Arc::new(Mutex::new(roads)), Arc::clone(&book), identity).run(asked));
        Self { links, asks, book, candidates, _dialer: tasks }
    }

    /// Asks for the candidate that is the `index`th of `peer`.
    async fn ask(&self, peer: NodeId, index: usize) {
        let LinkCandidate { number: candidate, carrier } = self.candidates[&peer][index];
        self.asks.send(DialOpen { peer, candidate, carrier }).await.unwrap();
    }

    /// Which dial failed next; nothing if none does in time.
    async fn failed(&mut self, limit: Duration) -> Option<(NodeId, u32)> {
        let until = Instant::now() + limit;
        while Instant::now() < until {
            match self.links.receive() {
                Some(Arrival::Failed { peer, candidate }) => return Some((peer, candidate)),
                Some(other) => panic!("{other:?}"),
                None => sleep(Duration::from_millis(2)).await,
            }
        }
        None
    }
}

/// Somebody who takes connections and says nothing.
async fn silent() -> (u16, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap().port(), listener)
}

async fn accepted(listener: &TcpListener, limit: Duration) -> Option<TcpStream> {
    timeout(limit, listener.accept()).await.ok().map(|accepted| accepted.unwrap().0)
}

fn server(port: u16, user: &str) -> Road {
    Road::Server(SshRoad {
        peer: "gate".to_owned(),
        host: format!("127.0.0.1:{port}").parse().unwrap(),
        user: user.to_owned(),
        key: Some("/nonexistent".into()),
        agent: None,
        host_key: Some(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ".to_owned(),
        ),
        known_hosts: None,
        socket: "/run/mesh/link.sock".into(),
    })
}

const SOON: Duration = Duration::from_secs(5);
const A_MOMENT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn an_answer_to_the_first_wish_answers_the_second_and_then_it_may_be_wished_again() {
    let (port, listener) = silent().await;
    let mut scene = Scene::new(vec![(PEER, server(port, "a"))]);
    for _ in 0..5 {
        scene.ask(PEER, 0).await;
    }
    let stream = accepted(&listener, SOON).await.unwrap();
    assert!(accepted(&listener, A_MOMENT).await.is_none(), "it was dialled twice");
    drop(stream);
    let number = scene.candidates[&PEER][0].number;
    assert_eq!(scene.failed(SOON).await, Some((PEER, number)));
    scene.ask(PEER, 0).await;
    accepted(&listener, SOON).await.expect("asked for again as soon as the answer was there");
    assert_eq!(scene.failed(SOON).await, Some((PEER, number)));
    assert_eq!(scene.failed(A_MOMENT).await, None, "each wish that was dialled has one answer");
}

#[tokio::test]
async fn two_dead_addresses_of_a_peer_hold_up_its_third_and_nobody_else() {
    let (port, listener) = silent().await;
    let other = NodeId::from_bytes([2; 8]);
    let roads = ["a", "b", "c"].map(|user| (PEER, server(port, user)));
    let mut scene = Scene::new(roads.into_iter().chain([(other, server(port, "a"))]).collect());
    let begun = Instant::now();
    for index in 0..3 {
        scene.ask(PEER, index).await;
    }
    let (_one, _two) = (accepted(&listener, SOON).await.unwrap(), accepted(&listener, SOON).await.unwrap());
    assert!(accepted(&listener, A_MOMENT).await.is_none(), "a third of the same peer");
    scene.ask(other, 0).await;
    drop(accepted(&listener, SOON).await.expect("another peer's"));
    assert_eq!(scene.failed(SOON).await.unwrap().0, other);
    // The third is answered in the time that all have, though it was never its turn for long.
    for _ in 0..3 {
        assert_eq!(scene.failed(2 * ANSWER_AFTER).await.unwrap().0, PEER);
    }
    assert!(begun.elapsed() < ANSWER_AFTER + Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_member_cannot_send_its_peers_to_themselves() {
    let (port, listener) = silent().await;
    let host_key = IdentitySecret::from_seed([2; 32]).public_key();
    let address = ([127, 0, 0, 1], port).into();
    let url = format!("wss://127.1:{port}/relay/v1");
    let roads = vec![(PEER, Road::Endpoint { address, host_key }), (PEER, Road::WebSocket { url })];
    let mut scene = Scene::new(roads);
    for index in 0..2 {
        scene.ask(PEER, index).await;
        let (_, candidate) = scene.failed(SOON).await.unwrap();
        let why = scene.book.failure(PEER, candidate).unwrap();
        assert!(why.contains("no member may"), "{why}");
    }
    assert!(accepted(&listener, A_MOMENT).await.is_none());
}

#[tokio::test]
async fn a_newer_stream_of_a_candidate_ends_the_older_and_a_peer_has_few() {
    let link = |number| Link { number, carrier: Carrier::Ssh };
    let streams = Streams::default();
    let mut older = streams.register((PEER, 1), link(1));
    let mut newer = streams.register((PEER, 1), link(2));
    assert!(older.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    streams.forget((PEER, 1), link(1));
    assert!(
        newer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty),
        "it is not the older"
    );
    assert_eq!(streams.count(), 1);
    let kept: Vec<_> = (2..=9).map(|number| streams.register((PEER, number), link(number + 1))).collect();
    newer.await.expect_err("the oldest of nine");
    assert_eq!((streams.count(), kept.len()), (STREAMS_MAX_OF_ONE, 8));
    let _others = streams.register((NodeId::from_bytes([2; 8]), 1), link(100));
    assert_eq!(streams.count(), STREAMS_MAX_OF_ONE + 1);
    streams.forget((PEER, 9), link(10));
    assert_eq!(streams.count(), STREAMS_MAX_OF_ONE);
}
