//! What can go wrong, and what the person who runs into it can do.

use std::{fmt, io, path::PathBuf};

/// Why a lab, or something in it, could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The caller has neither root's capabilities nor called [`enter`](crate::enter).
    #[error(
        "a lab needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run it as root, or call ringmesh_lab::enter() first, \
         which gets them in a user namespace"
    )]
    NotPrivileged,
    /// The kernel refused a namespace or a mount.
    #[error("could not {what}")]
    System {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused a change of links, addresses or routes.
    #[error("could not {what} by netlink")]
    Netlink {
        /// What was being done.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Processes in the lab survived SIGKILL for [`Lab::close`](crate::Lab::close)'s whole patience.
    #[error("{0} processes in the lab are still there after SIGKILL")]
    Survivors(usize),
    /// A program that the lab leans on is not there.
    #[error("`{program}` is not installed: apt-get install {package}")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// A program that the lab leans on would not do as it was told.
    #[error("could not {what}: {said}")]
    Refused {
        /// What was being done.
        what: String,
        /// The program's own words.
        said: String,
    },
    /// The root directory of a small Debian is not there.
    #[error("{0} is no Debian: deploy/dev/test makes it, as root")]
    NoDebian(PathBuf),
    /// A host was to use a router with which it shares no switch.
    #[error("{host} is not on the router's switch: attach it first")]
    NotAttached {
        /// The host.
        host: String,
    },
    /// All addresses of a switch are taken.
    #[error("the switch has no address left: it takes 250 hosts")]
    SwitchFull,
}

impl LabError {
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }

    /// Why `program` could not be started: most likely it is not there.
    pub(crate) fn starting(program: &'static str, package: &'static str, error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::NotInstalled { program, package }
        } else {
            Self::system(format!("start {program}"), error)
        }
    }

    pub(crate) fn netlink(what: impl Into<String>, source: rtnetlink::Error) -> Self {
        let source = if let rtnetlink::Error::NetlinkError(message) = &source {
            message.to_io()
        } else {
            io::Error::other(source)
        };
        Self::Netlink { what: what.into(), source }
    }
}

/// Why this program could not continue in a sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// The system does not let this user create namespaces.
    #[error("this user may not create network namespaces here: {denial}.\nRun it as root: sudo {command}")]
    Denied {
        /// Which setting stands in the way.
        denial: Denial,
        /// The command line to repeat as root.
        command: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else failed while the sandbox was set up.
    #[error("could not {what} for the sandbox")]
    System {
        /// What was being done.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The setting that forbids unprivileged user namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// `kernel.unprivileged_userns_clone` is 0 (Debian, Arch with the hardened kernel).
    UnprivilegedUserns,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 (Ubuntu 23.10 and later).
    AppArmor,
    /// `user.max_user_namespaces` is 0 (RHEL's hardening) or used up.
    MaxUserNamespaces,
    /// None of the known settings: probably a container's seccomp filter, or a kernel without `CONFIG_USER_NS`.
    Unknown,
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnprivilegedUserns => {
                "kernel.unprivileged_userns_clone is 0 (to allow it: sudo sysctl -w kernel.unprivileged_userns_clone=1)"
            }
            Self::AppArmor => {
                "kernel.apparmor_restrict_unprivileged_userns is 1 \
                 (to allow it: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)"
            }
            Self::MaxUserNamespaces => {
                "user.max_user_namespaces leaves none (to allow it: sudo sysctl -w user.max_user_namespaces=10000)"
            }
            Self::Unknown => {
                "likely a container's seccomp filter or a kernel without CONFIG_USER_NS \
                 (in a container: run it with --privileged)"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_the_package_that_has_it() {
        let error = LabError::starting("nft", "nftables", io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), "`nft` is not installed: apt-get install nftables");
        let error = LabError::starting("nft", "nftables", io::ErrorKind::PermissionDenied.into());
        assert!(matches!(error, LabError::System { .. }), "{error}");
    }
}
