//! Real sockets: nodes with our own core at both ends, and clients that only speak to the relay.
#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should end")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures_util::{SinkExt as _, StreamExt as _};
use ringmesh_relay::frame;
use ringmesh_relay::{Handle, Report, Server, ServerConfig};
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NetworkId, PresharedKey};
use ringmesh_tunnel::{
    Carrier, Dial, Handshaker, Hop, Inbound, Link, LinkCandidate, Now, Outbound, PeerConfig, Psk, Random,
    Tunnel, UnixTime,
};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{self, Message};

use super::support::{Client, RELAY, member, node, secret};

pub(crate) const WAIT: Duration = Duration::from_secs(20);

pub(crate) fn network(number: u8) -> NetworkId {
    NetworkId::from_bytes([number; 16])
}

pub(crate) fn now() -> Now {
    let wall = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    Now::new(Instant::now(), UnixTime::from_millis(wall.as_millis() as u64))
}

pub(crate) fn loopback() -> ServerConfig {
    ServerConfig { listen_v4: Some(Ipv4Addr::LOCALHOST), listen_v6: None, ..ServerConfig::default() }
}

/// A server on loopback: UDP, and plain TCP whose connections are offered as WebSockets.
pub(crate) struct TestServer {
    pub(crate) handle: Handle,
    pub(crate) udp: SocketAddr,
    pub(crate) tcp: SocketAddr,
    accept: tokio::task::JoinHandle<()>,
}

impl TestServer {
    /// Serves network 1 with members 1 to `count`.
    pub(crate) async fn start(config: ServerConfig, count: u8) -> Self {
        let server = Self::bare(config).await;
        server.apply(1, RELAY, 1..=count).await;
        server
    }

    pub(crate) async fn bare(config: ServerConfig) -> Self {
        let handle = Server::start(config).unwrap();
        // Room for as many as the hostile clients of a test are: what the kernel drops, nobody can close in time.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(4096).unwrap();
        let tcp = listener.local_addr().unwrap();
        let offered = handle.clone();
        let accept = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let _ = offered.offer_websocket(stream, peer);
            }
        });
        let udp = SocketAddr::from(([127, 0, 0, 1], handle.port()));
        Self { handle, udp, tcp, accept }
    }

    pub(crate) async fn apply(&self, number: u8, relay: u8, members: impl Iterator<Item = u8>) {
        let members: Vec<PeerConfig> = members.map(member).collect();
        self.handle.apply(network(number), &secret(relay), members).await.unwrap();
    }

    pub(crate) async fn report(&self) -> Report {
        self.handle.report().await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.accept.abort();
        let handle = self.handle;
        tokio::task::spawn_blocking(move || handle.stop()).await.unwrap();
    }
}

/// Asks again and again, without hurry, until something is so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let give_up = Instant::now() + WAIT;
    while !is_so().await {
        assert!(Instant::now() < give_up, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn request(tcp: SocketAddr) -> Request {
    let mut request = format!("ws://{tcp}/relay/v1").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "ringmesh.relay.v1".parse().unwrap());
    request
}

pub(crate) type Socket = WebSocketStream<TcpStream>;

pub(crate) async fn websocket(tcp: SocketAddr) -> Result<Socket, tungstenite::Error> {
    let stream = TcpStream::connect(tcp).await?;
    stream.set_nodelay(true)?;
    tokio_tungstenite::client_async(request(tcp), stream).await.map(|(socket, _)| socket)
}

pub(crate) fn message(datagrams: &[Vec<u8>]) -> Message {
    let mut bytes = Vec::new();
    datagrams.iter().for_each(|datagram| frame::push(&mut bytes, datagram).unwrap());
    Message::Binary(bytes.into())
}

/// The datagrams of the next binary message; none once the other side has closed.
pub(crate) async fn datagrams(socket: &mut Socket) -> Option<Vec<Vec<u8>>> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                let mut bytes = bytes.to_vec();
                return Some(frame::frames_mut(&mut bytes).map(|frame| frame.unwrap().to_vec()).collect());
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(_)) | Some(Err(_)) | None => return None,
        }
    }
}

