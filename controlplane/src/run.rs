//! The daemon: everything opened in order, served until told to stop, closed in reverse.

use std::{future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ringmesh_monitor::Monitor;
use ringmesh_relay::Ports;
use ringmesh_tunnel::netmap::Role;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    advertise, api, backup,
    bind::{Bound, bind},
    clock::Clock,
    config::{Config, ConfigError},
    coordinator::{Coordinator, Fault, INTERVAL, MaintenanceError, Options},
    metrics::{Census, Tasks, Watched},
    network::{Damage, Registry, authority::Signer, renew::RESTORED_STEP},
    relay::{self, Relay, RelayError},
    server::{self, Limits, SocketError},
    state_dir::{self, FileError},
    store::{
        Store,
        sqlite::{OpenError, SqliteStore},
    },
    tls::Identity,
    vault::Vault,
};

/// How long open requests have to end when the coordinator stops.
const GRACE: Duration = Duration::from_secs(3);

/// A coordinator that serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where nodes connect, with the port that was taken.
    pub address: SocketAddr,
    /// What nodes are told to connect to, `host:port`.
    pub endpoints: Vec<String>,
    /// The operators' socket.
    pub admin_socket: PathBuf,
    /// The certificate, for other clients than nodes.
    pub certificate_pem: String,
    /// What says whether it lives and serves.
    pub subject: Arc<Watched>,
}

/// Why a coordinator does not start, or has to stop. The text names the cause and the cure.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not fit.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The state directory or a file in it cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// The TCP port is taken.
    #[error(
        "{address}: another program listens on this port; stop it, or choose another one (listen = \"[::]:8443\")"
    )]
    PortTaken {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The TCP port is one for the privileged.
    #[error(
        "{address}: ports below 1024 need a privilege; run as root, or: sudo setcap cap_net_bind_service=+ep \
         $(command -v meshctl), or choose another one (listen = \"[::]:8443\")"
    )]
    PortPrivileged {
        /// What was asked for.
        address: SocketAddr,
    },
    /// The TCP port cannot be taken for another reason.
    #[error("{address}: {source}; is this an address of this machine?")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The relay cannot be started.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// The operators' socket cannot be taken.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The state cannot be used, or the store failed while running.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The address for metrics was asked for and cannot be had.
    #[error("metrics: {0}")]
    Metrics(#[from] ringmesh_monitor::BindError),
    /// A server ended by itself.
    #[error("the server ended: {0}")]
    Server(io::Error),
    /// The first network could not be made, or due records not renewed.
    #[error("cannot prepare the networks: {0}")]
    Prepare(#[from] MaintenanceError),
}

/// [`bind`]s and runs a coordinator in a process that keeps its rights; see [`Bound::run`].
///
/// # Errors
/// [`StartError`].
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Ready) + Send,
) -> Result<(), StartError> {
    bind(config)?.run(shutdown, ready).await
}

impl Bound {
    /// Runs the coordinator until `shutdown` ends, or it cannot go on. `ready` is called once, when it serves.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn run(
        mut self,
        shutdown: impl Future<Output = ()> + Send,
        ready: impl FnOnce(Ready) + Send,
    ) -> Result<(), StartError> {
        let config = &mut self.config;
        state_dir::prepare(&config.state_dir, 0o700)?;
        config.restored = config.restored || backup::is_restored(&config.state_dir)?;
        let store = Arc::new(if config.restored {
            SqliteStore::open_restored(&config.state_dir, RESTORED_STEP)?
        } else {
            SqliteStore::open(&config.state_dir)?
        });
        let result = serve(self, store.clone(), shutdown, ready).await;
        // Requests that did not end in time may still hold it; another coordinator may start all the same.
        store.close().await;
        result
    }
}

/// Opens what is kept, makes it ready, serves it, and closes it again.
async fn serve(
    bound: Bound,
    store: Arc<SqliteStore>,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Ready) + Send,
) -> Result<(), StartError> {
    let Bound { config, listener, address, relay, socket, monitor } = bound;
    let opened = Opened::open(&config, store, address, relay).await?;
    opened.prepare(&config).await?;
    let Opened { coordinator, identity, endpoints, relay } = opened;

    let (census, tasks) = (Census::default(), Arc::<Tasks>::default());
    let subject =
        Arc::new(Watched::new(coordinator.clone(), tasks.clone(), census.clone(), config.state_dir.clone()));
    let admin_socket = socket.path().to_owned();
    let certificate_pem = identity.certificate_pem().to_owned();
    let (stop, stopping) = watch::channel(false);
    let (upgrades, websockets) = mpsc::channel(relay::BACKLOG);
    let nodes = server::serve_nodes_counted(
        TcpListener::from_std(listener).map_err(StartError::Server)?,
        &identity,
        Limits::of_this_process(),
        api::node_routes(&coordinator).await,
        relay.is_some().then_some(upgrades),
        census,
        stopped(stopping.clone()),
    );
    let operators =
        server::serve_operators(socket, api::operator_routes(&coordinator).await, stopped(stopping.clone()));
    let mut servers = std::pin::pin!(async { tokio::try_join!(nodes, operators) });
    tasks.serving(true);
    tracing::info!(
        event = "coordinator_started", %address, ?endpoints, socket = %admin_socket.display(), "the coordinator serves"
    );
    ready(Ready { address, endpoints, admin_socket, certificate_pem, subject: subject.clone() });

    let result = tokio::select! {
        () = shutdown => Ok(()),
        fault = coordinator.fault() => Err(StartError::Fault(fault)),
        ended = &mut servers => Err(too_early(ended)),
        ended = serve_metrics(monitor, subject, stopped(stopping)) => Err(too_early(ended)),
        () = maintain(&coordinator, &tasks) => Ok(()),
        () = keep_relay(relay.as_ref(), &coordinator, websockets) => Ok(()),
    };
    tasks.serving(false);
    coordinator.close();
    stop.send_replace(true);
    if let Some(relay) = relay {
        relay.stop(&coordinator).await;
    }
    if matches!(result, Ok(()) | Err(StartError::Fault(_)))
        && tokio::time::timeout(GRACE, servers).await.is_err()
    {
        tracing::debug!("some connections did not end in time");
    }
    result
}

