//! From the verified map to what the data plane needs: who are the peers, by which keys, addresses, candidates and links.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use ringmesh_tunnel::{
    LinkCandidate, PeerConfig, Psk,
    ip::Prefix,
    key::{NodeId, PublicKey},
    netmap::{Member, MemberKind, NetworkMap, NodeRecord},
    time::UnixTime,
};
use tracing::warn;

use crate::{
    config::SshRoad,
    fallback::{
        doors::{host_may_be_named, may_be_named},
        websocket::RelayUrl,
    },
    roads::{Road, Roads},
    state::Secrets,
};

/// A relay is to be reached, and to reach us, at any time: often enough for the mappings of usual NATs (RFC 4787 REQ-5).
const RELAY_KEEPALIVE: u16 = 25;

/// What is known besides the map.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// Beside the map: the keys of epochs and stock devices.
    pub(crate) secrets: &'a Secrets,
    /// This node's key.
    pub(crate) own: &'a PublicKey,
    /// The network's own ranges, in which no candidate lies.
    pub(crate) pools: &'a [Prefix],
    /// Configured roads to peers.
    pub(crate) ssh: &'a [SshRoad],
}

/// The peers in force at `now`, relays among them; `roads` are made theirs. A member for whom no pre-shared key is known is
/// left out: it is never reached without one.
pub(crate) fn of_map(
    map: &NetworkMap,
    known: &Known<'_>,
    roads: &mut Roads,
    now: UnixTime,
) -> Vec<PeerConfig> {
    let silent = map.peers(now).map(|member| member.id).filter(|id| map.node_record(*id).is_none());
    let silent: BTreeSet<_> = silent.collect();
    let wanted = map.peers(now).flat_map(|member| roads_to(map, known, member));
    roads.set_pools(known.pools);
    let mut links = roads.replace(wanted, |peer| silent.contains(&peer));
    map.peers(now).filter_map(|member| peer(map, known, member, &mut links)).collect()
}

/// Whom this node serves as a relay at `now`: every node of ours, without inner addresses, as no packet is for a relay.
pub(crate) fn clients(map: &NetworkMap, known: &Known<'_>, now: UnixTime) -> Vec<PeerConfig> {
    let nodes = map.peers(now).filter(|member| member.kind == MemberKind::Mesh);
    let client = |member: &Member| {
        Some(PeerConfig {
            id: member.id,
            key: member.noise_key,
            psk: psk(map, known, member)?,
            mesh: true,
            allowed_ips: Vec::new(),
            candidates: Vec::new(),
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        })
    };
    nodes.filter_map(client).collect()
}

/// Whether a pre-shared key for this member is known; without one it is no peer.
pub(crate) fn has_key(secrets: &Secrets, member: &Member) -> bool {
    match member.kind {
        MemberKind::Mesh => secrets.epoch() != 0,
        MemberKind::Stock => secrets.peer_psk(member.id).is_some(),
    }
}

/// Whether a member passes on what cannot go straight. Only a node of ours can.
pub(crate) fn is_relay(member: &Member) -> bool {
    member.relay && member.kind == MemberKind::Mesh
}

fn psk(map: &NetworkMap, known: &Known<'_>, member: &Member) -> Option<Psk> {
    match member.kind {
        MemberKind::Mesh => known.secrets.epochs_psk(map.network(), known.own, &member.noise_key),
        MemberKind::Stock => known.secrets.peer_psk(member.id).map(Psk::Fixed),
    }
}

fn peer(
    map: &NetworkMap,
    known: &Known<'_>,
    member: &Member,
    links: &mut BTreeMap<NodeId, Vec<LinkCandidate>>,
) -> Option<PeerConfig> {
    let Some(psk) = psk(map, known, member) else {
        warn!(event = "peer_without_key", peer = %member.id, name = member.name, "no pre-shared key for this peer yet; it stays unreachable");
        return None;
    };
    // The peer says where it is, so it could have us send to somebody else.
    let said = map.node_record(member.id).map(|record| record.endpoints.as_slice()).unwrap_or_default();
    let candidates = said.iter().copied().filter(|address| may_be_named(*address, known.pools)).collect();
    let relay = is_relay(member);
    Some(PeerConfig {
        id: member.id,
        key: member.noise_key,
        psk,
        mesh: member.kind == MemberKind::Mesh,
        // A relay carries packets of others, sealed, and sends none.
        allowed_ips: if relay { Vec::new() } else { member.allowed_ips().collect() },
        candidates,
        links: links.remove(&member.id).unwrap_or_default(),
        relay,
        persistent_keepalive: relay.then_some(RELAY_KEEPALIVE),
    })
}

