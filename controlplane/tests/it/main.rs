//! The coordinator as its callers meet it: real SQLite, real TLS on loopback, a real unix socket.
#![allow(missing_docs, reason = "test names are facts and speak for themselves")]
#![forbid(unsafe_code)]

mod admin;
mod client;
mod crash;
mod enrolment;
mod harness;
mod start;
mod stream;
