//! The same protocol as others speak: our core against Cloudflare's `boringtun`, in process, in both roles.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use ringmesh_aead::{Choice, Key, choose};
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::handshake::UNDER_LOAD_FROM;
use ringmesh_tunnel::key::{NodeId, PresharedKey, SecretKey};
use ringmesh_tunnel::message::MAX_OVERHEAD;
use ringmesh_tunnel::{
    DropReason, Event, Handshaker, Hop, Inbound, Now, Outbound, Packet, PeerConfig, Psk, Random, Tunnel,
    UnixTime,
};

const OURS: [u8; 32] = [11; 32];
const THEIRS: [u8; 32] = [22; 32];
const THEM: NodeId = NodeId::from_bytes([2; 8]);

/// Ours and a `boringtun` that are peers of each other; datagrams between them arrive at once.
struct Interop {
    tunnel: Tunnel,
    handshaker: Handshaker,
    theirs: Tunn,
    now: Now,
    /// Jobs that wait before each of ours: enough of them is being under load.
    load: usize,
    our_packets: Vec<Vec<u8>>,
    their_packets: Vec<Vec<u8>>,
    events: Vec<Event>,
    /// The types of our messages that were sent.
    our_messages: Vec<u8>,
    /// The types of their messages that were sent.
    their_messages: Vec<u8>,
}

fn theirs_at() -> SocketAddr {
    "192.0.2.2:51820".parse().unwrap()
}

impl Interop {
    fn new(our_psk: [u8; 32], their_psk: Option<[u8; 32]>) -> Self {
        Self::with_limit(our_psk, their_psk, u64::MAX)
    }

    /// `limit` is how many handshakes a second their side takes before it is under load.
    fn with_limit(our_psk: [u8; 32], their_psk: Option<[u8; 32]>, limit: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the only way to get an instant to count from")]
        let now = Now::new(Instant::now(), UnixTime::from_secs(1_700_000_000));
        let secret = SecretKey::from_bytes(OURS);
        // The kernel that a node would use here; the other one is what all other tests use.
        let kernel = choose(Choice::Auto).kernel;
        let mut tunnel =
            Tunnel::<Key>::with_cipher(0, secret.public_key(), Random::seeded(1), kernel).unwrap();
        let mut handshaker = Handshaker::new(&secret, Random::seeded(2));
        let config = [PeerConfig {
            id: THEM,
            key: SecretKey::from_bytes(THEIRS).public_key(),
            psk: Psk::Fixed(PresharedKey::from_bytes(our_psk)),
            mesh: false,
            allowed_ips: vec!["10.0.0.2/32".parse().unwrap(), "fd00::2/128".parse().unwrap()],
            candidates: vec![theirs_at()],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        }];
        tunnel.apply(&config, now);
        tunnel.apply_filter(Arc::new(Filter::allow_all()), now);
        handshaker.apply(&config);
        let their_secret = x25519::StaticSecret::from(THEIRS);
        let limiter = RateLimiter::new(&x25519::PublicKey::from(&their_secret), limit);
        let our_public = x25519::PublicKey::from(&x25519::StaticSecret::from(OURS));
        let theirs = Tunn::new(their_secret, our_public, their_psk, None, 7, Some(limiter.into()));
        Self {
            tunnel,
            handshaker,
            theirs,
            now,
            load: 0,
            our_packets: Vec::new(),
            their_packets: Vec::new(),
            events: Vec::new(),
            our_messages: Vec::new(),
            their_messages: Vec::new(),
        }
    }

    fn we_send(&mut self, packet: &[u8]) {
        let mut buffer = [0; 2000];
        if let Outbound::Send { len, .. } = self.tunnel.outbound(packet, &mut buffer, self.now).unwrap() {
            self.they_get(&buffer[..len]);
        }
        self.work();
    }

    /// Sends packets of one length as a run.
    fn we_send_run(&mut self, packets: &[Vec<u8>]) {
        let route = self.tunnel.route(&packets[0], packets.len(), self.now).unwrap();
        let runs: Vec<Packet<'_>> = packets.iter().map(|packet| Packet::whole(packet)).collect();
        let mut buffer = vec![0; packets.len() * (1408 + MAX_OVERHEAD)];
        let sealed = self.tunnel.seal_run(route, &runs, &mut buffer, self.now);
        let Ok(Outbound::Send { len, stride, .. }) = sealed else { panic!("{sealed:?}") };
        buffer[..len].chunks(stride).for_each(|datagram| self.they_get(datagram));
        self.work();
    }

    /// Gets packets of theirs as a train, in which one datagram comes twice and one is damaged.
    fn they_send_train(&mut self, packets: &[Vec<u8>], twice: usize, damaged: usize) {
        let mut datagrams: Vec<Vec<u8>> = Vec::new();
        for packet in packets {
            let mut buffer = [0; 2000];
            let TunnResult::WriteToNetwork(datagram) = self.theirs.encapsulate(packet, &mut buffer) else {
                panic!("they have a session")
            };
            datagrams.push(datagram.to_vec());
        }
        let stride = datagrams[0].len();
        datagrams[damaged][stride / 2] ^= 1;
        datagrams.insert(twice + 1, datagrams[twice].clone());
        let mut train = datagrams.concat();
        let mut got = Vec::new();
        let deliver = &mut |index: usize, range: std::ops::Range<usize>| got.push((index, range));
        self.tunnel.inbound_run(&mut train, stride, Hop::Udp(theirs_at()), self.now, deliver);
        let packet =
            |(index, range): (usize, std::ops::Range<usize>)| train[index * stride..][range].to_vec();
        self.our_packets.extend(got.into_iter().map(packet));
        self.work();
    }

