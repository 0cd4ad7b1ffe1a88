//! The words of a policy file: selectors, names, addresses, protocols, ports. Each is read once, and what is wrong with it told.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::{fmt, net::IpAddr};

use ringmesh_tunnel::{
    ip::{Prefix, PrefixError},
    netmap::{DOMAIN_MAX, NAME_MAX, PortRange, Protocol},
};

use super::super::problem::{near, quote};

/// Whom a word in `from` or `to` selects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum Selection {
    /// `*`
    All,
    /// A bare name.
    Member(String),
    /// `group:NAME`
    Group(String),
    /// `tag:NAME`
    Tag(String),
    /// `host:NAME`
    Host(String),
    /// An address or a range.
    Range(Prefix),
}

/// What a word in `[names]` points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum Target {
    /// The addresses of a member.
    Member(String),
    /// An address.
    Address(IpAddr),
}

/// What a test asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::policy) enum Asked {
    /// A port of TCP.
    Tcp(u16),
    /// A port of UDP.
    Udp(u16),
    /// ICMP, or ICMPv6.
    Icmp,
    /// Another protocol.
    Number(u8),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => write!(f, "protocol {number}"),
        }
    }
}

/// Words that people bring from other systems for "everybody".
const EVERYBODY: [&str; 6] = ["all", "any", "everyone", "everybody", "anyone", "0.0.0.0"];

/// Reads a word of `from` or `to`.
pub(super) fn selection(text: &str) -> Result<Selection, String> {
    if text == "*" {
        return Ok(Selection::All);
    }
    if let Some((kind, name)) = text.split_once(':') {
        match kind {
            "group" => return check_word("a group's name", name).map(|()| Selection::Group(name.into())),
            "tag" => return check_word("a tag", name).map(|()| Selection::Tag(name.into())),
            "host" => return check_word("a host's name", name).map(|()| Selection::Host(name.into())),
            _ => {}
        }
    }
    if is_address_like(text) {
        return range(text).map(Selection::Range);
    }
    if let Some((kind, name)) = text.split_once(':') {
        return Err(match near(kind, ["group", "tag", "host"]) {
            Some(meant) => {
                format!("{} selects nobody: did you mean {}?", quote(text), quote(&format!("{meant}:{name}")))
            }
            None => format!(
                "{} selects nobody: write a member's name, \"group:\", \"tag:\" or \"host:\" and a name, an address, a range, or \"*\"",
                quote(text)
            ),
        });
    }
    check_label("a member's name", text).map(|()| Selection::Member(text.into())).map_err(|problem| {
        if text.eq_ignore_ascii_case("*.*") || text.contains('*') {
            return format!("{}: names are not patterns; \"*\" alone is everybody", quote(text));
        }
        problem
    })
}

/// What a bare word that is no member's name may have meant besides a member.
pub(in crate::policy) fn everybody(text: &str) -> bool {
    EVERYBODY.contains(&text.to_ascii_lowercase().as_str())
}

/// Whether somebody who wrote this meant an address: it has the characters of one, and a dot, a slash or a colon.
fn is_address_like(text: &str) -> bool {
    let digits = |c: char| c.is_ascii_digit() || c == '.' || c == '/';
    let hex = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.' || c == '/';
    let dotted = text.contains(['.', '/']) && text.chars().all(digits);
    let colons = text.contains(':') && text.chars().all(hex);
    dotted || colons || text.contains('/') || text.parse::<IpAddr>().is_ok()
}

/// Reads a range, or an address as the range of it.
pub(super) fn range(text: &str) -> Result<Prefix, String> {
    let prefix: Prefix = text.parse().map_err(|error| match error {
        PrefixError::HostBits { meant } => {
            format!("{} has bits set beyond its length: did you mean {meant}?", quote(text))
        }
        PrefixError::Length { len, most } => {
            format!(
                "{}: a length of {len} bits is beyond {most}, the longest of this address family",
                quote(text)
            )
        }
        PrefixError::Syntax => {
            format!(
                "{} is no address and no range: write it as 10.1.0.9, 10.1.0.0/16 or fd00:1::/48",
                quote(text)
            )
        }
    })?;
    check_family(prefix.address(), prefix.len())?;
    Ok(prefix)
}

/// Refuses IPv4 written as IPv6 (RFC 4291 §2.5.5.2): no packet inside the mesh has such an address, so a rule about it would be
/// about nothing.
fn check_family(address: IpAddr, len: u8) -> Result<(), String> {
    let IpAddr::V6(v6) = address else { return Ok(()) };
    let (Some(v4), Some(v4_len)) = (v6.to_ipv4_mapped(), len.checked_sub(96)) else { return Ok(()) };
    let meant = if v4_len == 32 { v4.to_string() } else { format!("{v4}/{v4_len}") };
    Err(format!("{} is IPv4 written as IPv6: write {meant}", quote(&address.to_string())))
}

