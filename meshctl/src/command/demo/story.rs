//! What the demo shows, step by step, and what it promises at each: a promise that is not kept fails the demo.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use ringmesh_lab::{Host, Privilege, outside_pid};
use ringmesh_proto::local::{DataPlane, Peer};
use serde_json::Value;

use super::{
    Args,
    echo::Echo,
    ground::Transport,
    lab_failure,
    mesh::{LOGS, Mesh, Node},
    names,
    rules::{self, Doors},
    show::{Outcome, Show, short},
    transfer::{self, Transfer},
};
use crate::{
    command::block_on,
    failure::{Exit, Failure},
    output::{path::named, table::bytes},
    signals::Signals,
};

/// The first echo between two nodes may have to wait for a handshake and its retry (REKEY_TIMEOUT is 5 s), or until a path is
/// found where UDP is blocked.
const FIRST_ECHO: Duration = Duration::from_secs(10);
/// All packets go by the path that was asked for after this much.
const AS_ASKED: Duration = Duration::from_secs(20);
/// Later ones may not.
const ECHO: Duration = Duration::from_secs(1);
/// Echoes after the first, of which the median is told.
const ECHOES: usize = 3;
/// A node that starts again forwards after this much, with or without a coordinator.
const RESTART: Duration = Duration::from_secs(1);
/// A node that was removed is cut off at every peer after this much.
pub(super) const CUT_OFF: Duration = Duration::from_secs(5);
/// How long it must stay silent to count as cut off.
const SILENCE: Duration = Duration::from_secs(1);
/// Nodes find a coordinator that comes back after this much: their retries are up to half a minute apart.
const IN_STEP: Duration = Duration::from_secs(60);
/// How often is looked whether something has come about.
const LOOK: Duration = Duration::from_millis(20);

/// Builds the lab, starts the coordinator and the nodes, and has them join.
pub(super) fn set_up(show: &mut Show, args: &Args) -> Result<Mesh, Failure> {
    let mut built = None;
    show.step("virtual network", "laying cables", || {
        built = Some(Mesh::new(args)?);
        let terrain = args.terrain();
        Ok(Outcome::new(if terrain.is_plain() {
            format!("a switch and {} hosts on it", args.nodes + 1)
        } else {
            terrain.described()
        }))
    })?;
    let mut mesh = built.ok_or_else(|| Failure::new(Exit::General, "there is no lab"))?;
    let mut token = String::new();
    show.step("coordinator", "starting the coordinator", || {
        mesh.coordinator.start()?;
        token = mesh.token()?;
        Ok(Outcome::new(format!(
            "meshctl coordinator run on {}; a join token is made",
            mesh.coordinator.host.ipv4()
        )))
    })?;
    for node in &mut mesh.nodes {
        let name = node.name().to_owned();
        show.step("node joins", &format!("{name} starts and joins"), || {
            node.machine.start()?;
            let started = Instant::now();
            let joined = node.join(&token)?;
            let time = started.elapsed();
            let plane = data_plane(node)?;
            let io = format!("{} ({})", plane.back_end, plane.back_end_reason);
            let text = format!(
                "{name} in {}: {}\n{}",
                short(time),
                listed(&node.addresses),
                first_ping(&joined, &io)
            );
            Ok(Outcome::new(text)
                .fact("node", name.as_str())
                .fact("join_ms", milliseconds(time))
                .fact("back_end", plane.back_end))
        })?;
    }
    Ok(mesh)
}

