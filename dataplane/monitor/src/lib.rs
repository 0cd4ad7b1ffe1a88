//! What monitoring reads of a daemon, over HTTP: `/metrics`, `/livez`, `/readyz` (also as `/healthz`) and `/version`.
//!
//! A daemon is a [`Subject`]. Nothing is counted here: whoever does the work counts it in plain words, and for each scrape the
//! subject gathers them into a [`Registry`] that lives as long as the answer. So series of what is gone are gone, too.

#![forbid(unsafe_code)]

mod server;
mod subject;

pub use prometheus_client::{self, registry::Registry};

pub use self::{
    server::{BindError, Monitor},
    subject::{Check, Subject, Version},
};

/// What every metric's name begins with.
pub const PREFIX: &str = "ringmesh";