/// Reads what a name points at.
pub(super) fn target(text: &str) -> Result<Target, String> {
    if !is_address_like(text) {
        return check_label("a member's name", text).map(|()| Target::Member(text.into()));
    }
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(if text.parse::<Prefix>().is_ok() {
            format!("{} is a range, and a name points at addresses: name each one", quote(text))
        } else {
            format!("{} is no address and no member's name: write it as 10.1.0.9 or fd00:1::9", quote(text))
        });
    };
    check_family(address, 128)?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!("{} is no machine's address", quote(text)));
    }
    Ok(Target::Address(address))
}

/// Protocols whose names people know, but which are written as numbers (IANA's list of protocol numbers).
const NUMBERS: [(&str, u8); 10] = [
    ("igmp", 2),
    ("ipip", 4),
    ("dccp", 33),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ospf", 89),
    ("vrrp", 112),
    ("sctp", 132),
    ("udplite", 136),
];

/// Reads a protocol's name, or its number as text.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "any" => return Ok(Protocol::Any),
        "tcp" => return Ok(Protocol::Tcp),
        "udp" => return Ok(Protocol::Udp),
        "icmp" => return Ok(Protocol::Icmp),
        _ => {}
    }
    if let Ok(number) = text.parse::<i64>() {
        return protocol_number(number);
    }
    let lower = text.to_ascii_lowercase();
    let cure = match NUMBERS.iter().find(|(name, _)| *name == lower) {
        Some((_, number)) => format!("write its number, {number}"),
        None if lower.starts_with("icmp") || lower.ends_with("icmp") => {
            "\"icmp\" is ICMP over IPv4 and ICMPv6 over IPv6".into()
        }
        None if lower == "*" || lower == "all" => "did you mean \"any\"?".into(),
        None => match near(&lower, ["any", "tcp", "udp", "icmp"])
            .or_else(|| ["any", "tcp", "udp", "icmp"].into_iter().find(|name| *name == lower))
        {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => "write \"any\", \"tcp\", \"udp\", \"icmp\", or a number from 0 to 255".into(),
        },
    };
    Err(format!("unknown protocol {}: {cure}", quote(text)))
}

/// Reads a protocol's number.
pub(super) fn protocol_number(number: i64) -> Result<Protocol, String> {
    let named = match number {
        1 | 58 => "icmp",
        6 => "tcp",
        17 => "udp",
        _ => {
            return u8::try_from(number)
                .map(Protocol::Number)
                .map_err(|_| format!("protocol {number} is out of range: numbers go from 0 to 255"));
        }
    };
    Err(format!("protocol {number} has a name: write \"{named}\""))
}

/// Reads a port or a range of ports.
pub(super) fn ports(text: &str) -> Result<PortRange, String> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<i64>().unwrap_or(i64::MAX))
    };
    if let Some(single) = number(text.trim()) {
        return port(single);
    }
    let Some((first, last)) = text.split_once('-') else { return Err(not_ports(text)) };
    let (Some(first), Some(last)) = (number(first.trim()), number(last.trim())) else {
        return Err(not_ports(text));
    };
    let (first, last) = (port(first)?.first(), port(last)?.first());
    PortRange::new(first, last)
        .ok_or_else(|| format!("the range {} is reversed: did you mean \"{last}-{first}\"?", quote(text)))
}

fn not_ports(text: &str) -> String {
    let cure = if text.contains(',') {
        "a list is written as [22, \"8000-8100\"]"
    } else if text == "*" || text == "any" || text == "all" {
        "leave `ports` out to allow all"
    } else {
        "write 22, or \"8000-8100\""
    };
    format!("{} is no port: {cure}", quote(text))
}

/// Checks the number of a port.
pub(super) fn port(number: i64) -> Result<PortRange, String> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port.into()),
        _ if number == i64::MAX => Err("this port is out of range: ports go from 1 to 65535".into()),
        _ => Err(format!("port {number} is out of range: ports go from 1 to 65535")),
    }
}

