//! n2n: an `edge` on each host, and the `supernode` by which they find each other on the first.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::tools::in_path;
use super::{Daemons, INNER, Up, inner_addresses, version_in};
use crate::ground::Laid;

const INTERFACE: &str = "n2n0";
const PORT: u16 = 7654;

pub(super) fn set_up(laid: &Laid, program: &Path, daemons: &mut Daemons) -> Result<Up> {
    // It tells its version with its usage, and calls that a failure.
    let said = Command::new(program).arg("-h").output().context("running edge")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = version_in(&said).context("edge -h said no number")?.to_owned();
    // Later versions stay in the foreground by it; the first ones go to the background.
    let foreground = (!version.starts_with('1')).then_some("-f");
    let mut supernode = laid.hosts[0].command(in_path("supernode").context("there is no supernode")?)?;
    supernode.args(["-l", &PORT.to_string()]).args(foreground).stderr(Stdio::null());
    daemons.start(supernode)?;
    for (index, host) in laid.hosts.iter().enumerate() {
        let mut edge = host.command(program)?;
        edge.args(["-d", INTERFACE, "-a", &INNER[index].to_string(), "-c", "bench", "-k", "compared"]);
        edge.args(["-l", &format!("{}:{PORT}", laid.underlay[0])]).args(foreground);
        edge.args(["-m", &format!("02:00:00:00:00:0{}", index + 1)]).stderr(Stdio::null());
        daemons.start_measured(edge)?;
    }
    Ok(Up { addresses: inner_addresses(), version, interface: Some(INTERFACE.to_owned()) })
}
