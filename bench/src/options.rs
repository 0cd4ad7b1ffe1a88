//! What to compare and how: the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::findings::Findings;
use crate::gate::Gate;
use crate::ground::{Family, Ground, Topology};
use crate::load::Timing;
use crate::load::ping::INTERVAL;
use crate::measure::{Effort, GROWTH, QUICK_GROWTH};
use crate::quantity::Step;
use crate::report::result;
use crate::subject::{Newer, Order, SubjectKind};
use crate::tuning::Tuning;
use crate::{ablation, queues};

/// What to compare and how.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Subjects to measure, comma-separated [default: raw, uring, poll, and every other VPN that is installed]
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<SubjectKind>,
    /// One more subject: one of ours with settings, as in uring:spin_us=50:offloads=tso+udp-gso; may be repeated
    #[arg(long, value_name = "KIND:NAME=VALUE...")]
    variant: Vec<Order>,
    /// Compare our own paths with each other: direct, relay, websocket and ssh
    #[arg(long, conflicts_with_all = ["only", "variant", "topology", "underlay"])]
    paths: bool,
    /// Compare what the packet filter costs: the policy that a network begins with, and 1,000 rules with 10,000 flows
    #[arg(long, conflicts_with_all = ["only", "variant", "paths"])]
    filter: bool,
    /// Compare our daemons with and without each of their means: back end, offloads, AEAD, workers, spin
    #[arg(long, conflicts_with_all = ["only", "paths", "filter"])]
    ablate: bool,
    /// Compare a worker's bare loop on our back ends with the same on the tokio-uring crate
    #[arg(long, conflicts_with_all = ["only", "paths", "filter", "ablate"])]
    loops: bool,
    /// Compare lengths of the TUN device's queue, under load
    #[arg(long, value_delimiter = ',', value_name = "PACKETS", num_args = 0..,
          default_missing_value = "100,250,500,1000,2000", conflicts_with_all = ["only", "paths", "filter", "ablate"])]
    queues: Vec<u32>,
    /// Compare one peer's packet rate with that of many, and tell what many cost that send nothing
    #[arg(long, conflicts_with_all = ["only", "paths", "filter", "ablate", "queues"])]
    peers: bool,
    /// Peers with sessions, with --peers
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) live_peers: u16,
    /// Peers that send nothing, with --peers; 0: that is not measured
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(0..=20_000))]
    pub(crate) idle_peers: u16,
    /// For how long those are watched, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    pub(crate) idle_seconds: u64,
    /// Send random data both ways at once through both back ends, and compare checksums
    #[arg(long, conflicts_with_all = ["only", "paths", "filter", "ablate", "queues", "peers"])]
    integrity: bool,
    /// How much each way, with --integrity: a number of bytes, or with K, M or G behind it
    #[arg(long, default_value = "1G", value_parser = bytes)]
    pub(crate) bytes: u64,
    /// The share of datagrams that are lost on the way, with --integrity; only on the routed ground
    #[arg(long, default_value_t = 0.0, value_parser = fraction, value_name = "SHARE")]
    pub(crate) loss: f64,
    /// The share of datagrams that are overtaken by others, with --integrity; only on the routed ground
    #[arg(long, default_value_t = 0.0, value_parser = fraction, value_name = "SHARE")]
    pub(crate) reorder: f64,
    /// What lies between the hosts
    #[arg(long, value_delimiter = ',', value_enum, default_value = "plain")]
    topology: Vec<Topologies>,
    /// The version of IP below the tunnels
    #[arg(long, value_delimiter = ',', value_enum, default_value = "v4")]
    underlay: Vec<Families>,
    /// What to measure, comma-separated [default: everything]
    #[arg(long, value_delimiter = ',', value_enum)]
    steps: Vec<Step>,
    /// Another build of meshctl, to stand beside this one as `earlier`: with --filter, or with --only
    #[arg(long, value_name = "PATH")]
    pub(crate) earlier: Option<PathBuf>,
    /// A newer wireguard-go or nebula than that in PATH, to stand beside it; may be repeated
    #[arg(long, value_name = "PROGRAM=PATH", env = "RINGMESH_BENCH_NEWER", value_delimiter = ',')]
    pub(crate) newer: Vec<Newer>,
    /// Runs of each measurement of each subject
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    repetitions: u16,
    /// Length of a measurement in seconds
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Share of one CPU that the generator of small packets may use, beside every subject alike
    #[arg(long, default_value_t = 0.5, value_parser = share, value_name = "SHARE")]
    udp_share: f64,
    /// A smoke run: everything once, for a third of a second; its figures mean little
    #[arg(long, conflicts_with_all = ["repetitions", "seconds"])]
    pub(crate) quick: bool,
    /// Measure even while others use the box; such samples are marked in the result
    #[arg(long)]
    pub(crate) force: bool,
    /// How long to wait for a quiet box before each run, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
    /// The meshctl to measure [default: built now, in the profile of this program, or found beside it]
    #[arg(long, value_name = "PATH")]
    pub(crate) meshctl: Option<PathBuf>,
    /// Write the result as JSON to a file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write the ratios as a picture to a file as well
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// What to write to standard output
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// The form of the result.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Topologies {
    /// A veth pair
    Plain,
    /// A router in between
    Routed,
    /// A veth pair that cuts and merges trains as network cards do
    Nic,
    /// One after the other
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Families {
    /// IPv4
    V4,
    /// IPv6
    V6,
    /// One after the other
    All,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Subjects side by side.
    Compare,
    /// Many peers.
    Peers,
    /// Checksums.
    Integrity,
}

