//! Which openings rules allow, and denials forbid: the judgement that everybody asks.

use super::*;

fn opening(source: &str, destination: &str, protocol: u8, port: u16) -> Opening {
    let port = [TCP, UDP].contains(&protocol).then_some(port);
    Opening { source: source.parse().unwrap(), destination: destination.parse().unwrap(), protocol, port }
}

/// Whether node 2 may open a TCP flow to port 80 of node 1 if this is the rule.
fn lets_in(rule: &Rule, source: &str, destination: &str) -> bool {
    filter(std::slice::from_ref(rule), &[])
        .decide(id(2), In, &opening(source, destination, TCP, 80))
        .is_allowed()
}

fn from_to(sources: Vec<Selector>, destinations: Vec<Selector>) -> Rule {
    Rule { sources, destinations, protocol: Protocol::Any, ports: Vec::new() }
}

fn range(text: &str) -> Selector {
    Selector::Prefix(text.parse().unwrap())
}

#[test]
fn rules_without_somebody_on_both_sides_allow_nothing() {
    let all = || vec![Selector::All];
    assert!(lets_in(&from_to(all(), all()), "100.64.0.2", "100.64.0.1"));
    assert!(!lets_in(&from_to(vec![], all()), "100.64.0.2", "100.64.0.1"));
    assert!(!lets_in(&from_to(all(), vec![]), "100.64.0.2", "100.64.0.1"));
}

#[test]
fn nodes_groups_and_tags_select_members_with_all_their_addresses() {
    let mut members: Vec<Member> = (1..=4).map(member).collect();
    members[1].groups = vec!["dev".into()];
    members[2].tags = vec!["dev".into()];
    for (selector, selected) in [
        (Selector::All, [true, true, true]),
        (Selector::Node(id(2)), [true, false, false]),
        (Selector::Group("dev".into()), [true, false, false]),
        (Selector::Tag("dev".into()), [false, true, false]),
        (Selector::Group("n4".into()), [false, false, false]),
    ] {
        let rule = from_to(vec![selector.clone()], vec![Selector::Node(id(1))]);
        let filter = Filter::of(&members[0], &members, [(0, &rule)], &[]);
        for (peer, selected) in (2..).zip(selected) {
            for source in [format!("100.64.0.{peer}"), format!("10.{peer}.9.9")] {
                for destination in ["100.64.0.1", "10.1.7.7"] {
                    let judged = filter.decide(id(peer), In, &opening(&source, destination, 47, 0));
                    assert_eq!(judged.is_allowed(), selected, "{selector:?}: {source} to {destination}");
                }
            }
            let back =
                filter.decide(id(peer), Out, &opening("100.64.0.1", &format!("100.64.0.{peer}"), 47, 0));
            assert_eq!(back, Decision::Denied, "rules lead one way");
        }
    }
}

#[test]
fn ranges_select_addresses_whoever_has_them() {
    let to_me = || vec![Selector::Node(id(1))];
    assert!(lets_in(&from_to(vec![range("10.2.0.0/16")], to_me()), "10.2.3.4", "100.64.0.1"));
    assert!(
        lets_in(&from_to(vec![range("10.2.3.0/24")], to_me()), "10.2.3.4", "100.64.0.1"),
        "a part of a route"
    );
    assert!(!lets_in(&from_to(vec![range("10.2.3.0/24")], to_me()), "10.2.4.4", "100.64.0.1"));
    assert!(!lets_in(&from_to(vec![range("10.2.3.0/24")], to_me()), "100.64.0.2", "100.64.0.1"));
    assert!(!lets_in(&from_to(vec![range("10.3.0.0/16")], to_me()), "10.2.3.4", "100.64.0.1"));
    let mixed = from_to(vec![range("10.3.0.0/16"), range("fd00::/64"), range("100.64.0.2/32")], to_me());
    assert!(lets_in(&mixed, "100.64.0.2", "100.64.0.1") && !lets_in(&mixed, "10.2.3.4", "100.64.0.1"));
    let from_all = |to: &str| from_to(vec![Selector::All], vec![range(to)]);
    assert!(lets_in(&from_all("10.1.0.0/24"), "100.64.0.2", "10.1.0.5"));
    assert!(!lets_in(&from_all("10.1.0.0/24"), "100.64.0.2", "10.1.1.5"));
    assert!(!lets_in(&from_all("10.1.0.0/24"), "100.64.0.2", "100.64.0.1"));
    assert!(!lets_in(&from_all("0.0.0.0/0"), "100.64.0.2", "192.168.0.1"), "a range gives nobody an address");
}

