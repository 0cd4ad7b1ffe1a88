//! Two nodes without a kernel, and a relay between them if need be: what the benches of the core, and the proof that its
//! packet path allocates nothing, are about.

#![allow(dead_code, reason = "each of those who share it uses a part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh_relay::{Limiter, Rates, Relay, Verdict};
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NetworkId, NodeId, PresharedKey, PublicKey, SecretKey};
use ringmesh_tunnel::netmap::{Member, MemberKind, Protocol, Rule, Selector};
use ringmesh_tunnel::{
    Handshaker, Hop, Inbound, Now, Outbound, Path, PeerConfig, PeerState, Psk, Random, Tunnel, UnixTime,
    relayed,
};

/// Room for a sealed and relayed packet of any length that is measured.
pub(crate) const DATAGRAM: usize = 2048;
/// How long paths may take to be found, in simulated time.
const FOUND_WITHIN: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);

/// How the two reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Road {
    /// As a stock WireGuard device is reached: at the address it was last heard at, and nothing is probed.
    Stock,
    /// Straight, at the last of so many candidates; nobody answers at the others.
    Direct {
        /// All candidates, the good one included.
        candidates: u8,
    },
    /// Through the relay alone.
    Relay,
}

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The one that begins.
    Near,
    /// The other.
    Far,
}

impl End {
    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Near => 1,
            Self::Far => 2,
        }
    }

    /// Where its datagrams come from.
    pub(crate) fn address(self) -> SocketAddr {
        outside(self.number())
    }

    /// Its address in the mesh.
    fn inside(self) -> Ipv4Addr {
        Ipv4Addr::new(100, 64, 0, self.number())
    }

    /// What lies behind it.
    fn behind(self) -> Prefix {
        let address = Ipv4Addr::new(10, self.number(), 0, 0);
        Prefix::new(address.into(), 16).expect("a range")
    }

    /// An address behind it.
    fn host(self, number: u16) -> Ipv4Addr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, self.number(), high, low)
    }

    /// The filter of this node, which knows the other: so many rules that concern both, of which the last allows everything.
    pub(crate) fn filter(self, rules: u16) -> Filter {
        let [me, peer] = [self, self.other()].map(member);
        let rule = |number: u16| {
            let last = number + 1 == rules;
            Rule {
                sources: vec![Selector::All],
                destinations: vec![Selector::All],
                protocol: if last { Protocol::Any } else { Protocol::Tcp },
                ports: if last { Vec::new() } else { vec![number.into()] },
            }
        };
        let rules: Vec<Rule> = (0..rules).map(rule).collect();
        Filter::of(&me, [&peer], (0..).zip(&rules), &[])
    }

    /// A packet from here to the other end.
    pub(crate) fn packet(self, length: usize) -> Vec<u8> {
        let mut packet = vec![0x5a; length];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&u16::try_from(length).expect("a packet is short").to_be_bytes());
        packet[6..8].fill(0);
        // UDP, where it has room: what is shorter is of a protocol without a header.
        packet[9] = if length < 28 { 253 } else { 17 };
        if let Some(place) = packet.get_mut(24..26) {
            place.copy_from_slice(&u16::try_from(length - 20).expect("a packet is short").to_be_bytes());
        }
        packet[12..16].copy_from_slice(&self.inside().octets());
        packet[16..20].copy_from_slice(&self.other().inside().octets());
        add_up(&mut packet);
        packet
    }

    /// Makes one of its packets one from a host behind it.
    pub(crate) fn send_from(self, host: u16, packet: &mut [u8]) {
        packet[12..16].copy_from_slice(&self.host(host).octets());
        add_up(packet);
    }
}

/// The relay's number among the three.
const RELAY: u8 = 3;

fn outside(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, number)), 51820)
}

