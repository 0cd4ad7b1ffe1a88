//! Hostile clients of everything that listens for streams: they are shown the door in time, cost little, and slow nobody down.
//!
//! A hundred of each kind are part of every test run; by hand a thousand, and a longer look at the memory afterwards:
//! `RINGMESH_STRANGERS=1000 cargo nextest run -p ringmesh-node --no-capture -E 'test(strangers_)'`.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ringmesh_lab::{Blocks, Privilege, Router, in_sandbox, privilege};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    apart::{Apart, memory_of},
    roads::{Behind, Paced, Sshd, first_answer, path_to, until_path},
    support::{
        block_on,
        daemon::{Node, Place, connect},
        process::BE_DAEMON,
    },
    world::{Machine, Member, World},
};

/// Clients of each kind, unless it is said otherwise.
const EACH: usize = 100;
/// The door is shut on whoever has not proven to be somebody so long after it was opened, and a busy machine may be a little late.
const DEADLINE: Duration = Duration::from_millis(10_000 + 1_000);
/// Whoever was let in and said nothing was there at least so long: a TLS handshake has five seconds to begin, all else ten.
const HELD: Duration = Duration::from_secs(4);
/// Strangers may not be the reason why somebody cannot even connect: of each hundred, so many at most.
const REFUSED: usize = 1;
/// More memory than before, at any time.
const PEAK: u64 = 64 << 20;
/// More memory than before, afterwards.
const AFTER: u64 = 8 << 20;
/// Within this it is given back.
const GIVEN_BACK: Duration = Duration::from_secs(60);
/// Pace of the transfer that must not suffer, Mbit/s, and how much of it must be left.
const PACE: u64 = 20;
const LEFT: f64 = 0.9;
/// Clients that do something at the same moment: the machine is theirs as well as their victim's.
const AT_ONCE: usize = 20;

/// A stream of whatever kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// What a client does after it has connected, before it waits for the door to be shut.
#[derive(Debug, Clone)]
enum Manners {
    /// Nothing at all.
    Silent,
    /// Says this, in clear.
    Says(Vec<u8>),
    /// TLS, and then nothing.
    TlsOnly,
    /// TLS and an upgrade with this line in its head, which is answered by this status.
    Upgrade(&'static str, u16),
    /// TLS, an upgrade, and then a WebSocket message of this.
    Message(Vec<u8>),
}

/// Where they connect to.
#[derive(Debug, Clone)]
enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A frame as links carry it.
fn frame(datagram: &[u8]) -> Vec<u8> {
    [&u16::try_from(datagram.len()).unwrap().to_be_bytes()[..], datagram].concat()
}

/// What could begin a handshake, by its length and first byte, and does not.
fn false_initiation() -> Vec<u8> {
    let mut message = vec![0xa5; 148];
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    message
}

/// A WebSocket's binary message, masked as a client's must be (RFC 6455 section 5.3), with zeros.
fn message(content: &[u8]) -> Vec<u8> {
    let length = content.len() as u64;
    [&[0x82, 0x80 | 127][..], &length.to_be_bytes(), &[0; 4], content].concat()
}

/// Believes every certificate: the relay is known by the session inside, and strangers believe nothing anyway.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn connector() -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let mut config = builder
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// What became of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was connected, and shut out so long after that.
    ShutOut(Duration),
    /// It could not connect.
    Refused,
    /// It was still there when it should not have been.
    StillThere,
    /// It was answered something else than it should have been.
    Answered(u16),
}

