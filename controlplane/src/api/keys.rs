//! `ApiKeyService`: keys by which automation proves that it may ask.

use std::time::Duration;

use ringmesh_proto::admin::{self as proto, ApiKeyRole, api_key_service_server::ApiKeyService};
use ringmesh_tunnel::UnixTime;
use tonic::{Request, Response};

use super::{
    admin::{Admin, Answer},
    request::named,
};
use crate::{
    auth::{Authed, Steward},
    coordinator::{ApiKeyListed, NewApiKey, RevokedApiKey},
    error::Refused,
    network::api_keys::{Role, Wish},
};

#[tonic::async_trait]
impl ApiKeyService for Admin {
    async fn create_api_key(
        &self,
        request: Request<proto::CreateApiKeyRequest>,
    ) -> Answer<proto::CreateApiKeyResponse> {
        let steward = Authed::<Steward>::of(&request)?;
        let request = request.into_inner();
        let named = named(&request)?;
        let role = match request.role() {
            ApiKeyRole::ReadOnly => Role::ReadOnly,
            ApiKeyRole::Operator => Role::Operator,
            ApiKeyRole::Unspecified => {
                return Err(Refused::field("role")("say which: read-only or operator").into());
            }
        };
        let network = match request.network.as_str() {
            "" => None,
            name => Some(self.network(&steward, name)?),
        };
        let wish = Wish { name: request.name, role, network, life: Duration::from_secs(request.ttl_seconds) };
        let NewApiKey { id, row, text } =
            self.coordinator.create_api_key(&steward, &wish, named).await?.value;
        let secret = text.reveal().to_owned();
        let key = self.coordinator.listed_api_key(id, row);
        Ok(Response::new(proto::CreateApiKeyResponse { key: Some(api_key(key)), secret }))
    }

    async fn list_api_keys(
        &self,
        request: Request<proto::ListApiKeysRequest>,
    ) -> Answer<proto::ListApiKeysResponse> {
        let steward = Authed::<Steward>::of(&request)?;
        let keys = self.coordinator.list_api_keys(&steward).into_iter().map(api_key).collect();
        Ok(Response::new(proto::ListApiKeysResponse { keys }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<proto::RevokeApiKeyRequest>,
    ) -> Answer<proto::RevokeApiKeyResponse> {
        let steward = Authed::<Steward>::of(&request)?;
        let named = named(request.get_ref())?;
        let id = request.get_ref().id.parse().map_err(Refused::field("id"))?;
        let RevokedApiKey { id, row } = self.coordinator.revoke_api_key(&steward, id, named).await?.value;
        let key = self.coordinator.listed_api_key(id, row);
        Ok(Response::new(proto::RevokeApiKeyResponse { key: Some(api_key(key)) }))
    }
}

fn api_key(listed: ApiKeyListed) -> proto::ApiKey {
    let ApiKeyListed { id, row, network, last_used } = listed;
    let role = match row.role {
        Role::ReadOnly => ApiKeyRole::ReadOnly,
        Role::Operator => ApiKeyRole::Operator,
    };
    proto::ApiKey {
        id: id.to_string(),
        name: row.name,
        role: role.into(),
        network: network.unwrap_or_default(),
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        revoked: row.revoked_ms.is_some(),
        created_by: row.created_by,
        last_used_ms: last_used.map_or(0, UnixTime::as_millis),
    }
}
