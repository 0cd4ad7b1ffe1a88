//! A world: nodes, the network between them, and the clock that moves it all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NodeId, PresharedKey};
use ringmesh_tunnel::{Carrier, Dial, Event, Hop, LinkCandidate, Now, PeerConfig, PeerStatus, Psk, UnixTime};

use crate::agenda::Agenda;
use crate::fault::Fault;
use crate::ledger::Ledger;
use crate::liar::Lie;
use crate::network::{Datagram, Network, Place, Realm};
use crate::node::{Node, Output, secret};
use crate::rng::Rng;
use crate::streams::{Report, Streams};
use crate::trace::Trace;

/// Names a node of a world.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(u16);

impl fmt::Debug for NodeIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl NodeIndex {
    #[cfg(test)]
    pub(crate) const FIRST: Self = Self(0);
    #[cfg(test)]
    pub(crate) const SECOND: Self = Self(1);

    pub(crate) const fn numbered(number: usize) -> Self {
        Self(number as u16)
    }

    pub(crate) const fn number(self) -> usize {
        self.0 as usize
    }

    /// The node's name in the network map.
    #[must_use]
    pub const fn id(self) -> NodeId {
        NodeId::from_bytes((self.0 as u64 + 1).to_be_bytes())
    }

    pub(crate) fn from_id(id: NodeId) -> Option<Self> {
        let number = u64::from_be_bytes(*id.as_bytes()).checked_sub(1)?;
        u16::try_from(number).ok().map(Self)
    }

    /// The node's address inside the tunnel.
    #[must_use]
    pub const fn inner_address(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, self.0 + 1)
    }
}

/// The range of all inner addresses: no candidate lies in it.
pub(crate) fn pool() -> Prefix {
    let first = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
    Prefix::new(first.into(), 64).expect("invariant: it has no bits beyond its length")
}

/// When every world begins, by the wall clock.
const BIRTH: UnixTime = UnixTime::from_secs(1_800_000_000);
/// Events at one moment that are more than any honest run has: a node that answers itself forever is found by it.
const MAX_EVENTS_AT_ONCE: u32 = 100_000;
/// The number of the one WebSocket that a relay can be reached by, and of the one SSH stream to a peer.
const WEBSOCKET: u32 = 1;
const SSH: u32 = 2;
/// How long the coordinator takes to hear of an address, and as long again to tell others.
const REPORT_DELAY: Duration = Duration::from_millis(100);
/// How long a daemon takes to hear that its machine's addresses changed.
const NOTICE_DELAY: Duration = Duration::from_millis(50);

/// Something that the world does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Affair {
    /// A daemon hears that its machine has other addresses.
    NoticeMove(NodeIndex),
    /// A node's addresses reach the coordinator.
    Report(NodeIndex),
    /// The map reaches a node.
    Spread(NodeIndex),
}

/// What the coordinator knows, and who is in touch with it.
#[derive(Debug, Default)]
struct Coordinator {
    addresses: BTreeMap<NodeIndex, Vec<SocketAddr>>,
    away: BTreeSet<NodeIndex>,
    /// Whom each node may talk to.
    peers: BTreeMap<NodeIndex, Vec<NodeIndex>>,
}

/// Everything there is, from one seed.
#[derive(Debug)]
pub struct World {
    /// What is between the nodes.
    pub network: Network,
    /// The streams between them.
    pub streams: Streams,
    /// Every packet that was sent.
    pub ledger: Ledger,
    /// Dice for what a test does to the world, apart from the network's own.
    pub rng: Rng,
    nodes: Vec<Node>,
    agenda: Agenda<Affair>,
    entered: BTreeSet<Affair>,
    coordinator: Coordinator,
    /// Who can open an SSH stream to whom.
    ssh: BTreeSet<(NodeIndex, NodeIndex)>,
    trace: Trace,
    /// What virtual time is counted from. Its value never shows: instants cannot be made from nothing.
    start: Instant,
    elapsed: Duration,
}