/// Sends packets of several kinds through the mesh.
pub(super) fn traffic(show: &mut Show, mesh: &Mesh) -> Result<(), Failure> {
    show.step("pings", "pinging between all pairs", || pings(mesh))?;
    let [from, to, ..] = mesh.nodes.as_slice() else {
        return Err(Failure::new(Exit::General, "there are fewer than two nodes"));
    };
    show.step("path", "waiting until all packets go as asked", || path(mesh, from, to))?;
    let mut used = Vec::new();
    show.step("TCP transfer", "sending data from node1 to node2", || {
        let address = first_address(to)?;
        let before = [data_plane(from)?, data_plane(to)?];
        let round = if mesh.terrain.is_plain() { transfer::ROUND } else { transfer::SMALL_ROUND };
        let transfer = transfer::run(&from.machine.host, &to.machine.host, address, round)?;
        let after = [data_plane(from)?, data_plane(to)?];
        used = before.into_iter().zip(after).collect();
        arrived(&transfer)?;
        // The path must have held all the while.
        for (one, other) in [(from, to), (to, from)] {
            other_than_asked(mesh, one, other)?.map_or(Ok(()), Err)?;
        }
        let rate = transfer.rate();
        let text = format!(
            "{} at {:.2} Gbit/s by {}, SHA-256 {}... on both ends",
            bytes(transfer.bytes),
            rate / 1e9,
            mesh.terrain.transport.label(),
            hex(&transfer.received[..4])
        );
        Ok(Outcome::new(text).fact("bytes", transfer.bytes).fact("bits_per_second", rate.round()))
    })?;
    show.step("system calls", "counting", || system_calls(&used))
}

/// That what was received is what was sent.
fn arrived(transfer: &Transfer) -> Result<(), Failure> {
    if transfer.sent == transfer.received {
        return Ok(());
    }
    let hashes = format!("SHA-256 {} sent, {} received", hex(&transfer.sent), hex(&transfer.received));
    Err(Failure::new(Exit::General, "the data did not arrive as it was sent").cause(hashes))
}

/// Waits until every node's `status` shows the path that was asked for to every other node, while packets pass.
fn path(mesh: &Mesh, from: &Node, to: &Node) -> Result<Outcome, Failure> {
    let label = mesh.terrain.transport.label();
    let started = Instant::now();
    for (one, other) in mesh.pairs() {
        let mut echo = echo_on(&one.machine.host, first_address(other)?)?;
        while let Some(failure) = other_than_asked(mesh, one, other)? {
            if started.elapsed() > AS_ASKED {
                return Err(failure);
            }
            // A path that nobody uses is not looked after.
            echo.ask(LOOK);
            thread::sleep(LOOK);
        }
    }
    let time = started.elapsed();
    let answer = from.ping(to)?;
    if answer.path.is_empty() {
        return Err(Failure::new(Exit::Unreachable, format!("{} does not answer meshctl ping", to.name()))
            .cause(answer.error));
    }
    if answer.path != label {
        return Err(Failure::new(Exit::General, format!("meshctl ping names the path {}", answer.path))
            .cause(format!("meshctl status names it {label}")));
    }
    let round_trip = Duration::from_micros(answer.rtt_us.into());
    let named = named(&answer.path, &answer.via, &answer.endpoint);
    let mut text = format!("{} to {}: {named}, {}", from.name(), to.name(), short(round_trip));
    if !mesh.terrain.is_plain() {
        text += &format!("; all pairs go by {label} after {}\n{}", short(time), from.why(to)?);
    }
    Ok(Outcome::new(text)
        .fact("path", answer.path)
        .fact("rtt_us", answer.rtt_us)
        .fact("as_asked_ms", milliseconds(time)))
}

/// The failure that `from` does not reach `to` by the path that was asked for, if so.
fn other_than_asked(mesh: &Mesh, from: &Node, to: &Node) -> Result<Option<Failure>, Failure> {
    let status = from.status()?;
    let peer =
        status.peers.into_iter().find(|peer| peer.name == to.name()).ok_or_else(|| {
            Failure::new(Exit::General, format!("{} does not know {}", from.name(), to.name()))
        })?;
    let failure = amiss(mesh.terrain.transport, from.name(), &peer);
    // The verdict is told with it if there is one; that it cannot be asked is another matter.
    Ok(failure.map(|failure| {
        from.why(to).into_iter().filter(|verdict| !verdict.is_empty()).fold(failure, Failure::cause)
    }))
}