/// Makes the checksum of an IPv4 header without options right.
fn add_up(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let words = packet[..20].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = !((sum >> 16) + sum) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// What the network's authority would say of a node.
fn member(end: End) -> Member {
    Member {
        network: NetworkId::from_bytes([7; 16]),
        id: id(end.number()),
        name: format!("n{}", end.number()),
        kind: MemberKind::Mesh,
        relay: false,
        noise_key: PublicKey::from_bytes([end.number(); 32]),
        identity_key: None,
        ipv4: Some(end.inside()),
        ipv6: Ipv6Addr::from_bits(u128::from(end.number())),
        tags: Vec::new(),
        groups: Vec::new(),
        routes: vec![end.behind()],
        serial: 1,
        not_after: UnixTime::from_secs(4_000_000_000),
    }
}

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 8])
}

/// One node without a kernel.
pub(crate) struct Side {
    pub(crate) tunnel: Tunnel,
    handshaker: Handshaker,
}

impl Side {
    fn new(secret: &SecretKey, peers: &[PeerConfig], now: Now) -> Self {
        let mut handshaker = Handshaker::new(secret, Random::system());
        handshaker.apply(peers);
        let mut tunnel = Tunnel::new(0, secret.public_key(), Random::system()).expect("randomness");
        tunnel.apply(peers, now);
        tunnel.apply_filter(Arc::new(Filter::allow_all()), now);
        Self { tunnel, handshaker }
    }

    fn do_jobs(&mut self, now: Now) {
        while let Some(job) = self.tunnel.poll_job() {
            let done = self.handshaker.run(job, 0, now);
            self.tunnel.handle_job(done, now);
        }
        while self.tunnel.poll_event().is_some() {}
    }
}

/// The relay without a kernel, and without limits.
pub(crate) struct RelaySide {
    relay: Relay,
    handshaker: Handshaker,
    limiter: Limiter,
}

impl RelaySide {
    fn new(secret: &SecretKey, clients: &[PeerConfig], now: Now) -> Self {
        let mut handshaker = Handshaker::new(secret, Random::system());
        handshaker.apply(clients);
        let mut limiter = Limiter::new(Rates { client: 1 << 60, total: None }, now.monotonic);
        let mut relay = Relay::new(0, secret.public_key(), Random::system(), now).expect("randomness");
        relay.apply(clients, &mut limiter, now);
        Self { relay, handshaker, limiter }
    }

    /// Takes a datagram from a client; tells where it goes on to, with its new header, if anywhere.
    pub(crate) fn take(&mut self, datagram: &mut [u8], from: SocketAddr, now: Now) -> Option<Hop> {
        match self.relay.handle_datagram(datagram, Hop::Udp(from), &mut self.limiter, now) {
            Ok(Verdict::Forward { to, .. }) => Some(to),
            Ok(Verdict::Consumed | Verdict::Heard) | Err(_) => None,
        }
    }

    fn do_jobs(&mut self, now: Now) {
        while let Some(job) = self.relay.poll_job() {
            let done = self.handshaker.run(job, 0, now);
            self.relay.handle_job(done, now);
        }
        while self.relay.poll_event().is_some() {}
    }
}

/// Two nodes with a session, and roads that lose nothing and take no time.
pub(crate) struct Mesh {
    pub(crate) near: Side,
    pub(crate) far: Side,
    pub(crate) relay: RelaySide,
    pub(crate) now: Now,
    /// Datagrams sent that were no direct answer to a packet: handshakes, probes and what else the paths need.
    pub(crate) own: u64,
    road: Road,
}

