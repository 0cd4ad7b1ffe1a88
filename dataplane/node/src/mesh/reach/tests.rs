//! What people read of paths.

use ringmesh_tunnel::{
    Carrier, Channel, Link, LinkCandidate, Origin,
    key::{IdentitySecret, NetworkId, PublicKey},
    time::UnixTime,
};

use super::*;
use crate::roads::Road;

const PEER: NodeId = NodeId::from_bytes([1; 8]);
const RELAY: NodeId = NodeId::from_bytes([9; 8]);
const LINK: Link = Link { number: 5, carrier: Carrier::WebSocket };

fn udp(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn channel() -> Path {
    Path::Relay(Channel { relay: RELAY, number: 3 })
}

fn status(id: NodeId, state: PeerState, endpoint: Option<Path>) -> PeerStatus {
    PeerStatus {
        id,
        key: PublicKey::from_bytes([1; 32]),
        mesh: true,
        state,
        relay: id == RELAY,
        endpoint,
        hop: None,
        paths: Vec::new(),
        last_handshake: None,
        last_received: None,
        sent_bytes: 0,
        received_bytes: 0,
        rtt: None,
        held_packets: 0,
    }
}

fn path(candidate: Candidate, now: Instant) -> PathStatus {
    PathStatus {
        candidate,
        origin: Origin::Map,
        state: PathState::Dead,
        selected: false,
        link: None,
        rtt: None,
        loss: None,
        mtu: 1408,
        last_heard: None,
        failure: Some(PathFailure::NoAnswer),
        next_try: Some(now + Duration::from_millis(2500)),
    }
}

fn member(id: NodeId, name: &str) -> Member {
    let identity = IdentitySecret::generate().public_key();
    Member {
        network: NetworkId::from_bytes([3; 16]),
        id,
        name: name.to_owned(),
        kind: MemberKind::Mesh,
        relay: id == RELAY,
        noise_key: identity.noise_key(),
        identity_key: Some(identity),
        ipv4: None,
        ipv6: "fd00::1".parse().unwrap(),
        tags: Vec::new(),
        groups: Vec::new(),
        routes: Vec::new(),
        serial: 1,
        not_after: UnixTime::from_secs(1),
    }
}

/// What is shown of one peer and of a relay.
struct Scene {
    roads: Roads,
    book: LinkBook,
    peer: PeerStatus,
    relay: PeerStatus,
    now: Instant,
}

impl Scene {
    fn new(endpoint: Path) -> Self {
        Self {
            roads: Roads::default(),
            book: LinkBook::default(),
            peer: status(PEER, PeerState::Established, Some(endpoint)),
            relay: status(RELAY, PeerState::Established, Some(Path::Udp(udp("198.51.100.9:51820")))),
            now: Instant::now(),
        }
    }

    fn over_websocket(mut self) -> Self {
        self.relay.endpoint = Some(Path::Link(LINK));
        self.book.opened(LINK, RELAY, 1, "wss://relay.example/relay/v1".to_owned());
        self
    }

    fn view(&self) -> View<'_> {
        View {
            names: BTreeMap::from([(RELAY, "head")]),
            roads: &self.roads,
            book: &self.book,
            peers: BTreeMap::from([(PEER, &self.peer), (RELAY, &self.relay)]),
            seen: BTreeMap::from([(RELAY, udp("203.0.113.5:4444"))]),
            now: self.now,
        }
    }

    fn verdict(&self) -> String {
        self.view().verdict(&member(PEER, "gate"))
    }
}

fn route(path: &str, via: &str, endpoint: &str) -> Route {
    Route { path: path.to_owned(), via: via.to_owned(), endpoint: endpoint.to_owned(), loss_percent: None }
}

#[test]
fn every_kind_of_path_has_its_word_its_relay_and_its_way_out() {
    let ssh = Link { number: 8, carrier: Carrier::Ssh };
    let scene = Scene::new(channel());
    scene.book.opened(ssh, PEER, 2, "mesh@gate.example:22".to_owned());
    let view = scene.view();
    assert_eq!(view.route_of(Path::Udp(udp("192.0.2.1:7"))), route("direct", "", "192.0.2.1:7"));
    assert_eq!(view.route_of(Path::Link(ssh)), route("ssh", "", "mesh@gate.example:22"));
    assert_eq!(view.route_of(channel()), route("relay", "head", "198.51.100.9:51820"));
    let scene = Scene::new(channel()).over_websocket();
    let expected = route("websocket", "head", "wss://relay.example/relay/v1");
    assert_eq!(scene.view().route_of(channel()), expected);
    let incoming = Link { number: 77, carrier: Carrier::Ssh };
    assert_eq!(scene.view().route_of(Path::Link(incoming)).endpoint, "incoming ssh link");
}

