//! What a relay passes on by itself: a burst of datagrams goes by UDP from one of its clients to the other, on loopback, with no
//! node on either side. Next to it the same burst without the relay, which is what sender, receiver and kernel cost alone.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench that cannot be set up has nothing to say"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criterion::{Criterion, Throughput};
use ringmesh_relay::{Rates, Server, ServerConfig};
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NetworkId, NodeId, PresharedKey, SecretKey};
use ringmesh_tunnel::{
    Handshaker, Hop, Now, Outbound, Path, PeerConfig, Psk, Random, Tunnel, UnixTime, relayed,
};

/// Datagrams in flight: what socket buffers of the default size hold in any case.
const BURST: usize = 64;
/// As two nodes seal them: an empty TCP acknowledgement, and a full packet.
const LENGTHS: [usize; 2] = [52, 1408];
const DATAGRAM: usize = 2048;
/// How long the two may take to find each other.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// How long each waits for the other meanwhile.
const PATIENCE: Duration = Duration::from_millis(2);

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut pair = Pair::introduced();
    let mut group = criterion.benchmark_group(format!("burst of {BURST} datagrams"));
    group.throughput(Throughput::Elements(BURST as u64)).measurement_time(Duration::from_secs(5));
    for length in LENGTHS {
        let (datagram, to) = pair.relayed(length);
        group.bench_function(format!("of {length} through the relay"), |bencher| {
            bencher.iter(|| pair.burst(&datagram, to));
        });
        let straight = pair.far.socket.local_addr().unwrap();
        group.bench_function(format!("of {length} straight"), |bencher| {
            bencher.iter(|| pair.burst(&datagram, straight));
        });
    }
    group.finish();
    criterion.final_summary();
}

/// A client of the relay: a session and a socket.
struct Client {
    tunnel: Tunnel,
    handshaker: Handshaker,
    socket: UdpSocket,
}

struct Pair {
    near: Client,
    far: Client,
    /// Kept, because the relay stops with it.
    _relay: ringmesh_relay::Handle,
}

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 8])
}

fn inside(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(100, 64, 0, number)
}

fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Now::new(Instant::now(), UnixTime::from_secs(wall.as_secs()))
}

/// A packet from 1 to 2.
fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; length];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
    packet[12..16].copy_from_slice(&inside(1).octets());
    packet[16..20].copy_from_slice(&inside(2).octets());
    packet
}

impl Pair {
    /// Two clients with sessions and a channel, by which a first packet went.
    fn introduced() -> Self {
        let secrets = [SecretKey::generate(), SecretKey::generate(), SecretKey::generate()];
        let psk = PresharedKey::generate();
        let member = |number: u8, candidates: Vec<SocketAddr>| PeerConfig {
            id: id(number),
            key: secrets[usize::from(number) - 1].public_key(),
            psk: Psk::Fixed(psk.clone()),
            mesh: true,
            allowed_ips: vec![Prefix::host(inside(number).into())],
            candidates,
            links: Vec::new(),
            relay: number == 3,
            persistent_keepalive: None,
        };
        let config = ServerConfig {
            listen_v4: Some(Ipv4Addr::LOCALHOST),
            listen_v6: None,
            rates: Rates { client: 1 << 60, total: None },
            ..ServerConfig::default()
        };
        let relay = Server::start(config).expect("the relay starts");
        let clients = vec![member(1, Vec::new()), member(2, Vec::new())];
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let network = NetworkId::from_bytes([7; 16]);
        runtime.block_on(relay.apply(network, &secrets[2], clients)).expect("the relay takes the network");

        let at = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), relay.port());
        let client = |secret: &SecretKey, other: u8| {
            Client::new(secret, &[member(other, Vec::new()), member(3, vec![at])])
        };
        let (near, far) = (client(&secrets[0], 2), client(&secrets[1], 1));
        let mut pair = Self { near, far, _relay: relay };
        let give_up = Instant::now() + FOUND_WITHIN;
        while pair.near.channel().is_none() {
            assert!(Instant::now() < give_up, "the two did not find each other");
            pair.near.send(&packet(20));
            pair.near.pump();
            pair.far.pump();
        }
        pair.far.socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        pair
    }

    /// A datagram that the relay passes on as often as it comes, and where the relay is.
    fn relayed(&mut self, length: usize) -> (Vec<u8>, SocketAddr) {
        let mut datagram = vec![0; DATAGRAM];
        match self.near.tunnel.outbound(&packet(length), &mut datagram, now()) {
            Ok(Outbound::Send { len, to: Hop::Udp(to), .. }) if relayed::parse(&datagram).is_some() => {
                datagram.truncate(len);
                (datagram, to)
            }
            other => panic!("it does not go through the relay: {other:?}"),
        }
    }

    /// Sends a burst and waits for all of it.
    fn burst(&self, datagram: &[u8], to: SocketAddr) {
        for _ in 0..BURST {
            self.near.socket.send_to(datagram, to).unwrap();
        }
        let (mut arrived, mut buffer) = (0, [0; DATAGRAM]);
        while arrived < BURST {
            let length =
                self.far.socket.recv(&mut buffer).expect("loopback loses nothing that fits its buffers");
            // What the relay itself has to say is not counted.
            arrived += usize::from(length == datagram.len());
        }
    }
}

impl Client {
    fn new(secret: &SecretKey, peers: &[PeerConfig]) -> Self {
        let mut handshaker = Handshaker::new(secret, Random::system());
        handshaker.apply(peers);
        let mut tunnel = Tunnel::new(0, secret.public_key(), Random::system()).unwrap();
        tunnel.apply(peers, now());
        tunnel.apply_filter(Arc::new(Filter::allow_all()), now());
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { tunnel, handshaker, socket }
    }

    /// The channel to the other client, once packets take it.
    fn channel(&self) -> Option<u32> {
        self.tunnel.peers(now()).find_map(|peer| match peer.endpoint {
            Some(Path::Relay(channel)) => Some(channel.number),
            Some(Path::Udp(_) | Path::Link(_)) | None => None,
        })
    }

    fn send(&mut self, packet: &[u8]) {
        let mut datagram = [0; DATAGRAM];
        if let Ok(Outbound::Send { len, to, .. }) = self.tunnel.outbound(packet, &mut datagram, now()) {
            self.transmit(&datagram[..len], to);
        }
    }

    fn transmit(&self, datagram: &[u8], to: Hop) {
        if let Hop::Udp(to) = to {
            self.socket.send_to(datagram, to).unwrap();
        }
    }

    /// Does what is due, and takes what came.
    fn pump(&mut self) {
        let mut datagram = [0; DATAGRAM];
        self.tunnel.handle_deadline(now());
        while let Ok((length, from)) = self.socket.recv_from(&mut datagram) {
            // What is refused came late or twice.
            let _ = self.tunnel.inbound(&mut datagram[..length], Hop::Udp(from), now());
        }
        while let Some(job) = self.tunnel.poll_job() {
            let done = self.handshaker.run(job, 0, now());
            self.tunnel.handle_job(done, now());
        }
        while self.tunnel.poll_event().is_some() {}
        while let Some(sent) = self.tunnel.poll_transmit(&mut datagram, now()) {
            self.transmit(&datagram[..sent.len], sent.to);
        }
    }
}
