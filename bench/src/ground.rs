//! What lies between the two hosts: a cable, a cable that behaves as network cards do, or a router; and by which version
//! of IP they know each other.
//!
//! A plain cable (a veth pair) is the fastest link there is here, so that the daemons and not the link are the limit. It
//! passes super-packets whole, which flatters everybody who makes them; on the NIC-like one every train of datagrams is
//! really cut and merged again, as between two machines.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use ringmesh_lab::{Host, Lab};
use serde::Serialize;

/// What makes a veth pair behave as a network card: trains of datagrams are cut before they leave, and merged by the receiver.
///
/// `gro` alone merges no UDP, since veth leaves it out when the other end has TSO.
const CARD_FEATURES: [&str; 6] = ["tx-udp-segmentation", "off", "gro", "on", "rx-udp-gro-forwarding", "on"];

/// What is between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Topology {
    /// A veth pair.
    Plain,
    /// A router with a veth pair to each host.
    Routed,
    /// A veth pair with the offloads of a network card.
    Nic,
}

/// The version of IP below the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The ground on which subjects stand: only what stands on the same one can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Ground {
    /// What is between the hosts.
    pub(crate) topology: Topology,
    /// By which addresses they know each other.
    pub(crate) underlay: Family,
}

/// Two hosts on their ground.
#[derive(Debug)]
pub(crate) struct Laid {
    /// The hosts.
    pub(crate) hosts: [Host; 2],
    /// By which address each is reached.
    pub(crate) underlay: [IpAddr; 2],
    /// What is between them.
    pub(crate) router: Option<Host>,
}

impl Ground {
    /// Where comparisons stand unless asked for something else.
    pub(crate) const PLAIN: Self = Self { topology: Topology::Plain, underlay: Family::V4 };

    /// Returns the name in headings.
    pub(crate) fn name(self) -> String {
        let topology = match self.topology {
            Topology::Plain => "plain veth",
            Topology::Routed => "routed",
            Topology::Nic => "NIC-like veth",
        };
        let underlay = match self.underlay {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        format!("{topology}, {underlay}")
    }

    /// Says why this ground cannot be laid here, if it cannot.
    pub(crate) fn missing(self) -> Option<&'static str> {
        (self.topology == Topology::Nic && ethtool().is_none())
            .then_some("there is no ethtool (apt-get install ethtool)")
    }

    /// Lays it.
    ///
    /// # Errors
    /// When the kernel or ethtool refuses something.
    pub(crate) fn lay(self, lab: &Lab) -> Result<Laid> {
        let hosts = [lab.host("first")?, lab.host("second")?];
        if self.topology == Topology::Routed {
            return self.lay_routed(lab, hosts);
        }
        let underlay = [self.address(0, 1), self.address(0, 2)];
        let (near, far) = lab.cable(&hosts[0], &hosts[1])?;
        for ((host, link), address) in hosts.iter().zip([near, far]).zip(underlay) {
            if self.topology == Topology::Nic {
                set_features(host, &link, &CARD_FEATURES)?;
            }
            host.add_address(&link, address, self.prefix())?;
        }
        Ok(Laid { hosts, underlay, router: None })
    }

    fn lay_routed(self, lab: &Lab, hosts: [Host; 2]) -> Result<Laid> {
        let router = lab.host("router")?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let underlay = [self.address(1, 1), self.address(2, 1)];
        for ((network, host), address) in (1..).zip(&hosts).zip(underlay) {
            let gateway = self.address(network, 2);
            let (link, port) = lab.cable(host, &router)?;
            host.add_address(&link, address, self.prefix())?;
            router.add_address(&port, gateway, self.prefix())?;
            host.add_route((self.unspecified(), 0), &link, Some(gateway))?;
        }
        Ok(Laid { hosts, underlay, router: Some(router) })
    }

    /// The router's address on the first host's side, if there is a router.
    pub(crate) fn gateway(self) -> IpAddr {
        self.address(1, 2)
    }

    /// An address on one of the networks that a ground is made of.
    fn address(self, network: u8, host: u8) -> IpAddr {
        match self.underlay {
            Family::V4 => Ipv4Addr::new(10, 99, network, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd99, 0, 0, network.into(), 0, 0, 0, host.into()).into(),
        }
    }

    fn prefix(self) -> u8 {
        match self.underlay {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }

    fn unspecified(self) -> IpAddr {
        match self.underlay {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// Where ethtool is; the PATH of a user without rights often lacks it.
fn ethtool() -> Option<&'static str> {
    ["ethtool", "/usr/sbin/ethtool"].into_iter().find(|program| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// Sets features of a link, and looks whether they are as they were asked for: the kernel may keep some as they are.
fn set_features(host: &Host, link: &str, features: &[&str]) -> Result<()> {
    let program = ethtool().context("there is no ethtool")?;
    let run = |option: &str, more: &[&str]| -> Result<String> {
        let mut command = host.command(program)?;
        command.args([option, link]).args(more).stdin(Stdio::null());
        let done = command.output().context("running ethtool")?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "ethtool {option} {link} failed: {}", said.trim());
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    };
    run("-K", features)?;
    let shown = run("-k", &[])?;
    for pair in features.chunks_exact(2) {
        let (feature, wanted) = (if pair[0] == "gro" { "generic-receive-offload" } else { pair[0] }, pair[1]);
        let found = shown.lines().find_map(|line| line.trim().strip_prefix(feature)?.strip_prefix(": "));
        let found = found.with_context(|| format!("{link} has no {feature}"))?;
        ensure!(found.split_whitespace().next() == Some(wanted), "{feature} of {link} stays {found}");
    }
    Ok(())
}
