//! Whether a flow between this node and a peer may be opened, told stage by stage.
//!
//! The judgement is that of the packet path: the filter that is in force is asked. What the other side's policy says of it
//! follows from the same rules, which both ends hold; what its owner denies there, only that node knows.

use std::{net::IpAddr, time::Instant};

use ringmesh_proto::local;
use ringmesh_tunnel::{
    PeerState,
    filter::{Decision, Direction, Filter, Opening},
    netmap::{Member, MemberKind, Protocol},
    time::UnixTime,
};

use super::{Held, Mesh, durable, filter::rule_number};
use crate::{
    clock,
    error::Failure,
    filter::{Names, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, parse_protocol, rule_text},
    peers::{self, is_relay},
    plane::Plane,
};

/// One end of a flow.
struct End {
    /// `None`: no member that this node knows.
    member: Option<Member>,
    /// The address asked about; none if only the member was named.
    address: Option<IpAddr>,
    /// What was asked.
    text: String,
}

impl End {
    fn name(&self) -> &str {
        self.member.as_ref().map_or(self.text.as_str(), |member| member.name.as_str())
    }

    /// Its address of one family.
    fn address_of(&self, ipv6: bool) -> Option<IpAddr> {
        match self.address {
            Some(address) => Some(address).filter(|address| address.is_ipv6() == ipv6),
            None if ipv6 => self.member.as_ref().map(|member| member.ipv6.into()),
            None => self.member.as_ref().and_then(|member| member.ipv4).map(Into::into),
        }
    }
}

/// The stages so far, and what they come to.
#[derive(Default)]
struct Told {
    stages: Vec<local::TraceStage>,
    denied_by: Option<String>,
    allowed_by: Option<String>,
}

impl Told {
    fn say(&mut self, stage: &str, outcome: &str, detail: impl Into<String>) {
        let (stage, outcome, detail) = (stage.to_owned(), outcome.to_owned(), detail.into());
        self.stages.push(local::TraceStage { stage, outcome, detail });
    }

    fn deny(&mut self, stage: &str, by: impl Into<String>, detail: impl Into<String>) {
        self.say(stage, "denied", detail);
        self.denied_by.get_or_insert_with(|| by.into());
    }

    fn end(self) -> local::TraceResponse {
        let allowed = self.denied_by.is_none();
        let by = self.denied_by.or(self.allowed_by).unwrap_or_default();
        local::TraceResponse { stages: self.stages, allowed, by }
    }
}

impl Mesh {
    /// Tells what becomes of the first packet of a flow.
    ///
    /// # Errors
    /// The question makes no sense, or is not about this node.
    pub(crate) async fn trace(&self, request: &local::TraceRequest) -> Result<local::TraceResponse, Failure> {
        let protocol = parse_protocol(&request.protocol)?;
        let port = check_port(protocol, request.port)?;
        let held = self.held();
        let me = self.membership().node;
        let [source, destination] = [&request.source, &request.destination].map(|text| self.end_of(text));
        let is_me = |end: &End| end.member.as_ref().is_some_and(|member| member.id == me);
        let direction = match (is_me(&source), is_me(&destination)) {
            (true, false) => Direction::Out,
            (false, true) => Direction::In,
            (true, true) => {
                return Err(Failure::invalid(
                    "both are this node itself: what it sends itself meets no filter",
                ));
            }
            (false, false) => {
                return Err(Failure::invalid(format!(
                    "neither `{}` nor `{}` is this node, which can only tell of its own flows; ask the coordinator",
                    request.source, request.destination
                )));
            }
        };
        let (near, far) = match direction {
            Direction::Out => (&source, &destination),
            Direction::In => (&destination, &source),
        };
        let mut told = Told::default();
        let Some(peer) = far.member.clone() else {
            let (stage, other) = match direction {
                Direction::Out => ("destination", "source"),
                Direction::In => ("source", "destination"),
            };
            told.say(other, "ok", format!("{}, this node", near.name()));
            told.say(stage, "unknown", format!("`{}`", far.text));
            let why = "no member that this node knows: there is none, or no rule lets either open a flow to the other";
            told.deny("map", "the map", why);
            return Ok(told.end());
        };
        let opening = opening_of(&source, &destination, protocol, port)?;
        let own = |end: &End| if is_me(end) { ", this node" } else { "" };
        told.say("source", "ok", format!("{}{}, {}", source.name(), own(&source), opening.source));
        told.say(
            "destination",
            "ok",
            format!("{}{}, {}", destination.name(), own(&destination), opening.destination),
        );
        if let Some(why) = self.why_no_peer(&held, &peer, clock::wall()) {
            told.deny("map", "the map", why);
            return Ok(told.end());
        }
        let serial = held.map.policy().map_or(0, |policy| policy.serial);
        told.say("map", "ok", format!("r{}, policy {serial}: {} is a peer", durable(&held.map), peer.name));
        match direction {
            Direction::Out => {
                self.tell_own_side(&held, &peer, direction, &opening, &mut told);
                self.tell_path(&peer, &mut told).await;
                tell_far_side(&held, &peer, direction, &opening, &mut told);
            }
            Direction::In => {
                tell_far_side(&held, &peer, direction, &opening, &mut told);
                self.tell_path(&peer, &mut told).await;
                self.tell_own_side(&held, &peer, direction, &opening, &mut told);
            }
        }
        Ok(told.end())
    }

