//! What a comparison found, as a table for people and as JSON for machines: the same numbers in both.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the program's output")]

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::ground::Ground;
use crate::limits::Limit;
use crate::quantity::{Quantity, Unit};
use crate::stats::Summary;
use crate::subject::{Order, SubjectKind};
use crate::tuning::Tuning;

/// The version of the JSON form.
const VERSION: u32 = 2;

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

/// All samples, by who was measured (its place in the report) and what.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<(usize, Quantity), Vec<Sample>>);

impl Samples {
    /// Adds one value.
    pub(crate) fn add(&mut self, subject: usize, quantity: Quantity, sample: Sample) {
        self.0.entry((subject, quantity)).or_default().push(sample);
    }

    fn of(&self, subject: usize, quantity: Quantity) -> &[Sample] {
        self.0.get(&(subject, quantity)).map_or(&[], Vec::as_slice)
    }

    fn summary(&self, subject: usize, quantity: Quantity) -> Option<Summary> {
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
    pub(crate) subjects: Vec<SubjectReport>,
    pub(crate) ratios: Vec<Ratio>,
    /// By how much round trips are longer than on the raw link of the same ground.
    added: Vec<Added>,
    /// What bounds everybody here.
    limits: Vec<Limit>,
    /// Left out or failed, with the reason.
    remarks: Vec<String>,
}

/// Where it was measured.
#[derive(Clone, Debug, Default, Serialize)]
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
    /// Processes that wanted a CPU when it began, averaged over a minute.
    pub(crate) load_average: f64,
}

impl Machine {
    /// Tells it in a line.
    pub(crate) fn to_text(&self) -> String {
        let Self { kernel, cpu, cpus, halt_poll_ns, load_average } = self;
        let halt_poll =
            halt_poll_ns.map_or_else(String::new, |nanos| format!(", guest_halt_poll_ns {nanos}"));
        format!("{cpu}, {cpus} CPUs, {kernel}, load {load_average:.2}{halt_poll}")
    }
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
    /// Share of one CPU that the generator of `udp64` had.
    pub(crate) udp_share: f64,
    /// Strangers' share of the box above which a sample does not count.
    pub(crate) foreign_limit: f64,
}

/// A row.
#[derive(Debug, Serialize)]
pub(crate) struct SubjectReport {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) ground: Ground,
    /// Settings of ours that are not its own.
    tuning: Tuning,
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

/// Median divided by median, of one run and one ground.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) subject: String,
    pub(crate) to: String,
    #[serde(flatten)]
    pub(crate) ground: Ground,
    pub(crate) quantity: &'static str,
    pub(crate) ratio: f64,
}

/// Median less median, of one run and one ground.
#[derive(Debug, Serialize)]
struct Added {
    subject: String,
    #[serde(flatten)]
    ground: Ground,
    quantity: &'static str,
    micros: f64,
}

/// What was measured, for the report.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Who.
    pub(crate) order: Order,
    /// Where it stood.
    pub(crate) ground: Ground,
    /// What it says of itself.
    pub(crate) version: String,
    /// The MTU of the measured interface.
    pub(crate) mtu: u32,
}

impl Report {
    /// Puts everything together.
    #[allow(clippy::too_many_arguments, reason = "they are the parts that it is made of")]
    pub(crate) fn new(
        started: u64,
        machine: Machine,
        settings: Settings,
        forced: bool,
        measured: &[Measured],
        samples: &Samples,
        limits: Vec<Limit>,
        remarks: Vec<String>,
    ) -> Self {
        let subjects = measured.iter().enumerate();
        let subjects = subjects.map(|(place, subject)| SubjectReport::new(place, subject, samples)).collect();
        let (ratios, added) = (ratios(measured, samples), added(measured, samples));
        let kind = "compare";
        Self {
            v: VERSION,
            kind,
            started,
            machine,
            settings,
            forced,
            subjects,
            ratios,
            added,
            limits,
            remarks,
        }
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
        let Settings { repetitions, seconds, pings, udp_share, foreign_limit } = &self.settings;
        let mut text = self.machine.to_text();
        text += &format!(
            "\nmedian (smallest to largest) of {repetitions} runs of {seconds} s, {pings} pings; both ends, their \
             daemons and the load share these CPUs; strangers at most {:.0} % of the box; the generator of udp64 has \
             {udp_share} of a CPU\n",
            foreign_limit * 100.0
        );
        if self.forced {
            text += "FORCED: samples taken while the box was busy are kept and marked with !\n";
        }
        for ground in self.grounds() {
            text += &format!("\n{}\n\n{}\n", ground.name(), self.result_table(ground));
            if self.ratios.iter().any(|ratio| ratio.ground == ground) {
                text += &format!("\nRatios of the medians of this run\n\n{}\n", self.ratio_table(ground));
            }
            if self.added.iter().any(|added| added.ground == ground) {
                text += &format!("\nMicroseconds more than the raw link\n\n{}\n", self.added_table(ground));
            }
        }
        for subject in &self.subjects {
            text += &format!("\n{} ({}): {}", subject.name, subject.ground.name(), subject.version);
        }
        text.push('\n');
        for limit in &self.limits {
            text += &format!("\n{}", limit.to_text());
        }
        for remark in &self.remarks {
            text += &format!("\n{remark}");
        }
        text
    }

