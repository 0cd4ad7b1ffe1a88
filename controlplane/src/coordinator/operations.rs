//! What callers may do, each by its own right.

use ringmesh_tunnel::{
    enroll::{JoinToken, TokenSecret},
    key::{NetworkId, NodeId, PresharedKey, PublicKey, TokenId},
};
use zeroize::Zeroizing;

use super::Coordinator;
use crate::{
    auth::{Authed, Joining, MayMakeNetworks, MayRemove, NodeOf, Operator},
    config::NetworkConfig,
    error::Refused,
    network::{
        Plan, Registry,
        authority::Authority,
        create,
        enroll::{self, Enrollment},
        members,
        relay::Newcomer,
        tokens::{self, Wish},
    },
    store::Revision,
};

/// A token that was made.
pub(crate) struct NewToken {
    pub(crate) id: TokenId,
    /// The text to hand to whoever shall join; it is nowhere else.
    pub(crate) text: Zeroizing<String>,
}

impl Coordinator {
    /// Makes a node out of a machine that proved its token and key, or finds the node that it is already.
    pub(crate) async fn enroll(&self, who: &Authed<Joining>) -> Result<NodeOf, Refused> {
        let Joining { network, joiner } = who.who();
        let fresh = NodeId::generate();
        let plan = |registry: &Registry, now| {
            let state = registry.network(*network).ok_or(Refused::NetworkUnknown)?;
            Ok::<_, Refused>(match enroll::plan(state, joiner, fresh, now)? {
                Enrollment::Already(id) => (id, Plan::default()),
                Enrollment::New(id, plan) => (id, plan),
            })
        };
        let (node, revision) = self.transact(plan).await?;
        if node == fresh {
            let name =
                self.with_network(*network, |state| state.member(node).map(|member| member.name.clone()))?;
            tracing::info!(%node, name = name.unwrap_or_default(), token = %joiner.token, revision, "a node joined");
        }
        Ok(NodeOf { network: *network, node })
    }

    /// Removes a member for good.
    pub(crate) async fn remove(
        &self,
        by: &Authed<impl MayRemove>,
        network: NetworkId,
        node: NodeId,
    ) -> Result<Revision, Refused> {
        if !by.who().may_remove(network, node) {
            return Err(Refused::NotPermitted);
        }
        let plan = |registry: &Registry, now| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            if self.runs(state, node) {
                return Err(Refused::RelayInUse);
            }
            Ok::<_, Refused>(((), members::plan_removal(state, node, &self.0.vault, now)?))
        };
        let ((), revision) = self.transact(plan).await?;
        self.0.presences.forget(&NodeOf { network, node });
        tracing::info!(%node, revision, "a node was removed");
        Ok(revision)
    }

    /// Adds a stock WireGuard device; returns its id and its pre-shared key.
    pub(crate) async fn add_stock_device(
        &self,
        _by: &Authed<Operator>,
        network: NetworkId,
        name: &str,
        key: PublicKey,
    ) -> Result<(NodeId, PresharedKey, Revision), Refused> {
        let (id, psk) = (NodeId::generate(), PresharedKey::generate());
        let plan = |registry: &Registry, now| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            Ok::<_, Refused>(((), members::plan_stock(state, name, key, id, &psk, &self.0.vault, now)?))
        };
        let ((), revision) = self.transact(plan).await?;
        tracing::info!(node = %id, name, revision, "a stock device was added");
        Ok((id, psk, revision))
    }

    /// Makes a join token.
    pub(crate) async fn create_token(
        &self,
        _by: &Authed<Operator>,
        network: NetworkId,
        wish: &Wish,
    ) -> Result<NewToken, Refused> {
        let (id, secret) = (TokenId::generate(), TokenSecret::generate());
        let root = self.with_network(network, |state| state.root)?;
        let plan = |registry: &Registry, now| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            Ok::<_, Refused>(((), tokens::plan_create(state, id, &secret, wish, now)?))
        };
        self.transact(plan).await?;
        let token = JoinToken::new(root, id, secret, self.endpoints())
            .map_err(|error| Refused::CannotWriteToken(error.to_string()))?;
        tracing::info!(token = %id, max_uses = wish.max_uses, "a join token was made");
        Ok(NewToken { id, text: token.reveal() })
    }

    /// Ends a join token.
    pub(crate) async fn revoke_token(
        &self,
        _by: &Authed<Operator>,
        network: NetworkId,
        id: TokenId,
    ) -> Result<(), Refused> {
        let plan = |registry: &Registry, _| {
            let state = registry.network(network).ok_or(Refused::NetworkUnknown)?;
            Ok::<_, Refused>(((), tokens::plan_revoke(state, id)?))
        };
        self.transact(plan).await?;
        tracing::info!(token = %id, "a join token was revoked");
        Ok(())
    }

    /// Makes a network.
    pub(crate) async fn create_network(
        &self,
        _by: &Authed<impl MayMakeNetworks>,
        config: &NetworkConfig,
    ) -> Result<NetworkId, Refused> {
        config.check().map_err(Refused::field("network"))?;
        let authority = Authority::generate();
        let relay = self.0.options.relay.then(Newcomer::generate);
        let plan = |registry: &Registry, now| {
            if registry.names.contains_key(&config.name) {
                return Err(Refused::NetworkExists(config.name.clone()));
            }
            Ok(create::plan(config, &authority, relay.as_ref(), &self.0.vault, now)?)
        };
        let (id, _) = self.transact(plan).await?;
        self.tell_relay();
        tracing::info!(network = %id, name = config.name, pool = %config.ipv4_pool, "a network was made");
        Ok(id)
    }
}
