//! What no test can make a healthy kernel do: refuse a merged write, and have no room in its queues.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::poll::PollIo;
use crate::uring::UringIo;
use crate::writes::Writes;
use crate::{
    Delivery, Handler, Head, Now, Offloads, Outbox, PacketIo, Parts, SocketBuffers, SuperPacket, Train, Tun,
    Udp, Waker,
};

#[allow(dead_code, reason = "shared with the contract's tests, which use more of it")]
#[path = "../tests/contract/namespace.rs"]
mod namespace;

const MTU: u16 = 1408;
const OURS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// Bytes in front of a packet in a datagram.
const FRONT: usize = 16;

/// Sends packets to a peer and takes them from there.
struct Plain {
    peer: SocketAddr,
    head: Head,
}

impl Handler for Plain {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, _: Now) {
        for packet in packets.iter().filter(|packet| packet.whole()[0] >> 4 == 4) {
            for index in 0..packet.segments() {
                let (head, rest) = packet.segment(index, &mut self.head);
                let whole = [&[0; FRONT][..], head, rest].concat();
                let mut slot = outbox.datagram().expect("room");
                slot[..whole.len()].copy_from_slice(&whole);
                slot.commit(whole.len(), self.peer);
            }
        }
    }

    fn datagrams(&mut self, mut train: Train<'_>, _: SocketAddr, delivery: &mut Delivery<'_>, _: Now) {
        for index in 0..train.len() {
            let len = train.datagram(index).expect("as many").len();
            delivery.packet(index, FRONT..len).expect("a packet");
        }
    }

    fn wake(&mut self, _: &mut Outbox, _: Now) {}
    fn idle(&mut self, _: &mut Outbox, _: Now) {}
}

/// Runs on a thread of its own, in a namespace of its own.
fn apart(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| namespace::enter("", test));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn parts() -> Parts {
    let tun = Tun::create("mesh%d").expect("these tests need TUN");
    let name = tun.name().to_owned();
    namespace::set_mtu(&name, i32::from(MTU)).expect("an MTU");
    namespace::hush_ipv6(&name).expect("settings of an interface of ours");
    namespace::interface_up(&name).expect("the interface comes up");
    namespace::add_ipv4(&name, OURS).expect("an address");
    let udp = Udp::bind(0, SocketBuffers::default()).expect("a free port");
    let waker = Waker::new().expect("a waker");
    Parts { tun, udp, waker, mtu: MTU, offloads: Offloads::ALL, spin: Duration::ZERO }
}

/// A back end with an application on one side and a peer on the other.
struct World<I> {
    io: I,
    ours: SocketAddr,
    app: UdpSocket,
    peer: UdpSocket,
    plain: Plain,
}

impl<I: PacketIo> World<I> {
    fn new(open: impl FnOnce(Parts) -> I) -> Self {
        let parts = parts();
        let ours = SocketAddr::from((Ipv4Addr::LOCALHOST, parts.udp.port()));
        let app = UdpSocket::bind((OURS, 0)).expect("the address is there");
        app.connect((THEIRS, 9)).expect("the far end is behind TUN");
        let peer = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        for socket in [&app, &peer] {
            socket.set_nonblocking(true).expect("non-blocking");
            socket2::SockRef::from(socket).set_recv_buffer_size(4 << 20).expect("a buffer");
        }
        let plain = Plain { peer: peer.local_addr().expect("bound"), head: Head::new() };
        Self { io: open(parts), ours, app, peer, plain }
    }

    /// Turns until `socket` has received so many, or nothing more comes.
    fn collect(&mut self, of_app: bool, count: usize) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        while got.len() < count && Instant::now() < deadline {
            let soon = Instant::now() + Duration::from_millis(1);
            self.io.turn(Some(soon), &mut self.plain).expect("a turn");
            let socket = if of_app { &self.app } else { &self.peer };
            let mut bytes = [0; 2048];
            while let Ok(len) = socket.recv(&mut bytes) {
                got.push(bytes[..len].to_vec());
            }
        }
        got
    }

    /// Datagrams with packets for the application, each with a number in it.
    fn answers(&mut self, count: u32) -> Vec<Vec<u8>> {
        for number in 0..count {
            let payload = [&[number as u8; 800][..], &number.to_be_bytes()].concat();
            self.app.send(&payload).expect("TUN takes it");
        }
        let mut datagrams = self.collect(false, count as usize);
        assert_eq!(datagrams.len(), count as usize, "{:?}", self.io.counters());
        for datagram in &mut datagrams {
            // From the far end: the sum does not depend on the order.
            datagram[FRONT..][12..20].rotate_left(4);
            datagram[FRONT..][20..24].rotate_left(2);
        }
        datagrams
    }

    fn expect_answers(&mut self, datagrams: &[Vec<u8>]) {
        for datagram in datagrams {
            self.peer.send_to(datagram, self.ours).expect("loopback takes it");
        }
        let got = self.collect(true, datagrams.len());
        let numbers: Vec<u32> =
            got.iter().map(|bytes| u32::from_be_bytes(*bytes.last_chunk().expect("a number"))).collect();
        assert_eq!(numbers, (0..datagrams.len() as u32).collect::<Vec<_>>(), "{:?}", self.io.counters());
    }
}

fn a_merged_write_that_is_refused<I: PacketIo>(
    open: impl FnOnce(Parts) -> I,
    writes: fn(&mut I) -> &mut Writes,
) {
    let mut world = World::new(open);
    let datagrams = world.answers(60);
    world.expect_answers(&datagrams);
    let merged = world.io.counters();
    assert!(merged.super_packets_written > 0 && merged.offloads_refused == 0, "{merged:?}");

    writes(&mut world.io).spoil = true;
    world.expect_answers(&datagrams);
    let refused = world.io.counters();
    assert!(refused.offloads_refused > 0, "{refused:?}");
    assert_eq!(refused.packets_refused, 0);
    assert_eq!(refused.packets_written - merged.packets_written, 60);

    // That kind is not merged any more.
    world.expect_answers(&datagrams);
    let after = world.io.counters();
    assert_eq!(
        (after.offloads_refused, after.super_packets_written),
        (refused.offloads_refused, refused.super_packets_written)
    );
}

#[test]
fn packets_of_a_merged_write_that_is_refused_are_written_one_by_one_by_uring() {
    apart(|| a_merged_write_that_is_refused(|parts| UringIo::new(parts).expect("a ring"), UringIo::writes));
}

#[test]
fn packets_of_a_merged_write_that_is_refused_are_written_one_by_one_by_poll() {
    apart(|| a_merged_write_that_is_refused(PollIo::new, PollIo::writes));
}

#[test]
fn a_ring_of_eight_places_loses_nothing() {
    apart(|| {
        let mut world = World::new(|parts| UringIo::with_queues(parts, 8).expect("a ring"));
        for _ in 0..20 {
            let datagrams = world.answers(200);
            world.expect_answers(&datagrams);
        }
        let counters = world.io.counters();
        assert!(counters.completions_overflowed > 0, "the queue was too short at times: {counters:?}");
        assert_eq!(counters.packets_refused + counters.datagrams_refused + counters.offloads_refused, 0);
    });
}
