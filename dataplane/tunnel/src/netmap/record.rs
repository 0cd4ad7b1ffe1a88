//! What is signed, but for members: certificates, policies, heads, node records, statements.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::fmt;
use core::net::SocketAddr;

use super::codec::{Fields, Reader, RecordError, Writer, put_endpoint, put_short, text};
use super::envelope::Kind;
use super::limits::{
    ENDPOINTS_MAX, PAYLOAD_MAX, SERVER_NONCE_MAX, SSH_ENDPOINTS_MAX, URL_MAX, WEBSOCKETS_MAX,
};
use crate::key::{IdentityKey, NetworkId, NodeId};
use crate::time::UnixTime;

/// A record that travels in an [`Envelope`](super::Envelope).
pub trait Record: Sized {
    /// The kind of its envelopes.
    const KIND: Kind;

    /// Puts the record into its one binary form.
    ///
    /// # Errors
    ///
    /// If it breaks one of its bounds or rules.
    fn emit(&self) -> Result<Vec<u8>, RecordError>;

    /// Reads the record from all of `bytes`.
    ///
    /// # Errors
    ///
    /// If the bytes are not such a record, or one that needs a newer program.
    fn parse(bytes: &[u8]) -> Result<Self, RecordError>;

    /// Returns the network it speaks of.
    fn network(&self) -> NetworkId;

    /// Returns when it ends, if it does.
    fn not_after(&self) -> Option<UnixTime>;
}

/// The tag of the network's id, which every record begins with.
pub(super) const NETWORK: u8 = 0x01;

/// Starts reading a record: its version and its network.
pub(super) fn begin(bytes: &[u8]) -> Result<(Fields<'_>, NetworkId), RecordError> {
    if bytes.len() > PAYLOAD_MAX {
        return Err(RecordError::TooMany { field: "record", most: PAYLOAD_MAX });
    }
    let mut fields = Fields::new(bytes)?;
    let network = fields.array(NETWORK, "network id").map(NetworkId::from_bytes)?;
    Ok((fields, network))
}

/// Starts writing a record: its version and its network.
pub(super) fn start(network: NetworkId) -> Result<Writer, RecordError> {
    let mut writer = Writer::record();
    writer.field(NETWORK, "network id", network.as_bytes())?;
    Ok(writer)
}

/// Reads an Ed25519 key.
pub(super) fn identity(bytes: [u8; 32], field: &'static str) -> Result<IdentityKey, RecordError> {
    let must = "a canonical Ed25519 public key";
    IdentityKey::from_bytes(bytes).map_err(|_| RecordError::Value { field, must })
}

/// What a certified key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Membership records.
    Admission = 1,
    /// Policies.
    Policy = 2,
    /// Heads of maps.
    Head = 3,
    /// Statements of a coordinator about its TLS key.
    Coordinator = 4,
}

impl Role {
    /// Returns the number by which the role travels.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the role of a number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Admission,
            2 => Self::Policy,
            3 => Self::Head,
            4 => Self::Coordinator,
            _ => return None,
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admission => "admission",
            Self::Policy => "policy",
            Self::Head => "head",
            Self::Coordinator => "coordinator",
        })
    }
}

/// The root key's word that a key may sign for a role. Signed by the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The network it holds in.
    pub network: NetworkId,
    /// What the key may sign.
    pub role: Role,
    /// The key.
    pub key: IdentityKey,
    /// Counts the certificates of this key and role; a lower one never replaces a higher.
    pub serial: u64,
    /// When it ends.
    pub not_after: UnixTime,
}

impl Record for Certificate {
    const KIND: Kind = Kind::Certificate;

    fn emit(&self) -> Result<Vec<u8>, RecordError> {
        let mut writer = start(self.network)?;
        writer.field(0x02, "role", &[self.role.number()])?;
        writer.field(0x03, "key", self.key.as_bytes())?;
        writer.field(0x04, "serial", &self.serial.to_be_bytes())?;
        writer.field(0x05, "expiry", &self.not_after.as_millis().to_be_bytes())?;
        writer.end(PAYLOAD_MAX)
    }

    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut fields, network) = begin(bytes)?;
        let must =
            "admission (1), policy (2), head (3) or coordinator (4): an unknown one needs a newer program";
        let role = Role::from_number(fields.u8(0x02, "role")?);
        let role = role.ok_or(RecordError::Value { field: "role", must })?;
        let key = identity(fields.array(0x03, "key")?, "key")?;
        let serial = fields.u64(0x04, "serial")?;
        let not_after = fields.time(0x05, "expiry")?;
        fields.end()?;
        Ok(Self { network, role, key, serial, not_after })
    }

    fn network(&self) -> NetworkId {
        self.network
    }

    fn not_after(&self) -> Option<UnixTime> {
        Some(self.not_after)
    }
}

