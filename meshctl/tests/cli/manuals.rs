//! What the manuals quote is what the programs print: messages as the sources have them, alerts as the rules name them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::logs::{SOURCES, root, sources};

fn manual(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The code of all daemons and of `meshctl`, with each string in one piece, and without comments.
fn code() -> String {
    let mut files = Vec::new();
    for folder in SOURCES {
        sources(&root().join(folder), &mut files);
    }
    let lines = files.iter().flat_map(|(_, code)| code.lines());
    lines.filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |mut all, line| {
        // A string goes on in the next line, without what is in front of it there.
        let end = all.len().saturating_sub(1);
        if all.ends_with('\\') {
            all.truncate(end);
            all.push_str(line.trim_start());
        } else {
            all.push('\n');
            all.push_str(line);
        }
        all
    })
}

/// What stands in backticks in a cell.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The first cells of the rows below the headings that begin with `message`.
fn messages(manual: &str) -> Vec<&str> {
    let tables = manual.split("\n| message |").skip(1);
    let rows = tables.flat_map(|table| table.lines().skip(2).take_while(|row| row.starts_with('|')));
    rows.map(|row| row.trim_start_matches("| ").split(" | ").next().unwrap()).collect()
}

#[test]
fn each_message_in_the_tables_of_troubleshooting_is_one_of_the_sources() {
    let (manual, code) = (manual("troubleshooting.md"), code());
    let rows = messages(&manual);
    assert!(rows.len() > 15, "they are found: {rows:?}");
    let unquoted: Vec<_> = rows.iter().filter(|row| quoted(row).next().is_none()).collect();
    assert!(unquoted.is_empty(), "nobody can look for these: {unquoted:#?}");
    let unknown: Vec<_> =
        rows.iter().flat_map(|row| quoted(row)).filter(|text| !code.contains(text)).collect();
    assert!(unknown.is_empty(), "no program says: {unknown:#?}");
}

#[test]
fn causes_and_cures_that_the_manual_shows_are_those_of_the_sources() {
    let (manual, code) = (manual("cli.md"), code());
    let lines: Vec<_> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("cause: ").or_else(|| line.strip_prefix("try: ")))
        .collect();
    assert!(lines.len() >= 2, "they are found: {lines:?}");
    let unknown: Vec<_> = lines.iter().filter(|line| !code.contains(*line)).collect();
    assert!(unknown.is_empty(), "no program says: {unknown:#?}");
}

/// The alerts of the rules, each with the metrics of daemons that it looks at.
fn alerts(rules: &str) -> BTreeMap<&str, BTreeSet<String>> {
    rules
        .split("- alert: ")
        .skip(1)
        .map(|rule| {
            let (name, rest) = rule.split_once('\n').unwrap();
            let (expression, _) = rest.split_once("labels:").unwrap();
            let words = expression.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
            let metrics = words.filter(|word| word.starts_with("ringmesh_") || word.starts_with("process_"));
            (name, metrics.map(|metric| metric.trim_end_matches("_bucket").to_owned()).collect())
        })
        .collect()
}

#[test]
fn each_alert_stands_beside_the_metrics_that_it_looks_at() {
    let rules = fs::read_to_string(root().join("deploy/prometheus/ringmesh.rules.yml")).unwrap();
    let rules = alerts(&rules);
    assert!(rules.len() > 15, "they are found: {rules:?}");
    let manual = manual("metrics.md");
    let mut told: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for row in manual.lines().filter(|row| row.starts_with("| `ringmesh_") || row.starts_with("| `process_"))
    {
        let metric = quoted(row).next().unwrap();
        for alert in quoted(row).filter(|text| text.starts_with("Ringmesh")) {
            told.entry(alert).or_default().insert(metric.to_owned());
        }
    }
    // Those that look at what Prometheus itself makes of a scrape.
    let (of_metrics, others): (BTreeMap<_, _>, _) =
        rules.into_iter().partition(|(_, metrics)| !metrics.is_empty());
    assert_eq!(told, of_metrics, "left: docs/metrics.md, right: the rules");
    for (alert, _) in others {
        assert!(manual.contains(&format!("`{alert}`")), "{alert}");
    }
}
