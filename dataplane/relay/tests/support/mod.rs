//! A client of a relay that is none of our code: `boringtun` for the session, and notices written by hand.
#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use ringmesh_tunnel::key::{NodeId, PresharedKey, SecretKey};
use ringmesh_tunnel::{PeerConfig, Psk, relayed};

const PSK: [u8; 32] = [3; 32];

pub(crate) fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes(key_bytes(number))
}

fn key_bytes(number: u8) -> [u8; 32] {
    let mut bytes = [0x40; 32];
    bytes[1] = number;
    bytes
}

pub(crate) fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 8])
}

/// A member, as the relay is told of it.
pub(crate) fn member(number: u8) -> PeerConfig {
    PeerConfig {
        id: node(number),
        key: secret(number).public_key(),
        psk: Psk::Fixed(PresharedKey::from_bytes(PSK)),
        mesh: true,
        allowed_ips: vec![ringmesh_tunnel::ip::Prefix::host(IpAddr::from([100, 64, 0, number]))],
        relay: false,
        candidates: Vec::new(),
        links: Vec::new(),
        persistent_keepalive: None,
    }
}

/// The number of the relay's own key, whichever network.
pub(crate) const RELAY: u8 = 200;

pub(crate) struct Client {
    pub(crate) number: u8,
    tunn: Tunn,
    /// By target: the channel, and whether the target is there.
    pub(crate) bound: BTreeMap<NodeId, (u32, bool)>,
    pub(crate) refused: Vec<(NodeId, u8)>,
    /// What came through the relay: channel and what the other end sealed.
    pub(crate) relayed: Vec<(u32, Vec<u8>)>,
    /// How often word of a channel came.
    pub(crate) told: usize,
    pub(crate) established: bool,
}

impl Client {
    pub(crate) fn new(number: u8, relay: u8) -> Self {
        let own = x25519::StaticSecret::from(key_bytes(number));
        let public = x25519::PublicKey::from(&own);
        let theirs = x25519::PublicKey::from(*secret(relay).public_key().as_bytes());
        let limiter = RateLimiter::new(&public, u64::MAX);
        Self {
            number,
            tunn: Tunn::new(own, theirs, Some(PSK), None, number.into(), Some(limiter.into())),
            bound: BTreeMap::new(),
            refused: Vec::new(),
            relayed: Vec::new(),
            told: 0,
            established: false,
        }
    }

    pub(crate) fn initiation(&mut self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let TunnResult::WriteToNetwork(datagram) = self.tunn.format_handshake_initiation(&mut buffer, true)
        else {
            panic!("no initiation");
        };
        datagram.to_vec()
    }

    pub(crate) fn seal(&mut self, plaintext: &[u8]) -> Vec<u8> {
        assert!(self.established);
        let mut buffer = [0; 4096];
        let TunnResult::WriteToNetwork(datagram) = self.tunn.encapsulate(plaintext, &mut buffer) else {
            panic!("not sealed");
        };
        datagram.to_vec()
    }

    /// Asks for a channel.
    pub(crate) fn bind(&mut self, target: NodeId) -> Vec<u8> {
        let notice = [[0x10, 4, 0, 8].as_slice(), target.as_bytes()].concat();
        self.seal(&notice)
    }

    /// Says that it lives: an echo request, by a path that its packets take.
    pub(crate) fn hello(&mut self) -> Vec<u8> {
        self.seal(&[0x10, 1, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 1])
    }

    /// A datagram for the other end of the channel to `target`.
    pub(crate) fn to(&self, target: u8, inner: &[u8]) -> Vec<u8> {
        [relayed::emit(self.bound[&node(target)].0).as_slice(), inner].concat()
    }

    /// Takes what the relay sent; returns what is to be sent to it in return.
    pub(crate) fn take(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        if let Some(channel) = relayed::parse(datagram) {
            self.relayed.push((channel, datagram[relayed::HEADER_LEN..].to_vec()));
            return Vec::new();
        }
        let mut replies = Vec::new();
        let mut buffer = [0; 4096];
        let result = self.tunn.decapsulate(Some(IpAddr::from([192, 0, 2, 1])), datagram, &mut buffer);
        let refused = match result {
            TunnResult::WriteToNetwork(reply) => {
                replies.push(reply.to_vec());
                // The answer to our initiation makes a keepalive.
                self.established = true;
                false
            }
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                panic!("a relay sent a packet")
            }
            TunnResult::Err(_) => true,
            TunnResult::Done => false,
        };
        // It knows no notices, but has decrypted this one.
        if refused && datagram[0] == 4 && buffer[0] >> 4 == 1 {
            replies.extend(self.notice(&buffer));
        }
        replies
    }

    /// Takes a notice; an echo request has an answer.
    fn notice(&mut self, plaintext: &[u8]) -> Option<Vec<u8>> {
        if plaintext[1] == 1 {
            let reply = [[0x10, 2, 0, 9].as_slice(), &plaintext[4..12], &[0]].concat();
            return self.established.then(|| self.seal(&reply));
        }
        let target = NodeId::from_bytes(plaintext[4..12].try_into().unwrap());
        match plaintext[1] {
            5 => {
                let channel = u32::from_be_bytes(plaintext[12..16].try_into().unwrap());
                self.bound.insert(target, (channel, plaintext[16] == 1));
                self.told += 1;
            }
            6 => self.refused.push((target, plaintext[12])),
            _ => {}
        }
        None
    }
}

/// What looks like a sealed packet.
pub(crate) fn sealed(length: usize) -> Vec<u8> {
    assert!(length >= 32);
    let mut inner = vec![0xAB; length];
    inner[..4].copy_from_slice(&[4, 0, 0, 0]);
    inner
}

pub(crate) fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}
