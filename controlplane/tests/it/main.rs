//! The coordinator as its callers meet it: real SQLite, real TLS on loopback, a real unix socket.
#![allow(missing_docs, reason = "test names are facts and speak for themselves")]
#![forbid(unsafe_code)]

mod client;
mod enrolment;
mod harness;
mod stream;
