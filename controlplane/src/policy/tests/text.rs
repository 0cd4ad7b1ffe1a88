//! Every kind of mistake: where it is, what it is, and what to do.

use proptest::prelude::*;

use super::{super::PolicyFile, *};

#[test]
fn a_whole_file_is_read() {
    let text = r#"
        tags = ["web", "ci"]
        [groups]
        admins = ["alice", "bob"]
        dev = ["carol", "group:admins"]
        [hosts]
        db = "10.1.0.7"
        office = ["10.1.0.0/16", "fd00:1::/48"]
        [[allow]]
        from = ["group:admins", "tag:ci", "carol"]
        to = ["tag:web", "host:db"]
        protocol = "tcp"
        ports = [22, "8000-8100"]
        [names]
        git = "web1"
        "a.printer" = ["10.1.0.9", "fd00:1::9"]
        [[test]]
        from = "alice"
        to = "web1"
        allow = ["tcp/22"]
        deny = ["tcp/23", "icmp"]
    "#;
    let compiled = good(text);
    assert_eq!((compiled.rules, compiled.tests, compiled.leaves.len()), (1, 1, 3));
    assert_eq!(lines(&compiled.warnings), Vec::<String>::new());
    assert_eq!(PolicyFile::parse(text).unwrap().tags().collect::<Vec<_>>(), ["ci", "web"]);
}

#[test]
fn one_word_may_stand_without_a_list() {
    let compiled = good(
        "[groups]\na = 'alice'\n[[allow]]\nfrom = 'group:a'\nto = '*'\nprotocol = 'tcp'\nports = 22\n[[test]]\nfrom = 'alice'\nto = 'bob'\nallow = 'tcp/22'",
    );
    assert_eq!(compiled.rules, 1);
}

#[test]
fn an_empty_file_allows_nothing() {
    for text in ["", "# nothing yet\n", "tags = []\n[groups]\n[hosts]\n[names]\n"] {
        let compiled = good(text);
        assert!(compiled.leaves.is_empty() && compiled.warnings.is_empty());
        assert_eq!(compiled.groups.len(), roster().members.len());
    }
}

#[test]
fn what_is_no_toml_is_told_where_it_ends_to_be() {
    assert_eq!(bad("tags = [\"web\"\n"), ["1:14 this is not TOML: unclosed array, expected `]`"]);
    assert_eq!(bad("[groups\n"), ["1:8 this is not TOML: unclosed table, expected `]`"]);
    assert_eq!(
        bad("ä = 1"),
        ["1:1 this is not TOML: invalid unquoted key, expected letters, numbers, `-`, `_`"]
    );
    assert_eq!(
        bad("[groups]\na = []\na = []\n"),
        ["3:1 \"a\" is there twice: TOML takes a name once, so write it in one place"]
    );
    assert_eq!(
        bad("[hosts]\n[groups]\n[hosts]\n"),
        ["3:2 \"hosts\" is there twice: TOML takes a name once, so write it in one place"]
    );
    assert!(bad("a = \"\u{0}\"")[0].starts_with("1:"));
}

#[test]
fn unknown_keys_are_told_with_what_was_meant() {
    assert_eq!(
        bad(
            "acls = 1\ntag = []\nzone = 'x'\n[[allow]]\nsrc = ['*']\nto = ['*']\nfrom = ['*']\nport = [1]\naction = 'deny'\n[[test]]\nfrom='alice'\nto='bob'\nallows=['icmp']"
        ),
        [
            "1:1 unknown key \"acls\": did you mean `allow`?",
            "2:1 unknown key \"tag\": did you mean `tags`?",
            "3:1 unknown key \"zone\": a policy file has tags, groups, hosts, allow, names, test",
            "5:1 unknown key \"src\": did you mean `from`?",
            "8:1 unknown key \"port\": did you mean `ports`?",
            "9:1 unknown key \"action\": rules only allow, and what no rule allows is denied",
            "10:1 this test asks for nothing: add allow = [\"tcp/22\"] or deny = [\"tcp/23\", \"icmp\"]",
            "13:1 unknown key \"allows\": did you mean `allow`?",
        ]
    );
}

