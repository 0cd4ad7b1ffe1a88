//! What systemd says of the units' exposure.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and tells what it saw"
)]

use std::{path::Path, process::Command};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd")
}

/// The exposure of a unit, from 0 (none) to 10, and the lines that make most of it.
fn exposure(unit: &str) -> (f64, Vec<String>) {
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--no-pager", "--offline=true", "--json=off"]).arg(folder().join(unit));
    let output =
        command.env("LANG", "C.UTF-8").output().expect("systemd-analyze is part of Debian's systemd");
    let text = String::from_utf8(output.stdout).unwrap();
    let weight = |line: &str| line.split_whitespace().last().and_then(|word| word.parse::<f64>().ok());
    let mut lines: Vec<_> = text.lines().filter_map(|line| Some((weight(line)?, line.to_owned()))).collect();
    lines.sort_by(|one, other| other.0.total_cmp(&one.0));
    let total = text.lines().find_map(|line| line.split_once("exposure level for ")?.1.split_once(": "));
    let total = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    let total = total.unwrap_or_else(|| panic!("{unit}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (total, lines.into_iter().take(8).map(|(_, line)| line).collect())
}

#[test]
fn units_are_exposed_no_more_than_they_must() {
    for (unit, limit) in [
        ("meshd.service", 3.5),
        ("mesh-coordinator.service", 2.0),
        ("mesh-relay.service", 2.0),
        ("mesh-wait-online.service", 2.0),
    ] {
        let (found, worst) = exposure(unit);
        println!("{unit}: {found}");
        assert!(
            found <= limit,
            "{unit} is exposed by {found}, more than {limit}; most by\n{}",
            worst.join("\n")
        );
        // A unit without any of it is judged otherwise: the measure measures.
        assert!(!worst.is_empty() && found > 0.0, "{unit}: {worst:?}");
    }
}

#[test]
fn a_unit_without_restrictions_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let bare = directory.path().join("bare.service");
    std::fs::write(&bare, "[Service]\nExecStart=/usr/bin/true\n").unwrap();
    assert!(exposure(bare.to_str().unwrap()).0 > 9.0);
}

#[test]
fn units_are_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    let mut units = Vec::new();
    for file in std::fs::read_dir(folder()).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        if name.ends_with(".service") || name.ends_with(".target") {
            let text = std::fs::read_to_string(file.path()).unwrap();
            // Some program that is there.
            let text = text.replace("/usr/bin/meshctl", "/usr/bin/true");
            std::fs::write(directory.path().join(&name), text).unwrap();
            units.push(directory.path().join(&name));
        }
    }
    assert_eq!(units.len(), 5, "{units:?}");
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("mesh")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
