//! What every back end promises, whatever it is made of.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_io::{
    Delivery, Handler, Now, OUTBOX_TRAINS, Outbox, PacketIo, SuperPacket, Train, datagram_capacity,
};

use crate::world::{Courier, Family, MTU, World, reflect};

pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(5))
}

fn packets_cross_both_ways_intact(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for family in Family::ALL {
        courier.peer = world.peer(family);
        let headers = family.headers();
        for len in headers..=usize::from(MTU) {
            let payload = pattern(len - headers, len);
            world.app_send(family, &payload);
            let datagram = world.turn_until(&mut courier, |world| world.net_recv(family));
            assert_eq!(datagram.len(), Courier::HEADER + len, "{family:?} {len}");
            assert_eq!(&datagram[Courier::HEADER + headers..], payload, "{family:?} {len}");
            world.net_send(family, &reflect(&datagram));
            let back = world.turn_until(&mut courier, |world| world.app_recv(family));
            assert_eq!(back, payload, "{family:?} {len}");
        }
    }
}

/// Bytes that differ with place and seed, so that a shifted or foreign packet shows.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at.wrapping_mul(31) ^ seed.wrapping_mul(17)) as u8).collect()
}

/// The number that a test put at the end.
pub(crate) fn number_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.last_chunk().expect("a number"))
}

fn datagrams_of_every_length_are_shown_as_sent(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for family in Family::ALL {
        for len in 0..=datagram_capacity(MTU) {
            let mut sent = pattern(len, len);
            if let Some(first) = sent.first_mut() {
                *first = Courier::NOT_A_PACKET;
            }
            world.net_send(family, &sent);
            let (from, seen) = world.turn_until_seen(&mut courier);
            assert_eq!(seen, sent);
            assert_eq!(from, world.peer(family));
        }
    }
}

fn order_is_kept(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for round in 0..50u32 {
        let numbers: Vec<u32> = (0..100).map(|n| round * 100 + n).collect();
        for number in &numbers {
            world.app_send(Family::V4, &number.to_be_bytes());
        }
        let mut back = Vec::new();
        while back.len() < numbers.len() {
            let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
            world.net_send(Family::V4, &reflect(&datagram));
            back.push(datagram);
        }
        assert_eq!(back.iter().map(|bytes| number_of(bytes)).collect::<Vec<_>>(), numbers);
        let received: Vec<u32> = numbers
            .iter()
            .map(|_| number_of(&world.turn_until(&mut courier, |world| world.app_recv(Family::V4))))
            .collect();
        assert_eq!(received, numbers);
    }
}

fn many_wakes_are_shown_once(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    let waker = world.io().waker();
    for round in 1..=3 {
        for _ in 0..1000 {
            waker.wake();
        }
        world.io().turn(soon(), &mut courier).expect("a turn");
        assert_eq!(courier.wakes, round);
        world.io().turn(Some(Instant::now()), &mut courier).expect("a turn");
        assert_eq!(courier.wakes, round, "a wake is not shown twice");
    }
    assert_eq!(world.io().counters().wakes, 3);
}

fn every_turn_ends_with_idle_at_one_time(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for _ in 0..10 {
        world.app_send(Family::V4, b"x");
    }
    let before = world.io().counters().turns;
    for turn in 1..=5 {
        courier.times.clear();
        world.io().turn(Some(Instant::now()), &mut courier).expect("a turn");
        assert_eq!(courier.idles, turn);
        courier.times.dedup();
        assert_eq!(courier.times.len(), 1, "one reading of the clocks per turn");
    }
    assert_eq!(world.io().counters().turns - before, 5);
}

fn what_is_left_in_the_outbox_leaves_with_the_next_turn_or_a_flush(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for (byte, flush) in [(1, false), (2, true)] {
        let peer = world.peer(Family::V4);
        let mut slot = world.io().outbox().datagram().expect("room");
        slot[0] = byte;
        slot.commit(1, peer);
        if flush {
            world.io().flush().expect("a flush");
        } else {
            world.io().turn(Some(Instant::now()), &mut courier).expect("a turn");
        }
        assert_eq!(world.net_recv_soon(Family::V4), [byte]);
        assert_eq!(world.io().outbox().train_room(), OUTBOX_TRAINS);
    }
}

