//! A coordinator asked from another machine, with an API key.

use std::os::unix::fs::PermissionsExt;

use ringmesh_lab::in_sandbox;

use crate::support::{Machine, Site};

/// Where the asking machine keeps what the coordinator's operator gave it.
const KEY: &str = "/run/api.key";
const CA: &str = "/run/ca.pem";

/// A machine that has a key of this role, and the flags by which it asks.
fn asker(site: &Site, coordinator: &Machine, role: &str) -> (Machine, Vec<String>) {
    let machine = site.machine(role);
    let key = coordinator.run(&["key", "create", "--name", role, "--role", role]).ok();
    machine.write(KEY, key.as_bytes());
    machine.write(CA, coordinator.run(&["coordinator", "ca"]).ok().as_bytes());
    let server = coordinator.host.ipv4().to_string();
    let flags = ["--server", &server, "--api-key", &format!("file:{KEY}"), "--ca", CA].map(str::to_owned);
    (machine, flags.to_vec())
}

#[test]
fn an_operator_elsewhere_does_what_the_one_on_the_machine_does() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (machine, flags) = asker(&site, &coordinator, "operator");
        let ask = |words: &[&str]| {
            let all: Vec<&str> = words.iter().copied().chain(flags.iter().map(String::as_str)).collect();
            machine.run(&all)
        };
        let token = ask(&["token", "create"]).ok();
        let node = site.machine("node");
        node.run(&["join", "--token", token.trim()]).ok();
        assert!(ask(&["nodes", "list"]).ok().contains("node"));
        assert!(ask(&["network", "list"]).ok().contains("mesh"));
        ask(&["nodes", "remove", "node"]).ok();
        assert!(!ask(&["nodes", "list"]).ok().contains("node "));
        // By variables, as automation has it.
        let mut command = machine.meshctl(&["network", "list"]);
        command.env("MESH_SERVER", coordinator.host.ipv4().to_string()).env("MESH_CA", CA);
        command.env("MESH_API_KEY", format!("file:{KEY}"));
        crate::support::run_with(command, b"").ok();
    });
}

#[test]
fn a_key_without_a_coordinator_to_ask_changes_nothing_on_this_machine() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let key = coordinator.run(&["key", "create", "--name", "ci", "--role", "operator"]).ok();
        coordinator.write(KEY, key.as_bytes());
        let before = coordinator.json("tokens", &["token", "list"])["tokens"].as_array().unwrap().len();
        for source in [format!("file:{KEY}"), "file:/nonexistent".to_owned(), key.trim().to_owned()] {
            let refused = coordinator.run(&["token", "create", "--api-key", &source]).failed(2);
            assert!(refused.contains("--server") && !refused.contains(key.trim()), "{refused}");
            let mut by_variable = coordinator.meshctl(&["token", "create"]);
            by_variable.env("MESH_API_KEY", &source);
            let refused = crate::support::run_with(by_variable, b"").failed(2);
            assert!(refused.contains("unset MESH_API_KEY"), "{refused}");
        }
        let after = coordinator.json("tokens", &["token", "list"])["tokens"].as_array().unwrap().len();
        assert_eq!(after, before);
    });
}

#[test]
fn a_key_that_others_can_read_is_taken_with_a_warning() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (machine, mut flags) = asker(&site, &coordinator, "read-only");
        let ask = |flags: &[String]| {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            machine.run(&[&["nodes", "list"], flags.as_slice()].concat())
        };
        let warned = ask(&flags);
        assert!(warned.stderr.contains(&format!("chmod o= {KEY}")), "{warned:?}");
        warned.ok();
        let key = machine.read(KEY).unwrap().trim().to_owned();
        machine
            .host
            .enter(|| std::fs::set_permissions(KEY, PermissionsExt::from_mode(0o600)).unwrap())
            .unwrap();
        assert!(!ask(&flags).stderr.contains("warning"));
        flags[3] = key;
        let warned = ask(&flags);
        assert!(warned.stderr.contains("file:PATH") && !warned.stderr.contains(&flags[3]), "{warned:?}");
        warned.ok();
    });
}

#[test]
fn who_may_only_look_elsewhere_is_told_so_and_a_stranger_gets_nothing() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let (machine, flags) = asker(&site, &coordinator, "read-only");
        let ask = |words: &[&str], flags: &[String]| {
            let all: Vec<&str> = words.iter().copied().chain(flags.iter().map(String::as_str)).collect();
            machine.run(&all)
        };
        ask(&["nodes", "list"], &flags).ok();
        let refused = ask(&["token", "create"], &flags).failed(7);
        assert!(!refused.contains("sudo"), "{refused}");
        let mut wrong = flags.clone();
        wrong[3] = "meshkey1_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned();
        ask(&["nodes", "list"], &wrong).failed(7);
        wrong[3] = "rubbish".to_owned();
        ask(&["nodes", "list"], &wrong).failed(2);
        // Without the certificate it is not believed to be the coordinator, so the key is not sent.
        let untrusted = ask(&["nodes", "list"], &flags[..4]).failed(6);
        assert!(untrusted.contains("--ca"), "{untrusted}");
        let mut elsewhere = flags.clone();
        elsewhere[1] = format!("{}:1", coordinator.host.ipv4());
        ask(&["nodes", "list"], &elsewhere).failed(6);
    });
}