#[test]
fn member_that_is_selected_is_so_with_every_address_whatever_ranges_stand_beside_it() {
    let rule = from_to(vec![range("10.2.3.0/24"), Selector::Node(id(2))], vec![Selector::All]);
    assert!(lets_in(&rule, "10.2.99.99", "100.64.0.1"));
}

#[test]
fn protocols_and_ports_are_those_of_the_opening() {
    let web = vec![PortRange::from(80), PortRange::new(8000, 8100).unwrap()];
    for (protocol, ports, yes, no) in [
        (Protocol::Any, vec![], vec![(TCP, 1), (UDP, 65_535), (1, 0), (253, 0)], vec![]),
        (Protocol::Tcp, vec![], vec![(TCP, 1), (TCP, 65_535)], vec![(UDP, 1), (1, 0)]),
        (
            Protocol::Tcp,
            web.clone(),
            vec![(TCP, 80), (TCP, 8000), (TCP, 8100)],
            vec![(TCP, 79), (TCP, 81), (TCP, 7999), (TCP, 8101), (UDP, 80)],
        ),
        (Protocol::Udp, web, vec![(UDP, 80)], vec![(TCP, 80), (UDP, 79)]),
        (Protocol::Icmp, vec![], vec![(1, 0)], vec![(58, 0), (TCP, 1)]),
        (Protocol::Number(47), vec![], vec![(47, 0)], vec![(46, 0), (TCP, 47)]),
    ] {
        let rule = Rule { protocol, ports, ..from_to(vec![Selector::All], vec![Selector::All]) };
        let filter = filter(&[rule], &[]);
        let decide = |(number, port)| {
            filter.decide(id(2), In, &opening("100.64.0.2", "100.64.0.1", number, port)).is_allowed()
        };
        assert!(yes.into_iter().all(decide), "{protocol}");
        assert!(!no.into_iter().any(decide), "{protocol}");
    }
    let icmp = filter(&[rule(In, Protocol::Icmp, None)], &[]);
    let over_v6 = |number| icmp.decide(id(2), In, &opening("fd00::2", "fd00::1", number, 0)).is_allowed();
    assert!(over_v6(58) && !over_v6(1), "each family has its own ICMP");
}

#[test]
fn first_rule_that_allows_is_named_by_its_place() {
    let me = member(1);
    let rules =
        [rule(In, Protocol::Udp, None), rule(In, Protocol::Tcp, Some(80)), rule(In, Protocol::Any, None)];
    let peers = [member(2)];
    // Places have gaps, and no order of their own.
    let numbered = [(40, &rules[2]), (7, &rules[0]), (12, &rules[1])];
    let filter = Filter::of(&me, &peers, numbered, &[]);
    for (protocol, expected) in [(UDP, 7), (TCP, 12), (1, 40)] {
        let judged = filter.decide(id(2), In, &opening("100.64.0.2", "100.64.0.1", protocol, 80));
        assert_eq!(judged, Decision::Allowed { rule: Some(expected) });
    }
}

#[test]
fn strangers_and_the_node_itself_are_nobodys_peers() {
    let everything = [rule(In, Protocol::Any, None), rule(Out, Protocol::Any, None)];
    let filter = filter(&everything, &[]);
    for stranger in [id(9), id(1)] {
        let judged = filter.decide(stranger, In, &opening("100.64.0.2", "100.64.0.1", TCP, 80));
        assert_eq!(judged, Decision::Denied);
    }
}

