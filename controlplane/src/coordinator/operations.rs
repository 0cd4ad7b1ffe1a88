//! What callers may do, each by its own right.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ringmesh_tunnel::{
    enroll::{JoinToken, TokenSecret},
    key::{NetworkId, NodeId, PresharedKey, PublicKey, TokenId},
};
use zeroize::Zeroizing;

use super::{
    Acts, Coordinator, Done,
    answers::{NewDevice, NewNetwork, NewToken, RemovedNode, RevokedToken, Secret},
};
use crate::{
    auth::{Authed, Joining, MayMakeNetworks, MayRemove, NodeOf, Operator},
    config::NetworkConfig,
    error::Refused,
    network::{
        Change, Plan, Registry,
        authority::Authority,
        create,
        enroll::{self, Enrollment},
        events::{ActorKind, Name, Origin},
        members,
        relay::Newcomer,
        requests::Request,
        row::NodeRow,
        tokens::{self, Wish},
    },
    store::Revision,
};

impl Coordinator {
    /// Makes a node out of a machine that proved its token and key, or finds the node that it is already.
    pub(crate) async fn enroll(&self, who: &Authed<Joining>) -> Result<NodeOf, Refused> {
        let Joining { network, joiner } = who.who();
        let fresh = NodeId::generate();
        let plan = |registry: &Registry, now| {
            let state = registry.network(*network).ok_or(Refused::NetworkUnknown)?;
            Ok::<_, Refused>(match enroll::plan(state, joiner, fresh, now)? {
                Enrollment::Already(id) => (id, Plan::default().unremarkable()),
                Enrollment::New(id, change) => (id, change),
            })
        };
        // Who it is, only the plan knows.
        let (node, revision) = self.transact(&Origin::coordinator(), plan).await?;
        if node == fresh {
            let name =
                self.with_network(*network, |state| state.member(node).map(|member| member.name.clone()))?;
            tracing::info!(
                event = "node_joined",
                %network,
                %node,
                name = name.unwrap_or_default(),
                token = %joiner.token,
                revision,
                "a node joined"
            );
        }
        Ok(NodeOf { network: *network, node })
    }

    /// Removes a member for good.
    pub(crate) async fn remove(
        &self,
        by: &Authed<impl MayRemove + Acts>,
        network: NetworkId,
        node: NodeId,
    ) -> Result<Revision, Refused> {
        if !by.who().may_remove(network, node) {
            return Err(Refused::NotPermitted);
        }
        let origin = self.origin(by, None).await;
        let plan = |registry: &Registry, now| {
            let (_, change) = self.plan_removal(registry, network, node, &origin, now)?;
            Ok::<_, Refused>(((), change))
        };
        let ((), revision) = self.transact(&origin, plan).await?;
        self.forget_removed(network, node, revision, &origin);
        Ok(revision)
    }

