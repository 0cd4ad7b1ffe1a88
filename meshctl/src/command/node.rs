//! `meshctl node`: the node daemon itself, and starting and stopping it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ringmesh_node::{
    Config,
    config::{self, DnsMode, LinkSocket, Listen, Offloads},
};
use tokio::sync::oneshot;

use super::status;
use crate::{
    cli::{NodeSocket, absolute},
    connect::Connection,
    daemon::Daemon,
    failure::{Exit, Failure},
    flags::Flags,
    launch::{self, Plan},
    output, process,
    signals::Signals,
    supervisor,
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
    #[command(flatten)]
    common: Common,
    /// The name of the network device [default: mesh0]
    #[arg(long, env = "MESH_INTERFACE", value_name = "NAME")]
    interface: Option<String>,
    /// How packets enter and leave the kernel [default: auto]
    #[arg(long, env = "MESH_IO", value_enum, value_name = "BACK_END")]
    io: Option<BackEnd>,
    /// What encrypts packets [default: auto]
    #[arg(long, env = "MESH_CRYPTO", value_enum, value_name = "KERNEL")]
    crypto: Option<Crypto>,
    /// The kernel's offloads to use: all, none, or some of tso, uso, tun-gro, udp-gso and udp-gro, with commas [default: all]
    #[arg(long, env = "MESH_OFFLOADS", value_name = "LIST")]
    offloads: Option<Offloads>,
    /// The MTU of the network device, 1280 to 8912 [default: 1408]
    #[arg(long, env = "MESH_MTU", value_name = "BYTES")]
    mtu: Option<u16>,
    /// How many packets the network device keeps for the daemon, 16 to 100000 [default: 1000]
    #[arg(long, env = "MESH_TUN_QUEUE", value_name = "PACKETS")]
    tun_queue: Option<u32>,
    /// How many microseconds to look for packets before sleeping, 0 to 1000; looking takes a processor [default: 0]
    #[arg(long, env = "MESH_SPIN_US", value_name = "MICROSECONDS")]
    spin_us: Option<u16>,
    /// The CPU for its packets [default: one of those that it may use, by its process id]
    #[arg(long, env = "MESH_CPU", value_name = "NUMBER")]
    cpu: Option<usize>,
    /// The TCP port of an SSH endpoint for peers, where UDP does not pass [default: none]
    #[arg(long, env = "MESH_SSH_PORT", value_name = "PORT")]
    ssh_port: Option<u16>,
    /// The socket to which peers have their streams forwarded by this machine's SSH server, or false for none
    /// [default: link.sock beside the unix socket]
    #[arg(long, env = "MESH_LINK_SOCKET", value_name = "PATH", value_parser = link_socket)]
    link_socket: Option<LinkSocket>,
    /// How this machine is told of mesh names [default: auto]
    #[arg(long, env = "MESH_DNS", value_enum, value_name = "MODE")]
    dns: Option<Names>,
}

/// What every member's daemon can be told, be it a node or a relay.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Common {
    /// Its configuration file [default: /etc/mesh/node.toml, if there]
    #[arg(long, env = "MESH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it keeps key, membership and map [default: /var/lib/mesh]
    #[arg(long, env = "MESH_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Its unix socket [default: /run/mesh/meshd.sock]
    #[arg(long, env = "MESH_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The group that may read through the socket [default: mesh, if there]
    #[arg(long, env = "MESH_SOCKET_GROUP", value_name = "GROUP")]
    socket_group: Option<String>,
    /// The UDP port; must be free if given [default: 51820, or the next free one]
    #[arg(long, env = "MESH_LISTEN_PORT", value_name = "PORT")]
    listen_port: Option<u16>,
    /// An endpoint to tell peers besides those found, such as a forwarded port; may be repeated
    #[arg(long = "endpoint", env = "MESH_ENDPOINTS", value_name = "ADDRESS:PORT", value_delimiter = ',')]
    endpoints: Vec<SocketAddr>,
    /// Where its metrics and its health are told over HTTP, or false for nowhere [default: 127.0.0.1:9464]
    #[arg(long, env = "MESH_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<Listen>,
    /// Also tells series of each peer and rule
    #[arg(long, env = "MESH_METRICS_PER_PEER")]
    metrics_per_peer: bool,
}

