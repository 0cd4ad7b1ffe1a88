//! The comparison as people run it, in its smoke form, and its refusals.

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

fn compare(arguments: &[&str]) -> Output {
    let bench = Path::new(env!("CARGO_BIN_EXE_ringmesh-bench"));
    let mut command = Command::new(bench);
    command.arg("compare").args(arguments);
    // The one that these tests were built with; without it the program builds it.
    let meshctl = bench.with_file_name("meshctl");
    if meshctl.is_file() {
        command.arg("--meshctl").arg(meshctl);
    }
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Of the first subject of that name.
fn results<'a>(report: &'a Value, name: &str) -> &'a [Value] {
    let subjects = report["subjects"].as_array().unwrap();
    let subject = subjects.iter().find(|subject| subject["name"] == name);
    subject.unwrap_or_else(|| panic!("no {name}: {subjects:?}"))["results"].as_array().unwrap()
}

fn median(results: &[Value], quantity: &str) -> f64 {
    let found = results.iter().find(|result| result["quantity"] == quantity);
    found.unwrap_or_else(|| panic!("no {quantity}: {results:?}"))["median"].as_f64().unwrap()
}

fn json(done: &Output) -> Value {
    assert!(done.status.success(), "{}", text(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[test]
fn a_quick_run_measures_everything_of_the_cable_our_daemons_and_wireguard_go() {
    let folder = std::env::temp_dir().join(format!("ringmesh-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let picture = folder.join("ratios.svg");
    let arguments = ["--quick", "--force", "--only", "raw,uring,wireguard-go", "-o", "json", "--svg"];
    let done = compare(&[&arguments[..], &[picture.to_str().unwrap()]].concat());
    let report = json(&done);
    assert_eq!(report["v"], 2);
    assert_eq!(report["forced"], true);
    assert_eq!(report["remarks"], Value::Array(Vec::new()), "nobody may be left out");

    let subjects = report["subjects"].as_array().unwrap();
    let mtus: Vec<_> =
        subjects.iter().map(|subject| (subject["name"].as_str().unwrap(), &subject["mtu"])).collect();
    let expected =
        [("raw", 1500), ("uring", 1408), ("wireguard-go", 1420)].map(|(name, mtu)| (name, Value::from(mtu)));
    assert_eq!(mtus, expected.each_ref().map(|(name, mtu)| (*name, mtu)));
    let measured = [
        "tcp1",
        "tcp4",
        "reverse",
        "box_cpu",
        "udp64",
        "udp64_offered",
        "udp64_best",
        "udp64_overload",
        "overload_kept",
        "ping_p50",
        "ping_p99",
        "ping20_p50",
        "ping20_p99",
        "loaded_p50",
        "loaded_p99",
        "loaded_tcp",
    ];
    for name in ["raw", "uring", "wireguard-go"] {
        let results = results(&report, name);
        for quantity in measured {
            assert!(median(results, quantity) > 0.0, "{quantity} of {name}");
        }
        assert_eq!(median(results, "udp64_late"), 0.0, "{name} delivers packets in order");
    }
    assert!(median(results(&report, "uring"), "calls") > 0.0, "our own counters say it where perf may not");
    let ratios = report["ratios"].as_array().unwrap();
    for to in ["raw", "wireguard-go"] {
        let found =
            |ratio: &Value| ratio["subject"] == "uring" && ratio["to"] == to && ratio["quantity"] == "tcp1";
        assert!(ratios.iter().any(found), "no ratio to {to}");
    }
    assert!(report["limits"].as_array().unwrap().len() >= 7, "{}", report["limits"]);
    let drawn = std::fs::read_to_string(&picture).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("uring / raw"), "{drawn}");
}

#[test]
fn every_ground_carries_packets_also_a_nic_like_one_and_one_without_ipv4() {
    let arguments = ["--quick", "--force", "--only", "raw,uring", "--steps", "tcp1,ping", "-o", "json"];
    let done = compare(&[&arguments[..], &["--topology", "routed,nic", "--underlay", "v6"]].concat());
    let report = json(&done);
    let subjects = report["subjects"].as_array().unwrap();
    let grounds: Vec<_> = subjects.iter().map(|it| [&it["topology"], &it["underlay"], &it["name"]]).collect();
    let expected =
        [["routed", "v6", "raw"], ["routed", "v6", "uring"], ["nic", "v6", "raw"], ["nic", "v6", "uring"]];
    assert_eq!(grounds, expected);
    for subject in subjects {
        assert!(median(subject["results"].as_array().unwrap(), "tcp1") > 0.0, "{subject}");
    }
}

#[test]
fn our_daemons_stand_beside_themselves_with_other_settings_and_without_a_cipher() {
    let arguments =
        ["--quick", "--force", "--only", "uring,poll,null", "--steps", "tcp1", "-o", "json", "--variant"];
    let done = compare(&[&arguments[..], &["uring:offloads=none:crypto=portable:txqueuelen=200"]].concat());
    let report = json(&done);
    let variant = "uring offloads=none crypto=portable txqueuelen=200";
    let tcp1 = |name: &str| median(results(&report, name), "tcp1");
    assert!(tcp1(variant) > 0.0 && tcp1("null") > 0.0 && tcp1("poll") > 0.0);
    let ratios = report["ratios"].as_array().unwrap();
    assert!(ratios.iter().any(|ratio| ratio["subject"] == variant && ratio["to"] == "uring"), "{ratios:?}");
    assert!(ratios.iter().any(|ratio| ratio["subject"] == "uring" && ratio["to"] == "null"), "{ratios:?}");
}

#[test]
fn a_setting_that_the_daemon_does_not_know_is_an_error_and_not_a_figure() {
    let done = compare(&["--quick", "--force", "--only", "raw", "--variant", "uring:workers=many"]);
    assert_eq!(done.status.code(), Some(1), "{}", text(&done.stderr));
    assert!(done.stdout.is_empty(), "{}", text(&done.stdout));
}

#[test]
fn lengths_of_the_queue_are_compared_under_load() {
    let done = compare(&["--quick", "--force", "--queues", "100,1000", "--steps", "loaded", "-o", "json"]);
    let report = json(&done);
    for name in ["raw", "uring txqueuelen=100", "uring txqueuelen=1000"] {
        assert!(median(results(&report, name), "loaded_p99") > 0.0, "{name}");
    }
}

#[test]
fn traffic_for_many_peers_reaches_every_one_of_them() {
    let arguments =
        ["--quick", "--force", "--peers", "--live-peers", "70", "--idle-peers", "20", "-o", "json"];
    let done = compare(&[&arguments[..], &["--idle-seconds", "1"]].concat());
    let found = json(&done);
    assert_eq!(found["kind"], "peers");
    let figures = found["figures"].as_array().unwrap();
    for name in ["1 peer, grouping on", "70 peers, grouping on", "70 peers, grouping off"] {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        assert!(figure.unwrap_or_else(|| panic!("no {name}: {figures:?}"))["median"].as_f64().unwrap() > 0.0);
    }
    assert!(
        figures.iter().any(|it| it["name"].as_str().unwrap().starts_with("20 peers without")),
        "{figures:?}"
    );
}

#[test]
fn a_gigabyte_both_ways_at_once_comes_out_as_it_went_in_on_both_back_ends() {
    let done = compare(&["--integrity", "--bytes", "250M", "-o", "json"]);
    let found = json(&done);
    let names: Vec<_> = found["figures"].as_array().unwrap().iter().map(|figure| &figure["name"]).collect();
    assert_eq!(names, ["uring (plain veth, IPv4)", "poll (plain veth, IPv4)"]);
}

#[test]
fn what_is_lost_and_overtaken_on_the_way_comes_out_as_it_went_in() {
    let arguments =
        ["--integrity", "--bytes", "3M", "--topology", "routed", "--underlay", "all", "-o", "json"];
    let done = compare(&[&arguments[..], &["--loss", "0.002", "--reorder", "0.01"]].concat());
    let found = json(&done);
    assert_eq!(found["figures"].as_array().unwrap().len(), 4, "{found}");
}

#[test]
fn a_quick_run_of_the_paths_measures_each_and_divides_by_the_direct_one() {
    let done = compare(&["--quick", "--force", "--paths", "-o", "json"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    let subjects = report["subjects"].as_array().unwrap();
    let names: Vec<_> = subjects.iter().map(|subject| subject["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["direct", "relay", "websocket", "ssh"]);
    let ratios = report["ratios"].as_array().unwrap();
    for path in &names[1..] {
        for quantity in ["tcp1", "daemon_cpu", "udp64", "ping_p50"] {
            let found =
                ratios.iter().find(|ratio| ratio["subject"] == *path && ratio["quantity"] == quantity);
            let ratio = found.unwrap_or_else(|| panic!("no {quantity} of {path}: {ratios:?}"));
            assert_eq!(ratio["to"], "direct");
            assert!(ratio["ratio"].as_f64().unwrap() > 0.0, "{ratio}");
        }
    }
    let remarks = report["remarks"].as_array().unwrap();
    assert!(remarks.iter().any(|it| it.as_str().unwrap().contains("no rate limits")), "{remarks:?}");
}

#[test]
fn a_busy_box_is_refused_with_the_way_out() {
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let done = compare(&["--quick", "--only", "raw", "--patience", "0"]);
        stop.store(true, Ordering::Relaxed);
        done
    });
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(75), "{said}");
    assert!(said.contains("others use") && said.contains("--force"), "{said}");
    assert!(done.stdout.is_empty(), "a refusal may not look like a result: {}", text(&done.stdout));
}

#[test]
fn a_meshctl_that_does_not_exist_is_an_error() {
    let bench = env!("CARGO_BIN_EXE_ringmesh-bench");
    let arguments = ["compare", "--quick", "--force", "--only", "uring", "--meshctl", "/nonexistent/meshctl"];
    let done = Command::new(bench).args(arguments).output().unwrap();
    let said = text(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("/nonexistent/meshctl"), "{said}");
}

#[test]
fn nonsense_is_a_usage_error() {
    for nonsense in [
        &["--seconds", "0"][..],
        &["--repetitions", "0"],
        &["--only", "ipsec"],
        &["--paths", "--only", "direct"],
        &["--topology", "ring"],
        &["--udp-share", "2"],
        &["--variant", "raw:spin_us=1"],
        &["--variant", "uring:colour=red"],
        &["--integrity", "--bytes", "0"],
        &["--peers", "--ablate"],
    ] {
        let done = compare(nonsense);
        assert_eq!(done.status.code(), Some(2), "{nonsense:?}: {}", text(&done.stderr));
    }
}