// Building.
impl World {
    /// An empty world in fine weather.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            network: Network::new(Rng::new(rng.bits())),
            streams: Streams::new(Rng::new(rng.bits())),
            ledger: Ledger::default(),
            rng,
            nodes: Vec::new(),
            agenda: Agenda::default(),
            entered: BTreeSet::new(),
            coordinator: Coordinator::default(),
            ssh: BTreeSet::new(),
            trace: Trace::default(),
            start: Instant::now(),
            elapsed: Duration::ZERO,
        }
    }

    /// A world of `count` nodes on the internet, by IPv6 alone, that all know each other.
    #[must_use]
    pub fn mesh(seed: u64, count: u16) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..count {
            let place = world.network.fresh_place(Realm::INTERNET, false, true);
            world.add_node(place);
        }
        world.introduce_all();
        world
    }

    /// Adds a node that knows nobody yet.
    pub fn add_node(&mut self, place: Place) -> NodeIndex {
        self.add(place, false)
    }

    /// Adds a relay on the internet, reached by UDP over IPv4 and IPv6 and by WebSocket, that knows nobody yet.
    pub fn add_relay(&mut self) -> NodeIndex {
        let place = self.network.fresh_place(Realm::INTERNET, true, true);
        self.add(place, true)
    }

    fn add(&mut self, place: Place, relay: bool) -> NodeIndex {
        let index = NodeIndex::numbered(self.nodes.len());
        self.network.add_host(place);
        self.streams.start_process(index);
        let now = Now::new(self.start + self.elapsed, BIRTH.saturating_add(self.elapsed));
        let mut node = Node::new(index, relay, self.rng.bits(), now);
        node.set_own_candidates(place.addresses());
        self.nodes.push(node);
        index
    }

    /// Lets `from` open SSH streams to `to`, wherever the two are.
    pub fn add_ssh(&mut self, from: NodeIndex, to: NodeIndex) {
        self.ssh.insert((from, to));
    }

    /// Tells every node about every other, and where it is now. Relays are not told of each other.
    pub fn introduce_all(&mut self) {
        for node in self.indices() {
            let relay = self.node(node).is_relay();
            let meets = |peer: &NodeIndex| !(relay && self.node(*peer).is_relay());
            let peers: Vec<_> = self.indices().into_iter().filter(meets).collect();
            self.introduce(node, &peers);
        }
    }

    /// Tells one node which others it may talk to, itself aside, and where they are now.
    pub fn introduce(&mut self, node: NodeIndex, peers: &[NodeIndex]) {
        let peers: Vec<_> = peers.iter().copied().filter(|&peer| peer != node).collect();
        for &peer in &peers {
            self.report(peer);
        }
        self.coordinator.peers.insert(node, peers);
        self.spread(node);
    }
}

// Looking.
impl World {
    /// All nodes, relays included.
    #[must_use]
    pub fn indices(&self) -> Vec<NodeIndex> {
        (0..self.nodes.len()).map(NodeIndex::numbered).collect()
    }

    /// The relays.
    #[must_use]
    pub fn relays(&self) -> Vec<NodeIndex> {
        self.indices().into_iter().filter(|&node| self.node(node).is_relay()).collect()
    }

