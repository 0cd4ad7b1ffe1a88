//! A daemon that is a relay: no TUN device, nothing changed on the machine, only sealed datagrams passed on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ringmesh_proto::control::Reason;
use ringmesh_relay::{Handle, Ports, Rates, Report, Server, ServerConfig, TlsLimits};
use ringmesh_tunnel::{
    Floors, PeerConfig,
    key::NetworkId,
    netmap::{URL_MAX, WEBSOCKETS_MAX},
};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};
use tracing::info;

use crate::{
    config::{Config, DEFAULT_PORT, RelayMode},
    error::Failure,
    state::Identity,
};

/// The end of the path of every relay's WebSocket.
const WEBSOCKET_PATH: &str = "/relay/v1";
/// How often is looked whether the relay still runs.
const LOOK: Duration = Duration::from_secs(30);

/// A relay's ports, taken before anything else is done: a machine which refuses them is noticed first, and a process that gave up
/// its rights still has them. They stay taken for as long as the daemon runs.
#[derive(Debug)]
pub(crate) struct RelayPorts {
    udp: Ports,
    websockets: Option<(SocketAddr, std::net::TcpListener)>,
}

impl RelayPorts {
    /// Binds them. Needs no runtime.
    ///
    /// # Errors
    /// Names what the machine refuses and the cure; nothing is left behind.
    pub(crate) fn bind(config: &Config, mode: &RelayMode) -> Result<Self, Failure> {
        let websockets = match mode.websocket_listen {
            Some(address) => Some((address, listen(address)?)),
            None => None,
        };
        let port = config.listen_port.unwrap_or(DEFAULT_PORT);
        let ServerConfig { listen_v4, listen_v6, .. } = server_config(mode);
        let udp = Ports::bind(listen_v4, listen_v6, port).map_err(|error| udp_failure(port, &error))?;
        Ok(Self { udp, websockets })
    }
}

/// A relay that has its ports and serves nobody yet.
#[derive(Debug)]
pub(crate) struct PreparedRelay {
    handle: Handle,
    websockets: Option<(TcpListener, Arc<rustls::ServerConfig>)>,
}

impl PreparedRelay {
    /// Starts the relay's threads on `ports`.
    ///
    /// # Errors
    /// Names what the machine refuses and the cure.
    pub(crate) fn open(ports: &RelayPorts, mode: &RelayMode) -> Result<Self, Failure> {
        let websockets = match &ports.websockets {
            Some((address, listener)) => {
                let again = listener.try_clone().and_then(TcpListener::from_std);
                Some((again.map_err(|error| Failure::host(websockets_at(*address), &error))?, tls_config()?))
            }
            None => None,
        };
        let port = ports.udp.port();
        let udp = ports.udp.try_clone().map_err(|error| udp_failure(port, &error))?;
        let handle = Server::start_on(server_config(mode), udp).map_err(|error| host(&error))?;
        Ok(Self { handle, websockets })
    }

    /// The UDP port.
    pub(crate) fn port(&self) -> u16 {
        self.handle.port()
    }
}

/// A relay that serves a network. Dropping it stops it without waiting; [`stop`](Self::stop) waits.
#[derive(Debug)]
pub(crate) struct RelayPlane {
    network: NetworkId,
    identity: Arc<Identity>,
    handle: Handle,
    /// Where WebSockets are taken.
    websockets: Option<(SocketAddr, JoinHandle<()>)>,
}

