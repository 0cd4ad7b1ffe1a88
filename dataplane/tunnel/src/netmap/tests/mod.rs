//! A network whose every key the tests hold, and a naive model of what a node holds of it.
//!
//! The tests play the hostile coordinator: it has the head key, so whatever it sends, it signs a head that fits. A refusal
//! is then by the check under test, and not by the digest's.

mod accept;
mod codec;
mod filter;
mod record;
mod refuse;
mod sequence;
mod store;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::*;
use crate::key::{IdentityKey, IdentitySecret, NetworkId, NodeId};
use crate::time::UnixTime;

/// 2026-01-01T00:00:00Z.
pub(super) const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);
pub(super) const HOUR: Duration = Duration::from_secs(3_600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);
/// The node whose map it is.
pub(super) const ME: u8 = 1;

/// What every head says of the secrets.
pub(super) const EPOCH: u64 = 3;
pub(super) const SECRETS: [u8; 32] = [0x5e; 32];

pub(super) fn later(duration: Duration) -> UnixTime {
    NOW.saturating_add(duration)
}

pub(super) fn node_id(node: u8) -> NodeId {
    NodeId::from_bytes([node; 8])
}

pub(super) fn node_secret(node: u8) -> IdentitySecret {
    IdentitySecret::from_seed([node; 32])
}

/// A network with its root and one key of every role.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) root: IdentitySecret,
    pub(super) admission: IdentitySecret,
    pub(super) policy: IdentitySecret,
    pub(super) head: IdentitySecret,
    pub(super) coordinator: IdentitySecret,
}

impl Network {
    pub(super) fn new() -> Self {
        Self::numbered(0)
    }

    /// Different numbers give different networks.
    pub(super) fn numbered(number: u8) -> Self {
        let secret =
            |role: u8| IdentitySecret::from_seed([0xf0 | role, number].repeat(16).try_into().unwrap());
        Self {
            root: secret(0),
            admission: secret(1),
            policy: secret(2),
            head: secret(3),
            coordinator: secret(4),
        }
    }

    pub(super) fn root_key(&self) -> IdentityKey {
        self.root.public_key()
    }

    pub(super) fn id(&self) -> NetworkId {
        NetworkId::of_root(&self.root_key())
    }

    pub(super) fn empty_map(&self) -> NetworkMap {
        NetworkMap::empty(self.id(), self.root_key(), node_id(ME))
    }

    /// The map of node 1 after [`full`](Self::full).
    pub(super) fn map(&self) -> NetworkMap {
        self.empty_map().verify(self.full(), NOW).unwrap()
    }

    pub(super) fn certificate(&self, role: Role) -> Certificate {
        let secret = match role {
            Role::Admission => &self.admission,
            Role::Policy => &self.policy,
            Role::Head => &self.head,
            Role::Coordinator => &self.coordinator,
        };
        Certificate {
            network: self.id(),
            role,
            key: secret.public_key(),
            serial: 1,
            not_after: later(365 * DAY),
        }
    }

    pub(super) fn certify(&self, certificate: &Certificate) -> Envelope {
        Envelope::sign(certificate, &self.root).unwrap()
    }

    pub(super) fn certificates(&self) -> Vec<Envelope> {
        let roles = [Role::Admission, Role::Policy, Role::Head];
        roles.map(|role| self.certify(&self.certificate(role))).to_vec()
    }

    pub(super) fn member(&self, node: u8) -> Member {
        let key = node_secret(node).public_key();
        Member {
            network: self.id(),
            id: node_id(node),
            name: format!("node-{node}"),
            kind: MemberKind::Mesh,
            relay: false,
            noise_key: key.noise_key(),
            identity_key: Some(key),
            ipv4: Some(Ipv4Addr::new(100, 64, 0, node)),
            ipv6: node_id(node).ipv6_in(self.id().ula()).unwrap(),
            tags: vec!["server".into()],
            groups: vec!["ops@example.org".into()],
            routes: vec!["10.1.0.0/16".parse().unwrap()],
            serial: 10,
            not_after: later(30 * DAY),
        }
    }

    pub(super) fn admit(&self, member: &Member) -> Envelope {
        Envelope::sign(member, &self.admission).unwrap()
    }

    pub(super) fn node_record(&self, node: u8, serial: u64) -> NodeRecord {
        let endpoints = vec![([192, 0, 2, node], 51820).into()];
        NodeRecord {
            network: self.id(),
            id: node_id(node),
            serial,
            endpoints,
            time: NOW,
            websockets: Vec::new(),
            ssh: Vec::new(),
        }
    }

    pub(super) fn say(&self, record: &NodeRecord, node: u8) -> Envelope {
        Envelope::sign(record, &node_secret(node)).unwrap()
    }

    pub(super) fn policy_of(&self, tree: &MerkleTree, serial: u64) -> Policy {
        let (root, size) = (tree.root(), tree.size());
        Policy { network: self.id(), serial, not_after: later(30 * DAY), root, size }
    }

    /// Everything of three nodes, but for the head.
    pub(super) fn full_without_head(&self) -> MapUpdate {
        let (tree, rules) = rules(&[0, 2, 4]);
        MapUpdate {
            full: true,
            position: Position { durable: 100, replica: 1, ephemeral: 5 },
            certificates: self.certificates(),
            members: [1, 2, 3].map(|node| self.admit(&self.member(node))).to_vec(),
            removed: Vec::new(),
            policy: Some(Envelope::sign(&self.policy_of(&tree, 7), &self.policy).unwrap()),
            rules,
            node_records: [2, 3].map(|node| self.say(&self.node_record(node, 50), node)).to_vec(),
            head: self.certify(&self.certificate(Role::Head)),
        }
    }

