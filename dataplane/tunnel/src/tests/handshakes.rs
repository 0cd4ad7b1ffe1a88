//! Handshakes: who may have one, what a stranger can do about it, and what happens when two begin at once.

use super::*;
use crate::handshake::mac::Stamp;
use crate::handshake::{Floors, Tai64n};
use crate::message::{INITIATION_LEN, RESPONSE_LEN};
use crate::peer::{MAX_FAN_OUT, MAX_HELD_PACKETS, PeerState};

fn psk(byte: u8) -> PresharedKey {
    PresharedKey::from_bytes([byte; 32])
}

fn epochs(current: u8, previous: Option<u8>) -> Psk {
    Psk::Epochs { current: psk(current), previous: previous.map(psk) }
}

/// Gives `message` a first MAC that is right for `receiver`, as a stranger can who knows its public key.
fn stamp<const N: usize>(message: &[u8; N], receiver: &PublicKey) -> Vec<u8> {
    let mut message = *message;
    Stamp::of(receiver).seal(&mut message, None);
    message.to_vec()
}

/// The initiation that `pair.near` sends first.
fn initiation(pair: &mut Pair) -> Datagram {
    pair.send_near(b"hello");
    let initiation = pair.wire.pop_back().unwrap();
    assert_eq!((initiation.kind(), initiation.bytes.len()), (1, INITIATION_LEN));
    initiation
}

#[test]
fn session_comes_up_and_carries_packets_both_ways() {
    let mut pair = Pair::new(1);
    pair.send_near(b"held until there is a session");
    assert_eq!(pair.near.peer(2, pair.now).state, PeerState::Handshaking);
    pair.settle();
    assert_eq!(pair.far.received, [Pair::near_packet(b"held until there is a session")]);
    assert_eq!(pair.near.established(), [true]);
    assert_eq!(pair.far.established(), [false]);
    assert_eq!(pair.near.peer(2, pair.now).state, PeerState::Established);
    assert_eq!(pair.near.peer(2, pair.now).last_handshake, Some(pair.now.wall));
    let kinds: Vec<u8> = pair.sent.iter().map(|(_, datagram)| datagram.kind()).collect();
    assert_eq!(kinds, [1, 2, 4], "one round trip, then data at once");
    pair.assert_traffic();
    assert_eq!(pair.near.tunnel.drops().total() + pair.far.tunnel.drops().total(), 0);
}

#[test]
fn six_packets_and_ipv6_pass_as_well() {
    let mut pair = Pair::connected(2);
    let sent = packet("fd00::1", "fd00::2", &[9; 1300]);
    let datagram = pair.near.send(&sent, pair.now).unwrap();
    pair.put(datagram);
    pair.settle();
    assert_eq!(pair.far.received, [sent]);
}

#[test]
fn responder_seals_nothing_before_its_session_is_confirmed() {
    let mut pair = Pair::new(3);
    let initiation = initiation(&mut pair);
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().unwrap();
    assert_eq!((response.kind(), response.bytes.len()), (2, RESPONSE_LEN));
    for _ in 0..5 {
        pair.send_far(b"must wait");
    }
    assert!(pair.wire.is_empty(), "no data, and no handshake of its own for 5 s");
    assert!(pair.far.established().is_empty());

    pair.deliver(&response);
    let confirmation = pair.wire.pop_front().unwrap();
    assert_eq!(confirmation.kind(), 4);
    pair.deliver(&confirmation);
    assert_eq!(pair.far.established(), [false]);
    pair.settle();
    assert_eq!(pair.near.received, vec![Pair::far_packet(b"must wait"); 5]);
}

#[test]
fn forged_data_does_not_confirm_a_session() {
    let mut pair = Pair::new(4);
    let initiation = initiation(&mut pair);
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().unwrap();
    let mut forged = vec![4, 0, 0, 0];
    forged.extend_from_slice(&response.bytes[4..8]);
    forged.extend([0; 24]);
    let forged = Datagram { from: pair.near.path, to: pair.far.path, bytes: forged };
    assert_eq!(pair.deliver(&forged), Some(Err(DropReason::BadSeal)));
    assert!(pair.far.established().is_empty());
    pair.send_far(b"must wait");
    assert!(pair.wire.is_empty());
}

