//! Where nodes find the relay: addresses of this machine, of names, and of what stands in front of it.
//!
//! Nodes are told addresses, not names: they could resolve none where the relay is needed most, and a record is read by those who
//! have no DNS yet. So names are looked up here, again and again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::join_all;
use ringmesh_tunnel::{
    ip::Prefix,
    netmap::{ENDPOINTS_MAX, WEBSOCKETS_MAX, candidate_is_allowed},
};

use crate::{
    advertise,
    config::{Config, Endpoint},
    network::relay::Places,
};

/// The end of every path at which a relay's WebSocket is.
const WEBSOCKET_PATH: &str = "/relay/v1";
/// How long a name may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(3);

/// Of what a port is that is configured beside a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ports {
    /// Of the relay.
    Relay,
    /// Of the coordinator, which listens on the same number. Who passes on that port may do so for UDP as well, as a router does,
    /// or not, as a reverse proxy.
    Shared,
    /// Of the coordinator alone.
    Coordinator,
}

/// Knows where the relay is, and finds out anew.
#[derive(Debug)]
pub(super) struct Surveyor {
    /// What the configuration names; empty: the addresses of this machine.
    hosts: Vec<Endpoint>,
    /// What the relay listens on, with its port.
    bound: SocketAddr,
    /// Of what the ports in `hosts` are.
    ports: Ports,
    websockets: Vec<String>,
    /// What names meant when they were last looked up.
    known: BTreeMap<String, Vec<IpAddr>>,
}

impl Surveyor {
    /// Of a relay at `bound`, whose coordinator listens at `coordinator` and is told to nodes as `advertised` (`host:port`).
    pub(super) fn new(
        config: &Config,
        bound: SocketAddr,
        coordinator: SocketAddr,
        advertised: &[String],
    ) -> Self {
        let own = &config.relay.endpoints;
        let hosts = if own.is_empty() { &config.advertise } else { own };
        let urls = || {
            let path = &config.relay.base_path;
            advertised.iter().map(|endpoint| format!("wss://{endpoint}{path}{WEBSOCKET_PATH}")).collect()
        };
        let mut websockets: Vec<String> =
            if config.relay.websockets.is_empty() { urls() } else { config.relay.websockets.clone() };
        websockets.truncate(WEBSOCKETS_MAX);
        let ports = match own.is_empty() {
            false => Ports::Relay,
            true if bound.port() == coordinator.port() => Ports::Shared,
            true => Ports::Coordinator,
        };
        Self { hosts: hosts.clone(), bound, ports, websockets, known: BTreeMap::new() }
    }

    /// Where the relay is now; `pools` are the networks' own ranges. A name that cannot be looked up keeps what it meant before.
    pub(super) async fn survey(&mut self, pools: &[Prefix]) -> Places {
        let hosts = advertise::hosts(&self.hosts, self.bound.ip(), pools);
        let names = hosts.iter().map(|host| host.host.clone()).filter(|host| host.parse::<IpAddr>().is_err());
        for (name, found) in join_all(names.map(look_up)).await {
            match found {
                Ok(addresses) => drop(self.known.insert(name, addresses)),
                Err(error) => tracing::warn!(
                    event = "relay_name_unresolved", name,
                    %error,
                    "cannot look up where the relay is; nodes are told what is known, and this is tried again"
                ),
            }
        }
        let mut endpoints = Vec::new();
        for endpoint in hosts.iter().flat_map(|host| self.endpoints_of(host, pools)) {
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        endpoints.truncate(ENDPOINTS_MAX);
        Places { endpoints, websockets: self.websockets.clone() }
    }

    fn endpoints_of(&self, host: &Endpoint, pools: &[Prefix]) -> Vec<SocketAddr> {
        let addresses = match host.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            // A machine often takes its own name for its loopback (Debian's 127.0.1.1), where nobody else finds it.
            Err(_) => {
                let known = self.known.get(&host.host).into_iter().flatten().copied();
                known.filter(|ip| candidate_is_allowed(SocketAddr::new(*ip, 1), pools)).collect()
            }
        };
        // IPv6 does not reach a relay that listens on IPv4 alone.
        let reachable = addresses.into_iter().filter(|ip| ip.is_ipv4() || self.bound.is_ipv6());
        let own = self.bound.port();
        let ports = match (host.port, self.ports) {
            (Some(port), Ports::Relay) => vec![port],
            (Some(port), Ports::Shared) => vec![own, port],
            (Some(_), Ports::Coordinator) | (None, _) => vec![own],
        };
        reachable
            .flat_map(|ip| ports.clone().into_iter().map(move |port| SocketAddr::new(ip, port)))
            .collect()
    }
}

