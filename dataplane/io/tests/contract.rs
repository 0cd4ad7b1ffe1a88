//! What every back end promises, checked on each: real TUN devices and sockets for the kernel's, vectors for the twin.
//!
//! The worker's loop stands on these promises and cannot tell which back end it has. Each test runs in a network
//! namespace of its own.

mod support;
mod world;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ringmesh_io::{
    Choice, Delivery, Handler, KernelIo, Now, OUTBOX_DATAGRAMS, OUTBOX_PACKETS, Outbox, PacketIo, Parts,
    SocketBuffers, SuperPacket, Train, Tun, TunError, Udp, Waker, datagram_capacity,
};
use world::{Courier, Family, KernelWorld, MTU, MemoryWorld, World, reflect, settle};

/// How late a turn may end on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

fn soon() -> Option<Instant> {
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
fn number_of(bytes: &[u8]) -> u32 {
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
    for turn in 1..=5 {
        courier.times.clear();
        world.io().turn(Some(Instant::now()), &mut courier).expect("a turn");
        assert_eq!(courier.idles, turn);
        courier.times.dedup();
        assert_eq!(courier.times.len(), 1, "one reading of the clocks per turn");
    }
    assert_eq!(world.io().counters().turns, 5);
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
        assert_eq!(world.io().outbox().datagram_room(), OUTBOX_DATAGRAMS);
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
struct Glutton {
    peer: SocketAddr,
    sent: u32,
    refused: u32,
}

impl Handler for Glutton {
    fn packets(&mut self, _: SuperPacket<'_>, _: &mut Outbox, _: Now) {}
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
    let mut glutton = Glutton { peer: world.peer(Family::V4), sent: 0, refused: 0 };
    world.io().turn(Some(Instant::now()), &mut glutton).expect("a turn");
    assert_eq!((glutton.sent as usize, glutton.refused), (OUTBOX_DATAGRAMS, 1));
    let start = Instant::now();
    for turn in 2..=4 {
        // Nothing arrives, but there is room again: that is what the handler waits for.
        world.io().turn(soon(), &mut glutton).expect("a turn");
        assert_eq!(glutton.sent as usize, turn * OUTBOX_DATAGRAMS);
        for number in (turn - 2) * OUTBOX_DATAGRAMS..(turn - 1) * OUTBOX_DATAGRAMS {
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

fn a_turn_lasts_until_its_deadline_and_no_longer(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    settle(world.io(), &mut courier);
    for wait in [0, 1, 30].map(Duration::from_millis) {
        let start = Instant::now();
        world.io().turn(Some(start + wait), &mut courier).expect("a turn");
        let took = start.elapsed();
        assert!(took >= wait && took < wait + SLACK, "waited {took:?} instead of {wait:?}");
    }
    let past = Instant::now() - Duration::from_secs(1);
    let start = Instant::now();
    world.io().turn(Some(past), &mut courier).expect("a turn");
    assert!(start.elapsed() < SLACK, "a deadline in the past does not wait");
}

fn a_wake_from_another_thread_ends_a_wait_without_end(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    settle(world.io(), &mut courier);
    for round in 1..=20 {
        let waker = world.io().waker();
        let (ready, begin) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            begin.recv().expect("the turn begins");
            // So that the turn is most likely waiting already; it is right either way.
            std::thread::sleep(Duration::from_millis(2));
            let woken = Instant::now();
            waker.wake();
            woken
        });
        ready.send(()).expect("the thread listens");
        while courier.wakes < round {
            world.io().turn(None, &mut courier).expect("a turn");
        }
        let ended = Instant::now();
        assert!(ended - thread.join().expect("the thread ends") < SLACK);
    }
}

fn bursts_beyond_all_buffers_lose_only_what_the_kernels_queues_lose(world: &mut KernelWorld) {
    /// More than any back end has buffers, less than the socket's buffer (8 MiB) holds.
    const DATAGRAMS: u32 = 3000;
    /// `txqueuelen` of a new TUN.
    const QUEUE: u32 = 500;
    let mut courier = Courier::new(world.peer(Family::V4));
    for round in 0..5 {
        for number in 0..DATAGRAMS {
            world.net_send(Family::V4, &[&[Courier::NOT_A_PACKET][..], &number.to_be_bytes()].concat());
            world.app_send(Family::V4, &number.to_be_bytes());
        }
        let mut arrived = Vec::new();
        let mut quiet = 0;
        while quiet < 20 {
            let before = (courier.packets, courier.seen.len());
            world.io().turn(Some(Instant::now() + Duration::from_millis(1)), &mut courier).expect("a turn");
            quiet = if before == (courier.packets, courier.seen.len()) { quiet + 1 } else { 0 };
            arrived.extend(std::iter::from_fn(|| world.net_recv(Family::V4)).map(|bytes| number_of(&bytes)));
        }
        let seen: Vec<u32> = courier.seen.drain(..).map(|(_, bytes)| number_of(&bytes)).collect();
        assert!(seen.iter().copied().eq(0..DATAGRAMS), "round {round}: {} of {DATAGRAMS}", seen.len());
        assert!(arrived.is_sorted(), "round {round}");
        // Some of the kernel's own packets may have been in the queue as well.
        assert!(arrived.len() as u32 >= QUEUE - 10, "round {round}: {} of {QUEUE}", arrived.len());
        assert_eq!(courier.dropped, 0);
    }
}

fn a_hundred_thousand_packets_leave_nothing_behind(world: &mut KernelWorld) {
    const ROUNDS: u32 = 500;
    const BURST: u32 = 200;
    let mut courier = Courier::new(world.peer(Family::V4));
    let before = world.io().counters();
    for round in 0..ROUNDS {
        for number in 0..BURST {
            world.app_send(Family::V4, &(round * BURST + number).to_be_bytes());
        }
        for number in 0..BURST {
            let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
            assert_eq!(datagram.last_chunk(), Some(&(round * BURST + number).to_be_bytes()));
            world.net_send(Family::V4, &reflect(&datagram));
        }
        for number in 0..BURST {
            let back = world.turn_until(&mut courier, |world| world.app_recv(Family::V4));
            assert_eq!(back, (round * BURST + number).to_be_bytes());
        }
    }
    let after = world.io().counters();
    let total = u64::from(ROUNDS * BURST);
    assert_eq!(courier.packets, total);
    assert_eq!(after.datagrams_sent - before.datagrams_sent, total);
    assert_eq!(after.datagrams_received - before.datagrams_received, total);
    assert_eq!(after.packets_written - before.packets_written, total);
    assert_eq!(after.packets_refused + after.datagrams_refused + after.receive_errors, 0, "{after:?}");
    assert_eq!(world.io().outbox().datagram_room(), OUTBOX_DATAGRAMS);
    assert_eq!(world.io().outbox().packet_room(), OUTBOX_PACKETS);
    // Were a buffer lost now and then, none would be left.
    bursts_beyond_all_buffers_lose_only_what_the_kernels_queues_lose(world);
}

/// Wakes a worker that waits for far too long.
struct Watchdog(std::sync::mpsc::Sender<()>);

impl Watchdog {
    fn start(waker: Waker) -> Self {
        let (alive, watched) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if watched.recv_timeout(Duration::from_secs(5)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                waker.wake();
            }
        });
        Self(alive)
    }
}

fn the_end_of_tun_is_an_error_and_not_a_spin(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    settle(world.io(), &mut courier);
    let name = world.tun_name.clone();
    support::delete_interface(&name).expect("the interface is deleted");
    let before = world.io().counters().system_calls;
    let watchdog = Watchdog::start(world.io().waker());
    let error = loop {
        if let Err(error) = world.io().turn(None, &mut courier) {
            break error;
        }
        assert_eq!(courier.wakes, 0, "nobody noticed: {:?}", world.io().counters());
    };
    drop(watchdog);
    assert!(error.to_string().contains(&name) && error.to_string().contains("removed"), "{error}");
    assert!(error.get_ref().is_some_and(|inner| inner.is::<TunError>()));
    assert!(world.io().counters().system_calls - before < 10, "{:?}", world.io().counters());
    // It stays an error.
    assert!(world.io().turn(Some(Instant::now() + SLACK), &mut courier).is_err());
}

fn tun_going_down_and_up_again_is_survived(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    world.app_send(Family::V4, b"before");
    let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
    support::interface_down(&world.tun_name).expect("down");
    for _ in 0..10 {
        world.net_send(Family::V4, &reflect(&datagram));
    }
    settle(world.io(), &mut courier);
    settle(world.io(), &mut courier);
    assert_eq!(world.io().counters().packets_refused, 10);
    support::interface_up(&world.tun_name).expect("up");
    world.net_send(Family::V4, &reflect(&datagram));
    assert_eq!(world.turn_until(&mut courier, |world| world.app_recv(Family::V4)), b"before");
    world.app_send(Family::V4, b"after");
    let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
    assert_eq!(&datagram[Courier::HEADER + Family::V4.headers()..], b"after");
}

fn what_is_not_an_ip_packet_is_refused_and_counted(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    let mut datagram = vec![0; 100];
    datagram[0] = Courier::PACKET;
    world.net_send(Family::V4, &datagram);
    world.net_send(Family::V4, b"\xfeafter");
    world.turn_until_seen(&mut courier);
    settle(world.io(), &mut courier);
    assert_eq!(world.io().counters().packets_refused, 1);
}

fn packets_longer_than_the_mtu_given_are_counted_and_not_shown(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    support::set_mtu(&world.tun_name, 9000).expect("an MTU");
    let fits = usize::from(MTU) - Family::V4.headers();
    for extra in [1, 2, 5000] {
        world.app_send(Family::V4, &vec![1; fits + extra]);
        world.app_send(Family::V4, b"after");
        let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
        assert_eq!(&datagram[Courier::HEADER + Family::V4.headers()..], b"after");
    }
    assert_eq!(world.io().counters().packets_unfit, 3);
    assert_eq!(courier.packets, 3);
}

fn nobody_listening_at_the_other_end_is_survived(choice: Choice) {
    let nobody = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let there = nobody.local_addr().expect("bound");
    drop(nobody);
    // Only a connected socket is told of "port unreachable", for every datagram, on sending and on receiving.
    let told = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    told.connect(there).expect("an address");
    let ours = told.local_addr().expect("bound");
    let mut world = KernelWorld::with_udp(choice, Udp::from_sockets(Some(told), None).expect("a socket"));
    let mut courier = Courier::new(there);
    for _ in 0..200 {
        world.app_send(Family::V4, b"is anybody there?");
        world.io().turn(Some(Instant::now()), &mut courier).expect("a turn survives it");
        world.io().turn(Some(Instant::now()), &mut courier).expect("a turn survives it");
    }
    let counters = world.io().counters();
    assert!(
        counters.receive_errors + counters.datagrams_refused > 0,
        "the machine told nobody: {counters:?}"
    );
    assert!(counters.system_calls < 10_000, "{counters:?}");
    // Somebody moves in: both directions work at once.
    let somebody = UdpSocket::bind(there).expect("the port is free");
    somebody.send_to(b"\xfehere", ours).expect("loopback");
    world.turn_until_seen(&mut courier);
    somebody.set_nonblocking(true).expect("non-blocking");
    while world::receive(&somebody).is_some() {}
    world.app_send(Family::V4, b"there you are");
    let datagram = world.turn_until(&mut courier, |_| world::receive(&somebody));
    assert_eq!(&datagram[Courier::HEADER + Family::V4.headers()..], b"there you are");
}

fn a_family_without_a_socket_is_refused_and_counted(choice: Choice) {
    let v4 = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let mut world = KernelWorld::with_udp(choice, Udp::from_sockets(Some(v4), None).expect("a socket"));
    let mut courier = Courier::new(world.peer(Family::V6));
    for family in [Family::V6, Family::V4, Family::V6] {
        let peer = world.peer(family);
        let mut slot = world.io().outbox().datagram().expect("room");
        slot[0] = 7;
        slot.commit(1, peer);
    }
    world.io().turn(Some(Instant::now()), &mut courier).expect("a turn");
    assert_eq!(world.net_recv_soon(Family::V4), [7]);
    assert_eq!(world.io().counters().datagrams_refused, 2);
    assert_eq!(world.io().outbox().datagram_room(), OUTBOX_DATAGRAMS);
}

fn a_dropped_back_end_leaves_no_interface_behind(choice: Choice) {
    for _ in 0..20 {
        let tun = Tun::create("mesh-again").expect("the name is free again");
        let udp = Udp::bind(0, SocketBuffers::default()).expect("a free port");
        let waker = Waker::new().expect("a waker");
        let (mut io, _) = KernelIo::open(choice, Parts { tun, udp, waker, mtu: MTU }).expect("a back end");
        io.turn(Some(Instant::now()), &mut world::Deaf).expect("a turn");
    }
}

macro_rules! on_every_back_end {
    ($($test:ident),* $(,)?) => {
        on_kernel_back_ends! { every: $($test),* }
        mod memory {
            $(#[test]
            fn $test() {
                super::$test(&mut super::MemoryWorld::new());
            })*
        }
    };
}

macro_rules! on_kernel_back_ends {
    ($group:ident: $($test:ident),* $(,)?) => {
        mod $group {
            use super::{Choice, KernelWorld, support::in_namespace};

            mod uring {
                $(#[test]
                fn $test() {
                    let name = concat!(stringify!($group), "::uring::", stringify!($test));
                    super::in_namespace(name, || crate::$test(&mut super::KernelWorld::new(super::Choice::Uring)));
                })*
            }
            mod poll {
                $(#[test]
                fn $test() {
                    let name = concat!(stringify!($group), "::poll::", stringify!($test));
                    super::in_namespace(name, || crate::$test(&mut super::KernelWorld::new(super::Choice::Poll)));
                })*
            }
        }
    };
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

on_kernel_back_ends! { kernel:
    a_turn_lasts_until_its_deadline_and_no_longer,
    a_wake_from_another_thread_ends_a_wait_without_end,
    bursts_beyond_all_buffers_lose_only_what_the_kernels_queues_lose,
    a_hundred_thousand_packets_leave_nothing_behind,
    the_end_of_tun_is_an_error_and_not_a_spin,
    tun_going_down_and_up_again_is_survived,
    what_is_not_an_ip_packet_is_refused_and_counted,
    packets_longer_than_the_mtu_given_are_counted_and_not_shown,
}

macro_rules! with_either_choice {
    ($($test:ident),* $(,)?) => {
        mod set_up {
            $(mod $test {
                #[test]
                fn uring() {
                    let name = concat!("set_up::", stringify!($test), "::uring");
                    crate::support::in_namespace(name, || crate::$test(crate::Choice::Uring));
                }

                #[test]
                fn poll() {
                    let name = concat!("set_up::", stringify!($test), "::poll");
                    crate::support::in_namespace(name, || crate::$test(crate::Choice::Poll));
                }
            })*
        }
    };
}

with_either_choice! {
    nobody_listening_at_the_other_end_is_survived,
    a_family_without_a_socket_is_refused_and_counted,
    a_dropped_back_end_leaves_no_interface_behind,
}