    /// A node, to look at.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> &Node {
        &self.nodes[index.number()]
    }

    /// A node, to do something to it.
    pub fn node_mut(&mut self, index: NodeIndex) -> &mut Node {
        &mut self.nodes[index.number()]
    }

    /// What a node's core says of a peer.
    #[must_use]
    pub fn peer(&self, node: NodeIndex, peer: NodeIndex) -> Option<PeerStatus> {
        self.node(node).peer(peer, self.now(node))
    }

    /// What a node's core says of all its peers.
    #[must_use]
    pub fn statuses(&self, node: NodeIndex) -> Vec<PeerStatus> {
        self.node(node).tunnel().map_or_else(Vec::new, |tunnel| tunnel.peers(self.now(node)).collect())
    }

    /// Time since the world began.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// Time since the world began, of an instant that a core reported.
    #[must_use]
    pub fn time_of(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.start)
    }

    /// A fingerprint of all that happened: equal for equal seeds and scenarios.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.trace.fingerprint()
    }

    /// Whether the coordinator is out of the node's reach.
    #[must_use]
    pub fn is_away(&self, node: NodeIndex) -> bool {
        self.coordinator.away.contains(&node)
    }

    /// Whether `from` can open SSH streams to `to`.
    #[must_use]
    pub fn has_ssh(&self, from: NodeIndex, to: NodeIndex) -> bool {
        self.ssh.contains(&(from, to))
    }

    /// Whether `from` was answered this ping by now.
    #[must_use]
    pub fn answered(&self, from: NodeIndex, token: u64) -> bool {
        let answer =
            |event: &Event| matches!(event, Event::Pong { token: answered, .. } if *answered == token);
        self.node(from).events.iter().any(|(_, event)| answer(event))
    }

    /// The clocks of a node.
    fn now(&self, node: NodeIndex) -> Now {
        let wall = BIRTH.saturating_add(self.elapsed).as_millis();
        let wall = wall.saturating_add_signed(self.node(node).wall_offset_ms);
        Now::new(self.start + self.elapsed, UnixTime::from_millis(wall))
    }
}

// What tests do.
impl World {
    /// Sends a packet with `len` random bytes of payload; returns its number in the ledger.
    pub fn send(&mut self, from: NodeIndex, to: NodeIndex, len: usize) -> u64 {
        let payload: Vec<u8> = (0..len).map(|_| self.rng.bits() as u8).collect();
        let (number, packet) = self.ledger.write(from, to, &payload, self.elapsed);
        let now = self.now(from);
        let mut output = Output::default();
        self.nodes[from.number()].outbound(&packet, now, &mut output);
        self.work_with(from, output);
        number
    }

    /// Sends an echo notice; its answer is an [`Event::Pong`]. Tells whether it could be sent.
    pub fn ping(&mut self, from: NodeIndex, to: NodeIndex, token: u64) -> bool {
        let now = self.now(from);
        let sent = self.nodes[from.number()].ping(to, token, now);
        self.work(from);
        sent
    }

    /// Moves a node to another place. Its daemon hears of it a moment later, and then the coordinator.
    pub fn roam(&mut self, node: NodeIndex, place: Place) {
        self.network.move_host(node, place);
        self.enter(NOTICE_DELAY, Affair::NoticeMove(node));
    }

    /// Moves a node to another place, without telling anyone, itself included.
    pub fn roam_unnoticed(&mut self, node: NodeIndex, place: Place) {
        self.network.move_host(node, place);
    }

    /// Makes a node believe that the network has changed, as when a container's interface appears.
    pub fn rattle(&mut self, node: NodeIndex) {
        self.enter(Duration::ZERO, Affair::NoticeMove(node));
    }

    /// Stops a node's process.
    pub fn stop(&mut self, node: NodeIndex) {
        self.nodes[node.number()].stop();
        self.streams.end_process(node, &self.network, self.elapsed);
    }

    /// Stops a node, if it runs, and starts it again at once, with what a daemon has on disk.
    pub fn restart(&mut self, node: NodeIndex) {
        self.streams.end_process(node, &self.network, self.elapsed);
        self.streams.start_process(node);
        self.network.forget_sent(node);
        let (seed, now) = (self.rng.bits(), self.now(node));
        self.nodes[node.number()].restart(seed, now);
        let addresses = self.network.place(node).addresses();
        self.nodes[node.number()].set_own_candidates(addresses);
        self.enter(REPORT_DELAY, Affair::Report(node));
        self.work(node);
    }

    /// Takes the coordinator out of a node's reach, or brings it back.
    pub fn set_away(&mut self, node: NodeIndex, away: bool) {
        if away {
            self.coordinator.away.insert(node);
        } else if self.coordinator.away.remove(&node) {
            self.enter(REPORT_DELAY, Affair::Report(node));
            self.enter(REPORT_DELAY, Affair::Spread(node));
        }
    }

