//! This program's own bare loop between TUN and UDP, on both hosts.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Daemons, INNER, INNER_PREFIX, SubjectKind, Tools, Up, inner_addresses, output, tools};
use crate::bare::{INTERFACE, MTU, PORT};
use crate::cpu::cpus;
use crate::ground::Laid;

/// The device appears shortly after the start.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

#[allow(clippy::wildcard_enum_match_arm, reason = "no other kind is a bare loop")]
pub(super) fn set_up(kind: SubjectKind, laid: &Laid, tools: &Tools, daemons: &mut Daemons) -> Result<Up> {
    let (on, offloads) = match kind {
        SubjectKind::BareTokioUring => ("tokio-uring", "none"),
        SubjectKind::BareSingle => ("uring", "none"),
        SubjectKind::BarePoll => ("poll", "all"),
        _ => ("uring", "all"),
    };
    let ip = tools::in_path("ip").context("there is no ip (apt-get install iproute2)")?;
    for (index, host) in laid.hosts.iter().enumerate() {
        let peer = SocketAddr::new(laid.underlay[1 - index], PORT).to_string();
        let cpu = (index % cpus()).to_string();
        let mut daemon = host.command(tools.own())?;
        daemon.args(["bare", "--on", on, "--offloads", offloads, "--peer", &peer, "--cpu", &cpu]);
        daemons.start_measured(daemon)?;
        let give_up = Instant::now() + APPEARS_WITHIN;
        while !host.links()?.iter().any(|link| link == INTERFACE) {
            daemons.check()?;
            ensure!(Instant::now() < give_up, "{INTERFACE} did not appear within {APPEARS_WITHIN:?}");
            thread::sleep(Duration::from_millis(20));
        }
        let mut command = host.command(&ip)?;
        command.args(["link", "set", "dev", INTERFACE, "mtu", &MTU.to_string()]);
        output(command, "")?;
        host.add_address(INTERFACE, INNER[index].into(), INNER_PREFIX)?;
        host.link_up(INTERFACE)?;
    }
    let version = format!("offloads {offloads}");
    Ok(Up { addresses: inner_addresses(), version, interface: Some(INTERFACE.to_owned()) })
}
