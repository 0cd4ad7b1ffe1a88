//! The node daemon of Ringmesh, as a library: one machine's part in a mesh.
//!
//! ```text
//!   local API ──► daemon ──► mesh ──► control: one stream to a coordinator, verified maps
//!   (unix socket)              │
//!                              ▼ Command / Event, a waker
//!                            plane ──► worker thread: PacketIo::turn + pipeline + Tunnel
//!                                 └──► handshake thread: key agreement
//! ```
//!
//! [`run`] is the whole daemon. Protobuf stops at `control/convert.rs` and `local/`; the kernel's words stop at
//! `ringmesh-io` and `host/`; what is trusted is decided in `ringmesh_tunnel::netmap`.
#![forbid(unsafe_code)]

mod candidates;
mod clock;
pub mod config;
mod control;
mod daemon;
mod dialer;
mod dns;
mod error;
mod fallback;
mod filter;
mod handshaker;
mod host;
mod join;
mod links;
mod local;
mod mesh;
mod peers;
mod pipeline;
mod plane;
mod relaying;
mod roads;
mod state;
mod watched;
mod worker;

pub use config::Config;
pub use daemon::{Bound, bind, cleanup, run};
pub use error::{ERROR_DOMAIN, Failure};
