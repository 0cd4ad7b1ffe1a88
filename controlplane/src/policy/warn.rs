//! Rules that do nothing: those that can never match, and those that add nothing to an earlier one.

use std::collections::BTreeMap;

use ringmesh_tunnel::netmap::{Member, Protocol, Rule, Selector};

use super::{
    compare::Ports,
    problem::{Report, quote},
    roster::{Owners, has_filter, takes_packets},
    text::{Membership, PolicyFile},
};

/// Warns of rules that do nothing. `members` have the groups that the file gives them.
pub(super) fn warn(
    file: &PolicyFile,
    membership: &Membership,
    members: &[Member],
    rules: &[&Rule],
    report: &mut Report<'_>,
) {
    let idle = idle(file, members, rules, report);
    redundant(file, membership, members, rules, &idle, report);
}

/// Whom selectors select, as far as it matters for whether anything can match: a few members of each kind.
#[derive(Debug, Clone, Default)]
struct Who {
    /// Up to two members, by kind: what filter they have, and an address family.
    some: [Vec<usize>; 4],
}

impl Who {
    fn add(&mut self, place: usize, member: &Member, ipv4: bool) {
        let kind = usize::from(has_filter(member)) * 2 + usize::from(ipv4);
        if self.some[kind].len() < 2 && !self.some[kind].contains(&place) {
            self.some[kind].push(place);
        }
    }

    fn join(&mut self, other: &Self) {
        for (own, others) in self.some.iter_mut().zip(&other.some) {
            let new: Vec<usize> = others.iter().copied().filter(|place| !own.contains(place)).collect();
            own.extend(new);
            own.truncate(2);
        }
    }

    fn is_empty(&self) -> bool {
        self.some.iter().all(Vec::is_empty)
    }

    fn all(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.some.iter().enumerate().flat_map(|(kind, places)| places.iter().map(move |place| (kind, *place)))
    }

    /// Whether there can be a packet between two kinds: of one family, and judged by somebody.
    const fn kinds_match(one: usize, other: usize) -> bool {
        one % 2 == other % 2 && (one >= 2 || other >= 2)
    }
}

/// Warns of rules that can never match; returns which they are.
fn idle(file: &PolicyFile, members: &[Member], rules: &[&Rule], report: &mut Report<'_>) -> Vec<bool> {
    let mut selected = Selected { members, owners: Owners::of(members), known: BTreeMap::new() };
    let mut idle = Vec::with_capacity(rules.len());
    for (number, (rule, text)) in (1_u32..).zip(rules.iter().zip(&file.rules)) {
        let (from, to) = (selected.by(&rule.sources), selected.by(&rule.destinations));
        let matches = from.all().any(|(kind, source)| {
            to.all().any(|(other, destination)| source != destination && Who::kinds_match(kind, other))
        });
        idle.push(!matches);
        if matches {
            continue;
        }
        let (at, why) = if from.is_empty() {
            (text.from.at, format!("its `from` selects nobody now: {}", nobody(&rule.sources)))
        } else if to.is_empty() {
            (text.to.at, format!("its `to` selects nobody now: {}", nobody(&rule.destinations)))
        } else {
            (text.at, why_not(&from, &to, members))
        };
        report.warning(at, || format!("rule {number} can never match: {why}"));
    }
    idle
}

/// Why there is nobody on a side of a rule.
fn nobody(selectors: &[Selector]) -> String {
    match selectors {
        [Selector::Group(name)] => format!("no member is in the group {}", quote(name)),
        [Selector::Tag(name)] => format!("no member has the tag {}", quote(name)),
        [Selector::Prefix(range)] if range.is_host() => {
            format!("{} is no member's address, and in no member's routes", range.address())
        }
        [Selector::Prefix(range)] => format!("no member has an address or a route in {range}"),
        [Selector::Node(_)] => "a relay sends and takes no packets of its own".into(),
        _ => "its groups and tags are empty, and its addresses are no member's".into(),
    }
}

fn why_not(from: &Who, to: &Who, members: &[Member]) -> String {
    let stock = |who: &Who| who.all().all(|(kind, _)| kind < 2);
    let one = |who: &Who| {
        let mut places: Vec<usize> = who.all().map(|(_, place)| place).collect();
        places.dedup();
        match places.as_slice() {
            [first, rest @ ..] if rest.iter().all(|place| place == first) => Some(*first),
            _ => None,
        }
    };
    match (one(from), one(to)) {
        (Some(source), Some(destination)) if source == destination => {
            let name = members.get(source).map_or("", |member| member.name.as_str());
            format!("both sides are {} alone, and what a member sends to itself passes no filter", quote(name))
        }
        _ if stock(from) && stock(to) => {
            "both sides are stock WireGuard devices, which have no filter and do not know each other".into()
        }
        _ => "its `from` and `to` have no address family in common, so there is no packet from one to the other".into(),
    }
}

