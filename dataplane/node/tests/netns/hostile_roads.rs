//! Roads that mean harm: a relay that alters, repeats or withholds.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use ringmesh_lab::{
    Blocks, Host, Impair, Router,
    impair::{Road, Roads},
    in_sandbox,
};
use sha2::{Digest as _, Sha256};

use crate::{
    roads::{Behind, first_answer, path_to, until_path},
    support::{block_on, daemon::Place},
    world::{Machine, Member, World, transfer},
};

/// What decides the road's mischief; printed with every failure.
const SEED: u64 = 0x5eed_0bad;
/// Datagrams that are counted, each way.
const DATAGRAMS: u32 = 1_000;
/// The first byte of a datagram for another node that a relay passes on.
const RELAYED: u8 = 16;

/// Alice, whose every datagram to the relay takes an impaired road, and Bob. No UDP passes between them but by the relay.
struct Scene {
    alice: Member,
    bob: Member,
    road: Impair,
    _routers: Vec<Router>,
    _world: World,
}

/// What there is besides the relay over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// The relay over a WebSocket.
    WebSocket,
    /// That, and Bob's SSH endpoint.
    Ssh,
}

impl Scene {
    async fn new(other: Other) -> Self {
        let world = World::new().await;
        let left = Behind::new(&world.lab, &world.switch, "alice", Router::symmetric);
        let at = SocketAddr::new(left.router.inside().ipv4().into(), 0);
        let road = Impair::start(left.router.host(), at, world.address, Roads::default(), SEED).unwrap();
        left.router.host().divert_udp(world.address, road.address().port()).unwrap();
        let mut alice = world.member(left.machine, Place::new(), "alice").await;
        let mut routers = vec![left.router];
        let bob = if other == Other::Ssh {
            let blocks = Blocks::udp().but_for(world.address.ip()).but_for(at.ip());
            routers[0].host().block(&blocks).unwrap();
            let mut place = Place::new();
            place.config.ssh_port = Some(2222);
            world.member(Machine::new(&world.switch, "bob"), place, "bob").await
        } else {
            let right = Behind::new(&world.lab, &world.switch, "bob", Router::masquerade);
            routers.push(right.router);
            world.member(right.machine, Place::new(), "bob").await
        };
        first_answer(&alice.machine, bob.ipv4, Duration::from_secs(5));
        until_path(&mut alice, "bob", "relay", Duration::from_secs(10)).await;
        assert!(road.counters().iter().all(|way| way.sent > 0), "it goes that way: {:?}", road.counters());
        Self { alice, bob, road, _routers: routers, _world: world }
    }
}

/// A datagram that nobody could make of another one.
fn numbered(number: u32) -> Vec<u8> {
    let hash = Sha256::digest(number.to_be_bytes());
    [&number.to_be_bytes()[..], &hash.repeat(10)].concat()
}

/// What came of datagrams sent.
#[derive(Debug, Default)]
struct Tally {
    right: BTreeSet<u32>,
    wrong: usize,
    twice: usize,
}

fn socket(host: &Host, address: IpAddr) -> UdpSocket {
    host.enter(|| UdpSocket::bind((address, 0))).unwrap().unwrap()
}

/// Sends numbered datagrams through the tunnel, at a few thousand a second.
fn count(from: &Member, to: &Member) -> Tally {
    let mouth = socket(&from.machine.host, from.ipv4);
    let ear = socket(&to.machine.host, to.ipv4);
    ear.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let at = ear.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..DATAGRAMS {
                mouth.send_to(&numbered(number), at).unwrap();
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let mut tally = Tally::default();
        let mut buffer = [0; 2_000];
        while let Ok(length) = ear.recv(&mut buffer) {
            let datagram = &buffer[..length];
            let number = datagram.first_chunk().map(|number| u32::from_be_bytes(*number));
            match number.filter(|number| *number < DATAGRAMS && datagram == numbered(*number)) {
                Some(number) if tally.right.insert(number) => {}
                Some(_) => tally.twice += 1,
                None => tally.wrong += 1,
            }
        }
        tally
    })
}

#[test]
fn a_relay_that_alters_and_repeats_delivers_nothing_wrong_and_nothing_twice() {
    in_sandbox(|| {
        block_on(async {
            let mut scene = Scene::new(Other::WebSocket).await;
            let bad = Road {
                corrupt: 0.1,
                duplicate: 0.3,
                reorder: 0.1,
                reorder_by: Duration::from_millis(5),
                ..Road::default()
            };
            scene.road.set(Roads::both(bad));
            for (from, to) in [(&scene.alice, &scene.bob), (&scene.bob, &scene.alice)] {
                let tally = count(from, to);
                assert_eq!((tally.wrong, tally.twice), (0, 0), "seed {SEED:#x}");
                // What was altered is lost; all else comes, by whatever road.
                assert!(tally.right.len() > 700, "{} of {DATAGRAMS} came, seed {SEED:#x}", tally.right.len());
            }
            for way in scene.road.counters() {
                assert!(way.corrupted > 30 && way.doubled > 100, "the road was bad: {way:?}");
            }
            let Scene { alice, bob, .. } = &mut scene;
            transfer(&mut alice.machine, &mut bob.machine, bob.ipv4, 1_000_000).await;
        });
    });
}

/// On a road that is `bad` the relay over UDP is left for the `other` path, and taken again when the road is good.
async fn is_left_and_taken_again(bad: Road, other: Other, path: &str) {
    let mut scene = Scene::new(other).await;
    scene.road.set(Roads::both(bad));
    let took = first_answer(&scene.alice.machine, scene.bob.ipv4, Duration::from_secs(8));
    let left = until_path(&mut scene.alice, "bob", path, Duration::from_secs(10)).await;
    println!("an answer {took:.2?} after the road went bad, and {path} {left:.2?} later");
    let tally = count(&scene.bob, &scene.alice);
    assert_eq!((tally.wrong, tally.twice, tally.right.len()), (0, 0, DATAGRAMS as usize));
    assert_eq!(path_to(&mut scene.alice, "bob").await, path);
    scene.road.set(Roads::default());
    let mut pings = scene.alice.machine.host.command("ping").unwrap();
    let mut pings = pings.args(["-q", "-i", "0.2", &scene.bob.ipv4.to_string()]).spawn().unwrap();
    let again = until_path(&mut scene.alice, "bob", "relay", Duration::from_secs(60)).await;
    println!("taken again after {again:.2?}");
    pings.kill().unwrap();
    pings.wait().unwrap();
}

#[test]
fn a_relay_that_withholds_everything_is_left_for_its_websocket() {
    in_sandbox(|| block_on(is_left_and_taken_again(Road::closed(), Other::WebSocket, "websocket")));
}

#[test]
fn a_relay_that_answers_and_passes_nothing_on_is_left_for_another_road() {
    let bad = Road { only: Some(RELAYED), ..Road::closed() };
    in_sandbox(|| block_on(is_left_and_taken_again(bad, Other::Ssh, "ssh")));
}