    /// Builds a fault into a node.
    pub fn set_fault(&mut self, node: NodeIndex, fault: Fault) {
        let now = self.now(node);
        self.nodes[node.number()].set_fault(fault, now);
    }

    /// Makes a relay lie from now on, or be honest again. If names are what it lies about, its process is another one then.
    pub fn set_lie(&mut self, relay: NodeIndex, lie: Option<Lie>) {
        let before = self.node(relay).lie();
        self.nodes[relay.number()].set_lie(lie);
        if [before, lie].contains(&Some(Lie::Misnumbers)) && self.node(relay).is_running() {
            self.restart(relay);
        }
    }

    /// Sets a node's wall clock this far from the world's: ahead if positive, milliseconds.
    pub fn set_wall_clock(&mut self, node: NodeIndex, offset_ms: i64) {
        self.nodes[node.number()].wall_offset_ms = offset_ms;
    }

    /// Lets this much time pass, with everything that happens in it.
    ///
    /// # Panics
    ///
    /// If so much happens at one moment that it does not end, or the ledger finds a broken promise.
    pub fn run(&mut self, time: Duration) {
        let end = self.elapsed + time;
        let mut at_once = 0;
        while let Some(next) = self.next_event().filter(|&next| next <= end) {
            at_once = if next > self.elapsed { 0 } else { at_once + 1 };
            assert!(at_once < MAX_EVENTS_AT_ONCE, "time stands still at {next:?}");
            self.elapsed = self.elapsed.max(next);
            self.step();
        }
        self.elapsed = end;
    }
}

// Time.
impl World {
    fn next_event(&self) -> Option<Duration> {
        let deadline = self.nodes.iter().filter_map(Node::next_deadline).min();
        let deadline = deadline.map(|deadline| deadline.saturating_duration_since(self.start));
        let others = [self.agenda.next(), self.streams.next(), self.network.next_arrival()];
        others.into_iter().chain([deadline]).flatten().min()
    }