/// How the link socket is switched off, as in the file.
const NO_SOCKET: &str = "false";

fn link_socket(text: &str) -> Result<LinkSocket, String> {
    match text {
        NO_SOCKET => Ok(LinkSocket::Off),
        path => Ok(LinkSocket::At(absolute(Path::new(path)).map_err(|failure| failure.error().to_owned())?)),
    }
}

/// By whom mesh names are resolved on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Names {
    /// The first of the following that works
    Auto,
    /// systemd-resolved
    Resolved,
    /// The C library, told by resolvconf
    Resolvconf,
    /// The C library, by a block in /etc/hosts
    Hosts,
    /// Nobody is told; the node answers all the same
    Off,
}

impl Names {
    const fn mode(self) -> DnsMode {
        match self {
            Self::Auto => DnsMode::Auto,
            Self::Resolved => DnsMode::Resolved,
            Self::Resolvconf => DnsMode::Resolvconf,
            Self::Hosts => DnsMode::Hosts,
            Self::Off => DnsMode::Off,
        }
    }

    /// As the daemon's configuration spells it.
    const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Resolved => "resolved",
            Self::Resolvconf => "resolvconf",
            Self::Hosts => "hosts",
            Self::Off => "off",
        }
    }
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

/// What encrypts packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Crypto {
    /// Sixteen packets side by side where the CPU has AVX-512, else the library
    Auto,
    /// The library, whatever the CPU has
    Portable,
}

impl Crypto {
    const fn choice(self) -> config::Crypto {
        match self {
            Self::Auto => config::Crypto::Auto,
            Self::Portable => config::Crypto::Portable,
        }
    }
}

impl Common {
    /// The file, with flags and variables laid over it; not checked as a whole, since more may be laid over it.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        self.lay_over(match &self.config {
            Some(path) => Config::load(path),
            None => Config::load_default(),
        })
    }

    /// The same for a relay, which has a file and places of its own.
    pub(crate) fn relay_config(&self) -> Result<Config, Failure> {
        self.lay_over(Config::load_relay(self.config.as_deref()))
    }

    fn lay_over(&self, file: Result<Config, ringmesh_node::Failure>) -> Result<Config, Failure> {
        let mut config = file.map_err(|failure| process::node_failure("read the configuration", &failure))?;
        let over = self.clone();
        config.state_dir = absolute(&over.state_dir.unwrap_or(config.state_dir))?;
        config.socket = absolute(&over.socket.unwrap_or(config.socket))?;
        config.socket_group = over.socket_group.or(config.socket_group);
        config.listen_port = over.listen_port.or(config.listen_port);
        config.metrics.listen = over.metrics.unwrap_or(config.metrics.listen);
        config.metrics.per_peer |= over.metrics_per_peer;
        if !over.endpoints.is_empty() {
            config.endpoints = over.endpoints;
        }
        Ok(config)
    }

    fn flags(&self) -> Result<Flags, Failure> {
        Ok(Flags::default()
            .path("--config", self.config.as_deref())?
            .path("--state-dir", self.state_dir.as_deref())?
            .path("--socket", self.socket.as_deref())?
            .value("--socket-group", self.socket_group.as_ref())
            .value("--listen-port", self.listen_port)
            .each("--endpoint", &self.endpoints)
            .value("--metrics", self.metrics.map(|listen| listen.to_string()))
            .switch("--metrics-per-peer", self.metrics_per_peer))
    }
}

impl Options {
    /// The file, with flags and variables laid over it.
    pub(crate) fn config(&self) -> Result<Config, Failure> {
        let mut config = self.common.config()?;
        let over = self.clone();
        config.interface = over.interface.unwrap_or(config.interface);
        if let Some(io) = over.io {
            config.io = io
                .word()
                .parse()
                .map_err(|_| Failure::new(Exit::Usage, "this build has no such back end"))?;
        }
        config.crypto = over.crypto.map_or(config.crypto, Crypto::choice);
        config.offloads = over.offloads.unwrap_or(config.offloads);
        config.mtu = over.mtu.unwrap_or(config.mtu);
        config.tun_queue = over.tun_queue.unwrap_or(config.tun_queue);
        config.spin_us = over.spin_us.unwrap_or(config.spin_us);
        config.cpu = over.cpu.or(config.cpu);
        config.ssh_port = over.ssh_port.or(config.ssh_port);
        config.link_socket = over.link_socket.unwrap_or(config.link_socket);
        config.dns.mode = over.dns.map_or(config.dns.mode, Names::mode);
        config.check().map_err(|failure| process::node_failure("use these options", &failure))?;
        Ok(config)
    }

