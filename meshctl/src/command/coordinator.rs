//! `meshctl coordinator`: the coordinator itself, and starting and stopping it.

use std::{
    ffi::OsString,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ringmesh_controlplane::{
    StartError,
    config::{Config, Endpoint},
    server::SocketError,
    store::sqlite::OpenError,
    tls,
};
use ringmesh_tunnel::ip::Prefix;

use super::token::{self, Terms};
use crate::{
    cli::{AdminSocket, NetworkName, absolute},
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    launch::{self, Plan},
    output::{self, Format, now_ms, tokens::Created},
    process, rights,
    signals::Signals,
};

/// Where the configuration is looked for if no other file is named.
const DEFAULT_CONFIG: &str = "/etc/mesh/coordinator.toml";

/// What can be done with a coordinator.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Starts the coordinator if it is not running, and prints the command by which a machine joins
    Up {
        /// How many nodes may join with the token printed
        #[arg(long, env = "MESH_TOKEN_USES", value_name = "N", default_value_t = 1)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// Any number of nodes may join with it
        #[arg(long, env = "MESH_TOKEN_REUSABLE", conflicts_with = "uses")]
        reusable: bool,
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
    /// Prints the coordinator's TLS certificate (PEM), for clients other than nodes to trust
    Ca {
        /// The coordinator's configuration file [default: /etc/mesh/coordinator.toml, if there]
        #[arg(long, env = "MESH_COORDINATOR_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
        /// Where the coordinator keeps its state [default: /var/lib/mesh/coordinator]
        #[arg(long, env = "MESH_COORDINATOR_STATE_DIR", value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
}

/// What the coordinator can be told; each of these is also a key of its file.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the coordinator")]
#[group(skip)]
pub(crate) struct Options {
    /// Its configuration file [default: /etc/mesh/coordinator.toml, if there]
    #[arg(long, env = "MESH_COORDINATOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it keeps its database and keys [default: /var/lib/mesh/coordinator]
    #[arg(long, env = "MESH_COORDINATOR_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Its unix socket for operators [default: /run/mesh/coordinator.sock]
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
        config.check().map_err(|error| {
            Failure::new(Exit::Usage, "cannot use these options").cause(error.to_string())
        })?;
        Ok(config)
    }

    /// The same as flags, for a process of its own: only what was asked, paths as seen from `/`.
    fn flags(&self) -> Result<Vec<OsString>, Failure> {
        let mut flags: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: Option<OsString>| {
            if let Some(value) = value {
                flags.extend([name.into(), value]);
            }
        };
        let path = |path: &Option<PathBuf>| {
            path.as_deref().map(absolute).transpose().map(|path| path.map(OsString::from))
        };
        flag("--config", path(&self.config)?);
        flag("--state-dir", path(&self.state_dir)?);
        flag("--socket", path(&self.socket)?);
        flag("--listen", self.listen.map(|listen| listen.to_string().into()));
        for Endpoint { host, port } in &self.advertise {
            let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            flag(
                "--advertise",
                Some(port.map_or_else(|| bracketed.clone(), |port| format!("{bracketed}:{port}")).into()),
            );
        }
        flag("--heartbeat", self.heartbeat.map(|seconds| seconds.to_string().into()));
        flag("--network-name", self.network_name.clone().map(OsString::from));
        flag("--ipv4-pool", self.ipv4_pool.map(|pool| pool.to_string().into()));
        flag("--zone", self.zone.clone().map(OsString::from));
        Ok(flags)
    }
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
        Command::Up { uses, reusable, terms, network, options, log } => {
            let uses = (!reusable).then_some(uses);
            super::block_on(up(format, options, &log, network.network, uses, terms))
        }
        Command::Down { socket } => super::block_on(down(socket)),
        Command::Run { restored, options, daemon } => serve(&options, restored, &daemon),
        Command::Ca { config, state_dir } => ca(config.as_deref(), state_dir),
    }
}

async fn up(
    format: Format,
    options: Options,
    log: &process::Log,
    network: String,
    uses: Option<u32>,
    terms: Terms,
) -> Result<(), Failure> {
    let config = options.config()?;
    let coordinator = match Connection::open(Daemon::Coordinator, &config.admin_socket).await {
        Ok(coordinator) => {
            output::note("the coordinator is running already; this is a new token");
            coordinator
        }
        Err(failure) if failure.exit() == Exit::NotRunning => {
            let mut flags = options.flags()?;
            flags.extend(log.flags());
            let (socket, state_dir) = (config.admin_socket, config.state_dir);
            let plan = Plan { daemon: Daemon::Coordinator, socket, state_dir, flags };
            let (coordinator, started) = plan.start().await?;
            output::note(started.whereabouts());
            coordinator
        }
        Err(failure) => return Err(failure),
    };
    let created = Created::new(token::create(&coordinator, network, uses, terms).await?, true);
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
    super::block_on_threads(async move {
        let end = Signals::listen()?.end();
        ringmesh_controlplane::run(config, end, move |_| daemon.tell_ready())
            .await
            .map_err(|error| failed(&error))
    })
}

/// Why the coordinator does not run, in our terms. Its text names cause and cure.
fn failed(error: &StartError) -> Failure {
    let exit = match error {
        StartError::Config(_) => Exit::Usage,
        StartError::PortTaken { .. }
        | StartError::Socket(SocketError::InUse { .. } | SocketError::NotASocket { .. })
        | StartError::Database(OpenError::Locked { .. }) => Exit::Conflict,
        StartError::PortPrivileged { .. } => Exit::Permission,
        _ if is_want_of_rights(error) => Exit::Permission,
        StartError::File(_)
        | StartError::Database(_)
        | StartError::Listen { .. }
        | StartError::Socket(_)
        | StartError::Fault(_)
        | StartError::Server(_)
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
fn is_want_of_rights(error: &StartError) -> bool {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// `meshctl coordinator ca`: the file is there while the coordinator is not.
fn ca(config: Option<&Path>, state_dir: Option<PathBuf>) -> Result<(), Failure> {
    let state_dir = match state_dir {
        Some(state_dir) => state_dir,
        None => load(config)?.state_dir,
    };
    let path = state_dir.join(tls::CERTIFICATE_FILE);
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
