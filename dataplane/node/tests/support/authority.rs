//! A network whose every key the test holds, so that it can sign anything, also what it must not.

use std::{collections::BTreeMap, net::SocketAddr};

use ringmesh_proto::control as wire;
use ringmesh_tunnel::{
    enroll::{
        JoinToken, TokenSecret,
        seal::{Context, Purpose, seal_secret},
    },
    key::{
        IdentityKey, IdentitySecret, NetworkId, NetworkSecret, NodeId, PublicKey, TokenId, secrets_digest,
    },
    netmap::{
        Certificate, Envelope, Head, Leaf, Member, MemberKind, MerkleTree, NodeRecord, Policy, Position,
        Protocol, Role, Rule, Selector, Statement, digest, leaf_hash,
    },
    time::UnixTime,
};

/// A day in milliseconds.
pub const DAY: u64 = 86_400_000;
/// The IPv4 pool of every test network.
pub const IPV4_POOL: &str = "100.64.0.0/10";

pub fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    UnixTime::from_millis(since.as_millis() as u64)
}

pub fn in_ms(ms: u64) -> UnixTime {
    UnixTime::from_millis(now().as_millis() + ms)
}

/// Every key of a network.
pub struct Authority {
    pub root: IdentitySecret,
    pub admission: IdentitySecret,
    pub policy: IdentitySecret,
    pub head: IdentitySecret,
    pub coordinator: IdentitySecret,
    pub network: NetworkId,
    pub token: TokenId,
    pub token_seed: [u8; 32],
    pub secret: NetworkSecret,
}

impl Authority {
    pub fn new() -> Self {
        let root = IdentitySecret::generate();
        Self {
            network: NetworkId::of_root(&root.public_key()),
            root,
            admission: IdentitySecret::generate(),
            policy: IdentitySecret::generate(),
            head: IdentitySecret::generate(),
            coordinator: IdentitySecret::generate(),
            token: TokenId::generate(),
            token_seed: *IdentitySecret::generate().seed(),
            secret: NetworkSecret::generate(),
        }
    }

    /// The root's word that `key` may act as `role`.
    pub fn certificate(&self, role: Role, key: IdentityKey) -> Envelope {
        let certificate =
            Certificate { network: self.network, role, key, serial: 1, not_after: in_ms(30 * DAY) };
        Envelope::sign(&certificate, &self.root).unwrap()
    }

    pub fn certificates(&self) -> Vec<Envelope> {
        [
            (Role::Admission, &self.admission),
            (Role::Policy, &self.policy),
            (Role::Head, &self.head),
            (Role::Coordinator, &self.coordinator),
        ]
        .map(|(role, key)| self.certificate(role, key.public_key()))
        .to_vec()
    }

    /// The text of a join token that leads to `coordinators`.
    pub fn token_text(&self, coordinators: &[String]) -> String {
        let secret = TokenSecret::from_seed(self.token_seed);
        let token =
            JoinToken::new(self.root.public_key(), self.token, secret, coordinators.to_vec()).unwrap();
        token.reveal().to_string()
    }

    /// A member of ours. `number` gives id and addresses.
    pub fn member(&self, number: u8, name: &str, identity: IdentityKey) -> Member {
        Member {
            network: self.network,
            id: NodeId::from_bytes([0, 0, 0, 0, 0, 0, 0, number]),
            name: name.to_owned(),
            kind: MemberKind::Mesh,
            relay: false,
            noise_key: identity.noise_key(),
            identity_key: Some(identity),
            ipv4: Some([100, 64, 0, number].into()),
            ipv6: NodeId::from_bytes([0, 0, 0, 0, 0, 0, 0, number]).ipv6_in(self.network.ula()).unwrap(),
            tags: Vec::new(),
            groups: Vec::new(),
            routes: Vec::new(),
            serial: 1,
            not_after: in_ms(30 * DAY),
        }
    }

    pub fn sign_member(&self, member: &Member) -> Envelope {
        Envelope::sign(member, &self.admission).unwrap()
    }

    pub fn statement(
        &self,
        tls_key: [u8; 32],
        client_nonce: [u8; 32],
        server_nonce: Vec<u8>,
        time: UnixTime,
    ) -> Envelope {
        let statement =
            Statement { network: self.network, replica: 1, tls_key, client_nonce, server_nonce, time };
        Envelope::sign(&statement, &self.coordinator).unwrap()
    }

    /// The secret of `epoch`, sealed to a node.
    pub fn sealed_secret(&self, to: &PublicKey, epoch: u64) -> wire::SealedSecret {
        let context = Context { network: self.network, epoch, purpose: Purpose::Network };
        wire::SealedSecret { epoch, sealed: seal_secret(to, context, self.secret.expose()).unwrap() }
    }

    pub fn network_message(&self) -> wire::Network {
        wire::Network {
            name: "lab".into(),
            zone: "mesh".into(),
            ipv4_pool: IPV4_POOL.into(),
            ipv6_pool: self.network.ula().to_string(),
        }
    }
}

