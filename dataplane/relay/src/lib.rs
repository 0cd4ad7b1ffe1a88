//! The relay: passes on sealed datagrams between members of a network that cannot reach each other.
//!
//! [`Relay`] is the protocol without clock or socket, one for each network. [`Server`] runs up to 64 of them on one UDP port and
//! over WebSockets, on a thread of its own; the coordinator has one, and so may a node or a process that does nothing else.
//! [`frame`] is how datagrams travel in byte streams, here and in the nodes.
#![forbid(unsafe_code)]

mod channels;
mod client;
mod drops;
pub mod frame;
mod pairs;
pub mod rate;
pub mod relay;
pub mod server;

pub use drops::{Dropped, RelayDrop, RelayDrops};
pub use rate::{Limiter, Rates};
pub use relay::{ClientReport, Receiver, Relay, RelayEvent, Traffic, Verdict};
pub use server::{
    ForwardedHeader, Handle, Limits, NetworkReport, Ports, Refused, Report, Server, ServerConfig, Source,
    StartError, Stopped, TlsLimits, UnknownHeader,
};
