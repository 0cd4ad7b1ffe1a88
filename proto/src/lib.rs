//! The gRPC messages and services of Ringmesh, generated from `ringmesh/*/v1/*.proto`; nothing else lives here.
//!
//! The `.proto` files are the documentation. Conversion to and from the types of the core happens at the edges:
//! `control::convert` in the node, `api` in the coordinator.

#![forbid(unsafe_code)]

/// `ringmesh.control.v1`: node and coordinator.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::restriction,
    reason = "generated"
)]
pub mod control {
    tonic::include_proto!("ringmesh.control.v1");
}

/// `ringmesh.admin.v1`: operators and coordinator.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::restriction,
    reason = "generated"
)]
pub mod admin {
    tonic::include_proto!("ringmesh.admin.v1");
}

/// `ringmesh.local.v1`: programs of this machine and the node daemon.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::restriction,
    reason = "generated"
)]
pub mod local {
    tonic::include_proto!("ringmesh.local.v1");
}

/// The encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
