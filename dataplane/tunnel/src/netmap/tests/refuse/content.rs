//! Refusals of what is properly signed: old records, contradictions, and results that are not the head's.

use super::*;
use crate::ip::Prefix;

#[test]
fn older_serial_is_refused() {
    let network = Network::new();
    let map = network.map();
    let older = |kind, held, offered| MapError::OlderSerial { kind, held, offered };
    let member = Member { serial: 9, ..network.member(2) };
    let error = refused(&map, delta_with_member(&network, network.admit(&member)));
    assert_eq!(error, older(Kind::Member, 10, 9));
    let error = refused(&map, full_with_member_two(&network, network.admit(&member)));
    assert_eq!(error, older(Kind::Member, 10, 9));
    let (tree, shown) = rules(&[0]);
    let policy = Envelope::sign(&network.policy_of(&tree, 6), &network.policy).unwrap();
    assert_eq!(refused(&map, delta_with_policy(&network, policy, shown)), older(Kind::Policy, 7, 6));
    let certificate = Certificate { serial: 0, ..network.certificate(Role::Admission) };
    let error = refused(&map, delta_with_certificate(&network, network.certify(&certificate)));
    assert_eq!(error, older(Kind::Certificate, 1, 0));
    let mut full = network.full_without_head();
    full.certificates[0] = network.certify(&certificate);
    let error = refused(&map, network.finish(&Content::default(), full));
    assert_eq!(error, older(Kind::Certificate, 1, 0));
}

#[test]
fn two_records_of_one_serial_are_refused() {
    let network = Network::new();
    let map = network.map();
    let twofold =
        |error: MapError| matches!(error, MapError::OlderSerial { held, offered, .. } if held == offered);
    let member = Member { relay: true, ..network.member(2) };
    assert!(twofold(refused(&map, delta_with_member(&network, network.admit(&member)))));
    let (tree, _) = prove(&leaves()[..3], &[]);
    let policy = Envelope::sign(&network.policy_of(&tree, 7), &network.policy).unwrap();
    assert!(twofold(refused(&map, delta_with_policy(&network, policy, Vec::new()))));
    let certificate = Certificate { not_after: later(999 * DAY), ..network.certificate(Role::Policy) };
    assert!(twofold(refused(&map, delta_with_certificate(&network, network.certify(&certificate)))));
}

#[test]
fn chain_alone_refuses_an_older_or_twofold_certificate() {
    let network = Network::new();
    let mut chain = Chain::new(network.id(), network.root_key());
    let certificate = Certificate { serial: 5, ..network.certificate(Role::Admission) };
    chain.add(network.certify(&certificate), NOW).unwrap();
    assert_eq!(chain.add(network.certify(&certificate), NOW), Ok(()));
    let older = Certificate { serial: 4, ..certificate.clone() };
    let twofold = Certificate { not_after: later(999 * DAY), ..certificate.clone() };
    for (refused, offered) in [(older, 4), (twofold, 5)] {
        let error = chain.add(network.certify(&refused), NOW);
        assert_eq!(error, Err(MapError::OlderSerial { kind: Kind::Certificate, held: 5, offered }));
    }
    assert!(chain.certificates().eq([&certificate]));
}

#[test]
fn older_record_does_not_come_back_by_way_of_a_removal() {
    let network = Network::new();
    let mut removal = network.delta();
    removal.removed = vec![node_id(2)];
    let removal = network.finish_delta(removal);
    let base = Content::default().after(&network.full()).after(&removal);
    let map = network.map().verify(removal, NOW).unwrap();
    // Nor does it after the map was read from its file, nor in a full map.
    let read = NetworkMap::parse(&map.emit(), network.id(), network.root_key(), node_id(ME), NOW).unwrap();
    for map in [&map, &read] {
        let mut delta = network.delta();
        delta.members = vec![network.admit(&Member { serial: 9, ..network.member(2) })];
        let error = refused(map, network.finish(&base, delta.clone()));
        assert_eq!(error, MapError::OlderSerial { kind: Kind::Member, held: 10, offered: 9 });
        delta.members = vec![network.admit(&network.member(2))];
        assert!(map.verify(network.finish(&base, delta), NOW).is_ok());
        let mut full = network.full_without_head();
        full.position.durable = 102;
        full.members[1] = network.admit(&Member { serial: 9, ..network.member(2) });
        let error = refused(map, network.finish(&Content::default(), full));
        assert_eq!(error, MapError::OlderSerial { kind: Kind::Member, held: 10, offered: 9 });
    }
}