    fn they_send(&mut self, packet: &[u8]) {
        let mut buffer = [0; 2000];
        if let TunnResult::WriteToNetwork(datagram) = self.theirs.encapsulate(packet, &mut buffer) {
            let datagram = datagram.to_vec();
            self.we_get(&datagram);
        }
        self.work();
    }

    fn they_get(&mut self, datagram: &[u8]) {
        self.our_messages.push(datagram[0]);
        let mut datagram = datagram;
        loop {
            let mut buffer = [0; 2000];
            let source: IpAddr = [192, 0, 2, 1].into();
            match self.theirs.decapsulate(Some(source), datagram, &mut buffer) {
                TunnResult::WriteToNetwork(reply) => {
                    let reply = reply.to_vec();
                    self.we_get(&reply);
                    datagram = &[];
                }
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    self.their_packets.push(packet.to_vec());
                    return;
                }
                TunnResult::Done | TunnResult::Err(_) => return,
            }
        }
    }

    fn we_get(&mut self, datagram: &[u8]) {
        self.their_messages.push(datagram[0]);
        let mut bytes = datagram.to_vec();
        if let Ok(Inbound::Packet { range, peer }) =
            self.tunnel.inbound(&mut bytes, Hop::Udp(theirs_at()), self.now)
        {
            assert_eq!(peer, THEM);
            self.our_packets.push(bytes[range].to_vec());
        }
        self.work();
    }

    fn work(&mut self) {
        loop {
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, self.load, self.now);
                self.tunnel.handle_job(done, self.now);
            }
            let mut buffer = [0; 1408 + MAX_OVERHEAD];
            let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, self.now) else { break };
            self.they_get(&buffer[..transmit.len]);
        }
        self.events.extend(std::iter::from_fn(|| self.tunnel.poll_event()));
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.later(time);
        self.tunnel.handle_deadline(self.now);
        self.work();
    }

    fn assert_traffic(&mut self) {
        for len in [0, 1, 15, 16, 17, 100, 1380] {
            self.our_packets.clear();
            self.their_packets.clear();
            let ours = packet([10, 0, 0, 1], [10, 0, 0, 2], len);
            self.we_send(&ours);
            assert_eq!(self.their_packets, [ours]);
            let theirs = packet([10, 0, 0, 2], [10, 0, 0, 1], len);
            self.they_send(&theirs);
            assert_eq!(self.our_packets, [theirs]);
        }
    }

    fn established(&self) -> Vec<bool> {
        let events = self.events.iter();
        events
            .filter_map(|event| match *event {
                Event::Established { initiator, .. } => Some(initiator),
                Event::Unreachable { .. }
                | Event::Expired { .. }
                | Event::PathSelected { .. }
                | Event::SeenFrom { .. }
                | Event::BindRequested { .. }
                | Event::Pong { .. } => None,
            })
            .collect()
    }
}

fn packet(source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let len = 20 + payload;
    let mut packet = vec![0x45, 0];
    packet.extend((len as u16).to_be_bytes());
    packet.resize(12, 0);
    packet.extend(source);
    packet.extend(destination);
    packet.extend((0..payload).map(|i| i as u8));
    packet
}

#[test]
fn we_initiate_and_traffic_passes_both_ways() {
    for (ours, theirs) in [([3; 32], Some([3; 32])), ([0; 32], None)] {
        let mut interop = Interop::new(ours, theirs);
        interop.we_send(&packet([10, 0, 0, 1], [10, 0, 0, 2], 40));
        assert_eq!(interop.established(), [true]);
        assert_eq!(interop.their_packets.len(), 1, "the packet that was held");
        interop.assert_traffic();
        assert_eq!(interop.our_messages[0], 1);
        assert_eq!(interop.our_messages.iter().filter(|&&kind| kind == 1).count(), 1);
        assert_eq!(interop.tunnel.drops().total(), 0);
    }
}

