//! What a packet would have to get past from one member to another, stage by stage, as the coordinator knows it.
//!
//! The filters of both ends are the nodes' own (`ringmesh_tunnel::filter`), compiled from the same records and rules, so a trace
//! cannot disagree with what the nodes do once they have the policy in force.

use std::net::IpAddr;

use ringmesh_tunnel::{
    UnixTime,
    filter::{Decision, Direction, Filter, Opening},
    ip::Prefix,
    key::NodeId,
    netmap::{Member, Rule},
};

use super::{enroll::quoted, map::is_mesh, members, policies::number_of, state::NetworkState};
use crate::{policy::describe, store::Revision};

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// A name of a member or of the policy, an id, an address, or an address behind a member.
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) transport: Transport,
}

/// What a flow is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp(u16),
    Udp(u16),
    /// An echo request.
    Icmp,
    Number(u8),
}

/// What can be said of a stage; what weighs more comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Ok,
    Allowed,
    /// It cannot be seen from here.
    Unknown,
    Denied,
}

/// One thing that a packet must get past.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) detail: String,
}

/// The answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace {
    pub(crate) stages: Vec<Stage>,
    pub(crate) allowed: bool,
    /// The rule that allows it, or what denies it.
    pub(crate) by: String,
}

/// How a node stands with the coordinator.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    /// Whether it has a map stream.
    pub(crate) online: bool,
    /// The revision in its data plane.
    pub(crate) installed: Revision,
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Unknown(#[from] members::Refusal),
    #[error("{0}")]
    Question(String),
}

impl Transport {
    /// Reads a protocol as rules have it, and a port, 0 for none.
    pub(crate) fn parse(protocol: &str, port: u32) -> Result<Self, Refusal> {
        let wrong = |what: String| Err(Refusal::Question(what));
        let port_of = |name: &str| match u16::try_from(port) {
            Ok(0) => Err(Refusal::Question(format!("{name} needs a port, for example {name}/443"))),
            Ok(port) => Ok(port),
            Err(_) => Err(Refusal::Question(format!("there is no port {port}: ports go from 1 to 65535"))),
        };
        let transport = match protocol.to_ascii_lowercase().as_str() {
            "tcp" | "6" => return Ok(Self::Tcp(port_of("tcp")?)),
            "udp" | "17" => return Ok(Self::Udp(port_of("udp")?)),
            "icmp" | "1" | "58" => Self::Icmp,
            "" | "any" => return wrong("say which protocol: tcp, udp, icmp, or a number".into()),
            other => match other.parse() {
                Ok(number) => Self::Number(number),
                Err(_) => {
                    return wrong(format!(
                        "there is no protocol {}: tcp, udp, icmp, or a number up to 255",
                        quoted(protocol)
                    ));
                }
            },
        };
        if port != 0 {
            return wrong("only tcp and udp have ports".into());
        }
        Ok(transport)
    }

    const fn opening(self, source: IpAddr, destination: IpAddr) -> Opening {
        let (protocol, port) = match self {
            Self::Tcp(port) => (6, Some(port)),
            Self::Udp(port) => (17, Some(port)),
            Self::Icmp => (if destination.is_ipv4() { 1 } else { 58 }, None),
            Self::Number(number) => (number, None),
        };
        Opening { source, destination, protocol, port }
    }
}

/// One end of the flow, over one family.
#[derive(Clone, Copy)]
struct End<'a> {
    member: &'a Member,
    address: IpAddr,
    /// The route by which the address is behind the member.
    route: Option<Prefix>,
}

