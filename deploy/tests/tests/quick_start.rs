//! The README's quick start, as written there, from the release tarball, on three Debians with systemd.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and shows what was typed"
)]

use std::net::IpAddr;

use ringmesh_deploy_tests::{readme, tarball::Tarball};
use ringmesh_lab::{
    Host, Lab, Switch,
    debian::{Boot, Debian},
    in_sandbox,
};
use serde_json::Value;

const HEADING: &str = "## Three hosts, three commands";
/// What the README writes instead of a token, which nobody can know before.
const PLACEHOLDER: &str = "mesh1_...";
/// Where people type: the home of somebody who may use sudo.
const HOME: &str = "/home/reader";

/// A machine, and somebody at it.
struct Desk {
    name: &'static str,
    _host: Host,
    debian: Debian,
}

impl Desk {
    fn boot(switch: &Switch, name: &'static str, tarball: &Tarball) -> Self {
        let host = switch.host(name).unwrap();
        let debian = Boot::new()
            .unwrap()
            .systemd()
            .bind(&tarball.path, format!("{HOME}/{}", tarball.name))
            .bind(tarball.sums(), format!("{HOME}/SHA256SUMS"))
            .prepare(
                "chroot . useradd --shell /bin/bash reader
                 echo 'reader ALL=(ALL) NOPASSWD: ALL' > etc/sudoers.d/reader",
            )
            .on(&host)
            .unwrap();
        Self { name, _host: host, debian }
    }

    /// Types a line of the README as an ordinary user; answers what it printed. It must succeed.
    #[track_caller]
    fn types(&self, line: &str) -> String {
        let quoted = line.replace('\'', r"'\''");
        let typed = self.debian.sh(&format!(
            "setpriv --reuid reader --regid reader --init-groups \
            env HOME={HOME} bash -c 'cd && {quoted}'"
        ));
        let said = typed.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        println!("{}$ {}\n{}", self.name, censor(line), censor(&said));
        said
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.types("sudo meshctl status -o json")).unwrap()
    }

    fn pings(&self, to: IpAddr) -> bool {
        self.debian.works(&format!("ping -n -c 3 -i 0.2 -W 5 {to}"))
    }
}

/// A token is a secret, also in the output of a test.
fn censor(text: &str) -> String {
    let tokens = text.split_whitespace().filter(|word| word.starts_with("mesh1_"));
    tokens.fold(text.to_owned(), |text, token| text.replace(token, PLACEHOLDER))
}

/// Both addresses of `peer` in what `meshctl status` says.
fn addresses(status: &Value, peer: &str) -> [IpAddr; 2] {
    let peers = status["peers"].as_array().unwrap();
    let found =
        peers.iter().find(|found| found["name"] == peer).unwrap_or_else(|| panic!("{peer}: {status:#}"));
    ["ipv4", "ipv6"].map(|family| found[family].as_str().unwrap().parse().unwrap())
}

#[test]
fn the_readmes_quick_start_works_as_written_from_the_tarball() {
    in_sandbox(|| {
        let tarball = Tarball::find();
        let blocks = readme::blocks("README.md", HEADING);
        let [install, up, join, on_node, on_coordinator, policy, apply, remove] = blocks.as_slice() else {
            panic!("the README's section has other blocks now: {blocks:#?}")
        };
        let shell = [install, up, join, on_node, on_coordinator, apply, remove];
        assert!(shell.iter().all(|block| block.language == "sh") && policy.language == "toml", "{blocks:#?}");

        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let [first, web, lab_node] = ["first", "web", "lab"].map(|name| Desk::boot(&switch, name, &tarball));
        for desk in [&first, &web, &lab_node] {
            desk.debian.booted().unwrap();
            assert!(!desk.debian.works("command -v meshctl"));
            install.lines.iter().for_each(|line| drop(desk.types(line)));
        }

        // "It prints the line to run on the second host; token create makes the token for each further one."
        let printed: String = up.lines.iter().map(|line| first.types(line)).collect();
        let token =
            |text: &str| text.split_whitespace().find(|word| word.starts_with("mesh1_")).unwrap().to_owned();
        let tokens = [token(&printed), token(&first.types("sudo meshctl token create"))];
        for (desk, token) in [&web, &lab_node].into_iter().zip(tokens) {
            let lines = join.lines.iter().map(|line| line.replace(PLACEHOLDER, &token));
            let said: String = lines.map(|line| desk.types(&line)).collect();
            assert!(!said.contains(&token), "a token is shown once");
        }

        let said: Vec<String> = on_node.lines.iter().map(|line| web.types(line)).collect();
        assert!(said.iter().all(|said| said.contains("lab")), "each tells of the other node");
        let (of_web, of_lab) = (web.status(), lab_node.status());
        for (desk, status, peer) in [(&web, &of_web, "lab"), (&lab_node, &of_lab, "web")] {
            assert_eq!(status["state"], "running");
            for address in addresses(status, peer) {
                assert!(desk.pings(address), "{}: {address}", desk.name);
            }
        }
        let ipv4 =
            |status: &Value| status["network"]["self"]["ipv4"].as_str().unwrap().parse::<IpAddr>().unwrap();
        assert_eq!(addresses(&of_web, "lab")[0], ipv4(&of_lab), "both tell the same");
        assert_eq!(addresses(&of_lab, "web")[0], ipv4(&of_web), "both tell the same");
        for (desk, unit) in [(&first, "mesh-coordinator"), (&web, "meshd"), (&lab_node, "meshd")] {
            assert_eq!(
                desk.types(&format!("systemctl is-enabled {unit}")),
                "enabled\n",
                "also after the next start"
            );
        }
        let listed: String = on_coordinator.lines.iter().map(|line| first.types(line)).collect();
        assert!(listed.contains("web") && listed.contains("lab"), "{listed}");

        // "Nothing else passes from a few milliseconds after the last of these lines on."
        first.debian.write(&format!("{HOME}/policy.toml"), policy.lines.join("\n"), 0o644).unwrap();
        apply.lines.iter().for_each(|line| drop(first.types(line)));
        for address in addresses(&of_web, "lab") {
            assert!(!web.pings(address), "{address} is in no rule");
        }

        remove.lines.iter().for_each(|line| drop(first.types(line)));
        assert!(!first.types("sudo meshctl nodes list").contains("lab"));
        let peers = web.status()["peers"].as_array().unwrap().len();
        assert_eq!(peers, 0, "the one that was removed is nobody's peer");

        for desk in [first, web, lab_node] {
            desk.debian.shut_down().unwrap();
        }
        assert_eq!(lab.close().unwrap(), 0, "no process is left");
    });
}