#[test]
fn forged_responses_cost_nobody_the_handshake() {
    let mut pair = Pair::new(5);
    let initiation = initiation(&mut pair);
    pair.deliver(&initiation);
    let real = pair.wire.pop_front().unwrap();
    let elsewhere = path("203.0.113.66:666");
    let receiver = key_of(1);
    for round in 0..1000usize {
        let mut forged: [u8; RESPONSE_LEN] = real.bytes.as_slice().try_into().unwrap();
        // Ephemeral key, sealed nothing, or the sender's index with it: never all as they were.
        forged[12 + round % 48] ^= 1 << (round % 8);
        let forged = Datagram { from: elsewhere, to: pair.near.path, bytes: stamp(&forged, &receiver) };
        assert_eq!(pair.deliver(&forged), Some(Ok(Inbound::Consumed)));
    }
    let failures = pair.near.dropped(DropReason::BadHandshake) + pair.near.dropped(DropReason::LowOrderKey);
    assert_eq!(failures, 1000);
    assert_eq!(pair.near.peer(2, pair.now).endpoint, None);
    assert!(pair.near.established().is_empty() && pair.wire.is_empty());

    pair.deliver(&real);
    pair.settle();
    assert_eq!(pair.near.established(), [true]);
    assert_eq!(pair.near.peer(2, pair.now).endpoint, Some(pair.far.path));
    assert_eq!(pair.near_initiations().len(), 1, "the same attempt");
}

#[test]
fn response_with_a_wrong_index_or_mac_reaches_no_handshaker() {
    let mut pair = Pair::new(6);
    let initiation = initiation(&mut pair);
    pair.deliver(&initiation);
    let real = pair.wire.pop_front().unwrap();
    let mut other: [u8; RESPONSE_LEN] = real.bytes.as_slice().try_into().unwrap();
    other[8] ^= 0x40;
    let forged = Datagram { bytes: stamp(&other, &key_of(1)), ..real.clone() };
    assert_eq!(pair.deliver(&forged), Some(Err(DropReason::UnknownIndex)));
    let mut forged = real.clone();
    forged.bytes[20] ^= 1;
    assert_eq!(pair.deliver(&forged), Some(Err(DropReason::BadMac1)));
    pair.deliver(&real);
    pair.settle();
    assert_eq!(pair.near.established(), [true]);
}

#[test]
fn initiation_with_a_wrong_mac_costs_no_diffie_hellman() {
    let mut pair = Pair::new(7);
    let real = initiation(&mut pair);
    for bit in [4 * 8, 8 * 8, 100 * 8, 116 * 8, 131 * 8 + 7] {
        let mut forged = real.clone();
        forged.bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(pair.far.take(&forged, pair.now), Err(DropReason::BadMac1));
        assert!(pair.far.tunnel.poll_job().is_none());
    }
    assert_eq!(pair.far.take(&real, pair.now), Ok(Inbound::Consumed));
    assert!(pair.far.tunnel.poll_job().is_some());
}

#[test]
fn strangers_learn_nothing() {
    let mut pair = Pair::connected(8);
    let mut random = Random::seeded(99);
    for round in 0..20_000u32 {
        let mut bytes = vec![0; random.up_to(200) as usize];
        random.fill(&mut bytes).unwrap();
        if let Some(kind) = bytes.first_chunk_mut::<4>() {
            *kind = [(round % 6) as u8, 0, 0, 0];
        }
        let length = [148, 92, 64, 32][round as usize % 4];
        if round % 3 == 0 {
            bytes.resize(length, 0);
        }
        let datagram = Datagram { from: path("203.0.113.9:9"), to: pair.near.path, bytes };
        assert!(pair.near.take(&datagram, pair.now).is_err());
    }
    assert!(pair.near.work(pair.now).is_empty(), "not one byte in reply");
    assert_eq!(pair.near.peer(2, pair.now).endpoint, Some(pair.far.path));
    pair.assert_traffic();
}

