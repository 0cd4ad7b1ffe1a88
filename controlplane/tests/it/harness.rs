//! A coordinator in this process, with its own state directory.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ringmesh_controlplane::{
    Census, Config, Coordinator, Ready, StartError, Tasks, Watched, api,
    clock::Clock,
    config::{MetricsConfig, NetworkConfig, RelayConfig},
    coordinator::Options,
    run,
    server::{self, Limits},
    store::{Store, sqlite::SqliteStore},
    tls::Identity,
    vault::Vault,
};
use ringmesh_monitor::Listen;
use ringmesh_proto::admin;
use ringmesh_tunnel::{UnixTime, enroll::JoinToken};
use tokio::{net::UnixStream, sync::oneshot, task::JoinHandle};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::client::TestNode;

/// A coordinator as the daemon runs it.
pub struct Running {
    pub ready: Ready,
    pub directory: Arc<tempfile::TempDir>,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), StartError>>,
}

pub fn config(directory: &Path) -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        state_dir: directory.join("state"),
        admin_socket: directory.join("run/coordinator.sock"),
        // Where it is not the subject, a network has no member that no test made.
        relay: RelayConfig { enabled: false, ..RelayConfig::default() },
        // Tests run at once, on one machine.
        metrics: MetricsConfig { listen: Listen::Off },
        ..Config::default()
    }
}

impl Running {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), change).await
    }

    pub async fn start_in(directory: Arc<tempfile::TempDir>, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(directory.path());
        change(&mut config);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let shutdown = async move { drop(stopped.await) };
        let ended = tokio::spawn(run(config, shutdown, |serving| ready.send(serving).unwrap()));
        match is_ready.await {
            Ok(ready) => Self { ready, directory, stop, ended },
            Err(_) => panic!("{}", ended.await.unwrap().unwrap_err()),
        }
    }

    /// One that runs a relay.
    pub async fn start_with_relay() -> Self {
        Self::start_with(|config| config.relay.enabled = true).await
    }

    pub async fn stop(self) -> Arc<tempfile::TempDir> {
        self.stop.send(()).unwrap();
        self.ended.await.unwrap().unwrap();
        self.directory
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub async fn operator(&self) -> Operator {
        Operator::connect(&self.ready.admin_socket).await
    }

    pub async fn token(&self) -> JoinToken {
        self.operator().await.token(admin::CreateTokenRequest { reusable: true, ..Default::default() }).await
    }

    /// A member.
    pub async fn member(&self, name: &str) -> TestNode {
        let mut node = TestNode::new(name);
        node.join(&self.token().await).await.unwrap();
        node
    }
}

/// Clients of `admin.v1` on the unix socket.
#[derive(Clone)]
pub struct Operator {
    pub networks: admin::network_service_client::NetworkServiceClient<Channel>,
    pub nodes: admin::node_service_client::NodeServiceClient<Channel>,
    pub tokens: admin::token_service_client::TokenServiceClient<Channel>,
    pub policy: admin::policy_service_client::PolicyServiceClient<Channel>,
    pub relay: admin::relay_service_client::RelayServiceClient<Channel>,
    pub keys: admin::api_key_service_client::ApiKeyServiceClient<Channel>,
    pub events: admin::event_service_client::EventServiceClient<Channel>,
}

pub async fn unix_channel(path: &Path) -> Channel {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://coordinator").connect_with_connector(connect).await.unwrap()
}

impl Operator {
    pub async fn connect(path: &Path) -> Self {
        let channel = unix_channel(path).await;
        Self {
            networks: admin::network_service_client::NetworkServiceClient::new(channel.clone()),
            nodes: admin::node_service_client::NodeServiceClient::new(channel.clone()),
            tokens: admin::token_service_client::TokenServiceClient::new(channel.clone()),
            policy: admin::policy_service_client::PolicyServiceClient::new(channel.clone()),
            relay: admin::relay_service_client::RelayServiceClient::new(channel.clone()),
            keys: admin::api_key_service_client::ApiKeyServiceClient::new(channel.clone()),
            events: admin::event_service_client::EventServiceClient::new(channel),
        }
    }