#[test]
fn denials_come_before_rules_and_are_about_what_they_say() {
    let web = opening("100.64.0.2", "100.64.0.1", TCP, 80);
    let out = opening("100.64.0.1", "100.64.0.2", TCP, 80);
    let ssh = opening("100.64.0.2", "100.64.0.1", TCP, 22);
    let everything = [rule(In, Protocol::Any, None), rule(Out, Protocol::Any, None)];
    let about = |scope, peers: Option<&[u8]>, protocol, port: Option<u16>| Denial {
        id: 3,
        scope,
        peers: peers.map(|peers| peers.iter().map(|&peer| id(peer)).collect()),
        protocol,
        ports: port.into_iter().map(PortRange::from).collect(),
    };
    // Of web in, web out, SSH in, and web in from another peer: what is forbidden.
    for (denial, forbidden) in [
        (about(Scope::Both, None, Protocol::Any, None), [true; 4]),
        (about(Scope::Only(In), None, Protocol::Any, None), [true, false, true, true]),
        (about(Scope::Only(Out), None, Protocol::Any, None), [false, true, false, false]),
        (about(Scope::Both, Some(&[2]), Protocol::Any, None), [true, true, true, false]),
        (about(Scope::Both, Some(&[]), Protocol::Any, None), [false; 4]),
        (about(Scope::Both, None, Protocol::Tcp, Some(80)), [true, true, false, true]),
        (about(Scope::Both, None, Protocol::Udp, None), [false; 4]),
    ] {
        let filter = filter(&everything, std::slice::from_ref(&denial));
        let judged = [(2, In, &web), (2, Out, &out), (2, In, &ssh), (3, In, &web)]
            .map(|(peer, direction, opening)| filter.decide(id(peer), direction, opening));
        let expected = forbidden.map(|forbidden| forbidden.then_some(Decision::DeniedLocally { denial: 3 }));
        for (judged, expected) in judged.into_iter().zip(expected) {
            assert_eq!(Some(judged).filter(|judged| !judged.is_allowed()), expected, "{denial:?}");
        }
    }
    let two = [
        about(Scope::Both, None, Protocol::Any, None),
        Denial { id: 1, ..about(Scope::Both, None, Protocol::Any, None) },
    ];
    assert_eq!(
        filter(&[], &two).decide(id(2), In, &web),
        Decision::DeniedLocally { denial: 3 },
        "the first of them"
    );
}

/// Nodes 1 to 4, the first with these routes.
fn with_routes(routes: &[&str]) -> Vec<Member> {
    let mut members: Vec<Member> = (1..=4).map(member).collect();
    members[0].routes = routes.iter().map(|route| route.parse().unwrap()).collect();
    members
}

#[test]
fn a_wide_route_makes_its_owner_neither_another_member_nor_a_way_past_the_policy() {
    // Node 2 may use the exit, and the exit may open what it likes: nothing is between node 2 and node 3.
    let everybody = || vec![Selector::All];
    let rules = [
        from_to(vec![Selector::Node(id(2))], vec![Selector::Node(id(1))]),
        from_to(vec![Selector::Node(id(1))], everybody()),
    ];
    for routes in [&["0.0.0.0/0", "::/0"][..], &["100.64.0.0/10", "10.0.0.0/8", "fd00::/8"]] {
        let members = with_routes(routes);
        let exit = Filter::of(&members[0], &members, (0..).zip(&rules), &[]);
        for (of_2, of_3, outside) in [
            ("100.64.0.2", "100.64.0.3", "100.99.0.1"),
            ("10.2.9.9", "10.3.9.9", "10.9.9.9"),
            ("fd00::2", "fd00::3", "fd00:9::9"),
        ] {
            let into = |destination| exit.decide(id(2), In, &opening(of_2, destination, TCP, 22));
            assert_eq!(into(of_3), Decision::Denied, "{of_2} passes through to {of_3}");
            assert_eq!(into(of_2), Decision::Denied, "{of_2} is sent back");
            assert!(into(outside).is_allowed(), "what is nobody else's is behind the exit: {outside}");
            let out = |source| exit.decide(id(3), Out, &opening(source, of_3, TCP, 22));
            assert_eq!(out(of_2), Decision::Denied, "the exit speaks as {of_2}");
            assert!(out(outside).is_allowed(), "{outside}");
            assert!(out("100.64.0.1").is_allowed(), "its own address");
        }
    }
}

