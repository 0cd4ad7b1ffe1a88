//! Tests in files.

use super::{
    super::{OPENINGS_MAX, judge::COMPARISONS_MAX},
    *,
};

const RULES: &str = "tags=['web','ci']\n[groups]\nadmins=['alice','bob']\n[[allow]]\nfrom='group:admins'\nto='tag:web'\nprotocol='tcp'\nports=22\n[[allow]]\nfrom='*'\nto='10.1.0.9'\nprotocol='icmp'\n[[allow]]\nfrom=['phone','printer']\nto=['bob','phone','printer']\n";
/// Lines of `RULES`.
const LINES: usize = 15;

fn test(from: &str, to: &str, asked: &str) -> String {
    format!("{RULES}[[test]]\nfrom='{from}'\nto='{to}'\n{asked}\n")
}

/// The problems of one test, whose lines count from 1 on.
fn problems(from: &str, to: &str, asked: &str) -> Vec<String> {
    let problems = match check(&test(from, to, asked), &roster()) {
        Ok(compiled) => compiled.warnings,
        Err(problems) => problems,
    };
    let relative =
        problems.into_iter().map(|problem| Problem { line: problem.line - LINES as u32, ..problem });
    lines(&relative.collect::<Vec<_>>())
}

#[test]
fn what_holds_passes() {
    for (from, to, asked) in [
        ("alice", "web1", "allow='tcp/22'\ndeny=['tcp/23','udp/22','icmp',47]"),
        ("group:admins", "tag:web", "allow='tcp/22'"),
        ("tag:web", "group:admins", "deny=['tcp/22','icmp']"),
        ("100.64.0.1", "100.64.0.4", "allow='tcp/22'"),
        ("fd00::1", "web1", "allow='tcp/22'"),
        ("carol", "10.1.0.9", "allow='icmp'\ndeny='tcp/22'"),
        ("carol", "10.1.0.10", "deny='icmp'"),
        ("10.1.0.9", "carol", "deny='icmp'"),
        // Of a device without a filter, the other end judges.
        ("phone", "bob", "allow=['tcp/1','icmp','132']"),
        ("bob", "phone", "deny='tcp/1'"),
        ("*", "carol", "deny='tcp/22'"),
    ] {
        let asked = asked.replace("47]", "'47']");
        assert_eq!(problems(from, to, &asked), Vec::<String>::new(), "{from} {to} {asked}");
    }
}

#[test]
fn what_fails_is_told_where_it_was_asked_for() {
    assert_eq!(
        problems("alice", "web1", "allow=['tcp/22','tcp/23']\ndeny=['icmp','tcp/22']"),
        [
            "4:17 test 1 fails: \"alice\" may not open tcp/23 to \"web1\" over IPv4 (100.64.0.1 -> 100.64.0.4): no rule allows it, and 1 more such openings",
            "5:14 test 1 fails: \"alice\" may open tcp/22 to \"web1\" over IPv4 (100.64.0.1 -> 100.64.0.4): rule 1 allows it (group:admins -> tag:web tcp/22), and 1 more such openings",
        ]
    );
    assert_eq!(
        problems("six", "10.1.0.9", "allow='icmp'"),
        ["1:1 test 1 is about addresses of different families, between which no packet can go: name others"]
    );
    assert_eq!(
        problems("six", "web1", "allow='tcp/22'"),
        [
            "4:7 test 1 fails: \"six\" may not open tcp/22 to \"web1\" over IPv6 (fd00::9 -> fd00::4): no rule allows it"
        ]
    );
    let group = problems("group:admins", "tag:web", "deny='tcp/22'");
    assert!(group[0].ends_with("and 7 more such openings"), "two by two members, two families: {group:?}");
    let phone = problems("phone", "bob", "deny='udp/5'");
    assert!(phone[0].contains("rule 3 allows it (phone,printer -> bob,phone,printer any)"), "{phone:?}");
    let icmp = problems("alice", "10.1.0.9", "deny='icmp'");
    assert!(icmp[0].contains("rule 2 allows it (* -> 10.1.0.9 icmp)"), "{icmp:?}");
}

