//! The node daemon with a cipher that encrypts nothing: started by the comparison on hosts of its own, and of no other use.

use anyhow::{Result, anyhow};
use clap::Args;
use tokio::sync::oneshot;

use crate::null_cipher::NullCipher;

/// What our own daemon would be told, by the same names.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The back end
    #[arg(long)]
    io: String,
    /// The CPU for its packets
    #[arg(long)]
    cpu: Option<usize>,
    /// The kernel's offloads to use
    #[arg(long, env = "MESH_OFFLOADS")]
    offloads: Option<String>,
    /// How long to look for packets before sleeping, in microseconds
    #[arg(long, env = "MESH_SPIN_US")]
    spin_us: Option<u16>,
}

/// Runs until it is killed.
///
/// # Errors
/// Those of the daemon.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut config =
        ringmesh_node::Config { io: options.io.parse()?, cpu: options.cpu, ..Default::default() };
    if let Some(offloads) = &options.offloads {
        config.offloads = offloads.parse()?;
    }
    config.spin_us = options.spin_us.unwrap_or(config.spin_us);
    let failed = |failure: ringmesh_node::Failure| anyhow!("the node: {failure}");
    let bound = ringmesh_node::bind(config).map_err(failed)?.with_cipher::<NullCipher>();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Nobody waits for it to be ready otherwise than by its socket.
    let (ready, _) = oneshot::channel();
    runtime.block_on(bound.run(std::future::pending(), ready)).map_err(failed)
}
