//! What a map takes, and what it then shows.

use super::*;

#[test]
fn full_map_shows_what_it_was_given() {
    let network = Network::new();
    let map = network.map();
    assert_eq!(map.id(), node_id(ME));
    assert_eq!(map.network(), network.id());
    assert_eq!(map.position(), Some(network.full().position));
    assert_eq!(map.digest(), Content::default().after(&network.full()).digest());
    assert_eq!(map.me(), Some(&network.member(ME)));
    let members: Vec<_> = map.members().cloned().collect();
    assert_eq!(members, [1, 2, 3].map(|node| network.member(node)));
    let peers: Vec<_> = map.peers(NOW).map(|member| member.id).collect();
    assert_eq!(peers, [node_id(2), node_id(3)]);
    assert_eq!(map.node_record(node_id(2)), Some(&network.node_record(2, 50)));
    assert_eq!(map.node_record(node_id(1)), None);
    assert_eq!(map.policy().map(|policy| policy.serial), Some(7));
    let leaves = leaves();
    let rules: Vec<_> = map.rules(NOW).cloned().map(Leaf::Rule).collect();
    assert_eq!(rules, [leaves[0].clone(), leaves[2].clone()]);
    let names: Vec<_> = map.names(NOW).cloned().map(Leaf::Name).collect();
    assert_eq!(names, [leaves[4].clone()]);
}

#[test]
fn empty_map_holds_nothing_and_nobody() {
    let map = Network::new().empty_map();
    assert_eq!((map.position(), map.me(), map.policy(), map.head()), (None, None, None, None));
    assert_eq!(map.peers(NOW).count() + map.rules(NOW).count() + map.names(NOW).count(), 0);
    assert_eq!(map.digest(), digest([]));
    assert_eq!(map.next_expiry(NOW), None);
}

#[test]
fn delta_changes_what_it_names_and_nothing_else() {
    let network = Network::new();
    let map = network.map();
    let mut changed = network.member(2);
    changed.serial += 1;
    changed.name = "renamed".into();
    let mut delta = network.delta();
    delta.members = vec![network.admit(&changed), network.admit(&network.member(4))];
    delta.removed = vec![node_id(3), node_id(99)];
    delta.node_records = vec![network.say(&network.node_record(4, 1), 4)];
    let next = map.verify(network.finish_delta(delta), NOW).unwrap();
    let members: Vec<_> = next.members().map(|member| member.name.as_str()).collect();
    assert_eq!(members, ["node-1", "renamed", "node-4"]);
    assert_eq!(next.node_record(node_id(2)), map.node_record(node_id(2)));
    assert_eq!(next.node_record(node_id(3)), None);
    assert_eq!(next.node_record(node_id(4)), Some(&network.node_record(4, 1)));
    assert_eq!(next.rules(NOW).count(), 2);
    assert_eq!(next.position().map(|position| position.durable), Some(101));
    assert_eq!(map, network.map());
}

#[test]
fn full_map_leaves_out_what_it_does_not_name() {
    let network = Network::new();
    let mut full = network.full_without_head();
    full.members.pop();
    full.node_records.clear();
    full.policy = None;
    full.rules.clear();
    let next = network.map().verify(network.finish(&Content::default(), full), NOW).unwrap();
    assert_eq!(next.members().count(), 2);
    assert_eq!(next.node_record(node_id(2)), None);
    assert_eq!((next.policy(), next.rules(NOW).count()), (None, 0));
}

#[test]
fn node_record_with_an_older_serial_holds_up_nothing() {
    let network = Network::new();
    // A node with a clock that is ahead: nine minutes in milliseconds.
    let mut ahead = network.delta();
    ahead.node_records = vec![network.say(&network.node_record(2, 540_000), 2)];
    let ahead = network.finish_delta(ahead);
    let map = network.map().verify(ahead, NOW).unwrap();
    assert_eq!(map.node_record(node_id(2)), Some(&network.node_record(2, 540_000)));
    // The coordinator starts again and has forgotten it; the node signs another, its clock being right now.
    let mut forgotten = network.full_without_head();
    forgotten.position.durable = 102;
    forgotten.node_records.clear();
    let forgotten = network.finish(&Content::default(), forgotten);
    let base = Content::default().after(&forgotten);
    let map = map.verify(forgotten, NOW).unwrap();
    let read = NetworkMap::parse(&map.emit(), network.id(), network.root_key(), node_id(ME), NOW).unwrap();
    let other = NodeRecord { endpoints: Vec::new(), ..network.node_record(2, 540_000) };
    for record in [network.node_record(2, 1), other] {
        // The same update takes another node's membership away.
        let mut delta = network.delta();
        delta.position.durable = 103;
        delta.removed = vec![node_id(3)];
        delta.node_records = vec![network.say(&record, 2)];
        let delta = network.finish(&base, delta);
        for map in [&map, &read] {
            let next = map.verify(delta.clone(), NOW).unwrap();
            assert_eq!(next.node_record(node_id(2)), Some(&record), "what the head names counts");
            assert_eq!(next.member(node_id(3)), None);
        }
    }
}

