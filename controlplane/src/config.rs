//! The coordinator's configuration file, `coordinator.toml`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use ringmesh_monitor::Listen;
use ringmesh_relay::{
    ForwardedHeader,
    rate::{DEFAULT_CLIENT_MBIT, DEFAULT_TOTAL_MBIT},
};
use ringmesh_tunnel::{
    enroll::COORDINATORS_MAX,
    ip::Prefix,
    netmap::{URL_MAX, WEBSOCKETS_MAX},
};
use serde::{Deserialize, Deserializer, de::Error as _};

/// The longest base path: with the longest host name before it, a URL still fits into a record.
const MAX_BASE_PATH: usize = 64;
/// The most addresses of the relay that can be named.
const MAX_RELAY_ENDPOINTS: usize = 8;

/// What a coordinator is told at start. Every field has a default, and an unknown one is an error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where nodes connect: an IP address and a TCP port. `[::]` takes IPv4 too; port 0 takes any free one.
    pub listen: SocketAddr,
    /// What nodes are told to connect to: `host`, `host:port`, `192.0.2.1:443` or `[2001:db8::1]:443`.
    /// Empty: every global address of this machine.
    pub advertise: Vec<Endpoint>,
    /// Where the database, the key that wraps its secrets and the TLS key lie (mode 0700).
    pub state_dir: PathBuf,
    /// The unix socket for operators (mode 0600).
    pub admin_socket: PathBuf,
    /// Seconds between heartbeats to each node, 1 to 300; a node that misses three is let go.
    pub heartbeat_seconds: u32,
    /// Whether `state_dir` was just restored from a backup, so that revision and serials must be raised beyond what nodes have
    /// seen since. Only by flag: it is about one start. One that [`back_up`](crate::back_up) made says so by itself.
    #[serde(skip)]
    pub restored: bool,
    /// The network that is made at the first start. Later changes of it are not taken over.
    pub network: NetworkConfig,
    /// The relay for nodes that cannot reach each other.
    pub relay: RelayConfig,
    /// What monitoring may ask.
    pub metrics: MetricsConfig,
}

/// Where monitoring asks the coordinator: `/metrics`, `/livez`, `/readyz` and `/version` over HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// An address and a TCP port, or `false`. Not set: [`USUAL_METRICS`], if it is free.
    pub listen: Listen,
}

/// Where metrics are to be had unless said otherwise.
pub const USUAL_METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);

/// The relay that the coordinator runs: over UDP, and over WebSockets on the coordinator's own port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// The UDP address and port. Not set: those on which the coordinator itself listens, which are TCP's.
    pub listen: Option<SocketAddr>,
    /// Where nodes send to: host names or IP addresses, with the port if it is another one outside. Empty: what `advertise` says.
    pub endpoints: Vec<Endpoint>,
    /// The WebSocket's URLs as nodes see them, `wss://mesh.example.com/base/relay/v1`; at most 4. Empty: made of what `advertise`
    /// says and `base_path`.
    pub websockets: Vec<String>,
    /// What stands before `/relay/v1` in the path of requests, `/base`: where a reverse proxy serves other things too.
    pub base_path: String,
    /// Reverse proxies, whose word on where a connection comes from is taken.
    #[serde(deserialize_with = "from_strs")]
    pub trusted_proxies: Vec<Prefix>,
    /// The header in which they give it: `x-forwarded-for` or `forwarded` (RFC 7239). The first by default.
    #[serde(deserialize_with = "from_str")]
    pub forwarded_header: ForwardedHeader,
    /// What one node may have relayed, in Mbit/s (10^6 bits a second); 0: no bound of its own. 1000 by default.
    pub client_rate_mbit: u32,
    /// What all together may have relayed, in Mbit/s (10^6 bits a second), shared fairly; 0: no bound. 2000 by default, which is
    /// more than one node may have, so that none ever takes all.
    pub total_rate_mbit: u32,
}