#[test]
fn key_that_is_no_peer_is_refused_in_silence() {
    let mut pair = Pair::new(9);
    let mut stranger = Node::new(3, 50);
    stranger.apply(&[pair.far.config.clone()], pair.now);
    stranger.send(&packet("10.0.0.3", "10.0.0.2", b"let me in"), pair.now).unwrap();
    for datagram in stranger.work(pair.now) {
        pair.deliver(&datagram);
    }
    assert_eq!(pair.far.dropped(DropReason::UnknownPeer), 1);
    assert!(pair.wire.is_empty());
}

#[test]
fn low_order_peer_keys_never_produce_a_datagram() {
    const LOW_ORDER: [[u8; 32]; 7] = {
        let mut points = [[0; 32]; 7];
        points[1][0] = 1;
        points[2] = [
            0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a,
            0xda, 0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
        ];
        points[3] = [
            0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b,
            0x04, 0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
        ];
        points[4] = [0xff; 32];
        (points[4][0], points[4][31]) = (0xec, 0x7f);
        points[5] = [0xff; 32];
        (points[5][0], points[5][31]) = (0xed, 0x7f);
        points[6] = [0xff; 32];
        (points[6][0], points[6][31]) = (0xee, 0x7f);
        points
    };
    for (number, point) in LOW_ORDER.into_iter().enumerate() {
        let key = PublicKey::from_bytes(point);
        let mut pair = Pair::with(10 + number as u64, |_| {}, |far| far.key = key);
        pair.send_near(b"hello");
        pair.pass(seconds(2), |_| {});
        assert!(pair.sent.is_empty(), "point {number}");
        assert_eq!(pair.near.dropped(DropReason::LowOrderKey), 1, "point {number}");

        // A stranger's ephemeral key of low order would make the shared secret known to everyone.
        let mut pair = Pair::new(20);
        let real = initiation(&mut pair);
        let mut forged: [u8; INITIATION_LEN] = real.bytes.as_slice().try_into().unwrap();
        forged[8..40].copy_from_slice(&point);
        let forged = Datagram { bytes: stamp(&forged, &key_of(2)), ..real };
        pair.deliver(&forged);
        assert_eq!(pair.far.dropped(DropReason::LowOrderKey), 1, "point {number}");
        assert!(pair.wire.is_empty());
    }
}

#[test]
fn captured_initiation_is_refused_and_moves_nothing() {
    let mut pair = Pair::new(30);
    let captured = initiation(&mut pair);
    pair.deliver(&captured);
    pair.settle();
    let replay = Datagram { from: path("203.0.113.66:666"), ..captured };
    pair.run(seconds(1));
    pair.sent.clear();
    pair.deliver(&replay);
    assert_eq!(pair.far.dropped(DropReason::OldTimestamp), 1);
    assert!(pair.sent.is_empty());
    assert_eq!(pair.far.peer(1, pair.now).endpoint, Some(pair.near.path));
}

#[test]
fn restored_floors_refuse_an_old_initiation_after_a_restart() {
    let mut pair = Pair::new(31);
    let captured = initiation(&mut pair);
    pair.deliver(&captured);
    let floors = Floors::parse(&pair.far.handshaker.floors().emit()).unwrap();
    assert!(floors.received[&key_of(1)] > Tai64n::ZERO);

    let mut older = floors.clone();
    older.received.insert(key_of(1), Tai64n::ZERO);
    pair.far.handshaker.restore(older);
    assert_eq!(*pair.far.handshaker.floors(), floors, "restoring lowers none");

    let mut restarted = Node::new(2, 900);
    restarted.apply(&[pair.near.config.clone()], pair.now);
    restarted.handshaker.restore(floors);
    restarted.take(&captured, pair.now).unwrap();
    assert!(restarted.work(pair.now).is_empty());
    assert_eq!(restarted.dropped(DropReason::OldTimestamp), 1);

    let mut forgetful = Node::new(2, 901);
    forgetful.apply(&[pair.near.config.clone()], pair.now);
    forgetful.take(&captured, pair.now).unwrap();
    assert_eq!(forgetful.work(pair.now).len(), 1, "what the floor is there for");
}

