//! Members by what rules make of them: which rules select which of their addresses, before and after.

use std::collections::{BTreeMap, BTreeSet};

use ringmesh_tunnel::{
    ip::Prefix,
    key::NodeId,
    netmap::{Member, Rule, Selector},
};

use super::{
    super::roster::{has_filter, takes_packets},
    Allowances, ranges,
};

/// A set of rules, a bit for each.
pub(super) type Bits = Box<[u64]>;

/// The two policies.
pub(super) const BEFORE: usize = 0;
pub(super) const AFTER: usize = 1;
const POLICIES: [usize; 2] = [BEFORE, AFTER];

/// The rules that select something, in the two policies.
pub(super) type InBoth = [Bits; 2];

/// Addresses of a member that the rules of both policies treat alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) as_source: InBoth,
    pub(super) as_destination: InBoth,
    /// How many ranges it is made of, of IPv4 and of IPv6. If a member has one part only, 1 stands for any number.
    pub(super) ranges: [usize; 2],
}

/// What members have in common that are compared at once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub(super) parts: Vec<Part>,
    /// Whether they judge packets, in the two policies.
    pub(super) has_filter: [bool; 2],
}

impl Class {
    /// Whether the same rules select it as a source as before.
    pub(super) fn sends_as_before(&self) -> bool {
        self.parts.iter().all(|part| part.as_source[BEFORE] == part.as_source[AFTER]) && self.is_of_one_kind()
    }

    /// Whether the same rules select it as a destination as before.
    pub(super) fn takes_as_before(&self) -> bool {
        self.parts.iter().all(|part| part.as_destination[BEFORE] == part.as_destination[AFTER])
            && self.is_of_one_kind()
    }

    const fn is_of_one_kind(&self) -> bool {
        self.has_filter[BEFORE] == self.has_filter[AFTER]
    }
}

/// A member, in one or both policies.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) id: NodeId,
    pub(super) class: usize,
    /// The ranges of each part of its class; empty if there is one part only.
    pub(super) parts: Vec<Vec<Prefix>>,
}

/// All members of both policies, in the order of their names, and their classes.
#[derive(Debug)]
pub(super) struct Classes<'a> {
    pub(super) rules: Vec<&'a Rule>,
    pub(super) classes: Vec<Class>,
    pub(super) subjects: Vec<Subject>,
}

impl<'a> Classes<'a> {
    pub(super) fn of(before: &Allowances<'a>, after: &Allowances<'a>) -> Self {
        // A rule of both is one rule; where it stands is of no matter, as rules only allow.
        let policies = [before, after];
        let distinct: BTreeSet<&Rule> = policies.into_iter().flat_map(|policy| policy.rules).collect();
        let rules: Vec<&Rule> = distinct.into_iter().collect();
        let selecting = policies.map(|policy| Selecting::of(policy.rules, &rules));

        let mut members: BTreeMap<NodeId, [Option<&Member>; 2]> = BTreeMap::new();
        for (policy, allowances) in POLICIES.into_iter().zip(policies) {
            for member in allowances.members.iter().filter(|member| takes_packets(member)) {
                members.entry(member.id).or_default()[policy] = Some(member);
            }
        }
        let mut members: Vec<(NodeId, [Option<&Member>; 2])> = members.into_iter().collect();
        let name =
            |member: &[Option<&'a Member>; 2]| member[AFTER].or(member[BEFORE]).map(|it| it.name.as_str());
        members.sort_by_key(|(id, member)| (name(member), *id));

        let mut classes: BTreeMap<Class, usize> = BTreeMap::new();
        let mut subjects = Vec::with_capacity(members.len());
        for (id, member) in members {
            let (class, parts) = classify(member, &selecting, rules.len());
            let next = classes.len();
            let class = *classes.entry(class).or_insert(next);
            subjects.push(Subject { id, class, parts });
        }
        let mut classes: Vec<(Class, usize)> = classes.into_iter().collect();
        classes.sort_by_key(|(_, number)| *number);
        let classes = classes.into_iter().map(|(class, _)| class).collect();
        Self { rules, classes, subjects }
    }
}

/// Sorts the addresses of a member by the rules that select them.
fn classify(
    member: [Option<&Member>; 2],
    selecting: &[Selecting<'_>; 2],
    rules: usize,
) -> (Class, Vec<Vec<Prefix>>) {
    let whole = POLICIES.map(|policy| {
        let none = || empty(rules);
        member[policy].map_or_else(|| [none(), none()], |member| selecting[policy].whole(member, rules))
    });
    let owned = member.map(|member| ranges::disjoint(member.into_iter().flat_map(Member::allowed_ips)));
    let all = ranges::disjoint(owned.iter().flatten().copied());
    let mut cuts: Vec<Prefix> = Vec::new();
    if owned[BEFORE] != owned[AFTER] {
        cuts.extend(owned.iter().flatten().copied());
    }
    for sides in selecting.iter().flat_map(|selecting| &selecting.sides) {
        all.iter().for_each(|range| cuts.extend(sides.ranges.inside(*range)));
    }
    cuts.sort_unstable();
    cuts.dedup();

    let mut parts: BTreeMap<[InBoth; 2], Vec<Prefix>> = BTreeMap::new();
    for range in &all {
        let mut pieces = Vec::new();
        ranges::cut(*range, &cuts, &mut pieces);
        for piece in pieces {
            // Of each side in each policy, as the rules select the member, and then its address.
            let bits = [0, 1].map(|side| {
                POLICIES.map(|policy| {
                    let mut bits = empty(rules);
                    if owned[policy].iter().any(|own| own.covers(&piece)) {
                        bits.clone_from(&whole[policy][side]);
                        selecting[policy].sides[side]
                            .ranges
                            .around(piece)
                            .for_each(|rule| set(&mut bits, rule));
                    }
                    bits
                })
            });
            parts.entry(bits).or_default().push(piece);
        }
    }
    let single = parts.len() == 1;
    let mut found = Vec::with_capacity(parts.len());
    let mut pieces_of = Vec::new();
    for ([as_source, as_destination], mut pieces) in parts {
        ranges::join(&mut pieces);
        let count = |ipv4: bool| pieces.iter().filter(|piece| piece.is_ipv4() == ipv4).count();
        let ranges = [count(true), count(false)].map(|count| if single { count.min(1) } else { count });
        found.push(Part { as_source, as_destination, ranges });
        if !single {
            pieces_of.push(pieces);
        }
    }
    // One who is in one of the policies only is a stranger to the other: nothing selects it there.
    let has_filter = member.map(|member| member.is_none_or(has_filter));
    (Class { parts: found, has_filter }, pieces_of)
}

/// No rules.
pub(super) fn empty(rules: usize) -> Bits {
    vec![0; rules.div_ceil(64)].into()
}

fn set(bits: &mut Bits, rule: usize) {
    bits[rule / 64] |= 1 << (rule % 64);
}

/// The rules that are set.
pub(super) fn ones(bits: &[u64]) -> impl Iterator<Item = usize> + '_ {
    bits.iter().enumerate().flat_map(|(word, bits)| {
        let mut left = *bits;
        std::iter::from_fn(move || {
            let bit = usize::try_from(left.trailing_zeros()).ok().filter(|_| left != 0)?;
            left &= left - 1;
            Some(word * 64 + bit)
        })
    })
}

/// Which rules of a policy a member is selected by: sources and destinations.
#[derive(Debug)]
struct Selecting<'a> {
    sides: [Words<'a>; 2],
}

/// The words on one side of rules, each with the rules in which it stands.
#[derive(Debug, Default)]
struct Words<'a> {
    all: Vec<usize>,
    nodes: BTreeMap<NodeId, Vec<usize>>,
    groups: BTreeMap<&'a str, Vec<usize>>,
    tags: BTreeMap<&'a str, Vec<usize>>,
    ranges: Ranges,
}

