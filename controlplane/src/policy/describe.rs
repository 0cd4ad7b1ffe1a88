//! Rules as people read them.

use ringmesh_tunnel::{
    key::NodeId,
    netmap::{PortRange, Protocol, Rule, Selector},
};

/// A rule in one line, as `group:admins,carol -> tag:web tcp/22,8000-8100`.
///
/// `name_of` says what a node is called; one that has no name any more is written by its id.
pub fn describe<'n>(rule: &Rule, name_of: impl Fn(NodeId) -> Option<&'n str>) -> String {
    format!(
        "{} -> {} {}",
        selectors_text(&rule.sources, &name_of),
        selectors_text(&rule.destinations, &name_of),
        service_text(rule.protocol, &rule.ports)
    )
}

/// One side of a rule, as `group:admins,carol`; `nobody` if it selects none.
pub fn selectors_text<'n>(selectors: &[Selector], name_of: impl Fn(NodeId) -> Option<&'n str>) -> String {
    let words = selectors.iter().map(|selector| match selector {
        Selector::All => "*".into(),
        Selector::Node(id) => name_of(*id).map_or_else(|| id.to_string(), str::to_owned),
        Selector::Group(name) => format!("group:{name}"),
        Selector::Tag(name) => format!("tag:{name}"),
        Selector::Prefix(prefix) if prefix.is_host() => prefix.address().to_string(),
        Selector::Prefix(prefix) => prefix.to_string(),
    });
    let words: Vec<String> = words.collect();
    if words.is_empty() { "nobody".into() } else { words.join(",") }
}

/// Ports, as `22,8000-8100`; `*` if there is no list, which is all of them.
#[must_use]
pub fn ports_text(ports: &[PortRange]) -> String {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    if ports.is_empty() { "*".into() } else { ports.join(",") }
}

/// A protocol with its ports, as `tcp/22`, `udp` or `any`.
pub(super) fn service_text(protocol: Protocol, ports: &[PortRange]) -> String {
    if ports.is_empty() { protocol.to_string() } else { format!("{protocol}/{}", ports_text(ports)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_as_it_was_written() {
        let rule = Rule {
            sources: vec![Selector::Group("admins".into()), Selector::Node(NodeId::from_bytes([1; 8]))],
            destinations: vec![
                Selector::Tag("web".into()),
                Selector::Prefix("10.1.0.9/32".parse().unwrap()),
                Selector::Prefix("10.2.0.0/16".parse().unwrap()),
            ],
            protocol: Protocol::Tcp,
            ports: vec![22.into(), PortRange::new(8000, 8100).unwrap()],
        };
        assert_eq!(
            describe(&rule, |_| Some("carol")),
            "group:admins,carol -> tag:web,10.1.0.9,10.2.0.0/16 tcp/22,8000-8100"
        );
        let gone = Rule { destinations: vec![], protocol: Protocol::Any, ports: vec![], ..rule };
        assert_eq!(describe(&gone, |_| None), "group:admins,0101010101010101 -> nobody any");
        let all = Rule { sources: vec![Selector::All], protocol: Protocol::Number(47), ..gone };
        assert_eq!(describe(&all, |_| None), "* -> nobody 47");
        assert_eq!(ports_text(&[]), "*");
    }
}
