//! What is in the release tarball, and that its executable needs nothing of the machine it runs on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    env, fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use ringmesh_deploy_tests::tarball::Tarball;
use ringmesh_lab::{
    Host, Lab, Switch,
    debian::{Boot, Debian},
    in_sandbox,
};
use tempfile::TempDir;

/// What the coordinator is called by its nodes.
const COORDINATOR: &str = "coordinator.example";

/// The tarball, unpacked as its README says.
fn unpack(tarball: &Tarball) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(&tarball.path).arg("-C").arg(folder.path()).arg("--strip-components=1");
    assert!(tar.status().unwrap().success());
    folder
}

fn holds(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn the_tarball_holds_what_an_operator_needs_and_nothing_of_its_maker() {
    let tarball = Tarball::find();
    let folder = unpack(&tarball);
    let own = folder.path();
    for (file, words) in [
        ("share/bash-completion/completions/meshctl", "complete -F _meshctl"),
        ("share/zsh/site-functions/_meshctl", "#compdef meshctl"),
        ("share/fish/vendor_completions.d/meshctl.fish", "complete -c meshctl"),
        ("share/ringmesh/systemd/meshd.service", "ExecStart=/usr/bin/meshctl"),
        ("share/ringmesh/systemd/mesh-coordinator.service", "ExecStart=/usr/bin/meshctl"),
        ("share/ringmesh/systemd/mesh-relay.service", "ExecStart=/usr/bin/meshctl"),
        ("share/doc/ringmesh/LICENSE", "Apache License"),
        ("share/doc/ringmesh/README.md", tarball.version.as_str()),
        ("share/doc/ringmesh/THIRD-PARTIES.md", "| aws-lc-rs |"),
    ] {
        let text = fs::read_to_string(own.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(words), "{file} has no `{words}`");
    }
    for folder in ["prometheus", "grafana"] {
        assert!(!files(&own.join("share/ringmesh").join(folder)).is_empty(), "{folder}");
    }
    for daemon in ["meshd", "mesh-coordinator", "mesh-relay"] {
        let help = Command::new(own.join("sbin").join(daemon)).arg("--help").output().unwrap();
        assert!(help.status.success());
    }

    // Nothing tells where, when and by whom it was built, and unpacking changes no folder that is there.
    let table = Command::new("tar")
        .args(["-tv", "--numeric-owner", "--full-time", "-zf"])
        .arg(&tarball.path)
        .output();
    let table = String::from_utf8(table.unwrap().stdout).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let times: BTreeSet<_> = lines.iter().map(|line| (line[3], line[4])).collect();
    assert_eq!(times.len(), 1, "one time: the commit's: {table}");
    assert!(lines.iter().all(|line| line[1] == "0/0" && !line[0].starts_with('d')), "{table}");
    let names: Vec<_> = lines.iter().map(|line| line[5]).collect();
    assert!(names.is_sorted(), "{table}");
    let executable = fs::read(own.join("bin/meshctl")).unwrap();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let cargo = env::var_os("CARGO_HOME")
        .map_or_else(|| PathBuf::from(env::var_os("HOME").unwrap()).join(".cargo"), PathBuf::from);
    for place in [&tree, &cargo] {
        assert!(!holds(&executable, place.as_os_str().as_encoded_bytes()), "{} is in it", place.display());
    }
    assert!(holds(&executable, b"/ringmesh/"), "paths of ours are there, by another name");

    for file in files(own) {
        let metadata = fs::symlink_metadata(&file).unwrap();
        let expected = if file.ends_with("bin/meshctl") { 0o755 } else { 0o644 };
        let mode = metadata.permissions().mode() & 0o7777;
        assert!(
            metadata.is_symlink() || mode == expected,
            "{}: {mode:o}, {}",
            file.display(),
            metadata.uid()
        );
    }
}

/// The anchor of a heading, as those who render Markdown make it.
fn anchor(heading: &str) -> String {
    let letters =
        heading.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    letters.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

/// Asserts that `link`, a file and perhaps an anchor, leads somewhere from `folder`.
fn assert_leads_somewhere(folder: &Path, link: &str) {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let page = fs::read_to_string(folder.join(file));
    let page = page.unwrap_or_else(|error| panic!("{link}: {file} is not in the tarball: {error}"));
    let mut headings =
        page.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_matches(['#', ' ']));
    assert!(heading.is_empty() || headings.any(|line| anchor(line) == heading), "{link}: no such heading");
}

#[test]
fn the_tarball_has_every_page_that_alerts_units_and_other_pages_lead_to() {
    let folder = unpack(&Tarball::find());
    let (doc, shared) = (folder.path().join("share/doc/ringmesh"), folder.path().join("share/ringmesh"));
    let rules = fs::read_to_string(shared.join("prometheus/ringmesh.rules.yml")).unwrap();
    let runbooks: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")).collect();
    assert_eq!(runbooks.len(), rules.matches("- alert: ").count(), "each alert has one");
    for runbook in runbooks {
        assert!(runbook.contains('#'), "{runbook} names no heading");
        assert_leads_somewhere(&doc, runbook);
    }
    let mut named = 0;
    for file in files(&shared) {
        let text = fs::read_to_string(&file).unwrap();
        for word in text.split(|letter: char| letter.is_whitespace() || "\"'`(),;".contains(letter)) {
            if word.starts_with("docs/") && word.contains(".md") {
                assert_leads_somewhere(&doc, word.trim_end_matches(['.', ':']));
                named += 1;
            }
        }
    }
    assert!(named > 20, "they are found: {named}");

    let pages = files(&doc.join("docs"));
    assert!(pages.len() > 8, "{pages:?}");
    for page in pages {
        let (text, own) = (fs::read_to_string(&page).unwrap(), page.file_name().unwrap().to_string_lossy());
        for link in text.split("](").skip(1).map(|after| after.split(')').next().unwrap()) {
            if link.starts_with("https://") {
                continue;
            }
            let link = if link.starts_with('#') { format!("{own}{link}") } else { link.to_owned() };
            assert_leads_somewhere(&doc.join("docs"), &link);
        }
    }
}

/// A DNS server that knows the coordinator's address and nothing else.
fn serve_names(on: &Host, coordinator: Ipv4Addr) {
    let socket = on.enter(|| UdpSocket::bind((on.ipv4(), 53))).unwrap().unwrap();
    thread::spawn(move || {
        let mut query = [0; 1500];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            let Some(question) = query.get(12..len) else { continue };
            let end = question.iter().position(|byte| *byte == 0).unwrap() + 5;
            let is_known = question.starts_with(b"\x0bcoordinator\x07example\0\0\x01");
            // Its id and its question, and one record that points to its name.
            let mut answer = query[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, is_known.into(), 0, 0, 0, 0]);
            answer.extend_from_slice(&question[..end]);
            if is_known {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(coordinator.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// A machine with the release's executable, which looks up names as `services` of nsswitch.conf(5) say.
fn boot(switch: &Switch, name: &str, release: &Path, services: &str, prepare: &str) -> Debian {
    let host = switch.host(name).unwrap();
    let debian = Boot::new()
        .unwrap()
        .systemd()
        .bind(release.join("bin/meshctl"), "/usr/local/bin/meshctl")
        .variable("SERVICES", services)
        .prepare("sed -i \"s/^hosts:.*/hosts: $SERVICES/\" etc/nsswitch.conf && grep -qxF \"hosts: $SERVICES\" etc/nsswitch.conf")
        .prepare("touch etc/cloud/cloud-init.disabled; rm -f etc/resolv.conf")
        .prepare(prepare)
        .on(&host)
        .unwrap();
    debian.booted().unwrap();
    debian
}

/// Shared objects in the memory of the processes of that name.
fn loaded(debian: &Debian, process: &str) -> String {
    debian
        .sh(&format!("for pid in $(pgrep -x {process}); do grep -c . /proc/$pid/maps; grep -o '/.*[.]so.*' /proc/$pid/maps; done; true"))
        .unwrap()
}

#[test]
fn the_static_executable_finds_names_and_users_and_loads_nothing_for_it() {
    in_sandbox(|| {
        let release = unpack(&Tarball::find());
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let names = switch.host("names").unwrap();
        let head_address = Ipv4Addr::new(10, 1, 0, 2);
        serve_names(&names, head_address);
        let (server, release) = (names.ipv4(), release.path());

        let by_dns = format!("echo 'nameserver {server}' > etc/resolv.conf");
        let head = boot(&switch, "head", release, "files dns", &by_dns);
        head.sh(&format!("ip -brief address show dev eth0 | grep -q '{head_address}/24'")).unwrap();
        head.sh(&format!("meshctl coordinator up --advertise {COORDINATOR}:443")).unwrap();
        // The services that systemd's libnss-resolve brings on Debian, and what resolved keeps.
        let with_resolve = "mymachines resolve [!UNAVAIL=return] files myhostname dns";
        let by_resolved = format!(
            "ln -s ../run/systemd/resolve/stub-resolv.conf etc/resolv.conf
             install -d etc/systemd/resolved.conf.d
             printf '[Resolve]\\nDNS={server}\\n' > etc/systemd/resolved.conf.d/lab.conf"
        );
        let by_hosts = format!("echo '{head_address} {COORDINATOR}' >> etc/hosts");
        // A machine that only `resolve` could tell: it is told no server otherwise.
        for (name, services, prepare) in [
            ("dns", "files dns", &by_dns),
            ("resolved", with_resolve, &by_resolved),
            ("hosts", "files", &by_hosts),
            ("missing", "resolve nothing files dns", &by_dns),
        ] {
            let node = boot(&switch, name, release, services, prepare);
            let token = head.sh("meshctl token create").unwrap();
            let joined = node.sh(&format!("meshctl join --token {}", token.trim()));
            let joined = joined.unwrap_or_else(|error| panic!("{services}: {error}"));
            assert!(joined.contains(name), "{joined}");
            let told = loaded(&node, "meshctl");
            assert!(told.lines().count() == 1 && told.trim().parse::<u32>().is_ok(), "{services}: {told}");
            assert!(loaded(&node, "systemd").contains("libc.so"), "others do load something");
            // The next one has nobody to ping then.
            node.sh("meshctl leave").unwrap();
            node.shut_down().unwrap();
        }

        // Whoever applies a policy is named in its history.
        head.write("/root/policy.toml", "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\n", 0o644).unwrap();
        head.sh("meshctl policy apply /root/policy.toml").unwrap();
        let history = head.sh("meshctl policy history -o json").unwrap();
        assert!(history.contains("\"applied_by\": \"root\""), "{history}");
        let told = loaded(&head, "meshctl");
        assert!(told.lines().count() == 1 && told.trim().parse::<u32>().is_ok(), "{told}");
    });
}
