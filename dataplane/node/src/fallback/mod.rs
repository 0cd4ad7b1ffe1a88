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

pub(crate) mod doors;
mod link;
pub(crate) mod link_socket;
mod queue;
pub(crate) mod ssh;
pub(crate) mod stream;
mod tcp;
pub(crate) mod websocket;

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use self::queue::OUTGOING_BYTES;
pub(crate) use self::{
    link::Opened,
    queue::{Arrival, Batch, DialOpen, Hub, LinkEnd, Links, SendError, links},
};
