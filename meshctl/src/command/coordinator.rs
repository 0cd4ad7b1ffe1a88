//! `meshctl coordinator`: the coordinator itself, and starting and stopping it.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ringmesh_controlplane::{
    BackupError, Ready, RelayError, StartError,
    config::{Config, Endpoint, RelayConfig},
    server::SocketError,
    store::sqlite::OpenError,
    tls,
};
use ringmesh_monitor::Listen;
use ringmesh_proto::admin::{ListNetworksRequest, ListNodesRequest};
use ringmesh_tunnel::ip::Prefix;

use super::token::{self, Terms};
use crate::{
    capabilities,
    cli::{AdminSocket, NetworkName, absolute},
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    flags::Flags,
    launch::{self, Plan},
    output::{self, Format, backup::BackedUp, now_ms, tokens::Created},
    process, rights,
    signals::Signals,
    supervisor,
};

/// Where the configuration is looked for if no other file is named.
const DEFAULT_CONFIG: &str = "/etc/mesh/coordinator.toml";

/// What can be done with a coordinator.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Starts the coordinator if it is not running, and prints the command by which a machine joins
    Up {
        #[command(flatten)]
        terms: Terms,
        #[command(flatten)]
        network: NetworkName,
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        log: process::Log,
    },
    /// Stops the coordinator; nodes go on without it
    Down {
        #[command(flatten)]
        socket: AdminSocket,
    },
    /// Runs the coordinator in the foreground
    Run {
        /// The state directory was restored from a backup: raises revision and serials beyond what nodes have seen since
        #[arg(long, env = "MESH_RESTORED")]
        restored: bool,
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        daemon: process::Options,
    },
    /// Copies the coordinator's state, which may go on meanwhile, into a new directory that one can be started on
    Backup {
        /// The directory to make; it holds keys, so keep it as you keep the coordinator
        #[arg(value_name = "DIRECTORY")]
        destination: PathBuf,
        #[command(flatten)]
        state: StatePlace,
    },
    /// Prints the coordinator's TLS certificate (PEM), for clients other than nodes to trust
    Ca {
        #[command(flatten)]
        state: StatePlace,
    },
}

/// Where a coordinator keeps its state, whether it runs or not.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct StatePlace {
    /// The coordinator's configuration file [default: /etc/mesh/coordinator.toml, if there]
    #[arg(long, env = "MESH_COORDINATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the coordinator keeps its state [default: /var/lib/mesh-coordinator]
    #[arg(long, env = "MESH_COORDINATOR_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl StatePlace {
    fn state_dir(self) -> Result<PathBuf, Failure> {
        match self.state_dir {
            Some(state_dir) => Ok(state_dir),
            None => Ok(load(self.config.as_deref())?.state_dir),
        }
    }
}

/// What the coordinator can be told; each of these is also a key of its file.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the coordinator")]
#[group(skip)]
pub(crate) struct Options {
    /// Its configuration file [default: /etc/mesh/coordinator.toml, if there]
    #[arg(long, env = "MESH_COORDINATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it keeps its database and keys [default: /var/lib/mesh-coordinator]
    #[arg(long, env = "MESH_COORDINATOR_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Its unix socket for operators [default: /run/mesh-coordinator/coordinator.sock]
    #[arg(long, env = "MESH_COORDINATOR_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where nodes connect, address and TCP port [default: port 443 of every address]
    #[arg(long, env = "MESH_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// What nodes are told to connect to; may be repeated [default: every global address of this machine]
    #[arg(long, env = "MESH_ADVERTISE", value_name = "HOST[:PORT]", value_delimiter = ',')]
    advertise: Vec<Endpoint>,
    /// Seconds between heartbeats to each node, 1 to 300 [default: 20]
    #[arg(long, env = "MESH_HEARTBEAT", value_name = "SECONDS")]
    heartbeat: Option<u32>,
    /// At the first start: the name of the network [default: mesh]
    #[arg(long, env = "MESH_NETWORK_NAME", value_name = "NAME")]
    network_name: Option<String>,
    /// At the first start: where nodes get their IPv4 addresses from [default: 100.64.0.0/10]
    #[arg(long, env = "MESH_IPV4_POOL", value_name = "CIDR")]
    ipv4_pool: Option<Prefix>,
    /// At the first start: the DNS zone of the nodes' names [default: mesh]
    #[arg(long, env = "MESH_ZONE", value_name = "ZONE")]
    zone: Option<String>,
    /// Where monitoring asks, address and TCP port, or false for nowhere [default: 127.0.0.1:9465]
    #[arg(long, env = "MESH_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<Listen>,
    #[command(flatten)]
    relay: RelayOptions,
}

