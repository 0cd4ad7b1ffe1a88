//! A mesh name, as programs on a node resolve it.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, ToSocketAddrs as _},
};

use serde_json::Value;

use super::{lab_failure, mesh::Node, show::Outcome};
use crate::failure::{Exit, Failure};

/// Asks for the name of `to` on the machine of `from`: the C library, as any program does, and the node's own resolver.
pub(super) fn look_up(from: &Node, to: &Node) -> Result<Outcome, Failure> {
    let zone = from.status()?.network.map(|network| network.zone).unwrap_or_default();
    let name = format!("{}.{zone}", to.name());
    let expected: BTreeSet<IpAddr> = to.addresses.iter().copied().collect();
    let library = from.machine.host.enter(|| by_library(&name)).map_err(lab_failure)?.map_err(|error| {
        Failure::new(Exit::General, format!("{name} does not resolve on {}", from.name()))
            .cause(error.to_string())
    })?;
    let output = from.machine.meshctl(["dns", "query", &name, "--output", "json"], None)?;
    let answer: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::new(Exit::General, "meshctl dns query did not print JSON").cause(error.to_string())
    })?;
    let records = answer["records"].as_array().into_iter().flatten();
    let daemon = records.filter_map(|record| record["data"].as_str()?.parse().ok()).collect();
    for (who, found) in [("the C library", &library), ("meshctl dns query", &daemon)] {
        if *found != expected {
            let error = format!("{who} takes {name} for other addresses than {} has", to.name());
            let cause = format!("found {found:?}, expected {expected:?}");
            return Err(Failure::new(Exit::General, error).cause(cause));
        }
    }
    let addresses: Vec<String> = to.addresses.iter().map(IpAddr::to_string).collect();
    let text = format!("{name} is {} on {}", addresses.join(" and "), from.name());
    Ok(Outcome::new(text).fact("name", name))
}

/// What getaddrinfo(3) finds.
fn by_library(name: &str) -> io::Result<BTreeSet<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
}
