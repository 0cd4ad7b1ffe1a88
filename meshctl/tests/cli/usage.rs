//! What can be wrong before any daemon is asked.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    process::Command,
};

use crate::support::{MESHCTL, foreign_token, meshctl, run_with, shows};

/// As a user without rights; whoever runs the tests is one already, or root.
fn as_nobody(mut command: Command) -> Command {
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
}

#[test]
fn unknown_commands_and_flags_are_usage_errors() {
    for (arguments, word) in [
        (&["jion"][..], "jion"),
        (&["ping"], "<NODE>"),
        (&["status", "--sockte", "x"], "--socket"),
        (&["ping", "web1", "-c", "0"], "0"),
        (&["token", "create", "--ttl", "1w"], "24h"),
        (&["join", "--io", "epoll"], "uring"),
        (&["coordinator", "run", "--listen", "443"], "443"),
        (&["status", "-o", "xml"], "json"),
    ] {
        let message = meshctl(arguments).failed(2);
        assert!(message.contains(word), "{arguments:?}: {message}");
        assert!(message.contains("\ntry: "), "{arguments:?}: {message}");
    }
}

#[test]
fn nothing_asked_is_answered_with_help_as_an_error() {
    let ran = meshctl(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("Usage: meshctl") && ran.stderr.contains("coordinator up"), "{ran:?}");
    let ran = meshctl(&["token"]);
    assert!(ran.code == 2 && ran.stderr.contains("revoke"), "{ran:?}");
}

#[test]
fn help_is_a_result_and_shows_no_token() {
    for command in
        [&[][..], &["join"], &["coordinator", "up"], &["node", "run"], &["token", "create"], &["demo"]]
    {
        let token = foreign_token("192.0.2.1:443");
        let mut help = Command::new(MESHCTL);
        help.args(command).arg("--help").env("MESH_TOKEN", &token);
        let help = run_with(help, b"").ok();
        assert!(help.contains("Usage: meshctl"), "{help}");
        assert!(!shows(help.as_bytes(), &token), "{help}");
    }
    // The variable is named, its value is not shown.
    let mut help = Command::new(MESHCTL);
    help.args(["join", "--help"]).env("MESH_TOKEN", "mesh1_secret");
    let help = run_with(help, b"").ok();
    assert!(help.contains("[env: MESH_TOKEN]"), "{help}");
}

#[test]
fn a_token_that_cannot_be_read_is_told_apart_by_what_is_wrong() {
    let token = foreign_token("192.0.2.1:443");
    let truncated = &token[..token.len() - 7];
    let mistyped =
        format!("{}{}{}", &token[..20], if &token[20..21] == "A" { "B" } else { "A" }, &token[21..]);
    for (text, word) in [
        (truncated, "truncated"),
        (&mistyped, "mistyped"),
        ("mesh1_", "truncated"),
        ("tskey-auth-abc", "not a join token"),
        ("", "no join token"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let mut join = Command::new(MESHCTL);
        join.args(["join", "--token", "-", "--state-dir"]).arg(&state);
        join.arg("--socket").arg(folder.path().join("run/meshd.sock"));
        let message = run_with(join, text.as_bytes()).failed(2);
        assert!(message.contains(word), "{word}: {message}");
        assert!(text.len() < 40 || !shows(message.as_bytes(), text), "{message}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was started, nothing is left");
    }
}

#[test]
fn a_token_file_that_is_not_there_is_named() {
    let message = meshctl(&["join", "--token", "file:/nonexistent/token"]).failed(2);
    assert!(message.contains("/nonexistent/token") && message.contains("No such file"), "{message}");
}

#[test]
fn an_identity_file_that_is_not_there_is_named() {
    let token = foreign_token("192.0.2.1:443");
    let message = meshctl(&["join", "--token", &token, "--identity", "/nonexistent/key"]).failed(2);
    assert!(message.contains("/nonexistent/key"), "{message}");
}

#[test]
fn a_token_in_the_wrong_place_is_not_repeated() {
    let token = foreign_token("192.0.2.1:443");
    for arguments in
        [&["join", &token][..], &["token", "revoke", &token], &["join", "--name", "a", "--ttl", &token]]
    {
        let message = meshctl(arguments).failed(2);
        assert!(!shows(message.as_bytes(), &token), "{message}");
    }
}

#[test]
fn a_daemon_that_is_not_running_is_said_to_be_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock").display().to_string();
    for arguments in [
        &["status"][..],
        &["ping", "web1"],
        &["why", "web1"],
        &["peers"],
        &["leave"],
        &["node", "down"],
        &["filter", "list"],
        &["filter", "add", "--all"],
        &["filter", "remove", "1"],
        &["dns", "status"],
        &["dns", "query", "web1"],
    ] {
        let message = meshctl(&[arguments, &["--socket", &socket]].concat()).failed(3);
        assert!(message.contains("error: meshd is not running"), "{message}");
        assert!(message.contains(&socket) && message.contains("\ntry: "), "{message}");
    }
    for arguments in [
        &["nodes", "list"][..],
        &["token", "list"],
        &["network", "list"],
        &["relay", "clients"],
        &["policy", "show"],
        &["policy", "history"],
        &["policy", "rollback"],
        &["events"],
        &["events", "--follow"],
        &["coordinator", "down"],
    ] {
        let message = meshctl(&[arguments, &["--socket", &socket]].concat()).failed(3);
        assert!(message.contains("error: mesh-coordinator is not running"), "{message}");
    }
    // A socket that a dead daemon left.
    drop(UnixListener::bind(&socket).unwrap());
    let message = meshctl(&["status", "--socket", &socket]).failed(3);
    assert!(message.contains("nobody listens"), "{message}");
}