#[test]
fn the_path_in_use_tells_its_loss_and_round_trip() {
    let mut scene = Scene::new(Path::Udp(udp("192.0.2.1:7")));
    scene.peer.rtt = Some(Duration::from_millis(9));
    assert_eq!(rtt_of(&scene.peer), Some(Duration::from_millis(9)), "a ping's, until there are probes");
    let used = PathStatus {
        selected: true,
        rtt: Some(Duration::from_millis(4)),
        loss: Some(12),
        ..path(Candidate::Udp(udp("192.0.2.1:7")), scene.now)
    };
    scene.peer.paths = vec![path(Candidate::Relay(RELAY), scene.now), used];
    assert_eq!(rtt_of(&scene.peer), Some(Duration::from_millis(4)));
    assert_eq!(scene.view().route(&scene.peer).loss_percent, Some(12));
}

#[test]
fn a_relay_is_told_with_its_state_and_what_it_sees() {
    let mut scene = Scene::new(channel());
    let relay = member(RELAY, "head");
    let told = scene.view().relay(&relay);
    assert_eq!((told.state.as_str(), told.path.as_str()), ("connected", "direct"));
    assert_eq!((told.endpoint.as_str(), told.seen_as.as_str()), ("198.51.100.9:51820", "203.0.113.5:4444"));
    scene = scene.over_websocket();
    assert_eq!(scene.view().relay(&relay).path, "websocket");
    for (state, word) in [(PeerState::Handshaking, "connecting"), (PeerState::Idle, "unreachable")] {
        scene.relay.state = state;
        let told = scene.view().relay(&relay);
        assert_eq!((told.state.as_str(), told.path.as_str(), told.endpoint.as_str()), (word, "", ""));
    }
}

#[test]
fn candidates_are_reported_with_the_words_of_whoever_failed() {
    let mut scene = Scene::new(channel());
    let url = "wss://relay.example/relay/v1".to_owned();
    let links = scene.roads.replace([(PEER, Road::WebSocket { url })], |_| false);
    let LinkCandidate { number, carrier } = links[&PEER][0];
    scene.book.failed(PEER, number, "TCP failed: connection refused");
    let closed = PathStatus {
        failure: Some(PathFailure::LinkRefused),
        state: PathState::Closed,
        next_try: None,
        ..path(Candidate::Link(LinkCandidate { number, carrier }), scene.now)
    };
    let relayed =
        PathStatus { failure: Some(PathFailure::PeerNotAtRelay), ..path(Candidate::Relay(RELAY), scene.now) };
    scene.peer.paths = vec![path(Candidate::Udp(udp("192.0.2.1:7")), scene.now), relayed, closed];
    let reports = scene.view().reports(&scene.peer);
    let brief: Vec<_> = reports
        .iter()
        .map(|report| {
            (report.kind.as_str(), report.address.as_str(), report.last_error.as_str(), report.next_try_ms)
        })
        .collect();
    assert_eq!(
        brief,
        [
            ("udp", "192.0.2.1:7", "no answer", Some(2500)),
            ("relay", "head", "the peer is not connected to the relay", Some(2500)),
            ("websocket", "wss://relay.example/relay/v1", "TCP failed: connection refused", None),
        ]
    );
}

#[test]
fn verdicts_say_what_stands_in_the_way() {
    let mut scene = Scene::new(Path::Udp(udp("192.0.2.1:7")));
    assert_eq!(scene.verdict(), "gate is reached directly over UDP at 192.0.2.1:7; there is no better path");

    scene.peer.endpoint = Some(channel());
    assert_eq!(
        scene.verdict(),
        "gate is reached over UDP through the relay head; no address of it for a direct path is known"
    );
    scene.peer.paths = vec![path(Candidate::Udp(udp("192.0.2.1:7")), scene.now)];
    assert_eq!(
        scene.verdict(),
        "gate is reached over UDP through the relay head; no direct path works: its address tried; 192.0.2.1:7: no answer, \
         tried again in 3 s"
    );
    scene = scene.over_websocket();
    assert!(scene.verdict().starts_with("gate is reached over a WebSocket to the relay head (wss://relay."));

    scene.peer.state = PeerState::Idle;
    scene.peer.endpoint = None;
    let text = scene.verdict();
    assert!(text.contains("not reached") && text.contains("udp 192.0.2.1:7: no answer"), "{text}");
    scene.peer.paths.clear();
    assert!(scene.verdict().contains("no address of it is known"), "{}", scene.verdict());
}
