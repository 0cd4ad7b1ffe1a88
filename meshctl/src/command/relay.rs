//! `meshctl relay`: being a relay, and looking into the one that the coordinator runs.

use std::net::SocketAddr;

use ringmesh_node::Config;
use ringmesh_proto::admin::ListRelayClientsRequest;
use ringmesh_tunnel::ip::Prefix;

use super::{join, node};
use crate::{
    cli::NetworkName,
    failure::Failure,
    output::{self, Format, relay::Clients},
    process,
    remote::CoordinatorAt,
};

/// What can be done with relays.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Runs a relay in the foreground, joining first if this machine has not: it passes on what nodes seal for each other
    Run(Box<Run>),
    /// Lists the nodes that the coordinator's relay serves (on the coordinator)
    Clients {
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        at: CoordinatorAt,
    },
}

/// How to be a relay.
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("config", |arg| arg.help("Its configuration file [default: /etc/mesh/relay.toml, if there]")),
    mut_arg("state_dir", |arg| arg.help("Where it keeps key, membership and map [default: /var/lib/mesh-relay]")),
    mut_arg("socket", |arg| arg.help("Its unix socket [default: /run/mesh-relay/meshd.sock]")),
    mut_arg("metrics", |arg| {
        arg.help("Where its metrics and its health are told over HTTP, or false for nowhere [default: 127.0.0.1:9466]")
    }),
    mut_arg("metrics_per_peer", |arg| arg.hide(true)),
)]
pub(crate) struct Run {
    #[command(flatten)]
    newcomer: join::Newcomer,
    #[command(flatten)]
    relay: Options,
    // A relay has no device and no road by SSH: what is about those is not offered.
    #[command(flatten, next_help_heading = "Options of the relay")]
    common: node::Common,
    /// Runs without a token too, and then waits until `meshctl join --socket PATH` has it join; for supervisors
    #[arg(long, env = "MESH_WAIT_FOR_JOIN")]
    wait_for_join: bool,
    #[command(flatten)]
    daemon: process::Options,
}

/// What a relay can be told: the `[relay]` section of the node's file.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the relay")]
#[group(skip)]
struct Options {
    /// Where nodes whose UDP is blocked connect by WebSocket over TLS [default: nowhere]
    #[arg(long, env = "MESH_RELAY_WEBSOCKET_LISTEN", value_name = "ADDRESS:PORT")]
    websocket_listen: Option<SocketAddr>,
    /// The URL of its WebSocket as nodes see it, behind a reverse proxy say; may be repeated
    #[arg(
        long = "relay-websocket",
        env = "MESH_RELAY_WEBSOCKETS",
        value_name = "URL",
        value_delimiter = ','
    )]
    websockets: Vec<String>,
    /// Reverse proxies whose word on a client's address is believed; may be repeated
    #[arg(long = "trusted-proxy", env = "MESH_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    trusted_proxies: Vec<Prefix>,
    /// What one node may have relayed, in Mbit/s; 0: no bound [default: 1000]
    #[arg(long = "relay-client-rate", env = "MESH_RELAY_CLIENT_RATE", value_name = "MBIT")]
    client_rate: Option<u32>,
    /// What all nodes together may have relayed, in Mbit/s, shared fairly; 0: no bound [default: 2000]
    #[arg(long = "relay-total-rate", env = "MESH_RELAY_TOTAL_RATE", value_name = "MBIT")]
    total_rate: Option<u32>,
}

impl Options {
    /// Makes a relay's configuration of a node's.
    fn lay_over(self, mut config: Config) -> Result<Config, Failure> {
        let relay = config.relay.get_or_insert_default();
        relay.websocket_listen = self.websocket_listen.or(relay.websocket_listen);
        if !self.websockets.is_empty() {
            relay.websockets = self.websockets;
        }
        if !self.trusted_proxies.is_empty() {
            relay.trusted_proxies = self.trusted_proxies;
        }
        relay.client_rate_mbit = self.client_rate.unwrap_or(relay.client_rate_mbit);
        relay.total_rate_mbit = self.total_rate.unwrap_or(relay.total_rate_mbit);
        config.check().map_err(|failure| process::node_failure("use these options", &failure))?;
        Ok(config)
    }
}

/// `meshctl relay ...`. Called before any thread is started.
pub(crate) fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Run(args) => serve(format, *args),
        Command::Clients { network, at } => super::block_on(clients(format, network, at)),
    }
}

fn serve(format: Format, args: Run) -> Result<(), Failure> {
    let config = args.relay.lay_over(args.common.relay_config()?)?;
    if args.daemon.check {
        process::checked();
        return Ok(());
    }
    if args.wait_for_join && !args.newcomer.has_token() {
        return node::serve(config, args.daemon);
    }
    let wish = args.newcomer.relay_wish_unless_member(&config)?;
    args.daemon.become_daemon(config.log.as_deref())?;
    let socket = config.socket.clone();
    let bound = process::bind_node(config)?;
    let tell_ready = move || args.daemon.tell_ready();
    super::block_on_threads(join::in_foreground(format, bound, socket, wish, tell_ready))
}

async fn clients(
    format: Format,
    NetworkName { network }: NetworkName,
    at: CoordinatorAt,
) -> Result<(), Failure> {
    let coordinator = at.open().await?;
    let mut relay = coordinator.relay();
    let request = ListRelayClientsRequest { network };
    let response = coordinator.call("list the relay's clients", relay.list_relay_clients(request)).await?;
    output::result(format, &Clients::from(response))
}

#[cfg(test)]
mod tests {
    use ringmesh_node::config::RelayMode;

    use super::*;

    #[test]
    fn flags_make_a_relay_of_a_node_and_go_before_its_file() {
        let file = RelayMode {
            websocket_listen: Some("[::]:443".parse().unwrap()),
            websockets: vec!["wss://old.example.org/relay/v1".to_owned()],
            total_rate_mbit: 9,
            ..RelayMode::default()
        };
        let none = || Options {
            websocket_listen: None,
            websockets: Vec::new(),
            trusted_proxies: Vec::new(),
            client_rate: None,
            total_rate: None,
        };
        let given = Options {
            websockets: vec!["wss://new.example.org/relay/v1".to_owned()],
            trusted_proxies: vec!["192.0.2.0/24".parse().unwrap()],
            client_rate: Some(50),
            ..none()
        };
        let relay = |options: Options, relay| options.lay_over(Config { relay, ..Config::default() });
        assert_eq!(relay(none(), None).unwrap().relay, Some(RelayMode::default()));
        assert_eq!(relay(none(), Some(file.clone())).unwrap().relay, Some(file.clone()));
        let both = relay(given, Some(file)).unwrap().relay.unwrap();
        assert_eq!(both.websocket_listen, Some("[::]:443".parse().unwrap()));
        assert_eq!(both.websockets, ["wss://new.example.org/relay/v1"]);
        assert_eq!(both.trusted_proxies, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!((both.client_rate_mbit, both.total_rate_mbit), (50, 9));

        let plain = Options { websockets: vec!["http://a/relay/v1".to_owned()], ..none() };
        assert_eq!(relay(plain, None).unwrap_err().exit(), crate::failure::Exit::Usage);
    }
}
