//! The comparison as people run it, in its smoke form, and its refusals.

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

#[test]
fn a_quick_run_measures_the_cable_both_back_ends_and_wireguard_go() {
    let done = compare(&["--quick", "--force", "-o", "json"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let report: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["v"], 1);
    assert_eq!(report["forced"], true);
    assert_eq!(report["remarks"], Value::Array(Vec::new()), "nobody may be left out");

    let subjects = report["subjects"].as_array().unwrap();
    let mtus: Vec<_> =
        subjects.iter().map(|subject| (subject["name"].as_str().unwrap(), &subject["mtu"])).collect();
    let expected = [("raw", 1500), ("uring", 1408), ("poll", 1408), ("wireguard-go", 1420)]
        .map(|(name, mtu)| (name, Value::from(mtu)));
    assert_eq!(mtus, expected.each_ref().map(|(name, mtu)| (*name, mtu)));
    for subject in subjects {
        for quantity in ["tcp1", "tcp4", "reverse", "box_cpu", "udp64", "ping_p50", "ping_p99"] {
            let results = subject["results"].as_array().unwrap();
            let result = results.iter().find(|result| result["quantity"] == quantity).unwrap();
            assert!(result["median"].as_f64().unwrap() > 0.0, "{subject}");
        }
    }
    for to in ["raw", "wireguard-go"] {
        for ours in ["uring", "poll"] {
            let found =
                report["ratios"].as_array().unwrap().iter().any(|ratio| {
                    ratio["subject"] == ours && ratio["to"] == to && ratio["quantity"] == "tcp1"
                });
            assert!(found, "no ratio of {ours} to {to}");
        }
    }
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
    ] {
        let done = compare(nonsense);
        assert_eq!(done.status.code(), Some(2), "{nonsense:?}: {}", text(&done.stderr));
    }
}