/// Whom selectors select, each word looked up once.
struct Selected<'m> {
    members: &'m [Member],
    owners: Owners,
    known: BTreeMap<Selector, Who>,
}

impl Selected<'_> {
    fn by(&mut self, selectors: &[Selector]) -> Who {
        let mut who = Who::default();
        for selector in selectors {
            if !self.known.contains_key(selector) {
                let found = self.look_up(selector);
                self.known.insert(selector.clone(), found);
            }
            if let Some(known) = self.known.get(selector) {
                who.join(known);
            }
        }
        who
    }

    fn look_up(&self, selector: &Selector) -> Who {
        let mut who = Who::default();
        if let Selector::Prefix(range) = selector {
            for (own, place) in self.owners.within(*range) {
                if let Some(member) = self.members.get(place).filter(|member| takes_packets(member)) {
                    who.add(place, member, own.is_ipv4());
                }
            }
            return who;
        }
        for (place, member) in self.members.iter().enumerate().filter(|(_, member)| takes_packets(member)) {
            let is_meant = match selector {
                Selector::All => true,
                Selector::Node(id) => member.id == *id,
                Selector::Group(name) => member.groups.contains(name),
                Selector::Tag(name) => member.tags.contains(name),
                Selector::Prefix(_) => false,
            };
            if is_meant {
                member.allowed_ips().for_each(|own| who.add(place, member, own.is_ipv4()));
            }
        }
        who
    }
}

/// How many comparisons of words it may take to find rules that add nothing: a fraction of a second's work. Files of people take
/// thousands.
pub(super) const COMPARISONS_MAX: usize = 10_000_000;

/// Warns of rules that allow nothing that one earlier rule does not allow, whoever has which tag and address.
fn redundant(
    file: &PolicyFile,
    membership: &Membership,
    members: &[Member],
    rules: &[&Rule],
    idle: &[bool],
    report: &mut Report<'_>,
) {
    let mut search = Search::of(rules, Wider::of(rules, membership, members));
    for (later, text) in file.rules.iter().enumerate() {
        if report.is_full() {
            return;
        }
        let is_idle = idle.get(later).copied().unwrap_or_default();
        let found = if is_idle { Ok(None) } else { search.earlier(later) };
        match found {
            Ok(Some(earlier)) => report.warning(text.at, || {
                format!("rule {} adds nothing: rule {} allows all of it already", later + 1, earlier + 1)
            }),
            Ok(None) => {}
            Err(Exhausted) => {
                return report.warning(text.at, || {
                    format!(
                        "from rule {} on, rules that add nothing are not looked for: the rules before have too many words in common",
                        later + 1
                    )
                });
            }
        }
        search.add(later);
    }
}

/// The comparisons that may be made are made.
struct Exhausted;

/// The rules so far by the words of their sides, so that a rule is compared only with those that may allow all of it.
struct Search<'r> {
    rules: &'r [&'r Rule],
    wider: Wider<'r>,
    ports: Vec<Ports>,
    /// For each rule the number of its sources' words and of its destinations': sides that are alike have one number.
    sides: Vec<[usize; 2]>,
    words: Vec<Vec<usize>>,
    /// For each side, by word: the earlier rules that have it there.
    having: [Vec<Vec<usize>>; 2],
    /// Whether the first of two sides selects all that the second does, as far as that was asked.
    known: BTreeMap<(usize, usize), bool>,
    left: usize,
}

