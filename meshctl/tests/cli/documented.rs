//! What `docs/cli.md` says is so: its files can be used, its lists of keys are whole, and its examples print what they show.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
};

use ringmesh_lab::in_sandbox;

use crate::support::{MESHCTL, Machine, Ran, Site, meshctl, run_with};

fn manual() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")).unwrap()
}

/// The TOML files shown, each with the name that its first line gives it.
fn files(manual: &str) -> Vec<(&str, &str)> {
    let blocks = manual.split("```toml\n# ").skip(1);
    blocks.map(|block| block.split_once("\n```").unwrap().0.split_once('\n').unwrap()).collect()
}

/// Has whoever reads `file` check `text` as it.
fn check(file: &str, text: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    match file {
        "coordinator.toml" => meshctl(&["coordinator", "run", "--check", "--config", path]),
        "node.toml" => meshctl(&["node", "run", "--check", "--config", path]),
        "relay.toml" => meshctl(&["relay", "run", "--check", "--config", path]),
        "policy.toml" => meshctl(&["policy", "check", "--offline", path]),
        _ => panic!("nobody reads {file}"),
    }
}

#[test]
fn the_files_shown_can_be_used() {
    let manual = manual();
    let mut seen = Vec::new();
    for (file, text) in files(&manual) {
        check(file, text).ok();
        seen.push(file);
    }
    seen.sort_unstable();
    let expected = ["coordinator.toml", "node.toml", "policy.toml", "relay.toml"];
    assert_eq!(seen, expected);
    assert_eq!(manual.matches("```toml").count(), seen.len(), "each names its file in a comment");
}

#[test]
fn the_policy_in_the_readme_can_be_used() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, block) = readme.split_once("```toml\n").unwrap();
    check("policy.toml", block.split_once("```").unwrap().0).ok();
    assert_eq!(readme.matches("```toml").count(), 1);
}

#[test]
fn the_keys_listed_are_those_that_there_are() {
    let manual = manual();
    for (file, table) in [
        ("coordinator.toml", ""),
        ("coordinator.toml", "[network]"),
        ("coordinator.toml", "[relay]"),
        ("node.toml", ""),
        ("node.toml", "[[ssh]]"),
        ("node.toml", "[dns]"),
        ("node.toml", "[metrics]"),
        ("node.toml", "[relay]"),
    ] {
        let heading =
            if table.is_empty() { format!("### {file}\n") } else { format!("### {file}: `{table}`\n") };
        let (_, section) = manual.split_once(&heading).unwrap_or_else(|| panic!("no {heading}"));
        let rows = section.lines().take_while(|line| !line.starts_with('#'));
        let listed: BTreeSet<&str> =
            rows.filter_map(|row| Some(row.strip_prefix("| `")?.split_once('`')?.0)).collect();
        // The refusal of a key that is not known names all that are.
        let ran = check(file, &format!("{table}\nnonsense = 1\n"));
        assert_eq!(ran.code, 2, "{ran:?}");
        let (_, known) = ran.stderr.split_once(", expected ").unwrap();
        let known: BTreeSet<&str> = known.lines().next().unwrap().split('`').skip(1).step_by(2).collect();
        assert_eq!(listed, known, "{heading}");
    }
}

/// The manual of policies has a section for each key of the file, and in those of tables their keys as the first words that stand in code.
#[test]
fn the_manual_of_policies_names_every_key_of_the_file() {
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md")).unwrap();
    let (_, file) = manual.split_once("\n## The file\n").unwrap();
    let (file, _) = file.split_once("\n## ").unwrap();
    let sections: BTreeMap<&str, &str> = file
        .split("\n### `")
        .skip(1)
        .map(|section| section.split_once("`\n").unwrap())
        .map(|(key, text)| (key.trim_matches(['[', ']']), text))
        .collect();
    let known = |table: &str| {
        let ran = check("policy.toml", &format!("{table}\nnonsense = 1\n"));
        assert_eq!(ran.code, 2, "{ran:?}");
        let line = ran.stdout.lines().find(|line| line.contains("\"nonsense\"")).unwrap();
        line.rsplit_once(" has ").unwrap().1.split(", ").map(str::to_owned).collect::<BTreeSet<String>>()
    };
    assert_eq!(sections.keys().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>(), known(""));
    for table in ["allow", "test"] {
        let words: BTreeSet<&str> = sections[table].split('`').skip(1).step_by(2).collect();
        for key in known(&format!("[[{table}]]")) {
            assert!(words.contains(key.as_str()), "{key} of [[{table}]]: {words:?}");
        }
    }
}

/// A line that was typed on a machine, and what it should print.
struct Example<'a> {
    machine: &'a str,
    line: &'a str,
    output: String,
}

