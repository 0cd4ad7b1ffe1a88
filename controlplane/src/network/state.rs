//! One network as the coordinator holds it in memory: rebuilt from a snapshot, then kept up by commits.
//!
//! Nothing here waits or writes. What to write is planned by the modules beside this one, as pure functions of a state.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, OnceLock},
};

use ringmesh_tunnel::{
    UnixTime,
    ip::Prefix,
    key::{IdentityKey, IdentitySecret, NetworkId, NetworkSecret, NodeId, PresharedKey, PublicKey, TokenId},
    netmap::{
        Certificate, Envelope, Leaf, Member, MerkleTree, NameRecord, NodeRecord, Policy, Record, Role, Rule,
        leaf_hash,
    },
};

use super::{
    authority::Authority,
    changes::{Changes, Item},
    edges::Edges,
    events::Events,
    key::{Key, Part},
    pool::Taken,
    requests::Requests,
    row::{self, AddressRow, Damage, NetworkRow, NodeRow, PolicyRow, PolicyVersionRow, RemovedRow, TokenRow},
};
use crate::{
    store::{Compare, Revision},
    vault::Vault,
};

/// A signed record with its hash, shared by every map it is in.
#[derive(Debug, Clone)]
pub(crate) struct Signed<R> {
    pub(crate) record: R,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) hash: [u8; 32],
    /// Of the store's entry; 0 for what is not stored.
    pub(crate) revision: Revision,
}

impl<R: Record> Signed<R> {
    fn parse(key: &str, bytes: &[u8], revision: Revision) -> Result<Self, Damage> {
        let envelope = row::parse_envelope(key, bytes)?;
        let record = R::parse(&envelope.payload).map_err(|error| Damage::at(key, error))?;
        Ok(Self::new(record, envelope, revision))
    }

    pub(crate) fn new(record: R, envelope: Envelope, revision: Revision) -> Self {
        let hash = envelope.hash();
        Self { record, envelope: Arc::new(envelope), hash, revision }
    }
}

/// A member.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) row: NodeRow,
    pub(crate) member: Signed<Member>,
    /// Of a stock device.
    pub(crate) psk: Option<PresharedKey>,
}

/// A member that is gone.
#[derive(Debug, Clone)]
pub(crate) struct Removed {
    pub(crate) identity_key: Option<IdentityKey>,
}

/// A join token.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) row: TokenRow,
    pub(crate) public_key: IdentityKey,
    pub(crate) revision: Revision,
}

/// A leaf of a policy as it is hashed.
#[derive(Debug, Clone)]
pub(crate) struct HeldLeaf {
    pub(crate) leaf: Leaf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) hash: [u8; 32],
}

impl HeldLeaf {
    /// The rule, if it is one.
    pub(crate) const fn rule(&self) -> Option<&Rule> {
        match &self.leaf {
            Leaf::Rule(rule) => Some(rule),
            Leaf::Name(_) => None,
        }
    }

    /// The name record, if it is one.
    pub(crate) const fn name(&self) -> Option<&NameRecord> {
        match &self.leaf {
            Leaf::Name(record) => Some(record),
            Leaf::Rule(_) => None,
        }
    }
}

/// A policy with what it signs.
#[derive(Debug, Clone)]
pub(crate) struct PolicyState {
    pub(crate) signed: Signed<Policy>,
    pub(crate) leaves: Vec<HeldLeaf>,
    /// The names of its name records: no member may take one, as nodes would ask it for what the policy says.
    pub(crate) names: BTreeSet<String>,
    pub(crate) tree: MerkleTree,
    /// Which of the [policies](NetworkState::policies) it is; `None`: the one that the network was made with.
    pub(crate) version: Option<u64>,
}

/// A policy that was applied once, as it was written.
#[derive(Debug, Clone)]
pub(crate) struct PolicyVersion {
    pub(crate) row: PolicyVersionRow,
    /// The commit that put it in force.
    pub(crate) revision: Revision,
}