impl<'a> Selecting<'a> {
    fn of(policy: &'a [Rule], rules: &[&Rule]) -> Self {
        let mut sides = [Words::default(), Words::default()];
        for rule in policy {
            let number =
                rules.binary_search(&rule).expect("invariant: every rule of both policies is in the list");
            sides[0].add(&rule.sources, number);
            sides[1].add(&rule.destinations, number);
        }
        Self { sides }
    }

    /// The rules that select all addresses of a member, as a source and as a destination.
    fn whole(&self, member: &Member, rules: usize) -> [Bits; 2] {
        [0, 1].map(|side| {
            let words = &self.sides[side];
            let mut bits = empty(rules);
            let groups = member.groups.iter().filter_map(|group| words.groups.get(group.as_str()));
            let tags = member.tags.iter().filter_map(|tag| words.tags.get(tag.as_str()));
            let lists = words.nodes.get(&member.id).into_iter().chain(groups).chain(tags).chain([&words.all]);
            lists.flatten().for_each(|rule| set(&mut bits, *rule));
            bits
        })
    }
}

impl<'a> Words<'a> {
    fn add(&mut self, selectors: &'a [Selector], rule: usize) {
        for selector in selectors {
            let rules = match selector {
                Selector::All => &mut self.all,
                Selector::Node(id) => self.nodes.entry(*id).or_default(),
                Selector::Group(name) => self.groups.entry(name).or_default(),
                Selector::Tag(name) => self.tags.entry(name).or_default(),
                Selector::Prefix(prefix) => self.ranges.entry(*prefix),
            };
            rules.push(rule);
        }
    }
}

/// Ranges in rules, each with its rules.
#[derive(Debug, Default)]
struct Ranges {
    rules: BTreeMap<Prefix, Vec<usize>>,
    /// The lengths that there are, of IPv4 and of IPv6.
    lengths: [BTreeSet<u8>; 2],
}

impl Ranges {
    fn entry(&mut self, prefix: Prefix) -> &mut Vec<usize> {
        self.lengths[usize::from(!prefix.is_ipv4())].insert(prefix.len());
        self.rules.entry(prefix).or_default()
    }

    /// The ranges that lie in `range`, itself included.
    fn inside(&self, range: Prefix) -> impl Iterator<Item = Prefix> + '_ {
        // Ordered by address, then length, they follow in one piece.
        self.rules.range(range..).map(|(inner, _)| *inner).take_while(move |inner| range.covers(inner))
    }

    /// The rules of all ranges in which `piece` lies.
    fn around(&self, piece: Prefix) -> impl Iterator<Item = usize> + '_ {
        let lengths = self.lengths[usize::from(!piece.is_ipv4())].range(..=piece.len());
        let outer = lengths.filter_map(move |len| Prefix::containing(piece.address(), *len).ok());
        outer.filter_map(|outer| self.rules.get(&outer)).flatten().copied()
    }
}
