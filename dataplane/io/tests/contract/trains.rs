//! Trains and super-packets: what one operation moves is what as many would have moved.

use ringmesh_io::PacketIo;

use crate::promises::number_of;
use crate::world::{Courier, Family, KernelWorld, World, reflect};

/// Numbered datagrams of `len` bytes each, save the last.
pub(crate) fn numbered(first: u32, count: u32, len: usize, last: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in first..first + count {
        let len = if number + 1 == first + count { last } else { len };
        let start = bytes.len();
        bytes.resize(start + len - 4, number as u8);
        bytes.extend(number.to_be_bytes());
    }
    bytes
}

/// Puts a train into the outbox, and sends it with the next turn.
pub(crate) fn send_train(world: &mut KernelWorld, family: Family, bytes: &[u8], stride: usize) {
    let peer = world.peer(family);
    let mut slot = world.io().outbox().train(bytes.len()).expect("room");
    slot.copy_from_slice(bytes);
    slot.commit_train(bytes.len(), stride, peer);
    world.io().flush().expect("a flush");
}

pub(crate) fn expect_numbers(
    world: &mut KernelWorld,
    family: Family,
    first: u32,
    count: u32,
    len: usize,
    last: usize,
) {
    for number in first..first + count {
        let got = world.net_recv_soon(family);
        let expected = if number + 1 == first + count { last } else { len };
        assert_eq!((number_of(&got), got.len()), (number, expected));
        assert!(got[..got.len() - 4].iter().all(|byte| *byte == number as u8));
    }
}

fn a_train_arrives_as_its_datagrams_in_order(world: &mut KernelWorld) {
    for family in Family::ALL {
        for count in [1, 2, 3, 44, 45, 46, 63, 64, 65, 126, 127, 128, 200] {
            for (len, last) in [(100, 100), (100, 37), (1440, 1440), (1440, 4), (1001, 1000)] {
                let before = world.io().counters();
                send_train(world, family, &numbered(7, count, len, last), len);
                expect_numbers(world, family, 7, count, len, last);
                let after = world.io().counters();
                assert_eq!(after.datagrams_sent - before.datagrams_sent, u64::from(count));
                let sends = (count as usize * len).div_ceil(65_507).max(count.div_ceil(127) as usize);
                assert!(after.trains_sent - before.trains_sent <= sends as u64 + 1, "{count} of {len}");
                assert_eq!(after.trains_sent > before.trains_sent, count > 1);
            }
        }
    }
    assert_eq!(world.io().counters().offloads_refused, 0);
}

on_kernel_back_ends! {
    a_train_arrives_as_its_datagrams_in_order,
    a_train_that_arrives_is_shown_as_its_datagrams,
    packets_of_a_train_reach_the_application_merged_and_whole,
    super_packets_of_an_application_leave_as_its_datagrams,
}

fn a_train_that_arrives_is_shown_as_its_datagrams(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for family in Family::ALL {
        for (count, len, last) in [(2u32, 100usize, 100usize), (45, 1440, 1440), (45, 1440, 9), (127, 200, 5)]
        {
            let mut bytes = numbered(0, count, len, last);
            for datagram in bytes.chunks_mut(len) {
                datagram[0] = Courier::NOT_A_PACKET;
            }
            let before = world.io().counters();
            world.net_send_cut(family, &bytes, len);
            for number in 0..count {
                let (from, seen) = world.turn_until_seen(&mut courier);
                assert_eq!(from, world.peer(family));
                assert_eq!(seen, bytes.chunks(len).nth(number as usize).expect("as many"));
            }
            let after = world.io().counters();
            assert_eq!(after.datagrams_received - before.datagrams_received, u64::from(count));
            assert_eq!(after.trains_received - before.trains_received, 1, "{count} of {len} came as one");
        }
    }
}

fn packets_of_a_train_reach_the_application_merged_and_whole(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for family in Family::ALL {
        courier.peer = world.peer(family);
        let payload = |number: u32| [&[number as u8; 900][..], &number.to_be_bytes()].concat();
        let mut train = Vec::new();
        for number in 0..40 {
            world.app_send(family, &payload(number));
            let datagram = world.turn_until(&mut courier, |world| world.net_recv(family));
            train.push(reflect(&datagram));
        }
        let stride = train[0].len();
        let before = world.io().counters();
        world.net_send_cut(family, &train.concat(), stride);
        for number in 0..40 {
            let got = world.turn_until(&mut courier, |world| world.app_recv(family));
            assert_eq!(got, payload(number));
        }
        let after = world.io().counters();
        assert_eq!(after.packets_written - before.packets_written, 40);
        assert_eq!(after.super_packets_written - before.super_packets_written, 1);
    }
}

fn super_packets_of_an_application_leave_as_its_datagrams(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    for family in Family::ALL {
        courier.peer = world.peer(family);
        let before = world.io().counters();
        let bytes = numbered(0, 40, 1200, 700);
        world.app_send_cut(family, &bytes, 1200);
        for number in 0..40 {
            let got = world.turn_until(&mut courier, |world| world.net_recv(family));
            assert_eq!(number_of(&got), number);
        }
        let after = world.io().counters();
        assert_eq!(after.packets_read - before.packets_read, 40);
        assert_eq!(after.super_packets_read - before.super_packets_read, 1);
    }
}
