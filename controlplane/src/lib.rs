//! The coordinator of Ringmesh: hands out signed membership, rules and names over gRPC.
#![forbid(unsafe_code)]

pub mod store;
