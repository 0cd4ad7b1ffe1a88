//! `meshctl`, the one executable of Ringmesh: the command line, the node daemon and the coordinator.
//!
//! Called as `meshd`, `mesh-coordinator` or `mesh-relay` (a link of that name) it is that daemon. [`cli`] says what can be asked, `command/`
//! does it, [`output`] says what came of it, [`failure`] how it ends.

#![forbid(unsafe_code)]

mod capabilities;
mod cli;
mod command;
mod connect;
mod daemon;
mod environment;
mod failure;
mod flags;
mod launch;
mod logging;
mod output;
mod process;
mod refusal;
mod remote;
mod rights;
mod signals;
mod supervisor;
mod token;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{FromArgMatches as _, error::ErrorKind};

use cli::{Cli, Command};
use daemon::Daemon;
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let _is_static = ringmesh_io::names::keep_to_built_in();
    match parse(std::env::args_os()).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::failure(&failure);
            ExitCode::from(failure.exit().code())
        }
    }
}

/// Reads the command line. Help and version are printed from here, and end the process.
fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, Failure> {
    let matches = Cli::grammar().try_get_matches_from(by_name(arguments));
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(cli),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            output::write_result(&error.to_string())?;
            std::process::exit(0);
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            output::note(error.to_string().trim_end());
            std::process::exit(i32::from(Exit::Usage.code()));
        }
        Err(error) => Err(misunderstood(&error.to_string())),
    }
}

/// What clap says, in our form. It quotes what was typed, and that may be a token: the output cuts it.
fn misunderstood(text: &str) -> Failure {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    // clap indents the names of what is missing under its first line.
    let more: Vec<&str> = rest.lines().take_while(|line| line.starts_with("  ")).map(str::trim).collect();
    let mut failure = Failure::new(Exit::Usage, [&[first], more.as_slice()].concat().join(" "));
    for line in rest.lines().map(str::trim) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            failure = failure.attempt(tip);
        } else if let Some(usage) = line.strip_prefix("Usage: ") {
            failure = failure.attempt(usage);
        }
    }
    failure.attempt("see --help")
}

/// Puts in the words that the name stands for under which this program was called: `meshd` is `meshctl node run`.
fn by_name(mut arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let called = arguments.next().unwrap_or_default();
    let name = Path::new(&called).file_name().unwrap_or_default();
    let daemon =
        [Daemon::Node, Daemon::Coordinator, Daemon::Relay].into_iter().find(|daemon| name == daemon.name());
    let words = daemon.map(Daemon::arguments).into_iter().flatten().map(OsString::from);
    [OsString::from("meshctl")].into_iter().chain(words).chain(arguments).collect()
}

/// Does what was asked. Threads are only started inside the arms: some commands change the whole process first.
fn run(cli: Cli) -> Result<(), Failure> {
    use command::{
        block_on, cleanup, coordinator, demo, dns, events, filter, join, key, leave, network, node, nodes,
        ping, policy, reference, relay, service, status, token, trace, version, wait, why,
    };
    let format = cli.output;
    match cli.command {
        Command::Coordinator(command) => coordinator::run(format, command),
        Command::Join(args) => join::run(format, args),
        Command::Status(args) => block_on(status::run(format, args)),
        Command::Ping(args) => block_on(ping::run(format, args)),
        Command::Why(args) => block_on(why::run(format, args)),
        Command::Trace(args) => block_on(trace::run(format, args)),
        Command::Filter(command) => block_on(filter::run(format, command)),
        Command::Dns(command) => block_on(dns::run(format, command)),
        Command::Peers(args) => block_on(status::peers(format, args)),
        Command::Leave(args) => block_on(leave::run(format, args)),
        Command::Cleanup(args) => cleanup::run(format, args),
        Command::Wait(args) => block_on(wait::run(format, args)),
        Command::Service(command) => block_on(service::run(format, command)),
        Command::Node(node::Command::Run { options, daemon }) => node::run(options, daemon),
        Command::Node(node::Command::Up { options, log }) => block_on(node::up(options, log)),
        Command::Node(node::Command::Down { socket }) => block_on(node::down(socket)),
        Command::Nodes(command) => block_on(nodes::run(format, command)),
        Command::Policy(command) => block_on(policy::run(format, *command)),
        Command::Relay(command) => relay::run(format, command),
        Command::Key(command) => block_on(key::run(format, command)),
        Command::Token(command) => block_on(token::run(format, command)),
        Command::Network(command) => block_on(network::run(format, command)),
        Command::Events(args) => block_on(events::run(format, args)),
        Command::Demo(args) => demo::run(format, args),
        Command::Version(args) => block_on(version::run(format, args)),
        Command::Reference => reference::run(),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::grammar(), "meshctl", &mut script);
            output::write_result(&String::from_utf8_lossy(&script))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(called: &str, rest: &[&str]) -> Vec<String> {
        let arguments = [called].into_iter().chain(rest.iter().copied()).map(OsString::from);
        by_name(arguments).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn the_name_decides_what_the_program_is() {
        assert_eq!(words("/usr/bin/meshctl", &["status"]), ["meshctl", "status"]);
        assert_eq!(words("/usr/sbin/meshd", &["--io", "poll"]), ["meshctl", "node", "run", "--io", "poll"]);
        assert_eq!(words("mesh-coordinator", &[]), ["meshctl", "coordinator", "run"]);
        assert_eq!(words("mesh-relay", &[]), ["meshctl", "relay", "run"]);
        assert_eq!(words("./meshctl-0.1", &["version"]), ["meshctl", "version"]);
    }

    #[test]
    fn a_misspelt_command_is_answered_in_our_form() {
        let failure = parse(["meshctl", "jion"].map(OsString::from).into_iter()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        let text = failure.to_string();
        assert!(text.starts_with("error: unrecognized subcommand 'jion'\ntry: "), "{text}");
        assert!(text.contains("'join'"), "{text}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = parse(["meshctl", "ping"].map(OsString::from).into_iter()).unwrap_err().to_string();
        assert!(text.contains("<NODE>"), "{text}");
    }
}
