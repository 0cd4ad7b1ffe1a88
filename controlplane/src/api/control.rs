//! `ringmesh.control.v1`: what nodes ask.

use std::pin::Pin;

use futures_util::Stream;
use ringmesh_proto::control::{self as proto, control_service_server::ControlService};
use ringmesh_tunnel::netmap::Role;
use tonic::{Request, Response, Status, Streaming};

use super::{challenge, convert, sync};
use crate::{
    auth::{Authed, Joining, NodeOf},
    coordinator::Coordinator,
    error::Refused,
    network::enroll::printable,
    server::Connection,
};

/// The service that nodes use. Public so that a test may put itself in between.
#[derive(Debug, Clone)]
pub struct Control {
    coordinator: Coordinator,
}

impl Control {
    /// The service of `coordinator`. Its requests must come through [`crate::server::serve_nodes`].
    #[must_use]
    pub const fn new(coordinator: Coordinator) -> Self {
        Self { coordinator }
    }

    fn enrolled(&self, who: NodeOf) -> Result<proto::EnrollResponse, Refused> {
        let coordinators = self.coordinator.endpoints();
        self.coordinator.with_network(who.network, |state| {
            let node = state.nodes.get(&who.node).ok_or(Refused::NodeRemoved)?;
            let certificate =
                state.certificates.get(&Role::Admission).map(|held| convert::envelope(&held.envelope));
            let secrets = state.sealed_secrets(who.node)?;
            Ok(proto::EnrollResponse {
                node_id: who.node.as_bytes().to_vec(),
                member: Some(convert::envelope(&node.member.envelope)),
                certificates: certificate.into_iter().collect(),
                secrets: secrets.into_iter().map(convert::sealed_secret).collect(),
                coordinators,
                network: Some(convert::network_info(state)),
            })
        })?
    }
}

/// The connection that [`crate::server::serve_nodes`] put into the request.
fn connection<T>(request: &Request<T>) -> Result<Connection, Refused> {
    request.extensions().get::<Connection>().cloned().ok_or(Refused::NotPermitted)
}

#[tonic::async_trait]
impl ControlService for Control {
    async fn challenge(
        &self,
        request: Request<proto::ChallengeRequest>,
    ) -> Result<Response<proto::ChallengeResponse>, Status> {
        if !connection(&request)?.may_challenge() {
            return Err(Refused::TooManyChallenges.into());
        }
        Ok(Response::new(challenge::answer(&self.coordinator, request.get_ref())?))
    }

    async fn enroll(
        &self,
        request: Request<proto::EnrollRequest>,
    ) -> Result<Response<proto::EnrollResponse>, Status> {
        let connection = connection(&request)?;
        let who: Authed<Joining> = Authed::by_token(&self.coordinator, &connection, request.into_inner())?;
        let node = self.coordinator.enroll(&who).await?;
        Ok(Response::new(self.enrolled(node)?))
    }

    type SyncStream = Pin<Box<dyn Stream<Item = Result<proto::SyncResponse, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<proto::SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let connection = connection(&request)?;
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|request| request.message);
        let Some(proto::sync_request::Message::Hello(hello)) = first else {
            return Err(Refused::NoHello.into());
        };
        let who: Authed<NodeOf> = Authed::by_key(&self.coordinator, &connection, &hello)?;
        let responses = sync::begin(&self.coordinator, &who, hello, &connection, requests)?;
        Ok(Response::new(Box::pin(responses)))
    }

    async fn report(
        &self,
        request: Request<proto::ReportRequest>,
    ) -> Result<Response<proto::ReportResponse>, Status> {
        let report = request.into_inner();
        let who: Authed<NodeOf> = Authed::by_session(&self.coordinator, &report.session)?;
        let now = self.coordinator.now();
        self.coordinator.presence().update(who.who(), |presence| {
            presence.back_end = printable(&report.back_end);
            presence.last_seen = now;
        });
        Ok(Response::new(proto::ReportResponse {}))
    }

    async fn leave(
        &self,
        request: Request<proto::LeaveRequest>,
    ) -> Result<Response<proto::LeaveResponse>, Status> {
        let connection = connection(&request)?;
        let who: Authed<NodeOf> = Authed::to_leave(&self.coordinator, &connection, request.get_ref())?;
        let NodeOf { network, node } = *who.who();
        self.coordinator.remove(&who, network, node).await?;
        Ok(Response::new(proto::LeaveResponse {}))
    }
}
