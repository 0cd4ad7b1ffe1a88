//! What lies in the store, as JSON: readable with the `sqlite3` program, and open to new fields.
//!
//! Secrets are wrapped before they get here (see [`crate::vault`]); a token's row has only its public key.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ringmesh_tunnel::{
    UnixTime,
    key::{IdentityKey, NodeId, PublicKey},
    netmap::Envelope,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _};

/// Bytes that are base64 in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

impl From<&Envelope> for Blob {
    fn from(envelope: &Envelope) -> Self {
        Self(envelope.emit())
    }
}

/// A network: what is fixed when it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRow {
    pub(crate) name: String,
    pub(crate) root_key: Blob,
    pub(crate) ipv4_pool: String,
    pub(crate) zone: String,
    pub(crate) created_ms: u64,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// The signed record, which holds nearly everything.
    pub(crate) member: Blob,
    pub(crate) enrolled_ms: u64,
    #[serde(default)]
    pub(crate) host_name: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) version: String,
    /// Removed by itself when it stays away.
    #[serde(default)]
    pub(crate) ephemeral: bool,
    /// Of a stock device: the wrapped pre-shared key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) psk: Option<Blob>,
}

/// A member that was removed: enough to tell it so, and never to let its key in again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemovedRow {
    pub(crate) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity_key: Option<Blob>,
    pub(crate) removed_ms: u64,
}

/// Who has, or last had, an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddressRow {
    pub(crate) node: String,
    /// When the node was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released_ms: Option<u64>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    pub(crate) public_key: Blob,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: u64,
    /// 0: unlimited.
    pub(crate) max_uses: u32,
    pub(crate) uses: u32,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    #[serde(default)]
    pub(crate) ephemeral: bool,
    #[serde(default)]
    pub(crate) revoked: bool,
    /// Makes relays of the nodes that join with it.
    #[serde(default)]
    pub(crate) relay: bool,
}

/// The policy with its leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyRow {
    pub(crate) policy: Blob,
    pub(crate) leaves: Vec<Blob>,
    /// Which of the policies applied so far it is: the serial with which it came in force. A renewal keeps it. `None`: the one that
    /// the network was made with, which nobody wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u64>,
}

/// A policy that was applied once. The commit that wrote this row put it in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyVersionRow {
    /// The file, as it was written.
    pub(crate) text: String,
    pub(crate) applied_ms: u64,
    /// A user of the coordinator's machine.
    pub(crate) applied_by: String,
    #[serde(default)]
    pub(crate) comment: String,
    pub(crate) rules: u32,
}

/// A stored value that cannot be what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored value of {key} cannot be used: {detail}")]
pub struct Damage {
    /// Where it lies.
    pub key: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Damage {
    pub(crate) fn at(key: impl ToString, detail: impl ToString) -> Self {
        Self { key: key.to_string(), detail: detail.to_string() }
    }
}

/// Puts a row into bytes.
pub(crate) fn emit(row: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("invariant: rows have string keys and no failing fields")
}

/// Reads a row.
pub(crate) fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Damage> {
    serde_json::from_slice(value).map_err(|error| Damage::at(key, error))
}

/// Reads a node id of an index.
pub(crate) fn parse_node(key: &str, value: &[u8]) -> Result<NodeId, Damage> {
    let text = std::str::from_utf8(value).map_err(|error| Damage::at(key, error))?;
    text.parse().map_err(|error| Damage::at(key, error))
}

/// Reads an envelope.
pub(crate) fn parse_envelope(key: &str, bytes: &[u8]) -> Result<Envelope, Damage> {
    Envelope::parse(bytes).map_err(|error| Damage::at(key, error))
}

/// Reads an Ed25519 public key.
pub(crate) fn parse_identity(key: &str, blob: &Blob) -> Result<IdentityKey, Damage> {
    IdentityKey::try_from(blob.0.as_slice()).map_err(|error| Damage::at(key, error))
}

/// A time as rows have it.
pub(crate) const fn time(ms: u64) -> UnixTime {
    UnixTime::from_millis(ms)
}

/// A noise key as store keys have it: base64 would have slashes.
pub(crate) fn hex_of_key(key: &PublicKey) -> String {
    key.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The inverse of [`hex_of_key`].
pub(crate) fn key_of_hex(text: &str) -> Option<PublicKey> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    if digits.len() == 64 { PublicKey::try_from(bytes.as_slice()).ok() } else { None }
}
