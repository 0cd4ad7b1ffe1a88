//! Names of others, with resolvers that behave, misbehave, lie, or are this server itself.

use std::sync::Mutex;
use std::time::Instant;

use hickory_proto::rr::{
    RData, Record,
    rdata::{A, TXT},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use super::*;
use crate::dns::{
    Server,
    forward::{OUTSTANDING_MAX, SAME_MAX, Upstreams},
};

/// What a resolver does with a query: the messages it sends back, one after the other.
type Behaviour = dyn Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync;

/// A query, how it came, and from where.
type Heard = (Transport, Vec<u8>, SocketAddr);

/// A resolver on the loopback, by UDP and TCP, that keeps what it was asked.
struct Resolver {
    at: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    _tasks: JoinSet<()>,
}

impl Resolver {
    async fn new(by_udp: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let by_udp: Arc<Behaviour> = Arc::new(by_udp);
        Self::of(Arc::clone(&by_udp), by_udp).await
    }

    async fn of(by_udp: Arc<Behaviour>, by_tcp: Arc<Behaviour>) -> Self {
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            match TcpListener::bind(socket.local_addr().unwrap()).await {
                Ok(listener) => break (socket, listener),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
            }
        };
        let (at, heard) = (socket.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let mut tasks = JoinSet::new();
        let keep = Arc::clone(&heard);
        tasks.spawn(async move {
            let mut buffer = vec![0; 65_535];
            loop {
                let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
                keep.lock().unwrap().push((Transport::Udp, buffer[..len].to_vec(), from));
                for answer in by_udp(&buffer[..len]) {
                    // The asker may have enough.
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        let keep = Arc::clone(&heard);
        tasks.spawn(async move {
            loop {
                let (mut stream, from) = listener.accept().await.unwrap();
                let (keep, by_tcp) = (Arc::clone(&keep), Arc::clone(&by_tcp));
                tokio::spawn(async move {
                    let len = stream.read_u16().await?;
                    let mut message = vec![0; len.into()];
                    stream.read_exact(&mut message).await?;
                    keep.lock().unwrap().push((Transport::Tcp, message.clone(), from));
                    for answer in by_tcp(&message) {
                        stream.write_u16(answer.len() as u16).await?;
                        stream.write_all(&answer).await?;
                    }
                    stream.shutdown().await
                });
            }
        });
        Self { at, heard, _tasks: tasks }
    }

    /// One that answers every query with the address 192.0.2.`host`.
    async fn good(host: u8) -> Self {
        Self::new(move |query| vec![reply(query, host)]).await
    }

    /// One that never answers.
    async fn silent() -> Self {
        Self::new(|_| Vec::new()).await
    }

    fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }

    fn heard(&self) -> Vec<(Transport, Vec<u8>)> {
        self.heard.lock().unwrap().iter().map(|(how, message, _)| (*how, message.clone())).collect()
    }
}

/// An answer with one address.
fn reply(query: &[u8], host: u8) -> Vec<u8> {
    reply_with(query, |message| {
        let name = message.queries[0].name().clone();
        message.add_answer(Record::from_rdata(name, 300, RData::A(A([192, 0, 2, host].into()))));
    })
}

fn reply_with(query: &[u8], fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    fill(&mut message);
    message.to_vec().unwrap()
}

/// Many bytes of text, and as many again for every copy.
fn long(query: &[u8], copies: usize) -> Vec<u8> {
    reply_with(query, |message| {
        let name = message.queries[0].name().clone();
        let text = || RData::TXT(TXT::new(vec!["x".repeat(250)]));
        message.add_answers((0..copies).map(|_| Record::from_rdata(name.clone(), 300, text())));
    })
}

fn serve(upstreams: &[SocketAddr]) -> Server {
    let upstreams = Upstreams::new(watch::channel(upstreams.to_vec()).1);
    Server::start(&loopback(), published(), upstreams).unwrap()
}

async fn ask(server: &Server, message: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.bound()[0]).await.unwrap();
    socket.send(message).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let len = timeout(SOON, socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    buffer.truncate(len);
    buffer
}

async fn ask_by_tcp(server: &Server, message: &[u8]) -> Vec<u8> {
    let mut stream = tokio::net::TcpStream::connect(server.bound()[0]).await.unwrap();
    stream.write_u16(message.len() as u16).await.unwrap();
    stream.write_all(message).await.unwrap();
    let received = async {
        let len = stream.read_u16().await.unwrap();
        let mut message = vec![0; len.into()];
        stream.read_exact(&mut message).await.unwrap();
        message
    };
    timeout(SOON, received).await.expect("an answer")
}

fn question(name: &str) -> Vec<u8> {
    query(name, RecordType::A).to_vec().unwrap()
}

/// The last byte of the address that was answered.
fn host_of(answer: &[u8]) -> u8 {
    let answers = Message::from_vec(answer).unwrap().answers;
    let RData::A(A(address)) = answers[0].data else { panic!("{answers:?}") };
    address.octets()[3]
}

fn code_of(answer: &[u8]) -> ResponseCode {
    Message::from_vec(answer).unwrap().metadata.response_code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_and_its_answer_pass_as_they_are_but_for_the_id() {
    let resolver = Resolver::good(1).await;
    let server = serve(&[resolver.at]);
    // With things in it that we know nothing of, and a name in odd case.
    let mut asked = query_with("wWw.ExAmPlE.com.", RecordType::Unknown(65_280), |edns| {
        edns.set_max_payload(1400).set_dnssec_ok(true);
        edns.options_mut().insert(hickory_proto::rr::rdata::opt::EdnsOption::Unknown(65_001, vec![1, 2, 3]));
    });
    let mut ids = Vec::new();
    let mut ports = std::collections::BTreeSet::new();
    for id in 0..20_u16 {
        asked.metadata.id = id;
        let bytes = asked.to_vec().unwrap();
        for transport in [Transport::Udp, Transport::Tcp] {
            let answered = match transport {
                Transport::Udp => ask(&server, &bytes).await,
                Transport::Tcp => ask_by_tcp(&server, &bytes).await,
            };
            let (heard_by, heard) = resolver.heard().pop().unwrap();
            assert_eq!((heard_by, &heard[2..]), (transport, &bytes[2..]));
            let mut expected = reply(&heard, 1);
            expected[..2].copy_from_slice(&bytes[..2]);
            assert_eq!(answered, expected);
            ids.push([heard[0], heard[1]]);
            ports.insert(resolver.heard.lock().unwrap().last().unwrap().2.port());
        }
    }
    // Forty random numbers of sixteen bits: two of them alike now and then, but neither in order nor nearly all alike.
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() >= 35, "{ids:?}");
    assert!(ports.len() >= 30, "a port of its own for each: {ports:?}");
    let totals = server.report();
    assert_eq!(totals.answers[&(crate::dns::counters::By::Upstream, "NOERROR")], 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_names_never_leave_the_machine() {
    let resolver = Resolver::good(1).await;
    let server = serve(&[resolver.at]);
    for name in [
        "bob.mesh.",
        "nobody.mesh.",
        "MESH.",
        "x.y.z.mesh.",
        "9.9.9.100.in-addr.arpa.",
        "2.0.64.100.in-addr.arpa.",
        "1.2.3.64.100.in-addr.arpa.",
        "1.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.",
        "localhost.",
        "x.onion.",
        "x.invalid.",
    ] {
        if name == "9.9.9.100.in-addr.arpa." {
            // 100.9.9.9 is in nobody's pool: this one does leave.
            assert_eq!(host_of(&ask(&server, &question(name)).await), 1);
            continue;
        }
        ask(&server, &question(name)).await;
        ask_by_tcp(&server, &question(name)).await;
    }
    assert_eq!(resolver.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_a_network_that_uses_local_are_asked_for_as_before() {
    let resolver = Resolver::good(1).await;
    let server = serve(&[resolver.at]);
    assert_eq!(host_of(&ask(&server, &question("intranet.corp.local.")).await), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_resolver_is_asked_when_one_does_not_answer() {
    let (silent, good) = (Resolver::silent().await, Resolver::good(2).await);
    // Nobody listens at the first.
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = serve(&[closed, silent.at, good.at]);
    let began = Instant::now();
    assert_eq!(host_of(&ask(&server, &question("a.example.")).await), 2);
    let took = began.elapsed();
    assert!((Duration::from_millis(1_900)..Duration::from_secs(15)).contains(&took), "two seconds: {took:?}");
    // The one that answered is asked first for a while.
    assert_eq!(server.upstreams(), [good.at, closed, silent.at]);
    let began = Instant::now();
    assert_eq!(host_of(&ask(&server, &question("b.example.")).await), 2);
    assert!(began.elapsed() < Duration::from_millis(1_900));
    assert_eq!(silent.count(), 1);
    let found = server.query("c.example", "A").await.unwrap();
    assert_eq!((found.upstream, found.records[0].data.as_str()), (Some(good.at), "192.0.2.2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answering_is_a_failure_and_nobody_there_a_refusal() {
    let silent = Resolver::silent().await;
    let server = serve(&[silent.at]);
    let failed = ask(&server, &question("a.example.")).await;
    assert_eq!(code_of(&failed), ResponseCode::ServFail);
    assert_eq!(failed[..2], question("a.example.")[..2]);
    assert_eq!(server.report().refusals["no-reply"], 1);
    let server = serve(&[]);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::Refused);
    assert_eq!(server.report().refusals["no-upstream"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_three_resolvers_are_asked() {
    let mut resolvers = Vec::new();
    for _ in 0..4 {
        resolvers.push(
            Resolver::new(|query| {
                vec![reply_with(query, |message| message.metadata.response_code = ResponseCode::ServFail)]
            })
            .await,
        );
    }
    let list: Vec<SocketAddr> = resolvers.iter().map(|resolver| resolver.at).collect();
    let server = serve(&list);
    assert_eq!(server.upstreams(), list[..3]);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::ServFail);
    let heard: Vec<usize> = resolvers.iter().map(|resolver| resolver.count()).collect();
    assert_eq!(heard, [1, 1, 1, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resolver_that_fails_is_believed_only_if_no_other_knows() {
    let of = |code: ResponseCode| {
        Resolver::new(move |query| vec![reply_with(query, |message| message.metadata.response_code = code)])
    };
    let (refusing, failing) = (of(ResponseCode::Refused).await, of(ResponseCode::ServFail).await);
    let (denying, good) = (of(ResponseCode::NXDomain).await, Resolver::good(3).await);
    let server = serve(&[refusing.at, failing.at, good.at]);
    assert_eq!(host_of(&ask(&server, &question("a.example.")).await), 3);
    let server = serve(&[refusing.at, failing.at]);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::Refused);
    // That there is no such name is an answer.
    let server = serve(&[denying.at, good.at]);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::NXDomain);
}

/// What a resolver sends instead of an answer, or before it.
fn lies(query: &[u8]) -> Vec<Vec<u8>> {
    let honest = reply(query, 66);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut answer = honest.clone();
        change(&mut answer);
        answer
    };
    vec![
        changed(&|answer| answer[0] ^= 1),
        changed(&|answer| answer[1] ^= 0x80),
        // Another name, type, class.
        changed(&|answer| answer[14] ^= 1),
        changed(&|answer| answer[query.len() - 3] = 28),
        changed(&|answer| answer[query.len() - 1] = 3),
        // A query, another operation, two questions, none, cut off, nothing.
        changed(&|answer| answer[2] &= 0x7f),
        changed(&|answer| answer[2] |= 0x20),
        changed(&|answer| answer[5] = 2),
        changed(&|answer| answer[5] = 0),
        changed(&|answer| answer.truncate(query.len() - 1)),
        changed(&|answer| answer.truncate(11)),
        Vec::new(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_another_question_is_not_believed() {
    let before: Arc<Behaviour> = Arc::new(|query| [lies(query), vec![reply(query, 4)]].concat());
    let resolver = Resolver::of(Arc::clone(&before), before).await;
    let server = serve(&[resolver.at]);
    for name in ["a.example.", "b.example."] {
        assert_eq!(host_of(&ask(&server, &question(name)).await), 4);
        assert_eq!(host_of(&ask_by_tcp(&server, &question(name)).await), 4);
    }
    // Lies alone are no answer.
    let lying: Arc<Behaviour> = Arc::new(lies);
    let resolver = Resolver::of(Arc::clone(&lying), lying).await;
    let server = serve(&[resolver.at]);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::ServFail);
    assert_eq!(code_of(&ask_by_tcp(&server, &question("a.example.")).await), ResponseCode::ServFail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_from_another_address_is_not_believed() {
    // Who hears the query answers it at once from another port, and only later from the right one.
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 600];
        let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
        for liar in [&stranger, &elsewhere] {
            liar.send_to(&reply(&buffer[..len], 66), from).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        socket.send_to(&reply(&buffer[..len], 5), from).await.unwrap();
    });
    let server = serve(&[at]);
    assert_eq!(host_of(&ask(&server, &question("a.example.")).await), 5);
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_lies_ends_a_try_before_its_time() {
    let liar = Resolver::new(|query| (0..4).flat_map(|_| lies(query)).collect()).await;
    let good = Resolver::good(6).await;
    let server = serve(&[liar.at, good.at]);
    let began = Instant::now();
    assert_eq!(host_of(&ask(&server, &question("a.example.")).await), 6);
    assert!(began.elapsed() < Duration::from_millis(1_900), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_is_not_understood_may_come_back_without_itself() {
    let resolver = Resolver::new(|query| {
        let mut answer = query[..12].to_vec();
        answer[2] |= 0x80;
        answer[3] = 1;
        answer[4..].fill(0);
        vec![answer]
    })
    .await;
    let server = serve(&[resolver.at]);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::FormErr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_answer_is_asked_for_by_tcp_if_the_asker_takes_more() {
    let cut = |query: &[u8]| {
        let mut answer = reply_with(query, |message| message.metadata.truncation = true);
        answer.truncate(query.len());
        vec![answer]
    };
    let resolver = Resolver::of(Arc::new(cut), Arc::new(|query: &[u8]| vec![long(query, 10)])).await;
    let server = serve(&[resolver.at]);
    // Who takes no more than goes by UDP anyway is told that it was cut, and asks again by TCP.
    for size in [None, Some(1232)] {
        let asked = match size {
            Some(size) => query_with("a.example.", RecordType::TXT, |edns| {
                edns.set_max_payload(size);
            }),
            None => query("a.example.", RecordType::TXT),
        }
        .to_vec()
        .unwrap();
        let answered = Message::from_vec(&ask(&server, &asked).await).unwrap();
        assert!(answered.metadata.truncation && answered.answers.is_empty());
        assert_eq!(Message::from_vec(&ask_by_tcp(&server, &asked).await).unwrap().answers.len(), 10);
    }
    let asked = |size: u16| {
        query_with("a.example.", RecordType::TXT, |edns| {
            edns.set_max_payload(size);
        })
        .to_vec()
        .unwrap()
    };
    let answered = Message::from_vec(&ask(&server, &asked(4096)).await).unwrap();
    assert!(!answered.metadata.truncation);
    assert_eq!(answered.answers.len(), 10);
    // Longer than even that asker takes: as cut as it was.
    let answered = Message::from_vec(&ask(&server, &asked(2000)).await).unwrap();
    assert!(answered.metadata.truncation && answered.answers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_longer_than_asked_for_is_cut_short() {
    let resolver = Resolver::new(|query| vec![long(query, 10)]).await;
    let server = serve(&[resolver.at]);
    let asked = query("a.example.", RecordType::TXT).to_vec().unwrap();
    let answered = ask(&server, &asked).await;
    assert_eq!(answered.len(), asked.len());
    let answered = Message::from_vec(&answered).unwrap();
    assert!(answered.metadata.truncation && answered.answers.is_empty());
    assert_eq!(Message::from_vec(&ask_by_tcp(&server, &asked).await).unwrap().answers.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_server_is_never_its_own_resolver() {
    let (publish, list) = watch::channel(Vec::new());
    let server = Server::start(&loopback(), published(), Upstreams::new(list)).unwrap();
    let own = server.bound().to_vec();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", own[0].port()).parse().unwrap();
    let everywhere = ["0.0.0.0", "::"].map(|ip| SocketAddr::new(ip.parse().unwrap(), own[0].port()));
    let odd: [SocketAddr; 2] = ["224.0.0.251:5353".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
    publish.send_replace([&own[..], &[mapped], &everywhere, &odd].concat());
    assert_eq!(server.upstreams(), []);
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::Refused);
    // Another server on this machine is one like any other; each is asked once.
    let good = Resolver::good(7).await;
    publish.send_replace(vec![own[0], good.at, own[1], good.at]);
    assert_eq!(server.upstreams(), [good.at]);
    assert_eq!(host_of(&ask(&server, &question("a.example.")).await), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circle_of_resolvers_ends_at_once() {
    // A resolver that asks us whatever we ask it: each of them would wait for the other for ever.
    let (publish, list) = watch::channel(Vec::new());
    let server = Server::start(&loopback(), published(), Upstreams::new(list)).unwrap();
    let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (at, back) = (other.local_addr().unwrap(), server.bound()[0]);
    let asked_back = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&asked_back);
    let circle = tokio::spawn(async move {
        let other = Arc::new(other);
        let mut buffer = [0; 600];
        loop {
            let (len, from) = other.recv_from(&mut buffer).await.unwrap();
            let (message, other, counter) =
                (buffer[..len].to_vec(), Arc::clone(&other), Arc::clone(&counter));
            tokio::spawn(async move {
                *counter.lock().unwrap() += 1;
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(&message, back).await.unwrap();
                let mut buffer = [0; 600];
                let len = socket.recv(&mut buffer).await.unwrap();
                other.send_to(&buffer[..len], from).await.unwrap();
            });
        }
    });
    publish.send_replace(vec![at]);
    let began = Instant::now();
    assert_eq!(code_of(&ask(&server, &question("a.example.")).await), ResponseCode::ServFail);
    assert!(began.elapsed() < Duration::from_millis(1_900), "{:?}", began.elapsed());
    assert_eq!((*asked_back.lock().unwrap(), server.report().refusals["repeated"]), (SAME_MAX, 1));
    circle.abort();
    // It is over: the next one finds all places free.
    let good = Resolver::good(8).await;
    publish.send_replace(vec![good.at]);
    assert_eq!(host_of(&ask(&server, &question("a.example.")).await), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_queries_wait_than_there_are_places() {
    let silent = Resolver::silent().await;
    let server = serve(&[silent.at]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(server.bound()[0]).await.unwrap();
    let beyond = 20;
    let began = Instant::now();
    // A few are in before the next ones come: nothing is dropped on the way.
    for host in 1..=OUTSTANDING_MAX {
        socket.send(&question(&format!("x{host}.example."))).await.unwrap();
        while host % 32 == 0 && silent.count() < host {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(began.elapsed() < SOON);
        }
    }
    assert!(began.elapsed() < Duration::from_millis(1_900), "too slow: the first place is free again");
    let mut buffer = [0; 600];
    for host in 0..beyond {
        socket.send(&question(&format!("y{host}.example."))).await.unwrap();
        let len = timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(code_of(&buffer[..len]), ResponseCode::ServFail);
    }
    assert_eq!((server.report().refusals["busy"], silent.count()), (beyond, OUTSTANDING_MAX));
    // Our own names are answered all the same.
    assert_eq!(code_of(&ask(&server, &question("bob.mesh.")).await), ResponseCode::NoError);
    for _ in 0..OUTSTANDING_MAX {
        timeout(SOON, socket.recv(&mut buffer)).await.unwrap().unwrap();
    }
    assert_eq!(server.report().refusals["no-reply"], OUTSTANDING_MAX as u64);
    assert_eq!(code_of(&ask(&server, &question("z.example.")).await), ResponseCode::ServFail);
    assert_eq!(silent.count(), OUTSTANDING_MAX + 1);
}
