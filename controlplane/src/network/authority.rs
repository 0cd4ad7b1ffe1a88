//! The signing keys of a network, and what they sign.

use std::{collections::BTreeMap, time::Duration};

use ringmesh_tunnel::{
    UnixTime,
    key::{IdentityKey, IdentitySecret, NetworkId},
    netmap::{Certificate, Envelope, Record, RecordError, Role},
};

pub use super::key::Signer;

/// How long a membership record or a policy is in force; it is renewed at half of that.
pub const RECORD_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a certificate is in force; it is renewed at half of that.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(360 * 24 * 3600);
/// How long a head may be delivered.
pub const HEAD_LIFE: Duration = Duration::from_secs(3600);

/// Why something cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotSign {
    /// This coordinator does not hold the key.
    #[error("this coordinator does not hold the {0} key of the network")]
    NoKey(Signer),
    /// The network has no relay of a coordinator's.
    #[error("no coordinator runs a relay for this network")]
    NoRelay,
    /// The record breaks one of its own rules.
    #[error("the record cannot be signed: {0}")]
    Record(#[from] RecordError),
}

/// The secret keys that a coordinator holds of a network.
#[derive(Debug, Default)]
pub struct Authority(BTreeMap<Signer, IdentitySecret>);

impl Authority {
    /// Makes a new set of keys: a new network.
    #[must_use]
    pub fn generate() -> Self {
        Self(Signer::ALL.into_iter().map(|signer| (signer, IdentitySecret::generate())).collect())
    }

    pub(super) fn insert(&mut self, signer: Signer, key: IdentitySecret) {
        self.0.insert(signer, key);
    }

    /// The keys with their owners.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Signer, &IdentitySecret)> {
        self.0.iter().map(|(signer, key)| (*signer, key))
    }

    /// The secret key of `signer`.
    ///
    /// # Errors
    /// [`CannotSign::NoKey`].
    pub fn key(&self, signer: Signer) -> Result<&IdentitySecret, CannotSign> {
        self.0.get(&signer).ok_or(CannotSign::NoKey(signer))
    }

    /// The root's public key, which names the network.
    ///
    /// # Errors
    /// [`CannotSign::NoKey`].
    pub fn root_key(&self) -> Result<IdentityKey, CannotSign> {
        Ok(self.key(Signer::Root)?.public_key())
    }

    /// Signs a record with the key of `role`.
    ///
    /// # Errors
    /// [`CannotSign`].
    pub fn sign(&self, role: Role, record: &impl Record) -> Result<Envelope, CannotSign> {
        Ok(Envelope::sign(record, self.key(Signer::Role(role))?)?)
    }

    /// Certifies the key of `role` by the root until `now` plus [`CERTIFICATE_LIFE`].
    ///
    /// # Errors
    /// [`CannotSign`].
    pub fn certify(
        &self,
        network: NetworkId,
        role: Role,
        serial: u64,
        now: UnixTime,
    ) -> Result<Envelope, CannotSign> {
        let key = self.key(Signer::Role(role))?.public_key();
        let not_after = now.saturating_add(CERTIFICATE_LIFE);
        let certificate = Certificate { network, role, key, serial, not_after };
        Ok(Envelope::sign(&certificate, self.key(Signer::Root)?)?)
    }
}
