//! The node's configuration: one optional TOML file, every key with a default, no unknown key accepted.
//!
//! Flags and `MESH_*` variables of `meshctl` are laid over the file by the caller; this module only knows the result.

mod dns;
mod metrics;
mod relay;
mod road;

use std::{
    collections::BTreeMap,
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

pub use ringmesh_aead::Choice as Crypto;
use ringmesh_io::Choice;
pub use ringmesh_io::Offloads;
pub use ringmesh_monitor::Listen;
use serde::{Deserialize, Deserializer, de::Error as _};

pub use self::{
    dns::{Dns, DnsMode},
    metrics::{DEFAULT_METRICS, DEFAULT_RELAY_METRICS, Metrics},
    relay::RelayMode,
    road::{HostPort, SSH_ROADS_MAX, SshRoad},
};
use crate::error::Failure;

/// Where the configuration is looked for if no other file is named.
pub const DEFAULT_CONFIG: &str = "/etc/mesh/node.toml";
/// Where the state lives by default.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh";
/// Where the local API listens by default.
pub const DEFAULT_SOCKET: &str = "/run/mesh/meshd.sock";
/// Where a relay's configuration is looked for if no other file is named.
pub const DEFAULT_RELAY_CONFIG: &str = "/etc/mesh/relay.toml";
/// Where a relay's state lies by default.
pub const DEFAULT_RELAY_STATE_DIR: &str = "/var/lib/mesh-relay";
/// Where a relay's local API listens by default.
pub const DEFAULT_RELAY_SOCKET: &str = "/run/mesh-relay/meshd.sock";
/// Where links of other programs are accepted by default.
pub const DEFAULT_LINK_SOCKET: &str = "/run/mesh/link.sock";
/// The UDP port tried first when none is fixed.
pub const DEFAULT_PORT: u16 = 51820;
/// The TUN device's name by default.
pub const DEFAULT_INTERFACE: &str = "mesh0";
/// The TUN device's MTU by default: a multiple of 16 that fits, sealed and relayed over IPv6, in 1500 bytes.
pub const DEFAULT_MTU: u16 = 1408;

/// How many packets the TUN device keeps for us by default (`txqueuelen`). A super-packet counts as one, so that a thousand
/// hold what a connection sends ahead; a train of datagrams that the kernel cuts into single packets needs a place for each, and
/// what finds none is lost. Longer queues make a ping wait longer behind a transfer.
pub const DEFAULT_TUN_QUEUE: u32 = 1000;

/// A configuration file of more bytes than this is not one.
const MAX_FILE: u64 = 1 << 20;
/// IPv6 needs this (RFC 8200 section 5).
const MIN_MTU: u16 = 1280;
/// The largest packet that, sealed and in IPv6, fits a 9000-byte link.
const MAX_MTU: u16 = 8912;
/// Fewer could not hold what one turn of a worker takes from TUN.
const MIN_TUN_QUEUE: u32 = 16;
/// The kernel has a place for each: more would be memory for nothing but delay.
const MAX_TUN_QUEUE: u32 = 100_000;
/// Whoever wants to poll for longer than a millisecond wants to poll for ever.
const MAX_SPIN_US: u16 = 1000;
/// Roads to one peer; the core takes no more links.
const ROADS_TO_ONE_PEER: usize = 6;
/// `IFNAMSIZ` without its terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// Everything the daemon can be told before it starts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory of identity, membership and cached map; created with mode 0700.
    pub state_dir: PathBuf,
    /// Unix socket of the local API; created with mode 0660.
    pub socket: PathBuf,
    /// Group that may read through the socket. `mesh` if the machine has that group and none is named.
    pub socket_group: Option<String>,
    /// Name of the TUN device, at most 15 bytes.
    pub interface: String,
    /// The UDP port. If given, it must be free; if not, the next free one from 51820 is used.
    pub listen_port: Option<u16>,
    /// The packet back end: `auto`, `uring` or `poll`.
    #[serde(deserialize_with = "word")]
    pub io: Choice,
    /// What seals and opens packets: `auto` or `portable`.
    #[serde(deserialize_with = "word")]
    pub crypto: Crypto,
    /// The kernel's offloads to use: `all`, `none`, or some of them with commas.
    #[serde(deserialize_with = "word")]
    pub offloads: Offloads,
    /// MTU of the TUN device, 1280 to 8912.
    pub mtu: u16,
    /// How many packets the TUN device keeps for the worker (`txqueuelen`), 16 to 100000.
    pub tun_queue: u32,
    /// How many microseconds the worker looks for packets before it sleeps, 0 to 1000.
    pub spin_us: u16,
    /// The CPU the worker is pinned to. Not given: one of those the process may use, chosen by its process id, so that
    /// several daemons of a machine spread over it.
    pub cpu: Option<usize>,
    /// Endpoints to tell peers besides the addresses found on the machine (a forwarded port, say).
    pub endpoints: Vec<SocketAddr>,
    /// The TCP port of the node's own SSH endpoint, by which peers reach it where UDP does not pass; not given: none.
    pub ssh_port: Option<u16>,
    /// The socket to which a peer that logs in to this machine's OpenSSH server has its stream forwarded: a path, or `false`.
    #[serde(deserialize_with = "link_socket")]
    pub link_socket: LinkSocket,
    /// Roads to peers through OpenSSH servers, at most [`SSH_ROADS_MAX`].
    pub ssh: Vec<SshRoad>,
    /// How mesh names are answered on this machine.
    pub dns: Dns,
    /// How the daemon can be watched.
    pub metrics: Metrics,
    /// The daemon is a relay, and nothing else.
    pub relay: Option<RelayMode>,
    /// Log filter (`info`, `ringmesh_node=debug`); `MESH_LOG` goes before it.
    pub log: Option<String>,
}