/// What is wrong with `peer` as `from` shows it.
fn amiss(asked: Transport, from: &str, peer: &Peer) -> Option<Failure> {
    let asked = asked.label();
    if peer.path == asked {
        return None;
    }
    let seen = if peer.path.is_empty() { "no path".to_owned() } else { format!("the path {}", peer.path) };
    Some(Failure::new(Exit::General, format!("{from} shows {seen} to {}, and not {asked}", peer.name)))
}

/// Kills the coordinator and shows what goes on without it, then brings it back.
pub(super) fn without_coordinator(show: &mut Show, mesh: &mut Mesh) -> Result<(), Failure> {
    show.step("coordinator killed", "kill -9, and pings again", || {
        mesh.coordinator.kill()?;
        Ok(pings(mesh)?.after("traffic flows on: "))
    })?;
    // A node behind a NAT, or one that must first find out that UDP is blocked, is not that quick without help.
    if mesh.terrain.is_plain() {
        show.step("node restarted", "kill -9 of node2, started from its cached map", || restart(mesh, 1))?;
    }
    show.step("coordinator back", "waiting until all nodes are in step", || {
        let started = Instant::now();
        mesh.coordinator.start()?;
        let revision = in_step(mesh, mesh.nodes.len())?;
        let time = started.elapsed();
        // It has forgotten where the nodes are, which is no reason for them to leave a path.
        for (one, other) in mesh.pairs() {
            other_than_asked(mesh, one, other)?.map_or(Ok(()), Err)?;
        }
        let text = format!("all nodes acknowledge revision {revision} after {}", short(time));
        Ok(Outcome::new(text).fact("revision", revision).fact("in_step_ms", milliseconds(time)))
    })
}

/// Finds a node by its name.
pub(super) fn names(show: &mut Show, mesh: &Mesh) -> Result<(), Failure> {
    let [from, to, ..] = mesh.nodes.as_slice() else {
        return Err(Failure::new(Exit::General, "there are fewer than two nodes"));
    };
    show.step("name resolves", "looking up a name", || names::look_up(from, to))
}

/// Puts a policy in force, and sees that it bites and lets replies pass.
pub(super) fn policy(show: &mut Show, mesh: &Mesh) -> Result<(), Failure> {
    let [from, to, ..] = mesh.nodes.as_slice() else {
        return Err(Failure::new(Exit::General, "there are fewer than two nodes"));
    };
    let mut doors = None;
    show.step("policy applied", "applying a policy", || {
        doors = Some(Doors::open(from, to)?);
        rules::apply(mesh, from, to)
    })?;
    let doors = doors.ok_or_else(|| Failure::new(Exit::General, "nobody listens"))?;
    show.step("rule bites", "connecting to ports that are open and shut", || doors.try_both(from, to))?;
    show.step("reply passes", "sending datagrams", || rules::reply(from, to))
}

/// Removes the last node and sees it cut off.
pub(super) fn removal(show: &mut Show, mesh: &Mesh) -> Result<(), Failure> {
    show.step("node removed", "removing the last node", || {
        let Some((removed, peers)) = mesh.nodes.split_last() else {
            return Err(Failure::new(Exit::General, "there is no node"));
        };
        // The last echo came back then; the next one, one look later, did not.
        let cut_off = watch_removal(mesh, removed, peers)? + LOOK;
        let others = if ping_all(peers)?.is_empty() { "" } else { "; the others talk on" };
        in_step(mesh, peers.len())?;
        let text = format!("{} is cut off at every peer within {}{others}", removed.name(), short(cut_off));
        Ok(Outcome::new(text).fact("cut_off_ms", milliseconds(cut_off)))
    })
}

/// Leaves everything running until Ctrl-C.
pub(super) fn keep(show: &mut Show, mesh: &Mesh) -> Result<(), Failure> {
    block_on(async {
        // First, so that whoever reads the lines can act on them.
        let signals = Signals::listen()?;
        show.remark(&invitation(mesh))?;
        signals.end().await;
        Ok(())
    })
}

