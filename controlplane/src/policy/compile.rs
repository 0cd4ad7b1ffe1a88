//! From a file and the members to the leaves of a policy, and to the groups of every member.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ringmesh_tunnel::{
    ip::Prefix,
    key::NodeId,
    netmap::{LEAVES_MAX, Leaf, Member, NAME_ADDRESSES_MAX, NameRecord, Rule, SELECTORS_MAX, Selector},
};

use super::{
    judge::{self, Party, Test},
    problem::{Problem, Report, did_you_mean, quote},
    roster::{Index, Roster, takes_packets},
    text::{At, Membership, NameText, PolicyFile, Selection, Side, Target, TestText, everybody},
    warn,
};

/// What a file means for the members of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The policy's leaves: all rules in the order of the file, then all names. A rule's number is its place, from 1 on.
    pub leaves: Vec<Leaf>,
    /// The groups of every member, sorted; none for a member that is in none.
    pub groups: BTreeMap<NodeId, Vec<String>>,
    /// What the author should know, in the order of the file.
    pub warnings: Vec<Problem>,
    /// How many of the leaves are rules.
    pub rules: u32,
    /// How many tests the file has; all of them passed.
    pub tests: u32,
}

impl Compiled {
    /// The rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Rule(rule) => Some(rule),
            Leaf::Name(_) => None,
        })
    }

    /// The name records, in their order.
    pub fn names(&self) -> impl Iterator<Item = &NameRecord> {
        self.leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Name(record) => Some(record),
            Leaf::Rule(_) => None,
        })
    }

    /// The members with the groups that this policy gives them, for [`compare`](super::compare).
    #[must_use]
    pub fn members(&self, roster: &Roster) -> Vec<Member> {
        let with = |member: &Member| {
            let groups = self.groups.get(&member.id).cloned().unwrap_or_default();
            Member { groups, ..member.clone() }
        };
        roster.members.iter().map(with).collect()
    }
}

/// Reads and compiles a file: [`PolicyFile::parse`] and [`PolicyFile::compile`] in one, so that everything that is wrong is told at
/// once, be it in the text or in the members' names.
///
/// # Errors
/// Everything that is wrong with the file; a test that fails, if nothing else is.
pub fn check(text: &str, roster: &Roster) -> Result<Compiled, Vec<Problem>> {
    let mut report = Report::of(text);
    let Some((file, membership)) = PolicyFile::read(text, &mut report) else { return Err(report.finish()) };
    file.finish(&membership, roster, report)
}

impl PolicyFile {
    /// Says what the file means for these members, and judges its tests.
    ///
    /// # Errors
    /// Everything that is wrong with the members' names; a test that fails, if nothing else is.
    pub fn compile(&self, roster: &Roster) -> Result<Compiled, Vec<Problem>> {
        // The file was read without an error, so its names for itself hold, and reading them again tells nothing.
        let mut report = Report::of(self.text());
        let membership = Membership::of(self, &mut report);
        self.finish(&membership, roster, report)
    }

    fn finish(
        &self,
        membership: &Membership,
        roster: &Roster,
        mut report: Report<'_>,
    ) -> Result<Compiled, Vec<Problem>> {
        let index = Index::of(&roster.members);
        let mut binder = Binder { file: self, index: &index, report: &mut report };
        let groups = binder.groups(membership);
        let rules = binder.rules();
        let names = binder.names();
        let tests = binder.tests(membership);
        if report.failed() {
            return Err(report.finish());
        }
        let mut compiled = Compiled {
            leaves: rules.into_iter().map(Leaf::Rule).chain(names.into_iter().map(Leaf::Name)).collect(),
            groups,
            warnings: Vec::new(),
            rules: u32::try_from(self.rules.len()).unwrap_or(u32::MAX),
            tests: u32::try_from(self.tests.len()).unwrap_or(u32::MAX),
        };
        let members = compiled.members(roster);
        let rules: Vec<&Rule> = compiled.rules().collect();
        judge::judge(&tests, &members, &rules, &mut report);
        if report.failed() {
            return Err(report.finish());
        }
        warn::warn(self, membership, &members, &rules, &mut report);
        compiled.warnings = report.finish();
        Ok(compiled)
    }
}

/// Gives the names of a file the meaning that they have now.
struct Binder<'b, 'r, 't> {
    file: &'b PolicyFile,
    index: &'b Index<'b>,
    report: &'r mut Report<'t>,
}

