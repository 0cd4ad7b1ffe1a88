//! What was seen of each record that grants something, so that nothing older comes back, not even by way of a removal or a
//! full map.
//!
//! Node records have no floor: they grant nothing, and a node that signed one with a serial of the future would otherwise
//! make its peers refuse every map after a coordinator forgot that record. Which of them is meant the head says.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::collections::BTreeMap;

use super::codec::{Reader, RecordError};
use super::envelope::{Envelope, Kind};
use super::error::MapError;
use super::held::Held;
use super::limits::FLOORS_MAX;
use super::member::Member;
use super::record::{Certificate, Policy, Role};
use crate::key::{IdentityKey, NodeId};
use crate::time::UnixTime;

/// The newest record seen of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    serial: u64,
    /// The envelope's hash: one serial has one content.
    hash: [u8; 32],
    /// When the record ends, and with it the need to remember.
    until: UnixTime,
}

impl Seen {
    fn check(self, kind: Kind, offered: Self) -> Result<(), MapError> {
        let same = offered.serial == self.serial && offered.hash == self.hash;
        if same || offered.serial > self.serial {
            return Ok(());
        }
        Err(MapError::OlderSerial { kind, held: self.serial, offered: offered.serial })
    }

    fn emit(self, bytes: &mut Vec<u8>) {
        bytes.extend(self.serial.to_be_bytes());
        bytes.extend(self.hash);
        bytes.extend(self.until.as_millis().to_be_bytes());
    }

    fn take(reader: &mut Reader<'_>) -> Result<Self, RecordError> {
        let serial = reader.u64()?;
        let hash = reader.array()?;
        Ok(Self { serial, hash, until: UnixTime::from_millis(reader.u64()?) })
    }
}

/// The newest seen of every record that grants something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Floors {
    certificates: BTreeMap<(Role, IdentityKey), Seen>,
    members: BTreeMap<NodeId, Seen>,
    policy: Option<Seen>,
}

impl Floors {
    pub(super) const fn new() -> Self {
        Self { certificates: BTreeMap::new(), members: BTreeMap::new(), policy: None }
    }

    /// Checks a certificate against the newest seen of its key and role, and remembers it.
    pub(super) fn certificate(&mut self, held: &Held<Certificate>) -> Result<(), MapError> {
        let Certificate { role, key, serial, not_after, .. } = held.record;
        let seen = Seen { serial, hash: held.hash, until: not_after };
        raise(&mut self.certificates, (role, key), Kind::Certificate, seen)
    }

    /// Checks a member against the newest seen of its id, and remembers it.
    pub(super) fn member(&mut self, held: &Held<Member>) -> Result<(), MapError> {
        let Member { id, serial, not_after, .. } = held.record;
        let seen = Seen { serial, hash: held.hash, until: not_after };
        raise(&mut self.members, id, Kind::Member, seen)
    }

    /// Checks a policy against the newest seen, and remembers it, for ever.
    pub(super) fn policy(&mut self, held: &Held<Policy>) -> Result<(), MapError> {
        let Policy { serial, not_after, .. } = held.record;
        let seen = Seen { serial, hash: held.hash, until: not_after };
        if let Some(held) = self.policy {
            held.check(Kind::Policy, seen)?;
        }
        self.policy = Some(seen);
        Ok(())
    }

    /// Forgets what has ended and is not held. Beyond [`FLOORS_MAX`] also forgets what is not held and ends first: the
    /// record that could come back counts for the shortest time.
    pub(super) fn prune(
        &mut self,
        now: UnixTime,
        member_held: impl Fn(&NodeId) -> bool,
        certificate_held: impl Fn(&(Role, IdentityKey)) -> bool,
    ) {
        self.certificates.retain(|at, seen| seen.until > now || certificate_held(at));
        self.members.retain(|id, seen| seen.until > now || member_held(id));
        let excess = self.members.len().saturating_sub(FLOORS_MAX);
        if excess > 0 {
            let gone = self.members.iter().filter(|(id, _)| !member_held(id));
            let mut gone: Vec<_> = gone.map(|(id, seen)| (seen.until, *id)).collect();
            gone.sort_unstable();
            for (_, id) in gone.into_iter().take(excess) {
                self.members.remove(&id);
            }
        }
    }