impl RelayPlane {
    /// Begins to serve `network`, with what an earlier start remembered of handshakes; no members are known yet.
    ///
    /// # Errors
    /// The relay has stopped.
    pub(crate) async fn start(
        prepared: PreparedRelay,
        network: NetworkId,
        identity: Arc<Identity>,
        floors: Floors,
    ) -> Result<Self, Failure> {
        let PreparedRelay { handle, websockets } = prepared;
        handle.restore(network, floors).await.map_err(|error| host(&error))?;
        let websockets = match websockets {
            Some((listener, tls)) => {
                let address = listener
                    .local_addr()
                    .map_err(|error| Failure::host("asking where WebSockets are taken", &error))?;
                let handle = handle.clone();
                let task = tokio::spawn(async move {
                    handle.serve_tls(listener, tls, TlsLimits::default()).await;
                });
                Some((address, task))
            }
            None => None,
        };
        let port = handle.port();
        info!(
            event = "relay_started",
            port,
            websockets = websockets.as_ref().map(|(at, _)| at.to_string()),
            "the relay runs"
        );
        Ok(Self { network, identity, handle, websockets })
    }

    /// Makes exactly `clients` those who are served; returns once it is so.
    ///
    /// # Errors
    /// The relay has stopped.
    pub(crate) async fn apply(&self, clients: Vec<PeerConfig>) -> Result<(), Failure> {
        let key = self.identity.noise_secret();
        self.handle.apply(self.network, &key, clients).await.map_err(|error| host(&error))
    }

    /// The timestamps that a restart must not go behind.
    ///
    /// # Errors
    /// The relay has stopped.
    pub(crate) async fn floors(&self) -> Result<Floors, Failure> {
        let floors = self.handle.floors(self.network).await.map_err(|error| host(&error))?;
        Ok(floors.unwrap_or_default())
    }

    /// What it counted.
    ///
    /// # Errors
    /// The relay has stopped.
    pub(crate) async fn report(&self) -> Result<Report, Failure> {
        self.handle.report().await.map_err(|error| host(&error))
    }

    /// Waits until the relay has ended by itself, and tells so. Never returns while all is well.
    pub(crate) async fn failure(&self) -> String {
        loop {
            sleep(LOOK).await;
            if let Err(failure) = self.report().await {
                return failure.to_string();
            }
        }
    }

    /// Stops it and waits: its ports are free afterwards.
    pub(crate) async fn stop(&self) {
        if let Some((_, task)) = &self.websockets {
            task.abort();
        }
        let handle = self.handle.clone();
        // It only panics if a thread did, which was logged.
        let _ = tokio::task::spawn_blocking(move || handle.stop()).await;
    }

    /// The UDP port.
    pub(crate) fn port(&self) -> u16 {
        self.handle.port()
    }

    /// Where nodes are to connect by WebSocket: what is configured, or at this machine's addresses.
    pub(crate) fn websocket_urls(&self, mode: &RelayMode, host: &[IpAddr]) -> Vec<String> {
        let listens = self.websockets.as_ref().map(|(address, _)| *address);
        websocket_urls(mode, listens, host)
    }
}

impl Drop for RelayPlane {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.websockets {
            task.abort();
        }
    }
}

/// What the relay's server is told of a configuration.
fn server_config(mode: &RelayMode) -> ServerConfig {
    ServerConfig {
        listen_v4: Some(Ipv4Addr::UNSPECIFIED),
        listen_v6: Some(Ipv6Addr::UNSPECIFIED),
        rates: Rates::from_mbit(mode.client_rate_mbit, mode.total_rate_mbit),
        trusted_proxies: mode.trusted_proxies.clone(),
        forwarded_header: mode.forwarded_header,
        ..ServerConfig::default()
    }
}

fn websocket_urls(mode: &RelayMode, listens: Option<SocketAddr>, host: &[IpAddr]) -> Vec<String> {
    if !mode.websockets.is_empty() {
        return mode.websockets.clone();
    }
    let Some(listens) = listens else { return Vec::new() };
    let reached = |address: &&IpAddr| match listens.ip() {
        IpAddr::V4(own) => own == **address || own.is_unspecified() && address.is_ipv4(),
        IpAddr::V6(own) => own == **address || own.is_unspecified(),
    };
    let urls = host.iter().filter(reached).map(|address| {
        let at = SocketAddr::new(*address, listens.port());
        format!("wss://{at}{WEBSOCKET_PATH}")
    });
    urls.filter(|url| url.len() <= URL_MAX).take(WEBSOCKETS_MAX).collect()
}

