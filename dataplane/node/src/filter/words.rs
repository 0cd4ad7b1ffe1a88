//! Directions, protocols, ports and rules as people write and read them.

use ringmesh_tunnel::{
    filter::{Direction, Scope},
    ip::protocol::{ICMP, ICMPV6, TCP, UDP},
    key::NodeId,
    netmap::{NetworkMap, PORTS_MAX, PortRange, Protocol, Rule, Selector},
};

use crate::error::Failure;

/// Reads a direction: `in`, `out`, and `both` or nothing.
///
/// # Errors
/// It is none of them.
pub(crate) fn parse_scope(text: &str) -> Result<Scope, Failure> {
    match text {
        "" | "both" => Ok(Scope::Both),
        "in" => Ok(Scope::Only(Direction::In)),
        "out" => Ok(Scope::Only(Direction::Out)),
        _ => Err(Failure::invalid(format!(
            "direction `{text}`: say `in` (a peer begins), `out` (this node begins) or `both`"
        ))),
    }
}

/// The same as it is read.
pub(crate) const fn scope_text(scope: Scope) -> &'static str {
    match scope {
        Scope::Both => "both",
        Scope::Only(Direction::In) => "in",
        Scope::Only(Direction::Out) => "out",
    }
}

/// Reads a protocol: `tcp`, `udp`, `icmp` (and ICMPv6), a number, and `any` or nothing. One that has a name gets it.
///
/// # Errors
/// It is none of them.
pub(crate) fn parse_protocol(text: &str) -> Result<Protocol, Failure> {
    Ok(match text {
        "" | "any" => Protocol::Any,
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        _ => match number::<u8>(text) {
            Some(TCP) => Protocol::Tcp,
            Some(UDP) => Protocol::Udp,
            Some(ICMP | ICMPV6) => Protocol::Icmp,
            Some(number) => Protocol::Number(number),
            None => {
                return Err(Failure::invalid(format!(
                    "protocol `{text}`: say `tcp`, `udp`, `icmp`, `any`, or a number from 0 to 255"
                )));
            }
        },
    })
}

/// Reads ports of `protocol`: `443`, `8000-8080`, several with commas in between, and `*` or nothing for all.
///
/// # Errors
/// A port is none or out of range, there are more than [`PORTS_MAX`], or the protocol has no ports.
pub(crate) fn parse_ports(text: &str, protocol: Protocol) -> Result<Vec<PortRange>, Failure> {
    let text = text.trim();
    if matches!(text, "" | "*") {
        return Ok(Vec::new());
    }
    if !protocol.has_ports() {
        return Err(Failure::invalid(format!(
            "ports `{text}`: only tcp and udp have ports, and the protocol is {protocol}"
        )));
    }
    let ports = text.split(',').map(|part| parse_range(part.trim())).collect::<Result<Vec<_>, _>>()?;
    if ports.len() > PORTS_MAX {
        return Err(Failure::invalid(format!(
            "{} ports and ranges of ports: at most {PORTS_MAX}",
            ports.len()
        )));
    }
    Ok(ports)
}

fn parse_range(text: &str) -> Result<PortRange, Failure> {
    let wrong = |why: &str| Failure::invalid(format!("port `{text}`: {why}"));
    let usual = "say a number from 1 to 65535, or a range like 8000-8080";
    let port = |text: &str| number::<u16>(text).filter(|port| *port != 0).ok_or_else(|| wrong(usual));
    match text.split_once('-') {
        None => port(text).map(PortRange::from),
        Some((first, last)) => PortRange::new(port(first)?, port(last)?)
            .ok_or_else(|| wrong("a range goes from the lower port to the higher")),
    }
}

/// A number in plain digits: no sign, no blank, no leading zero that could mean another base.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Ports as they are read; `*` for all.
pub(crate) fn ports_text(ports: &[PortRange]) -> String {
    if ports.is_empty() {
        return "*".to_owned();
    }
    ports.iter().map(PortRange::to_string).collect::<Vec<_>>().join(",")
}

/// What members are called; one that is not in the map, by its id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names<'a>(pub(crate) &'a NetworkMap);

impl Names<'_> {
    pub(crate) fn of(self, id: NodeId) -> String {
        self.0.member(id).map_or_else(|| id.to_string(), |member| member.name.clone())
    }
}

