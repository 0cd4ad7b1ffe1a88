//! The same methods as JSON over HTTP: the Connect protocol (unary, and streams of answers), and lines of JSON for `curl`.
//!
//! ```text
//!  POST /ringmesh.admin.v1.NodeService/ListNodes        ┌ Guard ┐
//!  application/json  ──> gRPC with a body that turns ──>│ rules │──> handlers ──> gRPC ──> JSON
//!                        JSON into protobuf when read   └───────┘
//! ```
//!
//! A request becomes one of gRPC before it comes to the guard, so rules, checks and handlers are the same. Its body is read by whoever
//! reads the gRPC body, so of a caller who is refused nothing is read. Messages are known by their descriptors: what is added to the
//! protocol is here without a line of code.
#![allow(
    clippy::result_large_err,
    reason = "an answer that ends a call early is as large as one that does not"
)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

mod answer;
mod error;
mod methods;
mod once;
mod question;

use std::time::Duration;

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, ALLOW, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, TE},
    request::Parts,
};
use prost_reflect::MethodDescriptor;
use tokio::time::Instant;
use tonic::{Status, body::Body, service::Routes};
use tower::Service as _;

use self::{answer::Form, question::question};
/// Bytes of the JSON of one request. Of a text in it with many quotes and newlines the message has half as many.
const MAX_JSON: usize = 2 << 20;

const JSON: &str = "application/json";
const CONNECT_STREAM: &str = "application/connect+json";
const LINES: &str = "application/x-ndjson";
const GRPC: &str = "application/grpc";
const CONNECT_TIMEOUT: HeaderName = HeaderName::from_static("connect-timeout-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Answers a request by `routes`: one of gRPC as it is, one of JSON by way of gRPC.
pub(crate) async fn answer(request: Request<Body>, routes: Routes) -> Response<Body> {
    if is_grpc(request.headers()) {
        return if request.version() == Version::HTTP_2 {
            call(routes, request).await
        } else {
            error::plain(
                StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                "gRPC needs HTTP/2; over HTTP/1.1 send application/json",
            )
        };
    }
    match translate(request, routes).await {
        Ok(response) => response,
        Err(refused) => refused,
    }
}

/// Refuses a request in the form in which it was asked.
pub(crate) fn refuse(request: &Parts, refused: Status) -> Response<Body> {
    if is_grpc(&request.headers) { refused.into_http() } else { error::response(&refused) }
}

async fn call(mut routes: Routes, request: Request<Body>) -> Response<Body> {
    match routes.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Turns a request into one of gRPC, and the answer back. Both results are answers; `Err` only ends it early.
async fn translate(request: Request<Body>, routes: Routes) -> Result<Response<Body>, Response<Body>> {
    let method = method(&request)?;
    let form = form(&request, &method)?;
    let wish = connect_timeout(request.headers()).map_err(|refused| error::response(&refused))?;
    // The guard bounds the time until an answer begins; a stream lives for as long as the caller wishes.
    let until = wish.and_then(|wish| Instant::now().checked_add(wish));
    let answered = call(routes, to_grpc(request, &method, form, wish)).await;
    Ok(answer::translate(answered, method.output(), form, until).await)
}

/// The method that is asked for, if it can be called with JSON at all.
fn method(request: &Request<Body>) -> Result<MethodDescriptor, Response<Body>> {
    let path = request.uri().path();
    let Some(method) = methods::of(path) else {
        return Err(error::plain(
            StatusCode::NOT_FOUND,
            "there is nothing here; methods are called as POST /package.Service/Method",
        ));
    };
    if request.method() != Method::POST {
        let mut refused = error::plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "methods are called by POST, with a JSON object of their arguments (or {}) as body",
        );
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Err(refused);
    }
    Ok(method)
}

/// How the caller wants it, by content-type and accept.
fn form(request: &Request<Body>, method: &MethodDescriptor) -> Result<Form, Response<Body>> {
    let wrong = |what: &str| Err(error::media_type(what));
    let headers = request.headers();
    if method.is_client_streaming() {
        return wrong("this method takes a stream of requests, which only gRPC has (application/grpc)");
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return wrong("bodies are not compressed here");
    }
    let lines =
        headers.get_all(ACCEPT).iter().any(|accept| media_types(accept).any(|accept| accept == LINES));
    match media_type(headers).as_deref() {
        Some(JSON) if lines => Ok(Form::Lines),
        Some(JSON) if method.is_server_streaming() => wrong(
            "this method answers with a stream: send accept: application/x-ndjson for lines of JSON, or application/connect+json",
        ),
        Some(JSON) => Ok(Form::One),
        Some(CONNECT_STREAM) if method.is_server_streaming() => Ok(Form::Envelopes),
        Some(CONNECT_STREAM) => wrong("this method has one answer: send application/json"),
        Some(_) | None => {
            wrong("send application/json, application/connect+json (streams) or application/grpc")
        }
    }
}

/// The request as one of gRPC, whose body is read when somebody reads it.
fn to_grpc(
    request: Request<Body>,
    method: &MethodDescriptor,
    form: Form,
    wish: Option<Duration>,
) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    for name in [ACCEPT, CONTENT_LENGTH, CONTENT_ENCODING, CONNECT_TIMEOUT, GRPC_TIMEOUT] {
        parts.headers.remove(name);
    }
    if let Some(timeout) = wish.and_then(|wish| HeaderValue::try_from(grpc_timeout(wish)).ok()) {
        parts.headers.insert(GRPC_TIMEOUT, timeout);
    }
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC));
    parts.headers.insert(TE, HeaderValue::from_static("trailers"));
    parts.version = Version::HTTP_2;
    // A path that the method has exactly; what may be behind it is of no use here.
    if let Ok(path) = methods::path(method).parse::<Uri>() {
        parts.uri = path;
    }
    Request::from_parts(parts, question(body, method.input(), form == Form::Envelopes))
}

