//! Three hosts around a router: two nodes, and the coordinator with its relay. The router drops what would make another path
//! than the one that is to be measured.
//!
//! Every path has the same ground, so that only the path differs: straight from node to node a datagram crosses the router
//! once, by way of the relay twice, as it does between real machines. The router's filter is there for all of them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;
use ringmesh_lab::{Blocks, Host, Lab};

use super::{Daemons, PathKind, Up, ours};
use crate::tuning::Tuning;

/// The hosts' own ends of their cables, each in a network of its own; the router has the address after.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 99, 1, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 99, 2, 1);
const COORDINATOR: Ipv4Addr = Ipv4Addr::new(10, 99, 3, 1);
const PREFIX: u8 = 24;
const EVERYWHERE: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// A port that nobody uses (RFC 863), for a filter that is there and drops nothing.
const DISCARD: u16 = 9;

/// Says whether the router can be told to drop anything.
pub(super) fn can_block() -> bool {
    let runs = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok()
    };
    // The PATH of a user without rights often lacks the latter.
    runs("nft") || runs("/usr/sbin/nft")
}

/// Returns the two nodes' hosts, and what runs on them.
pub(super) fn set_up(
    lab: &Lab,
    path: PathKind,
    meshctl: &Path,
    daemons: &mut Daemons,
) -> Result<([Host; 2], Up)> {
    let router = lab.host("router")?;
    router.sysctl("net/ipv4/ip_forward", "1")?;
    let nodes = [attach(lab, &router, "first", FIRST)?, attach(lab, &router, "second", SECOND)?];
    let coordinator = attach(lab, &router, "coordinator", COORDINATOR)?;
    router.block(&blocks(path))?;
    let plan = ours::Plan {
        meshctl,
        null: None,
        back_end: "uring",
        coordinator: &coordinator,
        tuning: &Tuning::default(),
        coordinator_address: COORDINATOR.into(),
        coordinator_relays: true,
        nodes: &nodes,
        ssh: path == PathKind::Ssh,
        policy: None,
    };
    let up = plan.carry_out(daemons)?;
    Ok((nodes, up))
}

/// A host whose only cable leads to the router.
fn attach(lab: &Lab, router: &Host, name: &str, address: Ipv4Addr) -> Result<Host> {
    let host = lab.host(name)?;
    let (link, port) = lab.cable(&host, router)?;
    let gateway = IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + 1));
    host.add_address(&link, address.into(), PREFIX)?;
    router.add_address(&port, gateway, PREFIX)?;
    host.add_route(EVERYWHERE, &link, Some(gateway))?;
    Ok(host)
}

/// What leaves only this path, or paths that are liked less.
fn blocks(path: PathKind) -> Blocks {
    match path {
        PathKind::Direct => Blocks::nothing().and_tcp(DISCARD),
        PathKind::Relay => Blocks::udp().but_for(COORDINATOR),
        PathKind::Websocket | PathKind::Ssh => Blocks::udp(),
    }
}
