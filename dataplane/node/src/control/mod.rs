//! The node's side of the control plane.

mod backoff;
mod connect;
mod convert;
mod tls;
