//! The whole core under test: two or three nodes, a wire that tests can tap, and a clock that only they move.

mod cookies;
mod counts;
mod filter;
mod handshakes;
mod notices;
mod routing;
mod runs;
mod streams;
mod timers;
mod vectors;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::drop_reason::DropReason;
use crate::filter::Filter;
use crate::handshake::Handshaker;
use crate::inbound::Inbound;
use crate::key::{NodeId, PresharedKey, PublicKey, SecretKey};
use crate::message::MAX_OVERHEAD;
use crate::outbound::Outbound;
use crate::packet::build::packet;
use crate::path::{Hop, Path};
use crate::peer::{PeerConfig, PeerStatus, Psk};
use crate::random::Random;
use crate::time::{Now, UnixTime, test_epoch};
use crate::tunnel::{Event, Tunnel};

/// A datagram under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Datagram {
    from: Path,
    to: Path,
    bytes: Vec<u8>,
}

impl Datagram {
    fn kind(&self) -> u8 {
        self.bytes[0]
    }

    fn is_keepalive(&self) -> bool {
        self.kind() == 4 && self.bytes.len() == 32
    }
}

/// A node: both halves of the core, and what came out of them.
struct Node {
    tunnel: Tunnel,
    handshaker: Handshaker,
    config: PeerConfig,
    path: Path,
    /// Jobs that wait before each of ours: enough of them is being under load.
    load: usize,
    received: Vec<Vec<u8>>,
    events: Vec<Event>,
}

fn path(text: &str) -> Path {
    Path::Udp(text.parse().unwrap())
}

/// Where the other end of a direct path is.
fn hop(path: Path) -> Hop {
    match path {
        Path::Udp(address) => Hop::Udp(address),
        Path::Link(link) => Hop::Link(link),
        Path::Relay(channel) => panic!("{channel:?} is no direct path"),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The key of test node `number`.
fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes([number; 32])
}

impl Node {
    /// Node `number` has the address 10.0.0.`number` inside and 192.0.2.`number` outside.
    fn new(number: u8, seed: u64) -> Self {
        let key = secret(number).public_key();
        let address: SocketAddr = format!("192.0.2.{number}:1000").parse().unwrap();
        let config = PeerConfig {
            id: NodeId::from_bytes([number; 8]),
            key,
            psk: Psk::Fixed(PresharedKey::from_bytes([77; 32])),
            mesh: true,
            allowed_ips: vec![
                format!("10.0.0.{number}/32").parse().unwrap(),
                format!("fd00::{number}/128").parse().unwrap(),
            ],
            candidates: vec![address],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        };
        let mut tunnel = Tunnel::new(number % 4, key, Random::seeded(seed)).unwrap();
        tunnel.apply_filter(Arc::new(Filter::allow_all()), Now::new(test_epoch(), UnixTime::EPOCH));
        Self {
            tunnel,
            handshaker: Handshaker::new(&secret(number), Random::seeded(seed + 1)),
            config,
            path: Path::Udp(address),
            load: 0,
            received: Vec::new(),
            events: Vec::new(),
        }
    }

    fn apply(&mut self, peers: &[PeerConfig], now: Now) {
        self.tunnel.apply(peers, now);
        self.handshaker.apply(peers);
    }

    /// Does all that the node wants to do now; returns what it sends.
    fn work(&mut self, now: Now) -> Vec<Datagram> {
        let mut sent = Vec::new();
        loop {
            let mut idle = true;
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, self.load, now);
                self.tunnel.handle_job(done, now);
                idle = false;
            }
            let mut buffer = [0; 1408 + MAX_OVERHEAD];
            while let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, now) {
                let bytes = buffer[..transmit.len].to_vec();
                sent.push(Datagram { from: self.path, to: transmit.to.into(), bytes });
                idle = false;
            }
            if idle {
                self.events.extend(std::iter::from_fn(|| self.tunnel.poll_event()));
                return sent;
            }
        }
    }

    /// Takes a datagram, without doing what it leads to.
    fn take(&mut self, datagram: &Datagram, now: Now) -> Result<Inbound, DropReason> {
        let mut bytes = datagram.bytes.clone();
        let taken = self.tunnel.inbound(&mut bytes, hop(datagram.from), now);
        if let Ok(Inbound::Packet { range, .. }) = &taken {
            self.received.push(bytes[range.clone()].to_vec());
        }
        taken
    }

    fn send(&mut self, packet: &[u8], now: Now) -> Result<Option<Datagram>, DropReason> {
        let mut buffer = [0; 1408 + MAX_OVERHEAD];
        Ok(match self.tunnel.outbound(packet, &mut buffer, now)? {
            Outbound::Send { len, to, .. } => {
                Some(Datagram { from: self.path, to: to.into(), bytes: buffer[..len].to_vec() })
            }
            Outbound::Held => None,
        })
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.tunnel.drops().get(reason)
    }

    fn peer(&self, number: u8, now: Now) -> PeerStatus {
        self.tunnel.peers(now).find(|peer| peer.id == NodeId::from_bytes([number; 8])).unwrap()
    }

    fn established(&self) -> Vec<bool> {
        let initiator = |event: &Event| match event {
            Event::Established { initiator, .. } => Some(*initiator),
            Event::Unreachable { .. }
            | Event::Expired { .. }
            | Event::PathSelected { .. }
            | Event::Pong { .. }
            | Event::SeenFrom { .. }
            | Event::BindRequested { .. } => None,
        };
        self.events.iter().filter_map(initiator).collect()
    }
}

