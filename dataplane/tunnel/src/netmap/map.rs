//! The verified map: all that a node knows and believes of its network.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::chain::{Chain, Judge, check_kind, open_signed};
use super::envelope::{Envelope, Kind};
use super::error::MapError;
use super::floor::Floors;
use super::held::{Held, HeldLeaf};
use super::limits::{CERTIFICATES_MAX, CLOCK_SKEW_MAX, LEAVES_MAX, MEMBERS_MAX};
use super::member::{Member, MemberKind};
use super::merkle::verify_proof;
use super::record::{Head, NodeRecord, Policy, Position, Record};
use super::rule::{Leaf, NameRecord, Rule};
use super::update::{MapUpdate, ProvenRule, digest};
use crate::key::{IdentityKey, NetworkId, NodeId};
use crate::time::UnixTime;

/// A network as one node may see it, every part of it verified.
///
/// A map never changes. [`verify`](Self::verify) makes the next one out of an update and leaves this one as it was, so that
/// a refusal costs nothing. What was verified stays held until an update removes it, also when it has ended meanwhile:
/// [`peers`](Self::peers), [`rules`](Self::rules) and [`names`](Self::names) show what is in force at a given time, and
/// [`next_expiry`](Self::next_expiry) says when to look again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMap {
    pub(super) id: NodeId,
    pub(super) chain: Chain,
    pub(super) members: BTreeMap<NodeId, Arc<Held<Member>>>,
    pub(super) policy: Option<Arc<Held<Policy>>>,
    pub(super) leaves: BTreeMap<u64, Arc<HeldLeaf>>,
    pub(super) node_records: BTreeMap<NodeId, Arc<Held<NodeRecord>>>,
    pub(super) head: Option<Arc<Held<Head>>>,
    pub(super) floors: Floors,
}

impl NetworkMap {
    /// Starts with nothing but the root key that the join token pinned, for the node `id`.
    pub const fn empty(network: NetworkId, root: IdentityKey, id: NodeId) -> Self {
        Self {
            id,
            chain: Chain::new(network, root),
            members: BTreeMap::new(),
            policy: None,
            leaves: BTreeMap::new(),
            node_records: BTreeMap::new(),
            head: None,
            floors: Floors::new(),
        }
    }

    /// Makes the next map out of this one and an update, if everything in the update holds at `now`.
    ///
    /// Refuses any envelope whose signature, signer's right, network, kind or form is not right, that has ended, or that is
    /// older than what was seen; a rule without proof; a node record not by its node; keys, names or addresses of two
    /// members; a map without this node; and a result, position or time that is not what the head signs.
    ///
    /// # Errors
    ///
    /// A [`MapError`] that says which; this map stays usable.
    pub fn verify(&self, update: MapUpdate, now: UnixTime) -> Result<Self, MapError> {
        if !update.full && self.head.is_none() {
            return Err(MapError::NoBase);
        }
        let judge = Judge::Fresh(now);
        let mut next = if update.full { self.cleared() } else { self.clone() };
        let MapUpdate {
            full: _,
            position,
            certificates,
            members,
            removed,
            policy,
            rules,
            node_records,
            head,
        } = update;
        next.take_certificates(certificates, judge)?;
        next.remove(&removed);
        let given = next.take_members(self, members, judge)?;
        if let Some(id) = removed.iter().find(|id| given.contains(*id)) {
            return Err(MapError::RemovedYetPresent { id: *id });
        }
        next.take_policy(policy, rules, judge)?;
        next.take_node_records(self, node_records, judge)?;
        next.check_whole()?;
        next.accept_head(head, Some(position), judge)?;
        next.prune_floors(now);
        Ok(next)
    }

    /// Makes the next map out of this one and the head of a heartbeat, which must name the same content.
    ///
    /// # Errors
    ///
    /// As [`verify`](Self::verify); [`MapError::DigestMismatch`] means that an update was missed.
    pub fn renew(&self, head: Envelope, now: UnixTime) -> Result<Self, MapError> {
        if self.head.is_none() {
            return Err(MapError::NoBase);
        }
        let mut next = self.clone();
        next.accept_head(head, None, Judge::Fresh(now))?;
        Ok(next)
    }

    /// Keeps who we are, whom we trust, and what was seen.
    fn cleared(&self) -> Self {
        let empty = Self::empty(self.chain.network(), self.chain.root(), self.id);
        Self { head: self.head.clone(), floors: self.floors.clone(), ..empty }
    }

    pub(super) fn take_certificates(
        &mut self,
        envelopes: Vec<Envelope>,
        judge: Judge,
    ) -> Result<(), MapError> {
        check_count("certificates", envelopes.len(), CERTIFICATES_MAX)?;
        for envelope in envelopes {
            self.chain.add_judged(envelope, judge)?;
        }
        for held in self.chain.held() {
            self.floors.certificate(held)?;
        }
        Ok(())
    }

