//! The answer on its way back: messages of gRPC that become JSON, one alone or one after the other.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Frame;
use http_body_util::BodyExt as _;
use prost_reflect::{DynamicMessage, MessageDescriptor, SerializeOptions};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};

use super::{
    CONNECT_STREAM, JSON, LINES, error,
    question::{HEAD, frame},
};
use crate::error::Refused;

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One object.
    One,
    /// One object a line; an error after the first of them is a line, too.
    Lines,
    /// A stream of the Connect protocol.
    Envelopes,
}

/// The flags of the envelope that ends a stream of the Connect protocol.
const END_STREAM: u8 = 2;

/// The numbers of 64 bits are strings, as the JSON of protobuf has them, and fields that have their default value are there: who reads
/// them with a program that does not know the protocol shall find them.
const OPTIONS: SerializeOptions = SerializeOptions::new().skip_default_fields(false);

/// Turns an answer of gRPC into `form`; what is a stream ends at `until`.
pub(super) async fn translate(
    response: Response<Body>,
    message: MessageDescriptor,
    form: Form,
    until: Option<Instant>,
) -> Response<Body> {
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != Code::Ok
    {
        return refusal(&status, form);
    }
    let body = response.into_body();
    match form {
        Form::One => match one(body, &message).await {
            Ok(text) => ok(JSON, Body::new(http_body_util::Full::new(Bytes::from(text)))),
            Err(status) => error::response(&status),
        },
        Form::Lines | Form::Envelopes => {
            let kind = if form == Form::Lines { LINES } else { CONNECT_STREAM };
            let until = until.map(|until| Box::pin(tokio::time::sleep_until(until)));
            ok(kind, Body::new(Answers { body, read: BytesMut::new(), message, form, until, ended: false }))
        }
    }
}

/// The answer to a request that is refused: a stream of the Connect protocol says so in its last envelope, all else by its status.
pub(super) fn refusal(status: &Status, form: Form) -> Response<Body> {
    match (form, end(Some(status))) {
        (Form::Envelopes, Ok(end)) => ok(CONNECT_STREAM, Body::new(http_body_util::Full::new(end))),
        _ => error::response(status),
    }
}

fn ok(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The only message of an answer.
async fn one(body: Body, message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let answer = body.collect().await?;
    let status = answer.trailers().and_then(Status::from_header_map);
    if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
        return Err(status);
    }
    let mut read = BytesMut::from(&*answer.to_bytes());
    let bytes = next(&mut read)?.ok_or_else(|| Status::internal("an answer without a message"))?;
    write(&bytes, message)
}

/// Takes the next whole message of gRPC out of `read`.
fn next(read: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some(([compressed, a, b, c, d], rest)) = read.split_first_chunk::<HEAD>() else { return Ok(None) };
    if *compressed != 0 {
        return Err(Status::internal("an answer that is compressed, although nobody asked for it"));
    }
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    if rest.len() < length {
        return Ok(None);
    }
    drop(read.split_to(HEAD));
    Ok(Some(read.split_to(length).freeze()))
}

/// A message as JSON.
fn write(bytes: &[u8], message: &MessageDescriptor) -> Result<Vec<u8>, Status> {
    let message = DynamicMessage::decode(message.clone(), bytes).map_err(|error| {
        Status::internal(format!("an answer that is not {}: {error}", message.full_name()))
    })?;
    let mut text = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &OPTIONS)
        .map_err(|error| Status::internal(format!("an answer that cannot be written as JSON: {error}")))?;
    Ok(text)
}

/// The last envelope of a stream.
fn end(status: Option<&Status>) -> Result<Bytes, Status> {
    let text = match status {
        Some(status) => serde_json::json!({ "error": error::body(status) }).to_string(),
        None => "{}".into(),
    };
    frame(END_STREAM, text.as_bytes())
}

/// A stream of answers.
#[derive(Debug)]
struct Answers {
    body: Body,
    /// What was read of it and is no whole message yet.
    read: BytesMut,
    message: MessageDescriptor,
    form: Form,
    until: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Answers {
    fn write(&self, bytes: &[u8]) -> Result<Bytes, Status> {
        let mut text = write(bytes, &self.message)?;
        if self.form == Form::Envelopes {
            return frame(0, &text);
        }
        text.push(b'\n');
        Ok(text.into())
    }

    /// The last thing that is said, if there is something to say.
    fn last(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.ended = true;
        let failed = (status.code() != Code::Ok).then_some(status);
        match (self.form, failed) {
            (Form::Envelopes, failed) => Some(end(failed).map(Frame::data)),
            (Form::Lines | Form::One, None) => None,
            (Form::Lines | Form::One, Some(status)) => {
                let line = format!("{}\n", serde_json::json!({ "error": error::body(status) }));
                Some(Ok(Frame::data(line.into())))
            }
        }
    }
}

impl http_body::Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(until) = &mut this.until
            && until.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(this.last(&Refused::TooLong.into()));
        }
        loop {
            match next(&mut this.read).and_then(|bytes| bytes.map(|bytes| this.write(&bytes)).transpose()) {
                Ok(Some(text)) => return Poll::Ready(Some(Ok(Frame::data(text)))),
                Ok(None) => {}
                Err(status) => return Poll::Ready(this.last(&status)),
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.read.extend_from_slice(&data),
                    Err(frame) => {
                        let status = frame.trailers_ref().and_then(Status::from_header_map);
                        return Poll::Ready(this.last(&status.unwrap_or_else(|| Status::ok(""))));
                    }
                },
                Some(Err(status)) => return Poll::Ready(this.last(&status)),
                None => return Poll::Ready(this.last(&Status::ok(""))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_wherever_they_arrive() {
        let stream =
            [frame(0, b"one").unwrap(), frame(0, b"").unwrap(), frame(0, b"three").unwrap()].concat();
        for cut in 0..stream.len() {
            let mut read = BytesMut::new();
            let mut messages = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                read.extend_from_slice(part);
                while let Some(message) = next(&mut read).unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"one"[..], b"", b"three"]);
            assert!(read.is_empty());
        }
        next(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).unwrap_err();
    }
}
