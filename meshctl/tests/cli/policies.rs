//! Policies as operators handle them: checked, planned, applied, waited for, taken back.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use ringmesh_lab::in_sandbox;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{MESHCTL, Machine, Ran, mesh, meshctl, run_with};

/// Lets everybody ping, and one machine reach another's web server.
const WEB: &str = r#"# who reaches the web server
[[allow]]
from = ["*"]
to = ["*"]
protocol = "icmp"

[[allow]]
from = ["alice"]
to = ["web"]
protocol = "tcp"
ports = [443]

[[test]]
from = "alice"
to = "web"
allow = ["tcp/443", "icmp"]
deny = ["tcp/22"]
"#;

/// A file that no rule makes different from [`WEB`], though its bytes are.
fn reworded() -> String {
    WEB.replace("# who reaches the web server", "# the same, said otherwise")
}

impl Machine {
    /// Runs `meshctl policy` with a file on its standard input.
    fn policy(&self, arguments: &[&str], text: &str) -> Ran {
        run_with(self.meshctl(&[&["policy"], arguments].concat()), text.as_bytes())
    }

    /// Applies a policy, as JSON.
    #[track_caller]
    fn apply(&self, text: &str) -> Value {
        let ran = self.policy(&["apply", "-", "-o", "json"], text);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.json("policy-applied")
    }

    fn signal(&self, signal: Signal) {
        let [daemon] = &self.processes()[..] else { panic!("one daemon") };
        kill_process(Pid::from_raw(daemon.id.cast_signed()).unwrap(), signal).unwrap();
    }
}

/// The names in a list of an installation.
fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|node| node["name"].as_str().or(node.as_str()).unwrap()).collect()
}

#[test]
fn what_is_wrong_with_a_policy_is_told_by_line_and_column() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        let rule = "[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\n";
        for (text, place, word) in [
            ("[[allow]\nfrom = [\"*\"]\n", "1:", ""),
            (&format!("{rule}form = [\"*\"]\n"), "4:1", "form"),
            ("[[allow]]\nfrom = [\"group:amdins\"]\nto = [\"*\"]\n", "2:9", "amdins"),
            ("[[allow]]\nfrom = [\"tag:wbe\"]\nto = [\"*\"]\n", "2:9", "wbe"),
            ("[[allow]]\nfrom = [\"host:db\"]\nto = [\"*\"]\n", "2:9", "db"),
            ("[[allow]]\nfrom = [\"nobody\"]\nto = [\"web\"]\n", "2:9", "nobody"),
            ("[[allow]]\nfrom = [\"alice\", \"*\"]\nto = [\"10.0.0.0/33\"]\n", "3:7", "10.0.0.0/33"),
            (&format!("{rule}protocol = \"tcp\"\nports = [70000]\n"), "5:10", "70000"),
            (&format!("{rule}protocol = \"tcp\"\nports = [\"443-80\"]\n"), "5:10", "443-80"),
            (&format!("{rule}protocol = \"icmp\"\nports = [80]\n"), "5:", "port"),
            (&format!("{rule}protocol = \"tpc\"\n"), "4:12", "tpc"),
            (&format!("{rule}\n[names]\ngit = \"web\"\ngit = \"alice\"\n"), "7:", "git"),
            (&format!("{rule}\n[names]\n\"git_1\" = \"web\"\n"), "6:1", "git_1"),
            (&format!("{rule}\n[names]\n\"git\\u001b\" = \"web\"\n"), "6:1", "git"),
            (&format!("{rule}\n[names]\n\"-git\" = \"web\"\n"), "6:1", "-git"),
            (&format!("{rule}\n[names]\nweb = \"alice\"\n"), "6:1", "web"),
            (
                &format!("{rule}\n[[test]]\nfrom = \"alice\"\nto = \"web\"\ndeny = [\"tcp/22\"]\n"),
                "8:",
                "tcp/22",
            ),
        ] {
            let ran = coordinator.policy(&["check", "-"], text);
            assert_eq!(ran.code, 2, "{text}\n{ran:?}");
            let told = format!("standard input:{place}");
            let line = ran.stdout.lines().find(|line| line.starts_with(&told));
            let line = line.unwrap_or_else(|| panic!("{told}: {text}\n{ran:?}"));
            assert!(line.contains(": error: ") && line.contains(word), "{text}\n{line}");
            assert!(ran.stderr.starts_with("error: standard input cannot be applied: "), "{ran:?}");
            assert!(!ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'), "{ran:?}");
            // Nobody can put it in force either, and it says the same.
            let refused = coordinator.policy(&["apply", "-", "--yes"], text).failed(2);
            assert!(refused.contains(line) && refused.contains("the policy in force stays"), "{refused}");
            let plan = coordinator.policy(&["plan", "-", "-o", "json"], text);
            assert_eq!(plan.code, 2, "{plan:?}");
            assert_eq!(plan.json("policy-plan")["problems"][0]["severity"], "error");
        }
        let history = coordinator.json("policies", &["policy", "history"]);
        let in_force =
            history["policies"].as_array().unwrap().iter().filter(|policy| policy["in_force"] == true);
        assert!(in_force.count() <= 1);
        assert_eq!(coordinator.json("policy", &["policy", "show"])["text"], "", "nothing was applied");
    });
}

