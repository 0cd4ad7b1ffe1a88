//! The units of `deploy/systemd` on Debians that systemd runs: as packages install them, and by `meshctl service`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it saw"
)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ringmesh_deploy_tests::executable::meshctl;
use ringmesh_lab::{
    HeldThread, Host, Lab,
    debian::{Boot, Debian},
    in_sandbox,
};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that should come about by itself.
const PATIENCE: Duration = Duration::from_secs(40);
/// Bits of the capability sets (capabilities(7)).
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
/// What the thread that moves packets is called.
const WORKER: &str = "mesh-worker-0";

fn boot(host: &Host, program: &Path) -> Debian {
    let lines = "rm -f etc/resolv.conf && ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
                 touch etc/cloud/cloud-init.disabled";
    let boot = Boot::new().unwrap().systemd().bind(program, "/usr/bin/meshctl").prepare(lines);
    let debian = boot.on(host).unwrap();
    debian.booted().unwrap();
    debian
}

/// Installs the units as a package does, without starting any.
fn install_package(debian: &Debian) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    for file in fs::read_dir(folder).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        let (_, kind) = name.rsplit_once('.').unwrap();
        let place = match kind {
            "sysusers" => "/usr/lib/sysusers.d/ringmesh.conf".to_owned(),
            "rules" => "/usr/share/polkit-1/rules.d/ringmesh.rules".to_owned(),
            "service" | "target" => format!("/usr/lib/systemd/system/{name}"),
            _ => panic!("where does {name} go?"),
        };
        debian.write(&place, fs::read(file.path()).unwrap(), 0o644).unwrap();
    }
    debian.sh("systemd-sysusers && systemctl daemon-reload").unwrap();
}

#[track_caller]
fn until<T>(what: &str, debian: &Debian, unit: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}\n{}", debian.journal(unit).unwrap_or_default());
        thread::sleep(Duration::from_millis(50));
    }
}

/// A property of a unit.
fn property(debian: &Debian, unit: &str, name: &str) -> String {
    debian.sh(&format!("systemctl show --value --property={name} {unit}")).unwrap().trim().to_owned()
}

fn json(debian: &Debian, command: &str) -> Value {
    serde_json::from_str(&debian.sh(&format!("{command} -o json")).unwrap()).unwrap()
}

/// What each thread of a unit's daemon may do: for each set of capabilities (`CapEff`, ...) all that are in it in some thread.
fn rights(debian: &Debian, unit: &str) -> BTreeMap<String, u64> {
    let pid = property(debian, unit, "MainPID");
    let told = debian.sh(&format!("cat /proc/{pid}/task/*/status")).unwrap();
    let threads = told.lines().filter(|line| line.starts_with("Name:")).count();
    assert!(threads > 2, "{unit} has {threads} threads");
    assert_eq!(told.lines().filter(|line| *line == "NoNewPrivs:\t1").count(), threads, "{unit}");
    let mut rights = BTreeMap::new();
    for line in told.lines().filter(|line| line.starts_with("Cap")) {
        let (set, bits) = line.split_once(':').unwrap();
        *rights.entry(set.to_owned()).or_default() |= u64::from_str_radix(bits.trim(), 16).unwrap();
    }
    assert_eq!(rights.len(), 5, "{told}");
    rights
}

/// Holds a unit's daemon to its user and its promise.
#[track_caller]
fn keeps_its_promise(debian: &Debian, unit: &str, user: &str, may: u64, bound: u64) {
    let pid = property(debian, unit, "MainPID");
    let runs_as = debian.sh(&format!("stat -c %U /proc/{pid}")).unwrap();
    assert_eq!(runs_as.trim(), user, "{unit}");
    for (set, has) in rights(debian, unit) {
        let allowed = match set.as_str() {
            "CapEff" | "CapPrm" => may,
            // Who may not narrow it has it from the unit, and nothing that it executes can have more than was kept.
            "CapBnd" => bound,
            _ => 0,
        };
        assert_eq!(has, allowed, "{unit}: {set} is {has:x}, and should be {allowed:x}");
    }
}

