//! The executable as `cargo build` makes it: what is under test where it need not be a release's.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Names an executable to be used instead.
pub const VARIABLE: &str = "MESH_EXECUTABLE";

/// Builds `meshctl` as this test was built, if that is not done yet, and answers where it is.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn meshctl() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        if let Some(path) = env::var_os(VARIABLE) {
            return path.into();
        }
        // .../debug/deps/units-0123456789abcdef
        let own = env::current_exe().expect("a process has an executable");
        let folder = own.ancestors().nth(2).expect("tests are in deps/ of the profile's folder").to_owned();
        let release = folder.ends_with("release").then_some("--release");
        let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--locked", "-p", "meshctl"])
            .args(release)
            .arg("--target-dir")
            .arg(folder.parent().expect("the profile's folder is in the target folder"))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
            .status();
        assert!(status.is_ok_and(|status| status.success()), "meshctl cannot be built");
        folder.join("meshctl")
    };
    BUILT.get_or_init(build).clone()
}
