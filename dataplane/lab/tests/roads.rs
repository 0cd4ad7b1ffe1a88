//! Routers, blocks, impaired roads and captures, as a user of the crate sees them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use ringmesh_lab::{
    Blocks, Capture, Host, Impair, Lab, LabError, Router, Switch,
    impair::{Counters, Road, Roads},
    in_sandbox,
};

/// Long enough for a datagram that comes at all, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for a datagram that must not come.
const SILENCE: Duration = Duration::from_millis(150);

fn socket(host: &Host) -> UdpSocket {
    socket_at(host, host.ipv4())
}

fn socket_at(host: &Host, address: impl Into<IpAddr>) -> UdpSocket {
    let address = address.into();
    let socket = host.enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends a datagram and gives the source that it is seen to come from.
fn seen_from(from: &UdpSocket, to: &UdpSocket) -> SocketAddr {
    from.send_to(b"who am I", to.local_addr().unwrap()).unwrap();
    to.recv_from(&mut [0; 64]).unwrap().1
}

/// Whether a datagram from `from` to `to` arrives at `ear`.
fn arrives(from: &UdpSocket, to: SocketAddr, ear: &UdpSocket) -> bool {
    // What a host blocks itself it is told of.
    let _ = from.send_to(b"hello", to);
    ear.set_read_timeout(Some(SILENCE)).unwrap();
    let heard = ear.recv(&mut [0; 64]).is_ok();
    ear.set_read_timeout(Some(PATIENCE)).unwrap();
    heard
}

/// An inside and an outside, joined by a router that an inside host uses.
struct Scene {
    inside: Switch,
    router: Router,
    alice: Host,
    one: Host,
    other: Host,
    _lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let (inside, outside) = (lab.switch().unwrap(), lab.switch().unwrap());
        let router = lab.router("router", &inside, &outside).unwrap();
        let alice = inside.host("alice").unwrap();
        let (one, other) = (outside.host("one").unwrap(), outside.host("other").unwrap());
        router.serve(&alice).unwrap();
        Self { inside, router, alice, one, other, _lab: lab }
    }
}

#[test]
fn a_plain_router_forwards_both_families_once_it_is_announced() {
    in_sandbox(|| {
        let scene = Scene::new();
        for (from, to) in [
            (IpAddr::from(scene.alice.ipv4()), IpAddr::from(scene.one.ipv4())),
            (scene.alice.ipv6().into(), scene.one.ipv6().into()),
        ] {
            assert!(scene.alice.has_route(to).unwrap());
            assert!(!scene.one.has_route(from).unwrap());
        }
        scene.router.announce(&scene.inside, &scene.one).unwrap();
        assert!(scene.one.has_route(scene.alice.ipv4()).unwrap());
        assert!(scene.one.has_route(scene.alice.ipv6()).unwrap());
        for (inside, outside) in [
            (socket_at(&scene.alice, scene.alice.ipv4()), socket_at(&scene.one, scene.one.ipv4())),
            (socket_at(&scene.alice, scene.alice.ipv6()), socket_at(&scene.one, scene.one.ipv6())),
        ] {
            assert_eq!(seen_from(&inside, &outside), inside.local_addr().unwrap());
            assert_eq!(seen_from(&outside, &inside), outside.local_addr().unwrap());
        }
    });
}

#[test]
fn a_masquerading_router_keeps_one_port_for_all_and_lets_in_only_who_was_spoken_to() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.masquerade().unwrap();
        assert!(!scene.one.has_route(scene.alice.ipv4()).unwrap());
        let (alice, one, other) = (socket(&scene.alice), socket(&scene.one), socket(&scene.other));
        let second = socket(&scene.one);
        let mapped =
            SocketAddr::new(scene.router.outside().ipv4().into(), alice.local_addr().unwrap().port());
        assert_eq!(seen_from(&alice, &one), mapped);
        assert!(arrives(&one, mapped, &alice), "an answer");
        assert!(!arrives(&other, mapped, &alice), "another address");
        assert!(!arrives(&second, mapped, &alice), "another port of the address that was spoken to");
        // That a stranger knocked first must not change the port.
        assert_eq!(seen_from(&alice, &other), mapped);
        assert_eq!(seen_from(&alice, &second), mapped);
        assert!(arrives(&other, mapped, &alice) && arrives(&second, mapped, &alice));
    });
}