/// What is fixed when a network is made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// A label of letters, digits and hyphens, at most 63.
    pub name: String,
    /// Where nodes get their IPv4 addresses from.
    #[serde(deserialize_with = "from_str")]
    pub ipv4_pool: Prefix,
    /// The DNS zone of the nodes' names.
    pub zone: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0_u16; 8], 443)),
            advertise: Vec::new(),
            state_dir: "/var/lib/mesh-coordinator".into(),
            admin_socket: "/run/mesh-coordinator/coordinator.sock".into(),
            heartbeat_seconds: 20,
            restored: false,
            network: NetworkConfig::default(),
            relay: RelayConfig::default(),
            metrics: MetricsConfig::default(),
        }
    }
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: None,
            endpoints: Vec::new(),
            websockets: Vec::new(),
            base_path: String::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            client_rate_mbit: DEFAULT_CLIENT_MBIT,
            total_rate_mbit: DEFAULT_TOTAL_MBIT,
        }
    }
}

impl Default for NetworkConfig {
    fn default() -> Self {
        let pool = Prefix::containing(IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10);
        Self {
            name: "mesh".into(),
            ipv4_pool: pool.expect("invariant: /10 is not longer than an IPv4 address"),
            zone: "mesh".into(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, or not ours; the message names the line.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value is out of bounds.
    #[error("{field}: {reason}")]
    Value {
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Config {
    /// Reads a configuration file and checks every value in it.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file and the field.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path.into(), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, reason: &str| Err(ConfigError::Value { field, reason: reason.into() });
        if !(1..=300).contains(&self.heartbeat_seconds) {
            return wrong("heartbeat_seconds", "must be from 1 to 300");
        }
        if self.advertise.len() > COORDINATORS_MAX {
            return wrong("advertise", "at most 8 addresses: the join token carries them all");
        }
        self.relay.check()?;
        self.network.check()
    }
}

impl RelayConfig {
    /// Checks path and URLs.
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, reason: String| Err(ConfigError::Value { field, reason });
        let path = &self.base_path;
        let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
        let segments = path
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
        if !path.is_empty() && (!segments || !path.chars().all(plain) || path.len() > MAX_BASE_PATH) {
            return wrong(
                "relay.base_path",
                format!(
                    "{path:?} does not fit: write /base, with / before and not behind, of letters, digits and -._~, at most \
                     {MAX_BASE_PATH} characters"
                ),
            );
        }
        if self.endpoints.len() > MAX_RELAY_ENDPOINTS {
            return wrong("relay.endpoints", format!("at most {MAX_RELAY_ENDPOINTS}"));
        }
        if self.websockets.len() > WEBSOCKETS_MAX {
            return wrong("relay.websockets", format!("at most {WEBSOCKETS_MAX}"));
        }
        let fits = |url: &&String| {
            let host = url.strip_prefix("wss://").filter(|rest| !rest.is_empty() && !rest.starts_with('/'));
            host.is_some() && url.len() <= URL_MAX && url.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match self.websockets.iter().find(|url| !fits(url)) {
            Some(url) => wrong(
                "relay.websockets",
                format!(
                    "{url:?} does not fit: write wss://mesh.example.com/relay/v1, at most {URL_MAX} characters"
                ),
            ),
            None => Ok(()),
        }
    }
}

impl NetworkConfig {
    /// Checks name, pool and zone.
    ///
    /// # Errors
    /// [`ConfigError::Value`], naming the field and what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field, reason: String| Err(ConfigError::Value { field, reason });
        if let Err(reason) = check_label(&self.name) {
            return wrong("network.name", reason);
        }
        if self.zone.len() > 128 {
            return wrong("network.zone", "at most 128 characters".into());
        }
        for label in self.zone.split('.') {
            if let Err(reason) = check_label(label) {
                return wrong("network.zone", reason);
            }
        }
        check_pool(self.ipv4_pool).or_else(|reason| wrong("network.ipv4_pool", reason))
    }
}

/// Checks a label of a host name: lower-case letters, digits and inner hyphens, 1 to 63 (RFC 1123, section 2.1).
pub(crate) fn check_label(label: &str) -> Result<(), String> {
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if label.is_empty() || label.len() > 63 {
        return Err("a name has 1 to 63 characters".into());
    }
    if !label.chars().all(letters) || label.starts_with('-') || label.ends_with('-') {
        return Err(
            "a name has only lower-case letters, digits and hyphens, and no hyphen at either end".into()
        );
    }
    Ok(())
}

/// A pool must be ordinary unicast space with room for some nodes.
fn check_pool(pool: Prefix) -> Result<(), String> {
    let IpAddr::V4(first) = pool.address() else {
        return Err(format!("{pool} is not IPv4; the IPv6 range is chosen by itself"));
    };
    if !(8..=29).contains(&pool.len()) {
        return Err(format!("{pool} does not fit: from /8 to /29, for example 100.64.0.0/10"));
    }
    let reserved = first.octets()[0] == 0
        || first.is_loopback()
        || first.is_link_local()
        || first.is_multicast()
        || first.octets()[0] >= 240;
    if reserved {
        return Err(format!("{pool} is reserved; take private space such as 100.64.0.0/10 or 10.42.0.0/16"));
    }
    Ok(())
}

/// An address of a coordinator as nodes write it: a host name or an IP address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// A host name, or an IP address without brackets.
    pub host: String,
    /// `None`: the port that is listened on.
    pub port: Option<u16>,
}

impl Endpoint {
    /// The text `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn with_port(&self, default: u16) -> String {
        let port = self.port.unwrap_or(default);
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

impl From<IpAddr> for Endpoint {
    fn from(address: IpAddr) -> Self {
        Self { host: address.to_string(), port: None }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || {
            format!("{text:?} is not an address: write host, host:port, 192.0.2.1:443 or [2001:db8::1]:443")
        };
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: Some(address.port()) });
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(address.into());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| usage())?)),
            None => (text, None),
        };
        let host = host.to_ascii_lowercase();
        if host.len() > 253 || host.split('.').any(|label| check_label(label).is_err()) {
            return Err(usage());
        }
        Ok(Self { host, port })
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_str(deserializer)
    }
}