#[test]
fn what_has_the_wrong_type_is_told_with_an_example() {
    assert_eq!(
        bad("tags = [1]\ngroups = 3\nhosts = ['x']\nnames = true\nallow = 'x'\ntest = [4]"),
        [
            "1:9 `tags` lists tags, and this is an integer: write tags = [\"web\", \"ci\"]",
            "2:10 `groups` is an integer, and should be a table: write [groups], and below it admins = [\"alice\", \"bob\"]",
            "3:9 `hosts` is an array, and should be a table: write [hosts], and below it db = \"10.1.0.9\"",
            "4:9 `names` is a boolean, and should be a table: write [names], and below it git = \"web1\"",
            "5:9 `allow` is a list of tables, and this is a string: begin each one with [[allow]]",
            "6:9 `test` is a list of tables, and this is an integer: begin each one with [[test]]",
        ]
    );
    assert_eq!(
        bad("[allow]\nfrom = '*'\nto = '*'"),
        ["1:1 `allow` is a list of tables, and this is a table: begin each one with [[allow]]"]
    );
    assert_eq!(
        bad("[[allow]]\nfrom = 1\nto = [true]\nprotocol = ['tcp']\nports = [1.5]"),
        [
            "2:8 `from` and `to` list who is meant, and this is an integer: write from = [\"group:admins\", \"alice\"]",
            "3:7 `from` and `to` list who is meant, and this is a boolean: write from = [\"group:admins\", \"alice\"]",
            "4:12 `protocol` is an array: write \"any\", \"tcp\", \"udp\", \"icmp\" or a number; a rule has one protocol",
            "5:10 a float is no port: write 22, or \"8000-8100\"",
        ]
    );
}

#[test]
fn rules_need_both_sides_and_ports_their_protocol() {
    assert_eq!(
        bad(
            "[[allow]]\n\n[[allow]]\nfrom = []\nto = '*'\n[[allow]]\nfrom='*'\nto='*'\nports=[22]\n[[allow]]\nfrom='*'\nto='*'\nprotocol='icmp'\nports=22\n[[allow]]\nfrom='*'\nto='*'\nprotocol='tcp'\nports=[]"
        ),
        [
            "1:1 this rule has no `from`: write from = [\"*\"] if you mean everybody",
            "1:1 this rule has no `to`: write to = [\"*\"] if you mean everybody",
            "4:1 `from` is empty, so the rule is about nobody: name somebody, or remove the rule",
            "9:1 ports of protocol any: only tcp and udp have ports; add protocol = \"tcp\" or \"udp\", a rule for each",
            "14:1 ports of protocol icmp: only tcp and udp have ports; add protocol = \"tcp\" or \"udp\", a rule for each",
            "19:1 `ports` is empty: leave it out to allow all ports, or name some",
        ]
    );
}

#[test]
fn ports_and_protocols_are_told_where_they_stand() {
    assert_eq!(
        bad(
            "[[allow]]\nfrom='*'\nto='*'\nprotocol='tcp'\nports=[0, 65536, '8100-8000', -1, 0xffff_ff, 'ä', 99999999999999999999]\n[[allow]]\nfrom='*'\nto='*'\nprotocol='sctp'\n[[allow]]\nfrom='*'\nto='*'\nprotocol=17\n[[allow]]\nfrom='*'\nto='*'\nprotocol=300"
        ),
        [
            "5:8 port 0 is out of range: ports go from 1 to 65535",
            "5:11 port 65536 is out of range: ports go from 1 to 65535",
            "5:18 the range \"8100-8000\" is reversed: did you mean \"8000-8100\"?",
            "5:31 port -1 is out of range: ports go from 1 to 65535",
            "5:35 port 16777215 is out of range: ports go from 1 to 65535",
            "5:46 \"ä\" is no port: write 22, or \"8000-8100\"",
            "5:51 this port is out of range: ports go from 1 to 65535",
            "9:10 unknown protocol \"sctp\": write its number, 132",
            "13:10 protocol 17 has a name: write \"udp\"",
            "17:10 protocol 300 is out of range: numbers go from 0 to 255",
        ]
    );
}

#[test]
fn names_that_nobody_has_are_told_with_near_ones() {
    assert_eq!(
        bad(
            "tags=['web']\n[groups]\nadmins=['alicia', 'group:admin']\n[hosts]\ndb='10.1.0.7'\n[[allow]]\nfrom=['alce','admins','db','web','everyone','tag:wbe','host:dc','group:admin','group:ops','tag:other','host:other','zed']\nto='*'"
        ),
        [
            "3:9 no member is called \"alicia\": did you mean \"alice\"?",
            "3:19 unknown group \"admin\": did you mean \"admins\"?",
            "7:7 no member is called \"alce\": did you mean \"alice\"?",
            "7:14 no member is called \"admins\": did you mean \"group:admins\"?",
            "7:23 no member is called \"db\": did you mean \"host:db\"?",
            "7:28 no member is called \"web\": did you mean \"tag:web\"?",
            "7:34 no member is called \"everyone\": \"*\" is everybody",
            "7:45 unknown tag \"wbe\": did you mean \"web\"?",
            "7:55 unknown host \"dc\": did you mean \"db\"?",
            "7:65 unknown group \"admin\": did you mean \"admins\"?",
            "7:79 unknown group \"ops\": add it below [groups], with its members",
            "7:91 unknown tag \"other\": add it to `tags`, at the top of the file, if join tokens may give it",
            "7:103 unknown host \"other\": add it below [hosts], with its addresses",
            "7:116 no member is called \"zed\": it must have joined before a policy can name it (see `meshctl nodes list`); tags and groups may be empty",
        ]
    );
}