    /// Everything of three nodes.
    pub(super) fn full(&self) -> MapUpdate {
        self.finish(&Content::default(), self.full_without_head())
    }

    /// A delta onto [`map`](Self::map) that changes nothing yet.
    pub(super) fn delta(&self) -> MapUpdate {
        MapUpdate {
            full: false,
            position: Position { durable: 101, replica: 1, ephemeral: 6 },
            certificates: Vec::new(),
            members: Vec::new(),
            removed: Vec::new(),
            policy: None,
            rules: Vec::new(),
            node_records: Vec::new(),
            head: self.certify(&self.certificate(Role::Head)),
        }
    }

    pub(super) fn head_of(&self, position: Position, digest: [u8; 32]) -> Head {
        let (time, not_after) = (NOW, later(HOUR));
        Head { network: self.id(), position, digest, time, not_after, epoch: EPOCH, secrets: SECRETS }
    }

    /// Gives an update a head that fits it, whatever is in it.
    pub(super) fn finish(&self, base: &Content, mut update: MapUpdate) -> MapUpdate {
        let digest = base.after(&update).digest();
        update.head = Envelope::sign(&self.head_of(update.position, digest), &self.head).unwrap();
        update
    }

    /// Gives a delta onto [`map`](Self::map) a head that fits it.
    pub(super) fn finish_delta(&self, update: MapUpdate) -> MapUpdate {
        self.finish(&Content::default().after(&self.full()), update)
    }
}

/// Five leaves, and those of `shown` with their proofs.
pub(super) fn rules(shown: &[u64]) -> (MerkleTree, Vec<ProvenRule>) {
    prove(&leaves(), shown)
}

pub(super) fn leaves() -> Vec<Leaf> {
    let rule = |port: u16| {
        Leaf::Rule(Rule {
            sources: vec![Selector::Group("ops@example.org".into())],
            destinations: vec![Selector::Tag("server".into()), Selector::Node(node_id(3))],
            protocol: Protocol::Tcp,
            ports: vec![port.into()],
        })
    };
    let name = NameRecord { name: "www.example".into(), addresses: vec![[192, 0, 2, 80].into()] };
    vec![rule(22), rule(80), rule(443), rule(8080), Leaf::Name(name)]
}

pub(super) fn prove(leaves: &[Leaf], shown: &[u64]) -> (MerkleTree, Vec<ProvenRule>) {
    let bytes: Vec<_> = leaves.iter().map(|leaf| leaf.emit().unwrap()).collect();
    let tree = MerkleTree::new(&bytes);
    let proven = |index: &u64| ProvenRule {
        leaf: bytes[*index as usize].clone(),
        index: *index,
        siblings: tree.proof(*index).unwrap(),
    };
    let shown = shown.iter().map(proven).collect();
    (tree, shown)
}

/// What a node holds, without any check: the naive model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    certificates: BTreeMap<(u8, IdentityKey), Envelope>,
    members: BTreeMap<NodeId, Envelope>,
    policy: Option<Envelope>,
    leaves: BTreeMap<u64, Vec<u8>>,
    node_records: BTreeMap<NodeId, Envelope>,
}

impl Content {
    pub(super) fn after(&self, update: &MapUpdate) -> Self {
        let mut next = if update.full { Self::default() } else { self.clone() };
        for envelope in &update.certificates {
            if let Ok(record) = Certificate::parse(&envelope.payload) {
                next.certificates.insert((record.role.number(), record.key), envelope.clone());
            }
        }
        for id in &update.removed {
            next.members.remove(id);
            next.node_records.remove(id);
        }
        for envelope in &update.members {
            if let Ok(record) = Member::parse(&envelope.payload) {
                next.members.insert(record.id, envelope.clone());
                let signer = next.node_records.get(&record.id).map(|envelope| envelope.signer);
                if signer != record.identity_key {
                    next.node_records.remove(&record.id);
                }
            }
        }
        if update.policy.is_some() {
            next.policy = update.policy.clone();
            next.leaves = update.rules.iter().map(|rule| (rule.index, rule.leaf.clone())).collect();
        }
        for envelope in &update.node_records {
            if let Ok(record) = NodeRecord::parse(&envelope.payload) {
                next.node_records.insert(record.id, envelope.clone());
            }
        }
        next
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        let Self { certificates, members, policy, leaves, node_records } = self;
        let envelopes =
            certificates.values().chain(members.values()).chain(policy).chain(node_records.values());
        digest(envelopes.map(Envelope::hash).chain(leaves.values().map(|leaf| leaf_hash(leaf))))
    }
}

/// Checks that the map refuses the update, and that it is none the worse for it; returns why.
#[track_caller]
pub(super) fn refused(map: &NetworkMap, update: MapUpdate) -> MapError {
    refused_at(map, update, NOW)
}

#[track_caller]
pub(super) fn refused_at(map: &NetworkMap, update: MapUpdate, now: UnixTime) -> MapError {
    let before = map.clone();
    let error = map.verify(update, now).expect_err("the update is refused");
    assert_eq!(*map, before);
    assert_eq!(map.emit(), before.emit());
    error
}