/// The examples, in their order: blocks of `console`, each prompt with the name of its machine.
fn examples(manual: &str) -> Vec<Example<'_>> {
    let mut examples: Vec<Example<'_>> = Vec::new();
    for block in manual.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").unwrap();
        for line in block.lines() {
            match line.split_once("# ").filter(|(machine, _)| machine.chars().all(|c| c.is_ascii_lowercase()))
            {
                Some((machine, line)) => examples.push(Example { machine, line, output: String::new() }),
                None => {
                    let output = &mut examples.last_mut().unwrap().output;
                    output.push_str(line);
                    output.push('\n');
                }
            }
        }
    }
    examples
}

/// Text with what differs from run to run taken out: numbers, ids, endpoints, IPv6 addresses, and the width of columns.
fn gist(text: &str) -> String {
    let word = |word: &str| {
        let endpoint = word.trim_end_matches([',', ';', ')']);
        if endpoint.parse::<SocketAddr>().is_ok() {
            return word.replace(endpoint, "ENDPOINT");
        }
        let bare = word.trim_matches(|c: char| matches!(c, '(' | ')' | ',' | ';' | '[' | ']'));
        if bare.starts_with("fd") && bare.matches(':').count() > 1 {
            return word.replace(bare, "IPv6");
        }
        if bare.len() == 16 && bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return word.replace(bare, "ID");
        }
        let mut gist = String::new();
        for c in word.chars() {
            match c {
                '0'..='9' if gist.ends_with('N') => {}
                '0'..='9' => gist.push('N'),
                c => gist.push(c),
            }
        }
        gist
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_differs_from_run_to_run_is_all_that_examples_are_excused() {
    assert_eq!(gist("r12  in 640 ms (id 60b7173ca9f2feac)\n\n  fd12::1, x\n"), "rN in N ms (id ID)\nIPv6, x");
    assert_eq!(gist("by 10.1.0.3:51820, heard"), gist("by [fd10::1]:51820, heard"));
    assert_ne!(gist("tcp/443 from bob"), gist("udp/443 from bob"));
    assert_ne!(gist("allowed"), gist("denied"));
}

#[test]
fn the_examples_print_what_is_shown() {
    in_sandbox(|| {
        let manual = manual();
        let site = Site::new();
        let coordinator = site.coordinator();
        let mut machines: BTreeMap<&str, Machine> = BTreeMap::new();
        for (name, tag) in [("alice", None), ("bob", None), ("carol", None), ("web", Some("web"))] {
            let machine = site.machine(name);
            // Whom a machine asks for other names is its own matter.
            machine.write("/etc/resolv.conf", b"nameserver 192.0.2.53\n");
            let tag = tag.map(|tag| ["--tag", tag]);
            let words: Vec<&str> = ["token", "create"].into_iter().chain(tag.into_iter().flatten()).collect();
            let token = coordinator.run(&words).ok();
            machine.run(&["join", "--token", token.trim(), "--dns", "hosts"]).ok();
            machines.insert(name, machine);
        }
        // The examples are of a mesh that has found its paths.
        while machines["web"].json("ping", &["ping", "bob"])["replies"][0]["path"] != "direct" {}
        machines.insert("coordinator", coordinator);
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in files(&manual) {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let program = Path::new(MESHCTL).parent().unwrap();
        let path = std::env::join_paths(
            std::iter::once(program.to_owned())
                .chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
        );
        let path = path.unwrap();
        let mut commands = BTreeSet::new();
        for Example { machine, line, output } in examples(&manual) {
            let mut shell: Command = machines[machine].host.command("sh").unwrap();
            // To enter a machine is to leave the directory that one was in.
            let folder = folder.path().display();
            shell.args(["-c", &format!("cd {folder}; {line} 2>&1")]).env("PATH", &path);
            let ran = run_with(shell, b"");
            let told = format!("{machine}# {line}\nprints:\n{}", ran.stdout);
            assert_eq!(gist(&ran.stdout), gist(&output), "{told}");
            let words = line.split_whitespace().skip_while(|word| *word != "meshctl").skip(1);
            commands.insert(words.take(2).collect::<Vec<_>>().join(" "));
        }
        for command in [
            "policy check",
            "policy plan",
            "policy apply",
            "policy show",
            "policy history",
            "policy rollback",
            "filter list",
            "filter add",
            "filter remove",
            "dns status",
            "dns query",
        ] {
            assert!(commands.contains(command), "{command} has no example");
        }
        for command in ["trace", "cleanup"] {
            assert!(
                commands.iter().any(|words| words.split(' ').next() == Some(command)),
                "{command} has no example"
            );
        }
    });
}
