//! What daemons keep of their rights, and what they tell who supervises them, with no systemd there.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use ringmesh_lab::{HeldThread, in_sandbox};
use rustix::process::{Pid, Signal};

use crate::support::{Machine, Site};

/// How long anything may take that comes by itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// The watchdog's time in these tests: a daemon says that it lives twice within.
const WATCHDOG: Duration = Duration::from_secs(2);
/// `CAP_NET_ADMIN` and `CAP_NET_BIND_SERVICE` (capabilities(7)).
const NETWORK: u64 = 1 << 12 | 1 << 10;
/// The sets of capabilities in `/proc/PID/task/TID/status`.
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

/// All capabilities that some thread of a process has in any of its sets, and whether all threads are without a way to more.
fn rights(process: u32) -> (u64, bool) {
    let (mut all, mut closed, mut threads) = (0, true, 0);
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
        };
        all |= SETS.iter().fold(0, |all, set| all | u64::from_str_radix(&value(set), 16).unwrap());
        closed &= value("NoNewPrivs") == "1";
        threads += 1;
    }
    assert!(threads > 0, "process {process} has ended");
    (all, closed)
}

/// The daemon on a machine where only one runs.
#[track_caller]
fn only_daemon(machine: &Machine) -> u32 {
    let processes = machine.processes();
    assert_eq!(processes.len(), 1);
    processes[0].id
}

#[test]
fn daemons_of_root_keep_no_right_that_they_do_not_need_in_any_thread() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (web, fra) = (site.machine("web"), site.machine("fra"));
        web.join(&coordinator);
        let token = coordinator.run(&["token", "create", "--relay"]).ok().trim().to_owned();
        fra.write("/run/token", token.as_bytes());
        let mut relay =
            fra.meshctl(&["relay", "run", "--token", "file:/run/token", "--websocket-listen", "[::]:443"]);
        let mut relay =
            relay.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while fra.run(&["wait", "--for", "online", "--timeout", "1s"]).code != 0 {
            assert!(began.elapsed() < PATIENCE, "the relay does not join");
        }
        // Each has its workers, its store or its relay's threads by now.
        for (machine, may) in [(&coordinator, 0), (&web, NETWORK), (&fra, 0)] {
            let daemon = only_daemon(machine);
            assert!(fs::read_dir(format!("/proc/{daemon}/task")).unwrap().count() > 3);
            assert_eq!(rights(daemon), (may, true), "{}", machine.host.name());
        }
        // Whoever started them has what they gave up: a thread that kept any of it would be seen.
        let (ours, closed) = rights(std::process::id());
        assert!(ours & !NETWORK != 0 && !closed, "{ours:x}");
        rustix::process::kill_process(Pid::from_child(&relay), Signal::TERM).unwrap();
        assert!(relay.wait().unwrap().success());
    });
}

/// Who is told, as systemd is.
struct Supervisor {
    socket: UnixDatagram,
    _folder: tempfile::TempDir,
}

impl Supervisor {
    /// Starts a daemon that tells us.
    fn start(machine: &Machine, arguments: &[&str]) -> (Self, Child) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = machine.meshctl(arguments);
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        (Self { socket, _folder: folder }, child)
    }

    /// The next message within that time.
    fn hear(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut message = [0; 512];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).trim_end().to_owned())
    }

    /// Waits for a message that fits; answers all until then.
    #[track_caller]
    fn until(&self, what: &str, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let mut heard = Vec::new();
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(message) = self.hear(Duration::from_secs(1)) {
                let fits = fits(&message);
                heard.push(message);
                if fits {
                    return heard;
                }
            }
        }
        panic!("{what} was not told: {heard:?}");
    }

    /// Ends the daemon, which says so first.
    fn end(self, mut child: Child) {
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        self.until("the end", |message| message == "STOPPING=1");
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_supervisor_is_told_when_a_daemon_answers_how_it_is_and_that_it_lives() {
    in_sandbox(|| {
        let site = Site::new();
        let (hub, web) = (site.machine("hub"), site.machine("web"));
        let (told, coordinator) = Supervisor::start(&hub, &["coordinator", "run"]);
        told.until("that the coordinator is ready", |message| message == "READY=1");
        let token = hub.token();
        told.until("how it is", |message| message.starts_with("STATUS=network mesh, revision"));
        told.until("that it lives", |message| message == "WATCHDOG=1");

        let (heard, node) = Supervisor::start(&web, &["node", "run"]);
        heard.until("that the node is ready", |message| message == "READY=1");
        assert_eq!(web.run(&["status"]).code, 4, "its socket answers");
        heard.until("how it is", |message| message.starts_with("STATUS=in no network"));
        web.run(&["join", "--token", &token]).ok();
        heard.until("that it has joined", |message| {
            message.starts_with("STATUS=running in network mesh, revision")
        });
        heard.end(node);
        told.end(coordinator);
    });
}

/// A daemon whose thread of that name does nothing does not say that it lives; it says so again when the thread goes on.
#[track_caller]
fn says_that_it_lives_but_while_a_thread_is_held(heard: &Supervisor, machine: &Machine, thread: &str) {
    heard.until("that it lives", |message| message == "WATCHDOG=1");
    let held = HeldThread::of(only_daemon(machine), thread).unwrap();
    // One may be on its way.
    std::thread::sleep(WATCHDOG / 2);
    while heard.hear(Duration::from_millis(1)).is_some() {}
    let began = Instant::now();
    while began.elapsed() < 3 * WATCHDOG {
        let message = heard.hear(Duration::from_millis(200));
        assert_ne!(message.as_deref(), Some("WATCHDOG=1"), "{thread}: after {:?}", began.elapsed());
    }
    drop(held);
    heard.until("that it lives again", |message| message == "WATCHDOG=1");
}

#[test]
fn a_node_whose_worker_hangs_does_not_say_that_it_lives() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let web = site.machine("web");
        let (heard, node) = Supervisor::start(&web, &["node", "run"]);
        heard.until("that the node is ready", |message| message == "READY=1");
        web.run(&["join", "--token", &coordinator.token()]).ok();
        says_that_it_lives_but_while_a_thread_is_held(&heard, &web, "mesh-worker-0");
        heard.end(node);
    });
}

#[test]
fn a_coordinator_whose_store_hangs_does_not_say_that_it_lives() {
    in_sandbox(|| {
        let site = Site::new();
        let hub = site.machine("hub");
        let (heard, coordinator) = Supervisor::start(&hub, &["coordinator", "run"]);
        heard.until("that the coordinator is ready", |message| message == "READY=1");
        says_that_it_lives_but_while_a_thread_is_held(&heard, &hub, "store");
        // What waited for the store is done.
        hub.token();
        heard.end(coordinator);
    });
}

#[test]
fn a_relay_whose_thread_hangs_does_not_say_that_it_lives() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let fra = site.machine("fra");
        let token = coordinator.run(&["token", "create", "--relay"]).ok().trim().to_owned();
        fra.write("/run/token", token.as_bytes());
        let arguments = ["relay", "run", "--token", "file:/run/token", "--websocket-listen", "[::]:443"];
        let (heard, relay) = Supervisor::start(&fra, &arguments);
        heard.until("that it passes on", |message| message.starts_with("STATUS=running in network mesh"));
        says_that_it_lives_but_while_a_thread_is_held(&heard, &fra, "relay");
        heard.end(relay);
    });
}
