//! The comparison: all subjects stand side by side, and every measurement goes round them before the next begins, so
//! that whatever changes on the box meanwhile hits them alike.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, fs, thread};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::cpu::{Usage, cpus};
use crate::gate::{Busy, FOREIGN_LIMIT, Gate};
use crate::load::Timing;
use crate::load::ping::INTERVAL;
use crate::measure::{self, Effort, Reading, Step};
use crate::report::{Machine, Report, Sample, Samples, Settings, progress, result};
use crate::subject::{Strayed, Subject, SubjectKind, Tools};

/// Runs of one measurement that strangers may spoil before it is given up.
const TRIES: usize = 8;
/// Between two runs, for queues and timers of the one before to drain.
const PAUSE: Duration = Duration::from_millis(200);

/// What a reader of figures about paths must know.
const PATHS_REMARK: &str = "paths: the relay had no rate limits; daemon_cpu is of both nodes and the coordinator with its \
                            relay; the path was checked at both ends before and after each run";

/// What a reader of figures about the filter must know.
const RULES_REMARK: &str = "rules: 1,000 rules, of which the last allows what was measured, and 10,000 answered UDP flows that both \
                            filters remembered before each run; uring: the policy that a network begins with";

/// What to compare and how.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Subjects to measure, comma-separated [default: raw, uring, poll and wireguard-go, as far as they can be]
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<SubjectKind>,
    /// Compare our own paths with each other: direct, relay, websocket and ssh
    #[arg(long, conflicts_with = "only")]
    paths: bool,
    /// Compare what the packet filter costs: the policy that a network begins with, and 1,000 rules with 10,000 flows
    #[arg(long, conflicts_with_all = ["only", "paths"])]
    filter: bool,
    /// Another build of meshctl, to stand beside this one as `earlier`: with --filter, or with --only
    #[arg(long, value_name = "PATH")]
    earlier: Option<PathBuf>,
    /// Runs of each measurement of each subject
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    repetitions: u16,
    /// Length of a measurement in seconds
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// A smoke run: everything once, for a third of a second; its figures mean little
    #[arg(long, conflicts_with_all = ["repetitions", "seconds"])]
    quick: bool,
    /// Measure even while others use the box; such samples are marked in the result
    #[arg(long)]
    force: bool,
    /// How long to wait for a quiet box before each run, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
    /// The meshctl to measure [default: built now, in the profile of this program, or found beside it]
    #[arg(long, value_name = "PATH")]
    meshctl: Option<PathBuf>,
    /// Write the result as JSON to a file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What to write to standard output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

impl Options {
    fn kinds(&self) -> &[SubjectKind] {
        match self.only.as_slice() {
            _ if self.paths => &SubjectKind::PATHS,
            _ if self.filter && self.earlier.is_some() => &SubjectKind::FILTER_AND_EARLIER,
            _ if self.filter => &SubjectKind::FILTER,
            [] => &SubjectKind::SYSTEMS,
            only => only,
        }
    }

    /// Whether a subject that cannot be had is a fault: it was asked for.
    fn insists(&self) -> bool {
        self.paths || self.filter || !self.only.is_empty()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("between 0.1 and 600 seconds".to_owned()),
    }
}

/// Builds `meshctl` as this program was built, if cargo runs it, so that what is measured is what is in the tree.
///
/// # Errors
/// When it does not build.
pub(crate) fn build_meshctl(options: &Options) -> Result<()> {
    let (None, Some(cargo)) = (&options.meshctl, std::env::var_os("CARGO")) else { return Ok(()) };
    if !options.kinds().iter().any(|kind| kind.is_ours()) {
        return Ok(());
    }
    let own = std::env::current_exe().context("asking for this program's path")?;
    let folder = own.parent().and_then(Path::file_name);
    let profile = if folder.is_some_and(|name| name == "release") { "release" } else { "dev" };
    progress("building meshctl");
    let status = Command::new(cargo)
        .args(["build", "--locked", "--package", "meshctl", "--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("running cargo")?;
    ensure!(status.success(), "meshctl does not build ({status})");
    Ok(())
}

/// Runs the comparison and writes its result.
///
/// # Errors
/// [`Busy`] when others use the box; otherwise when a subject that was asked for cannot be measured, or a result cannot
/// be written.
pub(crate) fn run(options: &Options) -> Result<()> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let comparison = Comparison::new(options);
    comparison.gate.wait_for_quiet()?;
    let (subjects, mut remarks) = set_up(options)?;
    if subjects.iter().any(|subject| subject.kind().path().is_some()) {
        remarks.push(PATHS_REMARK.to_owned());
    }
    if subjects.iter().any(|subject| subject.kind() == SubjectKind::Rules) {
        remarks.push(RULES_REMARK.to_owned());
    }
    let mut spoiled = Spoiled::default();
    let samples = comparison.measure(&subjects, &mut spoiled)?;
    remarks.extend(spoiled.remarks());

    let measured = subjects.iter().map(Subject::describe).collect::<Result<Vec<_>>>()?;
    let report =
        Report::new(started, machine()?, comparison.settings(), options.force, &measured, &samples, remarks);
    if let Some(path) = &options.json {
        fs::write(path, report.to_json()?).with_context(|| format!("writing {}", path.display()))?;
    }
    match options.output {
        Output::Table => result(&report.to_text()),
        Output::Json => result(&report.to_json()?),
    }
    if spoiled.given_up.is_empty() {
        return Ok(());
    }
    Err(Incomplete { missing: spoiled.given_up.len(), busy: spoiled.by_others > 0 }.into())
}

/// Some measurements could not be had.
#[derive(Debug)]
pub(crate) struct Incomplete {
    missing: usize,
    /// Others used the box, so that it may be otherwise another time.
    pub(crate) busy: bool,
}

impl std::error::Error for Incomplete {}

impl fmt::Display for Incomplete {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} measurements are missing from the result, which says why", self.missing)
    }
}