/// The process of a unit's daemon, as it is seen from here.
fn outside(debian: &Debian, unit: &str) -> u32 {
    let inside = property(debian, unit, "MainPID");
    let namespace = fs::read_link(format!("/proc/{}/ns/pid", debian.init())).unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let same = fs::read_link(entry.path().join("ns/pid")).ok()? == namespace;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
        (same && ids.split_whitespace().last() == Some(inside.as_str())).then_some(pid)
    });
    let found: Vec<u32> = processes.collect();
    assert_eq!(found.len(), 1, "{unit} is process {inside} inside");
    found[0]
}

/// A token of the coordinator on this machine.
fn token(coordinator: &Debian, options: &str) -> String {
    coordinator.sh(&format!("meshctl token create {options}")).unwrap().trim().to_owned()
}

/// The executable by a link of its own: who builds meanwhile would take the file away from under the machines.
fn program() -> (PathBuf, TempDir) {
    let built = meshctl();
    let folder = tempfile::tempdir_in(built.parent().unwrap()).unwrap();
    let program = folder.path().join("meshctl");
    fs::hard_link(built, &program).unwrap();
    (program, folder)
}

/// One machine.
fn alone(lab: &Lab, name: &str) -> (Debian, TempDir) {
    let (program, folder) = program();
    (boot(&lab.switch().unwrap().host(name).unwrap(), &program), folder)
}

/// A machine with coordinator, relay and node, and one with a node, all joined.
struct Pair {
    hub: Debian,
    web: Debian,
    _lab: Lab,
    _program: TempDir,
}

impl Pair {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (hub_host, web_host) = (switch.host("hub").unwrap(), switch.host("web").unwrap());
        let (program, folder) = program();
        let (hub, web) = (boot(&hub_host, &program), boot(&web_host, &program));
        hub.write("/etc/mesh/relay.toml", "listen_port = 3478\n", 0o644).unwrap();
        for role in ["coordinator", "relay", "node"] {
            println!("{}", hub.sh(&format!("meshctl service install {role}")).unwrap());
        }
        let relay_token = token(&hub, "--relay");
        hub.sh(&format!("meshctl join --socket /run/mesh-relay/meshd.sock --name fra --token {relay_token}"))
            .unwrap();
        hub.sh(&format!("meshctl join --token {}", token(&hub, ""))).unwrap();

        install_package(&web);
        // The unit is there and does not run: joining starts it.
        let said = web.run(&format!("meshctl join --token {}", token(&hub, ""))).unwrap();
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains("meshd started by systemd"), "{said}");
        web.sh("systemctl enable meshd mesh-wait-online && systemctl start mesh-online.target").unwrap();
        Self { hub, web, _lab: lab, _program: folder }
    }
}

