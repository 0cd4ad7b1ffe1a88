//! The chain of trust: from a network's root key by its certificates to every other signer.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::envelope::{Envelope, Kind};
use super::error::MapError;
use super::held::Held;
use super::limits::CERTIFICATES_MAX;
use super::record::{Certificate, Record, Role, Statement};
use crate::key::{IdentityKey, NetworkId};
use crate::time::UnixTime;

/// Whether what is verified comes fresh from a coordinator, and at what time, or was already held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    /// Everything must be in force now.
    Fresh(UnixTime),
    /// Expiry is for the map's readers to judge.
    Kept,
}

/// A network's root key and what it has certified.
///
/// ```text
/// chain.add(certificate, now)?;                 // only the root's word adds a key
/// let member: Member = chain.open(&envelope, now)?;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    network: NetworkId,
    root: IdentityKey,
    certificates: BTreeMap<(Role, IdentityKey), Arc<Held<Certificate>>>,
}

impl Chain {
    /// Starts with the root key alone, as a join token pins it.
    pub const fn new(network: NetworkId, root: IdentityKey) -> Self {
        Self { network, root, certificates: BTreeMap::new() }
    }

    /// Returns the network.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Returns the root key.
    pub const fn root(&self) -> IdentityKey {
        self.root
    }

    /// Adds a certificate that the root signed and that is in force at `now`.
    ///
    /// # Errors
    ///
    /// If it is not the root's, not of this network, expired, older than one held for the same key and role, or one too
    /// many.
    pub fn add(&mut self, envelope: Envelope, now: UnixTime) -> Result<(), MapError> {
        self.add_judged(envelope, Judge::Fresh(now))
    }

    pub(super) fn add_judged(&mut self, envelope: Envelope, judge: Judge) -> Result<(), MapError> {
        let record: Certificate = self.open_judged(&envelope, judge)?;
        let at = (record.role, record.key);
        match self.certificates.get(&at) {
            Some(held) if held.envelope == envelope => return Ok(()),
            Some(held) => check_serial(Kind::Certificate, held.record.serial, record.serial)?,
            None if self.certificates.len() >= CERTIFICATES_MAX => {
                return Err(MapError::TooMany { what: "certificates", most: CERTIFICATES_MAX });
            }
            None => {}
        }
        self.certificates.insert(at, Held::new(record, envelope));
        Ok(())
    }

    /// Verifies an envelope whole: its kind, its signer's right to sign such at `now`, the signature, the record's form,
    /// network and expiry.
    ///
    /// Node records are not opened here: their signer's right comes from the member they are about.
    ///
    /// # Errors
    ///
    /// A [`MapError`] that says which of these does not hold.
    pub fn open<R: Record>(&self, envelope: &Envelope, now: UnixTime) -> Result<R, MapError> {
        self.open_judged(envelope, Judge::Fresh(now))
    }

    pub(super) fn open_judged<R: Record>(&self, envelope: &Envelope, judge: Judge) -> Result<R, MapError> {
        check_kind::<R>(envelope)?;
        self.check_authority(envelope.kind, envelope.signer, judge)?;
        open_signed(self.network, envelope, judge)
    }

    /// Verifies a coordinator's answer to a challenge: its signature, network and both nonces. Whether `tls_key` is the
    /// key that was seen is for the caller to compare.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`MapError::Replayed`] if a nonce is not the one expected.
    pub fn open_statement(
        &self,
        envelope: &Envelope,
        client_nonce: &[u8; 32],
        server_nonce: &[u8],
        now: UnixTime,
    ) -> Result<Statement, MapError> {
        let statement: Statement = self.open(envelope, now)?;
        if statement.client_nonce != *client_nonce || statement.server_nonce != server_nonce {
            return Err(MapError::Replayed);
        }
        Ok(statement)
    }

    /// Checks that `signer` may sign records of `kind`.
    pub(super) fn check_authority(
        &self,
        kind: Kind,
        signer: IdentityKey,
        judge: Judge,
    ) -> Result<(), MapError> {
        let refused = MapError::NotAuthorized { kind, signer };
        let role = match kind {
            Kind::Certificate => return if signer == self.root { Ok(()) } else { Err(refused) },
            Kind::Member if signer == self.root => return Ok(()),
            Kind::Member => Role::Admission,
            Kind::Policy => Role::Policy,
            Kind::Head => Role::Head,
            Kind::Statement => Role::Coordinator,
            Kind::NodeRecord => return Err(refused),
        };
        let not_after = self.certified_until(role, signer).ok_or(refused)?;
        match judge {
            Judge::Fresh(now) if not_after <= now => {
                Err(MapError::CertificateExpired { kind, role, not_after })
            }
            Judge::Fresh(_) | Judge::Kept => Ok(()),
        }
    }

    /// Returns until when `key` may sign for `role`.
    fn certified_until(&self, role: Role, key: IdentityKey) -> Option<UnixTime> {
        self.certificates.get(&(role, key)).map(|held| held.record.not_after)
    }

    /// Returns until when a verified record counts: its own end or, if that comes first, that of the certificate behind it.
    pub(super) fn in_force_until<R: Record>(&self, held: &Held<R>) -> UnixTime {
        let end = |until: Option<UnixTime>| until.unwrap_or(UnixTime::from_millis(u64::MAX));
        let signer = held.envelope.signer;
        let certified = match R::KIND {
            Kind::Member if signer == self.root => None,
            Kind::Member => Some(self.certified_until(Role::Admission, signer).unwrap_or(UnixTime::EPOCH)),
            Kind::Policy => Some(self.certified_until(Role::Policy, signer).unwrap_or(UnixTime::EPOCH)),
            Kind::Certificate | Kind::Head | Kind::NodeRecord | Kind::Statement => None,
        };
        end(held.record.not_after()).min(end(certified))
    }

    /// Returns the certificates, in order of role and key.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.values().map(|held| &held.record)
    }

    pub(super) fn held(&self) -> impl Iterator<Item = &Arc<Held<Certificate>>> {
        self.certificates.values()
    }
}

/// Checks that an envelope says it is of the kind that belongs here.
pub(super) const fn check_kind<R: Record>(envelope: &Envelope) -> Result<(), MapError> {
    if envelope.kind.number() == R::KIND.number() {
        return Ok(());
    }
    Err(MapError::WrongKind { expected: R::KIND, found: envelope.kind })
}

/// Checks that a record does not go back behind one that was seen. A re-sent envelope is for the caller to let pass.
pub(super) const fn check_serial(kind: Kind, held: u64, offered: u64) -> Result<(), MapError> {
    if offered > held { Ok(()) } else { Err(MapError::OlderSerial { kind, held, offered }) }
}

/// Verifies everything of an envelope but its signer's right.
pub(super) fn open_signed<R: Record>(
    network: NetworkId,
    envelope: &Envelope,
    judge: Judge,
) -> Result<R, MapError> {
    let kind = envelope.kind;
    envelope.check_signature().map_err(|_| MapError::BadSignature { kind })?;
    let record = R::parse(&envelope.payload).map_err(|cause| MapError::Record { kind, cause })?;
    if record.network() != network {
        return Err(MapError::OtherNetwork { kind });
    }
    match (judge, record.not_after()) {
        (Judge::Fresh(now), Some(not_after)) if not_after <= now => {
            Err(MapError::Expired { kind, not_after, now })
        }
        (Judge::Fresh(_) | Judge::Kept, _) => Ok(record),
    }
}
