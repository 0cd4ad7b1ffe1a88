//! What `docs/cli.md` says of configuration files is what the daemons take.

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::meshctl;

fn manual() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md")).unwrap()
}

/// Has a daemon (its command, such as `node`) check `text` as its file.
fn check(daemon: &str, text: &str) -> crate::support::Ran {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("daemon.toml");
    fs::write(&file, text).unwrap();
    meshctl(&[daemon, "run", "--check", "--config", file.to_str().unwrap()])
}

/// The daemon to which a file belongs.
fn daemon(file: &str) -> &'static str {
    match file {
        "coordinator.toml" => "coordinator",
        "node.toml" => "node",
        _ => panic!("nobody reads {file}"),
    }
}

#[test]
fn the_files_shown_can_be_used() {
    let manual = manual();
    let mut seen = Vec::new();
    for block in manual.split("```toml\n# ").skip(1) {
        let (text, _) = block.split_once("\n```").unwrap();
        let (file, text) = text.split_once('\n').unwrap();
        check(daemon(file), text).ok();
        seen.push(file);
    }
    seen.sort_unstable();
    assert_eq!(seen, ["coordinator.toml", "node.toml", "node.toml"]);
    assert_eq!(manual.matches("```toml").count(), seen.len(), "each names its file in a comment");
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
        ("node.toml", "[relay]"),
    ] {
        let heading =
            if table.is_empty() { format!("### {file}\n") } else { format!("### {file}: `{table}`\n") };
        let (_, section) = manual.split_once(&heading).unwrap_or_else(|| panic!("no {heading}"));
        let rows = section.lines().take_while(|line| !line.starts_with('#'));
        let listed: BTreeSet<&str> =
            rows.filter_map(|row| Some(row.strip_prefix("| `")?.split_once('`')?.0)).collect();
        // The refusal of a key that is not known names all that are.
        let message = check(daemon(file), &format!("{table}\nnonsense = 1\n")).failed(2);
        let (_, known) = message.split_once("expected one of ").unwrap();
        let known: BTreeSet<&str> = known.lines().next().unwrap().split('`').skip(1).step_by(2).collect();
        assert_eq!(listed, known, "{heading}");
    }
}
