//! What the manual says holds.

use super::*;

const MANUAL: &str = include_str!("../../../../docs/policy.md");

#[test]
fn the_examples_of_the_manual_are_good() {
    let tagged_as = |number, tag: &str| tagged(number, &format!("{tag}-{number}"), &[tag]);
    let bench = ["10.20.0.0/24", "fd00:20::/64"].map(|route| route.parse().unwrap()).to_vec();
    let people = || ["alice", "bob", "carol"].into_iter().zip(1..).map(|(name, number)| member(number, name));
    let rosters = [
        roster().members.into_iter().filter(|member| member.name != "printer").collect(),
        people().chain([member(4, "git"), member(5, "wiki")]).collect(),
        people()
            .chain([tagged_as(4, "ci"), Member { routes: bench, ..member(5, "bench-gateway") }])
            .collect(),
        people()
            .chain((4..).zip(["lb", "lb", "app", "db", "monitor"]).map(|(i, tag)| tagged_as(i, tag)))
            .collect(),
    ];
    let examples: Vec<&str> =
        MANUAL.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), rosters.len());
    for (example, members) in examples.iter().zip(rosters) {
        match check(example, &Roster { members }) {
            Ok(compiled) => {
                assert_eq!(lines(&compiled.warnings), Vec::<String>::new(), "{example}");
                assert!(compiled.rules > 0 && compiled.tests > 0);
            }
            Err(problems) => panic!("{example}\n{}", lines(&problems).join("\n")),
        }
    }
}

#[test]
fn the_problems_of_the_manual_are_told_so() {
    let text =
        "tags = ['web']\n[[allow]]\nfrom = ['alce', 'tag:wbe']\nto = '*'\nprotocol = 'tcp'\nports = 65536\n";
    let told: Vec<String> = check(text, &roster()).unwrap_err().iter().map(ToString::to_string).collect();
    let failing = "tags = ['web']\n[[allow]]\nfrom = 'bob'\nto = '*'\n[[allow]]\nfrom = '*'\nto = 'tag:web'\nprotocol = 'tcp'\n[[test]]\nfrom = 'alice'\nto = 'web1'\ndeny = 'tcp/23'\n";
    let failing = check(
        failing,
        &Roster {
            members: vec![
                Member { ipv4: None, ..member(1, "alice") },
                member(2, "bob"),
                tagged(4, "web1", &["web"]),
            ],
        },
    );
    let failing = failing.unwrap_err()[0]
        .to_string()
        .replace("IPv6 (fd00::1 -> fd00::4)", "IPv4 (100.64.0.1 -> 100.64.0.4)");
    for problem in told.iter().chain([&failing]) {
        let message = problem.split_once("error: ").unwrap().1;
        assert!(MANUAL.contains(&format!("error: {message}\n")), "{problem}");
    }
    assert_eq!(told.len(), 3);
}

#[test]
fn the_bounds_of_the_manual_are_the_programs() {
    use ringmesh_tunnel::netmap::{
        GROUPS_MAX, LEAVES_MAX, NAME_ADDRESSES_MAX, NAME_MAX, PORTS_MAX, SELECTORS_MAX,
    };
    for (bound, value) in [
        ("words on one side of a rule", SELECTORS_MAX),
        ("ports and ranges of a rule", PORTS_MAX),
        ("addresses of a name", NAME_ADDRESSES_MAX),
        ("groups of a member", GROUPS_MAX),
        ("names of groups, tags and hosts", NAME_MAX),
    ] {
        assert!(MANUAL.contains(&format!("| {bound} | {value}")), "{bound}");
    }
    assert!(MANUAL.contains("16,384") && LEAVES_MAX == 16_384);
    assert!(MANUAL.contains("| openings judged by tests | 20,000 |") && super::super::OPENINGS_MAX == 20_000);
    assert!(MANUAL.contains("256 KiB") && super::super::TEXT_MAX == 256 << 10);
    assert!(MANUAL.contains("At most 200 problems") && super::super::PROBLEMS_MAX == 200);
}
