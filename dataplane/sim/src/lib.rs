//! A seeded virtual internet for the core of Ringmesh.
//!
//! A [`World`] holds nodes and relays, each with the whole sans-IO core; a [`Network`] of NATs and firewalls that loses,
//! duplicates, delays and thereby reorders what they send each other; and [`streams`] for where UDP does not pass. Time is
//! virtual: a day passes as fast as its events can be worked through. All chance comes from one seed, so a run that fails is
//! run again, and again, by naming its seed.
//!
//! The world keeps a ledger of every packet and panics the moment one is delivered twice, changed, or to the wrong node;
//! what else a test wants to hold, it asserts itself. [`theory`] says which roads there are between two nodes, from the
//! network alone; [`life`] lets seeded misfortune happen to a mesh and holds the core to what theory says.
//! [`seeds::check`] runs a scenario over many seeds and names those that fail.
//!
//! Each run of the tests lives 500 lives. To live 10,000, as before a release, and to live that of one seed again:
//!
//! ```sh
//! RINGMESH_SIM_RUNS=10000 cargo nextest run --release -p ringmesh-sim --test lives promises
//! RINGMESH_SIM_SEED=7 cargo nextest run -p ringmesh-sim --test lives promises
//! ```
//!
//! A life that breaks a promise tells its seed, the promise and the story of all that happened. The same variable replays a
//! seed of any other test here, if the test's name is given.
#![forbid(unsafe_code)]

mod agenda;
mod fault;
pub mod ledger;
mod liar;
pub mod life;
pub mod nat;
pub mod network;
pub mod node;
pub mod rng;
pub mod seeds;
pub mod streams;
pub mod theory;
pub mod trace;
pub mod weather;
pub mod world;

pub use fault::Fault;
pub use liar::Lie;
pub use nat::NatKind;
pub use network::{Network, Place, Realm};
pub use node::Node;
pub use rng::Rng;
pub use weather::Weather;
pub use world::{NodeIndex, World};