#[test]
fn of_two_routes_the_longer_one_says_whose_an_address_is_and_of_equal_ones_both() {
    let rule = from_to(vec![Selector::All], vec![Selector::All]);
    let owns = |routes: &[&str], address: &str| {
        let members = with_routes(routes);
        Filter::of(&members[0], &members, [(0, &rule)], &[]).owns(address.parse().unwrap())
    };
    // Node 2 has 10.2.0.0/16.
    for (routes, address, ours) in [
        (&["10.0.0.0/8"][..], "10.2.0.1", false),
        (&["10.2.0.0/15"], "10.2.0.1", false),
        (&["10.2.0.0/15"], "10.9.0.1", false),
        (&["10.2.0.0/16"], "10.2.0.1", true),
        (&["10.2.0.0/24"], "10.2.0.1", true),
        (&["10.2.0.0/24"], "10.2.1.1", false),
        (&["10.0.0.0/8", "10.2.0.0/24"], "10.2.0.1", true),
        (&["10.0.0.0/8", "10.2.0.0/24"], "10.2.1.1", false),
        (&["10.0.0.0/8", "10.2.0.0/24"], "10.9.0.1", true),
        (&["::/0"], "fd00::3", false),
        (&["::/0"], "fd00::9", true),
        (&["::/0"], "10.9.0.1", false),
        (&["0.0.0.0/0", "::/0"], "100.64.0.1", true),
        (&["0.0.0.0/0", "::/0"], "fd00::1", true),
        (&[], "100.64.0.1", true),
        (&[], "100.64.0.2", false),
    ] {
        assert_eq!(owns(routes, address), ours, "{address} with {routes:?}");
    }
}

#[test]
fn a_node_without_routes_keeps_nobody_elses_addresses_in_mind() {
    let rule = from_to(vec![Selector::All], vec![Selector::All]);
    let remembers = |routes: &[&str]| {
        let members = with_routes(routes);
        Filter::of(&members[0], &members, [(0, &rule)], &[]).remembers_others()
    };
    assert!(!remembers(&[]) && !remembers(&["10.1.0.0/16"]) && remembers(&["10.0.0.0/8"]));
}

#[test]
fn what_a_wide_route_does_not_give_is_refused_with_its_reason() {
    let members = with_routes(&["0.0.0.0/0"]);
    let rule = from_to(vec![Selector::All], vec![Selector::All]);
    let mut node = Node::new(&[]);
    node.apply(Filter::of(&members[0], &members, [(0, &rule)], &[]));
    let packet = |source: &str, destination: &str| {
        build::with(source.parse().unwrap(), destination.parse().unwrap(), UDP, &udp(1, 2, &[]))
    };
    for (direction, source, destination, expected) in [
        (In, "100.64.0.2", "100.64.0.3", Err(DropReason::NotForUs)),
        (In, "100.64.0.2", "192.0.2.1", Ok(())),
        (Out, "100.64.0.3", "100.64.0.2", Err(DropReason::NotFromUs)),
        // Somebody whom we do not know has no place of its own in our routes.
        (Out, "192.0.2.9", "100.64.0.2", Ok(())),
    ] {
        assert_eq!(
            node.judge(direction, &packet(source, destination)),
            expected,
            "{source} to {destination}"
        );
    }
}
