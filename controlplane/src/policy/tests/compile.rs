//! What a file becomes.

use std::collections::BTreeSet;

use ringmesh_tunnel::netmap::{Leaf, NameRecord, PortRange, Protocol, Rule, Selector};

use super::{super::PolicyFile, *};

#[test]
fn rules_come_first_and_in_their_order() {
    let compiled = good(
        "tags=['web']\n[names]\nz='web1'\na=['10.1.0.9', 'fd00:1::9', 'six', '10.1.0.9']\n[groups]\ng='bob'\n[hosts]\nh=['10.1.0.0/16', '10.1.0.9']\n\
         [[allow]]\nfrom=['alice', 'group:g', 'alice']\nto=['host:h', 'tag:web', '10.1.0.9', 'fd00:1::/48']\nprotocol='tcp'\nports=[22, '80-90']\n\
         [[allow]]\nfrom='*'\nto='*'\nprotocol=47",
    );
    let prefix = |text: &str| Selector::Prefix(text.parse().unwrap());
    let first = Rule {
        sources: vec![Selector::Node(id(1)), Selector::Group("g".into())],
        destinations: vec![
            prefix("10.1.0.0/16"),
            prefix("10.1.0.9/32"),
            Selector::Tag("web".into()),
            prefix("fd00:1::/48"),
        ],
        protocol: Protocol::Tcp,
        ports: vec![22.into(), PortRange::new(80, 90).unwrap()],
    };
    let second = Rule {
        sources: vec![Selector::All],
        destinations: vec![Selector::All],
        protocol: Protocol::Number(47),
        ports: vec![],
    };
    let name = |name: &str, addresses: &[&str]| {
        Leaf::Name(NameRecord {
            name: name.into(),
            addresses: addresses.iter().map(|it| address(it)).collect(),
        })
    };
    assert_eq!(
        compiled.leaves,
        [
            Leaf::Rule(first),
            Leaf::Rule(second),
            name("z", &["100.64.0.4", "fd00::4"]),
            name("a", &["10.1.0.9", "fd00::9", "fd00:1::9"]),
        ]
    );
    // The core takes them all.
    assert!(compiled.leaves.iter().all(|leaf| Leaf::parse(&leaf.emit().unwrap()).as_ref() == Ok(leaf)));
    assert_eq!(compiled.rules().count(), 2);
}

#[test]
fn every_name_that_a_file_may_have_fits_into_a_record() {
    let long = "a".repeat(63);
    for word in ["0", "a-_.@", long.as_str(), "9x@example.org"] {
        let text = format!(
            "tags=['{word}']\n[groups]\n'{word}'='alice'\n[hosts]\n'{word}'='::1'\n[[allow]]\nfrom=['group:{word}','tag:{word}']\nto='host:{word}'"
        );
        let compiled = good(&text);
        assert!(compiled.leaves.iter().all(|leaf| leaf.emit().is_ok()), "{word}");
        assert_eq!(compiled.groups[&id(1)], [word]);
    }
    let domain = [long.as_str(); 3].join(".") + "." + &"b".repeat(61);
    assert_eq!(domain.len(), 253);
    let compiled = good(&format!("[names]\n'{domain}'='alice'\n'0-0.x'='::1'"));
    assert!(compiled.leaves.iter().all(|leaf| leaf.emit().is_ok()));
}

#[test]
fn groups_are_those_of_members_through_groups_in_them() {
    let compiled = good(
        "[groups]\nadmins=['alice', 'bob']\ndev=['carol', 'group:admins']\nall=['group:dev', 'group:admins', 'six']\nnone=[]",
    );
    let groups = |number: u16| compiled.groups[&id(number)].clone();
    assert_eq!(groups(1), ["admins", "all", "dev"]);
    assert_eq!(groups(3), ["all", "dev"]);
    assert_eq!(groups(9), ["all"]);
    assert_eq!(groups(4), [""; 0]);
    let members = compiled.members(&roster());
    assert_eq!(members.len(), compiled.groups.len());
    assert_eq!(members[0].groups, groups(1));
}

#[test]
fn a_file_read_before_compiles_to_the_same() {
    let text =
        "[groups]\na=['alice', 'group:b']\nb='bob'\n[[allow]]\nfrom='group:a'\nto='carol'\n[names]\nx='bob'";
    let file = PolicyFile::parse(text).unwrap();
    assert_eq!(file.compile(&roster()).unwrap(), good(text));
    assert_eq!(file.text(), text);
}

#[test]
fn a_later_node_of_the_same_name_inherits_nothing() {
    let text = "[groups]\na='alice'\n[[allow]]\nfrom=['alice', 'group:a']\nto='bob'";
    let before = good(text);
    let mut roster = roster();
    roster.members[0].id = id(77);
    // What was compiled names the node, not the name.
    assert!(before.groups.keys().all(|node| *node != id(77)));
    let sources: BTreeSet<&Selector> = before.rules().flat_map(|rule| &rule.sources).collect();
    assert!(sources.contains(&Selector::Node(id(1))) && !sources.contains(&Selector::Node(id(77))));
}

#[test]
fn a_member_that_is_gone_refuses_the_file() {
    let file = PolicyFile::parse("[[allow]]\nfrom='alice'\nto='bob'").unwrap();
    let mut roster = roster();
    roster.members.remove(0);
    let problems = file.compile(&roster).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].message.starts_with("no member is called \"alice\""), "{}", problems[0]);
}