#[test]
fn older_policy_does_not_come_back_by_way_of_none() {
    let network = Network::new();
    let mut full = network.full_without_head();
    (full.policy, full.rules) = (None, Vec::new());
    let map = network.map().verify(network.finish(&Content::default(), full), NOW).unwrap();
    let (tree, shown) = rules(&[0]);
    let mut full = network.full_without_head();
    full.policy = Some(Envelope::sign(&network.policy_of(&tree, 6), &network.policy).unwrap());
    full.rules = shown;
    let error = refused(&map, network.finish(&Content::default(), full));
    assert_eq!(error, MapError::OlderSerial { kind: Kind::Policy, held: 7, offered: 6 });
}

#[test]
fn rules_without_a_policy_or_twice_are_refused() {
    let network = Network::new();
    let map = network.map();
    let mut delta = network.delta();
    delta.rules = rules(&[1]).1;
    assert_eq!(refused(&map, network.finish_delta(delta)), MapError::RulesWithoutPolicy);
    let policy = network.full().policy.unwrap();
    let error = refused(&map, delta_with_policy(&network, policy, rules(&[1, 1]).1));
    assert_eq!(error, MapError::Twice { what: "rule 1".into() });
}

#[test]
fn proven_leaf_that_cannot_be_read_is_refused() {
    let network = Network::new();
    let tree = MerkleTree::new([b"no leaf"]);
    let policy = Envelope::sign(&network.policy_of(&tree, 8), &network.policy).unwrap();
    let rule = ProvenRule { leaf: b"no leaf".to_vec(), index: 0, siblings: Vec::new() };
    let error = refused(&network.map(), delta_with_policy(&network, policy, vec![rule]));
    assert!(matches!(error, MapError::Leaf { index: 0, cause: RecordError::Version { .. } }));
}

#[test]
fn result_that_is_not_the_heads_is_refused() {
    let network = Network::new();
    let map = network.map();
    // Withheld.
    let full = network.full();
    for hole in 0..4 {
        let mut update = full.clone();
        match hole {
            0 => drop(update.members.remove(2)),
            1 => drop(update.rules.remove(0)),
            2 => drop(update.node_records.remove(0)),
            _ => (update.policy, update.rules) = (None, Vec::new()),
        }
        if hole == 0 {
            update.node_records.remove(1);
        }
        assert_eq!(refused(&map, update), MapError::DigestMismatch, "hole {hole}");
    }
    // Slipped in, each of them signed by who may.
    let mut update = full.clone();
    update.members.push(network.admit(&network.member(4)));
    assert_eq!(refused(&map, update), MapError::DigestMismatch);
    let mut update = full.clone();
    update.certificates.push(network.certify(&network.certificate(Role::Coordinator)));
    assert_eq!(refused(&map, update), MapError::DigestMismatch);
    let mut update = full;
    update.node_records.push(network.say(&network.node_record(1, 1), 1));
    assert_eq!(refused(&map, update), MapError::DigestMismatch);
}