/// One network.
#[derive(Debug)]
pub struct NetworkState {
    pub(crate) id: NetworkId,
    pub(crate) root: IdentityKey,
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) ipv4_pool: Prefix,
    pub(crate) authority: Authority,
    pub(crate) certificates: BTreeMap<Role, Signed<Certificate>>,
    pub(crate) secrets: BTreeMap<u64, (NetworkSecret, Revision)>,
    pub(crate) policy: Option<PolicyState>,
    /// The policies applied so far that are kept, by the serial with which each came in force.
    pub(crate) policies: BTreeMap<u64, PolicyVersion>,
    /// The commit that made the network.
    pub(crate) made: Revision,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) removed: BTreeMap<NodeId, Removed>,
    pub(crate) names: BTreeMap<String, NodeId>,
    pub(crate) noise_keys: BTreeMap<PublicKey, NodeId>,
    pub(crate) addresses: BTreeMap<Ipv4Addr, Taken>,
    pub(crate) tokens: BTreeMap<TokenId, Token>,
    /// The keys of the members that are relays of coordinators.
    pub(crate) relays: BTreeMap<NodeId, IdentitySecret>,
    /// What nodes say of themselves; never stored.
    pub(crate) node_records: BTreeMap<NodeId, Signed<NodeRecord>>,
    pub(crate) changes: Changes,
    /// What happened.
    pub(crate) events: Events,
    /// Requests that were done once.
    pub(crate) requests: Requests,
    /// Which rules select which members.
    pub(crate) edges: Edges,
    /// Counts the changes of what compiling a policy reads: members that came, went, or have another name, kind, tag, address or
    /// route.
    pub(crate) roster: u64,
    /// The digest of a map in which everybody sees everything; empty after every change.
    pub(super) common_digest: OnceLock<[u8; 32]>,
    /// The digest of the secrets that go with it; empty after every change.
    pub(super) common_secrets: OnceLock<[u8; 32]>,
}

impl NetworkState {
    pub(super) fn new(id: NetworkId, key: &str, row: NetworkRow, made: Revision) -> Result<Self, Damage> {
        let root = row::parse_identity(key, &row.root_key)?;
        if NetworkId::of_root(&root) != id {
            return Err(Damage::at(key, "the network's id is not that of its root key"));
        }
        Ok(Self {
            id,
            root,
            ipv4_pool: row.ipv4_pool.parse().map_err(|error| Damage::at(key, error))?,
            name: row.name,
            zone: row.zone,
            authority: Authority::default(),
            certificates: BTreeMap::new(),
            secrets: BTreeMap::new(),
            policy: None,
            policies: BTreeMap::new(),
            made,
            nodes: BTreeMap::new(),
            removed: BTreeMap::new(),
            names: BTreeMap::new(),
            noise_keys: BTreeMap::new(),
            addresses: BTreeMap::new(),
            tokens: BTreeMap::new(),
            relays: BTreeMap::new(),
            node_records: BTreeMap::new(),
            changes: Changes::default(),
            events: Events::default(),
            requests: Requests::default(),
            edges: Edges::default(),
            roster: 0,
            common_digest: OnceLock::new(),
            common_secrets: OnceLock::new(),
        })
    }

    /// Takes over what a commit says of `part`.
    pub(super) fn apply(
        &mut self,
        part: Part,
        value: Option<&[u8]>,
        revision: Revision,
        vault: &Vault,
    ) -> Result<(), Damage> {
        let key = part.clone().of(self.id);
        match part {
            Part::Node(id) => self.apply_node(id, &key, value, revision, vault)?,
            Part::Removed(id) => self.apply_removed(id, &key, value)?,
            Part::Name(name) => match value {
                Some(value) => drop(self.names.insert(name, row::parse_node(&key, value)?)),
                None => drop(self.names.remove(&name)),
            },
            Part::NoiseKey(noise) => match value {
                Some(value) => drop(self.noise_keys.insert(noise, row::parse_node(&key, value)?)),
                None => drop(self.noise_keys.remove(&noise)),
            },
            Part::Ipv4(address) => match value {
                Some(value) => drop(self.addresses.insert(address, parse_address(&key, value, revision)?)),
                None => drop(self.addresses.remove(&address)),
            },
            Part::Token(id) => match value {
                Some(value) => drop(self.tokens.insert(id, parse_token(&key, value, revision)?)),
                None => drop(self.tokens.remove(&id)),
            },
            Part::Policy => self.apply_policy(&key, value, revision)?,
            Part::PolicyVersion(serial) => match value {
                Some(value) => {
                    let version = PolicyVersion { row: row::parse(&key, value)?, revision };
                    self.policies.insert(serial, version);
                }
                None => drop(self.policies.remove(&serial)),
            },
            Part::Certificate(role) => {
                match value {
                    Some(value) => {
                        drop(self.certificates.insert(role, Signed::parse(&key, value, revision)?))
                    }
                    None => drop(self.certificates.remove(&role)),
                }
                self.touch(Item::Certificates);
            }
            Part::Seed(signer) => {
                if let Some(value) = value {
                    let seed = vault.open_32(&key, value).map_err(|error| Damage::at(&key, error))?;
                    self.authority.insert(signer, IdentitySecret::from_seed(*seed));
                }
            }
            Part::Relay(id) => match value {
                Some(value) => {
                    let seed = vault.open_32(&key, value).map_err(|error| Damage::at(&key, error))?;
                    self.relays.insert(id, IdentitySecret::from_seed(*seed));
                }
                None => drop(self.relays.remove(&id)),
            },
            Part::Event(number) => self.events.apply(number, &key, value, revision)?,
            Part::EventsForgotten => self.events.apply_forgotten(&key, value)?,
            Part::Request(request) => self.requests.apply(request, &key, value, revision)?,
            Part::Epoch(number) => {
                match value {
                    Some(value) => {
                        let secret = vault.open_32(&key, value).map_err(|error| Damage::at(&key, error))?;
                        self.secrets.insert(number, (NetworkSecret::from_bytes(*secret), revision));
                    }
                    None => drop(self.secrets.remove(&number)),
                }
                self.touch(Item::Secrets);
            }
        }
        Ok(())
    }

