//! What a node is told: the whole map it may see, or the difference to what it was told before.
//!
//! A node sees itself and every member that a rule connects with it, in either direction. Besides, relays and the other mesh nodes
//! see each other, whatever the rules: there is no session without the other's key. It gets their records, what they
//! say of themselves, the leaves that touch it with their proofs, and the certificates that signed all this; the head names
//! the digest of exactly that. Who sees whom is in the module `edges`.

use std::sync::Arc;

use ringmesh_tunnel::{
    UnixTime,
    enroll::seal::{Context, Purpose, SealError, seal_secret},
    key::{NodeId, PublicKey, secrets_digest},
    netmap::{Envelope, Head, MapUpdate, Member, MemberKind, Position, ProvenRule, Role, digest},
};
use roaring::RoaringBitmap;

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

/// Whom a node sees in the map that it was sent: a set of members, opaque to those who keep it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told(Arc<RoaringBitmap>);

impl Told {
    /// How many members it has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What is sent to a node.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The signed part, which the node verifies.
    pub update: MapUpdate,
    /// The digest of all that the node holds after it, as the head names it.
    pub digest: [u8; 32],
    /// Whom the node sees after it.
    pub told: Told,
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

/// A head that was signed, and the digest that it names.
#[derive(Debug, Clone)]
pub struct SignedHead {
    /// The signed head.
    pub envelope: Envelope,
    /// The digest of the records that it names.
    pub digest: [u8; 32],
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
        let visible = self.visible(me);
        let all = Changed {
            members: visible.clone(),
            node_records: RoaringBitmap::new(),
            removed: RoaringBitmap::new(),
            policy: true,
            certificates: true,
            secrets: true,
        };
        self.outgoing(node, true, &all, visible, place, now)
    }