/// How to get onto the machines of the demo from another terminal.
fn invitation(mesh: &Mesh) -> String {
    let meshctl = std::env::current_exe().unwrap_or_else(|_| "meshctl".into());
    let user = match ringmesh_lab::privilege() {
        Some(Privilege::UserNamespace) => " --user --preserve-credentials",
        Some(Privilege::Root) | None => "",
    };
    let removed = mesh.nodes.last().map(Node::name);
    let mut text = "\n  The mesh keeps running. To look around, in another terminal:\n".to_owned();
    let machines = mesh.nodes.iter().map(|node| (&node.machine, "status"));
    for (machine, command) in machines.chain([(&mesh.coordinator, "nodes list")]) {
        let Some(pid) = machine.pid().and_then(outside_pid) else { continue };
        let name = machine.host.name();
        let note = if removed == Some(name) { ", which was removed" } else { "" };
        let meshctl = meshctl.display();
        text += &format!(
            "    nsenter --target {pid}{user} --mount --uts --net --pid {meshctl} {command}   # on {name}{note}\n"
        );
    }
    if let Some(own) = outside_pid(std::process::id()) {
        text += &format!("  Logs: /proc/{own}/root{LOGS}\n");
    }
    text + "  Ctrl-C ends it.\n\n"
}

/// Ends all daemons in good order, removes the network, and looks whether anything is left.
pub(super) fn tear_down(show: &mut Show, mesh: Mesh) -> Result<(), Failure> {
    show.step("torn down", "ending the daemons", || {
        let Mesh { mut coordinator, nodes, ground, lab, .. } = mesh;
        let daemons = nodes.len() + 1;
        for mut node in nodes {
            node.machine.stop()?;
            let left = node.machine.host.links().map_err(lab_failure)?;
            if left.iter().any(|link| link.starts_with("mesh")) {
                return Err(Failure::new(Exit::General, format!("{} left its device behind", node.name())));
            }
        }
        coordinator.stop()?;
        drop(ground);
        let left = lab.close().map_err(lab_failure)?;
        if left > 0 {
            return Err(Failure::new(
                Exit::General,
                format!("{left} processes outlived the daemons that started them"),
            ));
        }
        Ok(Outcome::new(format!("{daemons} daemons ended when asked; no process and no link is left")))
    })?;
    show.remark(
        "\n  All of it was real: daemons, TUN devices, datagrams. But a virtual cable is not a network card: the rate tells\n  \
         what this machine's CPUs do, with both ends on them, not what your network will.\n",
    )
}

/// All pairs, both families, both ways.
fn pings(mesh: &Mesh) -> Result<Outcome, Failure> {
    let mut times = ping_all(&mesh.nodes)?;
    times.sort();
    let pairs = mesh.nodes.len() * (mesh.nodes.len() - 1) / 2;
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let slowest = times.last().copied().unwrap_or_default();
    let text = format!(
        "{pairs} {}, both ways, IPv4 and IPv6: all answer; median {}, slowest {}",
        if pairs == 1 { "pair" } else { "pairs" },
        short(median),
        short(slowest)
    );
    Ok(Outcome::new(text)
        .fact("answered", times.len())
        .fact("median_us", micros(median))
        .fact("slowest_us", micros(slowest)))
}

/// Has every node ping every other at all its addresses; one echo to wake the session, then `ECHOES` that are timed.
fn ping_all(nodes: &[Node]) -> Result<Vec<Duration>, Failure> {
    let mut times = Vec::new();
    for from in nodes {
        for to in nodes.iter().filter(|to| to.name() != from.name()) {
            for address in &to.addresses {
                times.extend(ping(from, to, *address)?);
            }
        }
    }
    Ok(times)
}

fn ping(from: &Node, to: &Node, address: IpAddr) -> Result<Vec<Duration>, Failure> {
    let silent = |number: usize| {
        Failure::new(Exit::Unreachable, format!("{} does not answer {} at {address}", to.name(), from.name()))
            .cause(format!("no reply to echo {number}"))
    };
    let mut echo = echo_on(&from.machine.host, address)?;
    echo.ask(FIRST_ECHO).ok_or_else(|| silent(1))?;
    (0..ECHOES).map(|number| echo.ask(ECHO).ok_or_else(|| silent(number + 2))).collect()
}

