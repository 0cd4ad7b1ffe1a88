//! A world: nodes, the network between them, and the clock that moves it all.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NodeId, PresharedKey};
use ringmesh_tunnel::{Event, Now, PeerConfig, Psk, UnixTime};

use crate::ledger::Ledger;
use crate::network::{Datagram, Network};
use crate::node::{Node, secret};
use crate::rng::Rng;
use crate::trace::Trace;

/// Names a node of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex(u16);

impl NodeIndex {
    #[cfg(test)]
    pub(crate) const FIRST: Self = Self(0);
    #[cfg(test)]
    pub(crate) const SECOND: Self = Self(1);

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

/// When every world begins, by the wall clock.
const BIRTH: UnixTime = UnixTime::from_secs(1_800_000_000);
/// Events at one moment that are more than any honest run has: a node that answers itself forever is found by it.
const MAX_EVENTS_AT_ONCE: u32 = 100_000;

/// Everything there is, from one seed.
#[derive(Debug)]
pub struct World {
    /// What is between the nodes.
    pub network: Network,
    /// Every packet that was sent.
    pub ledger: Ledger,
    /// Dice for what a test does to the world, apart from the network's own.
    pub rng: Rng,
    nodes: Vec<Node>,
    trace: Trace,
    /// What virtual time is counted from. Its value never shows: instants cannot be made from nothing.
    start: Instant,
    elapsed: Duration,
}

impl World {
    /// An empty world in fine weather.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            network: Network::new(Rng::new(rng.bits())),
            ledger: Ledger::default(),
            rng,
            nodes: Vec::new(),
            trace: Trace::default(),
            start: Instant::now(),
            elapsed: Duration::ZERO,
        }
    }

    /// A world of `count` nodes that all know each other.
    #[must_use]
    pub fn mesh(seed: u64, count: u16) -> Self {
        let mut world = Self::new(seed);
        for _ in 0..count {
            world.add_node();
        }
        world.introduce_all();
        world
    }

    /// Adds a node that knows nobody yet.
    ///
    /// # Panics
    ///
    /// If there are 65,535 already.
    pub fn add_node(&mut self) -> NodeIndex {
        let index = NodeIndex(u16::try_from(self.nodes.len()).expect("invariant: worlds are small"));
        let address = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, index.0 + 1), 51820));
        self.nodes.push(Node::new(index, address, self.rng.bits()));
        index
    }

    /// Tells every node about every other, and where it is now.
    pub fn introduce_all(&mut self) {
        for index in self.indices() {
            self.introduce(index, &self.indices());
        }
    }

    /// Tells one node which others it may talk to, itself aside, and where they are now.
    pub fn introduce(&mut self, node: NodeIndex, peers: &[NodeIndex]) {
        let peers = peers.iter().filter(|&&peer| peer != node).map(|&peer| self.config(peer)).collect();
        let now = self.now(node);
        self.nodes[usize::from(node.0)].apply(peers, now);
        self.work(node);
    }

    fn config(&self, peer: NodeIndex) -> PeerConfig {
        PeerConfig {
            id: peer.id(),
            key: secret(peer).public_key(),
            psk: Psk::Fixed(PresharedKey::from_bytes([7; 32])),
            mesh: true,
            allowed_ips: vec![Prefix::host(peer.inner_address().into())],
            candidates: vec![self.node(peer).address()],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        }
    }

    /// All nodes.
    #[must_use]
    pub fn indices(&self) -> Vec<NodeIndex> {
        (0..self.nodes.len() as u16).map(NodeIndex).collect()
    }

    /// A node, to look at.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> &Node {
        &self.nodes[usize::from(index.0)]
    }

    /// Time since the world began.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// A fingerprint of all that happened: equal for equal seeds and scenarios.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.trace.fingerprint()
    }

    /// Sends a packet with `len` random bytes of payload; returns its number in the ledger.
    pub fn send(&mut self, from: NodeIndex, to: NodeIndex, len: usize) -> u64 {
        let payload: Vec<u8> = (0..len).map(|_| self.rng.bits() as u8).collect();
        let (number, packet) = self.ledger.write(from, to, &payload, self.elapsed);
        let now = self.now(from);
        let mut sent = Vec::new();
        self.nodes[usize::from(from.0)].outbound(&packet, now, &mut sent);
        self.launch(sent);
        self.work(from);
        number
    }

    /// Sends an echo notice; its answer is an [`Event::Pong`]. Tells whether it could be sent.
    pub fn ping(&mut self, from: NodeIndex, to: NodeIndex, token: u64) -> bool {
        let now = self.now(from);
        let sent = self.nodes[usize::from(from.0)].ping(to, token, now);
        self.work(from);
        sent
    }

    /// Moves a node to another address, without telling anyone.
    pub fn roam(&mut self, node: NodeIndex, address: SocketAddr) {
        self.nodes[usize::from(node.0)].move_to(address);
    }

    /// Stops a node and starts it again at once, with what a daemon has on disk.
    pub fn restart(&mut self, node: NodeIndex) {
        let (seed, now) = (self.rng.bits(), self.now(node));
        self.nodes[usize::from(node.0)].restart(seed, now);
        self.work(node);
    }

    /// Sets a node's wall clock this far from the world's: ahead if positive, milliseconds.
    pub fn set_wall_clock(&mut self, node: NodeIndex, offset_ms: i64) {
        self.nodes[usize::from(node.0)].wall_offset_ms = offset_ms;
    }

    /// Lets this much time pass, with everything that happens in it.
    pub fn run(&mut self, time: Duration) {
        let end = self.elapsed + time;
        let mut at_once = 0;
        while let Some(next) = self.next_event().filter(|&next| next <= end) {
            at_once = if next > self.elapsed { 0 } else { at_once + 1 };
            assert!(at_once < MAX_EVENTS_AT_ONCE, "time stands still at {next:?}");
            self.elapsed = self.elapsed.max(next);
            match self.network.receive(self.elapsed) {
                Some(datagram) => self.deliver(datagram),
                None => self.indices().into_iter().for_each(|node| self.work(node)),
            }
        }
        self.elapsed = end;
    }

    /// Lets time pass until `done` or for at most `limit`; tells how long it took.
    ///
    /// # Panics
    ///
    /// If it took longer.
    pub fn run_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Duration {
        let start = self.elapsed;
        while !done(self) {
            assert!(self.elapsed - start < limit, "{what}: not within {limit:?}");
            self.run(Duration::from_millis(10).min(limit - (self.elapsed - start)));
        }
        self.elapsed - start
    }

    /// Whether `from` was answered this ping by now.
    #[must_use]
    pub fn answered(&self, from: NodeIndex, token: u64) -> bool {
        let answer =
            |event: &Event| matches!(event, Event::Pong { token: answered, .. } if *answered == token);
        self.node(from).events.iter().any(|(_, event)| answer(event))
    }

    fn next_event(&self) -> Option<Duration> {
        let deadlines = self.nodes.iter().filter_map(Node::next_deadline);
        let deadline = deadlines.min().map(|deadline| deadline.saturating_duration_since(self.start));
        [deadline, self.network.next_arrival()].into_iter().flatten().min()
    }

    fn deliver(&mut self, datagram: Datagram) {
        self.trace.record(self.elapsed, "arrival", &datagram.payload);
        let to = datagram.to;
        // Nobody lives at an address that its node has left.
        let Some(node) = self.indices().into_iter().find(|&node| self.node(node).address() == to) else {
            return;
        };
        let now = self.now(node);
        if let Some((packet, from)) = self.nodes[usize::from(node.0)].inbound(datagram, now) {
            self.ledger.deliver(node, from, &packet, self.elapsed);
        }
        self.work(node);
    }

    fn work(&mut self, node: NodeIndex) {
        let (now, at) = (self.now(node), self.elapsed);
        let mut sent = Vec::new();
        self.nodes[usize::from(node.0)].work(now, at, &mut sent);
        self.launch(sent);
    }

    fn launch(&mut self, datagrams: Vec<Datagram>) {
        for datagram in datagrams {
            self.trace.record(self.elapsed, "departure", &datagram.payload);
            self.network.send(datagram, self.elapsed);
        }
    }

    /// The clocks of a node.
    fn now(&self, node: NodeIndex) -> Now {
        let wall = BIRTH.saturating_add(self.elapsed).as_millis();
        let wall = wall.saturating_add_signed(self.node(node).wall_offset_ms);
        Now::new(self.start + self.elapsed, UnixTime::from_millis(wall))
    }
}