    fn apply_node(
        &mut self,
        id: NodeId,
        key: &str,
        value: Option<&[u8]>,
        revision: Revision,
        vault: &Vault,
    ) -> Result<(), Damage> {
        let meant = self.member(id).map(meaning);
        match value {
            Some(value) => {
                let row: NodeRow = row::parse(key, value)?;
                let member: Signed<Member> = Signed::parse(key, &row.member.0, revision)?;
                let place = Key::psk(self.id, id);
                let open = |wrapped: &row::Blob| {
                    let psk = vault.open_32(&place, &wrapped.0).map_err(|error| Damage::at(key, error))?;
                    Ok(PresharedKey::from_bytes(*psk))
                };
                let psk = row.psk.as_ref().map(open).transpose()?;
                self.edges.put_member(id, Some(&member.record));
                let standing = standing(&member.record);
                let former = self.nodes.insert(id, Node { row, member, psk });
                // A new member was told of no rule.
                if former.is_some_and(|former| self::standing(&former.member.record) != standing) {
                    self.touch(Item::Standing(id));
                }
            }
            None => {
                self.edges.put_member(id, None);
                self.node_records.remove(&id);
                if let Some(former) = self.nodes.remove(&id) {
                    let removed = Removed { identity_key: former.member.record.identity_key };
                    self.removed.entry(id).or_insert(removed);
                }
            }
        }
        // Renewals and regrouping change nothing for a policy that is being compiled, and there may be thousands of them.
        if self.member(id).map(meaning) != meant {
            self.roster += 1;
        }
        self.touch(Item::Member(id));
        Ok(())
    }

    fn apply_removed(&mut self, id: NodeId, key: &str, value: Option<&[u8]>) -> Result<(), Damage> {
        let Some(value) = value else {
            self.removed.remove(&id);
            return Ok(());
        };
        let row: RemovedRow = row::parse(key, value)?;
        let identity_key = row.identity_key.map(|blob| row::parse_identity(key, &blob)).transpose()?;
        self.removed.insert(id, Removed { identity_key });
        Ok(())
    }

    fn apply_policy(&mut self, key: &str, value: Option<&[u8]>, revision: Revision) -> Result<(), Damage> {
        let former = self.policy.take().map(|policy| policy.tree.root());
        if let Some(value) = value {
            let row: PolicyRow = row::parse(key, value)?;
            let signed: Signed<Policy> = Signed::parse(key, &row.policy.0, revision)?;
            let parse = |blob: row::Blob| match Leaf::parse(&blob.0) {
                Ok(leaf) => Ok(HeldLeaf { leaf, hash: leaf_hash(&blob.0), bytes: blob.0 }),
                Err(error) => Err(Damage::at(key, error)),
            };
            let leaves: Vec<HeldLeaf> = row.leaves.into_iter().map(parse).collect::<Result<_, _>>()?;
            let tree = MerkleTree::new(leaves.iter().map(|held| &held.bytes));
            if tree.root() != signed.record.root || tree.size() != signed.record.size {
                return Err(Damage::at(key, "the leaves are not those that were signed"));
            }
            let names = leaves.iter().filter_map(HeldLeaf::name).map(|record| record.name.clone()).collect();
            self.policy = Some(PolicyState { signed, leaves, names, tree, version: row.version });
        }
        if self.policy.as_ref().map(|policy| policy.tree.root()) != former {
            let leaves = self.policy.iter().flat_map(|policy| &policy.leaves);
            self.edges.put_policy(leaves.map(|held| (held.rule(), held.hash)));
            self.touch(Item::Rules);
        }
        self.touch(Item::Policy);
        Ok(())
    }

    /// Checks that the parts without which a network cannot be served are there.
    pub(super) fn check_complete(&self) -> Result<(), Damage> {
        let missing = |what: &str| Damage::at(Key::Network(self.id), format!("the network has no {what}"));
        for role in [Role::Admission, Role::Policy, Role::Head, Role::Coordinator] {
            self.certificates.get(&role).ok_or_else(|| missing(&format!("{role} certificate")))?;
        }
        self.secrets.last_key_value().ok_or_else(|| missing("secret"))?;
        let policy = self.policy.as_ref().ok_or_else(|| missing("policy"))?;
        if policy.version.is_some_and(|version| !self.policies.contains_key(&version)) {
            return Err(missing("text of the policy in force"));
        }
        for (id, key) in &self.relays {
            if self.member(*id).and_then(|member| member.identity_key) != Some(key.public_key()) {
                return Err(Damage::at(Part::Relay(*id).of(self.id), "no member has this key"));
            }
        }
        Ok(())
    }