/// Brings up every subject: those asked for must come up, of the others those that can.
fn set_up(options: &Options) -> Result<(Vec<Subject>, Vec<String>)> {
    let tools = Tools::find(options.meshctl.as_deref(), options.earlier.as_deref())?;
    let (mut subjects, mut remarks) = (Vec::new(), Vec::new());
    for &kind in options.kinds() {
        if let Some(reason) = tools.missing_for(kind) {
            if options.insists() {
                bail!("cannot measure {}: {reason}", kind.name());
            }
            remarks.push(format!("{} was left out: {reason}", kind.name()));
            progress(&format!("leaving out {}: {reason}", kind.name()));
            continue;
        }
        progress(&format!("setting up {}", kind.name()));
        let subject = Subject::set_up(kind, &tools).with_context(|| format!("setting up {}", kind.name()))?;
        measure::wait_until_ready(&subject).with_context(|| format!("waiting for {}", kind.name()))?;
        subjects.push(subject);
    }
    Ok((subjects, remarks))
}

/// Runs that do not count.
#[derive(Debug, Default)]
struct Spoiled {
    /// Others used the box meanwhile.
    by_others: usize,
    /// Packets took another path than the one that was to be measured.
    by_path: usize,
    /// Measurements that could not be had at all.
    given_up: Vec<String>,
}

/// Why a run does not count.
#[derive(Debug)]
enum Fault {
    Others(Busy),
    Path(Strayed),
}

impl Fault {
    /// Judges a run by what the box did meanwhile, and by the path found afterwards. Force excuses the former alone: with
    /// another path it is another thing that was measured.
    fn of(gate: Gate, usage: &Usage, strayed: Option<Strayed>) -> Option<Self> {
        let busy = || (!gate.force && !Gate::is_quiet(usage)).then(|| Self::Others(Busy::new(usage)));
        strayed.map(Self::Path).or_else(busy)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Others(busy) => busy.fmt(out),
            Self::Path(strayed) => strayed.fmt(out),
        }
    }
}

impl Spoiled {
    fn count(&mut self, fault: &Fault) {
        match fault {
            Fault::Others(_) => self.by_others += 1,
            Fault::Path(_) => self.by_path += 1,
        }
    }

    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let reasons = [
            (self.by_others, "others used the box meanwhile"),
            (self.by_path, "packets took another path than the one to be measured"),
        ];
        for (runs, reason) in reasons.into_iter().filter(|(runs, _)| *runs > 0) {
            remarks.push(format!("{runs} runs did not count, because {reason}"));
        }
        remarks.extend(self.given_up.iter().map(|what| format!("given up: {what}")));
        remarks
    }
}

struct Comparison {
    gate: Gate,
    effort: Effort,
    repetitions: usize,
}

impl Comparison {
    fn new(options: &Options) -> Self {
        let (repetitions, window, pings) = if options.quick {
            (1, 0.3, 100)
        } else {
            let fitting = (options.seconds / INTERVAL.as_secs_f64()) as usize;
            (usize::from(options.repetitions), options.seconds, fitting.max(1000))
        };
        let window = Duration::from_secs_f64(window);
        let warm_up = (window / 3).min(Duration::from_secs(1));
        let gate = Gate { patience: Duration::from_secs(options.patience), force: options.force };
        Self { gate, effort: Effort { timing: Timing { warm_up, window }, pings }, repetitions }
    }

