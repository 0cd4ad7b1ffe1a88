//! A node's end of a session with a relay: the real tunnel, over UDP or over a stream, in this process.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use ringmesh_controlplane::clock::Clock;
use ringmesh_tunnel::{
    Event, Handshaker, Hop, Now, PeerConfig, Psk, Random, Tunnel,
    key::NodeId,
    message::MAX_OVERHEAD,
    netmap::{Member, NodeRecord},
    tunnel::DEFAULT_MTU,
};
use tokio::net::UdpSocket;

use crate::client::TestNode;

const BUFFER: usize = DEFAULT_MTU as usize + MAX_OVERHEAD;

/// The relay as a node knows it by its map.
pub fn relay_of(node: &TestNode) -> (Member, NodeRecord) {
    let map = node.map.as_ref().unwrap();
    let member = map.members().find(|member| member.relay).expect("a relay in the map");
    (member.clone(), map.node_record(member.id).expect("the relay's node record").clone())
}

/// A session with a relay.
pub struct Session {
    tunnel: Tunnel,
    handshaker: Handshaker,
    relay: NodeId,
    events: VecDeque<Event>,
    tokens: u64,
}

fn now() -> Now {
    Now::new(Instant::now(), Clock::system().now())
}

impl Session {
    /// Between `node` and the relay in its map, if that is at `endpoint`.
    pub fn new(node: &TestNode, endpoint: SocketAddr) -> Self {
        let (relay, _) = relay_of(node);
        let (secret, own) = (node.identity.noise_secret(), node.identity.public_key().noise_key());
        let mut secrets = node.secrets.clone();
        secrets.sort_by_key(|(epoch, _)| std::cmp::Reverse(*epoch));
        let mut newest = secrets
            .iter()
            .map(|(epoch, secret)| secret.derive_psk(node.network, *epoch, &own, &relay.noise_key));
        let config = PeerConfig {
            id: relay.id,
            key: relay.noise_key,
            psk: Psk::Epochs { current: newest.next().unwrap(), previous: newest.next() },
            mesh: true,
            allowed_ips: vec![],
            relay: false,
            candidates: vec![endpoint],
            links: vec![],
            persistent_keepalive: None,
        };
        let mut tunnel = Tunnel::new(0, own, Random::system()).unwrap();
        let mut handshaker = Handshaker::new(&secret, Random::system());
        tunnel.apply(std::slice::from_ref(&config), now());
        handshaker.apply(&[config]);
        Self { tunnel, handshaker, relay: relay.id, events: VecDeque::new(), tokens: 0 }
    }

    /// Everything that is to be sent now.
    fn output(&mut self) -> Vec<Vec<u8>> {
        let (now, mut sent) = (now(), Vec::new());
        while let Some(job) = self.tunnel.poll_job() {
            let done = self.handshaker.run(job, 0, now);
            self.tunnel.handle_job(done, now);
        }
        let mut buffer = [0; BUFFER];
        while let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, now) {
            sent.push(buffer[..transmit.len].to_vec());
        }
        while let Some(event) = self.tunnel.poll_event() {
            self.events.push_back(event);
        }
        sent
    }

    fn input(&mut self, datagram: &mut [u8], from: Hop) {
        drop(self.tunnel.inbound(datagram, from, now()));
    }

    /// Asks for a sign of life; whether it comes within `patience`. Begins the session if there is none.
    pub async fn answers(&mut self, socket: &UdpSocket, relay: SocketAddr, patience: Duration) -> bool {
        self.tokens += 1;
        let asked = self.tokens;
        self.tunnel.ping(self.relay, asked, now()).unwrap();
        let until = tokio::time::Instant::now() + patience;
        loop {
            for datagram in self.output() {
                socket.send_to(&datagram, relay).await.unwrap();
            }
            let answered = |event: &Event| matches!(event, Event::Pong { token, .. } if *token == asked);
            if self.events.drain(..).any(|event| answered(&event)) {
                return true;
            }
            let deadline = self.tunnel.poll_deadline().map_or(until, |due| until.min(due.into()));
            let mut buffer = [0; BUFFER];
            match tokio::time::timeout_at(deadline, socket.recv_from(&mut buffer)).await {
                Ok(received) => {
                    let (len, from) = received.unwrap();
                    self.input(&mut buffer[..len], Hop::Udp(from));
                }
                Err(_) if tokio::time::Instant::now() >= until => return false,
                Err(_) => self.tunnel.handle_deadline(now()),
            }
        }
    }
}
