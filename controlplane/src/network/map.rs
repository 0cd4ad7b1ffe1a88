//! What a node is told: the whole map it may see, or what changed in it since a number.
//!
//! A node sees itself and every member that a rule connects with it, in either direction. Besides, relays and the other mesh nodes
//! see each other, whatever the rules: there is no session without the other's key. It gets their records, what they
//! say of themselves, the leaves that touch it with their proofs, and the certificates that signed all this; the head names
//! the digest of exactly that.

use std::collections::BTreeSet;

use ringmesh_tunnel::{
    UnixTime,
    enroll::seal::{Context, Purpose, SealError, seal_secret},
    key::{NodeId, PublicKey, secrets_digest},
    netmap::{
        Envelope, Head, Leaf, MapUpdate, Member, MemberKind, Position, ProvenRule, Role, Rule, Selector,
        digest,
    },
};

use super::{
    authority::{CannotSign, HEAD_LIFE},
    changes::Item,
    state::{NetworkState, Node},
};

/// Certificates that a map needs; the coordinator's own belongs to the challenge.
const ROLES: [Role; 3] = [Role::Admission, Role::Policy, Role::Head];

/// Where the state stands: which coordinator process asks, and the revision of the registry.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The number of this coordinator process.
    pub replica: u32,
    /// The durable revision that the state contains.
    pub durable: u64,
}

/// A network secret, sealed to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// Its epoch.
    pub epoch: u64,
    /// The sealed bytes.
    pub sealed: Vec<u8>,
}

/// What is sent to a node.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The signed part, which the node verifies.
    pub update: MapUpdate,
    /// Network secrets of the epochs in force, newest first; empty: unchanged.
    pub secrets: Vec<SealedSecret>,
    /// Pre-shared keys of stock devices in `update`.
    pub peer_secrets: Vec<(NodeId, Vec<u8>)>,
}

/// What changed for a node since a number.
#[derive(Debug)]
pub enum Delta {
    /// Nothing that it may see.
    Nothing,
    /// This.
    Update(Box<Outgoing>),
    /// Whom it may see, so that the whole map has to be sent.
    Full,
}