#[test]
fn something_else_at_the_socket_is_told_from_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("other.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // Ends the connection at once, as a server of another protocol does.
    let other = std::thread::spawn(move || drop(listener.accept()));
    let message = meshctl(&["status", "--socket", socket.to_str().unwrap()]).failed(3);
    assert!(message.contains("error: "), "{message}");
    other.join().unwrap();
}

#[test]
fn want_of_rights_on_the_socket_names_the_line_that_has_them() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = folder.path().join("meshd.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    // The built executable may lie where only root can go.
    let copy = folder.path().join("meshctl");
    fs::copy(MESHCTL, &copy).unwrap();
    let mut status = Command::new(&copy);
    status.args(["status", "--socket"]).arg(&socket);
    let message = run_with(as_nobody(status), b"").failed(5);
    let line = format!("\ntry: sudo {} status --socket {}\n", copy.display(), socket.display());
    assert!(message.contains(&line), "{message}");
}

#[test]
fn a_state_directory_out_of_reach_names_the_line_that_reaches_it() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("meshctl");
    fs::copy(MESHCTL, &copy).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let token = foreign_token("192.0.2.1:443");
    let mut join = Command::new(&copy);
    join.args(["join", "--token", &token, "--state-dir"]).arg(folder.path().join("state"));
    join.arg("--socket").arg(folder.path().join("meshd.sock"));
    let message = run_with(as_nobody(join), b"").failed(5);
    assert!(message.contains("\ntry: sudo ") && message.contains("--token mesh1_..."), "{message}");
    assert!(!shows(message.as_bytes(), &token), "{message}");
}

#[test]
fn an_unknown_key_in_a_configuration_file_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mesh.toml");
    for (daemon, text) in
        [("node", "mtu = 1400\nlisten_prot = 1\n"), ("coordinator", "lisen = \"[::]:443\"\n")]
    {
        fs::write(&file, text).unwrap();
        let message = meshctl(&[daemon, "run", "--check", "--config", file.to_str().unwrap()]).failed(2);
        assert!(message.contains("lis") && message.contains(file.to_str().unwrap()), "{message}");
        assert!(message.contains("line"), "{message}");
    }
    fs::write(&file, "mtu = 1400\n").unwrap();
    meshctl(&["node", "run", "--check", "--config", file.to_str().unwrap()]).ok();
}

#[test]
fn a_value_out_of_range_is_a_usage_error() {
    let message = meshctl(&["node", "run", "--check", "--mtu", "100"]).failed(2);
    assert!(message.contains("1280"), "{message}");
    for (flag, value, word) in [
        ("--crypto", "avx512", "auto, portable"),
        ("--offloads", "tso,lro", "write all, none, or"),
        ("--tun-queue", "15", "must be 16 to 100000 packets"),
        ("--tun-queue", "100001", "must be 16 to 100000 packets"),
        ("--tun-queue", "long", "--tun-queue"),
        ("--spin-us", "1001", "must be 0 to 1000 microseconds"),
    ] {
        let message = meshctl(&["node", "run", "--check", flag, value]).failed(2);
        assert!(message.contains(word), "{flag}: {message}");
    }
    let good = ["--crypto", "portable", "--offloads", "tso,udp-gso", "--tun-queue", "500", "--spin-us", "50"];
    meshctl(&[&["node", "run", "--check"][..], &good].concat()).ok();
    let message = meshctl(&["node", "run", "--check", "--ssh-port", "0"]).failed(2);
    assert!(message.contains("no SSH endpoint"), "{message}");
    for (flag, value, word) in [
        ("--ipv4-pool", "127.0.0.0/8", "reserved"),
        ("--relay-websocket", "http://mesh.example.org/relay/v1", "wss://"),
        ("--relay-base-path", "base", "write /base"),
        ("--relay-listen", "443", "--relay-listen"),
        ("--relay-endpoint", "http://x", "is not an address"),
        ("--trusted-proxy", "10.1.2.3/8", "10.0.0.0/8"),
        ("--relay-client-rate", "fast", "--relay-client-rate"),
    ] {
        let message = meshctl(&["coordinator", "run", "--check", flag, value]).failed(2);
        assert!(message.contains(word), "{flag}: {message}");
    }
}

const ROAD: &str = "[[ssh]]\npeer = \"gate\"\nhost = \"gate.example\"\nuser = \"mesh\"\nkey = \"/k\"\nknown_hosts = \"/h\"\n";

