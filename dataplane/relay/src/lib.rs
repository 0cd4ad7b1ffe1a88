//! The relay: passes on sealed datagrams between members of a network that cannot reach each other.
#![forbid(unsafe_code)]

pub mod frame;