/// A [`Client`] and how it reaches the relay.
pub(crate) struct UdpClient {
    pub(crate) client: Client,
    pub(crate) socket: UdpSocket,
}

impl UdpClient {
    /// One that has a session with the relay.
    pub(crate) async fn meet(server: SocketAddr, number: u8, relay: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(server).await.unwrap();
        let mut this = Self { client: Client::new(number, relay), socket };
        let initiation = this.client.initiation();
        this.send(&initiation).await;
        while !this.client.established {
            this.turn().await;
        }
        this
    }

    pub(crate) async fn send(&self, datagram: &[u8]) {
        self.socket.send(datagram).await.unwrap();
    }

    /// Takes one datagram and answers it.
    pub(crate) async fn turn(&mut self) {
        let mut buffer = [0; 65536];
        let length = timeout(WAIT, self.socket.recv(&mut buffer)).await.expect("a datagram").unwrap();
        for reply in self.client.take(&buffer[..length]) {
            self.send(&reply).await;
        }
    }

    /// Takes what comes for a while.
    pub(crate) async fn turns(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        let _ = tokio::time::timeout_at(until, async {
            loop {
                self.turn().await;
            }
        })
        .await;
    }

    pub(crate) async fn bind(&mut self, target: u8) {
        let told = self.client.told;
        let bind = self.client.bind(node(target));
        self.send(&bind).await;
        while self.client.told == told {
            self.turn().await;
        }
    }
}

/// A node of ours: core, handshaker, one UDP socket, and WebSockets as the core wants them.
pub(crate) struct Node {
    pub(crate) packets: mpsc::Sender<Vec<u8>>,
    pub(crate) received: mpsc::Receiver<Vec<u8>>,
    pub(crate) udp_blocked: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
    number: u8,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a node may reach the relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roads {
    pub(crate) udp: Option<SocketAddr>,
    pub(crate) websocket: Option<SocketAddr>,
}

struct Driver {
    tunnel: Tunnel,
    handshaker: Handshaker,
    socket: UdpSocket,
    websocket: Option<(Link, Socket)>,
    links: u32,
    roads: Roads,
    blocked: Arc<AtomicBool>,
    received: mpsc::Sender<Vec<u8>>,
}

pub(crate) fn inner(number: u8) -> IpAddr {
    IpAddr::from([100, 64, 0, number])
}

fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 100, 64, 0, from, 100, 64, 0, to];
    packet.extend_from_slice(payload);
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet
}

impl Node {
    /// A node that knows the relay, and one peer that it can reach through the relay only.
    pub(crate) async fn start(number: u8, peer: u8, relay: u8, roads: Roads) -> Self {
        let own = secret(number);
        let mut tunnel = Tunnel::new(0, own.public_key(), Random::system()).unwrap();
        let mut handshaker = Handshaker::new(&own, Random::system());
        let mut relay_peer = member(relay);
        relay_peer.relay = true;
        relay_peer.allowed_ips.clear();
        relay_peer.candidates = roads.udp.into_iter().collect();
        relay_peer.links = roads
            .websocket
            .map(|_| LinkCandidate { number: 1, carrier: Carrier::WebSocket })
            .into_iter()
            .collect();
        let mut other = member(peer);
        // Between the two, another key than with the relay.
        other.psk = Psk::Fixed(PresharedKey::from_bytes([9; 32]));
        other.allowed_ips = vec![Prefix::host(inner(peer))];
        let peers = [relay_peer, other];
        tunnel.apply(&peers, now());
        tunnel.apply_filter(Arc::new(Filter::allow_all()), now());
        handshaker.apply(&peers);
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (packets, packets_in) = mpsc::channel(64);
        let (received_out, received) = mpsc::channel(4096);
        let udp_blocked = Arc::new(AtomicBool::new(false));
        let driver = Driver {
            tunnel,
            handshaker,
            socket,
            websocket: None,
            links: 0,
            roads,
            blocked: udp_blocked.clone(),
            received: received_out,
        };
        let task = tokio::spawn(driver.run(packets_in));
        Self { packets, received, udp_blocked, task, number }
    }

