//! What to compare and how: the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::gate::Gate;
use crate::ground::{Family, Ground, Topology};
use crate::load::Timing;
use crate::load::ping::INTERVAL;
use crate::measure::Effort;
use crate::quantity::Step;
use crate::subject::{Newer, Order, SubjectKind};
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
    /// Compare lengths of the TUN device's queue, under load
    #[arg(long, value_delimiter = ',', value_name = "PACKETS", num_args = 0..,
          default_missing_value = "100,250,500,1000,2000", conflicts_with_all = ["only", "paths", "filter", "ablate"])]
    queues: Vec<u32>,
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

impl Options {
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
            [] => &SubjectKind::SYSTEMS,
            only => only,
        };
        kinds.iter().copied().map(Order::from).chain(self.variant.iter().cloned()).collect()
    }

    /// Says whether a subject that cannot be had is a fault: it was asked for.
    pub(crate) fn insists(&self, order: &Order) -> bool {
        self.paths || self.filter || self.only.contains(&order.kind) || self.variant.contains(order)
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
        Effort { timing: Timing { warm_up, window }, pings, udp_share: self.udp_share }
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
