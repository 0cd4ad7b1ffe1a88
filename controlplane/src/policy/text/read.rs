//! From TOML to the parts of a policy file: keys, types, and words in their place.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used))]

use std::fmt;

use ringmesh_tunnel::netmap::{PORTS_MAX, PortRange, Protocol};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use toml_parser::{Source, lexer::TokenKind};

use super::{
    super::problem::{Report, near, quote},
    At, Group, NameText, PolicyFile, RuleText, Side, TestText,
    word::{self, Selection},
};

/// The most brackets and braces that may be open at once; three are needed.
const BRACKETS_MAX: usize = 16;
/// The most dots of a key outside quotes; none is needed.
const DOTS_MAX: usize = 8;

type Value<'i> = Spanned<DeValue<'i>>;

/// Keys of other systems' policies, and ours for the same thing.
const SYNONYMS: [(&str, &str); 13] = [
    ("acl", "allow"),
    ("acls", "allow"),
    ("rule", "allow"),
    ("rules", "allow"),
    ("grants", "allow"),
    ("records", "names"),
    ("dns", "names"),
    ("src", "from"),
    ("source", "from"),
    ("sources", "from"),
    ("dst", "to"),
    ("destination", "to"),
    ("destinations", "to"),
];

/// Reads the parts of a file; none if it is not TOML, as then what follows the first mistake means little.
pub(super) fn file(text: &str, report: &mut Report<'_>) -> Option<PolicyFile> {
    if let Some((at, cure)) = too_deep(text) {
        report.error(at, || format!("this is nested deeper than a policy file ever is: {cure}"));
        return None;
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        report.error(span.start, || match (error.message(), text.get(span.clone())) {
            ("duplicate key", Some(key)) => {
                format!("{} is there twice: TOML takes a name once, so write it in one place", quote(key))
            }
            (message, _) => format!("this is not TOML: {message}"),
        });
    }
    if !errors.is_empty() {
        return None;
    }
    let mut reader = Reader { report, file: PolicyFile::default() };
    reader.root(root.get_ref());
    Some(reader.file)
}

/// Where a text goes deeper than any policy needs, and what to do. The parser bounds arrays, tables and dots each, but what it makes of
/// all together can be six thousand levels deep, and a stack has no room to free that.
fn too_deep(text: &str) -> Option<(usize, &'static str)> {
    let mut open = Vec::new();
    let mut dots = 0_usize;
    for token in Source::new(text).lex() {
        let kind = token.kind();
        match kind {
            TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket => open.push(kind),
            // A bracket that closes nothing is for the parser to tell.
            TokenKind::RightSquareBracket if open.last() == Some(&TokenKind::LeftSquareBracket) => {
                open.pop();
            }
            TokenKind::RightCurlyBracket if open.last() == Some(&TokenKind::LeftCurlyBracket) => {
                open.pop();
            }
            TokenKind::Dot => dots = dots.saturating_add(1),
            TokenKind::Equals | TokenKind::Newline | TokenKind::Comma => dots = 0,
            TokenKind::RightSquareBracket
            | TokenKind::RightCurlyBracket
            | TokenKind::Whitespace
            | TokenKind::Comment
            | TokenKind::LiteralString
            | TokenKind::BasicString
            | TokenKind::MlLiteralString
            | TokenKind::MlBasicString
            | TokenKind::Atom
            | TokenKind::Eof => {}
        }
        if open.len() > BRACKETS_MAX {
            return Some((token.span().start(), "close the brackets before it"));
        }
        if dots > DOTS_MAX {
            return Some((token.span().start(), "put a name with dots in quotes"));
        }
    }
    None
}

struct Reader<'r, 't> {
    report: &'r mut Report<'t>,
    file: PolicyFile,
}

impl<'r, 't> Reader<'r, 't> {
    fn root(&mut self, root: &DeTable<'_>) {
        const KEYS: [&str; 6] = ["tags", "groups", "hosts", "allow", "names", "test"];
        for (key, at, value) in self.fields(root, "a policy file", &KEYS) {
            match key {
                "tags" => self.tags(value),
                "groups" => self.groups(value),
                "hosts" => self.hosts(value),
                "allow" => self.tables(value, "allow").into_iter().for_each(|(at, rule)| self.rule(at, rule)),
                "names" => self.names(value),
                "test" => self.tables(value, "test").into_iter().for_each(|(at, test)| self.test(at, test)),
                _ => self.report.error(at, || format!("unknown key {}", quote(key))),
            }
        }
    }

