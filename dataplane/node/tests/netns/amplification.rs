//! Whoever is not authenticated gets no more bytes from a node than it sent: a forged source makes no reflector of it.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use ringmesh_io::Choice;
use ringmesh_lab::{Capture, in_sandbox};
use ringmesh_tunnel::{
    Handshaker, Now, PeerConfig, Psk, Random, Tunnel, UnixTime,
    key::{NodeId, PresharedKey, PublicKey, SecretKey},
    message::INITIATION_LEN,
};

use crate::{
    support::block_on,
    world::{Machine, World},
};

/// Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;
/// Initiations of strangers sent at once: enough to be under load.
const FLOOD: usize = 2000;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(30);

/// Somebody on the same network who is no member.
struct Stranger {
    socket: UdpSocket,
    node: SocketAddr,
    answers: usize,
}

impl Stranger {
    fn new(machine: &Machine, node: SocketAddr) -> Self {
        let socket = machine.host.enter(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, node, answers: 0 }
    }

    /// The length of what comes back to one datagram, all in all.
    fn answer_to(&mut self, datagram: &[u8]) -> usize {
        self.socket.send_to(datagram, self.node).unwrap();
        self.heard().into_iter().sum()
    }

    /// The lengths of everything that comes until nothing does.
    fn heard(&mut self) -> Vec<usize> {
        let mut buffer = [0; 2048];
        let heard: Vec<usize> = std::iter::from_fn(|| self.socket.recv(&mut buffer).ok()).collect();
        self.answers += heard.len();
        heard
    }

    fn gets_no_more_than_it_sends(&mut self, what: &str, datagram: &[u8]) {
        let answer = self.answer_to(datagram);
        assert!(answer <= datagram.len(), "{what}: {} bytes were answered with {answer}", datagram.len());
    }
}

/// Initiations that anyone can make who knows a node's public key: well-formed, with a right first MAC, of keys that are no peer's.
fn initiations_of_strangers(key: PublicKey) -> impl Iterator<Item = Vec<u8>> {
    (0_u64..).map(move |number| {
        let secret = SecretKey::from_bytes(core::array::from_fn(|at| number.to_le_bytes()[at % 8] ^ 0x5a));
        let mut tunnel = Tunnel::new(0, secret.public_key(), Random::system()).unwrap();
        let mut handshaker = Handshaker::new(&secret, Random::system());
        let id = NodeId::from_bytes([1; 8]);
        let peer = PeerConfig {
            id,
            key,
            psk: Psk::Fixed(PresharedKey::from_bytes([0; 32])),
            mesh: true,
            allowed_ips: Vec::new(),
            candidates: vec!["192.0.2.1:1".parse().unwrap()],
            links: Vec::new(),
            relay: false,
            persistent_keepalive: None,
        };
        let now = Now::new(Instant::now(), UnixTime::from_secs(1_800_000_000));
        tunnel.apply(std::slice::from_ref(&peer), now);
        handshaker.apply(&[peer]);
        tunnel.ping(id, 0, now).unwrap();
        let job = tunnel.poll_job().unwrap();
        let done = handshaker.run(job, 0, now);
        tunnel.handle_job(done, now);
        let mut datagram = [0; 2048];
        let transmit = tunnel.poll_transmit(&mut datagram, now).unwrap();
        assert_eq!(transmit.len, INITIATION_LEN);
        datagram[..INITIATION_LEN].to_vec()
    })
}

