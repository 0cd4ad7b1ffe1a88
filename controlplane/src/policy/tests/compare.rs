//! Plans: what changes from one policy to another, against judging every opening by the nodes' own filters.

use std::collections::BTreeSet;

use proptest::prelude::*;
use ringmesh_tunnel::{
    filter::{Direction, Filter, Opening},
    ip::Prefix,
    netmap::{PortRange, Protocol, Rule, Selector},
};

use super::{
    super::{Allowances, Change, Plan, Service, compare},
    *,
};

/// From one member to another, the filters of both ends.
struct Pair<'a> {
    source: &'a Member,
    destination: &'a Member,
    outward: Option<Filter>,
    inward: Option<Filter>,
}

impl<'a> Pair<'a> {
    /// None if one of them is no member, or takes no packets.
    fn of(policy: &Allowances<'a>, source: NodeId, destination: NodeId) -> Option<Self> {
        let find = |id| policy.members.iter().find(|member| member.id == id && !member.relay);
        let (source, destination) = (find(source)?, find(destination)?);
        let filter = |me: &Member, peer| {
            (me.kind == MemberKind::Mesh).then(|| Filter::of(me, [peer], (0..).zip(policy.rules), &[]))
        };
        Some(Self {
            source,
            destination,
            outward: filter(source, destination),
            inward: filter(destination, source),
        })
    }

    /// Whether an opening passes: it is between their addresses, and no filter there is denies it.
    fn passes(&self, opening: &Opening) -> bool {
        let owns = |member: &Member, address| member.allowed_ips().any(|own| own.contains(address));
        let outward = self.outward.as_ref().map(|it| it.decide(self.destination.id, Direction::Out, opening));
        let inward = self.inward.as_ref().map(|it| it.decide(self.source.id, Direction::In, opening));
        let judged = outward.is_some() || inward.is_some();
        let allowed = outward.iter().chain(&inward).all(|decision| decision.is_allowed());
        owns(self.source, opening.source) && owns(self.destination, opening.destination) && judged && allowed
    }
}

/// Whether a change is about an opening.
fn includes(change: &Change, opening: &Opening) -> bool {
    let by = |protocol: Protocol, ports: &[PortRange]| {
        let number = match protocol {
            Protocol::Any => opening.protocol,
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Icmp if opening.source.is_ipv4() => 1,
            Protocol::Icmp => 58,
            Protocol::Number(number) => number,
        };
        let port = ports.is_empty()
            || opening.port.is_some_and(|port| ports.iter().any(|range| range.contains(port)));
        number == opening.protocol && port
    };
    let (from, to) = change.within.unwrap_or_default();
    from.is_none_or(|range| range.contains(opening.source))
        && to.is_none_or(|range| range.contains(opening.destination))
        && by(change.protocol, &change.ports)
        && !change.except.iter().any(|service| by(service.protocol, &service.ports))
}

/// A plan with names, one change a line.
fn text(changes: &[Change], members: &[Member]) -> Vec<String> {
    let name = |id| members.iter().find(|member| member.id == id).map_or("?", |member| member.name.as_str());
    let text = |change: &Change| {
        let range = |range: Option<Prefix>| range.map(|range| format!(" ({range})")).unwrap_or_default();
        let (from, to) = change.within.unwrap_or_default();
        let service = Service { protocol: change.protocol, ports: change.ports.clone() };
        let except = change.protocol_text();
        let except = except.split_once(" but ").map(|(_, but)| format!(" but {but}")).unwrap_or_default();
        format!(
            "{}{} -> {}{} {service}{except}",
            name(change.source),
            range(from),
            name(change.destination),
            range(to)
        )
    };
    changes.iter().map(text).collect()
}