#[test]
fn all_errors_are_told_at_once_with_the_line_and_a_caret() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        let text =
            "[[allow]]\nfrom = [\"group:a\", \"nobody\"]\nto = [\"web\"]\nprotocol = \"tcp\"\nports = [0]\n";
        coordinator.write("/run/policy.toml", text.as_bytes());
        let ran = coordinator.run(&["policy", "check", "/run/policy.toml"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        let expected = " 2 | from = [\"group:a\", \"nobody\"]\n   |                    ^\n";
        assert!(ran.stdout.contains(expected), "{}", ran.stdout);
        assert!(
            ran.stdout.contains("/run/policy.toml:2:9: error: ") && ran.stdout.contains(":5:10: error: "),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("3 errors"), "{ran:?}");
        let checked = coordinator.run(&["policy", "check", "/run/policy.toml", "-o", "json"]);
        assert_eq!(checked.json("policy-checked")["problems"].as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_rule_that_can_never_match_or_adds_nothing_is_a_warning() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        let never = "[[allow]]\nfrom = [\"10.0.0.0/8\"]\nto = [\"fd00::/8\"]\n";
        let nothing = format!("{WEB}\n[[allow]]\nfrom = [\"alice\"]\nto = [\"web\"]\nprotocol = \"icmp\"\n");
        for text in [never, &nothing] {
            let ran = coordinator.policy(&["check", "-"], text);
            assert_eq!(ran.code, 0, "{ran:?}");
            assert!(ran.stdout.contains(": warning: ") && ran.stdout.contains(": ok: 1 warning"), "{ran:?}");
        }
        let ran = coordinator.policy(&["apply", "-", "-o", "json"], &nothing);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stderr.contains(": warning: "), "{ran:?}");
        assert_eq!(ran.json("policy-applied")["warnings"][0]["severity"], "warning");
    });
}