#[test]
fn old_initiation_accepted_after_a_restart_moves_no_live_endpoint() {
    let mut pair = Pair::new(32);
    let _never_arrived = initiation(&mut pair);
    pair.run(seconds(6));
    assert_eq!(pair.far.established(), [false]);
    // The floor is lost, the session is not: as if the initiation were newer.
    let captured = pair.sent.iter().find(|(_, datagram)| datagram.kind() == 1).unwrap().1.clone();
    pair.far.handshaker = Handshaker::new(&secret(2), Random::seeded(7));
    pair.far.handshaker.apply(&[pair.near.config.clone()]);
    let replay = Datagram { from: path("203.0.113.66:666"), ..captured };
    pair.deliver(&replay);
    assert_eq!(pair.wire.back().unwrap().to, replay.from, "it is answered,");
    assert_eq!(pair.far.peer(1, pair.now).endpoint, Some(pair.near.path), "but nobody moves");
}

#[test]
fn unconfirmed_initiation_makes_no_endpoint() {
    let mut pair = Pair::new(49);
    let initiation = initiation(&mut pair);
    let replay = Datagram { from: path("203.0.113.66:666"), ..initiation };
    pair.deliver(&replay);
    assert_eq!(pair.wire.pop_back().unwrap().to, replay.from);
    assert_eq!(pair.far.peer(1, pair.now).endpoint, None);
    assert!(!pair.far.events.iter().any(|event| matches!(event, Event::PathSelected { .. })));
    // What the far side then begins goes to the near one's own address too, and so the thief wins nothing.
    pair.run(seconds(6));
    assert_eq!(pair.far.peer(1, pair.now).endpoint, Some(pair.near.path));
}

#[test]
fn response_to_an_index_of_a_session_reaches_no_handshaker() {
    let mut pair = Pair::connected(50);
    let session = pair.near.tunnel.peers.get(0).unwrap().sessions.current().unwrap().local_index();
    pair.run(seconds(121));
    pair.send_near(b"rekey");
    assert!(pair.near.tunnel.peers.get(0).unwrap().handshake.is_some());
    let forged = crate::message::response(1, session, &[7; 48]);
    let forged = Datagram { from: pair.far.path, to: pair.near.path, bytes: stamp(&forged, &key_of(1)) };
    assert_eq!(pair.deliver(&forged), Some(Err(DropReason::UnknownIndex)));
}

#[test]
fn initiator_with_a_clock_gone_backwards_is_still_heard() {
    let mut pair = Pair::connected(33);
    let floors = pair.near.handshaker.floors().clone();
    pair.now.wall = UnixTime::from_secs(1_000_000_000);
    pair.near = Node::new(1, 333);
    pair.near.apply(&[pair.far.config.clone()], pair.now);
    pair.near.handshaker.restore(floors);
    pair.run(seconds(1));
    pair.send_near(b"years ago");
    pair.settle();
    assert_eq!(pair.near.established(), [true]);
    assert_eq!(pair.far.dropped(DropReason::OldTimestamp), 0);
}

#[test]
fn more_than_fifty_initiations_a_second_of_one_peer_are_a_flood() {
    let mut pair = Pair::new(34);
    for at in 0..1000u64 {
        let mut node = Node::new(1, 5000 + at);
        node.apply(&[pair.far.config.clone()], pair.now);
        node.handshaker.restore(pair.near.handshaker.floors().clone());
        node.send(&Pair::near_packet(b"x"), pair.now).unwrap();
        for datagram in node.work(pair.now) {
            pair.far.take(&datagram, pair.now).unwrap();
            pair.far.work(pair.now);
        }
        pair.near.handshaker.restore(node.handshaker.floors().clone());
        pair.now = pair.now.later(millis(1));
    }
    let flood = pair.far.dropped(DropReason::InitiationFlood);
    assert_eq!(flood, 1000 - 50);
    assert_eq!(pair.far.dropped(DropReason::OldTimestamp), 0);
}

