//! The node's configuration: one optional TOML file, every key with a default, no unknown key accepted.
//!
//! Flags and `MESH_*` variables of `meshctl` are laid over the file by the caller; this module only knows the result.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ringmesh_io::Choice;
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::error::Failure;

/// Where the configuration is looked for if no other file is named.
pub const DEFAULT_CONFIG: &str = "/etc/mesh/node.toml";
/// Where the state lives by default.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/mesh";
/// Where the local API listens by default.
pub const DEFAULT_SOCKET: &str = "/run/mesh/meshd.sock";
/// The UDP port tried first when none is fixed.
pub const DEFAULT_PORT: u16 = 51820;
/// The TUN device's name by default.
pub const DEFAULT_INTERFACE: &str = "mesh0";
/// The TUN device's MTU by default: a multiple of 16 that fits, sealed and relayed over IPv6, in 1500 bytes.
pub const DEFAULT_MTU: u16 = 1408;

/// A configuration file of more bytes than this is not one.
const MAX_FILE: u64 = 1 << 20;
/// IPv6 needs this (RFC 8200 section 5).
const MIN_MTU: u16 = 1280;
/// The largest packet that, sealed and in IPv6, fits a 9000-byte link.
const MAX_MTU: u16 = 8912;
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
    #[serde(deserialize_with = "choice")]
    pub io: Choice,
    /// MTU of the TUN device, 1280 to 8912.
    pub mtu: u16,
    /// The CPU the worker is pinned to. Not given: one of those the process may use, chosen by its process id, so that
    /// several daemons of a machine spread over it.
    pub cpu: Option<usize>,
    /// Endpoints to tell peers besides the addresses found on the machine (a forwarded port, say).
    pub endpoints: Vec<SocketAddr>,
    /// Log filter (`info`, `ringmesh_node=debug`); `MESH_LOG` goes before it.
    pub log: Option<String>,
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
            mtu: DEFAULT_MTU,
            cpu: None,
            endpoints: Vec::new(),
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
        let name = &self.interface;
        let well_formed = !name.is_empty()
            && name.len() <= MAX_INTERFACE_NAME
            && name != "."
            && name != ".."
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !well_formed {
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
        Ok(())
    }
}

fn choice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Choice, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
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
            ("listen_port = 70000", "line 1"),
            ("state_dir = \"\"", "state_dir"),
        ] {
            let error = Config::parse(text, "node.toml").unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(error.contains("node.toml"), "{text}: {error}");
        }
    }

    #[test]
    fn every_key_can_be_set() {
        let text = "state_dir = \"/s\"\nsocket = \"/r/x.sock\"\nsocket_group = \"ops\"\ninterface = \"mesh7\"\n\
                    listen_port = 4000\nio = \"poll\"\nmtu = 1280\ncpu = 1\nendpoints = [\"203.0.113.7:51820\"]\n\
                    log = \"debug\"\n";
        let config = Config::parse(text, "node.toml").unwrap();
        assert_eq!(config.listen_port, Some(4000));
        assert_eq!(config.endpoints, vec!["203.0.113.7:51820".parse().unwrap()]);
        assert_eq!(config.cpu, Some(1));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/node.toml")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/node.toml"));
    }
}