    /// The same as flags, for a process of its own: only what was asked, paths as seen from `/`.
    fn flags(&self) -> Result<Flags, Failure> {
        let flags = self.common.flags()?;
        let flags = match &self.link_socket {
            Some(LinkSocket::At(path)) => flags.path("--link-socket", Some(path))?,
            Some(LinkSocket::Off) => flags.value("--link-socket", Some(NO_SOCKET)),
            Some(LinkSocket::Beside) | None => flags,
        };
        Ok(flags
            .value("--interface", self.interface.as_ref())
            .value("--io", self.io.map(BackEnd::word))
            .value("--crypto", self.crypto.map(Crypto::choice))
            .value("--offloads", self.offloads)
            .value("--mtu", self.mtu)
            .value("--tun-queue", self.tun_queue)
            .value("--spin-us", self.spin_us)
            .value("--cpu", self.cpu)
            .value("--ssh-port", self.ssh_port)
            .value("--dns", self.dns.map(Names::word)))
    }

    /// How to start the daemon with these options.
    pub(crate) fn plan(&self, config: &Config, log: &process::Log) -> Result<Plan, Failure> {
        let mut flags = self.flags()?.into_words();
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
            ("--listen-port", self.common.listen_port.is_some()),
            ("--io", self.io.is_some()),
            ("--crypto", self.crypto.is_some()),
            ("--offloads", self.offloads.is_some()),
            ("--mtu", self.mtu.is_some()),
            ("--tun-queue", self.tun_queue.is_some()),
            ("--spin-us", self.spin_us.is_some()),
            ("--cpu", self.cpu.is_some()),
            ("--endpoint", !self.common.endpoints.is_empty()),
            ("--metrics", self.common.metrics.is_some()),
            ("--metrics-per-peer", self.common.metrics_per_peer),
            ("--ssh-port", self.ssh_port.is_some()),
            ("--link-socket", self.link_socket.is_some()),
            ("--dns", self.dns.is_some()),
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
    serve(config, daemon)
}

/// Is the daemon, joined or not. Called before any thread is started.
pub(crate) fn serve(config: Config, daemon: process::Options) -> Result<(), Failure> {
    daemon.become_daemon(config.log.as_deref())?;
    let socket = config.socket.clone();
    let bound = process::bind_node(config)?;
    super::block_on_threads(async move {
        let end = Signals::listen()?.end();
        let (ready, is_ready) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(subject) = is_ready.await {
                daemon.tell_ready();
                supervisor::keep_told(subject, || described(socket.clone())).await;
            }
        });
        let ended = bound.run(end, ready).await;
        ended.map_err(|failure| process::node_failure("run the node", &failure))
    })
}