impl<'r> Search<'r> {
    fn of(rules: &'r [&'r Rule], wider: Wider<'r>) -> Self {
        let mut numbers: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
        let mut number = |selectors: &[Selector]| {
            let next = numbers.len();
            *numbers.entry(wider.numbers(selectors)).or_insert(next)
        };
        let sides = rules.iter().map(|rule| [number(&rule.sources), number(&rule.destinations)]).collect();
        let mut words = vec![Vec::new(); numbers.len()];
        for (side, number) in numbers {
            words[number] = side;
        }
        Self {
            rules,
            ports: rules.iter().map(|rule| Ports::of(&rule.ports)).collect(),
            sides,
            words,
            having: [(); 2].map(|()| vec![Vec::new(); wider.by.len()]),
            wider,
            known: BTreeMap::new(),
            left: COMPARISONS_MAX,
        }
    }

    /// Takes in a rule, as one that is earlier than those to come.
    fn add(&mut self, rule: usize) {
        for (having, side) in self.having.iter_mut().zip(self.sides[rule]) {
            self.words[side].iter().for_each(|word| having[*word].push(rule));
        }
    }

    /// The first of the rules so far that allows all that the rule `later` does.
    fn earlier(&mut self, later: usize) -> Result<Option<usize>, Exhausted> {
        let mut candidates = self.candidates(later)?;
        candidates.sort_unstable();
        candidates.dedup();
        for earlier in candidates {
            let (one, other) = (self.rules[earlier], self.rules[later]);
            self.spend(1 + one.ports.len().max(1).saturating_mul(other.ports.len()))?;
            let service = one.protocol == Protocol::Any
                || (one.protocol == other.protocol && self.ports[earlier].covers(&self.ports[later]));
            if service
                && self.covers(self.sides[earlier][0], self.sides[later][0])?
                && self.covers(self.sides[earlier][1], self.sides[later][1])?
            {
                return Ok(Some(earlier));
            }
        }
        Ok(None)
    }

    /// The rules so far that have the rarest word of the rule `later`, or one that means more, on the same side.
    fn candidates(&mut self, later: usize) -> Result<Vec<usize>, Exhausted> {
        let mut rarest: Option<(usize, [usize; 2])> = None;
        for (place, side) in self.sides[later].into_iter().enumerate() {
            let tried = self.words[side].iter().map(|word| self.wider.by[*word].len()).sum();
            self.spend(tried)?;
            for word in &self.words[side] {
                let having = self.wider.by[*word].iter().map(|wider| self.having[place][*wider].len()).sum();
                if rarest.is_none_or(|(fewest, _)| having < fewest) {
                    rarest = Some((having, [place, *word]));
                }
            }
        }
        let Some((count, [place, word])) = rarest else { return Ok(Vec::new()) };
        self.spend(count)?;
        let wider = self.wider.by[word].iter();
        Ok(wider.flat_map(|wider| self.having[place][*wider].iter().copied()).collect())
    }

    /// Whether one side selects all that another one does.
    fn covers(&mut self, one: usize, other: usize) -> Result<bool, Exhausted> {
        if one == other {
            return Ok(true);
        }
        if let Some(known) = self.known.get(&(one, other)) {
            return Ok(*known);
        }
        let mut covers = true;
        for place in 0..self.words[other].len() {
            let word = self.words[other][place];
            self.spend(self.wider.by[word].len())?;
            if !self.wider.is_meant(&self.words[one], word) {
                covers = false;
                break;
            }
        }
        self.known.insert((one, other), covers);
        Ok(covers)
    }

    fn spend(&mut self, comparisons: usize) -> Result<(), Exhausted> {
        self.left = self.left.checked_sub(comparisons).ok_or(Exhausted)?;
        Ok(())
    }
}

/// The words of all rules by numbers, and for each the words that mean it and more.
struct Wider<'r> {
    numbers: BTreeMap<&'r Selector, usize>,
    by: Vec<Vec<usize>>,
}

impl<'r> Wider<'r> {
    fn of(rules: &[&'r Rule], membership: &Membership, members: &[Member]) -> Self {
        let mut numbers: BTreeMap<&Selector, usize> = BTreeMap::new();
        for selector in rules.iter().flat_map(|rule| rule.sources.iter().chain(&rule.destinations)) {
            let next = numbers.len();
            numbers.entry(selector).or_insert(next);
        }
        let mut groups_of = BTreeMap::new();
        members.iter().for_each(|member| {
            groups_of.insert(member.id, &member.groups);
        });
        let by_name: BTreeMap<&str, &Member> =
            members.iter().map(|member| (member.name.as_str(), member)).collect();
        let mut by = vec![Vec::new(); numbers.len()];
        for (selector, number) in &numbers {
            let mut wider = vec![*number];
            let mut add = |selector: &Selector| wider.extend(numbers.get(selector));
            add(&Selector::All);
            match selector {
                Selector::Node(id) => {
                    let groups = groups_of.get(id).into_iter().flat_map(|groups| groups.iter());
                    groups.for_each(|group| add(&Selector::Group(group.clone())));
                }
                Selector::Group(name) => {
                    // Whatever group holds all of it holds its first member.
                    let inner = membership.members(name);
                    let first = inner.and_then(|members| members.first());
                    let groups =
                        first.and_then(|first| by_name.get(first.as_str())).map(|first| &first.groups);
                    for outer in groups.into_iter().flatten() {
                        if inner
                            .zip(membership.members(outer))
                            .is_some_and(|(inner, outer)| inner.is_subset(outer))
                        {
                            add(&Selector::Group(outer.clone()));
                        }
                    }
                }
                Selector::Prefix(range) => {
                    let lengths = 0..range.len();
                    let outer = lengths
                        .filter_map(|len| ringmesh_tunnel::ip::Prefix::containing(range.address(), len).ok());
                    outer.for_each(|outer| add(&Selector::Prefix(outer)));
                }
                Selector::All | Selector::Tag(_) => {}
            }
            wider.sort_unstable();
            by[*number] = wider;
        }
        Self { numbers, by }
    }

    fn numbers(&self, selectors: &[Selector]) -> Vec<usize> {
        let mut numbers: Vec<usize> =
            selectors.iter().filter_map(|selector| self.numbers.get(selector)).copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// Whether a side of a rule has a word that means another one, or more.
    fn is_meant(&self, side: &[usize], word: usize) -> bool {
        self.by[word].iter().any(|wider| side.binary_search(wider).is_ok())
    }
}
