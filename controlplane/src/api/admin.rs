//! `ringmesh.admin.v1`: what operators and automation ask. Every method begins with the proof of what the caller may.

use std::time::Duration;

use ringmesh_proto::admin as proto;
use ringmesh_proto::admin::{
    network_service_server::NetworkService, node_service_server::NodeService,
    relay_service_server::RelayService, token_service_server::TokenService,
};
use ringmesh_tunnel::key::{NetworkId, NodeId};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{convert, relay, request::named};
use crate::{
    auth::{Authed, MayLook, NodeOf, Operator, Reader, Steward},
    config::NetworkConfig,
    coordinator::{Coordinator, NewDevice, NewToken, RemovedNode, RevokedToken},
    error::Refused,
    network::{NetworkState, members, row::NodeRow, tokens::Wish},
};

/// All five services.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    pub(super) coordinator: Coordinator,
}

pub(super) type Answer<T> = Result<Response<T>, Status>;

impl Admin {
    pub(super) const fn new(coordinator: Coordinator) -> Self {
        Self { coordinator }
    }

    /// Finds a network by its name or id; empty: the only one. The one place that decides which networks are there for whom:
    /// what is outside of a caller's scope is not told apart from what does not exist.
    pub(super) fn network(&self, by: &Authed<impl MayLook>, name: &str) -> Result<NetworkId, Refused> {
        let scope = by.who().scope();
        self.coordinator.with_registry(|registry| {
            let mut all = registry.networks().filter(|state| scope.has(state.id));
            if !name.is_empty() {
                let named = |state: &&NetworkState| state.name == name || state.id.to_string() == name;
                return all
                    .find(named)
                    .map(NetworkState::id)
                    .ok_or_else(|| Refused::NetworkNotFound(name.into()));
            }
            match (all.next(), all.next()) {
                (Some(only), None) => Ok(only.id()),
                (None, _) => Err(Refused::NetworkNotFound(name.into())),
                (Some(_), Some(_)) => {
                    let seen = registry.networks().filter(|state| scope.has(state.id));
                    let names: Vec<&str> = seen.map(|state| state.name.as_str()).collect();
                    Err(Refused::NetworkAmbiguous(names.join(", ")))
                }
            }
        })
    }

    /// A node as its row has it, which may be gone by now.
    fn node_of(&self, network: NetworkId, id: NodeId, row: NodeRow) -> Result<proto::Node, Refused> {
        self.coordinator.with_network(network, |state| {
            let node = state.node_of(id, row).map_err(Refused::field("node"))?;
            let who = NodeOf { network, node: id };
            Ok(convert::node(&node, state, self.coordinator.presence().get(&who).as_ref(), None))
        })?
    }

    fn node(&self, who: NodeOf) -> Result<proto::Node, Refused> {
        let presence = self.coordinator.presence().get(&who);
        self.coordinator
            .with_network(who.network, |state| {
                state.nodes.get(&who.node).map(|node| {
                    convert::node(
                        node,
                        state,
                        presence.as_ref(),
                        self.coordinator.relay_standing(state, who.node),
                    )
                })
            })?
            .ok_or_else(|| members::Refusal::Unknown(who.node.to_string()).into())
    }

    fn find(&self, network: NetworkId, node: &str) -> Result<NodeOf, Refused> {
        let found = self.coordinator.with_network(network, |state| {
            state.find(node).map(|node| NodeOf { network, node: node.member.record.id })
        })?;
        found.ok_or_else(|| members::Refusal::Unknown(node.into()).into())
    }
}

#[tonic::async_trait]
impl NetworkService for Admin {
    async fn list_networks(
        &self,
        request: Request<proto::ListNetworksRequest>,
    ) -> Answer<proto::ListNetworksResponse> {
        let scope = Authed::<Reader>::of(&request)?.who().scope();
        let networks = self.coordinator.with_registry(|registry| {
            let seen = registry.networks().filter(|state| scope.has(state.id));
            seen.map(|state| convert::network(state, registry.revision())).collect()
        });
        Ok(Response::new(proto::ListNetworksResponse { networks }))
    }

    async fn create_network(
        &self,
        request: Request<proto::CreateNetworkRequest>,
    ) -> Answer<proto::CreateNetworkResponse> {
        let steward = Authed::<Steward>::of(&request)?;
        let named = named(request.get_ref())?;
        let proto::CreateNetworkRequest { name, ipv4_pool, zone, request_id: _ } = request.into_inner();
        let default = NetworkConfig::default();
        let config = NetworkConfig {
            name,
            ipv4_pool: match ipv4_pool.as_str() {
                "" => default.ipv4_pool,
                text => text.parse().map_err(Refused::field("ipv4_pool"))?,
            },
            zone: if zone.is_empty() { default.zone } else { zone },
        };
        let id = self.coordinator.create_network(&steward, &config, named).await?.value.id;
        let network =
            self.coordinator.with_place(id, |state, place| convert::network(state, place.durable))?;
        Ok(Response::new(proto::CreateNetworkResponse { network: Some(network) }))
    }
}