fn echo_on(host: &Host, address: IpAddr) -> Result<Echo, Failure> {
    let echo = host.enter(|| Echo::new(address)).map_err(lab_failure)?;
    echo.map_err(|error| Failure::new(Exit::General, "cannot open an ICMP socket").cause(error.to_string()))
}

/// Kills a node and starts it again; it must forward soon, and its peer reach it.
fn restart(mesh: &mut Mesh, number: usize) -> Result<Outcome, Failure> {
    let none = || Failure::new(Exit::General, "there is no such node");
    let peer = first_address(mesh.nodes.first().ok_or_else(none)?)?;
    let node = mesh.nodes.get_mut(number).ok_or_else(none)?;
    node.machine.kill()?;
    // Opened first: what is measured is the node, not this.
    let mut echo = echo_on(&node.machine.host, peer)?;
    let ready = node.machine.spawn()?;
    let time = echo.until_reply(RESTART).ok_or_else(|| {
        Failure::new(Exit::Timeout, "the node does not forward within 1 s of its start")
            .cause("no echo came back")
    })?;
    let _ = ready.recv_timeout(ECHO);
    let coordinator = mesh.nodes[number].status()?.coordinator.unwrap_or_default();
    if coordinator.state == "connected" {
        return Err(Failure::new(Exit::General, "the node found a coordinator, which should be dead"));
    }
    ping_all(&mesh.nodes)?;
    let text = format!(
        "{} forwards {} after its start, from its cached map",
        mesh.nodes[number].name(),
        short(time)
    );
    Ok(Outcome::new(text).fact("forwards_after_ms", milliseconds(time)))
}

/// Waits until `count` members are online and have installed the coordinator's revision, which it tells.
fn in_step(mesh: &Mesh, count: usize) -> Result<u64, Failure> {
    let started = Instant::now();
    loop {
        let (revision, members) = mesh.members()?;
        let behind: Vec<&str> = members
            .iter()
            .filter(|node| !node.online || node.installed_revision != revision)
            .map(|node| node.name.as_str())
            .collect();
        if behind.is_empty() && members.len() == count {
            return Ok(revision);
        }
        if started.elapsed() > IN_STEP {
            return Err(Failure::new(Exit::Timeout, "the nodes are not in step").cause(format!(
                "{} members; behind: {}",
                members.len(),
                behind.join(", ")
            )));
        }
        thread::sleep(LOOK);
    }
}

