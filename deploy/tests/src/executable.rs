//! The executable as `cargo build` makes it: what is under test where it need not be a release's.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Names an executable to be used instead.
pub const VARIABLE: &str = "MESH_EXECUTABLE";

/// Where `meshctl` is. Whoever builds all tests of the workspace has built it; else `cargo build -p meshctl` does, and brings it up
/// to date.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn meshctl() -> PathBuf {
    if let Some(path) = env::var_os(VARIABLE) {
        return path.into();
    }
    // Tests are in `deps`, in the folder of their profile.
    let own = env::current_exe().expect("a process has an executable");
    let path = own.ancestors().nth(2).unwrap_or_else(|| Path::new("/")).join("meshctl");
    assert!(path.is_file(), "{} is missing: cargo build -p meshctl", path.display());
    path
}
