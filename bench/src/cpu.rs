//! Who used the box's CPU between two instants: everything, our own processes, or strangers.
//!
//! `/proc/stat` knows what the whole box did, softirq included; the processes' own `stat` files say whose it was.
//! Strangers' CPU time is what makes a measurement on a shared box worthless without leaving a trace in the result:
//! one busy compiler halves every figure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Where a sandbox of [`ringmesh_lab`] keeps the process table of the box; its own `/proc` shows no strangers.
const OUTSIDE_PROC: &str = "/run/outside/proc";
/// The kernel's unit in `/proc`: fixed by its ABI at a hundredth of a second (`USER_HZ`).
const TICK: f64 = 0.01;
/// Strangers that are named.
const STRANGERS: usize = 3;
/// `PF_KTHREAD` of `include/linux/sched.h`: a kernel thread works for everybody.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// The CPU counters of the box at one instant.
#[derive(Debug)]
pub(crate) struct Snapshot {
    at: Instant,
    /// All of ours descend from this process.
    root: u32,
    total: BoxTicks,
    processes: BTreeMap<u32, Process>,
}

/// The first line of `/proc/stat`, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct BoxTicks {
    busy: u64,
    interrupts: u64,
    stolen: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Process {
    name: String,
    parent: u32,
    kernel: bool,
    own: u64,
    reaped: u64,
}

/// What happened between two snapshots, in CPU seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Wall time between them.
    pub(crate) elapsed: Duration,
    /// Busy time of all CPUs, interrupts included.
    pub(crate) busy: f64,
    /// Of our daemons.
    pub(crate) daemons: f64,
    /// Of processes that are neither this one nor its descendants, and of the hypervisor's other guests.
    pub(crate) foreign: f64,
    /// Of the hypervisor's other guests alone, which is no part of the busy time.
    pub(crate) stolen: f64,
    /// The strangers that used most, with their CPU seconds, most first.
    pub(crate) strangers: Vec<(String, f64)>,
}

impl Usage {
    /// Returns the busy time that was not strangers', in CPU seconds.
    pub(crate) fn own(&self) -> f64 {
        (self.busy - (self.foreign - self.stolen)).max(0.0)
    }

    /// Adds what happened in another span of time, which need not follow.
    pub(crate) fn add(&mut self, other: &Self) {
        self.elapsed += other.elapsed;
        self.busy += other.busy;
        self.daemons += other.daemons;
        self.foreign += other.foreign;
        self.stolen += other.stolen;
        self.strangers.extend(other.strangers.iter().cloned());
        self.strangers.sort_by(|left, right| right.1.total_cmp(&left.1));
        self.strangers.truncate(STRANGERS);
    }

    /// Returns the strangers' share of the whole box, from 0 to 1.
    pub(crate) fn foreign_share(&self) -> f64 {
        self.foreign / (self.elapsed.as_secs_f64() * cpus() as f64)
    }
}

/// Returns the process id by which the whole box knows a process of ours.
pub(crate) fn box_pid(pid: u32) -> u32 {
    ringmesh_lab::outside_pid(pid).unwrap_or(pid)
}

