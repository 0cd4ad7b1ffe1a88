//! What monitoring sees of a coordinator: each number has its cause, and each check its words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use ringmesh_controlplane::{
    config::MetricsConfig,
    server::Limits,
    store::{Store, sqlite::SqliteStore},
};
use ringmesh_monitor::{Listen, Monitor, Registry, Subject, prometheus_client::encoding::text};
use ringmesh_proto::admin;
use ringmesh_tunnel::enroll::{JoinToken, TokenSecret};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::{
    client::{TestNode, connect, reason},
    harness::{Assembled, Running, config},
    policy::{ALL, apply_as},
};

/// What Prometheus would be told at the moment.
async fn page(subject: &dyn Subject) -> String {
    let (mut registry, mut page) = (Registry::default(), String::new());
    subject.measure(&mut registry).await;
    text::encode(&mut page, &registry).unwrap();
    page
}

/// The series of a moment, by name and labels.
async fn measured(coordinator: &Running) -> BTreeMap<String, f64> {
    series_of(&*coordinator.ready.subject).await
}

/// The same of any subject.
pub async fn series_of(subject: &dyn Subject) -> BTreeMap<String, f64> {
    let page = page(subject).await;
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

/// Waits until the numbers of a moment are as said.
async fn until(
    coordinator: &Running,
    holds: impl Fn(&BTreeMap<String, f64>) -> bool,
) -> BTreeMap<String, f64> {
    let mut last = BTreeMap::new();
    for _ in 0..500 {
        last = measured(coordinator).await;
        if holds(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never so: {last:#?}");
}

const BEHIND: &str = "coordinator_nodes_behind{network=\"mesh\"}";
const STREAMS: &str = "coordinator_streams{network=\"mesh\"}";
const CONVERGED: &str = "coordinator_convergence_seconds_count{network=\"mesh\"}";

fn updates(kind: &str) -> String {
    format!("coordinator_map_updates_total{{network=\"mesh\",kind=\"{kind}\"}}")
}

#[tokio::test]
async fn a_node_is_behind_until_it_acknowledges_and_then_the_change_is_everywhere() {
    let coordinator = Running::start().await;
    let mut operator = coordinator.operator().await;
    let mut node = coordinator.member("a").await;
    coordinator.member("away").await;
    let mut stream = node.sync().await.unwrap();
    let first = node.update(&mut stream).await.position.durable;
    let now = measured(&coordinator).await;
    assert_eq!((now[STREAMS], now[BEHIND]), (1.0, 1.0), "it has no map yet");
    stream.acknowledge(first).await;
    let before = until(&coordinator, |now| now[BEHIND] == 0.0).await;
    assert_eq!(before["coordinator_behind_seconds{network=\"mesh\"}"], 0.0);
    assert_eq!(before[&updates("full")], 1.0);
    assert!(before["coordinator_map_bytes_total{network=\"mesh\",kind=\"full\"}"] > 500.0);

    let request = admin::ApplyPolicyRequest { text: ALL.into(), ..Default::default() };
    apply_as(&mut operator, request).await.unwrap();
    let applied = node.update(&mut stream).await.position.durable;
    let behind = until(&coordinator, |now| now[BEHIND] == 1.0).await;
    assert!(behind["coordinator_behind_seconds{network=\"mesh\"}"] > 0.0);
    assert_eq!(behind[CONVERGED], before[CONVERGED], "one node does not have it");
    assert_eq!(behind[&updates("delta")], before[&updates("delta")] + 1.0);
    stream.acknowledge(applied).await;
    let after = until(&coordinator, |now| now[BEHIND] == 0.0).await;
    assert_eq!(after[CONVERGED], before[CONVERGED] + 1.0);

    assert_eq!(after["coordinator_nodes{network=\"mesh\",state=\"online\"}"], 1.0);
    assert_eq!(after["coordinator_nodes{network=\"mesh\",state=\"offline\"}"], 1.0);
    assert_eq!(after["coordinator_connections{standing=\"proven\"}"], 1.0);
    assert_eq!(after["coordinator_events_total{network=\"mesh\",event=\"policy_applied\"}"], 1.0);
    assert_eq!(after["coordinator_events_total{network=\"mesh\",event=\"node_joined\"}"], 2.0);
    drop(stream);
    let gone = until(&coordinator, |now| now[STREAMS] == 0.0).await;
    assert_eq!(gone["coordinator_nodes{network=\"mesh\",state=\"offline\"}"], 2.0);
    coordinator.stop().await;
}

#[tokio::test]
async fn requests_count_by_how_they_ended_and_guesses_as_guesses() {
    let coordinator = Running::start().await;
    let token = coordinator.token().await;
    let forged =
        JoinToken::new(token.root(), token.token(), TokenSecret::generate(), token.coordinators().to_vec());
    let refused = TestNode::new("stranger").join(&forged.unwrap()).await.unwrap_err();
    assert!(refused.message().contains("join token"), "{:?}", reason(&refused));
    let request = admin::RevokeTokenRequest { id: "00".into(), ..Default::default() };
    coordinator.operator().await.tokens.revoke_token(request).await.unwrap_err();
    // Somebody who never asks for anything.
    let _idle = connect(coordinator.ready.address).await.unwrap();

    let now = until(&coordinator, |now| now["coordinator_connections{standing=\"unproven\"}"] >= 1.0).await;
    let requests = |method: &str, code: &str| {
        let name = format!("coordinator_requests_total{{method=\"{method}\",code=\"{code}\"}}");
        now.get(&name).copied().unwrap_or_default()
    };
    assert_eq!(requests("TokenService/CreateToken", "ok"), 1.0, "{now:#?}");
    let enrolled = now.keys().filter(|name| name.contains("ControlService/Enroll")).collect::<Vec<_>>();
    assert!(enrolled.len() == 1 && !enrolled[0].contains("code=\"ok\""), "{enrolled:?}");
    let revoked = now.keys().filter(|name| name.contains("TokenService/RevokeToken")).collect::<Vec<_>>();
    assert!(revoked.len() == 1 && !revoked[0].contains("code=\"ok\""), "{revoked:?}");
    assert_eq!(now["coordinator_failed_proofs_total{barred=\"false\"}"], 1.0);
    assert_eq!(now["coordinator_failed_proofs_total{barred=\"true\"}"], 0.0);
    assert_eq!(now["coordinator_tokens{network=\"mesh\",state=\"usable\"}"], 1.0);
    assert!(now["coordinator_store_txn_seconds_count"] >= 1.0 && now["coordinator_store_bytes"] > 10_000.0);
    let days =
        |of: &str| now[&format!("coordinator_expiry_seconds{{network=\"mesh\",of=\"{of}\"}}")] / 86_400.0;
    assert!((29.9..=30.0).contains(&days("policy")) && (359.9..=360.0).contains(&days("certificate")));
    coordinator.stop().await;
}

#[tokio::test]
async fn a_coordinator_is_ready_while_it_serves_and_live_as_long_as_its_store_answers() {
    let coordinator = Running::start().await;
    let subject = coordinator.ready.subject.clone();
    let of = |checks: Vec<ringmesh_monitor::Check>| -> BTreeMap<&'static str, bool> {
        checks.into_iter().map(|check| (check.name, check.ok)).collect()
    };
    let good = |names: &[&'static str]| names.iter().map(|name| (*name, true)).collect::<BTreeMap<_, _>>();
    assert_eq!(of(subject.live().await), good(&["store", "tasks"]));
    assert_eq!(of(subject.ready().await), good(&["keys", "renewal", "serving", "store"]));
    coordinator.stop().await;
    let (live, ready) = (subject.live().await, subject.ready().await);
    let store = live.into_iter().find(|check| check.name == "store").unwrap();
    assert!(!store.ok && store.detail.contains("the store failed"), "{store:?}");
    assert!(!of(ready)["serving"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_another_coordinator_was_faster_than_counts_as_a_conflict() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.path()).unwrap());
    let first = Assembled::start_on(store.clone(), directory.clone(), Limits::default()).await;
    let second = Assembled::start_on(store, directory, Limits::default()).await;
    let conflicts = async |coordinator: &Assembled| series_of(&*coordinator.subject).await["coordinator_store_conflicts_total"];
    let before = conflicts(&first).await + conflicts(&second).await;
    // Both change the same network at once, until one of them was late.
    for _ in 0..50 {
        let mut asking = JoinSet::new();
        for operator in [&first.operator, &second.operator].into_iter().cycle().take(20) {
            let mut operator = operator.clone();
            asking.spawn(async move { operator.token(admin::CreateTokenRequest::default()).await });
        }
        asking.join_all().await;
        if conflicts(&first).await + conflicts(&second).await > before {
            return;
        }
    }
    panic!("a thousand changes at two coordinators, and none was late");
}

/// Of each metric: its type, and the names of its labels.
type Kinds = BTreeMap<String, (String, BTreeSet<String>)>;

/// What a page of Prometheus' text format has.
fn told(page: &str) -> Kinds {
    let (mut kinds, mut current) = (Kinds::new(), String::new());
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            name.clone_into(&mut current);
            kinds.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let labels = series.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
            let names = labels.split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            kinds.get_mut(&current).unwrap().1.extend(names.filter(|name| name != "le"));
        }
    }
    kinds
}

/// What the manual has in these sections.
fn documented(sections: &[&str]) -> Kinds {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let manual = fs::read_to_string(manual).unwrap();
    let mut kinds = Kinds::new();
    for section in sections {
        let (_, text) = manual.split_once(&format!("\n## {section}\n")).unwrap();
        for row in text.split("\n## ").next().unwrap().lines().filter(|row| row.starts_with("| `")) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let name = cells[0].trim_start_matches("| ").trim_matches('`').to_owned();
            // Labels stand in front of what is said of their values; who has none has an empty cell.
            let labels = cells[2].split(';').filter(|part| part.trim().starts_with('`')).flat_map(|part| {
                let labels = part.split_once(": ").map_or(part, |(labels, _)| labels);
                labels.split(", ").map(|label| label.trim().trim_matches('`').to_owned())
            });
            kinds.insert(name, (cells[1].replace("info", "gauge"), labels.collect()));
        }
    }
    kinds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manual_lists_every_metric_of_a_coordinator_with_its_type_and_labels() {
    let coordinator = Running::start_with_relay().await;
    let mut node = coordinator.member("a").await;
    let mut stream = node.sync().await.unwrap();
    let position = node.update(&mut stream).await.position.durable;
    stream.acknowledge(position).await;
    until(&coordinator, |now| now[BEHIND] == 0.0).await;

    let monitor = Monitor::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = monitor.address().unwrap();
    let served = tokio::spawn(monitor.serve(coordinator.ready.subject.clone(), std::future::pending()));
    let mut connection = TcpStream::connect(address).await.unwrap();
    let question = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\n\r\n");
    connection.write_all(question.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    served.abort();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(told(page), documented(&["Every daemon", "Relay", "Coordinator"]));
    coordinator.stop().await;
}

#[tokio::test]
async fn an_address_for_metrics_that_is_taken_is_named_if_it_was_asked_for() {
    let taken = Monitor::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listen = Listen::At(taken.address().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let config =
        ringmesh_controlplane::Config { metrics: MetricsConfig { listen }, ..config(directory.path()) };
    let end = ringmesh_controlplane::run(config, std::future::pending(), |_| panic!("it serves")).await;
    let text = end.unwrap_err().to_string();
    assert!(text.contains(&listen.to_string()) && text.contains("metrics"), "{text}");
    assert_eq!(fs::read_dir(directory.path().join("run")).map_or(0, Iterator::count), 0, "nothing half-done");
}