    /// Takes over what a node said of itself; it has been verified.
    pub(crate) fn put_node_record(&mut self, record: Signed<NodeRecord>) {
        let id = record.record.id;
        self.node_records.insert(id, record);
        self.touch(Item::NodeRecord(id));
    }

    fn touch(&mut self, item: Item) {
        self.common_digest.take();
        self.common_secrets.take();
        self.changes.touch(item);
    }

    /// The epoch in force.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.secrets.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// The network's id.
    #[must_use]
    pub const fn id(&self) -> NetworkId {
        self.id
    }

    /// The public key that nodes pin.
    #[must_use]
    pub const fn root_key(&self) -> IdentityKey {
        self.root
    }

    /// The secret keys, for tests that sign what a coordinator should not.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The IPv6 range of the network's nodes.
    #[must_use]
    pub fn ipv6_pool(&self) -> Prefix {
        self.id.ula()
    }

    /// The ids of all members.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }

    /// A member's record.
    #[must_use]
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.nodes.get(&id).map(|node| &node.member.record)
    }

    /// The commit that put the policy in force: the network's first, or the one in which it was applied.
    #[must_use]
    pub fn policy_revision(&self) -> Revision {
        self.policy_in_force().map_or(self.made, |version| version.revision)
    }

    /// The policy in force as it was written; `None`: the one that the network was made with.
    pub(crate) fn policy_in_force(&self) -> Option<&PolicyVersion> {
        self.policies.get(&self.policy.as_ref()?.version?)
    }

    /// The names of the policy.
    pub(crate) fn names_of_policy(&self) -> impl Iterator<Item = &NameRecord> {
        self.policy.iter().flat_map(|policy| &policy.leaves).filter_map(HeldLeaf::name)
    }

    /// The rules of the policy, each with its place among the leaves.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (u64, &Rule)> {
        let leaves = (0_u64..).zip(self.policy.iter().flat_map(|policy| &policy.leaves));
        leaves.filter_map(|(place, held)| Some((place, held.rule()?)))
    }

    /// Whether a record of the policy in force has this name, as a whole.
    pub(crate) fn is_name_of_policy(&self, name: &str) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.names.contains(name))
    }

    /// The condition under which a name that is no record's stays that until it is taken: another coordinator may put another policy
    /// in force at the same moment.
    pub(super) fn names_of_policy_unchanged(&self) -> Option<Compare> {
        let held = self.policy.as_ref()?;
        Some(Compare::unchanged(Part::Policy.of(self.id), held.signed.revision))
    }

    /// A node as its row has it, which may be gone by now. Its pre-shared key is left out.
    pub(crate) fn node_of(&self, id: NodeId, row: NodeRow) -> Result<Node, Damage> {
        let member = Signed::parse(&Part::Node(id).of(self.id), &row.member.0, 0)?;
        Ok(Node { row, member, psk: None })
    }

    /// Finds a member by its name or id.
    pub(crate) fn find(&self, name_or_id: &str) -> Option<&Node> {
        let by_name = self.names.get(name_or_id).copied();
        self.nodes.get(&by_name.or_else(|| name_or_id.parse().ok())?)
    }
}

/// What rules select a member by, and whether everybody sees it.
fn standing(member: &Member) -> impl PartialEq + use<> {
    let Member { tags, groups, ipv4, ipv6, routes, relay, .. } = member;
    (tags.clone(), groups.clone(), *ipv4, *ipv6, routes.clone(), *relay)
}

/// What compiling a policy reads of a member.
fn meaning(member: &Member) -> impl PartialEq + use<> {
    let Member { name, kind, relay, tags, ipv4, ipv6, routes, .. } = member;
    (name.clone(), *kind, *relay, tags.clone(), *ipv4, *ipv6, routes.clone())
}

fn parse_address(key: &str, value: &[u8], revision: Revision) -> Result<Taken, Damage> {
    let row: AddressRow = row::parse(key, value)?;
    let node = row.node.parse().map_err(|error| Damage::at(key, error))?;
    Ok(Taken { node, released: row.released_ms.map(UnixTime::from_millis), revision })
}

fn parse_token(key: &str, value: &[u8], revision: Revision) -> Result<Token, Damage> {
    let row: TokenRow = row::parse(key, value)?;
    let public_key = row::parse_identity(key, &row.public_key)?;
    Ok(Token { row, public_key, revision })
}