#[tonic::async_trait]
impl NodeService for Admin {
    async fn list_nodes(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Answer<proto::ListNodesResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let network = self.network(&reader, &request.get_ref().network)?;
        let presences = self.coordinator.presence();
        let response = self.coordinator.with_place(network, |state, place| {
            let nodes = state.nodes.iter().map(|(id, node)| {
                let presence = presences.get(&NodeOf { network, node: *id });
                convert::node(node, state, presence.as_ref(), self.coordinator.relay_standing(state, *id))
            });
            proto::ListNodesResponse { nodes: nodes.collect(), revision: place.durable }
        })?;
        Ok(Response::new(response))
    }

    async fn remove_node(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Answer<proto::RemoveNodeResponse> {
        let operator = Authed::<Operator>::of(&request)?;
        let network = self.network(&operator, &request.get_ref().network)?;
        let named = named(request.get_ref())?;
        let name = &request.get_ref().node;
        // As it was while it was there; a repeat knows no more than was stored.
        let before = self.find(network, name).and_then(|who| self.node(who));
        let done = self.coordinator.remove_node(&operator, network, name, named).await?;
        let (RemovedNode { id, row }, revision) = (done.value, done.revision);
        let node = match before {
            Ok(node) if !done.repeated => node,
            Ok(_) | Err(_) => self.node_of(network, id, row)?,
        };
        let patience = Duration::from_millis(request.get_ref().wait_ms.into());
        let installation =
            self.coordinator.installation(&operator, network, revision, Instant::now(), patience).await?;
        let proto::WaitInstalledResponse { revision, installed, behind, waited_ms } =
            convert::installation(installation);
        Ok(Response::new(proto::RemoveNodeResponse {
            node: Some(node),
            revision,
            installed,
            behind,
            waited_ms,
        }))
    }

    async fn wait_installed(
        &self,
        request: Request<proto::WaitInstalledRequest>,
    ) -> Answer<proto::WaitInstalledResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let proto::WaitInstalledRequest { network, revision, wait_ms } = request.into_inner();
        let network = self.network(&reader, &network)?;
        let revision = match revision {
            0 => self.coordinator.with_place(network, |_, place| place.durable)?,
            named => named,
        };
        let patience = Duration::from_millis(wait_ms.into());
        let installation =
            self.coordinator.installation(&reader, network, revision, Instant::now(), patience).await?;
        Ok(Response::new(convert::installation(installation)))
    }

    async fn add_stock_device(
        &self,
        request: Request<proto::AddStockDeviceRequest>,
    ) -> Answer<proto::AddStockDeviceResponse> {
        let operator = Authed::<Operator>::of(&request)?;
        let request = request.into_inner();
        let network = self.network(&operator, &request.network)?;
        let key = request.public_key.parse().map_err(Refused::field("public_key"))?;
        let named = named(&request)?;
        let done = self.coordinator.add_stock_device(&operator, network, &request.name, key, named).await?;
        let (NewDevice { id, row, psk }, revision) = (done.value, done.revision);
        let node = self.node_of(network, id, row)?;
        let preshared_key = psk.reveal().to_owned();
        Ok(Response::new(proto::AddStockDeviceResponse { node: Some(node), preshared_key, revision }))
    }
}

#[tonic::async_trait]
impl TokenService for Admin {
    async fn create_token(
        &self,
        request: Request<proto::CreateTokenRequest>,
    ) -> Answer<proto::CreateTokenResponse> {
        let operator = Authed::<Operator>::of(&request)?;
        let request = request.into_inner();
        let network = self.network(&operator, &request.network)?;
        let named = named(&request)?;
        let wish = Wish {
            life: Duration::from_secs(request.ttl_seconds),
            max_uses: if request.reusable || request.max_uses != 0 { request.max_uses } else { 1 },
            tags: request.tags,
            ephemeral: request.ephemeral,
            relay: request.relay,
        };
        let NewToken { id, row, text } =
            self.coordinator.create_token(&operator, network, &wish, named).await?.value;
        let secret = text.reveal().to_owned();
        Ok(Response::new(proto::CreateTokenResponse { token: Some(convert::token(id, &row)), secret }))
    }

    async fn list_tokens(
        &self,
        request: Request<proto::ListTokensRequest>,
    ) -> Answer<proto::ListTokensResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let network = self.network(&reader, &request.get_ref().network)?;
        let tokens = self.coordinator.with_network(network, |state| {
            state.tokens.iter().map(|(id, token)| convert::token(*id, &token.row)).collect()
        })?;
        Ok(Response::new(proto::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<proto::RevokeTokenRequest>,
    ) -> Answer<proto::RevokeTokenResponse> {
        let operator = Authed::<Operator>::of(&request)?;
        let request = request.into_inner();
        let network = self.network(&operator, &request.network)?;
        let id = request.id.parse().map_err(Refused::field("id"))?;
        let named = named(&request)?;
        let RevokedToken { id, row } =
            self.coordinator.revoke_token(&operator, network, id, named).await?.value;
        Ok(Response::new(proto::RevokeTokenResponse { token: Some(convert::token(id, &row)) }))
    }
}

#[tonic::async_trait]
impl RelayService for Admin {
    async fn list_relay_clients(
        &self,
        request: Request<proto::ListRelayClientsRequest>,
    ) -> Answer<proto::ListRelayClientsResponse> {
        let reader = Authed::<Reader>::of(&request)?;
        let network = self.network(&reader, &request.get_ref().network)?;
        let report = self.coordinator.relay_report(&reader, network).await?;
        let response = self.coordinator.with_network(network, |state| relay::clients(&report, state))?;
        Ok(Response::new(response))
    }
}