/// Returns how many CPUs this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Snapshot {
    /// Reads the counters.
    ///
    /// # Errors
    /// When `/proc` is not mounted or its first line is not as documented in proc(5).
    pub(crate) fn take() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let total =
            BoxTicks::parse(&stat).context("/proc/stat does not begin with the counters of all CPUs")?;
        static ME: OnceLock<u32> = OnceLock::new();
        let me = *ME.get_or_init(|| box_pid(std::process::id()));
        // A sandbox's first process, our parent, adopts what our daemons leave behind.
        let sandboxed = me != std::process::id();
        let table = if sandboxed { OUTSIDE_PROC } else { "/proc" };
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir(table).context("listing the processes")? {
            let Some(pid) = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok()) else {
                continue;
            };
            // It may have ended since it was listed.
            let Ok(stat) = fs::read(format!("{table}/{pid}/stat")) else { continue };
            if let Some(process) = Process::parse(&String::from_utf8_lossy(&stat)) {
                processes.insert(pid, process);
            }
        }
        let parent = processes.get(&me).map(|process: &Process| process.parent);
        let root = parent.filter(|_| sandboxed).unwrap_or(me);
        Ok(Self { at: Instant::now(), root, total, processes })
    }

    /// Says what happened since `earlier`; `daemons` are the processes under test, descendants of ours, by their
    /// [`box_pid`].
    pub(crate) fn since(&self, earlier: &Self, daemons: &[u32]) -> Usage {
        let ours = self.descendants(self.root);
        let ticks = |ticks: u64| ticks as f64 * TICK;
        let busy = self.total.busy.saturating_sub(earlier.total.busy);
        let stolen = self.total.stolen.saturating_sub(earlier.total.stolen);
        let interrupts = self.total.interrupts.saturating_sub(earlier.total.interrupts);
        let own_of = |pid: &u32| {
            let before = earlier.processes.get(pid).map_or(0, |process| process.own);
            self.processes.get(pid).map_or(0, |process| process.own.saturating_sub(before))
        };
        let known: u64 = ours.iter().chain(self.kernel_threads()).map(own_of).sum();
        // Two views, each blind where the other sees: the processes' own counters miss what came and went unreaped
        // between two looks; the box's remainder counts softirq twice when it ran on our processes' time.
        let remainder = busy.saturating_sub(interrupts).saturating_sub(known);
        let counted = self.lifetime(&ours).saturating_sub(earlier.lifetime(&ours));
        let mut strangers = self.strangers_since(earlier, &ours);
        strangers.sort_by(|left, right| right.1.total_cmp(&left.1));
        strangers.truncate(STRANGERS);
        Usage {
            elapsed: self.at.duration_since(earlier.at),
            busy: ticks(busy),
            daemons: ticks(daemons.iter().map(own_of).sum()),
            foreign: ticks(remainder.max(counted) + stolen),
            stolen: ticks(stolen),
            strangers,
        }
    }

    fn descendants(&self, root: u32) -> BTreeSet<u32> {
        let mut found = BTreeSet::from([root]);
        loop {
            let before = found.len();
            let children = self.processes.iter().filter(|(_, process)| found.contains(&process.parent));
            let children: Vec<u32> = children.map(|(&pid, _)| pid).collect();
            found.extend(children);
            if found.len() == before {
                return found;
            }
        }
    }

    fn kernel_threads(&self) -> impl Iterator<Item = &u32> {
        self.processes.iter().filter(|(_, process)| process.kernel).map(|(pid, _)| pid)
    }

    fn strangers<'a>(&'a self, ours: &'a BTreeSet<u32>) -> impl Iterator<Item = (&'a u32, &'a Process)> {
        self.processes.iter().filter(|(pid, process)| !process.kernel && !ours.contains(pid))
    }

    /// Everything that strangers ever used: a child that ended is in its parent's count of reaped children.
    fn lifetime(&self, ours: &BTreeSet<u32>) -> u64 {
        self.strangers(ours).map(|(_, process)| process.own + process.reaped).sum()
    }

    fn strangers_since(&self, earlier: &Self, ours: &BTreeSet<u32>) -> Vec<(String, f64)> {
        let mut used = Vec::new();
        for (pid, process) in self.strangers(ours) {
            let before = earlier.processes.get(pid).map_or(0, |process| process.own + process.reaped);
            let ticks = (process.own + process.reaped).saturating_sub(before);
            if ticks > 0 {
                used.push((format!("{} ({pid})", process.name), ticks as f64 * TICK));
            }
        }
        used
    }
}