/// Removes `removed` while it and its peers ping each other without a pause; tells how long after that the last echo came
/// back.
fn watch_removal(mesh: &Mesh, removed: &Node, peers: &[Node]) -> Result<Duration, Failure> {
    let mut echoes = Vec::new();
    for peer in peers {
        for (from, to) in [(peer, removed), (removed, peer)] {
            for address in &to.addresses {
                echoes.push((from.name(), to.name(), echo_on(&from.machine.host, *address)?));
            }
        }
    }
    for (from, to, echo) in &mut echoes {
        // Otherwise silence would prove nothing.
        echo.ask(ECHO).ok_or_else(|| {
            Failure::new(
                Exit::Unreachable,
                format!("{to} does not answer {from}, before any node is removed"),
            )
        })?;
    }
    let started = Instant::now();
    thread::scope(|scope| {
        let watches: Vec<_> = echoes
            .into_iter()
            .map(|(from, to, echo)| scope.spawn(move || last_reply(started, echo).ok_or((from, to))))
            .collect();
        let told = mesh.coordinator.meshctl(["nodes", "remove", removed.name()], None);
        let seen: Vec<_> = watches
            .into_iter()
            .map(|watch| watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        told?;
        let last = seen.into_iter().collect::<Result<Vec<_>, _>>().map_err(|(from, to)| {
            Failure::new(Exit::Timeout, format!("{} is removed, but still reached", removed.name()))
                .cause(format!("{to} answers {from} {} s later", CUT_OFF.as_secs()))
        })?;
        Ok(last.into_iter().max().unwrap_or_default())
    })
}

/// When the last reply came, seen from `started`: silence follows it. `None` if replies go on past [`CUT_OFF`].
pub(super) fn last_reply(started: Instant, mut echo: Echo) -> Option<Duration> {
    let mut last = Duration::ZERO;
    while started.elapsed() < last + SILENCE {
        let asked = Instant::now();
        if echo.ask(LOOK).is_some() {
            last = started.elapsed();
            if last > CUT_OFF {
                return None;
            }
        }
        thread::sleep(LOOK.saturating_sub(asked.elapsed()));
    }
    Some(last)
}

/// System calls for each packet that passed during the transfer.
fn system_calls(used: &[(DataPlane, DataPlane)]) -> Result<Outcome, Failure> {
    let mut texts = Vec::new();
    let mut outcome_facts = Vec::new();
    for (number, (before, after)) in used.iter().enumerate() {
        let packets = |plane: &DataPlane| plane.sent_packets + plane.received_packets;
        let passed = packets(after).saturating_sub(packets(before));
        let calls = after.system_calls.saturating_sub(before.system_calls);
        if passed == 0 || calls == 0 {
            return Err(Failure::new(
                Exit::General,
                "meshd counted no packets or no system calls during the transfer",
            ));
        }
        let each = calls as f64 / passed as f64;
        texts.push(format!("{each:.3} on node{}", number + 1));
        outcome_facts.push(each);
    }
    let text = format!("{} for each packet of the transfer", texts.join(", "));
    Ok(Outcome::new(text).fact("per_packet", outcome_facts))
}

fn data_plane(node: &Node) -> Result<DataPlane, Failure> {
    let plane = node.status()?.data_plane;
    plane.ok_or_else(|| Failure::new(Exit::General, format!("{} has no data plane", node.name())))
}

fn first_address(node: &Node) -> Result<IpAddr, Failure> {
    let address = node.addresses.first().copied();
    address.ok_or_else(|| Failure::new(Exit::General, format!("{} has no address", node.name())))
}

/// What the check at the end of `meshctl join` found.
fn first_ping(joined: &Value, io: &str) -> String {
    let ping = &joined["ping"];
    match (ping["node"].as_str(), ping["path"].as_str(), ping["rtt_us"].as_u64()) {
        (Some(node), Some(path), Some(time)) => {
            format!("{node} answers by {path} in {}; {io}", short(Duration::from_micros(time)))
        }
        _ => format!("no peer yet; {io}"),
    }
}

fn listed(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" and ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_other_path_than_the_one_asked_for_is_amiss() {
        let peer = |path: &str| Peer { name: "node2".to_owned(), path: path.to_owned(), ..Peer::default() };
        for asked in [Transport::Direct, Transport::Relay, Transport::Websocket, Transport::Ssh] {
            for path in ["direct", "relay", "websocket", "ssh", ""] {
                let failure = amiss(asked, "node1", &peer(path));
                assert_eq!(failure.is_none(), path == asked.label(), "{path} for {asked:?}");
            }
        }
        let text = amiss(Transport::Relay, "node1", &peer("direct")).unwrap().to_string();
        assert_eq!(text, "error: node1 shows the path direct to node2, and not relay");
        let text = amiss(Transport::Ssh, "node1", &peer("")).unwrap().to_string();
        assert_eq!(text, "error: node1 shows no path to node2, and not ssh");
    }

    #[test]
    fn a_transfer_that_was_altered_on_the_way_fails() {
        let transfer = |received| Transfer { bytes: 1, time: ECHO, sent: [1; 32], received };
        assert_eq!(arrived(&transfer([1; 32])), Ok(()));
        let failure = arrived(&transfer([2; 32])).unwrap_err();
        assert!(failure.to_string().contains("02020202"), "{failure}");
    }
}
