//! Which addresses of a node record may be sent to.
//!
//! A node says itself where it is, and its peers send handshakes there. So a record is also a way to make peers send to
//! somebody else: what can only be the peer's own machine, a group of machines or the tunnel itself is left out. The
//! coordinator leaves it out before it passes a record on, and a node does not rely on that.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ip::Prefix;

/// Tells whether a peer may send to `address`, which a node record names; `pools` are the network's own ranges.
///
/// Refused are port 0, loopback, unspecified (all of 0.0.0.0/8), multicast, broadcast, IPv4 link-local (169.254.0.0/16, where
/// clouds serve credentials, and fd00:ec2::254, where one does so over IPv6), IPv6 link-local (fe80::/10: without a zone it names nobody), 240.0.0.0/4, and the pools: a datagram to an
/// address of the mesh would go into the tunnel that it is to carry. IPv4 addresses in IPv6 form (::/96, ::ffff:0:0/96, and
/// NAT64's 64:ff9b::/96) count as what they hold.
pub fn candidate_is_allowed(address: SocketAddr, pools: &[Prefix]) -> bool {
    let ip = embedded(address.ip());
    let in_a_pool = pools.iter().any(|pool| pool.contains(ip) || pool.contains(address.ip()));
    address.port() != 0 && !in_a_pool && is_unicast_beyond_this_host(ip)
}

/// Where Amazon's machines are given credentials over IPv6.
const CREDENTIALS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

fn is_unicast_beyond_this_host(ip: IpAddr) -> bool {
    if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        return false;
    }
    match ip {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            // RFC 1122 §3.2.1.3 ("this network"), RFC 1112 §4 (reserved, broadcast).
            !ip.is_link_local() && first != 0 && first < 240
        }
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && ip != CREDENTIALS_V6,
    }
}

/// The IPv4 address that an IPv6 one stands for (RFC 4291 §2.5.5, RFC 6052 §2.1), or the address itself.
fn embedded(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    if v6.is_loopback() || v6.is_unspecified() {
        return ip;
    }
    match v6.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(address: &str) -> bool {
        let pools = ["100.64.0.0/10", "fd00:1::/48"].map(|pool| pool.parse().unwrap());
        candidate_is_allowed(address.parse().unwrap(), &pools)
    }

    #[test]
    fn what_lies_beyond_this_host_is_a_candidate() {
        for address in [
            "192.0.2.1:51820",
            "10.1.2.3:1",
            "192.168.0.1:65535",
            "172.16.0.1:53",
            "100.63.255.255:1",
            "100.128.0.0:1",
            "223.255.255.255:1",
            "169.253.1.1:1",
            "[2001:db8::1]:51820",
            "[fd00:2::1]:51820",
            "[::ffff:192.0.2.1]:51820",
        ] {
            assert!(allowed(address), "{address}");
        }
    }

    #[test]
    fn this_host_groups_and_the_tunnel_itself_are_no_candidates() {
        for address in [
            "192.0.2.1:0",
            "[2001:db8::1]:0",
            "127.0.0.1:80",
            "127.255.0.1:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "169.254.169.254:80",
            "224.0.0.1:80",
            "239.255.255.250:1900",
            "240.0.0.1:80",
            "255.255.255.255:80",
            "100.64.0.1:80",
            "100.127.255.255:80",
            "[::1]:80",
            "[::]:80",
            "[ff02::1]:80",
            "[fe80::1]:80",
            "[febf::1]:80",
            "[fd00:1::7]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:169.254.169.254]:80",
            "[::ffff:100.64.0.1]:80",
            "[::127.0.0.1]:80",
            "[fd00:ec2::254]:80",
            "[64:ff9b::7f00:1]:80",
            "[64:ff9b::a9fe:a9fe]:80",
        ] {
            assert!(!allowed(address), "{address}");
        }
    }
}