#[test]
fn daemons_run_as_their_users_with_no_more_rights_than_promised() {
    in_sandbox(|| {
        let Pair { hub, web, .. } = &Pair::new();
        keeps_its_promise(hub, "mesh-coordinator.service", "mesh-coordinator", 0, NET_BIND_SERVICE);
        keeps_its_promise(hub, "mesh-relay.service", "mesh-relay", 0, NET_BIND_SERVICE);
        let network = NET_ADMIN | NET_BIND_SERVICE;
        for debian in [hub, web] {
            keeps_its_promise(debian, "meshd.service", "mesh", network, network);
        }

        web.sh("meshctl wait --for 'peer hub' --timeout 20s").unwrap();
        web.sh("meshctl ping hub").unwrap();
        let addresses = json(hub, "meshctl status");
        assert_eq!(addresses["data_plane"]["back_end"], "uring", "{addresses:#}");

        for (debian, unit, words) in [
            (hub, "mesh-coordinator.service", "network mesh, revision"),
            (hub, "mesh-relay.service", "in network mesh"),
            (web, "meshd.service", "running in network mesh, revision"),
        ] {
            until(&format!("{unit} does not say how it is"), debian, unit, || {
                property(debian, unit, "StatusText").contains(words).then_some(())
            });
            let journal = debian.journal(unit).unwrap();
            assert!(journal.contains(" INFO "), "{journal}");
            assert!(!journal.contains("not_live") && !journal.contains(" ERROR "), "{journal}");
        }

        // systemd-resolved takes it from a user who is not root.
        until("names are not told to systemd-resolved", web, "meshd.service", || {
            let dns = json(web, "meshctl dns status");
            println!("{}", dns["mode"]);
            (dns["mode"] == "resolved").then_some(())
        });
        web.sh("getent hosts hub.mesh").unwrap();

        // A restart keeps the membership, and a stop leaves nothing.
        web.sh("systemctl restart meshd && meshctl wait --timeout 20s && meshctl ping hub").unwrap();
        web.sh("systemctl stop meshd").unwrap();
        assert!(!web.works("ip link show mesh0") && !web.works("getent hosts hub.mesh"));
        assert!(!web.path("/run/mesh").exists() && !web.works("pgrep -u mesh"));
        assert_eq!(property(web, "meshd.service", "Result"), "success");
        assert_eq!(property(web, "mesh-wait-online.service", "ActiveState"), "inactive");

        // As does taking the units away, but for the state.
        for role in ["node", "relay", "coordinator"] {
            hub.sh(&format!("meshctl service uninstall {role}")).unwrap();
        }
        assert!(!hub.works("ls /etc/systemd/system/mesh* /etc/polkit-1/rules.d/*ringmesh* /run/mesh*"));
        assert!(hub.path("/var/lib/mesh-coordinator/tls.crt").exists());
        assert!(!hub.works("pgrep meshctl"));
        // And it is all there when they come back.
        for role in ["coordinator", "node"] {
            hub.sh(&format!("meshctl service install {role}")).unwrap();
        }
        hub.sh("meshctl wait --timeout 30s").unwrap();
    });
}

#[test]
fn a_daemon_whose_worker_hangs_is_started_again() {
    in_sandbox(|| {
        let Pair { web, .. } = &Pair::new();
        web.write("/etc/systemd/system/meshd.service.d/soon.conf", "[Service]\nWatchdogSec=6\n", 0o644)
            .unwrap();
        web.sh("systemctl daemon-reload && systemctl restart meshd && meshctl wait --timeout 20s").unwrap();
        let before = property(web, "meshd.service", "MainPID");
        // It lives for longer than the watchdog's time: what follows is not for want of messages.
        thread::sleep(Duration::from_secs(8));
        assert_eq!(property(web, "meshd.service", "MainPID"), before);

        let held = HeldThread::of(outside(web, "meshd.service"), WORKER).unwrap();
        until("a daemon that hangs is not noticed", web, "meshd.service", || {
            web.journal("meshd.service").unwrap().contains("Watchdog timeout").then_some(())
        });
        // A thread that is traced is not gone before its tracer lets it go, killed or not.
        drop(held);
        until("a daemon that hangs is not started again", web, "meshd.service", || {
            (property(web, "meshd.service", "NRestarts") == "1").then_some(())
        });
        let journal = web.journal("meshd.service").unwrap();
        assert!(journal.contains("not_live"), "{journal}");
        web.sh("meshctl wait --timeout 20s && meshctl ping hub").unwrap();
        assert_ne!(property(web, "meshd.service", "MainPID"), before);
    });
}