#[test]
fn delta_onto_another_base_is_refused() {
    let network = Network::new();
    let mut first = network.delta();
    first.members = vec![network.admit(&network.member(4))];
    let first = network.finish_delta(first);
    let base = Content::default().after(&network.full()).after(&first);
    let mut second = network.delta();
    second.position.durable = 102;
    second.removed = vec![node_id(3)];
    let second = network.finish(&base, second);
    // In order they hold; the second alone is for a map that is not ours.
    let error = refused(&network.map(), second.clone());
    assert_eq!(error, MapError::DigestMismatch);
    assert!(error.to_string().contains("ask for the full map"));
    let map = network.map().verify(first, NOW).unwrap().verify(second, NOW).unwrap();
    assert_eq!(map.members().count(), 3);
    assert_eq!(refused(&network.empty_map(), network.finish_delta(network.delta())), MapError::NoBase);
    assert_eq!(network.empty_map().renew(network.full().head, NOW), Err(MapError::NoBase));
}

#[test]
fn removal_that_the_head_does_not_know_is_refused() {
    let network = Network::new();
    let mut delta = network.delta();
    delta.removed = vec![node_id(3)];
    let base = Content::default().after(&network.full());
    let head = network.head_of(delta.position, base.digest());
    delta.head = Envelope::sign(&head, &network.head).unwrap();
    assert_eq!(refused(&network.map(), delta), MapError::DigestMismatch);
}

#[test]
fn removed_member_that_is_still_present_is_refused() {
    let network = Network::new();
    let map = network.map();
    let present = MapError::RemovedYetPresent { id: node_id(3) };
    let mut delta = network.delta();
    delta.removed = vec![node_id(3)];
    delta.members = vec![network.admit(&network.member(3))];
    assert_eq!(refused(&map, network.finish_delta(delta)), present);
    let mut full = network.full_without_head();
    full.removed = vec![node_id(3)];
    assert_eq!(refused(&map, network.finish(&Content::default(), full)), present);
}

#[test]
fn older_durable_position_is_refused() {
    let network = Network::new();
    let map = network.map();
    let offered = Position { durable: 99, replica: 9, ephemeral: 99 };
    let older = MapError::OlderPosition { held: network.full().position, offered };
    let delta = MapUpdate { position: offered, ..network.delta() };
    assert_eq!(refused(&map, network.finish_delta(delta)), older);
    let full = MapUpdate { position: offered, ..network.full_without_head() };
    assert_eq!(refused(&map, network.finish(&Content::default(), full)), older);
    let head = Envelope::sign(&network.head_of(offered, map.digest()), &network.head).unwrap();
    assert_eq!(map.renew(head, NOW), Err(older));
}

#[test]
fn head_that_goes_back_within_a_durable_revision_is_refused() {
    let network = Network::new();
    let map = network.map();
    let held = network.full().position;
    let sign = |head: &Head| Envelope::sign(head, &network.head).unwrap();
    let head = network.head_of(held, map.digest());
    assert!(map.renew(sign(&head), NOW).is_ok(), "the same again");
    let before = NOW.saturating_sub(Duration::from_millis(1));

    let offered = Position { ephemeral: held.ephemeral - 1, ..held };
    let older = MapError::OlderPosition { held, offered };
    let delta = network.finish_delta(MapUpdate { position: offered, ..network.delta() });
    assert_eq!(refused(&map, delta), older);
    assert_eq!(map.renew(sign(&network.head_of(offered, map.digest())), NOW), Err(older));

    for position in [held, Position { ephemeral: held.ephemeral + 1, ..held }] {
        let early = Head { time: before, ..network.head_of(position, map.digest()) };
        let error = MapError::OlderHead { held: NOW, offered: before };
        assert_eq!(map.renew(sign(&early), NOW), Err(error.clone()));
        assert!(error.clock());
        let delta = MapUpdate { position, ..network.delta() };
        assert_eq!(refused(&map, with_head(delta, sign(&early))), error);
    }

    // Another replica counts for itself, and so does the same one after the next durable change.
    for position in [
        Position { replica: held.replica + 1, ephemeral: 0, ..held },
        Position { durable: held.durable + 1, ephemeral: 0, ..held },
    ] {
        let head = Head { time: before, ..network.head_of(position, map.digest()) };
        assert!(map.renew(sign(&head), NOW).is_ok(), "{position}");
    }
}