/// The streams that can be opened to a member: what the user configured first, then what it says itself.
fn roads_to(map: &NetworkMap, known: &Known<'_>, member: &Member) -> Vec<(NodeId, Road)> {
    let Some(host_key) = member.identity_key.filter(|_| member.kind == MemberKind::Mesh) else {
        return Vec::new();
    };
    let id = member.id.to_string();
    let meant = |road: &&SshRoad| road.peer.eq_ignore_ascii_case(&member.name) || road.peer == id;
    let configured = known.ssh.iter().filter(meant).cloned().map(Road::Server);
    let said = map.node_record(member.id).into_iter().flat_map(|record| said_by(record, known.pools));
    configured
        .chain(said.map(|said| match said {
            Said::Ssh(address) => Road::Endpoint { address, host_key },
            Said::WebSocket(url) => Road::WebSocket { url },
        }))
        .filter(|road| is_relay(member) || !matches!(road, Road::WebSocket { .. }))
        .map(|road| (member.id, road))
        .collect()
}

/// Where a node says that a stream can be opened to it.
enum Said {
    Ssh(SocketAddr),
    WebSocket(String),
}

/// As for UDP, a node could have us connect to somebody else; what can only be this machine or the tunnel is left out.
fn said_by(record: &NodeRecord, pools: &[Prefix]) -> Vec<Said> {
    let ssh = record.ssh.iter().copied().filter(|address| may_be_named(*address, pools));
    let websockets = record.websockets.iter().filter(|url| url_is_allowed(url, pools));
    ssh.map(Said::Ssh).chain(websockets.cloned().map(Said::WebSocket)).collect()
}

