//! Where members may have this node connect to, and how often.
//!
//! A member says itself where its SSH endpoint or its WebSocket is, and all its peers go there. So what it says could have each of
//! them knock at the doors of somebody else: of this machine, of what a cloud serves its machines, of the mesh itself, or of any third
//! party. Addresses are judged as they come out of the resolver, which makes 127.0.0.1 of `127.1`, `0x7f.1` and of any name that
//! its owner likes. What the user configured is not judged.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ringmesh_tunnel::{ip::Prefix, key::NodeId, netmap::candidate_is_allowed};

/// Where Amazon serves credentials to its machines over IPv6, as 169.254.169.254 over IPv4.
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Knocks at one destination by all peers together: so many at once, and one more in each such time. Never more than 20 a minute.
const AT_ONCE: u32 = 10;
const EVERY: Duration = Duration::from_secs(6);
/// The same by one peer, so that it does not use up what others have for a destination that they share with it.
const AT_ONCE_OF_ONE: u32 = 8;
const EVERY_OF_ONE: Duration = Duration::from_millis(7500);
/// Destinations, times peers, that are remembered.
const TALLIES_MAX: usize = 4096;
/// Doors that answered and are remembered.
const ANSWERED_MAX: usize = 4096;
/// For so long after a session began there, a door may be knocked at without limit.
const ANSWERED_FOR: Duration = Duration::from_secs(24 * 3600);

/// Whether this node connects to, or sends to, an address because a member names it; `pools` are the network's own ranges.
pub(crate) fn may_be_named(address: SocketAddr, pools: &[Prefix]) -> bool {
    candidate_is_allowed(address, pools) && address.ip() != IpAddr::V6(AWS_METADATA)
}

/// Whether a host that a member names is a name, or an address that it may name.
///
/// Numbers that are no address in the usual form are refused, since whoever resolves them, perhaps a proxy, may take them for one
/// (`inet_aton(3)`).
pub(crate) fn host_may_be_named(host: &str, port: u16, pools: &[Prefix]) -> bool {
    if let Ok(address) = host.parse::<IpAddr>() {
        return may_be_named(SocketAddr::new(address, port), pools);
    }
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
    // RFC 6761 §6.3: `localhost` and all names below it.
    !is_number && last != "localhost" && !host.contains(':')
}

/// Something to connect to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Door {
    /// An address.
    Address(SocketAddr),
    /// A name that a proxy resolves.
    Name(String, u16),
}

/// What is counted as one destination: an address, or the network that one customer of a provider has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    Address(IpAddr),
    Name(String),
}

impl Destination {
    fn of(door: &Door) -> Self {
        match door {
            Door::Address(address) => Self::Address(match address.ip().to_canonical() {
                IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & (!0 << 64))),
                v4 @ IpAddr::V4(_) => v4,
            }),
            Door::Name(name, _) => Self::Name(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()),
        }
    }
}

/// How often doors were knocked at.
#[derive(Debug, Default)]
pub(crate) struct Doors {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Relays have theirs apart: no peer that is none can use up what a relay's address has.
    relays: Tallies,
    others: Tallies,
    /// Where a session began, and when.
    answered: BTreeMap<Door, Instant>,
}

/// For a destination, and for each peer at it, when it is as if nobody had ever knocked.
type Tallies = BTreeMap<(Destination, Option<NodeId>), Instant>;

impl Doors {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a knock because of `peer`, unless there were too many.
    fn knock(&self, door: &Door, peer: NodeId, relay: bool, now: Instant) -> bool {
        let mut inner = self.inner();
        let began = inner.answered.get(door).copied();
        if began.is_some_and(|began| now.saturating_duration_since(began) < ANSWERED_FOR) {
            return true;
        }
        let tallies = if relay { &mut inner.relays } else { &mut inner.others };
        if tallies.len() + 2 > TALLIES_MAX {
            tallies.retain(|_, calm| *calm > now);
        }
        // Who is not remembered is not let through: else many destinations would lift the limit of each.
        if tallies.len() + 2 > TALLIES_MAX {
            return false;
        }
        let destination = Destination::of(door);
        let (all, one) = ((destination.clone(), None), (destination, Some(peer)));
        let Some(all_calm) = later(tallies.get(&all), now, EVERY, AT_ONCE) else { return false };
        let Some(calm) = later(tallies.get(&one), now, EVERY_OF_ONE, AT_ONCE_OF_ONE) else { return false };
        tallies.insert(all, all_calm);
        tallies.insert(one, calm);
        true
    }

