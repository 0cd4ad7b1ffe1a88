//! What a comparison found, as a table for people and as JSON for machines: the same numbers in both.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the program's output")]

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::measure::{Quantity, Unit};
use crate::stats::Summary;
use crate::subject::SubjectKind;

/// The version of the JSON form.
const VERSION: u32 = 1;

/// One value of one run.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sample {
    /// In the quantity's unit.
    pub(crate) value: f64,
    /// The share of the box that strangers used meanwhile, from 0 to 1.
    pub(crate) foreign_share: f64,
    /// Strangers used more than the limit, and `--force` kept the sample.
    pub(crate) disturbed: bool,
}

/// All samples, by who was measured and what.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<(SubjectKind, Quantity), Vec<Sample>>);

impl Samples {
    /// Adds one value.
    pub(crate) fn add(&mut self, subject: SubjectKind, quantity: Quantity, sample: Sample) {
        self.0.entry((subject, quantity)).or_default().push(sample);
    }

    fn of(&self, subject: SubjectKind, quantity: Quantity) -> &[Sample] {
        self.0.get(&(subject, quantity)).map_or(&[], Vec::as_slice)
    }

    fn summary(&self, subject: SubjectKind, quantity: Quantity) -> Option<Summary> {
        let values: Vec<f64> = self.of(subject, quantity).iter().map(|sample| sample.value).collect();
        Summary::of(&values)
    }
}

/// A whole comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    v: u32,
    kind: &'static str,
    /// Seconds since 1970 at the start.
    started: u64,
    machine: Machine,
    settings: Settings,
    /// Whether samples were kept that strangers disturbed.
    forced: bool,
    subjects: Vec<SubjectReport>,
    ratios: Vec<Ratio>,
    /// Left out or failed, with the reason.
    remarks: Vec<String>,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// As uname(1) says.
    pub(crate) kernel: String,
    /// The CPU's name.
    pub(crate) cpu: String,
    /// CPUs that this process may use.
    pub(crate) cpus: usize,
    /// `haltpoll.guest_halt_poll_ns`, where the kernel is a guest that has it: how long an idle CPU spins before it
    /// sleeps, which is most of a ping's time.
    pub(crate) halt_poll_ns: Option<u64>,
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Settings {
    /// Runs of each measurement of each subject.
    pub(crate) repetitions: usize,
    /// Length of a measurement's window in seconds.
    pub(crate) seconds: f64,
    /// Requests per ping series.
    pub(crate) pings: usize,
    /// Strangers' share of the box above which a sample does not count.
    pub(crate) foreign_limit: f64,
}

#[derive(Debug, Serialize)]
struct SubjectReport {
    name: &'static str,
    /// What the subject says of itself.
    version: String,
    /// Of the measured interface, in bytes.
    mtu: u32,
    results: Vec<QuantityReport>,
}

#[derive(Debug, Serialize)]
struct QuantityReport {
    quantity: &'static str,
    unit: &'static str,
    #[serde(flatten)]
    summary: Summary,
    samples: Vec<Sample>,
}

/// Median divided by median, of one run.
#[derive(Debug, Serialize)]
struct Ratio {
    subject: &'static str,
    to: &'static str,
    quantity: &'static str,
    ratio: f64,
}

/// What was measured, for the report.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Who.
    pub(crate) kind: SubjectKind,
    /// What it says of itself.
    pub(crate) version: String,
    /// The MTU of the measured interface.
    pub(crate) mtu: u32,
}

impl Report {
    /// Puts everything together.
    pub(crate) fn new(
        started: u64,
        machine: Machine,
        settings: Settings,
        forced: bool,
        measured: &[Measured],
        samples: &Samples,
        remarks: Vec<String>,
    ) -> Self {
        let subjects = measured.iter().map(|subject| SubjectReport::new(subject, samples)).collect();
        let ratios = ratios(measured, samples);
        Self { v: VERSION, kind: "compare", started, machine, settings, forced, subjects, ratios, remarks }
    }