/// As docs/operations.md shows it.
fn drop_in() -> String {
    let manual = include_str!("../../../docs/operations.md");
    let (_, rest) = manual.split_once("# systemctl edit meshd\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_drop_in_of_the_manual_lets_the_node_write_the_hosts_file_and_keeps_its_promise() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let (debian, _program) = alone(&lab, "hub");
        debian.sh("meshctl service install coordinator").unwrap();
        debian.write("/etc/mesh/node.toml", "[dns]\nmode = \"hosts\"\n", 0o644).unwrap();
        debian.sh("meshctl service install node").unwrap();
        debian.sh(&format!("meshctl join --token {}", token(&debian, ""))).unwrap();
        let before = debian.read("/etc/hosts").unwrap();
        // As a user who is not root, it may not.
        let dns = json(&debian, "meshctl dns status");
        assert_ne!(dns["mode"], "hosts", "{dns:#}");

        debian.write("/etc/systemd/system/meshd.service.d/names.conf", drop_in(), 0o644).unwrap();
        debian.sh("systemctl daemon-reload && systemctl restart meshd && meshctl wait").unwrap();
        let hosts = || String::from_utf8(debian.read("/etc/hosts").unwrap()).unwrap();
        until("the hosts file has no mesh names", &debian, "meshd.service", || {
            hosts().contains("hub.mesh").then_some(())
        });
        let network = NET_ADMIN | NET_BIND_SERVICE;
        keeps_its_promise(&debian, "meshd.service", "root", network, network);
        // Killed, it cannot take back what it wrote: the unit does.
        debian.sh("systemctl kill --signal=KILL meshd").unwrap();
        until("a killed daemon is not started again", &debian, "meshd.service", || {
            (property(&debian, "meshd.service", "NRestarts") == "1").then_some(())
        });
        debian.sh("meshctl wait && systemctl stop meshd").unwrap();
        assert_eq!(hosts().into_bytes(), before);
    });
}

#[test]
fn a_service_is_refused_to_who_may_not_and_where_it_could_not_run() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let (debian, _program) = alone(&lab, "hub");
        let fails = |command: &str, code: i32, word: &str| {
            let ran = debian.run(command).unwrap();
            let said = String::from_utf8_lossy(&ran.stderr).into_owned();
            assert_eq!(ran.status.code(), Some(code), "{command}: {said}");
            assert!(said.contains(word), "{command}: {said}");
        };
        fails(
            "setpriv --reuid 65534 --clear-groups meshctl service install",
            5,
            "sudo meshctl service install",
        );
        fails(
            "cp /usr/bin/meshctl /tmp/ && /tmp/meshctl service install",
            9,
            "services see no programs there",
        );
        fails(
            "install -o nobody /usr/bin/meshctl /opt/ && /opt/meshctl service install",
            9,
            "others than root",
        );
        fails(
            "mkdir -p /etc/systemd/system && touch /etc/systemd/system/meshd.service && meshctl service install",
            9,
            "was not written by meshctl",
        );
        fails("rm /etc/systemd/system/meshd.service; meshctl service status node", 3, "");
        fails("meshctl wait --timeout 1s", 3, "does not run");

        // Twice is once, and what ran in the background goes on as the unit.
        debian.sh("meshctl node up").unwrap();
        let first = json(&debian, "meshctl service install");
        assert_eq!(first["changed"].as_array().unwrap().len(), 4, "{first:#}");
        let again = json(&debian, "meshctl service install");
        assert_eq!(
            (&again["changed"], &again["service"]["pid"]),
            (&Value::Array(Vec::new()), &first["service"]["pid"])
        );
        fails("meshctl wait --timeout 1s", 4, "no network");
        fails("meshctl wait --for 'peer web' --timeout 0", 4, "no network");
        fails("meshctl wait --for tea", 2, "--for online");
        let status = json(&debian, "meshctl service status");
        assert_eq!(status["services"].as_array().unwrap().len(), 1, "{status:#}");
        assert_eq!(status["services"][0]["active"], "active");
        until("it does not say that it is in no network", &debian, "meshd.service", || {
            property(&debian, "meshd.service", "StatusText").contains("in no network").then_some(())
        });
        // A configuration that cannot be used is not tried for ever.
        debian.write("/etc/mesh/node.toml", "mtu = 1\n", 0o644).unwrap();
        fails("systemctl restart meshd", 1, "");
        assert_eq!(property(&debian, "meshd.service", "ActiveState"), "failed");
        assert!(debian.journal("meshd.service").unwrap().contains("must be 1280"), "the journal says why");
    });
}