impl Options {
    /// Returns what is run.
    pub(crate) fn mode(&self) -> Mode {
        match () {
            () if self.peers => Mode::Peers,
            () if self.integrity => Mode::Integrity,
            () => Mode::Compare,
        }
    }

    /// Returns the subjects to stand on each ground.
    pub(crate) fn orders(&self) -> Vec<Order> {
        if self.ablate {
            return ablation::orders();
        }
        if !self.queues.is_empty() {
            return queues::orders(&self.queues);
        }
        let kinds = match self.only.as_slice() {
            _ if self.paths => &SubjectKind::PATHS[..],
            _ if self.filter && self.earlier.is_some() => &SubjectKind::FILTER_AND_EARLIER,
            _ if self.filter => &SubjectKind::FILTER,
            _ if self.loops => &SubjectKind::LOOPS,
            [] => &SubjectKind::SYSTEMS,
            only => only,
        };
        kinds.iter().copied().map(Order::from).chain(self.variant.iter().cloned()).collect()
    }

    /// Says whether a subject that cannot be had is a fault: it was asked for.
    pub(crate) fn insists(&self, order: &Order) -> bool {
        self.paths
            || self.filter
            || self.loops
            || self.only.contains(&order.kind)
            || self.variant.contains(order)
    }

    /// Returns the grounds, in the order in which they are laid.
    pub(crate) fn grounds(&self) -> Vec<Ground> {
        let topologies = [
            (Topologies::Plain, Topology::Plain),
            (Topologies::Routed, Topology::Routed),
            (Topologies::Nic, Topology::Nic),
        ];
        let families = [(Families::V4, Family::V4), (Families::V6, Family::V6)];
        let asked = |it: Topologies| self.topology.contains(&it) || self.topology.contains(&Topologies::All);
        let below = |it: Families| self.underlay.contains(&it) || self.underlay.contains(&Families::All);
        let mut grounds = Vec::new();
        for (_, topology) in topologies.into_iter().filter(|(name, _)| asked(*name)) {
            for (_, underlay) in families.into_iter().filter(|(name, _)| below(*name)) {
                grounds.push(Ground { topology, underlay });
            }
        }
        grounds
    }

    /// Says whether a ground that cannot be laid is a fault: it was asked for by name.
    pub(crate) fn insists_on_grounds(&self) -> bool {
        !self.topology.contains(&Topologies::All)
    }

    /// Returns what to measure.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let usual: &[Step] = if self.paths || self.filter {
            &[Step::Tcp1, Step::Tcp4, Step::Reverse, Step::Udp64, Step::Ping]
        } else if self.ablate {
            &ablation::STEPS
        } else if !self.queues.is_empty() {
            &queues::STEPS
        } else {
            &Step::ALL
        };
        let asked = if self.steps.is_empty() { usual } else { &self.steps };
        Step::ALL.into_iter().filter(|step| asked.contains(step)).collect()
    }

    /// Returns the settings of the first variant, for what has one kind of subject.
    pub(crate) fn tuning(&self) -> Tuning {
        self.variant.first().map(|order| order.tuning.clone()).unwrap_or_default()
    }

    /// Writes findings where they are wanted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn put_out(&self, findings: &Findings) -> anyhow::Result<()> {
        if let Some(path) = &self.json {
            std::fs::write(path, findings.to_json()?)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        match self.output {
            Output::Table => result(&findings.to_text()),
            Output::Json => result(&findings.to_json()?),
        }
        Ok(())
    }

    /// Returns how often each is run.
    pub(crate) fn repetitions(&self) -> usize {
        if self.quick { 1 } else { usize::from(self.repetitions) }
    }

    /// Returns how long and how much is run each time.
    pub(crate) fn effort(&self) -> Effort {
        let (window, pings) = if self.quick {
            (0.3, 100)
        } else {
            let fitting = (self.seconds / INTERVAL.as_secs_f64()) as usize;
            (self.seconds, fitting.max(1000))
        };
        let window = Duration::from_secs_f64(window);
        let warm_up = (window / 3).min(Duration::from_secs(1));
        let growth = if self.quick { QUICK_GROWTH } else { GROWTH };
        Effort { timing: Timing { warm_up, window }, pings, udp_share: self.udp_share, growth }
    }

    /// Returns what is asked of the box.
    pub(crate) fn gate(&self) -> Gate {
        Gate { patience: Duration::from_secs(self.patience), force: self.force }
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("between 0.1 and 600 seconds".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.05..=1.0).contains(&share) => Ok(share),
        _ => Err("between 0.05 and 1".to_owned()),
    }
}

fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=0.5).contains(&share) => Ok(share),
        _ => Err("between 0 and 0.5".to_owned()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) => (number, text.chars().last()),
        None => (text, None),
    };
    let unit = match unit {
        Some('K') => 1_000,
        Some('M') => 1_000_000,
        Some('G') => 1_000_000_000,
        _ => 1,
    };
    let number: u64 = number.parse().map_err(|_| "it is a number, and K, M or G behind it if need be")?;
    match number.checked_mul(unit) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("that is none, or too many".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_and_without_a_unit() {
        assert_eq!(bytes("16G"), Ok(16_000_000_000));
        assert_eq!(bytes("500M"), Ok(500_000_000));
        assert_eq!(bytes("12"), Ok(12));
        for nonsense in ["", "G", "0", "-1", "1T", "99999999999G"] {
            bytes(nonsense).unwrap_err();
        }
    }
}
