//! Methods called by their paths alone, whatever they are: over gRPC, and as JSON.

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use ringmesh_proto::DESCRIPTORS;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{
    Code, Request, Status,
    body::Body,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::Channel,
};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Service as _, ServiceExt as _};

use crate::{harness::Assembled, json::http1};

/// Passes messages on as bytes, so that any method can be called.
#[derive(Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buf, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buf);
        Ok(Some(bytes::Buf::copy_to_bytes(buf, length)))
    }
}

/// A request with a credential.
pub fn with_bearer<T>(message: T, bearer: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(bearer) = bearer {
        request.metadata_mut().insert("authorization", format!("Bearer {bearer}").parse().unwrap());
    }
    request
}

/// Calls a method of any kind, and says how its answer begins.
pub async fn begin(
    channel: &Channel,
    path: &str,
    message: Bytes,
    bearer: Option<&str>,
) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = with_bearer(message, bearer);
    client.server_streaming(request, path.parse().unwrap(), Raw).await.map(drop)
}

/// What the descriptors say of a method of ours, and of the field `network` of its request: the number of its tag, if there is one.
fn described(path: &str) -> Option<(&'static MethodDescriptorProto, Option<u64>)> {
    static DESCRIBED: LazyLock<FileDescriptorSet> =
        LazyLock::new(|| FileDescriptorSet::decode(DESCRIPTORS).unwrap());
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap();
    let (package, service) = service.rsplit_once('.').unwrap();
    let file = DESCRIBED.file.iter().find(|file| file.package() == package)?;
    let service = file.service.iter().find(|found| found.name() == service).unwrap();
    let method = service.method.iter().find(|found| found.name() == method).unwrap();
    let input = method.input_type().rsplit_once('.').unwrap().1;
    let message = file.message_type.iter().find(|message| message.name() == input).unwrap();
    let field = message.field.iter().find(|field| field.name() == "network");
    Some((method, field.map(|field| field.number() as u64)))
}

/// Whether the request of a method says which network is meant.
pub fn names_a_network(path: &str) -> bool {
    described(path).is_some_and(|(_, field)| field.is_some())
}

/// Whether a method takes a stream of requests.
pub fn takes_a_stream(path: &str) -> bool {
    described(path).is_some_and(|(method, _)| method.client_streaming())
}

/// Whether a method answers with a stream.
pub fn answers_with_a_stream(path: &str) -> bool {
    path == super::HEALTH[1] || described(path).is_some_and(|(method, _)| method.server_streaming())
}

/// The request of a method that names a network, if it can, and is otherwise empty.
pub fn naming(path: &str, network: &str) -> Bytes {
    let Some((_, Some(number))) = described(path) else { return Bytes::new() };
    let mut message = Vec::new();
    prost::encoding::encode_varint(number << 3 | 2, &mut message);
    prost::encoding::encode_varint(network.len() as u64, &mut message);
    message.extend(network.as_bytes());
    message.into()
}

/// The same as JSON: its content type, and the body.
fn naming_as_json(path: &str, network: &str) -> (&'static str, Vec<u8>) {
    let text = if names_a_network(path) { format!("{{\"network\":\"{network}\"}}") } else { "{}".to_owned() };
    if answers_with_a_stream(path) {
        let envelope = [&[0][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        return ("application/connect+json", envelope);
    }
    ("application/json", text.into_bytes())
}

/// The longest that an answer may take to begin.
const PATIENCE: Duration = Duration::from_secs(20);

/// Calls a method with JSON over HTTP/2, and says how its answer begins.
pub async fn begin_json(
    channel: &Channel,
    path: &str,
    network: &str,
    bearer: Option<&str>,
) -> Result<(), Status> {
    let (kind, body) = naming_as_json(path, network);
    let mut request = http::Request::post(path).header("content-type", kind);
    if let Some(bearer) = bearer {
        request = request.header("authorization", format!("Bearer {bearer}"));
    }
    let request = request.body(Body::new(Full::new(Bytes::from(body)))).unwrap();
    let mut channel = channel.clone();
    let answer = async {
        let response = channel.ready().await.unwrap().call(request).await.unwrap();
        let (head, mut body) = response.into_parts();
        let kind = head.headers["content-type"].to_str().unwrap().to_owned();
        let mut read = Vec::new();
        while !is_enough(&kind, &read)
            && let Some(frame) = body.frame().await
        {
            read.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
        (head.status.as_u16(), kind, read)
    };
    let (status, kind, read) = tokio::time::timeout(PATIENCE, answer).await.expect(path);
    said(path, status, &kind, &read)
}

/// Calls a method that has one answer with JSON over HTTP/1.1, on a connection of its own.
pub async fn begin_json_http1(
    coordinator: &Assembled,
    path: &str,
    network: &str,
    bearer: Option<&str>,
) -> Result<(), Status> {
    let (kind, body) = naming_as_json(path, network);
    let authorization =
        bearer.map(|bearer| format!("authorization: Bearer {bearer}\r\n")).unwrap_or_default();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\n{authorization}content-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = http1(coordinator).await;
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect(path).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    said(path, status, kind, body.as_bytes())
}

/// Whether of a stream what decides is there: its first envelope.
fn is_enough(kind: &str, read: &[u8]) -> bool {
    let whole = |head: &[u8; 5]| 5 + u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
    kind == "application/connect+json" && read.first_chunk().is_some_and(|head| read.len() >= whole(head))
}

/// What an answer of JSON says, as gRPC would.
fn said(path: &str, status: u16, kind: &str, body: &[u8]) -> Result<(), Status> {
    let shown = || format!("{path}: {status} {kind}: {}", String::from_utf8_lossy(body));
    let error = if kind == "application/connect+json" {
        assert_eq!(status, 200, "a stream's status is in its end: {}", shown());
        if body[0] & 2 == 0 {
            return Ok(());
        }
        let end: Value = serde_json::from_slice(&body[5..]).unwrap();
        end.get("error").cloned()
    } else {
        assert_eq!(kind, "application/json", "{}", shown());
        let answer: Value =
            serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", shown()));
        (status != 200).then_some(answer)
    };
    let Some(error) = error else { return Ok(()) };
    let code = Code::from_i32(
        (0..=16).find(|code| error["code"] == code_name(*code)).unwrap_or_else(|| panic!("{}", shown())),
    );
    let details = error["details"].as_array().map(Vec::as_slice).unwrap_or_default();
    let info =
        details.iter().find(|detail| detail["type"] == "google.rpc.ErrorInfo").map(|info| &info["debug"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let details = info.map_or_else(ErrorDetails::new, |info| {
        ErrorDetails::with_error_info(
            text(&info["reason"]),
            text(&info["domain"]),
            std::collections::HashMap::default(),
        )
    });
    Err(Status::with_error_details(code, text(&error["message"]), details))
}

/// The codes of gRPC as the Connect protocol calls them.
fn code_name(code: i32) -> &'static str {
    [
        "ok",
        "canceled",
        "unknown",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal",
        "unavailable",
        "data_loss",
        "unauthenticated",
    ][code as usize]
}