/// Two nodes, numbers 1 and 2, that are peers of each other; what they send lies on the wire until it is delivered.
struct Pair {
    near: Node,
    far: Node,
    now: Now,
    start: Instant,
    wire: VecDeque<Datagram>,
    /// Every datagram sent so far, with its time.
    sent: Vec<(Duration, Datagram)>,
}

impl Pair {
    fn new(seed: u64) -> Self {
        Self::with(seed, |_| {}, |_| {})
    }

    /// A pair of which each is told a changed record of the other.
    fn with(seed: u64, near: impl FnOnce(&mut PeerConfig), far: impl FnOnce(&mut PeerConfig)) -> Self {
        let start = test_epoch();
        let now = Now::new(start, UnixTime::from_secs(1_700_000_000));
        let (mut a, mut b) = (Node::new(1, seed * 4), Node::new(2, seed * 4 + 2));
        near(&mut a.config);
        far(&mut b.config);
        a.apply(&[b.config.clone()], now);
        b.apply(&[a.config.clone()], now);
        Self { near: a, far: b, now, start, wire: VecDeque::new(), sent: Vec::new() }
    }

    /// A pair with a session that `near` began.
    fn connected(seed: u64) -> Self {
        Self::new(seed).connect()
    }

    /// Makes a session without data, so that no timer but those of its age is set; with a stock peer there is no way
    /// but data.
    fn connect(mut self) -> Self {
        if self.near.tunnel.ping(self.far.config.id, 0, self.now).is_err() || !self.near.config.mesh {
            self.send_near(b"first");
        }
        self.settle();
        assert_eq!(self.near.established(), [true]);
        assert_eq!(self.far.established(), [false]);
        self.far.received.clear();
        self.near.events.retain(|event| matches!(event, Event::Established { .. }));
        self.sent.clear();
        self
    }

    /// The same pair and the same session, but of devices that know no notices: nothing is sent but what WireGuard's own
    /// timers ask for.
    fn stock(mut self) -> Self {
        self.near.config.mesh = false;
        self.far.config.mesh = false;
        self.introduce();
        self
    }

    /// Tells each of the two what the other is.
    fn introduce(&mut self) {
        self.near.apply(std::slice::from_ref(&self.far.config), self.now);
        self.far.apply(std::slice::from_ref(&self.near.config), self.now);
    }

