//! Variables that hold secrets: this program reads them, and no process that it starts or becomes inherits them.
//!
//! A daemon lives for months, and its environment can be read for as long (`/proc/PID/environ`, core dumps).

use std::{ffi::OsStr, process::Command};

use crate::{remote, token};

/// The variables that may hold a secret.
pub(crate) const SECRETS: [&str; 2] = [token::VARIABLE, remote::KEY_VARIABLE];

/// A program to start, which inherits the environment without [`SECRETS`]. There is no other way to start one here.
pub(crate) fn program(executable: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(executable);
    for name in SECRETS {
        command.env_remove(name);
    }
    command
}

/// The variable of this process that holds a secret itself, not only where to find one.
pub(crate) fn exposed() -> Option<&'static str> {
    let is_exposed = |name: &&str| std::env::var_os(name).is_some_and(|value| is_secret(&value));
    SECRETS.into_iter().find(is_exposed)
}

/// Whether the value is a secret and not a place: empty, `file:PATH`, or `-` for standard input.
pub(crate) fn is_secret(value: &OsStr) -> bool {
    let value = value.as_encoded_bytes();
    !value.is_empty() && value != b"-" && !value.starts_with(b"file:")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn a_program_inherits_no_variable_that_may_hold_a_secret() {
        let command = program("true");
        let removed: Vec<_> = command
            .get_envs()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| name.to_owned())
            .collect();
        for name in ["MESH_TOKEN", "MESH_API_KEY"] {
            assert!(removed.iter().any(|found| found == name), "{name}");
        }
    }

    #[test]
    fn a_place_is_no_secret() {
        for (value, secret) in
            [("", false), ("-", false), ("file:/k", false), ("mesh1_A", true), ("meshkey1_A", true)]
        {
            assert_eq!(is_secret(OsStr::new(value)), secret, "{value}");
        }
    }

    #[test]
    fn programs_are_started_here_and_nowhere_else() {
        fn look(folder: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    look(&path, found);
                } else if !path.ends_with("environment.rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    let starts =
                        |line: &&str| line.contains("Command::new(") || line.contains("Program::new(");
                    found.extend(
                        text.lines().filter(starts).map(|line| format!("{}: {line}", path.display())),
                    );
                }
            }
        }
        let mut found = Vec::new();
        look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
}
