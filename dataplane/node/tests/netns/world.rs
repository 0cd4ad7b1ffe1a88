//! Hosts on a switch: the real coordinator on one of them, real node daemons on the others.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use ringmesh_aead::{Cipher, Key};
use ringmesh_io::Choice;
use ringmesh_lab::{Host, Lab, Switch};
use ringmesh_proto::admin::{
    AddStockDeviceRequest, AddStockDeviceResponse, ApplyPolicyRequest, ApplyPolicyResponse,
    CreateTokenRequest, ListNodesRequest, ListNodesResponse, ListRelayClientsRequest,
    ListRelayClientsResponse, ListTokensRequest, RemoveNodeRequest, RevokeTokenRequest, WaitInstalledRequest,
    WaitInstalledResponse, node_service_client::NodeServiceClient,
    policy_service_client::PolicyServiceClient, relay_service_client::RelayServiceClient,
    token_service_client::TokenServiceClient,
};
use ringmesh_tunnel::enroll::JoinToken;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::support::daemon::{Node, Place};

/// Within this nodes that can reach each other straight do so.
const STRAIGHT: Duration = Duration::from_secs(10);

/// The longest that a coordinator waits for nodes.
const PATIENCE: Duration = Duration::from_secs(8);

/// A host and a runtime whose threads are on it.
pub struct Machine {
    pub host: Host,
    runtime: Option<Runtime>,
}

impl Machine {
    pub fn new(switch: &Switch, name: &str) -> Self {
        Self::of(switch.host(name).unwrap())
    }

    pub fn of(host: Host) -> Self {
        Self { host, runtime: None }
    }

    /// Threads inherit the namespaces of the thread that starts them.
    pub fn handle(&mut self) -> Handle {
        let host = &self.host;
        let runtime = self.runtime.get_or_insert_with(|| {
            host.enter(|| Builder::new_multi_thread().worker_threads(2).enable_all().build())
                .unwrap()
                .unwrap()
        });
        runtime.handle().clone()
    }

