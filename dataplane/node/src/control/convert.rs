//! Where protobuf stops: messages of the control protocol to the core's types and back.
//!
//! Lengths and counts are bounded here, before anything is kept; what the bytes grant is decided by the core.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use ringmesh_proto::control as wire;
use ringmesh_tunnel::{
    ip::Prefix,
    key::NodeId,
    netmap::{Envelope, MapUpdate, Position, ProvenRule},
};

/// A Merkle tree of 2^64 leaves is no deeper.
const MAX_SIBLINGS: usize = 64;
/// More coordinators than any network has.
const MAX_COORDINATORS: usize = 64;
/// A DNS name and a port.
const MAX_COORDINATOR: usize = 300;
/// Longer names are no names (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;

/// A message that no honest coordinator sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator's message makes no sense: {0}")]
pub(crate) struct Malformed(pub(crate) String);

fn malformed(what: impl std::fmt::Display) -> Malformed {
    Malformed(what.to_string())
}

/// A fixed-length byte field.
pub(crate) fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| malformed(format!("{what} has {} bytes instead of {N}", bytes.len())))
}

/// An envelope as the core knows it. Its signature is not checked here.
pub(crate) fn envelope(wire: wire::Envelope) -> Result<Envelope, Malformed> {
    Envelope::from_parts(wire.kind, wire.payload, &wire.signer, &wire.signature).map_err(malformed)
}

/// An envelope as protobuf.
pub(crate) fn envelope_to_wire(envelope: &Envelope) -> wire::Envelope {
    wire::Envelope {
        kind: u32::from(envelope.kind.number()),
        payload: envelope.payload.clone(),
        signer: envelope.signer.as_bytes().to_vec(),
        signature: envelope.signature.as_bytes().to_vec(),
    }
}

/// All envelopes of a repeated field.
pub(crate) fn envelopes(wire: Vec<wire::Envelope>) -> Result<Vec<Envelope>, Malformed> {
    wire.into_iter().map(envelope).collect()
}

/// A position in the map stream.
pub(crate) fn position(wire: wire::Position) -> Position {
    Position { durable: wire.durable, replica: wire.replica, ephemeral: wire.ephemeral }
}

/// A position as protobuf.
pub(crate) fn position_to_wire(position: Position) -> wire::Position {
    wire::Position { durable: position.durable, replica: position.replica, ephemeral: position.ephemeral }
}

/// What travels beside the signed map: secrets sealed to this node, and where coordinators are.
///
/// Names and pools, which come again as well, are fixed at enrolment: they are not signed, and pools end in routes.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) secrets: Vec<wire::SealedSecret>,
    pub(crate) peer_secrets: Vec<wire::PeerSecret>,
    pub(crate) coordinators: Vec<String>,
}

/// Names and the IPv4 pool of a network. The IPv6 pool that the message names is for people: the real one follows from the
/// network's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) ipv4_pool: Option<Prefix>,
}

/// Takes an update apart: what the core verifies, and what travels beside it.
pub(crate) fn map_update(wire: wire::MapUpdate) -> Result<(MapUpdate, Beside), Malformed> {
    let head = wire.head.ok_or_else(|| malformed("a map update without a head"))?;
    let position_of = wire.position.ok_or_else(|| malformed("a map update without a position"))?;
    let removed = wire.removed.iter().map(|id| array(id, "a node id").map(NodeId::from_bytes));
    let update = MapUpdate {
        full: wire.full,
        position: position(position_of),
        certificates: envelopes(wire.certificates)?,
        members: envelopes(wire.members)?,
        removed: removed.collect::<Result<_, _>>()?,
        policy: wire.policy.map(envelope).transpose()?,
        rules: wire.rules.into_iter().map(proven_rule).collect::<Result<_, _>>()?,
        node_records: envelopes(wire.node_records)?,
        head: envelope(head)?,
    };
    let beside = Beside {
        secrets: wire.secrets,
        peer_secrets: wire.peer_secrets,
        coordinators: coordinators(wire.coordinators)?,
    };
    Ok((update, beside))
}

fn proven_rule(wire: wire::ProvenRule) -> Result<ProvenRule, Malformed> {
    if wire.siblings.len() > MAX_SIBLINGS {
        return Err(malformed(format!("a rule's proof has {} siblings", wire.siblings.len())));
    }
    let siblings =
        wire.siblings.iter().map(|hash| array(hash, "a rule's sibling hash")).collect::<Result<_, _>>()?;
    Ok(ProvenRule { leaf: wire.leaf, index: wire.index, siblings })
}

