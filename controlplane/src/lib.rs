//! The coordinator of Ringmesh: admits nodes, keeps their records, and tells each node what it may know.
//!
//! ```text
//! server ──> api ──> auth ──> coordinator ──> store (SQLite)
//!  TLS, unix    gRPC    proofs      │  ▲             │ commits
//!                                   ▼  └─────────────┘
//!                                network (sans-IO: state, plans, maps)
//! ```
//!
//! [`run`] is the daemon. A coordinator gives out nothing that a node takes on trust: every right is an envelope signed by a
//! key that the network's root certified, and nodes verify it from the root down.
#![forbid(unsafe_code)]

mod advertise;
pub mod api;
mod auth;
mod backup;
mod bind;
pub mod clock;
pub mod config;
pub mod coordinator;
mod error;
mod metrics;
pub mod network;
pub mod policy;
mod relay;
mod run;
pub mod server;
pub mod state_dir;
pub mod store;
pub mod tls;
pub mod vault;

pub use self::{
    backup::{BackupError, back_up},
    bind::{Bound, bind},
    config::{Config, ConfigError},
    coordinator::Coordinator,
    error::DOMAIN,
    metrics::{Census, Tasks, Watched},
    relay::RelayError,
    run::{Ready, StartError, run},
    tls::certificate_pem,
};