    fn remove(&mut self, removed: &[NodeId]) {
        for id in removed {
            self.members.remove(id);
        }
    }

    /// Returns the ids of the members taken.
    pub(super) fn take_members(
        &mut self,
        before: &Self,
        envelopes: Vec<Envelope>,
        judge: Judge,
    ) -> Result<BTreeSet<NodeId>, MapError> {
        check_count("members", envelopes.len(), MEMBERS_MAX)?;
        let mut given = BTreeSet::new();
        for envelope in envelopes {
            check_kind::<Member>(&envelope)?;
            self.chain.check_authority(envelope.kind, envelope.signer, judge)?;
            let held = self.open(envelope, |record: &Member| before.members.get(&record.id), judge)?;
            let id = held.record.id;
            if !given.insert(id) {
                return Err(MapError::Twice { what: format!("member {id}") });
            }
            self.floors.member(&held)?;
            self.members.insert(id, held);
        }
        check_count("members", self.members.len(), MEMBERS_MAX)?;
        // What a node said goes with it, and with the key that it said it with.
        let Self { members, node_records, .. } = self;
        node_records.retain(|id, held| {
            members.get(id).is_some_and(|member| member.record.identity_key == Some(held.envelope.signer))
        });
        Ok(given)
    }

    pub(super) fn take_policy(
        &mut self,
        policy: Option<Envelope>,
        rules: Vec<ProvenRule>,
        judge: Judge,
    ) -> Result<(), MapError> {
        check_count("rules", rules.len(), LEAVES_MAX)?;
        let Some(envelope) = policy else {
            return if rules.is_empty() { Ok(()) } else { Err(MapError::RulesWithoutPolicy) };
        };
        let record: Policy = self.chain.open_judged(&envelope, judge)?;
        let held = Held::new(record, envelope);
        self.floors.policy(&held)?;
        self.leaves.clear();
        for rule in rules {
            let index = rule.index;
            let leaf = open_rule(&held.record, rule)?;
            if self.leaves.insert(index, Arc::new(leaf)).is_some() {
                return Err(MapError::Twice { what: format!("rule {index}") });
            }
        }
        self.policy = Some(held);
        Ok(())
    }

    pub(super) fn take_node_records(
        &mut self,
        before: &Self,
        envelopes: Vec<Envelope>,
        judge: Judge,
    ) -> Result<(), MapError> {
        check_count("node records", envelopes.len(), MEMBERS_MAX)?;
        let mut given = BTreeSet::new();
        for envelope in envelopes {
            check_kind::<NodeRecord>(&envelope)?;
            let signer = envelope.signer;
            let held =
                self.open(envelope, |record: &NodeRecord| before.node_records.get(&record.id), judge)?;
            let id = held.record.id;
            let member = self.members.get(&id).ok_or(MapError::NoSuchMember { id })?;
            match (member.record.kind, member.record.identity_key) {
                (MemberKind::Mesh, Some(key)) if key == signer => {}
                (MemberKind::Mesh, _) => return Err(MapError::NotByNode { id }),
                (MemberKind::Stock, _) => return Err(MapError::NoSuchMember { id }),
            }
            if !given.insert(id) {
                return Err(MapError::Twice { what: format!("node record {id}") });
            }
            self.node_records.insert(id, held);
        }
        Ok(())
    }

    /// Opens an envelope but for its signer's right. One that is held already was verified then; only its end is judged anew.
    fn open<'a, R: Record + 'a>(
        &self,
        envelope: Envelope,
        find: impl FnOnce(&R) -> Option<&'a Arc<Held<R>>>,
        judge: Judge,
    ) -> Result<Arc<Held<R>>, MapError> {
        let known = R::parse(&envelope.payload).ok();
        let known = known.as_ref().and_then(find).filter(|held| held.envelope == envelope);
        if let Some(held) = known {
            let ended = |end: &UnixTime| matches!(judge, Judge::Fresh(now) if *end <= now);
            if !held.record.not_after().as_ref().is_some_and(ended) {
                return Ok(Arc::clone(held));
            }
        }
        let record = open_signed(self.chain.network(), &envelope, judge)?;
        Ok(Held::new(record, envelope))
    }

    /// Checks what concerns the map as a whole: this node is in it, and nobody has what is another's.
    pub(super) fn check_whole(&self) -> Result<(), MapError> {
        if !self.members.contains_key(&self.id) {
            return Err(MapError::OwnRecordMissing { id: self.id });
        }
        // An identity key has one noise key, which its member has too: this is the check of both.
        self.check_own("noise key", |member| Some(member.noise_key))?;
        self.check_own("name", |member| Some(member.name.as_str()))?;
        self.check_own("IPv4 address", |member| member.ipv4)?;
        self.check_own("IPv6 address", |member| Some(member.ipv6))?;
        self.check_routes()
    }

