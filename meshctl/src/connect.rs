//! Connections to the daemons of this machine, over their unix sockets.

use std::{io, path::Path, time::Duration};

use hyper_util::rt::TokioIo;
use ringmesh_proto::{
    admin::{
        api_key_service_client::ApiKeyServiceClient, event_service_client::EventServiceClient,
        network_service_client::NetworkServiceClient, node_service_client::NodeServiceClient,
        policy_service_client::PolicyServiceClient, relay_service_client::RelayServiceClient,
        token_service_client::TokenServiceClient,
    },
    local::local_service_client::LocalServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Request, Response, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    daemon::Daemon,
    failure::{Exit, Failure},
    refusal, rights,
};

/// A daemon that answers is on this machine: it answers soon or something is wrong.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// What requests to a coordinator go through.
pub(crate) type Asking = InterceptedService<Channel, WithKey>;

/// Puts the API key, if there is one, with each request.
#[derive(Clone, Debug)]
pub(crate) struct WithKey(Option<AsciiMetadataValue>);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

/// A connection to a daemon, and which process it is.
#[derive(Debug)]
pub(crate) struct Connection {
    daemon: Daemon,
    channel: Channel,
    /// What goes with each request to a coordinator elsewhere.
    key: Option<AsciiMetadataValue>,
    /// The process that listens on the socket, as the kernel tells it (SO_PEERCRED).
    pid: Option<i32>,
}

impl Connection {
    /// Connects to `daemon` at `socket`.
    ///
    /// Fails with [`Exit::NotRunning`] if nothing listens there, with [`Exit::Permission`] if this user may not.
    pub(crate) async fn open(daemon: Daemon, socket: &Path) -> Result<Self, Failure> {
        let stream =
            UnixStream::connect(socket).await.map_err(|error| not_connected(daemon, socket, &error))?;
        let pid = stream.peer_cred().ok().and_then(|credentials| credentials.pid());
        // The channel lives on this one stream: a daemon that went away is not silently replaced by its successor.
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset));
            async move { stream }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|error| {
                Failure::new(Exit::NotRunning, format!("{} does not speak gRPC", daemon.name()))
                    .cause(format!("at {}: {error}", socket.display()))
            })?;
        Ok(Self { daemon, channel, key: None, pid })
    }

    /// A connection to a daemon elsewhere, which is asked with `key`.
    pub(crate) const fn over_tls(daemon: Daemon, channel: Channel, key: AsciiMetadataValue) -> Self {
        Self { daemon, channel, key: Some(key), pid: None }
    }

    /// The channel, with the key if there is one.
    fn asking(&self) -> Asking {
        InterceptedService::new(self.channel.clone(), WithKey(self.key.clone()))
    }

    /// The daemon's process id, if it is in a process namespace that can be seen from here.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid.filter(|pid| *pid > 0)
    }

    /// `ringmesh.local.v1`.
    pub(crate) fn local(&self) -> LocalServiceClient<Channel> {
        LocalServiceClient::new(self.channel.clone())
    }

    /// `ringmesh.admin.v1`, events.
    pub(crate) fn events(&self) -> EventServiceClient<Asking> {
        EventServiceClient::new(self.asking())
    }

    /// `ringmesh.admin.v1`, networks.
    pub(crate) fn networks(&self) -> NetworkServiceClient<Asking> {
        NetworkServiceClient::new(self.asking())
    }

    /// `ringmesh.admin.v1`, API keys.
    pub(crate) fn keys(&self) -> ApiKeyServiceClient<Asking> {
        ApiKeyServiceClient::new(self.asking())
    }

    /// `ringmesh.admin.v1`, members.
    pub(crate) fn nodes(&self) -> NodeServiceClient<Asking> {
        NodeServiceClient::new(self.asking())
    }

    /// `ringmesh.admin.v1`, policies.
    pub(crate) fn policies(&self) -> PolicyServiceClient<Asking> {
        PolicyServiceClient::new(self.asking())
    }

    /// `ringmesh.admin.v1`, the coordinator's relay.
    pub(crate) fn relay(&self) -> RelayServiceClient<Asking> {
        RelayServiceClient::new(self.asking())
    }

    /// `ringmesh.admin.v1`, tokens.
    pub(crate) fn tokens(&self) -> TokenServiceClient<Asking> {
        TokenServiceClient::new(self.asking())
    }

    /// Awaits `call`, bounded in time. `doing` completes "cannot ...".
    pub(crate) async fn call<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(doing, &status)),
            Err(_) => Err(Failure::new(Exit::Timeout, format!("cannot {doing}")).cause(format!(
                "{} did not answer within {} s",
                self.daemon.name(),
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Awaits `call`, bounded in time, for who decides by the status what to do about it.
    pub(crate) async fn call_raw<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(answered) => answered.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "{} did not answer within {} s",
                self.daemon.name(),
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    /// What `status`, received from this daemon, means to a person.
    pub(crate) fn refused(&self, doing: &str, status: &Status) -> Failure {
        match self.key {
            None => refusal::of_status(self.daemon, doing, status),
            Some(_) => refusal::of_remote_status(self.daemon, doing, status),
        }
    }
}

/// Why no connection came about, and what would help.
fn not_connected(daemon: Daemon, socket: &Path, error: &io::Error) -> Failure {
    let at = socket.display();
    if error.kind() == io::ErrorKind::NotFound {
        return not_running(daemon).cause(format!("there is no socket {at}")).attempt(daemon.how_to_start());
    }
    if error.kind() == io::ErrorKind::ConnectionRefused {
        return not_running(daemon).cause(format!("nobody listens at {at}")).attempt(daemon.how_to_start());
    }
    // A path too long for a socket address, say, or not a socket at all.
    rights::refused(
        format!("cannot connect to {}", daemon.name()),
        format!("{at}: {error}"),
        error,
        Exit::General,
    )
}

fn not_running(daemon: Daemon) -> Failure {
    Failure::new(Exit::NotRunning, format!("{} is not running", daemon.name()))
}
