//! The zone of a real, signed map: who is in force, and until when.

use ringmesh_tunnel::{
    UnixTime,
    key::{IdentitySecret, NetworkId, NodeId},
    netmap::{
        Certificate, Envelope, Head, Leaf, MapUpdate, Member, MemberKind, MerkleTree, NameRecord, NetworkMap,
        Policy, Position, ProvenRule, Role, digest, leaf_hash,
    },
};

use super::*;

const NOW: UnixTime = UnixTime::from_secs(1_767_225_600);

fn at(days: u64) -> UnixTime {
    NOW.saturating_add(Duration::from_secs(86_400 * days))
}

/// A map of node 1, with members that end after so many days, and one name that ends with the policy, after 20.
fn map(members: &[(&str, u64)]) -> NetworkMap {
    let secret = |number: u8| IdentitySecret::from_seed([number; 32]);
    let (root, signer) = (secret(0xf0), secret(0xf1));
    let network = NetworkId::of_root(&root.public_key());
    let certificates = [Role::Admission, Role::Policy, Role::Head].map(|role| {
        let certificate =
            Certificate { network, role, key: signer.public_key(), serial: 1, not_after: at(365) };
        Envelope::sign(&certificate, &root).unwrap()
    });
    let members: Vec<Envelope> = (1_u8..)
        .zip(members)
        .map(|(number, (name, days))| {
            let (key, id) = (secret(number).public_key(), NodeId::from_bytes([number; 8]));
            let member = Member {
                network,
                id,
                name: (*name).to_owned(),
                kind: MemberKind::Mesh,
                relay: false,
                noise_key: key.noise_key(),
                identity_key: Some(key),
                ipv4: (number != 3).then(|| [100, 64, 0, number].into()),
                ipv6: id.ipv6_in(network.ula()).unwrap(),
                tags: Vec::new(),
                groups: Vec::new(),
                routes: Vec::new(),
                serial: 1,
                not_after: at(*days),
            };
            Envelope::sign(&member, &signer).unwrap()
        })
        .collect();
    let name =
        NameRecord { name: "www.shop".to_owned(), addresses: addresses(&["192.0.2.80", "100.64.7.7"]) };
    let leaf = Leaf::Name(name).emit().unwrap();
    let tree = MerkleTree::new([&leaf]);
    let policy = Policy { network, serial: 1, not_after: at(20), root: tree.root(), size: 1 };
    let policy = Envelope::sign(&policy, &signer).unwrap();
    let envelopes = certificates.iter().chain(&members).chain([&policy]).map(Envelope::hash);
    let digest = digest(envelopes.chain([leaf_hash(&leaf)]));
    let position = Position { durable: 0x1_0000_002a, replica: 1, ephemeral: 0 };
    let head = Head {
        network,
        position,
        digest,
        time: NOW,
        not_after: NOW.saturating_add(Duration::from_secs(3600)),
        epoch: 0,
        secrets: [0; 32],
    };
    let update = MapUpdate {
        full: true,
        position,
        certificates: certificates.to_vec(),
        members,
        removed: Vec::new(),
        policy: Some(policy),
        rules: vec![ProvenRule { leaf, index: 0, siblings: tree.proof(0).unwrap() }],
        node_records: Vec::new(),
        head: Envelope::sign(&head, &signer).unwrap(),
    };
    NetworkMap::empty(network, root.public_key(), NodeId::from_bytes([1; 8])).verify(update, NOW).unwrap()
}

fn names(zone: &Zone) -> Vec<String> {
    zone.hosts().map(|(name, _)| name).collect()
}

#[test]
fn a_zone_has_the_members_and_names_in_force() {
    let map = map(&[("alice", 30), ("bob", 10), ("six", 30)]);
    let pools = ["100.64.0.0/10".parse().unwrap(), map.network().ula()];
    let zone = Zone::of_map(&map, "mesh", &pools, NOW);
    assert_eq!(names(&zone), ["bob.mesh", "six.mesh", "www.shop.mesh", "alice.mesh"]);
    let hosts: std::collections::BTreeMap<_, _> = zone.hosts().collect();
    let ipv6 =
        |number: u8| IpAddr::from(NodeId::from_bytes([number; 8]).ipv6_in(map.network().ula()).unwrap());
    assert_eq!(hosts["alice.mesh"], ["100.64.0.1".parse().unwrap(), ipv6(1)]);
    assert_eq!(hosts["six.mesh"], [ipv6(3)]);
    assert_eq!(hosts["www.shop.mesh"], addresses(&["192.0.2.80", "100.64.7.7"]));
    assert_eq!(zone.reverse_zones().count(), 64 + 1);

    let ask = |name: &str, kind| {
        let message = query(name, kind).to_vec().unwrap();
        match decide(&message, &zone, Transport::Tcp) {
            Decision::Answer(bytes, _) => words(&Message::from_vec(&bytes).unwrap().answers),
            other @ (Decision::Silence(_) | Decision::Forward(_)) => panic!("{other:?}"),
        }
    };
    assert_eq!(
        ask("7.7.64.100.in-addr.arpa.", RecordType::PTR),
        ["7.7.64.100.in-addr.arpa. 10 PTR www.shop.mesh."]
    );
    assert_eq!(
        ask("2.0.64.100.in-addr.arpa.", RecordType::PTR),
        ["2.0.64.100.in-addr.arpa. 10 PTR bob.mesh."]
    );
    // The serial is the revision, as far as 32 bits go.
    assert_eq!(
        ask("mesh.", RecordType::SOA),
        ["mesh. 10 SOA alice.mesh. hostmaster.mesh. 42 3600 600 86400 0"]
    );

    // Bob's membership ends, then the policy with its name, then our own membership with everything.
    let at_day = |days| names(&Zone::of_map(&map, "mesh", &pools, at(days)));
    assert_eq!(at_day(10), ["six.mesh", "www.shop.mesh", "alice.mesh"]);
    assert_eq!(at_day(20), ["six.mesh", "alice.mesh"]);
    assert_eq!(at_day(30), [""; 0]);
}

#[test]
fn a_node_that_is_no_member_any_more_knows_no_names() {
    let map = map(&[("alice", 5), ("bob", 30)]);
    let pools = ["100.64.0.0/10".parse().unwrap()];
    assert_eq!(names(&Zone::of_map(&map, "mesh", &pools, NOW)).len(), 3);
    let zone = Zone::of_map(&map, "mesh", &pools, at(5));
    // Names of the policy are no secret, and their answers lead nowhere: there are no peers.
    assert_eq!(names(&zone), ["www.shop.mesh"]);
    let empty = NetworkMap::empty(map.network(), IdentitySecret::from_seed([9; 32]).public_key(), map.id());
    let zone = Zone::of_map(&empty, "mesh", &pools, NOW);
    assert_eq!((zone.len(), zone.name()), (0, "mesh"));
    let message = query("alice.mesh.", RecordType::A).to_vec().unwrap();
    assert!(matches!(decide(&message, &zone, Transport::Udp), Decision::Answer(_, ResponseCode::NXDomain)));
}
