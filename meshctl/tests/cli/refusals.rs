//! Bad input: each kind is answered with cause, cure and its exit code, and leaves nothing half done.

use std::{
    fs,
    net::{IpAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
};

use ringmesh_lab::{Privilege, in_sandbox, privilege};
use ringmesh_tunnel::{
    enroll::{JoinToken, TokenSecret},
    key::{IdentitySecret, NetworkId},
};

use crate::{
    impostor::Impostor,
    support::{MESHCTL, Machine, Ran, Site, foreign_root, foreign_token, run_with, shows},
};

/// Joins with `arguments`, which must fail so, and leave the machine as it was: no process, no file, no device.
#[track_caller]
fn refused(machine: &Machine, arguments: &[&str], code: i32, words: &[&str]) {
    leaves_nothing(machine, code, words, || machine.run(&[&["join"], arguments].concat()));
}

#[track_caller]
fn leaves_nothing(machine: &Machine, code: i32, words: &[&str], join: impl FnOnce() -> Ran) {
    let before = (machine.traces(), machine.host.links().unwrap());
    let message = join().failed(code);
    for word in words {
        assert!(message.contains(word), "`{word}` is missing in: {message}");
    }
    assert!(message.contains("\ncause: "), "{message}");
    assert_eq!(machine.processes().len(), 0, "the daemon was stopped again");
    assert_eq!((machine.traces(), machine.host.links().unwrap()), before, "after: {message}");
}

fn members(coordinator: &Machine) -> usize {
    coordinator.members().len()
}

#[test]
fn a_token_is_refused_once_used_expired_or_revoked_and_if_it_never_was() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let token = coordinator.token();
        site.machine("first").run(&["join", "--token", &token]).ok();
        let machine = site.machine("second");
        refused(&machine, &["--token", &token], 7, &["used", "meshctl token create"]);

        let revoked = coordinator.json("token-created", &["token", "create"]);
        coordinator.run(&["token", "revoke", revoked["token"]["id"].as_str().unwrap()]).ok();
        refused(&machine, &["--token", revoked["secret"].as_str().unwrap()], 7, &["revoked"]);

        let short = coordinator.run(&["token", "create", "--ttl", "1s"]).ok();
        while !coordinator.run(&["token", "list"]).ok().contains("expired") {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        refused(&machine, &["--token", short.trim()], 7, &["expired"]);

        // The right network and a token id that exists, with a secret made up.
        let good: JoinToken = coordinator.token().parse().unwrap();
        let forged =
            JoinToken::new(good.root(), good.token(), TokenSecret::generate(), good.coordinators().to_vec());
        let forged = forged.unwrap().reveal();
        refused(&machine, &["--token", &forged], 7, &["cannot join the network", "meshctl token create"]);
        assert_eq!(members(&coordinator), 1);
    });
}

#[test]
fn a_token_that_leads_to_a_coordinator_of_another_network_is_refused() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let machine = site.machine("node");
        let token = foreign_token(&format!("{}:443", coordinator.host.ipv4()));
        let words = [
            "cannot join the network",
            "there is no such network here",
            "try: this coordinator serves another network",
            "meshctl token create",
        ];
        refused(&machine, &["--token", &token], 7, &words);
        assert_eq!(members(&coordinator), 0);
    });
}

#[test]
fn a_coordinator_of_another_root_that_claims_the_tokens_network_is_not_trusted() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("node");
        let listener = machine.host.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
        let token = foreign_token(&format!("{}:443", machine.host.ipv4()));
        let network = NetworkId::of_root(&token.parse::<JoinToken>().unwrap().root());
        let impostor = Impostor::start(listener, network, IdentitySecret::generate());
        let words = [
            "cannot join the network",
            "it could not prove that it belongs to the network",
            "the coordinator serves a network with another root key",
            "try: check that the addresses in the token lead to your coordinator",
        ];
        refused(&machine, &["--token", &token], 7, &words);
        assert!(impostor.challenges() > 0, "it was asked, and its answer compared with the pin");
        assert_eq!(impostor.believed(), 0, "nothing more was told to it");

        // The root was all that was wrong.
        let other = site.machine("other");
        let listener = other.host.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
        let token = foreign_token(&format!("{}:443", other.host.ipv4()));
        let genuine = Impostor::start(listener, network, foreign_root());
        refused(&other, &["--token", &token], 7, &["it was believed"]);
        assert_eq!(genuine.believed(), 1);
    });
}

