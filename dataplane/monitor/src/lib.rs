//! What monitoring reads of a daemon, over HTTP: `/metrics`, `/livez`, `/readyz` (also as `/healthz`) and `/version`.
//!
//! A daemon is a [`Subject`]. Nothing is counted here: whoever does the work counts it in plain words, and for each scrape the
//! subject gathers them, mostly as [`Series`], into a [`Registry`] that lives as long as the answer. So series of what is gone are gone, too.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

mod answer;
mod listen;
mod process;
pub mod relay;
mod scrape;
mod series;
mod server;
mod subject;
mod text;
mod visitor;

pub use prometheus_client::{
    self,
    registry::{Registry, Unit},
};

pub use self::{
    listen::Listen,
    series::{LABEL_LIMIT, Series},
    server::{BindError, CONNECTIONS, Monitor},
    subject::{Check, Subject, Version},
};

/// What every metric's name begins with.
pub const PREFIX: &str = "ringmesh";

/// The commit that this program was built of, in hexadecimal, or `unknown`: of the environment's `RINGMESH_COMMIT` when it was
/// built, or in a release build of git.
pub const COMMIT: &str = env!("RINGMESH_MONITOR_COMMIT");
