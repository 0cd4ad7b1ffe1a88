//! One node of ours, and a crowd of stock WireGuard devices that this program plays: thousands of peers need not be
//! thousands of processes.
//!
//! Each device has its own key, session and address on the underlay, so that nothing that is sent to one can be sent together
//! with what is sent to another. The coordinator runs on the crowd's host, and the devices are added at it as an operator would.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::TokioIo;
use ringmesh_lab::{Host, Lab};
use ringmesh_proto::admin::AddStockDeviceRequest;
use ringmesh_proto::admin::node_service_client::NodeServiceClient;
use ringmesh_tunnel::filter::Filter;
use ringmesh_tunnel::ip::Prefix;
use ringmesh_tunnel::key::{NodeId, PresharedKey, PublicKey, SecretKey};
use ringmesh_tunnel::{Handshaker, Hop, Now, Outbound, PeerConfig, PeerState, Psk, Random, Tunnel, UnixTime};
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};

use super::{Daemons, Order, Tools, ours, output, tools};
use crate::ground::{Ground, Laid};

/// Where every device listens, on its own address.
pub(crate) const PORT: u16 = 51821;
/// The devices' addresses on the underlay: 16,384 of them behind the second host.
const OUTSIDE: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 99, 64, 0), 18);
/// How long an answer to a handshake may take, and how often it is asked for.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 10;
/// How long the node may take to take so many peers into its data plane.
const INSTALLED_WITHIN: Duration = Duration::from_secs(120);
/// Room for anything that comes to a device.
const DATAGRAM: usize = 2048;

/// A node and its crowd.
#[derive(Debug)]
pub(crate) struct Crowded {
    hosts: [Host; 2],
    daemons: Daemons,
    node: Ipv4Addr,
    devices: Vec<Device>,
    _lab: Lab,
}

impl Crowded {
    /// Starts the node and adds so many devices. Nobody has a session yet.
    ///
    /// # Errors
    /// With what could not be set up.
    pub(crate) fn set_up(order: &Order, tools: &Tools, count: usize) -> Result<Self> {
        let lab = Lab::new()?;
        let mut daemons = Daemons::default();
        let Laid { hosts, underlay, .. } = Ground::PLAIN.lay(&lab)?;
        let [near, far] = &hosts;
        // Every address of that range is the second host's, without being given to it one by one.
        let range = format!("{}/{}", OUTSIDE.0, OUTSIDE.1);
        let mut command =
            far.command(tools::in_path("ip").context("there is no ip (apt-get install iproute2)")?)?;
        command.args(["route", "add", "local", &range, "dev", "lo"]);
        output(command, "")?;
        near.add_route((OUTSIDE.0.into(), OUTSIDE.1), "eth0", Some(underlay[1]))?;
        let meshctl = tools.meshctl()?;
        let plan = ours::Plan {
            meshctl,
            null: None,
            back_end: order.kind.back_end(),
            tuning: &order.tuning,
            coordinator: far,
            coordinator_address: underlay[1],
            coordinator_relays: false,
            nodes: std::slice::from_ref(near),
            ssh: false,
            policy: None,
        };
        let addresses = plan.start(&mut daemons)?;
        let [IpAddr::V4(node)] = addresses[..] else { bail!("the node has no IPv4 address") };
        let status = ours::status(near, meshctl)?;
        let key: PublicKey = ours::text(&status, &["network", "self", "noise_key"])?.parse()?;
        let at = SocketAddr::new(underlay[0], ours::NODE_PORT);
        let devices = far.enter(|| Device::register(count, &Terms { node, key, at }))??;
        let crowded = Self { hosts, daemons, node, devices, _lab: lab };
        crowded.wait_until_installed(meshctl)?;
        Ok(crowded)
    }

    fn wait_until_installed(&self, meshctl: &Path) -> Result<()> {
        let give_up = Instant::now() + INSTALLED_WITHIN;
        loop {
            let status = ours::status(&self.hosts[0], meshctl)?;
            let peers = status.get("peers").and_then(Value::as_array).map_or(0, Vec::len);
            if peers >= self.devices.len() {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "the node knows {peers} peers of {}", self.devices.len());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Gives every device a session, or shows the node that it is still there if it has one. To be done when nothing
    /// listens for all of them.
    ///
    /// # Errors
    /// When the node does not answer one.
    pub(crate) fn greet(&mut self) -> Result<()> {
        let (far, devices, node) = (&self.hosts[1], &mut self.devices, self.node);
        far.enter(|| devices.iter_mut().try_for_each(|device| device.greet(node)))?
    }

    /// Opens the socket from which packets go to the devices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn source(&self) -> Result<UdpSocket> {
        let at = SocketAddrV4::new(self.node, 0);
        self.hosts[0].enter(move || UdpSocket::bind(at))?.context("opening the source")
    }

    /// Opens the socket to which the datagrams for all devices come.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn sink(&self) -> Result<UdpSocket> {
        let at = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        self.hosts[1].enter(move || UdpSocket::bind(at))?.context("opening the sink")
    }

    /// Returns the devices' addresses in the mesh.
    pub(crate) fn addresses(&self) -> Vec<Ipv4Addr> {
        self.devices.iter().map(|device| device.inside).collect()
    }

    /// Returns the node's process, by its id in the whole box.
    pub(crate) fn daemons(&self) -> &[u32] {
        &self.daemons.measured
    }
}

/// What devices know of the node.
struct Terms {
    node: Ipv4Addr,
    key: PublicKey,
    at: SocketAddr,
}