/// Where streams that an SSH server forwards are accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LinkSocket {
    /// Beside the local API's socket, as `link.sock`; if another daemon listens there, nowhere.
    #[default]
    Beside,
    /// There.
    At(PathBuf),
    /// Nowhere.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            interface: DEFAULT_INTERFACE.to_owned(),
            listen_port: None,
            io: Choice::Auto,
            crypto: Crypto::Auto,
            offloads: Offloads::ALL,
            mtu: DEFAULT_MTU,
            tun_queue: DEFAULT_TUN_QUEUE,
            spin_us: 0,
            cpu: None,
            endpoints: Vec::new(),
            ssh_port: None,
            link_socket: LinkSocket::Beside,
            ssh: Vec::new(),
            dns: Dns::default(),
            metrics: Metrics::default(),
            relay: None,
            log: None,
        }
    }
}

impl Config {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// Names the file, and for what is wrong inside it the line, the key and what would be right.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let name = path.display();
        let size =
            fs::metadata(path).map_err(|error| Failure::invalid(format!("configuration {name}: {error}")))?;
        if size.len() > MAX_FILE {
            return Err(Failure::invalid(format!("configuration {name}: too long for a configuration file")));
        }
        let text = fs::read_to_string(path)
            .map_err(|error| Failure::invalid(format!("configuration {name}: {error}")))?;
        Self::parse(&text, &name.to_string())
    }

    /// Reads [`DEFAULT_CONFIG`] if it exists, else gives the defaults.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_default() -> Result<Self, Failure> {
        let path = Path::new(DEFAULT_CONFIG);
        if path.exists() { Self::load(path) } else { Ok(Self::default()) }
    }

    /// Reads the file of a daemon that is a relay and nothing else: `path`, or [`DEFAULT_RELAY_CONFIG`] if it exists. State and
    /// socket are a relay's own unless the file says otherwise, so that a node can run beside it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_relay(path: Option<&Path>) -> Result<Self, Failure> {
        let usual = Path::new(DEFAULT_RELAY_CONFIG);
        let mut config = match path.or_else(|| usual.exists().then_some(usual)) {
            Some(path) => Self::load(path)?,
            None => Self::default(),
        };
        // What the file leaves out is what a node would have.
        for (key, node, relay) in [
            (&mut config.state_dir, DEFAULT_STATE_DIR, DEFAULT_RELAY_STATE_DIR),
            (&mut config.socket, DEFAULT_SOCKET, DEFAULT_RELAY_SOCKET),
        ] {
            if key.as_path() == Path::new(node) {
                *key = relay.into();
            }
        }
        config.relay.get_or_insert_default();
        Ok(config)
    }

    fn parse(text: &str, name: &str) -> Result<Self, Failure> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            let place = line.map_or_else(String::new, |line| format!(", line {line}"));
            Failure::invalid(format!(
                "configuration {name}{place}: {}; correct it or remove that line",
                error.message().trim()
            ))
        })?;
        config.check().map_err(|failure| failure.context(format!("configuration {name}")))?;
        Ok(config)
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// Names the key and the values it may have.
    pub fn check(&self) -> Result<(), Failure> {
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(Failure::invalid(format!(
                "mtu = {}: must be {MIN_MTU} to {MAX_MTU}; {DEFAULT_MTU} fits every path of 1500 bytes",
                self.mtu
            )));
        }
        if !(MIN_TUN_QUEUE..=MAX_TUN_QUEUE).contains(&self.tun_queue) {
            return Err(Failure::invalid(format!(
                "tun_queue = {}: must be {MIN_TUN_QUEUE} to {MAX_TUN_QUEUE} packets; leave the key out for {DEFAULT_TUN_QUEUE}",
                self.tun_queue
            )));
        }
        if self.spin_us > MAX_SPIN_US {
            return Err(Failure::invalid(format!(
                "spin_us = {}: must be 0 to {MAX_SPIN_US} microseconds; leave the key out to sleep at once",
                self.spin_us
            )));
        }
        let name = &self.interface;
        if !is_interface_name(name) {
            return Err(Failure::invalid(format!(
                "interface = \"{name}\": must be 1 to {MAX_INTERFACE_NAME} letters, digits, `-`, `_` or `.`"
            )));
        }
        if self.listen_port == Some(0) {
            return Err(Failure::invalid(
                "listen_port = 0: give a port, or leave the key out for the next free one",
            ));
        }
        for (key, path) in [("state_dir", &self.state_dir), ("socket", &self.socket)] {
            if path.as_os_str().is_empty() {
                return Err(Failure::invalid(format!("{key} is empty: give a path, or leave the key out")));
            }
        }
        if self.ssh_port == Some(0) {
            return Err(Failure::invalid(
                "ssh_port = 0: give a port, or leave the key out for no SSH endpoint",
            ));
        }
        self.check_roads()?;
        self.dns.check()?;
        self.relay.as_ref().map_or(Ok(()), RelayMode::check)
    }

    fn check_roads(&self) -> Result<(), Failure> {
        if self.ssh.len() > SSH_ROADS_MAX {
            return Err(Failure::invalid(format!("[[ssh]]: at most {SSH_ROADS_MAX} roads")));
        }
        let mut to: BTreeMap<&str, usize> = BTreeMap::new();
        for road in &self.ssh {
            road.check()?;
            let count = to.entry(&road.peer).or_default();
            *count += 1;
            if *count > ROADS_TO_ONE_PEER {
                return Err(Failure::invalid(format!(
                    "[[ssh]] to `{}`: at most {ROADS_TO_ONE_PEER} roads to one peer",
                    road.peer
                )));
            }
        }
        if self.relay.is_some() && (self.ssh_port.is_some() || !self.ssh.is_empty()) {
            return Err(Failure::invalid(
                "[relay]: a relay has neither ssh_port nor [[ssh]] roads; leave them out",
            ));
        }
        Ok(())
    }

    /// How long the worker looks for packets before it sleeps.
    pub(crate) const fn spin(&self) -> Duration {
        Duration::from_micros(self.spin_us as u64)
    }

    /// Where metrics are told if nothing is said.
    pub(crate) const fn usual_metrics(&self) -> SocketAddr {
        if self.relay.is_some() { DEFAULT_RELAY_METRICS } else { DEFAULT_METRICS }
    }

    /// The path of the link socket, if there is to be one.
    pub(crate) fn link_socket_path(&self) -> Option<PathBuf> {
        match &self.link_socket {
            LinkSocket::Beside => Some(self.socket.with_file_name("link.sock")),
            LinkSocket::At(path) => Some(path.clone()),
            LinkSocket::Off => None,
        }
    }
}

