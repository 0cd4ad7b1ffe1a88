//! Where systemd runs the machine and knows the unit, the daemons are its business.

use std::{fs, os::unix::fs::PermissionsExt as _};

use ringmesh_lab::in_sandbox;

use crate::support::{MESHCTL, Machine, Site, foreign_token, run_with};

/// Stands in for systemd: keeps a diary of how it was called, runs the daemon detached, and stops it.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$* token=$MESH_TOKEN" >> /run/systemctl.diary
case "$*" in
    *"start meshd.service") setsid MESHCTL node run </dev/null >/run/journal 2>&1 & echo $! > /run/meshd.pid ;;
    *"stop meshd.service") kill "$(cat /run/meshd.pid)"; while kill -0 "$(cat /run/meshd.pid)" 2>/dev/null; do sleep 0.05; done ;;
    *"is-active meshd.service") kill -0 "$(cat /run/meshd.pid)" ;;
    *) exit 1 ;;
esac
"#;

/// A machine that systemd runs, with the unit installed.
fn machine(site: &Site, folder: &std::path::Path) -> Machine {
    let machine = site.machine("node");
    machine.write("/run/systemd/system/meshd.service", b"[Service]\nExecStart=meshd\n");
    let systemctl = folder.join("systemctl");
    fs::write(&systemctl, SYSTEMCTL.replace("MESHCTL", MESHCTL)).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    machine
}

#[test]
fn an_installed_unit_is_started_stopped_and_told_no_token() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let folder = tempfile::tempdir().unwrap();
        let machine = machine(&site, folder.path());
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
        let run = |arguments: &[&str]| {
            let mut command = machine.meshctl(arguments);
            command.env("PATH", &path);
            run_with(command, b"")
        };
        let diary = || machine.read("/run/systemctl.diary").unwrap_or_default();

        let hint = run(&["status"]).failed(3);
        assert!(hint.contains("try: sudo systemctl start meshd.service"), "{hint}");

        // A join that fails stops the unit again.
        let message =
            run(&["join", "--token", &foreign_token(&format!("{}:1", machine.host.ipv4()))]).failed(6);
        assert!(
            message.contains("meshd started by systemd; its log: journalctl -u meshd.service"),
            "{message}"
        );
        assert_eq!(
            diary(),
            "--no-ask-password start meshd.service token=\n--no-ask-password stop meshd.service token=\n"
        );
        run(&["status"]).failed(3);

        let mut join = machine.meshctl(&["join"]);
        join.env("PATH", &path).env("MESH_TOKEN", coordinator.token());
        run_with(join, b"").ok();
        assert!(diary().ends_with("start meshd.service token=\n"), "{}", diary());
        assert!(machine.read("/var/lib/mesh/meshd.log").is_none(), "it has no log of its own");

        // Its process alone is not stopped: systemd would start it again.
        run(&["node", "down"]).ok();
        assert!(diary().ends_with("--no-ask-password stop meshd.service token=\n"), "{}", diary());
        run(&["node", "up"]).ok();
        assert!(diary().ends_with("start meshd.service token=\n"), "{}", diary());
        run(&["status"]).ok();
    });
}

#[test]
fn what_the_unit_does_not_know_runs_beside_it() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let folder = tempfile::tempdir().unwrap();
        let machine = machine(&site, folder.path());
        let mut join = machine.meshctl(&["join", "--io", "poll", "--token", &coordinator.token()]);
        join.env("PATH", format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap()));
        run_with(join, b"").ok();
        assert_eq!(machine.read("/run/systemctl.diary"), None);
        assert_eq!(machine.json("status", &["status"])["data_plane"]["back_end"], "poll");
    });
}
