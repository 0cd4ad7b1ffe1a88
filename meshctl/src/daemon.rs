//! The daemons as the command line sees them: what they are called, where they answer, how they are started.

use std::path::{Path, PathBuf};

/// One of the daemons that this executable can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    /// The node, `meshd`.
    Node,
    /// The coordinator, `mesh-coordinator`.
    Coordinator,
    /// The relay, `mesh-relay`: the node daemon in another role.
    Relay,
}

impl Daemon {
    /// What it is called in messages, and as a program of its own.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => "meshd",
            Self::Coordinator => "mesh-coordinator",
            Self::Relay => "mesh-relay",
        }
    }

    /// The arguments by which this executable behaves as it.
    pub(crate) const fn arguments(self) -> [&'static str; 2] {
        match self {
            Self::Node => ["node", "run"],
            Self::Coordinator => ["coordinator", "run"],
            Self::Relay => ["relay", "run"],
        }
    }

    /// Its systemd unit.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Node => "meshd.service",
            Self::Coordinator => "mesh-coordinator.service",
            Self::Relay => "mesh-relay.service",
        }
    }

    /// Its log in the state directory when it runs in the background.
    pub(crate) fn log(self, state_dir: &Path) -> PathBuf {
        state_dir.join(match self {
            Self::Node | Self::Relay => "meshd.log",
            Self::Coordinator => "coordinator.log",
        })
    }

    /// How a person starts it.
    pub(crate) fn how_to_start(self) -> String {
        if systemd_unit_is_installed(self.unit()) {
            return format!("sudo systemctl start {}", self.unit());
        }
        match self {
            Self::Node => {
                "meshctl join --token TOKEN, or if this machine has joined before: meshctl node up".to_owned()
            }
            // On any other machine it would found a second network.
            Self::Coordinator if !coordinator_was_here() => {
                "run this on the coordinator's machine; or if it runs here, name its socket: --socket PATH"
                    .to_owned()
            }
            Self::Coordinator => "meshctl coordinator up".to_owned(),
            Self::Relay => "meshctl relay run --token TOKEN".to_owned(),
        }
    }
}

/// Whether a coordinator kept its state where it does unless told otherwise.
fn coordinator_was_here() -> bool {
    // Who may not look is not told that there is none.
    ringmesh_controlplane::Config::default().state_dir.try_exists().unwrap_or(true)
}

/// Whether systemd runs this machine and knows `unit`.
pub(crate) fn systemd_unit_is_installed(unit: &str) -> bool {
    const FOLDERS: [&str; 4] =
        ["/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
    // sd_booted(3): this folder exists while systemd is the init.
    Path::new("/run/systemd/system").is_dir()
        && FOLDERS.iter().any(|folder| Path::new(folder).join(unit).exists())
}
