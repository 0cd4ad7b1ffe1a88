//! Nothing is allocated on the packet path once a back end is open.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::namespace;
use crate::world::{Family, KernelWorld, World};
use ringmesh_io::{Choice, Delivery, Handler, Head, Now, Outbox, PacketIo, SuperPacket, Train};

thread_local! {
    /// Allocations of this thread, counted while a turn lasts.
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get().map(|count| count + 1)));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from the system's allocator, by the function above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sends each packet to the network and each datagram to TUN.
struct Plain {
    peer: SocketAddr,
    packets: u64,
    datagrams: u64,
    head: Head,
}

impl Handler for Plain {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, _: Now) {
        for packet in packets {
            for index in 0..packet.segments() {
                let (head, rest) = packet.segment(index, &mut self.head);
                let mut slot = outbox.datagram().expect("room");
                slot[..16].fill(0);
                slot[16..16 + head.len()].copy_from_slice(head);
                slot[16 + head.len()..16 + head.len() + rest.len()].copy_from_slice(rest);
                slot.commit(16 + packet.segment_len(index), self.peer);
                self.packets += 1;
            }
        }
    }

    fn datagrams(&mut self, mut train: Train<'_>, _: SocketAddr, delivery: &mut Delivery<'_>, _: Now) {
        for index in 0..train.len() {
            let len = train.datagram(index).expect("as many as there are").len();
            delivery.packet(index, 16..len).expect("a packet");
            self.datagrams += 1;
        }
    }

    fn wake(&mut self, _: &mut Outbox, _: Now) {}
    fn idle(&mut self, _: &mut Outbox, _: Now) {}
}

fn turns_allocate_nothing(choice: Choice) {
    let mut world = KernelWorld::new(choice);
    let mut plain = Plain { peer: world.peer(Family::V4), packets: 0, datagrams: 0, head: Head::new() };
    let waker = world.io().waker();
    let mut allocations = 0;
    for _ in 0..200 {
        for _ in 0..150 {
            world.app_send(Family::V4, b"there");
            world.net_send(Family::V4, &[0x45; 100]);
        }
        // And as trains and super-packets.
        world.app_send_cut(Family::V4, &[7; 40_000], 1000);
        world.net_send_cut(Family::V4, &[0x45; 40_000], 1000);
        waker.wake();
        for _ in 0..4 {
            COUNT.set(Some(0));
            world.io().turn(Some(Instant::now() + Duration::from_micros(50)), &mut plain).expect("a turn");
            allocations += COUNT.take().expect("counted");
        }
        while world.net_recv(Family::V4).is_some() {}
    }
    assert!(plain.packets > 10_000 && plain.datagrams > 10_000, "{} {}", plain.packets, plain.datagrams);
    let counters = world.io().counters();
    assert!(counters.super_packets_read > 100 && counters.trains_received > 100, "{counters:?}");
    assert_eq!(allocations, 0);
}

#[test]
fn turns_of_uring_allocate_nothing() {
    namespace::enter(concat!(module_path!(), "::turns_of_uring_allocate_nothing"), || {
        turns_allocate_nothing(Choice::Uring)
    });
}

#[test]
fn turns_of_poll_allocate_nothing() {
    namespace::enter(concat!(module_path!(), "::turns_of_poll_allocate_nothing"), || {
        turns_allocate_nothing(Choice::Poll)
    });
}

#[test]
fn the_counter_counts() {
    COUNT.set(Some(0));
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(COUNT.take(), Some(1));
}
