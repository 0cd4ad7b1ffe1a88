//! Workers that share an interface and a port: what is for one of them comes to it, and what does not is handed on.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use ringmesh_io::{
    Choice, Delivery, Handler, Head, KernelIo, Now, Offloads, Outbox, PacketIo, Parts, SocketBuffers, Stray,
    Strays, SuperPacket, Train, Tun, Udp, Waker, strays,
};

use crate::interface::{Interface, PATIENCE, Version, bring_up, reply_to, set_segment_size};

/// Bytes of a data message's header.
const MESSAGE: usize = 16;

/// A worker that owns each flow whose first byte of payload says so. It wraps packets as data messages without sealing them.
struct Worker {
    number: usize,
    peer: SocketAddr,
    strays: Strays,
    head: Head,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Packets and datagrams that the kernel gave to their owner.
    own_packets: u64,
    own_datagrams: u64,
    /// And those it did not.
    stray_packets: u64,
    stray_datagrams: u64,
    /// What others handed on.
    handed_packets: u64,
    handed_datagrams: u64,
}

impl Worker {
    fn send(&mut self, packet: &SuperPacket<'_>, outbox: &mut Outbox) {
        let (head, rest) = packet.segment(0, &mut self.head);
        let len = head.len() + rest.len();
        let mut slot = outbox.datagram().expect("room");
        slot[..MESSAGE].fill(0);
        slot[0] = 4;
        slot[4] = 0xc0 | self.number as u8;
        slot[5..8].fill(0xa5);
        slot[MESSAGE..MESSAGE + head.len()].copy_from_slice(head);
        slot[MESSAGE + head.len()..MESSAGE + len].copy_from_slice(rest);
        slot.commit(MESSAGE + len, self.peer);
    }
}

/// The worker that owns a packet of UDP over IPv4.
fn owner_of(packet: &[u8]) -> usize {
    packet[28].into()
}

/// The worker that a data message's index names.
fn receiver_of(datagram: &[u8]) -> usize {
    (datagram[4] & 0x3f).into()
}

impl Handler for Worker {
    fn packets(&mut self, packets: &[SuperPacket<'_>], outbox: &mut Outbox, _: Now) {
        for packet in packets {
            let whole = packet.whole();
            if whole[0] >> 4 != 4 {
                // Of the kernel's own, to its routers.
                continue;
            }
            let owner = owner_of(whole);
            if owner == self.number {
                self.counts.own_packets += 1;
                self.send(packet, outbox);
            } else {
                self.counts.stray_packets += 1;
                self.strays.to[owner].push(Stray::Packet(*packet)).expect("room");
            }
        }
    }

    fn datagrams(&mut self, mut train: Train<'_>, from: SocketAddr, delivery: &mut Delivery<'_>, _: Now) {
        for index in 0..train.len() {
            let datagram = train.datagram(index).expect("below the length");
            let owner = receiver_of(datagram);
            if owner == self.number {
                self.counts.own_datagrams += 1;
                let len = datagram.len();
                delivery.packet(index, MESSAGE..len).expect("a packet");
            } else {
                self.counts.stray_datagrams += 1;
                let train = Train::new(datagram);
                self.strays.to[owner].push(Stray::Datagrams { train, from }).expect("room");
            }
        }
    }

    fn wake(&mut self, _: &mut Outbox, _: Now) {}

    fn idle(&mut self, outbox: &mut Outbox, _: Now) {
        self.strays.to.iter_mut().for_each(|to| to.wake());
        while let Some(stray) = self.strays.receiver.peek() {
            match stray {
                Stray::Packet(packet) => {
                    assert_eq!(owner_of(packet.whole()), self.number);
                    let packet = packet.whole().to_vec();
                    self.send(&SuperPacket::single(&packet), outbox);
                    self.counts.handed_packets += 1;
                }
                Stray::Datagrams { mut train, from } => {
                    assert_eq!(from, self.peer);
                    let datagram = train.bytes();
                    assert_eq!(receiver_of(datagram), self.number);
                    let packet = &datagram[MESSAGE..];
                    let mut slot = outbox.packet().expect("room");
                    slot[..packet.len()].copy_from_slice(packet);
                    slot.commit(packet.len());
                    self.counts.handed_datagrams += 1;
                }
            }
            self.strays.receiver.pop(|_| ());
        }
    }
}

/// Workers on one interface and one port, and a peer that answers each packet.
struct World {
    workers: Vec<(KernelIo, Worker)>,
    net: UdpSocket,
    apps: Vec<UdpSocket>,
}

impl World {
    fn new(choice: Choice, workers: usize, flows: usize) -> Self {
        let tuns = Tun::create_queues("mesh%d", workers).expect("TUN is available: these tests need it");
        bring_up(tuns[0].name());
        let udps = Udp::bind_group(0, SocketBuffers::default(), workers).expect("a free port");
        let net = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        net.connect(("127.0.0.1", udps[0].port())).expect("an address");
        net.set_nonblocking(true).expect("non-blocking");
        let peer = net.local_addr().expect("bound");
        let wakers: Vec<_> = (0..workers).map(|_| Waker::new().expect("a waker")).collect();
        let open = |(number, ((tun, udp), strays)): (usize, ((Tun, Udp), Strays))| {
            let waker = wakers[number].clone();
            let parts = Parts { tun, udp, waker, mtu: 1500, offloads: Offloads::ALL, spin: Duration::ZERO };
            let (io, _) = KernelIo::open(choice, parts).expect("a back end");
            let counts = Counts::default();
            (io, Worker { number, peer, strays, head: Head::new(), counts })
        };
        let workers = tuns.into_iter().zip(udps).zip(strays(&wakers)).enumerate().map(open).collect();
        let app = |flow| {
            let socket = Interface::socket(Version::V4, 6000 + flow as u16);
            socket.set_nonblocking(true).expect("non-blocking");
            socket
        };
        Self { workers, net, apps: (0..flows).map(app).collect() }
    }