#[test]
fn what_is_no_policy_file_is_refused_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("latin1.toml"), b"# f\xfcr alle\n").unwrap();
    fs::write(path("large.toml"), vec![b'#'; 256 * 1024 + 1]).unwrap();
    fs::write(path("good.toml"), WEB).unwrap();
    fs::write(path("empty.toml"), "\n").unwrap();
    let missing = path("missing.toml");
    for arguments in [&["check", "--offline"][..], &["check"]] {
        let run = |name: &str| meshctl(&[&["policy"], arguments, &[&path(name)]].concat());
        let message = run("missing.toml").failed(2);
        assert!(message.contains(&missing) && message.contains("No such file"), "{message}");
        let message = run("empty.toml").failed(2);
        assert!(
            message.contains("empty.toml is empty") && message.contains("nobody reach anybody"),
            "{message}"
        );
        let message = run("large.toml").failed(2);
        assert!(message.contains("256 KiB"), "{message}");
        let message = meshctl(&[&["policy"], arguments, &["/"]].concat()).failed(2);
        assert!(message.contains("cannot read the policy file"), "{message}");
        let latin1 = run("latin1.toml");
        assert_eq!(latin1.code, 2, "{latin1:?}");
        assert!(latin1.stdout.contains("latin1.toml:1:4: error: this is not UTF-8"), "{latin1:?}");
    }
    let good = meshctl(&["policy", "check", "--offline", &path("good.toml"), "-o", "json"]);
    let checked = good.json("policy-checked");
    assert_eq!((good.code, &checked["ok"], &checked["members_checked"]), (0, &true.into(), &false.into()));
    let good = meshctl(&["policy", "check", "--offline", &path("good.toml")]).ok();
    assert!(
        good.contains(": ok: no problem") && good.contains("names of members were not checked"),
        "{good}"
    );
    // What the file alone shows is found offline too.
    let bad = WEB.replace("443]", "65536]");
    fs::write(path("bad.toml"), bad).unwrap();
    let bad = meshctl(&["policy", "check", "--offline", &path("bad.toml")]);
    assert!(bad.code == 2 && bad.stdout.contains("bad.toml:11:10: error: "), "{bad:?}");
    let socket = path("none.sock");
    let message = meshctl(&["policy", "check", &path("good.toml"), "--socket", &socket]).failed(3);
    assert!(message.contains("--offline"), "{message}");
    for arguments in [&["plan"][..], &["apply"]] {
        let message = meshctl(&[&["policy"], arguments, &[&missing, "--socket", &socket]].concat()).failed(2);
        assert!(message.contains("No such file"), "{message}");
    }
    for (arguments, word) in [
        (&["show", "r0"][..], "r0"),
        (&["rollback", "policy.toml"], "policy.toml"),
        (&["apply", "x", "--wait", "soon"], "soon"),
        (&["apply", "x", "--wait", "2h"], "2h"),
        (&["apply", "x", "--base", "-1"], "-1"),
        (&["plan", "x", "--most", "0"], "0"),
    ] {
        let message = meshctl(&[&["policy"], arguments].concat()).failed(2);
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_plan_shows_what_becomes_allowed_and_what_stops_and_changes_nothing() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        let plan = coordinator.policy(&["plan", "-"], WEB).ok();
        // All members reach each other until a policy says otherwise.
        assert!(plan.contains("- web -> alice "), "{plan}");
        assert!(!plan.contains("+ "), "{plan}");
        assert!(plan.contains("0 become allowed") && plan.contains("2 rules, 1 test passed"), "{plan}");
        let applied = coordinator.apply(WEB);
        assert!(applied["stopped_total"].as_u64().unwrap() > 0, "{applied:#}");

        let wider = WEB.replace("ports = [443]", "ports = [443, \"8000-8010\"]");
        let json = coordinator.policy(&["plan", "-", "-o", "json"], &wider);
        let planned = json.json("policy-plan");
        assert_eq!(
            (&planned["allowed_total"], &planned["stopped_total"]),
            (&1.into(), &0.into()),
            "{planned:#}"
        );
        assert_eq!(planned["base_revision"], applied["revision"]);
        let change = &planned["allowed"][0];
        assert_eq!((&change["source"], &change["destination"]), (&"alice".into(), &"web".into()));
        assert_eq!((&change["protocol"], &change["ports"]), (&"tcp".into(), &"8000-8010".into()));
        let text = coordinator.policy(&["plan", "-"], &wider).ok();
        assert!(text.starts_with("+ alice -> web tcp/8000-8010\n1 becomes allowed, 0 stop; "), "{text}");

        // As a condition in a script.
        assert_eq!(coordinator.policy(&["plan", "-", "--detailed-exitcode"], &wider).code, 10);
        let same = coordinator.policy(&["plan", "-", "--detailed-exitcode"], &reworded()).ok();
        assert!(same.starts_with("no change in who may reach whom"), "{same}");
        assert_eq!(coordinator.policy(&["plan", "-", "--detailed-exitcode"], "nonsense").code, 2);
        let in_force = coordinator.json("policy", &["policy", "show"]);
        assert_eq!(in_force["revision"], applied["revision"], "plans change nothing");
    });
}

