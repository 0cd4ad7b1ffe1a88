//! The relay that this coordinator runs: started with it, fed with members and keys as they change, told about to nodes.
//!
//! ```text
//!  registry ── members, keys ──> feed ──────> ringmesh_relay::Server ──> UDP
//!     ▲                                          ▲
//!     └─── node records <── survey (addresses)   └── WebSockets <── the TLS port
//! ```

mod floors;
mod places;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ringmesh_relay::{Handle, Ports, Rates, Server, ServerConfig, StartError, Stopped};
use ringmesh_tunnel::{
    PeerConfig, UnixTime,
    ip::Prefix,
    key::{NetworkId, SecretKey},
};
use tokio::{sync::mpsc, time::Instant};

use self::{floors::Keeper, places::Surveyor};
use crate::{
    config::{Config, RelayConfig},
    coordinator::Coordinator,
    network::{NetworkState, relay::Clients},
    server::WebSocket,
    state_dir::FileError,
};

/// How often names are looked up, and the addresses of this machine.
const SURVEY: Duration = Duration::from_secs(300);
/// How often members are looked at although nothing changed: memberships end by themselves.
const REVIEW: Duration = Duration::from_secs(600);
/// When a network that the relay could not be told of is told again.
const RETRY: Duration = Duration::from_secs(2);
/// How long a relay that ended by itself rests before it is started again; twice as long each time that it does not last.
const FIRST_REST: Duration = Duration::from_secs(1);
/// The longest rest; a relay that ran as long begins with the first again.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// WebSockets that wait to be taken.
pub(crate) const BACKLOG: usize = 64;

/// Why the relay does not start. The text names the cause and the cure.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The UDP port is taken.
    #[error(
        "{address}: another program uses this UDP port, which the coordinator's relay needs; stop it, or give the relay another \
         port (listen = \"[::]:3478\" in [relay]), or go without a relay (enabled = false in [relay])"
    )]
    PortTaken {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The UDP port is one for the privileged.
    #[error(
        "{address}: UDP ports below 1024 need a privilege, and the coordinator's relay needs this one; run as root, or: sudo setcap \
         cap_net_bind_service=+ep $(command -v meshctl), or give the relay another port (listen = \"[::]:3478\" in [relay]), or go \
         without a relay (enabled = false in [relay])"
    )]
    PortPrivileged {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The relay cannot be started for another reason.
    #[error("{address} (UDP, for the coordinator's relay): {source}; is this an address of this machine?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// It has no thread, no randomness, or no room for another network.
    #[error("the coordinator's relay: {0}")]
    Start(#[from] StartError),
    /// What the relay remembers across restarts cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<Stopped> for RelayError {
    fn from(stopped: Stopped) -> Self {
        Self::Start(stopped.into())
    }
}

/// Takes the relay's UDP port. Needs no runtime, so that it can be done before rights are given up.
pub(crate) fn bind(config: &RelayConfig, listen: SocketAddr) -> Result<Ports, RelayError> {
    let ServerConfig { listen_v4, listen_v6, port, .. } = server_config(config, listen);
    Ports::bind(listen_v4, listen_v6, port).map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            RelayError::PortTaken { address: listen }
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            RelayError::PortPrivileged { address: listen }
        } else {
            RelayError::Listen { address: listen, source }
        }
    })
}

/// Starts a relay on its UDP port; it serves no network yet. The port stays taken: it may be one that could not be taken again.
fn start(config: &RelayConfig, ports: &Ports, listen: SocketAddr) -> Result<Handle, RelayError> {
    let ports = ports.try_clone().map_err(|source| RelayError::Listen { address: listen, source })?;
    Ok(Server::start_on(server_config(config, listen), ports)?)
}

/// What the relay's server is told of a configuration.
fn server_config(config: &RelayConfig, listen: SocketAddr) -> ServerConfig {
    let (listen_v4, listen_v6) = match listen.ip() {
        IpAddr::V4(v4) => (Some(v4), None),
        // As TCP does it: all of IPv6 is all of IPv4, too.
        IpAddr::V6(v6) if v6.is_unspecified() => (Some(Ipv4Addr::UNSPECIFIED), Some(v6)),
        IpAddr::V6(v6) => (None, Some(v6)),
    };
    ServerConfig {
        listen_v4,
        listen_v6,
        port: listen.port(),
        rates: Rates::from_mbit(config.client_rate_mbit, config.total_rate_mbit),
        // Without one, whatever a proxy puts before the path is taken.
        base_path: Some(config.base_path.clone()).filter(|path| !path.is_empty()),
        trusted_proxies: config.trusted_proxies.clone(),
        forwarded_header: config.forwarded_header,
        ..ServerConfig::default()
    }
}