    fn owner(&self, flow: usize) -> usize {
        flow % self.workers.len()
    }

    /// Each flow sends a packet with the round's number.
    fn send(&self, round: u8) {
        for (flow, app) in self.apps.iter().enumerate() {
            app.send(&[self.owner(flow) as u8, flow as u8, round]).expect("sent");
        }
    }

    /// Lets all work until `done` has what it wants.
    fn work<T>(&mut self, mut done: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (io, worker) in &mut self.workers {
                io.turn(Some(Instant::now()), worker).expect("a turn");
            }
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < deadline, "{:?}", self.counts());
        }
    }

    /// Until the peer has a message of each flow.
    fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        self.work(|world| {
            let mut bytes = [0; 2048];
            while let Ok(len) = world.net.recv(&mut bytes) {
                messages.push(bytes[..len].to_vec());
            }
            (messages.len() == world.apps.len()).then_some(())
        });
        messages
    }

    /// Until each flow has its answer of this round.
    fn answered(&mut self, round: u8) {
        let mut missing: Vec<_> = (0..self.apps.len()).collect();
        self.work(|world| {
            missing.retain(|flow| {
                let mut bytes = [0; 9];
                let Ok(len) = world.apps[*flow].recv(&mut bytes) else { return true };
                assert_eq!(bytes[..len], [world.owner(*flow) as u8, *flow as u8, round], "in order");
                false
            });
            missing.is_empty().then_some(())
        });
    }

    fn counts(&self) -> Counts {
        self.workers.iter().fold(Counts::default(), |sum, (_, Worker { counts, .. })| Counts {
            own_packets: sum.own_packets + counts.own_packets,
            own_datagrams: sum.own_datagrams + counts.own_datagrams,
            stray_packets: sum.stray_packets + counts.stray_packets,
            stray_datagrams: sum.stray_datagrams + counts.stray_datagrams,
            handed_packets: sum.handed_packets + counts.handed_packets,
            handed_datagrams: sum.handed_datagrams + counts.handed_datagrams,
        })
    }
}

fn answer_to(message: &[u8]) -> Vec<u8> {
    [&message[..MESSAGE], &reply_to(&message[MESSAGE..])].concat()
}

fn what_is_for_a_worker_comes_to_it(choice: Choice) {
    const ROUNDS: u8 = 100;
    for workers in [2, 4] {
        let flows = 16;
        let mut world = World::new(choice, workers, flows);
        for round in 0..ROUNDS {
            world.send(round);
            for message in world.messages() {
                assert_eq!(receiver_of(&message), owner_of(&message[MESSAGE..]), "the owner sent it");
                world.net.send(&answer_to(&message)).expect("sent");
            }
            world.answered(round);
        }
        let counts = world.counts();
        let all = u64::from(ROUNDS) * flows as u64;
        // Before the first answer of a flow the kernel cannot know; from then on it does.
        assert!(counts.stray_packets > 0 && counts.stray_packets <= flows as u64, "{counts:?}");
        assert_eq!(
            (counts.own_packets + counts.stray_packets, counts.handed_packets),
            (all, counts.stray_packets)
        );
        assert_eq!((counts.own_datagrams, counts.stray_datagrams), (all, 0));
    }
}

fn a_mixed_train_reaches_all_its_owners(choice: Choice) {
    let mut world = World::new(choice, 3, 12);
    for round in 0..20 {
        world.send(round);
        let answers: Vec<_> = world.messages().iter().map(|message| answer_to(message)).collect();
        set_segment_size(&world.net, answers[0].len());
        world.net.send(&answers.concat()).expect("sent");
        set_segment_size(&world.net, 0);
        world.answered(round);
    }
    let counts = world.counts();
    assert_eq!(
        (counts.own_datagrams, counts.stray_datagrams, counts.handed_datagrams),
        (20 * 4, 20 * 8, 20 * 8)
    );
}

/// What a worker pushed is found by one that waits without end.
fn a_stray_ends_its_owners_wait(choice: Choice) {
    let mut world = World::new(choice, 2, 0);
    for round in 0..20 {
        let mut packet = vec![0x45; 28];
        packet.extend([1, 0, round]);
        let (_, first) = &mut world.workers[0];
        first.strays.to[1].push(Stray::Packet(SuperPacket::single(&packet))).expect("room");
        first.strays.to[1].wake();
        let (io, second) = &mut world.workers[1];
        while second.counts.handed_packets <= round.into() {
            io.turn(None, second).expect("a turn");
        }
    }
}

with_either_choice! {
    what_is_for_a_worker_comes_to_it,
    a_mixed_train_reaches_all_its_owners,
    a_stray_ends_its_owners_wait,
}