/// What is kept, opened.
struct Opened {
    coordinator: Coordinator,
    identity: Identity,
    /// What nodes are told to connect to, `host:port`.
    endpoints: Vec<String>,
    relay: Option<Relay>,
}

impl Opened {
    async fn open(
        config: &Config,
        store: Arc<SqliteStore>,
        address: SocketAddr,
        relay: Option<Ports>,
    ) -> Result<Self, StartError> {
        let fresh = store.snapshot().await.map_err(Fault::from)?.entries.is_empty();
        let vault = Vault::open(&config.state_dir, fresh)?;
        let endpoints =
            advertise::endpoints(&config.advertise, address, &pools(&store, &vault, config).await?);
        let identity = Identity::open(&config.state_dir, &endpoints)?;
        let relay = relay.map(|ports| Relay::start(ports, config, address, &endpoints)).transpose()?;
        let options = Options {
            clock: Clock::system(),
            heartbeat: Duration::from_secs(config.heartbeat_seconds.into()),
            endpoints: endpoints.clone(),
            tls_key: *identity.key_hash(),
            relay: relay.is_some(),
        };
        let coordinator = Coordinator::open(store, vault, options).await?;
        Ok(Self { coordinator, identity, endpoints, relay })
    }

    /// Makes what is missing, heals what was restored, and does what is due.
    async fn prepare(&self, config: &Config) -> Result<(), StartError> {
        let coordinator = &self.coordinator;
        coordinator.ensure_network(&config.network).await?;
        coordinator.ensure_relays().await?;
        check_keys(coordinator)?;
        if config.restored {
            coordinator.heal_restored().await?;
            backup::take_into_use(&config.state_dir)?;
        }
        // Before the first node asks: what lapsed while the coordinator was away would spoil every map.
        coordinator.maintain().await?;
        if let Some(relay) = &self.relay {
            relay.prepare(coordinator).await;
        }
        Ok(())
    }
}

/// Ends when what serves has to stop.
async fn stopped(mut stopping: watch::Receiver<bool>) {
    drop(stopping.wait_for(|stop| *stop).await);
}

/// What it means that a server ended before it was told to.
fn too_early<T>(ended: io::Result<T>) -> StartError {
    StartError::Server(ended.err().unwrap_or_else(|| io::Error::other("too early")))
}

/// Serves metrics, if they are wanted, until `shutdown`.
async fn serve_metrics(
    monitor: Option<Monitor>,
    subject: Arc<Watched>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    match monitor {
        Some(monitor) => monitor.serve(subject, shutdown).await,
        None => std::future::pending().await,
    }
}

/// Looks for what is due, for ever.
async fn maintain(coordinator: &Coordinator, tasks: &Tasks) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        let done = coordinator.maintain().await;
        if let Err(error) = &done {
            tracing::error!(event = "maintenance_failed", %error, "will try again");
        }
        tasks.maintained(done.err().map(|error| error.to_string()));
    }
}

/// Keeps the relay in step, if there is one, for ever.
async fn keep_relay(
    relay: Option<&Relay>,
    coordinator: &Coordinator,
    websockets: mpsc::Receiver<server::WebSocket>,
) {
    match relay {
        Some(relay) => relay.run(coordinator, websockets).await,
        None => std::future::pending().await,
    }
}

/// The pools of all networks, the one to be made included.
async fn pools(
    store: &SqliteStore,
    vault: &Vault,
    config: &Config,
) -> Result<Vec<ringmesh_tunnel::ip::Prefix>, StartError> {
    let snapshot = store.snapshot().await.map_err(Fault::from)?;
    let registry = Registry::load(&snapshot, vault).map_err(Fault::from)?;
    let pools = registry.networks().flat_map(|network| [network.ipv4_pool, network.ipv6_pool()]);
    Ok(pools.chain([config.network.ipv4_pool]).collect())
}

/// Checks that the head and coordinator keys are there, without which no node can be served.
fn check_keys(coordinator: &Coordinator) -> Result<(), StartError> {
    coordinator.with_registry(|registry| {
        for network in registry.networks() {
            for role in [Role::Head, Role::Coordinator] {
                let key = network.authority().key(Signer::Role(role));
                key.map_err(|error| {
                    Fault::Damage(Damage { key: network.id().to_string(), detail: error.to_string() })
                })?;
            }
        }
        Ok(())
    })
}