#[test]
fn older_epoch_is_refused_whatever_the_position() {
    let network = Network::new();
    let map = network.map();
    let position = Position { durable: 999, ..network.delta().position };
    let sign = |epoch| {
        let head = Head { epoch, ..network.head_of(position, map.digest()) };
        Envelope::sign(&head, &network.head).unwrap()
    };
    let error = MapError::OlderEpoch { held: EPOCH, offered: EPOCH - 1 };
    let delta = || MapUpdate { position, ..network.delta() };
    assert_eq!(refused(&map, with_head(delta(), sign(EPOCH - 1))), error);
    assert_eq!(map.renew(sign(EPOCH - 1), NOW), Err(error.clone()));
    let full = MapUpdate { position, ..network.full() };
    assert_eq!(refused(&map, with_head(full, sign(EPOCH - 1))), error);
    let read = NetworkMap::parse(&map.emit(), network.id(), network.root_key(), node_id(ME), NOW).unwrap();
    assert_eq!(refused(&read, with_head(delta(), sign(EPOCH - 1))), error, "nor after a restart");
    for epoch in [EPOCH, EPOCH + 1] {
        assert!(map.verify(with_head(delta(), sign(epoch)), NOW).is_ok());
    }
}

#[test]
fn secrets_that_the_head_does_not_name_are_refused() {
    let network = Network::new();
    let map = network.map();
    assert_eq!(map.check_secrets(EPOCH, &SECRETS), Ok(()));
    assert_eq!(map.check_secrets(EPOCH - 1, &SECRETS), Err(MapError::SecretsMismatch));
    assert_eq!(map.check_secrets(EPOCH + 1, &SECRETS), Err(MapError::SecretsMismatch));
    for byte in 0..32 {
        let mut other = SECRETS;
        other[byte] ^= 1;
        assert_eq!(map.check_secrets(EPOCH, &other), Err(MapError::SecretsMismatch));
    }
    assert_eq!(network.empty_map().check_secrets(EPOCH, &SECRETS), Err(MapError::NoBase));
}

#[test]
fn update_and_head_at_two_positions_are_refused() {
    let network = Network::new();
    let update = Position { durable: 103, ..network.delta().position };
    let delta = MapUpdate { position: update, ..network.finish_delta(network.delta()) };
    let head = network.delta().position;
    assert_eq!(refused(&network.map(), delta), MapError::PositionMismatch { update, head });
}

#[test]
fn heartbeat_of_another_content_is_refused() {
    let network = Network::new();
    let head = network.head_of(network.delta().position, [0; 32]);
    let head = Envelope::sign(&head, &network.head).unwrap();
    assert_eq!(network.map().renew(head, NOW), Err(MapError::DigestMismatch));
}

#[test]
fn map_without_this_node_is_refused() {
    let network = Network::new();
    let missing = MapError::OwnRecordMissing { id: node_id(ME) };
    let mut full = network.full_without_head();
    full.members.remove(0);
    assert_eq!(refused(&network.empty_map(), network.finish(&Content::default(), full)), missing);
    let mut delta = network.delta();
    delta.removed = vec![node_id(ME)];
    assert_eq!(refused(&network.map(), network.finish_delta(delta)), missing);
}

#[test]
fn two_members_never_share_what_is_ones_own() {
    let network = Network::new();
    let map = network.map();
    let shared = |what, change: fn(&mut Member, &Member)| {
        let mut member = network.member(4);
        change(&mut member, &network.member(3));
        let error = refused(&map, delta_with_member(&network, network.admit(&member)));
        assert_eq!(error, MapError::Shared { one: node_id(3), other: node_id(4), what });
        // Both new, in one update.
        let mut full = network.full_without_head();
        full.members.push(network.admit(&member));
        let error = refused(&network.empty_map(), network.finish(&Content::default(), full));
        assert_eq!(error, MapError::Shared { one: node_id(3), other: node_id(4), what });
    };
    shared("noise key", |member, other| {
        (member.kind, member.identity_key, member.noise_key) = (MemberKind::Stock, None, other.noise_key);
    });
    shared("noise key", |member, other| {
        (member.identity_key, member.noise_key) = (other.identity_key, other.noise_key);
    });
    shared("name", |member, other| member.name = other.name.clone());
    shared("IPv4 address", |member, other| member.ipv4 = other.ipv4);
    shared("IPv6 address", |member, other| member.ipv6 = other.ipv6);
    shared("address", |member, other| member.routes = vec![Prefix::host(other.ipv4.unwrap().into())]);
    shared("address", |member, other| member.routes.push(Prefix::host(other.ipv6.into())));
}

