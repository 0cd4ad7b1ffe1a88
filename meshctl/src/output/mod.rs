//! What the commands say: the result on standard output, everything else on standard error.
//!
//! A result is a [`Document`]: one content, shown as text to people and as JSON to programs. JSON objects carry `"v": 1`, are
//! described by `meshctl/schemas/*.json`, and only ever gain fields. Nothing else in this program writes to the two streams.

pub(crate) mod backup;
pub(crate) mod cleanup;
pub(crate) mod dns;
pub(crate) mod events;
pub(crate) mod filter;
pub(crate) mod installation;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod leave;
pub(crate) mod networks;
pub(crate) mod nodes;
pub(crate) mod path;
pub(crate) mod peers;
pub(crate) mod ping;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod problems;
pub(crate) mod relay;
mod rule;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod table;
pub(crate) mod tokens;
pub(crate) mod trace;
pub(crate) mod version;
pub(crate) mod wait;
pub(crate) mod why;

use std::{
    fmt,
    io::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::failure::{Exit, Failure};

/// The version of the JSON forms. It would rise if a field were removed or changed its meaning.
const JSON_VERSION: u32 = 1;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Plain ASCII for people
    #[default]
    Table,
    /// One JSON object, `"v": 1`, for programs
    Json,
}

/// A result of a command.
pub(crate) trait Document: Serialize {
    /// The form for people; lines end with a newline. `now` is milliseconds since 1970, for "3 d ago".
    fn text(&self, now: u64) -> String;
}

/// A document as programs get it.
#[derive(Serialize)]
struct Versioned<'a, D> {
    v: u32,
    #[serde(flatten)]
    document: &'a D,
}

/// The JSON form of `document`, pretty-printed, ending in a newline.
pub(crate) fn json(document: &impl Document) -> Result<String, Failure> {
    let mut text =
        serde_json::to_string_pretty(&Versioned { v: JSON_VERSION, document }).map_err(|error| {
            Failure::new(Exit::General, "the result cannot be written as JSON").cause(error.to_string())
        })?;
    text.push('\n');
    Ok(text)
}

/// Writes the result of a command.
pub(crate) fn result(format: Format, document: &impl Document) -> Result<(), Failure> {
    match format {
        Format::Table => write_result(&document.text(now_ms())),
        Format::Json => write_result(&json(document)?),
    }
}

/// Writes a part of a result as it is. A reader that has gone (`| head`) is no failure.
pub(crate) fn write_result(text: &str) -> Result<(), Failure> {
    write_line(text).map(drop)
}

/// Writes a part of a result as it is; false if its reader has gone, so that who has no end by himself may end.
pub(crate) fn write_line(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => {
            Err(Failure::new(Exit::General, "cannot write to standard output").cause(error.to_string()))
        }
    }
}

/// Tells the person who waits something that is not the result.
pub(crate) fn note(text: impl fmt::Display) {
    // Nobody is left to be told if standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{}", printable(&text.to_string()));
}

/// Says why the command failed, unless its result has said so.
pub(crate) fn failure(failure: &Failure) {
    if !failure.is_told() {
        note(failure);
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Makes text of unknown origin safe for a terminal: control characters (but line ends) become `?`, secrets are cut.
pub(crate) fn printable(text: &str) -> String {
    redact(text).chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// Cuts the secret part of whatever looks like a join token or an API key: `mesh1_...`, `meshkey1_...`.
pub(crate) fn redact(text: &str) -> String {
    SECRETS.iter().fold(text.to_owned(), |text, prefix| redact_after(&text, prefix))
}

/// What secrets of ours begin with.
const SECRETS: [&str; 2] = ["mesh1_", "meshkey1_"];

/// Cuts what follows `prefix` wherever it stands.
fn redact_after(text: &str, prefix: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(prefix) {
        let secret = after
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=' | '+' | '/')))
            .unwrap_or(after.len());
        safe.push_str(before);
        safe.push_str(prefix);
        if secret > 0 {
            safe.push_str("...");
        }
        rest = after.get(secret..).unwrap_or_default();
    }
    safe.push_str(rest);
    safe
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Checks the JSON form of a document against `schemas/<schema>.json`.
    #[track_caller]
    pub(crate) fn conforms(schema: &str, document: &impl Document) {
        let path = format!("{}/schemas/{schema}.json", env!("CARGO_MANIFEST_DIR"));
        let schema: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let document = serde_json::from_str(&json(document).unwrap()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&document)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{errors:#?} in {document:#}");
    }

    #[test]
    fn tokens_are_cut_wherever_they_stand() {
        assert_eq!(
            redact("unexpected argument 'mesh1_AbC-_9' found"),
            "unexpected argument 'mesh1_...' found"
        );
        assert_eq!(redact("mesh1_aaa mesh1_bbb"), "mesh1_... mesh1_...");
        assert_eq!(redact("mesh1_aamesh1_bb=="), "mesh1_...");
        assert_eq!(redact("join --token mesh1_..., please"), "join --token mesh1_..., please");
        assert_eq!(redact("one begins with `mesh1_`"), "one begins with `mesh1_`");
        assert_eq!(redact("no secret"), "no secret");
        assert_eq!(redact("key meshkey1_AbC-_9 for mesh1_xyz"), "key meshkey1_... for mesh1_...");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("web\u{1b}[31m1\nnext\u{9b}"), "web?[31m1\nnext?");
    }

    #[test]
    fn every_document_carries_the_version_first() {
        #[derive(Serialize)]
        struct Empty {
            name: &'static str,
        }
        impl Document for Empty {
            fn text(&self, _: u64) -> String {
                String::new()
            }
        }
        assert_eq!(json(&Empty { name: "x" }).unwrap(), "{\n  \"v\": 1,\n  \"name\": \"x\"\n}\n");
    }
}
