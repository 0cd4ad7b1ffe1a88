//! What a node signs to prove itself: all that makes a connection this one, so that no proof serves anywhere else.
//!
//! Every part has a fixed width or its length before it, so that no two transcripts have the same bytes.

use crate::key::{IdentityKey, NetworkId, NodeId, PublicKey, TokenId};

/// The label with which both ends take 32 bytes from their TLS connection (RFC 8446 §7.5), with an empty context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-ringmesh-v1";

/// What ties a proof to a connection and a challenge.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The network.
    pub network: NetworkId,
    /// The node's nonce, sent in its challenge.
    pub client_nonce: &'a [u8; 32],
    /// The coordinator's nonce, from its statement.
    pub server_nonce: &'a [u8],
    /// 32 bytes that only the two ends of the TLS connection have, if it is direct: no proxy's connection has the same.
    pub exporter: Option<&'a [u8; 32]>,
}

impl Connection<'_> {
    fn begin(&self, purpose: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        put(&mut bytes, purpose);
        bytes.extend(self.network.as_bytes());
        bytes.extend(self.client_nonce);
        put(&mut bytes, self.server_nonce);
        match self.exporter {
            Some(exporter) => {
                bytes.push(1);
                bytes.extend(exporter);
            }
            None => bytes.push(0),
        }
        bytes
    }
}

/// What a node signs to enrol: with the token's secret ([`Label::EnrollToken`](crate::key::Label::EnrollToken)) and with its
/// identity key ([`Label::Enroll`](crate::key::Label::Enroll)).
#[derive(Debug, Clone, Copy)]
pub struct Enroll<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// The token's name.
    pub token: TokenId,
    /// The key it will shake hands with.
    pub noise_key: PublicKey,
    /// Who it will be.
    pub identity_key: IdentityKey,
    /// The name it wishes for, or nothing.
    pub name: &'a str,
    /// Whether it wants to be a relay, not an ordinary node.
    pub relay: bool,
}

/// Returns the bytes to sign for an enrolment.
pub fn enroll(parts: &Enroll<'_>) -> Vec<u8> {
    let mut bytes = parts.connection.begin(b"enroll");
    bytes.extend(parts.token.as_bytes());
    bytes.extend(parts.noise_key.as_bytes());
    bytes.extend(parts.identity_key.as_bytes());
    put(&mut bytes, parts.name.as_bytes());
    bytes.push(parts.relay.into());
    bytes
}

/// What a node signs to open its map stream, with its identity key ([`Label::Sync`](crate::key::Label::Sync)).
#[derive(Debug, Clone, Copy)]
pub struct Sync<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// The node.
    pub id: NodeId,
    /// Its key.
    pub identity_key: IdentityKey,
}

/// Returns the bytes to sign for a map stream.
pub fn sync(parts: &Sync<'_>) -> Vec<u8> {
    let mut bytes = parts.connection.begin(b"sync");
    bytes.extend(parts.id.as_bytes());
    bytes.extend(parts.identity_key.as_bytes());
    bytes
}

/// What a node signs to remove itself, with its identity key ([`Label::Leave`](crate::key::Label::Leave)).
#[derive(Debug, Clone, Copy)]
pub struct Leave<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// The node.
    pub id: NodeId,
    /// Its key.
    pub identity_key: IdentityKey,
}

/// Returns the bytes to sign for a removal by the node itself.
pub fn leave(parts: &Leave<'_>) -> Vec<u8> {
    let mut bytes = parts.connection.begin(b"leave");
    bytes.extend(parts.id.as_bytes());
    bytes.extend(parts.identity_key.as_bytes());
    bytes
}

/// Writes a part after its length (4 bytes).
fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    // Nothing that long can be received; if it could, its transcript would be one that fits nothing.
    bytes.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(part);
}