    fn tags(&mut self, value: &Value<'_>) {
        for At { at, it } in self.strings(value, "`tags` lists tags", "tags = [\"web\", \"ci\"]") {
            let bare = it.strip_prefix("tag:").unwrap_or(it);
            if bare != it {
                self.report.error(at, || format!("{}: here tags are bare: write {}", quote(it), quote(bare)));
            } else if let Err(problem) = word::check_word("a tag", it) {
                self.report.error(at, || problem);
            } else if self.file.tags.insert(it.into(), at).is_some() {
                self.report.error(at, || format!("the tag {} is listed twice: once is enough", quote(it)));
            }
        }
    }

    fn groups(&mut self, value: &Value<'_>) {
        for (name, at, value) in self.entries(value, "groups", "admins = [\"alice\", \"bob\"]") {
            if let Err(problem) = word::check_word("a group's name", name) {
                self.report.error(at, || problem);
            }
            let mut group = Group { at, members: Vec::new(), groups: Vec::new() };
            let words = self.strings(value, "a group lists members", "admins = [\"alice\", \"group:ops\"]");
            for At { at, it } in words {
                match word::selection(it) {
                    Ok(Selection::Member(it)) => group.members.push(At { at, it }),
                    Ok(Selection::Group(it)) => group.groups.push(At { at, it }),
                    Ok(Selection::All | Selection::Tag(_) | Selection::Host(_) | Selection::Range(_)) => {
                        self.report.error(at, || {
                            format!(
                                "{} cannot be in a group, which has members and other groups: name it in the rule beside the group",
                                quote(it)
                            )
                        });
                    }
                    Err(problem) => self.report.error(at, || problem),
                }
            }
            self.file.groups.insert(name.into(), group);
        }
    }

    fn hosts(&mut self, value: &Value<'_>) {
        for (name, at, value) in self.entries(value, "hosts", "db = \"10.1.0.9\"") {
            if let Err(problem) = word::check_word("a host's name", name) {
                self.report.error(at, || problem);
            }
            let mut ranges = Vec::new();
            for At { at, it } in
                self.strings(value, "a host lists addresses", "office = [\"10.1.0.0/16\", \"fd00:1::/48\"]")
            {
                match word::range(it) {
                    Ok(range) => ranges.push(range),
                    Err(problem) => self.report.error(at, || problem),
                }
            }
            if is_empty_list(value) {
                self.report.error(at, || format!("the host {} has no address: give it one", quote(name)));
            }
            self.file.hosts.insert(name.into(), ranges);
        }
    }

    fn rule(&mut self, at: usize, table: &DeTable<'_>) {
        const KEYS: [&str; 4] = ["from", "to", "protocol", "ports"];
        let mut rule = RuleText {
            at,
            from: Side { at, who: Vec::new() },
            to: Side { at, who: Vec::new() },
            protocol: Protocol::Any,
            ports: Vec::new(),
        };
        let (mut from, mut to, mut ports, mut readable) = (false, false, None, true);
        for (key, at, value) in self.fields(table, "a rule", &KEYS) {
            match key {
                "from" => (rule.from, from) = (self.side(at, value, "from"), true),
                "to" => (rule.to, to) = (self.side(at, value, "to"), true),
                "protocol" => match self.protocol(value) {
                    Some(protocol) => rule.protocol = protocol,
                    None => readable = false,
                },
                _ => {
                    rule.ports = self.ports(at, value);
                    ports = Some(at);
                }
            }
        }
        for (given, key) in [(from, "from"), (to, "to")] {
            if !given {
                self.report.error(at, || {
                    format!("this rule has no `{key}`: write {key} = [\"*\"] if you mean everybody")
                });
            }
        }
        if let Some(at) = ports.filter(|_| readable && !rule.protocol.has_ports()) {
            self.report.error(at, || {
                format!(
                    "ports of protocol {}: only tcp and udp have ports; add protocol = \"tcp\" or \"udp\", a rule for each",
                    rule.protocol
                )
            });
        }
        self.file.rules.push(rule);
    }

    fn side(&mut self, at: usize, value: &Value<'_>, key: &str) -> Side {
        let words =
            self.strings(value, "`from` and `to` list who is meant", "from = [\"group:admins\", \"alice\"]");
        if is_empty_list(value) {
            self.report.error(at, || {
                format!("`{key}` is empty, so the rule is about nobody: name somebody, or remove the rule")
            });
        }
        let who = words.into_iter().filter_map(|word| self.selection(&word)).collect();
        Side { at, who }
    }