#[test]
fn same_full_map_again_is_the_same_map() {
    let network = Network::new();
    let map = network.map();
    assert_eq!(map.verify(network.full(), NOW), Ok(map));
}

#[test]
fn root_key_may_admit_members_itself() {
    let network = Network::new();
    let mut full = network.full_without_head();
    full.members[1] = Envelope::sign(&network.member(2), &network.root).unwrap();
    let map = network.empty_map().verify(network.finish(&Content::default(), full), NOW).unwrap();
    assert_eq!(map.peers(NOW).count(), 2);
}

#[test]
fn policy_sent_again_may_show_other_rules() {
    let network = Network::new();
    let mut delta = network.delta();
    delta.policy = network.full().policy;
    delta.rules = rules(&[1, 3]).1;
    let next = network.map().verify(network.finish_delta(delta), NOW).unwrap();
    let rules: Vec<_> = next.rules(NOW).cloned().map(Leaf::Rule).collect();
    assert_eq!(rules, [leaves()[1].clone(), leaves()[3].clone()]);
    assert_eq!(next.names(NOW).count(), 0);
}

#[test]
fn renewed_certificate_replaces_the_older() {
    let network = Network::new();
    let mut certificate = network.certificate(Role::Admission);
    certificate.serial = 2;
    certificate.not_after = later(400 * DAY);
    let mut delta = network.delta();
    delta.certificates = vec![network.certify(&certificate)];
    let next = network.map().verify(network.finish_delta(delta), NOW).unwrap();
    assert_eq!(next.chain().certificates().count(), 3);
    assert!(next.chain().certificates().any(|held| *held == certificate));
}

#[test]
fn new_identity_key_ends_what_the_old_one_said() {
    let network = Network::new();
    let mut member = network.member(2);
    let key = node_secret(22).public_key();
    (member.identity_key, member.noise_key, member.serial) = (Some(key), key.noise_key(), 11);
    let mut delta = network.delta();
    delta.members = vec![network.admit(&member)];
    let next = network.map().verify(network.finish_delta(delta.clone()), NOW).unwrap();
    assert_eq!(next.node_record(node_id(2)), None);
    // What the new key says counts, in the same update.
    delta.node_records = vec![network.say(&network.node_record(2, 51), 22)];
    let next = network.map().verify(network.finish_delta(delta), NOW).unwrap();
    assert_eq!(next.node_record(node_id(2)), Some(&network.node_record(2, 51)));
}

#[test]
fn heartbeats_head_moves_the_position_and_nothing_else() {
    let network = Network::new();
    let map = network.map();
    let position = Position { durable: 109, replica: 2, ephemeral: 0 };
    let mut head = network.head_of(position, map.digest());
    (head.time, head.not_after) = (later(HOUR), later(2 * HOUR));
    let next = map.renew(Envelope::sign(&head, &network.head).unwrap(), later(HOUR)).unwrap();
    assert_eq!(next.position(), Some(position));
    assert_eq!(next.head(), Some(&head));
    assert_eq!(next.digest(), map.digest());
    assert!(next.members().eq(map.members()));
}

#[test]
fn same_durable_position_is_no_step_back() {
    let network = Network::new();
    let mut delta = network.delta();
    delta.position = network.full().position;
    assert!(network.map().verify(network.finish_delta(delta), NOW).is_ok());
}

#[test]
fn addresses_may_change_hands_in_one_update() {
    let network = Network::new();
    let (mut two, mut three) = (network.member(2), network.member(3));
    std::mem::swap(&mut two.ipv4, &mut three.ipv4);
    (two.serial, three.serial) = (11, 11);
    let mut delta = network.delta();
    delta.members = vec![network.admit(&two), network.admit(&three)];
    assert!(network.map().verify(network.finish_delta(delta), NOW).is_ok());
}

#[test]
fn stock_device_needs_no_identity_key() {
    let network = Network::new();
    let mut stock = network.member(4);
    (stock.kind, stock.identity_key) = (MemberKind::Stock, None);
    let mut delta = network.delta();
    delta.members = vec![network.admit(&stock)];
    let next = network.map().verify(network.finish_delta(delta), NOW).unwrap();
    assert_eq!(next.member(node_id(4)), Some(&stock));
}

