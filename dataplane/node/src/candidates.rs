//! Where this node may be reached, put together from what the user, the machine and the relays say, and how often others are
//! told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ringmesh_tunnel::{
    ip::Prefix,
    key::NodeId,
    netmap::{ENDPOINTS_MAX, SSH_ENDPOINTS_MAX, candidate_is_allowed},
};

/// Addresses offered to peers inside sessions.
const OFFERED_MAX: usize = 16;
/// Reflexive addresses told to peers: one for each relay, as long as a few are enough.
const SEEN_MAX: usize = 4;
/// The time between two records when changes are rare, and when they do not cease.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is known of this node's own addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnAddresses {
    /// The user's word: a forwarded port, say.
    pub(crate) configured: Vec<SocketAddr>,
    /// This machine's addresses.
    pub(crate) host: Vec<IpAddr>,
    /// As relays see the node.
    pub(crate) seen: BTreeMap<NodeId, SocketAddr>,
    /// The UDP port.
    pub(crate) port: u16,
    /// The TCP port of the SSH endpoint, if there is one.
    pub(crate) ssh_port: Option<u16>,
    /// The network's own ranges: nothing in them leads here but the tunnel itself.
    pub(crate) pools: Vec<Prefix>,
}

/// What the node says of itself to the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OwnRecord {
    /// UDP endpoints, most promising first.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// URLs of a relay's WebSocket.
    pub(crate) websockets: Vec<String>,
    /// Addresses of the SSH endpoint.
    pub(crate) ssh: Vec<SocketAddr>,
}

impl OwnAddresses {
    /// What the core offers to peers inside sessions; what relays see it knows itself.
    pub(crate) fn offered(&self) -> Vec<SocketAddr> {
        distinct(self.configured.iter().copied().chain(self.host_endpoints()), OFFERED_MAX)
    }

    /// What everybody who may reach this node is told. What relays see goes before the machine's addresses, of which there
    /// may be more than a first attempt tries.
    pub(crate) fn record(&self) -> OwnRecord {
        let seen = self.seen.values().copied().filter(|address| candidate_is_allowed(*address, &self.pools));
        let seen = distinct(seen, SEEN_MAX);
        let endpoints = self.configured.iter().copied().chain(seen).chain(self.host_endpoints());
        let ssh = self.ssh_port.into_iter().flat_map(|port| self.host_with(port));
        OwnRecord {
            endpoints: distinct(endpoints, ENDPOINTS_MAX),
            websockets: Vec::new(),
            ssh: distinct(ssh, SSH_ENDPOINTS_MAX),
        }
    }

    fn host_endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.host_with(self.port)
    }

    fn host_with(&self, port: u16) -> impl Iterator<Item = SocketAddr> {
        self.host.iter().map(move |&address| SocketAddr::new(address, port))
    }
}

/// The first `most` of them, each once.
fn distinct(addresses: impl Iterator<Item = SocketAddr>, most: usize) -> Vec<SocketAddr> {
    let mut known = BTreeSet::new();
    addresses.filter(|address| known.insert(*address)).take(most).collect()
}

/// How often something that changes is told: at once if that is rare, and more and more seldom while it does not rest.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// When the next word may go out.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.last.map(|(at, pause)| at + pause)
    }

    /// A word goes out at `now`.
    pub(crate) fn told(&mut self, now: Instant) {
        let pause = match self.last {
            // As long again after the pause was over: it rests.
            Some((at, pause)) if now < at + 2 * pause => (2 * pause).min(LONGEST_PAUSE),
            Some(_) | None => SHORTEST_PAUSE,
        };
        self.last = Some((now, pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> OwnAddresses {
        OwnAddresses {
            configured: vec!["203.0.113.7:4000".parse().unwrap()],
            host: ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().unwrap()).to_vec(),
            seen: BTreeMap::new(),
            port: 51820,
            ssh_port: None,
            pools: vec!["100.64.0.0/10".parse().unwrap()],
        }
    }

    fn relay(number: u8) -> NodeId {
        NodeId::from_bytes([number; 8])
    }

    fn texts(addresses: &[SocketAddr]) -> Vec<String> {
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_relays_see_is_told_to_everybody_but_not_offered_twice() {
        let mut own = own();
        own.seen.insert(relay(1), "198.51.100.1:7777".parse().unwrap());
        own.seen.insert(relay(2), "198.51.100.1:7777".parse().unwrap());
        own.seen.insert(relay(3), "192.0.2.7:51820".parse().unwrap());
        let record = own.record();
        let wanted = ["203.0.113.7:4000", "198.51.100.1:7777", "192.0.2.7:51820", "[2001:db8::7]:51820"];
        assert_eq!(texts(&record.endpoints), wanted);
        assert_eq!(texts(&own.offered()), ["203.0.113.7:4000", "192.0.2.7:51820", "[2001:db8::7]:51820"]);
        assert!(record.ssh.is_empty());
    }

    #[test]
    fn a_relay_cannot_make_the_node_tell_addresses_that_are_nobodys() {
        let mut own = own();
        for (number, address) in
            ["127.0.0.1:1", "100.64.0.9:1", "224.0.0.1:1", "0.0.0.0:1"].iter().enumerate()
        {
            own.seen.insert(relay(number as u8), address.parse().unwrap());
        }
        assert_eq!(own.record(), self::own().record());
    }

    #[test]
    fn many_relays_do_not_crowd_out_the_machines_own_addresses() {
        let mut own = own();
        for number in 0..40 {
            own.seen.insert(relay(number), SocketAddr::from(([198, 51, 100, number], 9)));
        }
        let endpoints = own.record().endpoints;
        assert_eq!(endpoints.len(), 1 + SEEN_MAX + 2);
        own.host = (1..=100).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(own.record().endpoints.len(), ENDPOINTS_MAX);
        assert_eq!(own.offered().len(), OFFERED_MAX);
    }

    #[test]
    fn the_ssh_endpoint_is_told_if_there_is_one() {
        let own = OwnAddresses { ssh_port: Some(2222), ..own() };
        assert_eq!(texts(&own.record().ssh), ["192.0.2.7:2222", "[2001:db8::7]:2222"]);
        let many = (1..=100).map(|last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(OwnAddresses { host: many, ..own }.record().ssh.len(), SSH_ENDPOINTS_MAX);
    }

    #[test]
    fn flapping_is_told_ever_more_seldom_and_rest_is_rewarded() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.next(), None, "the first word goes at once");
        let mut now = begin;
        let mut told = 0;
        while now < begin + Duration::from_secs(600) {
            pace.told(now);
            told += 1;
            // There is always something new.
            now = pace.next().unwrap();
        }
        assert!(told <= 17, "{told} words in ten minutes");
        assert_eq!(now.duration_since(pace.last.unwrap().0), LONGEST_PAUSE);
        now += 2 * LONGEST_PAUSE;
        pace.told(now);
        assert_eq!(pace.next(), Some(now + SHORTEST_PAUSE));
    }
}
