//! A real process, killed while machines join; a disk that fails; a disk that is full.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use ringmesh_controlplane::run;
use ringmesh_proto::{admin, control::Reason};
use ringmesh_tunnel::{enroll::JoinToken, key::IdentitySecret};
use tonic::Code;

use crate::{
    client::{Lie, TestNode, connect, reason},
    harness::{Operator, Running, config},
    policy::{apply, ssh_to_b},
};

/// As a test: a coordinator starts, says so, and stops. As a child of the others: it serves until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_serves_until_it_is_told_to_stop() {
    let Some(directory) = std::env::var_os("RINGMESH_TEST_COORDINATOR") else {
        Running::start().await.stop().await;
        return;
    };
    let directory = Path::new(&directory);
    if let Some(log) = std::env::var_os("RINGMESH_TEST_LOG") {
        let log = Mutex::new(fs::File::create(log).unwrap());
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(log)
            .init();
    }
    let mut config = config(directory);
    config.relay.enabled = std::env::var_os("RINGMESH_TEST_LOG").is_some();
    if let Ok(listen) = std::env::var("RINGMESH_TEST_LISTEN") {
        config.listen = listen.parse().unwrap();
    }
    let ended = run(config, std::future::pending(), |ready| {
        // As the real one does.
        let subject = ready.subject;
        tokio::spawn(async move { subject.after_crowds(ringmesh_io::heap::give_back).await });
        fs::write(directory.join("ready.new"), ready.address.to_string()).unwrap();
        fs::rename(directory.join("ready.new"), directory.join("ready")).unwrap();
    })
    .await;
    panic!("{}", ended.unwrap_err());
}

/// A coordinator in a process of its own; killed with this value.
pub struct Process(Child);

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Bounds what a process may have from now on, as `prlimit` names it.
pub fn limit(process: &Process, bound: &str) {
    let limited =
        Command::new("prlimit").args([format!("--pid={}", process.id()), format!("--{bound}")]).status();
    assert!(limited.unwrap().success());
}

/// The command that becomes a coordinator, by way of `shell` if anything is to be said there first.
fn command(directory: &Path, first: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{first} exec \"$0\" \"$@\""))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "crash::a_coordinator_serves_until_it_is_told_to_stop", "--nocapture"])
        .env("RINGMESH_TEST_COORDINATOR", directory)
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Starts a coordinator after the shell did `first`.
pub async fn start(directory: &Path, first: &str) -> (Process, SocketAddr) {
    spawn(directory, command(directory, first)).await
}

/// Starts a coordinator that logs everything there is to log.
pub async fn start_logged(directory: &Path, log: &Path) -> (Process, SocketAddr) {
    let mut command = command(directory, "");
    command.env("RINGMESH_TEST_LOG", log);
    spawn(directory, command).await
}

async fn spawn(directory: &Path, mut command: Command) -> (Process, SocketAddr) {
    let ready = directory.join("ready");
    drop(fs::remove_file(&ready));
    let mut process = Process(command.spawn().unwrap());
    for _ in 0..2000 {
        if let Ok(address) = fs::read_to_string(&ready) {
            return (process, address.parse().unwrap());
        }
        assert!(process.is_running(), "it ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not ready in 10 s");
}

/// What machines were told, as they would remember it.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<BTreeMap<String, (String, String, IpAddr)>>,
    next: AtomicUsize,
    stop: AtomicBool,
    address: Mutex<Option<SocketAddr>>,
}

