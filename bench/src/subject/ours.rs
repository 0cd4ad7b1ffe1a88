//! Our daemons: a coordinator, and a node on each of the two hosts, joined by token as anyone would.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ringmesh_lab::Host;
use serde_json::Value;

use super::{Daemons, Up, output};
use crate::cpu::cpus;
use crate::tuning::Tuning;

/// Where the daemons listen for clients; every host has its own `/run`.
pub(super) const COORDINATOR_SOCKET: &str = "/run/mesh-coordinator/coordinator.sock";
const NODE_SOCKET: &str = "/run/mesh/meshd.sock";
/// Where a node listens for datagrams when that port is free.
pub(super) const NODE_PORT: u16 = 51820;
const INTERFACE: &str = "mesh0";
const PORT: u16 = 443;
/// Where a node takes SSH streams when it is asked to.
const SSH_PORT: &str = "2222";
/// A daemon's socket appears shortly after its start.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Which daemons run where.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) meshctl: &'a Path,
    /// The program whose nodes encrypt nothing, if those are to be measured.
    pub(super) null: Option<&'a Path>,
    pub(super) back_end: &'a str,
    pub(super) tuning: &'a Tuning,
    pub(super) coordinator: &'a Host,
    /// Where the nodes reach the coordinator, and its relay.
    pub(super) coordinator_address: IpAddr,
    /// Whether the coordinator is part of what is measured, because packets may pass through it.
    pub(super) coordinator_relays: bool,
    pub(super) nodes: &'a [Host],
    /// Whether nodes take SSH streams from each other.
    pub(super) ssh: bool,
    /// What to put in force when all have joined; none: what a network begins with.
    pub(super) policy: Option<String>,
}

impl Plan<'_> {
    /// Starts everything with two nodes; fails unless they use the back end that was asked for.
    pub(super) fn carry_out(&self, daemons: &mut Daemons) -> Result<Up> {
        let addresses = self.start(daemons)?;
        let addresses = addresses.try_into().map_err(|_| anyhow!("there are not two nodes"))?;
        let mut version = output(run(self.coordinator, self.meshctl, &["--version"])?, "")?.trim().to_owned();
        if self.null.is_some() {
            version.push_str(", null cipher");
        }
        Ok(Up { addresses, version, interface: Some(INTERFACE.to_owned()) })
    }

    /// Starts everything; returns the nodes' addresses.
    pub(super) fn start(&self, daemons: &mut Daemons) -> Result<Vec<IpAddr>> {
        self.start_coordinator(daemons)?;
        for (index, host) in self.nodes.iter().enumerate() {
            // By default both would pin their worker to the same CPU, as they may on two machines.
            let cpu = (index % cpus()).to_string();
            self.start_node(host, &cpu, daemons)?;
        }
        if let Some(policy) = &self.policy {
            let apply = ["policy", "apply", "-", "--wait", "10s", "--yes"];
            output(run(self.coordinator, self.meshctl, &apply)?, policy)?;
        }
        let mut addresses = Vec::new();
        for host in self.nodes {
            let status = status(host, self.meshctl)?;
            let used = text(&status, &["data_plane", "back_end"])?;
            let asked = self.back_end;
            ensure!(used == asked, "the node uses {used} and not {asked}, which was asked for");
            addresses
                .push(text(&status, &["network", "self", "ipv4"])?.parse().context("the node's address")?);
        }
        Ok(addresses)
    }

    fn start_coordinator(&self, daemons: &mut Daemons) -> Result<()> {
        let mut command = run(self.coordinator, self.meshctl, &["coordinator", "run"])?;
        // Without rate limits: what is measured is what it can do, not what it may.
        command.args(["--relay-client-rate", "0", "--relay-total-rate", "0"]);
        command.args(["--advertise", &SocketAddr::new(self.coordinator_address, PORT).to_string()]);
        command.env("MESH_LOG", log());
        if self.coordinator_relays {
            daemons.start_measured(command)?;
        } else {
            daemons.start(command)?;
        }
        wait_for_socket(self.coordinator, COORDINATOR_SOCKET, daemons)
    }

    fn start_node(&self, host: &Host, cpu: &str, daemons: &mut Daemons) -> Result<()> {
        let mut node = match self.null {
            Some(bench) => run(host, bench, &["null-node"])?,
            None => run(host, self.meshctl, &["node", "run"])?,
        };
        node.args(["--io", self.back_end]);
        // Where several workers are asked for, the daemon places them.
        if self.tuning.workers.is_none() {
            node.args(["--cpu", cpu]);
        }
        if self.ssh {
            node.args(["--ssh-port", SSH_PORT]);
        }
        node.env("MESH_LOG", log()).envs(self.tuning.variables());
        daemons.start_measured(node)?;
        wait_for_socket(host, NODE_SOCKET, daemons)?;
        let created = json(run(self.coordinator, self.meshctl, &["token", "create", "-o", "json"])?)?;
        let join = run(host, self.meshctl, &["join", "--token", "-", "--name", host.name()])?;
        output(join, text(&created, &["secret"])?).map(drop)
    }
}

/// What a node says of itself.
pub(super) fn status(host: &Host, meshctl: &Path) -> Result<Value> {
    json(run(host, meshctl, &["status", "-o", "json"])?)
}

/// Asks a node how it reaches its one peer: `direct`, `relay`, `websocket`, `ssh`, or nothing if it does not know.
pub(super) fn path(host: &Host, meshctl: &Path) -> Result<String> {
    let answer = json(run(host, meshctl, &["peers", "-o", "json"])?)?;
    let peers = answer.get("peers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let [peer] = peers else { bail!("{} has {} peers and not one", host.name(), peers.len()) };
    text(peer, &["path"]).map(str::to_owned)
}

/// Asks a node how many flows its filter remembers.
pub(super) fn flows(host: &Host, meshctl: &Path) -> Result<u64> {
    let answer = json(run(host, meshctl, &["filter", "list", "-o", "json"])?)?;
    answer.get("flows").and_then(Value::as_u64).context("meshctl's output has no flows")
}

/// Asks a node how many system calls its workers made on the packet path since their start.
pub(super) fn system_calls(host: &Host, meshctl: &Path) -> Result<u64> {
    let calls = status(host, meshctl)?;
    let calls = calls.get("data_plane").and_then(|plane| plane.get("system_calls")).and_then(Value::as_u64);
    calls.context("meshctl's output has no data_plane.system_calls")
}

/// What daemons log to standard error: warnings, unless the caller wants to know more.
fn log() -> OsString {
    std::env::var_os("MESH_LOG").unwrap_or_else(|| "warn".into())
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

pub(super) fn text<'a>(value: &'a Value, path: &[&str]) -> Result<&'a str> {
    let found = path.iter().try_fold(value, |value, name| value.get(name));
    found.and_then(Value::as_str).with_context(|| format!("meshctl's output has no {}", path.join(".")))
}
