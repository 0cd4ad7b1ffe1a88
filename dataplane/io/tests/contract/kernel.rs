//! What the kernel's back ends promise about real interfaces, sockets and clocks.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ringmesh_io::{Choice, OUTBOX_PACKETS, OUTBOX_TRAINS, Offloads, PacketIo, TunError, Waker};

use crate::namespace;
use crate::promises::{number_of, soon};
use crate::world::{Courier, Family, KernelWorld, MTU, World, reflect, settle};

/// How late a turn may end on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

fn a_turn_lasts_until_its_deadline_and_no_longer(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    settle(world.io(), &mut courier);
    for wait in [0, 1, 30].map(Duration::from_millis) {
        // The kernel may have packets of its own to send, which end a turn rightly.
        let took = loop {
            let read = world.io().counters().packets_read;
            let start = Instant::now();
            world.io().turn(Some(start + wait), &mut courier).expect("a turn");
            if world.io().counters().packets_read == read {
                break start.elapsed();
            }
        };
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
        let (ready, begin) = mpsc::channel();
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

/// When a burst took every buffer, the ones that become free are used without waiting for something else to happen.
fn what_waits_for_buffers_gets_them_without_another_event(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    world.app_send(Family::V4, b"one of many");
    let datagram = world.turn_until(&mut courier, |world| world.net_recv(Family::V4));
    let back = reflect(&datagram);
    for _ in 0..1000 {
        // The packet is the same, whatever it is wrapped in.
        for outer in Family::ALL {
            world.net_send(outer, &back);
        }
    }
    let alive = watchdog(world.io().waker());
    let mut received = 0;
    // The rest may be shown in a last turn, whose writes are handed over by the one after.
    while received < 1500 {
        world.io().turn(None, &mut courier).expect("a turn");
        assert_eq!(courier.wakes, 0, "stuck after {received}: {:?}", world.io().counters());
        received += std::iter::from_fn(|| world.app_recv(Family::V4)).count();
    }
    drop(alive);
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
    assert_eq!(world.io().outbox().train_room(), OUTBOX_TRAINS);
    assert_eq!(world.io().outbox().packet_room(), OUTBOX_PACKETS);
    // Were a buffer lost now and then, none would be left.
    bursts_beyond_all_buffers_lose_only_what_the_kernels_queues_lose(world);
}

/// Wakes a worker that waits for far too long; drop the answer to call it off.
fn watchdog(waker: Waker) -> Sender<()> {
    let (alive, watched) = mpsc::channel();
    std::thread::spawn(move || {
        if watched.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
            waker.wake();
        }
    });
    alive
}

fn the_end_of_tun_is_an_error_and_not_a_spin(world: &mut KernelWorld) {
    let mut courier = Courier::new(world.peer(Family::V4));
    settle(world.io(), &mut courier);
    let name = world.tun_name.clone();
    namespace::delete_interface(&name).expect("the interface is deleted");
    let before = world.io().counters().system_calls;
    let alive = watchdog(world.io().waker());
    let error = loop {
        if let Err(error) = world.io().turn(None, &mut courier) {
            break error;
        }
        assert_eq!(courier.wakes, 0, "nobody noticed: {:?}", world.io().counters());
    };
    drop(alive);
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
    namespace::interface_down(&world.tun_name).expect("down");
    for _ in 0..10 {
        world.net_send(Family::V4, &reflect(&datagram));
    }
    settle(world.io(), &mut courier);
    settle(world.io(), &mut courier);
    assert_eq!(world.io().counters().packets_refused, 10);
    namespace::interface_up(&world.tun_name).expect("up");
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
    namespace::set_mtu(&world.tun_name, 9000).expect("an MTU");
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

/// System calls, turns and packets (both ways) of a worker under load, without offloads.
fn cost(choice: Choice) -> (u64, u64, u64) {
    const BURST: u32 = 60;
    let mut world = KernelWorld::with_offloads(choice, Offloads::NONE);
    let mut courier = Courier::new(world.peer(Family::V4));
    let mut before = world.io().counters();
    let deadline = Instant::now() + Duration::from_secs(30);
    let in_time = || assert!(Instant::now() < deadline, "packets are lost");
    for round in 0..50 {
        if round == 5 {
            before = world.io().counters();
        }
        for number in 0..BURST {
            world.app_send(Family::V4, &number.to_be_bytes());
        }
        let mut back = Vec::new();
        while back.len() < BURST as usize {
            in_time();
            world.io().turn(soon(), &mut courier).expect("a turn");
            if world.io().outbox().train_room() < OUTBOX_TRAINS {
                world.io().flush().expect("a flush");
            }
            back.extend(std::iter::from_fn(|| world.net_recv(Family::V4)));
        }
        for datagram in back {
            world.net_send(Family::V4, &reflect(&datagram));
        }
        let mut received = 0;
        while received < BURST {
            in_time();
            world.io().turn(Some(Instant::now()), &mut courier).expect("a turn");
            received += std::iter::from_fn(|| world.app_recv(Family::V4)).count() as u32;
        }
    }
    let after = world.io().counters();
    let packets =
        after.datagrams_sent + after.packets_written - before.datagrams_sent - before.packets_written;
    (after.system_calls - before.system_calls, after.turns - before.turns, packets)
}

#[test]
fn a_ring_needs_far_fewer_system_calls() {
    namespace::enter(concat!(module_path!(), "::a_ring_needs_far_fewer_system_calls"), compare_costs);
}

fn compare_costs() {
    let (ring, turns, packets) = cost(Choice::Uring);
    let (plain, _, as_many) = cost(Choice::Poll);
    assert_eq!(packets, as_many);
    assert!(ring * 10 < packets, "ring: {ring} system calls for {packets} packets");
    assert!(plain > packets, "poll: {plain} system calls for {packets} packets");
    // 45 flushes of the test's own.
    assert!(ring <= turns + 50, "one io_uring_enter per turn: {ring} for {turns}");
}

on_kernel_back_ends! {
    a_turn_lasts_until_its_deadline_and_no_longer,
    a_wake_from_another_thread_ends_a_wait_without_end,
    bursts_beyond_all_buffers_lose_only_what_the_kernels_queues_lose,
    what_waits_for_buffers_gets_them_without_another_event,
    a_hundred_thousand_packets_leave_nothing_behind,
    the_end_of_tun_is_an_error_and_not_a_spin,
    tun_going_down_and_up_again_is_survived,
    what_is_not_an_ip_packet_is_refused_and_counted,
    packets_longer_than_the_mtu_given_are_counted_and_not_shown,
}
