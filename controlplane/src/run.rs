//! The daemon: everything opened in order, served until told to stop, closed in reverse.

use std::{future::Future, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ringmesh_tunnel::netmap::Role;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    advertise, api, backup,
    clock::Clock,
    config::{Config, ConfigError},
    coordinator::{Coordinator, Fault, INTERVAL, MaintenanceError, Options},
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
/// How many numbers are tried where any would do, to find one that is free for TCP and UDP.
const PORT_TRIES: u32 = 16;

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
    /// A server ended by itself.
    #[error("the server ended: {0}")]
    Server(io::Error),
    /// The first network could not be made, or due records not renewed.
    #[error("cannot prepare the networks: {0}")]
    Prepare(#[from] MaintenanceError),
}

/// Runs a coordinator until `shutdown` ends, or it cannot go on. `ready` is called once, when it serves.
///
/// # Errors
/// [`StartError`].
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Ready) + Send,
) -> Result<(), StartError> {
    config.check()?;
    state_dir::prepare(&config.state_dir, 0o700)?;
    let config = Config { restored: config.restored || backup::is_restored(&config.state_dir)?, ..config };
    let store = Arc::new(if config.restored {
        SqliteStore::open_restored(&config.state_dir, RESTORED_STEP)?
    } else {
        SqliteStore::open(&config.state_dir)?
    });
    let result = serve(&config, store.clone(), shutdown, ready).await;
    // Requests that did not end in time may still hold it; another coordinator may start all the same.
    store.close().await;
    result
}

async fn serve(
    config: &Config,
    store: Arc<SqliteStore>,
    shutdown: impl Future<Output = ()> + Send,
    ready: impl FnOnce(Ready) + Send,
) -> Result<(), StartError> {
    let fresh = store.snapshot().await.map_err(Fault::from)?.entries.is_empty();
    let vault = Vault::open(&config.state_dir, fresh)?;
    let (listener, address, relay) = listen(config).await?;
    let socket = server::listen_locally(&config.admin_socket)?;
    let endpoints = advertise::endpoints(&config.advertise, address, &pools(&store, &vault, config).await?);
    let identity = Identity::open(&config.state_dir, &endpoints)?;
    let relay = relay.map(|handle| Relay::new(handle, config, address, &endpoints));

    let options = Options {
        clock: Clock::system(),
        heartbeat: Duration::from_secs(config.heartbeat_seconds.into()),
        endpoints: endpoints.clone(),
        tls_key: *identity.key_hash(),
        relay: relay.is_some(),
    };
    let coordinator = Coordinator::open(store, vault, options).await?;
    coordinator.ensure_network(&config.network).await?;
    coordinator.ensure_relays().await?;
    check_keys(&coordinator)?;
    if config.restored {
        coordinator.heal_restored().await?;
        backup::is_in_use(&config.state_dir)?;
    }
    // Before the first node asks: what lapsed while the coordinator was away would spoil every map.
    coordinator.maintain().await?;
    if let Some(relay) = &relay {
        relay.prepare(&coordinator).await;
    }

    let admin_socket = socket.path().to_owned();
    let certificate_pem = identity.certificate_pem().to_owned();
    let (stop, stopping) = watch::channel(false);
    let stopped =
        |mut stopping: watch::Receiver<bool>| async move { drop(stopping.wait_for(|stop| *stop).await) };
    let (upgrades, websockets) = mpsc::channel(relay::BACKLOG);
    let nodes = server::serve_nodes(
        listener,
        &identity,
        Limits::default(),
        api::node_routes(&coordinator).await,
        relay.is_some().then_some(upgrades),
        stopped(stopping.clone()),
    );
    let operators =
        server::serve_operators(socket, api::operator_routes(&coordinator).await, stopped(stopping));
    let mut servers = std::pin::pin!(async { tokio::try_join!(nodes, operators) });
    tracing::info!(%address, ?endpoints, socket = %admin_socket.display(), "the coordinator serves");
    ready(Ready { address, endpoints, admin_socket, certificate_pem });

    let result = tokio::select! {
        () = shutdown => Ok(()),
        fault = coordinator.fault() => Err(StartError::Fault(fault)),
        ended = &mut servers => Err(StartError::Server(ended.err().unwrap_or_else(|| io::Error::other("too early")))),
        () = maintain(&coordinator) => Ok(()),
        () = keep_relay(relay.as_ref(), &coordinator, websockets) => Ok(()),
    };
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

/// Looks for what is due, for ever.
async fn maintain(coordinator: &Coordinator) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        if let Err(error) = coordinator.maintain().await {
            tracing::error!(%error, "will try again");
        }
    }
}

/// Takes the TCP port, and the relay's UDP port, which is the same number unless said otherwise.
async fn listen(
    config: &Config,
) -> Result<(TcpListener, SocketAddr, Option<ringmesh_relay::Handle>), StartError> {
    let mut tries = 0;
    loop {
        let listener = listen_tcp(config.listen).await?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        if !config.relay.enabled {
            return Ok((listener, address, None));
        }
        match relay::start(&config.relay, config.relay.listen.unwrap_or(address)) {
            Ok(handle) => return Ok((listener, address, Some(handle))),
            // Any number would do, and this one is free for TCP only.
            Err(RelayError::PortTaken { .. })
                if config.listen.port() == 0 && config.relay.listen.is_none() && tries < PORT_TRIES =>
            {
                tries += 1;
            }
            Err(error) => return Err(error.into()),
        }
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

async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    server::listen(address).await.map_err(|source| {
        if source.kind() == io::ErrorKind::AddrInUse {
            StartError::PortTaken { address }
        } else if source.kind() == io::ErrorKind::PermissionDenied {
            StartError::PortPrivileged { address }
        } else {
            StartError::Listen { address, source }
        }
    })
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