fn link_socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LinkSocket, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "link_socket must be a path, or false for none")]
    enum Value {
        Path(PathBuf),
        Switch(bool),
    }
    match Value::deserialize(deserializer)? {
        Value::Path(path) if path.is_absolute() => Ok(LinkSocket::At(path)),
        Value::Path(_) => Err(D::Error::custom("link_socket must be an absolute path, or false for none")),
        Value::Switch(false) => Ok(LinkSocket::Off),
        Value::Switch(true) => Ok(LinkSocket::Beside),
    }
}

/// Reads what has a word of its own.
fn word<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// Whether an interface may be called so by our configuration.
pub(crate) fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_INTERFACE_NAME
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// The 1-based line of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = Config::parse("", "node.toml").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.state_dir, Path::new("/var/lib/mesh"));
        assert_eq!(config.socket, Path::new("/run/mesh/meshd.sock"));
        assert_eq!((config.mtu, config.listen_port, config.io), (1408, None, Choice::Auto));
        assert_eq!((config.crypto, config.offloads), (Crypto::Auto, Offloads::ALL));
        assert_eq!((config.tun_queue, config.spin()), (1000, Duration::ZERO));
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_line() {
        let error = Config::parse("mtu = 1400\n\nlisten_prot = 51820\n", "/etc/mesh/node.toml").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("/etc/mesh/node.toml, line 3"), "{text}");
        assert!(text.contains("listen_prot"), "{text}");
        assert!(text.contains("listen_port"), "names what would be right: {text}");
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (text, word) in [
            ("mtu = 900", "1280"),
            ("interface = \"\"", "interface"),
            ("interface = \"a-name-that-is-too-long\"", "15"),
            ("interface = \"a/b\"", "letters"),
            ("listen_port = 0", "next free"),
            ("io = \"epoll\"", "uring"),
            ("crypto = \"avx512\"", "choose auto or portable"),
            ("crypto = true", "line 1"),
            ("offloads = \"tso,lro\"", "\"lro\" is no offload: write all, none, or"),
            ("offloads = \"\"", "udp-gso"),
            ("offloads = [\"tso\"]", "line 1"),
            ("tun_queue = 15", "16 to 100000"),
            ("tun_queue = 100001", "16 to 100000"),
            ("tun_queue = -1", "line 1"),
            ("spin_us = 1001", "0 to 1000 microseconds"),
            ("spin_us = 65536", "line 1"),
            ("listen_port = 70000", "line 1"),
            ("state_dir = \"\"", "state_dir"),
            ("ssh_port = 0", "ssh_port"),
            ("link_socket = 7", "or false for none"),
            ("link_socket = \"run/link.sock\"", "absolute"),
            ("[relay]\nwebsockets = [\"ws://a/relay/v1\"]", "wss://"),
            ("[relay]\ntrusted_proxies = [\"proxy\"]", "192.0.2.0/24"),
            ("[relay]\nforwarded_header = \"via\"", "write x-forwarded-for or forwarded"),
            ("ssh_port = 22\n[relay]", "neither ssh_port"),
            ("relay = true", "a table `[relay]`"),
            ("dns = true", "a table `[dns]`"),
            ("[dns]\nmode = \"resolv.conf\"", "\"resolvconf\""),
            ("[dns]\nport = 0", "leave the key out for 53"),
            ("[dns]\nzone = \"mesh\"", "unknown field"),
            ("metrics = true", "a table `[metrics]`"),
            ("[metrics]\nlisten = 9464", "line 2"),
            ("[metrics]\nlisten = \"localhost\"", "127.0.0.1:9464"),
            ("[metrics]\nport = 1", "unknown field"),
        ] {
            let error = Config::parse(text, "node.toml").unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(error.contains("node.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn metrics_are_told_on_this_machine_alone_unless_asked_for() {
        let read = |text: &str| {
            let config = Config::parse(text, "node.toml").unwrap();
            (config.metrics.listen, config.usual_metrics().to_string())
        };
        assert_eq!(read(""), (Listen::Usual, "127.0.0.1:9464".to_owned()));
        assert_eq!(
            read("[relay]"),
            (Listen::Usual, "127.0.0.1:9466".to_owned()),
            "a relay may run beside a node"
        );
        assert_eq!(read("[metrics]\nlisten = true").0, Listen::Usual);
        assert_eq!(read("[metrics]\nlisten = false").0, Listen::Off);
        assert_eq!(read("[metrics]\nlisten = \"[::]:9000\"").0, Listen::At("[::]:9000".parse().unwrap()));
    }

    const ROAD: &str = "[[ssh]]\npeer = \"gate\"\nhost = \"gate.example:2222\"\nuser = \"mesh\"\nkey = \"/k\"\n\
                        known_hosts = \"/h\"\n";

    #[test]
    fn a_road_is_read_and_leads_to_the_usual_link_socket() {
        let config = Config::parse(ROAD, "node.toml").unwrap();
        let [road] = config.ssh.as_slice() else { panic!("{:?}", config.ssh) };
        assert_eq!((road.peer.as_str(), road.user.as_str()), ("gate", "mesh"));
        assert_eq!(road.host, HostPort { host: "gate.example".to_owned(), port: 2222 });
        assert_eq!(road.socket, Path::new(DEFAULT_LINK_SOCKET));
    }

    #[test]
    fn roads_that_could_not_be_taken_or_not_be_trusted_are_refused() {
        for (from, to, word) in [
            ("key = \"/k\"", "", "agent"),
            ("key = \"/k\"", "agent = \"ssh.sock\"", "absolute"),
            ("key = \"/k\"", "key = \"/k\"\nagent = \"/a\"", "not both"),
            ("key = \"/k\"", "key = \"~/.ssh/id\"", "absolute"),
            ("known_hosts = \"/h\"", "", "must be pinned"),
            ("known_hosts = \"/h\"", "known_hosts = \"/h\"\nhost_key = \"SHA256:x\"", "not both"),
            ("known_hosts = \"/h\"", "host_key = \"any\"", "ssh-keygen -lf"),
            ("user = \"mesh\"", "user = \"\"", "user is empty"),
            ("user = \"mesh\"", "", "user"),
            ("peer = \"gate\"", "peer = \"\"", "peer is empty"),
            ("gate.example:2222", "gate.example:0", "write a host"),
            ("user = \"mesh\"", "user = \"mesh\"\nsocket = \"link.sock\"", "absolute"),
            ("user = \"mesh\"", "user = \"mesh\"\npassword = \"x\"", "password"),
        ] {
            assert!(ROAD.contains(from), "{from}");
            let text = ROAD.replace(from, to);
            let error = Config::parse(&text, "node.toml").unwrap_err().to_string();
            assert!(error.contains(word), "{to}: {error}");
        }
        let error = Config::parse(&ROAD.repeat(7), "node.toml").unwrap_err().to_string();
        assert!(error.contains("at most 6 roads to one peer"), "{error}");
    }

    #[test]
    fn the_link_socket_lies_beside_the_other_one_unless_told_otherwise() {
        let path = |text: &str| Config::parse(text, "node.toml").unwrap().link_socket_path();
        assert_eq!(path(""), Some(DEFAULT_LINK_SOCKET.into()));
        assert_eq!(path("socket = \"/r/x.sock\""), Some("/r/link.sock".into()));
        assert_eq!(path("link_socket = \"/l/y.sock\""), Some("/l/y.sock".into()));
        assert_eq!(path("link_socket = false"), None);
    }

    #[test]
    fn names_are_answered_as_told() {
        let dns = |text: &str| Config::parse(text, "node.toml").unwrap().dns;
        assert_eq!(dns(""), Dns { mode: DnsMode::Auto, port: 53, search: true });
        let text = "[dns]\nmode = \"hosts\"\nport = 5353\nsearch = false\n";
        assert_eq!(dns(text), Dns { mode: DnsMode::Hosts, port: 5353, search: false });
    }

    #[test]
    fn a_relay_is_a_table() {
        let text = "[relay]\nwebsocket_listen = \"[::]:443\"\nwebsockets = [\"wss://r.example/relay/v1\"]\n\
                    trusted_proxies = [\"10.0.0.0/8\"]\nforwarded_header = \"forwarded\"\n";
        let relay = Config::parse(text, "node.toml").unwrap().relay.unwrap();
        assert_eq!(relay.websocket_listen, Some("[::]:443".parse().unwrap()));
        assert_eq!(relay.trusted_proxies, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(relay.forwarded_header, ringmesh_relay::ForwardedHeader::Forwarded);
        assert_eq!(Config::parse("[relay]", "node.toml").unwrap().relay, Some(RelayMode::default()));
    }

    #[test]
    fn a_relay_has_places_of_its_own_unless_its_file_says_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        fs::write(&file, "listen_port = 3478\nsocket = \"/r/x.sock\"\n").unwrap();
        let relay = Config::load_relay(Some(&file)).unwrap();
        assert_eq!(relay.state_dir, Path::new(DEFAULT_RELAY_STATE_DIR));
        assert_eq!((relay.socket.to_str(), relay.listen_port), (Some("/r/x.sock"), Some(3478)));
        assert_eq!(relay.relay, Some(RelayMode::default()));
        fs::write(&file, "listen_prot = 3478\n").unwrap();
        assert!(Config::load_relay(Some(&file)).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn every_key_can_be_set() {
        let text = "state_dir = \"/s\"\nsocket = \"/r/x.sock\"\nsocket_group = \"ops\"\ninterface = \"mesh7\"\n\
                    listen_port = 4000\nio = \"poll\"\nmtu = 1280\ncpu = 1\nendpoints = [\"203.0.113.7:51820\"]\n\
                    crypto = \"portable\"\noffloads = \"tso, udp-gso\"\ntun_queue = 500\nspin_us = 50\n\
                    log = \"debug\"\n";
        let config = Config::parse(text, "node.toml").unwrap();
        assert_eq!(config.listen_port, Some(4000));
        assert_eq!(config.endpoints, vec!["203.0.113.7:51820".parse().unwrap()]);
        assert_eq!(config.cpu, Some(1));
        assert_eq!(config.crypto, Crypto::Portable);
        assert_eq!(config.offloads, Offloads { tso: true, udp_gso: true, ..Offloads::NONE });
        assert_eq!((config.tun_queue, config.spin()), (500, Duration::from_micros(50)));
    }

    #[test]
    fn the_least_and_the_most_of_what_has_bounds_can_be_used() {
        for text in ["tun_queue = 16", "tun_queue = 100000", "spin_us = 0", "spin_us = 1000"] {
            Config::parse(text, "node.toml").unwrap();
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/node.toml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/node.toml"));
    }
}
