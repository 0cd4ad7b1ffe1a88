//! The coordinator as its callers meet it: real SQLite, real TLS on loopback, a real unix socket.
#![allow(missing_docs, reason = "test names are facts and speak for themselves")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]
#![allow(unreachable_pub, reason = "one crate of tests")]
#![forbid(unsafe_code)]

mod access;
mod admin;
mod cap;
mod client;
mod clones;
mod crash;
mod crowd;
mod deltas;
mod enrolment;
mod events;
mod flood;
mod harness;
mod hostile;
mod installed;
mod json;
mod metrics;
mod policy;
mod proven;
mod relay;
mod repeat;
mod secrets;
mod start;
mod stream;
mod trace;
mod tunnel;