    /// Removes a member for good, by its name or id.
    pub(crate) async fn remove_node(
        &self,
        by: &Authed<Operator>,
        network: NetworkId,
        node: &str,
        request: Option<Request>,
    ) -> Result<Done<RemovedNode>, Refused> {
        let origin = self.origin(by, request).await;
        let plan = |registry: &Registry, now| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            let found = state.find(node).ok_or_else(|| members::Refusal::Unknown(node.into()))?;
            let id = found.member.record.id;
            if !by.who().may_remove(network, id) {
                return Err(Refused::NotPermitted);
            }
            let (row, change) = self.plan_removal(registry, network, id, &origin, now)?;
            Ok((RemovedNode { id, row }, change))
        };
        let done = self.transact_once(&origin, Some(network), plan).await?;
        if !done.repeated {
            self.forget_removed(network, done.value.id, done.revision, &origin);
        }
        Ok(done)
    }

    fn plan_removal(
        &self,
        registry: &Registry,
        network: NetworkId,
        node: NodeId,
        origin: &Origin,
        now: ringmesh_tunnel::UnixTime,
    ) -> Result<(NodeRow, Change), Refused> {
        let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
        if self.runs(state, node) {
            return Err(Refused::RelayInUse);
        }
        let name = if origin.actor.kind == ActorKind::Node { Name::NodeLeft } else { Name::NodeRemoved };
        let held = state.nodes.get(&node).ok_or_else(|| members::Refusal::Unknown(node.to_string()))?;
        Ok((held.row.clone(), members::plan_removal(state, node, name, &self.0.vault, now)?))
    }

    fn forget_removed(&self, network: NetworkId, node: NodeId, revision: Revision, origin: &Origin) {
        self.0.presences.forget(&NodeOf { network, node });
        let Origin { actor, .. } = origin;
        tracing::info!(
            event = if actor.kind == ActorKind::Node { "node_left" } else { "node_removed" },
            %network,
            %node,
            by = actor.name,
            revision,
            "a node was removed"
        );
    }

    /// Adds a stock WireGuard device; its pre-shared key is in the answer.
    pub(crate) async fn add_stock_device(
        &self,
        by: &Authed<Operator>,
        network: NetworkId,
        name: &str,
        key: PublicKey,
        request: Option<Request>,
    ) -> Result<Done<NewDevice>, Refused> {
        let (id, psk) = (NodeId::generate(), PresharedKey::generate());
        let origin = self.origin(by, request).await;
        let plan = |registry: &Registry, now| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            let (row, change) = members::plan_stock(state, name, key, id, &psk, &self.0.vault, now)?;
            let text = Secret::new(Zeroizing::new(STANDARD.encode(psk.expose())));
            Ok::<_, Refused>((NewDevice { id, row, psk: text }, change))
        };
        let done = self.transact_once(&origin, Some(network), plan).await?;
        if !done.repeated {
            let by = &origin.actor.name;
            tracing::info!(event = "stock_device_added", %network, node = %id, name, by, revision = done.revision, "a stock device was added");
        }
        Ok(done)
    }

    /// Makes a join token.
    pub(crate) async fn create_token(
        &self,
        by: &Authed<Operator>,
        network: NetworkId,
        wish: &Wish,
        request: Option<Request>,
    ) -> Result<Done<NewToken>, Refused> {
        let root = self.with_network(network, |state| state.root)?;
        let (id, secret) = (TokenId::generate(), TokenSecret::generate());
        let token = JoinToken::new(root, id, secret, self.endpoints())
            .map_err(|error| Refused::CannotWriteToken(error.to_string()))?;
        let origin = self.origin(by, request).await;
        let plan = |registry: &Registry, now| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            let (row, change) = tokens::plan_create(state, id, token.secret(), wish, now)?;
            Ok::<_, Refused>((NewToken { id, row, text: Secret::new(token.reveal()) }, change))
        };
        let done = self.transact_once(&origin, Some(network), plan).await?;
        if !done.repeated {
            let by = &origin.actor.name;
            tracing::info!(event = "token_created", %network, token = %id, max_uses = wish.max_uses, by, "a join token was made");
        }
        Ok(done)
    }

    /// Ends a join token.
    pub(crate) async fn revoke_token(
        &self,
        by: &Authed<Operator>,
        network: NetworkId,
        id: TokenId,
        request: Option<Request>,
    ) -> Result<Done<RevokedToken>, Refused> {
        let origin = self.origin(by, request).await;
        let plan = |registry: &Registry, _| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            let (row, change) = tokens::plan_revoke(state, id)?;
            Ok::<_, Refused>((RevokedToken { id, row }, change))
        };
        let done = self.transact_once(&origin, Some(network), plan).await?;
        if !done.repeated {
            let by = &origin.actor.name;
            tracing::info!(event = "token_revoked", %network, token = %id, by, "a join token was revoked");
        }
        Ok(done)
    }

    /// Makes a network.
    pub(crate) async fn create_network(
        &self,
        by: &Authed<impl MayMakeNetworks + Acts>,
        config: &NetworkConfig,
        request: Option<Request>,
    ) -> Result<Done<NewNetwork>, Refused> {
        config.check().map_err(Refused::field("network"))?;
        let authority = Authority::generate();
        let relay = self.0.options.relay.then(Newcomer::generate);
        let origin = self.origin(by, request).await;
        let plan = |registry: &Registry, now| {
            if registry.names.contains_key(&config.name) {
                return Err(Refused::NetworkExists(config.name.clone()));
            }
            let (id, change) = create::plan(config, &authority, relay.as_ref(), &self.0.vault, now)?;
            Ok((NewNetwork { id }, change))
        };
        let done = self.transact_once(&origin, None, plan).await?;
        if !done.repeated {
            self.tell_relay();
            let (network, by) = (done.value.id, &origin.actor.name);
            tracing::info!(event = "network_created", %network, name = config.name, pool = %config.ipv4_pool, by, "a network was made");
        }
        Ok(done)
    }
}
