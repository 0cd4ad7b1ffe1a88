//! What monitoring sees of a coordinator: each number has its cause, and each check its words.

use std::{collections::BTreeMap, fs, time::Duration};

use ringmesh_controlplane::config::MetricsConfig;
use ringmesh_monitor::{Listen, Monitor, Registry, Subject as _, prometheus_client::encoding::text};
use ringmesh_proto::admin;
use ringmesh_tunnel::enroll::{JoinToken, TokenSecret};

use crate::{
    client::{TestNode, connect, reason},
    harness::{Running, config},
    policy::{ALL, apply_as},
};

/// The series of a moment, by name and labels.
async fn measured(coordinator: &Running) -> BTreeMap<String, f64> {
    let (mut registry, mut page) = (Registry::default(), String::new());
    coordinator.ready.subject.measure(&mut registry).await;
    text::encode(&mut page, &registry).unwrap();
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
