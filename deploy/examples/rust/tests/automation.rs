//! The examples at work, in Rust and in Python, on real daemons: a machine joins, a policy comes in force, and who has it is known.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ringmesh_lab::{Host, Lab, in_sandbox};
use serde_json::Value;

const RUST: &str = env!("CARGO_BIN_EXE_automate");
const POLICY: &str = r#"
[[allow]]
from = ["*"]
to = ["*"]
protocol = "icmp"

[[allow]]
from = ["worker"]
to = ["server"]
protocol = "tcp"
ports = [PORT]
"#;

fn python_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../python")
}

/// The executable, which is built beside this one.
fn meshctl() -> PathBuf {
    let path = Path::new(RUST).with_file_name("meshctl");
    assert!(path.exists(), "{} is not there: cargo build -p meshctl", path.display());
    path
}

/// A Python with what the example requires. `deploy/dev/test` makes it; no test fetches anything.
fn python() -> PathBuf {
    let wanted = fs::read_to_string(python_folder().join("requirements.txt")).unwrap();
    let made = env::var_os("MESH_TEST_PYTHON").unwrap_or_else(|| "/var/cache/ringmesh/python".into());
    let folder = PathBuf::from(made).join("examples");
    let found = fs::read_to_string(folder.join("made-of")).unwrap_or_default();
    assert_eq!(found, wanted, "{} is not of these packages: deploy/dev/test makes it", folder.display());
    folder.join("bin/python")
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[track_caller]
fn on(host: &Host, words: &[&str]) -> String {
    run(host.command(meshctl()).unwrap().args(words))
}

/// What every example is given: a machine that has not joined, and its operator's key.
struct Given {
    _lab: Lab,
    coordinator: Host,
    server: Host,
    worker: Host,
}

impl Given {
    /// A coordinator with one member, `server`; and `worker`, whose daemon runs.
    fn new(role: &str) -> Self {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let [coordinator, server, worker] =
            ["coordinator", "server", "worker"].map(|name| switch.host(name).unwrap());
        on(&coordinator, &["coordinator", "up"]);
        let token = on(&coordinator, &["token", "create"]);
        on(&server, &["join", "--token", token.trim()]);
        on(&worker, &["node", "up"]);
        let key = on(&coordinator, &["key", "create", "--name", "automation", "--role", role]);
        let certificate = on(&coordinator, &["coordinator", "ca"]);
        worker
            .enter(|| {
                fs::write("/run/api.key", key).unwrap();
                fs::write("/run/coordinator.crt", certificate).unwrap();
            })
            .unwrap();
        Self { _lab: lab, coordinator, server, worker }
    }

    /// Runs an example on the worker, with a policy of its own.
    fn example(&self, program: &Path, before: &[&str], port: u16) -> Output {
        self.worker
            .enter(|| fs::write("/run/policy.toml", POLICY.replace("PORT", &port.to_string())).unwrap())
            .unwrap();
        let server = format!("{}:443", self.coordinator.ipv4());
        let mut command = self.worker.command(program).unwrap();
        command.args(before).args(["--server", &server, "--ca", "/run/coordinator.crt"]);
        command.args(["--key-file", "/run/api.key", "--policy", "/run/policy.toml"]).output().unwrap()
    }

    /// Checks that the worker is in the mesh, and that the policy with this port is what rules it.
    fn check(&self, port: u16) {
        on(&self.worker, &["ping", "server", "--count", "1"]);
        on(&self.coordinator, &["trace", "worker", "server", &format!("tcp/{port}")]);
        let mut denied = self.coordinator.command(meshctl()).unwrap();
        let denied = denied.args(["trace", "server", "worker", &format!("tcp/{port}")]).output().unwrap();
        assert_eq!(denied.status.code(), Some(7), "{denied:?}");
        on(&self.server, &["status"]);
    }
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_example_in_rust_joins_a_machine_and_sees_its_policy_installed() {
    in_sandbox(|| {
        let given = Given::new("operator");
        let said = text(&given.example(Path::new(RUST), &[], 8080));
        assert!(said.starts_with("worker joined; r"), "{said}");
        assert!(said.trim_end().ends_with("is installed on server, worker"), "{said}");
        given.check(8080);
    });
}

#[test]
fn the_example_in_python_joins_a_machine_and_sees_its_policy_installed() {
    let python = python();
    in_sandbox(|| {
        let given = Given::new("operator");
        let script = python_folder().join("automate.py");
        let said = text(&given.example(&python, &[script.to_str().unwrap()], 9090));
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["node"], "worker", "{said}");
        assert_eq!(said["installed"], serde_json::json!(["server", "worker"]), "{said}");
        assert_eq!(said["behind"], serde_json::json!([]), "{said}");
        given.check(9090);
    });
}

#[test]
fn an_example_with_a_key_that_may_only_look_changes_nothing_and_says_why() {
    in_sandbox(|| {
        let given = Given::new("read-only");
        let refused = given.example(Path::new(RUST), &[], 8080);
        assert!(!refused.status.success(), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("the API key is read-only"), "{refused:?}");
        let tokens = on(&given.coordinator, &["token", "list", "-o", "json"]);
        let tokens: Value = serde_json::from_str(&tokens).unwrap();
        assert_eq!(tokens["tokens"].as_array().unwrap().len(), 2, "none was made: {tokens}");
    });
}
