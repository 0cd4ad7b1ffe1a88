//! A short result: figures by name, as a table for people and as JSON for machines. Comparisons of subjects have a report of their
//! own.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;

use crate::report::Machine;
use crate::stats::Summary;

/// The version of the JSON form.
const VERSION: u32 = 1;

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    v: u32,
    kind: &'static str,
    machine: Machine,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    #[serde(flatten)]
    summary: Summary,
    samples: Vec<f64>,
}

impl Findings {
    /// Nothing yet, of this kind.
    pub(crate) fn new(kind: &'static str, machine: Machine) -> Self {
        Self { v: VERSION, kind, machine, figures: Vec::new(), remarks: Vec::new() }
    }

    /// Adds a figure; one without samples is left out.
    pub(crate) fn add(&mut self, name: impl Into<String>, unit: &'static str, samples: Vec<f64>) {
        if let Some(summary) = Summary::of(&samples) {
            self.figures.push(Figure { name: name.into(), unit, summary, samples });
        }
    }

    /// Adds what a reader must know.
    pub(crate) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// Returns the median of a figure.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.summary.median)
    }

    /// Writes the JSON form.
    ///
    /// # Errors
    /// Never for the finite numbers that measurements give.
    pub(crate) fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// Writes the table.
    pub(crate) fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["", "median", "smallest", "largest", ""]);
        for Figure { name, unit, summary, .. } in &self.figures {
            let Summary { median, min, max } = summary;
            let number = |value: &f64| Cell::new(format!("{value:.2}")).set_alignment(CellAlignment::Right);
            table.add_row([Cell::new(name), number(median), number(min), number(max), Cell::new(unit)]);
        }
        let mut text = format!("{}\n\n{table}\n", self.machine.to_text());
        for remark in &self.remarks {
            text += &format!("\n{remark}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_with_their_range() {
        let mut findings = Findings::new("peers", Machine::default());
        findings.add("rate", "kpps", vec![3.0, 1.0, 2.0]);
        findings.add("nothing", "kpps", Vec::new());
        findings.remark("mind the gap");
        assert_eq!(findings.median("rate"), Some(2.0));
        let text = findings.to_text();
        assert!(
            text.contains("2.00") && text.contains("mind the gap") && !text.contains("nothing"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&findings.to_json().unwrap()).unwrap();
        assert_eq!(json["figures"][0]["samples"].as_array().unwrap().len(), 3);
    }
}
