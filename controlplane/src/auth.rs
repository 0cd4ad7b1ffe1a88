//! Who asks: proofs of identity as values that only this module can make.
//!
//! What a caller may do takes an [`Authed`] of the right kind, so a handler that forgot to check does not compile.

mod api_key;
mod failures;
mod nonce;
mod pass;

use ringmesh_proto::control as proto;
use ringmesh_tunnel::{
    enroll::transcript,
    key::{IdentityKey, IdentitySecret, Label, NetworkId, NodeId, PublicKey, Signature, TokenId},
};

pub(crate) use self::{
    api_key::pass_of,
    failures::Failures,
    nonce::{Nonces, random},
    pass::{MayLook, Operator, Pass, Reader, Scope, Steward},
};
use crate::{
    coordinator::Coordinator,
    error::Refused,
    network::{NetworkState, enroll::Joiner},
    server::Connection,
};

/// Somebody who has proved to be a `P`.
#[derive(Debug)]
pub(crate) struct Authed<P> {
    who: P,
}

impl<P> Authed<P> {
    pub(crate) const fn who(&self) -> &P {
        &self.who
    }
}

/// The coordinator itself, for what it does unasked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Itself;

/// Who may remove a member: an operator, the coordinator, or the member itself.
pub(crate) trait MayRemove {
    fn may_remove(&self, network: NetworkId, node: NodeId) -> bool;
}

/// A member of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeOf {
    pub(crate) network: NetworkId,
    pub(crate) node: NodeId,
}

/// A machine with a valid token and a key of its own.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) network: NetworkId,
    pub(crate) joiner: Joiner,
}

impl MayRemove for Itself {
    fn may_remove(&self, _: NetworkId, _: NodeId) -> bool {
        true
    }
}

impl MayRemove for NodeOf {
    fn may_remove(&self, network: NetworkId, node: NodeId) -> bool {
        *self == Self { network, node }
    }
}

/// Who may make a network: an operator of all of them, or the coordinator.
pub(crate) trait MayMakeNetworks {}

impl MayMakeNetworks for Steward {}
impl MayMakeNetworks for Itself {}

impl Authed<Itself> {
    /// For the coordinator's own tasks.
    pub(crate) const fn itself() -> Self {
        Self { who: Itself }
    }
}

impl Authed<Joining> {
    /// By the signatures of a token and of an identity key, over the connection and the challenge.
    pub(crate) fn by_token(
        coordinator: &Coordinator,
        connection: &Connection,
        request: proto::EnrollRequest,
    ) -> Result<Self, Refused> {
        let who = coordinator.watched(connection, || joining(coordinator, connection, request))?;
        Ok(Self { who })
    }
}

impl Authed<NodeOf> {
    /// By the signature of a member's identity key, over the connection and the challenge.
    pub(crate) fn by_key(
        coordinator: &Coordinator,
        connection: &Connection,
        hello: &proto::Hello,
    ) -> Result<Self, Refused> {
        let claim = Claim {
            network: &hello.network_id,
            node: &hello.node_id,
            proof: hello.proof.as_ref(),
            signature: &hello.signature,
        };
        let who = coordinator.watched(connection, || {
            member(coordinator, connection, &claim, Label::Sync, |connection, id, identity_key| {
                transcript::sync(&transcript::Sync { connection, id, identity_key })
            })
        })?;
        Ok(Self { who })
    }

    /// By the signature of a member's identity key under a label of its own: a proof for a stream removes nobody.
    pub(crate) fn to_leave(
        coordinator: &Coordinator,
        connection: &Connection,
        request: &proto::LeaveRequest,
    ) -> Result<Self, Refused> {
        let claim = Claim {
            network: &request.network_id,
            node: &request.node_id,
            proof: request.proof.as_ref(),
            signature: &request.signature,
        };
        let who = coordinator.watched(connection, || {
            member(coordinator, connection, &claim, Label::Leave, |connection, id, identity_key| {
                transcript::leave(&transcript::Leave { connection, id, identity_key })
            })
        })?;
        Ok(Self { who })
    }

    /// By the secret that was given to a member at the start of its stream, for as long as the stream lives.
    pub(crate) fn by_session(coordinator: &Coordinator, session: &[u8]) -> Result<Self, Refused> {
        Ok(Self { who: coordinator.presence().by_session(session).ok_or(Refused::NoSession)? })
    }
}

