//! Rules that do nothing.

use super::*;

fn rule(from: &str, to: &str, more: &str) -> String {
    format!("[[allow]]\nfrom={from}\nto={to}\n{more}\n")
}

#[test]
fn rules_that_can_never_match_are_warned_of() {
    let head = "tags=['web','ci']\n[groups]\nnone=[]\nadmins=['alice']\n";
    for (from, to, at, why) in [
        ("'group:none'", "'*'", 6, "no member is in the group \"none\""),
        ("'*'", "'tag:ci'", 7, "no member has the tag \"ci\""),
        ("'*'", "'10.9.0.9'", 7, "10.9.0.9 is no member's address, and in no member's routes"),
        ("'10.9.0.0/16'", "'*'", 6, "no member has an address or a route in 10.9.0.0/16"),
        ("['tag:ci', 'group:none', '10.9.0.9']", "'*'", 6, "its groups and tags are empty"),
        ("'alice'", "'group:admins'", 5, "both sides are \"alice\" alone"),
        ("'alice'", "'100.64.0.1'", 5, "both sides are \"alice\" alone"),
        ("'six'", "'10.1.0.9'", 5, "no address family in common"),
        ("'100.64.0.1'", "'fd00::2'", 5, "no address family in common"),
        ("['phone', 'printer']", "['printer', 'phone']", 5, "both sides are stock WireGuard devices"),
    ] {
        let found = warnings(&format!("{head}{}", rule(from, to, "")));
        assert_eq!(found.len(), 1, "{from} {to}: {found:?}");
        let start = format!("{at}:");
        assert!(
            found[0].starts_with(&start) && found[0].contains("warning: rule 1 can never match"),
            "{found:?}"
        );
        assert!(found[0].contains(why), "{found:?}");
    }
    for (from, to) in [
        ("'*'", "'*'"),
        ("['group:none', 'alice']", "'tag:web'"),
        ("'alice'", "'10.1.0.9'"),
        ("'alice'", "'10.0.0.0/8'"),
        ("'alice'", "['alice', 'bob']"),
        ("'six'", "'fd00:1::/64'"),
        ("'phone'", "'bob'"),
        ("'bob'", "'printer'"),
        ("'100.64.0.1'", "'100.64.0.2'"),
    ] {
        assert_eq!(warnings(&format!("{head}{}", rule(from, to, ""))), Vec::<String>::new(), "{from} {to}");
    }
}

#[test]
fn a_relay_that_is_named_is_warned_of() {
    let found = warnings("[groups]\ng=['alice', 'relay']\n[[allow]]\nfrom='group:g'\nto='relay'\n");
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[0].starts_with("2:13 warning: \"relay\" is a relay") && found[0].contains("in a group"),
        "{found:?}"
    );
    assert!(found[1].starts_with("5:1 warning: rule 1 can never match"), "{found:?}");
    assert!(
        found[2].starts_with("5:4 warning: \"relay\" is a relay") && found[2].contains("in a rule"),
        "{found:?}"
    );
    // By "*" nobody means it.
    assert_eq!(warnings(&rule("'*'", "'*'", "")), Vec::<String>::new());
}

#[test]
fn a_rule_that_an_earlier_one_holds_is_warned_of() {
    let head = "tags=['web']\n[groups]\nadmins=['alice', 'bob']\nops=['group:admins', 'carol']\n";
    let tcp = "protocol='tcp'\nports=[22, '80-90', '91-95']";
    for (first, second) in [
        (rule("'*'", "'*'", ""), rule("'alice'", "'tag:web'", "protocol='tcp'")),
        (rule("'*'", "'tag:web'", tcp), rule("'*'", "'tag:web'", tcp)),
        (rule("'group:ops'", "'*'", tcp), rule("'group:admins'", "'bob'", "protocol='tcp'\nports='85-93'")),
        (rule("'group:ops'", "'*'", ""), rule("['alice', 'carol']", "'10.1.0.9'", "")),
        (
            rule("'alice'", "'10.1.0.0/16'", ""),
            rule("'alice'", "['10.1.0.9', '10.1.1.0/24']", "protocol='udp'"),
        ),
        (rule("'alice'", "'*'", "protocol='udp'"), rule("'alice'", "'*'", "protocol='udp'\nports=53")),
    ] {
        let found = warnings(&format!("{head}{first}{second}"));
        let line = head.lines().count() + first.lines().count() + 1;
        assert_eq!(
            found,
            [format!("{line}:1 warning: rule 2 adds nothing: rule 1 allows all of it already")],
            "{first}{second}"
        );
    }
    for (first, second) in [
        (rule("'alice'", "'*'", ""), rule("'*'", "'alice'", "")),
        (rule("'*'", "'*'", "protocol='tcp'"), rule("'*'", "'*'", "protocol='udp'")),
        (rule("'*'", "'*'", "protocol='tcp'"), rule("'*'", "'*'", "")),
        (rule("'*'", "'*'", tcp), rule("'*'", "'*'", "protocol='tcp'\nports='90-96'")),
        (rule("'group:admins'", "'*'", ""), rule("'group:ops'", "'*'", "")),
        (rule("'group:admins'", "'*'", ""), rule("'carol'", "'*'", "")),
        (rule("'10.1.0.0/24'", "'*'", ""), rule("'10.1.0.0/16'", "'*'", "")),
        (rule("'tag:web'", "'*'", ""), rule("'web1'", "'*'", "")),
    ] {
        assert_eq!(warnings(&format!("{head}{first}{second}")), Vec::<String>::new(), "{first}{second}");
    }
}

/// `count` rules between sides that share 250 words and differ in one each.
fn much_alike(count: usize, word: impl Fn(usize) -> String) -> String {
    let addresses: Vec<String> = (1..=250).map(|host| format!("'10.1.2.{host}'")).collect();
    let mut text = format!("[hosts]\na=[{}]\n", addresses.join(","));
    for number in 0..count {
        text.push_str(&rule("['alice','host:a']", &format!("['host:a','{}']", word(number)), ""));
    }
    text
}

#[test]
fn rules_that_are_much_alike_are_told_apart_by_what_is_rare() {
    let own = |number: usize| format!("10.1.{}.{}", 3 + number / 250, 1 + number % 250);
    let text = much_alike(2000, own) + &rule("'alice'", "'10.1.3.1'", "");
    // Each pair on its own would be 2,000 * 2,000 / 2 * 251 comparisons, fifty times what may be made.
    let last = 2 + 2000 * 4 + 1;
    assert_eq!(
        warnings(&text),
        [format!("{last}:1 warning: rule 2001 adds nothing: rule 1 allows all of it already")]
    );
}

#[test]
fn the_search_for_rules_that_add_nothing_ends_and_says_so() {
    // Sides of 200 common words and seven of fourteen others: no word is rare, and no side holds another one.
    let sevens = (0_u32..1 << 14).filter(|words| words.count_ones() == 7).take(1200);
    let addresses: Vec<String> = (1..=200).map(|host| format!("'10.1.2.{host}'")).collect();
    let mut text = format!("[hosts]\na=[{}]\n", addresses.join(","));
    for words in sevens {
        let own = (0..14).filter(|word| words >> word & 1 == 1).map(|word| format!(",'10.1.3.{word}'"));
        text.push_str(&rule(&format!("['host:a'{}]", own.collect::<String>()), "'bob'", ""));
    }
    let found = warnings(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("on, rules that add nothing are not looked for"), "{found:?}");
}