async fn look_up(name: String) -> (String, std::io::Result<Vec<IpAddr>>) {
    let found = match tokio::time::timeout(LOOKUP, tokio::net::lookup_host((name.as_str(), 0))).await {
        Ok(found) => found.map(|addresses| {
            let mut addresses: Vec<IpAddr> = addresses.map(|address| address.ip().to_canonical()).collect();
            // Sorted, as resolvers turn them around, which is no news.
            addresses.sort();
            addresses.dedup();
            addresses
        }),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    };
    (name, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "[::]:8443";

    fn pools() -> Vec<Prefix> {
        vec!["100.64.0.0/10".parse().unwrap()]
    }

    async fn places(config: &str, bound: &str, advertised: &[&str]) -> (Vec<String>, Vec<String>) {
        let config: Config = toml::from_str(config).unwrap();
        let advertised: Vec<String> = advertised.iter().map(|text| (*text).into()).collect();
        let mut surveyor = Surveyor::new(&config, bound.parse().unwrap(), TCP.parse().unwrap(), &advertised);
        let places = surveyor.survey(&pools()).await;
        (places.endpoints.iter().map(ToString::to_string).collect(), places.websockets)
    }

    #[tokio::test]
    async fn the_relay_is_where_the_coordinator_is_told_to_be() {
        let (endpoints, websockets) = places(
            "advertise = [\"192.0.2.1\", \"[2001:db8::1]:443\"]\nrelay.base_path = \"/base\"",
            "[::]:8443",
            &["192.0.2.1:8443", "[2001:db8::1]:443"],
        )
        .await;
        // A port that is another one outside may be so for UDP too.
        assert_eq!(endpoints, ["192.0.2.1:8443", "[2001:db8::1]:8443", "[2001:db8::1]:443"]);
        assert_eq!(
            websockets,
            ["wss://192.0.2.1:8443/base/relay/v1", "wss://[2001:db8::1]:443/base/relay/v1"]
        );
    }

    #[tokio::test]
    async fn a_relay_on_another_port_is_told_with_its_own() {
        let config = "advertise = [\"192.0.2.1:443\"]";
        let (endpoints, websockets) = places(config, "0.0.0.0:3478", &["192.0.2.1:443"]).await;
        assert_eq!(endpoints, ["192.0.2.1:3478"]);
        assert_eq!(websockets, ["wss://192.0.2.1:443/relay/v1"]);
    }

    #[tokio::test]
    async fn what_the_configuration_says_of_the_relay_goes_first() {
        let config = "advertise = [\"192.0.2.1\"]\n[relay]\nendpoints = [\"198.51.100.7:999\", \"198.51.100.8\"]\n\
                      websockets = [\"wss://mesh.example.com/base/relay/v1\"]";
        let (endpoints, websockets) = places(config, "[::]:8443", &["192.0.2.1:8443"]).await;
        assert_eq!(endpoints, ["198.51.100.7:999", "198.51.100.8:8443"]);
        assert_eq!(websockets, ["wss://mesh.example.com/base/relay/v1"]);
    }

    #[tokio::test]
    async fn nobody_is_told_addresses_that_the_relay_does_not_listen_on() {
        let config = "advertise = [\"192.0.2.1\", \"2001:db8::1\"]";
        assert_eq!(places(config, "0.0.0.0:8443", &[]).await.0, ["192.0.2.1:8443"]);
        assert_eq!(places("", "127.0.0.1:8443", &[]).await.0, ["127.0.0.1:8443"]);
    }

    #[tokio::test]
    async fn a_name_that_means_this_machine_alone_is_left_out() {
        // It resolves by the hosts file, without any DNS (RFC 6761).
        let config = "advertise = [\"localhost\", \"192.0.2.1\"]";
        assert_eq!(places(config, "[::]:8443", &[]).await.0, ["192.0.2.1:8443"]);
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_keeps_what_it_meant() {
        let config: Config = toml::from_str("advertise = [\"relay.invalid\"]").unwrap();
        let bound: SocketAddr = "[::]:8443".parse().unwrap();
        let mut surveyor = Surveyor::new(&config, bound, bound, &[]);
        surveyor.known.insert("relay.invalid".into(), vec!["192.0.2.9".parse().unwrap()]);
        assert_eq!(surveyor.survey(&pools()).await.endpoints, ["192.0.2.9:8443".parse().unwrap()]);
    }

    #[tokio::test]
    async fn as_many_are_told_as_a_record_holds() {
        let advertised: Vec<String> = (0..9).map(|i| format!("192.0.2.{i}:443")).collect();
        let advertised: Vec<&str> = advertised.iter().map(String::as_str).collect();
        assert_eq!(places("", "127.0.0.1:1", &advertised).await.1.len(), WEBSOCKETS_MAX);
    }
}
