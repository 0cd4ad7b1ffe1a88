//! An ordinary OpenSSH server between two nodes: Debian's own `sshd`, with its usual settings, on a free port.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::{Carrier, key::NodeId};

use super::*;
use crate::{
    config::{HostPort, SshRoad},
    error::Failure,
    fallback::{link_socket::LinkSocket, ssh::dial_road},
};

const ASKED: DialOpen = DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::Ssh };

/// Stops a program at the end of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An `sshd`, its keys, and the directory for all that.
struct Sshd {
    root: tempfile::TempDir,
    port: u16,
    user: String,
    log: PathBuf,
    _sshd: Running,
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program}: {error} (see deploy/dev/test for the packages)"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

fn keygen(path: &Path, kind: &str, passphrase: &str) {
    run("ssh-keygen", &["-q", "-t", kind, "-N", passphrase, "-C", "", "-f", path.to_str().unwrap()]);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

impl Sshd {
    /// As Debian sets it up, but for what has to be elsewhere, and `extra`.
    fn start(extra: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        // Whom we log in as has to get to the socket.
        mode(root.path(), 0o755);
        let at = |name: &str| root.path().join(name);
        keygen(&at("host_ed25519"), "ed25519", "");
        keygen(&at("host_ecdsa"), "ecdsa", "");
        keygen(&at("client"), "ed25519", "");
        fs::copy(at("client.pub"), at("authorized_keys")).unwrap();
        let as_root = rustix::process::geteuid().is_root();
        // Somebody without any rights and without a shell, or, where there is no root, ourselves.
        let user = if as_root { "nobody".to_owned() } else { name(&run("id", &["-un"]).stdout) };
        if as_root {
            // What the package's service file makes.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let shown = root.path().display();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {shown}/host_ed25519\nHostKey {shown}/host_ecdsa\n\
             PidFile none\nAuthorizedKeysFile {shown}/authorized_keys\nStrictModes no\nUsePAM no\n\
             KbdInteractiveAuthentication no\nX11Forwarding yes\nPrintMotd no\nAcceptEnv LANG LC_*\nLogLevel DEBUG1\n{extra}\n"
        );
        fs::write(at("sshd_config"), config).unwrap();
        let config = at("sshd_config");
        let log = at("log");
        let mut child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sshd (Debian's package openssh-server)");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = lines.by_ref().map_while(Result::ok).any(|line| line.contains("Server listening on"));
        assert!(listening, "sshd did not start");
        let mut copy = File::create(&log).unwrap();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = std::io::Write::write_all(&mut copy, format!("{line}\n").as_bytes());
            }
        });
        Self { port, user, log, _sshd: Running(child), root }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A road to the socket `link.sock`, with everything right.
    fn road(&self) -> SshRoad {
        SshRoad {
            peer: "there".to_owned(),
            host: HostPort { host: "127.0.0.1".to_owned(), port: self.port },
            user: self.user.clone(),
            key: Some(self.at("client")),
            agent: None,
            host_key: Some(self.fingerprint("host_ed25519")),
            known_hosts: None,
            socket: self.at("link.sock"),
        }
    }

    fn fingerprint(&self, key: &str) -> String {
        let shown = run("ssh-keygen", &["-lf", self.at(key).to_str().unwrap()]).stdout;
        String::from_utf8(shown).unwrap().split(' ').nth(1).unwrap().to_owned()
    }

    fn public(&self, key: &str) -> String {
        fs::read_to_string(self.at(&format!("{key}.pub"))).unwrap().trim().to_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn name(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap().trim().to_owned()
}

async fn refused(road: &SshRoad) -> String {
    let failure: Failure = dial_road(road).await.expect_err("it was not refused");
    assert_eq!(failure.reason(), Reason::Unreachable, "{failure}");
    assert!(failure.to_string().starts_with("the SSH server 127.0.0.1:"), "{failure}");
    failure.to_string()
}

/// Opens a link through the server and sends datagrams both ways.
async fn crosses(sshd: &Sshd, road: &SshRoad, there: &mut Side) {
    let stream = match dial_road(road).await {
        Ok(stream) => stream,
        Err(failure) => panic!("{failure}\n{}", sshd.log()),
    };
    let mut here = Side::new();
    let end = here.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(here.arrival().await, Arrival::Opened { .. }));
    let pump = tokio::spawn(async move { stream.pump(&end).await });
    let incoming = exchange((&mut here, link), there).await;
    here.links.dial(ringmesh_tunnel::Dial::Close { link });
    pump.await.unwrap();
    there.closed(incoming).await;
}

#[tokio::test]
async fn datagrams_cross_an_ordinary_sshd_whichever_way_its_key_is_pinned() {
    let sshd = Sshd::start("");
    let mut there = Side::new();
    let _socket = LinkSocket::bind(&sshd.at("link.sock"), there.hub.clone()).await.unwrap();
    let known = sshd.at("known_hosts");
    let line = format!(
        "other.example ssh-ed25519 AAAA\n[127.0.0.1]:{} {}\n",
        sshd.port,
        sshd.public("host_ed25519")
    );
    fs::write(&known, line.replace("other.example ssh-ed25519 AAAA\n", "")).unwrap();
    let hashed = sshd.at("known_hosts_hashed");
    fs::copy(&known, &hashed).unwrap();
    run("ssh-keygen", &["-H", "-f", hashed.to_str().unwrap()]);
    assert!(fs::read_to_string(&hashed).unwrap().starts_with("|1|"));
    for (host_key, known_hosts) in [
        (Some(sshd.fingerprint("host_ed25519")), None),
        (Some(sshd.public("host_ed25519")), None),
        (Some(sshd.public("host_ecdsa")), None),
        (None, Some(known)),
        (None, Some(hashed)),
    ] {
        crosses(&sshd, &SshRoad { host_key, known_hosts, ..sshd.road() }, &mut there).await;
    }
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_and_both_keys_are_named() {
    let sshd = Sshd::start("");
    keygen(&sshd.at("other"), "ed25519", "");
    let known = sshd.at("known_hosts");
    fs::write(&known, format!("[127.0.0.1]:{} {}\n", sshd.port, sshd.public("other"))).unwrap();
    for (host_key, known_hosts) in [
        (Some(sshd.fingerprint("other")), None),
        (Some(sshd.public("other")), None),
        (None, Some(known.clone())),
    ] {
        let why = refused(&SshRoad { host_key, known_hosts, ..sshd.road() }).await;
        assert!(why.contains("WRONG HOST KEY"), "{why}");
        assert!(why.contains(&sshd.fingerprint("host_ed25519")), "{why}");
        assert!(why.contains(&sshd.fingerprint("other")), "{why}");
    }
    assert!(!sshd.log().contains("Accepted"), "no key of ours was shown to it");

    fs::write(
        &known,
        "gate.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ\n",
    )
    .unwrap();
    let road = SshRoad { host_key: None, known_hosts: Some(known), ..sshd.road() };
    let why = refused(&road).await;
    assert!(why.contains("no line for [127.0.0.1]") && why.contains("ssh-keyscan"), "{why}");
    let road = SshRoad { known_hosts: Some(sshd.at("no-such-file")), ..road };
    let why = refused(&road).await;
    assert!(why.contains("no-such-file: No such file"), "{why}");
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_named_with_the_cure() {
    let sshd = Sshd::start("");
    keygen(&sshd.at("stranger"), "ed25519", "");
    let why = refused(&SshRoad { key: Some(sshd.at("stranger")), ..sshd.road() }).await;
    assert!(why.contains(&sshd.fingerprint("stranger")), "{why}");
    assert!(why.contains(&format!("~{}/.ssh/authorized_keys", sshd.user)), "{why}");
    let why = refused(&SshRoad { user: "no-such-user".to_owned(), ..sshd.road() }).await;
    assert!(why.contains("authorized_keys"), "{why}");
}

#[tokio::test]
async fn key_files_that_cannot_be_used_are_refused_with_the_cure() {
    let sshd = Sshd::start("");
    keygen(&sshd.at("encrypted"), "ed25519", "secret words");
    keygen(&sshd.at("rsa"), "rsa", "");
    keygen(&sshd.at("open"), "ed25519", "");
    mode(&sshd.at("open"), 0o644);
    fs::write(sshd.at("text"), "PRIVATE nonsense 4711").unwrap();
    mode(&sshd.at("text"), 0o600);
    for (file, cure) in [
        ("encrypted", "agent"),
        ("rsa", "ssh-keygen -t ed25519"),
        ("open", "chmod 600"),
        ("text", "ssh-keygen -t ed25519"),
        ("client.pub", "chmod 600"),
        ("no-such-file", "No such file"),
    ] {
        let why = refused(&SshRoad { key: Some(sshd.at(file)), ..sshd.road() }).await;
        assert!(why.contains(cure), "{file}: {why}");
        assert!(why.contains(sshd.at(file).to_str().unwrap()), "{file}: {why}");
        assert!(!why.contains("4711"), "{why}");
    }
}

/// An agent with the keys given.
fn agent(sshd: &Sshd, keys: &[&str]) -> (Running, PathBuf) {
    let socket = sshd.at("agent.sock");
    let mut child = Command::new("ssh-agent")
        .args(["-D", "-a", socket.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh-agent (Debian's package openssh-client)");
    // It tells its socket once it listens.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("SSH_AUTH_SOCK"), "{line}");
    for key in keys {
        let added =
            Command::new("ssh-add").arg("-q").arg(sshd.at(key)).env("SSH_AUTH_SOCK", &socket).status();
        assert!(added.unwrap().success());
    }
    (Running(child), socket)
}

#[tokio::test]
async fn an_agent_lends_its_keys() {
    let sshd = Sshd::start("");
    let mut there = Side::new();
    let _socket = LinkSocket::bind(&sshd.at("link.sock"), there.hub.clone()).await.unwrap();
    keygen(&sshd.at("stranger"), "ed25519", "");
    keygen(&sshd.at("rsa"), "rsa", "");
    {
        // The right one is the second.
        let (_agent, socket) = agent(&sshd, &["stranger", "client"]);
        let road = SshRoad { key: None, agent: Some(socket), ..sshd.road() };
        crosses(&sshd, &road, &mut there).await;
    }
    {
        // What we cannot sign with ourselves, an agent can.
        fs::copy(sshd.at("rsa.pub"), sshd.at("authorized_keys")).unwrap();
        fs::remove_file(sshd.at("agent.sock")).unwrap_or_default();
        let (_agent, socket) = agent(&sshd, &["rsa"]);
        let road = SshRoad { key: None, agent: Some(socket), ..sshd.road() };
        crosses(&sshd, &road, &mut there).await;
    }
    fs::remove_file(sshd.at("agent.sock")).unwrap_or_default();
    let (_agent, socket) = agent(&sshd, &["stranger"]);
    let why = refused(&SshRoad { key: None, agent: Some(socket), ..sshd.road() }).await;
    assert!(why.contains(&sshd.fingerprint("stranger")), "{why}");
}

#[tokio::test]
async fn an_agent_without_keys_and_one_that_is_not_there_are_named() {
    let sshd = Sshd::start("");
    let (_agent, socket) = agent(&sshd, &[]);
    let why = refused(&SshRoad { key: None, agent: Some(socket), ..sshd.road() }).await;
    assert!(why.contains("ssh-add"), "{why}");
    let gone = sshd.at("gone.sock");
    let why = refused(&SshRoad { key: None, agent: Some(gone.clone()), ..sshd.road() }).await;
    assert!(why.contains(gone.to_str().unwrap()), "{why}");
}

#[tokio::test]
async fn a_server_that_forbids_forwarding_gets_that_named_among_the_causes() {
    for extra in ["AllowStreamLocalForwarding no", "DisableForwarding yes"] {
        let sshd = Sshd::start(extra);
        let mut there = Side::new();
        let _socket = LinkSocket::bind(&sshd.at("link.sock"), there.hub.clone()).await.unwrap();
        let why = refused(&sshd.road()).await;
        assert!(why.contains(extra), "{why}");
        assert!(there.arrival_within(Duration::from_millis(50)).await.is_none());
    }
}

#[tokio::test]
async fn a_socket_on_which_no_node_listens_is_named() {
    let sshd = Sshd::start("");
    let socket = sshd.at("link.sock");
    let why = refused(&sshd.road()).await;
    assert!(why.contains("no node runs there") && why.contains(socket.to_str().unwrap()), "{why}");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let why = refused(&sshd.road()).await;
    assert!(why.contains("no node runs there"), "{why}");
}

#[tokio::test]
async fn a_link_ends_with_the_server() {
    let sshd = Sshd::start("");
    let mut there = Side::new();
    let _socket = LinkSocket::bind(&sshd.at("link.sock"), there.hub.clone()).await.unwrap();
    let stream = dial_road(&sshd.road()).await.unwrap();
    let mut here = Side::new();
    let end = here.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(here.arrival().await, Arrival::Opened { .. }));
    tokio::spawn(async move { stream.pump(&end).await });
    let incoming = exchange((&mut here, link), &mut there).await;
    // The process that serves a connection is the child of one that watches it, or that one itself.
    let listener = sshd._sshd.0.id().to_string();
    let watching = name(&run("pgrep", &["-P", &listener]).stdout);
    let _ = Command::new("pkill").args(["-KILL", "-P", &watching]).status().unwrap();
    let _ = Command::new("pkill").args(["-KILL", "-P", &listener]).status().unwrap();
    here.closed(link).await;
    there.closed(incoming).await;
}
