//! The comparison: on each ground all subjects stand side by side, and every measurement goes round them before the next
//! begins, so that whatever changes on the box meanwhile hits them alike.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fmt, fs, thread};

use anyhow::{Context, Result, ensure};

use crate::cpu::{Usage, cpus};
use crate::gate::{Busy, FOREIGN_LIMIT, Gate};
use crate::ground::Ground;
use crate::limits;
use crate::measure::{self, Effort, Reading};
use crate::options::{Mode, Options, Output};
use crate::plot;
use crate::quantity::Step;
use crate::report::{Machine, Measured, Report, Sample, Samples, Settings, progress, result};
use crate::subject::{Strayed, Subject, SubjectKind, Tools};

/// Runs of one measurement that strangers may spoil before it is given up.
const TRIES: usize = 8;
/// Between two runs, for queues and timers of the one before to drain.
const PAUSE: Duration = Duration::from_millis(200);
/// Failures of one kind of run of one subject after which it is left alone.
const MOST_FAILURES: usize = 2;

/// What a reader of figures about paths must know.
const PATHS_REMARK: &str = "paths: the relay had no rate limits; daemon_cpu is of both nodes and the coordinator with its \
                            relay; the path was checked at both ends before and after each run";

/// What a reader of figures about the filter must know.
const RULES_REMARK: &str = "rules: 1,000 rules, of which the last allows what was measured, and 10,000 answered UDP flows that both \
                            filters remembered before each run; uring: the policy that a network begins with";