#[test]
fn a_policy_is_applied_shown_applied_again_and_taken_back() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        coordinator.write("/run/web.toml", WEB.as_bytes());
        let first =
            coordinator.run(&["policy", "apply", "/run/web.toml", "--comment", "the web server"]).ok();
        let (totals, reach) = first.trim_end().split_once('\n').unwrap();
        assert!(
            totals.starts_with("0 become allowed, ") && totals.ends_with("; 2 rules, 1 test passed"),
            "{first}"
        );
        let revision = reach.split(' ').next().unwrap();
        assert!(reach.starts_with(&format!("{revision} installed on 2 of 2 nodes in ")), "{first}");
        assert!(reach.ends_with(" ms"), "{first}");

        let shown = coordinator.json("policy", &["policy", "show"]);
        assert_eq!((&shown["text"], &shown["comment"]), (&WEB.into(), &"the web server".into()));
        assert_eq!((&shown["in_force"], shown["rules"].as_array().unwrap().len()), (&true.into(), 2));
        let rules = coordinator.run(&["policy", "show"]).ok();
        assert!(
            rules
                .lines()
                .any(|line| line.starts_with("2 ") && line.contains("alice") && line.contains("443")),
            "{rules}"
        );
        assert_eq!(coordinator.run(&["policy", "show", "--text"]).ok(), WEB);

        let again = coordinator.run(&["policy", "apply", "/run/web.toml"]).ok();
        let same = format!(
            "no change: {revision} is in force and means the same\n{revision} installed on 2 of 2 nodes"
        );
        assert!(again.starts_with(&same), "{again}");
        let again = coordinator.apply(&reworded());
        assert_eq!(
            (&again["changed"], format!("r{}", again["revision"])),
            (&false.into(), revision.to_owned())
        );

        let second = coordinator.apply("[[allow]]\nfrom = [\"alice\"]\nto = [\"web\"]\n");
        assert_eq!(second["changed"], true);
        let history = coordinator.run(&["policy", "history"]).ok();
        let rows: Vec<&str> = history.lines().skip(1).collect();
        assert!(
            rows[0].starts_with(&format!("r{} ", second["revision"])) && rows[0].contains("in force"),
            "{history}"
        );
        assert!(rows[1].starts_with(revision) && rows[1].contains("the web server"), "{history}");
        assert!(!rows[1].contains("in force"), "{history}");

        let back = coordinator.run(&["policy", "rollback", "-o", "json"]);
        assert_eq!(back.code, 0, "{back:?}");
        let back = back.json("policy-applied");
        assert!(back["revision"].as_u64() > second["revision"].as_u64(), "{back:#}");
        assert_eq!(format!("r{}", back["back_to"]), revision);
        assert_eq!(names(&back["installation"]["installed"]), ["alice", "web"]);
        assert_eq!(coordinator.run(&["policy", "show", "--text"]).ok(), WEB);
        let second = format!("r{}", second["revision"]);
        coordinator.run(&["policy", "rollback", &second]).ok();
        assert_eq!(coordinator.json("policy", &["policy", "show"])["rules"].as_array().unwrap().len(), 1);
        let shown = coordinator.json("policy", &["policy", "show", revision]);
        assert_eq!((&shown["in_force"], &shown["text"]), (&false.into(), &WEB.into()));
        coordinator.run(&["policy", "show", "r99999999"]).failed(2);
        coordinator.run(&["policy", "rollback", "r99999999"]).failed(2);
        assert_eq!(
            coordinator.json("policies", &["policy", "history", "--most", "1"])["policies"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    });
}

#[test]
fn a_policy_about_a_member_that_is_gone_cannot_be_taken_back() {
    in_sandbox(|| {
        let (site, coordinator, _alice, _web) = mesh(&[]);
        let first = coordinator.apply(WEB);
        let second = coordinator.apply("[[allow]]\nfrom = [\"*\"]\nto = [\"*\"]\n");
        coordinator.run(&["nodes", "remove", "web"]).ok();
        let message = coordinator.run(&["policy", "rollback"]).failed(2);
        assert!(message.contains("web"), "{message}");
        // One that has its name now is another, and the file that names it can be applied for it.
        let other = site.machine("web");
        other.join(&coordinator);
        let shown = coordinator.json("policy", &["policy", "show"]);
        assert_eq!(shown["revision"], second["revision"]);
        let back =
            coordinator.json("policy-applied", &["policy", "rollback", &format!("r{}", first["revision"])]);
        assert_eq!(names(&back["installation"]["installed"]), ["alice", "web"]);
        let history = coordinator.run(&["policy", "history"]).ok();
        assert!(history.contains(&format!("back to r{}", first["revision"])), "{history}");
    });
}

