//! Why a request is refused, and what is said about it: the one table from our errors to gRPC's.

use std::{collections::HashMap, fmt::Display, time::Duration};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::netmap::MapError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    network::{
        api_keys, authority::CannotSign, enroll, events, map::NoMap, members, policies, requests, tokens,
        trace,
    },
    store::StoreError,
};

/// The domain of our reasons in `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "ringmesh";

/// When somebody who was put off may come again.
const RETRY: Duration = Duration::from_secs(2);

/// A refused request.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{field} is not valid: {reason}")]
    Field { field: &'static str, reason: String },
    #[error("there is no such network here; is the join token from another coordinator?")]
    NetworkUnknown,
    #[error("there is no network {0:?}; see: meshctl network list")]
    NetworkNotFound(String),
    #[error("this coordinator serves several networks ({0}); say which one (-n NAME)")]
    NetworkAmbiguous(String),
    #[error("a network named {0:?} exists already; choose another name")]
    NetworkExists(String),
    #[error("the join token is not valid for this network; ask for a new one (meshctl token create)")]
    Token,
    #[error(
        "the proof of identity does not fit this connection: a signature, a nonce older than a minute, or a proxy that \
         was not noticed; connect again"
    )]
    Proof,
    #[error("this node is not known to the network; join again")]
    NodeUnknown,
    #[error(
        "this node was removed from the network; to come back it needs a new identity key and a join token"
    )]
    NodeRemoved,
    #[error("the session is not that of an open map stream; open one first")]
    NoSession,
    #[error(
        "this is the relay that the coordinator itself runs, and it cannot be removed while it does; to go without a relay, set \
         enabled = false in [relay] of coordinator.toml and restart the coordinator"
    )]
    RelayInUse,
    #[error(
        "this coordinator runs no relay; set enabled = true in [relay] of coordinator.toml and restart it"
    )]
    NoRelay,
    #[error(
        "the relay of this coordinator does not serve this network at the moment; it is being started or told again: see the \
         coordinator's log"
    )]
    RelayDown,
    #[error("this is not permitted here")]
    NotPermitted,
    #[error(
        "this needs an API key: send it as `authorization: Bearer meshkey1_...` (meshctl key create makes one on the coordinator)"
    )]
    CredentialMissing,
    #[error(transparent)]
    Credential(#[from] api_keys::Denied),
    #[error("the API key is read-only, and this may change something")]
    ReadOnly,
    #[error("the API key is for one network, and this concerns the whole coordinator")]
    NotOfOneNetwork,
    #[error("user {uid} may not give orders to this coordinator: only root and its own user may (use sudo)")]
    NotOperator { uid: u32 },
    #[error("this connection is about to end; connect again")]
    ConnectionEnds,
    #[error("the request took longer than it may; ask for less, or wait for less")]
    TooLong,
    #[error("too many failed attempts from this address; wait a minute")]
    Barred,
    #[error("too many challenges on one connection; connect again")]
    TooManyChallenges,
    #[error("another connection of this node took over; two machines may be using the same identity")]
    TakenOver,
    #[error("nothing was heard from the node for too long")]
    Silent,
    #[error("the coordinator is shutting down; try another one, or again in a moment")]
    ShuttingDown,
    #[error("too many changes at once; try again")]
    Contended,
    #[error("other policies are being compiled, and that takes long; try again")]
    Compiling,
    #[error("the node record is refused: {0}")]
    NodeRecord(String),
    #[error(
        "the clock of this node is off: its record is of {record_ms}, here it is {now_ms} (ms since 1970)"
    )]
    Clock { record_ms: u64, now_ms: u64 },
    #[error("the first request of a map stream must be a hello, and there must be only one")]
    NoHello,
    #[error(transparent)]
    Enroll(#[from] enroll::Refusal),
    #[error(transparent)]
    Member(#[from] members::Refusal),
    #[error(transparent)]
    TokenRequest(#[from] tokens::Refusal),
    #[error(transparent)]
    ApiKeyRequest(#[from] api_keys::Refusal),
    /// What is wrong with a policy file, each thing with its place.
    #[error("the policy is refused, and the one before stays in force:\n{0}")]
    Policy(String),
    /// What is wrong with an earlier one by now.
    #[error("the policy of r{to} cannot come in force again, as the network has changed since:\n{problems}")]
    Rollback { to: u64, problems: String },
    #[error(transparent)]
    PolicyRequest(#[from] policies::Refusal),
    #[error(transparent)]
    TraceRequest(trace::Refusal),
    #[error(transparent)]
    Repeat(#[from] requests::Refusal),
    #[error(transparent)]
    Events(#[from] events::Unknown),
    #[error("events are not read as fast as they come; watch again after the last revision that was told")]
    TooSlow,
    #[error("{most} are watching the events of this network already; let some of them go")]
    TooManyWatchers { most: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    CannotSign(#[from] CannotSign),
    #[error("the network map cannot be made: {0}")]
    NoMap(NoMap),
    #[error("the join token cannot be written: {0}")]
    CannotWriteToken(String),
}

impl Refused {
    /// A field of the request is not what it must be.
    pub(crate) fn field<E: Display>(field: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::Field { field, reason: reason.to_string() }
    }

    /// Whether it counts as an attempt to guess a secret. A node id is none: whoever asks for one that is gone has waited long.
    pub(crate) const fn is_guess(&self) -> bool {
        matches!(self, Self::Token | Self::Proof | Self::Credential(api_keys::Denied::Invalid))
    }

    fn classify(&self) -> (Code, Reason) {
        use Code::{
            Aborted, AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound,
            PermissionDenied, ResourceExhausted, Unauthenticated, Unavailable,
        };
        match self {
            Self::Field { .. } | Self::NoHello => (InvalidArgument, Reason::InvalidArgument),
            Self::NetworkUnknown | Self::NetworkNotFound(_) => (NotFound, Reason::NetworkUnknown),
            Self::NetworkAmbiguous(_) => (InvalidArgument, Reason::InvalidArgument),
            Self::NetworkExists(_) => (AlreadyExists, Reason::Conflict),
            Self::Token => (Unauthenticated, Reason::TokenInvalid),
            Self::Proof | Self::NoSession => (Unauthenticated, Reason::ProofInvalid),
            Self::NodeUnknown => (NotFound, Reason::NodeUnknown),
            Self::NodeRemoved => (PermissionDenied, Reason::NodeRemoved),
            Self::NotPermitted | Self::ReadOnly | Self::NotOfOneNetwork | Self::NotOperator { .. } => {
                (PermissionDenied, Reason::NotPermitted)
            }
            Self::CredentialMissing => (Unauthenticated, Reason::CredentialMissing),
            Self::Credential(denied) => (Unauthenticated, credential(*denied)),
            Self::TooLong => (Code::DeadlineExceeded, Reason::NoReply),
            Self::ApiKeyRequest(api_keys::Refusal::Unknown(_)) => (NotFound, Reason::CredentialInvalid),
            Self::ApiKeyRequest(api_keys::Refusal::TooMany) => (ResourceExhausted, Reason::Busy),
            Self::ApiKeyRequest(_) => (InvalidArgument, Reason::InvalidArgument),
            Self::Barred
            | Self::TooManyChallenges
            | Self::Contended
            | Self::Compiling
            | Self::ShuttingDown
            | Self::ConnectionEnds
            | Self::RelayDown => (Unavailable, Reason::Busy),
            Self::RelayInUse | Self::NoRelay => (FailedPrecondition, Reason::Conflict),
            Self::TakenOver => (Aborted, Reason::Conflict),
            Self::Silent => (Code::DeadlineExceeded, Reason::NoReply),
            Self::NodeRecord(_) => (InvalidArgument, Reason::ProofInvalid),
            Self::Clock { .. } => (FailedPrecondition, Reason::Clock),
            Self::Enroll(refusal) | Self::Member(members::Refusal::Enroll(refusal)) => enrolling(refusal),
            Self::Member(members::Refusal::Unknown(_)) => (NotFound, Reason::NodeUnknown),
            Self::Member(members::Refusal::Key(_)) => (InvalidArgument, Reason::InvalidArgument),
            Self::TokenRequest(tokens::Refusal::Unknown(_)) => (NotFound, Reason::TokenInvalid),
            Self::TokenRequest(tokens::Refusal::TooMany) => (ResourceExhausted, Reason::Busy),
            Self::TokenRequest(_) => (InvalidArgument, Reason::InvalidArgument),
            Self::Policy(_) | Self::Rollback { .. } => (InvalidArgument, Reason::PolicyInvalid),
            Self::PolicyRequest(refusal) => policy(refusal),
            Self::TraceRequest(_) => (InvalidArgument, Reason::InvalidArgument),
            Self::Repeat(requests::Refusal::Reused(_)) => (AlreadyExists, Reason::RequestIdReused),
            Self::Repeat(requests::Refusal::TooMany) | Self::TooManyWatchers { .. } => {
                (ResourceExhausted, Reason::Busy)
            }
            Self::Repeat(requests::Refusal::Damaged(..)) => (Internal, Reason::Unspecified),
            Self::Events(events::Unknown::Forgotten { .. }) => (Code::OutOfRange, Reason::EventsForgotten),
            Self::Events(events::Unknown::Future { .. }) => (InvalidArgument, Reason::InvalidArgument),
            Self::TooSlow => (Aborted, Reason::Busy),
            Self::Store(StoreError::Full) => (ResourceExhausted, Reason::Host),
            Self::Store(StoreError::Busy | StoreError::Failed(_) | StoreError::Compacted { .. }) => {
                (Unavailable, Reason::Busy)
            }
            Self::Store(StoreError::TooLarge { .. } | StoreError::LeaseExpired) => {
                (Internal, Reason::Unspecified)
            }
            Self::NoMap(NoMap::NotAMember) => (PermissionDenied, Reason::NodeRemoved),
            Self::CannotSign(_) | Self::NoMap(_) | Self::CannotWriteToken(_) => {
                (Internal, Reason::Unspecified)
            }
        }
    }
}

fn enrolling(refusal: &enroll::Refusal) -> (Code, Reason) {
    match refusal {
        enroll::Refusal::TokenInvalid => (Code::Unauthenticated, Reason::TokenInvalid),
        enroll::Refusal::TokenExpired => (Code::FailedPrecondition, Reason::TokenExpired),
        enroll::Refusal::TokenUsed => (Code::FailedPrecondition, Reason::TokenUsed),
        enroll::Refusal::TokenRevoked => (Code::FailedPrecondition, Reason::TokenRevoked),
        enroll::Refusal::TokenForRelays | enroll::Refusal::TokenForNodes => {
            (Code::InvalidArgument, Reason::TokenRole)
        }
        enroll::Refusal::NameTaken(_) | enroll::Refusal::NameOfPolicy(_) => {
            (Code::AlreadyExists, Reason::NameTaken)
        }
        enroll::Refusal::NameInvalid { .. } => (Code::InvalidArgument, Reason::NameInvalid),
        enroll::Refusal::KeyTaken => (Code::AlreadyExists, Reason::KeyTaken),
        enroll::Refusal::PoolExhausted(_) => (Code::ResourceExhausted, Reason::PoolExhausted),
        enroll::Refusal::CannotSign(_) => (Code::Internal, Reason::Unspecified),
    }
}

const fn credential(denied: api_keys::Denied) -> Reason {
    match denied {
        api_keys::Denied::Invalid => Reason::CredentialInvalid,
        api_keys::Denied::Expired => Reason::CredentialExpired,
        api_keys::Denied::Revoked => Reason::CredentialRevoked,
    }
}

fn policy(refusal: &policies::Refusal) -> (Code, Reason) {
    match refusal {
        policies::Refusal::Conflict { .. } => (Code::Aborted, Reason::Conflict),
        policies::Refusal::Unknown(_) => (Code::NotFound, Reason::InvalidArgument),
        policies::Refusal::NoEarlier | policies::Refusal::BackToFirst { .. } => {
            (Code::FailedPrecondition, Reason::Conflict)
        }
        policies::Refusal::TooLarge { .. }
        | policies::Refusal::TooManyMembers { .. }
        | policies::Refusal::TooManyNames { .. }
        | policies::Refusal::NameOfMember(_) => (Code::InvalidArgument, Reason::PolicyInvalid),
        policies::Refusal::Comment => (Code::InvalidArgument, Reason::InvalidArgument),
        policies::Refusal::CannotSign(_) => (Code::Internal, Reason::Unspecified),
    }
}

impl From<trace::Refusal> for Refused {
    fn from(refusal: trace::Refusal) -> Self {
        match refusal {
            trace::Refusal::Unknown(unknown) => Self::Member(unknown),
            trace::Refusal::Question(_) => Self::TraceRequest(refusal),
        }
    }
}

impl From<NoMap> for Refused {
    fn from(error: NoMap) -> Self {
        if error == NoMap::NotAMember { Self::NodeRemoved } else { Self::NoMap(error) }
    }
}

impl From<MapError> for Refused {
    fn from(error: MapError) -> Self {
        Self::NodeRecord(error.to_string())
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let (code, reason) = refused.classify();
        if matches!(code, Code::Internal) {
            tracing::error!(event = "request_failed", error = %refused, "a request failed");
        }
        let mut details = ErrorDetails::with_error_info(reason.as_str_name(), DOMAIN, HashMap::new());
        if matches!(reason, Reason::Busy) {
            details.set_retry_info(Some(RETRY));
        }
        Self::with_error_details(code, refused.to_string(), details)
    }
}

/// A code as gRPC spells it in its documentation, in lower case.
pub(crate) const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_names_of_their_own() {
        let mut names: Vec<_> = (0..=16).map(|code| code_name(Code::from_i32(code))).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 17);
    }
}
