//! WebSockets over real TLS, through a real proxy, against servers good and bad.

use std::sync::Arc;

use futures_util::{SinkExt as _, StreamExt as _};
use ringmesh_tunnel::{Carrier, key::NodeId};
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy_bidirectional, duplex},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        protocol::Role,
    },
};

use super::*;
use crate::fallback::{
    link::{Ended, Opened, QUIET, SIGN_OF_LIFE_AFTER},
    websocket::{Proxies, RelaySocket, RelayUrl, SUBPROTOCOL, dial, pump},
};

const ASKED: DialOpen =
    DialOpen { peer: NodeId::from_bytes([7; 8]), candidate: 3, carrier: Carrier::WebSocket };

/// What a test's server does with a WebSocket handshake.
#[derive(Clone, Copy)]
enum Answer {
    Accept,
    WithoutSubprotocol,
    Status(u16),
}

fn acceptor(alpn: &[u8]) -> TlsAcceptor {
    let key = rcgen::KeyPair::generate().unwrap();
    // A name that nobody dialled: certificates are not judged.
    let certificate =
        rcgen::CertificateParams::new(vec!["wrong.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// A relay's front door on a free port: gives each WebSocket that it accepted.
async fn server(answer: Answer) -> (RelayUrl, mpsc::Receiver<WebSocketStream<TlsStream<TcpStream>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://{}/base/relay/v1", listener.local_addr().unwrap()).parse().unwrap();
    let (accepted, sockets) = mpsc::channel(8);
    let acceptor = acceptor(b"http/1.1");
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            #[allow(clippy::result_large_err, reason = "the library's signature")]
            let judge = move |request: &Request, response| judge(answer, request, response);
            if let Ok(socket) = accept_hdr_async(tls, judge).await {
                let _ = accepted.send(socket).await;
            }
        }
    });
    (url, sockets)
}

#[allow(clippy::result_large_err, reason = "the library's signature")]
fn judge(answer: Answer, request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    assert_eq!(request.uri().path(), "/base/relay/v1");
    assert_eq!(request.headers()["sec-websocket-protocol"], SUBPROTOCOL);
    assert!(!request.headers().contains_key("origin"), "a relay takes no browser's request");
    match answer {
        Answer::Accept => {
            response.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
            Ok(response)
        }
        Answer::WithoutSubprotocol => Ok(response),
        Answer::Status(status) => {
            let mut refusal = ErrorResponse::new(Some("no".to_owned()));
            *refusal.status_mut() = http::StatusCode::from_u16(status).unwrap();
            Err(refusal)
        }
    }
}

fn none() -> Proxies {
    Proxies::default()
}

/// A dialled link and the task that pumps it.
async fn carry(side: &mut Side, socket: RelaySocket) -> (Link, JoinHandle<Ended>) {
    let end = side.hub.open(ASKED);
    let link = end.link();
    assert!(matches!(side.arrival().await, Arrival::Opened { .. }));
    (link, tokio::spawn(async move { pump(socket, &end, Opened::Here).await }))
}

#[tokio::test]
async fn datagrams_cross_a_websocket_both_ways() {
    let (url, mut sockets) = server(Answer::Accept).await;
    let socket = dial(&url, &none(), None).await.unwrap();
    let (mut here, mut there) = (Side::new(), Side::new());
    let (link, _pump) = carry(&mut here, socket).await;
    let accepted = sockets.recv().await.unwrap();
    let end = there.hub.accept(Carrier::WebSocket);
    tokio::spawn(async move { pump(accepted, &end, Opened::There).await });
    exchange((&mut here, link), &mut there).await;
}