fn packets_of_our_own_reach_tun(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    world.app_send(Family::V4, b"learn the addresses");
    let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
    let packet = reflect(&datagram)[Courier::HEADER..].to_vec();
    let mut slot = world.io().outbox().packet().expect("room");
    slot[..packet.len()].copy_from_slice(&packet);
    slot.commit(packet.len());
    assert_eq!(world.turn_until(&mut courier, |world| world.app_recv(Family::V4)), b"learn the addresses");
}

/// Fills the outbox in `idle` until it says that it is full.
pub(crate) struct Glutton {
    peer: SocketAddr,
    pub(crate) sent: u32,
    refused: u32,
    pub(crate) packets: u32,
}

impl Glutton {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { peer, sent: 0, refused: 0, packets: 0 }
    }
}

impl Handler for Glutton {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, _: Now) {
        assert!(outbox.train_room() > 0, "a packet is shown only when there is room for it");
        self.packets += packets.len() as u32;
    }
    fn datagrams(&mut self, _: Train<'_>, _: SocketAddr, _: &mut Delivery<'_>, _: Now) {}
    fn wake(&mut self, _: &mut Outbox, _: Now) {}
    fn idle(&mut self, outbox: &mut Outbox, _: Now) {
        while let Some(mut slot) = outbox.datagram() {
            slot[..4].copy_from_slice(&self.sent.to_be_bytes());
            slot.commit(4, self.peer);
            self.sent += 1;
        }
        self.refused += 1;
    }
}

fn a_full_outbox_is_seen_and_ends_the_next_wait(world: &mut impl World) {
    let mut glutton = Glutton::new(world.peer(Family::V4));
    world.io().turn(Some(Instant::now()), &mut glutton).expect("a turn");
    assert_eq!((glutton.sent as usize, glutton.refused), (OUTBOX_TRAINS, 1));
    let start = Instant::now();
    for turn in 2..=4 {
        // Nothing arrives, but there is room again: that is what the handler waits for.
        world.io().turn(soon(), &mut glutton).expect("a turn");
        assert_eq!(glutton.sent as usize, turn * OUTBOX_TRAINS);
        for number in (turn - 2) * OUTBOX_TRAINS..(turn - 1) * OUTBOX_TRAINS {
            assert_eq!(world.net_recv_soon(Family::V4), (number as u32).to_be_bytes());
        }
    }
    assert!(start.elapsed() < Duration::from_secs(4), "turns waited although there was room");
}

fn datagrams_longer_than_any_of_ours_are_counted_and_not_shown(world: &mut impl World) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for family in Family::ALL {
        for len in [datagram_capacity(MTU) + 1, 9000, 65507] {
            let before = world.io().counters();
            world.net_send(family, &vec![Courier::NOT_A_PACKET; len]);
            world.net_send(family, &[]);
            world.net_send(family, b"after");
            assert_eq!(world.turn_until_seen(&mut courier).1, b"");
            assert_eq!(world.turn_until_seen(&mut courier).1, b"after");
            let after = world.io().counters();
            assert_eq!(after.datagrams_unfit - before.datagrams_unfit, 1, "{family:?} {len}");
            assert_eq!(after.datagrams_received - before.datagrams_received, 2);
        }
    }
}

on_every_back_end! {
    packets_cross_both_ways_intact,
    datagrams_of_every_length_are_shown_as_sent,
    order_is_kept,
    many_wakes_are_shown_once,
    every_turn_ends_with_idle_at_one_time,
    what_is_left_in_the_outbox_leaves_with_the_next_turn_or_a_flush,
    packets_of_our_own_reach_tun,
    a_full_outbox_is_seen_and_ends_the_next_wait,
    datagrams_longer_than_any_of_ours_are_counted_and_not_shown,
}
