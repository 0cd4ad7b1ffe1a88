//! `tincd`, with its own keys and the settings that Debian's package has.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use ringmesh_lab::Host;

use super::tools::in_path;
use super::{Daemons, INNER, INNER_PREFIX, Up, inner_addresses, output, version_in};
use crate::ground::Laid;

const INTERFACE: &str = "tinc0";
/// Where a host's daemon finds its configuration; every host has its own `/run`.
const FOLDER: &str = "/run/tinc";
const NAMES: [&str; 2] = ["first", "second"];

pub(super) fn set_up(laid: &Laid, program: &Path, daemons: &mut Daemons) -> Result<Up> {
    let mut asked = Command::new(program);
    asked.arg("--version");
    let said = output(asked, "")?;
    let version = version_in(&said).context("tincd --version said no number")?.to_owned();
    let public = [make_key(laid, 0, program)?, make_key(laid, 1, program)?];
    let ip = in_path("ip").context("there is no ip (apt-get install iproute2)")?;
    for (index, host) in laid.hosts.iter().enumerate() {
        for (peer, name) in NAMES.iter().enumerate() {
            let text =
                format!("Address = {}\nSubnet = {}/32\n{}", laid.underlay[peer], INNER[peer], public[peer]);
            write(host, &format!("hosts/{name}"), &text)?;
        }
        let up = format!(
            "#!/bin/sh\n{0} link set $INTERFACE up\n{0} addr add {1}/{INNER_PREFIX} dev $INTERFACE\n",
            ip.display(),
            INNER[index]
        );
        write(host, "tinc-up", &up)?;
        let script = Path::new(FOLDER).join("tinc-up");
        let executable = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
        host.enter(|| fs::set_permissions(&script, executable))?.context("marking tinc-up executable")?;
        let mut daemon = host.command(program)?;
        // It tells its name and the like.
        daemon.stderr(Stdio::null());
        daemon.args(["--no-detach", "--config", FOLDER, "--pidfile", "/run/tinc.pid"]);
        daemons.start_measured(daemon)?;
    }
    Ok(Up { addresses: inner_addresses(), version, interface: Some(INTERFACE.to_owned()) })
}

/// Makes a host's key; returns its public half, which stands in the hosts file that both have.
fn make_key(laid: &Laid, index: usize, program: &Path) -> Result<String> {
    let (host, other) = (&laid.hosts[index], NAMES[1 - index]);
    host.enter(|| fs::create_dir_all(Path::new(FOLDER).join("hosts")))?.context("making tinc's folder")?;
    let family = if laid.underlay[0].is_ipv4() { "ipv4" } else { "ipv6" };
    let text = format!(
        "Name = {}\nInterface = {INTERFACE}\nAddressFamily = {family}\nConnectTo = {other}\n",
        NAMES[index]
    );
    write(host, "tinc.conf", &text)?;
    let mut command = host.command(program)?;
    command.args(["--config", FOLDER, "--generate-keys=2048"]);
    // It asks for the files' names; the suggestions are right.
    output(command, "\n\n")?;
    let file = Path::new(FOLDER).join("hosts").join(NAMES[index]);
    host.enter(|| fs::read_to_string(file))?.context("reading tinc's public key")
}

fn write(host: &Host, name: &str, text: &str) -> Result<()> {
    let path = Path::new(FOLDER).join(name);
    host.enter(|| fs::write(path, text))?.with_context(|| format!("writing tinc's {name}"))
}