impl Options {
    /// The file, with flags and variables laid over it.
    fn config(&self) -> Result<Config, Failure> {
        let mut config = load(self.config.as_deref())?;
        let over = self.clone();
        config.state_dir = absolute(&over.state_dir.unwrap_or(config.state_dir))?;
        config.admin_socket = absolute(&over.socket.unwrap_or(config.admin_socket))?;
        config.listen = over.listen.unwrap_or(config.listen);
        if !over.advertise.is_empty() {
            config.advertise = over.advertise;
        }
        config.heartbeat_seconds = over.heartbeat.unwrap_or(config.heartbeat_seconds);
        config.network.name = over.network_name.unwrap_or(config.network.name);
        config.network.ipv4_pool = over.ipv4_pool.unwrap_or(config.network.ipv4_pool);
        config.network.zone = over.zone.unwrap_or(config.network.zone);
        config.metrics.listen = over.metrics.unwrap_or(config.metrics.listen);
        over.relay.lay_over(&mut config.relay);
        config.check().map_err(|error| {
            Failure::new(Exit::Usage, "cannot use these options").cause(error.to_string())
        })?;
        Ok(config)
    }

    /// The same as flags, for a process of its own: only what was asked, paths as seen from `/`.
    fn flags(&self) -> Result<Flags, Failure> {
        let flags = Flags::default()
            .path("--config", self.config.as_deref())?
            .path("--state-dir", self.state_dir.as_deref())?
            .path("--socket", self.socket.as_deref())?
            .value("--listen", self.listen)
            .each("--advertise", self.advertise.iter().map(written))
            .value("--heartbeat", self.heartbeat)
            .value("--network-name", self.network_name.as_ref())
            .value("--ipv4-pool", self.ipv4_pool)
            .value("--zone", self.zone.as_ref())
            .value("--metrics", self.metrics);
        Ok(self.relay.flags(flags))
    }
}

/// What the coordinator's relay can be told: the `[relay]` section of the file.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the coordinator's relay")]
#[group(skip)]
struct RelayOptions {
    /// Runs no relay; nodes that cannot reach each other then need another one
    #[arg(long = "no-relay", env = "MESH_NO_RELAY")]
    off: bool,
    /// Its UDP address and port [default: those on which the coordinator listens]
    #[arg(
        id = "relay_listen",
        long = "relay-listen",
        env = "MESH_RELAY_LISTEN",
        value_name = "ADDRESS:PORT"
    )]
    listen: Option<SocketAddr>,
    /// Where nodes send their datagrams, may be repeated [default: what the coordinator advertises]
    #[arg(
        long = "relay-endpoint",
        env = "MESH_RELAY_ENDPOINTS",
        value_name = "HOST[:PORT]",
        value_delimiter = ','
    )]
    endpoints: Vec<Endpoint>,
    /// The URL of its WebSocket as nodes see it, behind a reverse proxy say; may be repeated
    #[arg(
        long = "relay-websocket",
        env = "MESH_RELAY_WEBSOCKETS",
        value_name = "URL",
        value_delimiter = ','
    )]
    websockets: Vec<String>,
    /// What stands before /relay/v1 in the path of requests, such as /base
    #[arg(long = "relay-base-path", env = "MESH_RELAY_BASE_PATH", value_name = "PATH")]
    base_path: Option<String>,
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

impl RelayOptions {
    /// Lays these over the file's.
    fn lay_over(self, config: &mut RelayConfig) {
        if !self.endpoints.is_empty() {
            config.endpoints = self.endpoints;
        }
        if !self.websockets.is_empty() {
            config.websockets = self.websockets;
        }
        if !self.trusted_proxies.is_empty() {
            config.trusted_proxies = self.trusted_proxies;
        }
        config.enabled &= !self.off;
        config.listen = self.listen.or(config.listen);
        if let Some(base_path) = self.base_path {
            config.base_path = base_path;
        }
        config.client_rate_mbit = self.client_rate.unwrap_or(config.client_rate_mbit);
        config.total_rate_mbit = self.total_rate.unwrap_or(config.total_rate_mbit);
    }

    fn flags(&self, flags: Flags) -> Flags {
        flags
            .switch("--no-relay", self.off)
            .value("--relay-listen", self.listen)
            .each("--relay-endpoint", self.endpoints.iter().map(written))
            .each("--relay-websocket", &self.websockets)
            .value("--relay-base-path", self.base_path.as_ref())
            .each("--trusted-proxy", &self.trusted_proxies)
            .value("--relay-client-rate", self.client_rate)
            .value("--relay-total-rate", self.total_rate)
    }
}

/// An endpoint as it is read back.
fn written(Endpoint { host, port }: &Endpoint) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

