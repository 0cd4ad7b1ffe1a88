//! Networks without input and output: what is stored, what is held in memory, what is planned, what nodes are told.
//!
//! ```text
//! snapshot, commits ──> Registry ──> NetworkState ──> edges ──> map::full, map::delta, trace   (what a node is told)
//!                                         └────────> enroll, members, policies, tokens, renew: Change (what to write, and to say)
//! ```
//!
//! A plan names the entries it was made from; the store commits it only if they are unchanged, else it is made again from
//! the newer state. So everything here is a pure function, and the race is decided in one place.

pub(crate) mod api_keys;
pub mod authority;
mod changes;
pub(crate) mod create;
mod edges;
pub(crate) mod enroll;
pub(crate) mod events;
pub(crate) mod key;
#[cfg(test)]
mod large;
pub mod map;
pub(crate) mod members;
pub(crate) mod policies;
pub mod pool;
mod registry;
pub(crate) mod relay;
pub(crate) mod renew;
pub(crate) mod requests;
pub(crate) mod row;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod tokens;
pub(crate) mod trace;

pub(crate) use self::{
    events::Change,
    state::{Node, PolicyVersion, Signed},
};
pub use self::{registry::Registry, row::Damage, state::NetworkState};
use crate::store::{Compare, Op};

/// The names of all events, as they are told: `docs/events.md`.
pub fn event_names() -> impl Iterator<Item = &'static str> {
    events::Name::ALL.into_iter().map(events::Name::as_str)
}

/// What to write, if everything it was planned from is still so. It becomes a [`Change`], which can be committed, by what is to be said
/// of it.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) compare: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
}
