//! Many peers: how much of one peer's packet rate is left when the same traffic is spread over all of them, and what they cost
//! when they send nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use socket2::SockRef;

use crate::compare::machine;
use crate::cpu::Snapshot;
use crate::findings::Findings;
use crate::gate::Gate;
use crate::load::batch::{Receiver, Spreader};
use crate::load::pace::{Pace, Pacer};
use crate::load::{StopOnDrop, Timing, Windowed, observe};
use crate::options::Options;
use crate::report::progress;
use crate::subject::crowd::Crowded;
use crate::subject::{Order, SubjectKind, Tools};
use crate::tuning::Tuning;

/// Of both sockets, in bytes.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// How long the sink waits before it looks whether to stop.
const PATIENCE: Duration = Duration::from_millis(50);
/// Runs that strangers may spoil before the measurement is given up.
const TRIES: usize = 8;
/// All offloads but the one by which packets for one peer leave together.
const NO_GROUPING: &str = "tso,uso,tun-gro,udp-gro";
/// A WireGuard data message begins with it, and its receiver's index follows (whitepaper §5.4.6).
const DATA: [u8; 4] = [4, 0, 0, 0];

/// Measures and tells.
///
/// # Errors
/// [`crate::gate::Busy`] when others use the box; otherwise when something cannot be set up or fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let gate = options.gate();
    gate.wait_for_quiet()?;
    let tools = Tools::find(options.meshctl.as_deref(), None, &[])?;
    let mut findings = Findings::new("peers", machine()?);
    rates(options, gate, &tools, &mut findings)?;
    if options.idle_peers > 0 {
        idle(options, gate, &tools, &mut findings)?;
    }
    options.put_out(&findings)
}

/// One crowd with grouping and one without, side by side.
fn rates(options: &Options, gate: Gate, tools: &Tools, findings: &mut Findings) -> Result<()> {
    let count = usize::from(options.live_peers);
    let mut crowds = Vec::new();
    for (name, offloads) in [("grouping on", None), ("grouping off", Some(NO_GROUPING.to_owned()))] {
        let order = Order { kind: SubjectKind::Uring, tuning: Tuning { offloads, ..Tuning::default() } };
        if let Some(reason) = tools.missing_for(&order, crate::ground::Ground::PLAIN) {
            findings.remark(format!("{name} was left out: {reason}"));
            continue;
        }
        progress(&format!("setting up {count} peers, {name}"));
        crowds.push((name, Crowded::set_up(&order, tools, count)?));
    }
    let mut samples = vec![[const { Vec::new() }; 2]; crowds.len()];
    for _ in 0..options.repetitions() {
        for ((name, crowd), samples) in crowds.iter_mut().zip(&mut samples) {
            for (peers, samples) in [1, count].into_iter().zip(samples) {
                let rate =
                    one(crowd, peers, options, gate).with_context(|| format!("{peers} peers, {name}"))?;
                progress(&format!("{peers} peers, {name}: {:.0} kpps", rate / 1e3));
                samples.push(rate / 1e3);
            }
        }
    }
    for ((name, _), [single, spread]) in crowds.iter().zip(samples) {
        let (one, all) = (format!("1 peer, {name}"), format!("{count} peers, {name}"));
        findings.add(&one, "kpps", single);
        findings.add(&all, "kpps", spread);
        if let Some((one, all)) = findings.median(&one).zip(findings.median(&all)) {
            findings.add(format!("{count} peers to 1, {name}"), "", vec![all / one]);
        }
    }
    findings.remark(
        "peers: each has a session, a key and an underlay address of its own; 64-byte UDP packets go round all of them, \
         and datagrams are counted where they arrive",
    );
    Ok(())
}

/// A run that counts.
fn one(crowd: &mut Crowded, peers: usize, options: &Options, gate: Gate) -> Result<f64> {
    for _ in 0..TRIES {
        crowd.greet()?;
        gate.wait_for_quiet()?;
        let effort = options.effort();
        let delivered = flood(crowd, peers, Pace::Share(effort.udp_share), effort.timing)?;
        if gate.force || Gate::is_quiet(&delivered.usage) {
            return Ok(delivered.rate());
        }
    }
    Err(anyhow!("others used the box {TRIES} times"))
}