fn joining(
    coordinator: &Coordinator,
    connection: &Connection,
    request: proto::EnrollRequest,
) -> Result<Joining, Refused> {
    let network = network_id(&request.network_id)?;
    let token = TokenId::try_from(request.token_id.as_slice()).map_err(Refused::field("token_id"))?;
    let identity_key =
        IdentityKey::try_from(request.identity_key.as_slice()).map_err(Refused::field("identity_key"))?;
    let noise_key = PublicKey::try_from(request.noise_key.as_slice()).map_err(Refused::field("noise_key"))?;
    if noise_key != identity_key.noise_key() {
        return Err(Refused::field("noise_key")("it is not the Montgomery form of identity_key"));
    }
    let proof = Proof::check(coordinator, network, request.proof.as_ref())?;
    let signed = transcript::enroll(&transcript::Enroll {
        connection: proof.connection(network, connection),
        token,
        noise_key,
        identity_key,
        name: &request.name,
        relay: request.relay,
    });
    let by_node = signature(&request.identity_signature)?;
    identity_key.verify(Label::Enroll, &signed, &by_node).map_err(|_| Refused::Proof)?;
    let by_token = signature(&request.token_signature)?;
    coordinator.with_network(network, |state| {
        // A token that does not exist takes as long as a wrong signature, and is refused with the same words.
        let known = state.tokens.get(&token);
        let key = known.map_or_else(nobodys_key, |token| token.public_key);
        let signed = key.verify(Label::EnrollToken, &signed, &by_token).is_ok();
        if signed && known.is_some() { Ok(()) } else { Err(Refused::Token) }
    })??;
    let proto::EnrollRequest { name, host_name, os, version, relay, .. } = request;
    Ok(Joining { network, joiner: Joiner { token, identity_key, name, host_name, os, version, relay } })
}

/// What a request says of the member that sent it.
struct Claim<'a> {
    network: &'a [u8],
    node: &'a [u8],
    proof: Option<&'a proto::Proof>,
    signature: &'a [u8],
}

/// Checks a claim, whose transcript `transcript` makes and whose signature is under `label`.
fn member(
    coordinator: &Coordinator,
    connection: &Connection,
    claim: &Claim<'_>,
    label: Label,
    transcript: impl Fn(transcript::Connection<'_>, NodeId, IdentityKey) -> Vec<u8>,
) -> Result<NodeOf, Refused> {
    let network = network_id(claim.network)?;
    let node = NodeId::try_from(claim.node).map_err(Refused::field("node_id"))?;
    let proof = Proof::check(coordinator, network, claim.proof)?;
    let signature = signature(claim.signature)?;
    let (identity_key, removed) = coordinator.with_network(network, |state| identity(state, node))??;
    let signed = transcript(proof.connection(network, connection), node, identity_key);
    identity_key.verify(label, &signed, &signature).map_err(|_| Refused::Proof)?;
    // Only the node itself learns that it was removed.
    if removed { Err(Refused::NodeRemoved) } else { Ok(NodeOf { network, node }) }
}

/// The key by which a node must prove itself, and whether it was removed.
fn identity(state: &NetworkState, node: NodeId) -> Result<(IdentityKey, bool), Refused> {
    if let Some(member) = state.member(node) {
        // A stock device has no identity key and no business here.
        return member.identity_key.map(|key| (key, false)).ok_or(Refused::Proof);
    }
    let removed = state.removed.get(&node).ok_or(Refused::NodeUnknown)?;
    removed.identity_key.map(|key| (key, true)).ok_or(Refused::Proof)
}

/// The nonces of a proof, found to be ours and fresh.
struct Proof<'a> {
    client_nonce: [u8; 32],
    server_nonce: &'a [u8],
    direct: bool,
}

impl<'a> Proof<'a> {
    fn check(
        coordinator: &Coordinator,
        network: NetworkId,
        proof: Option<&'a proto::Proof>,
    ) -> Result<Self, Refused> {
        let proto::Proof { client_nonce, server_nonce, direct } =
            proof.ok_or_else(|| Refused::field("proof")("it is missing"))?;
        let client_nonce = client_nonce_of(client_nonce)?;
        if !coordinator.nonces().is_fresh(network, &client_nonce, server_nonce, coordinator.now()) {
            return Err(Refused::Proof);
        }
        Ok(Self { client_nonce, server_nonce, direct: *direct })
    }

    /// What was signed: with this connection's exporter, if the node says that no proxy is in between.
    fn connection<'b>(
        &'b self,
        network: NetworkId,
        connection: &'b Connection,
    ) -> transcript::Connection<'b> {
        let exporter = self.direct.then(|| connection.exporter());
        transcript::Connection {
            network,
            client_nonce: &self.client_nonce,
            server_nonce: self.server_nonce,
            exporter,
        }
    }
}

pub(crate) fn network_id(bytes: &[u8]) -> Result<NetworkId, Refused> {
    NetworkId::try_from(bytes).map_err(Refused::field("network_id"))
}

pub(crate) fn client_nonce_of(bytes: &[u8]) -> Result<[u8; 32], Refused> {
    bytes.try_into().map_err(|_| Refused::field("client_nonce")("it is not 32 bytes"))
}

fn signature(bytes: &[u8]) -> Result<Signature, Refused> {
    Signature::try_from(bytes).map_err(|_| Refused::Proof)
}

/// A key that signs for no token.
fn nobodys_key() -> IdentityKey {
    static KEY: std::sync::LazyLock<IdentityKey> =
        std::sync::LazyLock::new(|| IdentitySecret::generate().public_key());
    *KEY
}