    /// The grounds on which anything was measured, in the order of the report.
    pub(crate) fn grounds(&self) -> Vec<Ground> {
        let mut grounds: Vec<_> = self.subjects.iter().map(|subject| subject.ground).collect();
        grounds.dedup();
        grounds
    }

    /// The quantities of which there is any value.
    fn quantities(&self) -> Vec<Quantity> {
        let measured =
            |quantity: &Quantity| self.subjects.iter().any(|subject| subject.result(*quantity).is_some());
        Quantity::ALL.into_iter().filter(measured).collect()
    }

    fn result_table(&self, ground: Ground) -> Table {
        let mut table = table();
        let quantities = self.quantities();
        let headings = quantities.iter().map(|quantity| quantity.heading());
        table.set_header(["", "MTU"].map(str::to_owned).into_iter().chain(headings));
        for subject in self.subjects.iter().filter(|subject| subject.ground == ground) {
            let mut row = vec![Cell::new(&subject.name), number(subject.mtu.to_string())];
            row.extend(quantities.iter().map(|&quantity| number(subject.cell(quantity))));
            table.add_row(row);
        }
        table
    }

    fn ratio_table(&self, ground: Ground) -> Table {
        let here: Vec<_> = self.ratios.iter().filter(|ratio| ratio.ground == ground).collect();
        let mut table = table();
        let has = |quantity: &Quantity| here.iter().any(|ratio| ratio.quantity == quantity.name());
        let quantities: Vec<_> = self.quantities().into_iter().filter(has).collect();
        let names = quantities.iter().map(|quantity| quantity.name().to_owned());
        table.set_header(std::iter::once(String::new()).chain(names));
        let mut pairs: Vec<_> = here.iter().map(|ratio| (&ratio.subject, &ratio.to)).collect();
        pairs.dedup();
        for (subject, to) in pairs {
            let mut row = vec![Cell::new(format!("{subject} / {to}"))];
            for quantity in &quantities {
                let same = |ratio: &&&Ratio| {
                    (&ratio.subject, &ratio.to, ratio.quantity) == (subject, to, quantity.name())
                };
                let found = here.iter().find(same);
                row.push(number(found.map_or_else(|| "-".to_owned(), |it| format!("{:.2}", it.ratio))));
            }
            table.add_row(row);
        }
        table
    }

    fn added_table(&self, ground: Ground) -> Table {
        let here: Vec<_> = self.added.iter().filter(|added| added.ground == ground).collect();
        let mut table = table();
        let has = |quantity: &Quantity| here.iter().any(|added| added.quantity == quantity.name());
        let quantities: Vec<_> = self.quantities().into_iter().filter(has).collect();
        let names = quantities.iter().map(|quantity| quantity.name().to_owned());
        table.set_header(std::iter::once(String::new()).chain(names));
        let mut subjects: Vec<_> = here.iter().map(|added| &added.subject).collect();
        subjects.dedup();
        for subject in subjects {
            let mut row = vec![Cell::new(subject)];
            for quantity in &quantities {
                let same = |it: &&&Added| (&it.subject, it.quantity) == (subject, quantity.name());
                let found = here.iter().find(same);
                row.push(number(found.map_or_else(|| "-".to_owned(), |it| format!("{:.0}", it.micros))));
            }
            table.add_row(row);
        }
        table
    }
}

impl SubjectReport {
    fn new(place: usize, subject: &Measured, samples: &Samples) -> Self {
        let results = Quantity::ALL.iter().filter_map(|&quantity| {
            Some(QuantityReport {
                quantity: quantity.name(),
                unit: quantity.unit().name(),
                summary: samples.summary(place, quantity)?,
                samples: samples.of(place, quantity).to_vec(),
            })
        });
        Self {
            name: subject.order.name(),
            ground: subject.ground,
            tuning: subject.order.tuning.clone(),
            version: subject.version.clone(),
            mtu: subject.mtu,
            results: results.collect(),
        }
    }