#[test]
fn they_open_our_runs_and_we_open_their_trains() {
    let mut interop = Interop::new([3; 32], Some([3; 32]));
    interop.assert_traffic();
    for (count, len) in [(1, 0), (16, 100), (45, 1380), (128, 1)] {
        interop.our_packets.clear();
        interop.their_packets.clear();
        let mut ours: Vec<Vec<u8>> = vec![packet([10, 0, 0, 1], [10, 0, 0, 2], len); count];
        *ours.last_mut().unwrap() = packet([10, 0, 0, 1], [10, 0, 0, 2], len / 2);
        interop.we_send_run(&ours);
        assert_eq!(interop.their_packets, ours);
    }
    for (count, len) in [(3, 0), (16, 100), (45, 1380), (200, 9)] {
        interop.our_packets.clear();
        let before = interop.tunnel.drops().clone();
        let mut theirs: Vec<Vec<u8>> =
            (0..count).map(|_| packet([10, 0, 0, 2], [10, 0, 0, 1], len)).collect();
        interop.they_send_train(&theirs, 1, 2);
        theirs.remove(2);
        assert_eq!(interop.our_packets, theirs);
        for reason in [DropReason::Replayed, DropReason::BadSeal] {
            assert_eq!(interop.tunnel.drops().get(reason), before.get(reason) + 1, "{reason}");
        }
    }
}

#[test]
fn they_initiate_and_traffic_passes_both_ways() {
    for (ours, theirs) in [([3; 32], Some([3; 32])), ([0; 32], None)] {
        let mut interop = Interop::new(ours, theirs);
        interop.they_send(&packet([10, 0, 0, 2], [10, 0, 0, 1], 40));
        assert_eq!(interop.established(), [false]);
        assert_eq!(interop.our_packets.len(), 1, "the packet that was held");
        interop.assert_traffic();
        assert_eq!(interop.their_messages[0], 1);
        assert!(!interop.our_messages.contains(&1));
        assert_eq!(interop.tunnel.drops().total(), 0);
    }
}

#[test]
fn peer_with_another_psk_is_refused_in_both_roles() {
    for theirs in [Some([4; 32]), None] {
        let mut interop = Interop::new([3; 32], theirs);
        interop.we_send(&packet([10, 0, 0, 1], [10, 0, 0, 2], 40));
        assert_eq!(interop.tunnel.drops().get(DropReason::BadHandshake), 1, "their response does not open");
        interop.they_send(&packet([10, 0, 0, 2], [10, 0, 0, 1], 40));
        assert_eq!(interop.our_messages, [1, 2], "answered, as only the answer tells them");
        assert!(interop.established().is_empty());
        assert!(interop.our_packets.is_empty() && interop.their_packets.is_empty());
    }
}

#[test]
fn our_rekey_is_taken_up_and_loses_nothing() {
    let mut interop = Interop::new([3; 32], Some([3; 32]));
    interop.assert_traffic();
    interop.pass(Duration::from_secs(121));
    interop.assert_traffic();
    assert_eq!(interop.established(), [true, true]);
    interop.assert_traffic();
}

#[test]
fn their_rekey_is_taken_up_and_loses_nothing() {
    let mut interop = Interop::new([3; 32], Some([3; 32]));
    interop.they_send(&packet([10, 0, 0, 2], [10, 0, 0, 1], 40));
    // Their clock is the real one, so they are told to rekey; on ours enough time passes for it to be no flood.
    interop.pass(Duration::from_secs(1));
    let mut buffer = [0; 2000];
    let TunnResult::WriteToNetwork(initiation) =
        interop.theirs.format_handshake_initiation(&mut buffer, true)
    else {
        panic!("they were told to")
    };
    let initiation = initiation.to_vec();
    // WireGuard rounds timestamps to 16.8 ms, `boringtun` does not; either way theirs must be later than their last.
    interop.we_get(&initiation);
    assert_eq!(interop.established(), [false, false]);
    interop.assert_traffic();
}

#[test]
fn they_take_a_session_that_we_began_at_the_same_time() {
    let mut interop = Interop::new([3; 32], Some([3; 32]));
    let mut buffer = [0; 2000];
    let outbound =
        interop.tunnel.outbound(&packet([10, 0, 0, 1], [10, 0, 0, 2], 4), &mut buffer, interop.now);
    assert_eq!(outbound, Ok(Outbound::Held));
    interop.they_send(&packet([10, 0, 0, 2], [10, 0, 0, 1], 4));
    interop.work();
    interop.pass(Duration::from_millis(5334));
    interop.assert_traffic();
}

#[test]
fn their_cookie_is_understood() {
    let mut interop = Interop::with_limit([3; 32], Some([3; 32]), 0);
    interop.we_send(&packet([10, 0, 0, 1], [10, 0, 0, 2], 40));
    assert_eq!(interop.their_messages, [3], "they are under load");
    assert!(interop.established().is_empty());
    interop.pass(Duration::from_millis(5334));
    assert_eq!(interop.established(), [true]);
    assert_eq!(interop.their_packets.len(), 1);
}

#[test]
fn our_cookie_is_understood() {
    let mut interop = Interop::new([3; 32], Some([3; 32]));
    interop.load = UNDER_LOAD_FROM;
    interop.they_send(&packet([10, 0, 0, 2], [10, 0, 0, 1], 40));
    assert_eq!(interop.our_messages, [3]);
    let mut buffer = [0; 2000];
    let TunnResult::WriteToNetwork(again) = interop.theirs.format_handshake_initiation(&mut buffer, true)
    else {
        panic!("they were told to")
    };
    let again = again.to_vec();
    interop.we_get(&again);
    assert_eq!(interop.established(), [false]);
    assert_eq!(interop.our_packets.len(), 1);
}
