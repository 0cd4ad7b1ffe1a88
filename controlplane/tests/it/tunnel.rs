//! A node's data plane without a TUN device: the real tunnel, over UDP or over a WebSocket, in this process.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use ringmesh_controlplane::clock::Clock;
use ringmesh_relay::frame;
use ringmesh_tunnel::{
    Carrier, Dial, Event, Handshaker, Hop, Link, LinkCandidate, Now, PeerConfig, Psk, Random, Tunnel,
    key::{NodeId, PublicKey},
    message::MAX_OVERHEAD,
    netmap::{Member, NodeRecord},
    tunnel::DEFAULT_MTU,
};
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::client::TestNode;

const BUFFER: usize = DEFAULT_MTU as usize + MAX_OVERHEAD;
/// The only stream there is.
const LINK: Link = Link { number: 1, carrier: Carrier::WebSocket };

/// The relay as a node knows it by its map.
pub fn relay_of(node: &TestNode) -> (Member, NodeRecord) {
    let map = node.map.as_ref().unwrap();
    let member = map.members().find(|member| member.relay).expect("a relay in the map");
    (member.clone(), map.node_record(member.id).expect("the relay's node record").clone())
}

/// How a node reaches its relay.
enum Road {
    Udp(UdpSocket, SocketAddr),
    WebSocket(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

/// The tunnel of a node, with what it sends by.
pub struct DataPlane {
    tunnel: Tunnel,
    handshaker: Handshaker,
    relay: NodeId,
    road: Road,
    events: VecDeque<Event>,
    tokens: u64,
}

fn now() -> Now {
    Now::new(Instant::now(), Clock::system().now())
}

/// The keys with another node, as the node itself derives them.
fn psk(node: &TestNode, peer: &PublicKey) -> Psk {
    let own = node.identity.public_key().noise_key();
    let mut secrets = node.secrets.clone();
    secrets.sort_by_key(|(epoch, _)| std::cmp::Reverse(*epoch));
    let mut newest =
        secrets.iter().map(|(epoch, secret)| secret.derive_psk(node.network, *epoch, &own, peer));
    Psk::Epochs { current: newest.next().unwrap(), previous: newest.next() }
}

impl DataPlane {
    /// Over UDP, to where the relay says it is.
    pub async fn over_udp(node: &TestNode) -> Self {
        let [relay, ..] = relay_of(node).1.endpoints[..] else { panic!("the relay is nowhere") };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self::new(node, Road::Udp(socket, relay))
    }

    /// Over a stream that was upgraded.
    pub async fn over_websocket(node: &TestNode, stream: TlsStream<TcpStream>) -> Self {
        let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
        Self::new(node, Road::WebSocket(Box::new(socket)))
    }

    fn new(node: &TestNode, road: Road) -> Self {
        let (relay, _) = relay_of(node);
        let (candidates, links) = match &road {
            Road::Udp(_, relay) => (vec![*relay], vec![]),
            Road::WebSocket(_) => {
                (vec![], vec![LinkCandidate { number: LINK.number, carrier: LINK.carrier }])
            }
        };
        let peers = node.map.as_ref().unwrap().members().filter(|member| member.id != node.id);
        let config = |member: &Member| PeerConfig {
            id: member.id,
            key: member.noise_key,
            psk: psk(node, &member.noise_key),
            mesh: true,
            allowed_ips: vec![],
            relay: member.relay,
            candidates: if member.relay { candidates.clone() } else { vec![] },
            links: if member.relay { links.clone() } else { vec![] },
            persistent_keepalive: None,
        };
        let configs: Vec<PeerConfig> = peers.map(config).collect();
        let own = node.identity.public_key().noise_key();
        let mut tunnel = Tunnel::new(0, own, Random::system()).unwrap();
        let mut handshaker = Handshaker::new(&node.identity.noise_secret(), Random::system());
        tunnel.apply(&configs, now());
        handshaker.apply(&configs);
        Self { tunnel, handshaker, relay: relay.id, road, events: VecDeque::new(), tokens: 0 }
    }

    /// Where the relay hears this node from.
    pub fn address(&self) -> SocketAddr {
        match &self.road {
            Road::Udp(socket, _) => socket.local_addr().unwrap(),
            Road::WebSocket(stream) => stream.get_ref().get_ref().0.local_addr().unwrap(),
        }
    }

    /// Sends bytes to the relay that are no datagram of the tunnel's.
    pub async fn inject(&mut self, datagram: &[u8]) {
        self.send(datagram).await;
    }

    async fn send(&mut self, datagram: &[u8]) {
        match &mut self.road {
            Road::Udp(socket, relay) => drop(socket.send_to(datagram, *relay).await.unwrap()),
            Road::WebSocket(stream) => {
                let mut message = Vec::new();
                frame::push(&mut message, datagram).unwrap();
                // A stream that was cut is as good as a lost datagram here.
                drop(stream.send(Message::Binary(message.into())).await);
            }
        }
    }

    /// Does and sends everything that is due.
    async fn work(&mut self) {
        let now = now();
        while let Some(dial) = self.tunnel.poll_dial() {
            match dial {
                Dial::Open { peer, candidate, .. } => self.tunnel.link_opened(peer, candidate, LINK, now),
                Dial::Close { .. } => {}
            }
        }
        loop {
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, 0, now);
                self.tunnel.handle_job(done, now);
            }
            let mut buffer = [0; BUFFER];
            let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, now) else { break };
            self.send(&buffer[..transmit.len]).await;
        }
        while let Some(event) = self.tunnel.poll_event() {
            self.events.push_back(event);
        }
    }

    /// Takes what comes next, whatever it is; `false`: nothing will come any more.
    async fn receive(&mut self) -> bool {
        match &mut self.road {
            Road::Udp(socket, _) => {
                let mut buffer = [0; BUFFER];
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                drop(self.tunnel.inbound(&mut buffer[..len], Hop::Udp(from), now()));
            }
            Road::WebSocket(stream) => {
                let Some(Ok(message)) = stream.next().await else { return false };
                let mut bytes = message.into_data().to_vec();
                for datagram in frame::frames_mut(&mut bytes) {
                    drop(self.tunnel.inbound(datagram.unwrap(), Hop::Link(LINK), now()));
                }
            }
        }
        true
    }

    /// Asks the relay for a sign of life; whether it comes within `patience`. Begins a session if there is none.
    pub async fn is_served(&mut self, patience: Duration) -> bool {
        self.answers(self.relay, patience).await
    }

    /// Asks a node for a sign of life.
    pub async fn answers(&mut self, node: NodeId, patience: Duration) -> bool {
        self.tokens += 1;
        let asked = self.tokens;
        let until = tokio::time::Instant::now() + patience;
        let mut is_asked = false;
        loop {
            // Until a first way is found there is nothing to ask by.
            is_asked = is_asked || self.tunnel.ping(node, asked, now()).is_ok();
            self.work().await;
            let answer = |event: Event| matches!(event, Event::Pong { peer, token, .. } if peer == node && token == asked);
            if self.events.drain(..).any(answer) {
                return true;
            }
            let deadline = self.tunnel.poll_deadline().map_or(until, |due| until.min(due.into()));
            match tokio::time::timeout_at(deadline, self.receive()).await {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) if tokio::time::Instant::now() >= until => return false,
                Err(_) => self.tunnel.handle_deadline(now()),
            }
        }
    }

    /// Answers whoever asks, until it is dropped.
    pub async fn run(&mut self) {
        loop {
            self.work().await;
            let due = self.tunnel.poll_deadline().map(tokio::time::Instant::from);
            let due = due.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(1));
            match tokio::time::timeout_at(due, self.receive()).await {
                Ok(true) => {}
                Ok(false) => return std::future::pending().await,
                Err(_) => self.tunnel.handle_deadline(now()),
            }
        }
    }
}