    fn settings(&self) -> Settings {
        Settings {
            repetitions: self.repetitions,
            seconds: self.effort.timing.window.as_secs_f64(),
            pings: self.effort.pings,
            foreign_limit: FOREIGN_LIMIT,
        }
    }

    fn measure(&self, subjects: &[Subject], spoiled: &mut Spoiled) -> Result<Samples> {
        let mut samples = Samples::default();
        for repetition in 0..self.repetitions {
            for step in Step::ALL {
                // Another one begins each time, so that nobody always follows the same neighbour's leftovers.
                let (head, tail) = subjects.split_at(repetition % subjects.len().max(1));
                for subject in tail.iter().chain(head) {
                    let run = format!("run {} of {}", repetition + 1, self.repetitions);
                    let name = subject.kind().name();
                    let reading = self
                        .one(step, subject, spoiled)
                        .with_context(|| format!("measuring {step:?} of {name} ({run})"))?;
                    match reading {
                        Some(reading) => self.record(&mut samples, subject.kind(), repetition, &reading),
                        None => spoiled.given_up.push(format!("{step:?} of {name}, {run}")),
                    }
                }
            }
        }
        Ok(samples)
    }

    /// One run that counts, if it can be had.
    fn one(&self, step: Step, subject: &Subject, spoiled: &mut Spoiled) -> Result<Option<Reading>> {
        let name = subject.kind().name();
        for _ in 0..TRIES {
            thread::sleep(PAUSE);
            self.gate.wait_for_quiet()?;
            let fault = match measure::settle(subject)? {
                Some(strayed) => Fault::Path(strayed),
                None => {
                    let reading = measure::run(step, subject, self.effort)?;
                    match Fault::of(self.gate, &reading.usage, subject.strayed()?) {
                        Some(fault) => fault,
                        None => return Ok(Some(reading)),
                    }
                }
            };
            progress(&format!("{step:?} of {name} was spoiled: {fault}"));
            spoiled.count(&fault);
        }
        Ok(None)
    }

    fn record(&self, samples: &mut Samples, kind: SubjectKind, repetition: usize, reading: &Reading) {
        let foreign_share = reading.usage.foreign_share();
        let disturbed = !Gate::is_quiet(&reading.usage);
        for &(quantity, value) in &reading.values {
            samples.add(kind, quantity, Sample { value, foreign_share, disturbed });
            progress(&format!(
                "[{}/{}] {:<12} {:<20} {:>8}  (others {:.1} %)",
                repetition + 1,
                self.repetitions,
                kind.name(),
                quantity.heading(),
                quantity.unit().show(value),
                foreign_share * 100.0
            ));
        }
    }
}

fn machine() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let kernel = format!("Linux {}", read("/proc/sys/kernel/osrelease")?.trim());
    let info = read("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cpu = model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
    let halt_poll = fs::read_to_string("/sys/module/haltpoll/parameters/guest_halt_poll_ns");
    let halt_poll_ns = halt_poll.ok().and_then(|nanos| nanos.trim().parse().ok());
    Ok(Machine { kernel, cpu, cpus: cpus(), halt_poll_ns })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::PathKind;

    fn usage(share: f64) -> Usage {
        let elapsed = Duration::from_secs(1);
        Usage { elapsed, foreign: share * cpus() as f64, ..Usage::default() }
    }

    #[test]
    fn a_run_by_another_path_never_counts_and_a_busy_one_only_by_force() {
        let strayed = || Some(Strayed::new("first", "websocket", PathKind::Relay));
        for force in [false, true] {
            let gate = Gate { patience: Duration::ZERO, force };
            assert!(matches!(Fault::of(gate, &usage(0.0), strayed()), Some(Fault::Path(_))));
            assert!(matches!(Fault::of(gate, &usage(0.5), strayed()), Some(Fault::Path(_))));
            assert!(Fault::of(gate, &usage(0.0), None).is_none());
            assert_eq!(Fault::of(gate, &usage(0.5), None).is_none(), force);
        }
    }

    #[test]
    fn the_result_tells_apart_why_runs_did_not_count() {
        let mut spoiled = Spoiled::default();
        spoiled.count(&Fault::Path(Strayed::new("first", "relay", PathKind::Direct)));
        let said = spoiled.remarks();
        assert_eq!(
            said,
            ["1 runs did not count, because packets took another path than the one to be measured"]
        );
        spoiled.count(&Fault::Others(Busy::new(&usage(0.5))));
        assert!(spoiled.remarks()[0].contains("others used the box"), "{:?}", spoiled.remarks());
    }

    #[test]
    fn a_path_that_is_not_the_one_asked_for_is_told_with_both() {
        let said = Strayed::new("second", "websocket", PathKind::Relay).to_string();
        assert_eq!(said, "the path of the second end was \"websocket\" and not \"relay\"");
    }
}