fn websockets_at(address: SocketAddr) -> String {
    format!("relay.websocket_listen = \"{address}\"")
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Failure> {
    let doing = websockets_at(address);
    let listener = std::net::TcpListener::bind(address).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            let text = "another program listens there; stop it, or give another address";
            return Failure::new(Reason::Conflict, format!("{doing}: {text}"));
        }
        Failure::host(&doing, &error)
    })?;
    listener.set_nonblocking(true).map_err(|error| Failure::host(&doing, &error))?;
    Ok(listener)
}

/// A certificate of the relay's own: nodes do not judge it, since the session inside says who the relay is.
fn tls_config() -> Result<Arc<rustls::ServerConfig>, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::new(Reason::Host, format!("{what} for the relay's WebSocket: {error}"))
    };
    let certified = rcgen::generate_simple_self_signed(["relay".to_owned()])
        .map_err(|error| failed("making a certificate", &error))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed("setting up TLS", &error))?
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .map_err(|error| failed("setting up TLS", &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn udp_failure(port: u16, error: &std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::AddrInUse {
        return Failure::new(
            Reason::Conflict,
            format!(
                "UDP port {port} is taken: stop the program that has it, or give the relay another listen_port"
            ),
        );
    }
    Failure::host(format!("taking UDP port {port} for the relay"), error)
}

fn host(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Reason::Host, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_told_the_addresses_that_the_websocket_listens_on() {
        let host = ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().unwrap());
        let urls = |mode: &RelayMode, listens: Option<&str>| {
            websocket_urls(mode, listens.map(|text| text.parse().unwrap()), &host)
        };
        let usual = RelayMode::default();
        let all = ["wss://192.0.2.7:443/relay/v1", "wss://[2001:db8::7]:443/relay/v1"];
        assert_eq!(urls(&usual, Some("[::]:443")), all);
        assert_eq!(urls(&usual, Some("0.0.0.0:443")), all[..1]);
        assert_eq!(urls(&usual, Some("192.0.2.7:443")), all[..1]);
        assert!(urls(&usual, Some("127.0.0.1:443")).is_empty(), "nobody else reaches it");
        assert!(urls(&usual, None).is_empty());
        let told = "wss://relay.example/relay/v1".to_owned();
        let proxied = RelayMode { websockets: vec![told.clone()], ..usual };
        assert_eq!(urls(&proxied, Some("127.0.0.1:8443")), [told]);
    }

    #[test]
    fn limits_are_in_force_unless_they_are_lifted_expressly() {
        let rates = |mode: &RelayMode| server_config(mode).rates;
        assert_eq!(rates(&RelayMode::default()), Rates { client: 125_000_000, total: Some(250_000_000) });
        let told = RelayMode { client_rate_mbit: 8, total_rate_mbit: 80, ..RelayMode::default() };
        assert_eq!(rates(&told), Rates { client: 1_000_000, total: Some(10_000_000) });
        let lifted = RelayMode { client_rate_mbit: 0, total_rate_mbit: 0, ..RelayMode::default() };
        assert_eq!(rates(&lifted).total, None);
    }

    #[test]
    fn a_taken_port_is_named_with_the_cure() {
        let taken = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let config = Config { listen_port: Some(port), ..Config::default() };
        let failure = RelayPorts::bind(&config, &RelayMode::default()).unwrap_err();
        assert_eq!(failure.reason(), Reason::Conflict);
        assert!(failure.to_string().contains("listen_port"), "{failure}");

        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mode = RelayMode { websocket_listen: taken.local_addr().ok(), ..RelayMode::default() };
        let failure = RelayPorts::bind(&Config { listen_port: Some(1), ..config }, &mode).unwrap_err();
        assert!(failure.to_string().contains("websocket_listen"), "{failure}");
    }
}