fn load(path: Option<&Path>) -> Result<Config, Failure> {
    let path = match path {
        Some(path) => path,
        None if Path::new(DEFAULT_CONFIG).exists() => Path::new(DEFAULT_CONFIG),
        None => return Ok(Config::default()),
    };
    Config::load(path).map_err(|error| {
        Failure::new(Exit::Usage, "cannot use the coordinator's configuration")
            .cause(error.to_string())
            .attempt("correct it, and check it with: meshctl coordinator run --check")
    })
}

/// `meshctl coordinator ...`. Called before any thread is started.
pub(crate) fn run(format: Format, command: Command) -> Result<(), Failure> {
    match command {
        Command::Up { terms, network, options, log } => {
            super::block_on(up(format, options, &log, network.network, terms))
        }
        Command::Down { socket } => super::block_on(down(socket)),
        Command::Run { restored, options, daemon } => serve(&options, restored, &daemon),
        Command::Backup { destination, state } => back_up(format, &destination, state),
        Command::Ca { state } => ca(state),
    }
}

async fn up(
    format: Format,
    options: Options,
    log: &process::Log,
    network: String,
    terms: Terms,
) -> Result<(), Failure> {
    let config = options.config()?;
    let coordinator = match Connection::open(Daemon::Coordinator, &config.admin_socket).await {
        Ok(coordinator) => {
            output::note("the coordinator is running already; this is a new token");
            coordinator
        }
        Err(failure) if failure.exit() == Exit::NotRunning => {
            let mut flags = options.flags()?.into_words();
            flags.extend(log.flags());
            let (socket, state_dir) = (config.admin_socket, config.state_dir);
            let plan = Plan { daemon: Daemon::Coordinator, socket, state_dir, flags };
            let (coordinator, started) = plan.start().await?;
            output::note(started.whereabouts());
            coordinator
        }
        Err(failure) => return Err(failure),
    };
    let created = Created::new(token::create(&coordinator, network, terms, false).await?, true);
    output::note(created.token.terms(now_ms()));
    created.whereto().into_iter().for_each(output::note);
    output::note("run this on the machine that shall join (one more token: meshctl token create):");
    output::result(format, &created)
}

async fn down(socket: AdminSocket) -> Result<(), Failure> {
    let coordinator = Connection::open(Daemon::Coordinator, &socket.socket).await?;
    launch::stop(Daemon::Coordinator, coordinator).await?;
    output::note("the coordinator has stopped; nodes go on without it, and nobody can join");
    Ok(())
}

fn serve(options: &Options, restored: bool, daemon: &process::Options) -> Result<(), Failure> {
    let config = Config { restored, ..options.config()? };
    if daemon.check {
        process::checked();
        return Ok(());
    }
    daemon.become_daemon(None)?;
    let daemon = daemon.clone();
    let bound = ringmesh_controlplane::bind(config).map_err(|error| failed(&error))?;
    capabilities::keep_only(capabilities::NONE)?;
    super::block_on_threads(async move {
        let end = Signals::listen()?.end();
        let ready = move |ready: Ready| {
            daemon.tell_ready();
            let subject = ready.subject.clone();
            tokio::spawn(async move { subject.after_crowds(ringmesh_io::heap::give_back).await });
            tokio::spawn(async move {
                supervisor::keep_told(ready.subject, || described(ready.admin_socket.clone())).await;
            });
        };
        bound.run(end, ready).await.map_err(|error| failed(&error))
    })
}

/// The coordinator in a line, as it tells any operator.
async fn described(socket: PathBuf) -> Option<String> {
    let coordinator = Connection::open(Daemon::Coordinator, &socket).await.ok()?;
    let networks = coordinator.networks().list_networks(ListNetworksRequest::default()).await.ok()?;
    let mut words = Vec::new();
    for network in networks.into_inner().networks {
        let request = ListNodesRequest { network: network.name.clone() };
        let nodes = coordinator.nodes().list_nodes(request).await.ok()?.into_inner().nodes;
        let online = nodes.iter().filter(|node| node.online).count();
        let (name, revision, all) = (network.name, network.revision, nodes.len());
        words.push(format!("network {name}, revision {revision}, {online} of {all} nodes online"));
    }
    Some(words.join("; "))
}

/// Why the coordinator does not run, in our terms. Its text names cause and cure.
fn failed(error: &StartError) -> Failure {
    let exit = match error {
        StartError::Config(_) => Exit::Usage,
        StartError::PortTaken { .. }
        | StartError::Socket(SocketError::InUse { .. } | SocketError::NotASocket { .. })
        | StartError::Relay(RelayError::PortTaken { .. })
        | StartError::Database(OpenError::Locked { .. }) => Exit::Conflict,
        StartError::PortPrivileged { .. } | StartError::Relay(RelayError::PortPrivileged { .. }) => {
            Exit::Permission
        }
        StartError::Metrics(error) if error.source.kind() == io::ErrorKind::AddrInUse => Exit::Conflict,
        _ if is_want_of_rights(error) => Exit::Permission,
        StartError::File(_)
        | StartError::Database(_)
        | StartError::Listen { .. }
        | StartError::Relay(_)
        | StartError::Socket(_)
        | StartError::Fault(_)
        | StartError::Server(_)
        | StartError::Metrics(_)
        | StartError::Prepare(_) => Exit::General,
    };
    let failure = Failure::new(exit, "the coordinator cannot run").cause(error.to_string());
    if exit == Exit::Permission && !rights::is_root() {
        failure.attempt(rights::with_sudo())
    } else {
        failure
    }
}

