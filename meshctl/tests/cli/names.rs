//! Mesh names, as their user meets them.

use std::{
    net::{SocketAddr, ToSocketAddrs as _},
    time::{Duration, Instant},
};

use ringmesh_lab::in_sandbox;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Machine, Site, mesh, run_with};

impl Machine {
    /// What programs on this machine find.
    fn resolves(&self, name: &str) -> Vec<String> {
        let found = self.host.enter(|| (name, 0).to_socket_addrs().map(Vec::from_iter).unwrap_or_default());
        found.unwrap().into_iter().map(|address: SocketAddr| address.ip().to_string()).collect()
    }

    fn mesh_ipv4(&self) -> String {
        let status = self.json("status", &["status"]);
        status["network"]["self"]["ipv4"].as_str().unwrap().to_owned()
    }
}

#[test]
fn names_and_aliases_are_answered_and_unknown_ones_are_told_apart() {
    in_sandbox(|| {
        let (_site, coordinator, alice, web) = mesh(&["--dns", "hosts"]);
        let status = alice.json("dns-status", &["dns", "status"]);
        assert_eq!((&status["mode"], &status["zone"]), (&"hosts".into(), &"mesh".into()), "{status:#}");
        let text = alice.run(&["dns", "status"]).ok();
        assert!(text.starts_with("zone ") && text.contains("\nmode         hosts ("), "{text}");

        let address = web.mesh_ipv4();
        let answer = alice.json("dns-query", &["dns", "query", "web.mesh", "a"]);
        assert_eq!((&answer["code"], &answer["source"]), (&"NOERROR".into(), &"zone".into()), "{answer:#}");
        assert_eq!(answer["records"][0]["data"], address.as_str());
        let both = alice.run(&["dns", "query", "web.mesh"]).ok();
        assert!(both.contains(&address) && both.contains("AAAA"), "{both}");
        let none = alice.run(&["dns", "query", "nobody.mesh"]).ok();
        assert!(none.starts_with("NXDOMAIN: there is no such name"), "{none}");
        let no_text = alice.run(&["dns", "query", "web.mesh", "TXT"]).ok();
        assert!(no_text.starts_with("NOERROR: the name exists, and has no such record"), "{no_text}");
        for arguments in [&["a b.mesh", "A"][..], &["web.mesh", "NONSENSE"]] {
            alice.run(&[&["dns", "query"], arguments].concat()).failed(2);
        }

        let policy =
            b"[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\n\n[names]\ngit = \"web\"\nprinter = [\"10.1.0.9\"]\n";
        run_with(coordinator.meshctl(&["policy", "apply", "-"]), policy).ok();
        let alias = alice.json("dns-query", &["dns", "query", "git.mesh", "A"]);
        let found =
            alias["records"].as_array().unwrap().iter().any(|record| record["data"] == address.as_str());
        assert!(found, "{alias:#}");
        let printer = alice.run(&["dns", "query", "printer.mesh"]).ok();
        assert!(printer.contains("10.1.0.9"), "{printer}");
    });
}

#[test]
fn what_a_killed_daemon_left_is_taken_back_by_cleanup() {
    in_sandbox(|| {
        let site = Site::new();
        let coordinator = site.coordinator();
        let alice = site.machine("alice");
        let before = alice.read("/etc/hosts").unwrap();
        assert_eq!(alice.run(&["cleanup"]).ok(), "nothing was left on this machine\n");
        alice.run(&["join", "--token", &coordinator.token(), "--dns", "hosts"]).ok();
        let (joined, address) = (Instant::now(), alice.mesh_ipv4());
        while !alice.resolves("alice.mesh").contains(&address) {
            assert!(joined.elapsed() < Duration::from_secs(1), "no name: {:?}", alice.read("/etc/hosts"));
            std::thread::sleep(Duration::from_millis(10));
        }
        let message = alice.run(&["cleanup"]).failed(9);
        assert!(message.contains("cannot clean up") && message.contains("meshctl node down"), "{message}");
        let [daemon] = &alice.processes()[..] else { panic!("one daemon") };
        kill_process(Pid::from_raw(daemon.id.cast_signed()).unwrap(), Signal::KILL).unwrap();
        while !alice.processes().is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_ne!(alice.read("/etc/hosts").unwrap(), before, "it was killed");
        let cleaned = alice.json("cleanup", &["cleanup"]);
        assert!(cleaned["undone"][0].as_str().unwrap().contains("/etc/hosts"), "{cleaned:#}");
        assert_eq!(alice.read("/etc/hosts").unwrap(), before);
        assert!(alice.resolves("alice.mesh").is_empty());
        assert_eq!(alice.run(&["cleanup"]).ok(), "nothing was left on this machine\n");
    });
}