/// Names and the pool, checked: they end in routes and in front of people.
pub(crate) fn network(wire: wire::Network) -> Result<Network, Malformed> {
    let pool = |text: &str| -> Result<Prefix, Malformed> {
        let prefix: Prefix =
            text.parse().map_err(|error| malformed(format!("the address pool `{text}`: {error}")))?;
        // A default route is never a pool; it would take the whole machine into the tunnel.
        if prefix.len() < 8 {
            return Err(malformed(format!("the address pool {prefix} is wider than /8")));
        }
        Ok(prefix)
    };
    let ipv4_pool = if wire.ipv4_pool.is_empty() { None } else { Some(pool(&wire.ipv4_pool)?) };
    if ipv4_pool.is_some_and(|pool| !pool.is_ipv4()) {
        return Err(malformed("the IPv4 address pool is of the wrong family"));
    }
    for name in [&wire.name, &wire.zone] {
        if name.len() > MAX_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(malformed("the network's name or zone is not a name"));
        }
    }
    Ok(Network { name: wire.name, zone: wire.zone, ipv4_pool })
}

/// Coordinator addresses, `host:port`.
pub(crate) fn coordinators(wire: Vec<String>) -> Result<Vec<String>, Malformed> {
    if wire.len() > MAX_COORDINATORS {
        return Err(malformed(format!("{} coordinators", wire.len())));
    }
    for address in &wire {
        let graphic = address.len() <= MAX_COORDINATOR && address.bytes().all(|byte| byte.is_ascii_graphic());
        if !graphic || !address.contains(':') {
            return Err(malformed("a coordinator's address is not `host:port`"));
        }
    }
    Ok(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good_network() -> wire::Network {
        wire::Network {
            name: "lab".into(),
            zone: "mesh".into(),
            ipv4_pool: "100.64.0.0/10".into(),
            ipv6_pool: "fd00:1::/48".into(),
        }
    }

    #[test]
    fn pools_that_would_swallow_the_machine_are_refused() {
        network(good_network()).unwrap();
        for pool in ["0.0.0.0/0", "100.64.0.0/7", "fd00::/48", "100.64.0.1/10", "nonsense"] {
            let wire = wire::Network { ipv4_pool: pool.into(), ..good_network() };
            assert!(network(wire).is_err(), "{pool}");
        }
        let wire = wire::Network { ipv4_pool: String::new(), ..good_network() };
        assert_eq!(network(wire).unwrap().ipv4_pool, None, "a network may be IPv6 only");
    }

    #[test]
    fn the_ipv6_pool_of_a_message_is_of_no_consequence() {
        for told in ["2000::/3", "10.0.0.0/8", "nonsense", ""] {
            let wire = wire::Network { ipv6_pool: told.into(), ..good_network() };
            assert_eq!(network(wire), network(good_network()), "{told}");
        }
    }

    #[test]
    fn an_update_without_head_or_position_is_malformed() {
        assert!(map_update(wire::MapUpdate::default()).is_err());
        let headless = wire::MapUpdate { position: Some(wire::Position::default()), ..Default::default() };
        assert!(map_update(headless).unwrap_err().to_string().contains("head"));
    }

    #[test]
    fn counts_are_bounded() {
        let rule = wire::ProvenRule { leaf: vec![1], index: 0, siblings: vec![vec![0; 32]; MAX_SIBLINGS] };
        proven_rule(rule.clone()).unwrap();
        let deeper =
            wire::ProvenRule { siblings: vec![vec![0; 32]; MAX_SIBLINGS.saturating_add(1)], ..rule.clone() };
        assert!(proven_rule(deeper).is_err());
        let short = wire::ProvenRule { siblings: vec![vec![0; 31]], ..rule };
        assert!(proven_rule(short).is_err());
        assert!(coordinators(vec!["a:1".to_owned(); MAX_COORDINATORS.saturating_add(1)]).is_err());
        assert!(coordinators(vec!["no port".to_owned()]).is_err());
        assert!(coordinators(vec!["\u{1b}[2J:1".to_owned()]).is_err(), "nothing that plays with a terminal");
    }

    #[test]
    fn a_position_survives_the_way() {
        let sent = Position { durable: 7, replica: 2, ephemeral: 9 };
        assert_eq!(position(position_to_wire(sent)), sent);
    }
}