/// A device that this program plays.
#[derive(Debug)]
struct Device {
    inside: Ipv4Addr,
    outside: Ipv4Addr,
    tunnel: Box<Tunnel>,
    handshaker: Box<Handshaker>,
}

impl Device {
    /// Adds so many devices to the network, through the socket of the coordinator on this host.
    fn register(count: usize, terms: &Terms) -> Result<Vec<Self>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let connect =
                |_: Uri| async { UnixStream::connect(ours::COORDINATOR_SOCKET).await.map(TokioIo::new) };
            let endpoint = Endpoint::from_static("http://localhost");
            let channel = endpoint.connect_with_connector(tower::service_fn(connect)).await?;
            let mut nodes = NodeServiceClient::new(channel);
            let mut devices = Vec::with_capacity(count);
            for number in 0..count {
                let secret = SecretKey::generate();
                let request = AddStockDeviceRequest {
                    name: format!("device{number}"),
                    public_key: secret.public_key().to_string(),
                    ..Default::default()
                };
                let added = nodes.add_stock_device(request).await.context("adding a device")?.into_inner();
                let node = added.node.context("the coordinator named no device")?;
                let psk = STANDARD.decode(&added.preshared_key).ok().and_then(|psk| psk.try_into().ok());
                let psk = PresharedKey::from_bytes(psk.context("the pre-shared key is none")?);
                let inside = node.ipv4.parse().context("the device's address")?;
                let outside = Ipv4Addr::from_bits(OUTSIDE.0.to_bits() + number as u32 + 1);
                devices.push(Self::new(&secret, psk, [inside, outside], terms)?);
            }
            Ok(devices)
        })
    }

    fn new(
        secret: &SecretKey,
        psk: PresharedKey,
        [inside, outside]: [Ipv4Addr; 2],
        terms: &Terms,
    ) -> Result<Self> {
        let peers = [PeerConfig {
            id: NodeId::from_bytes([1; 8]),
            key: terms.key,
            psk: Psk::Fixed(psk),
            mesh: false,
            allowed_ips: vec![Prefix::host(terms.node.into())],
            relay: false,
            candidates: vec![terms.at],
            links: Vec::new(),
            persistent_keepalive: None,
        }];
        let now = now()?;
        let mut handshaker = Handshaker::new(secret, Random::system());
        handshaker.apply(&peers);
        let tunnel = Tunnel::new(0, secret.public_key(), Random::system());
        let mut tunnel = tunnel.map_err(|_| anyhow!("the system has no randomness"))?;
        tunnel.apply(&peers, now);
        tunnel.apply_filter(Arc::new(Filter::allow_all()), now);
        Ok(Self { inside, outside, tunnel: Box::new(tunnel), handshaker: Box::new(handshaker) })
    }

    /// Sends the node a packet, with a handshake before it if there is no session.
    fn greet(&mut self, node: Ipv4Addr) -> Result<()> {
        let socket = UdpSocket::bind(SocketAddrV4::new(self.outside, PORT)).context("being a device")?;
        socket.set_read_timeout(Some(ANSWER_WITHIN)).context("bounding receives")?;
        let mut buffer = [0; DATAGRAM];
        for _ in 0..ATTEMPTS {
            match self.tunnel.outbound(&packet(self.inside, node), &mut buffer, now()?) {
                Ok(Outbound::Send { len, to: Hop::Udp(to), .. }) => {
                    socket.send_to(&buffer[..len], to).context("being a device")?;
                    return Ok(());
                }
                Ok(_) => {}
                Err(reason) => bail!("a device cannot send: {reason:?}"),
            }
            self.flush(&socket)?;
            while !self.has_session()? {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
                // What is refused was late.
                let _ = self.tunnel.inbound(&mut buffer[..length], Hop::Udp(from), now()?);
                self.flush(&socket)?;
            }
            if self.has_session()? {
                // What was held went out with the session, and confirmed it.
                return Ok(());
            }
            self.tunnel.handle_deadline(now()?);
        }
        bail!("the node did not answer device {} {ATTEMPTS} times", self.outside)
    }

    fn has_session(&self) -> Result<bool> {
        let state = self.tunnel.peers(now()?).next().map(|peer| peer.state);
        Ok(state == Some(PeerState::Established))
    }

    /// Does what the protocol asks for, and sends what it has to send.
    fn flush(&mut self, socket: &UdpSocket) -> Result<()> {
        let mut buffer = [0; DATAGRAM];
        loop {
            let mut moved = false;
            while let Some(job) = self.tunnel.poll_job() {
                let done = self.handshaker.run(job, 0, now()?);
                self.tunnel.handle_job(done, now()?);
                moved = true;
            }
            while self.tunnel.poll_event().is_some() {}
            while let Some(sent) = self.tunnel.poll_transmit(&mut buffer, now()?) {
                if let Hop::Udp(to) = sent.to {
                    socket.send_to(&buffer[..sent.len], to).context("being a device")?;
                }
                moved = true;
            }
            if !moved {
                return Ok(());
            }
        }
    }
}

fn now() -> Result<Now> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(Now::new(Instant::now(), UnixTime::from_secs(since.as_secs())))
}

/// An IPv4 packet of a protocol that nobody listens for (RFC 3692).
fn packet(from: Ipv4Addr, to: Ipv4Addr) -> [u8; 20] {
    let mut packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let words = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum >> 16) + (sum & 0xffff);
    let sum = !((folded >> 16) + (folded & 0xffff)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}
