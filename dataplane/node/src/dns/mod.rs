//! Names of the network, answered on this machine and for this machine alone.
//!
//! ```text
//!   a program's query ──► server (UDP, TCP) ──► answering: one decision, no I/O ──► zone: the map's names
//!                                                   └──► forward: the resolvers that were in place
//! ```
//!
//! A [`Zone`] is made of the network map, off the packet path, and replaced whole when the map changes. The [`Server`]
//! answers from the newest one. It is an authority for the network's names and for the reverse names of its pools, and
//! passes on everything else as it came; it never resolves by itself, and has no cache that could be poisoned.

mod answering;
mod counters;
pub(crate) mod forward;
mod message;
mod reverse;
mod server;
mod special;
mod tcp;
mod udp;
mod zone;

#[cfg(test)]
mod tests;

pub(crate) use answering::Answer;
pub(crate) use counters::{By, Report};
pub(crate) use server::Server;
pub(crate) use zone::Zone;
