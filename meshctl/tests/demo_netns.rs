//! `meshctl demo`, the whole of it: it passes as anybody, says when it does not, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// The user and group `nobody`, who has no rights anywhere.
const NOBODY: u32 = 65534;
const DEADLINE: Duration = Duration::from_secs(20);

/// The executable in a folder of its own, so that its processes can be told from all others.
struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_meshctl"), folder.path().join("meshctl")).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("meshctl")
    }

    fn demo(&self) -> Command {
        let mut command = Command::new(self.path());
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESH_")) {
            command.env_remove(name);
        }
        command.arg("demo").current_dir("/").stdin(Stdio::null());
        command
    }

    /// Processes that run this copy.
    fn processes(&self) -> usize {
        let links = fs::read_dir("/proc").unwrap().flatten();
        links
            .filter(|entry| fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == self.path()))
            .count()
    }

    fn expect_nothing_left(&self) {
        let started = Instant::now();
        while self.processes() > 0 {
            assert!(started.elapsed() < DEADLINE, "{} processes are left", self.processes());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn report(output: &Output) -> Value {
    let report = serde_json::from_slice(&output.stdout);
    report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn conforms(report: &Value) {
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/demo.json");
    let schema: Value = serde_json::from_slice(&fs::read(schema).unwrap()).unwrap();
    jsonschema::validate(&schema, report).unwrap();
}

fn expect_success(output: &Output, privilege: &str) {
    let report = report(output);
    assert!(output.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
    conforms(&report);
    assert_eq!(report["ok"], true);
    assert_eq!(report["privilege"], privilege);
    let steps: Vec<&str> =
        report["steps"].as_array().unwrap().iter().filter_map(|s| s["name"].as_str()).collect();
    assert_eq!(steps.last(), Some(&"torn down"), "{steps:?}");
    for step in [
        "pings",
        "TCP transfer",
        "coordinator killed",
        "node restarted",
        "coordinator back",
        "policy applied",
        "rule bites",
        "reply passes",
        "name resolves",
        "node removed",
    ] {
        assert!(steps.contains(&step), "{step} is not in {steps:?}");
    }
}

#[test]
fn the_demo_passes_for_whoever_runs_it_and_leaves_nothing() {
    let copy = Copy::new();
    let privilege = if geteuid().is_root() { "root" } else { "user-namespace" };
    let output = copy.demo().args(["--output", "json"]).output().unwrap();
    expect_success(&output, privilege);
    assert_eq!(copy.processes(), 0);
}

#[test]
fn the_demo_passes_for_nobody_on_the_portable_back_end() {
    let copy = Copy::new();
    let mut demo = copy.demo();
    demo.args(["--output", "json", "--io", "poll", "--nodes", "2"]);
    if geteuid().is_root() {
        demo.gid(NOBODY).uid(NOBODY);
    }
    let output = demo.output().unwrap();
    expect_success(&output, "user-namespace");
    let report = report(&output);
    let back_ends: Vec<&Value> =
        report["steps"].as_array().unwrap().iter().filter_map(|step| step["facts"].get("back_end")).collect();
    assert_eq!(back_ends, ["poll", "poll"]);
    assert_eq!(copy.processes(), 0);
}

/// Runs a demo of two nodes whose packets are made to take `transport` from behind `nat`, and looks whether they did.
#[track_caller]
fn goes_by(transport: &str, nat: &str) {
    let copy = Copy::new();
    let mut demo = copy.demo();
    demo.args(["--transport", transport, "--nat", nat]);
    expect_path(&copy, demo, transport, nat);
}

#[track_caller]
fn expect_path(copy: &Copy, mut demo: Command, transport: &str, nat: &str) {
    let output = demo.args(["--output", "json", "--nodes", "2"]).output().unwrap();
    let report = report(&output);
    assert!(output.status.success(), "{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
    conforms(&report);
    assert_eq!((&report["transport"], &report["nat"]), (&transport.into(), &nat.into()));
    let step = |name: &str| {
        let found = report["steps"].as_array().unwrap().iter().find(|step| step["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is not in {report:#}")).clone()
    };
    assert_eq!(step("path")["facts"]["path"], transport);
    let sent = step("TCP transfer");
    assert!(sent["text"].as_str().unwrap().contains(&format!("by {transport}, SHA-256")), "{sent}");
    assert!(sent["facts"]["bytes"].as_u64().unwrap() >= 1 << 20, "{sent}");
    step("torn down");
    assert_eq!(copy.processes(), 0);
}

#[test]
fn nobody_can_have_nodes_behind_masquerading_routers_too() {
    let copy = Copy::new();
    let mut demo = copy.demo();
    demo.args(["--io", "poll", "--transport", "relay", "--nat", "masquerade"]);
    if geteuid().is_root() {
        demo.gid(NOBODY).uid(NOBODY);
    }
    expect_path(&copy, demo, "relay", "masquerade");
}

#[test]
fn nodes_behind_masquerading_routers_end_up_on_a_direct_path() {
    goes_by("direct", "masquerade");
}

#[test]
fn nodes_that_cannot_send_each_other_udp_go_by_the_relay() {
    goes_by("relay", "none");
}

#[test]
fn nodes_behind_masquerading_routers_that_block_each_other_go_by_the_relay() {
    goes_by("relay", "masquerade");
}

#[test]
fn nodes_behind_symmetric_nats_go_by_the_relay_unasked_and_never_believe_to_be_direct() {
    let copy = Copy::new();
    let mut demo = copy.demo();
    demo.args(["--nat", "symmetric"]);
    expect_path(&copy, demo, "relay", "symmetric");
}

#[test]
fn nodes_without_udp_go_by_a_websocket() {
    goes_by("websocket", "none");
}

#[test]
fn nodes_without_udp_behind_masquerading_routers_go_by_a_websocket() {
    goes_by("websocket", "masquerade");
}

#[test]
fn nodes_without_udp_behind_symmetric_nats_go_by_a_websocket() {
    goes_by("websocket", "symmetric");
}

#[test]
fn nodes_without_udp_go_by_ssh_where_there_is_an_endpoint() {
    goes_by("ssh", "none");
}

/// Starts a demo that is kept, and waits until it runs on.
fn kept(copy: &Copy) -> Child {
    let mut child = copy.demo().args(["--keep", "--nodes", "2"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.by_ref().any(|line| line.contains("keeps running")), "the demo did not get that far");
    // Its last lines need a reader.
    thread::spawn(move || lines.count());
    assert!(copy.processes() >= 5, "a demo, a coordinator and two nodes, and not only {}", copy.processes());
    child
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_demo_that_is_killed_leaves_nothing() {
    let copy = Copy::new();
    let mut child = kept(&copy);
    signal(&child, Signal::KILL);
    child.wait().unwrap();
    copy.expect_nothing_left();
}

#[test]
fn a_demo_that_is_kept_ends_in_good_order_when_interrupted() {
    let copy = Copy::new();
    let mut child = kept(&copy);
    signal(&child, Signal::INT);
    assert!(child.wait().unwrap().success());
    assert_eq!(copy.processes(), 0);
}

#[test]
fn a_demo_that_is_interrupted_half_way_leaves_nothing() {
    for which in [Signal::INT, Signal::TERM] {
        let copy = Copy::new();
        let mut child = copy.demo().stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.by_ref().any(|line| line.contains("ok    coordinator")));
        signal(&child, which);
        assert!(!child.wait().unwrap().success());
        assert_eq!(copy.processes(), 0);
    }
}

#[test]
fn a_step_that_fails_is_named_and_its_logs_are_kept() {
    let copy = Copy::new();
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = copy.demo();
    // No daemon starts with a filter that it cannot read.
    demo.args(["--output", "json"]).env("MESH_LOG", "[").env("TMPDIR", temporary.path());
    let output = demo.output().unwrap();
    assert!(!output.status.success());
    let report = report(&output);
    assert_eq!(report["ok"], false);
    let last = report["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["name"], &last["ok"]), (&"coordinator".into(), &false.into()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("error: the demo failed at: coordinator"), "{said}");
    let kept = said.lines().find_map(|line| line.strip_prefix("try: read the daemons' logs in ")).unwrap();
    let mut log = String::new();
    fs::File::open(Path::new(kept).join("coordinator.log")).unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("error:"), "{log}");
    assert_eq!(copy.processes(), 0);
}
