//! Whose packets go where, and whose may come from where; and what follows a peer that moves.

use super::*;
use crate::outbound::Sealed;

#[test]
fn roaming_peer_keeps_its_session() {
    let mut pair = Pair::connected(1);
    pair.near.path = path("203.0.113.5:5555");
    pair.send_near(b"from my new address");
    pair.settle();
    assert_eq!(pair.far.received.len(), 1);
    pair.run(seconds(2));
    assert_eq!(pair.far.peer(1, pair.now).endpoint, Some(pair.near.path));
    pair.assert_traffic();
    assert!(pair.near_initiations().is_empty() && pair.far_initiations().is_empty());
}

#[test]
fn replayed_or_forged_data_moves_nobody() {
    let mut pair = Pair::connected(2);
    pair.send_near(b"captured");
    let captured = pair.wire.front().unwrap().clone();
    pair.settle();
    let elsewhere = path("203.0.113.66:666");
    let replay = Datagram { from: elsewhere, ..captured.clone() };
    assert_eq!(pair.deliver(&replay), Some(Err(DropReason::Replayed)));
    let mut forged = Datagram { from: elsewhere, ..captured };
    forged.bytes[8] = 200;
    assert_eq!(pair.deliver(&forged), Some(Err(DropReason::BadSeal)));
    assert_eq!(pair.far.received.len(), 1);
    assert_eq!(pair.far.peer(1, pair.now).endpoint, Some(pair.near.path));
    pair.assert_traffic();
}