/// What changes in the usual network from one file to another.
fn plan(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
    let policies = [good(before), good(after)];
    let members = policies.each_ref().map(|policy| policy.members(&roster()));
    let rules = policies.each_ref().map(|policy| policy.rules().cloned().collect::<Vec<_>>());
    let of = |place: usize| Allowances { members: &members[place], rules: &rules[place] };
    let plan = compare(&of(0), &of(1), usize::MAX);
    assert_eq!(plan.allowed_total, plan.allowed.len() as u64);
    assert_eq!(plan.stopped_total, plan.stopped.len() as u64);
    let back = compare(&of(1), &of(0), usize::MAX);
    assert_eq!((&back.allowed, &back.stopped), (&plan.stopped, &plan.allowed), "the way back is the reverse");
    (text(&plan.allowed, &members[1]), text(&plan.stopped, &members[1]))
}

fn allow(from: &str, to: &str, more: &str) -> String {
    format!("[[allow]]\nfrom={from}\nto={to}\n{more}\n")
}

#[test]
fn what_is_new_is_told_by_pairs() {
    let tags = "tags=['web']\n[groups]\nadmins=['alice','bob']\n";
    let before = format!("{tags}{}", allow("'group:admins'", "'tag:web'", "protocol='tcp'\nports=[22]"));
    let after =
        format!("{tags}{}", allow("'group:admins'", "'tag:web'", "protocol='tcp'\nports=[22, '8000-8100']"));
    let (allowed, stopped) = plan(&before, &after);
    assert_eq!(
        allowed,
        [
            "alice -> web1 tcp/8000-8100",
            "alice -> web2 tcp/8000-8100",
            "bob -> web1 tcp/8000-8100",
            "bob -> web2 tcp/8000-8100",
        ]
    );
    assert_eq!(stopped, [""; 0]);
}

#[test]
fn the_same_said_otherwise_changes_nothing() {
    let before = format!(
        "[groups]\na=['alice']\nb=['bob']\n{}",
        allow("['group:a','group:b']", "'carol'", "protocol='tcp'\nports='1-20'")
    );
    let after = format!(
        "{}{}{}",
        allow("'bob'", "'carol'", "protocol='tcp'\nports=['1-10','11-20']"),
        allow("'100.64.0.1'", "'carol'", "protocol='tcp'\nports='1-20'"),
        allow("['fd00::1', '10.9.0.0/16']", "['carol', 'carol']", "protocol='tcp'\nports=['5-20','1-8']"),
    );
    // Over IPv4 alice is selected by one rule, over IPv6 by the other.
    assert_eq!(plan(&before, &after), (vec![], vec![]));
}

#[test]
fn groups_change_what_unchanged_rules_allow() {
    let policy = |members: &str| {
        format!("[groups]\ng=[{members}]\n{}", allow("'group:g'", "'carol'", "protocol='udp'"))
    };
    assert_eq!(
        plan(&policy("'alice','bob'"), &policy("'bob','six'")),
        (vec!["six -> carol udp".into()], vec!["alice -> carol udp".into()])
    );
}

#[test]
fn narrowing_any_is_one_change() {
    let narrow =
        allow("'alice'", "'bob'", "protocol='tcp'\nports=22") + &allow("'alice'", "'bob'", "protocol='icmp'");
    let (allowed, stopped) = plan(&allow("'alice'", "'bob'", ""), &narrow);
    assert_eq!(allowed, [""; 0]);
    assert_eq!(stopped, ["alice -> bob any but tcp/22 icmp"]);
}

#[test]
fn ranges_are_told_apart_from_the_rest() {
    let (allowed, _) = plan("", &allow("'alice'", "['10.1.0.9', 'fd00::2']", "protocol='tcp'"));
    assert_eq!(allowed, ["alice -> bob (fd00::2/128) tcp", "alice -> gateway (10.1.0.9/32) tcp"]);
    // What a range stops being part of is told by the fewest ranges that make it up.
    let whole = allow("'alice'", "'10.1.0.0/29'", "");
    let most = allow("'alice'", "'10.1.0.0/30'", "") + &allow("'alice'", "'10.1.0.6/31'", "");
    let (allowed, stopped) = plan(&whole, &most);
    assert_eq!((allowed, stopped), (vec![], vec!["alice -> gateway (10.1.0.4/31) any".into()]));
    // Addresses of a family that the other side has not are no change.
    let (allowed, _) = plan("", &allow("'six'", "['10.1.0.0/16', 'fd00:1::/48']", ""));
    assert_eq!(allowed, ["six -> gateway (fd00:1::/48) any"]);
}

