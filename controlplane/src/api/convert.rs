//! Between messages and the core's types. Envelopes are passed on as the bytes that were signed.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use ringmesh_proto::{admin, control as proto};
use ringmesh_tunnel::{
    key::TokenId,
    netmap::{Envelope, EnvelopeError, MapUpdate, MemberKind, Position, ProvenRule, Rule, Selector},
};

use crate::{
    coordinator::{Installation, Presence},
    network::{
        NetworkState, Node,
        events::{Actor, Event, EventRow},
        map::{Outgoing, SealedSecret},
        row::TokenRow,
    },
    policy::{ports_text, selectors_text},
};

/// An envelope as it travels.
#[must_use]
pub fn envelope(envelope: &Envelope) -> proto::Envelope {
    proto::Envelope {
        kind: envelope.kind.number().into(),
        payload: envelope.payload.clone(),
        signer: envelope.signer.as_bytes().to_vec(),
        signature: envelope.signature.as_bytes().to_vec(),
    }
}

/// An envelope as it came.
///
/// # Errors
/// If a part is not what it must be, or it is too long.
pub fn parse_envelope(envelope: proto::Envelope) -> Result<Envelope, EnvelopeError> {
    let proto::Envelope { kind, payload, signer, signature } = envelope;
    Envelope::from_parts(kind, payload, &signer, &signature)
}

/// A position as it travels.
#[must_use]
pub const fn position(position: Position) -> proto::Position {
    proto::Position { durable: position.durable, replica: position.replica, ephemeral: position.ephemeral }
}

/// A map update with what travels beside it.
#[must_use]
pub fn map_update(
    outgoing: Outgoing,
    network: proto::Network,
    coordinators: Vec<String>,
) -> proto::MapUpdate {
    let Outgoing { update, secrets, peer_secrets, .. } = outgoing;
    let MapUpdate {
        full,
        position: place,
        certificates,
        members,
        removed,
        policy,
        rules,
        node_records,
        head,
    } = update;
    let envelopes = |list: Vec<Envelope>| list.iter().map(envelope).collect();
    proto::MapUpdate {
        full,
        position: Some(position(place)),
        certificates: envelopes(certificates),
        members: envelopes(members),
        removed: removed.iter().map(|id| id.as_bytes().to_vec()).collect(),
        policy: policy.as_ref().map(envelope),
        rules: rules.into_iter().map(proven_rule).collect(),
        node_records: envelopes(node_records),
        secrets: secrets.into_iter().map(sealed_secret).collect(),
        peer_secrets: peer_secrets
            .into_iter()
            .map(|(id, sealed)| proto::PeerSecret { node_id: id.as_bytes().to_vec(), sealed })
            .collect(),
        head: Some(envelope(&head)),
        network: Some(network),
        coordinators,
    }
}

fn proven_rule(rule: ProvenRule) -> proto::ProvenRule {
    let ProvenRule { leaf, index, siblings } = rule;
    proto::ProvenRule { leaf, index, siblings: siblings.iter().map(|hash| hash.to_vec()).collect() }
}

/// A sealed secret as it travels.
#[must_use]
pub fn sealed_secret(secret: SealedSecret) -> proto::SealedSecret {
    proto::SealedSecret { epoch: secret.epoch, sealed: secret.sealed }
}

/// What a node needs to know of its network besides signed records.
#[must_use]
pub fn network_info(network: &NetworkState) -> proto::Network {
    proto::Network {
        name: network.name.clone(),
        zone: network.zone.clone(),
        ipv4_pool: network.ipv4_pool.to_string(),
        ipv6_pool: network.ipv6_pool().to_string(),
    }
}

/// A network as operators see it.
pub(super) fn network(network: &NetworkState, revision: u64) -> admin::Network {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    admin::Network {
        name: network.name.clone(),
        id: network.id.to_string(),
        root_key: STANDARD.encode(network.root.as_bytes()),
        ipv4_pool: network.ipv4_pool.to_string(),
        ipv6_pool: network.ipv6_pool().to_string(),
        zone: network.zone.clone(),
        revision,
        epoch: network.epoch(),
    }
}