impl<'b> Binder<'b, '_, '_> {
    fn member(&mut self, at: usize, name: &str) -> Option<&'b Member> {
        let Some((place, ambiguous)) = self.index.named(name) else {
            self.report.error(at, || unknown_member(name, self.file, self.index));
            return None;
        };
        if ambiguous {
            self.report.error(at, || {
                format!("several members are called {}: rename or remove all but one of them", quote(name))
            });
            return None;
        }
        self.index.members.get(place)
    }

    fn groups(&mut self, membership: &Membership) -> BTreeMap<NodeId, Vec<String>> {
        for group in self.file.groups.values() {
            for At { at, it } in &group.members {
                if let Some(member) = self.member(*at, it) {
                    self.relay_is_of_no_use(*at, member, "in a group");
                }
            }
        }
        let mut groups: BTreeMap<NodeId, Vec<String>> =
            self.index.members.iter().map(|member| (member.id, Vec::new())).collect();
        for (group, members) in membership.groups() {
            for name in members {
                let member = self.index.named(name).and_then(|(place, _)| self.index.members.get(place));
                if let Some(of) = member.and_then(|member| groups.get_mut(&member.id)) {
                    of.push(group.to_owned());
                }
            }
        }
        groups
    }

    fn relay_is_of_no_use(&mut self, at: usize, member: &Member, place: &str) {
        if !takes_packets(member) {
            self.report.warning(at, || {
                format!(
                    "{} is a relay, which passes on what others sealed, and neither sends nor takes packets itself: naming it {place} allows nothing",
                    quote(&member.name)
                )
            });
        }
    }

    fn rules(&mut self) -> Vec<Rule> {
        let file = self.file;
        let rules = file.rules.iter().map(|rule| Rule {
            sources: self.side(&rule.from),
            destinations: self.side(&rule.to),
            protocol: rule.protocol,
            ports: rule.ports.clone(),
        });
        let rules: Vec<Rule> = rules.collect();
        let leaves = rules.len() + file.names.len();
        if leaves > LEAVES_MAX {
            self.report.error(0, || {
                format!("{leaves} rules and names together, and at most {LEAVES_MAX} fit into a policy")
            });
        }
        rules
    }

    fn side(&mut self, side: &Side) -> Vec<Selector> {
        let mut selectors = Vec::new();
        for At { at, it } in &side.who {
            match it {
                Selection::All => selectors.push(Selector::All),
                Selection::Member(name) => {
                    if let Some(member) = self.member(*at, name) {
                        self.relay_is_of_no_use(*at, member, "in a rule");
                        selectors.push(Selector::Node(member.id));
                    }
                }
                Selection::Group(name) => selectors.push(Selector::Group(name.clone())),
                Selection::Tag(name) => selectors.push(Selector::Tag(name.clone())),
                Selection::Host(name) => {
                    let ranges = self.file.hosts.get(name).into_iter().flatten();
                    selectors.extend(ranges.copied().map(Selector::Prefix));
                }
                Selection::Range(range) => selectors.push(Selector::Prefix(*range)),
            }
        }
        let mut seen = BTreeSet::new();
        selectors.retain(|selector| seen.insert(selector.clone()));
        if selectors.len() > SELECTORS_MAX {
            self.report.error(side.at, || {
                format!(
                    "{} words on one side of a rule, hosts counted by their addresses, and at most {SELECTORS_MAX} fit: use a group or a tag, or split the rule",
                    selectors.len()
                )
            });
        }
        selectors
    }

    fn names(&mut self) -> Vec<NameRecord> {
        self.file.names.iter().filter_map(|name| self.name(name)).collect()
    }

    fn name(&mut self, name: &NameText) -> Option<NameRecord> {
        if self.index.named(&name.name).is_some() {
            self.report.error(name.at, || {
                format!("{} is the name of a member already: choose another one", quote(&name.name))
            });
        }
        let mut addresses = BTreeSet::new();
        for At { at, it } in &name.targets {
            match it {
                Target::Address(address) => {
                    addresses.insert(*address);
                }
                Target::Member(named) => {
                    if let Some(member) = self.member(*at, named) {
                        addresses.extend(own_addresses(member));
                    }
                }
            }
        }
        if addresses.len() > NAME_ADDRESSES_MAX {
            self.report.error(name.at, || {
                format!(
                    "{} has {} addresses, and at most {NAME_ADDRESSES_MAX} fit",
                    quote(&name.name),
                    addresses.len()
                )
            });
        }
        let addresses: Vec<_> = addresses.into_iter().collect();
        (!addresses.is_empty()).then(|| NameRecord { name: name.name.clone(), addresses })
    }
}