#[test]
fn addresses_that_never_meet_are_not_told_apart() {
    // A rule tells an IPv4 address behind the gateway apart, which is nothing to a member without IPv4.
    let apart = allow("'alice'", "'10.1.0.9'", "") + &allow("'10.1.0.9'", "'alice'", "");
    let after = format!("{apart}{}", allow("['six', 'gateway']", "['gateway', 'six']", "protocol=47"));
    assert_eq!(plan(&apart, &after).0, ["gateway -> six 47", "six -> gateway 47"]);
}

#[test]
fn relays_and_pairs_of_devices_are_left_out() {
    let (allowed, _) =
        plan("", &allow("['phone','printer','relay','alice']", "['printer','relay','phone']", "protocol=47"));
    assert_eq!(allowed, ["alice -> phone 47", "alice -> printer 47"]);
}

#[test]
fn members_that_come_and_go_are_changes() {
    let rules = [Rule {
        sources: vec![Selector::All],
        destinations: vec![Selector::Tag("web".into())],
        protocol: Protocol::Icmp,
        ports: vec![],
    }];
    let before = vec![member(1, "alice"), tagged(4, "web1", &["web"])];
    let mut routed = tagged(4, "web1", &["web"]);
    routed.routes = vec!["10.5.0.0/24".parse().unwrap()];
    let after = vec![member(2, "bob"), routed, member(1, "alice")];
    let of = |members| Allowances { members, rules: &rules };
    let plan = compare(&of(&before), &of(&after), 10);
    assert_eq!(text(&plan.allowed, &after), ["alice -> web1 (10.5.0.0/24) icmp", "bob -> web1 icmp"]);
    assert!(plan.stopped.is_empty());
}

#[test]
fn lists_are_bounded_and_all_is_counted() {
    let members: Vec<Member> = (1..=40).map(|i| member(i, &format!("m{i:02}"))).collect();
    let rule = |to: Selector| Rule {
        sources: vec![Selector::All],
        destinations: vec![to],
        protocol: Protocol::Tcp,
        ports: vec![],
    };
    let before = [rule(Selector::Node(id(1)))];
    let after = [rule(Selector::All)];
    let of = |rules| Allowances { members: &members, rules };
    let plan = compare(&of(&before), &of(&after), 50);
    assert_eq!((plan.allowed.len(), plan.allowed_total, plan.stopped_total), (50, 40 * 39 - 39, 0));
    // By names: the first source is m01, and 39 others it may reach now.
    assert!(plan.allowed[..39].iter().all(|change| change.source == id(1)));
    assert_eq!(plan.allowed[0].destination, id(2));
    assert_eq!(compare(&of(&after), &of(&after), 50), Plan::default());
    assert_eq!(compare(&of(&before), &of(&after), 0).allowed_total, 40 * 39 - 39);
}

/// Members of which no two are alike, and as many rules of which every one is new: nothing is cheap about that. A thousand take some
/// tenths of a second; without optimisation twenty times as long, so there are fewer.
const MANY: u16 = if cfg!(debug_assertions) { 250 } else { 1_000 };