    /// Whom a name, an id or an address means; an address may also lie behind a member.
    fn end_of(&self, text: &str) -> End {
        let address: Option<IpAddr> = text.parse().ok();
        let member = match address {
            Some(address) => {
                let held = self.held();
                let longest = |member: &&Member| {
                    let own = member.allowed_ips().filter(|prefix| prefix.contains(address));
                    own.map(|prefix| prefix.len()).max()
                };
                held.map.members().filter(|member| longest(member).is_some()).max_by_key(longest).cloned()
            }
            None => self.find_member(text),
        };
        End { member, address, text: text.to_owned() }
    }

    /// Why a member is no peer now, if it is so.
    fn why_no_peer(&self, held: &Held, peer: &Member, now: UnixTime) -> Option<String> {
        if self.is_removed() {
            return Some("this node was removed from its network".to_owned());
        }
        if self.plane().is_none() {
            return Some("the data plane does not run; see `meshctl status`".to_owned());
        }
        if !held.map.in_force(now) {
            return Some("this node's own membership has ended: a coordinator has to renew it".to_owned());
        }
        if !held.map.peers(now).any(|member| member.id == peer.id) {
            return Some(format!("the membership of {} has ended: a coordinator has to renew it", peer.name));
        }
        if is_relay(peer) || self.config.relay.is_some() {
            return Some("a relay passes on what it cannot read, and takes no packets itself".to_owned());
        }
        if !peers::has_key(&held.secrets, peer) {
            return Some("no key for this peer yet: a coordinator has to send it".to_owned());
        }
        None
    }

    /// What this node's filter says, denials and all: the one that its workers run.
    fn tell_own_side(
        &self,
        held: &Held,
        peer: &Member,
        direction: Direction,
        opening: &Opening,
        told: &mut Told,
    ) {
        let stage = stage_of(direction, true);
        match held.filter.decide(peer.id, direction, opening) {
            Decision::Allowed { rule } => {
                let shown = rule.map(|rule| (rule_name(rule), rule_of(held, rule)));
                let (by, detail) = match shown {
                    Some((name, Some(text))) => (format!("{name} ({text})"), format!("{name}: {text}")),
                    Some((name, None)) => (name.clone(), name),
                    None => ("no filter".to_owned(), "no filter".to_owned()),
                };
                told.say(stage, "allowed", detail);
                told.allowed_by = Some(by);
            }
            Decision::DeniedLocally { denial } => {
                let detail = format!("denial {denial} of this node's owner; see `meshctl filter list`");
                told.deny(stage, format!("denial {denial}"), detail);
            }
            Decision::Denied => told.deny(stage, "no rule", why_no_rule(held)),
        }
    }

    /// Whether the peer is reached at this moment. What is not there yet begins with the first packet.
    async fn tell_path(&self, peer: &Member, told: &mut Told) {
        let running = self.plane();
        let Some(plane) = running.as_deref().and_then(Plane::packets) else { return };
        let Ok(report) = plane.report().await else {
            return told.say("path", "unknown", "the data plane does not answer");
        };
        let Some(status) = report.peers.iter().find(|status| status.id == peer.id) else {
            return told.say("path", "unknown", "the data plane does not have this peer yet");
        };
        let established = status.state == PeerState::Established;
        let (outcome, detail) = match status.endpoint {
            Some(path) if established => {
                let route = self.route_of(path, peer.id).await;
                let heard =
                    status.last_received.map(|at| Instant::now().saturating_duration_since(at).as_secs());
                let heard = heard.map(|seconds| format!(", heard {seconds} s ago")).unwrap_or_default();
                ("ok", format!("a session, {} by {}{heard}", route.path, route.endpoint))
            }
            Some(_) | None if established => ("unknown", "a session, and no path that works now".to_owned()),
            Some(_) | None => ("ok", "no session now: the first packet begins one".to_owned()),
        };
        told.say("path", outcome, detail);
    }
}

