//! A coordinator, a relay, nodes and Debian's Prometheus, each on a machine of its own and each the real program.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ringmesh_deploy_tests::executable::meshctl;
use ringmesh_lab::{Host, Lab, Switch};
use serde_json::Value;
use tempfile::TempDir;

/// The longest that anything here is waited for: the machine may have much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const COORDINATOR: u16 = 9465;
const RELAY: u16 = 9466;
const NODE: u16 = 9464;
const PROMETHEUS: u16 = 9090;

/// A machine and the daemon on it.
pub(crate) struct Machine {
    pub(crate) host: Host,
    daemon: Option<Child>,
    /// Where its metrics are.
    pub(crate) metrics: SocketAddr,
    log: PathBuf,
    /// By how many seconds its daemon's clock is ahead, as text; for who has such a clock.
    pub(crate) clock: PathBuf,
}

/// All of them.
pub(crate) struct World {
    pub(crate) head: Machine,
    pub(crate) relay: Machine,
    /// Alice, Bob and Carol.
    pub(crate) nodes: Vec<Machine>,
    watch: Host,
    prometheus: Option<Child>,
    folder: TempDir,
    turned: PathBuf,
    _switch: Switch,
    _lab: Lab,
}

/// Where the coordinator keeps its state: a small disk of its own.
pub(crate) const STATE: &str = "/var/lib/mesh-coordinator";
const STATE_MIB: u32 = 160;

/// A clock that a file moves, for one program: a library that is loaded before libc.
const TURNED: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    long failed = syscall(SYS_clock_gettime, id, t);
    const char *path = getenv("TURNED_BY");
    if (!failed && id == CLOCK_REALTIME && path) {
        char text[32] = {0};
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) t->tv_sec += atol(text);
            close(file);
        }
    }
    return failed;
}
"#;

impl Machine {
    fn new(switch: &Switch, name: &str, port: u16, folder: &Path) -> Self {
        let host = switch.host(name).unwrap();
        let metrics = SocketAddr::new(host.ipv4().into(), port);
        let clock = folder.join(format!("{name}.clock"));
        fs::write(&clock, "0").unwrap();
        Self { host, daemon: None, metrics, log: folder.join(format!("{name}.log")), clock }
    }

    /// `meshctl` on this machine with nothing of the tester's environment that could change the outcome.
    pub(crate) fn meshctl(&self, words: &str) -> Command {
        let mut command = self.host.command(meshctl()).unwrap();
        command.args(words.split_whitespace()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESH_")) {
            command.env_remove(name);
        }
        command
    }

    /// Runs `meshctl`, which must succeed, and gives what it printed.
    #[track_caller]
    pub(crate) fn run(&self, words: &str) -> String {
        let output = self.meshctl(words).output().unwrap();
        self.printed(words, &output)
    }

    /// Runs a line of shell, which must succeed, and gives what it printed.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        let output =
            self.host.command("sh").unwrap().args(["-c", line]).stdin(Stdio::null()).output().unwrap();
        self.printed(line, &output)
    }

    #[track_caller]
    fn printed(&self, what: &str, output: &Output) -> String {
        let [out, err] =
            [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        assert!(output.status.success(), "{}: {what}: {out}{err}\n{}", self.host.name(), log());
        out
    }

    /// A program that goes on until the returned value is dropped.
    pub(crate) fn meanwhile(&self, line: &str) -> Meanwhile {
        let mut command = self.host.command("sh").unwrap();
        let line = format!("exec {line}");
        command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Meanwhile(command.spawn().unwrap())
    }

    /// Starts the daemon, whose clock is that of the file.
    fn start(&mut self, words: &str, turned: &Path) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.meshctl(words);
        command.env("LD_PRELOAD", turned).env("TURNED_BY", &self.clock);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
    }

    fn signal(&self, signal: &str) {
        let daemon = self.daemon.as_ref().unwrap().id();
        assert!(Command::new("kill").args([signal, &daemon.to_string()]).status().unwrap().success());
    }

    /// The daemon does nothing any more, and is there all the same.
    pub(crate) fn stop(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    /// The daemon is gone from one moment to the next.
    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Moves the daemon's clock.
    pub(crate) fn turn(&self, days: i64) {
        fs::write(&self.clock, (days * 86_400).to_string()).unwrap();
    }

    /// What a path of its monitor answers.
    pub(crate) fn ask(&self, path: &str) -> Result<(u16, String), std::io::Error> {
        get(&self.host, self.metrics, path)
    }

    fn until_serving(&self) {
        let log = || fs::read_to_string(&self.log).unwrap_or_default();
        within(&format!("{} answers: {}", self.host.name(), log()), || self.ask("/livez").is_ok());
    }

    /// Its address in the mesh.
    pub(crate) fn mesh_address(&self) -> Ipv4Addr {
        let status: Value = serde_json::from_str(&self.run("status -o json")).unwrap();
        status["network"]["self"]["ipv4"].as_str().unwrap_or_else(|| panic!("{status:#}")).parse().unwrap()
    }
}

/// A program that is ended when this is dropped.
pub(crate) struct Meanwhile(Child);

