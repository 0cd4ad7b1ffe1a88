//! What callers may do, each by its own right.

use std::time::Duration;

use ringmesh_tunnel::{
    enroll::{JoinToken, TokenSecret},
    key::{NetworkId, NodeId, PresharedKey, PublicKey, TokenId},
    netmap::MemberKind,
};
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroizing;

use super::Coordinator;
use crate::{
    auth::{Authed, Joining, MayRemove, NodeOf, Operator},
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

/// Who has a revision in its data plane.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Names.
    pub(crate) installed: Vec<String>,
    pub(crate) behind: Vec<Behind>,
}

/// A node that lags.
#[derive(Debug)]
pub(crate) struct Behind {
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) online: bool,
}

impl Coordinator {
    /// Waits until every mesh node that is online has installed `revision`, for at most `patience`, and tells who has.
    pub(crate) async fn reach(
        &self,
        _by: &Authed<Operator>,
        network: NetworkId,
        revision: Revision,
        patience: Duration,
    ) -> Result<Reach, Refused> {
        let deadline = Instant::now() + patience;
        let mut moved = self.0.presences.moved();
        loop {
            moved.borrow_and_update();
            let reach = self.reach_now(network, revision)?;
            if reach.behind.iter().all(|behind| !behind.online) {
                return Ok(reach);
            }
            if timeout_at(deadline, moved.changed()).await.is_err() {
                return Ok(reach);
            }
        }
    }

    fn reach_now(&self, network: NetworkId, revision: Revision) -> Result<Reach, Refused> {
        self.with_network(network, |state| {
            let mut reach = Reach::default();
            for (node, held) in &state.nodes {
                let member = &held.member.record;
                if member.kind != MemberKind::Mesh {
                    continue;
                }
                let name = member.name.clone();
                // The relay of a coordinator has no stream to acknowledge on, and is told here: that it is told is not worth a word.
                if state.relays.contains_key(node) {
                    let has = self.relay_standing(state, *node);
                    if self.runs(state, *node) && has.is_none_or(|has| has < revision) {
                        reach.behind.push(Behind { node: *node, name, online: has.is_some() });
                    }
                    continue;
                }
                let presence = self.0.presences.get(&NodeOf { network, node: *node }).unwrap_or_default();
                if presence.stream != 0 && presence.installed() >= revision {
                    reach.installed.push(name);
                } else {
                    reach.behind.push(Behind { node: *node, name, online: presence.stream != 0 });
                }
            }
            reach
        })
    }

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
        _by: &Authed<impl MayRemove>,
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
