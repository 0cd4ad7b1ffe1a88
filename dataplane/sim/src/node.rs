//! A node of the virtual internet: the whole core, driven as a daemon would drive it.

use std::net::SocketAddr;
use std::time::Duration;

use ringmesh_tunnel::handshake::Floors;
use ringmesh_tunnel::key::SecretKey;
use ringmesh_tunnel::message::MAX_OVERHEAD;
use ringmesh_tunnel::tunnel::DEFAULT_MTU;
use ringmesh_tunnel::{
    DropReason, Event, Handshaker, Hop, Inbound, Now, Outbound, PeerConfig, Random, Tunnel,
};

use crate::network::Datagram;
use crate::world::NodeIndex;

const BUFFER_LEN: usize = DEFAULT_MTU as usize + MAX_OVERHEAD;

/// One machine: its tunnel and handshaker, its address, and what happened to it.
#[derive(Debug)]
pub struct Node {
    index: NodeIndex,
    tunnel: Tunnel,
    handshaker: Handshaker,
    peers: Vec<PeerConfig>,
    address: SocketAddr,
    /// How far its wall clock is from the world's: positive is ahead.
    pub(crate) wall_offset_ms: i64,
    /// What the core reported, with its time.
    pub events: Vec<(Duration, Event)>,
}

impl Node {
    pub(crate) fn new(index: NodeIndex, address: SocketAddr, seed: u64) -> Self {
        let secret = secret(index);
        let tunnel = Tunnel::new(0, secret.public_key(), Random::seeded(seed));
        Self {
            index,
            tunnel: tunnel.expect("invariant: a seed always has random bytes"),
            handshaker: Handshaker::new(&secret, Random::seeded(!seed)),
            peers: Vec::new(),
            address,
            wall_offset_ms: 0,
            events: Vec::new(),
        }
    }

    /// Its address on the virtual internet.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its core, to look at.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Sessions that came up, as initiator and as responder.
    #[must_use]
    pub fn sessions(&self) -> (usize, usize) {
        let with = |began: bool| {
            let is =
                |event: &Event| matches!(event, Event::Established { initiator, .. } if *initiator == began);
            self.events.iter().filter(|(_, event)| is(event)).count()
        };
        (with(true), with(false))
    }

    /// How often it dropped something for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.tunnel.drops().get(reason)
    }

    pub(crate) fn move_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Forgets all but its key, its peers and what a daemon writes to disk.
    pub(crate) fn restart(&mut self, seed: u64, now: Now) {
        let floors = Floors::parse(&self.handshaker.floors().emit()).expect("invariant: floors read back");
        let (peers, offset) = (std::mem::take(&mut self.peers), self.wall_offset_ms);
        *self = Self::new(self.index, self.address, seed);
        self.wall_offset_ms = offset;
        self.handshaker.restore(floors);
        self.apply(peers, now);
    }

    pub(crate) fn apply(&mut self, peers: Vec<PeerConfig>, now: Now) {
        self.tunnel.apply(&peers, now);
        self.handshaker.apply(&peers);
        self.peers = peers;
    }

    pub(crate) fn outbound(&mut self, packet: &[u8], now: Now, sent: &mut Vec<Datagram>) {
        let mut buffer = [0; BUFFER_LEN];
        if let Ok(Outbound::Send { len, to }) = self.tunnel.outbound(packet, &mut buffer, now) {
            sent.extend(self.datagram(&buffer[..len], to));
        }
    }

    /// Takes a datagram; returns the packet that was in it and whose it is.
    pub(crate) fn inbound(&mut self, datagram: Datagram, now: Now) -> Option<(Vec<u8>, Option<NodeIndex>)> {
        let mut bytes = datagram.payload;
        match self.tunnel.inbound(&mut bytes, Hop::Udp(datagram.from), now) {
            Ok(Inbound::Packet { range, peer }) => Some((bytes[range].to_vec(), NodeIndex::from_id(peer))),
            Ok(Inbound::Consumed) | Err(_) => None,
        }
    }

    pub(crate) fn ping(&mut self, peer: NodeIndex, token: u64, now: Now) -> bool {
        self.tunnel.ping(peer.id(), token, now).is_ok()
    }

    pub(crate) fn next_deadline(&self) -> Option<std::time::Instant> {
        self.tunnel.poll_deadline()
    }

    /// Does what is due and all that follows.
    pub(crate) fn work(&mut self, now: Now, at: Duration, sent: &mut Vec<Datagram>) {
        if self.tunnel.poll_deadline().is_some_and(|deadline| deadline <= now.monotonic) {
            self.tunnel.handle_deadline(now);
        }
        loop {
            let mut idle = true;
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, 0, now);
                self.tunnel.handle_job(done, now);
                idle = false;
            }
            let mut buffer = [0; BUFFER_LEN];
            while let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, now) {
                sent.extend(self.datagram(&buffer[..transmit.len], transmit.to));
                idle = false;
            }
            if idle {
                break;
            }
        }
        while let Some(event) = self.tunnel.poll_event() {
            self.events.push((at, event));
        }
    }

    fn datagram(&self, bytes: &[u8], to: Hop) -> Option<Datagram> {
        match to {
            Hop::Udp(to) => Some(Datagram { from: self.address, to, payload: bytes.to_vec() }),
            Hop::Link(_) => None,
        }
    }
}

/// Each node has the key of its number, in every world.
pub(crate) fn secret(index: NodeIndex) -> SecretKey {
    let mut bytes = [0x5a; 32];
    bytes[..8].copy_from_slice(index.id().as_bytes());
    SecretKey::from_bytes(bytes)
}