#[test]
fn a_coordinator_that_does_not_answer_is_unreachable() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("node");
        let token = foreign_token(&format!("{}:443", machine.host.ipv4()));
        refused(&machine, &["--token", &token], 6, &["443"]);
    });
}

#[test]
fn a_server_that_is_no_coordinator_is_refused() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("node");
        let listener = machine.host.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
        // Hangs up on everybody.
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let token = foreign_token(&format!("{}:443", machine.host.ipv4()));
        refused(&machine, &["--token", &token], 6, &["443"]);
    });
}

#[test]
fn a_name_that_is_taken_or_is_none_is_refused() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        site.machine("web").join(&coordinator);
        let machine = site.machine("other");
        let token = coordinator.token();
        refused(&machine, &["--token", &token, "--name", "web"], 9, &["web", "--name"]);
        refused(&machine, &["--token", &token, "--name", "not a name"], 2, &["name"]);
        // The token was not spent on that.
        machine.run(&["join", "--token", &token, "--name", "web2"]).ok();
    });
}

#[test]
fn a_second_join_is_a_conflict_and_the_first_stays() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let node = site.machine("node");
        node.join(&coordinator);
        let message = node.run(&["join", "--token", &coordinator.token()]).failed(9);
        assert!(message.contains("meshctl leave"), "{message}");
        node.run(&["status"]).ok();
    });
}

#[test]
fn a_taken_udp_port_is_a_conflict_if_it_was_asked_for() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let machine = site.machine("node");
        let _taken = machine.host.enter(|| UdpSocket::bind("0.0.0.0:51820").unwrap()).unwrap();
        let token = coordinator.token();
        refused(&machine, &["--token", &token, "--listen-port", "51820"], 9, &["51820"]);
        // Not asked for, the next one is taken.
        let joined = machine.run(&["join", "--token", &token]).ok();
        assert!(joined.contains("udp port 51821"), "{joined}");
    });
}

#[test]
fn a_pool_that_collides_with_a_route_is_a_conflict() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let machine = site.machine("node");
        machine.host.add_address("eth0", "100.64.9.1".parse::<IpAddr>().unwrap(), 24).unwrap();
        let token = coordinator.token();
        let message = machine.run(&["join", "--token", &token]).failed(9);
        assert!(message.contains("100.64.9.1/24 of eth0") && message.contains("100.64.0.0/10"), "{message}");
        // The pool is told by the coordinator with the membership, so the key that it is for is kept, and a note of the join:
        // with them the same token can be used again.
        assert_eq!(machine.processes().len(), 0);
        assert_eq!(machine.host.links().unwrap(), ["eth0"]);
        let kept = ["/var/lib/mesh", "/var/lib/mesh/identity", "/var/lib/mesh/join.json"].map(Path::new);
        assert_eq!(machine.traces(), kept);
        machine.host.remove_address("eth0", "100.64.9.1".parse::<IpAddr>().unwrap()).unwrap();
        machine.run(&["join", "--token", &token]).ok();
        assert!(!machine.traces().contains(&kept[2].to_owned()), "the join is done");
        assert_eq!(members(&coordinator), 1, "nothing half done was left at the coordinator");
    });
}

#[test]
fn an_unsupported_identity_key_is_named_with_the_cure() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let machine = site.machine("node");
        let token = coordinator.token();
        let file = |name: &str| format!("{}/tests/cli/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
        for (name, word) in
            [("rsa", "RSA"), ("ecdsa", "ECDSA"), ("locked", "passphrase"), ("ed25519.pub", "public half")]
        {
            refused(&machine, &["--token", &token, "--identity", &file(name)], 2, &[word, "ssh-keygen"]);
        }
        machine.run(&["join", "--token", &token, "--identity", &file("ed25519")]).ok();
        let status = machine.json("status", &["status"]);
        // As `ssh-keygen -l` tells it.
        assert_eq!(
            status["network"]["self"]["identity_fingerprint"],
            "SHA256:JQJVLizSiALf32JtMAmeKhdyZ+ysnD4dGIRUWJirwDw"
        );
    });
}

