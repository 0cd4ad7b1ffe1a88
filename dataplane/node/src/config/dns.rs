//! `[dns]`: how mesh names are answered on this machine.

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::error::Failure;

/// The port on which DNS is asked for (RFC 1035 section 4.2).
const USUAL_PORT: u16 = 53;

/// How this machine is told of mesh names, and where they are answered.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table `[dns]`")]
pub struct Dns {
    /// How the machine is told: `auto`, `resolved`, `resolvconf`, `hosts` or `off`.
    #[serde(deserialize_with = "mode")]
    pub mode: DnsMode,
    /// The port of the node's own addresses on which it answers this machine, by UDP and TCP. 53 by default; on another one
    /// only systemd-resolved can be told of it.
    pub port: u16,
    /// Whether names may be used without the zone: `ssh alpha`. `true` by default.
    pub search: bool,
}

/// By whom mesh names are resolved on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DnsMode {
    /// The first of the following that works.
    #[default]
    Auto,
    /// systemd-resolved, told by D-Bus.
    Resolved,
    /// The C library, by a record given to `resolvconf`.
    Resolvconf,
    /// The C library, by a block in `/etc/hosts`.
    Hosts,
    /// Nobody is told; the node answers all the same.
    Off,
}

impl Default for Dns {
    fn default() -> Self {
        Self { mode: DnsMode::Auto, port: USUAL_PORT, search: true }
    }
}

impl Dns {
    /// Checks what types cannot say.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.port == 0 {
            return Err(Failure::invalid(format!(
                "dns.port = 0: give a port, or leave the key out for {USUAL_PORT}"
            )));
        }
        if self.mode == DnsMode::Resolvconf && self.port != USUAL_PORT {
            return Err(Failure::invalid(format!(
                "dns.port = {} with dns.mode = \"resolvconf\": the C library asks at port {USUAL_PORT} and cannot be told of \
                 another; leave dns.port out, or take the mode \"resolved\", \"hosts\" or \"auto\"",
                self.port
            )));
        }
        Ok(())
    }
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DnsMode, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "auto" => Ok(DnsMode::Auto),
        "resolved" => Ok(DnsMode::Resolved),
        "resolvconf" => Ok(DnsMode::Resolvconf),
        "hosts" => Ok(DnsMode::Hosts),
        "off" => Ok(DnsMode::Off),
        other => Err(D::Error::custom(format!(
            "dns.mode = \"{other}\": write \"auto\", \"resolved\", \"resolvconf\", \"hosts\" or \"off\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvconf_needs_the_usual_port_and_other_modes_do_not() {
        let with = |mode, port| Dns { mode, port, search: true }.check();
        let refused = with(DnsMode::Resolvconf, 5353).unwrap_err().to_string();
        assert!(
            refused.contains("dns.port = 5353") && refused.contains("the C library asks at port 53"),
            "{refused}"
        );
        with(DnsMode::Resolvconf, 53).unwrap();
        for mode in [DnsMode::Auto, DnsMode::Resolved, DnsMode::Hosts, DnsMode::Off] {
            with(mode, 5353).unwrap();
            with(mode, 0).unwrap_err();
        }
    }
}