#[test]
fn another_networks_psk_is_refused_in_both_roles() {
    let mut pair = Pair::new(35);
    pair.near.handshaker.apply(&[PeerConfig { psk: epochs(1, Some(2)), ..pair.far.config.clone() }]);
    pair.far.handshaker.apply(&[PeerConfig { psk: epochs(3, Some(4)), ..pair.near.config.clone() }]);
    pair.send_near(b"from near");
    pair.send_far(b"from far");
    pair.run(seconds(60));
    assert!(pair.near.established().is_empty() && pair.far.established().is_empty());
    assert!(pair.near.received.is_empty() && pair.far.received.is_empty());
    assert!(pair.near.dropped(DropReason::BadHandshake) > 5);
    assert!(pair.far.dropped(DropReason::BadHandshake) > 5);
}

#[test]
fn initiator_with_a_newer_epoch_reaches_a_peer_that_has_not_heard() {
    let mut pair = Pair::new(36);
    pair.near.handshaker.apply(&[PeerConfig { psk: epochs(2, Some(1)), ..pair.far.config.clone() }]);
    pair.far.handshaker.apply(&[PeerConfig { psk: epochs(1, None), ..pair.near.config.clone() }]);
    pair.send_near(b"hello");
    pair.settle();
    assert_eq!(pair.near.established(), [true]);
    pair.assert_traffic();
}

#[test]
fn initiator_with_an_old_epoch_is_helped_by_the_responder_within_six_seconds() {
    // Whichever has the greater key: a tie must not be broken against the side that can tell.
    for stale_is_near in [true, false] {
        for seed in 0..20 {
            let mut pair = Pair::new(100 + seed);
            let (near, far) = match stale_is_near {
                true => (epochs(1, None), epochs(2, Some(1))),
                false => (epochs(2, Some(1)), epochs(1, None)),
            };
            pair.near.handshaker.apply(&[PeerConfig { psk: near, ..pair.far.config.clone() }]);
            pair.far.handshaker.apply(&[PeerConfig { psk: far, ..pair.near.config.clone() }]);
            match stale_is_near {
                true => pair.send_near(b"hello"),
                false => pair.send_far(b"hello"),
            }
            pair.run(millis(5340));
            let received = if stale_is_near { &pair.far.received } else { &pair.near.received };
            assert_eq!(received.len(), 1, "seed {seed}, stale is near: {stale_is_near}");
            pair.assert_traffic();
        }
    }
}

#[test]
fn previous_epoch_is_never_answered_with() {
    let mut pair = Pair::new(37);
    pair.near.handshaker.apply(&[PeerConfig { psk: epochs(1, None), ..pair.far.config.clone() }]);
    pair.far.handshaker.apply(&[PeerConfig { psk: epochs(2, Some(1)), ..pair.near.config.clone() }]);
    let initiation = initiation(&mut pair);
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().unwrap();
    pair.deliver(&response);
    assert!(pair.near.established().is_empty());
    assert_eq!(pair.near.dropped(DropReason::BadHandshake), 1);
}

#[test]
fn psk_change_waits_for_the_next_handshake() {
    let mut pair = Pair::connected(38);
    let mut far = pair.far.config.clone();
    far.psk = epochs(9, None);
    pair.near.apply(&[far], pair.now);
    pair.assert_traffic();
    let mut near = pair.near.config.clone();
    near.psk = epochs(9, None);
    pair.far.apply(&[near], pair.now);
    pair.run(seconds(121));
    pair.send_near(b"rekeys");
    pair.settle();
    assert_eq!(pair.near.established(), [true, true]);
    pair.assert_traffic();
}

#[test]
fn simultaneous_initiations_end_in_one_session() {
    let mut pair = Pair::new(39);
    pair.near.send(&Pair::near_packet(b"from near"), pair.now).unwrap();
    pair.far.send(&Pair::far_packet(b"from far"), pair.now).unwrap();
    pair.work();
    assert_eq!(pair.wire.len(), 2);
    pair.settle();
    assert_eq!(pair.near.received, [Pair::far_packet(b"from far")]);
    assert_eq!(pair.far.received, [Pair::near_packet(b"from near")]);
    let mut seen = [pair.near.established(), pair.far.established()];
    seen.sort();
    assert_eq!(seen, [[false], [true]], "one session, seen from each side");
    pair.sent.clear();
    for _ in 0..30 {
        pair.run(seconds(5));
        pair.assert_traffic();
    }
    assert_eq!(
        pair.near_initiations().len() + pair.far_initiations().len(),
        1,
        "one rekey in 150 s, by one side"
    );
}