/// One side of a rule; `nobody` if it is empty.
pub(crate) fn selectors_text(selectors: &[Selector], names: Names<'_>) -> String {
    if selectors.is_empty() {
        return "nobody".to_owned();
    }
    let word = |selector: &Selector| match selector {
        Selector::All => "*".to_owned(),
        Selector::Node(id) => names.of(*id),
        Selector::Group(group) => format!("group:{group}"),
        Selector::Tag(tag) => format!("tag:{tag}"),
        Selector::Prefix(prefix) if prefix.is_host() => prefix.address().to_string(),
        Selector::Prefix(prefix) => prefix.to_string(),
    };
    selectors.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// A rule in a line.
pub(crate) fn rule_text(rule: &Rule, names: Names<'_>) -> String {
    let (from, to) = (selectors_text(&rule.sources, names), selectors_text(&rule.destinations, names));
    let ports = if rule.ports.is_empty() { String::new() } else { format!("/{}", ports_text(&rule.ports)) };
    format!("{from} -> {to} {}{ports}", rule.protocol)
}

#[cfg(test)]
mod tests {
    use ringmesh_tunnel::{key::IdentitySecret, key::NetworkId};

    use super::*;

    fn refused<T: std::fmt::Debug>(result: Result<T, Failure>) -> String {
        let failure = result.unwrap_err();
        assert_eq!(failure.reason(), ringmesh_proto::control::Reason::InvalidArgument);
        failure.to_string()
    }

    #[test]
    fn directions_are_read_as_they_are_written() {
        for text in ["both", "in", "out"] {
            assert_eq!(scope_text(parse_scope(text).unwrap()), text);
        }
        assert_eq!(parse_scope("").unwrap(), Scope::Both);
        for text in ["inbound", "IN", " in", "in,out"] {
            assert!(refused(parse_scope(text)).contains(&format!("`{text}`")));
        }
    }

    #[test]
    fn protocols_are_read_as_they_are_written_and_have_one_form() {
        for text in ["any", "tcp", "udp", "icmp", "0", "47", "255"] {
            assert_eq!(parse_protocol(text).unwrap().to_string(), text);
        }
        for (number, protocol) in [("6", "tcp"), ("17", "udp"), ("1", "icmp"), ("58", "icmp"), ("", "any")] {
            assert_eq!(parse_protocol(number).unwrap().to_string(), protocol);
        }
        for text in ["256", "-1", "+6", "06", "sctp", "TCP", "tcp/22", "6 "] {
            assert!(refused(parse_protocol(text)).contains(&format!("`{text}`")), "{text}");
        }
    }

    #[test]
    fn ports_are_read_as_they_are_written() {
        for text in ["443", "8000-8080", "22,80,8000-8080", "1-65535", "*"] {
            assert_eq!(ports_text(&parse_ports(text, Protocol::Tcp).unwrap()), text);
        }
        assert_eq!(parse_ports("22, 80", Protocol::Udp).unwrap().len(), 2);
        assert!(parse_ports("", Protocol::Tcp).unwrap().is_empty());
        assert!(parse_ports("*", Protocol::Icmp).unwrap().is_empty(), "all of none");
    }

    #[test]
    fn ports_that_are_none_are_refused_and_named() {
        for (text, named) in [
            ("0", "`0`"),
            ("65536", "`65536`"),
            ("22,", "``"),
            ("22,,80", "``"),
            ("http", "`http`"),
            ("80-79", "lower port to the higher"),
            ("80-", "`80-`"),
            ("1-2-3", "`1-2-3`"),
            ("+22", "`+22`"),
            ("022", "`022`"),
            ("22 80", "`22 80`"),
        ] {
            let told = refused(parse_ports(text, Protocol::Tcp));
            assert!(told.contains(named), "{text}: {told}");
        }
        for protocol in [Protocol::Any, Protocol::Icmp, Protocol::Number(47)] {
            assert!(refused(parse_ports("22", protocol)).contains("only tcp and udp have ports"));
        }
        let most = vec!["7"; PORTS_MAX].join(",");
        assert_eq!(parse_ports(&most, Protocol::Tcp).unwrap().len(), PORTS_MAX);
        assert!(refused(parse_ports(&format!("{most},8"), Protocol::Tcp)).contains("at most 64"));
    }

    #[test]
    fn a_rule_reads_like_a_sentence() {
        let root = IdentitySecret::from_seed([1; 32]).public_key();
        let id = NodeId::from_bytes([7; 8]);
        let map = NetworkMap::empty(NetworkId::of_root(&root), root, id);
        let rule = Rule {
            sources: vec![Selector::Group("admins".to_owned()), Selector::Node(id)],
            destinations: vec![
                Selector::Tag("web".to_owned()),
                Selector::Prefix("10.1.0.0/16".parse().unwrap()),
                Selector::Prefix("100.64.0.7/32".parse().unwrap()),
            ],
            protocol: Protocol::Tcp,
            ports: vec![22.into(), PortRange::new(8000, 8100).unwrap()],
        };
        assert_eq!(
            rule_text(&rule, Names(&map)),
            "group:admins, 0707070707070707 -> tag:web, 10.1.0.0/16, 100.64.0.7 tcp/22,8000-8100",
            "a member that is not known has its id"
        );
        let nobody = Rule {
            sources: Vec::new(),
            destinations: vec![Selector::All],
            protocol: Protocol::Any,
            ports: Vec::new(),
        };
        assert_eq!(rule_text(&nobody, Names(&map)), "nobody -> * any");
    }
}
