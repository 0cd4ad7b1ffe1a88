//! Programs that speak WireGuard and are configured by `wg` as their users do, with a pre-shared key as ours has.

use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringmesh_lab::Host;

use super::tools::in_path;
use super::{Daemons, INNER, INNER_PREFIX, Up, inner_addresses, output};
use crate::ground::Laid;

/// The device's name.
pub(super) const INTERFACE: &str = "wg0";
/// Of the device; what such programs do by themselves differs, and 1420 fits both versions of IP.
const MTU: &str = "1420";
const PORT: u16 = 51820;
/// The device appears shortly after the start.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// Starts what `daemon` says on both hosts, and makes the two peers.
pub(super) fn set_up(
    laid: &Laid,
    version: String,
    daemons: &mut Daemons,
    daemon: impl Fn(&Host) -> Result<Command>,
) -> Result<Up> {
    let shared = key(["genpsk"], "")?;
    let secrets = [key(["genkey"], "")?, key(["genkey"], "")?];
    for (index, host) in laid.hosts.iter().enumerate() {
        let other = 1 - index;
        daemons.start_measured(daemon(host)?)?;
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nPresharedKey = {shared}\nEndpoint = {}\nAllowedIPs = {}/32\n",
            secrets[index],
            key(["pubkey"], &secrets[other])?,
            SocketAddr::new(laid.underlay[other], PORT),
            INNER[other],
        );
        configure(host, &configuration, daemons)?;
        host.add_address(INTERFACE, INNER[index].into(), INNER_PREFIX)?;
        if let Some(ip) = in_path("ip") {
            let mut command = host.command(ip)?;
            command.args(["link", "set", "dev", INTERFACE, "mtu", MTU]);
            output(command, "")?;
        }
        host.link_up(INTERFACE)?;
    }
    Ok(Up { addresses: inner_addresses(), version, interface: Some(INTERFACE.to_owned()) })
}

/// Hands over the configuration as soon as the daemon takes it.
fn configure(host: &Host, configuration: &str, daemons: &mut Daemons) -> Result<()> {
    let give_up = Instant::now() + APPEARS_WITHIN;
    loop {
        let mut command = host.command("wg")?;
        command.args(["setconf", INTERFACE, "/dev/stdin"]);
        match output(command, configuration) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= give_up => return Err(error),
            Err(_) => daemons.check()?,
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn key<const N: usize>(arguments: [&str; N], input: &str) -> Result<String> {
    let mut command = Command::new("wg");
    command.args(arguments);
    Ok(output(command, input)?.trim().to_owned())
}

/// What `program --version` says its version is.
pub(super) fn version(program: &std::path::Path) -> Result<String> {
    let mut command = Command::new(program);
    command.arg("--version");
    let text = output(command, "")?;
    let version = super::version_in(&text);
    Ok(version.with_context(|| format!("{} --version said no number", program.display()))?.to_owned())
}
