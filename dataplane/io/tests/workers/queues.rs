//! Which queue a packet is read from.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_io::{Offloads, Parts, PollIo, SocketBuffers, Tun, Udp, Waker};

use crate::interface::{
    Interface, PATIENCE, Queue, Version, bring_up, reply_to, set_segment_size, with_addresses_swapped,
};

fn a_flow_that_nobody_answered_comes_from_any_queue_but_from_one() {
    const FLOWS: u16 = 256;
    const PACKETS: usize = 4;
    for queues in [2, 3, 4] {
        let interface = Interface::new(queues);
        for version in Version::BOTH {
            let mut flows = BTreeMap::<u16, Vec<usize>>::new();
            let socket = UdpSocket::bind((version.ours(), 0)).expect("a free port");
            for _ in 0..PACKETS {
                for flow in 0..FLOWS {
                    let to = SocketAddr::new(version.theirs(), 1000 + flow);
                    socket.send_to(&flow.to_be_bytes(), to).expect("sent");
                }
                for (queue, packet) in interface.read(FLOWS.into()) {
                    let flow = *packet.last_chunk().expect("a payload");
                    flows.entry(u16::from_be_bytes(flow)).or_default().push(queue);
                }
            }
            let mut counts = vec![0; queues];
            for (flow, from) in &flows {
                assert_eq!(from.len(), PACKETS);
                assert!(from.iter().all(|queue| *queue == from[0]), "{flow} came from {from:?}");
                counts[from[0]] += 1;
            }
            assert_eq!(counts.iter().sum::<u16>(), FLOWS);
            let fair = FLOWS / queues as u16;
            assert!(counts.iter().all(|count| *count > fair / 2), "{version:?}: {counts:?}");
        }
    }
}

fn a_flow_is_read_from_the_queue_that_wrote_its_replies() {
    const FLOWS: u16 = 48;
    let interface = Interface::new(3);
    for version in Version::BOTH {
        let sockets: Vec<_> = (0..FLOWS).map(|flow| Interface::socket(version, 2000 + flow)).collect();
        let packets = || -> Vec<(usize, Vec<u8>)> {
            let packet = |socket: &UdpSocket| {
                assert_eq!(socket.send(b"there").expect("sent"), 5);
                interface.read(1).remove(0)
            };
            sockets.iter().map(packet).collect()
        };
        let unanswered = packets();
        // Each round another queue answers: the flow moves there with the first reply, and stays.
        let mut moved = 0;
        for round in 0..4 {
            let writer = |flow: usize| (flow + round) % 3;
            for (flow, (_, packet)) in unanswered.iter().enumerate() {
                interface.queues[writer(flow)].write(&reply_to(packet));
                assert_eq!(sockets[flow].recv(&mut [0; 9]).expect("the reply"), 5);
            }
            for _ in 0..3 {
                for (flow, (queue, packet)) in packets().into_iter().enumerate() {
                    assert_eq!(queue, writer(flow), "flow {flow} in round {round}");
                    assert_eq!(packet.len(), unanswered[flow].1.len());
                    moved += usize::from(queue != unanswered[flow].0);
                }
            }
        }
        assert!(moved > 0, "by chance no flow had to move");
    }
}

fn replies_of_one_flow_move_no_other() {
    let interface = Interface::new(4);
    let sockets: Vec<_> = (0..64).map(|flow| Interface::socket(Version::V4, 3000 + flow)).collect();
    let from = |socket: &UdpSocket| {
        socket.send(b"there").expect("sent");
        interface.read(1).remove(0)
    };
    let before: Vec<_> = sockets.iter().map(from).collect();
    let (_, packet) = &before[0];
    for queue in &interface.queues {
        queue.write(&reply_to(packet));
    }
    assert_eq!(from(&sockets[0]).0, 3, "the last that wrote");
    for (socket, before) in sockets.iter().zip(&before).skip(1) {
        assert_eq!(from(socket).0, before.0);
    }
}

/// How many packets came from each queue.
type Counts = [usize; 2];

/// Plays a network that sends everything back to the machine as if somebody with their address had sent it, so that both
/// ends of a connection are the machine's; always by queue `writer`, until `is_done`.
fn mirror(interface: &Interface, writer: usize, mut is_done: impl FnMut() -> bool) -> Counts {
    let deadline = Instant::now() + 4 * PATIENCE;
    let mut counts = [0; 2];
    while !is_done() {
        assert!(Instant::now() < deadline, "the connection hangs after {counts:?} packets");
        let mut any = false;
        for (number, queue) in interface.queues.iter().enumerate() {
            while let Some((_, packet)) = queue.read() {
                interface.queues[writer].write(&with_addresses_swapped(&packet));
                counts[number] += 1;
                any = true;
            }
        }
        if !any {
            thread::sleep(Duration::from_micros(100));
        }
    }
    counts
}