    /// Writes the JSON form.
    ///
    /// # Errors
    /// Never for the finite numbers that measurements give.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Writes the tables.
    pub(crate) fn to_text(&self) -> String {
        let Machine { kernel, cpu, cpus, halt_poll_ns } = &self.machine;
        let Settings { repetitions, seconds, pings, foreign_limit } = &self.settings;
        let mut text = format!("{cpu}, {cpus} CPUs, {kernel}");
        if let Some(nanos) = halt_poll_ns {
            text += &format!(", guest_halt_poll_ns {nanos}");
        }
        text += &format!(
            "\nmedian (smallest to largest) of {repetitions} runs of {seconds} s, {pings} pings; both ends, their \
             daemons and the load share these CPUs; strangers at most {:.0} % of the box\n",
            foreign_limit * 100.0
        );
        if self.forced {
            text += "FORCED: samples taken while the box was busy are kept and marked with !\n";
        }
        text += &format!("\n{}\n", self.result_table());
        if !self.ratios.is_empty() {
            text += &format!("\nRatios of the medians of this run\n\n{}\n", self.ratio_table());
        }
        for remark in &self.remarks {
            text += &format!("\n{remark}");
        }
        text
    }

    fn result_table(&self) -> Table {
        let mut table = table();
        let quantities = Quantity::ALL.iter().map(|quantity| quantity.heading());
        table.set_header(["", "MTU"].map(str::to_owned).into_iter().chain(quantities));
        for subject in &self.subjects {
            let mut row = vec![Cell::new(subject.name), number(subject.mtu.to_string())];
            row.extend(Quantity::ALL.iter().map(|&quantity| number(subject.cell(quantity))));
            table.add_row(row);
        }
        table
    }

    fn ratio_table(&self) -> Table {
        let mut table = table();
        let quantities = Quantity::ALL.iter().map(|quantity| quantity.name().to_owned());
        table.set_header(std::iter::once(String::new()).chain(quantities));
        let mut pairs: Vec<_> = self.ratios.iter().map(|ratio| (ratio.subject, ratio.to)).collect();
        pairs.dedup();
        for (subject, to) in pairs {
            let mut row = vec![Cell::new(format!("{subject} / {to}"))];
            for quantity in Quantity::ALL {
                let same = |ratio: &&Ratio| {
                    (ratio.subject, ratio.to, ratio.quantity) == (subject, to, quantity.name())
                };
                let text = self
                    .ratios
                    .iter()
                    .find(same)
                    .map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.ratio));
                row.push(number(text));
            }
            table.add_row(row);
        }
        table
    }
}

impl SubjectReport {
    fn new(subject: &Measured, samples: &Samples) -> Self {
        let results = Quantity::ALL.iter().filter_map(|&quantity| {
            Some(QuantityReport {
                quantity: quantity.name(),
                unit: quantity.unit().name(),
                summary: samples.summary(subject.kind, quantity)?,
                samples: samples.of(subject.kind, quantity).to_vec(),
            })
        });
        Self {
            name: subject.kind.name(),
            version: subject.version.clone(),
            mtu: subject.mtu,
            results: results.collect(),
        }
    }

    fn cell(&self, quantity: Quantity) -> String {
        let Some(result) = self.results.iter().find(|result| result.quantity == quantity.name()) else {
            return "-".to_owned();
        };
        let show = |value| quantity.unit().show(value);
        let Summary { median, min, max } = result.summary;
        let mark = if result.samples.iter().any(|sample| sample.disturbed) { "!" } else { "" };
        if result.samples.len() == 1 {
            return format!("{}{mark}", show(median));
        }
        format!("{}{mark} ({} to {})", show(median), show(min), show(max))
    }
}

fn ratios(measured: &[Measured], samples: &Samples) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for subject in measured.iter().map(|subject| subject.kind) {
        for &to in subject.references() {
            for quantity in Quantity::ALL {
                let (Some(ours), Some(theirs)) =
                    (samples.summary(subject, quantity), samples.summary(to, quantity))
                else {
                    continue;
                };
                // The raw link has no daemons: nothing to divide by.
                if theirs.median > 0.0 {
                    let ratio = ours.median / theirs.median;
                    ratios.push(Ratio {
                        subject: subject.name(),
                        to: to.name(),
                        quantity: quantity.name(),
                        ratio,
                    });
                }
            }
        }
    }
    ratios
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table
}

