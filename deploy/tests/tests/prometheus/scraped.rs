//! What Prometheus has seen in the end: every metric that a dashboard or an alert names was there, and moved.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    expression::{self, Selector},
    files,
    world::World,
};

/// What need not move in a test that makes nothing fail in these ways.
const STILL: [(&str, &str); 4] = [
    ("process_max_fds", "is a limit"),
    (
        "ringmesh_uring_cqe_overflow_total",
        "takes more completions at once than a ring of thousands holds; a smaller one in the packet I/O's own tests",
    ),
    (
        "ringmesh_coordinator_store_conflicts_total",
        "takes two coordinators on one store, which the coordinator's own tests have",
    ),
    (
        "ringmesh_coordinator_connections_refused_total",
        "takes more connections than a coordinator may have, which the coordinator's own tests make",
    ),
];

/// Names that are Prometheus' own.
const OF_PROMETHEUS: [&str; 2] = ["up", "ALERTS"];

fn all_selectors() -> Vec<(String, Selector)> {
    let dashboards = files::dashboards();
    let of_dashboards = dashboards.iter().flat_map(|(name, dashboard)| {
        files::expressions(dashboard).into_iter().map(move |text| (name.clone(), text))
    });
    let of_alerts = files::alerts().into_iter().map(|alert| (alert.name, alert.expression));
    of_dashboards
        .chain(of_alerts)
        .flat_map(|(name, text)| {
            expression::named(&text).0.into_iter().map(move |selector| (name.clone(), selector))
        })
        .collect()
}

/// Checks what was scraped in all the time of the test.
pub(crate) fn expect_all_there_and_moved(world: &World) {
    let selectors = all_selectors();
    assert!(selectors.len() > 100, "{}", selectors.len());
    let mut missing = Vec::new();
    let metrics: BTreeSet<&str> = selectors.iter().map(|(_, selector)| selector.metric.as_str()).collect();
    for metric in metrics {
        let seen = world.query(&format!("count_over_time({metric}[1h])"));
        if seen.is_empty() {
            missing.push(format!("{metric} is not there"));
            continue;
        }
        if OF_PROMETHEUS.contains(&metric) || STILL.iter().any(|(still, _)| *still == metric) {
            continue;
        }
        // A series that came or went has moved as well.
        let moved = world.holds(&format!("changes({metric}[1h]) > 0")) || {
            let counts: BTreeSet<String> = seen.iter().map(|series| series["value"][1].to_string()).collect();
            counts.len() > 1 && metric.ends_with("_info")
        };
        if !moved {
            missing.push(format!("{metric} has not moved"));
        }
    }
    // And with the labels by which it is selected.
    let mut values = BTreeMap::<(String, String), BTreeSet<String>>::new();
    for (of, selector) in &selectors {
        for (label, operator, value) in &selector.labels {
            let found =
                world.query(&format!("count by ({label}) (count_over_time({}[1h]))", selector.metric));
            let there: BTreeSet<String> = found
                .iter()
                .filter_map(|series| series["metric"][label.as_str()].as_str().map(str::to_owned))
                .collect();
            if there.is_empty() {
                missing.push(format!("{of}: {} has no label {label}", selector.metric));
            } else if operator == "=" && !there.contains(value) {
                missing.push(format!("{of}: {} never had {label}={value:?}, but {there:?}", selector.metric));
            }
            values.entry((selector.metric.clone(), label.clone())).or_default().extend(there);
        }
    }
    missing.sort_unstable();
    missing.dedup();
    assert!(missing.is_empty(), "{missing:#?}");
}