#[test]
fn ended_member_is_no_peer_though_it_is_still_held() {
    let network = Network::new();
    let mut full = network.full_without_head();
    let mut short = network.member(2);
    short.not_after = later(HOUR);
    full.members[1] = network.admit(&short);
    let full = network.finish(&Content::default(), full);
    let map = network.empty_map().verify(full.clone(), NOW).unwrap();
    assert_eq!(map.next_expiry(NOW), Some(later(HOUR)));
    let before = later(HOUR).saturating_sub(Duration::from_millis(1));
    assert_eq!(map.peers(before).count(), 2);
    let peers: Vec<_> = map.peers(later(HOUR)).map(|member| member.id).collect();
    assert_eq!(peers, [node_id(3)]);
    assert_eq!(map.next_expiry(later(HOUR)), Some(later(30 * DAY)));
    assert_eq!(map.members().count(), 3);
    // An update that says nothing of it is taken all the same.
    let mut delta = network.delta();
    let base = Content::default().after(&full);
    let mut head = network.head_of(delta.position, base.digest());
    (head.time, head.not_after) = (later(2 * HOUR), later(3 * HOUR));
    delta.head = Envelope::sign(&head, &network.head).unwrap();
    assert!(map.verify(delta, later(2 * HOUR)).is_ok());
}

#[test]
fn own_ended_membership_leaves_no_peers() {
    let network = Network::new();
    let mut full = network.full_without_head();
    let mut me = network.member(ME);
    me.not_after = later(HOUR);
    full.members[0] = network.admit(&me);
    let map = network.empty_map().verify(network.finish(&Content::default(), full), NOW).unwrap();
    assert_eq!((map.in_force(NOW), map.peers(NOW).count()), (true, 2));
    assert_eq!((map.in_force(later(HOUR)), map.peers(later(HOUR)).count()), (false, 0));
}

#[test]
fn ended_policy_allows_nothing() {
    let map = Network::new().map();
    let end = later(30 * DAY);
    assert_eq!(map.rules(end.saturating_sub(Duration::from_millis(1))).count(), 2);
    assert_eq!((map.rules(end).count(), map.names(end).count()), (0, 0));
    assert!(map.policy().is_some());
}

#[test]
fn ended_certificate_ends_what_it_vouched_for() {
    let network = Network::new();
    for (role, peers, rules) in [(Role::Admission, 0, 2), (Role::Policy, 2, 0), (Role::Head, 2, 2)] {
        let mut full = network.full_without_head();
        let mut certificate = network.certificate(role);
        certificate.not_after = later(2 * HOUR);
        full.certificates.retain(|envelope| Certificate::parse(&envelope.payload).unwrap().role != role);
        full.certificates.push(network.certify(&certificate));
        let map = network.empty_map().verify(network.finish(&Content::default(), full), NOW).unwrap();
        assert_eq!((map.peers(NOW).count(), map.rules(NOW).count()), (2, 2));
        let then = later(2 * HOUR);
        assert_eq!((map.peers(then).count(), map.rules(then).count()), (peers, rules), "{role}");
    }
}

#[test]
fn coordinator_proves_itself_by_its_statement() {
    let network = Network::new();
    let mut chain = Chain::new(network.id(), network.root_key());
    let statement = Statement {
        network: network.id(),
        replica: 1,
        tls_key: [7; 32],
        client_nonce: [8; 32],
        server_nonce: vec![9; 40],
        time: NOW,
    };
    let envelope = Envelope::sign(&statement, &network.coordinator).unwrap();
    let ask = |chain: &Chain, now| chain.open_statement(&envelope, &[8; 32], &[9; 40], now);
    assert!(matches!(ask(&chain, NOW), Err(MapError::NotAuthorized { kind: Kind::Statement, .. })));
    chain.add(network.certify(&network.certificate(Role::Coordinator)), NOW).unwrap();
    assert_eq!(ask(&chain, NOW), Ok(statement));
    assert!(matches!(ask(&chain, later(365 * DAY)), Err(MapError::CertificateExpired { .. })));
    let replayed = [
        chain.open_statement(&envelope, &[0; 32], &[9; 40], NOW),
        chain.open_statement(&envelope, &[8; 32], &[0; 40], NOW),
        chain.open_statement(&envelope, &[8; 32], &[9; 39], NOW),
    ];
    assert!(replayed.iter().all(|result| *result == Err(MapError::Replayed)));
}

#[test]
fn node_checks_its_own_record_when_it_enrolls() {
    let network = Network::new();
    let mut chain = Chain::new(network.id(), network.root_key());
    chain.add(network.certify(&network.certificate(Role::Admission)), NOW).unwrap();
    let envelope = network.admit(&network.member(ME));
    assert_eq!(chain.open::<Member>(&envelope, NOW), Ok(network.member(ME)));
    let wrong = chain.open::<Policy>(&envelope, NOW);
    assert_eq!(wrong, Err(MapError::WrongKind { expected: Kind::Policy, found: Kind::Member }));
}