/// Reads what a test asks for: `tcp/22`, `udp/53`, `icmp`, or a protocol's number.
pub(super) fn asked(text: &str) -> Result<Asked, String> {
    let (name, port) = match text.split_once('/') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let with_port = |asked: fn(u16) -> Asked| {
        let port = port.ok_or_else(|| format!("{}: name the port, as in \"{name}/22\"", quote(text)))?;
        let range = ports(port)?;
        if range.first() != range.last() {
            return Err(format!("{}: a test is about one port; name each that matters", quote(text)));
        }
        Ok(asked(range.first()))
    };
    let without = |asked| match port {
        Some(_) => Err(format!("{}: only tcp and udp have ports", quote(text))),
        None => Ok(asked),
    };
    match protocol(name)? {
        Protocol::Tcp => with_port(Asked::Tcp),
        Protocol::Udp => with_port(Asked::Udp),
        Protocol::Icmp => without(Asked::Icmp),
        Protocol::Number(number) => without(Asked::Number(number)),
        Protocol::Any => Err(format!(
            "{}: a test is about one protocol, as in \"tcp/22\", \"udp/53\" or \"icmp\"",
            quote(text)
        )),
    }
}

/// Checks a name below the zone: labels and dots.
pub(super) fn check_domain(name: &str) -> Result<(), String> {
    if name.len() > DOMAIN_MAX {
        return Err(format!("{} is longer than {DOMAIN_MAX} characters", quote(name)));
    }
    if name.ends_with('.') {
        return Err(format!(
            "{} ends with a dot: names are below the network's zone, which is left out",
            quote(name)
        ));
    }
    name.split('.').try_for_each(|label| check_label("each part of a name", label))
}

/// Checks a DNS label as hosts have them: letters, digits and inner hyphens (RFC 1035 §2.3.1, RFC 1123 §2.1), in lower case.
pub(super) fn check_label(what: &str, label: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if label.is_empty() {
        return Err(format!("an empty name: {what} has 1 to {NAME_MAX} characters"));
    }
    if label.len() > NAME_MAX {
        return Err(format!(
            "{} is longer than {NAME_MAX} characters, the longest that {what} may be",
            quote(label)
        ));
    }
    let lower = label.to_ascii_lowercase();
    if lower != label && lower.chars().all(plain) {
        return Err(format!("{} has capitals: write {}", quote(label), quote(&lower)));
    }
    if let Some(bad) = label.chars().find(|c| !plain(*c)) {
        return Err(format!(
            "{}: {what} has only lower-case letters, digits and hyphens, and '{}' is none",
            quote(label),
            bad.escape_debug()
        ));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(format!("{}: {what} has no hyphen at either end", quote(label)));
    }
    Ok(())
}

