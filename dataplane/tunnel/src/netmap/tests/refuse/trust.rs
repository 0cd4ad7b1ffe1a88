//! Refusals for want of a right: signatures, signers, roles, networks, proofs, and the ends of things.

use super::*;
use crate::key::Signature;

/// Every envelope that comes of flipping one bit of one byte and can still be read as an envelope.
fn flipped(envelope: &Envelope) -> Vec<(usize, Envelope)> {
    let bytes = envelope.emit();
    let flip = |place: usize| {
        let bytes = bytes.clone();
        [0x01, 0x80].into_iter().filter_map(move |bit| {
            let mut bytes = bytes.clone();
            bytes[place] ^= bit;
            Some((place, Envelope::parse(&bytes).ok()?))
        })
    };
    (0..bytes.len()).flat_map(flip).collect()
}

#[test]
fn flipped_byte_anywhere_in_an_envelope_is_refused() {
    let network = Network::new();
    let map = network.map();
    let full = network.full_without_head();
    let finish = |update| network.finish(&Content::default(), update);
    let mut tried = 0;
    let mut refuse = |what: &str, place: usize, update: MapUpdate| {
        assert!(map.verify(update, NOW).is_err(), "{what}, byte {place}");
        tried += 1;
    };
    for (place, envelope) in flipped(&full.certificates[0]) {
        let mut update = full.clone();
        update.certificates[0] = envelope;
        refuse("certificate", place, finish(update));
    }
    for (place, envelope) in flipped(&full.members[1]) {
        let mut update = full.clone();
        update.members[1] = envelope;
        refuse("member", place, finish(update));
    }
    for (place, envelope) in flipped(full.policy.as_ref().unwrap()) {
        let mut update = full.clone();
        update.policy = Some(envelope);
        refuse("policy", place, finish(update));
    }
    for (place, envelope) in flipped(&full.node_records[0]) {
        let mut update = full.clone();
        update.node_records[0] = envelope;
        refuse("node record", place, finish(update));
    }
    for (place, envelope) in flipped(&network.full().head) {
        refuse("head", place, with_head(network.full(), envelope));
    }
    // Two bits of each byte of about 5 x 300 bytes, less what is no envelope any more.
    assert!(tried > 1_500, "{tried}");
    assert_eq!(map, network.map());
}

#[test]
fn flipped_byte_anywhere_in_a_statement_is_refused() {
    let network = Network::new();
    let mut chain = Chain::new(network.id(), network.root_key());
    chain.add(network.certify(&network.certificate(Role::Coordinator)), NOW).unwrap();
    let (client_nonce, server_nonce) = ([8; 32], vec![9; 40]);
    let statement = Statement {
        network: network.id(),
        replica: 1,
        tls_key: [7; 32],
        client_nonce,
        server_nonce,
        time: NOW,
    };
    let envelope = Envelope::sign(&statement, &network.coordinator).unwrap();
    let open = |envelope: &Envelope| chain.open_statement(envelope, &[8; 32], &[9; 40], NOW);
    assert!(open(&envelope).is_ok());
    for (place, envelope) in flipped(&envelope) {
        assert!(open(&envelope).is_err(), "byte {place}");
    }
}

#[test]
fn flipped_byte_anywhere_in_a_rule_or_its_proof_is_refused() {
    let network = Network::new();
    let map = network.map();
    let full = network.full_without_head();
    for place in 0..full.rules[0].leaf.len() {
        let mut update = full.clone();
        update.rules[0].leaf[place] ^= 1;
        let error = refused(&map, network.finish(&Content::default(), update));
        assert_eq!(error, MapError::Unproven { index: 0 }, "byte {place}");
    }
    for (sibling, place) in (0..full.rules[0].siblings.len()).flat_map(|s| (0..32).map(move |p| (s, p))) {
        let mut update = full.clone();
        update.rules[0].siblings[sibling][place] ^= 1;
        let error = refused(&map, network.finish(&Content::default(), update));
        assert_eq!(error, MapError::Unproven { index: 0 }, "sibling {sibling}, byte {place}");
    }
}

#[test]
fn bad_signature_is_named() {
    let network = Network::new();
    let mut envelope = network.admit(&network.member(4));
    envelope.signature = Signature::from_bytes([0; 64]);
    let error = refused(&network.map(), delta_with_member(&network, envelope));
    assert_eq!(error, MapError::BadSignature { kind: Kind::Member });
}