fn number(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

impl Unit {
    /// Formats a value in the unit that the headings name.
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::BitsPerSecond => format!("{:.2}", value / 1e9),
            Self::PacketsPerSecond => format!("{:.0}", value / 1e3),
            Self::CpuSecondsPerGigabyte => format!("{value:.2}"),
            Self::Microseconds => format!("{value:.0}"),
        }
    }
}

/// Says on standard error what is going on, so that standard output holds nothing but the result.
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

/// Writes the result to standard output.
pub(crate) fn result(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(forced: bool) -> Report {
        let mut samples = Samples::default();
        let disturbed = forced;
        for (kind, value) in
            [(SubjectKind::Raw, 20e9), (SubjectKind::Uring, 6e9), (SubjectKind::WireguardGo, 4e9)]
        {
            for value in [value, value * 1.5, value * 0.5] {
                samples.add(kind, Quantity::Tcp1, Sample { value, foreign_share: 0.01, disturbed });
            }
            samples.add(
                kind,
                Quantity::DaemonCpu,
                Sample {
                    value: if kind == SubjectKind::Raw { 0.0 } else { 2.0 },
                    foreign_share: 0.01,
                    disturbed,
                },
            );
        }
        let measured = [SubjectKind::Raw, SubjectKind::Uring, SubjectKind::WireguardGo]
            .map(|kind| Measured { kind, version: "1".to_owned(), mtu: 1500 });
        let machine =
            Machine { kernel: "Linux".to_owned(), cpu: "c".to_owned(), cpus: 2, halt_poll_ns: Some(0) };
        let settings = Settings { repetitions: 3, seconds: 1.0, pings: 1000, foreign_limit: 0.06 };
        Report::new(0, machine, settings, forced, &measured, &samples, vec!["a remark".to_owned()])
    }

    #[test]
    fn json_holds_version_summaries_and_ratios() {
        let json: serde_json::Value = serde_json::from_str(&report(false).to_json().unwrap()).unwrap();
        assert_eq!(json["v"], 1);
        let uring = &json["subjects"][1]["results"][0];
        assert_eq!(uring["quantity"], "tcp1");
        assert_eq!((&uring["median"], &uring["min"]), (&6e9.into(), &3e9.into()));
        assert_eq!(uring["samples"].as_array().unwrap().len(), 3);
        let ratios = json["ratios"].as_array().unwrap();
        assert!(ratios.iter().any(|ratio| ratio["to"] == "wireguard-go" && ratio["ratio"] == 1.5));
        let to_raw = |ratio: &&serde_json::Value| ratio["to"] == "raw" && ratio["quantity"] == "daemon_cpu";
        assert!(!ratios.iter().any(|ratio| to_raw(&ratio)), "nothing may be divided by zero");
    }

    #[test]
    fn paths_are_compared_with_the_direct_one_and_with_nothing_on_other_ground() {
        let mut samples = Samples::default();
        let kinds = [SubjectKind::Raw, SubjectKind::Direct, SubjectKind::Relay, SubjectKind::Ssh];
        for (kind, value) in kinds.into_iter().zip([20e9, 2e9, 1e9, 4e9]) {
            samples.add(kind, Quantity::Tcp1, Sample { value, foreign_share: 0.0, disturbed: false });
        }
        let measured = kinds.map(|kind| Measured { kind, version: String::new(), mtu: 1408 });
        let found: Vec<_> =
            ratios(&measured, &samples).iter().map(|it| (it.subject, it.to, it.ratio)).collect();
        assert_eq!(found, [("relay", "direct", 0.5), ("ssh", "direct", 2.0)]);
    }

    #[test]
    fn a_forced_result_says_so_and_marks_its_cells() {
        let (forced, clean) = (report(true).to_text(), report(false).to_text());
        assert!(forced.contains("FORCED") && forced.contains("6.00! (3.00 to 9.00)"), "{forced}");
        assert!(!clean.contains("FORCED") && clean.contains("6.00 (3.00 to 9.00)"), "{clean}");
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let text = report(false).to_text();
        let row = text.lines().find(|line| line.contains("uring") && !line.contains('/')).unwrap();
        assert!(row.trim_end_matches(['|', ' ']).ends_with('-'), "{row}");
    }
}
