//! Envelopes: bytes that were signed once and travel as they are.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use core::fmt;

use sha2::{Digest as _, Sha256};

use super::codec::{Reader, RecordError};
use super::limits::PAYLOAD_MAX;
use super::record::Record;
use crate::key::{BadSignature, IdentityKey, IdentitySecret, Label, Signature};

/// What an envelope holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A [`Certificate`](super::Certificate).
    Certificate = 1,
    /// A [`Member`](super::Member).
    Member = 2,
    /// A [`Policy`](super::Policy).
    Policy = 3,
    /// A [`Head`](super::Head).
    Head = 4,
    /// A [`NodeRecord`](super::NodeRecord).
    NodeRecord = 5,
    /// A [`Statement`](super::Statement).
    Statement = 6,
}

impl Kind {
    /// Returns the number by which the kind travels.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the kind of a number, if there is one.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Certificate,
            2 => Self::Member,
            3 => Self::Policy,
            4 => Self::Head,
            5 => Self::NodeRecord,
            6 => Self::Statement,
            _ => return None,
        })
    }

    /// Returns the purpose with which such an envelope is signed; this is what ties the kind to the signature.
    pub const fn label(self) -> Label {
        match self {
            Self::Certificate => Label::Certificate,
            Self::Member => Label::Member,
            Self::Policy => Label::Policy,
            Self::Head => Label::Head,
            Self::NodeRecord => Label::NodeRecord,
            Self::Statement => Label::Statement,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Member => "membership record",
            Self::Policy => "policy",
            Self::Head => "head",
            Self::NodeRecord => "node record",
            Self::Statement => "coordinator statement",
        })
    }
}

/// Why parts are not an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The kind's number is none we know.
    #[error("an envelope is of kind {found}, which this program does not know: update this program")]
    Kind {
        /// The number.
        found: u32,
    },
    /// The payload exceeds [`PAYLOAD_MAX`].
    #[error("an envelope holds {found} bytes, beyond the limit of {PAYLOAD_MAX}")]
    TooLong {
        /// The payload's length, bytes.
        found: usize,
    },
    /// The signer is no Ed25519 key.
    #[error("an envelope's signer is no key: {0}")]
    Signer(#[from] crate::key::BadIdentityKey),
    /// The signature is not 64 bytes.
    #[error("an envelope's signature is not 64 bytes: it was cut off or altered on its way")]
    Signature,
    /// The bytes end before the envelope does.
    #[error("an envelope ends early: it was cut off on its way")]
    Truncated,
}

/// Signed bytes: `payload` is what was signed, never a re-serialisation.
///
/// Holding one means nothing: only a [`Chain`](super::Chain) or a [`NetworkMap`](super::NetworkMap) says whether the
/// signer had the right to sign it.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What the payload is.
    pub kind: Kind,
    /// The record's bytes.
    pub payload: Vec<u8>,
    /// The key that signed.
    pub signer: IdentityKey,
    /// The signature over the kind's label and the payload.
    pub signature: Signature,
}

impl Envelope {
    /// Puts `record` into bytes and signs them.
    ///
    /// # Errors
    ///
    /// If the record breaks one of its bounds or rules, so that every verifier would refuse it.
    pub fn sign<R: Record>(record: &R, signer: &IdentitySecret) -> Result<Self, RecordError> {
        Ok(Self::sign_bytes(R::KIND, record.emit()?, signer))
    }

    /// Signs bytes as they are, whatever they say.
    pub fn sign_bytes(kind: Kind, payload: Vec<u8>, signer: &IdentitySecret) -> Self {
        let signature = signer.sign(kind.label(), &payload);
        Self { kind, payload, signer: signer.public_key(), signature }
    }

    /// Puts an envelope together from its parts as they travel.
    ///
    /// # Errors
    ///
    /// If a part is not what it must be, or the payload exceeds its bound.
    pub fn from_parts(
        kind: u32,
        payload: Vec<u8>,
        signer: &[u8],
        signature: &[u8],
    ) -> Result<Self, EnvelopeError> {
        if payload.len() > PAYLOAD_MAX {
            return Err(EnvelopeError::TooLong { found: payload.len() });
        }
        let number = u8::try_from(kind).ok();
        let kind = number.and_then(Kind::from_number).ok_or(EnvelopeError::Kind { found: kind })?;
        let signer = IdentityKey::try_from(signer)?;
        let signature = Signature::try_from(signature).map_err(|_| EnvelopeError::Signature)?;
        Ok(Self { kind, payload, signer, signature })
    }

    /// Checks that `signer` signed the payload as a record of this kind. Says nothing of the signer's right to do so.
    ///
    /// # Errors
    ///
    /// [`BadSignature`] if not.
    pub fn check_signature(&self) -> Result<(), BadSignature> {
        self.signer.verify(self.kind.label(), &self.payload, &self.signature)
    }

    /// Returns the hash by which a map's digest names the envelope: SHA-256 over 0x02 and its [bytes](Self::emit).
    ///
    /// 0x02 keeps it apart from the leaves (0x00) and nodes (0x01) of a policy's tree.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::new().chain_update([2]).chain_update(self.emit()).finalize().into()
    }

    /// Puts the envelope into bytes: kind (1), signer (32), signature (64), length of the payload (4), payload.
    pub fn emit(&self) -> Vec<u8> {
        // A payload too long for the length field cannot verify anywhere; its hash must only be some hash.
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let kind = [self.kind.number()];
        [&kind, self.signer.as_bytes().as_slice(), self.signature.as_bytes(), &length, &self.payload].concat()
    }

    /// Reads exactly one envelope.
    ///
    /// # Errors
    ///
    /// If the bytes end early or late, or a part is not what it must be.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let mut reader = Reader::new(bytes);
        let envelope = Self::take(&mut reader)?;
        reader.end().map_err(|_| EnvelopeError::Truncated)?;
        Ok(envelope)
    }

    /// Takes an envelope off the front of `reader`.
    pub(super) fn take(reader: &mut Reader<'_>) -> Result<Self, EnvelopeError> {
        let cut = |_: RecordError| EnvelopeError::Truncated;
        let kind = reader.u8().map_err(cut)?;
        let signer: [u8; 32] = reader.array().map_err(cut)?;
        let signature: [u8; 64] = reader.array().map_err(cut)?;
        let length = reader.u32().map_err(cut)?;
        let length = usize::try_from(length).map_err(|_| EnvelopeError::Truncated)?;
        let payload = reader.take(length).map_err(cut)?;
        if length > PAYLOAD_MAX {
            return Err(EnvelopeError::TooLong { found: length });
        }
        Self::from_parts(kind.into(), payload.to_vec(), &signer, &signature)
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({}, {} bytes, by {:?})", self.kind, self.payload.len(), self.signer)
    }
}
