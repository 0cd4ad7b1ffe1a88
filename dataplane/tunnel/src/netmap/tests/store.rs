//! The map's file: it comes back as it was, and nothing else comes back at all.

use sha2::{Digest as _, Sha256};

use super::super::held;
use super::*;

fn parse(network: &Network, bytes: &[u8], now: UnixTime) -> Result<NetworkMap, MapError> {
    NetworkMap::parse(bytes, network.id(), network.root_key(), node_id(ME), now)
}

/// Makes the sum fit again, as one who tampers would.
fn resum(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - 32);
    let sum = Sha256::digest(&bytes);
    bytes.extend(sum);
    bytes
}

#[test]
fn stored_map_comes_back_as_it_was() {
    let network = Network::new();
    let map = network.map();
    assert_eq!(parse(&network, &map.emit(), NOW), Ok(map.clone()));
    let mut delta = network.delta();
    delta.removed = vec![node_id(3)];
    delta.members = vec![network.admit(&network.member(4))];
    let map = map.verify(network.finish_delta(delta), NOW).unwrap();
    assert_eq!(parse(&network, &map.emit(), NOW), Ok(map));
    let empty = network.empty_map();
    assert_eq!(parse(&network, &empty.emit(), NOW), Ok(empty));
}

#[test]
fn stored_map_outlives_its_head_but_not_its_records() {
    let network = Network::new();
    let map = network.map();
    let week = later(7 * DAY);
    let read = parse(&network, &map.emit(), week).unwrap();
    assert_eq!((read.peers(week).count(), read.rules(week).count()), (2, 2));
    let end = later(30 * DAY);
    let error = parse(&network, &map.emit(), end).unwrap_err();
    assert_eq!(error, MapError::Expired { kind: Kind::Member, not_after: end, now: end });
    assert!(parse(&network, &map.emit(), end.saturating_sub(Duration::from_millis(1))).is_ok());
}

#[test]
fn stored_map_shows_no_peer_that_ended_meanwhile() {
    let network = Network::new();
    let mut full = network.full_without_head();
    full.members[1] = network.admit(&Member { not_after: later(DAY), ..network.member(2) });
    let map = network.empty_map().verify(network.finish(&Content::default(), full), NOW).unwrap();
    let read = parse(&network, &map.emit(), later(2 * DAY)).unwrap();
    let peers: Vec<_> = read.peers(later(2 * DAY)).map(|member| member.id).collect();
    assert_eq!(peers, [node_id(3)]);
}

#[test]
fn torn_file_is_damaged_at_every_length() {
    let network = Network::new();
    let bytes = network.map().emit();
    for length in 0..bytes.len() {
        assert_eq!(parse(&network, &bytes[..length], NOW), Err(MapError::Damaged), "{length} bytes");
    }
    assert_eq!(parse(&network, &[bytes, vec![0]].concat(), NOW), Err(MapError::Damaged));
}

#[test]
fn flipped_byte_anywhere_is_damage() {
    let network = Network::new();
    let bytes = network.map().emit();
    for place in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1;
        assert_eq!(parse(&network, &bytes, NOW), Err(MapError::Damaged), "byte {place}");
    }
}

#[test]
fn tampered_file_with_a_fitting_sum_is_refused() {
    let network = Network::new();
    let map = network.map();
    let bytes = map.emit();
    // What was seen of older records is unsigned; all before and after it is verified.
    let mut floors = Vec::new();
    map.floors.emit(&mut floors);
    let start = 12 + 1 + 16 + 32 + 8;
    assert_eq!(bytes[start..start + floors.len()], floors);
    let places = (0..start).chain(start + floors.len()..bytes.len() - 32);
    for place in places {
        let mut bytes = bytes.clone();
        bytes[place] ^= 1;
        assert!(parse(&network, &resum(bytes), NOW).is_err(), "byte {place}");
    }
}

#[test]
fn floors_above_what_the_file_holds_are_refused() {
    let network = Network::new();
    let map = network.map();
    let mut newer = network.delta();
    newer.members = vec![network.admit(&Member { serial: 11, ..network.member(2) })];
    let newer = map.verify(network.finish_delta(newer), NOW).unwrap();
    let mixed = NetworkMap { floors: newer.floors, ..map };
    let error = parse(&network, &mixed.emit(), NOW);
    assert_eq!(error, Err(MapError::OlderSerial { kind: Kind::Member, held: 11, offered: 10 }));
}