#[test]
fn unauthenticated_counter_does_not_move_the_window() {
    let mut pair = Pair::connected(3);
    pair.send_near(b"real");
    let real = pair.wire.pop_front().unwrap();
    let mut forged = real.clone();
    forged.bytes[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert_eq!(pair.deliver(&forged), Some(Err(DropReason::BadSeal)));
    assert!(matches!(pair.deliver(&real), Some(Ok(Inbound::Packet { .. }))));
}

#[test]
fn reordered_datagrams_are_all_delivered_once() {
    let mut pair = Pair::connected(4);
    for number in 0..100u8 {
        pair.send_near(&[number]);
    }
    let datagrams: Vec<Datagram> = pair.wire.drain(..).collect();
    for datagram in datagrams.iter().rev().chain(&datagrams) {
        pair.deliver(datagram);
    }
    let expected: Vec<_> = (0..100u8).rev().map(|number| Pair::near_packet(&[number])).collect();
    assert_eq!(pair.far.received, expected);
    assert_eq!(pair.far.dropped(DropReason::Replayed), 100);
}

/// Seals a packet that the sender's own routing would not let out to this peer.
pub(super) fn seal_anyway(pair: &mut Pair, packet: &[u8]) -> Datagram {
    let mut buffer = [0; 1500];
    let packets = [crate::run::Packet::whole(packet)];
    let sealed = pair.near.tunnel.seal(0, &packets, None, crate::outbound::Sent::Data, &mut buffer, pair.now);
    let Sealed { len, to, .. } = sealed.unwrap().unwrap();
    Datagram { from: pair.near.path, to: to.into(), bytes: buffer[..len].to_vec() }
}

#[test]
fn source_of_another_or_of_nobody_is_spoofed() {
    let mut pair = Pair::connected(5);
    let third = Node::new(3, 30);
    pair.far.apply(&[pair.near.config.clone(), third.config.clone()], pair.now);
    let mut spoofed = 0;
    for source in [
        "10.0.0.3",
        "10.0.0.2",
        "10.9.9.9",
        "0.0.0.0",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
    ] {
        let datagram = seal_anyway(&mut pair, &packet(source, "10.0.0.2", b"spoof"));
        assert_eq!(pair.deliver(&datagram), Some(Err(DropReason::SpoofedSource)), "{source}");
        spoofed += 1;
    }
    for source in ["fd00::3", "fe80::1", "::1", "::ffff:10.0.0.1", "ff02::1"] {
        let datagram = seal_anyway(&mut pair, &packet(source, "fd00::2", b"spoof"));
        assert_eq!(pair.deliver(&datagram), Some(Err(DropReason::SpoofedSource)), "{source}");
        spoofed += 1;
    }
    assert_eq!(pair.far.dropped(DropReason::SpoofedSource), spoofed);
    assert!(pair.far.received.is_empty());
}

#[test]
fn more_specific_prefix_of_another_peer_takes_the_source_away_but_the_peer_still_roams() {
    let mut pair = Pair::connected(6);
    let mut near = pair.near.config.clone();
    near.allowed_ips = vec!["10.0.0.0/24".parse().unwrap()];
    let mut third = Node::new(3, 30).config;
    third.allowed_ips = vec!["10.0.0.1/32".parse().unwrap()];
    pair.far.apply(&[near, third], pair.now);
    pair.near.path = path("203.0.113.5:5555");
    let datagram = seal_anyway(&mut pair, &packet("10.0.0.1", "10.0.0.2", b"mine no more"));
    assert_eq!(pair.deliver(&datagram), Some(Err(DropReason::SpoofedSource)));
    pair.run(seconds(2));
    assert_eq!(pair.far.peer(1, pair.now).endpoint, Some(pair.near.path));
    let datagram = seal_anyway(&mut pair, &packet("10.0.0.77", "10.0.0.2", b"still mine"));
    assert!(matches!(pair.deliver(&datagram), Some(Ok(Inbound::Packet { .. }))));
}

#[test]
fn malformed_inner_packets_are_dropped_after_opening() {
    let mut pair = Pair::connected(7);
    let good = packet("10.0.0.1", "10.0.0.2", &[7; 30]);
    let mut lying = good.clone();
    lying[3] = 255;
    let mut version = good.clone();
    version[0] = 0x55;
    for bad in [&good[..15], &lying, &version] {
        let datagram = seal_anyway(&mut pair, bad);
        assert_eq!(pair.deliver(&datagram), Some(Err(DropReason::MalformedPacket)));
    }
    assert!(pair.far.received.is_empty());
}

#[test]
fn padding_is_cut_off_exactly() {
    let mut pair = Pair::connected(8);
    for len in 0..64 {
        let sent = packet("10.0.0.1", "10.0.0.2", &vec![len as u8; len]);
        let datagram = pair.near.send(&sent, pair.now).unwrap().unwrap();
        assert_eq!((datagram.bytes.len() - 32) % 16, 0);
        pair.deliver(&datagram);
        assert_eq!(pair.far.received.pop().unwrap(), sent);
    }
}

#[test]
fn packets_to_nobody_and_broken_packets_are_not_sent() {
    let mut pair = Pair::connected(9);
    for (sent, reason) in [
        (packet("10.0.0.1", "10.0.0.99", b"x"), DropReason::NoAllowedIp),
        (packet("fd00::1", "fd00::99", b"x"), DropReason::NoAllowedIp),
        (vec![0x45; 10], DropReason::MalformedPacket),
        (vec![], DropReason::MalformedPacket),
    ] {
        assert_eq!(pair.near.send(&sent, pair.now).err(), Some(reason));
    }
    assert_eq!(pair.near.dropped(DropReason::NoAllowedIp), 2);
    assert_eq!(pair.near.dropped(DropReason::MalformedPacket), 2);
    let mut short = [0; 40];
    let sent = pair.near.tunnel.outbound(&Pair::near_packet(&[0; 50]), &mut short, pair.now);
    assert_eq!(sent, Err(DropReason::BufferTooSmall));
    pair.assert_traffic();
}

#[test]
fn removed_peer_is_cut_off_at_once_in_both_directions() {
    let mut pair = Pair::connected(10);
    pair.send_near(b"under way");
    let under_way = pair.wire.pop_front().unwrap();
    pair.far.apply(&[], pair.now);
    assert_eq!(pair.deliver(&under_way), Some(Err(DropReason::UnknownIndex)));
    assert_eq!(pair.far.send(&Pair::far_packet(b"x"), pair.now).err(), Some(DropReason::NoAllowedIp));
    assert_eq!(pair.far.tunnel.indices.len(), 0);
    pair.run(seconds(30));
    assert!(pair.far.received.is_empty());
    assert!(
        pair.sent.iter().all(|(_, datagram)| datagram.from == pair.near.path),
        "not one byte to the removed"
    );
    assert!(pair.far.dropped(DropReason::UnknownPeer) > 0, "its handshakes are refused");
}

#[test]
fn peer_with_a_new_key_starts_over() {
    let mut pair = Pair::connected(11);
    let mut near = pair.near.config.clone();
    near.key = key_of(9);
    pair.far.apply(&[near], pair.now);
    pair.send_near(b"old key");
    let old = pair.wire.pop_front().unwrap();
    assert_eq!(pair.deliver(&old), Some(Err(DropReason::UnknownIndex)));
}

#[test]
fn allowed_ips_change_while_the_session_goes_on() {
    let mut pair = Pair::connected(12);
    let mut near = pair.near.config.clone();
    near.allowed_ips = vec!["10.0.0.50/32".parse().unwrap()];
    pair.far.apply(&[near.clone()], pair.now);
    pair.send_near(b"no longer mine");
    pair.settle();
    assert_eq!(pair.far.dropped(DropReason::SpoofedSource), 1);
    assert_eq!(pair.far.send(&Pair::far_packet(b"x"), pair.now).err(), Some(DropReason::NoAllowedIp));
    let datagram = seal_anyway(&mut pair, &packet("10.0.0.50", "10.0.0.2", b"mine"));
    assert!(matches!(pair.deliver(&datagram), Some(Ok(Inbound::Packet { .. }))));
    near.allowed_ips = pair.near.config.allowed_ips.clone();
    pair.far.apply(&[near], pair.now);
    pair.assert_traffic();
    assert!(pair.near_initiations().is_empty());
}

#[test]
fn routes_depend_on_the_list_alone_and_not_on_how_it_came_about() {
    let now = Pair::new(0).now;
    let mut node = Node::new(1, 1);
    let (mut two, mut three) = (Node::new(2, 2).config, Node::new(3, 3).config);
    let shared = "10.7.0.0/16".parse().unwrap();
    two.allowed_ips.push(shared);
    three.allowed_ips.push(shared);
    let owner = |node: &Node| node.tunnel.owner_of("10.7.1.1".parse().unwrap());
    node.apply(&[two.clone(), three.clone()], now);
    assert_eq!(owner(&node), Some(three.id), "the later one in the list");
    node.apply(std::slice::from_ref(&two), now);
    assert_eq!(owner(&node), Some(two.id), "what the other gave up comes back");
    node.apply(&[three.clone(), two.clone()], now);
    assert_eq!(owner(&node), Some(two.id));
    node.apply(&[], now);
    assert_eq!(owner(&node), None);
}

#[test]
fn thousand_peers_come_and_go_without_a_trace() {
    let now = Pair::new(0).now;
    let mut node = Node::new(1, 1);
    let peers: Vec<PeerConfig> = (0..1000u32)
        .map(|number| PeerConfig {
            id: NodeId::from_bytes(u64::from(number).to_be_bytes()),
            key: PublicKey::from_bytes(std::array::from_fn(
                |i| if i < 4 { number.to_be_bytes()[i] } else { 7 },
            )),
            psk: Psk::Fixed(PresharedKey::from_bytes([0; 32])),
            mesh: true,
            allowed_ips: vec![format!("10.{}.{}.1/32", number / 250 + 1, number % 250).parse().unwrap()],
            candidates: vec!["192.0.2.1:1".parse().unwrap()],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: Some(1),
        })
        .collect();
    for chunk in peers.chunks(300) {
        node.tunnel.apply(chunk, now);
        assert_eq!(node.tunnel.peers(now).count(), chunk.len());
        node.tunnel.handle_deadline(now);
    }
    node.tunnel.apply(&[], now);
    assert_eq!(node.tunnel.peers(now).count(), 0);
    assert_eq!(node.tunnel.poll_deadline(), None);
    assert_eq!(node.tunnel.owner_of("10.1.1.1".parse().unwrap()), None);
    assert!(node.tunnel.peers.capacity() <= 600);
}