/// Reads values from their texts.
fn from_strs<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

/// Reads a value from its text.
fn from_str<'de, D: Deserializer<'de>, T: FromStr<Err: std::fmt::Display>>(
    deserializer: D,
) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse("").unwrap(), Config::default());
        assert_eq!(Config::default().listen.to_string(), "[::]:443");
        assert_eq!(Config::default().network.ipv4_pool.to_string(), "100.64.0.0/10");
    }

    #[test]
    fn the_relay_has_limits_unless_they_are_lifted_expressly() {
        let rates = |text: &str| {
            let relay = parse(text).unwrap().relay;
            (relay.client_rate_mbit, relay.total_rate_mbit)
        };
        assert_eq!(rates(""), (1000, 2000));
        assert_eq!(rates("[relay]\ntotal_rate_mbit = 500"), (1000, 500));
        assert_eq!(rates("[relay]\nclient_rate_mbit = 0\ntotal_rate_mbit = 0"), (0, 0));
    }

    #[test]
    fn every_field_can_be_set() {
        let config = parse(
            "listen = \"127.0.0.1:8443\"\nadvertise = [\"Mesh.example.org\", \"[2001:db8::1]:444\"]\n\
             state_dir = \"/a\"\nadmin_socket = \"/b\"\nheartbeat_seconds = 5\n\
             [network]\nname = \"home\"\nipv4_pool = \"10.42.0.0/16\"\nzone = \"home.arpa\"\n\
             [relay]\nenabled = false\nlisten = \"[::]:3478\"\nendpoints = [\"relay.example.org:3479\"]\n\
             websockets = [\"wss://mesh.example.org/base/relay/v1\"]\nbase_path = \"/base\"\n\
             trusted_proxies = [\"192.0.2.0/24\", \"::1/128\"]\nforwarded_header = \"Forwarded\"\nclient_rate_mbit = 50\ntotal_rate_mbit = 400\n",
        )
        .unwrap();
        let advertised: Vec<String> =
            config.advertise.iter().map(|endpoint| endpoint.with_port(8443)).collect();
        assert_eq!(advertised, ["mesh.example.org:8443", "[2001:db8::1]:444"]);
        assert_eq!(config.network.zone, "home.arpa");
        assert_eq!(
            config.relay,
            RelayConfig {
                enabled: false,
                listen: Some("[::]:3478".parse().unwrap()),
                endpoints: vec![Endpoint { host: "relay.example.org".into(), port: Some(3479) }],
                websockets: vec!["wss://mesh.example.org/base/relay/v1".into()],
                base_path: "/base".into(),
                trusted_proxies: vec!["192.0.2.0/24".parse().unwrap(), "::1/128".parse().unwrap()],
                forwarded_header: ForwardedHeader::Forwarded,
                client_rate_mbit: 50,
                total_rate_mbit: 400,
            }
        );
    }

    #[test]
    fn an_unknown_field_is_named() {
        assert!(parse("lisen = \"[::]:1\"").unwrap_err().contains("unknown field `lisen`"));
        assert!(parse("[relay]\nport = 1").unwrap_err().contains("unknown field `port`"));
        assert!(parse("[network]\npool = \"10.0.0.0/8\"").unwrap_err().contains("unknown field `pool`"));
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_with_the_cure() {
        for (text, expected) in [
            ("heartbeat_seconds = 0", "heartbeat_seconds: must be from 1 to 300"),
            ("heartbeat_seconds = 301", "heartbeat_seconds: must be from 1 to 300"),
            ("network.ipv4_pool = \"10.1.2.3/16\"", "did you mean 10.1.0.0/16?"),
            ("network.ipv4_pool = \"10.0.0.0/30\"", "from /8 to /29"),
            ("network.ipv4_pool = \"127.0.0.0/8\"", "is reserved"),
            ("network.ipv4_pool = \"169.254.0.0/16\"", "is reserved"),
            ("network.ipv4_pool = \"224.0.0.0/8\"", "is reserved"),
            ("network.ipv4_pool = \"fd00::/48\"", "is not IPv4"),
            ("network.name = \"Home\"", "lower-case"),
            ("network.name = \"\"", "1 to 63"),
            ("network.zone = \"-a.mesh\"", "no hyphen at either end"),
            ("network.zone = \"a..b\"", "1 to 63"),
            ("advertise = [\"http://x\"]", "is not an address"),
            ("advertise = [\"x:port\"]", "is not an address"),
            ("listen = \"443\"", "invalid socket address"),
            ("relay.listen = \"443\"", "invalid socket address"),
            ("relay.base_path = \"base\"", "write /base"),
            ("relay.base_path = \"/base/\"", "write /base"),
            ("relay.base_path = \"/\"", "write /base"),
            ("relay.base_path = \"/a//b\"", "write /base"),
            ("relay.base_path = \"/a/../b\"", "write /base"),
            ("relay.base_path = \"/a?b\"", "write /base"),
            ("relay.websockets = [\"https://x/relay/v1\"]", "write wss://"),
            ("relay.websockets = [\"wss://\"]", "write wss://"),
            ("relay.websockets = [\"wss://a b/\"]", "write wss://"),
            (
                "relay.websockets = [\"wss://a\", \"wss://a\", \"wss://a\", \"wss://a\", \"wss://a\"]",
                "at most 4",
            ),
            ("relay.endpoints = [\"http://x\"]", "is not an address"),
            ("relay.trusted_proxies = [\"10.1.2.3/8\"]", "did you mean 10.0.0.0/8?"),
            ("relay.forwarded_header = \"x-real-ip\"", "write x-forwarded-for or forwarded"),
            ("relay.client_rate_mbit = -1", "relay"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