#[test]
fn route_to_a_members_address_is_no_ones_but_that_members() {
    let network = Network::new();
    let map = network.map();
    let routes = |node: u8, routes: &[&str]| {
        let routes = routes.iter().map(|route| route.parse().unwrap()).collect();
        let member = Member { serial: 11, routes, ..network.member(node) };
        map.verify(delta_with_member(&network, network.admit(&member)), NOW)
    };
    // Whoever comes first in the order of ids.
    assert!(matches!(routes(2, &["100.64.0.3/32"]), Err(MapError::Shared { what: "address", .. })));
    assert!(matches!(routes(3, &["100.64.0.2/32"]), Err(MapError::Shared { what: "address", .. })));
    // Ranges lose against addresses by the longest match, and the same range may be offered twice.
    assert!(routes(2, &["100.64.0.0/10", "0.0.0.0/0", "::/0", "10.1.0.0/16"]).is_ok());
    assert!(routes(2, &["100.64.0.2/32", "10.9.9.9/32"]).is_ok());
}

#[test]
fn identity_key_and_its_mirror_are_one_noise_key() {
    // The point and its negative have one Montgomery form: two identities, one key on the wire.
    let network = Network::new();
    let mut mirrored = *node_secret(3).public_key().as_bytes();
    mirrored[31] ^= 0x80;
    let mirrored = IdentityKey::from_bytes(mirrored).unwrap();
    let member =
        Member { identity_key: Some(mirrored), noise_key: mirrored.noise_key(), ..network.member(4) };
    let error = refused(&network.map(), delta_with_member(&network, network.admit(&member)));
    assert_eq!(error, MapError::Shared { one: node_id(3), other: node_id(4), what: "noise key" });
}

#[test]
fn two_records_of_one_thing_in_an_update_are_refused() {
    let network = Network::new();
    let map = network.map();
    let mut delta = network.delta();
    delta.members =
        vec![network.admit(&network.member(4)), network.admit(&Member { serial: 11, ..network.member(4) })];
    let error = refused(&map, network.finish_delta(delta));
    assert_eq!(error, MapError::Twice { what: format!("member {}", node_id(4)) });
    let mut delta = network.delta();
    delta.node_records = [51, 52].map(|serial| network.say(&network.node_record(2, serial), 2)).to_vec();
    let error = refused(&map, network.finish_delta(delta));
    assert_eq!(error, MapError::Twice { what: format!("node record {}", node_id(2)) });
}

#[test]
fn node_record_of_no_member_or_a_stock_device_is_refused() {
    let network = Network::new();
    let map = network.map();
    let stranger = network.say(&network.node_record(4, 1), 4);
    let error = refused(&map, delta_with_node_record(&network, stranger.clone()));
    assert_eq!(error, MapError::NoSuchMember { id: node_id(4) });
    let mut delta = network.delta();
    delta.members = vec![network.admit(&Member { kind: MemberKind::Stock, ..network.member(4) })];
    delta.node_records = vec![stranger];
    assert_eq!(refused(&map, network.finish_delta(delta)), MapError::NoSuchMember { id: node_id(4) });
    let mut delta = network.delta();
    delta.removed = vec![node_id(2)];
    delta.node_records = vec![network.say(&network.node_record(2, 51), 2)];
    assert_eq!(refused(&map, network.finish_delta(delta)), MapError::NoSuchMember { id: node_id(2) });
}

