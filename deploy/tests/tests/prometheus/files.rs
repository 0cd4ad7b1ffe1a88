//! The files themselves: valid, and about each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::expression;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap().to_owned()
}

pub(crate) fn prometheus() -> PathBuf {
    root().join("deploy/prometheus")
}

pub(crate) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An alert as the rules file has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alert {
    pub(crate) name: String,
    pub(crate) expression: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The alerts, from the rules as Prometheus reads them back.
pub(crate) fn alerts() -> Vec<Alert> {
    let text = read(&prometheus().join("ringmesh.rules.yml"));
    let (mut alerts, mut section) = (Vec::<Alert>::new(), "");
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(name) = line.strip_prefix("- alert: ") {
            alerts.push(Alert { name: name.to_owned(), ..Alert::default() });
            section = "";
            continue;
        }
        let Some(alert) = alerts.last_mut().filter(|_| indent >= 8) else { continue };
        if indent == 8 {
            let (key, value) = line.split_once(':').unwrap();
            section = match key {
                "expr" => "expr",
                "labels" => "labels",
                "annotations" => "annotations",
                "for" => "for",
                other => panic!("{other} of {} is not known to this test", alert.name),
            };
            if section == "expr" {
                alert.expression = value.trim().trim_start_matches(">-").trim().to_owned();
            }
        } else if section == "expr" {
            alert.expression.push_str(&format!(" {line}"));
        } else {
            let (key, value) = line.split_once(": ").unwrap();
            let into = if section == "labels" { &mut alert.labels } else { &mut alert.annotations };
            into.insert(key.to_owned(), value.trim_matches('"').to_owned());
        }
    }
    alerts
}

/// The dashboards by file name.
pub(crate) fn dashboards() -> BTreeMap<String, Value> {
    let folder = fs::read_dir(root().join("deploy/grafana")).unwrap();
    let files = folder
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"));
    files
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (
                name.clone(),
                serde_json::from_str(&read(&path)).unwrap_or_else(|error| panic!("{name}: {error}")),
            )
        })
        .collect()
}

/// Every expression of a dashboard, with the variables of Grafana as something that Prometheus reads.
pub(crate) fn expressions(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let plain = |text: &str| {
        text.replace("$__rate_interval", "5m").replace("$instance", ".*").replace("$network", ".*")
    };
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push(plain(target["expr"].as_str().unwrap()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["definition"].as_str() {
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
            found.push(inner.rsplit_once(',').unwrap().0.to_owned());
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        found.extend(annotation["expr"].as_str().map(plain));
    }
    found
}

#[track_caller]
pub(crate) fn promtool(arguments: &[&str], folder: &Path) -> String {
    let output = Command::new("promtool").args(arguments).current_dir(folder).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

#[test]
fn promtool_accepts_configuration_and_rules() {
    promtool(&["check", "config", "prometheus.example.yml"], &prometheus());
    let said = promtool(&["check", "rules", "ringmesh.rules.yml"], &prometheus());
    assert!(said.contains(&format!("{} rules found", alerts().len())), "this test overlooks some: {said}");
}

#[test]
fn each_alert_fires_at_its_threshold_and_after_its_time() {
    promtool(&["test", "rules", "tests.yml"], &prometheus());
    let tests = read(&prometheus().join("tests.yml"));
    for Alert { name, .. } in alerts() {
        let cases: Vec<&str> = tests
            .split("alertname: ")
            .filter_map(|part| part.strip_prefix(&name).filter(|rest| rest.starts_with('\n')))
            .collect();
        assert!(
            cases.iter().any(|case| case.trim_start().starts_with("exp_alerts: []")),
            "{name} is never silent"
        );
        assert!(cases.iter().any(|case| case.contains("exp_labels:")), "{name} never fires");
    }
}

#[test]
fn each_alert_says_how_bad_it_is_and_where_to_read_on() {
    let known: BTreeSet<&str> = ["critical", "warning", "info"].into();
    let page = "docs/troubleshooting.md";
    let headings: BTreeSet<String> = read(&root().join(page)).lines().filter_map(anchor).collect();
    for Alert { name, labels, annotations, expression } in alerts() {
        assert!(known.contains(labels["severity"].as_str()), "{name}: {labels:?}");
        for annotation in ["summary", "description", "runbook_url"] {
            assert!(!annotations[annotation].is_empty(), "{name} has no {annotation}");
        }
        let (file, at) = annotations["runbook_url"].split_once('#').unwrap();
        assert_eq!(file, page, "{name}");
        assert!(headings.contains(at), "{name} leads to {page}#{at}, which is not there");
        // What the texts use of labels is there: the rest of an aggregation is gone.
        let (selectors, grouped) = expression::named(&expression);
        let selected: BTreeSet<&str> = selectors
            .iter()
            .flat_map(|selector| selector.labels.iter().map(|(label, ..)| label.as_str()))
            .collect();
        for text in annotations.values() {
            for label in text.split("$labels.").skip(1).map(|rest| rest.split([' ', '}']).next().unwrap()) {
                let is_there =
                    !expression.contains("sum") || grouped.contains(label) || selected.contains(label);
                assert!(is_there, "{name} speaks of {label}, which its expression does not keep");
            }
        }
    }
}

/// The name by which a heading can be linked to.
fn anchor(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || *letter == ' ' || *letter == '-');
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn dashboards_can_be_imported_anywhere() {
    let dashboards = dashboards();
    assert_eq!(dashboards.len(), 4);
    let mut uids = BTreeSet::new();
    for (name, dashboard) in &dashboards {
        assert!(uids.insert(dashboard["uid"].as_str().unwrap()), "{name}");
        assert!(!dashboard["title"].as_str().unwrap().is_empty());
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert!(
            variables.iter().any(|one| one["type"] == "datasource" && one["query"] == "prometheus"),
            "{name}"
        );
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title}");
            let at = |side: &str| panel["gridPos"][side].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{name}: {title}");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{name}: {title} covers another panel");
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            let unit = &panel["fieldConfig"]["defaults"]["unit"];
            let axis = &panel["options"]["yAxis"]["unit"];
            assert!(unit.is_string() || axis.is_string(), "{name}: {title} has no unit");
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{name}: {title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}: {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty());
            assert!(
                targets.iter().all(|target| target["datasource"]["uid"] == "${datasource}"),
                "{name}: {title}"
            );
        }
        // Each query can be read by Prometheus: as rules, since promtool checks no bare expressions.
        let rules: String = expressions(dashboard)
            .iter()
            .enumerate()
            .map(|(number, text)| {
                format!(
                    "      - record: dashboard:query:{number}\n        expr: {}\n",
                    Value::from(text.as_str())
                )
            })
            .collect();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("q.yml"), format!("groups:\n  - name: q\n    rules:\n{rules}")).unwrap();
        promtool(&["check", "rules", "q.yml"], folder.path());
    }
}