/// What somebody called an end: at most one address of each family, and who has it, if anybody.
#[derive(Clone, Copy, Default)]
struct Named<'a> {
    ipv4: Option<(IpAddr, Option<End<'a>>)>,
    ipv6: Option<(IpAddr, Option<End<'a>>)>,
}

impl NetworkState {
    /// Follows a packet from one member to another, over every address family that both ends have: whoever connects by name may take
    /// either. `standing` says how a node stands with the coordinator.
    pub(crate) fn trace(
        &self,
        question: &Question,
        now: UnixTime,
        standing: impl Fn(NodeId) -> Standing,
    ) -> Result<Trace, Refusal> {
        let (source, destination) = (self.named(&question.source)?, self.named(&question.destination)?);
        let follow =
            |(source, destination)| self.follow([source, destination], question.transport, now, &standing);
        let ipv4 = source.ipv4.zip(destination.ipv4).map(follow);
        let ipv6 = source.ipv6.zip(destination.ipv6).map(follow);
        match (ipv4, ipv6) {
            (Some(ipv4), Some(ipv6)) => Ok(both(ipv4, ipv6)),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => Err(Refusal::Question(
                "one end has IPv4 and the other IPv6 only: name addresses of one family".into(),
            )),
        }
    }

    /// Follows a packet from one address to another of the same family.
    fn follow(
        &self,
        ends: [(IpAddr, Option<End<'_>>); 2],
        transport: Transport,
        now: UnixTime,
        standing: &impl Fn(NodeId) -> Standing,
    ) -> Trace {
        let mut trace = Trace::default();
        for (name, (address, end)) in ["source", "destination"].into_iter().zip(ends) {
            trace.stages.push(match end {
                Some(end) => stage(name, Outcome::Ok, end.to_string()),
                None => stage(
                    name,
                    Outcome::Denied,
                    format!("{address}: no member has it, and none a route to it"),
                ),
            });
        }
        let [(_, Some(source)), (_, Some(destination))] = ends else {
            trace.by = trace
                .stages
                .iter()
                .find(|stage| stage.outcome == Outcome::Denied)
                .map_or_else(String::new, |stage| format!("{} ({})", stage.name, stage.detail));
            return trace;
        };
        if source.member.id == destination.member.id {
            let detail =
                "both addresses are of the same node: the mesh is not in between, and no rule is asked";
            trace.stages.push(stage("map", Outcome::Ok, detail.into()));
            (trace.allowed, trace.by) = (true, "the node itself".into());
            return trace;
        }
        trace.stages.push(self.membership(&source, &destination, now));
        trace.stages.push(self.maps(&source, &destination));
        let opening = transport.opening(source.address, destination.address);
        let (out, rule) = self.filtered(&source, &destination, Direction::Out, &opening);
        let (inward, in_rule) = self.filtered(&destination, &source, Direction::In, &opening);
        trace.stages.extend([out, inward]);
        trace.stages.push(self.installed(&[&source, &destination], standing));
        trace.stages.push(stage(
            "local-denials",
            Outcome::Unknown,
            "what the owner of a node denies there is known there only: run `meshctl trace` on both".into(),
        ));
        // Both ends judge by the same rules, so they name the same one.
        let rule = in_rule.or(rule);
        let denied = trace.stages.iter().find(|stage| stage.outcome == Outcome::Denied);
        trace.by = match (denied, rule) {
            (Some(stage), _) => format!("{} ({})", stage.name, stage.detail),
            (None, Some(rule)) => rule,
            (None, None) => "nobody: neither end has a filter of ours".into(),
        };
        trace.allowed =
            denied.is_none() && trace.stages.iter().any(|stage| stage.outcome == Outcome::Allowed);
        trace
    }

    fn named(&self, text: &str) -> Result<Named<'_>, Refusal> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.at([address]));
        }
        let name =
            text.strip_suffix(self.zone.as_str()).and_then(|text| text.strip_suffix('.')).unwrap_or(text);
        if let Some(found) = self.find(name) {
            let member = &found.member.record;
            let own = |address| (address, Some(End { member, address, route: None }));
            return Ok(Named {
                ipv4: member.ipv4.map(|ipv4| own(ipv4.into())),
                ipv6: Some(own(member.ipv6.into())),
            });
        }
        match self.names_of_policy().find(|record| record.name == name) {
            Some(record) => Ok(self.at(record.addresses.iter().copied())),
            None => Err(members::Refusal::Unknown(text.into()).into()),
        }
    }

    /// The first address of each family, with who has it.
    fn at(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Named<'_> {
        let mut named = Named::default();
        for address in addresses {
            let of_family = if address.is_ipv4() { &mut named.ipv4 } else { &mut named.ipv6 };
            if of_family.is_none() {
                *of_family = Some((address, self.holder(address)));
            }
        }
        named
    }

    fn holder(&self, address: IpAddr) -> Option<End<'_>> {
        let members = self.nodes.values().map(|node| &node.member.record);
        let holders = members.flat_map(|member| member.allowed_ips().map(move |own| (member, own)));
        let holders = holders.filter(|(_, own)| own.contains(address));
        let (member, own) = holders.max_by_key(|(_, own)| own.len())?;
        let is_own = member.ipv4.is_some_and(|ipv4| address == ipv4) || address == member.ipv6;
        Some(End { member, address, route: (!is_own).then_some(own) })
    }

    fn membership(&self, source: &End<'_>, destination: &End<'_>, now: UnixTime) -> Stage {
        let over = [source, destination].into_iter().find(|end| end.member.not_after <= now);
        let policy = self.policy.as_ref().map(|policy| policy.signed.record.not_after);
        let (outcome, detail) = match over {
            Some(end) => (Outcome::Denied, format!("the membership of {} has ended", end.member.name)),
            None if policy.is_none_or(|not_after| not_after <= now) => {
                (Outcome::Denied, "the policy has ended".into())
            }
            None => (Outcome::Ok, "both memberships and the policy are in force".into()),
        };
        stage("membership", outcome, detail)
    }

    fn maps(&self, source: &End<'_>, destination: &End<'_>) -> Stage {
        let slots = self.edges.slot(source.member.id).zip(self.edges.slot(destination.member.id));
        let sees = slots.is_some_and(|(one, other)| self.edges.sees(one, other));
        let [one, other] = [source, destination].map(|end| &end.member.name);
        let (outcome, detail) = match (is_mesh(source.member), is_mesh(destination.member)) {
            (false, false) => (
                Outcome::Denied,
                "both are stock WireGuard devices, which have sessions with nodes alone".into(),
            ),
            _ if !sees => (
                Outcome::Denied,
                format!("no rule connects {one} and {other}, so that neither has the other in its map"),
            ),
            (true, true) => (Outcome::Ok, format!("{one} and {other} have each other in their maps")),
            (true, false) => {
                (Outcome::Ok, format!("{one} has {other}, a stock WireGuard device, in its map"))
            }
            (false, true) => {
                (Outcome::Ok, format!("{other} has {one}, a stock WireGuard device, in its map"))
            }
        };
        stage("map", outcome, detail)
    }

    /// What the filter of `at` says of a flow with `peer`, and the rule that allows it.
    fn filtered(
        &self,
        at: &End<'_>,
        peer: &End<'_>,
        direction: Direction,
        opening: &Opening,
    ) -> (Stage, Option<String>) {
        let name = match direction {
            Direction::Out => "out-filter",
            Direction::In => "in-filter",
        };
        let node = &at.member.name;
        if !is_mesh(at.member) {
            let detail = format!("{node} is a stock WireGuard device: the other end's filter alone decides");
            return (stage(name, Outcome::Unknown, detail), None);
        }
        let leaves = self.policy.as_ref().map_or(&[][..], |policy| &policy.leaves);
        let rule_at = |place: u64| leaves.get(usize::try_from(place).ok()?)?.rule();
        let places = self.places(at.member.id).into_iter();
        let rules = places.filter_map(|place| Some((place, rule_at(place)?)));
        let filter = Filter::of(at.member, [peer.member], rules, &[]);
        match filter.decide(peer.member.id, direction, opening) {
            Decision::Allowed { rule } => {
                let text = |(place, rule): (u64, &Rule)| {
                    format!("rule {}: {}", number_of(leaves, place), describe(rule, |id| self.name_of(id)))
                };
                let rule = rule.and_then(|place| Some((place, rule_at(place)?))).map(text);
                let detail = format!("at {node}: {}", rule.as_deref().unwrap_or("everything passes"));
                (stage(name, Outcome::Allowed, detail), rule)
            }
            Decision::Denied | Decision::DeniedLocally { .. } => {
                (stage(name, Outcome::Denied, format!("at {node}: no rule allows it")), None)
            }
        }
    }

    fn installed(&self, ends: &[&End<'_>], standing: &impl Fn(NodeId) -> Standing) -> Stage {
        let revision = self.policy_revision();
        let mut outcome = Outcome::Ok;
        let nodes = ends.iter().filter(|end| is_mesh(end.member)).map(|end| {
            let Standing { online, installed } = standing(end.member.id);
            let name = &end.member.name;
            match (online, installed >= revision) {
                (true, true) => format!("{name} has the policy in force (r{revision})"),
                (true, false) => {
                    outcome = Outcome::Unknown;
                    format!("{name} is online but behind: r{installed} of r{revision}")
                }
                (false, _) => {
                    outcome = Outcome::Unknown;
                    format!("{name} is offline, and goes by what it was told last")
                }
            }
        });
        let detail = nodes.collect::<Vec<_>>().join("; ");
        stage("installed", outcome, detail)
    }
}

impl std::fmt::Display for End<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Member { name, id, .. } = self.member;
        match self.route {
            None => write!(f, "{name} ({id}) at {}", self.address),
            Some(route) => write!(f, "{}, behind {name} ({id}) by its route {route}", self.address),
        }
    }
}

const fn stage(name: &'static str, outcome: Outcome, detail: String) -> Stage {
    Stage { name, outcome, detail }
}

/// One answer out of those over IPv4 and over IPv6. What they have in common is said once.
fn both(ipv4: Trace, ipv6: Trace) -> Trace {
    let over = |one: String, other: String| {
        if one == other { one } else { format!("over IPv4: {one}; over IPv6: {other}") }
    };
    let mut trace =
        Trace { stages: Vec::new(), allowed: ipv4.allowed && ipv6.allowed, by: over(ipv4.by, ipv6.by) };
    let mut other = ipv6.stages.into_iter().peekable();
    // Both have the stages in the same order, and one may end earlier.
    for Stage { name, outcome, detail } in ipv4.stages {
        let same = other.next_if(|stage| stage.name == name);
        trace.stages.push(match same {
            Some(same) => stage(name, outcome.max(same.outcome), over(detail, same.detail)),
            None => stage(name, outcome, format!("over IPv4: {detail}")),
        });
    }
    trace.stages.extend(
        other.map(|Stage { name, outcome, detail }| stage(name, outcome, format!("over IPv6: {detail}"))),
    );
    trace
}