/// Builds `meshctl` as this program was built, if cargo runs it, so that what is measured is what is in the tree.
///
/// # Errors
/// When it does not build.
pub(crate) fn build_meshctl(options: &Options) -> Result<()> {
    let (None, Some(cargo)) = (&options.meshctl, std::env::var_os("CARGO")) else { return Ok(()) };
    if options.mode() == Mode::Compare && !options.orders().iter().any(|order| order.kind.is_ours()) {
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
    let tools = Tools::find(options.meshctl.as_deref(), options.earlier.as_deref(), &options.newer)?;
    let comparison = Comparison::new(options);
    comparison.gate.wait_for_quiet()?;
    let mut found = Found { machine: machine()?, ..Found::default() };
    progress("measuring what bounds everybody here");
    let limits = limits::measure(options.quick)?;
    for ground in options.grounds() {
        if let Some(reason) = ground.missing() {
            ensure!(!options.insists_on_grounds(), "cannot lay {}: {reason}", ground.name());
            found.leave_out(&ground.name(), reason);
            continue;
        }
        comparison.measure_on(ground, options, &tools, &mut found)?;
    }
    found.remark_on_kinds();
    found.remarks.extend(found.spoiled.remarks());
    let Found { machine, measured, samples, remarks, spoiled } = found;
    let settings = comparison.settings();
    let report = Report::new(started, machine, settings, options.force, &measured, &samples, limits, remarks);
    if let Some(path) = &options.json {
        fs::write(path, report.to_json()?).with_context(|| format!("writing {}", path.display()))?;
    }
    if let Some(path) = &options.svg {
        fs::write(path, plot::draw(&report)).with_context(|| format!("writing {}", path.display()))?;
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

/// What was found so far.
#[derive(Debug, Default)]
struct Found {
    machine: Machine,
    measured: Vec<Measured>,
    samples: Samples,
    remarks: Vec<String>,
    spoiled: Spoiled,
}

impl Found {
    fn leave_out(&mut self, name: &str, reason: &str) {
        let remark = format!("{name} was left out: {reason}");
        progress(&remark);
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    fn remark_on_kinds(&mut self) {
        let any = |test: &dyn Fn(SubjectKind) -> bool| self.measured.iter().any(|it| test(it.order.kind));
        let remarks = [
            (any(&|kind| kind.path().is_some()), PATHS_REMARK),
            (any(&|kind| kind == SubjectKind::Rules), RULES_REMARK),
        ];
        let true_ones = remarks.into_iter().filter(|(holds, _)| *holds);
        self.remarks.extend(true_ones.map(|(_, remark)| remark.to_owned()));
    }
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

/// Brings up every subject on a ground: those asked for must come up, of the others those that can.
fn set_up(options: &Options, ground: Ground, tools: &Tools, found: &mut Found) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for order in options.orders() {
        let name = order.name();
        if let Some(reason) = tools.missing_for(&order, ground) {
            ensure!(!options.insists(&order), "cannot measure {name}: {reason}");
            found.leave_out(&name, reason);
            continue;
        }
        progress(&format!("setting up {name} ({})", ground.name()));
        let up = Subject::set_up(&order, ground, tools).with_context(|| format!("setting up {name}"));
        let ready = up.and_then(|subject| {
            measure::wait_until_ready(&subject).with_context(|| format!("waiting for {name}"))?;
            Ok(subject)
        });
        match ready {
            Ok(subject) => subjects.push(subject),
            Err(error) if options.insists(&order) || order.kind.is_ours() => return Err(error),
            // Somebody else's program that does not work here shall not keep all others from being measured.
            Err(error) => found.leave_out(&format!("{name} ({})", ground.name()), &format!("{error:#}")),
        }
    }
    Ok(subjects)
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
    steps: Vec<Step>,
    repetitions: usize,
}

impl Comparison {
    fn new(options: &Options) -> Self {
        Self {
            gate: options.gate(),
            effort: options.effort(),
            steps: options.steps(),
            repetitions: options.repetitions(),
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            repetitions: self.repetitions,
            seconds: self.effort.timing.window.as_secs_f64(),
            pings: self.effort.pings,
            udp_share: self.effort.udp_share,
            foreign_limit: FOREIGN_LIMIT,
        }
    }

    /// Measures everything on one ground, and takes it away again.
    fn measure_on(&self, ground: Ground, options: &Options, tools: &Tools, found: &mut Found) -> Result<()> {
        let subjects = set_up(options, ground, tools, found)?;
        // Its place in the report tells a subject from all others.
        let first = found.measured.len();
        for subject in &subjects {
            found.measured.push(subject.describe()?);
        }
        let places: Vec<_> = (first..).zip(&subjects).collect();
        let mut failures = BTreeMap::new();
        for repetition in 0..self.repetitions {
            for step in self.steps.iter().flat_map(|step| std::iter::repeat_n(*step, step.runs())) {
                // Another one begins each time, so that nobody always follows the same neighbour's leftovers.
                let (head, tail) = places.split_at(repetition % places.len().max(1));
                for &(place, subject) in tail.iter().chain(head) {
                    let failed: &mut usize = failures.entry((place, step)).or_default();
                    if *failed < MOST_FAILURES && !self.one_of(step, repetition, place, subject, found)? {
                        *failed += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// One run, whatever becomes of it; tells whether the subject carried it.
    fn one_of(
        &self,
        step: Step,
        repetition: usize,
        place: usize,
        subject: &Subject,
        found: &mut Found,
    ) -> Result<bool> {
        let what =
            || format!("{step:?} of {}, run {} of {}", subject.name(), repetition + 1, self.repetitions);
        match self.one(step, subject, &mut found.spoiled) {
            Ok(Some(reading)) => {
                self.record(&mut found.samples, place, &subject.name(), repetition, &reading);
                Ok(true)
            }
            Ok(None) => {
                found.spoiled.given_up.push(what());
                Ok(true)
            }
            Err(error) if error.is::<Busy>() => Err(error),
            Err(error) => {
                progress(&format!("{} failed: {error:#}", what()));
                found.spoiled.given_up.push(format!("{} failed: {error:#}", what()));
                Ok(false)
            }
        }
    }

    /// One run that counts, if it can be had.
    fn one(&self, step: Step, subject: &Subject, spoiled: &mut Spoiled) -> Result<Option<Reading>> {
        let name = subject.name();
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

    fn record(&self, samples: &mut Samples, place: usize, name: &str, repetition: usize, reading: &Reading) {
        let foreign_share = reading.usage.foreign_share();
        let disturbed = !Gate::is_quiet(&reading.usage);
        for &(quantity, value) in &reading.values {
            samples.add(place, quantity, Sample { value, foreign_share, disturbed });
            progress(&format!(
                "[{}/{}] {name:<12} {:<20} {:>8}  (others {:.1} %)",
                repetition + 1,
                self.repetitions,
                quantity.heading(),
                quantity.unit().show(value),
                foreign_share * 100.0
            ));
        }
    }
}

/// Describes this machine as it is now.
///
/// # Errors
/// When `/proc` is not mounted.
pub(crate) fn machine() -> Result<Machine> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let kernel = format!("Linux {}", read("/proc/sys/kernel/osrelease")?.trim());
    let info = read("/proc/cpuinfo")?;
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cpu = model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned());
    let halt_poll = fs::read_to_string("/sys/module/haltpoll/parameters/guest_halt_poll_ns");
    let halt_poll_ns = halt_poll.ok().and_then(|nanos| nanos.trim().parse().ok());
    let load = read("/proc/loadavg")?;
    let load_average = load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default();
    Ok(Machine { kernel, cpu, cpus: cpus(), halt_poll_ns, load_average })
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
