//! The one table from what daemons answer to exit codes and cures.
//!
//! A daemon's message already names the cause; what is added here is the command that helps.

use ringmesh_node::ERROR_DOMAIN;
use ringmesh_proto::control::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    daemon::Daemon,
    failure::{Exit, Failure},
    rights,
};

/// What a status of `daemon` means. `doing` completes "cannot ...".
pub(crate) fn of_status(daemon: Daemon, doing: &str, status: &Status) -> Failure {
    match reason_of(status) {
        Some(reason) => of_reason(daemon, doing, reason, status.code(), status.message(), rights::is_root()),
        None => of_transport(daemon, doing, status),
    }
}

/// What a status of a daemon elsewhere means: who this user is on this machine has nothing to do with it.
pub(crate) fn of_remote_status(daemon: Daemon, doing: &str, status: &Status) -> Failure {
    match reason_of(status) {
        Some(reason) => of_reason(daemon, doing, reason, status.code(), status.message(), true),
        None => of_transport(daemon, doing, status),
    }
}

/// The reason in the status's details, if it is one of ours.
pub(crate) fn reason_of(status: &Status) -> Option<Reason> {
    status
        .get_details_error_info()
        .filter(|info| info.domain == ERROR_DOMAIN)
        .and_then(|info| Reason::from_str_name(&info.reason))
        .filter(|reason| *reason != Reason::Unspecified)
}

/// The failure for a reason of ours: `message` says the cause, `code` tells the host's refusals apart.
pub(crate) fn of_reason(
    daemon: Daemon,
    doing: &str,
    reason: Reason,
    code: Code,
    message: &str,
    root: bool,
) -> Failure {
    let failure = Failure::new(exit_of(reason, code, root), format!("cannot {doing}")).cause(message);
    match cure_of(daemon, reason, code, root) {
        Some(cure) => failure.attempt(cure),
        None => failure,
    }
}

/// The documented exit code of a reason.
pub(crate) fn exit_of(reason: Reason, code: Code, root: bool) -> Exit {
    match reason {
        // An operator named a token or a key that does not exist.
        Reason::TokenInvalid | Reason::CredentialInvalid if code == Code::NotFound => Exit::Usage,
        Reason::TokenInvalid
        | Reason::TokenExpired
        | Reason::TokenUsed
        | Reason::TokenRevoked
        | Reason::ProofInvalid
        | Reason::NetworkUnknown
        | Reason::NodeRemoved
        | Reason::NotTrusted
        | Reason::CredentialInvalid
        | Reason::CredentialExpired
        | Reason::CredentialRevoked
        | Reason::Clock => Exit::Refused,
        // Root was refused by a decision, anybody else for want of rights.
        Reason::NotPermitted if root => Exit::Refused,
        Reason::NotPermitted | Reason::CredentialMissing => Exit::Permission,
        Reason::NameTaken
        | Reason::KeyTaken
        | Reason::PoolExhausted
        | Reason::AlreadyJoined
        | Reason::RequestIdReused
        | Reason::EventsForgotten
        | Reason::Conflict => Exit::Conflict,
        Reason::NameInvalid
        | Reason::NodeUnknown
        | Reason::InvalidArgument
        | Reason::TokenRole
        | Reason::PolicyInvalid => Exit::Usage,
        Reason::NotJoined => Exit::NotJoined,
        Reason::Unreachable | Reason::Busy | Reason::NoReply if code == Code::DeadlineExceeded => {
            Exit::Timeout
        }
        Reason::Unreachable | Reason::Busy | Reason::NoReply => Exit::Unreachable,
        Reason::Host if code == Code::PermissionDenied => Exit::Permission,
        Reason::Host | Reason::Unspecified => Exit::General,
    }
}

