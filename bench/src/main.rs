//! Measures Ringmesh against others and against the machine's limits: `ringmesh-bench compare`.
//!
//! Everything happens on this machine, between network namespaces of its own. See `docs/benchmarks.md` for how it
//! measures and what its figures do not say.

#![forbid(unsafe_code)]

mod ablation;
mod bare;
mod compare;
mod cpu;
mod crowd;
mod findings;
mod gate;
mod ground;
mod integrity;
mod limits;
mod load;
mod measure;
mod null_cipher;
mod null_node;
mod options;
mod plot;
mod quantity;
mod queues;
mod report;
mod stats;
mod subject;
mod tuning;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The exit code when others use the box, as sysexits(3) has it for "try again later".
const BUSY: u8 = 75;

/// Measures Ringmesh against others and against the machine's limits.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compares a raw link, Ringmesh with each back end, and others, between two network namespaces
    #[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 75 the box is busy.")]
    Compare(Box<options::Options>),
    /// Is a node that encrypts nothing, as a limit to compare with
    #[command(hide = true)]
    NullNode(null_node::Options),
    /// Is a worker's loop without anything to do, as a limit to compare with
    #[command(hide = true)]
    Bare(bare::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Compare(options) => sandboxed(&options),
        Command::NullNode(options) => null_node::run(&options),
        Command::Bare(options) => bare::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::progress(&format!("error: {error:#}"));
            let incomplete = error.downcast_ref::<compare::Incomplete>();
            if error.is::<gate::Busy>() || incomplete.is_some_and(|incomplete| incomplete.busy) {
                report::progress(
                    "the box is busy: wait until the others are done, or measure anyway with --force",
                );
                return ExitCode::from(BUSY);
            }
            ExitCode::FAILURE
        }
    }
}

/// Goes on in a sandbox, whose end leaves nothing behind; what needs the world is done before.
fn sandboxed(options: &options::Options) -> anyhow::Result<()> {
    if ringmesh_lab::outside_pid(std::process::id()).is_none() {
        compare::build_meshctl(options)?;
    }
    ringmesh_lab::enter()?;
    match options.mode() {
        options::Mode::Compare => compare::run(options),
        options::Mode::Peers => crowd::run(options),
        options::Mode::Integrity => integrity::run(options),
    }
}