/// Why there is no map for a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoMap {
    /// It is not a member, or no longer.
    #[error("the node is not a member of this network")]
    NotAMember,
    /// The head cannot be signed.
    #[error(transparent)]
    CannotSign(#[from] CannotSign),
    /// Its key is one that no node generates.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl NetworkState {
    /// The number of the newest change, to ask [`delta`](Self::delta) with.
    #[must_use]
    pub const fn newest_change(&self) -> u64 {
        self.changes.newest()
    }

    /// Everything that `me` may see, with a head signed at `now`.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn full(&self, me: NodeId, place: Place, now: UnixTime) -> Result<Outgoing, NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        let visible = || self.visible(&node.member.record);
        let update = MapUpdate {
            full: true,
            position: self.position(place),
            certificates: self.certificate_envelopes(),
            members: visible().map(|peer| (*peer.member.envelope).clone()).collect(),
            removed: Vec::new(),
            policy: self.policy.as_ref().map(|policy| (*policy.signed.envelope).clone()),
            rules: self.rules_for(&node.member.record),
            node_records: visible().filter_map(|peer| self.node_record_envelope(peer)).collect(),
            head: self.head(me, place, now)?,
        };
        self.with_secrets(me, Outgoing { update, secrets: Vec::new(), peer_secrets: Vec::new() })
    }

    /// Puts all secrets that `me` is to hold beside an update: for a node that holds others.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn with_secrets(&self, me: NodeId, outgoing: Outgoing) -> Result<Outgoing, NoMap> {
        let mine = &self.nodes.get(&me).ok_or(NoMap::NotAMember)?.member.record;
        let peer_secrets = self.visible(mine).filter_map(|peer| self.seal_psk(peer, me, mine.noise_key));
        let peer_secrets = peer_secrets.collect::<Result<_, _>>()?;
        Ok(Outgoing { secrets: self.sealed_secrets(me)?, peer_secrets, ..outgoing })
    }

    /// What `me` has to hear of what changed after `since`, with a head signed at `now`.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn delta(&self, me: NodeId, since: u64, place: Place, now: UnixTime) -> Result<Delta, NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        if self.changes.has(Item::Rules, since) || self.changes.has(Item::Standing(me), since) {
            return Ok(Delta::Full);
        }
        let changed = self.collect(node, since);
        if changed.is_empty() {
            return Ok(Delta::Nothing);
        }
        let noise_key = node.member.record.noise_key;
        let members = || changed.members.iter().filter_map(|id| self.nodes.get(id));
        let records: BTreeSet<NodeId> = changed.members.union(&changed.node_records).copied().collect();
        let records = records.iter().filter_map(|id| self.nodes.get(id));
        let policy = self.policy.as_ref().filter(|_| changed.policy);
        let update = MapUpdate {
            full: false,
            position: self.position(place),
            certificates: if changed.certificates { self.certificate_envelopes() } else { Vec::new() },
            members: members().map(|peer| (*peer.member.envelope).clone()).collect(),
            removed: changed.removed.iter().copied().collect(),
            policy: policy.map(|policy| (*policy.signed.envelope).clone()),
            rules: if policy.is_some() { self.rules_for(&node.member.record) } else { Vec::new() },
            node_records: records.filter_map(|peer| self.node_record_envelope(peer)).collect(),
            head: self.head(me, place, now)?,
        };
        let peer_secrets =
            members().filter_map(|peer| self.seal_psk(peer, me, noise_key)).collect::<Result<_, _>>()?;
        let secrets = if changed.secrets { self.sealed_secrets(me)? } else { Vec::new() };
        Ok(Delta::Update(Box::new(Outgoing { update, secrets, peer_secrets })))
    }

    /// An update without a change, for what travels beside the signed part.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn unchanged(&self, me: NodeId, place: Place, now: UnixTime) -> Result<Outgoing, NoMap> {
        let update = MapUpdate {
            full: false,
            position: self.position(place),
            certificates: Vec::new(),
            members: Vec::new(),
            removed: Vec::new(),
            policy: None,
            rules: Vec::new(),
            node_records: Vec::new(),
            head: self.head(me, place, now)?,
        };
        Ok(Outgoing { update, secrets: Vec::new(), peer_secrets: Vec::new() })
    }

    /// A head for what `me` may see now.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn head(&self, me: NodeId, place: Place, now: UnixTime) -> Result<Envelope, NoMap> {
        let head = Head {
            network: self.id,
            position: self.position(place),
            digest: self.digest(me)?,
            time: now,
            not_after: now.saturating_add(HEAD_LIFE),
            epoch: self.epoch(),
            secrets: self.secrets_digest(me)?,
        };
        Ok(self.authority.sign(Role::Head, &head)?)
    }

    /// The digest of what `me` may see now.
    ///
    /// # Errors
    /// [`NoMap::NotAMember`].
    pub fn digest(&self, me: NodeId) -> Result<[u8; 32], NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        if self.is_uniform() {
            return Ok(*self.common_digest.get_or_init(|| self.compute_digest(node)));
        }
        Ok(self.compute_digest(node))
    }

    /// The digest of the secrets that `me` is to hold now.
    ///
    /// # Errors
    /// [`NoMap::NotAMember`].
    pub fn secrets_digest(&self, me: NodeId) -> Result<[u8; 32], NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        // A stock device, which alone has a key outside epochs, has no map.
        if self.is_uniform() && is_mesh(&node.member.record) {
            return Ok(*self.common_secrets.get_or_init(|| self.compute_secrets_digest(node)));
        }
        Ok(self.compute_secrets_digest(node))
    }

    fn compute_secrets_digest(&self, node: &Node) -> [u8; 32] {
        let mine = &node.member.record;
        let epochs = self.secrets.iter().map(|(epoch, (secret, _))| (*epoch, secret));
        let peers = self.visible(mine).filter(|peer| peer.member.record.id != mine.id);
        let peers = peers.filter_map(|peer| Some((peer.member.record.id, peer.psk.as_ref()?)));
        secrets_digest(self.id, epochs, peers)
    }

    fn compute_digest(&self, node: &Node) -> [u8; 32] {
        let certificates = ROLES.iter().filter_map(|role| self.certificates.get(role)).map(|held| held.hash);
        let members = self.visible(&node.member.record).map(|peer| peer.member.hash);
        let policy = self.policy.iter().map(|policy| policy.signed.hash);
        let rules = self.rules_for(&node.member.record).into_iter().map(|rule| rule.hash());
        let records = self
            .visible(&node.member.record)
            .filter_map(|peer| self.node_records.get(&peer.member.record.id).map(|record| record.hash));
        digest(certificates.chain(members).chain(policy).chain(rules).chain(records))
    }

    /// The position of this state.
    #[must_use]
    pub const fn position(&self, place: Place) -> Position {
        Position { durable: place.durable, replica: place.replica, ephemeral: self.changes.newest() }
    }

    /// The network secrets of the epochs in force, sealed to `me`, newest first.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn sealed_secrets(&self, me: NodeId) -> Result<Vec<SealedSecret>, NoMap> {
        let to = self.nodes.get(&me).ok_or(NoMap::NotAMember)?.member.record.noise_key;
        let seal = |(epoch, (secret, _)): (&u64, &(ringmesh_tunnel::key::NetworkSecret, _))| {
            let context = Context { network: self.id, epoch: *epoch, purpose: Purpose::Network };
            let sealed = seal_secret(&to, context, secret.expose())?;
            Ok(SealedSecret { epoch: *epoch, sealed })
        };
        self.secrets.iter().rev().map(seal).collect()
    }

    fn seal_psk(
        &self,
        peer: &Node,
        me: NodeId,
        to: PublicKey,
    ) -> Option<Result<(NodeId, Vec<u8>), SealError>> {
        let (id, psk) = (peer.member.record.id, peer.psk.as_ref()?);
        let context = Context { network: self.id, epoch: 0, purpose: Purpose::Peer(id) };
        (id != me).then(|| Ok((id, seal_secret(&to, context, psk.expose())?)))
    }

    fn certificate_envelopes(&self) -> Vec<Envelope> {
        ROLES
            .iter()
            .filter_map(|role| self.certificates.get(role))
            .map(|held| (*held.envelope).clone())
            .collect()
    }

    fn node_record_envelope(&self, peer: &Node) -> Option<Envelope> {
        self.node_records.get(&peer.member.record.id).map(|record| (*record.envelope).clone())
    }

    /// What changed after `since` and concerns `me`.
    fn collect(&self, me: &Node, since: u64) -> Changed {
        let mut changed = Changed::default();
        let mine = &me.member.record;
        for item in self.changes.since(since) {
            match item {
                Item::Member(id) => {
                    let present = self.nodes.get(&id).map(|peer| &peer.member.record);
                    let last = self.removed.get(&id).and_then(|gone| gone.last.as_deref());
                    // What rules select it by may have changed on the way: then it may have been visible once.
                    let unsettled = self.changes.has(Item::Standing(id), since);
                    match (present, last) {
                        (Some(peer), _) if self.sees(mine, peer) => drop(changed.members.insert(id)),
                        (Some(_), _) if !unsettled => {}
                        (None, Some(last)) if !unsettled && !self.sees(mine, last) => {}
                        _ => drop(changed.removed.insert(id)),
                    }
                }
                Item::NodeRecord(id) => {
                    if self.nodes.get(&id).is_some_and(|peer| self.sees(mine, &peer.member.record)) {
                        changed.node_records.insert(id);
                    }
                }
                Item::Policy => changed.policy = true,
                Item::Certificates => changed.certificates = true,
                Item::Secrets => changed.secrets = true,
                // Goes with `Member` and `Policy`.
                Item::Standing(_) | Item::Rules => {}
            }
        }
        changed
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        let leaves = self.policy.iter().flat_map(|policy| &policy.leaves);
        leaves.filter_map(|(leaf, _)| match leaf {
            Leaf::Rule(rule) => Some(rule),
            Leaf::Name(_) => None,
        })
    }

    /// Whether a map of `me` has `peer` in it.
    fn sees(&self, me: &Member, peer: &Member) -> bool {
        let relayed = (me.relay || peer.relay) && is_mesh(me) && is_mesh(peer);
        me.id == peer.id
            || relayed
            || self.rules().any(|rule| connects(rule, me, peer) || connects(rule, peer, me))
    }

    fn visible(&self, me: &Member) -> impl Iterator<Item = &Node> {
        let everybody = self.is_uniform();
        self.nodes.values().filter(move |peer| everybody || self.sees(me, &peer.member.record))
    }

    /// Whether all nodes have the same map: a rule connects everybody, and every leaf is for everybody.
    fn is_uniform(&self) -> bool {
        let all = |side: &[Selector]| side.contains(&Selector::All);
        self.rules().any(|rule| all(&rule.sources) && all(&rule.destinations))
            && self.rules().all(|rule| all(&rule.sources) || all(&rule.destinations))
    }

    /// The leaves that touch `me`, with their proofs; names are for everybody.
    fn rules_for(&self, me: &Member) -> Vec<ProvenRule> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let touches = |leaf: &Leaf| match leaf {
            Leaf::Rule(rule) => selected(&rule.sources, me) || selected(&rule.destinations, me),
            Leaf::Name(_) => true,
        };
        let proven = (0_u64..).zip(&policy.leaves).filter(|(_, (leaf, _))| touches(leaf));
        let proven = proven.filter_map(|(index, (_, bytes))| {
            Some(ProvenRule { leaf: bytes.clone(), index, siblings: policy.tree.proof(index)? })
        });
        proven.collect()
    }
}

/// What a delta has to tell.
#[derive(Debug, Default)]
struct Changed {
    members: BTreeSet<NodeId>,
    removed: BTreeSet<NodeId>,
    node_records: BTreeSet<NodeId>,
    policy: bool,
    certificates: bool,
    secrets: bool,
}

impl Changed {
    fn is_empty(&self) -> bool {
        let told = self.policy || self.certificates || self.secrets;
        !told && self.members.is_empty() && self.removed.is_empty() && self.node_records.is_empty()
    }
}

fn connects(rule: &Rule, from: &Member, to: &Member) -> bool {
    selected(&rule.sources, from) && selected(&rule.destinations, to)
}

fn selected(selectors: &[Selector], member: &Member) -> bool {
    selectors.iter().any(|selector| match selector {
        Selector::All => true,
        Selector::Node(id) => *id == member.id,
        Selector::Group(name) => member.groups.contains(name),
        Selector::Tag(name) => member.tags.contains(name),
        Selector::Prefix(prefix) => member.allowed_ips().any(|own| own.overlaps(prefix)),
    })
}

/// Whether a member runs our daemon.
pub(crate) const fn is_mesh(member: &Member) -> bool {
    matches!(member.kind, MemberKind::Mesh)
}