    /// A session began behind this door: whoever named it did not send us to a stranger.
    pub(crate) fn answered(&self, door: Door, now: Instant) {
        let mut inner = self.inner();
        if inner.answered.len() >= ANSWERED_MAX && !inner.answered.contains_key(&door) {
            let oldest = inner.answered.iter().min_by_key(|(_, began)| **began).map(|(door, _)| door.clone());
            oldest.map(|oldest| inner.answered.remove(&oldest));
        }
        inner.answered.insert(door, now);
    }
}

/// A bucket that leaks, kept as the moment at which it is empty: that moment after one more drop, unless it runs over.
fn later(empty: Option<&Instant>, now: Instant, every: Duration, burst: u32) -> Option<Instant> {
    let next = empty.map_or(now, |empty| (*empty).max(now)) + every;
    (next <= now + every * burst).then_some(next)
}

/// An attempt to connect to where a member says that it is.
#[derive(Debug)]
pub(crate) struct Visit<'a> {
    doors: &'a Doors,
    pools: &'a [Prefix],
    peer: NodeId,
    relay: bool,
    entered: Mutex<Option<Door>>,
}

impl<'a> Visit<'a> {
    /// An attempt because of `peer`, which is a `relay` or not.
    pub(crate) fn new(doors: &'a Doors, pools: &'a [Prefix], peer: NodeId, relay: bool) -> Self {
        Self { doors, pools, peer, relay, entered: Mutex::default() }
    }

    /// Asks before each connection to a resolved address.
    ///
    /// # Errors
    /// It is none that a member may name, or was knocked at too often.
    pub(super) fn to_address(&self, address: SocketAddr) -> io::Result<()> {
        if !may_be_named(address, self.pools) {
            return Err(refused(format!("it leads to {}, where no member may send its peers", address.ip())));
        }
        self.count(&Door::Address(address))
    }

    /// Asks before a proxy is asked for `host`.
    ///
    /// # Errors
    /// As for [`to_address`](Self::to_address), as far as the host tells.
    pub(super) fn to_host(&self, host: &str, port: u16) -> io::Result<Door> {
        if !host_may_be_named(host, port, self.pools) {
            return Err(refused(format!("it leads to {host}, where no member may send its peers")));
        }
        let address = host.parse::<IpAddr>().map(|ip| Door::Address(SocketAddr::new(ip, port)));
        let door = address.unwrap_or_else(|_| Door::Name(host.to_owned(), port));
        self.count(&door)?;
        Ok(door)
    }

    fn count(&self, door: &Door) -> io::Result<()> {
        if self.doors.knock(door, self.peer, self.relay, Instant::now()) {
            return Ok(());
        }
        Err(refused("it was tried too often without a session; it has to wait".to_owned()))
    }

