//! Where each thing lies in the store.
//!
//! Besides the things themselves there are three indexes (names, keys, addresses). They exist so that a transaction can
//! demand "nobody has this name" of any engine, and so that a second owner is impossible however the first came to be.

use std::net::Ipv4Addr;

use ringmesh_tunnel::{
    key::{NetworkId, NodeId, PublicKey, TokenId},
    netmap::Role,
};

use super::{api_keys::ApiKeyId, requests::RequestKey};

/// A place in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Key {
    /// The name of a network; the value is its id.
    NetworkName(String),
    /// A network's [`row`](super::row::NetworkRow).
    Network(NetworkId),
    /// Something of a network.
    Of(NetworkId, Part),
    /// An API key. Not below a network, as one may be for all.
    Api(ApiKeyId),
    /// The number that the last coordinator process took.
    ReplicaCounter,
    /// A live coordinator process; the value is the list of its endpoints.
    Replica(u32),
    /// An event that belongs to no network.
    Event(u64),
    /// The newest revision of which such events were forgotten.
    EventsForgotten,
    /// A request that was done once, and belongs to no network.
    Request(RequestKey),
}

/// A place below a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// The wrapped seed of a signing key.
    Seed(Signer),
    /// The root's certificate of the key of a role.
    Certificate(Role),
    /// The wrapped network secret of an epoch.
    Epoch(u64),
    /// The policy in force.
    Policy,
    /// A policy that was applied once, by the serial with which it came in force.
    PolicyVersion(u64),
    /// A member.
    Node(NodeId),
    /// What is remembered of a member that was removed.
    Removed(NodeId),
    /// Index: who has a name.
    Name(String),
    /// Index: who has, or ever had, a noise key.
    NoiseKey(PublicKey),
    /// Index: who has, or last had, an address.
    Ipv4(Ipv4Addr),
    /// A join token.
    Token(TokenId),
    /// The wrapped seed of the identity key of a relay that coordinators run themselves; its record is that of a [`Part::Node`].
    Relay(NodeId),
    /// Something that happened, by its number.
    Event(u64),
    /// The newest revision of which events were forgotten.
    EventsForgotten,
    /// A request that was done once.
    Request(RequestKey),
}

/// The owner of a signing key of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signer {
    /// Certifies the others.
    Root,
    /// Signs for a role.
    Role(Role),
}

impl Signer {
    pub(crate) const ALL: [Self; 5] = [
        Self::Root,
        Self::Role(Role::Admission),
        Self::Role(Role::Policy),
        Self::Role(Role::Head),
        Self::Role(Role::Coordinator),
    ];

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signer| signer.to_string() == text)
    }
}

impl std::fmt::Display for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Role(role) => role.fmt(f),
        }
    }
}

impl Key {
    /// The wrapped pre-shared key of a stock device: a place for the vault, inside the node's row.
    pub(crate) fn psk(network: NetworkId, node: NodeId) -> String {
        format!("network/{network}/node/{node}/psk")
    }

    /// Reads a key; `None` if it is not one of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        Some(match parts.as_slice() {
            ["network-name", name] => Self::NetworkName((*name).into()),
            ["api-key", id] => Self::Api(id.parse().ok()?),
            ["replica-counter"] => Self::ReplicaCounter,
            ["replica", number] => Self::Replica(number.parse().ok()?),
            ["event", number] => Self::Event(number.parse().ok()?),
            ["events-forgotten"] => Self::EventsForgotten,
            ["request", request] => Self::Request(RequestKey::parse(request)?),
            ["network", id] => Self::Network(id.parse().ok()?),
            ["network", id, rest @ ..] => Self::Of(id.parse().ok()?, Part::parse(rest)?),
            _ => return None,
        })
    }
}

