//! A token is in no argument or environment of a daemon, and in no log.

use ringmesh_lab::in_sandbox;

use crate::support::{Machine, Site, run_with, shows};

#[track_caller]
fn is_clean(machine: &Machine, log: &str, tokens: &[&str]) {
    let daemons = machine.processes();
    assert_eq!(daemons.len(), 1);
    let log = machine.read(log).unwrap();
    assert!(log.contains("TRACE"), "the log is at its most talkative");
    for token in tokens {
        assert!(!shows(&daemons[0].arguments, token), "argv");
        assert!(!shows(&daemons[0].environment, token), "environ");
        assert!(!shows(log.as_bytes(), token), "the log shows the token");
    }
}

#[test]
fn no_token_is_in_argv_environment_or_trace_log_of_the_daemons() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.machine("coordinator");
        let line = coordinator.run(&["coordinator", "up", "--log", "trace"]).ok();
        let first = line.trim().strip_prefix("meshctl join --token ").unwrap().to_owned();
        let second = coordinator.token();

        let by_flag = site.machine("flag");
        by_flag.run(&["join", "--log", "trace", "--token", &first]).ok();
        is_clean(&by_flag, "/var/lib/mesh/meshd.log", &[&first]);

        let by_variable = site.machine("variable");
        let mut join = by_variable.meshctl(&["join", "--log", "trace"]);
        join.env("MESH_TOKEN", &second);
        run_with(join, b"").ok();
        is_clean(&by_variable, "/var/lib/mesh/meshd.log", &[&second]);

        is_clean(&coordinator, "/var/lib/mesh/coordinator/coordinator.log", &[&first, &second]);
    });
}

#[test]
fn a_canary_would_be_noticed() {
    let token = crate::support::foreign_token("192.0.2.1:443");
    assert!(shows(format!("token={token}").as_bytes(), &token));
    assert!(shows(&token.as_bytes()[30..60], &token), "also a piece of it");
    assert!(!shows(b"mesh1_...", &token));
}
