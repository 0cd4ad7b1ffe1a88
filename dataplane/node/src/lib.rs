//! The node daemon of Ringmesh, as a library.
#![forbid(unsafe_code)]

mod clock;
mod config;
mod control;
mod error;
mod host;
mod local;
mod state;

pub use config::Config;
pub use error::Failure;