/// What to do about it, where a command of ours or the system helps and the message cannot know it.
fn cure_of(daemon: Daemon, reason: Reason, code: Code, root: bool) -> Option<String> {
    let text = match reason {
        Reason::TokenInvalid if code == Code::NotFound => "see the ids with: meshctl token list",
        Reason::CredentialInvalid if code == Code::NotFound => "see the ids with: meshctl key list",
        Reason::TokenInvalid | Reason::TokenExpired | Reason::TokenUsed | Reason::TokenRevoked => {
            "make a new token on the coordinator: meshctl token create"
        }
        Reason::NameTaken => {
            "choose another with --name, or remove the node that has it: meshctl nodes remove NAME"
        }
        Reason::NameInvalid => "use 1 to 63 letters, digits and hyphens, as in a host name",
        Reason::KeyTaken => "use another key with --identity, or none to get a new one",
        // Of an operator's request the message says it: there is no network of that name.
        Reason::NetworkUnknown if daemon == Daemon::Node => {
            "this coordinator serves another network: make a token on the coordinator of the one you want to join: \
             meshctl token create"
        }
        Reason::NotTrusted => {
            "check that the addresses in the token lead to your coordinator and nothing answers in its place"
        }
        Reason::Clock => "set this machine's clock, best by NTP: timedatectl set-ntp true",
        Reason::NodeRemoved => {
            "join again with a new token, if this node is still wanted: meshctl leave, meshctl join"
        }
        Reason::NotJoined => "join a network: meshctl join --token TOKEN",
        Reason::AlreadyJoined => "see it with: meshctl status; to change networks, first: meshctl leave",
        Reason::Unreachable => "check the coordinator's address and port, its firewall, and that it runs",
        Reason::Busy => "try again in a few seconds",
        Reason::NodeUnknown => "see the names with: meshctl peers, or on the coordinator: meshctl nodes list",
        Reason::CredentialMissing | Reason::CredentialInvalid => {
            "use a key that `meshctl key create` made on the coordinator, whole"
        }
        Reason::CredentialExpired | Reason::CredentialRevoked => {
            "make a new key on the coordinator: meshctl key create"
        }
        Reason::EventsForgotten => "look at what there is now: meshctl events",
        Reason::NotPermitted if !root => return Some(rights::with_sudo()),
        Reason::Host if code == Code::PermissionDenied && !root => return Some(rights::with_sudo()),
        Reason::Unspecified
        | Reason::NotPermitted
        | Reason::ProofInvalid
        | Reason::NetworkUnknown
        | Reason::PoolExhausted
        | Reason::InvalidArgument
        // The message names both cures.
        | Reason::TokenRole
        // The message names each place in the file.
        | Reason::PolicyInvalid
        | Reason::Host
        | Reason::Conflict
        // Whoever chose the id knows.
        | Reason::RequestIdReused
        | Reason::NoReply => return None,
    };
    Some(text.to_owned())
}

