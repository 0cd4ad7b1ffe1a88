//! The programs that subjects are made of, and which of them are there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use ringmesh_lab::Host;

use super::{Order, SubjectKind, star};
use crate::ground::{Family, Ground};

/// A program other than the one in PATH, as `--newer` names it: `wireguard-go=PATH`.
#[derive(Clone, Debug)]
pub(crate) struct Newer {
    program: &'static str,
    path: PathBuf,
}

impl FromStr for Newer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (program, path) = text.split_once('=').ok_or("it is PROGRAM=PATH")?;
        let known = ["wireguard-go", "nebula"].into_iter().find(|known| *known == program);
        let program = known.ok_or("the program is wireguard-go or nebula")?;
        let path = Path::new(path).canonicalize().map_err(|error| format!("{path}: {error}"))?;
        Ok(Self { program, path })
    }
}

/// The programs.
#[derive(Debug)]
pub(crate) struct Tools {
    /// This program.
    own: PathBuf,
    meshctl: Option<PathBuf>,
    /// Another build.
    earlier: Option<PathBuf>,
    newer: Vec<Newer>,
}

impl Tools {
    /// Takes the `meshctl` that was named, or the one beside this program.
    ///
    /// # Errors
    /// When one that was named does not exist.
    pub(crate) fn find(meshctl: Option<&Path>, earlier: Option<&Path>, newer: &[Newer]) -> Result<Self> {
        let named = |path: &Path| {
            ensure!(path.is_file(), "there is no {}", path.display());
            path.canonicalize().with_context(|| format!("finding {}", path.display()))
        };
        let earlier = earlier.map(named).transpose()?;
        let own = std::env::current_exe().context("asking for this program's path")?;
        let beside = Some(own.with_file_name("meshctl")).filter(|path| path.is_file());
        let meshctl = meshctl.map(named).transpose()?.or(beside);
        Ok(Self { own, meshctl, earlier, newer: newer.to_vec() })
    }

    /// This program, which can be a node without a cipher.
    pub(super) fn own(&self) -> &Path {
        &self.own
    }

    /// The `meshctl` to measure.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn meshctl(&self) -> Result<&Path> {
        self.meshctl.as_deref().context("there is no meshctl to measure; name one with --meshctl")
    }

    /// The program of ours that a subject is made of.
    pub(super) fn ours(&self, kind: SubjectKind) -> Option<&Path> {
        if kind == SubjectKind::Earlier { self.earlier.as_deref() } else { self.meshctl.as_deref() }
    }

    /// The program of somebody else's that a subject is made of.
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "what is said of some kinds concerns no other, nor those to come"
    )]
    pub(super) fn theirs(&self, kind: SubjectKind) -> Option<PathBuf> {
        let newer = |program| {
            self.newer.iter().find(|newer| newer.program == program).map(|newer| newer.path.clone())
        };
        match kind {
            SubjectKind::WireguardGo => in_path("wireguard-go"),
            SubjectKind::WireguardGoNewer => newer("wireguard-go"),
            SubjectKind::Boringtun => in_path("boringtun-cli"),
            SubjectKind::Gotatun => in_path("gotatun-cli").or_else(|| in_path("gotatun")),
            SubjectKind::Nebula => in_path("nebula"),
            SubjectKind::NebulaNewer => newer("nebula"),
            SubjectKind::Tinc => in_path("tincd"),
            SubjectKind::N2n => in_path("edge"),
            SubjectKind::Tailscale => in_path("tailscaled"),
            _ => None,
        }
    }

    /// Says why a subject cannot be set up here, if it cannot.
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "what is said of some kinds concerns no other, nor those to come"
    )]
    pub(crate) fn missing_for(&self, order: &Order, ground: Ground) -> Option<&'static str> {
        let kind = order.kind;
        if kind.path().is_some() {
            if ground != Ground::PLAIN {
                return Some("paths have a ground of their own");
            }
            if !star::can_block() {
                return Some("there is no nft (apt-get install nftables)");
            }
        }
        if order.tuning.txqueuelen.is_some() && in_path("ip").is_none() {
            return Some("there is no ip (apt-get install iproute2)");
        }
        match kind {
            SubjectKind::Raw => None,
            SubjectKind::BareTokioUring if ground.underlay == Family::V6 => Some("it is for IPv4"),
            _ if kind.is_bare() && in_path("ip").is_none() => {
                Some("there is no ip (apt-get install iproute2)")
            }
            _ if kind.is_bare() => None,
            SubjectKind::Earlier if self.earlier.is_none() => {
                Some("no other build was named; name one with --earlier")
            }
            _ if kind.is_ours() => match self.ours(kind) {
                None => Some(
                    "there is no meshctl beside this program; cargo build it, or name one with --meshctl",
                ),
                Some(meshctl) => unknown_setting(meshctl, order),
            },
            _ => self.missing_program(kind, ground.underlay),
        }
    }

    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "what is said of some kinds concerns no other, nor those to come"
    )]
    fn missing_program(&self, kind: SubjectKind, underlay: Family) -> Option<&'static str> {
        let found = self.theirs(kind).is_some();
        let wireguard = found && in_path("wg").is_some();
        match kind {
            SubjectKind::WireguardGo if !wireguard => {
                Some("not installed (apt-get install wireguard-go wireguard-tools)")
            }
            SubjectKind::WireguardGoNewer if !wireguard => Some("none was named (--newer wireguard-go=PATH)"),
            SubjectKind::Boringtun if !wireguard => {
                Some("not installed (cargo install boringtun-cli; apt-get install wireguard-tools)")
            }
            SubjectKind::Gotatun if !wireguard => {
                Some("not installed (cargo install gotatun-cli; apt-get install wireguard-tools)")
            }
            SubjectKind::Nebula if !found => Some("not installed (apt-get install nebula)"),
            SubjectKind::NebulaNewer if !found => Some("none was named (--newer nebula=PATH)"),
            SubjectKind::Tinc if !found => Some("not installed (apt-get install tinc)"),
            SubjectKind::N2n if !found || in_path("supernode").is_none() => {
                Some("not installed (apt-get install n2n)")
            }
            SubjectKind::N2n if underlay == Family::V6 => Some("it has no IPv6 below"),
            SubjectKind::Tailscale if !found => Some("not installed"),
            SubjectKind::Tailscale => {
                Some("it does nothing without its coordination server, which is none of it")
            }
            _ => None,
        }
    }
}

/// Where a program is; the PATH of a user without rights often lacks what only root uses.
pub(super) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A setting that this build ignores would be measured as if it were in force: a build that knows it refuses nonsense.
fn unknown_setting(meshctl: &Path, order: &Order) -> Option<&'static str> {
    let ignored = order.tuning.variables().find(|(name, _)| {
        let mut command = Command::new(meshctl);
        command.args(["node", "run", "--check"]).env(name, "nonsense");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    ignored.map(|_| "this meshctl does not know one of its settings")
}

/// Sets the length of a device's queue of packets that wait to be read from TUN.
pub(super) fn set_queue(host: &Host, interface: &str, length: u32) -> Result<()> {
    let program = in_path("ip").context("there is no ip")?;
    let mut command = host.command(program)?;
    command.args(["link", "set", "dev", interface, "txqueuelen", &length.to_string()]);
    super::output(command, "").map(drop)
}
