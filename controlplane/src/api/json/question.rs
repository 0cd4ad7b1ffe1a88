//! A request's body on its way to a handler: JSON that becomes a message when the handler reads it.

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor};
use serde::de::DeserializeSeed as _;
use tonic::{Status, body::Body};

use super::{MAX_JSON, error, once::Once};

/// Bytes in front of each message in gRPC and in streams of Connect: flags, and a length of four bytes.
pub(super) const HEAD: usize = 5;

/// The body of a request of gRPC, made of one of JSON, which is read when somebody reads this.
pub(super) fn question(body: Body, message: MessageDescriptor, enveloped: bool) -> Body {
    let asked = async move {
        let text = read(body).await?;
        let text = if enveloped { open(&text)? } else { &text };
        frame(0, &parse(text, &message)?.encode_to_vec()).map(Frame::data)
    };
    Body::new(StreamBody::new(stream::once(asked)))
}

/// All of a body, which has at most [`MAX_JSON`] bytes. In one piece: many small ones would take more memory than they have bytes.
async fn read(mut body: Body) -> Result<BytesMut, Status> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let data = frame?.into_data().unwrap_or_default();
        if text.len().saturating_add(data.len()) > MAX_JSON {
            return Err(Status::resource_exhausted(format!(
                "a request has at most {MAX_JSON} bytes of JSON"
            )));
        }
        text.extend_from_slice(&data);
    }
    Ok(text)
}

/// The message with what goes in front of it.
pub(super) fn frame(flags: u8, message: &[u8]) -> Result<Bytes, Status> {
    let length = u32::try_from(message.len()).map_err(|_| Status::internal("a message above 4 GiB"))?;
    let mut framed = BytesMut::with_capacity(HEAD.saturating_add(message.len()));
    framed.extend_from_slice(&[flags]);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    Ok(framed.freeze())
}

/// The one message of an enveloped request.
fn open(text: &[u8]) -> Result<&[u8], Status> {
    let wrong = || {
        error::invalid("body", "it is not one enveloped message: flags 0, its length in four bytes, and JSON")
    };
    let ([flags, a, b, c, d], rest) = text.split_first_chunk::<HEAD>().ok_or_else(wrong)?;
    if *flags != 0 {
        return Err(error::invalid("body", "the envelope's flags are not 0, and nothing is compressed here"));
    }
    if usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])) != Ok(rest.len()) {
        return Err(wrong());
    }
    Ok(rest)
}

/// The message that a text stands for. No text at all stands for one without fields.
fn parse(text: &[u8], message: &MessageDescriptor) -> Result<DynamicMessage, Status> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(DynamicMessage::new(message.clone()));
    }
    let mut json = serde_json::Deserializer::from_slice(text);
    let mut track = serde_path_to_error::Track::new();
    let parsed = DynamicMessage::deserialize_with_options(
        message.clone(),
        serde_path_to_error::Deserializer::new(&mut json, &mut track),
        &DeserializeOptions::new(),
    );
    let path = track.path().to_string();
    // What has no name is a "?".
    let field = Some(path.trim_end_matches(['?', '.'])).filter(|path| !path.is_empty()).unwrap_or("body");
    let parsed = parsed.map_err(|error| error::invalid(field, &error.to_string()))?;
    json.end().map_err(|error| error::invalid("body", &error.to_string()))?;
    Once::Message(message.clone())
        .deserialize(&mut serde_json::Deserializer::from_slice(text))
        .map_err(|error| error::invalid("body", &error.to_string()))?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::methods;

    fn input(path: &str) -> MessageDescriptor {
        methods::of(path).unwrap().input()
    }

    #[test]
    fn json_becomes_the_message_and_what_is_wrong_is_named() {
        let create = input("/ringmesh.admin.v1.TokenService/CreateToken");
        let parse = |text: &str| parse(text.as_bytes(), &create);
        for good in ["", " \n", "{}", r#"{"reusable":true,"tags":["a","b"]}"#, r#"{"network":null}"#] {
            parse(good).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, field, why) in [
            (r#"{"reusabel":true}"#, "reusabel", "unrecognized field"),
            (r#"{"reusable":"yes"}"#, "reusable", "invalid type"),
            (r#"{"tags":["a",7]}"#, "tags[1]", "invalid type"),
            ("{", "body", "EOF"),
            ("[]", "body", "invalid type"),
            ("{} {}", "body", "trailing"),
            ("nonsense", "body", "expected"),
        ] {
            let refused = parse(bad).unwrap_err();
            assert!(refused.message().contains(field) && refused.message().contains(why), "{bad}: {refused}");
        }
        for twice in [
            r#"{"maxUses":1,"max_uses":1000}"#,
            r#"{"max_uses":1000,"maxUses":1}"#,
            r#"{"maxUses":1,"maxUses":1000}"#,
            r#"{"maxUses":null,"max_uses":1000}"#,
            r#"{"reusable":true,"tags":["a"],"tags":[]}"#,
        ] {
            let refused = parse(twice).unwrap_err();
            assert!(refused.message().contains("is said twice"), "{twice}: {refused}");
        }
        // Deeper than anybody needs: refused, not a stack that overflows.
        let deep = format!("{}{}", r#"{"network":["#.repeat(100_000), "]}".repeat(100_000));
        parse(&deep).unwrap_err();
    }

    #[test]
    fn an_envelope_holds_one_message_and_nothing_else() {
        let whole = frame(0, b"{}").unwrap();
        assert_eq!(open(&whole).unwrap(), b"{}");
        for length in 0..whole.len() {
            open(&whole[..length]).unwrap_err();
        }
        open(&[&whole[..], b"x"].concat()).unwrap_err();
        open(&frame(1, b"{}").unwrap()).unwrap_err();
        open(&[0, 255, 255, 255, 255]).unwrap_err();
    }
}