#[test]
fn nobody_gives_way_to_a_stock_peer() {
    let mut pair = Pair::with(51, |near| near.mesh = false, |far| far.mesh = false);
    pair.near.send(&Pair::near_packet(b"from near"), pair.now).unwrap();
    pair.far.send(&Pair::far_packet(b"from far"), pair.now).unwrap();
    pair.work();
    for initiation in pair.wire.drain(..).collect::<Vec<_>>() {
        pair.deliver(&initiation);
    }
    for node in [&pair.near, &pair.far] {
        let pending = node.tunnel.peers.get(0).unwrap().handshake.is_some();
        assert!(pending, "a stock peer may answer ours and forget its own");
    }
}

#[test]
fn initiation_that_insists_gives_way_to_nobody() {
    for (stale_is_near, lost) in [(true, 0), (false, 0), (true, 1), (false, 1)] {
        for seed in 0..10 {
            let mut pair = Pair::new(200 + seed);
            let (near, far) = match stale_is_near {
                true => (epochs(1, None), epochs(2, Some(1))),
                false => (epochs(2, Some(1)), epochs(1, None)),
            };
            pair.near.handshaker.apply(&[PeerConfig { psk: near, ..pair.far.config.clone() }]);
            pair.far.handshaker.apply(&[PeerConfig { psk: far, ..pair.near.config.clone() }]);
            match stale_is_near {
                true => pair.send_near(b"hello"),
                false => pair.send_far(b"hello"),
            }
            pair.settle();
            // Those that are lost are repeated, and insist as well.
            for _ in 0..=lost {
                pair.wire.clear();
                pair.pass(millis(5334), |_| {});
            }
            assert_eq!(pair.wire.iter().map(Datagram::kind).collect::<Vec<_>>(), [1, 1], "they cross");
            let stale = if stale_is_near { pair.near.path } else { pair.far.path };
            pair.wire.make_contiguous().sort_by_key(|datagram| datagram.from != stale);
            pair.settle();
            assert_eq!(pair.near.established().len() + pair.far.established().len(), 2, "seed {seed}");
        }
    }
}

/// Two nodes begin at once, and the wire does what it likes with the first messages.
#[test]
fn any_interleaving_of_simultaneous_initiations_ends_in_a_session() {
    for seed in 0..1000 {
        let mut pair = Pair::new(seed);
        let mut chaos = Random::seeded(seed + 10_000);
        pair.near.send(&Pair::near_packet(b"from near"), pair.now).unwrap();
        pair.far.send(&Pair::far_packet(b"from far"), pair.now).unwrap();
        pair.work();
        let mut handled = 0;
        while handled < 6 && !pair.wire.is_empty() {
            handled += 1;
            let at = chaos.up_to(pair.wire.len() as u32 - 1) as usize;
            let datagram = pair.wire.remove(at).unwrap();
            match chaos.up_to(3) {
                0 => {}
                1 => {
                    pair.deliver(&datagram);
                    pair.wire.push_back(datagram);
                }
                _ => {
                    pair.deliver(&datagram);
                }
            }
        }
        pair.settle();
        // Each side may have lost its first try; the second one, 5.333 s later at most, is on a wire that works.
        pair.run(millis(5334));
        pair.assert_traffic();
        assert!(pair.near.tunnel.indices.len() <= 4 && pair.far.tunnel.indices.len() <= 4, "seed {seed}");
    }
}

