//! A seeded virtual internet for the core of Ringmesh.
//!
//! A [`World`] holds nodes, each with the whole sans-IO core, and a [`Network`] that loses, duplicates, delays and thereby
//! reorders what they send each other. Time is virtual: a day passes as fast as its events can be worked through. All
//! chance comes from one seed, so a run that fails is run again, and again, by naming its seed.
//!
//! The world keeps a ledger of every packet and panics the moment one is delivered twice, changed, or to the wrong node;
//! what else a test wants to hold, it asserts itself. [`seeds::check`] runs a scenario over many seeds and names those that
//! fail.
#![forbid(unsafe_code)]

pub mod ledger;
pub mod network;
pub mod node;
pub mod rng;
pub mod seeds;
pub mod trace;
pub mod world;

pub use network::{Network, Weather};
pub use node::Node;
pub use rng::Rng;
pub use world::{NodeIndex, World};