/// Sends from one end to the other over the mirror.
fn transfer(
    interface: &Interface,
    writer: usize,
    mut from: &TcpStream,
    mut into: &TcpStream,
    bytes: usize,
) -> Counts {
    thread::scope(|scope| {
        let sending = scope.spawn(move || from.write_all(&vec![7; bytes]).expect("sent"));
        let reading = scope.spawn(move || into.read_exact(&mut vec![0; bytes]).expect("received"));
        mirror(interface, writer, || sending.is_finished() && reading.is_finished())
    })
}

fn a_connection_is_read_from_the_queue_that_writes_it() {
    const BYTES: usize = 1 << 20;
    let interface = Interface::new(2);
    for version in Version::BOTH {
        let listener = TcpListener::bind((version.ours(), 0)).expect("a free port");
        let to = SocketAddr::new(version.theirs(), listener.local_addr().expect("bound").port());
        let connecting = thread::spawn(move || {
            let client = TcpStream::connect(to).expect("connected");
            (client, listener.accept().expect("connected").0)
        });
        mirror(&interface, 0, || connecting.is_finished());
        let (client, server) = connecting.join().expect("no panic");
        for end in [&client, &server] {
            end.set_read_timeout(Some(4 * PATIENCE)).expect("a time-out");
            end.set_write_timeout(Some(4 * PATIENCE)).expect("a time-out");
        }
        for writer in [1, 0, 1] {
            // Another queue takes over: the first packets still come from the one before, until it is empty.
            transfer(&interface, writer, &client, &server, 1);
            transfer(&interface, writer, &server, &client, 1);
            let mut pauses = 0..50;
            mirror(&interface, writer, || {
                thread::sleep(Duration::from_millis(1));
                pauses.next().is_none()
            });
            for (from, into) in [(&client, &server), (&server, &client)] {
                let counts = transfer(&interface, writer, from, into, BYTES);
                assert!(counts[writer] > BYTES / 1460, "{version:?}, queue {writer}: {counts:?}");
                assert_eq!(counts[1 - writer], 0, "{version:?}, queue {writer}: {counts:?}");
            }
        }
    }
}

fn parts(tun: Tun, offloads: Offloads) -> Parts {
    let udp = Udp::bind(0, SocketBuffers::default()).expect("a free port");
    let waker = Waker::new().expect("a waker");
    Parts { tun, udp, waker, mtu: 1500, offloads, spin: Duration::ZERO }
}

/// Kind in the offload header of a super-packet of UDP.
const GSO_UDP_L4: u8 = 5;

fn offloads_are_the_interfaces_whichever_queue_they_were_set_by() {
    const SEGMENTS: usize = 20;
    let mut tuns = Tun::create_queues("mesh%d", 3).expect("TUN is available: these tests need it");
    bring_up(tuns[0].name());
    tuns.push(tuns[0].another_queue().expect("one more"));
    let interface = Interface { queues: tuns.iter().map(Queue::new).collect() };
    let socket = Interface::socket(Version::V4, 4000);
    let sends_super_packets = |expected: bool| {
        for (number, queue) in interface.queues.iter().enumerate() {
            socket.send(b"there").expect("sent");
            let (_, mut header, mut packet) = interface.read_raw(1).remove(0);
            if header[0] & 1 != 0 {
                // With offloads the checksum is left to us; zero is none.
                packet[26..28].fill(0);
                header.fill(0);
            }
            queue.write(&reply_to(&packet));
            set_segment_size(&socket, 1000);
            socket.send(&[7; SEGMENTS * 1000]).expect("sent");
            set_segment_size(&socket, 0);
            let packets = interface.read_raw(if expected { 1 } else { SEGMENTS });
            for (from, header, packet) in packets {
                assert_eq!(from, number);
                let segments = if expected { SEGMENTS } else { 1 };
                assert_eq!(packet.len(), 28 + segments * 1000);
                assert_eq!(header[1], if expected { GSO_UDP_L4 } else { 0 });
            }
        }
    };
    sends_super_packets(false);
    let third = PollIo::new(parts(tuns.pop().expect("four"), Offloads::ALL));
    assert!(third.offloads().uso, "a kernel of 6.2 or newer has it");
    sends_super_packets(true);
    let late = tuns[0].another_queue().expect("one more");
    sends_super_packets(true);
    // The last word counts, for all.
    let first = PollIo::new(parts(tuns.remove(0), Offloads::NONE));
    sends_super_packets(false);
    drop((late, first, third));
}

in_namespaces! {
    a_flow_that_nobody_answered_comes_from_any_queue_but_from_one,
    a_flow_is_read_from_the_queue_that_wrote_its_replies,
    replies_of_one_flow_move_no_other,
    a_connection_is_read_from_the_queue_that_writes_it,
    offloads_are_the_interfaces_whichever_queue_they_were_set_by,
}