/// Joins one machine after the other; a machine whose join broke off tries again with the same key.
async fn join_for_ever(ledger: Arc<Ledger>, token: JoinToken) {
    while !ledger.stop.load(Ordering::Relaxed) {
        let name = format!("n{}", ledger.next.fetch_add(1, Ordering::Relaxed));
        let seed = *IdentitySecret::generate().seed();
        loop {
            if ledger.stop.load(Ordering::Relaxed) {
                return;
            }
            let address = *ledger.address.lock().unwrap();
            let mut node = TestNode::with_identity(&name, IdentitySecret::from_seed(seed));
            let joined = async {
                let mut connection = connect(address?).await.ok()?;
                node.join_on(&mut connection, &token, Lie::None).await.ok()
            };
            if joined.await.is_some() {
                let member = node.member.unwrap();
                let told = (member.id.to_string(), member.noise_key.to_string(), member.ipv4.unwrap().into());
                ledger.acknowledged.lock().unwrap().insert(name, told);
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// `RINGMESH_KILLS` says how often; 10 unless set.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9_and_nothing_is_there_twice() {
    let kills: usize = std::env::var("RINGMESH_KILLS").map_or(10, |kills| kills.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let socket = config(directory.path()).admin_socket;
    let (mut process, address) = start(directory.path(), "").await;
    let request = admin::CreateTokenRequest { reusable: true, ..Default::default() };
    let token = Operator::connect(&socket).await.token(request).await;
    let ledger = Arc::new(Ledger::default());
    *ledger.address.lock().unwrap() = Some(address);
    let joiners: Vec<_> = (0..8)
        .map(|_| tokio::spawn(join_for_ever(ledger.clone(), token.reveal().parse().unwrap())))
        .collect();
    for kill in 0..kills {
        // Each time after some joins of its own, at a moment that differs.
        let before = ledger.acknowledged.lock().unwrap().len();
        while ledger.acknowledged.lock().unwrap().len() < before + 5 + kill % 7 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        *ledger.address.lock().unwrap() = None;
        drop(process);
        let address;
        (process, address) = start(directory.path(), "").await;
        let told = ledger.acknowledged.lock().unwrap().clone();
        check(&told, &Operator::connect(&socket).await.list().await, kill);
        *ledger.address.lock().unwrap() = Some(address);
    }
    ledger.stop.store(true, Ordering::Relaxed);
    for joiner in joiners {
        joiner.await.unwrap();
    }
    let told = ledger.acknowledged.lock().unwrap().clone();
    check(&told, &Operator::connect(&socket).await.list().await, kills);
    assert!(told.len() >= 5 * kills);
    println!("{kills} kills, {} acknowledged enrolments, none lost, none twice", told.len());
}

/// What an operator was told of policies: the revision and text of each that came in force, and the one that was on its way.
#[derive(Default)]
struct Policies {
    acknowledged: Vec<(u64, String)>,
    on_its_way: String,
}

/// Applies one policy after the other until the coordinator is gone.
async fn apply_for_ever(mut operator: Operator, policies: Arc<Mutex<Policies>>) {
    for round in 0.. {
        let admins: &[&str] = [&["a"][..], &["c"], &["a", "c"]][round % 3];
        let text = format!("# {}\n{}", policies.lock().unwrap().acknowledged.len(), ssh_to_b(admins));
        policies.lock().unwrap().on_its_way.clone_from(&text);
        match apply(&mut operator, &text).await {
            // The first after a restart may be in force already.
            Ok(applied) if !applied.changed => {}
            Ok(applied) => policies.lock().unwrap().acknowledged.push((applied.revision, text)),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_survives_kill_9_whole_with_its_text_its_history_and_its_groups() {
    let directory = tempfile::tempdir().unwrap();
    let socket = config(directory.path()).admin_socket;
    let (mut process, _) = start(directory.path(), "").await;
    let request = admin::CreateTokenRequest { reusable: true, ..Default::default() };
    let token = Operator::connect(&socket).await.token(request).await;
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let mut node = TestNode::new(name);
        node.join(&token).await.unwrap();
        nodes.push(node);
    }
    let policies = Arc::new(Mutex::new(Policies::default()));
    for kill in 0..6 {
        let applying = tokio::spawn(apply_for_ever(Operator::connect(&socket).await, policies.clone()));
        let before = policies.lock().unwrap().acknowledged.len();
        while policies.lock().unwrap().acknowledged.len() < before + 3 + kill {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        applying.await.unwrap();
        let address;
        (process, address) = start(directory.path(), "").await;
        let mut operator = Operator::connect(&socket).await;
        let in_force =
            operator.policy.get_policy(admin::GetPolicyRequest::default()).await.unwrap().into_inner();
        let told: Vec<u64> = {
            let mut policies = policies.lock().unwrap();
            let (revision, text) = policies.acknowledged.last().cloned().unwrap();
            if in_force.revision != revision {
                // The one that was on its way was committed, and nobody was told.
                assert!(in_force.revision > revision && in_force.text == policies.on_its_way, "kill {kill}");
                policies.acknowledged.push((in_force.revision, in_force.text.clone()));
            } else {
                assert_eq!(in_force.text, text, "kill {kill}");
            }
            policies.acknowledged.iter().rev().map(|(revision, _)| *revision).collect()
        };
        let list = admin::ListPoliciesRequest::default();
        let kept = operator.policy.list_policies(list).await.unwrap().into_inner().policies;
        let kept: Vec<u64> = kept.iter().map(|version| version.revision).collect();
        assert_eq!(kept, told[..told.len().min(100)]);
        // Rules and groups are of one policy, and the records verify.
        for node in &mut nodes {
            node.address = Some(address);
            node.map = None;
            let mut stream = node.sync().await.unwrap();
            node.update(&mut stream).await;
            let me = node.map.as_ref().unwrap().me().unwrap();
            let is_admin = in_force
                .text
                .lines()
                .any(|line| line.starts_with("admins") && line.contains(&format!("\"{}\"", me.name)));
            assert_eq!(me.groups, if is_admin { vec!["admins".to_owned()] } else { vec![] }, "kill {kill}");
        }
    }
}

fn check(told: &BTreeMap<String, (String, String, IpAddr)>, nodes: &[admin::Node], kill: usize) {
    let by_name: BTreeMap<&str, &admin::Node> = nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    assert_eq!(by_name.len(), nodes.len(), "a name twice after kill {kill}");
    for (name, (id, key, address)) in told {
        let node = by_name.get(name.as_str()).unwrap_or_else(|| panic!("{name} is lost after kill {kill}"));
        assert_eq!((&node.id, &node.noise_key, node.ipv4.parse().as_ref()), (id, key, Ok(address)), "{name}");
    }
    let parts: [fn(&admin::Node) -> &str; 4] =
        [|node| &node.ipv4, |node| &node.ipv6, |node| &node.noise_key, |node| &node.id];
    for part in parts {
        let distinct: BTreeSet<&str> = nodes.iter().map(part).collect();
        assert_eq!(distinct.len(), nodes.len(), "something twice after kill {kill}");
    }
}

/// Writes fail beyond a file size, as they do on a broken disk: with an error that leaves open what was written.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_write_nothing_is_acknowledged_and_the_process_ends() {
    let directory = tempfile::tempdir().unwrap();
    // Without the signal the write itself fails, with EFBIG, which SQLite reports as an I/O error.
    let (mut process, address) = start(directory.path(), "trap '' XFSZ;").await;
    let socket = config(directory.path()).admin_socket;
    let token = Operator::connect(&socket)
        .await
        .token(admin::CreateTokenRequest { reusable: true, ..Default::default() })
        .await;
    let mut told = 0;
    let limit = fs::metadata(directory.path().join("state/coordinator.db-wal")).unwrap().len() + 100_000;
    self::limit(&process, &format!("fsize={limit}"));
    let refused = loop {
        let mut connection = connect(address).await.unwrap();
        match TestNode::new("").join_on(&mut connection, &token, Lie::None).await {
            Ok(()) => told += 1,
            Err(status) => break status,
        }
    };
    assert!(told > 0);
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let status = tokio::task::spawn_blocking(move || {
        let status = process.0.wait().unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(process.0.stderr.as_mut().unwrap(), &mut text).unwrap();
        (status, text)
    });
    let (status, text) = tokio::time::timeout(Duration::from_secs(20), status).await.unwrap().unwrap();
    assert!(!status.success());
    assert!(text.contains("the store failed and takes no more changes"), "{text}");

    let (_process, _) = start(directory.path(), "").await;
    let nodes = Operator::connect(&socket).await.list().await.len();
    assert!(nodes == told || nodes == told + 1, "{nodes} of {told}: at most the one that was left open");
}

/// Needs root for a small file system of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_changes_and_heals_by_itself() {
    if !nix::unistd::geteuid().is_root() {
        println!("NOT RUN: a full disk: only root can mount a small file system");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let _mounted = Mount::small(&disk);
    let (process, address) = start(&disk, "").await;
    let socket = config(&disk).admin_socket;
    let mut operator = Operator::connect(&socket).await;
    let token = operator.token(admin::CreateTokenRequest { reusable: true, ..Default::default() }).await;
    let join = async || {
        let mut connection = connect(address).await.unwrap();
        TestNode::new("").join_on(&mut connection, &token, Lie::None).await
    };
    join().await.unwrap();
    let ballast = disk.join("ballast");
    let full = fs::write(&ballast, vec![0; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let mut told = 1;
    let refused = loop {
        match join().await {
            Ok(()) => told += 1,
            Err(status) => break status,
        }
        assert!(told < 1000, "the disk does not get full");
    };
    assert_eq!((reason(&refused), refused.code()), (Reason::Host, Code::ResourceExhausted), "{refused}");
    assert_eq!(operator.list().await.len(), told, "reading goes on");
    fs::remove_file(&ballast).unwrap();
    join().await.unwrap();
    assert_eq!(operator.list().await.len(), told + 1);
    drop(process);
}

/// A file system of 8 MiB that goes with this value.
struct Mount(std::path::PathBuf);

impl Mount {
    fn small(path: &Path) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"])
            .arg(path)
            .status();
        assert!(mounted.unwrap().success());
        Self(path.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
