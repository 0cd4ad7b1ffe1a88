//! What is done when the kernel refuses an offload, has no room for a train, or an offload is left out: the same, piece by
//! piece, and nothing is lost.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ringmesh_io::{Choice, OUTBOX_TRAINS, Offloads, PacketIo, SocketBuffers, Udp};

use crate::namespace;
use crate::promises::number_of;
use crate::trains::{expect_numbers, numbered, send_train};
use crate::world::{Courier, Deaf, Family, KernelWorld, World, reflect, settle};

/// The kernel refuses `UDP_SEGMENT` for a socket whose checksums are switched off.
fn without_checksums() -> Udp {
    let v4 = UdpSocket::bind("0.0.0.0:0").expect("a free port");
    let on: i32 = 1;
    // SAFETY: the option's value is an int, and lives through the call.
    let set = unsafe {
        libc::setsockopt(
            v4.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    namespace::check(set).expect("SO_NO_CHECK");
    Udp::from_sockets(Some(v4), None).expect("a socket")
}

fn a_train_that_the_kernel_refuses_goes_one_by_one_and_loses_nothing(choice: Choice) {
    let mut world = KernelWorld::with_udp(choice, without_checksums());
    send_train(&mut world, Family::V4, &numbered(0, 100, 500, 77), 500);
    expect_numbers(&mut world, Family::V4, 0, 100, 500, 77);
    let first = world.io().counters();
    assert!((1..=3).contains(&first.offloads_refused), "{first:?}");
    assert_eq!((first.datagrams_sent, first.trains_sent, first.datagrams_refused), (100, 0, 0));
    // The next one is not even tried.
    send_train(&mut world, Family::V4, &numbered(100, 100, 500, 500), 500);
    expect_numbers(&mut world, Family::V4, 100, 100, 500, 500);
    assert_eq!(world.io().counters().offloads_refused, first.offloads_refused);
    assert_eq!(world.io().outbox().train_room(), OUTBOX_TRAINS);
}

/// Trains to a station that nobody knows yet wait in the neighbour table, and soon fill the socket's small buffer.
fn trains_that_find_no_room_wait_in_order(choice: Choice) {
    const STATION: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 9, 0, 2);
    let mut wire =
        namespace::Ethernet::new("wan0", std::net::Ipv4Addr::new(10, 9, 0, 1)).expect("an Ethernet");
    let small = SocketBuffers { send: 8192, ..SocketBuffers::default() };
    let mut world = KernelWorld::with_udp(choice, Udp::bind(0, small).expect("a free port"));
    for train in 0..40 {
        let bytes = numbered(train * 20, 20, 600, 600);
        let mut slot = world.io().outbox().train(bytes.len()).expect("room");
        slot.copy_from_slice(&bytes);
        slot.commit_train(bytes.len(), 600, (STATION, 7).into());
        let soon = Instant::now() + Duration::from_millis(1);
        world.io().turn(Some(soon), &mut Deaf).expect("a turn");
    }
    settle(world.io(), &mut Deaf);
    let before = world.io().counters();
    assert!(before.send_stalls > 0 && world.io().outbox().train_room() < OUTBOX_TRAINS, "{before:?}");
    wire.introduce(STATION).expect("the station answers");
    let mut next = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    while next < 800 {
        assert!(Instant::now() < deadline, "only {next} arrived: {:?}", world.io().counters());
        world.io().turn(Some(Instant::now() + Duration::from_millis(1)), &mut Deaf).expect("a turn");
        while let Some(frame) = wire.receive() {
            if frame.len() == 14 + 28 + 600 {
                assert_eq!(number_of(&frame), next, "in order, none twice, none lost");
                next += 1;
            }
        }
    }
    assert_eq!(world.io().outbox().train_room(), OUTBOX_TRAINS);
}

fn offloads_that_are_left_out_are_not_used(choice: Choice) {
    let mut world = KernelWorld::with_offloads(choice, Offloads::NONE);
    let mut courier = Courier::new(world.peer(Family::V4));
    assert_eq!(world.io().offloads(), Offloads::NONE);
    world.app_send_cut(Family::V4, &numbered(0, 40, 1200, 700), 1200);
    let mut back = Vec::new();
    for number in 0..40 {
        let got = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
        assert_eq!(number_of(&got), number);
        back.push(reflect(&got));
    }
    let stride = back[0].len();
    world.net_send_cut(Family::V4, &back.concat(), stride);
    for number in 0..40 {
        let got = world.turn_until(&mut courier, |world| world.app_recv(Family::V4));
        assert_eq!(number_of(&got), number);
    }
    let counted = world.io().counters();
    assert_eq!((counted.super_packets_read, counted.super_packets_written), (0, 0));
    assert_eq!((counted.trains_sent, counted.trains_received), (0, 0));
}

/// Whoever may write packets by hand can have the kernel give TUN a super-packet of 60,000 segments.
fn a_super_packet_cut_too_fine_is_dropped_and_stops_nobody(choice: Choice) {
    let mut world = KernelWorld::new(choice);
    let mut courier = Courier::new(world.peer(Family::V4));
    let name = world.tun_name.clone();
    for size in [1, 4, 16] {
        let before = world.io().counters();
        namespace::send_super_packet(&name, 60_000, size).expect("a packet socket");
        world.app_send(Family::V4, b"after");
        let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
        assert_eq!(&datagram[Courier::HEADER + Family::V4.headers()..], b"after");
        assert_eq!(world.io().counters().packets_unfit - before.packets_unfit, 1, "{size}");
    }
}

with_either_choice! {
    a_super_packet_cut_too_fine_is_dropped_and_stops_nobody,
    a_train_that_the_kernel_refuses_goes_one_by_one_and_loses_nothing,
    trains_that_find_no_room_wait_in_order,
    offloads_that_are_left_out_are_not_used,
}
