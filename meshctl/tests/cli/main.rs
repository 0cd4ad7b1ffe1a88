//! The executable as people and scripts use it: real processes, real exit codes, real JSON against its schemas.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what does not hold in a test shall end it")]

mod backup;
mod coordinator;
mod documented;
mod events;
mod filters;
mod impostor;
mod joining;
mod keys;
mod logs;
mod manuals;
mod names;
mod policies;
mod refusals;
mod relays;
mod remote;
mod secrets;
mod supervised;
mod support;
mod systemd;
mod usage;
