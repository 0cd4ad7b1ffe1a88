//! What the daemons log, and how: to standard error, filtered by `MESH_LOG`.

use std::panic;

use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    failure::{Exit, Failure},
    output,
};

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// One line of text per event
    #[default]
    Text,
    /// One JSON object per event
    Json,
}

/// Sends events to standard error and panics to the log.
///
/// `filter` is as in `MESH_LOG`: `info`, `debug`, or `info,ringmesh_node=trace`.
pub(crate) fn start(filter: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(filter).map_err(|error| {
        Failure::new(Exit::Usage, format!("the log filter `{filter}` cannot be understood"))
            .cause(error.to_string())
            .attempt("info, debug, or for one part: info,ringmesh_node=trace")
    })?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let set = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    set.map_err(|error| Failure::new(Exit::General, "logging cannot start").cause(error.to_string()))?;
    panic::set_hook(Box::new(|info| {
        // An unwrapped error may carry what a stranger sent, so it is cut like everything else that is shown.
        let what = info.payload_as_str().map(output::redact).unwrap_or_default();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            event = "panicked",
            place,
            what,
            "a part of this program failed; please report this line"
        );
    }));
    Ok(())
}
