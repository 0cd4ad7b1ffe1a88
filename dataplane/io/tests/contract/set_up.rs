//! What the kernel's back ends promise from set-up to end, with sockets and processes of the test's own making.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringmesh_io::{
    Choice, KernelIo, OUTBOX_TRAINS, Offloads, PacketIo, Parts, SocketBuffers, Tun, TunError, Udp, Waker,
};

use crate::namespace;
use crate::promises::{Glutton, number_of};
use crate::world::{Courier, Deaf, Family, KernelWorld, MTU, World, receive};

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
    while receive(&somebody).is_some() {}
    world.app_send(Family::V4, b"there you are");
    let datagram = world.turn_until(&mut courier, |_| receive(&somebody));
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
    assert_eq!(world.io().outbox().train_room(), OUTBOX_TRAINS);
}

fn a_dropped_back_end_leaves_no_interface_behind(choice: Choice) {
    for _ in 0..20 {
        let tun = Tun::create("mesh-again").expect("the name is free again");
        let udp = Udp::bind(0, SocketBuffers::default()).expect("a free port");
        let waker = Waker::new().expect("a waker");
        let (mut io, _) = KernelIo::open(
            choice,
            Parts { tun, udp, waker, mtu: MTU, offloads: Offloads::ALL, spin: Duration::ZERO },
        )
        .expect("a back end");
        io.turn(Some(Instant::now()), &mut Deaf).expect("a turn");
        drop(io);
        assert!(namespace::interface_index("mesh-again").is_err(), "it is gone when the back end is");
    }
}

/// Sends a lot to a station that nobody knows yet: datagrams wait in the neighbour table and fill the socket's buffer.
fn a_network_that_takes_nothing_stops_tun_and_keeps_the_order(choice: Choice) {
    const STATION: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
    let mut wire = namespace::Ethernet::new("wan0", Ipv4Addr::new(10, 9, 0, 1)).expect("an Ethernet");
    let small = SocketBuffers { send: 8192, ..SocketBuffers::default() };
    let mut world = KernelWorld::with_udp(choice, Udp::bind(0, small).expect("a free port"));
    let mut glutton = Glutton::new(SocketAddr::from((STATION, 7)));
    let nap = Duration::from_millis(20);
    for _ in 0..10 {
        world.app_send(Family::V4, b"has to wait");
        let start = Instant::now();
        world.io().turn(Some(start + nap), &mut glutton).expect("a turn");
    }
    // Full, and no room was made: the last turns slept until their deadline.
    let before = world.io().counters();
    assert!(before.send_stalls > 0 && world.io().outbox().train_room() == 0, "{before:?}");
    let seen = glutton.packets;
    let (start, mut turns) = (Instant::now(), 0);
    while start.elapsed() < 10 * nap {
        world.io().turn(Some(Instant::now() + nap), &mut glutton).expect("a turn");
        turns += 1;
    }
    // A few may be ended by packets of the kernel's own, which a ring reads ahead.
    assert!(turns < 30, "it spins: {turns} turns");
    assert_eq!(glutton.packets, seen, "TUN is not read while nothing can be sent");
    assert!(world.io().counters().system_calls - before.system_calls < 100);

    wire.introduce(STATION).expect("the station answers");
    let mut next = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    while next < 4 * OUTBOX_TRAINS as u32 {
        assert!(Instant::now() < deadline, "only {next} arrived: {:?}", world.io().counters());
        world.io().turn(Some(Instant::now() + Duration::from_millis(1)), &mut glutton).expect("a turn");
        while let Some(frame) = wire.receive() {
            if frame.len() == 14 + 28 + 4 {
                assert_eq!(number_of(&frame), next, "in order, none twice, none lost");
                next += 1;
            }
        }
    }
    assert!(glutton.packets > seen, "TUN is read again");
}

/// The name under which the test starts itself as the worker to be killed.
const VICTIM: &str = "RINGMESH_IO_TEST_VICTIM";

/// A ring outlives its process for some milliseconds, and so do the files registered with it.
fn the_interface_and_port_of_a_killed_worker_can_be_had_again(choice: Choice) {
    const NAME: &str = "mesh-killed";
    const PORT: u16 = 51820;
    let open = || {
        let tun = Tun::create(NAME).expect("the name is free");
        let udp = Udp::bind(PORT, SocketBuffers::default()).expect("the port is free");
        let waker = Waker::new().expect("a waker");
        KernelIo::open(
            choice,
            Parts { tun, udp, waker, mtu: MTU, offloads: Offloads::ALL, spin: Duration::ZERO },
        )
        .expect("a back end")
        .0
    };
    if std::env::var_os(VICTIM).is_some() {
        let mut io = open();
        io.turn(Some(Instant::now()), &mut Deaf).expect("a turn");
        io::stdout().write_all(b"working\n").expect("a pipe");
        loop {
            io.turn(None, &mut Deaf).expect("a turn");
        }
    }
    for _ in 0..10 {
        let test = format!("set_up::{choice}::the_interface_and_port_of_a_killed_worker_can_be_had_again");
        let mut victim = Command::new(std::env::current_exe().expect("this test has a file"))
            .args([&test, "--exact", "--nocapture"])
            .env(VICTIM, "1")
            .env(namespace::INSIDE, "1")
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains("working"))), "the victim works");
        victim.kill().expect("killed");
        victim.wait().expect("dead");
        drop(open());
    }
}

#[test]
fn an_interface_in_use_is_not_taken_over() {
    namespace::enter(concat!(module_path!(), "::an_interface_in_use_is_not_taken_over"), claim_names);
}

fn claim_names() {
    let first = Tun::create("mesh-mine").expect("a free name");
    let error = Tun::create("mesh-mine").expect_err("it is in use");
    assert!(matches!(&error, TunError::NameTaken { name } if name == "mesh-mine"));
    assert!(matches!(Tun::create("lo"), Err(TunError::NameTaken { .. })), "nor is one that is no TUN");
    let second = first.another_queue().expect("its owner may have more queues");
    assert_eq!(second.name(), "mesh-mine");
    let next = [Tun::create("mesh%d").expect("a number"), Tun::create("mesh%d").expect("a number")];
    assert_eq!(next.each_ref().map(Tun::name), ["mesh0", "mesh1"]);
}

with_either_choice! {
    nobody_listening_at_the_other_end_is_survived,
    a_family_without_a_socket_is_refused_and_counted,
    a_dropped_back_end_leaves_no_interface_behind,
    the_interface_and_port_of_a_killed_worker_can_be_had_again,
    a_network_that_takes_nothing_stops_tun_and_keeps_the_order,
}