#[tokio::test]
async fn a_link_ends_when_the_relay_closes_and_the_relay_hears_when_the_node_does() {
    let (url, mut sockets) = server(Answer::Accept).await;
    let mut side = Side::new();
    let (link, pumped) = carry(&mut side, dial(&url, &none(), None).await.unwrap()).await;
    sockets.recv().await.unwrap().close(None).await.unwrap();
    assert!(matches!(pumped.await.unwrap(), Ended::Eof));
    side.closed(link).await;

    let (link, pumped) = carry(&mut side, dial(&url, &none(), None).await.unwrap()).await;
    let mut relay = sockets.recv().await.unwrap();
    side.links.dial(ringmesh_tunnel::Dial::Close { link });
    assert!(matches!(relay.next().await, Some(Ok(Message::Close(_)))));
    assert!(matches!(pumped.await.unwrap(), Ended::Closed));
}

/// A proxy that wants a password and connects to wherever it is told.
async fn proxy() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    asked.push(client.read_u8().await.unwrap());
                }
                let asked = String::from_utf8(asked).unwrap();
                // `me:secret`
                if !asked.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n") {
                    client.write_all(b"HTTP/1.1 407 No\r\n\r\n").await.unwrap();
                    return;
                }
                let port = asked.split([':', ' ']).nth(2).unwrap();
                let mut server = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
                client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_relay_is_reached_through_a_proxy_where_the_environment_says_so() {
    let (url, mut sockets) = server(Answer::Accept).await;
    let proxy = proxy().await;
    // A name that only the proxy can reach.
    let url: RelayUrl = url.to_string().replace("127.0.0.1", "relay.invalid").parse().unwrap();
    let through = |credentials: &str| {
        let value = format!("http://{credentials}127.0.0.1:{proxy}");
        Proxies::from_variables(|name| (name == "HTTPS_PROXY").then(|| value.clone()))
    };
    let refused = dial(&url, &through(""), None).await.unwrap_err();
    assert!(refused.to_string().contains("user name and password"), "{refused}");
    let refused = dial(&url, &none(), None).await.unwrap_err();
    assert!(refused.to_string().contains("TCP failed"), "{refused}");

    let socket = dial(&url, &through("me:secret@"), None).await.unwrap();
    let mut side = Side::new();
    let (link, _pump) = carry(&mut side, socket).await;
    side.send(link, &[vec![4; 100]]);
    let message = sockets.recv().await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(message.into_data()[..], [&[0, 100][..], &[4; 100]].concat());
}

#[tokio::test]
async fn what_is_no_relay_is_said_to_be_none() {
    for (answer, part) in [
        (Answer::WithoutSubprotocol, "does not speak ringmesh.relay.v1"),
        (Answer::Status(404), "a base path?"),
        (Answer::Status(426), "a proxy in front"),
        (Answer::Status(503), "full or busy"),
    ] {
        let (url, _sockets) = server(answer).await;
        let refused = dial(&url, &none(), None).await.unwrap_err();
        assert_eq!(refused.reason(), ringmesh_proto::control::Reason::Unreachable);
        assert!(refused.to_string().contains(part), "{refused}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: RelayUrl = format!("wss://{}/relay/v1", listener.local_addr().unwrap()).parse().unwrap();
    let plain = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        drop(tcp);
        drop(listener);
    });
    let refused = dial(&url, &none(), None).await.unwrap_err();
    assert!(refused.to_string().contains("TLS failed"), "{refused}");
    plain.await.unwrap();
    let refused = dial(&url, &none(), None).await.unwrap_err();
    assert!(refused.to_string().contains("TCP failed"), "{refused}");
}

#[tokio::test]
async fn a_relay_that_does_not_answer_costs_five_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: RelayUrl = format!("wss://{}/relay/v1", listener.local_addr().unwrap()).parse().unwrap();
    let begun = Instant::now();
    let refused = dial(&url, &none(), None).await.unwrap_err();
    assert!(refused.to_string().contains("no answer in 5 s"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(7));
}

