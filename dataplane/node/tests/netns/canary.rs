//! What goes through the tunnel is read by nobody on the way: it is on no leg of it, and not in the relay's memory.

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use ringmesh_lab::{Blocks, Capture, Captured, Host, Router, in_sandbox};

use crate::{
    apart::Apart,
    roads::{Behind, first_answer, path_to, until_path},
    support::{block_on, daemon::Place},
    world::{Machine, Member, World},
};

/// Datagrams each way, with the pattern several times in each.
const DATAGRAMS: usize = 500;
/// Times the pattern is in a datagram.
const REPEATS: usize = 20;
const SSH_PORT: u16 = 2222;

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn socket(host: &Host, address: IpAddr) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

/// Sends datagrams full of `canary` through the tunnel, both ways; tells how many arrived.
fn sing(alice: &Member, bob: &Member, canary: &[u8]) -> usize {
    let near = socket(&alice.machine.host, alice.ipv4);
    let far = socket(&bob.machine.host, bob.ipv4);
    let (near_at, far_at) = (near.local_addr().unwrap(), far.local_addr().unwrap());
    let song = canary.repeat(REPEATS);
    let mut heard = 0;
    let mut ear = vec![0; 2 * song.len()];
    for _ in 0..DATAGRAMS {
        near.send_to(&song, far_at).unwrap();
        heard += usize::from(far.recv(&mut ear).is_ok_and(|length| ear[..length] == song));
        far.send_to(&song, near_at).unwrap();
        heard += usize::from(near.recv(&mut ear).is_ok_and(|length| ear[..length] == song));
    }
    heard
}

/// Captures on every leg, and on the tunnel's ends, while the canary sings.
fn capture_all(
    alice: &Member,
    bob: &Member,
    legs: &[(&Host, &str)],
    canary: &[u8],
) -> (Vec<Captured>, [Captured; 2]) {
    let ends = [alice, bob].map(|end| Capture::start(&end.machine.host, "mesh0").unwrap());
    let legs: Vec<_> = legs.iter().map(|(host, name)| Capture::start(host, name).unwrap()).collect();
    let heard = sing(alice, bob, canary);
    assert!(heard * 10 >= DATAGRAMS * 2 * 9, "{heard} of {} arrived", DATAGRAMS * 2);
    let legs = legs.into_iter().map(|leg| leg.stop().unwrap()).collect();
    (legs, ends.map(|end| end.stop().unwrap()))
}

/// Nothing of the canary is on any of the `legs`, where all of it passed, while at the tunnel's `ends` it is in every datagram:
/// whoever searches must be able to find.
fn assert_sealed(path: &str, legs: &[Captured], ends: &[Captured], canary: &[u8]) {
    for end in ends {
        assert_eq!(end.dropped(), 0);
        assert!(end.count(canary) * 10 >= DATAGRAMS * 2 * 9, "{path}: {}", end.count(canary));
    }
    let sung = DATAGRAMS * 2 * REPEATS * canary.len();
    for (number, leg) in legs.iter().enumerate() {
        assert_eq!((leg.count(canary), leg.dropped()), (0, 0), "{path}, leg {number}");
        // And it did pass there, sealed.
        assert!(leg.bytes() * 10 > sung * 9, "{path}, leg {number}: {} bytes of {sung}", leg.bytes());
    }
}

#[test]
fn nobody_on_the_way_sees_what_goes_over_ssh() {
    in_sandbox(|| {
        block_on(async {
            let mark = random().map(|byte| format!("{byte:02x}")).concat();
            let world = World::without_coordinator(|_, _| {});
            let relay = Apart::coordinator(&world, &mark);
            let left = Behind::new(&world.lab, &world.switch, "alice", Router::masquerade);
            left.router.host().block(&Blocks::udp()).unwrap();
            let mut place = Place::new();
            place.config.ssh_port = Some(SSH_PORT);
            let bob = world.member(Machine::new(&world.switch, "bob"), place, "bob").await;
            let mut alice = world.member(left.machine, Place::new(), "alice").await;
            first_answer(&alice.machine, bob.ipv4, Duration::from_secs(15));
            until_path(&mut alice, "bob", "ssh", Duration::from_secs(15)).await;
            let canary = random();
            let legs = [
                (left.router.host(), left.router.inside().name()),
                (left.router.host(), left.router.outside().name()),
                (&bob.machine.host, bob.machine.host.interfaces()[0].name()),
            ];
            let before = world.relay().await.relayed_datagrams;
            let (legs, ends) = capture_all(&alice, &bob, &legs, &canary);
            assert_sealed("ssh", &legs, &ends, &canary);
            // All of it went that way: by the port of the endpoint, and none by the relay.
            assert_eq!(path_to(&mut alice, "bob").await, "ssh");
            let passed = world.relay().await.relayed_datagrams - before;
            assert!(passed < DATAGRAMS as u64 / 10, "{passed} datagrams went by the relay");
            assert_eq!(relay.count_in_memory(&canary), 0);
            assert_ne!(relay.count_in_memory(mark.as_bytes()), 0, "its memory can be searched");
        });
    });
}

#[test]
fn nobody_on_the_way_sees_what_goes_through_a_relay() {
    in_sandbox(|| {
        block_on(async {
            let mark = random().map(|byte| format!("{byte:02x}")).concat();
            let world = World::without_coordinator(|_, _| {});
            let relay = Apart::coordinator(&world, &mark);
            let left = Behind::new(&world.lab, &world.switch, "alice", Router::symmetric);
            let right = Behind::new(&world.lab, &world.switch, "bob", Router::masquerade);
            let mut alice = world.member(left.machine, Place::new(), "alice").await;
            let bob = world.member(right.machine, Place::new(), "bob").await;
            first_answer(&alice.machine, bob.ipv4, Duration::from_secs(5));

            for (path, at_relay) in [("relay", "udp"), ("websocket", "websocket")] {
                if path == "websocket" {
                    left.router.host().block(&Blocks::udp()).unwrap();
                    first_answer(&alice.machine, bob.ipv4, Duration::from_secs(15));
                }
                until_path(&mut alice, "bob", path, Duration::from_secs(15)).await;
                let canary = random();
                let before = world.relay().await.relayed_datagrams;
                let legs = [
                    (left.router.host(), left.router.inside().name()),
                    (left.router.host(), left.router.outside().name()),
                    (&world.head.host, "eth0"),
                    (right.router.host(), right.router.outside().name()),
                    (right.router.host(), right.router.inside().name()),
                ];
                let (legs, ends) = capture_all(&alice, &bob, &legs, &canary);
                // It did go through the relay, by that path.
                let after = world.relay().await;
                let clients = after.clients.iter().find(|client| client.name == "alice");
                assert_eq!(clients.map(|client| client.path.as_str()), Some(at_relay));
                assert!(after.relayed_datagrams - before >= DATAGRAMS as u64 * 2 * 9 / 10, "{after:?}");
                assert_sealed(path, &legs, &ends, &canary);
                assert_eq!(relay.count_in_memory(&canary), 0, "{path}");
                assert_ne!(relay.count_in_memory(mark.as_bytes()), 0, "its memory can be searched");
            }
        });
    });
}
