//! The node's side of the control plane: finding a coordinator that proves itself, enrolling, staying in step, reporting.

mod backoff;
pub(crate) mod connect;
pub(crate) mod convert;
pub(crate) mod enroll;
mod report;
pub(crate) mod sync;
pub(crate) mod tls;

/// What we say we are.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
