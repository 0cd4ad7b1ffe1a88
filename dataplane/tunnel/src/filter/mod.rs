//! The packet filter: who may open a flow to whom, by the policy's rules as they concern one node.
//!
//! Rules only allow, and what they allow is opening a flow; without one nothing passes. [`Filter::decide`] is the whole
//! judgement about an opening, and everybody uses it: the packet path, traces, and the tests and plans of policies.

//!
//! The packet path asks the gate, which knows flows: replies, ICMP errors that quote a flow and later fragments pass by state
//! alone. `docs/packet-path.md` tells what it tracks, for how long, and what it denies.

mod compile;
mod denial;
mod flow;
mod gate;
mod report;

#[cfg(test)]
mod tests;

pub use compile::Filter;
pub use denial::{Denial, Direction, Scope};
pub use flow::MAX_FLOWS;
pub use report::{FilterReport, RuleHits};

pub(crate) use flow::Flows;
pub(crate) use gate::{Gate, Neighbour, Pass, Passage};

use std::net::IpAddr;

/// The first packet of a flow, as far as rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// Who opens it.
    pub source: IpAddr,
    /// To whom; of the same family.
    pub destination: IpAddr,
    /// The number in the IP header, or in the last extension header of IPv6.
    pub protocol: u8,
    /// The destination port, of TCP and UDP; none for other protocols.
    pub port: Option<u16>,
}

/// What becomes of an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It passes.
    Allowed {
        /// The first rule that allows it, by its place among the policy's leaves, from 0 on; none if everything passes.
        rule: Option<u64>,
    },
    /// This node's owner forbids it.
    DeniedLocally {
        /// The number of the denial.
        denial: u32,
    },
    /// No rule allows it.
    Denied,
}

impl Decision {
    /// Whether it passes.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}