#[test]
fn members_of_which_no_two_are_alike_are_compared() {
    let members: Vec<Member> = (1..=MANY).map(|i| member(i, &format!("m{i:04}"))).collect();
    let rules = |step: u16| -> Vec<Rule> {
        let rule = |i: u16| {
            let nodes =
                |from: u16| (0..20).map(|k| Selector::Node(id((from + k * step) % MANY + 1))).collect();
            Rule {
                sources: if i.is_multiple_of(50) { vec![Selector::All] } else { nodes(i * 7) },
                destinations: nodes(i * 11 + 3),
                protocol: Protocol::Tcp,
                ports: vec![(i + 1).into()],
            }
        };
        (0..MANY).map(rule).collect()
    };
    let (before, after) = (rules(13), rules(17));
    let of = |rules| Allowances { members: &members, rules };
    let started = std::time::Instant::now();
    let plan = compare(&of(&before), &of(&after), 200);
    println!("{:?}: {} allowed, {} stopped", started.elapsed(), plan.allowed_total, plan.stopped_total);
    assert_eq!((plan.allowed.len(), plan.stopped.len()), (200, 200));
    let expected = |one: &[Rule], other: &[Rule]| {
        let pairs = |rule: &Rule| {
            let node = |selector: &Selector| match selector {
                Selector::Node(id) => vec![*id],
                Selector::All | Selector::Group(_) | Selector::Tag(_) | Selector::Prefix(_) => {
                    members.iter().map(|member| member.id).collect()
                }
            };
            let sources: Vec<NodeId> = rule.sources.iter().flat_map(node).collect();
            let to: Vec<NodeId> = rule.destinations.iter().flat_map(node).collect();
            let pairs =
                sources.iter().flat_map(move |from| to.clone().into_iter().map(move |to| (*from, to)));
            pairs.filter(|(from, to)| from != to).collect::<BTreeSet<_>>()
        };
        // Each rule is about a port of its own, so a pair changes if any of its rules does.
        let changed = one.iter().zip(other).flat_map(|(one, other)| &pairs(one) - &pairs(other));
        changed.collect::<BTreeSet<_>>().len() as u64
    };
    assert_eq!(plan.allowed_total, expected(&after, &before));
    assert_eq!(plan.stopped_total, expected(&before, &after));
}

#[test]
fn one_rule_more_is_judged_against_all_that_stay() {
    let members: Vec<Member> = (1..=MANY).map(|i| member(i, &format!("m{i:04}"))).collect();
    let rule = |number: u16| Rule {
        sources: vec![Selector::Node(id(number)), Selector::Node(id(number / 2))],
        destinations: vec![if number.is_multiple_of(10) {
            Selector::All
        } else {
            Selector::Node(id(MANY - number))
        }],
        protocol: Protocol::Udp,
        ports: vec![number.into()],
    };
    let before: Vec<Rule> = (1..=MANY).map(rule).collect();
    let mut after = before.clone();
    let all = vec![Selector::All];
    after.push(Rule {
        sources: all.clone(),
        destinations: all,
        protocol: Protocol::Udp,
        ports: vec![53.into()],
    });
    let of = |rules| Allowances { members: &members, rules };
    let started = std::time::Instant::now();
    let plan = compare(&of(&before), &of(&after), 200);
    println!("{:?}: {} allowed", started.elapsed(), plan.allowed_total);
    // Rule 53 allows that port already: from members 53 and 26 to one.
    let pairs = u64::from(MANY) * u64::from(MANY - 1);
    assert_eq!((plan.allowed_total, plan.stopped_total), (pairs - 2, 0));
}

/// What networks look like: a thousand members in some tens of kinds.
#[test]
fn a_thousand_members_of_some_kinds_are_compared() {
    let tags: Vec<String> = (0..40).map(|i| format!("t{i}")).collect();
    let member = |i: u16| tagged(i, &format!("m{i:04}"), &[&tags[usize::from(i % 40)]]);
    let members: Vec<Member> = (1..=1_000).map(member).collect();
    let rules = |more: u16| -> Vec<Rule> {
        let tag = |i: u16| vec![Selector::Tag(tags[usize::from(i % 40)].clone())];
        let rule = |i: u16| Rule {
            sources: tag(i),
            destinations: tag(i / 25 + more * (i % 2)),
            protocol: Protocol::Tcp,
            ports: vec![(i + 1).into()],
        };
        (0..1_000).map(rule).collect()
    };
    let (before, after) = (rules(0), rules(1));
    let of = |rules| Allowances { members: &members, rules };
    let started = std::time::Instant::now();
    let plan = compare(&of(&before), &of(&after), 200);
    println!("{:?}: {} allowed, {} stopped", started.elapsed(), plan.allowed_total, plan.stopped_total);
    assert!(plan.allowed_total > 100_000 && plan.stopped_total > 100_000);
}