    fn result(&self, quantity: Quantity) -> Option<&QuantityReport> {
        self.results.iter().find(|result| result.quantity == quantity.name())
    }

    fn cell(&self, quantity: Quantity) -> String {
        let Some(result) = self.result(quantity) else { return "-".to_owned() };
        let show = |value| quantity.unit().show(value);
        let Summary { median, min, max } = result.summary;
        let mark = if result.samples.iter().any(|sample| sample.disturbed) { "!" } else { "" };
        if result.samples.len() == 1 {
            return format!("{}{mark}", show(median));
        }
        format!("{}{mark} ({} to {})", show(median), show(min), show(max))
    }
}

/// With whom a subject is compared: by its kind, and with other settings, with itself without any, first.
fn references(measured: &[Measured], subject: &Measured) -> Vec<usize> {
    let set = subject.order.tuning != Tuning::default();
    let own = set.then_some(subject.order.kind);
    let kinds = own.into_iter().chain(subject.order.kind.references());
    let place = |kind: SubjectKind| {
        let order = Order::from(kind);
        measured.iter().position(|other| other.ground == subject.ground && other.order == order)
    };
    kinds.filter_map(place).collect()
}

fn ratios(measured: &[Measured], samples: &Samples) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for (place, subject) in measured.iter().enumerate() {
        for reference in references(measured, subject) {
            // A share is comparable as it is, and what hardly ever happens has no ratio that means anything.
            let comparable = |quantity: &Quantity| quantity.more_is_better().is_some();
            for quantity in Quantity::ALL.into_iter().filter(comparable) {
                let (Some(ours), Some(theirs)) =
                    (samples.summary(place, quantity), samples.summary(reference, quantity))
                else {
                    continue;
                };
                // The raw link has no daemons: nothing to divide by.
                if theirs.median > 0.0 {
                    ratios.push(Ratio {
                        subject: subject.order.name(),
                        to: measured[reference].order.name(),
                        ground: subject.ground,
                        quantity: quantity.name(),
                        ratio: ours.median / theirs.median,
                    });
                }
            }
        }
    }
    ratios
}

fn added(measured: &[Measured], samples: &Samples) -> Vec<Added> {
    let mut added = Vec::new();
    for (place, subject) in measured.iter().enumerate() {
        let is_raw = |it: &&Measured| it.ground == subject.ground && it.order.kind == SubjectKind::Raw;
        let Some(raw) = measured.iter().position(|it| is_raw(&it)).filter(|raw| *raw != place) else {
            continue;
        };
        let is_time = |quantity: &Quantity| quantity.unit() == Unit::Microseconds;
        for quantity in Quantity::ALL.into_iter().filter(is_time) {
            let both = samples.summary(place, quantity).zip(samples.summary(raw, quantity));
            added.extend(both.map(|(ours, raw)| Added {
                subject: subject.order.name(),
                ground: subject.ground,
                quantity: quantity.name(),
                micros: ours.median - raw.median,
            }));
        }
    }
    added
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table
}