impl Door {
    async fn knock(&self) -> std::io::Result<Box<dyn Stream>> {
        loop {
            return match self {
                Self::Tcp(address) => Ok(Box::new(TcpStream::connect(address).await?)),
                Self::Unix(path) => match UnixStream::connect(path).await {
                    Ok(stream) => Ok(Box::new(stream)),
                    // Others wait to be let in already; TCP waits by itself.
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
        }
    }
}

/// One client, from its first byte to its end.
async fn client(door: &Door, manners: &Manners, connector: &TlsConnector, turn: &Semaphore) -> End {
    let permit = turn.acquire().await.unwrap();
    let Ok(Ok(stream)) = timeout(DEADLINE, door.knock()).await else { return End::Refused };
    let began = Instant::now();
    let shut_out = || End::ShutOut(began.elapsed());
    let mut stream = match timeout(DEADLINE, behave(stream, manners, connector)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(Some(status))) => return End::Answered(status),
        Ok(Err(None)) => return shut_out(),
        Err(_) => return End::StillThere,
    };
    drop(permit);
    let mut rest = vec![0; 4096];
    loop {
        let left = DEADLINE.saturating_sub(began.elapsed());
        match timeout(left, stream.read(&mut rest)).await {
            Ok(Ok(0) | Err(_)) => return shut_out(),
            Ok(Ok(_)) => {}
            Err(_) => return End::StillThere,
        }
    }
}

/// Does what is to be done before waiting. `Err`: it is over, by a closed stream or a wrong status.
async fn behave(
    mut stream: Box<dyn Stream>,
    manners: &Manners,
    connector: &TlsConnector,
) -> Result<Box<dyn Stream>, Option<u16>> {
    let over = |_| None;
    let (line, expected, content) = match manners {
        Manners::Silent => return Ok(stream),
        Manners::Says(bytes) => {
            stream.write_all(bytes).await.map_err(over)?;
            return Ok(stream);
        }
        Manners::TlsOnly => {
            let name = ServerName::try_from("relay.example").unwrap();
            return Ok(Box::new(connector.connect(name, stream).await.map_err(over)?));
        }
        Manners::Upgrade(line, expected) => (*line, *expected, None),
        Manners::Message(content) => ("X-Nothing: 1", 101, Some(content)),
    };
    let name = ServerName::try_from("relay.example").unwrap();
    let mut stream = connector.connect(name, stream).await.map_err(over)?;
    let request = format!(
        "GET /relay/v1 HTTP/1.1\r\nHost: relay.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         Sec-WebSocket-Protocol: ringmesh.relay.v1\r\n{line}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.map_err(over)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.map_err(over)?);
    }
    let head = String::from_utf8_lossy(&head);
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    if status != expected {
        return Err(Some(status));
    }
    if let Some(content) = content {
        stream.write_all(&message(content)).await.map_err(over)?;
    }
    Ok(Box::new(stream))
}

/// What became of all clients of a kind.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    slowest: Duration,
    held: usize,
    refused: usize,
}

/// What is watched while strangers are at the door.
struct Watched<'a> {
    /// Who answers the door.
    pid: u32,
    door: Door,
    /// Who has a transfer going, from the first to the second.
    traffic: (&'a mut Member, &'a mut Machine),
    to: std::net::IpAddr,
}

fn each() -> usize {
    std::env::var("RINGMESH_STRANGERS").map_or(EACH, |text| text.parse().expect("a number"))
}