impl Mesh {
    /// The two, who have not met.
    pub(crate) fn new(road: Road) -> Self {
        let secrets = [SecretKey::generate(), SecretKey::generate(), SecretKey::generate()];
        let psk = PresharedKey::generate();
        let wall = UnixTime::from_secs(1_700_000_000);
        let now = Now::new(Instant::now(), wall);
        let member = |number: u8, candidates: Vec<SocketAddr>| PeerConfig {
            id: id(number),
            key: secrets[usize::from(number) - 1].public_key(),
            psk: Psk::Fixed(psk.clone()),
            mesh: road != Road::Stock,
            allowed_ips: match number {
                1 => vec![Prefix::host(End::Near.inside().into()), End::Near.behind()],
                2 => vec![Prefix::host(End::Far.inside().into()), End::Far.behind()],
                _ => Vec::new(),
            },
            candidates,
            links: Vec::new(),
            relay: number == RELAY,
            persistent_keepalive: None,
        };
        let node = |end: End| member(end.number(), candidates(road, end));
        let relay = || member(RELAY, vec![outside(RELAY)]);
        let peers_of = |end: End| match road {
            Road::Relay => vec![node(end.other()), relay()],
            Road::Stock | Road::Direct { .. } => vec![node(end.other())],
        };
        let client = |end: End| member(end.number(), Vec::new());
        let [near, far, at_relay] = &secrets;
        Self {
            near: Side::new(near, &peers_of(End::Near), now),
            far: Side::new(far, &peers_of(End::Far), now),
            relay: RelaySide::new(at_relay, &[client(End::Near), client(End::Far)], now),
            now,
            own: 0,
            road,
        }
    }

    /// The two, with a session, and on the road that is asked for in both directions.
    pub(crate) fn connected(road: Road) -> Self {
        let mut mesh = Self::new(road);
        let give_up = mesh.now.monotonic + FOUND_WITHIN;
        while !mesh.is_settled() {
            assert!(mesh.now.monotonic < give_up, "no path like {road:?} was found");
            mesh.advance(STEP);
            for end in [End::Near, End::Far] {
                mesh.exchange(end, 20);
            }
        }
        mesh
    }

    /// Gives both a filter with so many rules.
    pub(crate) fn police(&mut self, rules: u16) {
        let now = self.now;
        for end in [End::Near, End::Far] {
            self.side_mut(end).tunnel.apply_filter(Arc::new(end.filter(rules)), now);
        }
    }

    /// A new session, whatever there was: both Diffie-Hellman halves and the first packet, which confirms it.
    pub(crate) fn reconnect(&mut self) {
        // Initiations are told from replayed ones by their time, and from floods by their distance.
        self.now = self.now.later(Duration::from_secs(1));
        self.near.tunnel.expire_sessions();
        assert!(!self.exchange(End::Near, 20), "the packet is held until there is a session");
        let state = self.near.tunnel.peers(self.now).next().map(|peer| peer.state);
        assert_eq!(state, Some(PeerState::Established));
    }

    /// Whether packets of both take the road that is asked for, and that is known to work.
    pub(crate) fn is_settled(&self) -> bool {
        let now = self.now;
        let takes = |end: End| {
            let path = self.side(end).tunnel.peers(now).find(|peer| peer.id == id(end.other().number()));
            match (self.road, path.and_then(|peer| peer.endpoint)) {
                (Road::Relay, Some(Path::Relay(_))) => true,
                (Road::Stock | Road::Direct { .. }, Some(Path::Udp(at))) => at == end.other().address(),
                _ => false,
            }
        };
        takes(End::Near) && takes(End::Far)
    }

    pub(crate) fn side(&self, end: End) -> &Side {
        match end {
            End::Near => &self.near,
            End::Far => &self.far,
        }
    }

    pub(crate) fn side_mut(&mut self, end: End) -> &mut Side {
        match end {
            End::Near => &mut self.near,
            End::Far => &mut self.far,
        }
    }

    /// Sends a packet and whatever that leads to; says whether it was sealed at once.
    pub(crate) fn exchange(&mut self, from: End, length: usize) -> bool {
        let (mut datagram, now) = ([0; DATAGRAM], self.now);
        let sent = self.side_mut(from).tunnel.outbound(&from.packet(length), &mut datagram, now);
        let sealed = match sent {
            Ok(Outbound::Send { len, to, .. }) => {
                self.carry(from.address(), to, &mut datagram[..len]);
                true
            }
            Ok(Outbound::Held) | Err(_) => false,
        };
        self.settle();
        sealed
    }