    pub(crate) async fn send(&self, to: u8, payload: &[u8]) {
        self.packets.send(packet(self.number, to, payload)).await.unwrap();
    }

    /// Takes packets until this payload comes; shorter ones may be left over from when paths were found.
    pub(crate) async fn receive_this(&mut self, payload: &[u8]) {
        loop {
            let got = self.receive().await;
            if got.len() == payload.len() {
                assert!(got == payload, "another payload");
                return;
            }
        }
    }

    /// The next packet's payload.
    pub(crate) async fn receive(&mut self) -> Vec<u8> {
        let packet = timeout(WAIT, self.received.recv()).await.expect("a packet").unwrap();
        packet[20..].to_vec()
    }
}

impl Driver {
    async fn run(mut self, mut packets: mpsc::Receiver<Vec<u8>>) {
        let mut buffer = vec![0; 65536];
        loop {
            self.drain().await;
            let deadline = self.tunnel.poll_deadline().unwrap_or_else(|| Instant::now() + WAIT);
            let from_link = async {
                match &mut self.websocket {
                    Some((link, socket)) => (*link, datagrams(socket).await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    let (length, from) = received.unwrap();
                    if !self.blocked.load(Ordering::Relaxed) {
                        self.inbound(&mut buffer[..length], Hop::Udp(from));
                    }
                }
                (link, received) = from_link => match received {
                    Some(all) => all.into_iter().for_each(|mut one| self.inbound(&mut one, Hop::Link(link))),
                    None => {
                        self.websocket = None;
                        self.tunnel.link_closed(link, now());
                    }
                },
                packet = packets.recv() => {
                    let Some(packet) = packet else { return };
                    let mut datagram = vec![0; 4096];
                    if let Ok(Outbound::Send { len, to, .. }) = self.tunnel.outbound(&packet, &mut datagram, now()) {
                        datagram.truncate(len);
                        self.send(to, datagram).await;
                    }
                }
                () = sleep_until(deadline.into()) => self.tunnel.handle_deadline(now()),
            }
        }
    }

    fn inbound(&mut self, datagram: &mut [u8], from: Hop) {
        if let Ok(Inbound::Packet { range, .. }) = self.tunnel.inbound(datagram, from, now()) {
            self.received.try_send(datagram[range].to_vec()).unwrap();
        }
    }

    async fn drain(&mut self) {
        loop {
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, 0, now());
                self.tunnel.handle_job(done, now());
            }
            while self.tunnel.poll_event().is_some() {}
            if let Some(dial) = self.tunnel.poll_dial() {
                self.dial(dial).await;
                continue;
            }
            let mut buffer = vec![0; 4096];
            let Some(transmit) = self.tunnel.poll_transmit(&mut buffer, now()) else { return };
            buffer.truncate(transmit.len);
            self.send(transmit.to, buffer).await;
        }
    }

    async fn dial(&mut self, dial: Dial) {
        match dial {
            Dial::Open { peer, candidate, .. } => match websocket(self.roads.websocket.unwrap()).await {
                Ok(socket) => {
                    self.links += 1;
                    let link = Link { number: self.links, carrier: Carrier::WebSocket };
                    if let Some((old, _)) = self.websocket.replace((link, socket)) {
                        self.tunnel.link_closed(old, now());
                    }
                    self.tunnel.link_opened(peer, candidate, link, now());
                }
                Err(_) => self.tunnel.link_failed(peer, candidate, now()),
            },
            Dial::Close { link } => {
                if self.websocket.as_ref().is_some_and(|(open, _)| *open == link) {
                    self.websocket = None;
                }
            }
        }
    }

    async fn send(&mut self, to: Hop, datagram: Vec<u8>) {
        match to {
            Hop::Udp(to) => {
                if !self.blocked.load(Ordering::Relaxed) {
                    let _ = self.socket.send_to(&datagram, to).await;
                }
            }
            Hop::Link(link) => {
                if let Some((open, socket)) = &mut self.websocket
                    && *open == link
                    && socket.send(message(&[datagram])).await.is_err()
                {
                    self.websocket = None;
                    self.tunnel.link_closed(link, now());
                }
            }
        }
    }
}