#[test]
fn want_of_rights_for_the_device_names_the_line_that_has_them() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let machine = site.machine("node");
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let copy = folder.path().join("meshctl");
        fs::copy(MESHCTL, &copy).unwrap();
        let token = coordinator.token();
        let (state, socket) = (folder.path().join("state"), folder.path().join("meshd.sock"));
        leaves_nothing(
            &machine,
            5,
            &["error: cannot join the network", "sudo setcap cap_net_admin+ep"],
            || {
                let mut join = machine.host.command("setpriv").unwrap();
                if privilege() == Some(Privilege::Root) {
                    join.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
                }
                // In a user namespace there is no other user to be, but root can do without its capabilities.
                join.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(&copy);
                join.args(["join", "--token", &token, "--state-dir"])
                    .arg(&state)
                    .arg("--socket")
                    .arg(&socket);
                let ran = run_with(join, b"");
                assert!(!shows(ran.stderr.as_bytes(), &token), "{ran:?}");
                ran
            },
        );
        assert!(!state.exists() && !socket.exists());
        // Refused before the token was spent.
        machine.run(&["join", "--token", &token]).ok();
    });
}

#[test]
fn a_clock_far_off_is_named() {
    in_sandbox(|| {
        // The clock belongs to the whole machine, so it is turned for one process: a library that is loaded before libc.
        const TURNED: &str = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
            int clock_gettime(clockid_t id, struct timespec *t) {\n\
            long e = syscall(SYS_clock_gettime, id, t);\n\
            if (!e && id == CLOCK_REALTIME) t->tv_sec += TURN;\n return e; }\n";
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("turned.c");
        fs::write(&source, TURNED).unwrap();
        let site = Site::new();
        let coordinator = site.coordinator();
        let machine = site.machine("node");
        let token = coordinator.token();
        for (turn, name) in
            [("-DTURN=-315360000L", "ten years slow"), ("-DTURN=315360000L", "ten years fast")]
        {
            let library = folder.path().join(format!("{}.so", turn.len()));
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", turn, "-o"]).arg(&library).arg(&source);
            assert!(cc.status().unwrap().success());
            leaves_nothing(&machine, 7, &["clock", "timedatectl"], || {
                let mut join = machine.meshctl(&["join", "--token", &token]);
                join.env("LD_PRELOAD", &library);
                let ran = run_with(join, b"");
                assert!(!ran.stderr.contains("LD_PRELOAD"), "{name}: {ran:?}");
                ran
            });
        }
        assert_eq!(members(&coordinator), 0);
        machine.run(&["join", "--token", &token]).ok();
    });
}

#[test]
fn a_corrupt_state_file_is_named_and_left_alone() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let node = site.machine("node");
        node.join(&coordinator);
        node.run(&["node", "down"]).ok();
        for file in ["network.json", "identity"] {
            let path = format!("/var/lib/mesh/{file}");
            let good = node.read(&path).unwrap();
            node.write(&path, b"{ \"half a fi");
            let message = node.run(&["node", "up"]).failed(1);
            assert!(message.contains("meshd did not start") && message.contains(&path), "{message}");
            assert!(message.contains("mv "), "the cure is named: {message}");
            assert_eq!(node.read(&path).unwrap(), "{ \"half a fi");
            assert_eq!(node.processes().len(), 0);
            node.write(&path, good.as_bytes());
        }
        node.run(&["node", "up"]).ok();
        node.run(&["status"]).ok();
    });
}

#[test]
fn ping_of_an_unknown_node_is_a_usage_error() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let node = site.machine("node");
        node.join(&coordinator);
        let message = node.run(&["ping", "nobody"]).failed(2);
        assert!(message.contains("nobody") && message.contains("meshctl peers"), "{message}");
    });
}

#[test]
fn an_interrupted_join_stops_the_daemon_that_it_started() {
    in_sandbox(|| {
        let site = Site::new();
        let machine = site.machine("node");
        // Takes connections and says nothing: the join hangs in the middle.
        let listener = machine.host.enter(|| TcpListener::bind("[::]:443").unwrap()).unwrap();
        let token = foreign_token(&format!("{}:443", machine.host.ipv4()));
        let before = machine.traces();
        let mut join = machine.meshctl(&["join", "--token", "-"]);
        let join = join.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut join = join.stderr(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut join.stdin.take().unwrap(), token.as_bytes()).unwrap();
        let (_connection, _) = listener.accept().unwrap();
        let id = rustix::process::Pid::from_child(&join);
        rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
        let output = join.wait_with_output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("interrupted"), "{message}");
        assert_eq!(machine.processes().len(), 0);
        assert_eq!(machine.traces(), before);
    });
}
