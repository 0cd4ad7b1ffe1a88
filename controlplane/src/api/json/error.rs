//! Errors as the Connect protocol writes them: a code, words, and the details of gRPC, of which the usual ones can be read as they are.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE},
};
use prost::Message as _;
use ringmesh_proto::control::Reason;
use serde_json::{Value, json};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _, pb};

use super::JSON;
use crate::error::{DOMAIN, code_name};

/// A field of a request that is not what it must be.
pub(super) fn invalid(field: &str, why: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(
        Reason::InvalidArgument.as_str_name(),
        DOMAIN,
        std::collections::HashMap::default(),
    );
    details.add_bad_request_violation(field, why);
    Status::with_error_details(Code::InvalidArgument, format!("{field} is not valid: {why}"), details)
}

/// The answer to a call that failed.
pub(super) fn response(status: &Status) -> Response<Body> {
    let mut response = write(http_status(status.code()), &body(status));
    let headers = response.headers_mut();
    if status.code() == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    if let Some(delay) = delay {
        headers.insert(RETRY_AFTER, HeaderValue::from(delay.as_secs().max(1)));
    }
    response
}

/// The answer to what is no call of a method.
pub(super) fn plain(status: StatusCode, words: &str) -> Response<Body> {
    let code = if status == StatusCode::NOT_FOUND { Code::Unimplemented } else { Code::InvalidArgument };
    write(status, &json!({ "code": name(code), "message": words }))
}

/// The answer to a body of a kind that the method does not take.
pub(super) fn media_type(words: &str) -> Response<Body> {
    let mut refused = plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, words);
    let kinds = HeaderValue::from_static("application/json, application/connect+json, application/grpc");
    refused.headers_mut().insert(HeaderName::from_static("accept-post"), kinds);
    refused
}

fn write(status: StatusCode, body: &Value) -> Response<Body> {
    let text = format!("{body}\n");
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// The error itself.
pub(super) fn body(status: &Status) -> Value {
    let mut error = json!({ "code": name(status.code()), "message": status.message() });
    let details = pb::Status::decode(status.details()).unwrap_or_default().details;
    if !details.is_empty()
        && let Some(error) = error.as_object_mut()
    {
        let details = details.iter().map(|detail| {
            let kind = detail.type_url.rsplit('/').next().unwrap_or_default();
            let mut written = json!({ "type": kind, "value": STANDARD_NO_PAD.encode(&detail.value) });
            if let (Some(debug), Some(written)) = (debug(kind, &detail.value), written.as_object_mut()) {
                written.insert("debug".into(), debug);
            }
            written
        });
        error.insert("details".into(), details.collect());
    }
    error
}

/// What a detail says, for those who do not read protobuf.
fn debug(kind: &str, bytes: &[u8]) -> Option<Value> {
    match kind {
        "google.rpc.ErrorInfo" => {
            let info = pb::ErrorInfo::decode(bytes).ok()?;
            Some(json!({ "reason": info.reason, "domain": info.domain, "metadata": info.metadata }))
        }
        "google.rpc.BadRequest" => {
            let request = pb::BadRequest::decode(bytes).ok()?;
            let violation = |violation: &pb::bad_request::FieldViolation| json!({ "field": violation.field, "description": violation.description });
            Some(
                json!({ "fieldViolations": request.field_violations.iter().map(violation).collect::<Vec<_>>() }),
            )
        }
        "google.rpc.RetryInfo" => {
            let delay = pb::RetryInfo::decode(bytes).ok()?.retry_delay?;
            Some(json!({ "retryDelay": format!("{}s", delay.seconds) }))
        }
        _ => None,
    }
}

/// How the Connect protocol calls a code.
fn name(code: Code) -> &'static str {
    if code == Code::Cancelled { "canceled" } else { code_name(code) }
}

/// The status of HTTP that the Connect protocol gives a code.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_its_reason_and_the_field_in_words_and_bytes() {
        let status = invalid("tags[1]", "it is a number");
        let body = body(&status);
        assert_eq!(body["code"], "invalid_argument");
        assert!(body["message"].as_str().unwrap().contains("tags[1]"));
        let details = body["details"].as_array().unwrap();
        let info = details.iter().find(|detail| detail["type"] == "google.rpc.ErrorInfo").unwrap();
        assert_eq!(info["debug"]["reason"], Reason::InvalidArgument.as_str_name());
        let bytes = STANDARD_NO_PAD.decode(info["value"].as_str().unwrap()).unwrap();
        assert_eq!(pb::ErrorInfo::decode(&*bytes).unwrap().domain, DOMAIN);
        let request = details.iter().find(|detail| detail["type"] == "google.rpc.BadRequest").unwrap();
        assert_eq!(request["debug"]["fieldViolations"][0]["field"], "tags[1]");
        assert_eq!(response(&status).status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn every_code_is_an_error_of_http() {
        for code in (1..=16).map(Code::from_i32) {
            assert!(http_status(code).as_u16() >= 400, "{code:?}");
            assert_ne!(name(code), "ok");
        }
    }
}
