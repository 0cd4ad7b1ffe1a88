//! `meshctl cleanup`: takes back what a killed node daemon left on this machine.

use std::path::PathBuf;

use ringmesh_node::Config;
use ringmesh_proto::control::Reason;

use crate::{
    cli::absolute,
    failure::{Exit, Failure},
    output::{self, Format, cleanup::Cleaned},
    process,
};

/// Whose traces are looked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node daemon's configuration file [default: /etc/mesh/node.toml, if there]
    #[arg(long, env = "MESH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Its state directory, where it noted what it did [default: /var/lib/mesh]
    #[arg(long, env = "MESH_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The name of its network device [default: mesh0]
    #[arg(long, env = "MESH_INTERFACE", value_name = "NAME")]
    interface: Option<String>,
}

/// `meshctl cleanup`. That there is nothing to take back is a success.
pub(crate) fn run(format: Format, args: Args) -> Result<(), Failure> {
    let file = match &args.config {
        Some(path) => Config::load(path),
        None => Config::load_default(),
    };
    let mut config = file.map_err(|failure| process::node_failure("read the configuration", &failure))?;
    config.state_dir = absolute(&args.state_dir.unwrap_or(config.state_dir))?;
    config.interface = args.interface.unwrap_or(config.interface);
    let undone = ringmesh_node::cleanup(&config).map_err(|failure| {
        if failure.reason() != Reason::Conflict {
            return process::node_failure("clean up after the node daemon", &failure);
        }
        Failure::new(Exit::Conflict, "cannot clean up while the node daemon runs")
            .cause(format!("it uses {}, and what it did to this machine", config.state_dir.display()))
            .attempt("meshctl node down, if that is wanted: a daemon that stops takes back what it did")
    })?;
    output::result(format, &Cleaned { undone })
}
