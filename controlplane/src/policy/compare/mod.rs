//! What one policy allows that another one does not, between whom: exact, to the last port and address.
//!
//! An opening from one member to another passes if the filters of both ends allow it, and both compile the same rules. So it passes if
//! some rule selects the source's address and the destination's, its protocol and its port; comparing two policies is comparing such
//! sets for every pair of members. What makes that cheap:
//!
//! * Members that the rules of both policies treat alike are one **class**, and are compared once. Addresses that the rules treat alike
//!   are one **part** of a member; most members are of one part.
//! * A pair of classes of which neither is selected otherwise than before is passed over.
//! * What a set of rules allows is summed up once for each set that occurs.
//!
//! With M members, R rules of both policies, S words in them and C classes (C ≤ M) that takes O(S log S + M R / 64) to select, and
//! O(C² R / 64) for classes that changed: a few milliseconds for a thousand members in some tens of classes, some tenths of a second
//! when no two of a thousand members are alike and every rule changed.
//!
//! Relays are left out, as they send and take no packets of their own, and so are pairs of stock devices, which have no filter.

mod classes;
mod pairs;
mod ranges;
mod services;

pub(super) use self::services::Ports;

use std::fmt;

use ringmesh_tunnel::{
    ip::Prefix,
    key::NodeId,
    netmap::{Member, PortRange, Protocol, Rule},
};

use super::describe::service_text;

/// A policy as it bears on members.
#[derive(Debug, Clone, Copy)]
pub struct Allowances<'a> {
    /// The members, with the groups that this policy gives them.
    pub members: &'a [Member],
    /// Its rules.
    pub rules: &'a [Rule],
}

/// What becomes different from one policy to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What may be opened that could not be before, by the names of source and destination.
    pub allowed: Vec<Change>,
    /// What could be opened and may not be any more.
    pub stopped: Vec<Change>,
    /// How many entries `allowed` would have if all were listed.
    pub allowed_total: u64,
    /// How many entries `stopped` would have.
    pub stopped_total: u64,
}

/// Something that becomes possible, or stops, from one member to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who opens.
    pub source: NodeId,
    /// To whom.
    pub destination: NodeId,
    /// Between which of their addresses, if not between all of one family: a range on the source's side and one on the destination's;
    /// none of a side is all of it.
    pub within: Option<(Option<Prefix>, Option<Prefix>)>,
    /// By which transport.
    pub protocol: Protocol,
    /// To which ports; none: all.
    pub ports: Vec<PortRange>,
    /// Of [`Protocol::Any`]: what the change is not about.
    pub except: Vec<Service>,
}

/// A transport, and ports of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The transport.
    pub protocol: Protocol,
    /// The ports; none: all.
    pub ports: Vec<PortRange>,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&service_text(self.protocol, &self.ports))
    }
}

impl Change {
    /// The protocol as people read it: `tcp`, or `any but tcp/22,icmp`.
    #[must_use]
    pub fn protocol_text(&self) -> String {
        let except: Vec<String> = self.except.iter().map(ToString::to_string).collect();
        if except.is_empty() {
            self.protocol.to_string()
        } else {
            format!("{} but {}", self.protocol, except.join(" "))
        }
    }
}

/// Compares what two policies allow; lists at most `most` entries of each kind, and counts all.
///
/// Members are told apart by their ids: one that is in only one of the two has nothing in the other.
#[must_use]
pub fn compare(before: &Allowances<'_>, after: &Allowances<'_>, most: usize) -> Plan {
    let classes = classes::Classes::of(before, after);
    pairs::compare(&classes, most)
}
