//! The answer to a challenge: a statement, by a key that the root certified, about the TLS key of this very coordinator.

use ringmesh_proto::control as proto;
use ringmesh_tunnel::netmap::{Role, Statement};

use super::convert;
use crate::{
    auth::{client_nonce_of, network_id},
    coordinator::Coordinator,
    error::Refused,
};

/// Answers a challenge. It costs a signature and no memory.
pub(crate) fn answer(
    coordinator: &Coordinator,
    request: &proto::ChallengeRequest,
) -> Result<proto::ChallengeResponse, Refused> {
    let network = network_id(&request.network_id)?;
    let client_nonce = client_nonce_of(&request.client_nonce)?;
    let now = coordinator.now();
    coordinator.with_network(network, |state| {
        let server_nonce = coordinator.nonces().make(network, &client_nonce, now);
        let statement = Statement {
            network,
            replica: coordinator.replica(),
            tls_key: coordinator.tls_key(),
            client_nonce,
            server_nonce: server_nonce.clone(),
            time: now,
        };
        let statement = state.authority.sign(Role::Coordinator, &statement)?;
        let certificate =
            state.certificates.get(&Role::Coordinator).map(|held| convert::envelope(&held.envelope));
        Ok(proto::ChallengeResponse {
            server_nonce,
            statement: Some(convert::envelope(&statement)),
            certificates: certificate.into_iter().collect(),
        })
    })?
}