#[test]
fn a_later_node_of_the_same_name_inherits_nothing() {
    in_sandbox(|| {
        let (site, coordinator, _alice, _web) = mesh(&[]);
        coordinator.apply(WEB);
        coordinator.run(&["trace", "alice", "web", "tcp/443"]).ok();
        coordinator.run(&["nodes", "remove", "web"]).ok();
        let other = site.machine("web");
        other.join(&coordinator);
        let denied = coordinator.run(&["trace", "alice", "web", "tcp/443"]);
        assert_eq!(denied.code, 7, "{denied:?}");
        // The plan says so too, and applying the same text binds the name anew.
        let plan = coordinator.policy(&["plan", "-"], WEB).ok();
        assert!(plan.starts_with("+ alice -> web tcp/443\n"), "{plan}");
        assert_eq!(coordinator.apply(WEB)["changed"], true);
        coordinator.run(&["trace", "alice", "web", "tcp/443"]).ok();
    });
}

#[test]
fn a_policy_that_somebody_else_applied_meanwhile_is_a_conflict() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        let first = coordinator.apply(WEB);
        let base = format!("r{}", first["revision"]);
        let second = "[[allow]]\nfrom = [\"alice\"]\nto = [\"web\"]\n";
        coordinator.policy(&["apply", "-", "--base", &base], second).ok();
        let message = coordinator.policy(&["apply", "-", "--base", &base], WEB).failed(9);
        assert!(message.contains("meshctl policy plan"), "{message}");
        assert_eq!(coordinator.run(&["policy", "show", "--text"]).ok(), second);
    });
}

#[test]
fn the_first_policy_can_be_had_as_a_file_and_applied() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        let original = coordinator.run(&["policy", "show", "--text"]).ok();
        let plan = coordinator.policy(&["plan", "-", "--detailed-exitcode"], &original).ok();
        assert!(plan.starts_with("no change in who may reach whom"), "{plan}");
    });
}

#[test]
fn an_offline_node_is_named_and_no_failure() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, web) = mesh(&[]);
        web.run(&["node", "down"]).ok();
        let started = Instant::now();
        let ran = coordinator.policy(&["apply", "-", "--wait", "8s"], WEB);
        assert!(started.elapsed() < Duration::from_secs(6), "who is offline is not waited for");
        let text = ran.ok();
        assert!(text.contains(" installed on 1 of 2 nodes in "), "{text}");
        assert!(text.ends_with("; 1 behind: 1 offline (web)\n"), "{text}");
        // It comes back with it.
        web.run(&["node", "up"]).ok();
        while coordinator.members().iter().any(|node| node["online"] == false) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let again = coordinator.apply(WEB);
        assert_eq!(names(&again["installation"]["behind"]), Vec::<&str>::new(), "{again:#}");
    });
}