/// Whether a request is one of gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    media_type(headers).is_some_and(|kind| kind == GRPC || kind.starts_with("application/grpc+"))
}

/// The content type without its parameters, in lower case.
fn media_type(headers: &HeaderMap) -> Option<String> {
    media_types(headers.get(CONTENT_TYPE)?).next()
}

fn media_types(value: &HeaderValue) -> impl Iterator<Item = String> {
    let text = value.to_str().unwrap_or_default();
    text.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// What the caller gives us, in the Connect protocol: at most ten digits.
fn connect_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(CONNECT_TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let digits = (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let millis = text.parse().ok().filter(|_| digits);
    let millis = millis
        .ok_or_else(|| error::invalid("connect-timeout-ms", "it is not a number of at most ten digits"))?;
    Ok(Some(Duration::from_millis(millis)))
}

/// A time as gRPC writes it: at most eight digits and a unit.
fn grpc_timeout(wish: Duration) -> String {
    const MOST: u128 = 99_999_999;
    let millis = wish.as_millis();
    if millis <= MOST { format!("{millis}m") } else { format!("{}S", wish.as_secs()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn deadlines_are_read_as_connect_writes_them_and_told_as_grpc_does() {
        let connect = |text| connect_timeout(&headers("connect-timeout-ms", text));
        assert_eq!(connect("1500").unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(connect("9999999999").unwrap(), Some(Duration::from_millis(9_999_999_999)));
        assert_eq!(connect_timeout(&HeaderMap::new()).unwrap(), None);
        assert_eq!(grpc_timeout(Duration::from_millis(1500)), "1500m");
        assert_eq!(grpc_timeout(Duration::from_millis(9_999_999_999)), "9999999S");
        for text in ["", "10000000000", "+1", "1.5", "soon"] {
            let refused = connect(text).unwrap_err();
            assert!(refused.message().contains("connect-timeout-ms"), "{refused}");
        }
    }

    #[test]
    fn media_types_are_told_without_their_parameters() {
        assert_eq!(
            media_type(&headers("content-type", "Application/JSON; charset=utf-8")).unwrap(),
            "application/json"
        );
        assert!(is_grpc(&headers("content-type", "application/grpc+proto")));
        assert!(!is_grpc(&headers("content-type", "application/grpc-web")));
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
