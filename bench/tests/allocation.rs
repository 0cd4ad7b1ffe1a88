//! Nothing is allocated for a packet while the path engine is at work: neither on a direct path among several candidates nor
//! on one through a relay, neither sealing nor opening, alone or in runs, nor judging by a filter of many rules, nor at the relay.

#[path = "../benches/mesh/mod.rs"]
mod mesh;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use mesh::{DATAGRAM, End, Mesh, Road};
use ringmesh_tunnel::{Outbound, Packet};

thread_local! {
    /// Allocations of this thread, while they are counted.
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

/// Runs `work` and returns how often it allocated.
fn allocations(work: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    work();
    COUNT.take().expect("counted")
}

/// Between two packets of the same end.
const PACE: Duration = Duration::from_millis(1);
/// Less than the life of a session, whose renewal is no packet's work, and many intervals of probes.
const LASTING: Duration = Duration::from_secs(60);
const WARM_UP: Duration = Duration::from_secs(5);

fn packets_allocate_nothing(road: Road) {
    let mut mesh = Mesh::connected(road);
    mesh.police(100);
    let packets = [End::Near, End::Far].map(|end| (end, end.packet(1408)));
    let (mut sealing, mut relaying, mut opening, mut probing) = (0, 0, 0, 0);
    let until = mesh.now.monotonic + LASTING;
    // What is kept for its memory gets it the first time.
    while mesh.now.monotonic + LASTING - WARM_UP < until {
        mesh.advance(PACE);
        mesh.exchange(End::Near, 1408);
        mesh.exchange(End::Far, 1408);
    }
    let own = mesh.own;
    while mesh.now.monotonic < until {
        probing += allocations(|| mesh.advance(PACE));
        for (end, packet) in &packets {
            let (mut datagram, mut len) = ([0; DATAGRAM], 0);
            sealing += allocations(|| (len, _) = mesh.seal(*end, packet, &mut datagram));
            relaying += allocations(|| mesh.pass_on(*end, &mut datagram[..len]));
            opening += allocations(|| mesh.open(end.other(), &mut datagram[..len]));
        }
    }
    assert!(mesh.is_settled(), "packets took another path in the end");
    assert_eq!((sealing, relaying, opening), (0, 0, 0));
    let judged = mesh.far.tunnel.filter_report();
    assert!(judged.rules[&99].packets >= 2 * LASTING.as_secs(), "the filter was not at work: {judged:?}");
    if road != Road::Relay {
        // There, looking for a better path in vain allocates, now and then.
        assert_eq!(probing, 0, "nor is anything for a probe");
    }
    // Each end probes once a second, and is answered.
    let seconds = (LASTING - WARM_UP).as_secs();
    assert!(road == Road::Stock || mesh.own - own >= 2 * seconds, "the path engine was not at work");
}

#[test]
fn a_packet_on_a_direct_path_among_eight_candidates_allocates_nothing() {
    packets_allocate_nothing(Road::Direct { candidates: 8 });
}

#[test]
fn a_packet_on_a_path_through_a_relay_allocates_nothing() {
    packets_allocate_nothing(Road::Relay);
}

#[test]
fn a_packet_to_a_stock_device_allocates_nothing() {
    packets_allocate_nothing(Road::Stock);
}

#[test]
fn flows_that_come_and_go_allocate_nothing_once_there_was_room_for_as_many() {
    let mut mesh = Mesh::connected(Road::Direct { candidates: 1 });
    mesh.police(10);
    let mut packet = End::Near.packet(100);
    let mut allocated = 0;
    for number in 0..40_000_u16 {
        End::Near.send_from(number, &mut packet);
        let (mut datagram, mut len) = ([0; DATAGRAM], 0);
        let sealing = allocations(|| (len, _) = mesh.seal(End::Near, &packet, &mut datagram));
        let opening = allocations(|| mesh.open(End::Far, &mut datagram[..len]));
        if number >= 20_000 {
            allocated += sealing + opening;
        }
    }
    let flows: u64 = mesh.far.tunnel.filter_report().flows.values().sum();
    assert_eq!(flows, 16_384, "the table is full, and flows make room for each other");
    assert_eq!(allocated, 0);
}

#[test]
fn a_million_packets_in_runs_allocate_nothing() {
    const RUN: usize = 45;
    let mut mesh = Mesh::connected(Road::Direct { candidates: 1 });
    mesh.police(100);
    let (mut packet, mut trains) = (End::Near.packet(1408), vec![0; RUN * DATAGRAM]);
    let (mut sealing, mut opening, mut delivered) = (0, 0, 0_usize);
    let now = mesh.now;
    for number in 0..1_000_000 / RUN + 1 {
        End::Near.send_from(number as u16 % 1000, &mut packet);
        let packets = [Packet::whole(&packet); RUN];
        let near = &mut mesh.near.tunnel;
        let mut sealed = None;
        let allocated = allocations(|| {
            let route = near.route(&packet, RUN, now).expect("it passes");
            sealed = near.seal_run(route, &packets, &mut trains, now).ok();
        });
        let Some(Outbound::Send { len, stride, .. }) = sealed else { panic!("there is a session") };
        let from = mesh.last_hop_to(End::Far);
        let deliver = &mut |_, _| delivered += 1;
        let far = &mut mesh.far.tunnel;
        let opened = allocations(|| far.inbound_run(&mut trains[..len], stride, from, now, deliver));
        // The table of flows grows for the first thousand.
        if number >= 1000 {
            (sealing, opening) = (sealing + allocated, opening + opened);
        }
    }
    assert!(delivered >= 1_000_000);
    assert_eq!((sealing, opening), (0, 0));
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}