#[test]
fn lists_beyond_their_bounds_are_refused() {
    let network = Network::new();
    let map = network.map();
    let too_many = |what, most| MapError::TooMany { what, most };
    let certificate = |key: u8| Certificate {
        key: node_secret(key).public_key(),
        ..network.certificate(Role::Coordinator)
    };
    let certificates: Vec<_> = (1..=65).map(|key| network.certify(&certificate(key))).collect();
    let mut delta = network.delta();
    delta.certificates = certificates.clone();
    assert_eq!(
        refused(&map, network.finish_delta(delta.clone())),
        too_many("certificates", CERTIFICATES_MAX)
    );
    delta.certificates = vec![network.full().certificates[0].clone(); CERTIFICATES_MAX + 1];
    assert_eq!(
        refused(&map, network.finish_delta(delta.clone())),
        too_many("certificates", CERTIFICATES_MAX)
    );
    delta.certificates = [network.full().certificates, certificates[..61].to_vec()].concat();
    assert_eq!(delta.certificates.len(), CERTIFICATES_MAX);
    assert!(map.verify(network.finish_delta(delta.clone()), NOW).is_ok());
    // 3 are held, 61 fill the chain, and one more is too many.
    let mut delta = network.delta();
    delta.certificates = certificates[..61].to_vec();
    assert!(map.verify(network.finish_delta(delta.clone()), NOW).is_ok());
    delta.certificates.push(certificates[61].clone());
    assert_eq!(refused(&map, network.finish_delta(delta)), too_many("certificates", CERTIFICATES_MAX));
    let mut delta = network.delta();
    delta.members = vec![network.admit(&network.member(4)); MEMBERS_MAX + 1];
    assert_eq!(refused(&map, delta), too_many("members", MEMBERS_MAX));
    let mut delta = network.delta();
    delta.node_records = vec![network.say(&network.node_record(2, 51), 2); MEMBERS_MAX + 1];
    assert_eq!(refused(&map, delta), too_many("node records", MEMBERS_MAX));
    let mut delta = network.delta();
    (delta.policy, delta.rules) = (network.full().policy, vec![rules(&[1]).1.remove(0); LEAVES_MAX + 1]);
    assert_eq!(refused(&map, delta), too_many("rules", LEAVES_MAX));
}

#[test]
fn full_map_takes_no_further_member() {
    let network = Network::new();
    let mut map = network.map();
    let held = map.members.get(&node_id(3)).unwrap().clone();
    let number = |i: usize| NodeId::from_bytes((i as u64).to_be_bytes());
    map.members.extend((1..=MEMBERS_MAX - 3).map(|i| (number(i), held.clone())));
    assert_eq!(map.members.len(), MEMBERS_MAX);
    let mut delta = network.delta();
    delta.members = vec![network.admit(&Member { serial: 11, ..network.member(2) })];
    let error = map.verify(delta.clone(), NOW).unwrap_err();
    assert!(matches!(error, MapError::Shared { .. }), "as many as may be are not too many: {error}");
    delta.members = vec![network.admit(&network.member(4))];
    let error = map.verify(delta, NOW).unwrap_err();
    assert_eq!(error, MapError::TooMany { what: "members", most: MEMBERS_MAX });
}

#[test]
fn every_refusal_says_what_happened_and_is_one_line() {
    let network = Network::new();
    let map = network.map();
    let mut full = network.full();
    full.head = network.full().certificates[0].clone();
    let error = refused(&map, full).to_string();
    assert_eq!(
        error,
        "a certificate stands where a head belongs: the coordinator does not follow the protocol"
    );
    let head = Head { not_after: NOW, ..network.head_of(network.delta().position, map.digest()) };
    let error = map.renew(Envelope::sign(&head, &network.head).unwrap(), NOW).unwrap_err().to_string();
    assert_eq!(
        error,
        "the head ended at 2026-01-01T00:00:00Z, and this machine's clock says 2026-01-01T00:00:00Z: \
         the coordinator must renew it, unless the clock is wrong"
    );
    assert!(!error.contains('\n'));
}
