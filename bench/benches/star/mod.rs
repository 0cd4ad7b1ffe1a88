//! One node with many peers, each with a live session, without a kernel: what runs of packets cost, and what it costs that they
//! are spread over peers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh_aead::{Choice, Cipher, Kernel, Opening, RunError, Sealing, TAG_LEN, choose};
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NetworkId, NodeId, PresharedKey, PublicKey, SecretKey};
use ringmesh_tunnel::message::MAX_OVERHEAD;
use ringmesh_tunnel::netmap::{Member, MemberKind, Protocol, Rule, Selector};
use ringmesh_tunnel::{Handshaker, Hop, Now, Outbound, Packet, PeerConfig, Psk, Random, Tunnel, UnixTime};

/// Runs that are sealed before they are opened, outside the time that counts.
const PREPARED: usize = 64;

/// Moves bytes as a cipher does, and encrypts nothing: what is left is the core's own cost.
pub(crate) struct Null;

impl Cipher for Null {
    fn new(_key: &[u8; 32], _kernel: Kernel) -> Self {
        Self
    }

    fn seal_run(&self, _first_counter: u64, run: &mut [Sealing<'_>]) -> Result<(), RunError> {
        for packet in run {
            let (head, rest) = packet.out.split_at_mut(packet.head.len());
            head.copy_from_slice(packet.head);
            let (text, padding) = rest.split_at_mut(packet.rest.len());
            text.copy_from_slice(packet.rest);
            padding.fill(0);
        }
        Ok(())
    }

    fn open_run(&self, run: &mut [Opening<'_>]) {
        run.iter_mut().for_each(|packet| packet.opened = packet.bytes.len() >= TAG_LEN);
    }
}

/// The node in the middle, and its peers.
pub(crate) struct Star<C: Cipher> {
    hub: Tunnel<C>,
    spokes: Vec<Tunnel<C>>,
    now: Now,
    /// The peer whose turn is next.
    next: usize,
}

impl<C: Cipher> Star<C> {
    /// A node with so many peers, a session with each, and a filter with so many rules, of which the last lets everything pass.
    pub(crate) fn new(peers: u16, rules: u16) -> Self {
        let now = Now::new(Instant::now(), UnixTime::from_secs(1_700_000_000));
        let kernel = choose(Choice::Auto).kernel;
        let psk = PresharedKey::generate();
        let (hub_secret, secrets): (_, Vec<SecretKey>) =
            (SecretKey::generate(), (0..peers).map(|_| SecretKey::generate()).collect());
        let config = |number: u16, secret: &SecretKey| PeerConfig {
            id: id(number),
            key: secret.public_key(),
            psk: Psk::Fixed(psk.clone()),
            mesh: true,
            allowed_ips: vec![Prefix::host(inside(number).into())],
            relay: false,
            candidates: vec![outside(number)],
            links: Vec::new(),
            persistent_keepalive: None,
        };
        let configs: Vec<PeerConfig> =
            (1..=peers).zip(&secrets).map(|(number, secret)| config(number, secret)).collect();
        let mut hub =
            Tunnel::with_cipher(0, hub_secret.public_key(), Random::system(), kernel).expect("random");
        let mut at_hub = Handshaker::new(&hub_secret, Random::system());
        hub.apply(&configs, now);
        at_hub.apply(&configs);
        hub.apply_filter(Arc::new(filter(peers, rules)), now);
        let of_hub = [config(0, &hub_secret)];
        let spokes = (1..=peers).zip(&secrets).map(|(number, secret)| {
            let mut spoke =
                Tunnel::with_cipher(0, secret.public_key(), Random::system(), kernel).expect("random");
            let mut at_spoke = Handshaker::new(secret, Random::system());
            spoke.apply(&of_hub, now);
            at_spoke.apply(&of_hub);
            spoke.apply_filter(Arc::new(Filter::allow_all()), now);
            let held = spoke.outbound(&packet(number, 0, 64), &mut [0; 256], now);
            assert_eq!(held, Ok(Outbound::Held));
            settle(number, (&mut spoke, &mut at_spoke), (&mut hub, &mut at_hub), now);
            spoke
        });
        let spokes = spokes.collect();
        Self { hub, spokes, now, next: 0 }
    }

    /// Seals runs of `run` packets of `length` bytes, one peer after the other; how long that took.
    pub(crate) fn seal(&mut self, run: usize, length: usize, runs: u64) -> Duration {
        let texts: Vec<Vec<u8>> =
            (1..=self.spokes.len()).map(|peer| packet(0, peer as u16, length)).collect();
        let all: Vec<Vec<Packet<'_>>> = texts.iter().map(|text| vec![Packet::whole(text); run]).collect();
        let mut datagrams = vec![0; run * (length + MAX_OVERHEAD)];
        let start = Instant::now();
        for _ in 0..runs {
            self.next = (self.next + 1) % self.spokes.len();
            let route = self.hub.route(&texts[self.next], run, self.now).expect("it passes");
            let sealed = self.hub.seal_run(route, &all[self.next], &mut datagrams, self.now);
            assert!(matches!(sealed, Ok(Outbound::Send { .. })));
        }
        start.elapsed()
    }

    /// Opens such runs from one peer after the other; how long that took.
    pub(crate) fn open(&mut self, run: usize, length: usize, runs: u64) -> Duration {
        let room = run * (length + MAX_OVERHEAD);
        let prepared = if run == 1 { self.spokes.len().max(PREPARED) } else { PREPARED };
        let mut trains = vec![0; prepared * room];
        let mut whose = Vec::with_capacity(prepared);
        let (mut took, mut left) = (Duration::ZERO, runs as usize);
        while left > 0 {
            let now = self.now;
            whose.clear();
            for train in trains.chunks_mut(room).take(left.min(prepared)) {
                self.next = (self.next + 1) % self.spokes.len();
                let number = self.next as u16 + 1;
                let text = packet(number, 0, length);
                let spoke = &mut self.spokes[self.next];
                let route = spoke.route(&text, run, now).expect("it passes");
                let packets = vec![Packet::whole(&text); run];
                let Ok(Outbound::Send { len, stride, .. }) = spoke.seal_run(route, &packets, train, now)
                else {
                    panic!("there is a session")
                };
                whose.push((Hop::Udp(outside(number)), len, stride));
            }
            let mut delivered = 0;
            let start = Instant::now();
            for (train, &(from, len, stride)) in trains.chunks_mut(room).zip(&whose) {
                let deliver = &mut |_, _| delivered += 1;
                self.hub.inbound_run(&mut train[..len], stride, from, now, deliver);
            }
            took += start.elapsed();
            assert_eq!(delivered, whose.len() * run);
            left -= whose.len();
        }
        took
    }
}

/// Lets the two talk until they have nothing to say.
fn settle<C: Cipher>(
    number: u16,
    (spoke, at_spoke): (&mut Tunnel<C>, &mut Handshaker),
    (hub, at_hub): (&mut Tunnel<C>, &mut Handshaker),
    now: Now,
) {
    let (spoke_at, hub_at) = (Hop::Udp(outside(number)), Hop::Udp(outside(0)));
    let mut datagram = [0; 2048];
    for _ in 0..20 {
        for (tunnel, handshaker) in [(&mut *spoke, &mut *at_spoke), (&mut *hub, &mut *at_hub)] {
            while let Some(job) = tunnel.poll_job() {
                tunnel.handle_job(handshaker.run(job, 0, now), now);
            }
            while tunnel.poll_event().is_some() {}
        }
        while let Some(sent) = spoke.poll_transmit(&mut datagram, now) {
            let _ = hub.inbound(&mut datagram[..sent.len], spoke_at, now);
        }
        while let Some(sent) = hub.poll_transmit(&mut datagram, now) {
            let _ = spoke.inbound(&mut datagram[..sent.len], hub_at, now);
        }
    }
}

fn id(number: u16) -> NodeId {
    NodeId::from_bytes((u64::from(number) + 1).to_be_bytes())
}

/// A node's address in the mesh.
fn inside(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x6440_0001 + u32::from(number))
}

/// Where a node's datagrams come from.
fn outside(number: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0xc633_0001 + u32::from(number))), 51820)
}