/// A policy: the Merkle root (RFC 6962) of its rules and names. Signed by a key certified for [`Role::Policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The network it holds in.
    pub network: NetworkId,
    /// Counts the network's policies; a lower one never replaces a higher.
    pub serial: u64,
    /// When it ends; without a policy nothing is allowed.
    pub not_after: UnixTime,
    /// The tree's root hash.
    pub root: [u8; 32],
    /// The count of the tree's leaves.
    pub size: u64,
}

impl Record for Policy {
    const KIND: Kind = Kind::Policy;

    fn emit(&self) -> Result<Vec<u8>, RecordError> {
        let mut writer = start(self.network)?;
        writer.field(0x02, "serial", &self.serial.to_be_bytes())?;
        writer.field(0x03, "expiry", &self.not_after.as_millis().to_be_bytes())?;
        writer.field(0x04, "root", &self.root)?;
        writer.field(0x05, "size", &self.size.to_be_bytes())?;
        writer.end(PAYLOAD_MAX)
    }

    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut fields, network) = begin(bytes)?;
        let serial = fields.u64(0x02, "serial")?;
        let not_after = fields.time(0x03, "expiry")?;
        let root = fields.array(0x04, "root")?;
        let size = fields.u64(0x05, "size")?;
        fields.end()?;
        Ok(Self { network, serial, not_after, root, size })
    }

    fn network(&self) -> NetworkId {
        self.network
    }

    fn not_after(&self) -> Option<UnixTime> {
        Some(self.not_after)
    }
}

/// A place in the map stream. Opaque to nodes but for `durable`, which never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// The revision of the durable state.
    pub durable: u64,
    /// The coordinator replica that counts `ephemeral`.
    pub replica: u32,
    /// The count of endpoint and presence changes at that replica, from its start.
    pub ephemeral: u64,
}

impl Position {
    /// Puts the position into 20 bytes.
    pub(super) fn emit(self) -> Vec<u8> {
        [&self.durable.to_be_bytes()[..], &self.replica.to_be_bytes(), &self.ephemeral.to_be_bytes()].concat()
    }

    /// Reads the position from exactly 20 bytes.
    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        let position = Self { durable: reader.u64()?, replica: reader.u32()?, ephemeral: reader.u64()? };
        reader.end()?;
        Ok(position)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.durable, self.replica, self.ephemeral)
    }
}

/// What a node's map must come to. Signed by a key certified for [`Role::Head`], on every update and heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The network it holds in.
    pub network: NetworkId,
    /// Where in the stream the map stands.
    pub position: Position,
    /// The [digest](super::digest) of everything the node holds.
    pub digest: [u8; 32],
    /// When it was signed.
    pub time: UnixTime,
    /// Until when a stream may deliver it, about an hour after `time`. Says nothing of a map already held.
    pub not_after: UnixTime,
    /// The newest epoch of the network's secret in force; 0 if the node is to know none.
    pub epoch: u64,
    /// The [digest](crate::key::secrets_digest) of all secrets the node is to hold.
    pub secrets: [u8; 32],
}

impl Record for Head {
    const KIND: Kind = Kind::Head;

    fn emit(&self) -> Result<Vec<u8>, RecordError> {
        let mut writer = start(self.network)?;
        writer.field(0x02, "position", &self.position.emit())?;
        writer.field(0x03, "digest", &self.digest)?;
        writer.field(0x04, "time", &self.time.as_millis().to_be_bytes())?;
        writer.field(0x05, "expiry", &self.not_after.as_millis().to_be_bytes())?;
        writer.field(0x06, "epoch", &self.epoch.to_be_bytes())?;
        writer.field(0x07, "secrets", &self.secrets)?;
        writer.end(PAYLOAD_MAX)
    }

    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut fields, network) = begin(bytes)?;
        let position = Position::parse(fields.require(0x02, "position")?)?;
        let digest = fields.array(0x03, "digest")?;
        let time = fields.time(0x04, "time")?;
        let not_after = fields.time(0x05, "expiry")?;
        let epoch = fields.u64(0x06, "epoch")?;
        let secrets = fields.array(0x07, "secrets")?;
        fields.end()?;
        Ok(Self { network, position, digest, time, not_after, epoch, secrets })
    }

    fn network(&self) -> NetworkId {
        self.network
    }

    fn not_after(&self) -> Option<UnixTime> {
        Some(self.not_after)
    }
}

/// What a node says of itself: where it may be reached. Signed by its own identity key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// The network it holds in.
    pub network: NetworkId,
    /// The node.
    pub id: NodeId,
    /// Counts the node's records; a lower one never replaces a higher. The time of signing does well.
    pub serial: u64,
    /// Outer UDP addresses, most promising first, at most [`ENDPOINTS_MAX`]. Scope ids do not travel.
    pub endpoints: Vec<SocketAddr>,
    /// When it was signed.
    pub time: UnixTime,
    /// URLs (`wss://host:port/path`) of its relay's WebSocket, at most [`WEBSOCKETS_MAX`].
    pub websockets: Vec<String>,
    /// TCP addresses of its own SSH endpoint, at most [`SSH_ENDPOINTS_MAX`]; its host key is the member's identity key.
    pub ssh: Vec<SocketAddr>,
}