/// All kinds of clients come at once, from `mallory`, while a transfer goes on.
async fn besiege(watched: Watched<'_>, mallory: &mut Machine, kinds: Vec<Manners>) {
    let Watched { pid, door, traffic: (from, to), to: at } = watched;
    let paced = Paced::start(&mut from.machine, to, at, PACE).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = (Instant::now(), memory_of(pid));
    tokio::time::sleep(Duration::from_secs(3)).await;

    let (peak, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (high, done) = (Arc::clone(&peak), Arc::clone(&over));
    let watch = std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            high.fetch_max(memory_of(pid), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let began = Instant::now();
    let (turn, connector) = (Arc::new(Semaphore::new(AT_ONCE)), connector());
    // Mixed, so that every kind meets every other.
    let clients = (0..each()).flat_map(|_| kinds.iter().cloned().enumerate());
    let clients: Vec<_> = clients
        .map(|(kind, manners)| {
            let (door, connector, turn) = (door.clone(), connector.clone(), Arc::clone(&turn));
            let client = async move { (kind, client(&door, &manners, &connector, &turn).await) };
            mallory.handle().spawn(client)
        })
        .collect();
    let mut ends = vec![Ends::default(); kinds.len()];
    for client in clients {
        match client.await.unwrap() {
            (kind, End::ShutOut(after)) => {
                ends[kind].held += usize::from(after >= HELD);
                ends[kind].slowest = ends[kind].slowest.max(after);
            }
            (kind, End::Refused) => ends[kind].refused += 1,
            (kind, wrong) => panic!("{wrong:?}: {:?}", kinds[kind]),
        }
    }
    let ended = Instant::now();
    over.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    let course = paced.end().await;
    for (kind, Ends { slowest, held, refused }) in kinds.iter().zip(ends) {
        println!(
            "shut out after {slowest:.2?} at most, {held} held, {refused} not connected: {}",
            format!("{kind:?}").chars().take(60).collect::<String>()
        );
        assert!(refused * 100 <= each() * REFUSED, "{refused} of {} could not connect: {kind:?}", each());
        // Some were let in, or nobody was ever there to be shown the door.
        let waits = matches!(kind, Manners::Silent | Manners::TlsOnly | Manners::Upgrade(_, 101));
        assert!(held > 0 || !waits, "none was held: {kind:?}");
    }
    let risen = peak.load(Ordering::Relaxed).saturating_sub(before.1);
    let kept = course.rate(began, ended) / course.rate(before.0, began);
    println!(
        "{} of each in {:.1?}; {kept:.3} of the rate kept; {} KiB more at most",
        each(),
        ended - began,
        risen >> 10
    );
    assert!(course.whole);
    assert!(kept >= LEFT, "{kept} of the rate is left");
    assert!(risen <= PEAK, "{risen} bytes more");

    let waited = Instant::now();
    let left = loop {
        let left = memory_of(pid).saturating_sub(before.1);
        if left <= AFTER || waited.elapsed() > GIVEN_BACK {
            break left;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    println!("{} KiB more {:.1?} later", left >> 10, waited.elapsed());
    assert!(left <= AFTER, "{left} bytes were not given back");
}

/// A node daemon as a process of its own, with these `settings` more, that has joined. Beside its socket is its link socket, where
/// there can be one.
async fn node_apart(world: &World, machine: &Machine, name: &str, settings: &str) -> (Apart, Place, Node) {
    let place = Place::new();
    // Whoever logs in may come to the link socket; what is secret is in folders of its own.
    fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = place.directory.path().join("node.toml");
    let text = format!(
        "{settings}\nstate_dir = {:?}\nsocket = {:?}\n",
        place.config.state_dir, place.config.socket,
    );
    fs::write(&file, text).unwrap();
    let mut command = machine.this_program();
    command.args(["be_a_daemon", "--exact", "--nocapture"]).env(BE_DAEMON, &file);
    let process = Apart::start(command, "the daemon is ready");
    let mut node = Node::of_process(connect(place.config.socket.clone()).await);
    node.join(&world.token().await, name).await.unwrap();
    (process, place, node)
}

#[test]
fn strangers_at_the_websocket_are_shut_out_and_slow_nobody_down() {
    in_sandbox(|| {
        block_on(async {
            let world = World::without_coordinator(|_, _| {});
            let relay = Apart::coordinator(&world, "");
            let left = Behind::new(&world.lab, &world.switch, "alice", Router::masquerade);
            left.router.host().block(&Blocks::udp()).unwrap();
            let mut alice = world.member(left.machine, Place::new(), "alice").await;
            let mut bob = world.node("bob", ringmesh_io::Choice::Auto).await;
            first_answer(&alice.machine, bob.ipv4, Duration::from_secs(15));
            until_path(&mut alice, "bob", "websocket", Duration::from_secs(15)).await;
            let mut mallory = Machine::new(&world.switch, "mallory");
            let kinds = vec![
                Manners::Silent,
                Manners::Says(b"\x16\x03\x01\xff\xff garbage where a TLS hello should be".to_vec()),
                Manners::TlsOnly,
                Manners::Upgrade("X-Nothing: 1", 101),
                Manners::Upgrade("Origin: https://evil.example", 403),
                Manners::Message(frame(&false_initiation())),
                Manners::Message([&[0xff, 0xff][..], &[0; 9_300]].concat()),
                Manners::Message(vec![0; 200_000]),
                Manners::Message(frame(&[16, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0])),
            ];
            let to = bob.ipv4;
            let watched = Watched {
                pid: relay.pid(),
                door: Door::Tcp(world.address),
                traffic: (&mut alice, &mut bob.machine),
                to,
            };
            besiege(watched, &mut mallory, kinds).await;
        });
    });
}

#[test]
fn strangers_at_the_ssh_endpoint_are_shut_out_and_slow_nobody_down() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut far = Machine::new(&world.switch, "bob");
            let (bob, _place, mut node) = node_apart(&world, &far, "bob", "ssh_port = 2222").await;
            let left = Behind::new(&world.lab, &world.switch, "alice", Router::masquerade);
            left.router.host().block(&Blocks::udp()).unwrap();
            let mut alice = world.member(left.machine, Place::new(), "alice").await;
            let to = node.status().await.network.unwrap().self_.unwrap().ipv4.parse().unwrap();
            first_answer(&alice.machine, to, Duration::from_secs(15));
            until_path(&mut alice, "bob", "ssh", Duration::from_secs(15)).await;
            let mut mallory = Machine::new(&world.switch, "mallory");
            let banner = b"SSH-2.0-OpenSSH_9.2\r\n";
            let kinds = vec![
                Manners::Silent,
                Manners::Says(banner.to_vec()),
                Manners::Says([&banner[..], &[0xff; 64]].concat()),
                Manners::Says([&banner[..], &[0, 0, 0x80, 0], &[0; 5_000]].concat()),
                Manners::Says(vec![b'x'; 70_000]),
                Manners::Says(b"GET / HTTP/1.1\r\n\r\n".to_vec()),
            ];
            let door = Door::Tcp(SocketAddr::new(far.host.ipv4().into(), 2222));
            let watched = Watched { pid: bob.pid(), door, traffic: (&mut alice, &mut far), to };
            besiege(watched, &mut mallory, kinds).await;
        });
    });
}