    /// The connection is there.
    pub(super) fn entered(&self, door: Door) {
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner) = Some(door);
    }

    /// Through which door the connection went.
    pub(crate) fn door(&self) -> Option<Door> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 8]);

    fn door(text: &str) -> Door {
        Door::Address(text.parse().unwrap())
    }

    fn peer(number: u8) -> NodeId {
        NodeId::from_bytes([number; 8])
    }

    fn heard(doors: &Doors, text: &str, peer: NodeId, now: Instant) -> usize {
        (0..100).filter(|_| doors.knock(&door(text), peer, false, now)).count()
    }

    #[test]
    fn no_spelling_of_a_forbidden_address_is_a_host() {
        let pools = ["100.64.0.0/10".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
        for host in [
            "2130706433",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "0177.0.0.1",
            "127.0.0.1.",
            "017700000001",
            "1.2.3.0x4",
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.64.0.9",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fe80::1%eth0",
            "fd00:1::7",
            "fd00:ec2::254",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "a.localhost",
            "a.LocalHost.",
            "",
            ".",
        ] {
            assert!(!host_may_be_named(host, 443, &pools), "{host}");
        }
        for host in [
            "relay.example",
            "relay.example.",
            "7.example",
            "0x7f.example",
            "192.0.2.1",
            "2001:db8::1",
            "gate",
        ] {
            assert!(host_may_be_named(host, 443, &pools), "{host}");
        }
        assert!(!may_be_named("[fd00:ec2::254]:22".parse().unwrap(), &pools));
        assert!(may_be_named("[fd00:ec2::255]:22".parse().unwrap(), &pools));
    }

    #[test]
    fn all_peers_together_knock_at_a_destination_twenty_times_a_minute_at_most() {
        let (doors, now) = (Doors::default(), Instant::now());
        let mut knocks = 0;
        for second in 0..60 {
            for port in 1..=8_u16 {
                for number in 1..=5 {
                    let at = now + Duration::from_secs(second);
                    knocks += usize::from(doors.knock(
                        &door(&format!("192.0.2.1:{port}")),
                        peer(number),
                        false,
                        at,
                    ));
                }
            }
        }
        assert!((15..=20).contains(&knocks), "{knocks}");
        assert!(heard(&doors, "192.0.2.2:1", PEER, now) > 0, "another destination has its own");
        assert!(doors.knock(&door("192.0.2.1:443"), PEER, true, now), "no peer uses up what a relay has");
    }

    #[test]
    fn one_peer_does_not_use_up_what_another_has() {
        let (doors, now) = (Doors::default(), Instant::now());
        assert_eq!(heard(&doors, "192.0.2.1:1", peer(1), now), AT_ONCE_OF_ONE as usize);
        assert_eq!(heard(&doors, "192.0.2.1:2", peer(2), now), (AT_ONCE - AT_ONCE_OF_ONE) as usize);
    }

    #[test]
    fn a_network_of_ipv6_is_one_destination_and_an_embedded_address_is_what_it_holds() {
        let (doors, now) = (Doors::default(), Instant::now());
        assert_eq!(heard(&doors, "[2001:db8::1]:1", peer(1), now), AT_ONCE_OF_ONE as usize);
        assert_eq!(heard(&doors, "[2001:db8::ffff:0:1]:1", peer(1), now), 0);
        assert!(heard(&doors, "[2001:db8:0:1::1]:1", peer(1), now) > 0);
        heard(&doors, "192.0.2.1:1", peer(1), now);
        assert_eq!(heard(&doors, "[::ffff:192.0.2.1]:1", peer(1), now), 0);
    }

    #[test]
    fn where_a_session_began_is_knocked_at_freely_and_not_at_its_other_doors() {
        let (doors, now) = (Doors::default(), Instant::now());
        doors.answered(door("192.0.2.1:22"), now);
        assert_eq!(heard(&doors, "192.0.2.1:22", PEER, now), 100);
        assert_eq!(heard(&doors, "192.0.2.1:23", PEER, now), AT_ONCE_OF_ONE as usize);
        assert!(heard(&doors, "192.0.2.1:22", PEER, now + ANSWERED_FOR) < 100, "a day later it is anybody's");
    }

    #[test]
    fn many_destinations_cost_bounded_memory_and_lift_no_limit() {
        let (doors, now) = (Doors::default(), Instant::now());
        for number in 0..10_000_u32 {
            let [_, _, c, d] = number.to_be_bytes();
            doors.knock(&Door::Address(([198, 18 + (c >> 7), c, d], 1).into()), PEER, false, now);
            doors.answered(Door::Name(number.to_string(), 1), now);
        }
        let inner = doors.inner();
        assert!(inner.others.len() <= TALLIES_MAX && inner.answered.len() <= ANSWERED_MAX);
        drop(inner);
        assert!(!doors.knock(&door("192.0.2.1:1"), PEER, false, now));
        assert!(doors.knock(&door("192.0.2.1:1"), PEER, false, now + Duration::from_secs(60)));
    }

    #[test]
    fn what_the_proxy_resolves_is_counted_by_its_name() {
        let (doors, pools) = (Doors::default(), []);
        let visit = Visit::new(&doors, &pools, PEER, false);
        let asked = (0..100).filter(|port| visit.to_host("Relay.example.", 1 + port).is_ok()).count();
        assert_eq!(asked, AT_ONCE_OF_ONE as usize);
        assert!(visit.to_host("relay.example", 443).is_err());
        assert!(visit.to_host("127.1", 443).unwrap_err().to_string().contains("no member may"));
    }
}
