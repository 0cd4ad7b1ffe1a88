//! Streams for where UDP cannot pass: WebSockets to relays and SSH to peers, each a link that carries sealed datagrams.
//!
//! ```text
//!   worker thread                         asynchronous side
//!   Tunnel ── Dial ──► Links ───────────► dialer ──► websocket, ssh ──► a stream
//!     ▲                  │ ▲                                              │
//!     └── datagrams ─────┘ └── queue: batches of frames, both ways ── link: pump
//! ```
//!
//! Whoever opens a stream, or accepts one, is nobody: only the session inside says who it is.

mod frame;
mod link;
mod queue;
mod stream;
mod tcp;
mod websocket;

pub(crate) use self::queue::{Arrival, Batch, DialOpen, Hub, Links, SendError, links};
#[cfg(test)]
pub(crate) use self::queue::{LinkEnd, OUTGOING_BYTES};