/// A map under construction: what a coordinator would know, and how it would tell.
#[derive(Clone)]
pub struct MapBuilder {
    pub position: Position,
    pub certificates: Vec<Envelope>,
    pub members: BTreeMap<NodeId, Envelope>,
    pub policy: Envelope,
    pub leaves: Vec<Vec<u8>>,
    pub tree: Vec<Vec<u8>>,
    pub node_records: BTreeMap<NodeId, Envelope>,
    /// The epochs in force; all have the authority's one secret.
    pub epochs: Vec<u64>,
}

impl MapBuilder {
    /// A map with a policy that lets all members reach each other, and no members yet.
    pub fn new(authority: &Authority) -> Self {
        let leaf = Leaf::Rule(Rule {
            sources: vec![Selector::All],
            destinations: vec![Selector::All],
            protocol: Protocol::Any,
            ports: Vec::new(),
        });
        let leaves = vec![leaf.emit().unwrap()];
        Self {
            position: Position { durable: 1, replica: 1, ephemeral: 0 },
            certificates: authority.certificates(),
            members: BTreeMap::new(),
            policy: Self::sign_policy(authority, &leaves, 1),
            tree: leaves.clone(),
            leaves,
            node_records: BTreeMap::new(),
            epochs: vec![1],
        }
    }

    pub fn sign_policy(authority: &Authority, leaves: &[Vec<u8>], serial: u64) -> Envelope {
        let tree = MerkleTree::new(leaves);
        let policy = Policy {
            network: authority.network,
            serial,
            not_after: in_ms(30 * DAY),
            root: tree.root(),
            size: tree.size(),
        };
        Envelope::sign(&policy, &authority.policy).unwrap()
    }

    pub fn put(&mut self, id: NodeId, member: Envelope) -> &mut Self {
        self.members.insert(id, member);
        self.position.durable += 1;
        self
    }

    pub fn put_record(
        &mut self,
        of: &IdentitySecret,
        network: NetworkId,
        id: NodeId,
        endpoints: Vec<SocketAddr>,
    ) {
        let record = NodeRecord {
            network,
            id,
            serial: now().as_millis(),
            endpoints,
            time: now(),
            websockets: Vec::new(),
            ssh: Vec::new(),
        };
        self.node_records.insert(id, Envelope::sign(&record, of).unwrap());
        self.position.ephemeral += 1;
    }

    pub fn digest(&self) -> [u8; 32] {
        let envelopes = self
            .certificates
            .iter()
            .chain(self.members.values())
            .chain([&self.policy])
            .chain(self.node_records.values())
            .map(Envelope::hash);
        digest(envelopes.chain(self.leaves.iter().map(|leaf| leaf_hash(leaf))))
    }

    pub fn head(&self, authority: &Authority) -> Head {
        Head {
            network: authority.network,
            position: self.position,
            digest: self.digest(),
            time: now(),
            not_after: in_ms(3_600_000),
            epoch: self.epochs.iter().copied().max().unwrap_or(0),
            secrets: self.secrets_digest(authority),
        }
    }

    /// The digest of the secrets of the epochs in force.
    pub fn secrets_digest(&self, authority: &Authority) -> [u8; 32] {
        let epochs = self.epochs.iter().map(|epoch| (*epoch, &authority.secret));
        secrets_digest(authority.network, epochs, [])
    }

    /// The secrets of the epochs in force, sealed to a node.
    pub fn secrets(&self, authority: &Authority, to: &PublicKey) -> Vec<wire::SealedSecret> {
        self.epochs.iter().map(|epoch| authority.sealed_secret(to, *epoch)).collect()
    }

    /// The whole map as one update.
    pub fn full(&self, authority: &Authority) -> wire::MapUpdate {
        let head = Envelope::sign(&self.head(authority), &authority.head).unwrap();
        let tree = MerkleTree::new(&self.tree);
        let rules = self.leaves.iter().enumerate().map(|(index, leaf)| wire::ProvenRule {
            leaf: leaf.clone(),
            index: index as u64,
            siblings: tree.proof(index as u64).unwrap_or_default().iter().map(|hash| hash.to_vec()).collect(),
        });
        wire::MapUpdate {
            full: true,
            position: Some(position(self.position)),
            certificates: self.certificates.iter().map(to_wire).collect(),
            members: self.members.values().map(to_wire).collect(),
            removed: Vec::new(),
            policy: Some(to_wire(&self.policy)),
            rules: rules.collect(),
            node_records: self.node_records.values().map(to_wire).collect(),
            secrets: Vec::new(),
            peer_secrets: Vec::new(),
            head: Some(to_wire(&head)),
            network: Some(authority.network_message()),
            coordinators: Vec::new(),
        }
    }
}

pub fn position(position: Position) -> wire::Position {
    wire::Position { durable: position.durable, replica: position.replica, ephemeral: position.ephemeral }
}

pub fn to_wire(envelope: &Envelope) -> wire::Envelope {
    wire::Envelope {
        kind: envelope.kind.number().into(),
        payload: envelope.payload.clone(),
        signer: envelope.signer.as_bytes().to_vec(),
        signature: envelope.signature.as_bytes().to_vec(),
    }
}