#[test]
fn network_with_another_root_key_is_refused() {
    let (network, other) = (Network::new(), Network::numbered(1));
    let error = refused(&network.map(), other.full());
    assert!(matches!(error, MapError::NotAuthorized { kind: Kind::Certificate, .. }), "{error}");
    assert!(error.to_string().contains("another root key"));
    let error = refused(&network.empty_map(), other.full());
    assert!(matches!(error, MapError::NotAuthorized { kind: Kind::Certificate, .. }), "{error}");
}

#[test]
fn record_of_another_network_is_refused_though_its_signer_is_ours() {
    let (network, other) = (Network::new(), Network::numbered(1));
    let map = network.map();
    let foreign = |kind| MapError::OtherNetwork { kind };
    let member = Envelope::sign(&other.member(4), &network.admission).unwrap();
    assert_eq!(refused(&map, delta_with_member(&network, member)), foreign(Kind::Member));
    let certificate = network.certify(&other.certificate(Role::Admission));
    assert_eq!(refused(&map, delta_with_certificate(&network, certificate)), foreign(Kind::Certificate));
    let (tree, shown) = rules(&[0]);
    let policy = Envelope::sign(&other.policy_of(&tree, 8), &network.policy).unwrap();
    assert_eq!(refused(&map, delta_with_policy(&network, policy, shown)), foreign(Kind::Policy));
    let record = network.say(&other.node_record(2, 51), 2);
    assert_eq!(refused(&map, delta_with_node_record(&network, record)), foreign(Kind::NodeRecord));
    let head = other.head_of(network.delta().position, map.digest());
    let head = Envelope::sign(&head, &network.head).unwrap();
    assert_eq!(refused(&map, with_head(network.delta(), head.clone())), foreign(Kind::Head));
    assert_eq!(map.renew(head, NOW), Err(foreign(Kind::Head)));
}

#[test]
fn key_certified_for_one_role_may_not_sign_for_another() {
    let network = Network::new();
    let map = network.map();
    let not_authorized = |error: &MapError, kind| matches!(error, MapError::NotAuthorized { kind: found, .. } if *found == kind);
    for signer in [&network.policy, &network.head, &network.coordinator, &node_secret(2)] {
        let envelope = Envelope::sign(&network.member(4), signer).unwrap();
        let error = refused(&map, delta_with_member(&network, envelope));
        assert!(not_authorized(&error, Kind::Member), "{error}");
    }
    let (tree, shown) = rules(&[0]);
    for signer in [&network.root, &network.admission, &network.head, &network.coordinator] {
        let envelope = Envelope::sign(&network.policy_of(&tree, 8), signer).unwrap();
        let error = refused(&map, delta_with_policy(&network, envelope, shown.clone()));
        assert!(not_authorized(&error, Kind::Policy), "{error}");
    }
    let mut key = network.certificate(Role::Coordinator);
    key.role = Role::Admission;
    for signer in [&network.admission, &network.policy, &network.head, &network.coordinator] {
        let envelope = Envelope::sign(&key, signer).unwrap();
        let error = refused(&map, delta_with_certificate(&network, envelope));
        assert!(not_authorized(&error, Kind::Certificate), "{error}");
    }
    for signer in [&network.root, &network.admission, &network.policy, &network.coordinator] {
        let head = network.head_of(network.delta().position, map.digest());
        let head = Envelope::sign(&head, signer).unwrap();
        let error = refused(&map, with_head(network.delta(), head.clone()));
        assert!(not_authorized(&error, Kind::Head), "{error}");
        assert!(not_authorized(&map.renew(head, NOW).unwrap_err(), Kind::Head));
    }
}

#[test]
fn unknown_role_is_refused() {
    let network = Network::new();
    let mut payload = network.certificate(Role::Admission).emit().unwrap();
    // Version, then the network's field of 3 + 16 bytes, then the role's of 3 + 1.
    assert_eq!(payload[20..24], [0x02, 0, 1, 1]);
    payload[23] = 5;
    let envelope = Envelope::sign_bytes(Kind::Certificate, payload, &network.root);
    let error = refused(&network.map(), delta_with_certificate(&network, envelope));
    assert!(matches!(
        error,
        MapError::Record { kind: Kind::Certificate, cause: RecordError::Value { field: "role", .. } }
    ));
}