    /// Refuses a route to exactly another's address, which would be as long a match as the address itself.
    fn check_routes(&self) -> Result<(), MapError> {
        let members = || self.members.values().map(|held| &held.record);
        let ipv4 = members().filter_map(|member| Some((member.ipv4?.into(), member.id)));
        let ipv6 = members().map(|member| (member.ipv6.into(), member.id));
        let owners: BTreeMap<IpAddr, NodeId> = ipv4.chain(ipv6).collect();
        for member in members() {
            for route in member.routes.iter().filter(|route| route.is_host()) {
                match owners.get(&route.address()) {
                    Some(owner) if *owner != member.id => {
                        let (one, other) = (*owner, member.id);
                        return Err(MapError::Shared { one, other, what: "address" });
                    }
                    Some(_) | None => {}
                }
            }
        }
        Ok(())
    }

    fn check_own<'a, T: Ord>(
        &'a self,
        what: &'static str,
        part: impl Fn(&'a Member) -> Option<T>,
    ) -> Result<(), MapError> {
        let mut owners = BTreeMap::new();
        for (id, held) in &self.members {
            let Some(part) = part(&held.record) else { continue };
            if let Some(one) = owners.insert(part, *id) {
                return Err(MapError::Shared { one, other: *id, what });
            }
        }
        Ok(())
    }

    /// Checks that `envelope` is a head that names exactly what is held, at `position`, and not before the last head: its
    /// epoch and durable revision do not go back, nor, within one durable revision of one replica, what that replica counts and
    /// the time. Another replica counts for itself, by its own clock.
    pub(super) fn accept_head(
        &mut self,
        envelope: Envelope,
        position: Option<Position>,
        judge: Judge,
    ) -> Result<(), MapError> {
        let head: Head = self.chain.open_judged(&envelope, judge)?;
        if let Judge::Fresh(now) = judge
            && head.time > now.saturating_add(CLOCK_SKEW_MAX)
        {
            return Err(MapError::Future { time: head.time, now });
        }
        if let Some(update) = position
            && update != head.position
        {
            return Err(MapError::PositionMismatch { update, head: head.position });
        }
        if let Some(held) = self.head() {
            check_order(held, &head)?;
        }
        if head.digest != self.content_digest() {
            return Err(MapError::DigestMismatch);
        }
        self.head = Some(Held::new(head, envelope));
        Ok(())
    }

    /// Checks that `digest` ([`secrets_digest`](crate::key::secrets_digest)) and `epoch`, of the secrets a node holds beside
    /// this map, are what its head names.
    ///
    /// # Errors
    ///
    /// [`MapError::SecretsMismatch`]: they were damaged, withheld, or are of another time. [`MapError::NoBase`] for the empty
    /// map.
    pub fn check_secrets(&self, epoch: u64, digest: &[u8; 32]) -> Result<(), MapError> {
        let head = self.head().ok_or(MapError::NoBase)?;
        if head.epoch == epoch && head.secrets == *digest { Ok(()) } else { Err(MapError::SecretsMismatch) }
    }

    fn content_digest(&self) -> [u8; 32] {
        let certificates = self.chain.held().map(|held| held.hash);
        let members = self.members.values().map(|held| held.hash);
        let policy = self.policy.iter().map(|held| held.hash);
        let leaves = self.leaves.values().map(|held| held.hash);
        let node_records = self.node_records.values().map(|held| held.hash);
        digest(certificates.chain(members).chain(policy).chain(leaves).chain(node_records))
    }

    /// Forgets what was seen of records that have ended since and are not held.
    fn prune_floors(&mut self, now: UnixTime) {
        let Self { floors, members, chain, .. } = self;
        let held: BTreeSet<_> = chain.certificates().map(|held| (held.role, held.key)).collect();
        floors.prune(now, |id| members.contains_key(id), |at| held.contains(at));
    }

    /// Returns this node's id.
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// Returns the network's id.
    pub const fn network(&self) -> NetworkId {
        self.chain.network()
    }

    /// Returns the root key and its certificates.
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Returns the digest of all that is held.
    pub fn digest(&self) -> [u8; 32] {
        self.head.as_ref().map_or_else(|| digest([]), |held| held.record.digest)
    }

    /// Returns where in the stream the map stands; `None` for the empty one.
    pub fn position(&self) -> Option<Position> {
        self.head.as_ref().map(|held| held.record.position)
    }

