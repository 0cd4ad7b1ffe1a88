//! Steering by the real kernel, over loopback.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// A sender of each family, and what a group received of what was sent.
struct World {
    group: Vec<Udp>,
    senders: Vec<(Family, UdpSocket)>,
}

/// A datagram, and the worker it arrived at.
type Arrival = (usize, Vec<u8>);

impl World {
    fn new(workers: usize) -> Self {
        Self::of(Udp::bind_group(0, SocketBuffers::default(), workers).unwrap())
    }

    fn of(group: Vec<Udp>) -> Self {
        let senders = [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")]
            .into_iter()
            .map(|(family, at)| (family, UdpSocket::bind(at).unwrap()))
            .collect::<Vec<_>>();
        assert_eq!(senders.len(), 2, "the machine needs both families for these tests");
        Self { group, senders }
    }

    /// Sends a datagram with either family.
    fn send(&self, datagram: &[u8]) -> usize {
        for (_, sender) in &self.senders {
            let to = SocketAddr::new(sender.local_addr().unwrap().ip(), self.group[0].port);
            assert_eq!(sender.send_to(datagram, to).unwrap(), datagram.len());
        }
        self.senders.len()
    }

    /// What arrived, when as many have.
    fn receive(&self, count: usize) -> Vec<Arrival> {
        let deadline = Instant::now() + PATIENCE;
        let mut arrivals = Vec::new();
        while arrivals.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} arrived", arrivals.len());
            for (worker, udp) in self.group.iter().enumerate() {
                for socket in Family::ALL.into_iter().filter_map(|family| udp.socket(family)) {
                    arrivals.extend(std::iter::from_fn(|| receive(&socket)).map(|bytes| (worker, bytes)));
                }
            }
        }
        assert_eq!(arrivals.len(), count);
        arrivals
    }

    /// Sends one datagram with either family, and answers which worker it came to.
    fn worker_of(&self, datagram: &[u8]) -> usize {
        let sent = self.send(datagram);
        let arrivals = self.receive(sent);
        assert!(arrivals.iter().all(|(worker, bytes)| *worker == arrivals[0].0 && bytes == datagram));
        arrivals[0].0
    }
}

