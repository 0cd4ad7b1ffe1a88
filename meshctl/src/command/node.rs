//! `meshctl node`: the node daemon itself, and starting and stopping it.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use ringmesh_node::Config;
use tokio::sync::oneshot;

use crate::{
    cli::{NodeSocket, absolute},
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    launch::{self, Plan},
    output, process,
    signals::Signals,
};

/// What can be done with the node daemon.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Runs the node daemon in the foreground
    Run {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        daemon: process::Options,
    },
    /// Starts the node daemon: its systemd unit if installed, else in the background
    Up {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        log: process::Log,
    },
    /// Stops the node daemon; the membership stays
    Down {
        #[command(flatten)]
        socket: NodeSocket,
    },
}

/// What the node daemon can be told; each of these is also a key of its file.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Options of the node daemon")]
#[group(skip)]
pub(crate) struct Options {
    /// Its configuration file [default: /etc/mesh/node.toml, if there]
    #[arg(long, env = "MESH_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where it keeps key, membership and map [default: /var/lib/mesh]
    #[arg(long, env = "MESH_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Its unix socket [default: /run/mesh/meshd.sock]
    #[arg(long, env = "MESH_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// The group that may read through the socket [default: mesh, if there]
    #[arg(long, env = "MESH_SOCKET_GROUP", value_name = "GROUP")]
    socket_group: Option<String>,
    /// The name of the network device [default: mesh0]
    #[arg(long, env = "MESH_INTERFACE", value_name = "NAME")]
    interface: Option<String>,
    /// The UDP port; must be free if given [default: 51820, or the next free one]
    #[arg(long, env = "MESH_LISTEN_PORT", value_name = "PORT")]
    listen_port: Option<u16>,
    /// How packets enter and leave the kernel [default: auto]
    #[arg(long, env = "MESH_IO", value_enum, value_name = "BACK_END")]
    io: Option<BackEnd>,
    /// The MTU of the network device, 1280 to 8912 [default: 1408]
    #[arg(long, env = "MESH_MTU", value_name = "BYTES")]
    mtu: Option<u16>,
    /// The CPU for its packets [default: one of those that it may use, by its process id]
    #[arg(long, env = "MESH_CPU", value_name = "NUMBER")]
    cpu: Option<usize>,
    /// An endpoint to tell peers besides those found, such as a forwarded port; may be repeated
    #[arg(long = "endpoint", env = "MESH_ENDPOINTS", value_name = "ADDRESS:PORT", value_delimiter = ',')]
    endpoints: Vec<SocketAddr>,
}

/// The packet back ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum BackEnd {
    /// io_uring where it works, else poll
    Auto,
    /// io_uring, or not at all
    Uring,
    /// poll, recvmmsg and sendmmsg
    Poll,
}

impl BackEnd {
    /// As the daemon's configuration spells it.
    const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Poll => "poll",
        }
    }
}

impl Options {
    /// The file, with flags and variables laid over it.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let file = match &self.config {
            Some(path) => Config::load(path),
            None => Config::load_default(),
        };
        let mut config = file.map_err(|failure| process::node_failure("read the configuration", &failure))?;
        let over = self.clone();
        config.state_dir = absolute(&over.state_dir.unwrap_or(config.state_dir))?;
        config.socket = absolute(&over.socket.unwrap_or(config.socket))?;
        config.socket_group = over.socket_group.or(config.socket_group);
        config.interface = over.interface.unwrap_or(config.interface);
        config.listen_port = over.listen_port.or(config.listen_port);
        if let Some(io) = over.io {
            config.io = io
                .word()
                .parse()
                .map_err(|_| Failure::new(Exit::Usage, "this build has no such back end"))?;
        }
        config.mtu = over.mtu.unwrap_or(config.mtu);
        config.cpu = over.cpu.or(config.cpu);
        if !over.endpoints.is_empty() {
            config.endpoints = over.endpoints;
        }
        config.check().map_err(|failure| process::node_failure("use these options", &failure))?;
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
        flag("--socket-group", self.socket_group.clone().map(OsString::from));
        flag("--interface", self.interface.clone().map(OsString::from));
        flag("--listen-port", self.listen_port.map(|port| port.to_string().into()));
        flag("--io", self.io.map(|io| io.word().into()));
        flag("--mtu", self.mtu.map(|mtu| mtu.to_string().into()));
        flag("--cpu", self.cpu.map(|cpu| cpu.to_string().into()));
        for endpoint in &self.endpoints {
            flag("--endpoint", Some(endpoint.to_string().into()));
        }
        Ok(flags)
    }

    /// How to start the daemon with these options.
    pub(crate) fn plan(&self, config: &Config, log: &process::Log) -> Result<Plan, Failure> {
        let mut flags = self.flags()?;
        flags.extend(log.flags());
        Ok(Plan {
            daemon: Daemon::Node,
            socket: config.socket.clone(),
            state_dir: config.state_dir.clone(),
            flags,
        })
    }

    /// The flags that a daemon only reads when it starts, as far as they were given.
    pub(crate) fn only_at_start(&self) -> Vec<&'static str> {
        [
            ("--interface", self.interface.is_some()),
            ("--listen-port", self.listen_port.is_some()),
            ("--io", self.io.is_some()),
            ("--mtu", self.mtu.is_some()),
            ("--cpu", self.cpu.is_some()),
            ("--endpoint", !self.endpoints.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }
}

/// `meshctl node up`.
pub(crate) async fn up(options: Options, log: process::Log) -> Result<(), Failure> {
    let config = options.config()?;
    match Connection::open(Daemon::Node, &config.socket).await {
        Ok(_) => {
            output::note("meshd is running already");
            return Ok(());
        }
        Err(failure) if failure.exit() == Exit::NotRunning => {}
        Err(failure) => return Err(failure),
    }
    let (_, started) = options.plan(&config, &log)?.start().await?;
    output::note(started.whereabouts());
    Ok(())
}

/// `meshctl node down`.
pub(crate) async fn down(socket: NodeSocket) -> Result<(), Failure> {
    let connection = Connection::open(Daemon::Node, &socket.socket).await?;
    launch::stop(Daemon::Node, connection).await?;
    output::note("meshd has stopped; start it again with: meshctl node up");
    Ok(())
}

/// `meshctl node run`. Called before any thread is started.
pub(crate) fn run(options: Options, daemon: process::Options) -> Result<(), Failure> {
    let config = options.config()?;
    if daemon.check {
        process::checked();
        return Ok(());
    }
    daemon.become_daemon(config.log.as_deref())?;
    super::block_on_threads(async move {
        let end = Signals::listen()?.end();
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(async move {
            if is_ready.await.is_ok() {
                daemon.tell_ready();
            }
        });
        let ended = ringmesh_node::run(config, end, ready).await;
        ended.map_err(|failure| process::node_failure("run the node", &failure))
    })
}
