//! Our daemons between the two hosts: a coordinator on the first, a node on each, joined by token as anyone would.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringmesh_lab::Host;
use serde_json::Value;

use super::{Daemons, UNDERLAY, output};
use crate::cpu::cpus;

/// Where the daemons listen for clients; every host has its own `/run`.
const COORDINATOR_SOCKET: &str = "/run/mesh/coordinator.sock";
const NODE_SOCKET: &str = "/run/mesh/meshd.sock";
const PORT: u16 = 443;
/// A daemon's socket appears shortly after its start.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Returns the hosts' addresses in the mesh, and the version with the back end that is in use.
pub(super) fn set_up(
    hosts: &[Host; 2],
    meshctl: &Path,
    back_end: &str,
    daemons: &mut Daemons,
) -> Result<([Ipv4Addr; 2], String)> {
    let mut coordinator = run(&hosts[0], meshctl, &["coordinator", "run"])?;
    coordinator.args(["--advertise", &format!("{}:{PORT}", UNDERLAY[0])]).env("MESH_LOG", "warn");
    daemons.start(coordinator)?;
    wait_for_socket(&hosts[0], COORDINATOR_SOCKET, daemons)?;

    for (index, host) in hosts.iter().enumerate() {
        // By default both would pin their worker to the same CPU, as they may on two machines.
        let cpu = (index % cpus()).to_string();
        let mut node = run(host, meshctl, &["node", "run", "--io", back_end, "--cpu", &cpu])?;
        node.env("MESH_LOG", "warn");
        daemons.start_measured(node)?;
        wait_for_socket(host, NODE_SOCKET, daemons)?;
        let created = json(run(&hosts[0], meshctl, &["token", "create", "-o", "json"])?)?;
        let join = run(host, meshctl, &["join", "--token", "-", "--name", host.name()])?;
        output(join, text(&created, &["secret"])?)?;
    }

    let mut addresses = [Ipv4Addr::UNSPECIFIED; 2];
    for (host, address) in hosts.iter().zip(&mut addresses) {
        let status = json(run(host, meshctl, &["status", "-o", "json"])?)?;
        let used = text(&status, &["data_plane", "back_end"])?;
        ensure!(used == back_end, "the node uses {used} and not {back_end}, which was asked for");
        *address = text(&status, &["network", "self", "ipv4"])?.parse().context("the node's address")?;
    }
    let version = output(run(&hosts[0], meshctl, &["--version"])?, "")?;
    Ok((addresses, version.trim().to_owned()))
}

fn run(host: &Host, meshctl: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = host.command(meshctl)?;
    command.args(arguments);
    Ok(command)
}

fn wait_for_socket(host: &Host, socket: &str, daemons: &mut Daemons) -> Result<()> {
    let give_up = Instant::now() + APPEARS_WITHIN;
    while !host.enter(|| Path::new(socket).exists())? {
        daemons.check()?;
        ensure!(Instant::now() < give_up, "{socket} did not appear within {APPEARS_WITHIN:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn json(command: Command) -> Result<Value> {
    let text = output(command, "")?;
    serde_json::from_str(&text).context("meshctl's output is not JSON")
}

fn text<'a>(value: &'a Value, path: &[&str]) -> Result<&'a str> {
    let found = path.iter().try_fold(value, |value, name| value.get(name));
    found.and_then(Value::as_str).with_context(|| format!("meshctl's output has no {}", path.join(".")))
}
