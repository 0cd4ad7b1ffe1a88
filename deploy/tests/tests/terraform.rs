//! What `deploy/terraform` ships, with Terraform itself: the checks of `deploy/terraform/tests/run`, and what its user-data is made of,
//! with the programs that will read it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use ringmesh_deploy_tests::first_boot;
use ringmesh_lab::{Host, Lab, debian::Boot, in_sandbox};
use serde_json::{Value, json};
use tempfile::TempDir;

fn terraform_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../terraform")
}

/// Runs checks of `tests/run`, and answers what it wrote.
fn checks(names: &[&str]) -> String {
    let output = Command::new(terraform_folder().join("tests/run")).args(names).output();
    let output = output.expect("python3 is there");
    let text = text_of(&output);
    assert!(output.status.success(), "{names:?}: {text}");
    text
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

#[test]
fn terraform_files_are_formatted_and_their_tables_current() {
    checks(&["fmt", "tables"]);
}

#[test]
fn terraform_finds_modules_and_examples_valid() {
    let told = checks(&["validate"]);
    for folder in ["modules/mesh", "modules/digitalocean", "examples/minimal", "examples/digitalocean"] {
        assert!(told.contains(&format!("valid: {folder}")), "{folder}: {told}");
    }
}

#[test]
fn terraform_tests_of_modules_and_examples_pass() {
    let told = checks(&["test"]);
    for folder in ["modules/mesh", "modules/digitalocean", "examples/relay-regions"] {
        assert!(told.contains(&format!("runs passed: {folder}")), "{folder}: {told}");
    }
}

#[test]
fn terraform_names_every_misspelt_argument() {
    let told = checks(&["misspelt"]);
    assert!(told.contains("misspelt arguments were named"), "{told}");
}

#[test]
fn terraform_refuses_bad_values_that_one_module_hands_to_another() {
    let told = checks(&["refused"]);
    assert!(told.contains("values handed on were refused"), "{told}");
}

#[test]
fn terraform_shows_no_token() {
    let told = checks(&["hidden"]);
    for module in ["mesh", "digitalocean"] {
        assert!(told.contains(&format!("no token is shown: modules/{module}")), "{told}");
    }
}

/// The user-data of each role, unpacked as cloud-init would: a folder with a folder for each.
fn rendered() -> TempDir {
    let folder = TempDir::new().unwrap();
    checks(&["render", folder.path().to_str().unwrap()]);
    folder
}

#[test]
fn terraform_writes_files_that_the_daemons_take() {
    let rendered = rendered();
    let config = |role: &str| rendered.path().join(role).join("config.toml");

    let coordinator = ringmesh_controlplane::config::Config::load(&config("coordinator")).unwrap();
    let advertised: Vec<_> = coordinator.advertise.iter().map(|endpoint| endpoint.with_port(1)).collect();
    assert_eq!(advertised, ["mesh.example.org:443", "[2001:db8::1]:443"]);
    assert!(coordinator.relay.enabled);

    let node = ringmesh_node::Config::load(&config("node")).unwrap();
    assert_eq!(node.listen_port, Some(51820));
    assert_eq!(node.endpoints, ["203.0.113.9:51820".parse().unwrap()]);
    assert!(node.relay.is_none());

    let relay = ringmesh_node::Config::load_relay(Some(&config("relay"))).unwrap();
    assert_eq!(relay.relay.unwrap().websocket_listen, Some("[::]:443".parse().unwrap()));
}

#[test]
fn terraform_keeps_tokens_from_everybody_but_root() {
    let rendered = rendered();
    for role in ["node", "relay"] {
        let commands = fs::read_to_string(rendered.path().join(role).join("commands")).unwrap();
        let (first, rest) = commands.split_once('\n').unwrap();
        assert_eq!(
            first, "install -d -m 0700 -o root -g root /var/lib/ringmesh-setup",
            "before any file is written"
        );
        assert!(!rest.contains("mesh1_"), "{rest}");
        for file in fs::read_dir(rendered.path().join(role)).unwrap().map(Result::unwrap) {
            let holds_it = fs::read_to_string(file.path()).unwrap().contains("mesh1_");
            assert_eq!(holds_it, file.file_name() == "join-token", "{:?}", file.path());
        }
        let mode = fs::metadata(rendered.path().join(role).join("join-token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert!(!rendered.path().join("coordinator/join-token").exists());
}

#[test]
fn terraform_is_understood_by_cloud_init() {
    in_sandbox(|| {
        let rendered = rendered();
        fs::write(rendered.path().join("broken.yaml"), "#cloud-config\nruncmd: setup\n").unwrap();
        let lab = Lab::new().unwrap();
        let debian = Boot::new().unwrap().bind(rendered.path(), "/rendered");
        let debian = debian.on(&lab.host("reader").unwrap()).unwrap();
        let judged = |document: &str| {
            let output =
                debian.run(&format!("cloud-init schema --config-file /rendered/{document}.yaml")).unwrap();
            (output.status.success(), text_of(&output))
        };
        for role in ["coordinator", "node", "relay"] {
            let (fine, said) = judged(role);
            assert!(fine && said.contains("Valid"), "{role}: {said}");
        }
        let (fine, said) = judged("broken");
        assert!(!fine && said.contains("runcmd"), "it finds nothing wrong: {said}");
        debian.shut_down().unwrap();
    });
}

#[test]
fn terraform_runs_a_script_that_shellcheck_finds_nothing_in() {
    let setup = terraform_folder().join("modules/mesh/files/setup");
    let output = Command::new("shellcheck").arg(setup).output().expect("shellcheck is there");
    assert!(output.status.success(), "{}", text_of(&output));
}

/// A release whose program says that it is `version`, and leaves a mark in `/usr/local` when it runs.
fn release(folder: &Path, version: &str) -> (PathBuf, String) {
    let place = folder.join("ringmesh-0.1.0-x86_64-linux/bin");
    fs::create_dir_all(&place).unwrap();
    fs::write(
        place.join("meshctl"),
        format!("#!/bin/sh\necho ran >>/usr/local/ran\necho 'meshctl {version}'\n"),
    )
    .unwrap();
    fs::set_permissions(place.join("meshctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let tarball = folder.join("release.tar.gz");
    run(Command::new("tar")
        .arg("-czf")
        .arg(&tarball)
        .arg("-C")
        .arg(folder)
        .arg("ringmesh-0.1.0-x86_64-linux"));
    let sum = run(Command::new("sha256sum").arg(&tarball));
    (tarball, sum.split(' ').next().unwrap().to_owned())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the first boot's script on a host whose `/usr/local` is empty and its own, up to where it would touch anything else; answers
/// its exit status, what it wrote, and what is in `/usr/local` then.
fn boot(host: &Host, role: &Path, tarball: &Path, sha256: &str) -> (Option<i32>, String, String) {
    let settings = fs::read_to_string(role.join("settings")).unwrap();
    let told = |key: &str, value: &str| {
        let old = settings.lines().find(|line| line.starts_with(&format!("{key}="))).unwrap();
        (old.to_owned(), format!("{key}='{value}'"))
    };
    let replaced = [
        told("URL", &format!("file://{}", tarball.display())),
        told("SHA256", sha256),
        told("INSECURE_URL", "true"),
        // Where it must have stopped if all was well.
        told("FIREWALL", "none"),
    ];
    let settings = replaced.iter().fold(settings.clone(), |text, (old, new)| text.replace(old, new));
    fs::write(role.join("settings"), settings).unwrap();
    // Twice: what is wrong is wrong again, and what is done is found done.
    let script = "mount -t tmpfs none /usr/local && { \"$0\"; \"$0\"; status=$?; find /usr/local -type f >&2; exit $status; }";
    let setup = role.join("setup");
    let output = host.command("sh").unwrap().args(["-c", script]).arg(&setup).output().unwrap();
    let (mut said, mut found) = (String::new(), String::new());
    for line in text_of(&output).lines() {
        let into = if line.starts_with("/usr/local/") { &mut found } else { &mut said };
        into.push_str(line);
        into.push('\n');
    }
    (output.status.code(), said, found)
}

#[test]
fn terraform_boots_nothing_of_a_release_with_another_checksum() {
    in_sandbox(|| {
        let (rendered, folder) = (rendered(), TempDir::new().unwrap());
        let lab = Lab::new().unwrap();
        let (tarball, _) = release(folder.path(), "0.1.0");
        let role = rendered.path().join("node");
        let (status, said, found) = boot(&lab.host("web").unwrap(), &role, &tarball, &"0".repeat(64));
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("has another SHA-256"), "{said}");
        assert_eq!(found, "", "nothing was unpacked, let alone run: {said}");
        assert!(!role.join("join-token").exists(), "the token stays on no machine that could not join");
    });
}

#[test]
fn terraform_boots_no_other_version_than_was_asked_for() {
    in_sandbox(|| {
        let (rendered, folder) = (rendered(), TempDir::new().unwrap());
        let lab = Lab::new().unwrap();
        let (tarball, sha256) = release(folder.path(), "0.2.0");
        let role = rendered.path().join("node");
        let (status, said, found) = boot(&lab.host("web").unwrap(), &role, &tarball, &sha256);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("the release is \"meshctl 0.2.0\", not version 0.1.0"), "{said}");
        assert_eq!(found, "/usr/local/ran\n", "asked for its version, and not installed: {said}");
    });
}

#[test]
fn terraform_boots_the_release_that_was_asked_for() {
    in_sandbox(|| {
        let (rendered, folder) = (rendered(), TempDir::new().unwrap());
        let lab = Lab::new().unwrap();
        let (tarball, sha256) = release(folder.path(), "0.1.0");
        let role = rendered.path().join("relay");
        let (status, said, found) = boot(&lab.host("web").unwrap(), &role, &tarball, &sha256);
        assert!(found.contains("/usr/local/bin/meshctl\n"), "{said}");
        assert!(said.contains("no firewall is called none"), "it went on after that: {said}");
        assert!(
            said.contains("version 0.1.0 is installed already"),
            "the second time nothing is fetched: {said}"
        );
        assert_eq!(status, Some(1), "{said}");
    });
}

#[test]
fn terraform_closes_the_ports_that_nobody_named() {
    in_sandbox(|| {
        let rendered = rendered();
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (coordinator, stranger) = (switch.host("coordinator").unwrap(), switch.host("stranger").unwrap());
        let rules = rendered.path().join("coordinator/ports.nft");
        let listeners = [443, 9465, 22, 8080].map(|port| {
            coordinator.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).unwrap()
        });
        let reaches = |address: Ipv4Addr, port: u16| {
            let address = SocketAddr::from((address, port));
            stranger
                .enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok())
                .unwrap()
        };
        let open = || [443, 9465, 22, 8080].map(|port| reaches(coordinator.ipv4(), port));
        assert_eq!(open(), [true; 4], "before there are rules");
        // Twice, since a service may be started again.
        for _ in 0..2 {
            run(coordinator.command("nft").unwrap().arg("-f").arg(&rules));
        }
        assert_eq!(
            open(),
            [true, false, false, false],
            "a stranger gets to where nodes connect, and nowhere else"
        );
        run(stranger.command("ping").unwrap().args(["-c1", "-W5", &coordinator.ipv4().to_string()]));
        run(stranger.command("ping").unwrap().args(["-c1", "-W5", &coordinator.ipv6().to_string()]));
        // From where operators and Prometheus come.
        for (host, address) in [(&coordinator, "192.0.2.1"), (&stranger, "192.0.2.7")] {
            host.add_address(host.interfaces()[0].name(), address.parse().unwrap(), 24).unwrap();
        }
        let open = [443, 9465, 22, 8080].map(|port| reaches(Ipv4Addr::new(192, 0, 2, 1), port));
        assert_eq!(open, [true, true, true, false], "an operator gets to what was opened for operators");
        drop(listeners);
    });
}

#[test]
fn terraform_rendered_user_data_brings_up_a_relay_that_runs_alone() {
    in_sandbox(|| {
        let folder = TempDir::new().unwrap();
        let tarball = first_boot::tarball_of_this_build(folder.path());
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let [mirror, head, fra] = ["mirror", "head", "fra"].map(|name| switch.host(name).unwrap());
        let url = tarball.serve(&mirror).unwrap();
        let seeds = [(); 2].map(|()| TempDir::new().unwrap());
        let machine = |role: &str, name: &str| {
            json!({
                "role": role, "name": name, "release_version": tarball.version, "release_url": url,
                "release_sha256": tarball.sha256, "allow_insecure_release_url": true, "install_packages": false,
                "ssh_sources": [], "wait_seconds": 60,
            })
        };
        let boot = |host: &Host, arguments: &Value, seed: &TempDir| {
            let rendered = first_boot::render(arguments);
            first_boot::boot(host, rendered["user_data"].as_str().unwrap(), seed, "").unwrap()
        };

        let mut arguments = machine("coordinator", "head");
        arguments["addresses"] = json!([head.ipv4().to_string()]);
        arguments["relay_enabled"] = json!(false);
        let coordinator = boot(&head, &arguments, &seeds[0]);
        let token = coordinator.sh("meshctl token create --relay").unwrap().trim().to_owned();

        let mut arguments = machine("relay", "fra");
        arguments["join_token"] = token.clone().into();
        arguments["metrics_sources"] = json!([format!("{}/32", head.ipv4())]);
        let relay = boot(&fra, &arguments, &seeds[1]);
        let unit = "systemctl is-active mesh-relay.service && systemctl is-enabled mesh-relay.service";
        assert_eq!(relay.sh(unit).unwrap(), "active\nenabled\n");
        let nodes: Value =
            serde_json::from_str(&coordinator.sh("meshctl nodes list -o json").unwrap()).unwrap();
        assert_eq!(nodes["nodes"][0]["name"], "fra", "{nodes:#}");
        assert_eq!(nodes["nodes"][0]["online"], true, "{nodes:#}");
        assert!(!relay.path("/var/lib/ringmesh-setup/join-token").exists(), "the token went");
        assert!(!relay.sh("journalctl --no-pager; cat /var/log/cloud-init*.log").unwrap().contains(&token));

        // What a later boot of the same machine does, and what somebody does who wants to be sure.
        let process = || relay.sh("systemctl show --property=MainPID --value mesh-relay.service").unwrap();
        let first = process();
        relay
            .sh("cloud-init init && cloud-init modules --mode=config && cloud-init modules --mode=final")
            .unwrap();
        assert!(!relay.path("/var/lib/ringmesh-setup/join-token").exists(), "the token is not written again");
        let said = relay.sh("/var/lib/ringmesh-setup/setup 2>&1").unwrap();
        assert!(said.contains("is installed already") && said.contains("has joined before"), "{said}");
        assert_eq!(process(), first, "the relay goes on");

        // What was opened for Prometheus is open for it, and for nobody else.
        let scrape = format!("curl -fsS --max-time 3 http://{}:9466/metrics", fra.ipv4());
        assert!(coordinator.sh(&scrape).unwrap().contains("ringmesh_build_info"));
        let stranger_is_kept_out = || {
            let scraped = mirror.command("sh").unwrap().args(["-c", &scrape]).output().unwrap();
            assert_eq!(scraped.status.code(), Some(28), "curl ran into its time: {}", text_of(&scraped));
        };
        stranger_is_kept_out();
        // Rules of the distribution's own service begin with the end of all others.
        for verb in ["start", "reload", "restart"] {
            relay.sh(&format!("systemctl {verb} nftables.service")).unwrap();
            stranger_is_kept_out();
        }
        relay.sh("nft flush ruleset").unwrap();
        run(mirror.command("sh").unwrap().args(["-c", &scrape]));
        for debian in [coordinator, relay] {
            debian.shut_down().unwrap();
        }
    });
}
