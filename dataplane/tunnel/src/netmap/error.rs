//! Why a record or an update is refused.

use crate::key::{IdentityKey, NodeId};
use crate::time::UnixTime;

use super::codec::RecordError;
use super::envelope::{EnvelopeError, Kind};
use super::record::{Position, Role};

/// Why a map refuses an update, a head or a file. The map that was asked stays as it was.
///
/// Most of these accuse the coordinator, or whoever stands between it and the node; those that more likely mean
/// a wrong clock ([`clock`](Self::clock)) or a damaged file say so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The signature does not fit.
    #[error(
        "the {kind} is not signed by the key it names: it was altered, or forged by the coordinator or someone before it"
    )]
    BadSignature {
        /// The envelope's kind.
        kind: Kind,
    },
    /// The payload is no record of its kind.
    #[error("the {kind} cannot be read: {cause}")]
    Record {
        /// The envelope's kind.
        kind: Kind,
        /// What is wrong with it.
        cause: RecordError,
    },
    /// An envelope is not an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// An envelope stands where one of another kind belongs.
    #[error("a {found} stands where a {expected} belongs: the coordinator does not follow the protocol")]
    WrongKind {
        /// What belongs there.
        expected: Kind,
        /// What is there.
        found: Kind,
    },
    /// The record speaks of another network.
    #[error(
        "the {kind} belongs to another network: the coordinator mixes up networks, or replays records of one in another"
    )]
    OtherNetwork {
        /// The envelope's kind.
        kind: Kind,
    },
    /// Nothing gives the signer the right to sign this.
    #[error(
        "the {kind} is signed by {signer}, which this network's root key has not certified for that: \
         the coordinator serves a network with another root key, or oversteps its rights"
    )]
    NotAuthorized {
        /// The envelope's kind.
        kind: Kind,
        /// The key that signed.
        signer: IdentityKey,
    },
    /// The signer's certificate has ended.
    #[error("the {kind}'s signer was certified until {} only: renew the {role} certificate, or set this machine's clock", date(*not_after))]
    CertificateExpired {
        /// The envelope's kind.
        kind: Kind,
        /// The certificate's role.
        role: Role,
        /// When the certificate ended.
        not_after: UnixTime,
    },
    /// The record has ended.
    #[error("the {kind} ended at {}, and this machine's clock says {}: the coordinator must renew it, unless the clock is wrong", date(*not_after), date(*now))]
    Expired {
        /// The envelope's kind.
        kind: Kind,
        /// When it ended.
        not_after: UnixTime,
        /// What time it is here.
        now: UnixTime,
    },
    /// The head was signed in this machine's future.
    #[error("the coordinator signed its head at {}, and this machine's clock says {}: set the clock of the machine that is wrong", date(*time), date(*now))]
    Future {
        /// When the head was signed.
        time: UnixTime,
        /// What time it is here.
        now: UnixTime,
    },
    /// A record is older than one that was held, or another of the same serial.
    #[error(
        "the {kind} has serial {offered}, and one with serial {held} was already seen: the coordinator sends old or twofold \
         records; was it restored from a backup?"
    )]
    OlderSerial {
        /// The envelope's kind.
        kind: Kind,
        /// The highest serial seen.
        held: u64,
        /// The serial of the one refused.
        offered: u64,
    },
    /// The update leads back behind what is held.
    #[error(
        "the map's position {offered} is older than {held}, which is held: the coordinator was restored from a backup, or a stale replica answers"
    )]
    OlderPosition {
        /// The position held.
        held: Position,
        /// The position of the update.
        offered: Position,
    },
    /// The head was signed before the one held, at the same position.
    #[error(
        "the head was signed at {}, before the one held, of {}: it was replayed, or the coordinator's clock was set back",
        date(*offered),
        date(*held)
    )]
    OlderHead {
        /// When the head held was signed.
        held: UnixTime,
        /// When the one refused was.
        offered: UnixTime,
    },
    /// The network's secret leads back to an epoch that has passed.
    #[error(
        "the head names epoch {offered}, and epoch {held} was already in force: it was replayed, or the coordinator was \
         restored from a backup"
    )]
    OlderEpoch {
        /// The newest epoch accepted.
        held: u64,
        /// The head's.
        offered: u64,
    },
    /// The secrets that travelled beside the map are not those its head names.
    #[error(
        "the secrets beside the map are not those that its head names: they were withheld, replayed or damaged; ask for \
         them again"
    )]
    SecretsMismatch,
    /// The update and its head disagree on where they are.
    #[error(
        "the update says position {update} and its head {head}: the coordinator does not follow the protocol"
    )]
    PositionMismatch {
        /// The update's position.
        update: Position,
        /// The head's.
        head: Position,
    },
    /// What is held after the update is not what the head names.
    #[error(
        "the update does not come to the map that its head names: something was added, left out or meant for another \
         base; ask for the full map"
    )]
    DigestMismatch,
    /// A delta, and nothing held to apply it to.
    #[error("an update of a map came before any map: ask for the full map")]
    NoBase,
    /// The node's own record is not in the map.
    #[error(
        "the map does not contain this node ({id}): the coordinator mixes up nodes, or this one was removed from the network"
    )]
    OwnRecordMissing {
        /// This node.
        id: NodeId,
    },
    /// Two records of the update are about one thing.
    #[error("the update holds two records of {what}: the coordinator does not follow the protocol")]
    Twice {
        /// What they are about.
        what: String,
    },
    /// A member is given and taken in one update.
    #[error("the update both gives and removes member {id}: the coordinator does not follow the protocol")]
    RemovedYetPresent {
        /// The member.
        id: NodeId,
    },
    /// Two members share what must be one's own.
    #[error(
        "members {one} and {other} have the same {what}: only one of them can be right; remove the other from the network"
    )]
    Shared {
        /// The first of them.
        one: NodeId,
        /// The second.
        other: NodeId,
        /// What they share.
        what: &'static str,
    },
    /// A leaf is not in the policy's tree.
    #[error(
        "rule {index} is not part of the signed policy: it was altered, or added by the coordinator or someone before it"
    )]
    Unproven {
        /// The place it claims.
        index: u64,
    },
    /// A leaf is in the tree and cannot be read.
    #[error("rule {index} of the policy cannot be read: {cause}")]
    Leaf {
        /// Its place.
        index: u64,
        /// What is wrong with it.
        cause: RecordError,
    },
    /// Leaves came without the policy that proves them.
    #[error("rules came without the policy that proves them: the coordinator does not follow the protocol")]
    RulesWithoutPolicy,
    /// A node record is not by the member it is about.
    #[error(
        "the record of node {id} is not signed by that node's identity key: it was forged by the coordinator or another node"
    )]
    NotByNode {
        /// The node.
        id: NodeId,
    },
    /// A node record is about a node that is no member, or a stock device.
    #[error(
        "a node record is about {id}, which is no member that could sign one: the coordinator does not follow the protocol"
    )]
    NoSuchMember {
        /// The node.
        id: NodeId,
    },
    /// A statement answers another challenge.
    #[error("the coordinator's statement answers another challenge than ours: it was replayed")]
    Replayed,
    /// A list is beyond its bound.
    #[error("the map has more than {most} {what}, beyond what this program takes")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The most there may be.
        most: usize,
    },
    /// The stored map is damaged.
    #[error("the stored map is damaged: delete it, and the node will fetch a new one from its coordinator")]
    Damaged,
    /// The stored map is of a newer program.
    #[error(
        "the stored map has form {found}, written by a newer program: update this one, or delete the file"
    )]
    NewerStore {
        /// The form's number.
        found: u8,
    },
    /// The stored map is another's.
    #[error(
        "the stored map belongs to another network or node: it was copied here; delete it, and the node will fetch its own"
    )]
    OtherStore,
}

impl MapError {
    /// Tells whether a wrong clock, here or there, is a likely cause.
    pub const fn clock(&self) -> bool {
        matches!(
            self,
            Self::Expired { .. }
                | Self::CertificateExpired { .. }
                | Self::Future { .. }
                | Self::OlderHead { .. }
        )
    }
}

/// Writes a time for people: `2026-01-31T12:00:00Z` (RFC 3339), by the civil calendar.
fn date(time: UnixTime) -> String {
    let seconds = time.as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`: years begin in March, so that a leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_by_the_civil_calendar() {
        let at = |seconds| date(UnixTime::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_709_164_799), "2024-02-28T23:59:59Z");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(at(1_767_225_599), "2025-12-31T23:59:59Z");
        date(UnixTime::from_millis(u64::MAX));
    }
}
