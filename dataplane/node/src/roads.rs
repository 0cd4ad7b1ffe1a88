//! What it takes to open each link that the core may ask for, under the number by which the core knows it.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use ringmesh_tunnel::{
    Carrier, LinkCandidate,
    ip::Prefix,
    key::{IdentityKey, NodeId},
};

use crate::config::SshRoad;

/// Links that the core keeps for one peer.
const LINKS_MAX: usize = 8;

/// A stream that can be opened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Road {
    /// Through an SSH server that the user has, as configured.
    Server(SshRoad),
    /// To the peer's own SSH endpoint, whose host key is the peer's identity key.
    Endpoint {
        /// Where it is.
        address: SocketAddr,
        /// The peer's identity key.
        host_key: IdentityKey,
    },
    /// To a relay's WebSocket.
    WebSocket {
        /// `wss://host:port/path`.
        url: String,
    },
}

impl Road {
    /// What the stream is made of.
    pub(crate) const fn carrier(&self) -> Carrier {
        match self {
            Self::Server(_) | Self::Endpoint { .. } => Carrier::Ssh,
            Self::WebSocket { .. } => Carrier::WebSocket,
        }
    }
}

impl Road {
    /// Whether places are kept for it among the streams that are opened: it leads to a relay, or the user configured it. Only
    /// what ordinary members say of themselves may be of any number.
    pub(crate) const fn is_favoured(&self) -> bool {
        match self {
            Self::Server(_) | Self::WebSocket { .. } => true,
            Self::Endpoint { .. } => false,
        }
    }
}

impl fmt::Display for Road {
    /// Where it leads; what it is made of is its [carrier](Self::carrier).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(road) => write!(f, "{}@{}", road.user, road.host),
            Self::Endpoint { address, .. } => address.fmt(f),
            Self::WebSocket { url } => f.write_str(url),
        }
    }
}

/// The roads there are. A road keeps its number while it is there, and no number is ever given to another.
#[derive(Debug, Default)]
pub(crate) struct Roads {
    numbers: BTreeMap<(NodeId, Road), u32>,
    last: u32,
    pools: Vec<Prefix>,
}

impl Roads {
    /// Makes `wanted` the roads, best first for each peer, and gives the candidates of each peer.
    ///
    /// A peer that is `silent`, of whose whereabouts the map tells nothing at all, keeps the roads it had: a coordinator that
    /// has just started knows of no node where it is, and no open stream is to end for that.
    pub(crate) fn replace(
        &mut self,
        wanted: impl IntoIterator<Item = (NodeId, Road)>,
        silent: impl Fn(NodeId) -> bool,
    ) -> BTreeMap<NodeId, Vec<LinkCandidate>> {
        let before = std::mem::take(&mut self.numbers);
        let kept = before.keys().filter(|(peer, _)| silent(*peer)).cloned();
        let wanted = wanted.into_iter().chain(kept);
        let mut candidates: BTreeMap<NodeId, Vec<LinkCandidate>> = BTreeMap::new();
        for (peer, road) in wanted {
            let links = candidates.entry(peer).or_default();
            let carrier = road.carrier();
            let at = (peer, road);
            if links.len() >= LINKS_MAX || self.numbers.contains_key(&at) {
                continue;
            }
            let number = before.get(&at).copied().unwrap_or_else(|| {
                // More roads than that no daemon lives to see.
                self.last = self.last.wrapping_add(1);
                self.last
            });
            links.push(LinkCandidate { number, carrier });
            self.numbers.insert(at, number);
        }
        candidates
    }

    /// Makes `pools` the network's own ranges, into which no road leads.
    pub(crate) fn set_pools(&mut self, pools: &[Prefix]) {
        self.pools = pools.to_vec();
    }

    /// The network's own ranges.
    pub(crate) fn pools(&self) -> &[Prefix] {
        &self.pools
    }

    /// The road that the core means.
    pub(crate) fn find(&self, peer: NodeId, number: u32) -> Option<&Road> {
        self.numbers
            .iter()
            .find(|((of, _), known)| *of == peer && **known == number)
            .map(|((_, road), _)| road)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId::from_bytes([1; 8]);
    const TWO: NodeId = NodeId::from_bytes([2; 8]);

    /// Of nobody it is unknown where he is.
    fn heard(_: NodeId) -> bool {
        false
    }

    fn web(url: &str) -> Road {
        Road::WebSocket { url: url.to_owned() }
    }

    #[test]
    fn a_road_keeps_its_number_as_others_come_and_go() {
        let mut roads = Roads::default();
        let first =
            roads.replace([(ONE, web("wss://a")), (ONE, web("wss://b")), (TWO, web("wss://a"))], heard);
        let (a, b, other) = (first[&ONE][0], first[&ONE][1], first[&TWO][0]);
        assert!(a.number != b.number && a.number != other.number && b.number != other.number);

        let second = roads.replace([(ONE, web("wss://c")), (ONE, web("wss://b"))], heard);
        assert_eq!(second[&ONE][1], b);
        assert_eq!(roads.find(ONE, b.number), Some(&web("wss://b")));
        assert_eq!(roads.find(TWO, b.number), None, "a number is one peer's");
        assert_eq!(roads.find(ONE, a.number), None, "a road that is gone is not dialled");

        let third = roads.replace([(ONE, web("wss://a"))], heard);
        assert!(third[&ONE][0].number > other.number, "a number means one road for ever");
    }

    #[test]
    fn a_peer_of_whom_nothing_is_told_keeps_its_roads_and_one_that_tells_does_not() {
        let mut roads = Roads::default();
        let first = roads.replace([(ONE, web("wss://a")), (TWO, web("wss://a"))], heard);
        let after_restart = roads.replace([], |peer| peer == ONE);
        assert_eq!(after_restart.get(&ONE), first.get(&ONE));
        assert_eq!(after_restart.get(&TWO), None);
        let told = roads.replace([(ONE, web("wss://b"))], heard);
        assert_eq!(told[&ONE].len(), 1);
        assert_ne!(told.get(&ONE), first.get(&ONE));
        let both = roads.replace([(ONE, web("wss://b"))], |peer| peer == ONE);
        assert_eq!(both, told, "a configured road is there once");
    }

    #[test]
    fn a_peer_has_no_more_roads_than_the_core_keeps_and_each_once() {
        let mut roads = Roads::default();
        let many = (0..20).map(|number| (ONE, web(&format!("wss://{}", number / 2))));
        let links = &roads.replace(many, heard)[&ONE];
        assert_eq!(links.len(), LINKS_MAX);
        assert!(roads.find(ONE, links[7].number).is_some());
        assert_eq!(roads.numbers.len(), LINKS_MAX);
    }

    #[test]
    fn a_road_is_named_as_its_user_knows_it() {
        let host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let road = SshRoad {
            peer: "gate".to_owned(),
            host: "gate.example".parse().unwrap(),
            user: "mesh".to_owned(),
            key: Some("/k".into()),
            agent: None,
            host_key: Some(host_key.to_owned()),
            known_hosts: None,
            socket: "/run/mesh/link.sock".into(),
        };
        assert_eq!(Road::Server(road).to_string(), "mesh@gate.example:22");
        let host_key = ringmesh_tunnel::key::IdentitySecret::from_seed([1; 32]).public_key();
        let endpoint = Road::Endpoint { address: "[2001:db8::7]:2222".parse().unwrap(), host_key };
        assert_eq!(endpoint.to_string(), "[2001:db8::7]:2222");
        assert_eq!(web("wss://r.example/relay/v1").to_string(), "wss://r.example/relay/v1");
    }
}
