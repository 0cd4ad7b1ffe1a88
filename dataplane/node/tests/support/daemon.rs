//! A node daemon in this process, and its local API as `meshctl` would use it.

use std::{path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use ringmesh_aead::Cipher;
use ringmesh_node::{Bound, Config, Failure};
use ringmesh_proto::local::{
    AddDenialRequest, Denial, FilterRequest, FilterResponse, JoinRequest, LeaveRequest, PingRequest,
    PingResponse, RemoveDenialRequest, StatusRequest, StatusResponse, TraceRequest, TraceResponse,
    join_progress::Step, local_service_client::LocalServiceClient,
};
use tempfile::TempDir;
use tokio::{net::UnixStream, sync::oneshot, task::JoinHandle};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// Where a daemon keeps things; outlives the daemon, so that it can be started again.
pub struct Place {
    pub directory: TempDir,
    pub config: Config,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            state_dir: directory.path().join("state"),
            socket: directory.path().join("meshd.sock"),
            ..Config::default()
        };
        Self { directory, config }
    }

    pub fn state(&self, file: &str) -> PathBuf {
        self.config.state_dir.join(file)
    }

    /// Starts a daemon and waits until it is ready.
    pub async fn start(&self) -> Result<Node, Failure> {
        self.start_bound(ringmesh_node::bind(self.config.clone())).await
    }

    /// The same, with a cipher that the program brings.
    pub async fn start_with_cipher<C: Cipher>(&self) -> Result<Node, Failure> {
        self.start_bound(ringmesh_node::bind(self.config.clone()).map(Bound::with_cipher::<C>)).await
    }

    async fn start_bound(&self, bound: Result<Bound, Failure>) -> Result<Node, Failure> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let daemon = tokio::spawn(bound?.run(shutdown, ready));
        if is_ready.await.is_err() {
            return Err(daemon.await.unwrap().unwrap_err());
        }
        Ok(Node { client: connect(self.config.socket.clone()).await, stop: Some(stop), daemon: Some(daemon) })
    }
}

/// A client of the daemon at `socket`.
pub async fn connect(socket: PathBuf) -> LocalServiceClient<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap();
    LocalServiceClient::new(channel)
}

/// A running daemon.
pub struct Node {
    pub client: LocalServiceClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    daemon: Option<JoinHandle<Result<(), Failure>>>,
}

impl Node {
    /// A daemon that is a process of its own.
    pub fn of_process(client: LocalServiceClient<Channel>) -> Self {
        Self { client, stop: None, daemon: None }
    }

    pub async fn join(&mut self, token: &str, name: &str) -> Result<StatusResponse, Status> {
        self.join_with(token, name, "").await
    }

    pub async fn join_with(&mut self, token: &str, name: &str, pem: &str) -> Result<StatusResponse, Status> {
        let request = JoinRequest { token: token.into(), name: name.into(), identity_pem: pem.into() };
        let mut progress = self.client.join(request).await?.into_inner();
        while let Some(step) = progress.message().await? {
            match step.step.unwrap() {
                Step::Doing(line) => println!("join: {line}"),
                Step::Done(done) => return Ok(done.status.unwrap()),
            }
        }
        panic!("the join ended without a result");
    }

    pub async fn status(&mut self) -> StatusResponse {
        self.client.status(StatusRequest {}).await.unwrap().into_inner()
    }

    pub async fn filter(&mut self) -> FilterResponse {
        self.client.filter(FilterRequest {}).await.unwrap().into_inner()
    }

    pub async fn deny(&mut self, request: AddDenialRequest) -> Result<Denial, Status> {
        Ok(self.client.add_denial(request).await?.into_inner().denial.unwrap())
    }

    pub async fn remove_denial(&mut self, id: u32) -> Result<(), Status> {
        self.client.remove_denial(RemoveDenialRequest { id }).await.map(|_| ())
    }

    /// Traces a flow given as `tcp/22` or `icmp`.
    pub async fn trace(
        &mut self,
        source: &str,
        destination: &str,
        flow: &str,
    ) -> Result<TraceResponse, Status> {
        let (protocol, port) = flow.split_once('/').unwrap_or((flow, "0"));
        let request = TraceRequest {
            source: source.into(),
            destination: destination.into(),
            protocol: protocol.into(),
            port: port.parse().unwrap(),
        };
        Ok(self.client.trace(request).await?.into_inner())
    }

    pub async fn leave(&mut self) -> Result<bool, Status> {
        Ok(self.client.leave(LeaveRequest {}).await?.into_inner().coordinator_told)
    }

    pub async fn ping(
        &mut self,
        node: &str,
        count: u32,
        timeout_ms: u32,
    ) -> Result<Vec<PingResponse>, Status> {
        let request = PingRequest { node: node.into(), count, interval_ms: 20, timeout_ms };
        let mut answers = self.client.ping(request).await?.into_inner();
        let mut all = Vec::new();
        while let Some(answer) = answers.message().await? {
            all.push(answer);
        }
        Ok(all)
    }

    /// Waits until the status fulfils something.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&StatusResponse) -> bool) -> StatusResponse {
        let began = tokio::time::Instant::now();
        loop {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "never: {what}; last: {status:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the daemon ends by itself.
    pub async fn ended(mut self) -> Result<(), Failure> {
        let daemon = self.daemon.take().expect("the daemon is in this process");
        tokio::time::timeout(Duration::from_secs(10), daemon).await.expect("the daemon ends").unwrap()
    }

    /// Stops the daemon cleanly.
    pub async fn stop(mut self) -> Result<(), Failure> {
        drop(self.stop.take());
        self.ended().await
    }
}
