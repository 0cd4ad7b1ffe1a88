//! How one run of each kind goes.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cpu::Usage;
use crate::load::pace::Pace;
use crate::load::ping::{INTERVAL, LONG_INTERVAL, Pinger};
use crate::load::tcp::Streams;
use crate::load::udp::Flood;
use crate::load::{Timing, Windowed, calls, udp};
use crate::quantity::{Quantity, Step};
use crate::stats::percentile;
use crate::subject::{End, Strayed, Subject};

/// How long a subject may take until the first ping passes: a handshake, with some retries.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long it may take until both ends have settled on the path that is to be measured: what they like better, and cannot
/// have, is tried and waited for first.
const PATH_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at the path.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Of a run of small packets; more and shorter ones say more than one long one.
const LONGEST_FLOOD: Duration = Duration::from_secs(2);
/// Of a run that looks for the rate at which most small packets are delivered.
const PROBE: Timing = Timing { warm_up: Duration::from_millis(100), window: Duration::from_millis(300) };
/// The rate at which that begins, in packets per second, and by how much it grows at a time.
const FIRST_RATE: f64 = 40_000.0;
pub(crate) const GROWTH: f64 = 1.25;
/// The same where nothing is to be learnt but whether it works.
pub(crate) const QUICK_GROWTH: f64 = 3.0;
/// Where it ends at the latest: no generator here offers more.
const LAST_RATE: f64 = 4e6;

/// What one run gave.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Its values.
    pub(crate) values: Vec<(Quantity, f64)>,
    /// What the box did meanwhile.
    pub(crate) usage: Usage,
}

/// How long and how much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Of a bulk or flood run.
    pub(crate) timing: Timing,
    /// Requests of a ping run.
    pub(crate) pings: usize,
    /// Share of one CPU that the generator of small packets has.
    pub(crate) udp_share: f64,
    /// By how much the offered rate grows while the best one is looked for.
    pub(crate) growth: f64,
}

/// Waits until the subject carries packets.
///
/// # Errors
/// When it does not within [`READY_WITHIN`].
pub(crate) fn wait_until_ready(subject: &Subject) -> Result<()> {
    let give_up = Instant::now() + READY_WITHIN;
    // Some make their device only when they like.
    while let Err(error) = ping_once(subject) {
        ensure!(Instant::now() < give_up, error);
        thread::sleep(LOOK_AGAIN);
    }
    let strayed = settle(subject)?;
    ensure!(
        strayed.is_none(),
        "{} after {PATH_WITHIN:?}",
        strayed.map_or(String::new(), |it| it.to_string())
    );
    Ok(())
}

