//! `wireguard-go` between the two hosts, configured by `wg` as its users do.

use std::net::Ipv4Addr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringmesh_lab::Host;

use super::{Daemons, UNDERLAY, Up, output};

const INTERFACE: &str = "wg0";
const PORT: u16 = 51820;
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];
const PREFIX: u8 = 24;
/// Its interface appears shortly after its start.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn set_up(hosts: &[Host; 2], daemons: &mut Daemons) -> Result<Up> {
    let shared = key(["genpsk"], "")?;
    let secrets = [key(["genkey"], "")?, key(["genkey"], "")?];
    for (index, host) in hosts.iter().enumerate() {
        let other = 1 - index;
        let mut daemon = host.command("wireguard-go")?;
        // In the foreground, without the banner that recommends the kernel module.
        daemon.arg(INTERFACE).env("WG_PROCESS_FOREGROUND", "1").env("LOG_LEVEL", "error");
        daemons.start_measured(daemon)?;
        let configuration = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nPresharedKey = {shared}\nEndpoint = {}:{PORT}\nAllowedIPs = {}/32\n",
            secrets[index],
            key(["pubkey"], &secrets[other])?,
            UNDERLAY[other],
            ADDRESSES[other],
        );
        configure(host, &configuration, daemons)?;
        host.add_address(INTERFACE, ADDRESSES[index].into(), PREFIX)?;
        host.link_up(INTERFACE)?;
    }
    Ok(Up { addresses: ADDRESSES, version: version()? })
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

fn version() -> Result<String> {
    let mut command = Command::new("wireguard-go");
    command.arg("--version");
    let text = output(command, "")?;
    let version = text.split_whitespace().nth(1).context("wireguard-go --version said nothing")?;
    Ok(version.to_owned())
}