#[test]
fn two_hosts_behind_two_masquerading_routers_open_a_way_by_sending_to_each_other() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let [left, outside, right] = std::array::from_fn(|_| lab.switch().unwrap());
        let behind = |inside: &Switch, name: &str| {
            let router = lab.router(&format!("{name}s-router"), inside, &outside).unwrap();
            router.masquerade().unwrap();
            let host = inside.host(name).unwrap();
            router.serve(&host).unwrap();
            let socket = socket(&host);
            let mapped = SocketAddr::new(router.outside().ipv4().into(), socket.local_addr().unwrap().port());
            (host, router, socket, mapped)
        };
        let (alice, _left_router, near, near_mapped) = behind(&left, "alice");
        let (bob, _right_router, far, far_mapped) = behind(&right, "bob");
        let outsider = outside.host("outsider").unwrap();
        for (from, to) in [(&outsider, &alice), (&outsider, &bob)] {
            assert!(!from.has_route(to.ipv4()).unwrap() && !from.has_route(to.ipv6()).unwrap());
        }
        assert!(!arrives(&near, far.local_addr().unwrap(), &far), "an inside address means nothing outside");
        assert!(!arrives(&near, far_mapped, &far), "the first to knock is not let in");
        assert!(arrives(&far, near_mapped, &near));
        assert!(arrives(&near, far_mapped, &far));
    });
}

#[test]
fn a_symmetric_router_takes_another_port_for_every_destination() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.symmetric().unwrap();
        let alice = socket(&scene.alice);
        let ears: Vec<UdpSocket> =
            [&scene.one, &scene.other].into_iter().flat_map(|host| [socket(host), socket(host)]).collect();
        let seen: Vec<SocketAddr> = ears.iter().map(|ear| seen_from(&alice, ear)).collect();
        let ports: BTreeSet<u16> = seen.iter().map(SocketAddr::port).collect();
        // Each is one of tens of thousands by chance: two may be the same once in a blue moon, all four never.
        assert!(ports.len() > 2, "{seen:?}");
        assert!(seen.iter().all(|address| address.ip() == scene.router.outside().ipv4()));
        assert!(arrives(&ears[0], seen[0], &alice), "an answer");
        assert!(!arrives(&ears[1], seen[0], &alice), "another port");
        assert_eq!(seen_from(&alice, &ears[0]), seen[0], "a flow keeps its port");
    });
}

#[test]
fn a_mapping_ends_with_its_time_out() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.symmetric().unwrap();
        scene.router.set_udp_timeouts(Duration::from_secs(1), Duration::from_secs(1)).unwrap();
        let (alice, one) = (socket(&scene.alice), socket(&scene.one));
        let before = seen_from(&alice, &one);
        thread::sleep(Duration::from_millis(2_500));
        assert!(!arrives(&one, before, &alice));
        assert_ne!(seen_from(&alice, &one), before);
    });
}

#[test]
fn blocked_udp_passes_neither_way_until_it_is_unblocked_and_keeps_its_mapping() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.symmetric().unwrap();
        let (alice, one, other) = (socket(&scene.alice), socket(&scene.one), socket(&scene.other));
        let mapped = seen_from(&alice, &one);
        let mapped_for_other = seen_from(&alice, &other);
        scene.router.host().block(&Blocks::udp().but_for(scene.other.ipv4())).unwrap();
        assert!(!arrives(&alice, one.local_addr().unwrap(), &one));
        assert!(!arrives(&one, mapped, &alice));
        assert!(arrives(&alice, other.local_addr().unwrap(), &other), "the exception");
        assert!(arrives(&other, mapped_for_other, &alice), "the exception, back");
        scene.router.host().block(&Blocks::nothing()).unwrap();
        assert!(arrives(&one, mapped, &alice));
        assert_eq!(seen_from(&alice, &one), mapped);
    });
}

#[test]
fn a_host_that_blocks_udp_neither_sends_nor_hears_any_but_from_itself() {
    in_sandbox(|| {
        let scene = Scene::new();
        let (one, other) = (socket(&scene.one), socket(&scene.other));
        assert!(arrives(&one, other.local_addr().unwrap(), &other));
        scene.one.block(&Blocks::udp()).unwrap();
        assert!(!arrives(&one, other.local_addr().unwrap(), &other));
        assert!(!arrives(&other, one.local_addr().unwrap(), &one));
        let second = socket(&scene.one);
        assert!(arrives(&second, one.local_addr().unwrap(), &one));
    });
}

