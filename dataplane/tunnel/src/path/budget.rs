//! How much is sent to addresses that never answered.
//!
//! Where a peer is, it says itself, and the source of a datagram can be forged; so a member could have every node send to somebody
//! who has nothing to do with it. What goes to an address that has not yet answered anything only the right receiver could
//! answer is therefore counted: by address, and by machine over all of its ports, for all peers together. The counts outlive
//! the candidates they were made for, so that naming an address anew earns nothing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Datagrams at once to one address, and the pause that earns one more: 20 in any minute at most.
const ADDRESS: Allowance = Allowance { at_once: 8, pause: Duration::from_secs(5) };
/// The same for one IPv4 address or IPv6 /64, whatever the port: 80 in any minute at most. A router with many nodes behind it is
/// one machine from outside.
const MACHINE: Allowance = Allowance { at_once: 40, pause: Duration::from_millis(1_500) };
/// Counts kept of each kind. When all are in use, nothing goes to further strangers until one is earned back.
const MAX_COUNTS: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Allowance {
    at_once: u32,
    pause: Duration,
}

/// What was sent to strangers' addresses lately.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    addresses: BTreeMap<SocketAddr, Instant>,
    machines: BTreeMap<IpAddr, Instant>,
}

impl Budgets {
    /// Takes one datagram to `address`, or tells when there will be one.
    pub(crate) fn take(&mut self, address: SocketAddr, now: Instant) -> Result<(), Instant> {
        let machine = machine(address.ip());
        let by_address = ADDRESS.next(self.addresses.get(&address), now);
        let by_machine = MACHINE.next(self.machines.get(&machine), now);
        let earliest = by_address.err().max(by_machine.err());
        if let Some(earliest) = earliest {
            return Err(earliest);
        }
        make_room(&mut self.addresses, &address, now)?;
        make_room(&mut self.machines, &machine, now)?;
        if let (Ok(address_earned), Ok(machine_earned)) = (by_address, by_machine) {
            self.addresses.insert(address, address_earned);
            self.machines.insert(machine, machine_earned);
        }
        Ok(())
    }
}

impl Allowance {
    /// When all that was spent, one more included, is earned again; or when one more may be spent.
    fn next(self, earned: Option<&Instant>, now: Instant) -> Result<Instant, Instant> {
        let earned = earned.map_or(now, |&earned| earned.max(now)) + self.pause;
        let limit = now + self.pause.saturating_mul(self.at_once);
        if earned > limit { Err(now + earned.saturating_duration_since(limit)) } else { Ok(earned) }
    }
}

/// Drops counts that are earned back if there is no room for one more.
fn make_room<K: Ord>(counts: &mut BTreeMap<K, Instant>, key: &K, now: Instant) -> Result<(), Instant> {
    if counts.len() >= MAX_COUNTS && !counts.contains_key(key) {
        counts.retain(|_, earned| *earned > now);
        if counts.len() >= MAX_COUNTS {
            return Err(counts.values().min().copied().unwrap_or(now));
        }
    }
    Ok(())
}

/// One IPv4 address, or the /64 that an IPv6 host chooses its addresses from.
fn machine(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() & !u128::from(u64::MAX)).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::test_epoch;

    fn address(machine: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, machine], port))
    }

    /// How many of tries every 10 ms for a minute are allowed, `next` telling where the next one goes.
    fn allowed(mut next: impl FnMut(u32) -> SocketAddr) -> usize {
        let (mut budgets, start) = (Budgets::default(), test_epoch());
        let tries = (0..6_000).map(|number| (next(number), start + Duration::from_millis(10) * number));
        tries.filter(|&(to, at)| budgets.take(to, at).is_ok()).count()
    }

    #[test]
    fn one_address_gets_twenty_in_a_minute() {
        let count = allowed(|_| address(1, 1));
        assert!((19..=20).contains(&count), "{count}");
    }

    #[test]
    fn one_machine_gets_eighty_in_a_minute_over_all_its_ports() {
        let count = allowed(|number| address(1, 1 + number as u16));
        assert!((79..=80).contains(&count), "{count}");
        let v6 = |number: u32| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16], 1));
        let count = allowed(v6);
        assert!((79..=80).contains(&count), "a /64 is one machine: {count}");
        let mapped = |number: u32| match number % 2 {
            0 => address(1, number as u16),
            _ => SocketAddr::new("::ffff:192.0.2.1".parse().unwrap(), number as u16),
        };
        assert!(allowed(mapped) <= 80);
    }

    #[test]
    fn who_is_refused_is_told_when_to_come_again() {
        let (mut budgets, start) = (Budgets::default(), test_epoch());
        let again = std::iter::repeat_with(|| budgets.take(address(1, 1), start)).find_map(Result::err);
        assert_eq!(again, Some(start + ADDRESS.pause));
        assert!(budgets.take(address(1, 1), start + ADDRESS.pause).is_ok());
        assert!(budgets.take(address(1, 1), start + ADDRESS.pause).is_err());
    }

    #[test]
    fn counts_are_bounded_and_come_free_again() {
        let (mut budgets, start) = (Budgets::default(), test_epoch());
        let stranger = |number: u32| SocketAddr::new((0x0a00_0000 + number).to_be_bytes().into(), 1);
        let taken = (0..10_000).filter(|&number| budgets.take(stranger(number), start).is_ok()).count();
        assert_eq!(taken, MAX_COUNTS);
        assert!(budgets.take(stranger(9_999), start + ADDRESS.pause + MACHINE.pause).is_ok());
    }
}
