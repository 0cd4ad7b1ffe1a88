//! Brings a machine into a mesh and a policy into force, as automation would: make a token, join, apply, watch until installed.
//!
//! ```text
//! automate --server mesh.example.org:443 --ca coordinator.crt --key-file api.key --policy policy.toml
//! ```
//!
//! The key is one that `meshctl key create --role operator` made, the certificate what `meshctl coordinator ca` prints. The node
//! daemon of this machine must be running (`meshctl node up`), and this program be run by root, since joining changes the machine.
//!
//! What comes to nothing it asks again, by the same request: each change carries a request id, by which the coordinator knows a
//! repetition and does nothing twice.

#![forbid(unsafe_code)]

use std::{
    error::Error as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Parser as _;
use hyper_util::rt::TokioIo;
use ringmesh_proto::{
    admin::{
        ApplyPolicyRequest, CreateTokenRequest, WaitInstalledRequest, WatchEventsRequest,
        WatchEventsResponse, event_service_client::EventServiceClient,
        node_service_client::NodeServiceClient, policy_service_client::PolicyServiceClient,
        token_service_client::TokenServiceClient,
    },
    local::{JoinRequest, StatusResponse, join_progress::Step, local_service_client::LocalServiceClient},
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::AsciiMetadataValue,
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_types::StatusExt as _;
use zeroize::Zeroizing;

/// No call waits for ever; the longest is the one that waits for nodes.
const DEADLINE: Duration = Duration::from_secs(10);
const WATCH_DEADLINE: Duration = Duration::from_secs(30);
const JOIN_DEADLINE: Duration = Duration::from_secs(60);
/// Seconds to wait before each repetition; a coordinator that is started again serves soon.
const DELAYS: [u64; 4] = [1, 2, 4, 8];

/// Makes a token, joins this machine with it, applies a policy, and waits until it is installed.
#[derive(Debug, clap::Parser)]
struct Options {
    /// The coordinator, HOST:PORT
    #[arg(long)]
    server: String,
    /// Its certificate, PEM
    #[arg(long)]
    ca: PathBuf,
    /// A file with an API key
    #[arg(long)]
    key_file: PathBuf,
    /// The policy to apply, TOML
    #[arg(long)]
    policy: PathBuf,
    /// The network, if there are several
    #[arg(long, default_value = "")]
    network: String,
    /// This machine's node daemon
    #[arg(long, default_value = "/run/mesh/meshd.sock")]
    socket: PathBuf,
    /// The name of this machine in the mesh
    #[arg(long, default_value = "")]
    name: String,
}

/// Sends an API key with each request.
#[derive(Clone)]
struct Key(AsciiMetadataValue);

impl Key {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = Zeroizing::new(fs::read_to_string(path).with_context(|| path.display().to_string())?);
        let header = Zeroizing::new(format!("Bearer {}", text.trim()));
        let mut value: AsciiMetadataValue = header.parse().context("the API key is not text")?;
        // Whoever prints a request does not print this.
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl tonic::service::Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Coordinator = InterceptedService<Channel, Key>;

fn connect(options: &Options) -> anyhow::Result<Coordinator> {
    let certificate = fs::read(&options.ca).with_context(|| options.ca.display().to_string())?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate));
    let endpoint = Endpoint::from_shared(format!("https://{}", options.server))?.tls_config(tls)?;
    let channel = endpoint.connect_timeout(DEADLINE).connect_lazy();
    Ok(InterceptedService::new(channel, Key::read(&options.key_file)?))
}

/// A request with a deadline, which the coordinator is told of.
fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Calls with the same request until there is an answer, a refusal, or no delay left.
async fn again<T: Clone, A>(
    message: T,
    mut call: impl AsyncFnMut(Request<T>) -> Result<Response<A>, Status>,
) -> anyhow::Result<A> {
    let mut delays = DELAYS.into_iter().map(Duration::from_secs);
    loop {
        let status = match call(within(DEADLINE, message.clone())).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        // What tonic itself noticed, a connection that broke or the deadline, has a source, and not always the code.
        let no_answer = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        match delays.next().filter(|_| no_answer || status.source().is_some()) {
            Some(delay) => {
                note(&format!("again in {delay:?}: {}", status.message()));
                tokio::time::sleep(delay).await;
            }
            None => return Err(refused(&status)),
        }
    }
}

/// What a refusal says, and its reason in a word, by which a program tells one from another.
fn refused(status: &Status) -> anyhow::Error {
    let info = status.get_details_error_info();
    let reason = info.map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
    anyhow!("{reason}: {}", status.message())
}

/// An id for a request, so that repeating it does not do it twice.
fn request_id(what: &str) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(format!("{what}-{}-{}", std::process::id(), now.as_nanos()))
}