    /// Puts all secrets that `me` is to hold beside an update: for a node that holds others.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn with_secrets(&self, me: NodeId, outgoing: Outgoing) -> Result<Outgoing, NoMap> {
        let mine = &self.nodes.get(&me).ok_or(NoMap::NotAMember)?.member.record;
        let peer_secrets = self.members_of(&outgoing.told.0);
        let peer_secrets = peer_secrets.filter_map(|peer| self.seal_psk(peer, me, mine.noise_key));
        let peer_secrets = peer_secrets.collect::<Result<_, _>>()?;
        Ok(Outgoing { secrets: self.sealed_secrets(me)?, peer_secrets, ..outgoing })
    }

    /// What `me`, who was told of `told`, has to hear of what changed after `since`, with a head signed at `now`.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn delta(
        &self,
        me: NodeId,
        since: u64,
        told: &Told,
        place: Place,
        now: UnixTime,
    ) -> Result<Delta, NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        let Some((changed, visible)) = self.collect(me, since, &told.0) else { return Ok(Delta::Nothing) };
        Ok(Delta::Update(Box::new(self.outgoing(node, false, &changed, visible, place, now)?)))
    }

    /// Puts together what is sent to `node` that sees `visible` from then on.
    fn outgoing(
        &self,
        node: &Node,
        full: bool,
        changed: &Changed,
        mut visible: RoaringBitmap,
        place: Place,
        now: UnixTime,
    ) -> Result<Outgoing, NoMap> {
        // It is kept for each node, several times; in most networks members that are told are long runs of slots.
        visible.optimize();
        let mine = &node.member.record;
        let (me, noise_key) = (mine.id, mine.noise_key);
        let members = || self.members_of(&changed.members);
        // What a node says goes with its record, as it is dropped there with the key that signed it.
        let records = &changed.members | &changed.node_records;
        let policy = self.policy.as_ref().filter(|_| changed.policy);
        let head = self.head_over(node, &visible, place, now)?;
        let update = MapUpdate {
            full,
            position: self.position(place),
            certificates: if changed.certificates { self.certificate_envelopes() } else { Vec::new() },
            members: members().map(|peer| (*peer.member.envelope).clone()).collect(),
            removed: changed.removed.iter().filter_map(|slot| self.edges.id(slot)).collect(),
            policy: policy.map(|policy| (*policy.signed.envelope).clone()),
            rules: if policy.is_some() { self.rules_for(me) } else { Vec::new() },
            node_records: self
                .members_of(&records)
                .filter_map(|peer| self.node_record_envelope(peer))
                .collect(),
            head: head.envelope,
        };
        let peer_secrets =
            members().filter_map(|peer| self.seal_psk(peer, me, noise_key)).collect::<Result<_, _>>()?;
        let secrets = if changed.secrets { self.sealed_secrets(me)? } else { Vec::new() };
        Ok(Outgoing { update, digest: head.digest, told: Told(Arc::new(visible)), secrets, peer_secrets })
    }

    /// An update without a change, for what travels beside the signed part.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn unchanged(&self, me: NodeId, place: Place, now: UnixTime) -> Result<Outgoing, NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        self.outgoing(node, false, &Changed::default(), self.visible(me), place, now)
    }

    /// A head for what `me` may see now.
    ///
    /// # Errors
    /// [`NoMap`].
    pub fn head(&self, me: NodeId, place: Place, now: UnixTime) -> Result<SignedHead, NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        self.head_over(node, &self.visible(me), place, now)
    }

    fn head_over(
        &self,
        node: &Node,
        visible: &RoaringBitmap,
        place: Place,
        now: UnixTime,
    ) -> Result<SignedHead, NoMap> {
        let digest = self.digest_over(node, visible);
        let head = Head {
            network: self.id,
            position: self.position(place),
            digest,
            time: now,
            not_after: now.saturating_add(HEAD_LIFE),
            epoch: self.epoch(),
            secrets: self.secrets_digest_over(node, visible),
        };
        Ok(SignedHead { envelope: self.authority.sign(Role::Head, &head)?, digest })
    }

    /// The digest of the secrets that `me` is to hold now.
    ///
    /// # Errors
    /// [`NoMap::NotAMember`].
    pub fn secrets_digest(&self, me: NodeId) -> Result<[u8; 32], NoMap> {
        let node = self.nodes.get(&me).ok_or(NoMap::NotAMember)?;
        Ok(self.secrets_digest_over(node, &self.visible(me)))
    }

    fn secrets_digest_over(&self, node: &Node, visible: &RoaringBitmap) -> [u8; 32] {
        let mine = &node.member.record;
        let compute = || {
            let epochs = self.secrets.iter().map(|(epoch, (secret, _))| (*epoch, secret));
            let peers = self.members_of(visible).filter(|peer| peer.member.record.id != mine.id);
            let peers = peers.filter_map(|peer| Some((peer.member.record.id, peer.psk.as_ref()?)));
            secrets_digest(self.id, epochs, peers)
        };
        // A stock device, which alone has a key outside epochs, has no map.
        if self.edges.is_uniform() && is_mesh(mine) {
            return *self.common_secrets.get_or_init(compute);
        }
        compute()
    }

    fn digest_over(&self, node: &Node, visible: &RoaringBitmap) -> [u8; 32] {
        let compute = || {
            let certificates =
                ROLES.iter().filter_map(|role| self.certificates.get(role)).map(|held| held.hash);
            let members = self.members_of(visible).map(|peer| peer.member.hash);
            let policy = self.policy.iter().map(|policy| policy.signed.hash);
            let leaves = self.policy.as_ref().map_or(&[][..], |policy| &policy.leaves);
            let places = self.places(node.member.record.id);
            let rules =
                places.iter().filter_map(|place| Some(leaves.get(usize::try_from(*place).ok()?)?.hash));
            let records = self
                .members_of(visible)
                .filter_map(|peer| self.node_records.get(&peer.member.record.id).map(|record| record.hash));
            digest(certificates.chain(members).chain(policy).chain(rules).chain(records))
        };
        if self.edges.is_uniform() { *self.common_digest.get_or_init(compute) } else { compute() }
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

    /// What changed after `since` and concerns `me`, who was told of `told`, and whom it sees now; `None` if nothing did.
    fn collect(&self, me: NodeId, since: u64, told: &RoaringBitmap) -> Option<(Changed, RoaringBitmap)> {
        if self.newest_change() == since {
            return None;
        }
        let edges = &self.edges;
        let mine = edges.slot(me)?;
        let mut changed = Changed::default();
        let mut anybody = false;
        for item in self.changes.since(since) {
            match item {
                Item::Member(id) => drop(edges.slot(id).map(|slot| changed.members.insert(slot))),
                Item::NodeRecord(id) => drop(edges.slot(id).map(|slot| changed.node_records.insert(slot))),
                // The rules that touch it may be others now.
                Item::Standing(id) if id == me => (anybody, changed.policy) = (true, true),
                // Goes with `Member`.
                Item::Standing(_) => {}
                Item::Rules => (anybody, changed.policy) = (true, true),
                Item::Policy => changed.policy = true,
                Item::Certificates => changed.certificates = true,
                Item::Secrets => changed.secrets = true,
            }
        }
        // Anybody may have come or gone, or nobody but who changed.
        let visible = if anybody {
            edges.visible(mine)
        } else {
            let (seen, unseen): (RoaringBitmap, RoaringBitmap) =
                changed.members.iter().partition(|slot| edges.sees(mine, *slot));
            (told - unseen) | seen
        };
        changed.members |= &visible - told;
        changed.members &= &visible;
        changed.node_records &= &visible;
        changed.removed = told - &visible;
        (!changed.is_empty()).then_some((changed, visible))
    }

    /// Whom a map of `me` has in it.
    fn visible(&self, me: NodeId) -> RoaringBitmap {
        self.edges.slot(me).map(|slot| self.edges.visible(slot)).unwrap_or_default()
    }

    /// The places of the leaves that touch `me`; names are for everybody.
    pub(super) fn places(&self, me: NodeId) -> Vec<u64> {
        self.edges.slot(me).map(|slot| self.edges.places(slot)).unwrap_or_default()
    }

    /// The members of a set, in the order in which they joined or were loaded.
    fn members_of<'a>(&'a self, set: &'a RoaringBitmap) -> impl Iterator<Item = &'a Node> {
        set.iter().filter_map(|slot| self.nodes.get(&self.edges.id(slot)?))
    }

    /// The leaves that touch `me`, with their proofs.
    fn rules_for(&self, me: NodeId) -> Vec<ProvenRule> {
        let Some(policy) = &self.policy else { return Vec::new() };
        let proven = self.places(me).into_iter().filter_map(|index| {
            let leaf = policy.leaves.get(usize::try_from(index).ok()?)?;
            Some(ProvenRule { leaf: leaf.bytes.clone(), index, siblings: policy.tree.proof(index)? })
        });
        proven.collect()
    }
}

/// What an update has to tell.
#[derive(Debug, Default)]
struct Changed {
    members: RoaringBitmap,
    node_records: RoaringBitmap,
    removed: RoaringBitmap,
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

/// Whether a member runs our daemon.
pub(crate) const fn is_mesh(member: &Member) -> bool {
    matches!(member.kind, MemberKind::Mesh)
}