    /// Runs something on this host.
    pub async fn run<T: Send + 'static>(&mut self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.handle().spawn(work).await.unwrap()
    }

    /// Ends everything that runs on this host's runtime, without a word to anybody.
    pub fn cut_power(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// This test program, to be run on this host.
    pub fn this_program(&self) -> Command {
        self.host.command(std::env::current_exe().unwrap()).unwrap()
    }

    /// Runs a line of shell on this host.
    pub fn shell(&self, line: &str) -> Output {
        let mut command = self.host.command("sh").unwrap();
        command.args(["-c", line]).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a line of shell that must succeed, and gives what it printed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.shell(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {line}: {text}{errors}", self.host.name());
        text
    }

    /// Sends three echo requests by the system's ping, which must all be answered.
    pub fn ping(&self, to: impl Into<IpAddr>) {
        self.sh(&format!("ping -n -c 3 -i 0.05 -W 5 {}", to.into()));
    }

    /// Whether one echo request by the system's ping is answered within half a second.
    pub fn reaches(&self, to: impl Into<IpAddr>) -> bool {
        self.shell(&format!("ping -n -c 1 -W 0.5 {}", to.into())).status.success()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
    }
}

/// A coordinator and a switch for nodes.
pub struct World {
    pub head: Machine,
    pub switch: Switch,
    directory: TempDir,
    pub address: SocketAddr,
    config: ringmesh_controlplane::Config,
    pub lab: Lab,
}

impl World {
    pub async fn new() -> Self {
        Self::with(|_, _| {}).await
    }

    /// A world whose coordinator is configured by `adjust`, which may look at its host.
    pub async fn with(adjust: impl FnOnce(&mut ringmesh_controlplane::Config, &Self)) -> Self {
        let mut world = Self::without_coordinator(adjust);
        world.start_coordinator().await;
        world
    }

    /// The same, with the coordinator not yet started.
    pub fn without_coordinator(adjust: impl FnOnce(&mut ringmesh_controlplane::Config, &Self)) -> Self {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let head = Machine::new(&switch, "head");
        let address = SocketAddr::new(head.host.ipv4().into(), 443);
        let directory = tempfile::tempdir().unwrap();
        let mut config = ringmesh_controlplane::Config {
            listen: address,
            state_dir: directory.path().join("coordinator"),
            admin_socket: directory.path().join("coordinator.sock"),
            heartbeat_seconds: 2,
            ..Default::default()
        };
        let mut world = Self { head, switch, directory, address, config: config.clone(), lab };
        adjust(&mut config, &world);
        world.config = config;
        world
    }

    /// Starts the coordinator, again if need be, on the state it had.
    pub async fn start_coordinator(&mut self) {
        let config = self.config.clone();
        let (ready, is_ready) = oneshot::channel();
        let daemon = self.head.handle().spawn(async move {
            let run = ringmesh_controlplane::run(config, std::future::pending(), |serving| {
                let _ = ready.send(serving);
            });
            panic!("the coordinator ended: {:?}", run.await);
        });
        if is_ready.await.is_err() {
            daemon.await.unwrap();
        }
    }

    /// The coordinator is gone from one moment to the next.
    pub fn kill_coordinator(&mut self) {
        self.head.cut_power();
    }

    fn admin_socket(&self) -> PathBuf {
        self.config.admin_socket.clone()
    }

    pub fn config(&self) -> &ringmesh_controlplane::Config {
        &self.config
    }

    /// A folder of the test's own.
    pub fn folder(&self) -> &std::path::Path {
        self.directory.path()
    }

    async fn admin(&self) -> Channel {
        let socket = self.admin_socket();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
    }

    pub async fn token(&self) -> String {
        self.token_with(CreateTokenRequest { reusable: true, ..Default::default() }).await
    }

    /// Revokes every token but this one.
    pub async fn revoke_all_but(&self, keep: &str) {
        let keep = keep.parse::<JoinToken>().unwrap().token().to_string();
        let mut tokens = TokenServiceClient::new(self.admin().await);
        for token in tokens.list_tokens(ListTokensRequest::default()).await.unwrap().into_inner().tokens {
            if token.id != keep {
                let request = RevokeTokenRequest { id: token.id, ..Default::default() };
                tokens.revoke_token(request).await.unwrap();
            }
        }
    }

    pub async fn token_with(&self, request: CreateTokenRequest) -> String {
        TokenServiceClient::new(self.admin().await).create_token(request).await.unwrap().into_inner().secret
    }

    /// The nodes, without the coordinator's own relay.
    pub async fn nodes(&self) -> ListNodesResponse {
        let request = ListNodesRequest::default();
        let listed = NodeServiceClient::new(self.admin().await).list_nodes(request).await;
        let mut listed = listed.unwrap().into_inner();
        listed.nodes.retain(|node| !node.relay);
        listed
    }

    /// What the coordinator's relay tells of its clients.
    pub async fn relay(&self) -> ListRelayClientsResponse {
        let request = ListRelayClientsRequest::default();
        RelayServiceClient::new(self.admin().await).list_relay_clients(request).await.unwrap().into_inner()
    }

    pub async fn remove(&self, node: &str) {
        let request = RemoveNodeRequest { node: node.to_owned(), ..Default::default() };
        NodeServiceClient::new(self.admin().await).remove_node(request).await.unwrap();
    }

    /// Applies a policy and waits until every node that is online has it in its data plane.
    pub async fn apply(&self, text: &str) -> ApplyPolicyResponse {
        let applied = self.apply_within(text, PATIENCE).await;
        let behind = &applied.installation.as_ref().expect("it was waited for").behind;
        assert!(behind.iter().all(|node| !node.online), "{behind:?}");
        applied
    }

    /// Applies a policy and waits for at most `wait`.
    pub async fn apply_within(&self, text: &str, wait: Duration) -> ApplyPolicyResponse {
        let wait_ms = wait.as_millis().try_into().unwrap();
        let request = ApplyPolicyRequest { text: text.to_owned(), wait_ms, ..Default::default() };
        PolicyServiceClient::new(self.admin().await).apply_policy(request).await.unwrap().into_inner()
    }

    /// Who has the newest revision in its data plane, after waiting for at most `wait`.
    pub async fn installed_within(&self, wait: Duration) -> WaitInstalledResponse {
        let wait_ms = wait.as_millis().try_into().unwrap();
        let request = WaitInstalledRequest { wait_ms, ..Default::default() };
        NodeServiceClient::new(self.admin().await).wait_installed(request).await.unwrap().into_inner()
    }

    pub async fn add_stock_device(&self, name: &str, public_key: &str) -> AddStockDeviceResponse {
        let request =
            AddStockDeviceRequest { name: name.into(), public_key: public_key.into(), ..Default::default() };
        NodeServiceClient::new(self.admin().await).add_stock_device(request).await.unwrap().into_inner()
    }

    /// A host with a daemon on it, in this process, that has joined.
    pub async fn node(&self, name: &str, io: Choice) -> Member {
        let mut place = Place::new();
        place.config.io = io;
        self.member(Machine::new(&self.switch, name), place, name).await
    }

    /// A daemon on `machine`, in this process, that has joined.
    pub async fn member(&self, machine: Machine, place: Place, name: &str) -> Member {
        self.member_with_cipher::<Key>(machine, place, name).await
    }

    /// The same, whose packets are sealed by a cipher of ours.
    pub async fn member_with_cipher<C: Cipher>(
        &self,
        mut machine: Machine,
        place: Place,
        name: &str,
    ) -> Member {
        let place = Arc::new(place);
        let (token, wish, start) = (self.token().await, name.to_owned(), Arc::clone(&place));
        let (node, status) = machine
            .run(async move {
                let mut node = start.start_with_cipher::<C>().await.unwrap();
                let status = node.join(&token, &wish).await.unwrap();
                (node, status)
            })
            .await;
        let own = status.network.unwrap().self_.unwrap();
        assert_eq!(own.name, name);
        Member { machine, place, node, ipv4: own.ipv4.parse().unwrap(), ipv6: own.ipv6.parse().unwrap() }
    }
}

/// A host whose daemon has joined.
pub struct Member {
    pub machine: Machine,
    pub place: Arc<Place>,
    pub node: Node,
    pub ipv4: IpAddr,
    pub ipv6: IpAddr,
}

impl Member {
    /// Waits until this node knows `count` peers.
    pub async fn until_peers(&mut self, count: usize) {
        self.node.until(&format!("{count} peers are known"), |status| status.peers.len() == count).await;
    }

    /// Waits until the stream to the coordinator is open.
    pub async fn until_connected(&mut self) {
        let connected = |state: &str| state == "connected";
        self.node
            .until("it is connected", |status| {
                status.coordinator.as_ref().is_some_and(|link| connected(&link.state))
            })
            .await;
    }

    /// Pings by echo, waiting for everything that has to happen before: first answers may come through a relay.
    pub async fn echo(&mut self, node: &str) {
        let began = std::time::Instant::now();
        loop {
            let answers = self.node.ping(node, 3, 10_000).await.unwrap();
            assert_eq!(answers.len(), 3);
            assert!(answers.iter().all(|answer| answer.error.is_empty()), "{answers:?}");
            if answers.iter().all(|answer| answer.path == "direct") {
                return;
            }
            assert!(began.elapsed() < STRAIGHT, "not straight after {STRAIGHT:?}: {answers:?}");
        }
    }
}

/// Repeats a check until it holds, for at most `limit`, and tells how long it took.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = std::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

/// Sends `bytes` over TCP from one host to another's address `at`, and compares checksums.
pub async fn transfer(from: &mut Machine, to: &mut Machine, at: IpAddr, bytes: usize) {
    let (listens, is_listening) = oneshot::channel();
    let receive = async move {
        let listener = TcpListener::bind((at, 0)).await.unwrap();
        listens.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match stream.read(&mut buffer).await.unwrap() {
                0 => return hash.finalize(),
                read => hash.update(&buffer[..read]),
            }
        }
    };
    let send = async move {
        let mut stream = TcpStream::connect(is_listening.await.unwrap()).await.unwrap();
        let mut hash = Sha256::new();
        let mut block = vec![0; 1 << 16];
        let mut left = bytes;
        for counter in 0_u64.. {
            if left == 0 {
                break;
            }
            // Different everywhere, so that a block lost, repeated or moved is noticed.
            for (word, place) in block.chunks_exact_mut(8).zip(counter * 8192..) {
                word.copy_from_slice(&place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            }
            let part = &block[..left.min(block.len())];
            hash.update(part);
            stream.write_all(part).await.unwrap();
            left -= part.len();
        }
        stream.shutdown().await.unwrap();
        hash.finalize()
    };
    let received = to.handle().spawn(receive);
    let sent = from.handle().spawn(send).await.unwrap();
    let received =
        tokio::time::timeout(Duration::from_secs(60), received).await.expect("the transfer ends").unwrap();
    assert_eq!(sent, received);
}
