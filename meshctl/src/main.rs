//! `meshctl`, the one executable of Ringmesh: the command line, the node daemon and the coordinator.

#![forbid(unsafe_code)]

mod command;
mod failure;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

use failure::Failure;

/// Joins machines into one private network.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows a whole mesh at work on this machine, then takes it down again
    Demo(command::demo::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Result<(), Failure> = match cli.command {
        Command::Demo(args) => command::demo::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{failure}");
            ExitCode::from(failure.exit().code())
        }
    }
}
