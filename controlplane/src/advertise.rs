//! Which addresses of this machine nodes are told to connect to.

use std::net::{IpAddr, SocketAddr};

use ringmesh_tunnel::{enroll::COORDINATORS_MAX, ip::Prefix};

use crate::config::Endpoint;

/// The most addresses that are advertised: each one lengthens the join token.
const MAX_ADVERTISED: usize = COORDINATORS_MAX;

/// The endpoints as `host:port`: what the configuration names, or else every global address that is listened on.
///
/// Addresses of an overlay (in `pools`) are left out: a coordinator that is also a node cannot be reached there by those
/// who are still to join. A machine with no other address than its loopback advertises that.
pub(crate) fn endpoints(configured: &[Endpoint], bound: SocketAddr, pools: &[Prefix]) -> Vec<String> {
    let hosts = hosts(configured, bound.ip(), pools);
    hosts.iter().map(|endpoint| endpoint.with_port(bound.port())).collect()
}

/// The same, with the ports as they are configured.
pub(crate) fn hosts(configured: &[Endpoint], bound: IpAddr, pools: &[Prefix]) -> Vec<Endpoint> {
    let addresses =
        || nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|found| host_address(&found));
    match configured {
        [] if bound.is_unspecified() => choose(addresses().collect(), bound.is_ipv4(), pools),
        [] => vec![bound.into()],
        configured => configured.to_vec(),
    }
}

fn host_address(found: &nix::ifaddrs::InterfaceAddress) -> Option<IpAddr> {
    let address = found.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn choose(mut addresses: Vec<IpAddr>, only_ipv4: bool, pools: &[Prefix]) -> Vec<Endpoint> {
    addresses.retain(|address| is_global(*address) && !(only_ipv4 && address.is_ipv6()));
    addresses.retain(|address| !pools.iter().any(|pool| pool.contains(*address)));
    // IPv4 first: it is what works from most places.
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_ADVERTISED);
    if addresses.is_empty() {
        addresses.push(IpAddr::from([127, 0, 0, 1]));
    }
    addresses.into_iter().map(Endpoint::from).collect()
}

/// Global in the sense of scope: private ranges count, loopback, link-local and multicast do not.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !v4.is_loopback()
                && !v4.is_link_local()
                && !v4.is_multicast()
                && !v4.is_unspecified()
                && !v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_multicast() && !v6.is_unspecified()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(addresses: &[&str], only_ipv4: bool) -> Vec<String> {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let pools = ["100.64.0.0/10".parse().unwrap(), "fd12:3456:789a::/48".parse().unwrap()];
        choose(addresses, only_ipv4, &pools).iter().map(|endpoint| endpoint.with_port(443)).collect()
    }

    #[test]
    fn global_addresses_are_advertised_and_overlay_addresses_are_not() {
        let found = [
            "127.0.0.1",
            "::1",
            "fe80::1",
            "169.254.1.1",
            "2001:db8::1",
            "192.168.1.5",
            "100.64.0.1",
            "fd12:3456:789a::1",
            "192.168.1.5",
        ];
        assert_eq!(chosen(&found, false), ["192.168.1.5:443", "[2001:db8::1]:443"]);
        assert_eq!(chosen(&found, true), ["192.168.1.5:443"]);
    }

    #[test]
    fn a_machine_without_a_network_advertises_its_loopback() {
        assert_eq!(chosen(&["127.0.0.1", "::1"], false), ["127.0.0.1:443"]);
    }

    #[test]
    fn what_the_configuration_names_is_taken_as_it_is() {
        let configured: Vec<Endpoint> =
            vec!["mesh.example.org".parse().unwrap(), "192.0.2.1:1".parse().unwrap()];
        let bound = "[::]:8443".parse().unwrap();
        assert_eq!(endpoints(&configured, bound, &[]), ["mesh.example.org:8443", "192.0.2.1:1"]);
        assert_eq!(endpoints(&[], "127.0.0.1:7".parse().unwrap(), &[]), ["127.0.0.1:7"]);
    }
}
