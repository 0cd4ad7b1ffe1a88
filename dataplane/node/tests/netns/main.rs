//! Real daemons with real TUN devices, each in network namespaces of its own: it works.

#[path = "../support/mod.rs"]
mod support;

mod pair;
mod world;
