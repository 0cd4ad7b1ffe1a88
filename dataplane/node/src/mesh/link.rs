//! How things stand with the coordinators, for status and for those who need the open connection.

use std::{sync::PoisonError, time::Instant};

use ringmesh_proto::control::{LeaveRequest, Reason, control_service_client::ControlServiceClient};
use ringmesh_tunnel::{enroll::transcript, key::Label};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::Mesh;
use crate::{control::connect, error::Failure};

/// How long `leave` waits for a coordinator.
const LEAVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// What `status` says of the coordinators.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    /// The coordinator in use or tried last.
    pub(crate) address: String,
    /// The last failure, unless connected.
    pub(crate) last_error: Option<Failure>,
    /// When the next attempt begins.
    pub(crate) next_try: Option<Instant>,
}

/// One word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// The map stream is open.
    Connected,
    /// Trying, or about to.
    Connecting,
    /// The last attempt met a coordinator that refused us, or that we refused.
    Refused,
    /// The node was removed, and asks only now and then whether that is so.
    None,
}

impl Default for Link {
    fn default() -> Self {
        Self { state: LinkState::Connecting, address: String::new(), last_error: None, next_try: None }
    }
}

impl Link {
    pub(crate) fn connected(address: &str) -> Self {
        Self { state: LinkState::Connected, address: address.to_owned(), last_error: None, next_try: None }
    }

    pub(crate) fn removed(next_try: Option<Instant>) -> Self {
        let failure = Failure::new(
            Reason::NodeRemoved,
            "this node was removed from its network; `meshctl leave` clears its state",
        );
        Self { state: LinkState::None, address: String::new(), last_error: Some(failure), next_try }
    }

    pub(crate) fn failed(address: &str, failure: Failure, next_try: Instant) -> Self {
        let may_pass = matches!(failure.reason(), Reason::Unreachable | Reason::Busy);
        let state = if may_pass { LinkState::Connecting } else { LinkState::Refused };
        Self { state, address: address.to_owned(), last_error: Some(failure), next_try: Some(next_try) }
    }
}

impl LinkState {
    /// The word in `status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Refused => "refused",
            Self::None => "none",
        }
    }
}

/// An open map stream's session.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) client: ControlServiceClient<Channel>,
    pub(crate) session: Vec<u8>,
}

impl Mesh {
    /// Notes how things stand.
    pub(crate) fn set_link(&self, link: Link, live: Option<Live>) {
        self.link.send_replace(link);
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// How things stand.
    pub(crate) fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Tells a coordinator that the node leaves; whether one heard it.
    pub(crate) async fn tell_leaving(&self) -> bool {
        if self.link().state == LinkState::None {
            return false;
        }
        match timeout(LEAVE_TIMEOUT, self.leave_by_proof()).await {
            Ok(Ok(())) => true,
            Ok(Err(failure)) => {
                tracing::warn!(event = "leave_untold", %failure, "no coordinator took the leave");
                false
            }
            Err(_) => false,
        }
    }

    /// Leaves on a connection of its own: the proof is bound to a fresh challenge, and the stream's may be long past.
    async fn leave_by_proof(&self) -> Result<(), Failure> {
        let membership = self.membership();
        let (mut addresses, current) = (membership.coordinators, self.link().address);
        addresses.sort_by_key(|address| *address != current);
        let mut connection = connect::any(&addresses, self.pin()).await?;
        let transcript = transcript::leave(&transcript::Leave {
            connection: connection.transcript(membership.network),
            id: membership.node,
            identity_key: self.identity().public_key(),
        });
        let request = LeaveRequest {
            network_id: membership.network.as_bytes().to_vec(),
            node_id: membership.node.as_bytes().to_vec(),
            proof: Some(connection.proof()),
            signature: self.identity().secret().sign(Label::Leave, &transcript).as_bytes().to_vec(),
        };
        connection.client.leave(request).await.map_err(|status| Failure::from_status(&status))?;
        Ok(())
    }
}