impl Drop for Meanwhile {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// Everything runs, the nodes are connected, and Prometheus has `rules` and asks twice a second.
    pub(crate) fn new(rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let machine = |name, port| Machine::new(&switch, name, port, folder.path());
        let (head, relay) = (machine("head", COORDINATOR), machine("relay", RELAY));
        let nodes = ["alice", "bob", "carol"].map(|name| machine(name, NODE)).into();
        let watch = switch.host("watch").unwrap();
        let turned = turned(folder.path());
        let prometheus = None;
        let mut world =
            Self { head, relay, nodes, watch, prometheus, folder, turned, _switch: switch, _lab: lab };
        world
            .head
            .sh(&format!("mkdir -p {STATE} && mount -t tmpfs -o mode=0700,size={STATE_MIB}m tmpfs {STATE}"));
        world.start_coordinator();
        let token = world.head.run("token create --relay").trim().to_owned();
        let metrics = world.relay.metrics;
        world.relay.start(
            &format!("relay run --token {token} --metrics {metrics} --relay-client-rate 1"),
            &world.turned,
        );
        let token = world.head.run("token create --reusable").trim().to_owned();
        for node in &mut world.nodes {
            let words = format!("join --foreground --token {token} --metrics {}", node.metrics);
            node.start(&words, &world.turned);
        }
        world.relay.until_serving();
        for node in &world.nodes {
            node.until_serving();
            within(&format!("{} is ready", node.host.name()), || matches!(node.ask("/readyz"), Ok((200, _))));
        }
        world.start_prometheus(rules);
        world
    }

    fn start_coordinator(&mut self) {
        let (address, metrics) = (self.head.host.ipv4(), self.head.metrics);
        let words = format!(
            "coordinator run --listen {address}:443 --metrics {metrics} --heartbeat 3 --relay-client-rate 1"
        );
        self.head.start(&words, &self.turned);
        self.head.until_serving();
        let head = &self.head;
        within("the coordinator is ready", || matches!(head.ask("/readyz"), Ok((200, _))));
    }

    /// Starts the daemon of a node that is a member already.
    pub(crate) fn start_node(&mut self, number: usize, flags: &str) {
        let words = format!("node run --metrics {} {flags}", self.nodes[number].metrics);
        self.nodes[number].start(&words, &self.turned);
        self.nodes[number].until_serving();
    }

    fn start_prometheus(&mut self, rules: &str) {
        let nodes: Vec<String> = self.nodes.iter().map(|node| format!("\"{}\"", node.metrics)).collect();
        let example = crate::files::read(&crate::files::prometheus().join("prometheus.example.yml"));
        let mut config = example;
        for (from, to) in [
            ("scrape_interval: 15s", "scrape_interval: 500ms".to_owned()),
            ("evaluation_interval: 15s", "evaluation_interval: 500ms".to_owned()),
            ("[\"127.0.0.1:9465\"]", format!("[\"{}\"]", self.head.metrics)),
            ("[\"relay.mesh:9466\"]", format!("[\"{}\"]", self.relay.metrics)),
            (
                "[\"alice.mesh:9464\", \"bob.mesh:9464\", \"carol.mesh:9464\"]",
                format!("[{}]", nodes.join(", ")),
            ),
        ] {
            config = replaced(&config, from, &to);
        }
        let folder = self.folder.path();
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        fs::write(folder.join("ringmesh.rules.yml"), rules).unwrap();
        crate::files::promtool(&["check", "config", "prometheus.yml"], folder);
        let log = File::create(folder.join("prometheus.log")).unwrap();
        let mut command = self.watch.command("prometheus").unwrap();
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"));
        self.prometheus =
            Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        within("Prometheus is ready", || matches!(self.get("/-/ready"), Ok((200, _))));
    }

    fn get(&self, path: &str) -> Result<(u16, String), std::io::Error> {
        get(&self.watch, SocketAddr::from(([127, 0, 0, 1], PROMETHEUS)), path)
    }

    /// The series that an expression gives now.
    #[track_caller]
    pub(crate) fn query(&self, expression: &str) -> Vec<Value> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (status, body) = self.get(&format!("/api/v1/query?query={encoded}")).unwrap();
        assert_eq!(status, 200, "{expression}: {body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// Whether an expression gives anything now.
    #[track_caller]
    pub(crate) fn holds(&self, expression: &str) -> bool {
        !self.query(expression).is_empty()
    }

    /// What is asked, and whether it answers.
    pub(crate) fn targets(&self) -> Value {
        let (_, body) = self.get("/api/v1/targets").unwrap();
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Replaces what occurs just once.
#[track_caller]
pub(crate) fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from}");
    text.replace(from, to)
}

/// Repeats a check until it holds.
#[track_caller]
pub(crate) fn within(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(100));
    }
    began.elapsed()
}

fn turned(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("turned.c"), folder.join("turned.so"));
    fs::write(&source, TURNED).unwrap();
    let mut cc = Command::new("cc");
    assert!(
        cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).status().unwrap().success()
    );
    library
}

/// Asks over HTTP/1.0, from `host`: the answer ends with the connection.
fn get(host: &Host, at: SocketAddr, path: &str) -> Result<(u16, String), std::io::Error> {
    host.enter(|| {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let wrong = || std::io::Error::other(format!("no answer: {answer:?}"));
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(wrong)?;
        Ok((status, body.to_owned()))
    })
    .unwrap()
}