#[test]
fn back_to_back_initiations_leak_no_index() {
    let mut pair = Pair::connected(40);
    for _ in 0..2000 {
        pair.near.tunnel.begin_handshake(0, crate::establish::Begin::Insist, pair.now);
        pair.now = pair.now.later(millis(25));
        pair.work();
        if pair.wire.len() > 3 {
            pair.settle();
        }
        assert!(pair.near.tunnel.indices.len() <= 4);
        assert!(pair.far.tunnel.indices.len() <= 4);
    }
    pair.settle();
    pair.assert_traffic();
    pair.near.tunnel.begin_handshake(0, crate::establish::Begin::Insist, pair.now);
    pair.near.apply(&[], pair.now);
    assert_eq!(pair.near.tunnel.indices.len(), 0, "removed in the middle of a handshake");
    pair.near.work(pair.now);
    assert_eq!(pair.near.tunnel.indices.len(), 0);
}

#[test]
fn initiation_goes_to_every_candidate_until_one_is_confirmed() {
    let candidates: Vec<SocketAddr> =
        (1..=12).map(|i| format!("198.51.100.{i}:7").parse().unwrap()).collect();
    let mut pair = Pair::with(41, |_| {}, |far| far.candidates = candidates.clone());
    pair.send_near(b"hello");
    let first: Vec<Path> = pair.sent.iter().map(|(_, datagram)| datagram.to).collect();
    assert_eq!(first, candidates[..MAX_FAN_OUT].iter().map(|&to| Path::Udp(to)).collect::<Vec<_>>());
    let bytes: Vec<_> = pair.sent.iter().map(|(_, datagram)| &datagram.bytes).collect();
    assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]), "one initiation, many ways");
    pair.cut(millis(5400));
    let tried: std::collections::BTreeSet<Path> = pair.sent.iter().map(|(_, datagram)| datagram.to).collect();
    assert_eq!(tried.len(), 12, "the others had their turn at the second try");
}

#[test]
fn confirmed_endpoint_is_tried_first_and_candidates_again_when_it_is_silent() {
    let far_path = Node::new(2, 0).path;
    let elsewhere: SocketAddr = "198.51.100.1:7".parse().unwrap();
    let mut pair = Pair::with(42, |_| {}, |far| far.candidates.insert(0, elsewhere)).connect();
    pair.run(seconds(121));
    // Something was heard lately: where the peer is is beyond doubt.
    pair.send_far(b"here");
    pair.settle();
    pair.sent.clear();
    pair.send_near(b"rekey");
    pair.wire.clear();
    let to: Vec<Path> = pair.sent_by(pair.near.path, 1).iter().map(|(_, datagram)| datagram.to).collect();
    assert_eq!(to, [far_path], "the confirmed one alone");
    pair.sent.clear();
    pair.cut(millis(5400));
    let to: Vec<Path> = pair.sent_by(pair.near.path, 1).iter().map(|(_, datagram)| datagram.to).collect();
    assert_eq!(to, [far_path, Path::Udp(elsewhere)]);
}

#[test]
fn held_packets_are_bounded_and_the_oldest_goes_first() {
    let mut pair = Pair::new(43);
    for number in 0..MAX_HELD_PACKETS as u8 + 5 {
        pair.near.send(&Pair::near_packet(&[number]), pair.now).unwrap();
    }
    assert_eq!(pair.near.dropped(DropReason::HeldTooMany), 5);
    pair.settle();
    let expected: Vec<Vec<u8>> =
        (5..MAX_HELD_PACKETS as u8 + 5).map(|number| Pair::near_packet(&[number])).collect();
    assert_eq!(pair.far.received, expected);
}

#[test]
fn peer_without_any_address_holds_nothing() {
    let mut pair = Pair::with(44, |_| {}, |far| far.candidates.clear());
    let sent = pair.near.send(&Pair::near_packet(b"nowhere"), pair.now);
    assert_eq!(sent.err(), Some(DropReason::NoPath));
    assert!(pair.near.work(pair.now).is_empty());
    // It can still reach us, and then we know where it is.
    pair.send_far(b"here I am");
    pair.settle();
    pair.assert_traffic();
}

