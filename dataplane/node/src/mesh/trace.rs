//! Whether a flow between this node and a peer may be opened, told stage by stage.
//!
//! The judgement is that of the packet path: the filter that is in force is asked. What the other side's policy says of it
//! follows from the same rules, which both ends hold; what its owner denies there, only that node knows.

use std::{net::IpAddr, time::Instant};

use ringmesh_proto::{control::Reason, local};
use ringmesh_tunnel::{
    PeerState,
    filter::{Decision, Direction, Filter, Opening},
    ip::protocol,
    netmap::{Member, MemberKind, Protocol},
    time::UnixTime,
};

use super::{Held, Mesh, durable, filter::rule_number};
use crate::{
    clock,
    error::Failure,
    filter::{Names, parse_protocol, rule_text},
    peers::{self, is_relay},
    plane::Plane,
};

/// One end of a flow.
struct End {
    /// `None`: no member that this node knows.
    member: Option<Member>,
    /// The address asked about, or what a name record leads to; the member's own if it was named itself.
    addresses: Vec<IpAddr>,
    /// What was asked.
    text: String,
}

impl End {
    fn name(&self) -> &str {
        self.member.as_ref().map_or(self.text.as_str(), |member| member.name.as_str())
    }

    /// Its addresses in words.
    fn shown(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// What a filter says of one opening.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    outcome: &'static str,
    detail: String,
    /// What decides; none if this is not for the filter asked to say.
    by: Option<String>,
}

impl Verdict {
    const DENIED: &'static str = "denied";

