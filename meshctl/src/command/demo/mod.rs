//! `meshctl demo`: a coordinator and nodes as real daemons on a virtual switch, shown at work and torn down again.

use crate::failure::{Exit, Failure};

/// What `meshctl demo` is asked to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many nodes to start.
    #[arg(long, env = "MESH_DEMO_NODES", default_value_t = 3)]
    nodes: u8,
}

/// Runs the demonstration; fails if any step of it does.
///
/// Called before any thread is started, so that it may enter namespaces.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    Err(Failure::new(Exit::General, format!("the demo of {} nodes cannot be run by this build", args.nodes)))
}
