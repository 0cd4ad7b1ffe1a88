//! Join tokens: all that a machine needs to become a node, in one line of text.
//!
//! The text is `mesh1_` and, in base64url without padding (RFC 4648 §5):
//!
//! | part | bytes |
//! |---|---|
//! | form | 1, always 1 |
//! | root key (Ed25519) | 32; its hash is the network id |
//! | token id | 8 |
//! | secret, an Ed25519 seed | 32 |
//! | coordinators, each `host:port` after its length | 1 + as many, to the end |
//! | check | 4: SHA-256 of `"ringmesh token"` and all before it |

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::fmt;
use core::net::Ipv6Addr;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::key::{IdentityKey, IdentitySecret, Label, NetworkId, Signature, TokenId};
use crate::netmap::{RecordError, codec::Reader};

/// The most coordinators a token names.
pub const COORDINATORS_MAX: usize = 8;
/// The longest `host:port`, bytes: a name of 253, a colon and five digits do not reach it, and one length byte holds it.
const COORDINATOR_MAX: usize = 255;
/// Room for a token, bytes: with everything it may have, its text needs about 2,800.
const TEXT_MAX: usize = 4096;
/// What every token begins with, but for the number of its form.
const MARK: &str = "mesh";
const FORM: u8 = 1;

/// Why a text is not a token, or a token cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is something else.
    #[error(
        "this is not a join token: one begins with `mesh1_`; `meshctl token create` at the coordinator prints it"
    )]
    NotAToken,
    /// The text was a token once.
    #[error("the join token is truncated or mistyped (its checksum does not fit): copy the whole line again")]
    Damaged,
    /// A newer program made it.
    #[error("the join token was made by a newer Ringmesh: update this program, then join again")]
    NewerVersion,
    /// The checksum fits and the content makes no sense.
    #[error(
        "the join token was made wrongly, its {part} is invalid: make a new one with `meshctl token create`"
    )]
    Invalid {
        /// What is wrong.
        part: &'static str,
    },
}

/// The secret of a join token, an Ed25519 seed. It is never sent; the coordinator knows its public key.
pub struct TokenSecret(IdentitySecret);

impl TokenSecret {
    /// Makes a new one from the operating system's randomness.
    pub fn generate() -> Self {
        Self(IdentitySecret::generate())
    }

