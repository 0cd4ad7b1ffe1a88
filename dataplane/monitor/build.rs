//! Tells the crate which commit it is built of: by `RINGMESH_COMMIT`, or else, in a release build, by git.
//!
//! A development build asks no git: it would have to be built anew, with everything above it, at each commit.

use std::{env, fs, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=RINGMESH_COMMIT");
    let told = env::var("RINGMESH_COMMIT").ok();
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = told.or_else(|| release.then(by_git).flatten());
    let commit = commit.filter(|commit| is_commit(commit)).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=RINGMESH_MONITOR_COMMIT={commit}");
}

/// What becomes a label's value is a hash, whoever set the variable.
fn is_commit(word: &str) -> bool {
    (7..=64).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The commit that is checked out here, if this tree is a repository of its own: what was unpacked within somebody else's is
/// not of their commit.
fn by_git() -> Option<String> {
    let root = fs::canonicalize(Path::new(&env::var("CARGO_MANIFEST_DIR").ok()?).join("../..")).ok()?;
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).current_dir(&root).output().ok()?;
        let line = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| line.trim().to_owned())
    };
    if fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()? != root {
        return None;
    }
    // Written at each commit and checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if root.join(&log).exists() {
        println!("cargo::rerun-if-changed={}", root.join(log).display());
    }
    git(&["rev-parse", "HEAD"])
}
