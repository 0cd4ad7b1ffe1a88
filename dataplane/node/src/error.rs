//! What can go wrong on a node, said once: a reason for programs, a sentence with cause and cure for people.
//!
//! Every failure that reaches a person, the log or a gRPC client is a [`Failure`]. Its [`Reason`] is the closed list of the
//! protocol, so that `meshctl` maps one list to exit codes, wherever the failure arose.

use ringmesh_proto::control::Reason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// `google.rpc.ErrorInfo.domain` of all our errors.
pub const ERROR_DOMAIN: &str = "ringmesh";

/// A failure with its reason, its gRPC code and a sentence that names cause and cure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    reason: Reason,
    code: Code,
    message: String,
}

impl Failure {
    /// A failure with the gRPC code that usually goes with `reason`.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, code: usual_code(reason), message: message.into() }
    }

    /// A file of ours cannot be understood: `DATA_LOSS`, and nothing was overwritten.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self { reason: Reason::Host, code: Code::DataLoss, message: message.into() }
    }

    /// The machine refused something that more rights would allow: `PERMISSION_DENIED`.
    pub fn permission(message: impl Into<String>) -> Self {
        Self { reason: Reason::Host, code: Code::PermissionDenied, message: message.into() }
    }

    /// The caller or the configuration asks for something that cannot be: `INVALID_ARGUMENT`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, message)
    }

    /// What the machine refused: permission if the kernel says so, else a plain host failure.
    pub fn host(doing: impl std::fmt::Display, error: &std::io::Error) -> Self {
        let message = format!("{doing}: {error}");
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            Self::permission(message)
        } else {
            Self::new(Reason::Host, message)
        }
    }

    /// The reason, of the protocol's closed list.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The gRPC code it travels with; tells permission (`PermissionDenied`) and corruption (`DataLoss`) apart within
    /// [`Reason::Host`].
    pub fn code(&self) -> Code {
        self.code
    }

    /// The same failure, with what we were doing in front.
    #[must_use]
    pub fn context(mut self, doing: impl std::fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The same failure, with what else to know behind.
    #[must_use]
    pub fn with_hint(mut self, hint: &str) -> Self {
        self.message = format!("{}; {hint}", self.message);
        self
    }

    /// As a gRPC status with `ErrorInfo`.
    pub fn to_status(&self) -> Status {
        let details = ErrorDetails::with_error_info(self.reason.as_str_name(), ERROR_DOMAIN, []);
        Status::with_error_details(self.code, self.message.clone(), details)
    }

    /// What a peer's status says. Without an `ErrorInfo` of ours it is a matter of transport: [`Reason::Unreachable`].
    pub fn from_status(status: &Status) -> Self {
        let reason = status
            .get_details_error_info()
            .filter(|info| info.domain == ERROR_DOMAIN)
            .and_then(|info| Reason::from_str_name(&info.reason));
        match reason {
            Some(reason) => Self { reason, code: status.code(), message: status.message().to_owned() },
            None => Self {
                reason: Reason::Unreachable,
                code: status.code(),
                message: format!("the connection broke ({}: {})", status.code(), status.message()),
            },
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        failure.to_status()
    }
}

/// The gRPC code that tells a generic client most about a reason.
fn usual_code(reason: Reason) -> Code {
    match reason {
        Reason::TokenInvalid
        | Reason::ProofInvalid
        | Reason::NotTrusted
        | Reason::CredentialMissing
        | Reason::CredentialInvalid
        | Reason::CredentialExpired
        | Reason::CredentialRevoked => Code::Unauthenticated,
        Reason::TokenExpired
        | Reason::TokenUsed
        | Reason::TokenRevoked
        | Reason::NodeRemoved
        | Reason::NotPermitted => Code::PermissionDenied,
        Reason::NameTaken | Reason::KeyTaken | Reason::AlreadyJoined | Reason::RequestIdReused => {
            Code::AlreadyExists
        }
        Reason::EventsForgotten => Code::OutOfRange,
        Reason::NameInvalid | Reason::InvalidArgument | Reason::TokenRole | Reason::PolicyInvalid => {
            Code::InvalidArgument
        }
        Reason::NetworkUnknown | Reason::NodeUnknown => Code::NotFound,
        Reason::PoolExhausted => Code::ResourceExhausted,
        Reason::Busy | Reason::Unreachable | Reason::NoReply => Code::Unavailable,
        Reason::NotJoined | Reason::Clock | Reason::Conflict | Reason::Host => Code::FailedPrecondition,
        Reason::Unspecified => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_way_through_a_status() {
        let sent = Failure::new(Reason::TokenUsed, "this token was used up: ask for a new one");
        let received = Failure::from_status(&sent.to_status());
        assert_eq!(received, sent);
    }

    #[test]
    fn a_status_of_another_domain_is_a_broken_connection() {
        let details = ErrorDetails::with_error_info("REASON_TOKEN_USED", "elsewhere.example", []);
        let status = Status::with_error_details(Code::PermissionDenied, "no", details);
        assert_eq!(Failure::from_status(&status).reason(), Reason::Unreachable);
        assert_eq!(Failure::from_status(&Status::unavailable("gone")).reason(), Reason::Unreachable);
    }

    #[test]
    fn permission_is_told_apart_from_other_refusals_of_the_host() {
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert_eq!(Failure::host("opening x", &denied).code(), Code::PermissionDenied);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(Failure::host("opening x", &full).code(), Code::FailedPrecondition);
    }
}