fn receive(socket: &impl AsRawFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 16];
    // SAFETY: the buffer lives through the call, its length is given.
    let len = unsafe { libc::recv(socket.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    bytes.truncate(usize::try_from(len).ok()?);
    Some(bytes)
}

/// The three messages that carry our index, as they are on the wire; `tail` makes each a datagram of its own.
fn messages_to(index: u32, tail: u32) -> [Vec<u8>; 3] {
    let index = index.to_le_bytes();
    // The sender's own index must not be taken for ours.
    let response = [[2, 0, 0, 0].as_slice(), &(!tail).to_le_bytes(), &index].concat();
    let cookie_reply = [&[3, 0, 0, 0], index.as_slice()].concat();
    let data = [&[4, 0, 0, 0], index.as_slice()].concat();
    [(response, 92), (cookie_reply, 64), (data, 32)].map(|(mut message, len)| {
        message.resize(len - 4, 0xaa);
        message.extend(tail.to_le_bytes());
        message
    })
}

fn relayed(inner: &[u8]) -> Vec<u8> {
    // A channel that would name another worker if it were taken for an index.
    [&[16, 0, 0, 0, 0x3f, 0x3e, 0x3d, 0x3c], inner].concat()
}

/// Indices as they are given out: any worker's number below what looks random.
fn indices() -> impl Iterator<Item = u32> {
    (0..1000u32).map(|number| number.wrapping_mul(0x9e37_79b9).rotate_left(7))
}

/// Sends every message for every index, and answers how many came to the worker of their index, or to worker 0 when
/// there is none of its number, and how many there were.
fn steered(world: &World, indices: impl Iterator<Item = u32>) -> (usize, usize) {
    let workers = world.group.len();
    let (mut right, mut all) = (0, 0);
    for index in indices {
        let mut expected = BTreeMap::new();
        let mut sent = 0;
        for message in messages_to(index, all as u32) {
            let worker = (index & 63) as usize;
            let worker = if worker < workers { worker } else { 0 };
            for datagram in [relayed(&message), message] {
                sent += world.send(&datagram);
                expected.insert(datagram, worker);
            }
        }
        let arrivals = world.receive(sent);
        right += arrivals.iter().filter(|(worker, datagram)| expected[datagram] == *worker).count();
        all += sent;
    }
    (right, all)
}

#[test]
fn each_message_with_an_index_reaches_its_worker_straight_and_relayed() {
    for workers in [2, 3, 4] {
        let world = World::new(workers);
        let (right, all) = steered(&world, indices());
        assert_eq!(right, all);
        assert_eq!(all, 2 * 6 * 1000);
    }
}

#[test]
fn every_worker_that_an_index_can_name_is_reached() {
    let world = World::new(MAX_WORKERS);
    for worker in 0..64 {
        for message in messages_to(0xffff_ffc0 | worker, 0) {
            assert_eq!(world.worker_of(&message), worker as usize);
        }
    }
}

#[test]
fn without_the_program_messages_go_anywhere() {
    let first = Udp::bind(0, SocketBuffers::default()).unwrap();
    let world = World::of(join(first, SocketBuffers::default(), 4).unwrap());
    // Only a new sender makes the kernel's hash choose anew, so what is right or wrong is so for many.
    let mut wrong = 0;
    for _ in 0..16 {
        let world = World::of(world.group.iter().map(clone).collect());
        let (right, all) = steered(&world, indices().map(|index| (index & !63) | (index & 3)).take(16));
        wrong += all - right;
    }
    assert!(wrong > 16 * 16 * 6, "{wrong} went wrong");
    steer(&world.group[0], 4).unwrap();
    let (right, all) = steered(&world, indices());
    assert_eq!(right, all);
}

fn clone(udp: &Udp) -> Udp {
    let clone = |socket: &Option<UdpSocket>| socket.as_ref().map(|socket| socket.try_clone().unwrap());
    Udp::from_sockets(clone(&udp.v4), clone(&udp.v6)).unwrap()
}

#[test]
fn numbers_that_no_worker_has_go_to_worker_0() {
    for workers in [2, 3, 4, 63] {
        let world = World::new(workers);
        for number in workers as u32..64 {
            for message in messages_to(0x1234_5640 | number, 0) {
                assert_eq!(world.worker_of(&message), 0, "worker {number} of {workers}");
                assert_eq!(world.worker_of(&relayed(&message)), 0, "worker {number} of {workers}, relayed");
            }
        }
    }
}

/// Junk that could be mistaken for messages, each with its worker's number where an index would have it.
#[test]
fn what_is_no_message_is_not_lost_but_goes_to_worker_0() {
    let world = World::new(4);
    let [response, cookie_reply, data] = messages_to(3, 0);
    for kind in [0, 5, 15, 17, 0x84, 255u8] {
        let mut junk = data.clone();
        junk[0] = kind;
        assert_eq!(world.worker_of(&junk), 0, "type {kind}");
        assert_eq!(world.worker_of(&relayed(&junk)), 0, "type {kind}, relayed");
    }
    assert_eq!(world.worker_of(&relayed(&relayed(&data))), 0, "no relay takes from a relay");
    for message in [response, cookie_reply, data] {
        for reserved in 1..4 {
            let mut junk = message.clone();
            junk[reserved] = 1;
            assert_eq!(world.worker_of(&junk), 0);
            let mut junk = relayed(&message);
            junk[reserved] = 1;
            assert_eq!(world.worker_of(&junk), 0);
        }
        // The worker's number is the lowest byte of the index.
        let at = if message[0] == 2 { 8 } else { 4 };
        for (datagram, at) in [(relayed(&message), at + 8), (message, at)] {
            for len in 0..datagram.len() {
                let expected = if len > at { 3 } else { 0 };
                assert_eq!(world.worker_of(&datagram[..len]), expected, "{len} bytes of {datagram:?}");
            }
        }
    }
}

fn initiation(number: u32) -> Vec<u8> {
    let mut initiation = vec![1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    // Stands for an ephemeral key: any 32 bytes.
    for word in 0..35u32 {
        initiation.extend((number ^ word.rotate_right(9)).wrapping_mul(0x85eb_ca6b).to_be_bytes());
    }
    initiation
}

#[test]
fn initiations_are_spread_over_all_workers_and_copies_meet_at_one() {
    for workers in [2, 3, 4] {
        let world = World::new(workers);
        let mut each = vec![0; workers];
        for number in 0..600 {
            let message = initiation(number);
            let worker = world.worker_of(&message);
            assert_eq!(world.worker_of(&relayed(&message)), worker, "by way of a relay");
            assert_eq!(world.worker_of(&message), worker, "sent again");
            each[worker] += 1;
        }
        assert!(each.iter().all(|count| count * workers > 450), "{each:?}");
        for len in 0..148 {
            let worker = world.worker_of(&initiation(7)[..len]);
            assert!(len >= 12 || worker == 0, "{len} bytes");
        }
    }
}

/// What arrives of one send with `UDP_SEGMENT`, in one piece if the sockets merge.
fn train(world: &World, datagrams: &[Vec<u8>], merge: bool) -> Vec<Arrival> {
    for (_, sender) in &world.senders {
        sys::set_segment_size(sender.as_fd(), datagrams[0].len() as u16).unwrap();
    }
    let sent = world.send(&datagrams.concat());
    world.receive(if merge { sent } else { sent * datagrams.len() })
}

#[test]
fn closed_and_opened_again_a_group_steers_as_before() {
    let mut port = 0;
    for workers in [2, 4, 1, 3, 2] {
        let world = World::of(Udp::bind_group(port, SocketBuffers::default(), workers).unwrap());
        port = world.group[0].port;
        assert!(
            world.group.iter().all(|udp| udp.port == port && udp.has_ipv6() == world.group[0].has_ipv6())
        );
        let (right, all) = steered(&world, indices().take(100));
        assert_eq!(right, all);
    }
}

/// Socket and all: the same bind, and no sharing.
#[test]
fn one_worker_shares_its_port_with_nobody() {
    let group = Udp::bind_group(0, SocketBuffers::default(), 1).unwrap();
    let [udp] = group.as_slice() else { panic!("one worker, one pair of sockets") };
    for (family, at) in [(Family::V4, "0.0.0.0"), (Family::V6, "[::]")] {
        if udp.socket(family).is_none() {
            continue;
        }
        assert!(!sys::reuses_port(udp.socket(family).unwrap()).unwrap());
        let at = format!("{at}:{}", udp.port).parse().unwrap();
        assert_eq!(beside(at, SocketBuffers::default()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}

#[test]
fn a_group_has_1_to_64_workers() {
    for asked in [0, 65, usize::MAX] {
        let error = Udp::bind_group(0, SocketBuffers::default(), asked).unwrap_err();
        assert!(matches!(error, UdpError::Workers { asked: named } if named == asked));
        assert!(error.to_string().contains("choose 1 to 64"));
    }
}

/// Whoever has the port, and whether it would share.
#[test]
fn a_port_that_anybody_has_is_refused_to_a_group() {
    let small = SocketBuffers { receive: 4096, send: 4096 };
    let refused = |port, workers| {
        let error = Udp::bind_once(port, small).and_then(|first| share(first, small, workers)).unwrap_err();
        assert!(matches!(error, UdpError::PortTaken { port: named } if named == port), "{error}");
    };
    let group = Udp::bind_group(0, small, 3).unwrap();
    let alone = Udp::bind(0, small).unwrap();
    // Of the same user, in one family only, and inviting.
    let invites = beside("0.0.0.0:0".parse().unwrap(), small).unwrap();
    let invites6 = beside("[::]:0".parse().unwrap(), small);
    let mut ports = vec![group[0].port, alone.port, invites.local_addr().unwrap().port()];
    ports.extend(invites6.as_ref().map(|socket| socket.local_addr().unwrap().port()).ok());
    for port in ports {
        for workers in [1, 2, 4] {
            refused(port, workers);
        }
    }
    assert!(matches!(Udp::bind_group(group[0].port, small, 2), Err(UdpError::PortTaken { .. })));
    // As long as the last of the group is open.
    let port = group[0].port;
    let mut group = group.into_iter();
    while group.len() > 0 {
        refused(port, 2);
        drop(group.next());
    }
    Udp::bind_group(port, small, 2).expect("it is free now");
}

#[test]
fn of_daemons_that_begin_at_once_one_has_the_port() {
    const DAEMONS: usize = 6;
    let small = SocketBuffers { receive: 4096, send: 4096 };
    let mut rounds = 0;
    while rounds < 50 {
        let free = Udp::bind(0, small).unwrap().port;
        let (start, end) = (Barrier::new(DAEMONS), Barrier::new(DAEMONS));
        let daemon = || {
            start.wait();
            let result = Udp::bind_once(free, small).and_then(|first| share(first, small, 3));
            end.wait();
            result.map_or(0, |group| group.len())
        };
        let sockets: Vec<usize> = std::thread::scope(|scope| {
            let daemons: Vec<_> = (0..DAEMONS).map(|_| scope.spawn(daemon)).collect();
            daemons.into_iter().map(|daemon| daemon.join().unwrap()).collect()
        });
        let owners = sockets.iter().filter(|sockets| **sockets == 3).count();
        if owners == 0 && Udp::bind_once(free, small).is_err() {
            // Somebody else on this machine was given the port before.
            continue;
        }
        assert_eq!((owners, sockets.iter().sum::<usize>()), (1, 3), "{sockets:?}");
        rounds += 1;
    }
}

/// The kernel lets a program of the same user in behind us.
#[test]
fn who_joins_a_group_from_outside_gets_nothing() {
    let world = World::new(3);
    let at = SocketAddr::from(([0, 0, 0, 0], world.group[0].port));
    let stranger = beside(at, SocketBuffers::default()).unwrap();
    let (right, all) = steered(&world, indices());
    assert_eq!(right, all);
    for number in 0..200 {
        world.worker_of(&initiation(number));
        world.worker_of(&number.to_be_bytes());
    }
    assert_eq!(receive(&stranger), None);
}

#[test]
fn a_train_stays_whole_and_goes_where_its_first_datagram_goes() {
    for merge in [false, true] {
        let world = World::new(3);
        assert!(world.group.iter().all(|udp| udp.merge(merge) == merge));
        for worker in [2, 0, 1] {
            let of = |worker: u32| messages_to(0x0abc_de00 | worker, worker)[2].clone();
            let own: Vec<Vec<u8>> = vec![of(worker); 40];
            // Of several workers: no sender of ours makes such a train, and GRO would merge it.
            let mixed: Vec<Vec<u8>> = (0..40).map(|number| of((worker + number) % 3)).collect();
            for datagrams in [own, mixed] {
                let arrivals = train(&world, &datagrams, merge);
                assert!(arrivals.iter().all(|(at, _)| *at == worker as usize));
                let bytes: usize = arrivals.iter().map(|(_, bytes)| bytes.len()).sum();
                assert_eq!(bytes, 40 * 32 * world.senders.len());
                if merge {
                    assert!(arrivals.iter().all(|(_, bytes)| *bytes == datagrams.concat()));
                }
            }
        }
    }
}