#[tokio::test]
async fn what_is_not_made_of_whole_frames_ends_the_link() {
    let whole = [&[0, 4][..], b"good"].concat();
    let long = [&[0x24, 0x01][..], &[0; 9217]].concat();
    for message in [
        Message::binary(Vec::new()),
        Message::binary(vec![0]),
        Message::binary([&whole[..], &[0, 9, 1]].concat()),
        Message::binary([&whole[..], &[0, 0]].concat()),
        Message::binary(long),
        Message::text("good"),
        Message::binary(vec![0; 64 * 1024 + 1]),
    ] {
        let (one, two) = duplex(1 << 20);
        let mut side = Side::new();
        let (link, pumped) = bare(&mut side, one, Opened::There).await;
        side.links.confirm(link);
        let mut other = WebSocketStream::from_raw_socket(two, Role::Server, None).await;
        other.send(Message::binary(whole.clone())).await.unwrap();
        assert_eq!(side.datagrams(1).await.1, [b"good".to_vec()]);
        let shown = format!("{} bytes", message.len());
        let _ = other.send(message).await;
        let ended = timeout(SOON, pumped).await.unwrap().unwrap();
        assert!(matches!(ended, Ended::Frame(_) | Ended::Io(_)), "{shown}: {ended}");
        side.closed(link).await;
    }
}

/// A link over a WebSocket without TLS and TCP, so that time can be the test's.
async fn bare(side: &mut Side, stream: DuplexStream, opened: Opened) -> (Link, JoinHandle<Ended>) {
    let config = crate::fallback::websocket::config_of();
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, Some(config)).await;
    let end = side.hub.accept(Carrier::WebSocket);
    let link = end.link();
    assert!(side.links.receive().is_none());
    (link, tokio::spawn(async move { pump(socket, &end, opened).await }))
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_pings_and_one_without_any_answer_ends() {
    let (one, two) = duplex(1 << 16);
    let mut side = Side::new();
    let begun = Instant::now();
    let (link, pumped) = bare(&mut side, one, Opened::Here).await;
    side.links.used(link);
    let mut other = WebSocketStream::from_raw_socket(two, Role::Server, None).await;
    // Whoever reads answers pings: the link lives on.
    for _ in 0..6 {
        assert!(matches!(other.next().await, Some(Ok(Message::Ping(_)))));
    }
    assert_eq!(begun.elapsed().as_secs(), 6 * SIGN_OF_LIFE_AFTER.as_secs());
    assert!(!pumped.is_finished());
    let begun = Instant::now();
    assert!(matches!(pumped.await.unwrap(), Ended::Quiet));
    assert!(begun.elapsed() <= QUIET, "{:?}", begun.elapsed());
    side.closed(link).await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_only_sends_lives_by_the_answers_to_its_pings() {
    let (one, two) = duplex(1 << 16);
    let mut side = Side::new();
    let (link, pumped) = bare(&mut side, one, Opened::Here).await;
    let mut other = WebSocketStream::from_raw_socket(two, Role::Server, None).await;
    let reading =
        tokio::spawn(async move { while other.next().await.is_some_and(|message| message.is_ok()) {} });
    for _ in 0..5 * QUIET.as_secs() {
        side.send(link, &[vec![1; 100]]);
        sleep(Duration::from_secs(1)).await;
    }
    assert!(!pumped.is_finished());
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_leaves_in_messages_of_bounded_length() {
    let (one, two) = duplex(1 << 20);
    let mut side = Side::new();
    let (link, _pumped) = bare(&mut side, one, Opened::Here).await;
    let mut other = WebSocketStream::from_raw_socket(two, Role::Server, None).await;
    let all: Vec<_> = (0..150).map(|index| vec![index as u8; 1452]).collect();
    side.send(link, &all);
    let mut came = Vec::new();
    while came.len() < all.len() {
        let mut message = other.next().await.unwrap().unwrap().into_data().to_vec();
        assert!(message.len() <= 64 * 1024 && message.len() > 1454);
        let frames = ringmesh_relay::frame::frames_mut(&mut message);
        came.extend(frames.map(|datagram| datagram.unwrap().to_vec()));
    }
    assert!(came == all);
}
