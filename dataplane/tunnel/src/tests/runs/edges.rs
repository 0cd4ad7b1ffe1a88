//! Runs at their limits: what is damaged, refused, held or counted.

use super::*;
use crate::peer::MAX_HELD_PACKETS;
use crate::session::REJECT_AFTER_MESSAGES;

/// The train that the near end makes of packets, and where it comes from.
fn train(pair: &mut Pair, packets: &[Vec<u8>]) -> (Vec<Vec<u8>>, Hop) {
    let sent = pair.near.send_run(packets, pair.now).unwrap().expect("there is a session");
    (sent.into_iter().map(|datagram| datagram.bytes).collect(), hop(pair.near.path))
}

#[test]
fn one_bad_datagram_of_a_train_loses_only_itself() {
    let packets = marked(45, 1400);
    for at in 0..45 {
        for (reason, spoil) in [
            (
                DropReason::BadSeal,
                (|datagram: &mut Vec<u8>, _: &[u8]| datagram[700] ^= 1) as fn(&mut Vec<u8>, &[u8]),
            ),
            (DropReason::BadSeal, |datagram, _| datagram[15] = 1),
            (DropReason::Replayed, |datagram, seen| datagram.copy_from_slice(seen)),
            (DropReason::UnknownIndex, |datagram, _| datagram[5] ^= 1),
            (DropReason::UnknownMessage, |datagram, _| datagram[0] = 5),
            (DropReason::UnknownRelay, |datagram, _| datagram[0] = 16),
        ] {
            let mut pair = Pair::connected(3);
            let (seen, from) = train(&mut pair, &packets[..1]);
            give(&mut pair.far, &seen, from, pair.now, true);
            let (mut datagrams, from) = train(&mut pair, &packets);
            spoil(&mut datagrams[at], &seen[0]);
            let got = give(&mut pair.far, &datagrams, from, pair.now, true);
            let others = packets.iter().cloned().enumerate().filter(|(index, _)| *index != at);
            assert_eq!(got, others.collect::<Vec<_>>(), "{reason} at {at}");
            assert_eq!(
                (pair.far.dropped(reason), pair.far.tunnel.drops().total()),
                (1, 1),
                "{reason} at {at}"
            );
        }
    }
}

#[test]
fn a_train_of_another_session_or_of_none_delivers_nothing_and_every_drop_is_counted() {
    let mut pair = Pair::connected(4);
    let (datagrams, from) = train(&mut pair, &marked(200, 100)[..MAX_RUN]);
    pair.far.tunnel.expire_sessions();
    assert!(give(&mut pair.far, &datagrams, from, pair.now, true).is_empty());
    assert_eq!(pair.far.dropped(DropReason::UnknownIndex), MAX_RUN as u64);

    let mut pair = Pair::connected(4);
    let (datagrams, from) = train(&mut pair, &marked(45, 100));
    assert!(give(&mut pair.far, &datagrams, from, pair.now.later(seconds(180)), true).is_empty());
    assert_eq!(pair.far.dropped(DropReason::SessionExpired), 45);
}

#[test]
fn an_empty_train_is_an_empty_datagram() {
    let mut pair = Pair::connected(4);
    for stride in [0, 1, 1500] {
        let from = hop(pair.near.path);
        pair.far.tunnel.inbound_run(&mut [], stride, from, pair.now, &mut |_, _| panic!("nothing is in it"));
    }
    assert_eq!(pair.far.dropped(DropReason::UnknownMessage), 3);
}

#[test]
fn a_run_that_confirms_a_session_is_delivered_whole() {
    let mut pair = Pair::new(5);
    assert_eq!(pair.near.send_run(&marked(3, 60), pair.now), Ok(None));
    pair.work();
    while pair.far.tunnel.peers.get(0).is_some_and(|peer| !peer.sessions.has_unconfirmed()) {
        let next = pair.wire.pop_front().unwrap();
        pair.deliver(&next);
    }
    let answer = pair.wire.pop_front().unwrap();
    pair.near.take(&answer, pair.now).unwrap();
    let held = pair.near.work(pair.now);
    let (datagrams, from) = train(&mut pair, &marked(45, 60));
    let got = give(&mut pair.far, &datagrams, from, pair.now, true);
    assert_eq!(got.len(), 45);
    pair.put(held);
    pair.settle();
    assert_eq!(pair.far.established(), [false], "once");
    assert_eq!(pair.far.received, marked(3, 60), "what was held");
}

#[test]
fn a_run_without_a_session_is_held_whole_and_goes_in_its_order() {
    let mut pair = Pair::new(6);
    let packets = marked(MAX_HELD_PACKETS, 100);
    assert_eq!(pair.near.send_run(&packets, pair.now), Ok(None));
    pair.settle();
    assert_eq!(pair.far.received, packets);
    assert_eq!(pair.near.tunnel.drops().total(), 0);

    let mut pair = Pair::new(6);
    pair.near.send_run(&packets[..100], pair.now).unwrap();
    pair.near.send_run(&packets[..100], pair.now).unwrap();
    assert_eq!(pair.near.dropped(DropReason::HeldTooMany), 200 - MAX_HELD_PACKETS as u64);
    pair.settle();
    assert_eq!(pair.far.received, [&packets[100 - 28..100], &packets[..100]].concat());
}

#[test]
fn packets_in_two_pieces_are_held_in_one() {
    let mut pair = Pair::new(7);
    let packet = sized(NEAR, 200, 9);
    let route = pair.near.tunnel.route(&packet, 1, pair.now).unwrap();
    let pieces = [Packet { head: &packet[..128], rest: &packet[128..] }];
    assert_eq!(pair.near.tunnel.seal_run(route, &pieces, &mut [], pair.now), Ok(Outbound::Held));
    pair.settle();
    assert_eq!(pair.far.received, [packet]);
}