    /// Seals a packet by the path in use.
    pub(crate) fn seal(&mut self, from: End, packet: &[u8], datagram: &mut [u8]) -> (usize, Hop) {
        let now = self.now;
        match self.side_mut(from).tunnel.outbound(packet, datagram, now) {
            Ok(Outbound::Send { len, to, .. }) => (len, to),
            other => panic!("there is no session: {other:?}"),
        }
    }

    /// What the relay does in between: with a road that has none, nothing.
    pub(crate) fn pass_on(&mut self, from: End, datagram: &mut [u8]) {
        if self.road == Road::Relay {
            assert!(relayed::parse(datagram).is_some());
            let to = self.relay.take(datagram, from.address(), self.now);
            assert_eq!(to, Some(Hop::Udp(from.other().address())));
        }
    }

    /// Opens a datagram that carries a packet of the other end's.
    pub(crate) fn open(&mut self, at: End, datagram: &mut [u8]) {
        let (from, now) = (self.last_hop_to(at), self.now);
        let opened = self.side_mut(at).tunnel.inbound(datagram, from, now);
        assert!(matches!(opened, Ok(Inbound::Packet { .. })), "{opened:?}");
    }

    /// Where datagrams for `at` come from in the end.
    pub(crate) fn last_hop_to(&self, at: End) -> Hop {
        Hop::Udp(match self.road {
            Road::Relay => outside(RELAY),
            Road::Stock | Road::Direct { .. } => at.other().address(),
        })
    }

    /// Time passes; what falls due in between is done.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.now = self.now.later(time);
        let now = self.now;
        for end in [End::Near, End::Far] {
            self.side_mut(end).tunnel.handle_deadline(now);
        }
        self.relay.relay.handle_deadline(now);
        self.settle();
    }

    /// Carries over what anybody has to send, until nobody has anything.
    pub(crate) fn settle(&mut self) {
        let (mut datagram, now) = ([0; DATAGRAM], self.now);
        loop {
            let mut moved = false;
            for end in [End::Near, End::Far] {
                self.side_mut(end).do_jobs(now);
                while let Some(sent) = self.side_mut(end).tunnel.poll_transmit(&mut datagram, now) {
                    moved = true;
                    self.own += 1;
                    self.carry(end.address(), sent.to, &mut datagram[..sent.len]);
                }
            }
            self.relay.do_jobs(now);
            while let Some(sent) = self.relay.relay.poll_transmit(&mut datagram, now) {
                moved = true;
                self.own += 1;
                self.carry(outside(RELAY), sent.to, &mut datagram[..sent.len]);
            }
            if !moved {
                return;
            }
        }
    }

    /// Carries one datagram, if anybody is there.
    fn carry(&mut self, from: SocketAddr, to: Hop, datagram: &mut [u8]) {
        let now = self.now;
        if to == Hop::Udp(outside(RELAY)) {
            if let Some(to) = self.relay.take(datagram, from, now) {
                self.carry(outside(RELAY), to, datagram);
            }
            return;
        }
        let straight = from != outside(RELAY);
        if straight && self.road == Road::Relay {
            return;
        }
        for end in [End::Near, End::Far] {
            if to == Hop::Udp(end.address()) {
                // What is refused was a twin or came late; whoever needs it sends it again.
                let _ = self.side_mut(end).tunnel.inbound(datagram, Hop::Udp(from), now);
            }
        }
    }
}

/// What the other one is told of where `end` may be.
fn candidates(road: Road, end: End) -> Vec<SocketAddr> {
    let nobody = |number: u8| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, number)), 51820);
    match road {
        Road::Relay => Vec::new(),
        Road::Stock => vec![end.address()],
        Road::Direct { candidates } => (1..candidates).map(nobody).chain([end.address()]).collect(),
    }
}
