//! `ringmesh.local.v1` over the daemon: what is answered.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use ringmesh_proto::{
    control::Reason,
    local::{
        AddDenialRequest, AddDenialResponse, DnsQueryRequest, DnsQueryResponse, DnsStatusRequest,
        DnsStatusResponse, FilterRequest, FilterResponse, JoinDone, JoinProgress, JoinRequest, LeaveRequest,
        LeaveResponse, PingRequest, PingResponse, RemoveDenialRequest, RemoveDenialResponse, StatusRequest,
        StatusResponse, TraceRequest, TraceResponse, WhyRequest, WhyResponse, join_progress,
        local_service_server::{LocalService, LocalServiceServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, transport::Server};
use tracing::debug;
use zeroize::Zeroizing;

use super::{guard::Guard, socket::LocalSocket};
use crate::{
    daemon::{Daemon, PingPlan},
    error::Failure,
};

/// Lines of progress that wait for a slow reader.
const PROGRESS_QUEUE: usize = 16;
/// What may be asked for in one `Ping`.
const MAX_PINGS: u32 = 100_000;
const MAX_PING_TIME: Duration = Duration::from_secs(60);

/// Serves the local API until `shutdown`.
///
/// # Errors
/// The listener fails.
pub(crate) async fn serve(
    daemon: Arc<Daemon>,
    mut socket: LocalSocket,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let listener =
        socket.take_listener().ok_or_else(|| Failure::new(Reason::Host, "the local socket is in use"))?;
    let service = LocalServiceServer::new(Local { daemon });
    Server::builder()
        .layer(tower::layer::layer_fn(Guard::before))
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
        .map_err(|error| Failure::new(Reason::Host, format!("the local API failed: {error}")))
}

struct Local {
    daemon: Arc<Daemon>,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl LocalService for Local {
    type JoinStream = Responses<JoinProgress>;
    type PingStream = Responses<PingResponse>;

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.daemon.status().await))
    }

    async fn filter(&self, _request: Request<FilterRequest>) -> Result<Response<FilterResponse>, Status> {
        Ok(Response::new(self.daemon.joined()?.filter().await))
    }

    async fn add_denial(
        &self,
        request: Request<AddDenialRequest>,
    ) -> Result<Response<AddDenialResponse>, Status> {
        let (mesh, request) = (self.daemon.joined()?, request.into_inner());
        let denial = to_the_end(async move { mesh.add_denial(&request).await }).await?;
        Ok(Response::new(AddDenialResponse { denial: Some(denial) }))
    }

    async fn remove_denial(
        &self,
        request: Request<RemoveDenialRequest>,
    ) -> Result<Response<RemoveDenialResponse>, Status> {
        let (mesh, id) = (self.daemon.joined()?, request.into_inner().id);
        to_the_end(async move { mesh.remove_denial(id).await }).await?;
        Ok(Response::new(RemoveDenialResponse {}))
    }

    async fn trace(&self, request: Request<TraceRequest>) -> Result<Response<TraceResponse>, Status> {
        Ok(Response::new(self.daemon.joined()?.trace(&request.into_inner()).await?))
    }

    async fn dns_status(
        &self,
        _request: Request<DnsStatusRequest>,
    ) -> Result<Response<DnsStatusResponse>, Status> {
        Ok(Response::new(self.daemon.joined()?.dns_status()))
    }

    async fn dns_query(
        &self,
        request: Request<DnsQueryRequest>,
    ) -> Result<Response<DnsQueryResponse>, Status> {
        Ok(Response::new(self.daemon.joined()?.dns_query(&request.into_inner()).await?))
    }

    async fn why(&self, request: Request<WhyRequest>) -> Result<Response<WhyResponse>, Status> {
        self.daemon
            .why(&request.into_inner().node)
            .await
            .map(Response::new)
            .map_err(|failure| failure.to_status())
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Self::JoinStream>, Status> {
        let JoinRequest { token, name, identity_pem } = request.into_inner();
        let token = Zeroizing::new(token);
        let identity_pem = Zeroizing::new(identity_pem);
        let (progress, responses) = mpsc::channel(PROGRESS_QUEUE);
        let daemon = Arc::clone(&self.daemon);
        // On its own: a joiner who hangs up leaves the join whole, not half done.
        tokio::spawn(async move {
            let tell = |line: &str| {
                debug!(step = line, "joining");
                let step = join_progress::Step::Doing(line.to_owned());
                // A reader who is slow or gone misses a line of progress, nothing else.
                let _ = progress.try_send(Ok(JoinProgress { step: Some(step) }));
            };
            let last = match daemon.join(&token, &name, &identity_pem, &tell).await {
                Ok(status) => Ok(JoinProgress {
                    step: Some(join_progress::Step::Done(JoinDone { status: Some(status) })),
                }),
                Err(failure) => Err(failure.to_status()),
            };
            let _ = progress.send(last).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<Self::PingStream>, Status> {
        let PingRequest { node, count, interval_ms, timeout_ms } = request.into_inner();
        let or =
            |value: u32, usual: u32| Duration::from_millis(u64::from(if value == 0 { usual } else { value }));
        let plan = PingPlan {
            count: count.clamp(1, MAX_PINGS),
            interval: or(interval_ms, 1000),
            timeout: or(timeout_ms, 5000).min(MAX_PING_TIME),
        };
        let target = self.daemon.find_peer(&node)?;
        let (answers, responses) = mpsc::channel(1);
        let daemon = Arc::clone(&self.daemon);
        tokio::spawn(async move { daemon.ping(target, plan, answers).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    async fn leave(&self, _request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        let coordinator_told = self.daemon.leave().await?;
        Ok(Response::new(LeaveResponse { coordinator_told }))
    }
}

/// Does something on its own: a caller who hangs up leaves it whole, not half done.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(Failure::new(Reason::Host, error.to_string())))
}
