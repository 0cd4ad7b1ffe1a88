//! The server by real sockets: UDP, TCP, limits, start and stop.

use std::net::{TcpStream, UdpSocket};
use std::time::Instant;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use super::*;
use crate::dns::{Server, forward::Upstreams, server::Machine, tcp::CONNECTIONS_MAX};

fn start() -> Server {
    Server::start(&loopback(), published(), Upstreams::none()).unwrap()
}

/// Asks by UDP from a socket of its own.
async fn by_udp(server: SocketAddr, message: &[u8]) -> Vec<u8> {
    let socket = tokio::net::UdpSocket::bind((server.ip(), 0)).await.unwrap();
    socket.send_to(message, server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let (len, from) = timeout(SOON, socket.recv_from(&mut buffer)).await.expect("an answer").unwrap();
    assert_eq!(from, server, "the answer comes from where the question went");
    buffer.truncate(len);
    buffer
}

struct Connection(tokio::net::TcpStream);

impl Connection {
    async fn to(server: SocketAddr) -> Self {
        Self(tokio::net::TcpStream::connect(server).await.unwrap())
    }

    async fn send(&mut self, message: &[u8]) {
        let len = u16::try_from(message.len()).unwrap();
        self.0.write_all(&[&len.to_be_bytes()[..], message].concat()).await.unwrap();
    }

    async fn receive(&mut self) -> Vec<u8> {
        let received = async {
            let len = self.0.read_u16().await.unwrap();
            let mut message = vec![0; len.into()];
            self.0.read_exact(&mut message).await.unwrap();
            message
        };
        timeout(SOON, received).await.expect("an answer")
    }

    /// Waits for the end of the connection, and tells what came before.
    async fn end(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = timeout(SOON, self.0.read_to_end(&mut rest)).await.expect("the connection ends");
        rest
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_are_answered_by_udp_and_tcp_in_both_families() {
    let server = start();
    let bound = server.bound().to_vec();
    assert!(
        bound.len() == 2 && bound[0].is_ipv4() && bound[1].is_ipv6() && bound.iter().all(|at| at.port() != 0)
    );
    let message = query_with("bob.mesh.", RecordType::A, |_| ()).to_vec().unwrap();
    let expected = answer_bytes(&message, Transport::Udp);
    for at in bound {
        assert_eq!(by_udp(at, &message).await, expected);
        let mut connection = Connection::to(at).await;
        connection.send(&message).await;
        assert_eq!(connection.receive().await, expected);
    }
    let totals = server.report().totals();
    assert_eq!(totals.into_iter().collect::<Vec<_>>(), [("NOERROR".to_owned(), 4)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_by_hand_goes_the_way_of_a_packet() {
    let server = start();
    let found = server.query("Bob.mesh", "a").await.unwrap();
    assert_eq!((found.code.as_str(), found.upstream), ("NOERROR", None));
    let record = &found.records[0];
    assert_eq!((record.name.as_str(), record.kind.as_str(), record.ttl), ("Bob.mesh", "A", 10));
    assert_eq!(record.data, "100.64.0.2");
    assert_eq!(server.query("many.mesh.", "AAAA").await.unwrap().records.len(), 16);
    let pointer = server.query("2.0.64.100.in-addr.arpa", "PTR").await.unwrap();
    assert_eq!(pointer.records[0].data, "bob.mesh.");
    let nobody = server.query("nobody.mesh", "AAAA").await.unwrap();
    assert_eq!((nobody.code.as_str(), nobody.records.len()), ("NXDOMAIN", 0));
    // Nobody is there to be asked for others' names.
    assert_eq!(server.query("example.com", "A").await.unwrap().code, "REFUSED");
    for (name, kind) in [("a..b", "A"), (&"x".repeat(64), "A"), ("bob.mesh", "NONSENSE"), ("bob.mesh", "")] {
        let refused = server.query(name, kind).await.unwrap_err();
        assert_eq!(refused.reason(), ringmesh_proto::control::Reason::InvalidArgument, "{refused}");
    }
    let report = server.report();
    assert_eq!(report.refusals["no-upstream"], 1);
    let totals = report.totals();
    assert_eq!((totals["NOERROR"], totals["NXDOMAIN"], totals["REFUSED"]), (3, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_zone_is_answered_from_at_once() {
    let (publish, zone) = watch::channel(Arc::new(Zone::default()));
    let server = Server::start(&loopback(), zone, Upstreams::none()).unwrap();
    assert_eq!(server.query("bob.mesh", "A").await.unwrap().code, "REFUSED");
    publish.send_replace(Arc::new(super::zone()));
    assert_eq!(server.query("bob.mesh", "A").await.unwrap().code, "NOERROR");
    publish.send_replace(Arc::new(Zone::default()));
    let message = query("bob.mesh.", RecordType::A).to_vec().unwrap();
    let answered = Message::from_vec(&by_udp(server.bound()[0], &message).await).unwrap();
    assert_eq!(answered.metadata.response_code, ResponseCode::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_query_gets_nothing_by_udp() {
    let server = start();
    let at = server.bound()[0];
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = query("bob.mesh.", RecordType::A).to_vec().unwrap();
    let mut response = good.clone();
    response[2] |= 0x80;
    for silent in [&[][..], &good[..11], &response] {
        socket.send_to(silent, at).await.unwrap();
    }
    // Answers keep the order of their questions: the only one there is, is to the last.
    socket.send_to(&good, at).await.unwrap();
    let mut buffer = [0; 600];
    let len = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(buffer[..len], answer_bytes(&good, Transport::Udp));
    let report = server.report();
    assert_eq!((report.refusals["no-header"], report.refusals["response"]), (2, 1));
    assert_eq!(report.totals()["NOERROR"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_queries_on_one_connection_are_all_answered() {
    let server = start();
    let mut connection = Connection::to(server.bound()[0]).await;
    // All in one write, and their pieces one by one.
    let mut all = Vec::new();
    for id in 0..200_u16 {
        let mut message = query("bob.mesh.", RecordType::A);
        message.metadata.id = id;
        let message = message.to_vec().unwrap();
        all.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        all.extend(message);
    }
    connection.0.write_all(&all).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..200 {
        ids.push(Message::from_vec(&connection.receive().await).unwrap().metadata.id);
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
    for byte in &all[..60] {
        connection.0.write_all(&[*byte]).await.unwrap();
        connection.0.flush().await.unwrap();
    }
    assert_eq!(Message::from_vec(&connection.receive().await).unwrap().metadata.id, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asker_who_closes_his_side_still_gets_his_answers() {
    let server = start();
    let mut connection = Connection::to(server.bound()[1]).await;
    let message = query("bob.mesh.", RecordType::AAAA).to_vec().unwrap();
    connection.send(&message).await;
    connection.0.shutdown().await.unwrap();
    assert_eq!(connection.receive().await, answer_bytes(&message, Transport::Tcp));
    assert_eq!(connection.end().await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_asks_nothing_good_is_closed() {
    let server = start();
    let at = server.bound()[0];
    let good = query("bob.mesh.", RecordType::A).to_vec().unwrap();
    let mut response = good.clone();
    response[2] |= 0x80;
    // Longer than a query may be; no header; an answer.
    for bytes in
        [vec![0x10, 0x01], vec![0, 0], vec![0, 3, 1, 2, 3], [&[0, good.len() as u8][..], &response].concat()]
    {
        let mut connection = Connection::to(at).await;
        connection.0.write_all(&bytes).await.unwrap();
        assert_eq!(connection.end().await, [0; 0], "{bytes:?}");
    }
    assert_eq!(server.report().refusals["too-long"], 1);
    let mut connection = Connection::to(at).await;
    connection.send(&good).await;
    connection.receive().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_or_trickling_connection_ends_after_five_seconds() {
    let server = start();
    let at = server.bound()[0];
    let (idle, mut trickling) = (Connection::to(at).await, Connection::to(at).await);
    let began = Instant::now();
    let trickle = async {
        // A byte now and then does not keep it alive: a whole query would.
        let mut sent = 0;
        while trickling.0.write_all(if sent == 0 { &[4] } else { &[0] }).await.is_ok() {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert!(began.elapsed() < SOON, "{sent} bytes");
        }
        began.elapsed()
    };
    let idle = async {
        idle.end().await;
        began.elapsed()
    };
    let (trickle, idle) = tokio::join!(trickle, idle);
    for took in [trickle, idle] {
        assert!((Duration::from_secs(4)..Duration::from_secs(15)).contains(&took), "{took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_most_wait_for_a_place() {
    let server = start();
    let at = server.bound()[0];
    let message = query("bob.mesh.", RecordType::A).to_vec().unwrap();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut connection = Connection::to(at).await;
        connection.send(&message).await;
        connection.receive().await;
        held.push(connection);
    }
    let mut late = Connection::to(at).await;
    late.send(&message).await;
    let waiting = timeout(Duration::from_millis(300), late.0.read_u16()).await;
    assert!(waiting.is_err(), "answered beyond the most");
    // UDP has nothing to do with it.
    by_udp(at, &message).await;
    drop(held.pop());
    assert_eq!(late.receive().await, answer_bytes(&message, Transport::Tcp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_server_leaves_its_port_to_the_next() {
    let server = start();
    let bound = server.bound().to_vec();
    let mut connection = Connection::to(bound[0]).await;
    let message = query("bob.mesh.", RecordType::A).to_vec().unwrap();
    connection.send(&message).await;
    connection.receive().await;
    server.stop().await;
    assert_eq!(connection.end().await, [0; 0]);
    let again = Server::start(&bound, published(), Upstreams::none()).unwrap();
    assert_eq!(again.bound(), bound);
    by_udp(bound[1], &message).await;
    drop(again);
    // Dropped is stopped as well, as soon as its tasks were told.
    let free = async {
        while UdpSocket::bind(bound[0]).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, free).await.expect("the port is free");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_cure() {
    let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let refused = Server::start(&[taken], published(), Upstreams::none()).unwrap_err();
    let said = refused.to_string();
    assert!(
        said.contains(&taken.to_string()) && said.contains("another DNS server") && said.contains("[dns]"),
        "{said}"
    );
    // And by TCP, where the port was given and is free by UDP only.
    drop(holder);
    let holder = std::net::TcpListener::bind(taken).unwrap();
    let refused = Server::start(&[taken], published(), Upstreams::none()).unwrap_err();
    assert!(refused.to_string().contains("another DNS server"), "{refused}");
    drop(holder);
}

#[tokio::test]
async fn a_server_for_everybody_is_refused() {
    for everybody in ["0.0.0.0:0", "[::]:0", "224.0.0.251:0"] {
        let refused =
            Server::start(&[everybody.parse().unwrap()], published(), Upstreams::none()).unwrap_err();
        assert_eq!(refused.reason(), ringmesh_proto::control::Reason::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn an_address_that_comes_later_can_be_listened_at() {
    for later in ["192.0.2.77:0", "[2001:db8::77]:0"] {
        let server = Server::start(&[later.parse().unwrap()], published(), Upstreams::none()).unwrap();
        assert!(server.bound()[0].port() != 0);
    }
}

#[test]
fn the_machine_asks_from_where_it_is_answered_or_from_loopback() {
    let machine = Machine::new(&["100.64.0.1:53".parse().unwrap(), "[fd00:1::1]:53".parse().unwrap()]);
    for own in ["100.64.0.1", "fd00:1::1", "127.0.0.1", "127.8.8.8", "::1"] {
        assert!(machine.has(own.parse().unwrap()), "{own}");
    }
    for other in ["100.64.0.2", "fd00:1::2", "192.168.1.5", "0.0.0.0", "::", "::ffff:100.64.0.2", "8.8.8.8"] {
        assert!(!machine.has(other.parse().unwrap()), "{other}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_rubbish_does_not_keep_a_query_from_its_answer() {
    let server = start();
    let at = server.bound()[0];
    let flood = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut seed = 1_u32;
        let mut rubbish = [0; 300];
        for _ in 0..20_000 {
            for byte in &mut rubbish {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = (seed >> 24) as u8;
            }
            let len = (seed >> 8) as usize % rubbish.len();
            // A full buffer of the server's refuses nothing on a loopback: it drops.
            socket.send_to(&rubbish[..len], at).unwrap();
        }
        let _ = TcpStream::connect(at).map(|mut stream| std::io::Write::write_all(&mut stream, &rubbish));
    });
    let message = query("bob.mesh.", RecordType::A).to_vec().unwrap();
    let expected = answer_bytes(&message, Transport::Udp);
    while !flood.is_finished() {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 600];
        // What a full buffer drops is asked again, as programs do.
        let asked = async {
            loop {
                socket.send_to(&message, at).await.unwrap();
                if let Ok(received) = timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await {
                    return received.unwrap();
                }
            }
        };
        let len = timeout(SOON, asked).await.expect("an answer in the flood");
        assert_eq!(buffer[..len], expected);
    }
    flood.await.unwrap();
}