/// A UDP packet from one node to another.
fn packet(from: u16, to: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length];
    let [high, low] = (length as u16).to_be_bytes();
    packet[..12].copy_from_slice(&[0x45, 0, high, low, 0, 0, 0, 0, 64, 17, 0, 0]);
    packet[12..16].copy_from_slice(&inside(from).octets());
    packet[16..20].copy_from_slice(&inside(to).octets());
    packet[20..24].copy_from_slice(&[10, 0, 20, 0]);
    packet[24..26].copy_from_slice(&(length as u16 - 20).to_be_bytes());
    let words = packet[..20].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    packet[10..12].copy_from_slice(&(!((sum >> 16) + sum) as u16).to_be_bytes());
    packet
}

fn filter(peers: u16, rules: u16) -> Filter {
    let member = |number: u16| Member {
        network: NetworkId::from_bytes([7; 16]),
        id: id(number),
        name: format!("n{number}"),
        kind: MemberKind::Mesh,
        relay: false,
        noise_key: PublicKey::from_bytes([1; 32]),
        identity_key: None,
        ipv4: Some(inside(number)),
        ipv6: Ipv6Addr::from_bits(u128::from(number) + 1),
        tags: Vec::new(),
        groups: Vec::new(),
        routes: Vec::new(),
        serial: 1,
        not_after: UnixTime::from_secs(4_000_000_000),
    };
    let rule = |number: u16| {
        let last = number + 1 == rules;
        Rule {
            sources: vec![Selector::All],
            destinations: vec![Selector::All],
            protocol: if last { Protocol::Any } else { Protocol::Tcp },
            ports: if last { Vec::new() } else { vec![number.into()] },
        }
    };
    let members: Vec<Member> = (0..=peers).map(member).collect();
    let rules: Vec<Rule> = (0..rules).map(rule).collect();
    Filter::of(&members[0], &members, (0..).zip(&rules), &[])
}