/// Runs on until it is waited for.
fn start(machine: &Machine, arguments: &[&str]) -> Child {
    let mut command = machine.meshctl(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_node_that_is_online_and_does_not_acknowledge_is_named_and_a_failure() {
    in_sandbox(|| {
        let (_site, coordinator, alice, web) = mesh(&[]);
        web.signal(Signal::STOP);
        let ran = coordinator.policy(&["apply", "-", "--wait", "600ms", "-o", "json"], WEB);
        assert_eq!(ran.code, 8, "{ran:?}");
        let applied = ran.json("policy-applied");
        assert_eq!(names(&applied["installation"]["behind"]), ["web"]);
        assert_eq!(applied["installation"]["behind"][0]["online"], true);
        assert!(applied["installation"]["waited_ms"].as_u64().unwrap() >= 600, "{applied:#}");
        assert!(ran.stderr.contains("still behind: web"), "{ran:?}");
        let ran = coordinator.policy(&["apply", "-", "--wait", "0"], WEB);
        assert!(ran.ok().ends_with(" is in force; not waited until it is installed\n"));
        // For longer than a coordinator lets one call wait.
        coordinator.write("/run/web.toml", WEB.as_bytes());
        let started = Instant::now();
        let wait = start(&coordinator, &["policy", "apply", "/run/web.toml", "--wait", "60s", "-o", "json"]);
        std::thread::sleep(Duration::from_millis(8_500));
        web.signal(Signal::CONT);
        let output = wait.wait_with_output().unwrap();
        let ran = Ran {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(started.elapsed() < Duration::from_secs(30), "it ends as soon as it is installed");
        let applied = ran.json("policy-applied");
        assert_eq!(names(&applied["installation"]["installed"]), ["alice", "web"]);
        assert!(applied["installation"]["waited_ms"].as_u64().unwrap() >= 8_000, "{applied:#}");

        // The same for a removal.
        web.signal(Signal::STOP);
        let removed = coordinator.run(&["nodes", "remove", "alice", "--wait", "300ms", "-o", "json"]);
        assert_eq!(removed.code, 8, "{removed:?}");
        assert_eq!(names(&removed.json("node-removed")["behind"]), ["web"]);
        web.signal(Signal::CONT);
        drop(alice);
    });
}

#[test]
fn who_sits_at_a_terminal_is_shown_the_changes_and_asked() {
    in_sandbox(|| {
        let (_site, coordinator, _alice, _web) = mesh(&[]);
        coordinator.write("/run/web.toml", WEB.as_bytes());
        // A terminal is what script(1) makes; it ends with its program's exit code.
        let at_terminal = |arguments: &str, answer: &[u8]| {
            let mut script = coordinator.host.command("script").unwrap();
            let command = format!("{MESHCTL} policy apply /run/web.toml {arguments}");
            script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
            run_with(script, answer)
        };
        let no = at_terminal("", b"n\n");
        assert_eq!(no.code, 1, "{no:?}");
        assert!(no.stdout.contains("- web -> alice ") && no.stdout.contains("apply this? [y/N]"), "{no:?}");
        assert!(no.stdout.contains("nothing was applied"), "{no:?}");
        assert_eq!(coordinator.json("policy", &["policy", "show"])["text"], "");
        let yes = at_terminal("", b"y\n");
        assert!(yes.code == 0 && yes.stdout.contains("installed on 2 of 2 nodes"), "{yes:?}");
        let back = |answer: &[u8]| {
            let mut script = coordinator.host.command("script").unwrap();
            let command = format!("{MESHCTL} policy rollback");
            script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
            run_with(script, answer)
        };
        let no = back(b"n\n");
        assert!(no.code == 1 && no.stdout.contains("+ web -> alice "), "{no:?}");
        assert!(no.stdout.contains("go back to the network's first policy? [y/N]"), "{no:?}");
        assert_eq!(coordinator.json("policy", &["policy", "show"])["text"], WEB);
        let first = back(b"y\n");
        assert!(
            first.code == 0 && first.stdout.contains("back to the network's first policy: "),
            "{first:?}"
        );
        // Twice is to return, and with --yes nobody is asked.
        coordinator.run(&["policy", "rollback", "--yes"]).ok();
        assert_eq!(coordinator.json("policy", &["policy", "show"])["text"], WEB);
        let again = at_terminal("", b"");
        assert!(
            again.code == 0 && !again.stdout.contains("[y/N]"),
            "what changes nothing is not asked about: {again:?}"
        );
        coordinator.run(&["policy", "apply", "/dev/null"]).failed(2);
    });
}

#[test]
fn nobody_but_the_operator_applies_policies() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock").display().to_string();
    for arguments in [&["plan", "-"][..], &["apply", "-"], &["show"], &["history"], &["rollback"]] {
        let mut command = std::process::Command::new(MESHCTL);
        command.arg("policy").args(arguments).args(["--socket", &socket]);
        let message = run_with(command, WEB.as_bytes()).failed(3);
        assert!(message.contains("error: mesh-coordinator is not running"), "{message}");
    }
    in_sandbox(|| {
        let (_site, coordinator, alice, _web) = mesh(&[]);
        // On a node's machine `coordinator up` would found a second network; where one was, it is what helps.
        let message = alice.run(&["policy", "history"]).failed(3);
        assert!(
            message.contains("on the coordinator's machine") && !message.contains("coordinator up"),
            "{message}"
        );
        coordinator.run(&["coordinator", "down"]).ok();
        let message = coordinator.run(&["policy", "history"]).failed(3);
        assert!(message.contains("meshctl coordinator up"), "{message}");
    });
}