#[test]
fn results_of_a_superseded_handshake_are_dropped() {
    use crate::establish::Begin;
    let mut pair = Pair::new(52);
    pair.near.send(&Pair::near_packet(b"hello"), pair.now).unwrap();
    let first = pair.near.tunnel.poll_job().unwrap();
    pair.near.tunnel.begin_handshake(0, Begin::Insist, pair.now);
    let done = pair.near.handshaker.run(first, 0, pair.now);
    pair.near.tunnel.handle_job(done, pair.now);
    assert_eq!(pair.near.dropped(DropReason::SupersededHandshake), 1);
    assert!(pair.near.tunnel.poll_transmit(&mut [0; 2000], pair.now).is_none());

    // The answer to the second comes when a third is under way.
    pair.work();
    let initiation = pair.wire.pop_front().unwrap();
    pair.deliver(&initiation);
    let response = pair.wire.pop_front().unwrap();
    pair.near.take(&response, pair.now).unwrap();
    let finish = pair.near.tunnel.poll_job().unwrap();
    let done = pair.near.handshaker.run(finish, 0, pair.now);
    pair.near.tunnel.begin_handshake(0, Begin::Insist, pair.now);
    pair.work();
    pair.near.tunnel.handle_job(done, pair.now);
    assert_eq!(pair.near.dropped(DropReason::SupersededHandshake), 2);
    assert!(pair.near.established().is_empty());
    pair.now = pair.now.later(millis(20));
    pair.settle();
    assert_eq!(pair.near.established(), [true]);
    pair.assert_traffic();
}

#[test]
fn own_key_is_no_peer() {
    let mut pair = Pair::new(45);
    let own = pair.near.config.clone();
    pair.near.apply(&[own], pair.now);
    assert_eq!(pair.near.tunnel.peers(pair.now).count(), 0);
}

#[test]
fn counters_near_the_limit_bring_a_new_session_and_no_more_datagrams() {
    use crate::session::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES};
    for (near_counts, seed) in [(true, 46), (false, 47)] {
        let mut pair = Pair::connected(seed);
        pair.run(seconds(6));
        pair.sent.clear();
        let node = if near_counts { &mut pair.near } else { &mut pair.far };
        let session = node.tunnel.peers.get_mut(0).unwrap().sessions.current_mut().unwrap();
        session.preset_counter(REKEY_AFTER_MESSAGES);
        let send = |pair: &mut Pair| if near_counts { pair.send_near(b"n") } else { pair.send_far(b"f") };
        send(&mut pair);
        assert_eq!(
            pair.sent.iter().filter(|(_, datagram)| datagram.kind() == 1).count(),
            1,
            "either side rekeys"
        );

        let node = if near_counts { &mut pair.near } else { &mut pair.far };
        let session = node.tunnel.peers.get_mut(0).unwrap().sessions.current_mut().unwrap();
        session.preset_counter(REJECT_AFTER_MESSAGES - 10);
        pair.sent.clear();
        for _ in 0..20 {
            send(&mut pair);
        }
        let counters: Vec<u64> =
            pair.sent.iter().filter(|(_, datagram)| datagram.kind() == 4).map(counter).collect();
        assert_eq!(counters, (REJECT_AFTER_MESSAGES - 10..REJECT_AFTER_MESSAGES).collect::<Vec<_>>());
        pair.settle();
        pair.run(seconds(6));
        pair.assert_traffic();
    }
}

fn counter((_, datagram): &(Duration, Datagram)) -> u64 {
    u64::from_le_bytes(datagram.bytes[8..16].try_into().unwrap())
}

#[test]
fn no_counter_is_ever_used_twice() {
    let mut pair = Pair::connected(48);
    for round in 0..200 {
        pair.send_near(b"data");
        pair.near.tunnel.ping(NodeId::from_bytes([2; 8]), round, pair.now).unwrap();
        if round % 3 == 0 {
            pair.settle();
        }
        pair.wire.clear();
        pair.run(seconds(3));
    }
    let mut seen = std::collections::BTreeSet::new();
    for sent in pair.sent.iter().filter(|(_, datagram)| datagram.kind() == 4) {
        assert!(seen.insert((sent.1.from, sent.1.bytes[4..8].to_vec(), counter(sent))));
    }
}