    pub async fn token(&mut self, request: admin::CreateTokenRequest) -> JoinToken {
        let response = self.tokens.create_token(request).await.unwrap().into_inner();
        response.secret.parse().unwrap()
    }

    pub async fn list(&mut self) -> Vec<admin::Node> {
        self.nodes.list_nodes(admin::ListNodesRequest::default()).await.unwrap().into_inner().nodes
    }

    pub async fn node(&mut self, name: &str) -> admin::Node {
        self.list().await.into_iter().find(|node| node.name == name).unwrap()
    }

    pub async fn remove(&mut self, node: &str) -> u64 {
        let request = admin::RemoveNodeRequest { node: node.into(), ..Default::default() };
        self.nodes.remove_node(request).await.unwrap().into_inner().revision
    }
}

/// A coordinator put together by hand, with a clock that the test turns.
pub struct Assembled {
    pub coordinator: Coordinator,
    pub address: std::net::SocketAddr,
    pub operator: Operator,
    pub socket: PathBuf,
    /// What monitoring sees of it.
    pub subject: Arc<Watched>,
    clock: Arc<AtomicU64>,
    _directory: Arc<tempfile::TempDir>,
}

impl Assembled {
    pub async fn start() -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
        Self::start_on(store, directory, Limits::default()).await
    }

    pub async fn start_with_limits(limits: Limits) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
        Self::start_on(store, directory, limits).await
    }

    /// One of several coordinators of one store and one key file, for what only replicas can do to each other.
    pub async fn start_on(store: Arc<dyn Store>, directory: Arc<tempfile::TempDir>, limits: Limits) -> Self {
        let own = tempfile::tempdir_in(directory.path()).unwrap().keep();
        let listener = server::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let endpoints = vec![address.to_string()];
        let identity = Identity::open(&own, &endpoints).unwrap();
        let clock = Arc::new(AtomicU64::new(Clock::system().now().as_millis()));
        let ticks = clock.clone();
        let options = Options {
            clock: Clock::new(move || UnixTime::from_millis(ticks.load(Ordering::Relaxed))),
            heartbeat: Duration::from_secs(20),
            endpoints,
            tls_key: *identity.key_hash(),
            relay: false,
        };
        let vault = Vault::open(directory.path(), true).unwrap();
        let coordinator = Coordinator::open(store, vault, options).await.unwrap();
        coordinator.ensure_network(&NetworkConfig::default()).await.unwrap();
        let routes = api::node_routes(&coordinator).await;
        let census = Census::default();
        let state_dir = directory.path().to_owned();
        let subject =
            Arc::new(Watched::new(coordinator.clone(), Arc::<Tasks>::default(), census.clone(), state_dir));
        tokio::spawn(async move {
            let never = std::future::pending();
            server::serve_nodes_counted(listener, &identity, limits, routes, None, census, never)
                .await
                .unwrap();
        });
        let path = own.join("coordinator.sock");
        let socket = server::AdminSocket::bind(&path).unwrap();
        let routes = api::operator_routes(&coordinator).await;
        tokio::spawn(async move {
            server::serve_operators(socket, routes, std::future::pending()).await.unwrap();
        });
        let operator = Operator::connect(&path).await;
        Self { coordinator, address, operator, socket: path, subject, clock, _directory: directory }
    }

    pub fn now(&self) -> UnixTime {
        UnixTime::from_millis(self.clock.load(Ordering::Relaxed))
    }

    pub fn advance(&self, by: Duration) {
        self.clock.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }

    pub async fn token(&mut self) -> JoinToken {
        self.operator.token(admin::CreateTokenRequest { reusable: true, ..Default::default() }).await
    }

    pub async fn member(&mut self, name: &str) -> TestNode {
        let mut node = TestNode::new(name);
        node.set_time(self.now());
        node.join(&self.token().await).await.unwrap();
        node
    }
}