#[test]
fn envelope_of_another_kind_in_a_place_is_refused() {
    let network = Network::new();
    let map = network.map();
    let wrong = |expected, found| MapError::WrongKind { expected, found };
    let member = network.admit(&network.member(4));
    let record = network.say(&network.node_record(2, 51), 2);
    let error = refused(&map, delta_with_member(&network, record.clone()));
    assert_eq!(error, wrong(Kind::Member, Kind::NodeRecord));
    let error = refused(&map, delta_with_node_record(&network, member.clone()));
    assert_eq!(error, wrong(Kind::NodeRecord, Kind::Member));
    let error = refused(&map, delta_with_certificate(&network, member.clone()));
    assert_eq!(error, wrong(Kind::Certificate, Kind::Member));
    let error = refused(&map, delta_with_policy(&network, member.clone(), Vec::new()));
    assert_eq!(error, wrong(Kind::Policy, Kind::Member));
    assert_eq!(refused(&map, with_head(network.delta(), member)), wrong(Kind::Head, Kind::Member));
    // Relabelled, its signature is for another purpose.
    let relabelled = Envelope { kind: Kind::Member, ..network.full().policy.unwrap() };
    let relabelled = Envelope { signer: network.root_key(), ..relabelled };
    assert!(matches!(refused(&map, delta_with_member(&network, relabelled)), MapError::BadSignature { .. }));
}

#[test]
fn ended_records_are_refused() {
    let network = Network::new();
    let map = network.map();
    let expired = |kind, not_after| MapError::Expired { kind, not_after, now: NOW };
    let before = NOW.saturating_sub(Duration::from_millis(1));
    for not_after in [NOW, before, UnixTime::EPOCH] {
        let member = Member { serial: 11, not_after, ..network.member(2) };
        let error = refused(&map, delta_with_member(&network, network.admit(&member)));
        assert_eq!(error, expired(Kind::Member, not_after));
        let (tree, shown) = rules(&[0]);
        let policy = Policy { not_after, ..network.policy_of(&tree, 8) };
        let policy = Envelope::sign(&policy, &network.policy).unwrap();
        assert_eq!(
            refused(&map, delta_with_policy(&network, policy, shown)),
            expired(Kind::Policy, not_after)
        );
        let certificate = Certificate { serial: 2, not_after, ..network.certificate(Role::Admission) };
        let error = refused(&map, delta_with_certificate(&network, network.certify(&certificate)));
        assert_eq!(error, expired(Kind::Certificate, not_after));
        let head = Head { not_after, ..network.head_of(network.delta().position, map.digest()) };
        let head = Envelope::sign(&head, &network.head).unwrap();
        let error = refused(&map, with_head(network.delta(), head.clone()));
        assert_eq!(error, expired(Kind::Head, not_after));
        assert!(error.clock());
        assert_eq!(map.renew(head, NOW), Err(expired(Kind::Head, not_after)));
    }
}

#[test]
fn held_record_that_has_ended_is_not_taken_again() {
    let network = Network::new();
    let full = network.full();
    let then = later(30 * DAY);
    let head = network.head_of(full.position, Content::default().after(&full).digest());
    let head = Head { time: then, not_after: then.saturating_add(HOUR), ..head };
    let update = with_head(full, Envelope::sign(&head, &network.head).unwrap());
    let error = refused_at(&network.map(), update, then);
    assert_eq!(error, MapError::Expired { kind: Kind::Member, not_after: then, now: then });
}

#[test]
fn ended_certificate_vouches_for_nothing_new() {
    let network = Network::new();
    for (role, kind) in
        [(Role::Admission, Kind::Member), (Role::Policy, Kind::Policy), (Role::Head, Kind::Head)]
    {
        let mut full = network.full_without_head();
        let certificate = Certificate { serial: 2, not_after: later(HOUR), ..network.certificate(role) };
        full.certificates.retain(|envelope| Certificate::parse(&envelope.payload).unwrap().role != role);
        full.certificates.push(network.certify(&certificate));
        let full = network.finish(&Content::default(), full);
        let map = network.empty_map().verify(full.clone(), NOW).unwrap();
        let mut delta = network.delta();
        let (tree, shown) = rules(&[0]);
        match kind {
            Kind::Member => delta.members = vec![network.admit(&network.member(4))],
            Kind::Policy => {
                delta.policy = Some(Envelope::sign(&network.policy_of(&tree, 8), &network.policy).unwrap());
                delta.rules = shown;
            }
            Kind::Certificate | Kind::Head | Kind::NodeRecord | Kind::Statement => {}
        }
        let digest = Content::default().after(&full).after(&delta).digest();
        let head = network.head_of(delta.position, digest);
        let head = Head { not_after: later(2 * HOUR), ..head };
        delta.head = Envelope::sign(&head, &network.head).unwrap();
        let error = refused_at(&map, delta.clone(), later(HOUR));
        assert_eq!(error, MapError::CertificateExpired { kind, role, not_after: later(HOUR) });
        assert!(map.verify(delta, later(HOUR).saturating_sub(Duration::from_millis(1))).is_ok());
    }
}