    /// Puts the floors into bytes: three lists, each after its count (4 bytes).
    pub(super) fn emit(&self, bytes: &mut Vec<u8>) {
        put_count(bytes, self.certificates.len());
        for ((role, key), seen) in &self.certificates {
            bytes.push(role.number());
            bytes.extend(key.as_bytes());
            seen.emit(bytes);
        }
        put_count(bytes, self.members.len());
        for (id, seen) in &self.members {
            bytes.extend(id.as_bytes());
            seen.emit(bytes);
        }
        put_count(bytes, self.policy.iter().len());
        self.policy.iter().for_each(|seen| seen.emit(bytes));
    }

    /// Takes floors off the front of `reader`. They are unsigned: their file is as safe as the node's own keys.
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, MapError> {
        let damaged = |_: RecordError| MapError::Damaged;
        let mut floors = Self::new();
        for _ in 0..reader.u32().map_err(damaged)? {
            let role = Role::from_number(reader.u8().map_err(damaged)?).ok_or(MapError::Damaged)?;
            let key = IdentityKey::from_bytes(reader.array().map_err(damaged)?);
            let key = key.map_err(|_| MapError::Damaged)?;
            floors.certificates.insert((role, key), Seen::take(reader).map_err(damaged)?);
        }
        for _ in 0..reader.u32().map_err(damaged)? {
            let id = NodeId::from_bytes(reader.array().map_err(damaged)?);
            floors.members.insert(id, Seen::take(reader).map_err(damaged)?);
        }
        for _ in 0..reader.u32().map_err(damaged)? {
            floors.policy = Some(Seen::take(reader).map_err(damaged)?);
        }
        Ok(floors)
    }
}

/// Checks `seen` against the newest at `at`, and remembers it.
fn raise<K: Ord>(map: &mut BTreeMap<K, Seen>, at: K, kind: Kind, seen: Seen) -> Result<(), MapError> {
    if let Some(held) = map.get(&at) {
        held.check(kind, seen)?;
    }
    map.insert(at, seen);
    Ok(())
}

/// Writes a count that is bounded far below 2^32.
pub(super) fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
}

/// Writes envelopes after their count.
pub(super) fn put_envelopes<'a>(bytes: &mut Vec<u8>, envelopes: impl ExactSizeIterator<Item = &'a Envelope>) {
    put_count(bytes, envelopes.len());
    envelopes.for_each(|envelope| bytes.extend(envelope.emit()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded_and_what_is_held_is_never_forgotten() {
        let mut floors = Floors::new();
        let id = |i: u64| NodeId::from_bytes(i.to_be_bytes());
        let count = FLOORS_MAX as u64 + 3;
        // The lower the id, the sooner it ends.
        for i in 0..count {
            let seen = Seen { serial: i, hash: [0; 32], until: UnixTime::from_secs(1_000 + i) };
            floors.members.insert(id(i), seen);
        }
        floors.prune(UnixTime::from_secs(1), |held| *held == id(1), |_| false);
        assert_eq!(floors.members.len(), FLOORS_MAX);
        let kept = |i| floors.members.contains_key(&id(i));
        assert_eq!([0, 1, 2, 3, 4].map(kept), [false, true, false, false, true]);
        assert!(kept(count - 1));
        floors.prune(UnixTime::from_secs(1_010), |held| *held == id(1), |_| false);
        assert!(floors.members.contains_key(&id(1)) && !floors.members.contains_key(&id(10)));
        assert!(floors.members.contains_key(&id(11)));
    }

    #[test]
    fn certificate_is_remembered_until_it_ends_or_is_let_go() {
        let key = crate::key::IdentitySecret::from_seed([1; 32]).public_key();
        let mut floors = Floors::new();
        let end = UnixTime::from_secs(10);
        floors.certificates.insert((Role::Head, key), Seen { serial: 1, hash: [0; 32], until: end });
        floors.prune(UnixTime::from_secs(9), |_| false, |_| false);
        assert_eq!(floors.certificates.len(), 1);
        floors.prune(end, |_| false, |_| true);
        assert_eq!(floors.certificates.len(), 1);
        floors.prune(end, |_| false, |_| false);
        assert_eq!(floors.certificates.len(), 0);
    }
}