/// Whether a URL's host is a name, or an address that may be sent to.
fn url_is_allowed(url: &str, pools: &[Prefix]) -> bool {
    url.parse::<RelayUrl>().is_ok_and(|url| host_may_be_named(url.host(), url.port(), pools))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringmesh_tunnel::{
        Carrier,
        enroll::seal::{Context, Purpose, seal_secret},
        key::{IdentitySecret, NetworkId, SecretKey},
        netmap::{Certificate, Envelope, Head, MapUpdate, Position, Role, digest},
    };

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);

    /// A network whose keys the test holds, and its members, of whom the first is this node.
    struct Scene {
        root: IdentitySecret,
        members: Vec<Member>,
        records: Vec<Envelope>,
        ssh: Vec<SshRoad>,
    }

    impl Scene {
        fn new() -> Self {
            let mut scene = Self {
                root: IdentitySecret::from_seed([0xf0; 32]),
                members: Vec::new(),
                records: Vec::new(),
                ssh: Vec::new(),
            };
            scene.member(1, "me", |_| {});
            scene
        }

        fn network(&self) -> NetworkId {
            NetworkId::of_root(&self.root.public_key())
        }

        fn member(&mut self, number: u8, name: &str, change: impl FnOnce(&mut Member)) {
            let identity = IdentitySecret::from_seed([number; 32]).public_key();
            let mut member = Member {
                network: self.network(),
                id: NodeId::from_bytes([number; 8]),
                name: name.to_owned(),
                kind: MemberKind::Mesh,
                relay: false,
                noise_key: identity.noise_key(),
                identity_key: Some(identity),
                ipv4: Some([100, 64, 0, number].into()),
                ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
                tags: Vec::new(),
                groups: Vec::new(),
                routes: Vec::new(),
                serial: 1,
                not_after: NOW.saturating_add(Duration::from_secs(3600)),
            };
            change(&mut member);
            self.members.push(member);
        }

        /// What a member says of itself.
        fn says(&mut self, number: u8, websockets: &[&str], ssh: &[&str]) {
            let record = NodeRecord {
                network: self.network(),
                id: NodeId::from_bytes([number; 8]),
                serial: 1,
                endpoints: vec!["192.0.2.1:51820".parse().unwrap(), "127.0.0.1:1".parse().unwrap()],
                time: NOW,
                websockets: websockets.iter().map(ToString::to_string).collect(),
                ssh: ssh.iter().map(|text| text.parse().unwrap()).collect(),
            };
            self.records.push(Envelope::sign(&record, &IdentitySecret::from_seed([number; 32])).unwrap());
        }

        fn map(&self) -> NetworkMap {
            let (network, head_key) = (self.network(), IdentitySecret::from_seed([0xf1; 32]));
            let not_after = NOW.saturating_add(Duration::from_secs(3600));
            let (role, key) = (Role::Head, head_key.public_key());
            let certificate = Certificate { network, role, key, serial: 1, not_after };
            let certificate = Envelope::sign(&certificate, &self.root).unwrap();
            let sign = |member| Envelope::sign(member, &self.root).unwrap();
            let members: Vec<_> = self.members.iter().map(sign).collect();
            let all = [&certificate].into_iter().chain(&members).chain(&self.records);
            let position = Position { durable: 1, replica: 1, ephemeral: 0 };
            let head = Head {
                network,
                position,
                digest: digest(all.map(Envelope::hash)),
                time: NOW,
                not_after,
                epoch: 1,
                secrets: [0; 32],
            };
            let update = MapUpdate {
                full: true,
                position,
                certificates: vec![certificate],
                members,
                removed: Vec::new(),
                policy: None,
                rules: Vec::new(),
                node_records: self.records.clone(),
                head: Envelope::sign(&head, &head_key).unwrap(),
            };
            let empty = NetworkMap::empty(network, self.root.public_key(), self.members[0].id);
            empty.verify(update, NOW).unwrap()
        }

        /// What the node makes of it, by names.
        fn peers(&self, roads: &mut Roads) -> BTreeMap<String, PeerConfig> {
            self.with_known(|map, known| of_map(map, known, roads, NOW))
        }

        fn clients(&self) -> BTreeMap<String, PeerConfig> {
            self.with_known(|map, known| clients(map, known, NOW))
        }

        fn with_known(
            &self,
            make: impl FnOnce(&NetworkMap, &Known<'_>) -> Vec<PeerConfig>,
        ) -> BTreeMap<String, PeerConfig> {
            let map = self.map();
            let key = SecretKey::from_bytes([1; 32]);
            let context = Context { network: self.network(), epoch: 1, purpose: Purpose::Network };
            let sealed = seal_secret(&key.public_key(), context, &[9; 32]).unwrap();
            let secrets = Secrets::default().with_epochs(self.network(), &key, [(1, sealed)]).unwrap();
            let pools = ["100.64.0.0/10".parse().unwrap()];
            let own = self.members[0].noise_key;
            let peers = make(&map, &Known { secrets: &secrets, own: &own, pools: &pools, ssh: &self.ssh });
            peers.into_iter().map(|peer| (map.member(peer.id).unwrap().name.clone(), peer)).collect()
        }
    }

    fn road(peer: &str) -> SshRoad {
        SshRoad {
            peer: peer.to_owned(),
            host: "gate.example".parse().unwrap(),
            user: "mesh".to_owned(),
            key: Some("/k".into()),
            agent: None,
            host_key: None,
            known_hosts: Some("/h".into()),
            socket: "/run/mesh/link.sock".into(),
        }
    }

    #[test]
    fn a_relay_is_kept_in_touch_with_and_sends_no_packet_of_its_own() {
        let mut scene = Scene::new();
        scene.member(2, "carrier", |member| member.relay = true);
        scene.member(3, "bob", |_| {});
        let url = "wss://relay.example/relay/v1";
        scene.says(2, &[url, "wss://127.0.0.1/relay/v1"], &[]);
        scene.says(3, &[url], &[]);
        let mut roads = Roads::default();
        let peers = scene.peers(&mut roads);

        let relay = &peers["carrier"];
        assert!(relay.relay && relay.mesh && relay.allowed_ips.is_empty());
        assert_eq!(relay.persistent_keepalive, Some(25));
        assert_eq!(relay.candidates, ["192.0.2.1:51820".parse().unwrap()], "not this machine's own loopback");
        let [link] = relay.links.as_slice() else { panic!("{:?}", relay.links) };
        assert_eq!(link.carrier, Carrier::WebSocket);
        assert_eq!(roads.find(relay.id, link.number).unwrap().to_string(), url);

        let bob = &peers["bob"];
        assert!(!bob.relay && bob.links.is_empty(), "who is no relay has no WebSocket to offer");
        assert_eq!((bob.persistent_keepalive, bob.allowed_ips.len()), (None, 2));
        assert_eq!(
            scene.peers(&mut roads)["carrier"].links,
            relay.links,
            "the same map gives the same numbers"
        );
    }

    #[test]
    fn ssh_roads_are_those_of_the_configuration_and_then_what_the_peer_says() {
        let mut scene = Scene::new();
        scene.member(2, "gate", |_| {});
        scene.member(3, "bob", |_| {});
        scene.says(2, &[], &["192.0.2.1:2222", "127.0.0.1:22", "100.64.0.9:22"]);
        let by_id = NodeId::from_bytes([3; 8]).to_string();
        scene.ssh = vec![road("Gate"), road(&by_id), road("nobody")];
        let mut roads = Roads::default();
        let peers = scene.peers(&mut roads);
        let names = |peer: &PeerConfig| -> Vec<String> {
            peer.links.iter().map(|link| roads.find(peer.id, link.number).unwrap().to_string()).collect()
        };
        assert_eq!(names(&peers["gate"]), ["mesh@gate.example:22", "192.0.2.1:2222"]);
        assert_eq!(names(&peers["bob"]), ["mesh@gate.example:22"]);
        let endpoint = roads.find(peers["gate"].id, peers["gate"].links[1].number).unwrap();
        let host_key = IdentitySecret::from_seed([2; 32]).public_key();
        let address = "192.0.2.1:2222".parse().unwrap();
        assert_eq!(
            *endpoint,
            Road::Endpoint { address, host_key },
            "the host key is the member's, from its record"
        );
    }

    #[test]
    fn a_relay_serves_every_node_of_ours_and_nothing_else() {
        let mut scene = Scene::new();
        scene.members[0].relay = true;
        scene.member(2, "bob", |_| {});
        scene.member(3, "printer", |member| {
            member.kind = MemberKind::Stock;
            member.identity_key = None;
        });
        let clients = scene.clients();
        assert_eq!(clients.keys().collect::<Vec<_>>(), ["bob"]);
        let bob = &clients["bob"];
        assert!(bob.allowed_ips.is_empty() && bob.candidates.is_empty() && bob.links.is_empty());
        assert!(bob.mesh && !bob.relay);
    }

    #[test]
    fn a_relay_cannot_have_its_clients_knock_on_their_own_doors() {
        let pools = ["100.64.0.0/10".parse().unwrap()];
        for (url, allowed) in [
            ("wss://relay.example/relay/v1", true),
            ("wss://relay.example:8443/base/relay/v1", true),
            ("wss://192.0.2.1:443/relay/v1", true),
            ("wss://[2001:db8::1]:443/relay/v1", true),
            ("wss://127.0.0.1:443/relay/v1", false),
            ("wss://[::1]/relay/v1", false),
            ("wss://localhost/relay/v1", false),
            ("wss://LOCALHOST./relay/v1", false),
            ("wss://2130706433/relay/v1", false),
            ("wss://127.1:443/relay/v1", false),
            ("wss://0x7f.1/relay/v1", false),
            ("wss://[fd00:ec2::254]/relay/v1", false),
            ("wss://100.64.0.9/relay/v1", false),
            ("wss://169.254.169.254/relay/v1", false),
            ("wss://user@192.0.2.1/relay/v1", false),
            ("wss://:443/relay/v1", false),
            ("ws://relay.example/relay/v1", false),
            ("wss://relay.example/", false),
        ] {
            assert_eq!(url_is_allowed(url, &pools), allowed, "{url}");
        }
    }
}
