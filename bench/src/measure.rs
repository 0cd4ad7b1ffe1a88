//! What is measured, in which units, and how one run of it goes.

use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cpu::Usage;
use crate::load::ping::Pinger;
use crate::load::tcp::Streams;
use crate::load::{Timing, Windowed, udp};
use crate::stats::percentile;
use crate::subject::{End, Strayed, Subject};

/// How long a subject may take until the first ping passes: a handshake, with some retries.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// How long it may take until both ends have settled on the path that is to be measured: what they like better, and cannot
/// have, is tried and waited for first.
const PATH_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at the path.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// One kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// One TCP stream from the first end to the second; gives the CPU costs too.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// One TCP stream from the second end to the first.
    Reverse,
    /// Small UDP packets.
    Udp64,
    /// Round trips.
    Ping,
}

impl Step {
    /// In the order in which they are run.
    pub(crate) const ALL: [Self; 5] = [Self::Tcp1, Self::Tcp4, Self::Reverse, Self::Udp64, Self::Ping];
}

/// One column of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Quantity {
    /// Payload rate of one TCP stream.
    Tcp1,
    /// Payload rate of four TCP streams together.
    Tcp4,
    /// Payload rate of one TCP stream the other way.
    Reverse,
    /// CPU time of the whole box per gigabyte (10^9 bytes) of one TCP stream's payload.
    BoxCpu,
    /// The same of the subject's daemons alone.
    DaemonCpu,
    /// UDP packets with 64 bytes of payload delivered.
    Udp64,
    /// Half of all pings took no longer.
    PingP50,
    /// 99 % of all pings took no longer.
    PingP99,
}

/// The unit of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Shown as Gbit/s.
    BitsPerSecond,
    /// Shown as thousands.
    PacketsPerSecond,
    /// Per 10^9 bytes.
    CpuSecondsPerGigabyte,
    /// Of a round trip.
    Microseconds,
}

impl Quantity {
    /// In the order of the table's columns.
    pub(crate) const ALL: [Self; 8] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Reverse,
        Self::BoxCpu,
        Self::DaemonCpu,
        Self::Udp64,
        Self::PingP50,
        Self::PingP99,
    ];

    /// Returns the name in JSON and in the table of ratios.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Reverse => "reverse",
            Self::BoxCpu => "box_cpu",
            Self::DaemonCpu => "daemon_cpu",
            Self::Udp64 => "udp64",
            Self::PingP50 => "ping_p50",
            Self::PingP99 => "ping_p99",
        }
    }

    /// Returns the unit of its values.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Tcp1 | Self::Tcp4 | Self::Reverse => Unit::BitsPerSecond,
            Self::BoxCpu | Self::DaemonCpu => Unit::CpuSecondsPerGigabyte,
            Self::Udp64 => Unit::PacketsPerSecond,
            Self::PingP50 | Self::PingP99 => Unit::Microseconds,
        }
    }

    /// Returns the table's heading, with the unit as shown.
    pub(crate) fn heading(self) -> String {
        let shown = match self.unit() {
            Unit::BitsPerSecond => "Gbit/s",
            Unit::CpuSecondsPerGigabyte => "CPU s/GB",
            Unit::PacketsPerSecond => "kpps",
            Unit::Microseconds => "us",
        };
        format!("{} {shown}", self.name())
    }
}

impl Unit {
    /// Returns the name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BitsPerSecond => "bit/s",
            Self::PacketsPerSecond => "packet/s",
            Self::CpuSecondsPerGigabyte => "s/GB",
            Self::Microseconds => "us",
        }
    }
}

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
}

/// Waits until the subject carries packets.
///
/// # Errors
/// When it does not within [`READY_WITHIN`].
pub(crate) fn wait_until_ready(subject: &Subject) -> Result<()> {
    let to = subject.second().address();
    subject.first().enter(move || Pinger::open(to))??.wait_for_answer(READY_WITHIN)?;
    let strayed = settle(subject)?;
    ensure!(
        strayed.is_none(),
        "{} after {PATH_WITHIN:?}",
        strayed.map_or(String::new(), |it| it.to_string())
    );
    Ok(())
}

