//! The sans-IO core of Ringmesh: WireGuard's protocol as plain state machines, and the signed records nodes trust.
//!
//! Nothing here reads a clock, opens a socket or starts a thread: input arrives through `handle_*`, `seal_run` and
//! `inbound_run`, output leaves through return values and `poll_*`, and time is an argument ([`Now`]). That is what lets a
//! seeded simulation run a week of network weather in a second.
//!
//! [`Tunnel`] is one worker's half: sessions, timers and routing by allowed addresses. [`Handshaker`] is the half that
//! does Diffie-Hellman, on a thread of its own, so that a flood of handshakes never takes the packet path's time. The two
//! exchange [`Job`]s and [`JobDone`]s.
#![forbid(unsafe_code)]

pub mod enroll;
pub mod ip;
pub mod key;
pub mod netmap;

pub mod allowed_ips;
pub mod drop_reason;
pub mod filter;
pub mod handshake;
pub mod message;
pub mod path;
pub mod peer;
pub mod random;
pub mod relayed;
pub mod time;
pub mod timers;
pub mod transmit;
pub mod tunnel;

mod counts;
mod establish;
mod filtering;
mod inbound;
mod index;
mod notice;
mod outbound;
mod packet;
mod peers;
mod reach;
mod run;
mod schedule;
mod session;

#[cfg(test)]
mod tests;

pub use counts::{Carried, Durations, HandshakeCounts, PathKind, Role, Volume};
pub use drop_reason::{DropCounters, DropReason};
pub use handshake::{Floors, Handshaker, Job, JobDone};
pub use inbound::Inbound;
pub use notice::BindRefusal;
pub use outbound::{Outbound, Route};
pub use path::{Candidate, Carrier, Channel, Hop, Link, Origin, Path, PathFailure, PathState, PathStatus};
pub use peer::{LinkCandidate, PeerConfig, PeerState, PeerStatus, PingError, Psk};
pub use random::{NoRandomness, Random};
pub use reach::{BindAnswer, Dial};
pub use run::{MAX_RUN, Packet};
pub use time::{Now, UnixTime};
pub use transmit::Transmit;
pub use tunnel::{Event, Tunnel};
