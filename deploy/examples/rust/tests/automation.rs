//! The examples at work, in Rust and in Python, on real daemons: a machine joins, a policy comes in force, and who has it is known.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ringmesh_deploy_tests::executable::meshctl;
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

/// Where the coordinator is.
const COORDINATOR: u16 = 443;
/// How long the machine may take for a request when it is busy.
const PATIENCE: Duration = Duration::from_secs(10);

fn python_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../python")
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

    /// An example to be run on the worker, with a policy of its own, and the port by which it reaches the coordinator.
    fn example(&self, program: &Path, before: &[&str], port: u16, through: u16) -> Command {
        self.worker
            .enter(|| fs::write("/run/policy.toml", POLICY.replace("PORT", &port.to_string())).unwrap())
            .unwrap();
        let server = format!("{}:{through}", self.coordinator.ipv4());
        let mut command = self.worker.command(program).unwrap();
        command.args(before).args(["--server", &server, "--ca", "/run/coordinator.crt"]);
        command.args(["--key-file", "/run/api.key", "--policy", "/run/policy.toml"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// How many join tokens there are.
    fn tokens(&self) -> usize {
        let tokens = on(&self.coordinator, &["token", "list", "-o", "json"]);
        let tokens: Value = serde_json::from_str(&tokens).unwrap();
        tokens["tokens"].as_array().unwrap().len()
    }

    /// A port of the coordinator's machine that passes connections on to the coordinator, all but the first one as they are.
    fn port(&self, first: First) -> u16 {
        let open = || {
            let listener = TcpListener::bind("0.0.0.0:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            thread::spawn(move || {
                for (number, client) in listener.incoming().flatten().enumerate() {
                    let first = (number == 0).then_some(first);
                    // Without a coordinator, and if it is to be so, a connection ends at once.
                    if first != Some(First::Closed)
                        && let Ok(server) = TcpStream::connect("127.0.0.1:443")
                    {
                        pass_on(client, server, first.is_some());
                    }
                }
            });
            port
        };
        self.coordinator.enter(open).unwrap()
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

/// What becomes of the first connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Closed,
    /// The handshake of TLS gets through, and whatever is asked; the answers are lost.
    Unanswered,
}

/// Passes on both ways. If it `loses`, nothing comes back after the first that the server said, which is its part of the handshake.
fn pass_on(mut client: TcpStream, mut server: TcpStream, loses: bool) {
    let (answered, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut up = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (was_answered, loses_now) = (answered.clone(), lost.clone());
    let mut bytes = vec![0; 64 << 10];
    let mut more = bytes.clone();
    thread::spawn(move || {
        while let Ok(len @ 1..) = up.0.read(&mut more) {
            loses_now.fetch_or(loses && was_answered.load(Ordering::SeqCst), Ordering::SeqCst);
            if up.1.write_all(&more[..len]).is_err() {
                break;
            }
        }
        let _ = up.1.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        while let Ok(len @ 1..) = server.read(&mut bytes) {
            if !lost.load(Ordering::SeqCst) {
                answered.store(true, Ordering::SeqCst);
                if client.write_all(&bytes[..len]).is_err() {
                    break;
                }
            }
        }
        let _ = client.shutdown(Shutdown::Both);
    });
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn noted(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_example_in_rust_joins_a_machine_and_sees_its_policy_installed() {
    in_sandbox(|| {
        let given = Given::new("operator");
        let said = text(&given.example(Path::new(RUST), &[], 8080, COORDINATOR).output().unwrap());
        assert!(said.starts_with("worker joined; r"), "{said}");
        assert!(said.trim_end().ends_with("is installed on server, worker"), "{said}");
        given.check(8080);
    });
}

#[test]
fn the_example_in_python_asks_again_and_joins_a_machine_and_sees_its_policy_installed() {
    let python = python();
    in_sandbox(|| {
        let given = Given::new("operator");
        let script = python_folder().join("automate.py");
        let port = given.port(First::Closed);
        let output = given.example(&python, &[script.to_str().unwrap()], 9090, port).output().unwrap();
        let said: Value = serde_json::from_str(&text(&output)).unwrap();
        assert!(noted(&output).contains("again in 1s: "), "{output:?}");
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
        let tokens = given.tokens();
        let refused = given.example(Path::new(RUST), &[], 8080, COORDINATOR).output().unwrap();
        assert!(!refused.status.success(), "{refused:?}");
        let said = noted(&refused);
        assert!(said.contains("Error: REASON_NOT_PERMITTED: the API key is read-only"), "{said}");
        assert!(!said.contains("again in"), "who is refused does not insist: {said}");
        assert_eq!(given.tokens(), tokens, "none was made");
    });
}

#[test]
fn a_request_whose_answer_was_lost_is_made_again_and_done_once() {
    in_sandbox(|| {
        let given = Given::new("operator");
        let (before, port) = (given.tokens(), given.port(First::Unanswered));
        let example = given.example(Path::new(RUST), &[], 8080, port).spawn().unwrap();
        let asked = Instant::now();
        while given.tokens() == before {
            assert!(asked.elapsed() < PATIENCE, "no token was made");
            thread::sleep(Duration::from_millis(20));
        }
        // The token is made, and nobody told of it. That it was asked for outlives the coordinator.
        on(&given.coordinator, &["coordinator", "down"]);
        on(&given.coordinator, &["coordinator", "up"]);
        let output = example.wait_with_output().unwrap();
        let said = text(&output);
        assert!(said.starts_with("worker joined; r"), "{said}");
        assert!(noted(&output).contains("again in 1s: "), "{output:?}");
        // `coordinator up` makes one of its own.
        assert_eq!(given.tokens(), before + 2, "and not another one");
    });
}