impl Part {
    fn parse(parts: &[&str]) -> Option<Self> {
        Some(match parts {
            ["seed", signer] => Self::Seed(Signer::parse(signer)?),
            ["certificate", role] => match Signer::parse(role)? {
                Signer::Role(role) => Self::Certificate(role),
                Signer::Root => return None,
            },
            ["epoch", number] => Self::Epoch(number.parse().ok()?),
            ["policy"] => Self::Policy,
            ["policy-version", serial] => Self::PolicyVersion(serial.parse().ok()?),
            ["node", id] => Self::Node(id.parse().ok()?),
            ["removed", id] => Self::Removed(id.parse().ok()?),
            ["name", name] => Self::Name((*name).into()),
            ["key", hex] => Self::NoiseKey(super::row::key_of_hex(hex)?),
            ["ipv4", address] => Self::Ipv4(address.parse().ok()?),
            ["token", id] => Self::Token(id.parse().ok()?),
            ["relay", id] => Self::Relay(id.parse().ok()?),
            ["event", number] => Self::Event(number.parse().ok()?),
            ["events-forgotten"] => Self::EventsForgotten,
            ["request", request] => Self::Request(RequestKey::parse(request)?),
            _ => return None,
        })
    }

    /// The key of this part of `network`.
    pub(crate) fn of(self, network: NetworkId) -> String {
        Key::Of(network, self).to_string()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NetworkName(name) => write!(f, "network-name/{name}"),
            Self::Network(id) => write!(f, "network/{id}"),
            Self::Of(id, part) => write!(f, "network/{id}/{part}"),
            Self::Api(id) => write!(f, "api-key/{id}"),
            Self::ReplicaCounter => f.write_str("replica-counter"),
            Self::Replica(number) => write!(f, "replica/{number}"),
            Self::Event(number) => write!(f, "event/{number:020}"),
            Self::EventsForgotten => f.write_str("events-forgotten"),
            Self::Request(request) => write!(f, "request/{request}"),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seed(signer) => write!(f, "seed/{}", signer),
            Self::Certificate(role) => write!(f, "certificate/{role}"),
            // Fixed width, so that epochs sort by number.
            Self::Epoch(number) => write!(f, "epoch/{number:020}"),
            Self::Policy => f.write_str("policy"),
            Self::PolicyVersion(serial) => write!(f, "policy-version/{serial:020}"),
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Removed(id) => write!(f, "removed/{id}"),
            Self::Name(name) => write!(f, "name/{name}"),
            Self::NoiseKey(key) => write!(f, "key/{}", super::row::hex_of_key(key)),
            Self::Ipv4(address) => write!(f, "ipv4/{address}"),
            Self::Token(id) => write!(f, "token/{id}"),
            Self::Relay(id) => write!(f, "relay/{id}"),
            Self::Event(number) => write!(f, "event/{number:020}"),
            Self::EventsForgotten => f.write_str("events-forgotten"),
            Self::Request(request) => write!(f, "request/{request}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back() {
        let network = NetworkId::from_bytes([7; 16]);
        let node = NodeId::from_bytes([1; 8]);
        let mut keys = vec![
            Key::NetworkName("home".into()),
            Key::Network(network),
            Key::Api("00ff0123456789ab".parse().unwrap()),
            Key::ReplicaCounter,
            Key::Replica(17),
            Key::Event(8),
            Key::EventsForgotten,
            Key::Request(RequestKey::parse("00112233445566778899aabbccddeeff").unwrap()),
        ];
        let mut parts = vec![
            Part::Epoch(3),
            Part::Policy,
            Part::PolicyVersion(7),
            Part::Node(node),
            Part::Removed(node),
            Part::Name("laptop-2".into()),
            Part::NoiseKey(PublicKey::from_bytes([0xab; 32])),
            Part::Ipv4([100, 64, 0, 1].into()),
            Part::Token(TokenId::from_bytes([2; 8])),
            Part::Relay(node),
            Part::Event(9),
            Part::EventsForgotten,
            Part::Request(RequestKey::parse("00112233445566778899aabbccddeeff").unwrap()),
        ];
        for signer in Signer::ALL {
            parts.push(Part::Seed(signer));
            if let Signer::Role(role) = signer {
                parts.push(Part::Certificate(role));
            }
        }
        keys.extend(parts.into_iter().map(|part| Key::Of(network, part)));
        for key in keys {
            assert_eq!(Key::parse(&key.to_string()), Some(key));
        }
    }

    #[test]
    fn what_is_not_ours_is_not_a_key() {
        for text in ["", "network", "network/xyz", "network/00/node/1", "replica/-1", "other/thing"] {
            assert_eq!(Key::parse(text), None, "{text}");
        }
    }
}
