//! What is measured, in which units, and by which kind of run.

use clap::ValueEnum;

/// One kind of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Step {
    /// One TCP stream from the first end to the second; gives the CPU costs too.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// One TCP stream from the second end to the first.
    Reverse,
    /// System calls of the daemons while one TCP stream flows.
    Calls,
    /// Small UDP packets from a generator with a fixed share of one CPU.
    Udp64,
    /// Twice as many small UDP packets as a subject can take at best.
    Overload,
    /// Round trips, one every 2 ms.
    Ping,
    /// Round trips, one every 20 ms.
    Ping20,
    /// Round trips beside one TCP stream.
    Loaded,
}

impl Step {
    /// In the order in which they are run.
    pub(crate) const ALL: [Self; 9] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Reverse,
        Self::Calls,
        Self::Udp64,
        Self::Overload,
        Self::Ping,
        Self::Ping20,
        Self::Loaded,
    ];

    /// Returns how often it is run in each round: rates of small packets vary more than others do.
    pub(crate) fn runs(self) -> usize {
        if self == Self::Udp64 { 2 } else { 1 }
    }
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
    /// System calls of the daemons per megabyte (10^6 bytes) of one TCP stream's payload.
    Calls,
    /// UDP packets with 64 bytes of payload delivered, of a generator with a fixed share of one CPU.
    Udp64,
    /// UDP packets of that generator that the kernel took.
    Udp64Offered,
    /// Of a million of those, how many arrived after a later one.
    Udp64Late,
    /// UDP packets with 64 bytes of payload delivered at the rate at which most are.
    Udp64Best,
    /// The same while twice as many are offered as that best rate.
    Udp64Overload,
    /// The last two divided.
    OverloadKept,
    /// Half of all pings took no longer.
    PingP50,
    /// 99 % of all pings took no longer.
    PingP99,
    /// Half of all pings with 20 ms between them took no longer.
    Ping20P50,
    /// 99 % of all pings with 20 ms between them took no longer.
    Ping20P99,
    /// Half of all pings beside a TCP stream took no longer.
    LoadedP50,
    /// 99 % of all pings beside a TCP stream took no longer.
    LoadedP99,
    /// Pings beside a TCP stream that were lost.
    LoadedLost,
    /// Payload rate of that TCP stream.
    LoadedTcp,
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
    /// Per 10^6 bytes.
    CallsPerMegabyte,
    /// Of a round trip.
    Microseconds,
    /// Of a million packets.
    PacketsPerMillion,
    /// Of a whole, from 0 to 1.
    Share,
}

impl Quantity {
    /// In the order of the table's columns.
    pub(crate) const ALL: [Self; 20] = [
        Self::Tcp1,
        Self::Tcp4,
        Self::Reverse,
        Self::BoxCpu,
        Self::DaemonCpu,
        Self::Calls,
        Self::Udp64,
        Self::Udp64Offered,
        Self::Udp64Late,
        Self::Udp64Best,
        Self::Udp64Overload,
        Self::OverloadKept,
        Self::PingP50,
        Self::PingP99,
        Self::Ping20P50,
        Self::Ping20P99,
        Self::LoadedP50,
        Self::LoadedP99,
        Self::LoadedLost,
        Self::LoadedTcp,
    ];

    /// Returns the name in JSON and in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Reverse => "reverse",
            Self::BoxCpu => "box_cpu",
            Self::DaemonCpu => "daemon_cpu",
            Self::Calls => "calls",
            Self::Udp64 => "udp64",
            Self::Udp64Offered => "udp64_offered",
            Self::Udp64Late => "udp64_late",
            Self::Udp64Best => "udp64_best",
            Self::Udp64Overload => "udp64_overload",
            Self::OverloadKept => "overload_kept",
            Self::PingP50 => "ping_p50",
            Self::PingP99 => "ping_p99",
            Self::Ping20P50 => "ping20_p50",
            Self::Ping20P99 => "ping20_p99",
            Self::LoadedP50 => "loaded_p50",
            Self::LoadedP99 => "loaded_p99",
            Self::LoadedLost => "loaded_lost",
            Self::LoadedTcp => "loaded_tcp",
        }
    }

    /// Returns the unit of its values.
    pub(crate) fn unit(self) -> Unit {
        match self {
            Self::Tcp1 | Self::Tcp4 | Self::Reverse | Self::LoadedTcp => Unit::BitsPerSecond,
            Self::BoxCpu | Self::DaemonCpu => Unit::CpuSecondsPerGigabyte,
            Self::Calls => Unit::CallsPerMegabyte,
            Self::Udp64 | Self::Udp64Offered | Self::Udp64Best | Self::Udp64Overload => {
                Unit::PacketsPerSecond
            }
            Self::Udp64Late => Unit::PacketsPerMillion,
            Self::OverloadKept | Self::LoadedLost => Unit::Share,
            Self::PingP50
            | Self::PingP99
            | Self::Ping20P50
            | Self::Ping20P99
            | Self::LoadedP50
            | Self::LoadedP99 => Unit::Microseconds,
        }
    }

    /// Returns the table's heading, with the unit as shown.
    pub(crate) fn heading(self) -> String {
        let shown = match self.unit() {
            Unit::BitsPerSecond => " Gbit/s",
            Unit::CpuSecondsPerGigabyte => " CPU s/GB",
            Unit::CallsPerMegabyte => " /MB",
            Unit::PacketsPerSecond => " kpps",
            Unit::Microseconds => " us",
            Unit::PacketsPerMillion => " ppm",
            Unit::Share => "",
        };
        format!("{}{shown}", self.name())
    }

    /// Says whether more of it is better; nothing where neither is.
    pub(crate) fn more_is_better(self) -> Option<bool> {
        match self.unit() {
            Unit::BitsPerSecond | Unit::PacketsPerSecond => Some(self != Self::Udp64Offered),
            Unit::CpuSecondsPerGigabyte | Unit::CallsPerMegabyte | Unit::Microseconds => Some(false),
            Unit::PacketsPerMillion | Unit::Share => None,
        }
    }
}

impl Unit {
    /// Returns the name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::BitsPerSecond => "bit/s",
            Self::PacketsPerSecond => "packet/s",
            Self::CpuSecondsPerGigabyte => "s/GB",
            Self::CallsPerMegabyte => "1/MB",
            Self::Microseconds => "us",
            Self::PacketsPerMillion => "ppm",
            Self::Share => "1",
        }
    }

    /// Formats a value in the unit that the headings name.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::BitsPerSecond => format!("{:.2}", value / 1e9),
            Self::PacketsPerSecond => format!("{:.0}", value / 1e3),
            Self::CpuSecondsPerGigabyte | Self::Share => format!("{value:.2}"),
            Self::CallsPerMegabyte => format!("{value:.1}"),
            Self::Microseconds | Self::PacketsPerMillion => format!("{value:.0}"),
        }
    }
}
