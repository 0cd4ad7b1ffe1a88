//! The node under test: a `Tunnel` with the filter of the scene, and peers that seal whatever they are given.
//!
//! The peers are `boringtun`s: they have no filter, and look at nothing that they send, so that malformed packets and spoofed
//! ones do reach the node.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::{
    noise::{Tunn, TunnResult, rate_limiter::RateLimiter},
    x25519,
};
use ringmesh_tunnel::{
    DropReason, Handshaker, Hop, Inbound, Now, Outbound, PeerConfig, Psk, Random, Tunnel, UnixTime,
    filter::Direction,
    handshake::Job,
    key::{PresharedKey, SecretKey},
    netmap::{Member, Rule},
};

use super::scene::{Scene, secret};

/// Room for a packet and what sealing adds.
const ROOM: usize = 1 << 16;

pub struct Ours {
    tunnel: Tunnel,
    handshaker: Handshaker,
    peers: Vec<Tunn>,
    now: Now,
    buffer: Vec<u8>,
    sealed: Vec<u8>,
}

fn address(peer: usize) -> SocketAddr {
    ([203, 0, 113, peer as u8 + 1], 51_820).into()
}

fn config(place: usize, member: &Member) -> PeerConfig {
    PeerConfig {
        id: member.id,
        key: member.noise_key,
        psk: Psk::Fixed(PresharedKey::from_bytes([7; 32])),
        mesh: false,
        allowed_ips: member.allowed_ips().collect(),
        candidates: vec![address(place)],
        links: Vec::new(),
        relay: false,
        persistent_keepalive: None,
    }
}

impl Ours {
    /// The node of a scene, with rules that may be others than the scene's.
    pub fn new(scene: &Scene, rules: &[Rule]) -> Self {
        let now = Now::new(Instant::now(), UnixTime::from_secs(1_700_000_000));
        let own = SecretKey::from_bytes(secret(0));
        let mut tunnel = Tunnel::new(0, own.public_key(), Random::seeded(1)).unwrap();
        let mut handshaker = Handshaker::new(&own, Random::seeded(2));
        let configs: Vec<_> =
            scene.peers.iter().enumerate().map(|(place, peer)| config(place, peer)).collect();
        tunnel.apply(&configs, now);
        handshaker.apply(&configs);
        tunnel.apply_filter(Arc::new(scene.filter_of(rules)), now);
        let ours = x25519::PublicKey::from(&x25519::StaticSecret::from(secret(0)));
        let peers = (0..scene.peers.len()).map(|place| {
            let theirs = x25519::StaticSecret::from(secret(place + 1));
            let limiter = RateLimiter::new(&x25519::PublicKey::from(&theirs), u64::MAX);
            Tunn::new(theirs, ours, Some([7; 32]), None, place as u32 + 1, Some(limiter.into()))
        });
        let peers = peers.collect();
        let mut ours = Self { tunnel, handshaker, peers, now, buffer: vec![0; ROOM], sealed: vec![0; ROOM] };
        (0..scene.peers.len()).for_each(|peer| ours.shake_hands(peer));
        ours
    }

    fn shake_hands(&mut self, peer: usize) {
        let TunnResult::WriteToNetwork(initiation) =
            self.peers[peer].format_handshake_initiation(&mut self.buffer, true)
        else {
            panic!("no initiation")
        };
        let mut initiation = initiation.to_vec();
        self.tunnel.inbound(&mut initiation, Hop::Udp(address(peer)), self.now).unwrap();
        let job: Job = self.tunnel.poll_job().unwrap();
        let done = self.handshaker.run(job, 0, self.now);
        self.tunnel.handle_job(done, self.now);
        let response = self.tunnel.poll_transmit(&mut self.sealed, self.now).unwrap();
        let confirmation = self.peers[peer].decapsulate(None, &self.sealed[..response.len], &mut self.buffer);
        let TunnResult::WriteToNetwork(confirmation) = confirmation else { panic!("no confirmation") };
        assert_eq!(
            self.tunnel.inbound(confirmation, Hop::Udp(address(peer)), self.now),
            Ok(Inbound::Consumed)
        );
    }

    /// Whether a packet passes the node under test: to its host, or out to the peer it is for.
    pub fn judge(&mut self, direction: Direction, peer: usize, packet: &[u8]) -> Result<(), DropReason> {
        // As good as nothing: what expires is tested elsewhere.
        self.now = self.now.later(Duration::from_micros(1));
        match direction {
            Direction::In => self.inbound(peer, packet),
            Direction::Out => self.outbound(packet),
        }
    }

    fn inbound(&mut self, peer: usize, packet: &[u8]) -> Result<(), DropReason> {
        let TunnResult::WriteToNetwork(datagram) = self.peers[peer].encapsulate(packet, &mut self.buffer)
        else {
            panic!("peer {peer} cannot seal {packet:02x?}")
        };
        match self.tunnel.inbound(datagram, Hop::Udp(address(peer)), self.now)? {
            Inbound::Packet { range, .. } => {
                assert_eq!(datagram[range], *packet, "the packet that passes is the one that was sent");
                Ok(())
            }
            Inbound::Consumed => panic!("{packet:02x?} is no packet"),
        }
    }

    fn outbound(&mut self, packet: &[u8]) -> Result<(), DropReason> {
        let Outbound::Send { len, to, .. } = self.tunnel.outbound(packet, &mut self.sealed, self.now)? else {
            panic!("there is a session")
        };
        let peer = (0..self.peers.len()).find(|&peer| to == Hop::Udp(address(peer))).unwrap();
        match self.peers[peer].decapsulate(None, &self.sealed[..len], &mut self.buffer) {
            TunnResult::WriteToTunnelV4(received, _) | TunnResult::WriteToTunnelV6(received, _) => {
                assert_eq!(received, packet, "the packet that passes is the one that was sent");
            }
            other => panic!("peer {peer} cannot open {packet:02x?}: {other:?}"),
        }
        Ok(())
    }
}