fn number(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
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

    fn measured(order: Order) -> Measured {
        Measured { order, ground: Ground::PLAIN, version: "1".to_owned(), mtu: 1500 }
    }

    fn report(forced: bool) -> Report {
        let mut samples = Samples::default();
        let disturbed = forced;
        let spin = Order { kind: SubjectKind::Uring, tuning: "spin_us=50".parse().unwrap() };
        let subjects = [SubjectKind::Raw, SubjectKind::Uring, SubjectKind::WireguardGo].map(Order::from);
        let subjects: Vec<_> = subjects.into_iter().chain([spin]).map(measured).collect();
        for (place, value) in [20e9, 6e9, 4e9, 3e9].into_iter().enumerate() {
            for value in [value, value * 1.5, value * 0.5] {
                samples.add(place, Quantity::Tcp1, Sample { value, foreign_share: 0.01, disturbed });
            }
            let value = if place == 0 { 0.0 } else { 2.0 };
            samples.add(place, Quantity::DaemonCpu, Sample { value, foreign_share: 0.01, disturbed });
            let value = 5.0 + 40.0 * place as f64;
            samples.add(place, Quantity::PingP50, Sample { value, foreign_share: 0.01, disturbed });
        }
        samples.add(0, Quantity::Udp64, Sample { value: 3e5, foreign_share: 0.01, disturbed });
        let machine = Machine {
            kernel: "Linux".to_owned(),
            cpu: "c".to_owned(),
            cpus: 2,
            halt_poll_ns: Some(0),
            load_average: 0.5,
        };
        let settings =
            Settings { repetitions: 3, seconds: 1.0, pings: 1000, udp_share: 0.5, foreign_limit: 0.06 };
        Report::new(
            0,
            machine,
            settings,
            forced,
            &subjects,
            &samples,
            Vec::new(),
            vec!["a remark".to_owned()],
        )
    }

    #[test]
    fn json_holds_version_ground_summaries_and_ratios() {
        let json: serde_json::Value = serde_json::from_str(&report(false).to_json().unwrap()).unwrap();
        assert_eq!(json["v"], 2);
        let uring = &json["subjects"][1];
        assert_eq!((&uring["topology"], &uring["underlay"]), (&"plain".into(), &"v4".into()));
        let result = &uring["results"][0];
        assert_eq!(result["quantity"], "tcp1");
        assert_eq!((&result["median"], &result["min"]), (&6e9.into(), &3e9.into()));
        assert_eq!(result["samples"].as_array().unwrap().len(), 3);
        let ratios = json["ratios"].as_array().unwrap();
        assert!(ratios.iter().any(|ratio| ratio["to"] == "wireguard-go" && ratio["ratio"] == 1.5));
        let to_raw = |ratio: &&serde_json::Value| ratio["to"] == "raw" && ratio["quantity"] == "daemon_cpu";
        assert!(!ratios.iter().any(|ratio| to_raw(&ratio)), "nothing may be divided by zero");
    }

    #[test]
    fn a_subject_with_settings_is_compared_with_itself_without_them() {
        let json: serde_json::Value = serde_json::from_str(&report(false).to_json().unwrap()).unwrap();
        assert_eq!(json["subjects"][3]["tuning"]["spin_us"], "50");
        let ratios = json["ratios"].as_array().unwrap();
        let own = ratios.iter().find(|it| it["subject"] == "uring spin_us=50" && it["to"] == "uring");
        assert_eq!(own.unwrap()["ratio"], 0.5);
    }

    #[test]
    fn round_trips_are_told_as_what_is_added_to_the_raw_link() {
        let report = report(false);
        let added: Vec<_> = report.added.iter().map(|it| (it.subject.as_str(), it.micros)).collect();
        assert_eq!(added, [("uring", 40.0), ("wireguard-go", 80.0), ("uring spin_us=50", 120.0)]);
    }

    #[test]
    fn nothing_is_compared_with_what_stands_on_other_ground() {
        let mut samples = Samples::default();
        let kinds = [SubjectKind::Raw, SubjectKind::Direct, SubjectKind::Relay, SubjectKind::Ssh];
        let mut subjects: Vec<_> = kinds.into_iter().map(|kind| measured(kind.into())).collect();
        let nic = Ground { topology: crate::ground::Topology::Nic, ..Ground::PLAIN };
        subjects.push(Measured { ground: nic, ..measured(SubjectKind::Uring.into()) });
        for (place, value) in [20e9, 2e9, 1e9, 4e9, 7e9].into_iter().enumerate() {
            samples.add(place, Quantity::Tcp1, Sample { value, foreign_share: 0.0, disturbed: false });
        }
        let found = ratios(&subjects, &samples);
        let found: Vec<_> = found.iter().map(|it| (&*it.subject, &*it.to, it.ratio)).collect();
        assert_eq!(found, [("relay", "direct", 0.5), ("ssh", "direct", 2.0)]);
    }

    #[test]
    fn a_forced_result_says_so_and_marks_its_cells() {
        let (forced, clean) = (report(true).to_text(), report(false).to_text());
        assert!(forced.contains("FORCED") && forced.contains("6.00! (3.00 to 9.00)"), "{forced}");
        assert!(!clean.contains("FORCED") && clean.contains("6.00 (3.00 to 9.00)"), "{clean}");
    }

    #[test]
    fn what_was_not_measured_is_a_dash_and_what_nobody_has_is_left_out() {
        let text = report(false).to_text();
        let row = text.lines().find(|line| line.starts_with("| uring ") && !line.contains('/')).unwrap();
        assert!(row.contains(" - "), "{row}");
        assert!(text.contains("udp64 kpps") && !text.contains("loaded"), "{text}");
    }
}