/// What the rules say on the other end. They are the same on both.
fn tell_far_side(held: &Held, peer: &Member, direction: Direction, opening: &Opening, told: &mut Told) {
    let stage = stage_of(direction, false);
    if peer.kind == MemberKind::Stock {
        let detail = format!("{} is a stock WireGuard device: it has no filter of ours", peer.name);
        return told.say(stage, "unknown", detail);
    }
    let Some(me) = held.map.me() else { return };
    let theirs = Filter::of(peer, [me], held.map.numbered_rules(clock::wall()), &[]);
    let seen_there = match direction {
        Direction::Out => Direction::In,
        Direction::In => Direction::Out,
    };
    match theirs.decide(me.id, seen_there, opening) {
        Decision::Allowed { rule } => {
            let rule = rule.map_or_else(|| "no filter".to_owned(), |rule| rule_shown(held, rule));
            let detail = format!("{rule}; what {}'s owner denies is only known there", peer.name);
            told.say(stage, "unknown", detail);
        }
        Decision::Denied | Decision::DeniedLocally { .. } => told.deny(stage, "no rule", why_no_rule(held)),
    }
}

/// What the filter of this node's side, or of the other, is called.
const fn stage_of(direction: Direction, own: bool) -> &'static str {
    match (direction, own) {
        (Direction::Out, true) | (Direction::In, false) => "out-filter",
        (Direction::In, true) | (Direction::Out, false) => "in-filter",
    }
}

fn rule_name(index: u64) -> String {
    format!("rule {}", rule_number(index))
}

/// A rule in words.
fn rule_of(held: &Held, index: u64) -> Option<String> {
    let mut rules = held.map.numbered_rules(clock::wall());
    rules.find(|(at, _)| *at == index).map(|(_, rule)| rule_text(rule, Names(&held.map)))
}

/// A rule by its number and in words.
fn rule_shown(held: &Held, index: u64) -> String {
    let name = rule_name(index);
    rule_of(held, index).map_or_else(|| name.clone(), |text| format!("{name}: {text}"))
}

fn why_no_rule(held: &Held) -> &'static str {
    if held.map.policy_in_force(clock::wall()) {
        "no rule allows it, and what no rule allows is denied"
    } else {
        "no policy is in force, so nothing is allowed"
    }
}

/// A flow is of one protocol, and of TCP and UDP to one port.
fn check_port(protocol: Protocol, port: u32) -> Result<Option<u16>, Failure> {
    if protocol == Protocol::Any {
        return Err(Failure::invalid("a flow has a protocol: say `tcp`, `udp`, `icmp`, or a number"));
    }
    match (protocol.has_ports(), u16::try_from(port)) {
        (false, Ok(0)) => Ok(None),
        (false, _) => Err(Failure::invalid(format!("port {port}: only tcp and udp have ports"))),
        (true, Ok(port @ 1..)) => Ok(Some(port)),
        (true, _) => Err(Failure::invalid(format!("port {port} of {protocol}: say one from 1 to 65535"))),
    }
}

/// The first packet of the flow: by IPv4 if both ends have it, unless an address says otherwise.
fn opening_of(
    source: &End,
    destination: &End,
    protocol: Protocol,
    port: Option<u16>,
) -> Result<Opening, Failure> {
    let pair = |ipv6| source.address_of(ipv6).zip(destination.address_of(ipv6));
    let (source, destination) = pair(false).or_else(|| pair(true)).ok_or_else(|| {
        Failure::invalid(format!(
            "`{}` and `{}` have no addresses of one family",
            source.text, destination.text
        ))
    })?;
    let protocol = match protocol {
        Protocol::Tcp => PROTOCOL_TCP,
        Protocol::Udp => PROTOCOL_UDP,
        Protocol::Icmp if destination.is_ipv6() => PROTOCOL_ICMPV6,
        // `Any` was refused.
        Protocol::Icmp | Protocol::Any => PROTOCOL_ICMP,
        Protocol::Number(number) => number,
    };
    Ok(Opening { source, destination, protocol, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> End {
        End { member: None, address: text.parse().ok(), text: text.to_owned() }
    }

    #[test]
    fn a_flow_is_of_one_protocol_and_to_a_port_if_there_are_ports() {
        assert_eq!(check_port(Protocol::Tcp, 22).unwrap(), Some(22));
        assert_eq!(check_port(Protocol::Icmp, 0).unwrap(), None);
        for (protocol, port) in [
            (Protocol::Any, 0),
            (Protocol::Tcp, 0),
            (Protocol::Udp, 65_536),
            (Protocol::Icmp, 22),
            (Protocol::Number(47), 65_536),
        ] {
            check_port(protocol, port).unwrap_err();
        }
    }

    #[test]
    fn both_ends_are_of_one_family() {
        let of = |source, destination, protocol| opening_of(&end(source), &end(destination), protocol, None);
        assert_eq!(of("192.0.2.1", "192.0.2.2", Protocol::Icmp).unwrap().protocol, 1);
        assert_eq!(of("2001:db8::1", "2001:db8::2", Protocol::Icmp).unwrap().protocol, 58);
        let refused = of("192.0.2.1", "2001:db8::2", Protocol::Icmp).unwrap_err();
        assert!(refused.to_string().contains("one family"), "{refused}");
    }
}
