//! Strangers on the network, in namespaces of their own: they learn nothing, not even that somebody listens.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::process::Stdio;

use ringmesh_lab::{Capture, Captured, Host, Lab, in_sandbox};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::dns::{Server, forward::Upstreams};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// A host that answers on its addresses and asks a resolver for other names.
struct Node {
    host: Host,
    runtime: Runtime,
    server: Server,
}

impl Node {
    fn new(host: Host, upstreams: Vec<SocketAddr>) -> Self {
        let listen = [SocketAddr::new(host.ipv4().into(), 53), SocketAddr::new(host.ipv6().into(), 53)];
        let (runtime, server) = host
            .enter(|| {
                let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
                let _entered = runtime.enter();
                let upstreams = Upstreams::new(watch::channel(upstreams).1);
                let server = Server::start(&listen, published(), upstreams).unwrap();
                (runtime, server)
            })
            .unwrap();
        assert_eq!(server.bound(), listen);
        Self { host, runtime, server }
    }

    fn stop(self) {
        let Self { runtime, server, .. } = self;
        runtime.block_on(server.stop());
    }
}

/// Asks by UDP from a socket bound to `from`; `None` if nothing comes within a short time.
fn by_udp(from: impl Into<IpAddr>, to: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((from.into(), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    socket.send_to(message, to).unwrap();
    let mut buffer = [0; 1500];
    // An error would be a word of the other side too, that nobody listens there: it must not come.
    match socket.recv(&mut buffer) {
        Ok(len) => Some(buffer[..len].to_vec()),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// Asks by TCP; `None` if there is not even a handshake.
fn by_tcp(to: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
    let mut stream = match TcpStream::connect_timeout(&to, Duration::from_millis(700)) {
        Ok(stream) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => return None,
        Err(error) => panic!("{error}"),
    };
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&[&(message.len() as u16).to_be_bytes()[..], message].concat()).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut answer).unwrap();
    Some(answer)
}

/// What a host sent: protocol and port of each packet from one of its addresses, without what finds neighbours.
fn sent_by(captured: &Captured, host: &Host) -> Vec<(u8, u16)> {
    assert_eq!(captured.dropped(), 0);
    captured.frames().filter_map(|frame| sent(frame, host.ipv4(), host.ipv6())).collect()
}

fn sent(frame: &[u8], ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Option<(u8, u16)> {
    let (kind, packet) = (frame.get(12..14)?, frame.get(14..)?);
    let (protocol, from, payload) = match kind {
        [0x08, 0x00] => {
            (packet[9], IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap()), &packet[20..])
        }
        [0x86, 0xdd] => {
            (packet[6], IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).unwrap()), &packet[40..])
        }
        _ => return None,
    };
    let finds_neighbours = protocol == ICMPV6 && (130..=143).contains(&payload[0]);
    let is_his = from == ipv4 || from == ipv6;
    (is_his && !finds_neighbours).then(|| match protocol {
        TCP | UDP => (protocol, u16::from_be_bytes([payload[0], payload[1]])),
        _ => (protocol, 0),
    })
}

#[test]
fn a_stranger_gets_nothing_and_the_machine_everything() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        let alice = Node::new(alice, Vec::new());
        let known = query("bob.mesh.", RecordType::A).to_vec().unwrap();
        let foreign = query("www.example.com.", RecordType::A).to_vec().unwrap();
        let servers = alice.server.bound().to_vec();
        let (own4, own6) = (IpAddr::from(alice.host.ipv4()), IpAddr::from(alice.host.ipv6()));

        // Neighbours know each other, and a port where nobody listens says so: the road is open.
        let refused = bob.enter(|| TcpStream::connect((own4, 54)).unwrap_err()).unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let capture = Capture::start(&alice.host, "eth0").unwrap();
        bob.enter(|| {
            for server in &servers {
                for message in [&known, &foreign, &known[..5].to_vec(), &vec![0xff; 1200]] {
                    let any: IpAddr = if server.is_ipv4() {
                        Ipv4Addr::UNSPECIFIED.into()
                    } else {
                        Ipv6Addr::UNSPECIFIED.into()
                    };
                    assert_eq!(by_udp(any, *server, message), None);
                }
                assert_eq!(by_tcp(*server, &known), None);
            }
        })
        .unwrap();
        // The machine itself, from either family, and by its loopback.
        alice
            .host
            .enter(|| {
                for (server, own) in servers.iter().zip([own4, own6]) {
                    assert_eq!(by_udp(own, *server, &known).unwrap(), answer_bytes(&known, Transport::Udp));
                    assert_eq!(by_tcp(*server, &known).unwrap(), answer_bytes(&known, Transport::Tcp));
                }
                assert!(by_udp(Ipv4Addr::LOCALHOST, servers[0], &known).is_some());
            })
            .unwrap();
        let captured = capture.stop().unwrap();
        assert!(captured.count(b"\x03bob\x04mesh") >= 2, "the strangers' queries were on the wire");
        assert_eq!(sent_by(&captured, &alice.host), [], "not a byte left the machine");
        let report = alice.server.report();
        // The kernel kept them out: the server did not see one of them.
        assert_eq!((report.refusals["stranger"], report.refusals["no-header"]), (0, 0));
        assert_eq!(report.totals()["NOERROR"], 5);
        alice.stop();
    });
}