/// A relay that runs, with what keeps it and the nodes' maps in step.
#[derive(Debug)]
pub(crate) struct Relay {
    config: RelayConfig,
    /// Where it listens, with the port that was taken.
    bound: SocketAddr,
    /// The same, to be listened on for as long as the coordinator runs.
    ports: Ports,
    /// `None`: it ended by itself, and is to be started again.
    handle: Mutex<Option<Handle>>,
    surveyor: tokio::sync::Mutex<Surveyor>,
    feeds: tokio::sync::Mutex<BTreeMap<NetworkId, Feed>>,
    floors: Mutex<Keeper>,
}

/// What the relay was told of one network.
#[derive(Debug, Default)]
struct Feed {
    clients: Clients,
    /// The change up to which it was told.
    told: Option<u64>,
    /// Whether anything was told since the start.
    begun: bool,
    /// Why the last telling failed, which is logged once.
    trouble: Option<String>,
}

impl Relay {
    /// Starts the relay on ports that were taken before.
    ///
    /// # Errors
    /// There is no thread for it, or no descriptor.
    pub(crate) fn start(
        ports: Ports,
        config: &Config,
        coordinator: SocketAddr,
        advertised: &[String],
    ) -> Result<Self, RelayError> {
        let listen = config.relay.listen.unwrap_or(coordinator);
        let bound = SocketAddr::new(listen.ip(), ports.port());
        let handle = start(&config.relay, &ports, bound)?;
        Ok(Self {
            config: config.relay.clone(),
            bound,
            ports,
            handle: Mutex::new(Some(handle)),
            surveyor: Surveyor::new(config, bound, coordinator, advertised).into(),
            feeds: tokio::sync::Mutex::default(),
            floors: Mutex::new(Keeper::new(config.state_dir.clone())),
        })
    }

    /// The relay, if it runs.
    fn running(&self) -> Option<Handle> {
        self.lock_handle().clone()
    }

    /// Gives the relay all there is to know, and tells nodes where it is. For the start, before anybody asks.
    pub(crate) async fn prepare(&self, coordinator: &Coordinator) {
        coordinator.attach_relay(self.running());
        self.feed(coordinator, true).await;
        self.survey(coordinator).await;
    }

    /// Keeps everything in step, for ever.
    pub(crate) async fn run(&self, coordinator: &Coordinator, mut websockets: mpsc::Receiver<WebSocket>) {
        let fed = async {
            let mut changed = coordinator.changed();
            let mut review = Instant::now() + REVIEW;
            loop {
                // Marked as seen before it is looked at, so that nothing falls in between.
                changed.borrow_and_update();
                let all = Instant::now() >= review;
                if all {
                    review = Instant::now() + REVIEW;
                }
                let in_step = self.feed(coordinator, all).await;
                coordinator.tell_relay();
                let next = if in_step { review } else { review.min(Instant::now() + RETRY) };
                if let Ok(Err(_)) = tokio::time::timeout_at(next, changed.changed()).await {
                    return;
                }
            }
        };
        let surveyed = async {
            loop {
                tokio::time::sleep(SURVEY).await;
                self.survey(coordinator).await;
            }
        };
        let kept = async {
            loop {
                tokio::time::sleep(floors::INTERVAL).await;
                self.keep_floors(coordinator).await;
            }
        };
        let taken = async {
            while let Some(WebSocket { stream, peer }) = websockets.recv().await {
                let Some(handle) = self.running() else { continue };
                if let Err(refused) = handle.offer_websocket(stream, peer) {
                    tracing::debug!(%peer, %refused, "closed a connection");
                }
            }
        };
        tokio::join!(fed, surveyed, kept, taken, self.keep_alive(coordinator));
    }

    /// Starts the relay again whenever it ends by itself, for ever. The coordinator goes on meanwhile: nodes need it for more than
    /// the relay, and have other paths.
    async fn keep_alive(&self, coordinator: &Coordinator) {
        let mut rest = FIRST_REST;
        loop {
            if let Some(handle) = self.running() {
                let since = Instant::now();
                handle.ended().await;
                if since.elapsed() >= LONGEST_REST {
                    rest = FIRST_REST;
                }
                tracing::error!(
                    event = "relay_ended",
                    next_try_ms = rest.as_millis() as u64,
                    "the relay ended by itself; nodes do without it"
                );
                *self.lock_handle() = None;
                coordinator.attach_relay(None);
                // Waited for: no two are to read of the same port.
                stopped(handle).await;
            }
            tokio::time::sleep(rest).await;
            rest = LONGEST_REST.min(2 * rest);
            match start(&self.config, &self.ports, self.bound) {
                Ok(handle) => {
                    tracing::info!(event = "relay_restarted", address = %self.bound, "the relay runs again");
                    self.begin_again(coordinator, handle).await;
                }
                Err(error) => {
                    tracing::error!(event = "relay_start_failed", %error, next_try_ms = rest.as_millis() as u64, "the relay does not start");
                }
            }
        }
    }