#[test]
fn two_members_of_one_name_are_told() {
    let mut roster = roster();
    roster.members.push(member(20, "alice"));
    let problems = check("[[allow]]\nfrom = ['alice', 'bob']\nto = 'bob'", &roster).unwrap_err();
    assert_eq!(
        lines(&problems),
        ["2:9 several members are called \"alice\": rename or remove all but one of them"]
    );
}

#[test]
fn groups_that_contain_themselves_are_told_once() {
    assert_eq!(
        bad(
            "[groups]\na=['group:b']\nb=['group:c', 'alice']\nc=['group:a', 'bob']\nd=['group:a']\ne=['group:e']\nf=['alice', 'tag:web', '*', '10.1.0.9']"
        ),
        [
            "2:1 the group \"a\" contains itself: \"a\" contains \"b\" contains \"c\" contains \"a\"; break the circle",
            "6:1 the group \"e\" contains itself: \"e\" contains \"e\"; break the circle",
            "7:13 \"tag:web\" cannot be in a group, which has members and other groups: name it in the rule beside the group",
            "7:24 \"*\" cannot be in a group, which has members and other groups: name it in the rule beside the group",
            "7:29 \"10.1.0.9\" cannot be in a group, which has members and other groups: name it in the rule beside the group",
        ]
    );
    let mut long = "[groups]\n".to_owned();
    (0..5_000).for_each(|i| long.push_str(&format!("g{i}=['group:g{}']\n", (i + 1) % 5_000)));
    let problems = bad(&long);
    assert_eq!(problems.len(), 1);
    assert!(problems[0].len() < 400, "{}", problems[0]);
}

#[test]
fn names_are_labels_and_nobody_elses() {
    assert_eq!(
        bad(
            "[names]\nweb1='10.1.0.9'\nGit='web1'\n'a_b'='web1'\n\"x\\u007fy\"='web1'\n\"\\u001b[2J\"='web1'\nok=[]\ngit.infra='web1'\n'-a'='web1'\nalias='ok2'\nok2='web1'\nrange='10.1.0.0/24'\nmapped='::ffff:10.1.0.9'\nwho='nobody'\n'é'='web1'\n'a..b'='web1'\n'a.'='web1'"
        ),
        [
            "2:1 \"web1\" is the name of a member already: choose another one",
            "3:1 \"Git\" has capitals: write \"git\"",
            "4:1 \"a_b\": each part of a name has only lower-case letters, digits and hyphens, and '_' is none",
            "5:1 \"x\\u{7f}y\": each part of a name has only lower-case letters, digits and hyphens, and '\\u{7f}' is none",
            "6:1 \"\\u{1b}[2J\": each part of a name has only lower-case letters, digits and hyphens, and '\\u{1b}' is none",
            "7:1 the name \"ok\" points at nothing: give it an address or a member",
            "8:1 a name with dots stands in quotes: write \"git.infra\" = ...",
            "9:1 \"-a\": each part of a name has no hyphen at either end",
            "10:7 no member is called \"ok2\": it is a name of this file, and only names of members can be used here",
            "12:7 \"10.1.0.0/24\" is a range, and a name points at addresses: name each one",
            "13:8 \"::ffff:10.1.0.9\" is IPv4 written as IPv6: write 10.1.0.9",
            "14:5 no member is called \"nobody\": it must have joined before a policy can name it (see `meshctl nodes list`); tags and groups may be empty",
            "15:1 \"é\": each part of a name has only lower-case letters, digits and hyphens, and 'é' is none",
            "16:1 an empty name: each part of a name has 1 to 63 characters",
            "17:1 \"a.\" ends with a dot: names are below the network's zone, which is left out",
        ]
    );
}

