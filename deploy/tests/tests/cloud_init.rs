//! Machines that come up by what `deploy/terraform` renders: Debian's cloud-init reads it at the first boot, and nobody types a
//! word on the coordinator.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells how long it took"
)]

use std::{fs, net::IpAddr, process::Command, time::Instant};

use ringmesh_deploy_tests::{first_boot, tarball::Tarball};
use ringmesh_lab::{Host, Lab, debian::Debian, in_sandbox};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Boots a machine that lets the holder of a key in, as clouds do.
fn boot(host: &Host, rendered: &Value, seed: &TempDir, public_key: &str) -> Debian {
    let prepare =
        format!("install -d -m 0700 root/.ssh && echo '{}' > root/.ssh/authorized_keys", public_key.trim());
    let began = Instant::now();
    let user_data = rendered["user_data"].as_str().unwrap();
    let debian = first_boot::boot(host, user_data, seed, &prepare).unwrap();
    println!("{}: first boot took {:?}", host.name(), began.elapsed());
    debian
}

fn status(debian: &Debian) -> Value {
    // It ends with 4 on a machine that is in no network.
    serde_json::from_slice(&debian.run("meshctl status -o json").unwrap().stdout).unwrap()
}

#[test]
fn terraform_rendered_user_data_brings_up_a_coordinator_and_two_join_it() {
    in_sandbox(|| {
        let tarball = Tarball::find();
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let [mirror, operator, head, web, db] =
            ["mirror", "operator", "head", "web", "db"].map(|name| switch.host(name).unwrap());
        let url = tarball.serve(&mirror).unwrap();
        let keys = tempfile::tempdir().unwrap();
        let key = keys.path().join("id_ed25519");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status()
            .unwrap();
        assert!(made.success());
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        let seeds = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let machine = |role: &str, name: &str| {
            json!({
                "role": role, "name": name, "release_version": tarball.version, "release_url": url,
                "release_sha256": tarball.sha256, "allow_insecure_release_url": true, "install_packages": false,
                "ssh_sources": [format!("{}/32", operator.ipv4())], "wait_seconds": 60,
            })
        };

        let mut coordinator = machine("coordinator", "head");
        coordinator["addresses"] = json!([head.ipv4().to_string()]);
        let coordinator = first_boot::render(&coordinator);
        let debian = boot(&head, &coordinator, &seeds[0], &public);
        assert_eq!(debian.sh("systemctl is-active mesh-coordinator.service").unwrap(), "active\n");
        assert_eq!(debian.sh("systemctl is-enabled mesh-coordinator.service").unwrap(), "enabled\n");

        // What the module tells operators to run is run, on a machine that may.
        let home = keys.path();
        let config = format!(
            "-F none -i {} -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={}",
            key.display(),
            home.join("known").display()
        );
        let as_operator = |host: &Host, output: &str| {
            let line = coordinator[output]
                .as_str()
                .unwrap()
                .replace("ssh ", &format!("ssh {config} -o ConnectTimeout=5 "));
            let done = host.command("sh").unwrap().args(["-c", &line]).output().unwrap();
            let (said, errors) =
                (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            (done.status.success(), said.trim().to_owned(), errors.into_owned())
        };
        let (made, token, errors) = as_operator(&operator, "token_command");
        assert!(made && token.starts_with("mesh1_"), "{errors}");
        assert!(!as_operator(&mirror, "token_command").0, "SSH is open to the operator alone");

        // One finds its token in its user-data; at the other somebody runs the line that was printed.
        let mut rendered = machine("node", "web");
        rendered["join_token"] = token.clone().into();
        let web_debian = boot(&web, &first_boot::render(&rendered), &seeds[1], &public);
        let db_debian = boot(&db, &first_boot::render(&machine("node", "db")), &seeds[2], &public);
        assert_eq!(status(&db_debian)["state"], "not-joined");
        let (made, join, errors) = as_operator(&operator, "join_command");
        assert!(made && join.starts_with("sudo meshctl join --token mesh1_"), "{errors}");
        db_debian.sh(&join).unwrap();

        for (debian, peer) in [(&web_debian, "db"), (&db_debian, "web")] {
            let status = status(debian);
            assert_eq!(status["state"], "running");
            let peers = status["peers"].as_array().unwrap();
            let [found] = peers.as_slice() else { panic!("{status:#}") };
            assert_eq!(found["name"], peer);
            for family in ["ipv4", "ipv6"] {
                let address: IpAddr = found[family].as_str().unwrap().parse().unwrap();
                debian.sh(&format!("ping -n -c 3 -i 0.2 -W 5 {address}")).unwrap();
            }
            debian.sh(&format!("meshctl ping {peer}")).unwrap();
            // However a first boot ends, the token goes.
            assert!(!debian.path("/var/lib/ringmesh-setup/join-token").exists());
            let logs = debian.sh("cat /var/log/cloud-init*.log; journalctl --no-pager").unwrap();
            assert!(!logs.contains(&token) && !logs.contains("meshkey1_"), "a secret is in the logs");
        }
        let nodes = debian.sh("meshctl nodes list").unwrap();
        assert!(nodes.contains("web") && nodes.contains("db"), "{nodes}");

        // A port that no rule opens is closed, also with somebody listening.
        debian.sh("systemd-run --unit greeter python3 -m http.server 8080").unwrap();
        let listens = |of: &Debian, address: &str| {
            of.works(&format!("curl -sS -o /dev/null --max-time 3 http://{address}:8080/"))
        };
        while !listens(&debian, "127.0.0.1") {
            assert!(debian.works("systemctl is-active greeter"));
        }
        assert!(!listens(&web_debian, &head.ipv4().to_string()));

        for debian in [debian, web_debian, db_debian] {
            debian.shut_down().unwrap();
        }
        assert_eq!(lab.close().unwrap(), 0, "no process is left");
    });
}
