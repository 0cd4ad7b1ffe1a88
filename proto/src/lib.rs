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

/// `ringmesh.options.v1`: what is said of methods.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unused_qualifications,
    clippy::all,
    clippy::restriction,
    reason = "generated"
)]
pub mod options {
    tonic::include_proto!("ringmesh.options.v1");
}

/// Who may call what: the `access` option of every method of ours. A method without one does not build.
pub mod access {
    pub use crate::options::Access;

    /// A method and who may call it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Method {
        /// As in a request: `/package.Service/Method`.
        pub path: &'static str,
        /// Never [`Access::Unspecified`].
        pub access: Access,
    }

    /// All methods, service by service.
    pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/access.rs"));

    /// Who may call the method of a request; `None` if there is no such method of ours.
    #[must_use]
    pub fn of(path: &str) -> Option<Access> {
        METHODS.iter().find(|method| method.path == path).map(|method| method.access)
    }
}

/// The encoded `FileDescriptorSet` of all packages and what they import, with their comments: for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
