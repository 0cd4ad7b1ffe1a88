//! `/etc/resolv.conf`, which is read and never written (resolv.conf(5)).

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// A longer file is none: the C library uses three servers of it.
const MAX_FILE: u64 = 64 << 10;
/// Servers that are looked at.
const SERVERS_MAX: usize = 16;
/// systemd-resolved listens there; the second passes on what it is asked without adding anything.
pub(crate) const RESOLVED: [Ipv4Addr; 2] = [Ipv4Addr::new(127, 0, 0, 53), Ipv4Addr::new(127, 0, 0, 54)];

/// What matters of a resolver's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    /// Whom the C library asks, in order; a zone in an address (`fe80::1%eth0`) is not understood, and the server left out.
    pub(crate) servers: Vec<IpAddr>,
    /// Lines that begin with `#` or `;`.
    pub(crate) comments: Vec<String>,
}

impl ResolvConf {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        File::open(path)?.take(MAX_FILE).read_to_end(&mut text)?;
        Ok(Self::parse(&String::from_utf8_lossy(&text)))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            if line.starts_with(['#', ';']) {
                found.comments.push(line.to_owned());
                continue;
            }
            let mut words = line.split_whitespace();
            if words.next() == Some("nameserver")
                && let Some(Ok(server)) = words.next().map(str::parse)
                && !found.servers.contains(&server)
                && found.servers.len() < SERVERS_MAX
            {
                found.servers.push(server);
            }
        }
        found
    }

    /// Whether systemd-resolved is asked, and nobody else.
    pub(crate) fn asks_resolved(&self) -> bool {
        !self.servers.is_empty()
            && self.servers.iter().all(|server| RESOLVED.iter().any(|stub| server == stub))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_in_order_and_once() {
        let text = "# one\n; two\nnameserver 192.0.2.1\n  nameserver fd00::1 # x\nsearch a b\nnameserver\n\
                    nameserver 192.0.2.1\nnameserver fe80::1%eth0\noptions edns0\n";
        let found = ResolvConf::parse(text);
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(found.servers, expected);
        assert_eq!(found.comments, ["# one", "; two"]);
    }

    #[test]
    fn a_file_without_end_is_bounded() {
        let many: String = (0..=255).map(|last| format!("nameserver 192.0.2.{last}\n")).collect();
        assert_eq!(ResolvConf::parse(&many).servers.len(), SERVERS_MAX);
    }

    #[test]
    fn resolved_is_asked_only_where_nobody_else_is() {
        let asks = |text| ResolvConf::parse(text).asks_resolved();
        assert!(asks("nameserver 127.0.0.53\noptions edns0 trust-ad\n"));
        assert!(!asks("nameserver 192.0.2.1\n"), "its setting would not be used");
        assert!(!asks("nameserver 127.0.0.53\nnameserver 192.0.2.1\n"));
        assert!(!asks(""));
    }
}