    fn near_packet(payload: &[u8]) -> Vec<u8> {
        packet("10.0.0.1", "10.0.0.2", payload)
    }

    fn far_packet(payload: &[u8]) -> Vec<u8> {
        packet("10.0.0.2", "10.0.0.1", payload)
    }

    /// Sends a packet from `near` to `far`, and whatever else the two want to send.
    fn send_near(&mut self, payload: &[u8]) {
        let datagram = self.near.send(&Self::near_packet(payload), self.now).unwrap();
        self.put(datagram);
        self.work();
    }

    fn send_far(&mut self, payload: &[u8]) {
        let datagram = self.far.send(&Self::far_packet(payload), self.now).unwrap();
        self.put(datagram);
        self.work();
    }

    fn put(&mut self, datagrams: impl IntoIterator<Item = Datagram>) {
        for datagram in datagrams {
            self.sent.push((self.now.monotonic - self.start, datagram.clone()));
            self.wire.push_back(datagram);
        }
    }

    fn work(&mut self) {
        let sent = self.near.work(self.now);
        self.put(sent);
        let sent = self.far.work(self.now);
        self.put(sent);
    }

    /// Delivers one datagram to whom it is for, if to anyone.
    fn deliver(&mut self, datagram: &Datagram) -> Option<Result<Inbound, DropReason>> {
        let taken = if datagram.to == self.near.path {
            Some(self.near.take(datagram, self.now))
        } else if datagram.to == self.far.path {
            Some(self.far.take(datagram, self.now))
        } else {
            None
        };
        self.work();
        taken
    }

    /// Delivers everything, and everything that follows from it.
    fn settle(&mut self) {
        self.work();
        while let Some(datagram) = self.wire.pop_front() {
            self.deliver(&datagram);
        }
    }

    /// Lets time pass; at each deadline on the way the nodes act, and `what` is done with the wire.
    fn pass(&mut self, time: Duration, mut what: impl FnMut(&mut Self)) {
        let end = self.now.later(time);
        loop {
            let deadlines = [self.near.tunnel.poll_deadline(), self.far.tunnel.poll_deadline()];
            let next = deadlines.into_iter().flatten().min().filter(|&next| next <= end.monotonic);
            let Some(next) = next else { break };
            self.now = self.now.later(next.saturating_duration_since(self.now.monotonic));
            self.near.tunnel.handle_deadline(self.now);
            self.far.tunnel.handle_deadline(self.now);
            self.work();
            what(self);
        }
        self.now = end;
    }

    /// Lets time pass with a wire that works.
    fn run(&mut self, time: Duration) {
        self.settle();
        self.pass(time, Self::settle);
    }

    /// Lets time pass with a cut wire.
    fn cut(&mut self, time: Duration) {
        self.work();
        self.wire.clear();
        self.pass(time, |pair| pair.wire.clear());
    }

    /// What `from` has sent so far of message type `kind`, with its times.
    fn sent_by(&self, from: Path, kind: u8) -> Vec<(Duration, &Datagram)> {
        let by = |(_, datagram): &&(Duration, Datagram)| datagram.from == from && datagram.kind() == kind;
        self.sent.iter().filter(by).map(|(at, datagram)| (*at, datagram)).collect()
    }

    fn near_initiations(&self) -> Vec<Duration> {
        self.sent_by(self.near.path, 1).into_iter().map(|(at, _)| at).collect()
    }

    fn far_initiations(&self) -> Vec<Duration> {
        self.sent_by(self.far.path, 1).into_iter().map(|(at, _)| at).collect()
    }

    fn assert_traffic(&mut self) {
        self.near.received.clear();
        self.far.received.clear();
        self.send_near(b"ping");
        self.settle();
        self.send_far(b"pong");
        self.settle();
        assert_eq!(self.far.received, [Self::near_packet(b"ping")]);
        assert_eq!(self.near.received, [Self::far_packet(b"pong")]);
    }
}

fn key_of(number: u8) -> PublicKey {
    secret(number).public_key()
}