#[test]
fn addresses_are_ranges_as_they_should_be() {
    assert_eq!(
        bad(
            "[hosts]\na='10.1.2.3/8'\nb=['10.0.0.0/8', 'fd00::1/64', 'x']\nc=[]\n[[allow]]\nfrom='10.0.0.0/33'\nto=['::ffff:10.0.0.0/104', '10.1']"
        ),
        [
            "2:3 \"10.1.2.3/8\" has bits set beyond its length: did you mean 10.0.0.0/8?",
            "3:18 \"fd00::1/64\" has bits set beyond its length: did you mean fd00::/64?",
            "3:32 \"x\" is no address and no range: write it as 10.1.0.9, 10.1.0.0/16 or fd00:1::/48",
            "4:1 the host \"c\" has no address: give it one",
            "6:6 \"10.0.0.0/33\": a length of 33 bits is beyond 32, the longest of this address family",
            "7:5 \"::ffff:10.0.0.0\" is IPv4 written as IPv6: write 10.0.0.0/8",
            "7:28 \"10.1\" is no address and no range: write it as 10.1.0.9, 10.1.0.0/16 or fd00:1::/48",
        ]
    );
}

#[test]
fn tests_are_told_what_they_lack() {
    assert_eq!(
        bad(
            "[[test]]\nallow=['icmp']\n[[test]]\nfrom=['alice','bob']\nto=[]\ndeny=[]\n[[test]]\nfrom='alice'\nto='relay'\nallow=['tcp', 'any', 'icmp/8', 'tcp/1-2', 'tcpp/1']\n[[test]]\nfrom='10.9.9.9'\nto='10.1.0.0/16'\ndeny='icmp'"
        ),
        [
            "1:1 this test has no `from`: name a member, \"group:\", \"tag:\" or an address",
            "1:1 this test has no `to`: name a member, \"group:\", \"tag:\" or an address",
            "4:1 `from` of a test is one of: a member, \"group:\", \"tag:\", an address",
            "5:1 `to` of a test is one of: a member, \"group:\", \"tag:\", an address",
            "6:6 an empty list tests nothing: name \"tcp/22\" or the like, or remove it",
            "9:4 \"relay\" is a relay, which neither sends nor takes packets: test other members",
            "10:8 \"tcp\": name the port, as in \"tcp/22\"",
            "10:15 \"any\": a test is about one protocol, as in \"tcp/22\", \"udp/53\" or \"icmp\"",
            "10:22 \"icmp/8\": only tcp and udp have ports",
            "10:32 \"tcp/1-2\": a test is about one port; name each that matters",
            "10:43 unknown protocol \"tcpp\": did you mean \"tcp\"?",
            "12:6 10.9.9.9 is no member's address and in no member's routes, so nobody could send to it or from it",
            "13:4 a test is about addresses, and 10.1.0.0/16 is a range: name an address in it that matters",
        ]
    );
}

#[test]
fn what_would_not_fit_is_told_with_its_bound() {
    use ringmesh_tunnel::netmap::{GROUPS_MAX, LEAVES_MAX, NAME_ADDRESSES_MAX, PORTS_MAX, SELECTORS_MAX};
    let list = |count: usize, of: &dyn Fn(usize) -> String| (0..count).map(of).collect::<Vec<_>>().join(",");
    let hosts = |count| list(count, &|i| format!("'10.1.{}.{}'", i / 256, i % 256));
    let fits = |from: usize, ports: usize, names: usize, groups: usize| {
        let ports = list(ports, &|i| (i * 2 + 1).to_string());
        let groups = (0..groups).map(|i| format!("g{i}=['alice']\n")).collect::<String>();
        format!(
            "[groups]\n{groups}[names]\nx=[{}]\n[hosts]\nh=[{}]\n[[allow]]\nfrom=['host:h']\nto='*'\nprotocol='tcp'\nports=[{ports}]",
            hosts(names),
            hosts(from)
        )
    };
    let most = (SELECTORS_MAX, PORTS_MAX, NAME_ADDRESSES_MAX, GROUPS_MAX);
    good(&fits(most.0, most.1, most.2, most.3));
    let problems = bad(&fits(most.0 + 1, most.1 + 1, most.2 + 1, most.3 + 1));
    assert_eq!(problems.len(), 4, "{problems:#?}");
    for (problem, bound) in problems.iter().zip([
        "\"alice\" is in more than 64 groups",
        "\"x\" has 17 addresses, and at most 16 fit",
        "257 words on one side of a rule, hosts counted by their addresses, and at most 256 fit",
        "65 ports and ranges in one rule, and at most 64 fit: split the rule",
    ]) {
        assert!(problem.contains(bound), "{problem}");
    }
    let names: String = (0..LEAVES_MAX).map(|i| format!("n{i:05}='1.1'\n")).collect();
    let names = format!("[names]\n{}", names.replace("'1.1'", "'::1'"));
    assert!(names.len() <= super::super::TEXT_MAX);
    good(&names);
    assert!(
        bad(&format!("{names}one='::1'"))[0]
            .contains("16385 rules and names together, and at most 16384 fit")
    );
    let long = "#".repeat(super::super::TEXT_MAX);
    good(&long);
    assert!(bad(&format!("{long}#"))[0].starts_with("1:1 the file has 262145 bytes"));
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let problems = bad(
        "[[test]]\nfrom='alice'\nto='bob'\nallow='tcp'\n[[allow]]\nfrom='nobody'\nto='group:x'\n[groups]\ng='Alice'\n",
    );
    let places: Vec<&str> = problems.iter().filter_map(|problem| problem.split(' ').next()).collect();
    assert_eq!(places, ["4:7", "6:6", "7:4", "9:3"]);
}

