//! Whether the network's pools would fight with what the machine already routes. Decided before anything is changed.

use std::collections::BTreeMap;

use ringmesh_proto::control::Reason;
use ringmesh_tunnel::ip::Prefix;

use super::netlink::{Address, Route, TABLE_MAIN};
use crate::error::Failure;

/// Refuses if a pool overlaps an address or a route of the machine; default routes overlap everything and do not count.
///
/// # Errors
/// [`Reason::Conflict`], naming pool, address or route, interface and cure.
pub(crate) fn check(
    pools: &[Prefix],
    addresses: &[Address],
    routes: &[Route],
    interfaces: &BTreeMap<u32, String>,
) -> Result<(), Failure> {
    let name = |index: u32| interfaces.get(&index).map_or("?", String::as_str);
    for pool in pools {
        for found in addresses {
            if pool.contains(found.address) {
                return Err(conflict(
                    pool,
                    &format!("the address {}/{} of {}", found.address, found.len, name(found.interface)),
                    "another VPN with the same addresses may be running: stop it",
                ));
            }
        }
        for found in routes {
            if found.destination.len() == 0 || !pool.overlaps(&found.destination) {
                continue;
            }
            let via = found.interface.map_or_else(String::new, |index| format!(" through {}", name(index)));
            let table =
                if found.table == TABLE_MAIN { String::new() } else { format!(" (table {})", found.table) };
            return Err(conflict(
                pool,
                &format!("the route {}{via}{table}", found.destination),
                &format!("remove that route (`ip route del {}`) if it is not needed", found.destination),
            ));
        }
    }
    Ok(())
}

fn conflict(pool: &Prefix, with: &str, cure: &str) -> Failure {
    Failure::new(
        Reason::Conflict,
        format!(
            "the network's address pool {pool} collides with {with} on this machine; {cure}, or use a network with another pool"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> BTreeMap<u32, String> {
        BTreeMap::from([(2, "eth0".to_owned()), (9, "tailscale0".to_owned())])
    }

    fn pools() -> Vec<Prefix> {
        vec!["100.64.0.0/10".parse().unwrap(), "fd12:3456::/48".parse().unwrap()]
    }

    fn address(text: &str, len: u8, interface: u32) -> Address {
        Address { address: text.parse().unwrap(), len, interface, lasting: true }
    }

    fn route(destination: &str, interface: Option<u32>, table: u32) -> Route {
        Route { destination: destination.parse().unwrap(), interface, table }
    }

    #[test]
    fn an_ordinary_machine_does_not_collide() {
        let addresses = [address("192.0.2.7", 24, 2), address("2001:db8::7", 64, 2)];
        let routes = [
            route("0.0.0.0/0", Some(2), TABLE_MAIN),
            route("192.0.2.0/24", Some(2), TABLE_MAIN),
            route("::/0", Some(2), TABLE_MAIN),
        ];
        check(&pools(), &addresses, &routes, &interfaces()).unwrap();
    }

    #[test]
    fn an_address_inside_the_pool_is_named_with_its_interface() {
        let failure = check(&pools(), &[address("100.101.102.103", 32, 9)], &[], &interfaces()).unwrap_err();
        let text = failure.to_string();
        assert_eq!(failure.reason(), Reason::Conflict);
        assert!(
            text.contains("100.64.0.0/10") && text.contains("100.101.102.103/32 of tailscale0"),
            "{text}"
        );
    }

    #[test]
    fn a_route_collides_whether_wider_or_narrower_than_the_pool() {
        for (destination, interface, table, words) in [
            ("100.0.0.0/8", Some(2), TABLE_MAIN, "100.0.0.0/8 through eth0"),
            ("100.100.7.0/24", Some(2), TABLE_MAIN, "100.100.7.0/24 through eth0"),
            ("100.64.0.0/10", None, 52, "(table 52)"),
            ("fd12:3456:0:7::/64", Some(9), TABLE_MAIN, "through tailscale0"),
        ] {
            let failure =
                check(&pools(), &[], &[route(destination, interface, table)], &interfaces()).unwrap_err();
            let text = failure.to_string();
            assert!(text.contains(words) && text.contains("ip route del"), "{destination}: {text}");
        }
    }
}