/// Whether the system refused for want of rights, somewhere down the chain of causes.
fn is_want_of_rights(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// `meshctl coordinator backup`: reads the files, so it works whether the coordinator runs or not.
fn back_up(format: Format, destination: &Path, state: StatePlace) -> Result<(), Failure> {
    let destination = absolute(destination)?;
    let revision = ringmesh_controlplane::back_up(&state.state_dir()?, &destination).map_err(|error| {
        let exit = match &error {
            BackupError::Exists(_) | BackupError::Shared { .. } => Exit::Conflict,
            _ if is_want_of_rights(&error) => Exit::Permission,
            BackupError::Destination { .. } | BackupError::Database(_) | BackupError::File(_) => {
                Exit::General
            }
        };
        let failure = Failure::new(exit, "cannot make a backup").cause(error.to_string());
        if exit == Exit::Permission && !rights::is_root() {
            failure.attempt(rights::with_sudo())
        } else {
            failure
        }
    })?;
    output::note(
        "it holds the coordinator's keys; a coordinator that is started on it knows that it was restored",
    );
    output::result(format, &BackedUp { path: destination.display().to_string(), revision })
}

/// `meshctl coordinator ca`: the file is there while the coordinator is not.
fn ca(state: StatePlace) -> Result<(), Failure> {
    let path = state.state_dir()?.join(tls::CERTIFICATE_FILE);
    let pem = std::fs::read_to_string(&path).map_err(|error| {
        let cause = format!("{}: {error}", path.display());
        let failure =
            rights::refused("cannot read the coordinator's certificate", cause, &error, Exit::General);
        match error.kind() == io::ErrorKind::NotFound {
            true => failure.attempt("it is made at the first start: meshctl coordinator up"),
            false => failure,
        }
    })?;
    output::write_result(&pem)
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;
    use crate::cli::{Cli, Command as Asked};

    fn parsed(words: &[&str]) -> Command {
        let words = ["meshctl", "coordinator"].iter().chain(words);
        let matches = Cli::grammar().try_get_matches_from(words).unwrap();
        let Asked::Coordinator(command) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("another command")
        };
        command
    }

    #[test]
    fn what_up_was_told_reaches_the_daemon_that_it_starts() {
        let words = "up --config /etc/hosts --state-dir /s --socket /r/c.sock --listen [::]:8443 --advertise [2001:db8::1]:444 \
                     --advertise mesh.example.org --heartbeat 5 --network-name home --ipv4-pool 10.42.0.0/16 --zone home.arpa \
                     --metrics [::1]:9465 --no-relay --relay-listen [::]:3478 --relay-endpoint relay.example.org:3479 \
                     --relay-websocket wss://a.example.org/relay/v1 --relay-websocket wss://b.example.org/relay/v1 \
                     --relay-base-path /base --trusted-proxy 192.0.2.0/24 --relay-client-rate 50 --relay-total-rate 400";
        let words: Vec<&str> = words.split_whitespace().collect();
        let Command::Up { options, .. } = parsed(&words) else { panic!("not up") };
        let again = options.flags().unwrap().into_words();
        let again: Vec<&str> = again.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(again, words[1..]);
    }

    #[test]
    fn flags_go_before_the_relay_section_of_the_file() {
        let Command::Run { options, .. } =
            parsed(&["run", "--relay-listen", "[::]:3478", "--trusted-proxy", "192.0.2.0/24"])
        else {
            panic!("not run")
        };
        let mut config =
            RelayConfig { base_path: "/base".to_owned(), total_rate_mbit: 9, ..Default::default() };
        options.relay.lay_over(&mut config);
        assert_eq!(config.listen, Some("[::]:3478".parse().unwrap()));
        assert_eq!(config.trusted_proxies, ["192.0.2.0/24".parse().unwrap()]);
        assert!(config.enabled);
        assert_eq!((config.base_path.as_str(), config.total_rate_mbit), ("/base", 9));

        let Command::Run { options, .. } = parsed(&["run", "--no-relay"]) else { panic!("not run") };
        options.relay.lay_over(&mut config);
        assert!(!config.enabled);
        assert_eq!(config.listen, Some("[::]:3478".parse().unwrap()));
    }
}
