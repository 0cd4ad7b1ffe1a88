//! The same methods as JSON: over HTTP/1.1 and HTTP/2, with `curl` and with bytes written by hand.

use std::process::Stdio;

use ringmesh_proto::admin::ApiKeyRole;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    time::{Duration, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::{access::wish, harness::Assembled};

const LIST: &str = "/ringmesh.admin.v1.NodeService/ListNodes";
const CREATE: &str = "/ringmesh.admin.v1.TokenService/CreateToken";
const WATCH: &str = "/ringmesh.admin.v1.EventService/WatchEvents";

/// What `curl` says: the status, and the answer.
async fn curl(coordinator: &Assembled, key: Option<&str>, path: &str, arguments: &[&str]) -> (u16, Value) {
    let mut command = Command::new("curl");
    command
        .args(["-sk", "-m", "10", "-w", "\n%{http_code}"])
        .args(arguments)
        .arg(format!("https://{}{path}", coordinator.address))
        .stderr(Stdio::inherit());
    if let Some(key) = key {
        command.args(["-H", &format!("authorization: Bearer {key}")]);
    }
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    let body = serde_json::from_str(body.trim()).unwrap_or_else(|_| Value::String(body.into()));
    (status.parse().unwrap(), body)
}

const JSON: [&str; 2] = ["-H", "content-type: application/json"];

fn reason(error: &Value) -> &str {
    let details = error["details"].as_array().unwrap_or_else(|| panic!("{error}"));
    let info = details.iter().find(|detail| detail["type"] == "google.rpc.ErrorInfo").unwrap();
    info["debug"]["reason"].as_str().unwrap()
}

#[tokio::test]
async fn curl_calls_methods_over_both_versions_of_http_and_is_told_what_is_wrong() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::Operator)).await;
    let (_, looks) = coordinator.key(wish("looks", ApiKeyRole::ReadOnly)).await;
    coordinator.member("a").await;
    for version in ["--http1.1", "--http2"] {
        let call = async |key: Option<&str>, path: &str, data: &str| {
            curl(&coordinator, key, path, &[&JSON[..], &[version, "-d", data]].concat()).await
        };
        let (status, list) = call(Some(&looks), LIST, "{}").await;
        assert_eq!(status, 200, "{list}");
        assert_eq!(list["nodes"][0]["name"], "a");
        assert_eq!(list["nodes"][0]["online"], false, "what is not so is said");
        assert!(list["revision"].is_string(), "numbers of 64 bits are strings: {list}");
        let (status, token) = call(Some(&key), CREATE, r#"{"reusable":true,"tags":["web"]}"#).await;
        assert_eq!(status, 200, "{token}");
        assert!(token["secret"].as_str().unwrap().starts_with("mesh1_"));
        for (bearer, path, data, expected, code) in [
            (None, LIST, "{}", 401, "unauthenticated"),
            (Some("meshkey1_nonsense"), LIST, "{}", 401, "unauthenticated"),
            (Some(looks.as_str()), CREATE, "{}", 403, "permission_denied"),
            (Some(key.as_str()), CREATE, r#"{"reusabel":true}"#, 400, "invalid_argument"),
            (Some(key.as_str()), CREATE, r#"{"tags":["web",7]}"#, 400, "invalid_argument"),
            (Some(key.as_str()), CREATE, "nonsense", 400, "invalid_argument"),
            (Some(key.as_str()), LIST, r#"{"network":"nowhere"}"#, 404, "not_found"),
        ] {
            let (status, error) = call(bearer, path, data).await;
            assert_eq!((status, error["code"].as_str()), (expected, Some(code)), "{data}: {error}");
            assert_ne!(reason(&error), "");
        }
        let (_, error) = call(Some(&key), CREATE, r#"{"tags":["web",7]}"#).await;
        assert!(error["message"].as_str().unwrap().contains("tags[1]"), "{error}");
        let (_, error) = call(Some(&key), CREATE, r#"{"reusabel":true}"#).await;
        assert!(error["message"].as_str().unwrap().contains("reusabel"), "{error}");
    }
    // Health is anybody's, in JSON as in gRPC.
    let health =
        curl(&coordinator, None, "/grpc.health.v1.Health/Check", &[&JSON[..], &["-d", "{}"]].concat()).await;
    assert_eq!(health, (200, json!({ "status": "SERVING" })));
}

#[tokio::test]
async fn what_is_no_call_is_refused_in_plain_words() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::Operator)).await;
    for version in ["--http1.1", "--http2"] {
        for (path, arguments, expected, words) in [
            ("/", &[][..], 404, "POST /package.Service/Method"),
            ("/favicon.ico", &[], 404, "there is nothing here"),
            (
                "/ringmesh.admin.v1.NodeService/Nothing",
                &["-d", "{}", JSON[0], JSON[1]],
                404,
                "there is nothing",
            ),
            (LIST, &[], 405, "called by POST"),
            (LIST, &["-X", "PUT", "-d", "{}", JSON[0], JSON[1]], 405, "called by POST"),
            (LIST, &["-d", "a=b"], 415, "application/json"),
            (LIST, &["-d", "{}", "-H", "content-type: text/plain"], 415, "application/json"),
            (LIST, &["-d", "{}", "-H", "content-type: application/connect+json"], 415, "one answer"),
            (LIST, &["-d", "{}", JSON[0], JSON[1], "-H", "content-encoding: gzip"], 415, "not compressed"),
            (
                LIST,
                &["-d", "{}", JSON[0], JSON[1], "-H", "connect-timeout-ms: soon"],
                400,
                "connect-timeout-ms",
            ),
            (WATCH, &["-d", "{}", JSON[0], JSON[1]], 415, "application/x-ndjson"),
            ("/ringmesh.control.v1.ControlService/Sync", &["-d", "{}", JSON[0], JSON[1]], 415, "only gRPC"),
        ] {
            let arguments = [arguments, &[version]].concat();
            let (status, error) = curl(&coordinator, Some(&key), path, &arguments).await;
            assert_eq!(status, expected, "{version} {path} {arguments:?}: {error}");
            let message = error["message"].as_str().unwrap_or_else(|| panic!("{path}: {error}"));
            assert!(message.contains(words), "{path}: {message}");
        }
    }
    let grpc = ["-d", "x", "-H", "content-type: application/grpc", "--http1.1"];
    assert_eq!(curl(&coordinator, Some(&key), LIST, &grpc).await.0, 505);
}

#[tokio::test]
async fn a_call_ends_when_its_caller_has_no_time_left() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let mut a = coordinator.member("a").await;
    let _stream = a.sync().await.unwrap();
    let wait = "/ringmesh.admin.v1.NodeService/WaitInstalled";
    let arguments = [&JSON[..], &["-H", "connect-timeout-ms: 300", "-d", r#"{"waitMs":8000}"#]].concat();
    let (status, error) = curl(&coordinator, Some(&key), wait, &arguments).await;
    assert_eq!((status, error["code"].as_str()), (504, Some("deadline_exceeded")), "{error}");
}

#[tokio::test]
async fn events_come_as_lines_or_in_envelopes_until_the_caller_has_enough() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let watch = async |kind: &str, accept: &str, body: &[u8]| {
        let mut stream = http1(&coordinator).await;
        let head = format!(
            "POST {WATCH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {kind}\r\naccept: {accept}\r\n\
             connect-timeout-ms: 1500\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let lines = async { watch("application/json", "application/x-ndjson", b"{}").await };
    let envelopes = async { watch("application/connect+json", "*/*", b"\0\0\0\0\x02{}").await };
    let mut operator = coordinator.operator.clone();
    let change = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        operator.token(ringmesh_proto::admin::CreateTokenRequest::default()).await;
    };
    let (lines, envelopes, ()) = tokio::join!(lines, envelopes, change);
    assert!(lines.starts_with("HTTP/1.1 200 ") && lines.contains("application/x-ndjson"), "{lines}");
    assert!(lines.contains("token_created"), "{lines}");
    assert!(lines.contains(r#"{"error":{"code":"deadline_exceeded""#), "{lines}");
    assert!(envelopes.starts_with("HTTP/1.1 200 ") && envelopes.contains("connect+json"), "{envelopes}");
    assert!(envelopes.contains("token_created") && envelopes.contains("deadline_exceeded"), "{envelopes}");
}

/// A connection of HTTP/1.1.
pub async fn http1(coordinator: &Assembled) -> TlsStream<TcpStream> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(crate::client::believe())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let stream = TcpStream::connect(coordinator.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect("localhost".try_into().unwrap(), stream).await.unwrap()
}

/// Writes bytes, and reads what comes until the other end closes or says nothing for a second.
async fn exchange(coordinator: &Assembled, bytes: &[u8]) -> String {
    let mut stream = http1(coordinator).await;
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(Ok(read @ 1..)) = timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_that_two_servers_would_read_differently_are_refused() {
    let mut coordinator = Assembled::start().await;
    let (_, key) = coordinator.key(wish("ci", ApiKeyRole::ReadOnly)).await;
    let head = format!(
        "POST {LIST} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    );
    let one = format!("{head}content-length: 2\r\n\r\n{{}}");
    let two = exchange(&coordinator, one.repeat(2).as_bytes()).await;
    assert_eq!(two.matches("HTTP/1.1 200 ").count(), 2, "one after the other: {two}");
    let chunks = exchange(
        &coordinator,
        format!("{head}transfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n").as_bytes(),
    )
    .await;
    assert_eq!(chunks.matches("HTTP/1.1 200 ").count(), 1, "{chunks}");
    let smuggled = "POST /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    for fields in [
        "content-length: 2\r\ncontent-length: 40\r\n\r\n{}",
        "content-length: 2, 40\r\n\r\n{}",
        "content-length: +2\r\n\r\n{}",
        "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: identity\r\n\r\n{}",
        "transfer-encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nx\r\n{}\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "content-length : 2\r\n\r\n{}",
    ] {
        let answer = exchange(&coordinator, format!("{head}{fields}{smuggled}").as_bytes()).await;
        // With both, the chunks count, and the connection ends with the answer (RFC 9112, section 6.3).
        let both = fields.contains("content-length: ") && fields.contains("transfer-encoding: ");
        assert_eq!(answer.matches("HTTP/1.1 200 ").count(), usize::from(both), "{fields:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 404 ").count(), 0, "{fields:?} led to another request: {answer}");
    }
}