    fn no_rule(held: &Held) -> Self {
        Self { outcome: Self::DENIED, detail: why_no_rule(held).to_owned(), by: Some("no rule".to_owned()) }
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

    /// Tells what a filter says of every opening: once if that is the same of all. All must be allowed for the flow to be.
    fn judge(&mut self, stage: &str, verdicts: &[(Opening, Verdict)]) {
        let Some((_, first)) = verdicts.first() else { return };
        let alike = verdicts.iter().all(|(_, verdict)| verdict == first);
        let (mut allowed, told) = (Vec::new(), if alike { 1 } else { verdicts.len() });
        for (opening, Verdict { outcome, detail, by }) in verdicts.iter().take(told) {
            let family = if opening.destination.is_ipv6() { "IPv6" } else { "IPv4" };
            let (detail, by) = if alike {
                (detail.clone(), by.clone())
            } else {
                let detail = format!("{family} ({} to {}): {detail}", opening.source, opening.destination);
                (detail, by.as_ref().map(|by| format!("{by} over {family}")))
            };
            self.say(stage, outcome, detail);
            match by {
                Some(by) if *outcome == Verdict::DENIED => _ = self.denied_by.get_or_insert(by),
                Some(by) => allowed.push(by),
                None => {}
            }
        }
        if !allowed.is_empty() {
            self.allowed_by = Some(allowed.join(", "));
        }
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
        let ends = [&request.source, &request.destination].map(|text| self.end_of(&held, text));
        let is_me = |end: &End| end.member.as_ref().is_some_and(|member| member.id == me);
        // Said before that one is unknown: of such a flow this node can tell nothing anyway.
        if !ends.iter().flatten().any(is_me) {
            return Err(Failure::invalid(format!(
                "neither `{}` nor `{}` is this node, which can only tell of its own flows; ask the coordinator",
                request.source, request.destination
            )));
        }
        let [source, destination] = ends;
        let (source, destination) = (source?, destination?);
        let direction = match (is_me(&source), is_me(&destination)) {
            (true, true) => {
                return Err(Failure::invalid(
                    "both are this node itself: what it sends itself meets no filter",
                ));
            }
            (true, false) => Direction::Out,
            (false, _) => Direction::In,
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
            let why = "no member that this node knows has it: there is none, or no rule lets either open a flow to the other";
            told.deny("map", "the map", why);
            return Ok(told.end());
        };
        let openings = openings_of(&source, &destination, protocol, port)?;
        let own = |end: &End| if is_me(end) { ", this node" } else { "" };
        told.say("source", "ok", format!("{}{}, {}", source.name(), own(&source), source.shown()));
        told.say(
            "destination",
            "ok",
            format!("{}{}, {}", destination.name(), own(&destination), destination.shown()),
        );
        if let Some(why) = self.why_no_peer(&held, &peer, clock::wall()) {
            told.deny("map", "the map", why);
            return Ok(told.end());
        }
        let serial = held.map.policy().map_or(0, |policy| policy.serial);
        told.say("map", "ok", format!("r{}, policy {serial}: {} is a peer", durable(&held.map), peer.name));
        match direction {
            Direction::Out => {
                self.tell_own_side(&held, &peer, direction, &openings, &mut told);
                self.tell_path(&peer, &mut told).await;
                tell_far_side(&held, &peer, direction, &openings, &mut told);
            }
            Direction::In => {
                tell_far_side(&held, &peer, direction, &openings, &mut told);
                self.tell_path(&peer, &mut told).await;
                self.tell_own_side(&held, &peer, direction, &openings, &mut told);
            }
        }
        Ok(told.end())
    }

    /// Whom a name, an id or an address means; an address may also lie behind a member, and a name of the policy lead to one.
    fn end_of(&self, held: &Held, text: &str) -> Result<End, Failure> {
        let text = text.to_owned();
        if let Ok(address) = text.parse() {
            return Ok(End { member: holder(held, address).cloned(), addresses: vec![address], text });
        }
        if let Some(member) = self.find_member(&text) {
            let addresses = member.ipv4.map(IpAddr::from).into_iter().chain([member.ipv6.into()]).collect();
            return Ok(End { member: Some(member), addresses, text });
        }
        let zone = format!(".{}", self.membership().zone);
        let name = text.strip_suffix(&zone).unwrap_or(&text);
        let record = held.map.names(clock::wall()).find(|record| record.name.eq_ignore_ascii_case(name));
        let Some(record) = record else {
            let told = format!("no node that this one may talk to has the name or id `{text}`");
            return Err(Failure::new(Reason::NodeUnknown, told));
        };
        let addresses = record.addresses.clone();
        let holders: Vec<_> = addresses.iter().map(|address| holder(held, *address)).collect();
        let one = holders.iter().all(|it| it.map(|member| member.id) == holders[0].map(|member| member.id));
        if !one {
            return Err(Failure::invalid(format!(
                "`{text}` leads to more than one member: say which address of {}",
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            )));
        }
        Ok(End { member: holders.into_iter().flatten().next().cloned(), addresses, text })
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
        openings: &[Opening],
        told: &mut Told,
    ) {
        let verdict = |opening: &Opening| match held.filter.decide(peer.id, direction, opening) {
            Decision::Allowed { rule } => {
                let shown = rule.map(|rule| (rule_name(rule), rule_of(held, rule)));
                let (by, detail) = match shown {
                    Some((name, Some(text))) => (format!("{name} ({text})"), format!("{name}: {text}")),
                    Some((name, None)) => (name.clone(), name),
                    None => ("no filter".to_owned(), "no filter".to_owned()),
                };
                Verdict { outcome: "allowed", detail, by: Some(by) }
            }
            Decision::DeniedLocally { denial } => Verdict {
                outcome: Verdict::DENIED,
                detail: format!("denial {denial} of this node's owner; see `meshctl filter list`"),
                by: Some(format!("denial {denial}")),
            },
            Decision::Denied => Verdict::no_rule(held),
        };
        let verdicts: Vec<_> = openings.iter().map(|opening| (*opening, verdict(opening))).collect();
        told.judge(stage_of(direction, true), &verdicts);
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
fn tell_far_side(held: &Held, peer: &Member, direction: Direction, openings: &[Opening], told: &mut Told) {
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
    let verdict = |opening: &Opening| match theirs.decide(me.id, seen_there, opening) {
        Decision::Allowed { rule } => {
            let rule = rule.map_or_else(|| "no filter".to_owned(), |rule| rule_shown(held, rule));
            let detail = format!("{rule}; what {}'s owner denies is only known there", peer.name);
            Verdict { outcome: "unknown", detail, by: None }
        }
        Decision::Denied | Decision::DeniedLocally { .. } => Verdict::no_rule(held),
    };
    let verdicts: Vec<_> = openings.iter().map(|opening| (*opening, verdict(opening))).collect();
    told.judge(stage, &verdicts);
}

/// Whose an address is, by the longest match.
fn holder(held: &Held, address: IpAddr) -> Option<&Member> {
    let longest = |member: &&Member| {
        let own = member.allowed_ips().filter(|prefix| prefix.contains(address));
        own.map(|prefix| prefix.len()).max()
    };
    held.map.members().filter(|member| longest(member).is_some()).max_by_key(longest)
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
        "no rule allows it"
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

/// The first packets that the flow may begin with: by each family that both ends have, IPv4 first. Which of them a program
/// takes is its own choice.
fn openings_of(
    source: &End,
    destination: &End,
    protocol: Protocol,
    port: Option<u16>,
) -> Result<Vec<Opening>, Failure> {
    let mut openings = Vec::new();
    for ipv6 in [false, true] {
        let of = |end: &'_ End| -> Vec<IpAddr> {
            end.addresses.iter().filter(|address| address.is_ipv6() == ipv6).copied().collect()
        };
        for source in of(source) {
            openings.extend(of(destination).into_iter().map(|destination| Opening {
                source,
                destination,
                protocol: number_of(protocol, ipv6),
                port,
            }));
        }
    }
    if openings.is_empty() {
        let (source, destination) = (&source.text, &destination.text);
        return Err(Failure::invalid(format!(
            "`{source}` and `{destination}` have no addresses of one family"
        )));
    }
    Ok(openings)
}

const fn number_of(protocol: Protocol, ipv6: bool) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Icmp if ipv6 => protocol::ICMPV6,
        // `Any` was refused.
        Protocol::Icmp | Protocol::Any => protocol::ICMP,
        Protocol::Number(number) => number,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(text: &str) -> End {
        End { member: None, addresses: text.split(' ').flat_map(str::parse).collect(), text: text.to_owned() }
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
    fn every_family_that_both_ends_have_is_judged() {
        let of = |source, destination| openings_of(&end(source), &end(destination), Protocol::Icmp, None);
        let numbers = |source, destination| -> Vec<u8> {
            of(source, destination).unwrap().iter().map(|opening| opening.protocol).collect()
        };
        assert_eq!(numbers("192.0.2.1", "192.0.2.2"), [1]);
        assert_eq!(numbers("2001:db8::1", "2001:db8::2"), [58]);
        assert_eq!(numbers("2001:db8::1 192.0.2.1", "2001:db8::2"), [58]);
        assert_eq!(numbers("2001:db8::1 192.0.2.1", "2001:db8::2 192.0.2.2"), [1, 58]);
        let refused = of("192.0.2.1", "2001:db8::2").unwrap_err();
        assert!(refused.to_string().contains("one family"), "{refused}");
    }

    #[test]
    fn a_flow_is_allowed_if_it_is_by_every_family_and_a_difference_is_told() {
        let both = openings_of(
            &end("192.0.2.1 2001:db8::1"),
            &end("192.0.2.2 2001:db8::2"),
            Protocol::Tcp,
            Some(22),
        );
        let both = both.unwrap();
        let verdict = |outcome, by: &str| Verdict { outcome, detail: by.to_owned(), by: Some(by.to_owned()) };
        let judge = |v4: Verdict, v6: Verdict| {
            let mut told = Told::default();
            told.judge("out-filter", &[(both[0], v4), (both[1], v6)]);
            told.end()
        };
        let (allowed, denied) = (verdict("allowed", "rule 1"), verdict(Verdict::DENIED, "no rule"));
        let alike = judge(allowed.clone(), allowed.clone());
        assert!(alike.allowed && alike.by == "rule 1" && alike.stages.len() == 1, "{alike:?}");
        for (v4, v6, by) in [
            (&allowed, &denied, "no rule over IPv6"),
            (&denied, &allowed, "no rule over IPv4"),
            (&denied, &denied, "no rule"),
        ] {
            let told = judge(v4.clone(), v6.clone());
            assert!(!told.allowed && told.by == by, "{told:?}");
            assert_eq!(told.stages.len(), if v4 == v6 { 1 } else { 2 });
        }
        let two = judge(allowed, verdict("allowed", "rule 2"));
        assert!(two.allowed && two.by == "rule 1 over IPv4, rule 2 over IPv6", "{two:?}");
        assert_eq!(two.stages[1].detail, "IPv6 (2001:db8::1 to 2001:db8::2): rule 2");
    }
}