/// Checks the name of a group, a tag or a host, as records can carry them.
pub(super) fn check_word(what: &str, word: &str) -> Result<(), String> {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let plain = |c: char| letter(c) || "-_.@".contains(c);
    if word.is_empty() {
        return Err(format!("an empty name: {what} has 1 to {NAME_MAX} characters"));
    }
    if word.len() > NAME_MAX {
        return Err(format!(
            "{} is longer than {NAME_MAX} characters, the longest that {what} may be",
            quote(word)
        ));
    }
    let lower = word.to_ascii_lowercase();
    if lower != word && lower.chars().all(plain) {
        return Err(format!("{} has capitals: write {}", quote(word), quote(&lower)));
    }
    if let Some(bad) = word.chars().find(|c| !plain(*c)) {
        return Err(format!(
            "{}: {what} has only lower-case letters, digits, \"-\", \"_\", \".\" and \"@\", and '{}' is none",
            quote(word),
            bad.escape_debug()
        ));
    }
    if !word.starts_with(letter) {
        return Err(format!("{}: {what} begins with a letter or a digit", quote(word)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_what_they_look_like() {
        let is = |text: &str| selection(text).unwrap();
        assert_eq!(is("*"), Selection::All);
        assert_eq!(is("alice"), Selection::Member("alice".into()));
        assert_eq!(is("0"), Selection::Member("0".into()));
        assert_eq!(is("fd00"), Selection::Member("fd00".into()));
        assert_eq!(is("group:a@b"), Selection::Group("a@b".into()));
        assert_eq!(is("tag:web"), Selection::Tag("web".into()));
        assert_eq!(is("host:db_1"), Selection::Host("db_1".into()));
        for range in ["10.1.0.9", "10.1.0.0/16", "fd00:1::/48", "::1", "0.0.0.0/0", "::/0"] {
            assert_eq!(is(range), Selection::Range(range.parse().unwrap()), "{range}");
        }
    }

    #[test]
    fn what_selects_nobody_is_told_with_a_cure() {
        for (text, cure) in [
            ("groups:web", "did you mean \"group:web\"?"),
            ("user:x", "write a member's name, \"group:\""),
            ("group:", "an empty name"),
            ("tag:Web", "write \"web\""),
            ("tag:-x", "begins with a letter or a digit"),
            ("tag:a b", "' ' is none"),
            ("Alice", "write \"alice\""),
            ("web-*", "names are not patterns"),
            ("a.b", "'.' is none"),
            ("x\u{7}", "'\\u{7}' is none"),
            ("-x", "no hyphen at either end"),
            ("", "an empty name"),
            ("10.1.2.3/8", "did you mean 10.0.0.0/8?"),
            ("10.1.0", "no address and no range"),
            ("10.0.0.0/33", "beyond 32"),
            ("web/24", "no address and no range"),
            ("fd00::/129", "beyond 128"),
            ("::ffff:10.1.0.9", "write 10.1.0.9"),
            ("::ffff:10.0.0.0/104", "write 10.0.0.0/8"),
        ] {
            let problem = selection(text).unwrap_err();
            assert!(problem.contains(cure), "{text:?}: {problem}");
        }
        assert!(selection(&"a".repeat(64)).unwrap_err().contains("longer than 63"));
    }

    #[test]
    fn protocols_have_one_name() {
        assert_eq!(protocol("udp"), Ok(Protocol::Udp));
        assert_eq!(protocol("47"), Ok(Protocol::Number(47)));
        assert_eq!(protocol_number(0), Ok(Protocol::Number(0)));
        for (text, cure) in [
            ("6", "write \"tcp\""),
            ("58", "write \"icmp\""),
            ("256", "from 0 to 255"),
            ("-1", "from 0 to 255"),
            ("TCP", "did you mean \"tcp\"?"),
            ("icmpv6", "\"icmp\" is ICMP over IPv4 and ICMPv6"),
            ("sctp", "write its number, 132"),
            ("all", "did you mean \"any\"?"),
            ("quic", "write \"any\""),
        ] {
            let problem = protocol(text).unwrap_err();
            assert!(problem.contains(cure), "{text:?}: {problem}");
        }
    }

    #[test]
    fn ports_are_in_range_and_in_order() {
        assert_eq!(ports("22"), Ok(22.into()));
        assert_eq!(ports("8000-8100"), Ok(PortRange::new(8000, 8100).unwrap()));
        assert_eq!(ports("8000 - 8000"), Ok(8000.into()));
        for (text, cure) in [
            ("0", "from 1 to 65535"),
            ("65536", "from 1 to 65535"),
            ("99999999999999999999999", "from 1 to 65535"),
            ("1-70000", "from 1 to 65535"),
            ("8100-8000", "did you mean \"8000-8100\"?"),
            ("22,80", "a list is written as"),
            ("*", "leave `ports` out"),
            ("ssh", "is no port"),
            ("-22", "is no port"),
            ("+22", "is no port"),
            ("", "is no port"),
        ] {
            let problem = ports(text).unwrap_err();
            assert!(problem.contains(cure), "{text:?}: {problem}");
        }
    }

    #[test]
    fn tests_ask_for_one_thing() {
        assert_eq!(asked("tcp/22"), Ok(Asked::Tcp(22)));
        assert_eq!(asked("icmp"), Ok(Asked::Icmp));
        assert_eq!(asked("132"), Ok(Asked::Number(132)));
        for (text, cure) in [
            ("tcp", "as in \"tcp/22\""),
            ("any", "about one protocol"),
            ("tcp/1-2", "about one port"),
            ("icmp/8", "only tcp and udp have ports"),
            ("tcp/0", "from 1 to 65535"),
        ] {
            let problem = asked(text).unwrap_err();
            assert!(problem.contains(cure), "{text:?}: {problem}");
        }
    }

    #[test]
    fn names_point_at_machines() {
        assert_eq!(target("web1"), Ok(Target::Member("web1".into())));
        assert_eq!(target("10.1.0.9"), Ok(Target::Address("10.1.0.9".parse().unwrap())));
        for (text, cure) in [
            ("10.1.0.0/24", "name each one"),
            ("10.1.0", "no address and no member's name"),
            ("0.0.0.0", "no machine's address"),
            ("ff02::1", "no machine's address"),
            ("::ffff:1.2.3.4", "write 1.2.3.4"),
        ] {
            let problem = target(text).unwrap_err();
            assert!(problem.contains(cure), "{text:?}: {problem}");
        }
        assert!(check_domain("git.infra").is_ok());
        for bad in ["", "git.", "a..b", "Git", "a_b", "*.a", "-a.b", "ä.b"] {
            assert!(check_domain(bad).is_err(), "{bad:?}");
        }
        assert!(check_domain(&["a"; 128].join(".")).is_err());
    }
}
