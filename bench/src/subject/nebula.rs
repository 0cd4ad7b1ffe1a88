//! `nebula`, Slack's overlay network: two hosts that know each other's place, with the cipher that WireGuard has.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::tools::in_path;
use super::{Daemons, INNER, INNER_PREFIX, Up, inner_addresses, output, version_in};
use crate::ground::Laid;

const INTERFACE: &str = "nebula0";
const PORT: u16 = 4242;
/// Where a host's daemon finds its configuration; every host has its own `/run`.
const CONFIGURATION: &str = "/run/nebula.yml";
/// Its default, which leaves room for IPv6 and more below.
const MTU: u32 = 1300;

pub(super) fn set_up(laid: &Laid, program: &Path, daemons: &mut Daemons) -> Result<Up> {
    let mut asked = Command::new(program);
    asked.arg("-version");
    let said = output(asked, "")?;
    let version = format!("{}, chachapoly", version_in(&said).context("nebula -version said no number")?);
    let certificates = Certificates::make(program)?;
    for (index, host) in laid.hosts.iter().enumerate() {
        let other = 1 - index;
        let mut text = certificates.section(index);
        let place = SocketAddr::new(laid.underlay[other], PORT);
        let any = if place.is_ipv4() { "0.0.0.0" } else { "'::'" };
        let more = format!(
            "static_host_map:\n  '{}': ['{place}']\nlighthouse:\n  am_lighthouse: false\n\
             listen:\n  host: {any}\n  port: {PORT}\ncipher: chachapoly\n\
             tun:\n  dev: {INTERFACE}\n  mtu: {MTU}\nlogging:\n  level: error\n  format: text\n\
             firewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  \
             inbound: [{{port: any, proto: any, host: any}}]\n",
            INNER[other]
        );
        text.push_str(&more);
        host.enter(|| fs::write(CONFIGURATION, text))?.context("writing nebula's configuration")?;
        let mut daemon = host.command(program)?;
        daemon.args(["-config", CONFIGURATION]);
        daemons.start_measured(daemon)?;
    }
    Ok(Up { addresses: inner_addresses(), version, interface: Some(INTERFACE.to_owned()) })
}

/// The authority's certificate, and each host's with its key, as PEM.
struct Certificates {
    authority: String,
    hosts: [(String, String); 2],
}

impl Certificates {
    fn make(nebula: &Path) -> Result<Self> {
        // That of the same version, if it is there.
        let beside = nebula.with_file_name("nebula-cert");
        let program = if beside.is_file() { Some(beside) } else { in_path("nebula-cert") };
        let program = program.context("there is no nebula-cert")?;
        // `/run` is the sandbox's own.
        let folder = Path::new("/run/nebula-certificates");
        fs::create_dir_all(folder).context("making a folder for certificates")?;
        let run = |arguments: &[&str]| {
            let mut command = Command::new(&program);
            command.current_dir(folder).args(arguments);
            output(command, "")
        };
        let read = |name: &str| {
            fs::read_to_string(folder.join(name)).with_context(|| format!("reading nebula's {name}"))
        };
        run(&["ca", "-name", "bench"])?;
        let mut hosts = [(String::new(), String::new()), (String::new(), String::new())];
        for (index, host) in hosts.iter_mut().enumerate() {
            let name = format!("host{index}");
            run(&["sign", "-name", &name, "-ip", &format!("{}/{INNER_PREFIX}", INNER[index])])?;
            *host = (read(&format!("{name}.crt"))?, read(&format!("{name}.key"))?);
        }
        let authority = read("ca.crt")?;
        fs::remove_dir_all(folder).context("removing nebula's certificates")?;
        Ok(Self { authority, hosts })
    }

    /// The part of a configuration that holds them.
    fn section(&self, host: usize) -> String {
        let (certificate, key) = &self.hosts[host];
        let mut text = "pki:\n".to_owned();
        for (name, pem) in [("ca", &self.authority), ("cert", certificate), ("key", key)] {
            let lines: String = pem.lines().map(|line| format!("    {line}\n")).collect();
            write!(text, "  {name}: |\n{lines}").expect("invariant: a string takes whatever is written");
        }
        text
    }
}
