//! A map in a file, so that a node that starts while its coordinator is away still knows its network.
//!
//! The file begins with a mark and the form's number and ends with a SHA-256 of all before it, which tells a torn or rotten
//! file from a forged one. What is read is verified again, but for the age of what was in force when it arrived.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use sha2::{Digest as _, Sha256};

use super::chain::Judge;
use super::codec::{Reader, RecordError};
use super::envelope::Envelope;
use super::error::MapError;
use super::floor::{Floors, put_count, put_envelopes};
use super::map::NetworkMap;
use super::update::ProvenRule;
use crate::key::{IdentityKey, NetworkId, NodeId};
use crate::time::UnixTime;

/// What the file begins with.
const MARK: &[u8; 12] = b"ringmesh map";
/// The form's number.
const FORM: u8 = 1;

impl NetworkMap {
    /// Puts the map into bytes for a file.
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = MARK.to_vec();
        bytes.push(FORM);
        bytes.extend(self.network().as_bytes());
        bytes.extend(self.chain.root().as_bytes());
        bytes.extend(self.id.as_bytes());
        self.floors.emit(&mut bytes);
        let certificates: Vec<_> = self.chain.held().map(|held| &held.envelope).collect();
        put_envelopes(&mut bytes, certificates.into_iter());
        put_envelopes(&mut bytes, self.members.values().map(|held| &held.envelope));
        put_envelopes(&mut bytes, self.policy.iter().map(|held| &held.envelope));
        put_count(&mut bytes, self.leaves.len());
        self.leaves.values().for_each(|held| put_rule(&mut bytes, &held.proven));
        put_envelopes(&mut bytes, self.node_records.values().map(|held| &held.envelope));
        put_envelopes(&mut bytes, self.head.iter().map(|held| &held.envelope));
        let sum = Sha256::digest(&bytes);
        bytes.extend(sum);
        bytes
    }

    /// Reads a map out of a file and verifies it again: every signature, right, proof and the digest, for this network,
    /// root and node.
    ///
    /// Heads, other members, the policy and certificates may have ended since: the map lives until its records end, and its
    /// accessors leave out what has.
    ///
    /// # Errors
    ///
    /// [`MapError::Damaged`], [`MapError::NewerStore`] or [`MapError::OtherStore`] for the file;
    /// [`MapError::Expired`] if this node's own membership is over at `now`; else as [`verify`](Self::verify), if the file was
    /// tampered with.
    pub fn parse(
        bytes: &[u8],
        network: NetworkId,
        root: IdentityKey,
        id: NodeId,
        now: UnixTime,
    ) -> Result<Self, MapError> {
        let mut map = Self::empty(network, root, id);
        let mut reader = open_store(bytes, &map)?;
        map.floors = Floors::take(&mut reader)?;
        map.take_certificates(take_envelopes(&mut reader)?, Judge::Kept)?;
        let empty = map.clone();
        map.take_members(&empty, take_envelopes(&mut reader)?, Judge::Kept)?;
        let policy = take_at_most_one(&mut reader)?;
        map.take_policy(policy, take_rules(&mut reader)?, Judge::Kept)?;
        map.take_node_records(&empty, take_envelopes(&mut reader)?, Judge::Kept)?;
        let head = take_at_most_one(&mut reader)?;
        reader.end().map_err(|_| MapError::Damaged)?;
        if let Some(head) = head {
            map.check_whole()?;
            map.accept_head(head, None, Judge::Kept)?;
        } else if map != Self::empty(network, root, id) {
            return Err(MapError::Damaged);
        }
        map.own_end(now).map_or(Ok(map), Err)
    }
}

/// Checks what stands around the records: mark, form, sum, and whose map it is.
fn open_store<'a>(bytes: &'a [u8], map: &NetworkMap) -> Result<Reader<'a>, MapError> {
    let damaged = |_: RecordError| MapError::Damaged;
    let (content, sum) = bytes.split_last_chunk::<32>().ok_or(MapError::Damaged)?;
    let mut reader = Reader::new(content);
    if reader.array().map_err(damaged)? != *MARK {
        return Err(MapError::Damaged);
    }
    let found = reader.u8().map_err(damaged)?;
    let sum_fits = Sha256::digest(content).as_slice() == sum;
    match (found, sum_fits) {
        (FORM, true) => {}
        // Every form ends with the same sum, so a number with a good sum is one that was written.
        (_, true) if found > FORM => return Err(MapError::NewerStore { found }),
        _ => return Err(MapError::Damaged),
    }
    let network: [u8; 16] = reader.array().map_err(damaged)?;
    let root: [u8; 32] = reader.array().map_err(damaged)?;
    let id: [u8; 8] = reader.array().map_err(damaged)?;
    let ours = network == *map.network().as_bytes()
        && root == *map.chain.root().as_bytes()
        && id == *map.id.as_bytes();
    if ours { Ok(reader) } else { Err(MapError::OtherStore) }
}

fn take_envelopes(reader: &mut Reader<'_>) -> Result<Vec<Envelope>, MapError> {
    // Nothing is set aside for the count: every envelope must be there in the bytes.
    let count = reader.u32().map_err(|_| MapError::Damaged)?;
    (0..count).map(|_| Envelope::take(reader).map_err(MapError::from)).collect()
}

fn take_at_most_one(reader: &mut Reader<'_>) -> Result<Option<Envelope>, MapError> {
    let mut envelopes = take_envelopes(reader)?.into_iter();
    let first = envelopes.next();
    if envelopes.next().is_some() { Err(MapError::Damaged) } else { Ok(first) }
}

fn put_rule(bytes: &mut Vec<u8>, rule: &ProvenRule) {
    bytes.extend(rule.index.to_be_bytes());
    put_count(bytes, rule.leaf.len());
    bytes.extend(&rule.leaf);
    put_count(bytes, rule.siblings.len());
    rule.siblings.iter().for_each(|sibling| bytes.extend(sibling));
}

fn take_rules(reader: &mut Reader<'_>) -> Result<Vec<ProvenRule>, MapError> {
    let count = reader.u32().map_err(|_| MapError::Damaged)?;
    (0..count).map(|_| take_rule(reader).map_err(|_| MapError::Damaged)).collect()
}

fn take_rule(reader: &mut Reader<'_>) -> Result<ProvenRule, RecordError> {
    let index = reader.u64()?;
    let length = usize::try_from(reader.u32()?).map_err(|_| RecordError::Truncated)?;
    let leaf = reader.take(length)?.to_vec();
    let count = usize::try_from(reader.u32()?).map_err(|_| RecordError::Truncated)?;
    let siblings = (0..count).map(|_| reader.array()).collect::<Result<_, _>>()?;
    Ok(ProvenRule { leaf, index, siblings })
}