/// A member of a small network, before and after.
fn some_member(number: u16) -> impl Strategy<Value = [Member; 2]> {
    let names = |of: &'static [&str]| proptest::sample::subsequence(of.to_vec(), 0..=2);
    let route = prop_oneof![
        Just("10.0.0.0/30"),
        Just("10.0.0.4/31"),
        Just("10.0.0.8/32"),
        Just("fd01::/126"),
        Just("fd01::2/127"),
        Just("10.0.0.0/28"),
    ];
    let groups = (names(&["a", "b", "c"]), names(&["a", "b", "c"]));
    let routes = (
        proptest::collection::vec(route.clone(), 0..3),
        proptest::collection::vec(route, 0..3),
        any::<bool>(),
    );
    (groups, names(&["t", "u"]), routes, 0..10_u8).prop_map(move |(groups, tags, routes, kind)| {
        let (before, after, moves) = routes;
        let texts = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let member = |groups, routes: &[&str]| Member {
            kind: if kind < 3 { MemberKind::Stock } else { MemberKind::Mesh },
            relay: kind == 9,
            ipv4: (kind != 4).then(|| [10, 0, 0, 8 + number as u8].into()),
            ipv6: [0xfd01, 0, 0, 0, 0, 0, 0, number].into(),
            groups: texts(groups),
            tags: texts(tags.clone()),
            routes: routes.iter().map(|route| route.parse().unwrap()).collect(),
            ..member(number, &format!("m{number}"))
        };
        let later = if moves { &after } else { &before };
        [member(groups.0, &before), member(groups.1, later)]
    })
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let range = (0_u8..16, 28_u8..=32)
        .prop_map(|(host, len)| Prefix::containing([10, 0, 0, host].into(), len).unwrap());
    let range6 = (0_u16..8, 125_u8..=128).prop_map(|(host, len)| {
        Prefix::containing(IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, host]), len).unwrap()
    });
    let selector = prop_oneof![
        1 => Just(Selector::All),
        3 => (0_u16..5).prop_map(|number| Selector::Node(id(number))),
        3 => prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(|name| Selector::Group(name.into())),
        2 => prop_oneof![Just("t"), Just("u")].prop_map(|name| Selector::Tag(name.into())),
        3 => range.prop_map(Selector::Prefix),
        2 => range6.prop_map(Selector::Prefix),
    ];
    let side = proptest::collection::vec(selector, 0..3);
    let ports = proptest::collection::vec(
        (1_u16..8, 0_u16..3).prop_map(|(first, more)| PortRange::new(first, first + more).unwrap()),
        0..3,
    );
    let protocol = prop_oneof![
        1 => Just(Protocol::Any),
        4 => Just(Protocol::Tcp),
        2 => Just(Protocol::Udp),
        1 => Just(Protocol::Icmp),
        1 => Just(Protocol::Number(47)),
    ];
    (side.clone(), side, protocol, ports).prop_map(|(sources, destinations, protocol, ports)| Rule {
        sources,
        destinations,
        protocol,
        ports: if protocol.has_ports() { ports } else { vec![] },
    })
}

/// Two policies that share some rules.
fn policies() -> impl Strategy<Value = [Vec<Rule>; 2]> {
    let rules = || proptest::collection::vec(some_rule(), 0..4);
    (rules(), rules(), rules()).prop_map(|(shared, mut before, after)| {
        before.extend(shared.clone());
        [before, shared.into_iter().chain(after).collect()]
    })
}

