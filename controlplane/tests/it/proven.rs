//! What somebody who proved himself can make a coordinator hold: messages, connections, places.

use std::time::Duration;

use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use ringmesh_controlplane::server::{Limits, MAX_NODE_MESSAGE};
use ringmesh_proto::admin::{ApiKeyRole, RevokeApiKeyRequest};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::codegen::Bytes;

use crate::{access::wish, flood, harness::Assembled, json::http1};

const ENROLL: &str = "/ringmesh.control.v1.ControlService/Enroll";
const LIST: &str = "/ringmesh.admin.v1.NodeService/ListNodes";
const WATCH: &str = "/ringmesh.admin.v1.EventService/WatchEvents";
const GRPC: &str = "application/grpc";
const JSON: &str = "application/json";
/// A message without a field.
const EMPTY: &[u8] = &[0; 5];

/// A connection of HTTP/2 on which so much may come for a stream.
async fn http2(coordinator: &Assembled, window: u32) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let stream = flood::tls(coordinator.address).await.expect("a place");
    let (requests, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(stream).await.unwrap();
    (requests, tokio::spawn(async move { drop(connection.await) }))
}

fn request(path: &str, kind: &str, keys: &[&str]) -> Request<()> {
    let mut request = Request::post(format!("https://localhost{path}")).header("content-type", kind);
    for key in keys {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.header("te", "trailers").body(()).unwrap()
}

/// Sends a request with `body`, and waits for the head of the answer.
async fn ask(
    requests: &SendRequest<Bytes>,
    request: Request<()>,
    body: &'static [u8],
) -> Result<http::Response<h2::RecvStream>, h2::Error> {
    let mut requests = requests.clone().ready().await?;
    let (answer, mut stream) = requests.send_request(request, false)?;
    stream.send_data(Bytes::from_static(body), true)?;
    timeout(Duration::from_secs(10), answer).await.expect("an answer")
}

/// The code of gRPC in an answer that is nothing but its head.
fn code(headers: &HeaderMap) -> tonic::Code {
    tonic::Status::from_header_map(headers).map_or(tonic::Code::Ok, |status| status.code())
}

/// A connection on which a request with a good key is open.
async fn proven(coordinator: &Assembled, key: &str) -> Proven {
    let (requests, open) = http2(coordinator, 65_535).await;
    let watching = ask(&requests, request(WATCH, GRPC, &[key]), EMPTY).await.unwrap();
    assert_eq!((watching.status(), code(watching.headers())), (StatusCode::OK, tonic::Code::Ok));
    Proven { requests, open, _watching: watching }
}

struct Proven {
    requests: SendRequest<Bytes>,
    /// Ends with the connection.
    open: JoinHandle<()>,
    _watching: http::Response<h2::RecvStream>,
}

#[tokio::test]
async fn what_is_waited_for_is_bounded_whatever_was_proved_on_the_connection() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let Proven { requests, .. } = &proven(&coordinator, &key).await;
    // Refused for the length that it says, long before the time for a request is over.
    for length in [MAX_NODE_MESSAGE as u32 + 1, 0xf000_0000] {
        let (answer, mut stream) =
            requests.clone().ready().await.unwrap().send_request(request(ENROLL, GRPC, &[]), false).unwrap();
        let head = [&[0][..], &length.to_be_bytes()].concat();
        stream.send_data(head.into(), false).unwrap();
        let answer = timeout(Duration::from_secs(5), answer).await.expect("an answer").unwrap();
        assert_eq!(code(answer.headers()), tonic::Code::OutOfRange, "{answer:?}");
    }
    // JSON does not say how long it is.
    let (mut answer, mut stream) =
        requests.clone().ready().await.unwrap().send_request(request(ENROLL, JSON, &[]), false).unwrap();
    let mut sent = 0;
    let endless = async {
        loop {
            stream.reserve_capacity(8 << 10);
            let Some(Ok(capacity)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
            if stream.send_data(vec![b' '; capacity].into(), false).is_err() {
                break;
            }
            sent += capacity;
        }
        std::future::pending::<()>().await;
    };
    let answer = timeout(Duration::from_secs(5), async {
        tokio::select! {
            answer = &mut answer => answer,
            () = endless => unreachable!("it does not end"),
        }
    });
    let answer = answer.await.expect("an answer").unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{answer:?}");
    assert!(sent <= 4 * MAX_NODE_MESSAGE, "{sent} bytes were taken");
    // A message that is no longer than a node's is read, and refused for what it is.
    let mut message = vec![0; MAX_NODE_MESSAGE + 5];
    message[..5].copy_from_slice(&[&[0][..], &(MAX_NODE_MESSAGE as u32).to_be_bytes()].concat());
    let answer = ask(requests, request(ENROLL, GRPC, &[]), message.leak()).await.unwrap();
    assert_ne!(code(answer.headers()), tonic::Code::OutOfRange, "{answer:?}");
}

#[tokio::test]
async fn a_request_with_two_credentials_is_refused_whichever_is_good() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let (requests, _) = http2(&coordinator, 65_535).await;
    for keys in [[key.as_str(), "meshkey1_nonsense"], ["meshkey1_nonsense", &key], [&key, &key]] {
        let answer = ask(&requests, request(LIST, GRPC, &keys), EMPTY).await.unwrap();
        assert_eq!(code(answer.headers()), tonic::Code::Unauthenticated, "{keys:?}");
    }
    let answer = ask(&requests, request(LIST, GRPC, &[&key]), EMPTY).await.unwrap();
    assert_eq!(code(answer.headers()), tonic::Code::Ok);
}