    /// Takes the 32-byte seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(IdentitySecret::from_seed(seed))
    }

    /// Returns what the coordinator stores.
    pub fn public_key(&self) -> IdentityKey {
        self.0.public_key()
    }

    /// Signs an enrolment [transcript](super::transcript::Enroll), with [`Label::EnrollToken`].
    pub fn sign(&self, transcript: &[u8]) -> Signature {
        self.0.sign(Label::EnrollToken, transcript)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// All that a machine needs to become a node of a network.
#[derive(Debug)]
pub struct JoinToken {
    root: IdentityKey,
    token: TokenId,
    secret: TokenSecret,
    coordinators: Vec<String>,
}

impl JoinToken {
    /// Makes a token for the network of `root`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Invalid`] if there is no coordinator, more than [`COORDINATORS_MAX`], or one that is not `host:port`.
    pub fn new(
        root: IdentityKey,
        token: TokenId,
        secret: TokenSecret,
        coordinators: Vec<String>,
    ) -> Result<Self, TokenError> {
        if coordinators.is_empty() || coordinators.len() > COORDINATORS_MAX {
            return Err(TokenError::Invalid { part: "count of coordinators" });
        }
        if !coordinators.iter().all(|coordinator| is_host_and_port(coordinator)) {
            return Err(TokenError::Invalid { part: "coordinator address" });
        }
        Ok(Self { root, token, secret, coordinators })
    }

    /// Returns the network's id, which follows from its root key.
    pub fn network(&self) -> NetworkId {
        NetworkId::of_root(&self.root)
    }

    /// Returns the network's root key: the pin from which all trust follows.
    pub const fn root(&self) -> IdentityKey {
        self.root
    }

    /// Returns the token's public name.
    pub const fn token(&self) -> TokenId {
        self.token
    }

    /// Returns the addresses of coordinators, `host:port`, IPv6 in brackets; at least one.
    pub fn coordinators(&self) -> &[String] {
        &self.coordinators
    }

    /// Returns the secret.
    pub const fn secret(&self) -> &TokenSecret {
        &self.secret
    }

    /// Shows the token's text, secret and all. For the one time it is handed to whoever made it.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(TEXT_MAX));
        bytes.push(FORM);
        bytes.extend(self.root.as_bytes());
        bytes.extend(self.token.as_bytes());
        bytes.extend(self.secret.0.seed());
        for coordinator in &self.coordinators {
            // `new` refuses longer ones.
            bytes.push(u8::try_from(coordinator.len()).unwrap_or(u8::MAX));
            bytes.extend(coordinator.as_bytes());
        }
        let check = checksum(&bytes);
        bytes.extend(check);
        // Room for all of it at once, so that growing leaves no copy of the secret behind.
        let mut text = Zeroizing::new(String::with_capacity(TEXT_MAX));
        text.push_str("mesh1_");
        URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
        text
    }

    /// Reads what the checksum covers.
    fn parse(content: &[u8]) -> Result<Self, TokenError> {
        let cut = |_: RecordError| TokenError::Invalid { part: "length" };
        let mut reader = Reader::new(content);
        if reader.u8().map_err(cut)? != FORM {
            return Err(TokenError::NewerVersion);
        }
        let root = IdentityKey::from_bytes(reader.array().map_err(cut)?);
        let root = root.map_err(|_| TokenError::Invalid { part: "root key" })?;
        let token = TokenId::from_bytes(reader.array().map_err(cut)?);
        let seed = Zeroizing::new(reader.array().map_err(cut)?);
        let secret = TokenSecret::from_seed(*seed);
        let mut coordinators = Vec::new();
        while !reader.is_empty() && coordinators.len() <= COORDINATORS_MAX {
            let coordinator = str::from_utf8(reader.short().map_err(cut)?);
            let coordinator = coordinator.map_err(|_| TokenError::Invalid { part: "coordinator address" })?;
            coordinators.push(coordinator.to_owned());
        }
        Self::new(root, token, secret, coordinators)
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Reads a token's text; white space around it is of no matter.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let (form, encoded) = split_mark(text.trim()).ok_or(TokenError::NotAToken)?;
        if form > u64::from(FORM) {
            return Err(TokenError::NewerVersion);
        }
        // Into a buffer of ours, so that no text is too long and no copy of the secret stays behind unwiped.
        let mut bytes = Zeroizing::new([0; TEXT_MAX]);
        let length = URL_SAFE_NO_PAD.decode_slice(encoded, bytes.as_mut_slice());
        let length = length.map_err(|_| TokenError::Damaged)?;
        let bytes = bytes.get(..length).ok_or(TokenError::Damaged)?;
        let (content, check) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if checksum(content) != *check {
            return Err(TokenError::Damaged);
        }
        Self::parse(content)
    }
}

/// Splits `mesh<number>_<rest>`; `None` if the text is nothing of the kind.
fn split_mark(text: &str) -> Option<(u64, &str)> {
    let (form, encoded) = text.strip_prefix(MARK)?.split_once('_')?;
    // One spelling of each number: no sign, no zero before it.
    let plain = form.bytes().all(|byte| byte.is_ascii_digit()) && !form.starts_with('0');
    plain.then_some((form.parse().ok()?, encoded))
}

fn checksum(content: &[u8]) -> [u8; 4] {
    let hash: [u8; 32] =
        Sha256::new().chain_update(b"ringmesh token").chain_update(content).finalize().into();
    let [a, b, c, d, ..] = hash;
    [a, b, c, d]
}

/// Tells whether a text is `host:port`: a name, an IPv4 address or a bracketed IPv6 address, and a port from 1.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let port_fits =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            !host.is_empty() && host.bytes().all(plain)
        }
    };
    text.len() <= COORDINATOR_MAX && port_fits && host_fits
}