impl<'b> Binder<'b, '_, '_> {
    fn tests(&mut self, membership: &Membership) -> Vec<Test<'b>> {
        let file = self.file;
        let tests = file.tests.iter().map(|test| self.test(test, membership));
        tests.collect()
    }

    fn test(&mut self, test: &'b TestText, membership: &Membership) -> Test<'b> {
        let from = self.parties(&test.from, membership);
        let to = self.parties(&test.to, membership);
        let allow = test.allow.iter().map(|asked| (asked, true));
        let asked = allow.chain(test.deny.iter().map(|asked| (asked, false))).collect();
        Test { at: test.at, from, to, asked }
    }

    /// Who an end of a test is: everybody that it names, but relays.
    fn parties(&mut self, end: &At<Selection>, membership: &Membership) -> Vec<Party> {
        let members = self.index.members;
        let all = (0..members.len()).filter(|place| takes_packets(&members[*place]));
        let whole = |place| Party { member: place, address: None };
        match &end.it {
            Selection::All => all.map(whole).collect(),
            Selection::Member(name) => {
                let Some(member) = self.member(end.at, name) else { return Vec::new() };
                if !takes_packets(member) {
                    self.report.error(end.at, || {
                        format!(
                            "{} is a relay, which neither sends nor takes packets: test other members",
                            quote(name)
                        )
                    });
                }
                self.index.named(name).map(|(place, _)| whole(place)).into_iter().collect()
            }
            Selection::Group(name) => {
                let names = membership.members(name).into_iter().flatten();
                let places = names.filter_map(|name| self.index.named(name).map(|(place, _)| place));
                places.filter(|place| takes_packets(&members[*place])).map(whole).collect()
            }
            Selection::Tag(tag) => {
                all.filter(|place| members[*place].tags.contains(tag)).map(whole).collect()
            }
            Selection::Host(name) => {
                let ranges = self.file.hosts.get(name).into_iter().flatten();
                ranges.flat_map(|range| self.owners(end.at, *range)).collect()
            }
            Selection::Range(range) => self.owners(end.at, *range),
        }
    }

    fn owners(&mut self, at: usize, range: Prefix) -> Vec<Party> {
        if !range.is_host() {
            self.report.error(at, || {
                format!(
                    "a test is about addresses, and {range} is a range: name an address in it that matters"
                )
            });
            return Vec::new();
        }
        let address = range.address();
        let owners = self.index.addresses().of_address(address);
        if owners.is_empty() {
            self.report.error(at, || {
                format!("{address} is no member's address and in no member's routes, so nobody could send to it or from it")
            });
        }
        owners.iter().map(|member| Party { member: *member, address: Some(address) }).collect()
    }
}

/// A member's own addresses, of both families if it has both.
pub(super) fn own_addresses(member: &Member) -> impl Iterator<Item = IpAddr> + use<> {
    member.ipv4.map(IpAddr::from).into_iter().chain([member.ipv6.into()])
}

/// A bare word that is no member's name: what it may have meant.
fn unknown_member(name: &str, file: &PolicyFile, index: &Index<'_>) -> String {
    let kinds = [
        ("group", file.groups.contains_key(name)),
        ("tag", file.tags.contains_key(name)),
        ("host", file.hosts.contains_key(name)),
    ];
    let unknown = format!("no member is called {}", quote(name));
    if let Some((kind, _)) = kinds.iter().find(|(_, known)| *known) {
        return format!("{unknown}: did you mean {}?", quote(&format!("{kind}:{name}")));
    }
    if everybody(name) {
        return format!("{unknown}: \"*\" is everybody");
    }
    if file.names.iter().any(|other| other.name == name) {
        return format!("{unknown}: it is a name of this file, and only names of members can be used here");
    }
    let cure = "it must have joined before a policy can name it (see `meshctl nodes list`); tags and groups may be empty";
    format!("{unknown}: {}", did_you_mean(name, index.names(), cure))
}