/// Connections that take the head of an answer and nothing of the rest.
async fn readers_of_nothing(coordinator: &Assembled, key: &str, count: usize) -> Vec<JoinHandle<()>> {
    let mut open = Vec::new();
    for _ in 0..count {
        let (requests, connection) = http2(coordinator, 0).await;
        let answer = ask(&requests, request(LIST, GRPC, &[key]), EMPTY).await.unwrap();
        assert_eq!(code(answer.headers()), tonic::Code::Ok);
        // Whoever forgets the answer resets its stream.
        open.push(tokio::spawn(async move {
            let _held = (requests, answer);
            drop(connection.await);
        }));
    }
    open
}

const PATIENT: Limits = Limits { time_to_prove: Duration::from_secs(600), ..Limits::DEFAULT };
const HASTY: Limits = Limits { time_to_prove: Duration::from_secs(1), ..Limits::DEFAULT };

#[tokio::test]
async fn the_connections_of_a_key_end_with_it_though_nothing_is_read_on_them() {
    let mut coordinator = Assembled::start_with_limits(PATIENT).await;
    let (id, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let (_, other) = coordinator.key(wish("other", ApiKeyRole::ReadOnly)).await;
    // More than a source may have of strangers.
    let open = readers_of_nothing(&coordinator, &key, 40).await;
    let others = readers_of_nothing(&coordinator, &other, 1).await;
    assert!(open.iter().all(|connection| !connection.is_finished()));
    let request = RevokeApiKeyRequest { id, ..Default::default() };
    coordinator.operator.keys.revoke_api_key(request).await.unwrap();
    let ended = futures_util::future::join_all(open);
    timeout(Duration::from_secs(10), ended).await.expect("all end");
    assert!(!others[0].is_finished(), "another key is as good as before");
}

#[tokio::test]
async fn an_answer_that_nobody_takes_keeps_its_connection_for_a_bounded_time() {
    let mut coordinator = Assembled::start_with_limits(HASTY).await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let listening = proven(&coordinator, &key).await;
    let open = readers_of_nothing(&coordinator, &key, 3).await;
    timeout(Duration::from_secs(8), futures_util::future::join_all(open)).await.expect("all end");
    assert!(!listening.open.is_finished(), "there is nothing to take");
}

#[tokio::test]
async fn a_key_has_so_many_connections_and_the_oldest_leaves_when_there_are_more() {
    let limits = Limits { proven_per_key: 3, ..PATIENT };
    let mut coordinator = Assembled::start_with_limits(limits).await;
    let (_, key) = coordinator.key(wish("greedy", ApiKeyRole::ReadOnly)).await;
    let (_, other) = coordinator.key(wish("other", ApiKeyRole::ReadOnly)).await;
    let modest = proven(&coordinator, &other).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(proven(&coordinator, &key).await);
    }
    // A second request on a connection counts no more than the first.
    let last = held.last().unwrap();
    assert!(ask(&last.requests, request(WATCH, GRPC, &[&key]), EMPTY).await.is_ok());
    let mut held = held.into_iter();
    for oldest in held.by_ref().take(2) {
        timeout(Duration::from_secs(5), oldest.open).await.expect("it ends").unwrap();
    }
    sleep(Duration::from_millis(1500)).await;
    assert!(held.all(|newer| !newer.open.is_finished()) && !modest.open.is_finished());
}

#[tokio::test]
async fn head_and_body_in_one_write_are_answered_in_a_crowd_too() {
    for limits in [Limits::DEFAULT, Limits { unproven_bytes_of_all: 0, ..Limits::DEFAULT }] {
        let mut coordinator = Assembled::start_with_limits(limits).await;
        let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
        let body = format!("{:20000}", "{}");
        let mut stream = http1(&coordinator).await;
        stream.write_all([head(&key, body.len()), body].concat().as_bytes()).await.unwrap();
        let mut answer = [0; 15];
        let read = timeout(Duration::from_secs(4), stream.read_exact(&mut answer)).await;
        read.expect("an answer").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
}

fn head(key: &str, length: usize) -> String {
    format!(
        "POST {LIST} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {JSON}\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn silent_connections_of_an_address_neither_keep_others_out_nor_cut_off_an_answer() {
    let limits = Limits { unproven_per_source: 4, unproven_patience: Duration::ZERO, ..PATIENT };
    let mut coordinator = Assembled::start_with_limits(limits).await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let mut stream = http1(&coordinator).await;
    // Nobody's connection any more, but for the answer.
    stream.write_all(head(&key, 2).as_bytes()).await.unwrap();
    stream.write_all(b"{").await.unwrap();
    sleep(Duration::from_millis(300)).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(coordinator.address).await.unwrap());
    }
    // All are taken in before it ends.
    sleep(Duration::from_millis(300)).await;
    stream.write_all(b"}").await.unwrap();
    let mut answer = [0; 15];
    timeout(Duration::from_secs(5), stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // It took the place of the oldest; a newcomer takes the next.
    coordinator.member("newcomer").await;
    for oldest in silent.iter_mut().take(2) {
        let mut byte = [0];
        let end = timeout(Duration::from_secs(5), oldest.read(&mut byte)).await.expect("it ends");
        assert!(matches!(end, Ok(0) | Err(_)));
    }
}
