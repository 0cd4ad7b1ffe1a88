//! What a node's owner denies beyond the policy.

use std::collections::BTreeSet;

use super::Opening;
use crate::ip::protocol;
use crate::key::NodeId;
use crate::netmap::{PortRange, Protocol};

/// Who opens a flow, seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// A peer.
    In,
    /// This node, or what is behind it.
    Out,
}

impl Direction {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// Which directions something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Both.
    #[default]
    Both,
    /// One.
    Only(Direction),
}

impl Scope {
    fn covers(self, direction: Direction) -> bool {
        match self {
            Self::Both => true,
            Self::Only(only) => only == direction,
        }
    }
}

/// A narrowing on this node alone: flows that may not be opened, whatever the policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Names it in reports.
    pub id: u32,
    /// Whose openings it is about.
    pub scope: Scope,
    /// With whom; none: with everybody.
    pub peers: Option<BTreeSet<NodeId>>,
    /// By which transport.
    pub protocol: Protocol,
    /// To which ports; none: to all. Only with TCP or UDP.
    pub ports: Vec<PortRange>,
}

impl Denial {
    /// Whether it forbids an opening.
    pub(super) fn forbids(&self, peer: NodeId, direction: Direction, opening: &Opening) -> bool {
        self.scope.covers(direction)
            && self.peers.as_ref().is_none_or(|peers| peers.contains(&peer))
            && matches(self.protocol, &self.ports, opening)
    }
}

/// Whether an opening is by this transport and to one of these ports.
pub(super) fn matches(protocol: Protocol, ports: &[PortRange], opening: &Opening) -> bool {
    let by = match protocol {
        Protocol::Any => true,
        Protocol::Tcp => opening.protocol == protocol::TCP,
        Protocol::Udp => opening.protocol == protocol::UDP,
        Protocol::Icmp => {
            opening.protocol == if opening.destination.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 }
        }
        Protocol::Number(number) => opening.protocol == number,
    };
    let to = || opening.port.is_some_and(|port| ports.iter().any(|range| range.contains(port)));
    by && (ports.is_empty() || to())
}