    fn selection(&mut self, word: &At<&str>) -> Option<At<Selection>> {
        match word::selection(word.it) {
            Ok(it) => Some(At { at: word.at, it }),
            Err(problem) => {
                self.report.error(word.at, || problem);
                None
            }
        }
    }

    fn protocol(&mut self, value: &Value<'_>) -> Option<Protocol> {
        let inner = value.get_ref();
        let read = if let Some(text) = inner.as_str() {
            word::protocol(text)
        } else if inner.is_integer() {
            word::protocol_number(integer(value).unwrap_or(i64::MAX))
        } else {
            Err(format!(
                "`protocol` is {}: write \"any\", \"tcp\", \"udp\", \"icmp\" or a number; a rule has one protocol",
                kind(value)
            ))
        };
        read.map_err(|problem| self.report.error(value.span().start, || problem)).ok()
    }

    fn ports(&mut self, at: usize, value: &Value<'_>) -> Vec<PortRange> {
        let each = each(value);
        if each.is_empty() {
            self.report
                .error(at, || "`ports` is empty: leave it out to allow all ports, or name some".into());
        }
        if each.len() > PORTS_MAX {
            self.report.error(at, || {
                format!(
                    "{} ports and ranges in one rule, and at most {PORTS_MAX} fit: split the rule",
                    each.len()
                )
            });
        }
        let read = each.into_iter().filter_map(|one| {
            let inner = one.get_ref();
            let read = if let Some(text) = inner.as_str() {
                word::ports(text)
            } else if inner.is_integer() {
                word::port(integer(one).unwrap_or(i64::MAX))
            } else {
                Err(format!("{} is no port: write 22, or \"8000-8100\"", kind(one)))
            };
            read.map_err(|problem| self.report.error(one.span().start, || problem)).ok()
        });
        read.collect()
    }

    fn names(&mut self, value: &Value<'_>) {
        for (name, at, value) in self.entries(value, "names", "git = \"web1\"") {
            if let Err(problem) = word::check_domain(name) {
                self.report.error(at, || problem);
            }
            if let DeValue::Table(below) = value.get_ref() {
                let inner = below.keys().next().map_or("x", |key| key.get_ref());
                self.report.error(at, || {
                    format!(
                        "a name with dots stands in quotes: write {} = ...",
                        quote(&format!("{name}.{inner}"))
                    )
                });
                continue;
            }
            let words = self.strings(
                value,
                "a name points at addresses, or at a member",
                "printer = [\"10.1.0.9\", \"fd00:1::9\"]",
            );
            if is_empty_list(value) {
                self.report.error(at, || {
                    format!("the name {} points at nothing: give it an address or a member", quote(name))
                });
            }
            let targets = words.into_iter().filter_map(|word| match word::target(word.it) {
                Ok(it) => Some(At { at: word.at, it }),
                Err(problem) => {
                    self.report.error(word.at, || problem);
                    None
                }
            });
            let targets = targets.collect();
            self.file.names.push(NameText { at, name: name.into(), targets });
        }
    }

    fn test(&mut self, at: usize, table: &DeTable<'_>) {
        const KEYS: [&str; 4] = ["from", "to", "allow", "deny"];
        let (mut from, mut to, mut allow, mut deny) = (None, None, Vec::new(), Vec::new());
        let mut given = Vec::new();
        for (key, at, value) in self.fields(table, "a test", &KEYS) {
            given.push(key);
            match key {
                "from" => from = self.end(at, value, "from"),
                "to" => to = self.end(at, value, "to"),
                "allow" => allow = self.asked(value),
                _ => deny = self.asked(value),
            }
        }
        for key in ["from", "to"] {
            if !given.contains(&key) {
                self.report.error(at, || {
                    format!("this test has no `{key}`: name a member, \"group:\", \"tag:\" or an address")
                });
            }
        }
        if allow.is_empty()
            && deny.is_empty()
            && !given.iter().any(|key| KEYS.iter().skip(2).any(|it| it == key))
        {
            self.report.error(at, || {
                "this test asks for nothing: add allow = [\"tcp/22\"] or deny = [\"tcp/23\", \"icmp\"]".into()
            });
        }
        if let (Some(from), Some(to)) = (from, to) {
            self.file.tests.push(TestText { at, from, to, allow, deny });
        }
    }

    fn end(&mut self, at: usize, value: &Value<'_>, key: &str) -> Option<At<Selection>> {
        let words = self.strings(value, "a test has one `from` and one `to`", "from = \"alice\"");
        match words.as_slice() {
            [word] => self.selection(word),
            words => {
                // What is no text was told already.
                if words.len() > 1 || is_empty_list(value) {
                    self.report.error(at, || {
                        format!("`{key}` of a test is one of: a member, \"group:\", \"tag:\", an address")
                    });
                }
                None
            }
        }
    }