/// A node as operators see it; `relay` is the revision that it has, if it is the relay of this process.
pub(super) fn node(
    node: &Node,
    network: &NetworkState,
    presence: Option<&Presence>,
    relay: Option<u64>,
) -> admin::Node {
    let member = &node.member.record;
    let kind = match member.kind {
        MemberKind::Mesh => admin::NodeKind::Mesh,
        MemberKind::Stock => admin::NodeKind::Stock,
    };
    let endpoints = network.node_records.get(&member.id).map(|held| held.record.endpoints.as_slice());
    let version = presence.map(|presence| presence.version.clone()).filter(|version| !version.is_empty());
    admin::Node {
        id: member.id.to_string(),
        name: member.name.clone(),
        kind: kind.into(),
        ipv4: member.ipv4.map(|address| address.to_string()).unwrap_or_default(),
        ipv6: member.ipv6.to_string(),
        noise_key: member.noise_key.to_string(),
        identity_fingerprint: member.identity_key.map(|key| key.fingerprint()).unwrap_or_default(),
        tags: member.tags.clone(),
        online: relay.is_some() || presence.is_some_and(|presence| presence.stream != 0),
        installed_revision: relay.or_else(|| presence.map(Presence::installed)).unwrap_or_default(),
        enrolled_ms: node.row.enrolled_ms,
        expires_ms: member.not_after.as_millis(),
        last_seen_ms: presence.map(|presence| presence.last_seen.as_millis()).unwrap_or_default(),
        endpoints: endpoints.unwrap_or_default().iter().map(ToString::to_string).collect(),
        version: version.unwrap_or_else(|| node.row.version.clone()),
        os: node.row.os.clone(),
        back_end: presence.map(|presence| presence.back_end.clone()).unwrap_or_default(),
        relay: member.relay,
    }
}

/// Who has a revision installed, as operators see it.
pub(super) fn installation(installation: Installation) -> admin::WaitInstalledResponse {
    let behind = installation.behind.into_iter().map(|behind| admin::BehindNode {
        id: behind.node.to_string(),
        name: behind.name,
        online: behind.online,
    });
    admin::WaitInstalledResponse {
        revision: installation.revision,
        installed: installation.installed,
        behind: behind.collect(),
        waited_ms: installation.waited.as_millis().try_into().unwrap_or(u32::MAX),
    }
}

/// Something that happened, as operators see it; `network` is the name of the network that it belongs to.
pub(super) fn event(network: Option<String>, event: Event) -> admin::Event {
    let Event { revision, row, .. } = event;
    let EventRow { name, time_ms, actor, subject_id, subject_name, details, request_id } = row;
    let Actor { kind, id, name: called } = actor;
    // What is about no other thing is about the revision that it made.
    let subject_id = if subject_id.is_empty() { revision.to_string() } else { subject_id };
    admin::Event {
        name,
        time_ms,
        revision,
        network: network.unwrap_or_default(),
        actor: Some(admin::Actor { kind: kind.as_str().into(), id, name: called }),
        subject_id,
        subject_name,
        details: details.into_iter().collect(),
        request_id,
    }
}

/// A token as operators see it; its secret is nowhere.
pub(super) fn token(id: TokenId, row: &TokenRow) -> admin::Token {
    admin::Token {
        id: id.to_string(),
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        max_uses: row.max_uses,
        uses: row.uses,
        tags: row.tags.clone(),
        ephemeral: row.ephemeral,
        revoked: row.revoked,
        relay: row.relay,
    }
}

/// Rules as operators read them, in their order.
pub(super) fn rules<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    network: &NetworkState,
) -> Vec<admin::Rule> {
    (1..).zip(rules).map(|(number, found)| rule(number, found, network)).collect()
}

fn rule(number: u32, rule: &Rule, network: &NetworkState) -> admin::Rule {
    let side = |selectors: &[Selector]| selectors_text(selectors, |id| network.name_of(id));
    admin::Rule {
        source: side(&rule.sources),
        destination: side(&rule.destinations),
        protocol: rule.protocol.to_string(),
        ports: ports_text(&rule.ports),
        number,
    }
}
