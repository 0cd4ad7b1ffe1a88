//! `[[ssh]]`: roads to peers through OpenSSH servers that the user already has.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::DEFAULT_LINK_SOCKET;
use crate::error::Failure;

/// The most roads of one node.
pub const SSH_ROADS_MAX: usize = 256;
/// SSH's port (RFC 4251).
const SSH_PORT: u16 = 22;

/// A road to a peer: an SSH server on the peer's machine (or one that shares its file system), from which a stream leads to
/// the link socket of the peer's daemon.
///
/// Nobody is believed for having come this way: the session inside the stream says who is at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshRoad {
    /// The peer it leads to: its name or id.
    pub peer: String,
    /// The SSH server, `host` or `host:port`.
    pub host: HostPort,
    /// Whom to log in as.
    pub user: String,
    /// Private key file (OpenSSH form, not encrypted). Either this or `agent`.
    pub key: Option<PathBuf>,
    /// Socket of an SSH agent that holds the key.
    pub agent: Option<PathBuf>,
    /// The server's key: `SHA256:…` or a line `ssh-ed25519 AAAA…`. Either this or `known_hosts`.
    pub host_key: Option<String>,
    /// File in which the server's key is found, as OpenSSH keeps it.
    pub known_hosts: Option<PathBuf>,
    /// Link socket of the peer's daemon, on the server.
    #[serde(default = "link_socket")]
    pub socket: PathBuf,
}

/// A host's name or address, and a TCP port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl std::str::FromStr for HostPort {
    type Err = &'static str;

    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "write a host as `name`, `name:port`, `192.0.2.7:22` or `[2001:db8::7]:22`";
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(FORM)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| FORM)?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':').ok_or(FORM)?) })
        } else if text.parse::<std::net::Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
        };
        let port = port.map_or(Ok(SSH_PORT), |port| port.parse().map_err(|_| FORM))?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(is_name) || port == 0 {
            return Err(FORM);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl<'de> Deserialize<'de> for HostPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn link_socket() -> PathBuf {
    DEFAULT_LINK_SOCKET.into()
}

impl SshRoad {
    /// Checks what types cannot say.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let road = |what: &str| Failure::invalid(format!("[[ssh]] to `{}`: {what}", self.peer));
        if self.peer.is_empty() {
            return Err(road("peer is empty: give the peer's name or id"));
        }
        if self.user.is_empty() || self.user.chars().any(char::is_control) {
            return Err(road("user is empty: give the user to log in as"));
        }
        match (&self.key, &self.agent) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => {
                return Err(road("give `key` (a private key file) or `agent` (an SSH agent's socket)"));
            }
            (Some(_), Some(_)) => return Err(road("give either `key` or `agent`, not both")),
        }
        match (&self.host_key, &self.known_hosts) {
            (Some(key), None) if is_host_key(key) => {}
            (Some(_), None) => {
                return Err(road(
                    "host_key must be `SHA256:…` (as `ssh-keygen -lf` shows it) or a key `ssh-ed25519 AAAA…`",
                ));
            }
            (None, Some(_)) => {}
            (None, None) => {
                return Err(road(
                    "the server's key must be pinned: give `host_key` (`SHA256:…`, or the line `ssh-keyscan` prints) or \
                     `known_hosts` (a file)",
                ));
            }
            (Some(_), Some(_)) => return Err(road("give either `host_key` or `known_hosts`, not both")),
        }
        let paths = [("key", &self.key), ("agent", &self.agent), ("known_hosts", &self.known_hosts)];
        for (name, path) in paths {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(road(&format!("{name} must be an absolute path: the daemon has no home")));
            }
        }
        if !self.socket.is_absolute() {
            return Err(road("socket must be an absolute path on the server"));
        }
        Ok(())
    }
}

/// Whether a host key has one of its two forms; which key it is is found out when it is compared.
fn is_host_key(text: &str) -> bool {
    let decoded = |text: &str| STANDARD_NO_PAD.decode(text.trim_end_matches('=')).unwrap_or_default();
    if let Some(hash) = text.strip_prefix("SHA256:") {
        return decoded(hash).len() == 32;
    }
    let mut words = text.split_whitespace();
    let known = |kind: &str| ["ssh-", "ecdsa-", "sk-"].iter().any(|form| kind.starts_with(form));
    words.next().is_some_and(known) && words.next().is_some_and(|key| decoded(key).len() >= 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_with_and_without_a_port() {
        for (text, host, port) in [
            ("gate.example", "gate.example", 22),
            ("gate.example:2222", "gate.example", 2222),
            ("192.0.2.7", "192.0.2.7", 22),
            ("[2001:db8::7]:2222", "2001:db8::7", 2222),
            ("[2001:db8::7]", "2001:db8::7", 22),
            ("2001:db8::7", "2001:db8::7", 22),
        ] {
            let parsed: HostPort = text.parse().unwrap();
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port), "{text}");
            assert_eq!(parsed.to_string().parse::<HostPort>().unwrap(), parsed);
        }
        for text in ["", ":22", "a b", "host:0", "host:70000", "host:", "[::1", "[gate]:22", "a@b", "host/x"]
        {
            assert!(text.parse::<HostPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_key_is_a_fingerprint_or_a_key() {
        let hash = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ comment";
        assert!(is_host_key(hash) && is_host_key(key));
        for text in ["", "SHA256:", "SHA256:short", "MD5:aa:bb", "ssh-ed25519", "ssh-ed25519 !!!!", "AAAA"] {
            assert!(!is_host_key(text), "{text}");
        }
    }
}