#[test]
fn a_blocked_tcp_port_is_cut_in_the_middle_of_a_connection_and_others_are_not() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.masquerade().unwrap();
        let open = |port: u16| {
            let at = (scene.one.ipv4(), port);
            let listener = scene.one.enter(|| TcpListener::bind(at)).unwrap().unwrap();
            let near = scene.alice.enter(|| TcpStream::connect(at)).unwrap().unwrap();
            let far = listener.accept().unwrap().0;
            far.set_read_timeout(Some(SILENCE)).unwrap();
            (near, far)
        };
        let (mut blocked, mut at_blocked) = open(4433);
        let (mut free, mut at_free) = open(22);
        scene.router.host().block(&Blocks::nothing().and_tcp(4433)).unwrap();
        blocked.write_all(b"x").unwrap();
        free.write_all(b"x").unwrap();
        at_free.read_exact(&mut [0]).unwrap();
        at_blocked.read_exact(&mut [0]).unwrap_err();
        scene.router.host().block(&Blocks::nothing()).unwrap();
        at_blocked.set_read_timeout(Some(PATIENCE)).unwrap();
        at_blocked.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn an_impaired_road_is_taken_without_knowing_and_tells_what_it_did() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.masquerade().unwrap();
        let (alice, one) = (socket(&scene.alice), socket(&scene.one));
        let target = one.local_addr().unwrap();
        let at = (scene.router.inside().ipv4(), 0).into();
        let road = Impair::start(scene.router.host(), at, target, Roads::default(), 7).unwrap();
        road.trace();
        scene.router.host().divert_udp(target, road.address().port()).unwrap();

        alice.send_to(b"hello", target).unwrap();
        let mut buffer = [0; 64];
        let (length, from) = one.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        one.send_to(b"hello yourself", from).unwrap();
        let (length, from) = alice.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"hello yourself"[..], target));
        assert_eq!(road.traced(), "there 5 after 0 us\nback 14 after 0 us\n");

        road.set(Roads {
            there: Road { corrupt: 1.0, duplicate: 1.0, ..Road::default() },
            back: Road::closed(),
        });
        alice.send_to(b"hello", target).unwrap();
        let mut flipped = Vec::new();
        for _ in 0..2 {
            let length = one.recv_from(&mut buffer).unwrap().0;
            let bits = buffer[..length].iter().zip(b"hello").map(|(a, b)| (a ^ b).count_ones());
            flipped.push(bits.sum::<u32>());
        }
        assert_eq!(flipped, [1, 1]);
        assert!(!arrives(&one, from, &alice));
        let [there, back] = road.counters();
        let expected = Counters { received: 2, sent: 3, lost: 0, doubled: 1, held_back: 0, corrupted: 1 };
        assert_eq!(there, expected);
        assert_eq!((back.received, back.sent), (1, 1), "{back:?}");
    });
}