#[test]
fn deep_nesting_is_refused_and_not_followed() {
    for text in [
        "a=".to_owned() + &"[".repeat(100_000),
        "a=".to_owned() + &"{a=".repeat(50_000),
        "a.".repeat(100_000) + "a=1",
        format!("[{}a]", "a.".repeat(100_000)),
        // As deep as keys may be, in tables as deep as they may be.
        format!("x={}1{}", format!("{{{}a=", "a.".repeat(78)).repeat(79), "}".repeat(79)),
    ] {
        // A worker's stack is 2 MiB.
        let parsed =
            std::thread::Builder::new().stack_size(2 << 20).spawn(move || PolicyFile::parse(&text).is_err());
        assert!(parsed.unwrap().join().unwrap());
    }
    // What people write is nowhere near.
    good("allow = [{ from = ['alice'], to = [ 'bob' ] }]\nnames = { a = [\n'10.1.0.9' # [[[\n] }\n");
    assert_eq!(
        bad("x = [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]\n"),
        ["1:21 this is nested deeper than a policy file ever is: close the brackets before it"]
    );
    assert_eq!(
        bad("a.b.c.d.e.f.g.h.i.j = 1"),
        ["1:18 this is nested deeper than a policy file ever is: put a name with dots in quotes"]
    );
}

/// Pieces of policy files, so that random text comes far.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec![
            "tags", "groups", "hosts", "allow", "names", "test", "from", "to", "protocol", "ports", "deny",
            "[[allow]]\n", "[[test]]\n", "[groups]\n", "[hosts]\n", "[names]\n", "=", " = ", "[", "]", "{", "}", ",", ".", "\n", "\"", "'",
            "'alice'", "'bob'", "'group:a'", "'tag:web'", "'host:h'", "'*'", "'10.1.0.0/16'", "'::1'", "'::ffff:1.2.3.4'", "22", "'1-2'",
            "'tcp'", "'tcp/22'", "'icmp'", "a", "web", "h", "\u{202e}", "\u{0}", "\\u001b", "true", "1.5", "0x",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

proptest! {
    #[test]
    fn no_text_panics(pieces in proptest::collection::vec(piece(), 0..40)) {
        let text = pieces.concat();
        let places = |problems: Vec<Problem>| {
            problems.iter().all(|problem| {
                let line = text.split('\n').nth(problem.line as usize - 1);
                let fits = line.is_some_and(|line| problem.column as usize <= line.chars().count() + 1);
                fits && !problem.message.chars().any(char::is_control)
            })
        };
        match check(&text, &roster()) {
            Ok(compiled) => {
                prop_assert!(compiled.leaves.iter().all(|leaf| leaf.emit().is_ok()));
                prop_assert!(places(compiled.warnings));
            }
            Err(problems) => {
                prop_assert!(!problems.is_empty());
                prop_assert!(places(problems));
            }
        }
    }

    #[test]
    fn lists_of_words_never_panic(
        from in proptest::collection::vec(piece(), 1..4), to in proptest::collection::vec(piece(), 1..4),
        asked in piece(), port in any::<i64>(), protocol in any::<i64>(),
    ) {
        let list = |words: &[String]| words.join(",");
        let text = format!(
            "tags=['web']\n[groups]\na=['alice','bob']\n[hosts]\nh='10.1.0.9'\n[[allow]]\nfrom=[{}]\nto=[{}]\nprotocol={protocol}\nports=[{port}]\n[[test]]\nfrom={}\nto={}\nallow=[{asked}]",
            list(&from), list(&to), from[0], to[0]
        );
        let _ = check(&text, &roster());
    }
}