#[test]
fn another_address_of_the_machine_is_not_answered() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let alice = Node::new(switch.host("alice").unwrap(), Vec::new());
        let other: [IpAddr; 2] = ["192.168.55.1".parse().unwrap(), "fd55::1".parse().unwrap()];
        alice.host.add_address("lo", other[0], 32).unwrap();
        alice.host.add_address("lo", other[1], 128).unwrap();
        let known = query("bob.mesh.", RecordType::A).to_vec().unwrap();
        let capture = Capture::start(&alice.host, "lo").unwrap();
        alice
            .host
            .enter(|| {
                for (server, other) in alice.server.bound().iter().zip(other) {
                    // Another who shares the machine, a container say, comes from such an address.
                    assert_eq!(by_udp(other, *server, &known), None);
                }
            })
            .unwrap();
        let captured = capture.stop().unwrap();
        assert!(captured.count(b"\x03bob\x04mesh") > 0);
        assert_eq!(sent_by(&captured, &alice.host), []);
        assert_eq!(alice.server.report().refusals["stranger"], 2);
        alice.stop();
    });
}

#[test]
fn a_forged_source_makes_nobody_ask_for_it() {
    in_sandbox(|| {
        let lab = Lab::new().unwrap();
        let switch = lab.switch().unwrap();
        let (alice, bob) = (switch.host("alice").unwrap(), switch.host("bob").unwrap());
        let resolver = SilentResolver::new(&bob);
        let alice = Node::new(alice, vec![resolver.at]);
        // Bob writes alice's own addresses as the sender: she would answer herself, and ask him on his behalf.
        for interface in ["all", "default", "eth0"] {
            alice.host.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
            alice.host.sysctl(&format!("net/ipv4/conf/{interface}/accept_local"), "1").unwrap();
        }
        let (own4, own6) = (IpAddr::from(alice.host.ipv4()), IpAddr::from(alice.host.ipv6()));
        let foreign = query("www.example.com.", RecordType::A).to_vec().unwrap();
        // Who she is on the link, before her addresses are taken for one's own.
        assert!(
            bob.command("ping")
                .unwrap()
                .args(["-n", "-c1", "-W5", &own4.to_string()])
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        // Anybody's socket beside the server's gets them: they do come in.
        let plain = [own4, own6].map(|own| alice.host.enter(|| UdpSocket::bind((own, 54))).unwrap().unwrap());
        bob.enter(|| {
            for (family, own) in [(socket2::Domain::IPV4, own4), (socket2::Domain::IPV6, own6)] {
                let socket = socket2::Socket::new(family, socket2::Type::DGRAM, None).unwrap();
                if own.is_ipv4() {
                    socket.set_ip_transparent_v4(true).unwrap();
                } else {
                    socket.set_freebind_v6(true).unwrap();
                }
                socket.bind(&SocketAddr::new(own, 4053).into()).unwrap();
                for port in [53, 54] {
                    socket.send_to(&foreign, &SocketAddr::new(own, port).into()).unwrap();
                }
            }
        })
        .unwrap();
        for (socket, own) in plain.iter().zip([own4, own6]) {
            socket.set_read_timeout(Some(SOON)).unwrap();
            let (len, from) = socket.recv_from(&mut [0; 1500]).unwrap();
            assert_eq!((len, from), (foreign.len(), SocketAddr::new(own, 4053)));
        }
        // A query of her own, after which the forged ones would have been seen.
        let asked = alice.host.enter(|| by_udp(own4, SocketAddr::new(own4, 53), &foreign)).unwrap();
        assert_eq!(asked, None, "the resolver is silent, and it takes two seconds to say so");
        assert_eq!(resolver.heard(), 1, "only the machine's own query was passed on");
        alice.stop();
    });
}

/// A resolver that never answers.
struct SilentResolver {
    at: SocketAddr,
    socket: UdpSocket,
}

impl SilentResolver {
    fn new(host: &Host) -> Self {
        let at = SocketAddr::new(host.ipv4().into(), 53);
        let socket = host.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        Self { at, socket }
    }

    /// How many queries came.
    fn heard(&self) -> usize {
        let mut buffer = [0; 1500];
        std::iter::from_fn(|| self.socket.recv(&mut buffer).ok()).count()
    }
}

#[test]
fn what_a_host_sent_is_found_in_a_capture() {
    let mut frame = vec![0; 14 + 20 + 8];
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14 + 9] = ICMP;
    frame[14 + 12..14 + 16].copy_from_slice(&[10, 0, 0, 1]);
    assert_eq!(sent(&frame, [10, 0, 0, 1].into(), Ipv6Addr::LOCALHOST), Some((ICMP, 0)));
    assert_eq!(sent(&frame, [10, 0, 0, 2].into(), Ipv6Addr::LOCALHOST), None);
    frame[14 + 9] = UDP;
    frame[14 + 20..14 + 22].copy_from_slice(&[0, 53]);
    assert_eq!(sent(&frame, [10, 0, 0, 1].into(), Ipv6Addr::LOCALHOST), Some((UDP, 53)));
}