/// Every opening between these addresses that could make a difference: protocols of every kind, and each kind of port that a rule can
/// name.
fn openings(sources: &[IpAddr], destinations: &[IpAddr]) -> Vec<Opening> {
    let services = [
        (6, 0),
        (6, 1),
        (6, 4),
        (6, 5),
        (6, 9),
        (6, 65_535),
        (17, 2),
        (17, 7),
        (1, 0),
        (58, 0),
        (47, 0),
        (132, 0),
        (0, 0),
    ];
    let mut openings = Vec::new();
    for source in sources {
        for destination in destinations.iter().filter(|it| it.is_ipv4() == source.is_ipv4()) {
            openings.extend(services.map(|(protocol, port)| Opening {
                source: *source,
                destination: *destination,
                protocol,
                port: [6, 17].contains(&protocol).then_some(port),
            }));
        }
    }
    openings
}

/// Whether an address of an opening lies in a route of the end that has it, and in a longer range of the other end: then it is the
/// other's.
fn is_the_others(members: &[Vec<Member>; 2], ends: [NodeId; 2], opening: &Opening) -> bool {
    let longest = |members: &[Member], end: NodeId, address: IpAddr| {
        let member = members.iter().find(|member| member.id == end);
        let ranges = member.into_iter().flat_map(Member::allowed_ips);
        ranges.filter(|range| range.contains(address)).map(|range| range.len()).max()
    };
    let [from, to] = ends;
    members.iter().any(|members| {
        let taken =
            |holder, other, address| longest(members, other, address) > longest(members, holder, address);
        taken(from, to, opening.source) || taken(to, from, opening.destination)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_plan_is_what_the_filters_of_both_ends_say(
        members in [some_member(0), some_member(1), some_member(2), some_member(3)],
        gone in proptest::option::weighted(0.2, 0_usize..4), new in proptest::option::weighted(0.2, 0_usize..4),
        rules in policies(),
    ) {
        let of = |policy: usize, without: Option<usize>| -> Vec<Member> {
            let members = members.iter().map(|member| member[policy].clone()).enumerate();
            members.filter(|(place, _)| Some(*place) != without).map(|(_, member)| member).collect()
        };
        let members = [of(0, new), of(1, gone)];
        let policies = [0, 1].map(|at| Allowances { members: &members[at], rules: &rules[at] });
        let plan = compare(&policies[0], &policies[1], usize::MAX);
        prop_assert_eq!(
            (plan.allowed.len() as u64, plan.stopped.len() as u64),
            (plan.allowed_total, plan.stopped_total)
        );
        let v4 = (0..20).map(|host| [10, 0, 0, host].into());
        let all: Vec<IpAddr> = v4.chain((0..9).map(|host| [0xfd01, 0, 0, 0, 0, 0, 0, host].into())).collect();
        // What a member has in one of the policies: a change is about such addresses.
        let owned = |number: u16| -> Vec<IpAddr> {
            let both: Vec<&Member> = members.iter().flatten().filter(|member| member.id == id(number)).collect();
            let owns = |address| both.iter().any(|it| it.allowed_ips().any(|own| own.contains(address)));
            all.iter().copied().filter(|address| owns(*address)).collect()
        };
        for (source, destination) in (0..4).flat_map(|source| (0..4).map(move |to| (source, to))) {
            let (from, to) = (id(source), id(destination));
            let pairs = policies.each_ref().map(|policy| Pair::of(policy, from, to).filter(|_| from != to));
            let told = [&plan.allowed, &plan.stopped].map(|changes| {
                let these = changes.iter().filter(|change| change.source == from && change.destination == to);
                these.collect::<Vec<&Change>>()
            });
            for opening in openings(&owned(source), &owned(destination)) {
                let [before, after] =
                    pairs.each_ref().map(|pair| pair.as_ref().is_some_and(|pair| pair.passes(&opening)));
                let count = |kind: usize| told[kind].iter().filter(|change| includes(change, &opening)).count();
                let changes = [usize::from(!before && after), usize::from(before && !after)];
                if is_the_others(&members, [from, to], &opening) {
                    // A plan tells of these as if both had them, and not of a change in whose they are.
                    continue;
                }
                // Once each, if at all.
                prop_assert_eq!(count(0), changes[0], "{:?}: {:?}", opening, &told[0]);
                prop_assert_eq!(count(1), changes[1], "{:?}: {:?}", opening, &told[1]);
            }
        }
    }
}