/// Waits until both ends reach each other straight, over UDP: a relay may be quicker at first.
///
/// # Errors
/// When they do not within [`PATH_WITHIN`], or a daemon does not say.
pub(crate) fn wait_until_direct(subject: &Subject) -> Result<()> {
    let give_up = Instant::now() + PATH_WITHIN;
    loop {
        match subject.ensure_direct() {
            Err(error) if Instant::now() >= give_up => return Err(error),
            Err(_) => ping_once(subject)?,
            Ok(()) => return Ok(()),
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn ping_once(subject: &Subject) -> Result<()> {
    let to = subject.second().address();
    subject.first().enter(move || Pinger::open(to))??.wait_for_answer(READY_WITHIN)
}

/// Waits until the packets of both ends take the path that is to be measured, or tells which other one was there last.
///
/// # Errors
/// When nothing passes, or a daemon does not say by which path.
pub(crate) fn settle(subject: &Subject) -> Result<Option<Strayed>> {
    subject.refresh_flows()?;
    let give_up = Instant::now() + PATH_WITHIN;
    loop {
        let strayed = subject.strayed()?;
        if strayed.is_none() || Instant::now() >= give_up {
            return Ok(strayed);
        }
        // Paths are looked after only while packets pass.
        ping_once(subject)?;
        thread::sleep(LOOK_AGAIN);
    }
}

/// Runs one step over a subject.
///
/// # Errors
/// When the subject does not carry the load, with the reason.
pub(crate) fn run(step: Step, subject: &Subject, effort: Effort) -> Result<Reading> {
    let (first, second) = (subject.first(), subject.second());
    let bulk = |quantity, streams: usize, from, to| {
        let result = tcp(streams, from, to, subject, effort)?;
        Ok(Reading { values: vec![(quantity, result.rate() * 8.0)], usage: result.usage })
    };
    match step {
        Step::Tcp1 => tcp1(subject, effort),
        Step::Tcp4 => bulk(Quantity::Tcp4, 4, first, second),
        Step::Reverse => bulk(Quantity::Reverse, 1, second, first),
        Step::Calls => system_calls(subject, effort),
        Step::Udp64 => udp64(subject, effort),
        Step::Overload => overload(subject, effort),
        Step::Ping => ping(subject, effort.pings, INTERVAL, [Quantity::PingP50, Quantity::PingP99]),
        Step::Ping20 => {
            let count = (effort.pings / 5).max(20);
            ping(subject, count, LONG_INTERVAL, [Quantity::Ping20P50, Quantity::Ping20P99])
        }
        Step::Loaded => loaded(subject, effort),
    }
}

fn tcp1(subject: &Subject, effort: Effort) -> Result<Reading> {
    let result = tcp(1, subject.first(), subject.second(), subject, effort)?;
    let gigabytes = result.count as f64 / 1e9;
    let values = vec![
        (Quantity::Tcp1, result.rate() * 8.0),
        // What strangers used is not of this run; up to the gate's limit there may be some.
        (Quantity::BoxCpu, result.usage.own() / gigabytes),
        (Quantity::DaemonCpu, result.usage.daemons / gigabytes),
    ];
    Ok(Reading { values, usage: result.usage })
}

/// Counted by the kernel for everybody; where it may not be, our daemons' own counters say it of ours. A cable makes none.
fn system_calls(subject: &Subject, effort: Effort) -> Result<Reading> {
    let processes = subject.daemons_here();
    let window = effort.timing.window;
    let streams = streams(1, subject.first(), subject.second())?;
    let (result, calls) = if processes.is_empty() {
        (streams.run(effort.timing, &[])?, Some(0.0))
    } else if calls::can_count() {
        let counted =
            streams.run_beside(effort.timing, subject.daemons(), || calls::count(processes, window))?;
        (counted.0, Some(counted.1))
    } else {
        let before = subject.system_calls()?;
        let began = Instant::now();
        // Warming up makes calls and moves bytes too; both counts end with the run.
        let timing = Timing { warm_up: Duration::ZERO, window: effort.timing.window };
        let result = streams.run(timing, subject.daemons())?;
        let elapsed = began.elapsed().as_secs_f64();
        let after = subject.system_calls()?;
        (result, before.zip(after).map(|(before, after)| after.saturating_sub(before) as f64 / elapsed))
    };
    let megabytes_per_second = result.rate() / 1e6;
    let values = calls.map(|calls| (Quantity::Calls, calls / megabytes_per_second));
    Ok(Reading { values: values.into_iter().collect(), usage: result.usage })
}

fn udp64(subject: &Subject, effort: Effort) -> Result<Reading> {
    let window = effort.timing.window.min(LONGEST_FLOOD);
    let timing = Timing { warm_up: window / 4, window };
    let flood = flood(subject, Pace::Share(effort.udp_share), timing)?;
    let sent = flood.offered * (timing.warm_up + timing.window).as_secs_f64();
    let values = vec![
        (Quantity::Udp64, flood.delivered.rate()),
        (Quantity::Udp64Offered, flood.offered),
        (Quantity::Udp64Late, flood.overtaken as f64 / sent.max(1.0) * 1e6),
    ];
    Ok(Reading { values, usage: flood.delivered.usage })
}

/// Looks for the rate at which most packets are delivered, and offers twice that.
fn overload(subject: &Subject, effort: Effort) -> Result<Reading> {
    let mut usage = Usage::default();
    let (mut rate, mut best, mut most) = (FIRST_RATE, FIRST_RATE, 0.0);
    while rate < LAST_RATE {
        let probe = flood(subject, Pace::Rate(rate), PROBE)?;
        usage.add(&probe.delivered.usage);
        let delivered = probe.delivered.rate();
        if delivered > most {
            (best, most) = (rate, delivered);
        }
        // Beyond what it can take, or what the generator can offer.
        if delivered < 0.7 * most || probe.offered < 0.8 * rate {
            break;
        }
        rate *= effort.growth;
    }
    let window = effort.timing.window.min(LONGEST_FLOOD);
    let timing = Timing { warm_up: window / 4, window };
    // The largest of many is too large by chance: what counts is how it does another time.
    let at_best = flood(subject, Pace::Rate(best), timing)?;
    usage.add(&at_best.delivered.usage);
    let at_twice = flood(subject, Pace::Rate(2.0 * at_best.delivered.rate()), timing)?;
    usage.add(&at_twice.delivered.usage);
    let (best, twice) = (at_best.delivered.rate(), at_twice.delivered.rate());
    let values = vec![
        (Quantity::Udp64Best, best),
        (Quantity::Udp64Overload, twice),
        (Quantity::OverloadKept, twice / best),
    ];
    Ok(Reading { values, usage })
}

fn flood(subject: &Subject, pace: Pace, timing: Timing) -> Result<Flood> {
    let (first, second) = (subject.first(), subject.second());
    let at = SocketAddr::new(second.address(), 0);
    let sink = second.enter(move || UdpSocket::bind(at))?.context("opening the sink")?;
    let to = sink.local_addr().context("asking for the sink's port")?;
    let from = SocketAddr::new(first.address(), 0);
    let source = first.enter(move || {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        std::io::Result::Ok(socket)
    })?;
    let source = source.context("opening the source")?;
    udp::flood(&source, &sink, pace, timing, subject.daemons())
}

fn ping(subject: &Subject, count: usize, interval: Duration, of: [Quantity; 2]) -> Result<Reading> {
    let to = subject.second().address();
    let mut pinger = subject.first().enter(move || Pinger::open(to))??;
    pinger.wait_for_answer(READY_WITHIN)?;
    let series = pinger.series(count, interval, subject.daemons())?;
    Ok(Reading { values: percentiles(&series.micros, of)?, usage: series.usage })
}

fn percentiles(micros: &[f64], [p50, p99]: [Quantity; 2]) -> Result<Vec<(Quantity, f64)>> {
    let at = |percent| percentile(micros, percent).context("no ping was answered");
    Ok(vec![(p50, at(50)?), (p99, at(99)?)])
}

/// The way there is full: a ping waits in the same queues as the stream.
fn loaded(subject: &Subject, effort: Effort) -> Result<Reading> {
    let to = subject.second().address();
    let mut pinger = subject.first().enter(move || Pinger::open(to))??;
    pinger.wait_for_answer(READY_WITHIN)?;
    let window = effort.timing.window;
    let streams = streams(1, subject.first(), subject.second())?;
    let (result, (micros, lost)) = streams.run_beside(effort.timing, subject.daemons(), move || {
        let (began, mut micros) = (Instant::now(), Vec::new());
        let lost = pinger.requests(INTERVAL, &mut micros, |_| began.elapsed() < window)?;
        Ok((micros, lost))
    })?;
    let mut values = percentiles(&micros, [Quantity::LoadedP50, Quantity::LoadedP99])?;
    values.push((Quantity::LoadedLost, lost as f64 / (micros.len() + lost) as f64));
    values.push((Quantity::LoadedTcp, result.rate() * 8.0));
    Ok(Reading { values, usage: result.usage })
}

fn tcp(streams_count: usize, from: &End, to: &End, subject: &Subject, effort: Effort) -> Result<Windowed> {
    streams(streams_count, from, to)?.run(effort.timing, subject.daemons())
}

fn streams(count: usize, from: &End, to: &End) -> Result<Streams> {
    let at = SocketAddr::new(to.address(), 0);
    let listen = || to.enter(move || TcpListener::bind(at))?.context("opening a listener");
    let connect = |address| {
        from.enter(move || TcpStream::connect_timeout(&address, READY_WITHIN))?.context("connecting")
    };
    Streams::open(count, listen, connect)
}