    /// Does one of the things that are due.
    fn step(&mut self) {
        if let Some(affair) = self.agenda.take(self.elapsed) {
            self.entered.remove(&affair);
            self.attend(affair);
        } else if let Some(report) = self.streams.step(&self.network, self.elapsed) {
            self.hear(report);
        } else if let Some(datagram) = self.network.receive(self.elapsed) {
            let Datagram { at, from, payload } = datagram;
            self.deliver(at, Hop::Udp(from), payload);
        } else {
            let now = self.start + self.elapsed;
            let due = |node: &NodeIndex| self.node(*node).next_deadline().is_some_and(|due| due <= now);
            self.indices()
                .into_iter()
                .filter(due)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|node| self.work(node));
        }
    }

    fn enter(&mut self, delay: Duration, affair: Affair) {
        if self.entered.insert(affair) {
            self.agenda.enter(self.elapsed + delay, affair);
        }
    }

    fn attend(&mut self, affair: Affair) {
        match affair {
            Affair::NoticeMove(node) => {
                let (addresses, now) = (self.network.place(node).addresses(), self.now(node));
                if self.node(node).is_running() {
                    self.nodes[node.number()].network_changed(addresses, now);
                    self.work(node);
                }
                self.enter(REPORT_DELAY, Affair::Report(node));
            }
            Affair::Report(node) if !self.is_away(node) => {
                if self.report(node) {
                    let known = |(_, peers): &(&NodeIndex, &Vec<NodeIndex>)| peers.contains(&node);
                    let others = self.coordinator.peers.iter().filter(known).map(|(&other, _)| other);
                    for other in others.collect::<Vec<_>>() {
                        self.enter(REPORT_DELAY, Affair::Spread(other));
                    }
                }
            }
            Affair::Spread(node) if !self.is_away(node) && self.node(node).is_running() => self.spread(node),
            Affair::Report(_) | Affair::Spread(_) => {}
        }
    }

    /// Tells the coordinator a node's addresses; returns whether they are news.
    fn report(&mut self, node: NodeIndex) -> bool {
        let mut addresses = self.network.place(node).addresses();
        addresses.extend(self.node(node).reflexive());
        let mut known = BTreeSet::new();
        addresses.retain(|address| known.insert(*address));
        self.coordinator.addresses.insert(node, addresses.clone()) != Some(addresses)
    }

    fn spread(&mut self, node: NodeIndex) {
        let peers = self.coordinator.peers.get(&node).cloned().unwrap_or_default();
        let peers = peers.into_iter().map(|peer| self.config(node, peer)).collect();
        let now = self.now(node);
        self.nodes[node.number()].apply(peers, now);
        self.work(node);
    }

    fn config(&self, node: NodeIndex, peer: NodeIndex) -> PeerConfig {
        let relay = self.node(peer).is_relay();
        let websocket = relay.then_some(LinkCandidate { number: WEBSOCKET, carrier: Carrier::WebSocket });
        let ssh = self.has_ssh(node, peer).then_some(LinkCandidate { number: SSH, carrier: Carrier::Ssh });
        PeerConfig {
            id: peer.id(),
            key: secret(peer).public_key(),
            psk: Psk::Fixed(PresharedKey::from_bytes([7; 32])),
            mesh: true,
            allowed_ips: vec![Prefix::host(peer.inner_address().into())],
            candidates: self.coordinator.addresses.get(&peer).cloned().unwrap_or_default(),
            links: websocket.into_iter().chain(ssh).collect(),
            relay,
            persistent_keepalive: None,
        }
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Opened { at, peer, candidate, link } => {
                let now = self.now(at);
                self.nodes[at.number()].link_opened(peer, candidate, link, now);
                self.work(at);
            }
            Report::Failed { at, peer, candidate } => {
                let now = self.now(at);
                self.nodes[at.number()].link_failed(peer, candidate, now);
                self.work(at);
            }
            Report::Frame { at, link, payload } => self.deliver(at, Hop::Link(link), payload),
            Report::Closed { at, link } => {
                let now = self.now(at);
                if self.node(at).is_running() {
                    self.nodes[at.number()].link_closed(link, now);
                    self.work(at);
                }
            }
        }
    }

    fn deliver(&mut self, at: NodeIndex, from: Hop, payload: Vec<u8>) {
        self.trace.record(self.elapsed, "arrival", &payload);
        if !self.node(at).is_running() {
            return;
        }
        let now = self.now(at);
        let mut output = Output::default();
        if let Some((packet, sender)) = self.nodes[at.number()].inbound(payload, from, now, &mut output) {
            self.ledger.deliver(at, sender, &packet, self.elapsed);
        }
        self.work_with(at, output);
    }

    fn work(&mut self, node: NodeIndex) {
        self.work_with(node, Output::default());
    }

    /// Lets a node do what follows from what happened to it, and carries out what it wants.
    fn work_with(&mut self, node: NodeIndex, mut output: Output) {
        let (now, at) = (self.now(node), self.elapsed);
        if !self.node(node).is_running() {
            return;
        }
        if self.nodes[node.number()].work(now, at, &mut output) {
            self.enter(REPORT_DELAY, Affair::Report(node));
        }
        for (to, payload) in output.sent {
            self.trace.record(self.elapsed, "departure", &payload);
            match to {
                Hop::Udp(to) => self.network.send(node, to, payload, at),
                Hop::Link(link) => self.streams.send(node, link, payload, &self.network, at),
            }
        }
        for dial in output.dials {
            match dial {
                Dial::Open { peer, candidate, carrier } => {
                    if let Some(peer) = NodeIndex::from_id(peer) {
                        self.streams.dial(node, peer, candidate, carrier, &self.network, at);
                    }
                }
                Dial::Close { link } => self.streams.close(node, link, &self.network, at),
            }
        }
    }
}
