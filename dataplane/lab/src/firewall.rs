//! What a host refuses to let pass, and how it translates addresses: tables of the lab's own in nftables, each replaced as
//! a whole by one transaction, so that no packet ever meets half a rule set.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    process::Stdio,
};

use crate::{error::LabError, host::Host};

/// The tables, apart from each other so that a change of one leaves the state of the others alone.
const BLOCKS: &str = "ringmesh_lab_blocks";
const NAT: &str = "ringmesh_lab_nat";
const DIVERSION: &str = "ringmesh_lab_diversion";
/// Where Debian has `nft`; the PATH of a user without rights often lacks it.
const SBIN: &str = "/usr/sbin:/sbin";

/// What a host drops, silently and in both directions: what it forwards, what it sends and what is sent to it.
///
/// What it says to itself, over its loopback, always passes. A program that sends on the very host that blocks is told
/// (`EPERM`), as by any local firewall; on a router nobody is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blocks {
    /// All UDP, but for what goes to or comes from these addresses. `None`: UDP passes.
    pub udp_except: Option<Vec<IpAddr>>,
    /// TCP from and to these ports.
    pub tcp_ports: Vec<u16>,
}

impl Blocks {
    /// Nothing is blocked.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// All UDP is blocked.
    #[must_use]
    pub fn udp() -> Self {
        Self { udp_except: Some(Vec::new()), ..Self::default() }
    }

    /// All UDP is blocked, but for what goes to or comes from `address`.
    #[must_use]
    pub fn but_for(mut self, address: impl Into<IpAddr>) -> Self {
        self.udp_except.get_or_insert_default().push(address.into());
        self
    }

    /// TCP from and to `port` is blocked as well.
    #[must_use]
    pub fn and_tcp(mut self, port: u16) -> Self {
        self.tcp_ports.push(port);
        self
    }

    fn rules(&self) -> String {
        let mut rules = String::from("iifname lo return; oifname lo return; ");
        for port in &self.tcp_ports {
            let _ = write!(rules, "tcp sport {port} drop; tcp dport {port} drop; ");
        }
        if let Some(except) = &self.udp_except {
            for address in except {
                let family = family(*address);
                let _ = write!(rules, "{family} saddr {address} return; {family} daddr {address} return; ");
            }
            rules.push_str("meta l4proto udp drop; ");
        }
        rules
    }
}

/// How a router makes the addresses behind it look like its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nat {
    /// Keeps a source's port, for all destinations alike.
    Masquerade,
    /// A port by chance for every destination.
    Symmetric,
}

impl Host {
    /// Blocks exactly what `blocks` names from now on, and nothing else.
    ///
    /// # Errors
    /// [`LabError::NotInstalled`] without `nft`; [`LabError::Refused`] with its words if it fails.
    pub fn block(&self, blocks: &Blocks) -> Result<(), LabError> {
        let hooks: String = ["input", "forward", "output"]
            .map(|hook| format!("chain {hook} {{ type filter hook {hook} priority -300; jump blocked; }}\n"))
            .concat();
        self.replace_table(BLOCKS, &format!("chain blocked {{ {} }}\n{hooks}", blocks.rules()))
    }

    /// Translates what leaves by the interface `outside`, and lets nothing in there that was not asked for.
    pub(crate) fn translate(&self, outside: &str, nat: Nat) -> Result<(), LabError> {
        let how = match nat {
            Nat::Masquerade => "masquerade",
            Nat::Symmetric => "masquerade random,fully-random",
        };
        // What nobody inside asked for must be dropped rather than refused by the router: a refused datagram has been
        // taken note of by the kernel, which then gives the next flow with its addresses another port.
        let drop_strangers = |hook: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; iifname \"{outside}\" ct state new drop; }}\n"
            )
        };
        let chain = "chain postrouting { type nat hook postrouting priority srcnat;";
        let rules = format!(
            "{chain} meta nfproto ipv4 oifname \"{outside}\" {how}; }}\n{}{}",
            drop_strangers("input"),
            drop_strangers("forward"),
        );
        self.replace_table(NAT, &rules)
    }

    /// Sends the UDP that this host would forward to `destination` to its own `port` instead, where a proxy may listen.
    ///
    /// Flows that passed before go on as they did: the kernel decides once a flow.
    ///
    /// # Errors
    /// [`LabError::NotInstalled`] without `nft`; [`LabError::Refused`] with its words if it fails.
    pub fn divert_udp(&self, destination: SocketAddr, port: u16) -> Result<(), LabError> {
        let (address, family) = (destination.ip(), family(destination.ip()));
        let rules = format!(
            "chain prerouting {{ type nat hook prerouting priority dstnat; \
             {family} daddr {address} udp dport {} redirect to :{port}; }}\n",
            destination.port(),
        );
        self.replace_table(DIVERSION, &rules)
    }

    fn replace_table(&self, table: &str, rules: &str) -> Result<(), LabError> {
        // Declaring it first makes deleting it right also if there was none.
        let script =
            format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{\n{rules}}}\n");
        let what = format!("replace the table {table} of {}", self.name());
        let failed = |error: io::Error| LabError::system(what.clone(), error);
        let path = std::env::var("PATH").map_or_else(|_| SBIN.to_owned(), |path| format!("{path}:{SBIN}"));
        let mut child = self
            .command("nft")?
            .args(["-f", "-"])
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| LabError::starting("nft", "nftables", error))?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes()).map_err(failed)?;
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Refused { what, said })
    }
}

/// What nftables calls the family of `address`.
fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}
