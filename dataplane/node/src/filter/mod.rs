//! The node's share of the packet filter: what its owner denies beyond the policy, and filters in words.
//!
//! What a filter is and how it judges is `ringmesh_tunnel::filter`; when one is compiled and put in force is the mesh's.

mod denials;
mod words;

pub(crate) use self::denials::{Denials, Wish};
pub(crate) use self::words::{
    Names, parse_ports, parse_protocol, parse_scope, ports_text, rule_text, scope_text, selectors_text,
};
