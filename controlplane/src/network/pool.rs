//! Which IPv4 address a new node gets. Addresses are sticky, and rest for 30 days after their node is gone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ringmesh_tunnel::{UnixTime, ip::Prefix, key::NodeId};

use crate::store::Revision;

/// How long an address rests: as long as the longest-lived record that may still name it.
pub const REST: Duration = Duration::from_secs(30 * 24 * 3600);

/// An address that is, or was, somebody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) node: NodeId,
    /// When its node was removed.
    pub(crate) released: Option<UnixTime>,
    /// Of the store's entry, for the compare.
    pub(crate) revision: Revision,
}

impl Taken {
    fn is_free(&self, now: UnixTime) -> bool {
        self.released.is_some_and(|released| now.saturating_since(released) >= REST)
    }
}

/// The lowest address of `pool` that nobody has or had recently; the revision is 0 if nobody ever had it.
///
/// The network's own address and the broadcast address are left out, and so is any address that never was in the pool.
pub(crate) fn choose(
    pool: Prefix,
    taken: &BTreeMap<Ipv4Addr, Taken>,
    now: UnixTime,
) -> Option<(Ipv4Addr, Revision)> {
    let IpAddr::V4(network) = pool.address() else { return None };
    let size = 1_u64 << (32 - u32::from(pool.len().min(32)));
    let first = u64::from(network.to_bits());
    let last = first + size - 1;
    // Walks along the taken addresses, so that only they cost time, and takes the first gap.
    let mut next = first + 1;
    for (address, holder) in taken.range(network..) {
        let address = u64::from(address.to_bits());
        if address >= last {
            break;
        }
        if address > next {
            break;
        }
        if address == next {
            if holder.is_free(now) {
                return Some((ipv4(next)?, holder.revision));
            }
            next += 1;
        }
    }
    if next < last { Some((ipv4(next)?, 0)) } else { None }
}

fn ipv4(bits: u64) -> Option<Ipv4Addr> {
    u32::try_from(bits).ok().map(Ipv4Addr::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(entries: &[(&str, Option<u64>)]) -> BTreeMap<Ipv4Addr, Taken> {
        let holder = |released: Option<u64>| Taken {
            node: NodeId::from_bytes([1; 8]),
            released: released.map(UnixTime::from_secs),
            revision: 9,
        };
        entries.iter().map(|(address, released)| (address.parse().unwrap(), holder(*released))).collect()
    }

    fn chosen(pool: &str, entries: &[(&str, Option<u64>)], now: u64) -> Option<(String, Revision)> {
        let choice = choose(pool.parse().unwrap(), &taken(entries), UnixTime::from_secs(now));
        choice.map(|(address, revision)| (address.to_string(), revision))
    }

    #[test]
    fn the_lowest_free_address_is_chosen() {
        let pool = "10.0.0.0/29";
        assert_eq!(chosen(pool, &[], 0), Some(("10.0.0.1".into(), 0)));
        assert_eq!(chosen(pool, &[("10.0.0.1", None)], 0), Some(("10.0.0.2".into(), 0)));
        assert_eq!(chosen(pool, &[("10.0.0.1", None), ("10.0.0.3", None)], 0), Some(("10.0.0.2".into(), 0)));
        assert_eq!(chosen(pool, &[("10.0.0.2", None)], 0), Some(("10.0.0.1".into(), 0)));
    }

    #[test]
    fn a_pool_ends_before_its_broadcast_address() {
        let all: Vec<String> = (1..=6).map(|i| format!("10.0.0.{i}")).collect();
        let all: Vec<(&str, Option<u64>)> = all.iter().map(|address| (address.as_str(), None)).collect();
        assert_eq!(chosen("10.0.0.0/29", &all[..5], 0), Some(("10.0.0.6".into(), 0)));
        assert_eq!(chosen("10.0.0.0/29", &all, 0), None);
        assert_eq!(chosen("255.255.255.248/29", &[], 0), Some(("255.255.255.249".into(), 0)));
    }

    #[test]
    fn an_address_rests_for_30_days() {
        let released = 1_000_000;
        let day = 24 * 3600;
        let entries = [("10.0.0.1", Some(released))];
        assert_eq!(chosen("10.0.0.0/29", &entries, released + 30 * day - 1), Some(("10.0.0.2".into(), 0)));
        // Then it is taken over only if the entry is still the one that was seen.
        assert_eq!(chosen("10.0.0.0/29", &entries, released + 30 * day), Some(("10.0.0.1".into(), 9)));
        // A clock that went back frees nothing.
        assert_eq!(chosen("10.0.0.0/29", &entries, 0), Some(("10.0.0.2".into(), 0)));
    }
}