#[test]
fn an_impaired_road_loses_delays_and_reorders_as_asked_and_the_same_for_the_same_seed() {
    in_sandbox(|| {
        const COUNT: u32 = 2_000;
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        let there = Road {
            delay: Duration::from_millis(20),
            loss: 0.1,
            reorder: 0.05,
            reorder_by: Duration::from_millis(10),
            ..Road::default()
        };
        let run = |seed| {
            let ear = socket(&bob);
            let target = ear.local_addr().unwrap();
            let roads = Roads { there, back: Road::default() };
            let road = Impair::start(&alice, "127.0.0.1:0".parse().unwrap(), target, roads, seed).unwrap();
            let mouth = socket_at(&alice, [127, 0, 0, 1]);
            let began = Instant::now();
            let sender = thread::spawn(move || {
                for number in 0..COUNT {
                    mouth.send_to(&number.to_be_bytes(), road.address()).unwrap();
                    if number % 20 == 19 {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                // Until all that was taken in has been let go.
                while {
                    let [there, _] = road.counters();
                    there.received < COUNT.into() || there.sent + there.lost < there.received
                } {
                    assert!(began.elapsed() < PATIENCE, "{:?}", road.counters());
                    thread::sleep(Duration::from_millis(1));
                }
                road.counters()[0]
            });
            let mut numbers = Vec::new();
            let mut buffer = [0; 4];
            let first = ear.recv(&mut buffer).map(|_| began.elapsed()).unwrap();
            numbers.push(u32::from_be_bytes(buffer));
            ear.set_read_timeout(Some(SILENCE)).unwrap();
            while ear.recv(&mut buffer).is_ok() {
                numbers.push(u32::from_be_bytes(buffer));
            }
            (first, numbers, sender.join().unwrap())
        };
        let (first, numbers, counters) = run(11);
        assert!(first >= there.delay, "{first:?}");
        assert_eq!(numbers.len() as u64, counters.sent);
        let lost = counters.lost as f64 / f64::from(COUNT);
        assert!((0.06..0.14).contains(&lost), "{counters:?}");
        let overtaken = numbers.windows(2).filter(|pair| pair[1] < pair[0]).count() as f64 / f64::from(COUNT);
        assert!((0.02..0.1).contains(&overtaken), "{overtaken}");

        let (_, again, same) = run(11);
        let set = |numbers: &[u32]| numbers.iter().copied().collect::<BTreeSet<u32>>();
        assert_eq!((set(&again), same), (set(&numbers), counters));
        assert_ne!(set(&run(12).1), set(&numbers));
    });
}

#[test]
fn a_road_serves_several_clients_and_no_more_than_it_says() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let host = lab.switch().unwrap().host("alice").unwrap();
        let target = socket(&host);
        let loopback = [127, 0, 0, 1];
        let road =
            Impair::start(&host, (loopback, 0).into(), target.local_addr().unwrap(), Roads::default(), 1)
                .unwrap();
        let clients: Vec<UdpSocket> =
            (0..=ringmesh_lab::impair::MAX_CLIENTS).map(|_| socket_at(&host, loopback)).collect();
        let (last, served) = clients.split_last().unwrap();
        for (number, client) in served.iter().enumerate() {
            client.send_to(&[number as u8], road.address()).unwrap();
            let mut byte = [0];
            let from = target.recv_from(&mut byte).unwrap().1;
            target.send_to(&byte, from).unwrap();
            client.recv(&mut byte).unwrap();
            assert_eq!(usize::from(byte[0]), number);
        }
        assert!(!arrives(last, road.address(), &target));
        assert_eq!(road.counters()[0].lost, 1);
    });
}

#[test]
fn a_capture_has_what_passed_its_interface_and_nothing_else() {
    in_sandbox(|| {
        let scene = Scene::new();
        scene.router.masquerade().unwrap();
        let (inside, outside) = (scene.router.inside().name(), scene.router.outside().name());
        let near = Capture::start(scene.router.host(), inside).unwrap();
        let far = Capture::start(scene.router.host(), outside).unwrap();
        let (alice, one) = (socket(&scene.alice), socket(&scene.one));
        alice.send_to(b"a canary that goes out", one.local_addr().unwrap()).unwrap();
        one.recv(&mut [0; 64]).unwrap();
        let router = socket_at(scene.router.host(), scene.router.inside().ipv4());
        router.send_to(b"a canary that stays in", alice.local_addr().unwrap()).unwrap();
        alice.recv(&mut [0; 64]).unwrap();
        let (near, far) = (near.stop().unwrap(), far.stop().unwrap());
        for (captured, goes_out, stays_in) in [(&near, 1, 1), (&far, 1, 0)] {
            assert_eq!(captured.count(b"a canary that goes out"), goes_out);
            assert_eq!(captured.count(b"a canary that stays in"), stays_in);
            assert_eq!(captured.dropped(), 0);
            assert_eq!(captured.frames().map(<[u8]>::len).sum::<usize>(), captured.bytes());
        }
    });
}

#[test]
fn a_capture_where_there_is_no_such_interface_is_refused() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let host = lab.host("alice").unwrap();
        let error = Capture::start(&host, "eth7").unwrap_err();
        assert!(matches!(error, LabError::System { .. }), "{error}");
        assert_eq!(error.to_string(), "could not capture on eth7 of alice");
    });
}
