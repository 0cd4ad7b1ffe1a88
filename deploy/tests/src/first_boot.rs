//! Machines as `deploy/terraform` makes them: what Terraform renders, and Debian's cloud-init makes of it at the first boot.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ringmesh_lab::{
    Host, LabError,
    debian::{Boot, Debian},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{executable, tarball::Tarball};

/// How long a first boot may take in seconds, fetching and joining included.
const FIRST_BOOT: u32 = 90;
/// What the module says of a machine.
const OUTPUTS: [&str; 5] =
    ["user_data", "join_command", "token_command", "firewall_rules", "metrics_targets"];

/// Applies the module `mesh` as an operator would, in a root module of its own; answers the outputs.
///
/// # Panics
/// If Terraform refuses; the message has what it said.
#[must_use]
pub fn render(arguments: &Value) -> Value {
    let folder = TempDir::new().expect("a folder can be made");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../terraform/modules/mesh");
    let mut module = arguments.clone();
    module["source"] = source.canonicalize().expect("the module is there").to_string_lossy().into();
    let outputs: serde_json::Map<_, _> = OUTPUTS
        .iter()
        .map(|name| {
            ((*name).to_owned(), json!({"value": format!("${{module.machine.{name}}}"), "sensitive": true}))
        })
        .collect();
    let root = json!({"module": {"machine": module}, "output": outputs});
    fs::write(folder.path().join("main.tf.json"), root.to_string()).expect("a file can be written");
    terraform(folder.path(), &["init", "-input=false"]);
    terraform(folder.path(), &["apply", "-input=false", "-auto-approve"]);
    let told: Value =
        serde_json::from_str(&terraform(folder.path(), &["output", "-json"])).expect("it is JSON");
    OUTPUTS.iter().map(|name| ((*name).to_owned(), told[name]["value"].clone())).collect()
}

fn terraform(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("terraform");
    command.arg(format!("-chdir={}", folder.display())).args(arguments).arg("-no-color");
    // It asks its makers for news unless told not to.
    let output = command.env("CHECKPOINT_DISABLE", "1").env("TF_IN_AUTOMATION", "1").output();
    let output = output.expect("terraform is there");
    assert!(output.status.success(), "terraform {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A machine with cloud-init, and what a cloud gives it: a name, its user-data, and besides the lines of shell that prepare its root
/// directory. `seed` is where the cloud's data lie as long as it runs.
///
/// # Errors
/// The lab's.
///
/// # Panics
/// If its first boot does not end well; the message has what was said at it.
pub fn boot(host: &Host, user_data: &str, seed: &TempDir, prepare: &str) -> Result<Debian, LabError> {
    let name = host.name();
    let write =
        |file: &str, text: String| fs::write(seed.path().join(file), text).expect("a file can be written");
    write("user-data", user_data.to_owned());
    write("meta-data", format!("instance-id: {name}-1\nlocal-hostname: {name}\n"));
    let debian = Boot::new()?
        .systemd()
        .bind(seed.path(), "/var/lib/cloud/seed/nocloud")
        // The network is there already, as a cloud's would be.
        .prepare(
            "echo 'network: {config: disabled}' > etc/cloud/cloud.cfg.d/90-lab.cfg
             echo 'datasource_list: [NoCloud, None]' > etc/cloud/cloud.cfg.d/91-lab.cfg
             # The small Debian has none.
             echo 'locale: false' > etc/cloud/cloud.cfg.d/92-lab.cfg",
        )
        .prepare(prepare)
        .on(host)?;
    let status = debian.run(&format!("timeout {FIRST_BOOT} cloud-init status --wait --long"))?;
    let said = String::from_utf8_lossy(&status.stdout);
    let log = debian.read("/var/log/cloud-init-output.log").unwrap_or_default();
    assert!(said.contains("status: done"), "{name}: {said}{}", String::from_utf8_lossy(&log));
    debian.booted()?;
    Ok(debian)
}

/// A tarball in the form of a release's, with nothing in it but the executable of this build, in `folder`.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn tarball_of_this_build(folder: &Path) -> Tarball {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(folder).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let meshctl = executable::meshctl();
    let version = run(&meshctl.to_string_lossy(), &["--version"]);
    let version = version.strip_prefix("meshctl ").unwrap_or(&version).to_owned();
    let inside = format!("ringmesh-{version}-x86_64-linux");
    let name = format!("{inside}.tar.gz");
    fs::create_dir_all(folder.join(&inside).join("bin")).expect("a folder can be made");
    fs::copy(meshctl, folder.join(&inside).join("bin/meshctl")).expect("it can be copied");
    run("tar", &["--create", "--use-compress-program=gzip -1", "--file", &name, &inside]);
    let sum = run("sha256sum", &[&name]);
    let sha256 = sum.split(' ').next().unwrap_or_default().to_owned();
    Tarball { path: PathBuf::from(folder).join(&name), name, sha256, version }
}