#[test]
fn a_test_of_nothing_is_warned_of() {
    for (from, to, why) in [
        ("alice", "alice", "both ends are one member"),
        ("phone", "printer", "both ends are stock WireGuard devices"),
        ("tag:ci", "alice", "nobody is meant by its `from` now"),
        ("alice", "tag:ci", "nobody is meant by its `to` now"),
    ] {
        let problems = problems(from, to, "deny='tcp/1'");
        assert_eq!(problems.len(), 1, "{from} {to}: {problems:?}");
        assert!(problems[0].starts_with("1:1 warning: test 1 tests nothing"), "{problems:?}");
        assert!(problems[0].contains(why), "{problems:?}");
    }
}

#[test]
fn an_address_is_that_of_the_longest_route() {
    let mut roster = roster();
    roster.members[2].routes = vec!["10.1.0.0/24".parse().unwrap()];
    let text = "[[allow]]\nfrom='alice'\nto='carol'\n[[test]]\nfrom='alice'\nto='10.1.0.9'\nallow='tcp/1'\n[[test]]\nfrom='alice'\nto='10.1.1.9'\ndeny='tcp/1'";
    assert_eq!(check(text, &roster).map(|compiled| compiled.tests), Ok(2));
}

#[test]
fn tests_are_bounded() {
    let mut roster = Roster { members: (1..=100).map(|i| member(i, &format!("m{i}"))).collect() };
    let text = "[[test]]\nfrom='*'\nto='*'\ndeny='tcp/1'";
    assert_eq!(100 * 100 * 4, OPENINGS_MAX * 2);
    let problems = check(text, &roster).unwrap_err();
    assert!(problems[0].message.contains("more than 20000 openings to judge"), "{}", problems[0]);
    roster.members.truncate(70);
    assert!(check(text, &roster).is_ok());
    // With many rules to compare each opening with, fewer pairs are enough.
    let rules = "[[allow]]\nfrom='m1'\nto='m2'\nports=[2,3,4]\nprotocol='tcp'\n".repeat(1100);
    assert_eq!(70 * 70 * 4 * 1100 * 5, COMPARISONS_MAX + 7_800_000);
    let problems = check(&format!("{rules}{text}"), &roster).unwrap_err();
    assert!(problems[0].message.contains("more than 100000000 comparisons"), "{}", problems[0]);
    roster.members.truncate(10);
    assert!(check(&format!("{rules}{text}"), &roster).is_ok());
}

#[test]
fn each_pair_of_many_is_judged_by_the_filters_of_both_its_ends() {
    let members = (1..=30).map(|i| member(i, &format!("m{i}"))).collect();
    // Of all pairs that are asked about, one may open what must be denied, and every other one what must be allowed.
    let text = "[[allow]]\nfrom='m7'\nto='m19'\nprotocol='tcp'\nports=22\n[[test]]\nfrom='*'\nto='*'\ndeny='tcp/22'\nallow='tcp/22'";
    let problems = lines(&check(text, &Roster { members }).unwrap_err());
    assert_eq!(problems.len(), 2, "{problems:?}");
    let others = 30 * 29 * 2 - 2 - 1;
    let starts = [
        "\"m1\" may not open tcp/22 to \"m2\" over IPv4".to_owned(),
        "\"m7\" may open tcp/22 to \"m19\" over IPv4 (100.64.0.7 -> 100.64.0.19): rule 1 allows it"
            .to_owned(),
    ];
    let ends = [format!("and {others} more such openings"), "and 1 more such openings".to_owned()];
    for (start, end) in starts.iter().zip(ends) {
        let found = problems.iter().find(|problem| problem.contains(start));
        assert!(found.is_some_and(|problem| problem.ends_with(&end)), "{start}: {problems:?}");
    }
}