#[test]
fn head_of_our_future_is_refused_as_a_matter_of_clocks() {
    let network = Network::new();
    let map = network.map();
    let at = |time| {
        let head = Head { time, ..network.head_of(network.delta().position, map.digest()) };
        Envelope::sign(&head, &network.head).unwrap()
    };
    let limit = NOW.saturating_add(CLOCK_SKEW_MAX);
    assert!(map.verify(with_head(network.delta(), at(limit)), NOW).is_ok());
    let beyond = limit.saturating_add(Duration::from_millis(1));
    let error = refused(&map, with_head(network.delta(), at(beyond)));
    assert_eq!(error, MapError::Future { time: beyond, now: NOW });
    assert!(error.clock());
    assert_eq!(map.renew(at(beyond), NOW), Err(error));
}

#[test]
fn rule_without_its_proof_is_refused() {
    let network = Network::new();
    let map = network.map();
    let unproven = |rule: ProvenRule| {
        let index = rule.index;
        let mut delta = network.delta();
        (delta.policy, delta.rules) = (network.full().policy, vec![rule]);
        assert_eq!(refused(&map, network.finish_delta(delta)), MapError::Unproven { index });
    };
    let good = rules(&[2]).1.remove(0);
    unproven(ProvenRule { siblings: Vec::new(), ..good.clone() });
    unproven(ProvenRule { siblings: good.siblings[..2].to_vec(), ..good.clone() });
    unproven(ProvenRule { siblings: [good.siblings.clone(), vec![[0; 32]]].concat(), ..good.clone() });
    for index in [0, 1, 3, 4, 5, 6, u64::MAX] {
        unproven(ProvenRule { index, ..good.clone() });
    }
    // A proof for another tree, and a tree of one leaf, which needs no siblings at all.
    let mut others = leaves();
    others.push(others[0].clone());
    unproven(prove(&others, &[2]).1.remove(0));
    unproven(prove(&leaves()[2..3], &[0]).1.remove(0));
    // An inner node passed off as a leaf.
    let proof = MerkleTree::new([good.leaf.clone()]).root();
    unproven(ProvenRule {
        leaf: [proof, good.siblings[0]].concat(),
        index: 1,
        siblings: good.siblings[1..].to_vec(),
    });
}

#[test]
fn rule_is_refused_if_the_policy_names_another_size() {
    let network = Network::new();
    let (tree, shown) = rules(&[4]);
    for size in [0, 1, 3, 4, 6, 8, 9, u64::MAX] {
        let policy = Policy { size, ..network.policy_of(&tree, 8) };
        let policy = Envelope::sign(&policy, &network.policy).unwrap();
        let error = refused(&network.map(), delta_with_policy(&network, policy, shown.clone()));
        assert_eq!(error, MapError::Unproven { index: 4 }, "size {size}");
    }
}

#[test]
fn node_record_signed_by_another_key_is_refused() {
    let network = Network::new();
    let map = network.map();
    let record = network.node_record(2, 51);
    let others = [&node_secret(3), &network.root, &network.admission, &network.head];
    for signer in others {
        let envelope = Envelope::sign(&record, signer).unwrap();
        let error = refused(&map, delta_with_node_record(&network, envelope));
        assert_eq!(error, MapError::NotByNode { id: node_id(2) });
    }
    // Claiming the node's key does not make a signature of it.
    let forged = Envelope { signer: node_secret(2).public_key(), ..network.say(&record, 3) };
    let error = refused(&map, delta_with_node_record(&network, forged));
    assert_eq!(error, MapError::BadSignature { kind: Kind::NodeRecord });
}
