//! Members: what the network's authority says of a node.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use super::codec::{Reader, RecordError, check_label, check_word, put_prefix, put_short, text};
use super::envelope::Kind;
use super::limits::{GROUPS_MAX, PAYLOAD_MAX, ROUTES_MAX, TAGS_MAX};
use super::record::{Record, begin, identity, start};
use crate::ip::Prefix;
use crate::key::{IdentityKey, NetworkId, NodeId, PublicKey};
use crate::time::UnixTime;

/// What a member runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberKind {
    /// Our daemon: it has an identity key, and understands notices.
    Mesh = 1,
    /// Any other WireGuard implementation.
    Stock = 2,
}

impl MemberKind {
    /// Returns the number by which the kind travels.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the kind of a number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Mesh,
            2 => Self::Stock,
            _ => return None,
        })
    }
}

impl fmt::Display for MemberKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Stock => "stock",
        })
    }
}

/// A membership record: a node, its keys, addresses and roles. Signed by the root or by a key certified for
/// [`Role::Admission`](super::Role::Admission).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The network it is a member of.
    pub network: NetworkId,
    /// Its name for life.
    pub id: NodeId,
    /// Its name in the network's zone, one DNS label in lower case.
    pub name: String,
    /// What it runs.
    pub kind: MemberKind,
    /// Whether it may pass on datagrams of others.
    pub relay: bool,
    /// What it shakes hands with.
    pub noise_key: PublicKey,
    /// Who it is; every mesh member has one, of which `noise_key` is the Montgomery form.
    pub identity_key: Option<IdentityKey>,
    /// Its IPv4 address, if the network has a pool.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
    /// What it is, for rules to name; at most [`TAGS_MAX`].
    pub tags: Vec<String>,
    /// Whom it belongs to, for rules to name; at most [`GROUPS_MAX`].
    pub groups: Vec<String>,
    /// Ranges behind it that it may send from; at most [`ROUTES_MAX`].
    pub routes: Vec<Prefix>,
    /// Counts the records of this node; a lower one never replaces a higher.
    pub serial: u64,
    /// When the membership ends, unless renewed.
    pub not_after: UnixTime,
}

impl Member {
    /// Checks what ties the fields together: a mesh member's identity key, of which the noise key is the Montgomery form.
    fn check_keys(&self) -> Result<(), RecordError> {
        let field = "identity key";
        match (self.kind, &self.identity_key) {
            (MemberKind::Mesh, None) => Err(RecordError::Missing { field }),
            (_, Some(key)) if key.noise_key() != self.noise_key => {
                let must = "the Ed25519 form of the same key as the noise key";
                Err(RecordError::Value { field, must })
            }
            (MemberKind::Mesh | MemberKind::Stock, _) => Ok(()),
        }
    }

    /// Returns what the node may send from: its addresses and its routes.
    pub fn allowed_ips(&self) -> impl Iterator<Item = Prefix> + '_ {
        let ipv4 = self.ipv4.map(|address| Prefix::host(address.into()));
        ipv4.into_iter().chain([Prefix::host(self.ipv6.into())]).chain(self.routes.iter().copied())
    }
}

impl Record for Member {
    const KIND: Kind = Kind::Member;

    fn emit(&self) -> Result<Vec<u8>, RecordError> {
        check_label("name", &self.name)?;
        self.check_keys()?;
        let word = |field| {
            move |bytes: &mut Vec<u8>, word: &String| {
                check_word(field, word)?;
                put_short(bytes, field, word.as_bytes())
            }
        };
        let mut writer = start(self.network)?;
        writer.field(0x02, "node id", self.id.as_bytes())?;
        writer.field(0x03, "name", self.name.as_bytes())?;
        writer.field(0x04, "kind", &[self.kind.number()])?;
        if self.relay {
            writer.field(0x05, "relay", &[1])?;
        }
        writer.field(0x06, "noise key", self.noise_key.as_bytes())?;
        if let Some(key) = &self.identity_key {
            writer.field(0x07, "identity key", key.as_bytes())?;
        }
        if let Some(address) = self.ipv4 {
            writer.field(0x08, "IPv4 address", &address.octets())?;
        }
        writer.field(0x09, "IPv6 address", &self.ipv6.octets())?;
        writer.list(0x0a, "tags", TAGS_MAX, &self.tags, word("tag"))?;
        writer.list(0x0b, "groups", GROUPS_MAX, &self.groups, word("group"))?;
        writer.list(0x0c, "routes", ROUTES_MAX, &self.routes, |bytes, route| {
            put_prefix(bytes, *route);
            Ok(())
        })?;
        writer.field(0x0d, "serial", &self.serial.to_be_bytes())?;
        writer.field(0x0e, "expiry", &self.not_after.as_millis().to_be_bytes())?;
        writer.end(PAYLOAD_MAX)
    }

    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut fields, network) = begin(bytes)?;
        let word = |field| move |reader: &mut Reader<'_>| text(field, reader.short()?, check_word);
        let id = NodeId::from_bytes(fields.array(0x02, "node id")?);
        let name = text("name", fields.require(0x03, "name")?, check_label)?;
        let kind = MemberKind::from_number(fields.u8(0x04, "kind")?);
        let kind = kind.ok_or(RecordError::Value { field: "kind", must: "mesh (1) or stock (2)" })?;
        let relay = match fields.option(0x05, "relay")? {
            None => false,
            Some([1]) => true,
            Some([_]) => return Err(RecordError::Value { field: "relay", must: "1 or absent" }),
        };
        let noise_key = PublicKey::from_bytes(fields.array(0x06, "noise key")?);
        let identity_key = fields.option(0x07, "identity key")?;
        let identity_key = identity_key.map(|key| identity(key, "identity key")).transpose()?;
        let ipv4 = fields.option(0x08, "IPv4 address")?.map(Ipv4Addr::from_octets);
        let ipv6 = Ipv6Addr::from_octets(fields.array(0x09, "IPv6 address")?);
        let tags = fields.list(0x0a, "tags", TAGS_MAX, word("tag"))?;
        let groups = fields.list(0x0b, "groups", GROUPS_MAX, word("group"))?;
        let routes = fields.list(0x0c, "routes", ROUTES_MAX, Reader::prefix)?;
        let serial = fields.u64(0x0d, "serial")?;
        let not_after = fields.time(0x0e, "expiry")?;
        fields.end()?;
        let member = Self {
            network,
            id,
            name,
            kind,
            relay,
            noise_key,
            identity_key,
            ipv4,
            ipv6,
            tags,
            groups,
            routes,
            serial,
            not_after,
        };
        member.check_keys()?;
        Ok(member)
    }

    fn network(&self) -> NetworkId {
        self.network
    }

    fn not_after(&self) -> Option<UnixTime> {
        Some(self.not_after)
    }
}
