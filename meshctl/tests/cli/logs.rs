//! What `docs/logs.md` promises of the log: its list of events is that of the sources, and a line of JSON is one object.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::MESHCTL;

/// What becomes part of a daemon and writes into its log.
pub(crate) const SOURCES: [&str; 7] = [
    "dataplane/tunnel/src",
    "dataplane/io/src",
    "dataplane/relay/src",
    "dataplane/monitor/src",
    "dataplane/node/src",
    "controlplane/src",
    "meshctl/src",
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The sources below a folder, without their tests.
pub(crate) fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs")
            && path.file_stem().is_some_and(|name| name != "tests")
        {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
            found.push((path, code));
        }
    }
}

/// A line of the log as it stands in a source: its level, and what the macro is given.
struct Told {
    place: String,
    level: &'static str,
    given: String,
}

impl Told {
    /// The event's names: several, if a condition chooses.
    fn events(&self) -> Vec<String> {
        let Some((_, after)) = self.given.split_once("event = ") else { return Vec::new() };
        let expression = after.split(',').next().unwrap();
        expression.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }
}

/// Every line at INFO, WARN and ERROR of a source.
fn told(path: &Path, code: &str) -> Vec<Told> {
    let mut found = Vec::new();
    for (level, macro_name) in [("INFO", "info!("), ("WARN", "warn!("), ("ERROR", "error!(")] {
        for (at, _) in code.match_indices(macro_name) {
            let line = code[..at].matches('\n').count() + 1;
            let text = code[..at].rsplit('\n').next().unwrap();
            if text.trim_start().starts_with("//")
                || text.ends_with(|before: char| before.is_alphanumeric() || before == '_')
            {
                continue;
            }
            let mut depth = 1;
            let mut quoted = false;
            let mut before = ' ';
            let given = code[at + macro_name.len()..].chars().take_while(|&letter| {
                if letter == '"' && before != '\\' {
                    quoted = !quoted;
                }
                before = letter;
                match letter {
                    '(' if !quoted => depth += 1,
                    ')' if !quoted => depth -= 1,
                    _ => {}
                }
                depth > 0
            });
            found.push(Told { place: format!("{}:{line}", path.display()), level, given: given.collect() });
        }
    }
    found
}

fn all_told() -> Vec<Told> {
    let mut files = Vec::new();
    for folder in SOURCES {
        sources(&root().join(folder), &mut files);
    }
    files.iter().flat_map(|(path, code)| told(path, code)).collect()
}

#[test]
fn each_line_from_info_up_has_an_event() {
    let all = all_told();
    assert!(all.len() > 60, "they are found: {}", all.len());
    let without: Vec<String> = all
        .iter()
        .filter(|told| told.events().is_empty())
        .map(|told| format!("{}: {}", told.place, told.given.trim()))
        .collect();
    assert!(without.is_empty(), "lines without an event: {without:#?}");
}

#[test]
fn the_events_listed_are_those_that_there_are_with_their_levels() {
    let mut of_sources: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for told in all_told() {
        for event in told.events() {
            of_sources.entry(event).or_default().insert(told.level);
        }
    }
    let manual = fs::read_to_string(root().join("docs/logs.md")).unwrap();
    let mut listed: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for row in manual.lines().filter(|row| row.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_start_matches("| ").split(" | ").collect();
        let event = cells[0].trim_matches('`').to_owned();
        assert!(
            event.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
            "{event}"
        );
        assert!(!cells[3].trim().is_empty(), "{event}: what does it mean?");
        assert!(
            listed.insert(event.clone(), cells[1].split(", ").collect()).is_none(),
            "{event} stands twice"
        );
    }
    assert_eq!(listed, of_sources, "left: docs/logs.md, right: the sources");
}

#[test]
fn a_line_of_json_is_one_object_with_what_is_promised_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Command::new(MESHCTL);
    daemon.args([
        "node",
        "run",
        "--log-format",
        "json",
        "--metrics",
        "127.0.0.1:0",
        "--socket-group",
        "root",
    ]);
    daemon.arg("--state-dir").arg(folder.path().join("state"));
    daemon.arg("--socket").arg(folder.path().join("meshd.sock"));
    let mut daemon =
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
    let mut events = Vec::new();
    let mut take = |line: String| {
        let object: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let fields = object.as_object().unwrap();
        for field in ["timestamp", "level", "target", "event", "message"] {
            assert!(fields.get(field).is_some_and(Value::is_string), "no {field}: {line}");
        }
        assert!(fields.values().all(|value| !value.is_object()), "an object inside: {line}");
        let event = fields["event"].as_str().unwrap().to_owned();
        events.push(event.clone());
        event
    };
    while take(lines.next().expect("the daemon starts").unwrap()) != "node_started" {}
    assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
    lines.for_each(|line| drop(take(line.unwrap())));
    assert!(daemon.wait().unwrap().success());
    for event in ["metrics_started", "node_started", "signal_received", "node_stopped"] {
        assert!(events.iter().any(|told| told == event), "{event}: {events:?}");
    }
}