    fn asked(&mut self, value: &Value<'_>) -> Vec<At<word::Asked>> {
        let words = self.strings(value, "a test lists what is to pass", "allow = [\"tcp/22\", \"icmp\"]");
        if is_empty_list(value) {
            self.report.error(value.span().start, || {
                "an empty list tests nothing: name \"tcp/22\" or the like, or remove it".into()
            });
        }
        let read = words.into_iter().filter_map(|word| match word::asked(word.it) {
            Ok(it) => Some(At { at: word.at, it }),
            Err(problem) => {
                self.report.error(word.at, || problem);
                None
            }
        });
        read.collect()
    }

    /// The entries of a table in the order of the file; unknown keys are told and left out.
    fn fields<'v, 'i>(
        &mut self,
        table: &'v DeTable<'i>,
        what: &str,
        known: &[&str],
    ) -> Vec<(&'v str, usize, &'v Value<'i>)> {
        let mut fields = ordered(table);
        fields.retain(|(key, at, _)| {
            let is_known = known.contains(key);
            if !is_known {
                self.report.error(*at, || unknown_key(key, what, known));
            }
            is_known
        });
        fields
    }

    /// The entries of a table in which names are the author's.
    fn entries<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        name: &str,
        example: &str,
    ) -> Vec<(&'v str, usize, &'v Value<'i>)> {
        let Some(table) = value.get_ref().as_table() else {
            self.report.error(value.span().start, || {
                format!(
                    "`{name}` is {}, and should be a table: write [{name}], and below it {example}",
                    kind(value)
                )
            });
            return Vec::new();
        };
        ordered(table)
    }

    /// The tables of an array of tables.
    fn tables<'v, 'i>(&mut self, value: &'v Value<'i>, name: &str) -> Vec<(usize, &'v DeTable<'i>)> {
        let each = each(value);
        let is_list = value.get_ref().is_array();
        let tables = each.into_iter().filter_map(|one| {
            let table = one.get_ref().as_table().filter(|_| is_list);
            if table.is_none() {
                self.report.error(one.span().start, || {
                    format!(
                        "`{name}` is a list of tables, and this is {}: begin each one with [[{name}]]",
                        kind(one)
                    )
                });
            }
            table.map(|table| (one.span().start, table))
        });
        tables.collect()
    }

    /// Text, or an array of it.
    fn strings<'v>(
        &mut self,
        value: &'v Value<'_>,
        what: impl fmt::Display,
        example: &str,
    ) -> Vec<At<&'v str>> {
        let each = each(value);
        let words = each.into_iter().filter_map(|one| {
            let at = one.span().start;
            let Some(it) = one.get_ref().as_str() else {
                self.report.error(at, || format!("{what}, and this is {}: write {example}", kind(one)));
                return None;
            };
            Some(At { at, it })
        });
        words.collect()
    }
}

/// The elements of an array; what is none stands for an array of itself.
fn each<'v, 'i>(value: &'v Value<'i>) -> Vec<&'v Value<'i>> {
    value.get_ref().as_array().map_or_else(|| vec![value], |array| array.iter().collect())
}

/// The type of a value, with its article.
fn kind(value: &Value<'_>) -> String {
    let kind = value.get_ref().type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// The entries of a table in the order in which they were written: the table itself has them in the alphabet's.
fn ordered<'v, 'i>(table: &'v DeTable<'i>) -> Vec<(&'v str, usize, &'v Value<'i>)> {
    let entries = table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span().start, value));
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(_, at, _)| *at);
    entries
}

fn unknown_key(key: &str, what: &str, known: &[&str]) -> String {
    let lower = key.to_ascii_lowercase();
    let synonym = SYNONYMS.iter().find(|(theirs, ours)| *theirs == lower && known.contains(ours));
    let meant = synonym.map(|(_, ours)| *ours).or_else(|| near(key, known.iter().copied()));
    let cure = match meant {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if lower == "deny" || lower == "action" => {
            "rules only allow, and what no rule allows is denied".into()
        }
        None => format!("{what} has {}", known.join(", ")),
    };
    format!("unknown key {}: {cure}", quote(key))
}

fn is_empty_list(value: &Value<'_>) -> bool {
    value.get_ref().as_array().is_some_and(|array| array.is_empty())
}

/// An integer that fits; the parser left its text as it was written, without underscores.
fn integer(value: &Value<'_>) -> Option<i64> {
    let integer = value.get_ref().as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}
