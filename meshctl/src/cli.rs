//! The command line, as it is parsed: every flag is also an environment variable.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Args, CommandFactory as _, Parser, Subcommand, builder::BoolishValueParser};

use ringmesh_node::config::{DEFAULT_RELAY_SOCKET, DEFAULT_SOCKET};

use crate::{
    command::{
        cleanup, coordinator, demo, dns, events, filter, join, key, network, node, nodes, ping, policy,
        relay, service, status, token, trace, wait, why,
    },
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    output::Format,
};

/// Joins machines into one private network.
#[derive(Debug, Parser)]
#[command(
    name = "meshctl",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "On the machine that the others can reach:   meshctl coordinator up\n\
                  On each machine that shall be in the mesh:  the `meshctl join` line that it prints\n\
                  To see it work on this machine alone:       meshctl demo\n\n\
                  Exit codes: 0 done, 1 general, 2 usage, 3 daemon not running, 4 not joined, 5 permission,\n\
                  6 unreachable, 7 refused or denied, 8 timeout, 9 conflict, 10 changes (if asked to tell)."
)]
pub(crate) struct Cli {
    /// How to write the result
    #[arg(short, long, global = true, env = "MESH_OUTPUT", value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Everything that can be asked.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts and looks after a coordinator, the meeting point of a network
    #[command(subcommand)]
    Coordinator(coordinator::Command),
    /// Joins this machine to a network, starting the node daemon if need be
    Join(join::Args),
    /// Shows this node, its network and its peers
    Status(status::Args),
    /// Asks a peer for an echo: which path answered, in what time
    Ping(ping::Args),
    /// Tells how a peer is reached, and what became of every other way to it
    Why(why::Args),
    /// Tells stage by stage whether a flow may be opened, and which rule allows or what denies it; ends with 7 if it is denied
    Trace(trace::Args),
    /// Shows what is known of each peer
    Peers(status::Args),
    /// Shows what this node's filter lets pass, and denies more than the policy does
    #[command(subcommand)]
    Filter(filter::Command),
    /// Shows how mesh names are answered here, and asks for one
    #[command(subcommand)]
    Dns(dns::Command),
    /// Leaves the network and forgets its keys
    Leave(status::Args),
    /// Takes back what a killed node daemon left on this machine: names in the hosts file or the resolver's settings
    Cleanup(cleanup::Args),
    /// Waits until this machine is in its mesh, a peer is reached or a revision is in force
    Wait(wait::Args),
    /// Installs the daemons as units of systemd, removes them, and tells how they are
    #[command(subcommand)]
    Service(service::Command),
    /// Runs, starts or stops the node daemon
    #[command(subcommand)]
    Node(node::Command),
    /// Lists and removes the members of a network (on the coordinator)
    #[command(subcommand)]
    Nodes(nodes::Command),
    /// Checks, plans, applies and takes back policies: who may reach whom (on the coordinator)
    #[command(subcommand)]
    Policy(Box<policy::Command>),
    /// Runs a relay, and lists whom the coordinator's serves
    #[command(subcommand)]
    Relay(relay::Command),
    /// Makes, lists and revokes API keys, by which automation may ask the coordinator (on the coordinator)
    #[command(subcommand)]
    Key(key::Command),
    /// Makes, lists and revokes join tokens (on the coordinator)
    #[command(subcommand)]
    Token(token::Command),
    /// Lists the networks that the coordinator serves (on the coordinator)
    #[command(subcommand)]
    Network(network::Command),
    /// Tells what happened and who did it, and what happens (on the coordinator)
    Events(events::Args),
    /// Shows a whole mesh at work on this machine, then takes it down again
    Demo(demo::Args),
    /// Shows the version of this program and of the daemon
    Version(status::Args),
    /// Prints a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the page of documentation that has every command's help
    #[command(hide = true)]
    Reference,
}

impl Cli {
    /// The command line's grammar. An empty variable counts as none, as the files of containers and units often have
    /// them; a switch is set by `1` or `yes` as well as by `true`.
    pub(crate) fn grammar() -> clap::Command {
        grammar(Self::command())
    }
}

fn grammar(command: clap::Command) -> clap::Command {
    let argument = |argument: Arg| {
        let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
        let empty = argument.get_env().is_some_and(is_empty);
        // clap cannot take a variable away again, but one without a name is never set.
        let argument = if empty { argument.env("").hide_env(true) } else { argument };
        let is_switch = matches!(argument.get_action(), ArgAction::SetTrue);
        if is_switch { argument.value_parser(BoolishValueParser::new()) } else { argument }
    };
    command.mut_args(argument).mut_subcommands(grammar)
}

/// Where the node daemon answers.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeSocket {
    /// The node daemon's unix socket
    #[arg(long, env = "MESH_SOCKET", value_name = "PATH", default_value = "/run/mesh/meshd.sock")]
    pub(crate) socket: PathBuf,
}

impl NodeSocket {
    /// Connects to the node daemon. On a machine that is only a relay that daemon is the relay, with a socket of its own: it is
    /// asked where no other one was named.
    pub(crate) async fn connect(&self) -> Result<Connection, Failure> {
        let relay = Path::new(DEFAULT_RELAY_SOCKET);
        match Connection::open(Daemon::Node, &self.socket).await {
            Err(failure)
                if failure.exit() == Exit::NotRunning
                    && self.socket == Path::new(DEFAULT_SOCKET)
                    && relay.exists() =>
            {
                Connection::open(Daemon::Relay, relay).await
            }
            result => result,
        }
    }
}

/// Where the coordinator answers its operators.
#[derive(Clone, Debug, Args)]
pub(crate) struct AdminSocket {
    /// The coordinator's unix socket for operators
    #[arg(
        long,
        env = "MESH_COORDINATOR_SOCKET",
        value_name = "PATH",
        default_value = "/run/mesh-coordinator/coordinator.sock"
    )]
    pub(crate) socket: PathBuf,
}

/// Which network of a coordinator is meant.
#[derive(Clone, Debug, Args)]
pub(crate) struct NetworkName {
    /// The network's name, if the coordinator serves several
    #[arg(
        short,
        long,
        env = "MESH_NETWORK",
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) network: String,
}

/// A span of time on the command line: `90s`, `15m`, `24h`, `7d`; a bare number is seconds.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let expected = || format!("`{text}` is not a time: expected a number and s, m, h or d, as in 24h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    match number.checked_mul(factor) {
        None | Some(0) => Err(expected()),
        Some(seconds) => Ok(seconds),
    }
}

/// The path seen from `/`, where daemons live.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(Exit::Usage, format!("the path {} cannot be used", path.display()))
            .cause(error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::grammar().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        fn check(command: &clap::Command) {
            for flag in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                let name = flag.get_id().as_str();
                if matches!(name, "help" | "version") || flag.is_hide_set() {
                    continue;
                }
                let variable = flag.get_env().map(|name| name.to_string_lossy().into_owned());
                let variable = variable.unwrap_or_else(|| panic!("{} --{name} has none", command.get_name()));
                assert!(variable.starts_with("MESH_"), "{variable}");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::grammar());
    }

    #[test]
    fn times_are_read_with_their_unit() {
        for (text, value) in [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(value));
        }
        for text in ["", "h", "0h", "1w", "-1h", "1.5h", "99999999999999999999d", "18446744073709551615d"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