#[test]
fn strangers_at_the_link_socket_are_shut_out_and_slow_nobody_down() {
    in_sandbox(|| {
        block_on(async {
            let world = World::new().await;
            let mut far = Machine::new(&world.switch, "bob");
            let (bob, place, mut node) = node_apart(&world, &far, "bob", "").await;
            let socket = place.directory.path().join("link.sock");
            let left = Behind::new(&world.lab, &world.switch, "alice", Router::masquerade);
            let mut alices = Place::new();
            // Who logs in at an SSH server comes by that socket too. In a user namespace nobody can log in, nor is there a folder
            // that is safe from whoever owns the machine.
            assert!(
                privilege() == Some(Privilege::Root),
                "only for root; deploy/dev/test leaves it out by name"
            );
            let server = Sshd::start(&far, world.folder());
            alices.config.ssh = vec![server.road("bob", &far.host, &socket)];
            left.router.host().block(&Blocks::udp()).unwrap();
            let mut alice = world.member(left.machine, alices, "alice").await;
            let to = node.status().await.network.unwrap().self_.unwrap().ipv4.parse().unwrap();
            first_answer(&alice.machine, to, Duration::from_secs(15));
            until_path(&mut alice, "bob", "ssh", Duration::from_secs(15)).await;
            // They are on the same machine: the socket is a file.
            let mut mallory = Machine::new(&world.switch, "mallory");
            let kinds = vec![
                Manners::Silent,
                Manners::Says(frame(&false_initiation())),
                Manners::Says([&[0xff, 0xff][..], &[0; 9_300]].concat()),
                Manners::Says(frame(&[16, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0])),
                Manners::Says(frame(&[4; 200])),
                Manners::Says(vec![0; 50_000]),
            ];
            let door = Door::Unix(socket);
            let watched = Watched { pid: bob.pid(), door, traffic: (&mut alice, &mut far), to };
            besiege(watched, &mut mallory, kinds).await;
            assert_eq!(path_to(&mut alice, "bob").await, "ssh");
            // And a new link is let in.
            alice.node.stop().await.unwrap();
            let place = Arc::clone(&alice.place);
            alice.node = alice.machine.run(async move { place.start().await.unwrap() }).await;
            first_answer(&alice.machine, to, Duration::from_secs(15));
            until_path(&mut alice, "bob", "ssh", Duration::from_secs(15)).await;
        });
    });
}