#[test]
fn a_run_that_would_cross_the_last_counter_is_refused_whole() {
    let mut pair = Pair::connected(8);
    let session = |pair: &mut Pair,
                   then: &mut dyn FnMut(&mut crate::session::Session<ringmesh_aead::Key>)| {
        then(pair.near.tunnel.peers.get_mut(0).unwrap().sessions.current_mut().unwrap());
    };
    session(&mut pair, &mut |session| session.preset_counter(REJECT_AFTER_MESSAGES - 10));
    assert_eq!(pair.near.send_run(&marked(11, 60), pair.now), Err(DropReason::SessionExpired));
    assert_eq!(pair.near.dropped(DropReason::SessionExpired), 11);
    session(&mut pair, &mut |session| assert_eq!(session.counter(), REJECT_AFTER_MESSAGES - 10));
    let (datagrams, from) = train(&mut pair, &marked(10, 60));
    let counters: Vec<u64> = datagrams.iter().map(|datagram| counter_of(datagram)).collect();
    assert_eq!(counters, (REJECT_AFTER_MESSAGES - 10..REJECT_AFTER_MESSAGES).collect::<Vec<_>>());
    assert_eq!(give(&mut pair.far, &datagrams, from, pair.now, true).len(), 10);
    assert_eq!(pair.near.send_run(&marked(1, 60), pair.now), Ok(None), "held: there is no session any more");
}

#[test]
fn what_makes_no_run_is_refused_before_anything_is_used() {
    let mut pair = Pair::connected(9);
    let route = pair.near.tunnel.route(&sized(NEAR, 60, 0), 1, pair.now).unwrap();
    let [short, middle, long] = [40, 60, 100].map(|len| sized(NEAR, len, 1));
    let [short, middle, long] = [&short, &middle, &long].map(|packet| Packet::whole(packet));
    let uneven = Packet { head: &long.rest[..63], rest: &long.rest[63..] };
    let many = [middle; MAX_RUN + 1];
    let mut buffer = vec![0xff; many.len() * (MTU + MAX_OVERHEAD)];
    let before = pair.near.peer(2, pair.now);
    let mut dropped = 0;
    for packets in [&[][..], &[middle, long], &[short, middle, short], &[uneven], &[long, uneven], &many] {
        let sealed = pair.near.tunnel.seal_run(route, packets, &mut buffer, pair.now);
        assert_eq!(sealed, Err(DropReason::PacketUnfit));
        dropped += packets.len() as u64;
        assert_eq!(pair.near.dropped(DropReason::PacketUnfit), dropped);
    }
    let whole = 2 * (64 + 32) + 48 + 32;
    for len in 0..whole {
        let sealed = pair.near.tunnel.seal_run(route, &[middle, middle, short], &mut buffer[..len], pair.now);
        assert_eq!(sealed, Err(DropReason::BufferTooSmall), "{len}");
    }
    assert_eq!(pair.near.dropped(DropReason::BufferTooSmall), 3 * whole as u64);
    assert!(buffer.iter().all(|&byte| byte == 0xff), "nothing was written");
    assert_eq!(pair.near.peer(2, pair.now), before, "nothing was sent");
    let sealed = pair.near.tunnel.seal_run(route, &[middle, middle, short], &mut buffer[..whole], pair.now);
    assert_eq!(sealed, Ok(Outbound::Send { len: whole, stride: 96, to: hop(pair.far.path) }));
    let first = counter_of(&buffer);
    assert_eq!(first, pair.near.tunnel.peers.get(0).unwrap().sessions.current().unwrap().counter() - 3);
}

#[test]
fn packets_of_a_peer_that_is_gone_are_dropped() {
    let mut pair = Pair::connected(10);
    let packet = sized(NEAR, 60, 0);
    let route = pair.near.tunnel.route(&packet, 1, pair.now).unwrap();
    pair.near.apply(&[], pair.now);
    let sealed = pair.near.tunnel.seal_run(route, &[Packet::whole(&packet); 3], &mut [0; 1000], pair.now);
    assert_eq!(sealed, Err(DropReason::PeerRemoved));
    assert_eq!(pair.near.dropped(DropReason::PeerRemoved), 3);
}

#[test]
fn a_super_packet_is_routed_once_and_counted_by_its_segments() {
    let mut pair = Pair::connected(11);
    let rules = [rule(1, 2, Protocol::Udp, None)];
    pair.near.tunnel.apply_filter(filter_of(1, &rules, &[]), pair.now);
    let of = |protocol, to: [u8; 4]| {
        let payload = crate::packet::build::udp(1, 2, &[0; 3000]);
        crate::packet::build::with([10, 0, 0, 1].into(), to.into(), protocol, &payload)
    };
    let tunnel = &mut pair.near.tunnel;
    assert!(tunnel.route(&of(17, [10, 0, 0, 2]), 3, pair.now).is_ok());
    assert_eq!(tunnel.route(&of(136, [10, 0, 0, 2]), 4, pair.now), Err(DropReason::Denied));
    assert_eq!(tunnel.route(&of(17, [10, 0, 0, 9]), 5, pair.now), Err(DropReason::NoAllowedIp));
    assert_eq!(tunnel.route(&[], 6, pair.now), Err(DropReason::MalformedPacket));
    let report = tunnel.filter_report();
    assert_eq!((report.rules[&0].packets, report.rules[&0].flows, report.passed_out), (3, 1, 3));
    let dropped = [DropReason::Denied, DropReason::NoAllowedIp, DropReason::MalformedPacket];
    assert_eq!(dropped.map(|reason| tunnel.drops().by(Direction::Out, reason)), [4, 5, 6]);
}
