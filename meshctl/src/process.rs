//! Being a daemon: what `node run` and `coordinator run` have in common.

use std::{
    ffi::OsString,
    io::{self, Write as _},
};

use ringmesh_node::{Bound, Config, Failure as NodeFailure};

use crate::{
    capabilities,
    daemon::Daemon,
    environment,
    failure::{Exit, Failure},
    launch::READY,
    logging::{self, LogFormat},
    output, refusal, rights, supervisor, token,
};

/// What and how a daemon logs.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the process")]
#[group(skip)]
pub(crate) struct Log {
    /// What to log: info, debug, or for one part info,ringmesh_node=trace
    #[arg(long, env = "MESH_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// The form of the log lines
    #[arg(long, env = "MESH_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

impl Log {
    /// Starts logging. `filter` is the configuration file's, if it has one.
    ///
    /// Refuses to be a daemon with a secret in its environment, where it could be read for as long as the daemon runs.
    pub(crate) fn start(&self, filter: Option<&str>) -> Result<(), Failure> {
        if let Some(name) = environment::exposed() {
            let failure =
                Failure::new(Exit::Usage, format!("{name} does not belong in a daemon's environment"));
            return Err(match name {
                token::VARIABLE => {
                    failure.attempt("meshctl join reads it, and tells the daemon over its socket")
                }
                _ => failure.attempt(format!("unset {name}")),
            });
        }
        logging::start(self.log.as_deref().or(filter).unwrap_or("info"), self.log_format)
    }

    /// The same as flags, for a process of its own.
    pub(crate) fn flags(&self) -> Vec<OsString> {
        let mut flags = Vec::new();
        if let Some(log) = &self.log {
            flags.extend(["--log".into(), log.into()]);
        }
        if self.log_format == LogFormat::Json {
            flags.extend(["--log-format".into(), "json".into()]);
        }
        flags
    }
}

/// What any daemon can be told.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the process")]
#[group(skip)]
pub(crate) struct Options {
    #[command(flatten)]
    log: Log,
    /// Only checks the configuration
    #[arg(long, env = "MESH_CHECK")]
    pub(crate) check: bool,
    /// Leaves the terminal, and tells on standard output when it is ready
    #[arg(long, hide = true)]
    background: bool,
}

impl Options {
    /// Makes this process a daemon's: a session of its own if in the background, and its log.
    ///
    /// Called before any other thread is started. `filter` is the configuration file's, if it has one.
    pub(crate) fn become_daemon(&self, filter: Option<&str>) -> Result<(), Failure> {
        if self.background {
            // Fails only if this process leads a session already, which is what is wanted.
            let _ = rustix::process::setsid();
        }
        self.log.start(filter)
    }

    /// Tells who waits for it that the daemon's socket answers: systemd, or who started it in the background.
    pub(crate) fn tell_ready(&self) {
        supervisor::tell_ready();
        if self.background {
            // Who started this may have gone meanwhile.
            let _ = writeln!(io::stdout(), "{READY}");
        }
    }
}

/// Takes what a node or relay needs to run, then gives up every right that it needs no more. To be called before any other thread is
/// started.
pub(crate) fn bind_node(config: Config) -> Result<Bound, Failure> {
    let keep = if config.relay.is_some() { capabilities::NONE } else { capabilities::NETWORK };
    let bound = ringmesh_node::bind(config).map_err(|failure| node_failure("run the node", &failure))?;
    capabilities::keep_only(keep)?;
    Ok(bound)
}

/// A failure of the node library, as one of ours.
pub(crate) fn node_failure(doing: &str, failure: &NodeFailure) -> Failure {
    refusal::of_reason(
        Daemon::Node,
        doing,
        failure.reason(),
        failure.code(),
        &failure.to_string(),
        rights::is_root(),
    )
}

/// The word for a configuration that was checked and found good.
pub(crate) fn checked() {
    output::note("the configuration is good");
}