    /// Returns the last head; `None` for the empty map.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref().map(|held| &held.record)
    }

    /// Returns this node's own record, ended or not; `None` only in the empty map.
    pub fn me(&self) -> Option<&Member> {
        self.member(self.id)
    }

    /// Returns a member, ended or not.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id).map(|held| &held.record)
    }

    /// Returns all members, this node among them, ended or not, in order of their ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().map(|held| &held.record)
    }

    /// Returns the other members that are in force at `now`; none if this node's own membership is not.
    pub fn peers(&self, now: UnixTime) -> impl Iterator<Item = &Member> {
        let belong = self.in_force(now);
        let others = self.members.values().filter(move |held| belong && held.record.id != self.id);
        others.filter(move |held| self.chain.in_force_until(held) > now).map(|held| &held.record)
    }

    /// Tells whether this node's own membership is in force at `now`.
    pub fn in_force(&self, now: UnixTime) -> bool {
        self.members.get(&self.id).is_some_and(|held| self.chain.in_force_until(held) > now)
    }

    /// Returns the policy, ended or not.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref().map(|held| &held.record)
    }

    /// Tells whether there is a policy in force at `now`; without one nothing is allowed.
    pub fn policy_in_force(&self, now: UnixTime) -> bool {
        self.policy.as_ref().is_some_and(|held| self.chain.in_force_until(held) > now)
    }

    /// Returns the rules in force at `now`, in the policy's order.
    pub fn rules(&self, now: UnixTime) -> impl Iterator<Item = &Rule> {
        self.numbered_rules(now).map(|(_, rule)| rule)
    }

    /// Returns the rules in force at `now` with their places among the policy's leaves, in that order.
    pub fn numbered_rules(&self, now: UnixTime) -> impl Iterator<Item = (u64, &Rule)> {
        self.leaves_in_force(now).filter_map(|(index, leaf)| match leaf {
            Leaf::Rule(rule) => Some((index, rule)),
            Leaf::Name(_) => None,
        })
    }

    /// Returns the name records in force at `now`, in the policy's order.
    pub fn names(&self, now: UnixTime) -> impl Iterator<Item = &NameRecord> {
        self.leaves_in_force(now).filter_map(|(_, leaf)| match leaf {
            Leaf::Name(name) => Some(name),
            Leaf::Rule(_) => None,
        })
    }

    fn leaves_in_force(&self, now: UnixTime) -> impl Iterator<Item = (u64, &Leaf)> {
        let in_force = self.policy_in_force(now);
        self.leaves.iter().filter(move |_| in_force).map(|(index, held)| (*index, &held.leaf))
    }

    /// Returns what a node said of itself, as the head names it.
    pub fn node_record(&self, id: NodeId) -> Option<&NodeRecord> {
        self.node_records.get(&id).map(|held| &held.record)
    }

    /// Returns when, after `now`, the next member or the policy ends unless renewed: the time to look at
    /// [`peers`](Self::peers) and [`rules`](Self::rules) again.
    pub fn next_expiry(&self, now: UnixTime) -> Option<UnixTime> {
        let members = self.members.values().map(|held| self.chain.in_force_until(held));
        let policy = self.policy.iter().map(|held| self.chain.in_force_until(held));
        members.chain(policy).filter(|end| *end > now).min()
    }

    /// Returns the end of this node's own membership if it is over at `now`.
    pub(super) fn own_end(&self, now: UnixTime) -> Option<MapError> {
        let not_after = self.members.get(&self.id).map(|held| self.chain.in_force_until(held))?;
        (not_after <= now).then_some(MapError::Expired { kind: Kind::Member, not_after, now })
    }
}

fn check_count(what: &'static str, count: usize, most: usize) -> Result<(), MapError> {
    if count > most { Err(MapError::TooMany { what, most }) } else { Ok(()) }
}

/// Checks that `offered` does not come before `held`.
fn check_order(held: &Head, offered: &Head) -> Result<(), MapError> {
    let (from, to) = (held.position, offered.position);
    let same_count = to.durable == from.durable && to.replica == from.replica;
    if to.durable < from.durable || (same_count && to.ephemeral < from.ephemeral) {
        return Err(MapError::OlderPosition { held: from, offered: to });
    }
    if same_count && offered.time < held.time {
        return Err(MapError::OlderHead { held: held.time, offered: offered.time });
    }
    if offered.epoch < held.epoch {
        return Err(MapError::OlderEpoch { held: held.epoch, offered: offered.epoch });
    }
    Ok(())
}

/// Verifies a leaf's place in the policy's tree and reads it.
fn open_rule(policy: &Policy, proven: ProvenRule) -> Result<HeldLeaf, MapError> {
    let index = proven.index;
    let hash = proven.hash();
    if !verify_proof(&policy.root, policy.size, &hash, index, &proven.siblings) {
        return Err(MapError::Unproven { index });
    }
    let leaf = Leaf::parse(&proven.leaf).map_err(|cause| MapError::Leaf { index, cause })?;
    Ok(HeldLeaf { leaf, proven, hash })
}