    /// Takes a new relay, which is to be told everything.
    async fn begin_again(&self, coordinator: &Coordinator, handle: Handle) {
        // Nobody tells the old one anything now, nor takes its word for the new one's.
        let mut feeds = self.feeds.lock().await;
        for feed in feeds.values_mut() {
            (feed.told, feed.begun) = (None, false);
        }
        coordinator.attach_relay(Some(handle.clone()));
        *self.lock_handle() = Some(handle);
        drop(feeds);
        coordinator.wake();
    }

    /// Writes down what must not be forgotten, and ends the relay.
    pub(crate) async fn stop(self, coordinator: &Coordinator) {
        self.keep_floors(coordinator).await;
        if let Some(handle) = self.running() {
            stopped(handle).await;
        }
    }

    async fn survey(&self, coordinator: &Coordinator) {
        let pools: Vec<Prefix> = coordinator.with_registry(|registry| {
            registry.networks().flat_map(|state| [state.ipv4_pool, state.ipv6_pool()]).collect()
        });
        let places = self.surveyor.lock().await.survey(&pools).await;
        coordinator.place_relay(places);
    }

    /// Tells the relay of each network in which something changed that concerns it, or of all. `false`: it did not take it all,
    /// and should be told again soon.
    async fn feed(&self, coordinator: &Coordinator, all: bool) -> bool {
        // Held until the relay has it, so that no older list comes after a newer one.
        let mut feeds = self.feeds.lock().await;
        // Whoever starts it again has it told.
        let Some(handle) = self.running() else { return true };
        let now = coordinator.now();
        let (revision, news) = coordinator.with_registry(|registry| {
            let news = registry.networks().filter_map(|state| {
                let feed = feeds.entry(state.id()).or_default();
                if all {
                    feed.told = None;
                }
                feed.news(state, now)
            });
            (registry.revision(), news.collect::<Vec<News>>())
        });
        for news in news {
            let network = news.network;
            let told = self.tell(&handle, news).await;
            let feed = feeds.entry(network).or_default();
            match told {
                Ok(()) => (feed.begun, feed.trouble) = (true, None),
                Err(error) => {
                    feed.told = None;
                    let text = Some(error.to_string());
                    if feed.trouble != text {
                        tracing::error!(event = "relay_untold", %network, %error, "the relay was not told what changed in this network; will try again");
                        feed.trouble = text;
                    }
                }
            }
        }
        let in_step = |feed: &Feed| feed.told.is_some();
        for (network, _) in feeds.iter().filter(|(_, feed)| in_step(feed)) {
            coordinator.relay_has(*network, revision);
        }
        feeds.values().all(in_step)
    }

    async fn tell(&self, handle: &Handle, news: News) -> Result<(), RelayError> {
        let News { network, secret, clients, first } = news;
        if first {
            let floors = self.lock_floors().load(network)?;
            handle.restore(network, floors).await?;
        }
        Ok(handle.apply(network, &secret, clients).await?)
    }

    async fn keep_floors(&self, coordinator: &Coordinator) {
        let Some(handle) = self.running() else { return };
        let networks: Vec<NetworkId> =
            coordinator.with_registry(|registry| registry.networks().map(NetworkState::id).collect());
        for network in networks {
            let Ok(Some(floors)) = handle.floors(network).await else { continue };
            if let Err(error) = self.lock_floors().note(network, floors) {
                tracing::error!(event = "relay_floors_unwritten", %error, "what the relay must remember of handshakes is not kept; will try again");
            }
        }
    }

    fn lock_handle(&self) -> MutexGuard<'_, Option<Handle>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_floors(&self) -> MutexGuard<'_, Keeper> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a relay's threads and waits for them.
async fn stopped(handle: Handle) {
    if let Err(error) = tokio::task::spawn_blocking(move || handle.stop()).await {
        tracing::error!(event = "relay_stop_failed", %error, "the relay did not stop");
    }
}

/// What is to be told of one network.
struct News {
    network: NetworkId,
    secret: SecretKey,
    clients: Vec<PeerConfig>,
    /// Whether nothing was told before.
    first: bool,
}

impl Feed {
    fn news(&mut self, state: &NetworkState, now: UnixTime) -> Option<News> {
        let newest = state.newest_change();
        if self.told.is_some_and(|told| !state.clients_changed(told)) {
            return None;
        }
        self.told = Some(newest);
        let secret = state.own_relay()?.1.noise_secret();
        let clients = self.clients.of(state, &secret, now);
        Some(News { network: state.id(), secret, clients, first: !self.begun })
    }
}