/// Waits until the packets of both ends take the path that is to be measured, or tells which other one was there last.
///
/// # Errors
/// When nothing passes, or a daemon does not say by which path.
pub(crate) fn settle(subject: &Subject) -> Result<Option<Strayed>> {
    subject.refresh_flows()?;
    let give_up = Instant::now() + PATH_WITHIN;
    let to = subject.second().address();
    loop {
        let strayed = subject.strayed()?;
        if strayed.is_none() || Instant::now() >= give_up {
            return Ok(strayed);
        }
        // Paths are looked after only while packets pass.
        subject.first().enter(move || Pinger::open(to))??.wait_for_answer(READY_WITHIN)?;
        thread::sleep(LOOK_AGAIN);
    }
}

/// Runs one step over a subject.
///
/// # Errors
/// When the subject does not carry the load, with the reason.
pub(crate) fn run(step: Step, subject: &Subject, effort: Effort) -> Result<Reading> {
    let (first, second) = (subject.first(), subject.second());
    match step {
        Step::Tcp1 => {
            let result = tcp(1, first, second, subject, effort)?;
            let gigabytes = result.count as f64 / 1e9;
            let values = vec![
                (Quantity::Tcp1, result.rate() * 8.0),
                (Quantity::BoxCpu, result.usage.busy / gigabytes),
                (Quantity::DaemonCpu, result.usage.daemons / gigabytes),
            ];
            Ok(Reading { values, usage: result.usage })
        }
        Step::Tcp4 => bulk(Quantity::Tcp4, tcp(4, first, second, subject, effort)?),
        Step::Reverse => bulk(Quantity::Reverse, tcp(1, second, first, subject, effort)?),
        Step::Udp64 => {
            let at = SocketAddrV4::new(second.address(), 0);
            let sink = second.enter(move || UdpSocket::bind(at))?.context("opening the sink")?;
            let to = sink.local_addr().context("asking for the sink's port")?;
            let from = SocketAddrV4::new(first.address(), 0);
            let source = first.enter(move || {
                let socket = UdpSocket::bind(from)?;
                socket.connect(to)?;
                std::io::Result::Ok(socket)
            })?;
            let source = source.context("opening the source")?;
            let flood = udp::flood(&source, &sink, effort.timing, subject.daemons())?;
            Ok(Reading { values: vec![(Quantity::Udp64, flood.rate())], usage: flood.usage })
        }
        Step::Ping => {
            let to = second.address();
            let mut pinger = first.enter(move || Pinger::open(to))??;
            pinger.wait_for_answer(READY_WITHIN)?;
            let series = pinger.series(effort.pings, subject.daemons())?;
            let at = |percent| percentile(&series.micros, percent).context("no ping was answered");
            let values = vec![(Quantity::PingP50, at(50)?), (Quantity::PingP99, at(99)?)];
            Ok(Reading { values, usage: series.usage })
        }
    }
}

fn bulk(quantity: Quantity, result: Windowed) -> Result<Reading> {
    Ok(Reading { values: vec![(quantity, result.rate() * 8.0)], usage: result.usage })
}

fn tcp(streams: usize, from: &End, to: &End, subject: &Subject, effort: Effort) -> Result<Windowed> {
    let at = SocketAddr::V4(SocketAddrV4::new(to.address(), 0));
    let listen = || to.enter(move || TcpListener::bind(at))?.context("opening a listener");
    let connect = |address| {
        from.enter(move || TcpStream::connect_timeout(&address, READY_WITHIN))?.context("connecting")
    };
    Streams::open(streams, listen, connect)?.run(effort.timing, subject.daemons())
}
