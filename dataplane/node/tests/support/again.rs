//! Running one test of this program again in a process of its own, with other rights or another environment.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

/// Tells a test that it was started by itself, and what it is to know.
pub const ROLE: &str = "RINGMESH_NODE_TEST_ROLE";

/// Runs `test` again with `role`; whether it passed, and what it printed.
pub fn again(test: &str, role: &str, prepare: impl FnOnce(&mut Command)) -> (bool, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    prepare(&mut command);
    run(command, test, role)
}

/// Runs `test` again as `nobody` without any capability.
pub fn again_as_nobody(test: &str, role: &str) -> (bool, String) {
    // The build directory may be closed to others.
    let copy = std::env::temp_dir().join(format!("ringmesh-node-test-{}", std::process::id()));
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
        .arg(&copy);
    let result = run(command, test, role);
    fs::remove_file(copy).unwrap();
    result
}

fn run(mut command: Command, test: &str, role: &str) -> (bool, String) {
    let output =
        command.args([test, "--exact", "--nocapture"]).env(ROLE, role).stdin(Stdio::null()).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success() && text.contains("1 passed"), text)
}