#[test]
fn nobody_gets_more_bytes_from_a_node_than_it_sent() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut alice = world.node("alice", Choice::Auto).await;
            let mut bob = world.node("bob", Choice::Auto).await;
            alice.until_peers(1).await;
            bob.until_peers(1).await;
            let status = bob.node.status().await;
            let key: PublicKey = status.network.unwrap().self_.unwrap().noise_key.parse().unwrap();
            let plane = status.data_plane.unwrap();
            let node = SocketAddr::from((bob.machine.host.ipv4(), u16::try_from(plane.listen_port).unwrap()));
            let machine = Machine::new(&world.switch, "stranger");
            let mut stranger = Stranger::new(&machine, node);

            // Everything that Alice says to Bob while a session comes about, and in it.
            let interface = alice.machine.host.interfaces()[0].name().to_owned();
            // The machines must know where Bob's is before he is cut off, or what is sent waits there until he is back.
            for machine in [&alice.machine, &world.head] {
                machine.ping(bob.machine.host.ipv4());
                machine.ping(bob.machine.host.ipv6());
            }
            // And Alice must know both of Bob's addresses: by one that she hears of later she would send the same initiation again.
            let mut known = 0;
            while known < 2 {
                let why = ringmesh_proto::local::WhyRequest { node: "bob".to_owned() };
                let paths = alice.node.client.why(why).await.unwrap().into_inner().paths;
                known = paths.iter().filter(|path| path.kind == "udp").count();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let capture = Capture::start(&alice.machine.host, &interface).unwrap();
            let cable = &bob.machine.host.interfaces()[0];
            cable.unplug().unwrap();
            let unheard = alice.node.ping("bob", 1, 1500).await;
            let authentic = capture.stop().unwrap();
            cable.plug().unwrap();
            drop(unheard);
            machine.ping(bob.machine.host.ipv4());
            let capture = Capture::start(&alice.machine.host, &interface).unwrap();
            let said = |frame: &&[u8]| {
                let to_bob = frame.get(30..34) == Some(&bob.machine.host.ipv4().octets()[..]);
                to_bob && frame.get(23) == Some(&17) && frame.len() > HEADERS
            };
            // An initiation that Bob has not seen yet is as good from the stranger as from Alice.
            let first = authentic.frames().filter(said).map(|frame| &frame[HEADERS..]);
            let first: Vec<_> = first.filter(|datagram| datagram[..4] == [1, 0, 0, 0]).collect();
            let newest = *first.last().expect("Alice has tried");
            assert_eq!(newest.len(), INITIATION_LEN);
            let response = stranger.answer_to(newest);
            assert!((1..=newest.len()).contains(&response), "an authentic initiation: {response} bytes");

            alice.echo("bob").await;
            let session = capture.stop().unwrap();
            let old: Vec<&[u8]> = session.frames().filter(said).map(|frame| &frame[HEADERS..]).collect();
            for kind in [1, 4] {
                assert!(old.iter().any(|datagram| datagram[0] == kind), "type {kind} was captured");
            }
            for datagram in first.iter().chain(&old) {
                stranger.gets_no_more_than_it_sends("repeated", datagram);
                let mut changed = datagram.to_vec();
                *changed.last_mut().unwrap() ^= 1;
                stranger.gets_no_more_than_it_sends("repeated with a bit turned", &changed);
            }

            // What is made up, of every type and of lengths around those that mean something.
            for kind in [0_u8, 1, 2, 3, 4, 5, 16, 255] {
                for length in [1_usize, 8, 31, 32, 63, 64, 91, 92, 147, 148, 149, 156, 1400] {
                    let mut datagram = vec![0x77; length];
                    datagram.iter_mut().zip([kind, 0, 0, 0]).for_each(|(byte, value)| *byte = value);
                    stranger.gets_no_more_than_it_sends("made up", &datagram);
                }
            }

            // Under load there are cookies: at most one for each initiation, and shorter.
            let before = stranger.answers;
            let flood: Vec<_> = initiations_of_strangers(key).take(FLOOD).collect();
            for datagram in &flood {
                stranger.socket.send_to(datagram, node).unwrap();
            }
            let heard = stranger.heard();
            assert!(heard.iter().all(|length| *length <= INITIATION_LEN), "{heard:?}");
            assert!(heard.len() <= FLOOD);
            assert!(
                stranger.answers > before,
                "a flood is answered with cookies, or this test shows nothing"
            );
            println!("{FLOOD} initiations were answered with {} datagrams", heard.len());
            alice.echo("bob").await;
        });
    });
}