impl Record for NodeRecord {
    const KIND: Kind = Kind::NodeRecord;

    fn emit(&self) -> Result<Vec<u8>, RecordError> {
        let mut writer = start(self.network)?;
        writer.field(0x02, "node id", self.id.as_bytes())?;
        writer.field(0x03, "serial", &self.serial.to_be_bytes())?;
        writer.list(0x04, "endpoints", ENDPOINTS_MAX, &self.endpoints, |bytes, endpoint| {
            put_endpoint(bytes, *endpoint);
            Ok(())
        })?;
        writer.field(0x05, "time", &self.time.as_millis().to_be_bytes())?;
        writer.list(0x06, "websockets", WEBSOCKETS_MAX, &self.websockets, |bytes, url| {
            check_websocket("websockets", url)?;
            put_short(bytes, "websockets", url.as_bytes())
        })?;
        writer.list(0x07, "ssh", SSH_ENDPOINTS_MAX, &self.ssh, |bytes, endpoint| {
            put_endpoint(bytes, *endpoint);
            Ok(())
        })?;
        writer.end(PAYLOAD_MAX)
    }

    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut fields, network) = begin(bytes)?;
        let id = NodeId::from_bytes(fields.array(0x02, "node id")?);
        let serial = fields.u64(0x03, "serial")?;
        let endpoints = fields.list(0x04, "endpoints", ENDPOINTS_MAX, Reader::endpoint)?;
        let time = fields.time(0x05, "time")?;
        let websockets = fields.list(0x06, "websockets", WEBSOCKETS_MAX, |reader| {
            text("websockets", reader.short()?, check_websocket)
        })?;
        let ssh = fields.list(0x07, "ssh", SSH_ENDPOINTS_MAX, Reader::endpoint)?;
        fields.end()?;
        Ok(Self { network, id, serial, endpoints, time, websockets, ssh })
    }

    fn network(&self) -> NetworkId {
        self.network
    }

    fn not_after(&self) -> Option<UnixTime> {
        None
    }
}

/// Checks that text is a `wss` URL as far as its form goes: printable, no spaces, with something behind the scheme.
fn check_websocket(field: &'static str, url: &str) -> Result<(), RecordError> {
    let host = url.strip_prefix("wss://").filter(|host| !host.is_empty() && !host.starts_with('/'));
    let printable = url.bytes().all(|byte| byte.is_ascii_graphic());
    if host.is_none() || !printable || url.len() > URL_MAX {
        return Err(RecordError::Value {
            field,
            must: "wss://HOST[:PORT]/PATH, at most 255 printable characters",
        });
    }
    Ok(())
}

/// A coordinator's word that a TLS key is its own, given anew to each connection.
/// Signed by a key certified for [`Role::Coordinator`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The network it speaks for.
    pub network: NetworkId,
    /// Which of the network's coordinators it is.
    pub replica: u32,
    /// SHA-256 of the SubjectPublicKeyInfo (DER) of its TLS certificate.
    pub tls_key: [u8; 32],
    /// The asker's nonce, so that no old statement serves.
    pub client_nonce: [u8; 32],
    /// The coordinator's own nonce, which the asker signs next; at most [`SERVER_NONCE_MAX`] bytes.
    pub server_nonce: Vec<u8>,
    /// The coordinator's clock.
    pub time: UnixTime,
}

impl Record for Statement {
    const KIND: Kind = Kind::Statement;

    fn emit(&self) -> Result<Vec<u8>, RecordError> {
        let nonce = nonce(&self.server_nonce)?;
        let mut writer = start(self.network)?;
        writer.field(0x02, "replica", &self.replica.to_be_bytes())?;
        writer.field(0x03, "TLS key", &self.tls_key)?;
        writer.field(0x04, "client nonce", &self.client_nonce)?;
        writer.field(0x05, "server nonce", nonce)?;
        writer.field(0x06, "time", &self.time.as_millis().to_be_bytes())?;
        writer.end(PAYLOAD_MAX)
    }

    fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        let (mut fields, network) = begin(bytes)?;
        let replica = fields.array(0x02, "replica").map(u32::from_be_bytes)?;
        let tls_key = fields.array(0x03, "TLS key")?;
        let client_nonce = fields.array(0x04, "client nonce")?;
        let server_nonce = nonce(fields.require(0x05, "server nonce")?)?.to_vec();
        let time = fields.time(0x06, "time")?;
        fields.end()?;
        Ok(Self { network, replica, tls_key, client_nonce, server_nonce, time })
    }

    fn network(&self) -> NetworkId {
        self.network
    }

    fn not_after(&self) -> Option<UnixTime> {
        None
    }
}

const fn nonce(bytes: &[u8]) -> Result<&[u8], RecordError> {
    if bytes.len() > SERVER_NONCE_MAX {
        return Err(RecordError::TooMany { field: "server nonce", most: SERVER_NONCE_MAX });
    }
    Ok(bytes)
}