#[test]
fn file_of_a_newer_program_is_told_from_a_damaged_one() {
    let network = Network::new();
    let mut bytes = network.map().emit();
    bytes[12] = 2;
    let error = parse(&network, &resum(bytes), NOW).unwrap_err();
    assert_eq!(error, MapError::NewerStore { found: 2 });
    assert!(error.to_string().contains("update"));
    let mut bytes = network.map().emit();
    bytes[12] = 0;
    assert_eq!(parse(&network, &resum(bytes), NOW), Err(MapError::Damaged));
}

#[test]
fn file_of_another_network_or_node_is_refused() {
    let (network, other) = (Network::new(), Network::numbered(1));
    let bytes = network.map().emit();
    let read = |id, root, me| NetworkMap::parse(&bytes, id, root, me, NOW);
    assert!(read(network.id(), network.root_key(), node_id(ME)).is_ok());
    assert_eq!(read(other.id(), network.root_key(), node_id(ME)), Err(MapError::OtherStore));
    assert_eq!(read(network.id(), other.root_key(), node_id(ME)), Err(MapError::OtherStore));
    assert_eq!(read(network.id(), network.root_key(), node_id(2)), Err(MapError::OtherStore));
}

#[test]
fn map_read_from_its_file_goes_on_where_it_was() {
    let network = Network::new();
    let map = network.map();
    let read = parse(&network, &map.emit(), NOW).unwrap();
    let mut delta = network.delta();
    delta.members = vec![network.admit(&network.member(4))];
    let delta = network.finish_delta(delta);
    assert_eq!(read.verify(delta.clone(), NOW), map.verify(delta, NOW));
    let older = MapUpdate { position: Position::default(), ..network.delta() };
    assert!(matches!(refused(&read, network.finish_delta(older)), MapError::OlderPosition { .. }));
}

#[test]
fn headless_file_that_holds_something_is_damaged() {
    let network = Network::new();
    let headless = NetworkMap { head: None, ..network.map() };
    assert_eq!(parse(&network, &headless.emit(), NOW), Err(MapError::Damaged));
}

#[test]
fn what_was_seen_is_forgotten_once_it_has_ended() {
    let network = Network::new();
    let mut full = network.full_without_head();
    full.members[2] = network.admit(&Member { not_after: later(DAY), ..network.member(3) });
    let full = network.finish(&Content::default(), full);
    let map = network.empty_map().verify(full.clone(), NOW).unwrap();
    let mut removal = network.delta();
    removal.removed = vec![node_id(3)];
    let base = Content::default().after(&full);
    let removal = network.finish(&base, removal);
    let soon = map.verify(removal.clone(), NOW).unwrap();
    // The same content and, for the day after, a head of that day.
    let mut late = removal;
    let digest = base.after(&late).digest();
    let head = Head { time: later(DAY), not_after: later(2 * DAY), ..network.head_of(late.position, digest) };
    late.head = Envelope::sign(&head, &network.head).unwrap();
    let day_after = map.verify(late, later(DAY)).unwrap();
    // 8 bytes of id, 8 of serial, 32 of hash, 8 of time.
    let length = |map: &NetworkMap| {
        let mut bytes = Vec::new();
        map.floors.emit(&mut bytes);
        bytes.len()
    };
    assert_eq!(length(&soon), length(&map));
    assert_eq!(length(&day_after), length(&map) - 56);
}

#[test]
fn file_with_more_at_its_end_is_damaged_though_its_sum_fits() {
    let network = Network::new();
    let mut bytes = network.map().emit();
    let end = bytes.len() - 32;
    bytes.insert(end, 0);
    assert_eq!(parse(&network, &resum(bytes), NOW), Err(MapError::Damaged));
}

#[test]
fn file_without_this_node_is_refused() {
    let network = Network::new();
    let mut map = network.map();
    map.members.remove(&node_id(ME));
    let mut update = network.full_without_head();
    update.members.remove(0);
    let head = network.head_of(update.position, Content::default().after(&update).digest());
    let envelope = Envelope::sign(&head, &network.head).unwrap();
    map.head = Some(held::Held::new(head, envelope));
    assert_eq!(parse(&network, &map.emit(), NOW), Err(MapError::OwnRecordMissing { id: node_id(ME) }));
}