/// The node, or the relay, in a line, as it tells anybody who asks for its status.
pub(crate) async fn described(socket: PathBuf) -> Option<String> {
    let connection = Connection::open(Daemon::Node, &socket).await.ok()?;
    let status = status::ask(&connection).await.ok()?;
    let Some(network) = status.network else {
        return Some("in no network: meshctl join --token TOKEN".to_owned());
    };
    let mut line =
        format!("{} in network {}, revision {}", status.state, network.name, network.installed_revision);
    match status.relay_service {
        Some(relay) => line += &format!(", {} clients", relay.clients.len()),
        None => line += &format!(", {} peers", status.peers.len()),
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches as _;

    use super::*;
    use crate::cli::{Cli, Command as Asked};

    fn parsed(words: &[&str]) -> Command {
        let words = ["meshctl", "node"].iter().chain(words);
        let matches = Cli::grammar().try_get_matches_from(words).unwrap();
        let Asked::Node(command) = Cli::from_arg_matches(&matches).unwrap().command else {
            panic!("another command")
        };
        command
    }

    #[test]
    fn what_up_was_told_reaches_the_daemon_that_it_starts() {
        for (socket, metrics) in [("/r/link.sock", "[::1]:9000"), ("false", "false")] {
            let words = format!(
                "up --config /etc/hosts --state-dir /s --socket /r/m.sock --socket-group ops --listen-port 4000 \
                 --endpoint 203.0.113.7:51820 --endpoint [2001:db8::7]:51820 --metrics {metrics} --metrics-per-peer \
                 --link-socket {socket} --interface mesh7 \
                 --io poll --crypto portable --offloads tso,udp-gso --mtu 1400 --tun-queue 500 --spin-us 50 \
                 --cpu 1 --ssh-port 2222 --dns hosts"
            );
            let words: Vec<&str> = words.split_whitespace().collect();
            let Command::Up { options, .. } = parsed(&words) else { panic!("not up") };
            let again = options.flags().unwrap().into_words();
            let again: Vec<&str> = again.iter().map(|word| word.to_str().unwrap()).collect();
            assert_eq!(again, words[1..]);
        }
    }

    #[test]
    fn metrics_are_told_where_the_flag_says() {
        let config = |words: &[&str]| {
            let Command::Run { options, .. } = parsed(words) else { panic!("not run") };
            options.config().unwrap().metrics
        };
        assert_eq!(config(&["run"]), config::Metrics::default());
        let asked = config(&["run", "--metrics", "0.0.0.0:9000", "--metrics-per-peer"]);
        assert_eq!((asked.listen, asked.per_peer), (Listen::At("0.0.0.0:9000".parse().unwrap()), true));
        assert_eq!(config(&["run", "--metrics", "false"]).listen, Listen::Off);
        assert!(
            Cli::grammar().try_get_matches_from(["meshctl", "node", "run", "--metrics", "9000"]).is_err()
        );
    }

    #[test]
    fn how_packets_are_moved_can_be_said_by_flag_as_in_the_file() {
        let flags =
            ["run", "--crypto", "portable", "--offloads", "none", "--tun-queue", "500", "--spin-us", "50"];
        let Command::Run { options, .. } = parsed(&flags) else { panic!("not run") };
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "crypto = \"portable\"\noffloads = \"none\"\ntun_queue = 500\nspin_us = 50\n";
        std::fs::write(file.path(), text).unwrap();
        let said = Config::load(file.path()).unwrap();
        assert_eq!(options.config().unwrap(), said);
        // And they go before it.
        let flags =
            ["run", "--crypto", "auto", "--offloads", "tso,uso", "--tun-queue", "16", "--spin-us", "0"];
        let both = [&flags[..], &["--config", file.path().to_str().unwrap()]].concat();
        let Command::Run { options, .. } = parsed(&both) else { panic!("not run") };
        let config = options.config().unwrap();
        assert_eq!((config.crypto, config.tun_queue, config.spin_us), (config::Crypto::Auto, 16, 0));
        assert_eq!(config.offloads, Offloads { tso: true, uso: true, ..Offloads::NONE });
        assert_eq!(options.only_at_start(), ["--crypto", "--offloads", "--tun-queue", "--spin-us"]);
    }

    #[test]
    fn mesh_names_are_told_as_the_file_could_say_it() {
        for mode in ["auto", "resolved", "resolvconf", "hosts", "off"] {
            let Command::Run { options, .. } = parsed(&["run", "--dns", mode]) else { panic!("not run") };
            let told = options.config().unwrap().dns.mode;
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), format!("[dns]\nmode = \"{mode}\"\n")).unwrap();
            assert_eq!(Config::load(file.path()).unwrap().dns.mode, told);
        }
    }

    #[test]
    fn the_link_socket_is_a_path_or_nothing() {
        let config = |words: &[&str]| {
            let Command::Run { options, .. } = parsed(words) else { panic!("not run") };
            options.config().unwrap()
        };
        assert_eq!(config(&["run"]).link_socket, LinkSocket::Beside);
        assert_eq!(config(&["run", "--link-socket", "false"]).link_socket, LinkSocket::Off);
        let LinkSocket::At(path) = config(&["run", "--link-socket", "link.sock"]).link_socket else {
            panic!("no path")
        };
        assert!(path.is_absolute() && path.ends_with("link.sock"), "{}", path.display());
        assert_eq!(config(&["run", "--ssh-port", "2222"]).ssh_port, Some(2222));
    }
}