impl BoxTicks {
    /// Parses `cpu user nice system idle iowait irq softirq steal guest guest_nice` (proc(5)).
    fn parse(stat: &str) -> Option<Self> {
        let counters = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let &[user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = ticks.as_slice() else {
            return None;
        };
        Some(Self { busy: user + nice + system + irq + softirq, interrupts: irq + softirq, stolen })
    }
}

impl Process {
    /// Parses `/proc/PID/stat`; the name may hold spaces and brackets, so the fields begin after the last bracket.
    fn parse(stat: &str) -> Option<Self> {
        let (head, tail) = stat.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        // Field numbers of proc(5), of which 1 and 2 are before the bracket.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            name: name.to_owned(),
            parent: field(4)?.try_into().ok()?,
            kernel: field(9)? & KERNEL_THREAD != 0,
            own: field(14)? + field(15)?,
            reaped: field(16)? + field(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(parent: u32, own: u64, reaped: u64) -> Process {
        Process { name: "p".to_owned(), parent, kernel: false, own, reaped }
    }

    fn snapshot(busy: u64, processes: &[(u32, Process)]) -> Snapshot {
        Snapshot {
            at: Instant::now(),
            root: std::process::id(),
            total: BoxTicks { busy, interrupts: 0, stolen: 0 },
            processes: processes.iter().cloned().collect(),
        }
    }

    #[test]
    fn the_box_line_is_summed_as_documented() {
        let parsed = BoxTicks::parse("cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(parsed, BoxTicks { busy: 163, interrupts: 13, stolen: 8 });
        assert_eq!(BoxTicks::parse("intr 1 2 3"), None);
        assert_eq!(BoxTicks::parse("cpu  1 2 3"), None);
    }

    #[test]
    fn a_process_name_may_hold_brackets_and_spaces() {
        let stat = "77 (a (b) c) S 1 77 77 0 -1 2097216 0 0 0 0 11 12 13 14 20 0 1 0 330 0 0";
        let parsed = Process::parse(stat).unwrap();
        assert_eq!(
            parsed,
            Process { name: "a (b) c".to_owned(), parent: 1, kernel: true, own: 23, reaped: 27 }
        );
        assert_eq!(Process::parse("77 (short) S 1"), None);
    }

    #[test]
    fn our_descendants_are_not_strangers() {
        let me = std::process::id();
        let before = snapshot(0, &[(me, process(1, 0, 0)), (900_001, process(me, 5, 0))]);
        let after = snapshot(
            60,
            &[(me, process(1, 10, 0)), (900_001, process(me, 25, 0)), (900_002, process(900_001, 30, 0))],
        );
        let usage = after.since(&before, &[900_001]);
        assert_eq!(usage.foreign, 0.0);
        assert_eq!(usage.daemons, 0.2);
        assert_eq!(usage.busy, 0.6);
    }

    #[test]
    fn a_stranger_that_ended_is_counted_through_its_parent() {
        let before = snapshot(0, &[(900_001, process(1, 10, 0)), (900_002, process(900_001, 40, 0))]);
        let after = snapshot(0, &[(900_001, process(1, 10, 90))]);
        assert_eq!(after.since(&before, &[]).foreign, 0.5);
    }

    #[test]
    fn a_stranger_nobody_saw_shows_in_the_remainder_of_the_box() {
        let usage = snapshot(100, &[]).since(&snapshot(0, &[]), &[]);
        assert_eq!(usage.foreign, 1.0);
        assert!(usage.strangers.is_empty());
    }

    #[test]
    fn our_own_work_is_seen_on_this_very_box() {
        let (me, began) = (std::process::id(), Instant::now());
        let before = Snapshot::take().unwrap();
        // On a busy box it takes a while to be given 50 ms of CPU.
        loop {
            let usage = Snapshot::take().unwrap().since(&before, &[me]);
            if usage.daemons >= 0.05 {
                assert!(usage.busy >= 0.05, "we were busy and the box was not: {usage:?}");
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "our work was not seen: {usage:?}");
        }
    }
}