/// Has the node daemon of this machine join; returns its status.
async fn join(options: &Options, token: String) -> anyhow::Result<StatusResponse> {
    let socket = options.socket.clone();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel =
        endpoint.connect_with_connector(connector).await.context("the node daemon does not answer")?;
    let request = JoinRequest { token, name: options.name.clone(), ..Default::default() };
    let mut progress =
        LocalServiceClient::new(channel).join(within(JOIN_DEADLINE, request)).await?.into_inner();
    while let Some(message) = progress.message().await? {
        if let Some(Step::Done(done)) = message.step {
            return done.status.context("a join without a status");
        }
    }
    bail!("the stream ended before the node had joined")
}

/// Reads events until every node that is online has `revision` in its data plane.
async fn wait_installed(events: &mut Streaming<WatchEventsResponse>, revision: u64) -> anyhow::Result<()> {
    while let Some(message) = events.message().await? {
        for event in message.events {
            let installed = event.details.get("revision").and_then(|text| text.parse().ok());
            if event.name == "revision_installed" && installed.is_some_and(|at: u64| at >= revision) {
                return Ok(());
            }
        }
    }
    bail!("the stream of events ended")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let coordinator = connect(&options)?;
    let network = options.network.clone();

    let request = CreateTokenRequest {
        network: network.clone(),
        ttl_seconds: 600,
        request_id: request_id("token")?,
        ..Default::default()
    };
    let mut tokens = TokenServiceClient::new(coordinator.clone());
    let created = again(request, async |request| tokens.create_token(request).await).await?;
    let status = join(&options, created.secret).await?;

    // Before the change, so that nothing of it can be missed.
    let request = WatchEventsRequest {
        network: network.clone(),
        names: ["policy_applied", "revision_installed"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let mut watching = EventServiceClient::new(coordinator.clone());
    let mut events = watching
        .watch_events(within(WATCH_DEADLINE, request))
        .await
        .map_err(|status| refused(&status))?
        .into_inner();
    // The first answer says that the watch is on.
    events.message().await?;

    let request = ApplyPolicyRequest {
        network: network.clone(),
        text: fs::read_to_string(&options.policy).with_context(|| options.policy.display().to_string())?,
        comment: "by an example in Rust".to_owned(),
        request_id: request_id("policy")?,
        ..Default::default()
    };
    let mut policies = PolicyServiceClient::new(coordinator.clone());
    let applied = again(request, async |request| policies.apply_policy(request).await).await?;
    if applied.changed {
        wait_installed(&mut events, applied.revision).await?;
    }
    let request = WaitInstalledRequest { network, revision: applied.revision, wait_ms: 5000 };
    let mut nodes = NodeServiceClient::new(coordinator);
    let mut installed = again(request, async |request| nodes.wait_installed(request).await).await?.installed;
    installed.sort();

    let name = status.network.and_then(|network| network.self_).map(|node| node.name).unwrap_or_default();
    report(&name, applied.revision, &installed)
}

#[expect(clippy::print_stderr, reason = "for whoever watches this program")]
fn note(what: &str) {
    eprintln!("{what}");
}

#[expect(clippy::print_stdout, reason = "the result of this program")]
fn report(node: &str, revision: u64, installed: &[String]) -> anyhow::Result<()> {
    println!("{node} joined; r{revision} is installed on {}", installed.join(", "));
    Ok(())
}