#[test]
fn a_relay_is_refused_what_only_a_node_can_have() {
    let check = |arguments: &[&str]| meshctl(&[&["relay", "run", "--check"], arguments].concat());
    check(&["--websocket-listen", "[::]:8443", "--trusted-proxy", "192.0.2.0/24"]).ok();
    let help = meshctl(&["relay", "run", "--help"]).ok();
    for (flag, value) in [
        ("--interface", "mesh1"),
        ("--mtu", "1400"),
        ("--io", "poll"),
        ("--crypto", "portable"),
        ("--offloads", "none"),
        ("--tun-queue", "500"),
        ("--spin-us", "50"),
        ("--cpu", "0"),
        ("--ssh-port", "22"),
        ("--link-socket", "/run/link.sock"),
    ] {
        let message = check(&[flag, value]).failed(2);
        assert!(message.contains(&format!("unexpected argument '{flag}'")), "{message}");
        assert!(!help.contains(&format!("{flag} ")), "{help}");
    }
    assert!(help.contains("--listen-port ") && help.contains("--relay-total-rate "), "{help}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    for text in ["ssh_port = 22\n", ROAD] {
        fs::write(&file, text).unwrap();
        let message = check(&["--config", file.to_str().unwrap()]).failed(2);
        assert!(message.contains("neither ssh_port"), "{message}");
    }
    let message = check(&["--relay-websocket", "ws://a/relay/v1"]).failed(2);
    assert!(message.contains("wss://"), "{message}");
}

#[test]
fn a_relay_that_has_not_joined_needs_a_token_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let run = |arguments: &[&str]| {
        let mut relay = Command::new(MESHCTL);
        relay.args(["relay", "run", "--state-dir"]).arg(&state);
        relay.arg("--socket").arg(folder.path().join("meshd.sock")).args(arguments);
        run_with(relay, b"").failed(2)
    };
    assert!(run(&[]).contains("no join token"));
    assert!(run(&["--token", "-"]).contains("no join token"));
    assert!(run(&["--token", "mesh1_AAAA"]).contains("cannot be read"));
    assert!(run(&["--token", "file:/nonexistent/token"]).contains("/nonexistent/token"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_demo_of_what_cannot_be_is_refused_with_the_reason() {
    for (transport, nat, word) in [
        ("direct", "symmetric", "another one for each peer"),
        ("ssh", "masquerade", "SSH endpoint"),
        ("ssh", "symmetric", "SSH endpoint"),
    ] {
        let message = meshctl(&["demo", "--transport", transport, "--nat", nat]).failed(2);
        assert!(message.contains(word) && message.contains(nat), "{message}");
        assert!(message.contains("\ntry: --"), "{message}");
    }
    for (flag, value) in [("--transport", "carrier-pigeon"), ("--nat", "double")] {
        let message = meshctl(&["demo", flag, value]).failed(2);
        assert!(message.contains(value), "{message}");
    }
}

#[test]
fn a_daemon_refuses_a_token_in_its_environment() {
    for daemon in ["node", "coordinator"] {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Command::new(MESHCTL);
        run.args([daemon, "run", "--state-dir"]).arg(folder.path().join("state"));
        run.env("MESH_TOKEN", foreign_token("192.0.2.1:443"));
        let message = run_with(run, b"").failed(2);
        assert!(message.contains("MESH_TOKEN"), "{message}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_log_filter_that_makes_no_sense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let message =
        meshctl(&["node", "run", "--log", "a=b=c", "--state-dir", state.to_str().unwrap()]).failed(2);
    assert!(message.contains("a=b=c"), "{message}");
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = meshctl(&["completion", shell]).ok();
        for word in [
            "coordinator",
            "policy",
            "rollback",
            "events",
            "filter",
            "trace",
            "dns",
            "cleanup",
            "detailed-exitcode",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn the_version_is_told_without_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock").display().to_string();
    let ran = meshctl(&["version", "-o", "json", "--socket", &socket]);
    let version = ran.json("version");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["daemon"], serde_json::Value::Null);
    assert!(meshctl(&["--version"]).ok().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn flags_can_be_given_as_environment_variables() {
    let mut status = Command::new("env");
    status.args(["MESH_SOCKET=/nonexistent/x.sock", MESHCTL, "status"]);
    let message = run_with(status, b"").failed(3);
    assert!(message.contains("/nonexistent/x.sock"), "{message}");

    for (value, code) in [("1", 0), ("yes", 0), ("true", 0), ("maybe", 2)] {
        let mut check = Command::new(MESHCTL);
        check.args(["node", "run"]).env("MESH_CHECK", value);
        assert_eq!(run_with(check, b"").code, code, "MESH_CHECK={value}");
    }
}

#[test]
fn an_empty_variable_counts_as_none() {
    let mut check = Command::new(MESHCTL);
    check.args(["node", "run", "--check"]);
    for name in ["MESH_IO", "MESH_LISTEN_PORT", "MESH_ENDPOINTS", "MESH_CONFIG", "MESH_LOG", "MESH_TOKEN"] {
        check.env(name, "");
    }
    run_with(check, b"").ok();
}