/// Sends to the first `peers` devices in turn; counts the datagrams for them.
fn flood(crowd: &Crowded, peers: usize, pace: Pace, timing: Timing) -> Result<Windowed> {
    let addresses: Vec<_> = crowd.addresses().into_iter().take(peers).collect();
    let (source, sink) = (crowd.source()?, crowd.sink()?);
    SockRef::from(&source).set_send_buffer_size(SOCKET_BUFFER).context("enlarging the send buffer")?;
    SockRef::from(&sink).set_recv_buffer_size(SOCKET_BUFFER).context("enlarging the receive buffer")?;
    sink.set_read_timeout(Some(PATIENCE)).context("bounding receives")?;
    let (stop, received, seen) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(BTreeSet::new()));
    let delivered = thread::scope(|scope| {
        let stop_on_drop = StopOnDrop(&stop);
        let sender = scope.spawn(|| send(&source, &addresses, pace, &stop));
        let counter = scope.spawn(|| {
            let indices = count(&sink, &stop, &received)?;
            seen.lock().map_err(|_| anyhow!("a thread panicked"))?.extend(indices);
            Ok(())
        });
        let delivered = observe(timing, crowd.daemons(), || received.load(Ordering::Relaxed));
        drop(stop_on_drop);
        for end in [sender, counter] {
            end.join().map_err(|_| anyhow!("a thread of the flood panicked"))??;
        }
        delivered
    })?;
    ensure!(delivered.count > 0, "no datagram arrived during the window");
    let sessions = seen.into_inner().map_err(|_| anyhow!("a thread panicked"))?.len();
    ensure!(sessions == peers, "datagrams of {sessions} sessions arrived, and not of {peers}");
    Ok(delivered)
}

fn send(source: &UdpSocket, to: &[Ipv4Addr], pace: Pace, stop: &AtomicBool) -> Result<()> {
    let (mut pacer, mut spreader) = (Pacer::start(pace)?, Spreader::new(to));
    while !stop.load(Ordering::Relaxed) {
        let sent = match spreader.send(source) {
            Ok(sent) => sent,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => 0,
            Err(error) => return Err(error).context("flooding"),
        };
        if sent == 0 {
            thread::yield_now();
        }
        pacer.sent(sent)?;
    }
    Ok(())
}

/// Counts data messages; returns the sessions that they were of.
fn count(sink: &UdpSocket, stop: &AtomicBool, received: &AtomicU64) -> Result<BTreeSet<[u8; 4]>> {
    let (mut receiver, mut sessions) = (Receiver::new(), BTreeSet::new());
    while !stop.load(Ordering::Relaxed) {
        let datagrams = match receiver.receive(sink) {
            Ok(datagrams) => datagrams,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error).context("counting datagrams"),
        };
        let mut ours = 0;
        for datagram in datagrams {
            if let Some((_, rest)) = datagram.split_first_chunk().filter(|(kind, _)| **kind == DATA) {
                ours += 1;
                sessions.extend(rest.first_chunk().copied());
            }
        }
        received.fetch_add(ours, Ordering::Relaxed);
    }
    Ok(sessions)
}

/// What a node takes of a core for peers that are there and send nothing.
fn idle(options: &Options, gate: Gate, tools: &Tools, findings: &mut Findings) -> Result<()> {
    let count = usize::from(options.idle_peers);
    progress(&format!("setting up {count} peers that will send nothing"));
    let order = Order::from(SubjectKind::Uring);
    let crowd = Crowded::set_up(&order, tools, count)?;
    // What came with them has to be over.
    thread::sleep(Duration::from_secs(3));
    gate.wait_for_quiet()?;
    let before = Snapshot::take()?;
    thread::sleep(Duration::from_secs(options.idle_seconds));
    let usage = Snapshot::take()?.since(&before, crowd.daemons());
    let share = usage.daemons / usage.elapsed.as_secs_f64() * 100.0;
    findings.add(
        format!("{count} peers without traffic, {} s", options.idle_seconds),
        "% of one core",
        vec![share],
    );
    Ok(())
}
