//! The coordinator of Ringmesh: hands out signed membership, rules and names over gRPC.
#![forbid(unsafe_code)]

mod advertise;
pub mod clock;
pub mod config;
pub mod server;
pub mod state_dir;
pub mod store;
pub mod tls;
pub mod vault;