/// A status that is not one of our refusals: the daemon went away, is of another version, or failed.
fn of_transport(daemon: Daemon, doing: &str, status: &Status) -> Failure {
    let name = daemon.name();
    let (exit, cause) = match status.code() {
        Code::Unavailable | Code::Cancelled | Code::Unknown => {
            (Exit::NotRunning, format!("the connection to {name} broke; it may have stopped"))
        }
        Code::DeadlineExceeded => (Exit::Timeout, format!("{name} did not answer in time")),
        Code::Unimplemented => (Exit::General, format!("the running {name} does not know this call")),
        Code::PermissionDenied | Code::Unauthenticated => (Exit::Permission, status.message().to_owned()),
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss => (Exit::General, status.message().to_owned()),
    };
    let failure = Failure::new(exit, format!("cannot {doing}")).cause(cause);
    match exit {
        Exit::NotRunning => failure.attempt("meshctl status, then try again"),
        Exit::Permission => failure.attempt(rights::with_sudo()),
        Exit::General if status.code() == Code::Unimplemented => {
            failure.attempt("restart it, so that it and meshctl are of one version")
        }
        Exit::General
        | Exit::Usage
        | Exit::NotJoined
        | Exit::Unreachable
        | Exit::Refused
        | Exit::Timeout
        | Exit::Conflict
        | Exit::Changes => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    fn status(reason: Reason, code: Code) -> Status {
        let details = ErrorDetails::with_error_info(reason.as_str_name(), ERROR_DOMAIN, []);
        Status::with_error_details(code, "the cause", details)
    }

    #[test]
    fn reasons_have_their_documented_exit_codes() {
        let table = [
            (Reason::TokenInvalid, 7),
            (Reason::TokenExpired, 7),
            (Reason::TokenUsed, 7),
            (Reason::TokenRevoked, 7),
            (Reason::TokenRole, 2),
            (Reason::PolicyInvalid, 2),
            (Reason::CredentialMissing, 5),
            (Reason::CredentialInvalid, 7),
            (Reason::CredentialExpired, 7),
            (Reason::CredentialRevoked, 7),
            (Reason::EventsForgotten, 9),
            (Reason::RequestIdReused, 9),
            (Reason::NameTaken, 9),
            (Reason::NameInvalid, 2),
            (Reason::KeyTaken, 9),
            (Reason::ProofInvalid, 7),
            (Reason::NetworkUnknown, 7),
            (Reason::NodeUnknown, 2),
            (Reason::NodeRemoved, 7),
            (Reason::PoolExhausted, 9),
            (Reason::InvalidArgument, 2),
            (Reason::Busy, 6),
            (Reason::AlreadyJoined, 9),
            (Reason::NotJoined, 4),
            (Reason::Host, 1),
            (Reason::Unreachable, 6),
            (Reason::NotTrusted, 7),
            (Reason::Clock, 7),
            (Reason::Conflict, 9),
            (Reason::NoReply, 6),
        ];
        for (reason, exit) in table {
            let failure = of_status(Daemon::Node, "join", &status(reason, Code::FailedPrecondition));
            assert_eq!(failure.exit().code(), exit, "{reason:?}");
            assert!(failure.to_string().starts_with("error: cannot join\ncause: the cause"), "{failure}");
        }
    }

    #[test]
    fn want_of_rights_is_told_apart_from_a_refusal() {
        assert_eq!(exit_of(Reason::NotPermitted, Code::PermissionDenied, false), Exit::Permission);
        assert_eq!(exit_of(Reason::NotPermitted, Code::PermissionDenied, true), Exit::Refused);
        assert_eq!(exit_of(Reason::Host, Code::PermissionDenied, true), Exit::Permission);
        assert_eq!(exit_of(Reason::Host, Code::DataLoss, true), Exit::General);
        assert_eq!(exit_of(Reason::TokenInvalid, Code::Unauthenticated, true), Exit::Refused);
        assert_eq!(exit_of(Reason::TokenInvalid, Code::NotFound, true), Exit::Usage);
        assert_eq!(exit_of(Reason::CredentialInvalid, Code::Unauthenticated, true), Exit::Refused);
        assert_eq!(exit_of(Reason::CredentialInvalid, Code::NotFound, true), Exit::Usage);
        let denied = of_reason(Daemon::Node, "join", Reason::Host, Code::PermissionDenied, "no TUN", false);
        assert!(denied.to_string().contains("\ntry: sudo "), "{denied}");
    }

    #[test]
    fn a_token_for_another_network_is_told_apart_from_a_mistyped_name() {
        let unknown = status(Reason::NetworkUnknown, Code::NotFound);
        let joining = of_status(Daemon::Node, "join", &unknown).to_string();
        assert!(joining.contains("\ntry: this coordinator serves another network"), "{joining}");
        let naming = of_status(Daemon::Coordinator, "make a token", &unknown).to_string();
        assert!(!naming.contains("token create"), "{naming}");
    }

    #[test]
    fn both_daemons_reasons_are_of_the_domain_that_is_believed() {
        assert_eq!(ringmesh_controlplane::DOMAIN, ERROR_DOMAIN);
    }

    #[test]
    fn a_reason_of_another_domain_is_not_believed() {
        let details = ErrorDetails::with_error_info(Reason::TokenUsed.as_str_name(), "elsewhere.example", []);
        let status = Status::with_error_details(Code::Internal, "no", details);
        assert_eq!(of_status(Daemon::Node, "join", &status).exit(), Exit::General);
    }

    #[test]
    fn a_daemon_that_went_away_is_not_running() {
        let failure = of_status(Daemon::Node, "ask meshd", &Status::unavailable("broken pipe"));
        assert_eq!(failure.exit(), Exit::NotRunning);
    }
}
